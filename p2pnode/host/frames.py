"""Length-prefixed frames over a libp2p stream: unsigned varint, then that many bytes.

libp2p specs, pubsub/README.md ("The RPC") and the multiformats unsigned-varint, which
allows at most nine bytes.
"""

from __future__ import annotations

from typing import Protocol

from p2pnode.errors import InvalidMessage

_CHUNK = 64 * 1024
_MAX_VARINT_BYTES = 9


class ByteStream(Protocol):
    """The two calls of a stream that frames need; `read` returns b"" at the end."""

    async def read(self, n: int | None = None) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


def encode_varint(value: int) -> bytes:
    """Unsigned LEB128 of a non-negative number."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_frame(body: bytes) -> bytes:
    return encode_varint(len(body)) + body


class FrameDecoder:
    """Bytes in, whole frames out; holds at most one frame and one chunk.

    Args:
        limit_bytes: the longest frame accepted.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes.

        Raises:
            InvalidMessage: reason `varint` or `oversize`, once no frame stands before the bad prefix;
                the stream is of no more use.
        """
        self._buffer += data
        frames: list[bytes] = []
        position = 0
        while True:
            try:
                header = self._length_at(position)
            except InvalidMessage:
                if not frames:
                    raise
                header = None  # the frames before it count, however the bytes were cut; the next call raises
            if header is None:
                break
            start, length = header
            if len(self._buffer) - start < length:
                break
            frames.append(bytes(self._buffer[start : start + length]))
            position = start + length
        if position:
            del self._buffer[:position]
        return frames

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)

    def _length_at(self, position: int) -> tuple[int, int] | None:
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            if position + index >= len(self._buffer):
                return None
            byte = self._buffer[position + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if value > self._limit:
                    raise InvalidMessage("oversize", f"a frame of {value} bytes is over the limit of {self._limit}")
                return position + index + 1, value
        raise InvalidMessage("varint", "a length prefix of more than nine bytes")


async def read_frame(stream: ByteStream, limit_bytes: int) -> bytes:
    """Read one frame and nothing behind it matters.

    Raises:
        InvalidMessage: reasons `varint`, `oversize`, `truncated`.
    """
    decoder = FrameDecoder(limit_bytes)
    while True:
        data = await stream.read(_CHUNK)
        if not data:
            raise InvalidMessage("truncated", "the stream ended within a frame")
        if frames := decoder.feed(data):
            return frames[0]
