"""A stream's state, and what a session reports of it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from p2pnode.core.yamux.frames import INITIAL_WINDOW_BYTES


class Stream:
    """One stream's state. Made by a session, changed through it only.

    Attributes:
        id: odd when the connection's initiator opened it.
        outbound: we opened it.
        send_window: bytes that the peer lets us send.
        recv_window: bytes that we let the peer send.
        unread: bytes that came and were not `consumed`; 0 once the stream is gone.
        owed: bytes consumed and not yet credited to the peer.
        waiting: bytes written and not yet taken; `chunks` holds them.
        queued: it waits for its turn to send.
        credited: bytes of ours for which the peer gave credit, so it has read them; too high by what it
            widened its window while they were under way.
        sent: payload bytes taken in all.
        acknowledged: the peer knows the stream.
        finishing: we write no more; `finished` once the end was taken too.
        remote_finished: the peer sends no more.
        gone: reset, or ended by both sides.
    """

    __slots__ = (
        "acknowledged",
        "chunks",
        "credited",
        "finished",
        "finishing",
        "gone",
        "id",
        "outbound",
        "owed",
        "queued",
        "recv_window",
        "remote_finished",
        "send_window",
        "sent",
        "unread",
        "waiting",
    )

    def __init__(self, stream_id: int, *, outbound: bool) -> None:
        self.id = stream_id
        self.outbound = outbound
        self.send_window = INITIAL_WINDOW_BYTES
        self.recv_window = INITIAL_WINDOW_BYTES
        self.unread = 0
        self.owed = 0
        self.waiting = 0
        self.chunks: deque[memoryview | bytes] = deque()
        self.queued = False
        self.credited = 0
        self.sent = 0
        self.acknowledged = not outbound
        self.finishing = False
        self.finished = False
        self.remote_finished = False
        self.gone = False


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
