"""yamux/1.0.0 as a state machine: bytes of a peer in, events out; what to send is taken from it.

Source: libp2p specs, yamux/README.md, and hashicorp/yamux, spec.md. The machine neither waits
nor writes: `Session.receive` digests what came, `Session.take` gives what is to be sent, and in
between streams are opened, written, read, finished and reset.

What the specification leaves to the implementation, with its bounds:

- A peer may have `max_inbound_streams` streams open; each one above is reset at once, as the
  specification asks of a full backlog.
- Received bytes that nobody has read yet are bounded by each stream's window, by
  `max_unread_bytes` on one connection, and by the `Budget` that a host's connections share; a
  stream that exceeds one of the latter two is reset.
- Frames that carry nothing (pings, resets, empty data and window updates, refused streams, data
  for streams closed already) are paid from a bucket that refills; who empties it is flooding.
- Data for a stream that we reset is dropped up to what the peer was still entitled to send.
- Answers that wait to be sent are bounded, for a peer that asks and does not read.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from p2pnode.errors import InvalidMessage, Unavailable

INITIAL_WINDOW_BYTES = 256 * 1024
"""Both directions of every stream begin with it (spec, "Flow Control")."""

HEADER = struct.Struct(">BBHII")
HEADER_BYTES = HEADER.size
MAX_WINDOW = 2**32 - 1

_VERSION = 0
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8


class GoAwayCode(enum.IntEnum):
    """Why a session ends (spec, "Go Away")."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class YamuxError(InvalidMessage):
    """The peer broke the protocol; the connection is of no more use.

    Reasons: `version`, `type`, `stream-zero`, `parity`, `duplicate-stream`, `unknown-stream`,
    `window-overrun`, `window-overflow`, `after-fin`, `flood`, `unread-answers`.
    """


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session grants its peer.

    Args:
        max_inbound_streams: streams opened by the peer at one time.
        max_unacknowledged: streams opened by us that the peer has not acknowledged (spec, "Backlog": 256).
        max_unread_bytes: received and unread on all streams of the session.
        max_answer_bytes: control frames that wait to be sent.
        max_frame_bytes: payload of the data frames that we send, so that streams take turns.
        empty_frames: frames without use that may come at once.
        empty_frames_per_second: how fast that allowance comes back.
    """

    max_inbound_streams: int = 256
    max_unacknowledged: int = 256
    max_unread_bytes: int = 16 * 1024 * 1024
    max_answer_bytes: int = 64 * 1024
    max_frame_bytes: int = 64 * 1024
    empty_frames: int = 2_000
    empty_frames_per_second: float = 200.0


class Budget:
    """Bytes that all sessions of a host together may hold unread.

    Args:
        limit_bytes: at most so many.
    """

    def __init__(self, limit_bytes: int = 128 * 1024 * 1024) -> None:
        self.left = limit_bytes

    def take(self, size: int) -> bool:
        """Whether `size` bytes were free; they are taken then."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give(self, size: int) -> None:
        self.left += size


class Stream:
    """One stream's state. Made by a session, changed through it only.

    Attributes:
        id: odd when the connection's initiator opened it.
        send_window: bytes that the peer lets us send.
        recv_window: bytes that we let the peer send.
        unread: bytes that came and were not `consumed`.
        waiting: bytes written and not yet taken.
        credited: bytes in all that the peer gave us beyond the initial window; it has read at least
            as many of ours.
        sent: payload bytes taken in all.
        finishing: we write no more; `finished` once the end was taken too.
        gone: reset, or ended by both sides.
    """

    __slots__ = (
        "_chunks",
        "_outbound",
        "_owed",
        "_queued",
        "acknowledged",
        "credited",
        "finished",
        "finishing",
        "gone",
        "id",
        "recv_window",
        "remote_finished",
        "send_window",
        "sent",
        "unread",
        "waiting",
    )

    def __init__(self, stream_id: int, *, outbound: bool) -> None:
        self.id = stream_id
        self.send_window = INITIAL_WINDOW_BYTES
        self.recv_window = INITIAL_WINDOW_BYTES
        self.unread = 0
        self.waiting = 0
        self.credited = 0
        self.sent = 0
        self.acknowledged = not outbound
        self.finished = False
        self.remote_finished = False
        self.gone = False
        self._outbound = outbound
        self._owed = 0
        self.finishing = False
        self._queued = False
        self._chunks: deque[memoryview | bytes] = deque()


class Opened(NamedTuple):
    """The peer opened a stream; `Session.accept` or `Session.reset` it."""

    stream: Stream


class Data(NamedTuple):
    """Bytes of a stream, to be counted by `Session.consumed` when they are read."""

    stream: Stream
    data: bytes


class Finished(NamedTuple):
    """The peer will send no more on this stream."""

    stream: Stream


class WasReset(NamedTuple):
    """The stream is gone, by the peer's wish or, with a reason, by a limit of ours."""

    stream: Stream
    reason: str


class Pong(NamedTuple):
    """The answer to the ping with this number."""

    number: int


class GoneAway(NamedTuple):
    """The peer ends the session; nothing new can be opened."""

    code: int


Event = Opened | Data | Finished | WasReset | Pong | GoneAway


class Session:
    """One connection's multiplexer.

    Args:
        initiator: we dialled; our stream ids are odd.
        limits: what the peer is granted.
        budget: shared with other sessions.
    """

    def __init__(self, *, initiator: bool, limits: Limits | None = None, budget: Budget | None = None) -> None:
        self._limits = limits or Limits()
        self._budget = budget or Budget()
        self._parity = 1 if initiator else 0
        self._next_id = 1 if initiator else 2
        self._highest_remote = 0
        self._streams: dict[int, Stream] = {}
        self._inbound = 0
        self._unacknowledged = 0
        self._unread = 0
        self._rest = b""
        self._body_stream: Stream | None = None
        self._body_left = 0
        self._body_flags = 0
        self._dropping = 0
        self._entitled = 0
        self._allowance = float(self._limits.empty_frames)
        self._allowance_at: float | None = None
        self._control: list[bytes | memoryview] = []
        self._control_bytes = 0
        self._ready: deque[Stream] = deque()
        self._drained: list[Stream] = []
        self._pings = 0
        self._peer_left = False
        self._left = False
        self._closed = False

    # -- what the peer sent ------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Digest bytes as they came, however they were cut.

        Args:
            data: decrypted bytes of the connection.
            now: monotonic seconds.

        Raises:
            YamuxError: the protocol was broken. Events of frames before that are lost: the session is over.
        """
        events: list[Event] = []
        if self._rest:
            data = self._rest + data
            self._rest = b""
        position, end = 0, len(data)
        while position < end:
            if self._body_left:
                size = min(self._body_left, end - position)
                self._body_left -= size
                body = data if size == end and not position else data[position : position + size]
                position += size
                self._body(body, events)
                continue
            if end - position < HEADER_BYTES:
                self._rest = data[position:]
                break
            version, kind, flags, stream_id, length = HEADER.unpack_from(data, position)
            position += HEADER_BYTES
            if version != _VERSION:
                raise YamuxError("version", f"yamux version {version}; only {_VERSION} exists")
            if kind == _DATA or kind == _WINDOW_UPDATE:
                self._stream_frame(kind, flags, stream_id, length, events, now)
            elif kind == _PING:
                self._ping_frame(flags, length, events, now)
            elif kind == _GO_AWAY:
                self._peer_left = True
                events.append(GoneAway(length))
            else:
                raise YamuxError("type", f"yamux frame of type {kind}; types end with {_GO_AWAY}")
        return events

    def _stream_frame(
        self, kind: int, flags: int, stream_id: int, length: int, events: list[Event], now: float
    ) -> None:
        if stream_id == 0:
            raise YamuxError("stream-zero", "a frame for stream 0, which is the session's own")
        stream = self._streams.get(stream_id)
        if flags & _SYN:
            stream = self._open_inbound(stream, stream_id, events, now)
        elif stream is None:
            self._check_was_known(stream_id)
        if stream is None:
            self._spend(now)
            self._drop(kind, length)
            return
        if flags & _ACK and not stream.acknowledged:
            stream.acknowledged = True
            self._unacknowledged -= 1
        elif not length and not flags & (_SYN | _FIN):
            self._spend(now)
        if flags & _RST:
            self._discard(stream)
            events.append(WasReset(stream, ""))
            if kind == _DATA and length:
                self._drop(kind, length)
        elif kind == _DATA:
            self._data_frame(stream, flags, length, events)
        else:
            self._window_frame(stream, length)
            self._flags_after(stream, flags, events)

    def _open_inbound(self, known: Stream | None, stream_id: int, events: list[Event], now: float) -> Stream | None:
        if known is not None:
            raise YamuxError("duplicate-stream", f"stream {stream_id} was opened twice")
        if stream_id % 2 == self._parity:
            raise YamuxError("parity", f"the peer opened stream {stream_id}, whose number is ours to give")
        self._highest_remote = max(self._highest_remote, stream_id)
        if self._left or self._inbound >= self._limits.max_inbound_streams:
            self._answer(_WINDOW_UPDATE, _RST, stream_id, 0)
            self._entitled += INITIAL_WINDOW_BYTES
            self._spend(now)
            return None
        stream = Stream(stream_id, outbound=False)
        self._streams[stream_id] = stream
        self._inbound += 1
        events.append(Opened(stream))
        return stream

    def _check_was_known(self, stream_id: int) -> None:
        """A frame for a stream that is gone is nothing unusual; one for a stream that never was, is."""
        ours = stream_id % 2 == self._parity
        if stream_id >= self._next_id if ours else stream_id > self._highest_remote:
            raise YamuxError("unknown-stream", f"a frame for stream {stream_id}, which nobody opened")

    def _drop(self, kind: int, length: int) -> None:
        if kind == _DATA and length:
            if length > self._entitled:
                raise YamuxError("window-overrun", f"{length} bytes for a closed stream, over its window")
            self._entitled -= length
            self._body_stream, self._body_left, self._body_flags = None, length, 0

    def _data_frame(self, stream: Stream, flags: int, length: int, events: list[Event]) -> None:
        if length > stream.recv_window:
            raise YamuxError(
                "window-overrun",
                f"{length} bytes on stream {stream.id}, whose window has {stream.recv_window} left",
            )
        if not length:
            self._flags_after(stream, flags, events)
        elif stream.remote_finished:
            raise YamuxError("after-fin", f"data on stream {stream.id} after its end")
        else:
            stream.recv_window -= length
            self._body_stream, self._body_left, self._body_flags = stream, length, flags

    def _body(self, body: bytes, events: list[Event]) -> None:
        """A part of a data frame's payload, maybe all of it."""
        stream = self._body_stream
        if stream is None:
            return
        size = len(body)
        if stream.gone:
            self._entitled -= size
            return
        if self._unread + size > self._limits.max_unread_bytes or not self._budget.take(size):
            self.reset(stream)
            events.append(WasReset(stream, "unread-limit"))
            return
        self._unread += size
        stream.unread += size
        events.append(Data(stream, body))
        if not self._body_left:
            self._flags_after(stream, self._body_flags, events)

    def _window_frame(self, stream: Stream, delta: int) -> None:
        if stream.send_window + delta > MAX_WINDOW:
            raise YamuxError("window-overflow", f"the window of stream {stream.id} grew beyond 32 bits")
        stream.send_window += delta
        stream.credited += delta
        if stream.waiting and stream.send_window:
            self._make_ready(stream)

    def _flags_after(self, stream: Stream, flags: int, events: list[Event]) -> None:
        if flags & _FIN and not stream.remote_finished:
            stream.remote_finished = True
            events.append(Finished(stream))
            self._forget_if_done(stream)

    def _ping_frame(self, flags: int, number: int, events: list[Event], now: float) -> None:
        self._spend(now)
        if flags & _ACK:
            events.append(Pong(number))
        else:
            self._answer(_PING, _ACK, 0, number)

    def _spend(self, now: float) -> None:
        if self._allowance_at is None:
            self._allowance_at = now
        refill = (now - self._allowance_at) * self._limits.empty_frames_per_second
        self._allowance = min(self._allowance + refill, float(self._limits.empty_frames)) - 1.0
        self._allowance_at = now
        if self._allowance < 0:
            raise YamuxError("flood", f"more than {self._limits.empty_frames} frames that carry nothing")

    # -- what we do --------------------------------------------------------------------

    def open(self) -> Stream:
        """A new stream; its first frame goes out with the next `take`.

        Raises:
            Unavailable: the peer goes away, or has yet to acknowledge 256 streams.
        """
        if self._peer_left or self._left:
            raise Unavailable("the peer takes no more streams", reason="gone-away")
        if self._unacknowledged >= self._limits.max_unacknowledged:
            raise Unavailable(
                f"the peer has yet to acknowledge {self._unacknowledged} streams", reason="stream-backlog"
            )
        stream = Stream(self._next_id, outbound=True)
        self._next_id += 2
        self._streams[stream.id] = stream
        self._unacknowledged += 1
        self._control_frame(_WINDOW_UPDATE, _SYN, stream.id, 0)
        return stream

    def accept(self, stream: Stream) -> None:
        """Acknowledge a stream that the peer opened."""
        if not stream.gone:
            self._control_frame(_WINDOW_UPDATE, _ACK, stream.id, 0)

    def write(self, stream: Stream, data: bytes) -> None:
        """Queue bytes; the window decides when `take` gives them. The caller bounds `stream.waiting`.

        Raises:
            ValueError: the stream was finished, or is gone.
        """
        if stream.gone or stream.finished or stream.finishing:
            raise ValueError(f"stream {stream.id} takes no more data")
        if data:
            stream._chunks.append(data)
            stream.waiting += len(data)
            if stream.send_window:
                self._make_ready(stream)

    def consumed(self, stream: Stream, size: int) -> None:
        """`size` bytes of the stream were read; the peer gets credit by halves of the window."""
        size = min(size, stream.unread)  # a reset gave back what nobody will read
        self._give_back(stream, size)
        if stream.gone:
            return
        stream._owed += size
        if 2 * stream._owed >= INITIAL_WINDOW_BYTES and not stream.remote_finished:
            stream.recv_window += stream._owed
            self._control_frame(_WINDOW_UPDATE, 0, stream.id, stream._owed)
            stream._owed = 0

    def finish(self, stream: Stream) -> None:
        """No more will be written: the end follows what waits."""
        if stream.gone or stream.finished or stream.finishing:
            return
        stream.finishing = True
        if not stream.waiting:
            self._send_end(stream)

    def reset(self, stream: Stream) -> None:
        """End a stream at once, both ways; what waits in it is dropped."""
        if stream.gone:
            return
        self._control_frame(_WINDOW_UPDATE, _RST, stream.id, 0)
        self._discard(stream)

    def ping(self) -> int:
        """Ask for a sign of life; returns the number that the `Pong` will have."""
        self._pings = (self._pings + 1) & MAX_WINDOW
        self._control_frame(_PING, _SYN, 0, self._pings)
        return self._pings

    def go_away(self, code: GoAwayCode) -> None:
        """Say that the session ends; streams of the peer that come later are refused."""
        self._left = True
        self._control_frame(_GO_AWAY, 0, 0, code)

    def close(self) -> None:
        """Forget all streams, because the connection is gone; the budget gets back what they held."""
        self._closed = True
        for stream in tuple(self._streams.values()):
            self._remove(stream)
        self._budget.give(self._unread)
        self._unread = 0
        self._control.clear()
        self._control_bytes = 0

    # -- what is to be sent ------------------------------------------------------------

    @property
    def cut(self) -> bool:
        """Are we within a frame of the peer's?"""
        return bool(self._rest or self._body_left)

    def pending(self) -> bool:
        """Is there something to `take`?"""
        return bool(self._control or self._ready)

    def take(self, max_bytes: int) -> bytes:
        """The next frames: control first, then the streams in turn; b"" when nothing may be sent.

        Args:
            max_bytes: about so many; control and at most one data frame of each stream are not cut short.
        """
        parts, size = self._control, self._control_bytes
        self._control, self._control_bytes = [], 0
        ready, limit = self._ready, self._limits.max_frame_bytes
        while ready and size < max_bytes:
            stream = ready.popleft()
            stream._queued = False
            if stream.gone:
                continue
            size += self._data_frame_of(stream, min(stream.send_window, stream.waiting, limit), parts)
            if stream.waiting:
                if stream.send_window:
                    self._make_ready(stream)
            else:
                self._drained.append(stream)
                if stream.finishing:
                    stream.finished = True
                    self._forget_if_done(stream)
        if len(parts) == 1:
            return bytes(parts[0])
        return b"".join(parts)

    def _data_frame_of(self, stream: Stream, length: int, parts: list[bytes | memoryview]) -> int:
        flags = _FIN if stream.finishing and length == stream.waiting else 0
        parts.append(HEADER.pack(_VERSION, _DATA, flags, stream.id, length))
        stream.waiting -= length
        stream.send_window -= length
        stream.sent += length
        left, chunks = length, stream._chunks
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

    def drained(self) -> list[Stream]:
        """Streams of which everything written was taken since the last call."""
        drained, self._drained = self._drained, []
        return drained

    # -- within ------------------------------------------------------------------------

    def _answer(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        if self._control_bytes > self._limits.max_answer_bytes:
            raise YamuxError("unread-answers", "the peer asks, and reads no answers")
        self._control_frame(kind, flags, stream_id, value)

    def _control_frame(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        self._control.append(HEADER.pack(_VERSION, kind, flags, stream_id, value))
        self._control_bytes += HEADER_BYTES

    def _send_end(self, stream: Stream) -> None:
        stream.finished = True
        self._control_frame(_WINDOW_UPDATE, _FIN, stream.id, 0)
        self._forget_if_done(stream)

    def _make_ready(self, stream: Stream) -> None:
        if not stream._queued:
            stream._queued = True
            self._ready.append(stream)

    def _forget_if_done(self, stream: Stream) -> None:
        if stream.finished and stream.remote_finished:
            self._remove(stream)

    def _give_back(self, stream: Stream, size: int) -> None:
        if self._closed:
            return
        stream.unread -= size
        self._unread -= size
        self._budget.give(size)

    def _discard(self, stream: Stream) -> None:
        """Remove a stream whose bytes nobody will read."""
        self._remove(stream)
        self._give_back(stream, stream.unread)

    def _remove(self, stream: Stream) -> None:
        stream.gone = True
        del self._streams[stream.id]
        if not stream._outbound:
            self._inbound -= 1
        elif not stream.acknowledged:
            self._unacknowledged -= 1
        if not stream.remote_finished:
            self._entitled += stream.recv_window + (self._body_left if stream is self._body_stream else 0)
        stream._chunks.clear()
        stream.waiting = 0
