"""The messages this node keeps in memory, by topic, and those who follow them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from p2pnode.core.message import MessageId, SignedMessage

MAX_TOPICS = 1000
# A kept message costs its bytes twice (raw, and the data taken out of it) and this much around them.
# It is decoded anew at each reading: a parsed document can be twenty times its text.
_OVERHEAD_BYTES = 1500


@dataclass(frozen=True, slots=True)
class Kept:
    """A message kept here.

    Args:
        position: its number within the topic, from 0, without holes.
        received_at_ns: wall time of arrival here.
        carrier: the road it came by: `local`, `gossip`, ….
    """

    position: int
    message: SignedMessage
    received_at_ns: int
    carrier: str

    @property
    def cost_bytes(self) -> int:
        return 2 * len(self.message.raw) + _OVERHEAD_BYTES


class _TopicLog:
    def __init__(self) -> None:
        self.kept: deque[Kept] = deque()
        self.next_position = 0
        self.arrived = trio.Event()


class History:
    """A bounded, ordered memory of messages.

    Bounds: `keep_count` messages a topic, `keep_bytes` in all (estimated): there the oldest goes,
    and a follower that had not read it learns how many it lost. 1,000 topics: no other is opened.
    """

    def __init__(self, keep_count: int, keep_bytes: int) -> None:
        self._keep_count = keep_count
        self._keep_bytes = keep_bytes
        self._logs: dict[str, _TopicLog] = {}
        self._index: dict[MessageId, tuple[str, int]] = {}
        self.bytes = 0
        self.evicted = 0

    def append(self, message: SignedMessage, *, received_at_ns: int, carrier: str) -> bool:
        """Keep a message and wake its followers; False when its id is kept already, or no topic more fits."""
        if message.id in self._index or not self.open(message.topic):
            return False
        log = self._logs[message.topic]
        kept = Kept(log.next_position, message, received_at_ns, carrier)
        log.next_position += 1
        log.kept.append(kept)
        self._index[message.id] = (message.topic, kept.position)
        self.bytes += kept.cost_bytes
        while len(log.kept) > self._keep_count:
            self._evict(log)
        while self.bytes > self._keep_bytes and len(self._index) > 1:
            self._evict(self._log_with_oldest())
        log.arrived.set()
        log.arrived = trio.Event()
        return True

    def open(self, topic: str) -> bool:
        """Make room for a topic, for good: its positions must not start again. False at the bound."""
        if topic not in self._logs:
            if len(self._logs) >= MAX_TOPICS:
                return False
            self._logs[topic] = _TopicLog()
        return True

    def __contains__(self, message_id: MessageId) -> bool:
        return message_id in self._index

    def count(self, topic: str) -> int:
        log = self._logs.get(topic)
        return len(log.kept) if log else 0

    def position_after(self, topic: str, message_id: MessageId) -> int | None:
        """Where reading goes on after a message; None when it is not kept in this topic."""
        where = self._index.get(message_id)
        return where[1] + 1 if where and where[0] == topic else None

    def first_position(self, topic: str) -> int:
        log = self._logs.get(topic)
        return (log.kept[0].position if log.kept else log.next_position) if log else 0

    def end_position(self, topic: str) -> int:
        """The position that the next message of the topic will get."""
        log = self._logs.get(topic)
        return log.next_position if log else 0

    def read(self, topic: str, position: int, limit: int) -> Iterator[Kept]:
        """Kept messages from a position on, at most `limit`."""
        log = self._logs.get(topic)
        if log and (kept := log.kept):
            start = max(position - kept[0].position, 0)
            for offset in range(start, min(start + limit, len(kept))):
                yield kept[offset]

    async def wait_beyond(self, topic: str, position: int) -> None:
        """Return once the topic, which is open, has a message at `position` or later."""
        log = self._logs[topic]
        while log.next_position <= position:
            await log.arrived.wait()

    def _log_with_oldest(self) -> _TopicLog:
        return min((log for log in self._logs.values() if log.kept), key=lambda log: log.kept[0].received_at_ns)

    def _evict(self, log: _TopicLog) -> None:
        gone = log.kept.popleft()
        del self._index[gone.message.id]
        self.bytes -= gone.cost_bytes
        self.evicted += 1
