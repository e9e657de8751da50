"""One connection's multiplexer: what each frame of the peer, and each wish of ours, does to the streams."""

from __future__ import annotations

from p2pnode.core.yamux.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    INITIAL_WINDOW_BYTES,
    MAX_UINT32,
    PING,
    RST,
    SYN,
    VERSION,
    WINDOW_UPDATE,
    GoAwayCode,
    YamuxError,
)
from p2pnode.core.yamux.limits import Allowance, Budget, Limits
from p2pnode.core.yamux.outgoing import Outgoing
from p2pnode.core.yamux.stream import Data, Event, Finished, GoneAway, Opened, Pong, Stream, WasReset
from p2pnode.errors import Unavailable


class Session:
    """One connection's multiplexer.

    Args:
        initiator: we dialled; our stream ids are odd.
        limits: what the peer is granted.
        budget: shared with other sessions.

    Attributes:
        unread: bytes that lie unread in open streams.
    """

    def __init__(self, *, initiator: bool, limits: Limits | None = None, budget: Budget | None = None) -> None:
        self.unread = 0
        self._limits = limits or Limits()
        self._budget = budget or Budget()
        self._allowance = Allowance(self._limits)
        self._outgoing = Outgoing(self._limits.max_frame_bytes)
        self._parity = 1 if initiator else 0
        self._next_id = 1 if initiator else 2
        self._highest_remote = 0
        self._streams: dict[int, Stream] = {}
        self._inbound = 0
        self._unacknowledged = 0
        self._entitled = 0  # bytes that the peer may have sent to streams before it learnt that we reset them
        self._rest = b""  # of a header
        self._body_stream: Stream | None = None  # None: the payload is dropped
        self._body_left = 0
        self._body_flags = 0
        self._pings = 0
        self._peer_left = False
        self._left = False

    # -- what the peer sent ------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Digest bytes as they came, however they were cut.

        An event's stream may be gone already, by a frame that came later in `data`; what is then
        written to it is dropped, and its `WasReset` is further down the list.

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
                if self._body_stream is not None:
                    self._body(self._body_stream, body, events)
                continue
            if end - position < HEADER_BYTES:
                self._rest = data[position:]
                break
            version, kind, flags, stream_id, length = HEADER.unpack_from(data, position)
            position += HEADER_BYTES
            if version != VERSION:
                raise YamuxError("version", f"yamux version {version}; only {VERSION} exists")
            if kind == DATA or kind == WINDOW_UPDATE:
                self._stream_frame(kind, flags, stream_id, length, events, now)
            elif kind == PING:
                self._ping_frame(flags, length, events, now)
            elif kind == GO_AWAY:
                self._allowance.spend(now)
                self._peer_left = True
                events.append(GoneAway(length))
            else:
                raise YamuxError("type", f"yamux frame of type {kind}; types end with {GO_AWAY}")
        return events

    def _stream_frame(
        self, kind: int, flags: int, stream_id: int, length: int, events: list[Event], now: float
    ) -> None:
        if stream_id == 0:
            raise YamuxError("stream-zero", "a frame for stream 0, which is the session's own")
        stream = self._streams.get(stream_id)
        if flags & SYN:
            stream = self._open_inbound(stream, stream_id, events)
        elif stream is None:
            self._check_was_known(stream_id)
        if stream is None:
            if flags & SYN or not length:
                self._allowance.spend(now)
            if kind == DATA:
                self._drop(length)
            return
        if flags & ACK and not stream.acknowledged:
            stream.acknowledged = True
            self._unacknowledged -= 1
        elif flags & RST or (not length and not self._has_news(stream, flags)):
            self._allowance.spend(now)
        if kind == DATA:
            self._data_frame(stream, flags, length, events)
        elif flags & RST:
            self._was_reset(stream, events)
        else:
            self._window_frame(stream, length)
            self._end_of_frame(stream, flags, events)

    def _has_news(self, stream: Stream, flags: int) -> bool:
        """Does an empty frame with these flags change the stream?"""
        return bool(flags & SYN) or bool(flags & FIN and not stream.remote_finished)

    def _open_inbound(self, known: Stream | None, stream_id: int, events: list[Event]) -> Stream | None:
        """Ids need not ascend: go-yamux chooses them before it queues their first frames."""
        if known is not None:
            raise YamuxError("duplicate-stream", f"stream {stream_id} was opened twice")
        if stream_id % 2 == self._parity:
            raise YamuxError("parity", f"the peer opened stream {stream_id}, whose number is ours to give")
        self._check_answers_are_read()
        self._highest_remote = max(self._highest_remote, stream_id)
        if self._left or self._inbound >= self._limits.max_inbound_streams:
            self._outgoing.control(WINDOW_UPDATE, RST, stream_id, 0)
            self._entitled += INITIAL_WINDOW_BYTES
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

    def _drop(self, length: int) -> None:
        if length > self._entitled:
            raise YamuxError("window-overrun", f"{length} bytes for a closed stream, over its window")
        self._entitled -= length
        self._body_stream, self._body_left = None, length

    def _data_frame(self, stream: Stream, flags: int, length: int, events: list[Event]) -> None:
        if length > stream.recv_window:
            raise YamuxError(
                "window-overrun",
                f"{length} bytes on stream {stream.id}, whose window has {stream.recv_window} left",
            )
        if length and stream.remote_finished:
            raise YamuxError("after-fin", f"data on stream {stream.id} after its end")
        if flags & RST:
            self._was_reset(stream, events)
            self._body_stream, self._body_left = None, length
        elif length:
            stream.recv_window -= length
            self._body_stream, self._body_left, self._body_flags = stream, length, flags
        else:
            self._end_of_frame(stream, flags, events)

    def _body(self, stream: Stream, body: bytes, events: list[Event]) -> None:
        """A part of a data frame's payload, maybe all of it."""
        size = len(body)
        held = self.unread + size
        if held > self._limits.max_unread_bytes or not self._budget.take(size, held):
            self.reset(stream)
            events.append(WasReset(stream, "unread-limit"))
            return
        self.unread = held
        stream.unread += size
        events.append(Data(stream, body))
        if not self._body_left:
            self._end_of_frame(stream, self._body_flags, events)

    def _window_frame(self, stream: Stream, delta: int) -> None:
        if stream.send_window + delta > MAX_UINT32:
            raise YamuxError("window-overflow", f"the window of stream {stream.id} grew beyond 32 bits")
        stream.send_window += delta
        stream.credited = min(stream.credited + delta, stream.sent)  # the rest only widens the window
        self._outgoing.offer(stream)

    def _end_of_frame(self, stream: Stream, flags: int, events: list[Event]) -> None:
        if flags & FIN and not stream.remote_finished:
            stream.remote_finished = True
            events.append(Finished(stream))
            self._forget_if_done(stream)

    def _was_reset(self, stream: Stream, events: list[Event]) -> None:
        self._forget(stream)
        events.append(WasReset(stream, ""))

    def _ping_frame(self, flags: int, number: int, events: list[Event], now: float) -> None:
        self._allowance.spend(now)
        if flags & ACK:
            events.append(Pong(number))
        else:
            self._check_answers_are_read()
            self._outgoing.control(PING, ACK, 0, number)

    def _check_answers_are_read(self) -> None:
        if self._outgoing.control_bytes > self._limits.max_answer_bytes:
            raise YamuxError("unread-answers", "the peer asks, and reads no answers")

    # -- what we do --------------------------------------------------------------------

    def open(self) -> Stream:
        """A new stream; its first frame goes out with the next `take`.

        Raises:
            Unavailable: either side goes away, the peer has yet to acknowledge 256 streams, or all
                2^31 numbers were given.
        """
        if self._peer_left or self._left:
            raise Unavailable("the session ends and takes no more streams", reason="gone-away")
        if self._unacknowledged >= self._limits.max_unacknowledged:
            raise Unavailable(
                f"the peer has yet to acknowledge {self._unacknowledged} streams", reason="stream-backlog"
            )
        if self._next_id > MAX_UINT32:
            raise Unavailable("the connection's stream numbers are used up", reason="stream-numbers")
        stream = Stream(self._next_id, outbound=True)
        self._next_id += 2
        self._streams[stream.id] = stream
        self._unacknowledged += 1
        self._outgoing.control(WINDOW_UPDATE, SYN, stream.id, 0)
        return stream

    def accept(self, stream: Stream) -> None:
        """Acknowledge a stream that the peer opened."""
        if not stream.gone:
            self._outgoing.control(WINDOW_UPDATE, ACK, stream.id, 0)

    def write(self, stream: Stream, data: bytes) -> None:
        """Queue bytes; the window decides when `take` gives them. The caller bounds `stream.waiting`.

        What is written to a stream that is gone is dropped: the writer may not have heard of it yet.

        Raises:
            ValueError: the stream was finished.
        """
        if stream.finishing:
            raise ValueError(f"stream {stream.id} was finished and takes no more data")
        if data and not stream.gone:
            stream.chunks.append(data)
            stream.waiting += len(data)
            self._outgoing.offer(stream)

    def consumed(self, stream: Stream, size: int) -> None:
        """`size` bytes of the stream were read; the peer gets credit by halves of the window."""
        if stream.gone:
            return
        size = min(size, stream.unread)
        self._give_back(stream, size)
        stream.owed += size
        if 2 * stream.owed >= INITIAL_WINDOW_BYTES and not stream.remote_finished:
            stream.recv_window += stream.owed
            self._outgoing.control(WINDOW_UPDATE, 0, stream.id, stream.owed)
            stream.owed = 0

    def finish(self, stream: Stream) -> None:
        """No more will be written: the end follows what waits."""
        if stream.gone or stream.finishing:
            return
        stream.finishing = True
        if not stream.waiting:
            stream.finished = True
            self._outgoing.control(WINDOW_UPDATE, FIN, stream.id, 0)
            self._forget_if_done(stream)

    def reset(self, stream: Stream) -> None:
        """End a stream at once, both ways; what waits in it is dropped."""
        if stream.gone:
            return
        self._outgoing.control(WINDOW_UPDATE, RST, stream.id, 0)
        if not stream.remote_finished:
            self._entitled += stream.recv_window
        self._forget(stream)

    def ping(self) -> int:
        """Ask for a sign of life; returns the number that the `Pong` will have."""
        self._pings = (self._pings + 1) & MAX_UINT32
        self._outgoing.control(PING, SYN, 0, self._pings)
        return self._pings

    def go_away(self, code: GoAwayCode) -> None:
        """Say that the session ends; streams of the peer that come later are refused."""
        self._left = True
        self._outgoing.control(GO_AWAY, 0, 0, code)

    def close(self) -> None:
        """Forget all streams, because the connection is gone; the budget gets back what they held."""
        for stream in tuple(self._streams.values()):
            self._forget(stream)
        self._outgoing.clear()

    # -- what is to be sent ------------------------------------------------------------

    @property
    def streams(self) -> int:
        """How many are open, half or whole."""
        return len(self._streams)

    @property
    def cut(self) -> bool:
        """Are we within a frame of the peer's?"""
        return bool(self._rest or self._body_left)

    def pending(self) -> bool:
        """Is there something to `take`?"""
        return bool(self._outgoing)

    def take(self, max_bytes: int) -> bytes:
        """The next frames: control first, then the streams in turn; b"" when nothing may be sent.

        Args:
            max_bytes: about so many; control frames and the last data frame are not cut short.
        """
        data, ended = self._outgoing.take(max_bytes)
        for stream in ended:
            self._forget_if_done(stream)
        return data

    def drained(self) -> list[Stream]:
        """Streams of which everything written was taken since the last call."""
        drained, self._outgoing.drained = self._outgoing.drained, []
        return drained

    # -- within ------------------------------------------------------------------------

    def _forget_if_done(self, stream: Stream) -> None:
        if stream.finished and stream.remote_finished:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        stream.gone = True
        del self._streams[stream.id]
        if not stream.outbound:
            self._inbound -= 1
        elif not stream.acknowledged:
            self._unacknowledged -= 1
        if stream is self._body_stream:
            self._body_stream = None
        self._give_back(stream, stream.unread)
        stream.chunks.clear()
        stream.waiting = 0

    def _give_back(self, stream: Stream, size: int) -> None:
        stream.unread -= size
        self.unread -= size
        self._budget.give(size)
