"""What waits to be sent: control frames at once and in order, data of the streams in turn."""

from __future__ import annotations

from collections import deque

from p2pnode.core.yamux.frames import DATA, FIN, HEADER, HEADER_BYTES, VERSION
from p2pnode.core.yamux.stream import Stream


class Outgoing:
    """Queues of one session.

    A stream has its place in the turn while it has both bytes and window; who gives it the
    one it lacked calls `offer`.

    Args:
        max_frame_bytes: payload of one data frame.

    Attributes:
        control_bytes: control frames that wait.
        drained: streams of which everything written was taken.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self.control_bytes = 0
        self.drained: list[Stream] = []
        self._max_frame_bytes = max_frame_bytes
        self._control: list[bytes | memoryview] = []
        self._turn: deque[Stream] = deque()

    def __bool__(self) -> bool:
        return bool(self._control or self._turn)

    def control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """Queue a frame without payload."""
        self._control.append(HEADER.pack(VERSION, kind, flags, stream_id, value))
        self.control_bytes += HEADER_BYTES

    def offer(self, stream: Stream) -> None:
        """It may have something to send now."""
        if stream.waiting and stream.send_window and not stream.queued:
            stream.queued = True
            self._turn.append(stream)

    def clear(self) -> None:
        """Nothing will be sent any more."""
        self._control.clear()
        self.control_bytes = 0
        self._turn.clear()
        self.drained.clear()

    def take(self, max_bytes: int) -> tuple[bytes, list[Stream]]:
        """The next frames, and the streams whose end is among them."""
        parts, size = self._control, self.control_bytes
        self._control, self.control_bytes = [], 0
        ended: list[Stream] = []
        turn = self._turn
        while turn and size < max_bytes:
            stream = turn.popleft()
            stream.queued = False
            if stream.gone:
                continue
            size += self._data_frame(stream, parts)
            if stream.waiting:
                self.offer(stream)
            else:
                self.drained.append(stream)
                if stream.finishing:
                    stream.finished = True
                    ended.append(stream)
        return b"".join(parts), ended

    def _data_frame(self, stream: Stream, parts: list[bytes | memoryview]) -> int:
        length = min(stream.send_window, stream.waiting, self._max_frame_bytes)
        flags = FIN if stream.finishing and length == stream.waiting else 0
        parts.append(HEADER.pack(VERSION, DATA, flags, stream.id, length))
        stream.waiting -= length
        stream.send_window -= length
        stream.sent += length
        left, chunks = length, stream.chunks
        while left:
            chunk = chunks.popleft()
            if len(chunk) > left:
                view = memoryview(chunk)
                parts.append(view[:left])
                chunks.appendleft(view[left:])
                break
            parts.append(chunk)
            left -= len(chunk)
        return HEADER_BYTES + length
