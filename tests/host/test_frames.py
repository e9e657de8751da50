"""Length-prefixed frames, however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import InvalidMessage
from p2pnode.host.frames import FrameDecoder, encode_frame, encode_varint, read_frame
from tests.properties import many

LIMIT = 200


def decode(chunks: list[bytes]) -> tuple[list[bytes], str | None, int]:
    """Frames, why the stream ended if it did, bytes left over."""
    decoder = FrameDecoder(LIMIT)
    frames: list[bytes] = []
    try:
        for chunk in [*chunks, b""]:
            frames += decoder.feed(chunk)
    except InvalidMessage as error:
        return frames, error.reason, -1
    return frames, None, decoder.pending


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@many
@given(data=st.binary(max_size=600), places=st.lists(st.integers(0, 600), max_size=8))
def test_any_bytes_give_the_same_frames_however_they_are_cut(data: bytes, places: list[int]) -> None:
    assert decode(cut(data, places)) == decode([data])


@many
@given(bodies=st.lists(st.binary(max_size=LIMIT), max_size=6), places=st.lists(st.integers(0, 1500), max_size=8))
def test_frames_come_out_as_they_went_in(bodies: list[bytes], places: list[int]) -> None:
    data = b"".join(map(encode_frame, bodies))
    assert decode(cut(data, places)) == (bodies, None, 0)


def test_frames_before_a_bad_prefix_still_count() -> None:
    assert decode([encode_frame(b"good") + b"\xff" * 9]) == ([b"good"], "varint", -1)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\x00"),
        (1, b"\x01"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (300, b"\xac\x02"),
        (2**63 - 1, b"\xff" * 8 + b"\x7f"),
    ],
)
def test_varints_are_as_multiformats_gives_them(value: int, encoded: bytes) -> None:
    assert encode_varint(value) == encoded


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode_varint(LIMIT + 1), "oversize"),
        (encode_varint(2**63 - 1), "oversize"),
        (b"\xff" * 9, "varint"),
        (b"\x80" * 9, "varint"),
    ],
)
def test_a_bad_prefix_ends_the_stream_before_its_body(data: bytes, reason: str) -> None:
    assert decode([data]) == ([], reason, -1)


def test_a_frame_at_the_limit_is_taken() -> None:
    assert decode([encode_frame(b"x" * LIMIT)]) == ([b"x" * LIMIT], None, 0)


class Chunks:
    def __init__(self, *chunks: bytes) -> None:
        self._chunks = list(chunks)

    async def read(self, n: int | None = None) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""

    async def write(self, data: bytes) -> None:
        raise AssertionError("nothing is written")


async def test_one_frame_is_read_and_what_follows_is_left() -> None:
    assert await read_frame(Chunks(b"\x03a", b"b", b"c\x01x"), LIMIT) == b"abc"
    assert await read_frame(Chunks(b"\x00"), LIMIT) == b""


@pytest.mark.parametrize(
    ("chunks", "reason"), [([], "truncated"), ([b"\x03ab"], "truncated"), ([b"\xff\x7f"], "oversize")]
)
async def test_a_stream_that_holds_no_frame_is_refused(chunks: list[bytes], reason: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        await read_frame(Chunks(*chunks), LIMIT)
    assert caught.value.reason == reason
