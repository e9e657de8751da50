"""The transport phase of Noise: any cutting is one message, and nothing false is one."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
import trio
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from libp2p.abc import ISecureConn
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession

from p2pnode.host.fused.noise import MAX_PLAIN_BYTES, NoiseError, Opener, Sealer
from p2pnode.host.fused.takeover import take_over
from p2pnode.identity import Identity
from tests.host.raw import secured_pair

KEY = ChaCha20Poly1305(b"k" * 32)


def pair(nonce: int = 0) -> tuple[Sealer, Opener]:
    return Sealer(KEY, nonce), Opener(KEY, nonce)


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0, 3000), max_size=12))
def test_however_the_bytes_were_cut_the_plaintext_is_the_same(messages: list[bytes], cuts: list[int]) -> None:
    sealer, opener = pair()
    sealed = b"".join(map(sealer.seal, messages))
    ends = sorted({min(cut, len(sealed)) for cut in cuts} | {0, len(sealed)})
    opened = b"".join(opener.feed(sealed[start:end]) for start, end in pairwise(ends))
    assert opened == b"".join(messages)
    assert not opener.cut


def test_a_byte_at_a_time_is_read_as_well() -> None:
    sealer, opener = pair()
    sealed = sealer.seal(b"one") + sealer.seal(b"two")
    opened = [opener.feed(sealed[at : at + 1]) for at in range(len(sealed))]
    assert [part for part in opened if part] == [b"one", b"two"]


def test_within_a_message_it_says_so() -> None:
    sealer, opener = pair()
    sealed = sealer.seal(b"message")
    assert not opener.cut
    for at in range(1, len(sealed)):
        opener.feed(sealed[at - 1 : at])
        assert opener.cut
    assert opener.feed(sealed[-1:]) == b"message"
    assert not opener.cut


@pytest.mark.parametrize("size", [0, 1, MAX_PLAIN_BYTES - 1, MAX_PLAIN_BYTES])
def test_what_fits_one_message_is_one(size: int) -> None:
    sealer, opener = pair()
    plain = os.urandom(size)
    sealed = sealer.seal(plain)
    assert int.from_bytes(sealed[:2], "big") == len(sealed) - 2 == size + 16
    assert opener.feed(sealed) == plain


@pytest.mark.parametrize("size", [MAX_PLAIN_BYTES + 1, 2 * MAX_PLAIN_BYTES, 1_000_000])
def test_what_fits_no_message_is_split_into_as_few_as_hold_it(size: int) -> None:
    sealer, opener = pair()
    plain = os.urandom(size)
    sealed = sealer.seal(plain)
    messages = -(-size // MAX_PLAIN_BYTES)
    assert len(sealed) == size + messages * 18
    assert opener.feed(sealed) == plain
    # The counters went on together.
    assert opener.feed(sealer.seal(b"next")) == b"next"


def test_the_counters_go_on_from_where_the_handshake_left_them() -> None:
    sealer, _ = pair(nonce=7)
    with pytest.raises(NoiseError):
        Opener(KEY, 6).feed(sealer.seal(b"x"))
    sealer, opener = pair(nonce=2**32)
    assert opener.feed(sealer.seal(b"x")) == b"x"


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_length_below_the_tag_is_an_error_by_itself(length: int) -> None:
    with pytest.raises(NoiseError) as caught:
        pair()[1].feed(length.to_bytes(2, "big"))
    assert caught.value.reason == "noise-length"


@pytest.mark.parametrize("at", [2, 5, -1])
def test_a_changed_byte_is_a_wrong_tag(at: int) -> None:
    sealer, opener = pair()
    sealed = bytearray(sealer.seal(b"message"))
    sealed[at] ^= 1
    with pytest.raises(NoiseError) as caught:
        opener.feed(bytes(sealed))
    assert caught.value.reason == "noise-tag"


def test_a_replayed_a_left_out_and_a_swapped_message_are_wrong_tags() -> None:
    sealer, _ = pair()
    first, second, third = (sealer.seal(text) for text in (b"1", b"2", b"3"))
    for order in ((first, first), (first, third), (second, first)):
        with pytest.raises(NoiseError) as caught:
            pair()[1].feed(b"".join(order))
        assert caught.value.reason == "noise-tag"


def frames_of(secured: ISecureConn) -> NoiseTransportReadWriter:
    assert isinstance(secured, SecureSession)
    assert isinstance(secured.conn, NoiseTransportReadWriter)
    return secured.conn


@pytest.mark.parametrize("we_dial", [True, False])
async def test_the_library_reads_what_we_seal_and_we_what_it_wrote(we_dial: bool) -> None:
    messages = [b"x", os.urandom(MAX_PLAIN_BYTES), os.urandom(3 * MAX_PLAIN_BYTES + 5), b"end"]
    async with secured_pair(Identity.generate(), Identity.generate()) as (dialled, accepted):
        ours, theirs = (dialled, accepted) if we_dial else (accepted, dialled)
        taken, library = take_over(ours), frames_of(theirs)
        for message in messages:
            read = b""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(taken.stream.send_all, taken.seal.seal(message))
                while len(read) < len(message):
                    read += await library.read_msg()
            assert read == message
        for message in messages:
            opened = b""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(library.write_msg, message)
                while len(opened) < len(message):
                    opened += taken.open.feed(await taken.stream.receive_some(10_000))
            assert opened == message
            assert not taken.open.cut
