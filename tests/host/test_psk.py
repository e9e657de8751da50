"""Private networks: the cipher is the published one, members meet, and strangers hear why they do not."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from cryptography.hazmat.primitives.poly1305 import Poly1305
from hypothesis import given
from hypothesis import strategies as st
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import IncompleteReadError, IOException
from libp2p.io.msgio import read_length
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamEOF
from nacl.bindings import crypto_secretbox

from p2pnode.errors import Unavailable
from p2pnode.host.library import LibraryHost, to_library_id
from p2pnode.host.opening import Stack, open_host
from p2pnode.host.psk import (
    GREETING,
    HUNG_UP,
    HUNG_UP_ON_KEY,
    KEY_THERE,
    NO_KEY_THERE,
    NONCE_BYTES,
    OTHER_KEY,
    READ_BYTES,
    NetworkConnection,
    Stranger,
    hsalsa20,
    xsalsa20,
)
from p2pnode.identity import Identity
from tests.host.raw import CLOSED, proxy_to, tcp_to
from tests.properties import some
from tests.stacks import on_both_stacks

KEY, ANOTHER, NONE = b"k" * 32, b"a" * 32, b""
LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
ECHO = TProtocol("/test/echo")
MIB = 1024 * 1024
DEADLINE_SECONDS = 25.0
"""Less than the 30 s after which the library gives a negotiation up, so that it is not what ends one here."""

# NaCl, tests/core1.c, core2.c and stream3.c.
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
FIRST_KEY = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
PREFIX = bytes.fromhex("69696ee955b62b73cd62bda875fc73d6")
SECOND_KEY = bytes.fromhex("dc908dda0b9344a953629b733820778880f3ceb421bb61b91cbd4c3e66256ce4")
SUFFIX = bytes.fromhex("8219e0036b7a0b37")
STREAM = bytes.fromhex("eea6a7251c1e72916d11c2cb214d3c252539121d8e234e652d651fa4c8cff880")


# -- the cipher -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "block", "expected"), [(SHARED, bytes(16), FIRST_KEY), (FIRST_KEY, PREFIX, SECOND_KEY)]
)
def test_hsalsa20_is_that_of_the_published_vectors(key: bytes, block: bytes, expected: bytes) -> None:
    assert hsalsa20(key, block) == expected


def test_xsalsa20_is_that_of_the_published_vector() -> None:
    assert xsalsa20(FIRST_KEY, PREFIX + SUFFIX)(bytes(32)) == STREAM


@some
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES),
    st.lists(st.binary(max_size=300), max_size=12),
)
def test_the_stream_is_libsodiums_however_it_is_cut(key: bytes, nonce: bytes, parts: list[bytes]) -> None:
    # A secretbox is Poly1305 of the ciphertext under the first 32 bytes of the stream, then the text under the rest.
    encrypt = xsalsa20(key, nonce)
    tag_key = encrypt(bytes(32))
    sealed = b"".join(encrypt(part) for part in parts)
    assert Poly1305.generate_tag(tag_key, sealed) + sealed == crypto_secretbox(b"".join(parts), nonce, key)


# -- the first words of a connection --------------------------------------------------------------


class Wire(ReadWriteCloser):
    """A socket that hands out what it was given, so many bytes at a time, then the end; it keeps what is said.

    Attributes:
        asked: for how many bytes each read was.
    """

    def __init__(self, data: bytes, at_once: int = 1000) -> None:
        self.said = b""
        self.asked: list[int | None] = []
        self._rest = data
        self._at_once = at_once

    async def read(self, n: int | None = None) -> bytes:
        self.asked.append(n)
        size = self._at_once if n is None else min(self._at_once, n)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def write(self, data: bytes) -> None:
        self.said += data

    async def close(self) -> None: ...

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


def over(wire: Wire, key: bytes) -> NetworkConnection:
    return NetworkConnection(RawConnection(wire, True), key)


def said_by(key: bytes, text: bytes, nonce: bytes = b"n" * NONCE_BYTES) -> bytes:
    return nonce + xsalsa20(key, nonce)(text) if key else text


async def heard(connection: NetworkConnection, chunk: int) -> bytes:
    got = b""
    while data := await connection.read(chunk):
        got += data
    return got


@pytest.mark.parametrize("key", [KEY, NONE])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("chunk", [1, 5, 1000])
async def test_what_is_said_is_heard_however_it_is_cut(key: bytes, at_once: int, chunk: int) -> None:
    text = GREETING + bytes(range(256))
    assert await heard(over(Wire(said_by(key, text), at_once), key), chunk) == text
    wire = Wire(b"")
    connection = over(wire, key)
    for start in range(0, len(text), chunk):
        await connection.write(text[start : start + chunk])
    assert len(wire.said) == len(text) + (NONCE_BYTES if key else 0)
    assert await heard(over(Wire(wire.said), key), 1000) == text


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [(KEY, ANOTHER, OTHER_KEY), (KEY, NONE, NO_KEY_THERE), (NONE, KEY, KEY_THERE)],
)
@pytest.mark.parametrize("at_once", [1, 1000])
async def test_who_is_of_another_network_is_known_by_the_first_line(
    ours: bytes, theirs: bytes, reason: str, at_once: int
) -> None:
    with pytest.raises(Stranger, match=r"network\.key") as caught:
        await over(Wire(said_by(theirs, GREETING), at_once), ours).read(1)
    assert str(caught.value) == reason


@pytest.mark.parametrize("words", [b"\x00", b"\xff" * 8, b"GET / HTTP/1.1\r\n", b"\x13/multistream/2"])
async def test_a_stranger_is_not_listened_to_for_longer_than_its_first_wrong_byte(words: bytes) -> None:
    with pytest.raises(Stranger, match="no libp2p peer"):
        await over(Wire(words), NONE).read(1)


@pytest.mark.parametrize(
    ("key", "reason", "words"),
    [(KEY, HUNG_UP_ON_KEY, size) for size in (0, 10, 22, 30)] + [(NONE, HUNG_UP, size) for size in (0, 10)],
)
async def test_who_hangs_up_within_the_first_words_is_said_to_have_done_so(key: bytes, reason: str, words: int) -> None:
    with pytest.raises(Stranger) as caught:
        await over(Wire(said_by(key, GREETING)[:words]), key).read(1)
    assert str(caught.value) == reason


async def test_no_more_is_asked_of_the_kernel_than_a_read_may_take() -> None:
    wire = Wire(GREETING)
    connection = over(wire, NONE)
    await connection.read(len(GREETING))
    await connection.read(2**62)
    assert wire.asked[-1] == READ_BYTES


@pytest.mark.parametrize("key", [KEY, NONE])
async def test_the_library_hears_of_the_end_without_asking_a_hundred_times(key: bytes) -> None:
    wire = Wire(said_by(key, GREETING + b"\x00"))
    connection = over(wire, key)
    await connection.read(len(GREETING))
    before = len(wire.asked)
    with pytest.raises(IncompleteReadError):
        await read_length(connection, 2)
    assert len(wire.asked) - before < 10


async def test_ciphers_are_handed_over_after_the_first_words_only() -> None:
    connection = over(Wire(said_by(KEY, GREETING + b"more")), KEY)
    with pytest.raises(IOException, match="before its handshake"):
        connection.ciphers()
    await connection.write(b"")
    await connection.read(len(GREETING))
    cloak = connection.ciphers()
    assert cloak is not None
    reading, _ = cloak
    assert reading(said_by(KEY, GREETING + b"more")[-4:]) == b"more"


# -- two hosts ------------------------------------------------------------------------------------


async def echo(stream: INetStream) -> None:
    try:
        while True:
            await stream.write(await stream.read(65_536))
    except StreamEOF:
        await stream.close()


async def shout(peer: str, body: bytes) -> bytes:
    return body.upper()


@asynccontextmanager
async def listening(stack: Stack, key: bytes) -> AsyncIterator[LibraryHost]:
    async with open_host(Identity.generate(), LOOPBACK, stack=stack, network_key=key) as host:
        host.set_handler(ECHO, echo)
        host.serve("/test/shout", shout, limit_bytes=MIB)
        host.swarm.connection_config.inbound_upgrade_timeout = 10 * DEADLINE_SECONDS
        with trio.fail_after(DEADLINE_SECONDS):
            yield host


def counted(host: LibraryHost) -> set[str]:
    return {reason for (_, reason), count in host.counters().items() if count}


async def echoed(host: LibraryHost, listener: LibraryHost, data: bytes) -> bytes:
    stream = await host.library.new_stream(to_library_id(listener.peer_id), [ECHO])
    got = bytearray()

    async def say() -> None:
        for start in range(0, len(data), 300_000):
            await stream.write(data[start : start + 300_000])
        await stream.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        while len(got) < len(data):
            got += await stream.read(65_536)
    return bytes(got)


@on_both_stacks
@pytest.mark.parametrize("dials", ["fused", "library"])
async def test_members_request_stream_and_measure_as_in_a_public_network(stack: Stack, dials: Stack) -> None:
    async with (
        listening(stack, KEY) as listener,
        open_host(Identity.generate(), [], stack=dials, network_key=KEY) as us,
    ):
        peer = await us.dial(listener.addrs()[0])
        assert await us.request(peer, "/test/shout", b"said", limit_bytes=100) == b"SAID"
        data = struct.pack("<Q", 0x0123456789ABCDEF) * (8 * MIB // 8)
        assert await echoed(us, listener, data) == data
        assert await us.ping(peer) >= 0
        assert counted(us) | counted(listener) == set()


@on_both_stacks
@pytest.mark.parametrize("key", [KEY, NONE])
async def test_a_link_stands_that_delivers_a_byte_at_a_time(
    stack: Stack, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for data in source:
                for position in range(len(data)):
                    await sink.send_all(data[position : position + 1])
        except CLOSED:
            pass

    monkeypatch.setattr("tests.host.raw._copy", copy)
    async with listening(stack, key) as listener, proxy_to(listener.addrs()[0]) as (_, addr):
        async with open_host(Identity.generate(), [], stack=stack, network_key=key) as us:
            peer = await us.dial(addr)
            data = bytes(range(256)) * 16
            assert await us.request(peer, "/test/shout", data, limit_bytes=MIB) == data.upper()


@on_both_stacks
async def test_a_member_is_reached_by_a_probe_and_a_stranger_is_not(stack: Stack) -> None:
    async with listening(stack, KEY) as listener:
        addrs = [addr.partition("/p2p/")[0] for addr in listener.addrs()]
        for key, expected in ((KEY, True), (ANOTHER, False), (NONE, False)):
            async with open_host(Identity.generate(), [], stack=stack, network_key=key) as host:
                assert await host.probe(listener.peer_id, addrs, 10 * DEADLINE_SECONDS) is expected
        assert not listener.links()


@on_both_stacks
@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [(KEY, ANOTHER, OTHER_KEY), (KEY, NONE, KEY_THERE), (NONE, KEY, NO_KEY_THERE)],
    ids=["another key", "no key here", "no key there"],
)
async def test_a_stranger_hears_at_once_what_to_check_and_the_listener_goes_on(
    stack: Stack, theirs: bytes, ours: bytes, reason: str
) -> None:
    async with listening(stack, theirs) as listener:
        async with open_host(Identity.generate(), [], stack=stack, network_key=ours) as stranger:
            for _ in range(20):
                with pytest.raises(Unavailable) as caught:
                    await stranger.dial(listener.addrs()[0])
                assert caught.value.detail == f"{listener.addrs()[0]}: {reason}"
                assert caught.value.reason == "network-key"
            assert not stranger.links()
            assert not listener.links()
            assert counted(stranger) == set()
            assert counted(listener) <= {"handshake", "network-key"}
        async with open_host(Identity.generate(), [], stack=stack, network_key=theirs) as member:
            assert await member.dial(listener.addrs()[0]) == listener.peer_id


@on_both_stacks
@pytest.mark.parametrize("key", [KEY, NONE])
@pytest.mark.parametrize("words", [bytes(44), b"\xff" * 44, b"\x7f" * 44], ids=["nothing", "endless", "much"])
async def test_whoever_talks_garbage_is_hung_up_on_at_once(stack: Stack, key: bytes, words: bytes) -> None:
    async with listening(stack, key) as listener, await tcp_to(listener.addrs()[0]) as stream:
        await stream.send_all(words)
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        assert counted(listener) <= {"handshake", "network-key"}


ENDLESS = b"\xff" * 8 + b"\x7f"
GARBAGE = {
    "length": ENDLESS,
    "later length": GREETING + ENDLESS,
    "Noise": GREETING + b"\x07/noise\n\xff\xff" + b"x" * 70_000,
}


@on_both_stacks
@pytest.mark.parametrize("words", GARBAGE.values(), ids=GARBAGE)
async def test_whatever_answers_a_probe_the_host_goes_on(stack: Stack, words: bytes) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(words)
            await stream.send_eof()
            async for _ in stream:
                pass
        except CLOSED:
            pass

    async with trio.open_nursery() as nursery, open_host(Identity.generate(), [], stack=stack) as host:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        addr = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        with trio.fail_after(DEADLINE_SECONDS):
            stranger = Identity.generate().peer_id
            assert not await host.probe(stranger, [addr], DEADLINE_SECONDS)
            with pytest.raises(Unavailable):
                await host.dial(f"{addr}/p2p/{stranger}")
        nursery.cancel_scope.cancel()
