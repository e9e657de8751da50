"""Pubsub frames on one stream: out of a queue, and whole frames in; done twice, for the two stacks it may be of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import trio
from libp2p.abc import INetStream
from libp2p.stream_muxer.exceptions import MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from p2pnode.core.message import MessageId
from p2pnode.core.yamux import INITIAL_WINDOW_BYTES
from p2pnode.errors import InvalidMessage
from p2pnode.host.foreign import LIBRARY_ERRORS
from p2pnode.host.frames import FrameDecoder
from p2pnode.host.fused.stream import FusedStream
from p2pnode.host.outbound import OutboundQueue

READ_BYTES = 64 * 1024
WRITE_SECONDS = 30.0
"""A peer that takes nothing for so long is given up."""

LOOK_SECONDS = 5.0
"""How often a lane looks whether its peer took something."""

LANE_BYTES = 128 * 1024
"""Frames leave the queue while less than this waits in the stream: later ones may still be dropped or overtaken."""


class Lane(Protocol):
    """One outbound stream that takes its frames from a queue."""

    @property
    def sent(self) -> int:
        """Bytes that left."""

    def wake(self) -> None:
        """The queue has something; never waits."""

    async def run(self) -> None:
        """Write what is queued until the peer ends the stream.

        Raises:
            trio.TooSlowError: the peer took nothing for 30 s.
            LIBRARY_ERRORS: the stream broke.
        """

    def unread(self) -> tuple[MessageId, ...]:
        """Messages that were written and that the peer may not have read."""


def lane_for(stream: INetStream, queue: OutboundQueue) -> Lane:
    """The lane that fits the stack of the stream."""
    muxed = _muxed(stream)
    return FusedLane(muxed, queue) if isinstance(muxed, FusedStream) else LibraryLane(stream, queue)


class FusedLane:
    """Writes as soon as it is woken; the connection sends at the end of its pass."""

    def __init__(self, stream: FusedStream, queue: OutboundQueue) -> None:
        self._stream = stream
        self._state = stream.state
        self._queue = queue
        self._before = self._state.sent + self._state.waiting
        self._written = 0
        self._unread: deque[tuple[int, tuple[MessageId, ...]]] = deque()
        stream.on_drained = self._pump

    @property
    def sent(self) -> int:
        return self._state.sent

    def wake(self) -> None:
        if self._state.waiting < LANE_BYTES:
            self._pump()

    def _pump(self) -> None:
        queue, state = self._queue, self._state
        while queue.frames and state.waiting < LANE_BYTES:
            data, ids = queue.take(LANE_BYTES)
            self._written += len(data)
            if ids:
                self._unread.append((self._written, ids))
            if not self._stream.write_nowait(data):
                return
        while self._unread and self._unread[0][0] + self._before <= state.credited:
            self._unread.popleft()

    async def run(self) -> None:
        self._stream.feed(self._refuse)
        self._pump()
        sent, since = self._state.sent, trio.current_time()
        while True:
            with trio.move_on_after(LOOK_SECONDS) as patience:
                await self._stream.ended()
            if not patience.cancelled_caught:
                break
            now = trio.current_time()
            if not self._state.waiting or self._state.sent != sent:
                sent, since = self._state.sent, now
            elif now - since >= WRITE_SECONDS:
                raise trio.TooSlowError
        if self._stream.reset_by is not None:
            raise MuxedStreamReset(self._stream.reset_by)

    def _refuse(self, data: bytes) -> None:
        self._stream.abort("nobody may send on our outbound stream")

    def unread(self) -> tuple[MessageId, ...]:
        return tuple(mid for _, ids in self._unread for mid in ids)


class LibraryLane:
    """Writes in a task of its own, because each write of the library may wait."""

    def __init__(self, stream: INetStream, queue: OutboundQueue) -> None:
        self._stream = stream
        self._queue = queue
        self._wake = trio.Event()
        self._unread: deque[tuple[int, tuple[MessageId, ...]]] = deque()
        self.sent = 0

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            # After the peer's FIN a write still succeeds: only a reader notices the end.
            nursery.start_soon(self._read_nothing, nursery.cancel_scope)
            while True:
                while self._queue.frames:
                    data, ids = self._queue.take()
                    self._unread.append((len(data), ids))
                    with trio.fail_after(WRITE_SECONDS):
                        await self._stream.write(data)
                    self.sent += len(data)
                    self._forget_what_was_read()
                self._wake = trio.Event()
                await self._wake.wait()

    async def _read_nothing(self, scope: trio.CancelScope) -> None:
        try:
            while not await self._stream.read(READ_BYTES):
                break
        except LIBRARY_ERRORS:
            pass
        scope.cancel()

    def _forget_what_was_read(self) -> None:
        """A write that returned had window: all but the last window of bytes was read by the peer."""
        unread = sum(size for size, _ in self._unread)
        while self._unread and unread - self._unread[0][0] >= INITIAL_WINDOW_BYTES:
            unread -= self._unread.popleft()[0]

    def unread(self) -> tuple[MessageId, ...]:
        return tuple(mid for _, ids in self._unread for mid in ids)


async def read_frames(stream: INetStream, limit_bytes: int, take: Callable[[bytes], None]) -> None:
    """Call `take` with each whole frame of a stream until the peer ends it.

    Raises:
        InvalidMessage: from the frames' lengths, or from `take`; the stream is of no more use.
        LIBRARY_ERRORS: the stream broke.
    """
    decoder = FrameDecoder(limit_bytes)
    muxed = _muxed(stream)
    if isinstance(muxed, FusedStream):
        await _be_fed(muxed, decoder, take)
        return
    reader = ThriftyReader(stream)
    while data := await reader.read(READ_BYTES):
        for frame in decoder.feed(data):
            take(frame)


async def _be_fed(stream: FusedStream, decoder: FrameDecoder, take: Callable[[bytes], None]) -> None:
    faults: list[InvalidMessage] = []

    def came(data: bytes) -> None:
        try:
            for frame in decoder.feed(data):
                take(frame)
        except InvalidMessage as error:
            faults.append(error)
            stream.abort(error.reason)

    stream.feed(came)
    await stream.ended()
    if faults:
        raise faults[0]


class ThriftyReader:
    """Reads a stream of the library's that is read for long, and gives the sender credit by halves of the window.

    The library answers every single read with a window update, which costs a quarter of a hop's CPU;
    the specification asks for no more than one per half window (yamux spec, "Flow Control").
    """

    def __init__(self, stream: INetStream) -> None:
        muxed = _muxed(stream)
        self._stream = stream
        self._muxed = muxed if isinstance(muxed, YamuxStream) else None
        self._owed = 0

    async def read(self, n: int) -> bytes:
        """At most `n` bytes; b"" or an error of the library at the end."""
        if self._muxed is None:
            return await self._stream.read(n)
        data = await self._muxed.conn.read_stream(self._muxed.stream_id, n)
        self._owed += len(data)
        if 2 * self._owed >= self._muxed.target_recv_window:
            owed, self._owed = self._owed, 0
            await self._muxed._auto_tune_and_send_window_update(bytes_read=owed)
        return data


def _muxed(stream: INetStream) -> Any:
    return getattr(stream, "muxed_stream", None)
