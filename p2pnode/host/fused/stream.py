"""A stream of a fused connection: read and written in the ordinary way, or fed to a callback and written at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from p2pnode.core import yamux

if TYPE_CHECKING:
    from p2pnode.host.fused.connection import FusedConnection

WRITE_AHEAD_BYTES = 64 * 1024
"""A `write` returns when no more than this waits behind it."""


class FusedStream(IMuxedStream):
    """Made by a `FusedConnection`.

    Attributes:
        state: the multiplexer's side of it.
        reset_by: why it was reset; None while it was not.
        on_drained: called when everything written so far has left for the socket.
    """

    def __init__(self, connection: FusedConnection, state: yamux.Stream) -> None:
        self.muxed_conn = connection
        self.state = state
        self.reset_by: str | None = None
        self.on_drained: Callable[[], None] | None = None
        self._connection = connection
        self._buffer = bytearray()
        self._take: Callable[[bytes], None] | None = None
        self._arrived: trio.Event | None = None
        self._drained: trio.Event | None = None
        self._over: trio.Event | None = None

    # -- what the library calls --------------------------------------------------------

    async def read(self, n: int | None = None) -> bytes:
        """What has come, at most `n` bytes of it; waits for the first.

        Raises:
            MuxedStreamEOF: the peer ended the stream and everything was read.
            MuxedStreamReset: either side reset it, or the connection is gone.
        """
        while not self._buffer:
            if self.reset_by is not None:
                raise MuxedStreamReset(self.reset_by)
            if self.state.remote_finished:
                raise MuxedStreamEOF("the peer ended the stream")
            self._arrived = trio.Event() if self._arrived is None else self._arrived
            await self._arrived.wait()
        if n is None or n < 0 or n >= len(self._buffer):
            data = bytes(self._buffer)
            self._buffer.clear()
        else:
            data = bytes(self._buffer[:n])
            del self._buffer[:n]
        self._connection.consumed(self.state, len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Queue all of `data`, and wait until at most 64 KiB of it have not left.

        Cancelled while it waits, what was queued still goes out whole.

        Raises:
            MuxedStreamClosed: closed for writing by us.
            MuxedStreamReset: either side reset it, or the connection is gone.
        """
        self._write(data)
        while self.state.waiting > WRITE_AHEAD_BYTES:
            self._drained = trio.Event() if self._drained is None else self._drained
            await self._drained.wait()
        if self.reset_by is not None:
            raise MuxedStreamReset(self.reset_by)

    async def close(self) -> None:
        """End our side; the peer may go on. Never waits."""
        self._connection.finish(self.state)

    async def reset(self) -> None:
        """End both sides at once. Never waits."""
        self.abort("reset by us")

    def set_deadline(self, ttl: int) -> None:
        """Deadlines are trio's cancel scopes here."""
        raise NotImplementedError("use trio.fail_after around the calls")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._connection.get_remote_address()

    @property
    def is_closed(self) -> bool:
        return self.state.gone

    async def __aenter__(self) -> FusedStream:
        return self

    # -- what our own streams call -----------------------------------------------------

    def write_nowait(self, data: bytes) -> bool:
        """Queue all of `data`; the caller bounds `state.waiting`.

        Returns:
            False when nothing can be written any more.
        """
        # Gone without having heard of it yet: the end of the stream is a later event of the same pass.
        if self.state.gone or self.state.finishing:
            return False
        self._connection.write(self.state, data)
        return True

    def feed(self, take: Callable[[bytes], None]) -> None:
        """From now on call `take` with whatever comes, what has come already first; `read` is not used any more."""
        self._take = take
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._connection.consumed(self.state, len(data))
            take(data)

    async def ended(self) -> None:
        """Return when nothing more will come: the peer finished, or somebody reset the stream."""
        if self.reset_by is None and not self.state.remote_finished:
            self._over = trio.Event() if self._over is None else self._over
            await self._over.wait()

    def abort(self, reason: str) -> None:
        """Reset the stream, saying why to those who wait in it."""
        if self.reset_by is None:
            self._connection.reset(self.state)
            self.was_reset(reason)

    # -- what the connection reports ---------------------------------------------------

    def came(self, data: bytes) -> None:
        if self._take is not None:
            self._connection.consumed(self.state, len(data))
            self._take(data)
        else:
            self._buffer += data
            self._wake(arrived=True)

    def finished(self) -> None:
        self._wake(arrived=True, over=True)

    def was_reset(self, reason: str) -> None:
        self.reset_by = reason
        self._buffer.clear()
        self._wake(arrived=True, drained=True, over=True)

    def drained(self) -> None:
        if self.on_drained is not None:
            self.on_drained()
        self._wake(drained=True)

    def _wake(self, *, arrived: bool = False, drained: bool = False, over: bool = False) -> None:
        if arrived and self._arrived is not None:
            self._arrived.set()
            self._arrived = None
        if drained and self._drained is not None:
            self._drained.set()
            self._drained = None
        if over and self._over is not None:
            self._over.set()
            self._over = None

    def _write(self, data: bytes) -> None:
        if self.state.finishing:
            raise MuxedStreamClosed("the stream was closed for writing")
        if self.state.gone:
            raise MuxedStreamReset(self.reset_by or "reset by the peer")
        self._connection.write(self.state, data)
