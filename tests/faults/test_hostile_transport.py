"""A peer that shakes hands well and breaks Noise or yamux afterwards loses its connection, and nobody else anything."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio

from p2pnode.core import yamux
from p2pnode.core.peerid import PeerId
from p2pnode.host.frames import encode_frame, encode_varint
from tests.e2e.harness import have_all, start_node, stop
from tests.faults import crafted
from tests.faults.duel import BULK, TOPIC, Duel
from tests.faults.hostile import MESHSUB, eventually
from tests.host.raw import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    RST,
    SYN,
    WINDOW,
    RawPeer,
    data_frame,
    frame,
    raw_peer,
    tcp_to,
)

CLOSING_SECONDS = 30.0
"""Generous: what is expected is printed, and below two seconds."""

BATCH = 1000
MULTISTREAM = "/multistream/1.0.0"
Attack = Callable[[RawPeer], Awaitable[None]]


def line(text: str) -> bytes:
    """One line of multistream-select."""
    return encode_varint(len(text) + 1) + text.encode() + b"\n"


@pytest.fixture(scope="module", autouse=True)
def closing_times(pytestconfig: pytest.Config) -> Iterator[dict[str, float]]:
    """Seconds from the bad bytes to the end of the connection; printed at the end."""
    times: dict[str, float] = {}
    yield times
    with pytestconfig.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():  # type: ignore[union-attr]
        for name, seconds in times.items():
            print(f"\n{name}: closed after {seconds:.3f} s", end="")


# -- what breaks the protocol ---------------------------------------------------------------------


async def window_overrun(peer: RawPeer) -> None:
    await peer.send(frame(WINDOW, SYN, 1, 0), frame(DATA, 0, 1, yamux.INITIAL_WINDOW_BYTES + 1, bytes(1000)))


async def window_overrun_in_small_steps(peer: RawPeer) -> None:
    # Of a stream that is never negotiated to its end, so nobody reads it.
    await peer.send(data_frame(1, line(MULTISTREAM) + line(MESHSUB), SYN), data_frame(1, b"\x80\x80\x40"))
    for number in range(3):
        for stream in range(3, 43, 2):
            flags = SYN if number == 0 else 0
            await peer.send(data_frame(stream, b"\xff\xff\x03" + bytes(100_000), flags))


async def four_gib(peer: RawPeer) -> None:
    await peer.send(frame(DATA, SYN, 1, 2**32 - 1, bytes(100_000)))


async def window_overflow(peer: RawPeer) -> None:
    await peer.send(frame(WINDOW, SYN, 1, 2**32 - 1), frame(WINDOW, 0, 1, 2**32 - 1))


async def ten_thousand_streams(peer: RawPeer) -> None:
    for first in range(0, 10_000, BATCH):
        await peer.send(*(frame(WINDOW, SYN, 2 * number + 1, 0) for number in range(first, first + BATCH)))


async def stream_never_opened(peer: RawPeer) -> None:
    await peer.send(data_frame(77, b"who is there?"))


async def stream_of_theirs(peer: RawPeer) -> None:
    await peer.send(data_frame(1_000_000, b"who is there?"))


async def stream_number_of_theirs(peer: RawPeer) -> None:
    await peer.send(frame(WINDOW, SYN, 2_000, 0))


async def stream_opened_twice(peer: RawPeer) -> None:
    await peer.send(frame(WINDOW, SYN, 1, 0), frame(WINDOW, SYN, 1, 0))


async def data_after_the_end(peer: RawPeer) -> None:
    # The negotiation fails at the end of the stream, which is seen later than the data that is in the same write.
    await peer.send(frame(DATA, SYN | FIN, 1, 0), data_frame(1, b"one more thing"))


async def frames_for_a_closed_stream(peer: RawPeer) -> None:
    await peer.send(frame(WINDOW, SYN, 1, 0), frame(WINDOW, RST, 1, 0))
    for _ in range(10):
        await peer.send(*(frame(WINDOW, 0, 1, 0) for _ in range(BATCH)))


async def resets(peer: RawPeer) -> None:
    for first in range(0, 10_000, BATCH):
        numbers = range(2 * first + 1, 2 * (first + BATCH), 2)
        await peer.send(*(frame(WINDOW, flag, number, 0) for number in numbers for flag in (SYN, RST)))


async def pings(peer: RawPeer) -> None:
    for _ in range(10):
        await peer.send(*(frame(PING, SYN, 0, number) for number in range(BATCH)))


async def answers_to_no_ping(peer: RawPeer) -> None:
    for _ in range(10):
        await peer.send(*(frame(PING, ACK, 0, number) for number in range(BATCH)))


async def go_aways(peer: RawPeer) -> None:
    for _ in range(10):
        await peer.send(*(frame(GO_AWAY, 0, 0, 0) for _ in range(BATCH)))


async def streams_opened_and_reset_in_one_frame(peer: RawPeer) -> None:
    for first in range(0, 10_000, BATCH):
        await peer.send(*(frame(WINDOW, SYN | RST, 2 * number + 1, 0) for number in range(first, first + BATCH)))


async def ends_of_an_ended_stream(peer: RawPeer) -> None:
    await peer.send(frame(WINDOW, SYN, 1, 0))
    for _ in range(10):
        await peer.send(*(frame(DATA, FIN, 1, 0) for _ in range(BATCH)))


async def empty_data(peer: RawPeer) -> None:
    await peer.send(frame(WINDOW, SYN, 1, 0))
    for _ in range(10):
        await peer.send(*(frame(DATA, 0, 1, 0) for _ in range(BATCH)))


async def unknown_version(peer: RawPeer) -> None:
    await peer.send(b"\x01" + frame(PING, SYN, 0, 1)[1:])


async def http(peer: RawPeer) -> None:
    await peer.send(b"GET / HTTP/1.1\r\nHost: p2pnode\r\n\r\n")


async def unknown_type(peer: RawPeer) -> None:
    await peer.send(frame(9, 0, 1, 0))


async def stream_zero(peer: RawPeer) -> None:
    await peer.send(data_frame(0, b"x"))


async def length_below_the_tag(peer: RawPeer) -> None:
    await peer.send_raw(b"\x00\x0f" + bytes(15))


async def wrong_tag(peer: RawPeer) -> None:
    sealed = bytearray(peer.seal(frame(PING, SYN, 0, 1)))
    sealed[-1] ^= 1
    await peer.send_raw(bytes(sealed))


async def replay(peer: RawPeer) -> None:
    sealed = peer.seal(frame(PING, SYN, 0, 1))
    await peer.send_raw(sealed + sealed)


async def plain_yamux(peer: RawPeer) -> None:
    await peer.send_raw(frame(PING, SYN, 0, 1) * 100)


async def truncated_noise(peer: RawPeer) -> None:
    await peer.send_raw(peer.seal(frame(PING, SYN, 0, 1))[:-1])
    await peer.end()


async def truncated_frame(peer: RawPeer) -> None:
    await peer.send(data_frame(1, bytes(1000), SYN)[:-1])
    await peer.end()


BREACHES: dict[Attack, str] = {
    window_overrun: "window-overrun",
    window_overrun_in_small_steps: "window-overrun",
    four_gib: "window-overrun",
    window_overflow: "window-overflow",
    ten_thousand_streams: "flood",
    stream_never_opened: "unknown-stream",
    stream_of_theirs: "unknown-stream",
    stream_number_of_theirs: "parity",
    stream_opened_twice: "duplicate-stream",
    data_after_the_end: "after-fin",
    frames_for_a_closed_stream: "flood",
    resets: "flood",
    pings: "flood",
    answers_to_no_ping: "flood",
    empty_data: "flood",
    go_aways: "flood",
    ends_of_an_ended_stream: "flood",
    streams_opened_and_reset_in_one_frame: "flood",
    unknown_version: "version",
    http: "version",
    unknown_type: "type",
    stream_zero: "stream-zero",
    length_below_the_tag: "noise-length",
    wrong_tag: "noise-tag",
    replay: "noise-tag",
    plain_yamux: "noise-length",
    truncated_noise: "cut",
    truncated_frame: "cut",
}


@pytest.mark.parametrize(("attack", "reason"), BREACHES.items(), ids=[attack.__name__ for attack in BREACHES])
async def test_whoever_breaks_the_protocol_loses_its_connection_and_nobody_else_anything(
    duel: Duel, closing_times: dict[str, float], attack: Attack, reason: str
) -> None:
    before = duel.broken(reason)
    async with raw_peer(duel.address) as peer:
        await attack(peer)
        with trio.fail_after(CLOSING_SECONDS):
            closing_times[attack.__name__] = await peer.closed()
        await eventually(f"{reason} is counted", lambda: duel.broken(reason) == before + 1)
    await eventually("it is not linked any more", lambda: peer.peer_id not in linked(duel))
    duel.assert_unharmed()


def linked(duel: Duel) -> set[str]:
    return {document["peer_id"] for document in duel.victim.get("/api/v1/peers") if document["connected"]}


async def test_a_ping_flood_whose_answers_are_read_is_a_flood_as_well(
    duel: Duel, closing_times: dict[str, float]
) -> None:
    before = duel.broken("flood")
    async with raw_peer(duel.address) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(pings, peer)
        with trio.fail_after(CLOSING_SECONDS):
            closing_times["pings, answers read"] = await peer.closed()
        await eventually("the flood is counted", lambda: duel.broken("flood") == before + 1)
    duel.assert_unharmed()


async def test_a_few_frames_for_a_closed_stream_are_nothing_unusual(duel: Duel) -> None:
    async with raw_peer(duel.address) as peer:
        await peer.send(data_frame(1, b"\xff" * 20, SYN))
        with trio.fail_after(CLOSING_SECONDS):
            await peer.read_until(frame(WINDOW, RST, 1, 0))
        await peer.send(data_frame(1, b"crossed the reset"), frame(WINDOW, 0, 1, 100), frame(WINDOW, FIN, 1, 0))
        await peer.send(frame(PING, SYN, 0, 4711))
        with trio.fail_after(CLOSING_SECONDS):
            await peer.read_until(frame(PING, ACK, 0, 4711))


# -- what is allowed, however strange -------------------------------------------------------------


async def test_a_message_is_understood_that_comes_a_byte_at_a_time(duel: Duel) -> None:
    """Each byte of yamux in a Noise message of its own, and each byte of that in a packet of its own."""
    async with raw_peer(duel.address) as peer:
        rpc = crafted.signed(peer.identity, TOPIC, b"slowly", 1).SerializeToString()
        plain = data_frame(1, line(MULTISTREAM) + line(MESHSUB) + encode_frame(rpc), SYN)
        for at in range(len(plain)):
            sealed = peer.seal(plain[at : at + 1])
            for byte in range(len(sealed)):
                await peer.send_raw(sealed[byte : byte + 1])
        message_id = f"{peer.peer_id}-1"
        await eventually("it is kept", lambda: message_id in duel.victim.ids(TOPIC))
        await eventually("it was passed on", lambda: message_id in duel.neighbour.ids(TOPIC))
        duel.assert_unharmed()


# -- who stalls -----------------------------------------------------------------------------------


class Answering:
    """Agrees to meshsub, and to nothing else, on the streams that the victim opens."""

    def __init__(self, peer: RawPeer) -> None:
        self._peer = peer
        self._session = yamux.Session(initiator=True)
        self._asked: dict[yamux.Stream, bytes] = {}

    async def until_meshsub(self) -> None:
        """Read and answer until the victim has its stream."""
        agreed = False
        while not agreed:
            assert await self._peer.read_some()
            plain = bytes(self._peer.plain)
            self._peer.plain.clear()
            for event in self._session.receive(plain, trio.current_time()):
                if isinstance(event, yamux.Opened):
                    self._session.accept(event.stream)
                    self._session.write(event.stream, line(MULTISTREAM))
                    self._asked[event.stream] = b""
                elif isinstance(event, yamux.Data):
                    self._session.consumed(event.stream, len(event.data))
                    agreed |= self._answer(event.stream, event.data)
            await self._peer.send(self._session.take(1 << 20))

    def _answer(self, stream: yamux.Stream, data: bytes) -> bool:
        known = {MULTISTREAM: False}
        self._asked[stream] += data
        while (asked := self._asked[stream]) and len(asked) > asked[0]:
            text = asked[1 : asked[0]].decode()
            self._asked[stream] = asked[asked[0] + 1 :]
            if text.startswith("/meshsub"):
                self._session.write(stream, line(text))
                return True
            if text not in known:
                self._session.write(stream, line("na"))
        return False


async def test_a_subscriber_that_stops_reading_its_socket_under_load_is_given_up(
    duel: Duel, closing_times: dict[str, float]
) -> None:
    before = given_up(duel)
    async with raw_peer(duel.address) as peer:
        with trio.fail_after(CLOSING_SECONDS):
            await Answering(peer).until_meshsub()
        rpc = crafted.subscribe(BULK).SerializeToString()
        graft = crafted.graft(BULK).SerializeToString()
        hello = line(MULTISTREAM) + line(MESHSUB) + encode_frame(rpc) + encode_frame(graft)
        await peer.send(data_frame(1, hello, SYN))
        await eventually("it takes part", lambda: peer.peer_id in mesh(duel, BULK))
        start = trio.current_time()
        ids = {duel.victim.publish_accepted(BULK, os.urandom(4096)) for _ in range(1000)}
        await trio.to_thread.run_sync(have_all, [duel.neighbour], BULK, ids)
        duel.assert_unharmed()
        await eventually("it is given up", lambda: given_up(duel) == before + 1)
        closing_times["stops reading under load"] = trio.current_time() - start
    await eventually("it is not linked any more", lambda: peer.peer_id not in linked(duel))
    await eventually("nothing waits", lambda: duel.victim.metric("p2pnode_outbound_waiting") == 0)
    duel.assert_unharmed()


def given_up(duel: Duel) -> float:
    """For a socket that takes nothing, or for silence, whichever is seen first: it depends on the kernel's buffers."""
    return duel.broken("full") + duel.broken("silent")


def mesh(duel: Duel, topic: str) -> list[str]:
    return next(each["mesh"] for each in duel.victim.get("/api/v1/topics") if each["topic"] == topic)


async def test_whoever_stalls_in_the_handshake_is_closed(duel: Duel, closing_times: dict[str, float]) -> None:
    before = duel.broken("handshake")
    noise = line(MULTISTREAM) + line("/noise")
    stalls = {
        "says nothing": b"",
        "stops within a line": line(MULTISTREAM)[:5],
        "stops after multistream": line(MULTISTREAM),
        "stops before Noise": noise,
        "stops within Noise": noise + b"\x00\x20" + bytes(10),
        "stops in the middle of Noise": noise + b"\x00\x20" + bytes(32),
    }

    async def stall(name: str, data: bytes) -> None:
        stream = await tcp_to(duel.address)
        async with stream:
            start = trio.current_time()
            await stream.send_all(data)
            with trio.fail_after(2 * CLOSING_SECONDS):
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
            closing_times[f"handshake, {name}"] = trio.current_time() - start

    async with trio.open_nursery() as nursery:
        for name, data in stalls.items():
            for _ in range(10):
                nursery.start_soon(stall, name, data)
        await trio.to_thread.run_sync(duel.assert_unharmed)
    await eventually("they are counted", lambda: duel.broken("handshake") == before + 10 * len(stalls))
    duel.assert_unharmed()


@pytest.mark.soak
async def test_a_peer_that_was_stopped_for_30_s_under_load_comes_back(duel: Duel) -> None:
    stopped = start_node(duel.directory, "stopped", "--bootstrap", duel.address, env=duel.env)
    assert stopped.process is not None
    try:
        await eventually("it answers", stopped.answers)
        peer = PeerId(stopped.get("/api/v1/node")["peer_id"])
        await eventually("it takes part", lambda: peer in mesh(duel, BULK))
        before = given_up(duel)
        stopped.process.send_signal(signal.SIGSTOP)
        start = trio.current_time()
        ids = set()
        while trio.current_time() < start + 30:
            ids |= {duel.victim.publish_accepted(BULK, os.urandom(1024)) for _ in range(20)}
            await trio.sleep(0.05)
        assert given_up(duel) == before + 1
        assert peer not in linked(duel)
        await trio.to_thread.run_sync(have_all, [duel.neighbour], BULK, ids)
        stopped.process.send_signal(signal.SIGCONT)
        await eventually("it is back", lambda: peer in mesh(duel, BULK))
        message_id = duel.victim.publish_accepted(BULK, b"welcome back")
        await trio.to_thread.run_sync(have_all, [stopped], BULK, {message_id})
        duel.assert_unharmed()
    finally:
        stop(stopped, signal.SIGKILL)
