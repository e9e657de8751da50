"""Which own messages are safe elsewhere, and which must be told of again, to whom and when.

An own message is safe once min(2, live neighbours in its topic) of them have stored it, and at least one. A neighbour
is whoever the caller says: it should leave out peers that store nothing for others, such as stock ones.

Decisions:
- Only neighbours that are there count. One that stored it and is gone may be gone for good, or come back with an empty
  disk: its word is forgotten with its link, and it is asked anew when it returns. Once safe, a message stays safe: its
  holders have it from then on to bring it to the rest.
- Who stored it says so in two ways: by a notice (`held`), or by a finished synchronisation that showed it (`seen_at`).
  Neighbours give notice of fresh messages only, so an old message ends by synchronisation.
- What is not safe ANNOUNCE_SECONDS after it was added is announced, and again after 2, 4, 8 … 60 seconds, each time to
  ANNOUNCE_PEERS of the neighbours that have not said that they hold it, others each time; and at once to a neighbour
  that appears. All this below RELAY_AGE_SECONDS of signed age only: above it nobody passes it on (architecture,
  decision 3), and synchronisation, which begins with every new link, brings it to them.
- A message leaves the outbox by becoming safe or by being dropped from the store, so the store's retention bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from p2pnode.core.message import MessageId
from p2pnode.core.metadata import RELAY_AGE_SECONDS
from p2pnode.core.peerid import PeerId

ENOUGH_HOLDERS = 2
ANNOUNCE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0
ANNOUNCE_PEERS = 4
"""Two are needed; of four some answer, and the message is not flooded each time."""

ANNOUNCED_AT_ONCE = 128
"""Messages of one `to_announce`: what a restart finds is not sent in one breath."""

Neighbours = Callable[[str], Collection[PeerId]]
"""The live neighbours in a topic that can store a message."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """Send this own message again to these peers."""

    id: MessageId
    peers: tuple[PeerId, ...]


@dataclass(slots=True, eq=False)
class _Row:
    """An own message that is not safe.

    Args:
        due: when it is announced, monotonic seconds; infinity once it is too old.
        newcomers: neighbours that appeared since it was announced.
    """

    id: MessageId
    topic: str
    published_at_ns: int
    due: float = math.inf
    attempts: int = 0
    holders: set[PeerId] = field(default_factory=set)
    newcomers: dict[PeerId, None] = field(default_factory=dict)

    def is_safe(self, live: Collection[PeerId]) -> bool:
        return len(self.holders.intersection(live)) >= max(1, min(ENOUGH_HOLDERS, len(live)))


@dataclass(slots=True)
class _Topic:
    """The unsafe messages of a topic, and who was there when it was looked at last.

    Args:
        changed: others are there since, so some may be safe: with fewer, or with one that spoke before it was there.
    """

    known: frozenset[PeerId]
    rows: dict[MessageId, _Row] = field(default_factory=dict)
    changed: bool = False

    def lose(self, gone: Collection[PeerId]) -> None:
        self.known -= frozenset(gone)
        self.changed = True
        for row in self.rows.values():
            row.holders.difference_update(gone)
            for peer in gone:
                row.newcomers.pop(peer, None)


class Outbox:
    """See the module. Times are monotonic seconds, signed times wall clock ns."""

    __slots__ = ("_due", "_rows", "_topics")

    def __init__(self) -> None:
        self._rows: dict[MessageId, _Row] = {}
        self._topics: dict[str, _Topic] = {}
        self._due: list[tuple[float, MessageId]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, message_id: MessageId) -> bool:
        return message_id in self._rows

    def __iter__(self) -> Iterator[MessageId]:
        return iter(self._rows)

    def oldest_ns(self) -> int:
        """The smallest signed time; 0 when all is safe. Looks at every row."""
        return min((row.published_at_ns for row in self._rows.values()), default=0)

    def next_deadline(self) -> float:
        """When a message is due to be announced, at the earliest; infinity when none is."""
        return self._due[0][0] if self._due else math.inf

    def added(
        self,
        message_id: MessageId,
        topic: str,
        published_at_ns: int,
        now: float,
        neighbours: Neighbours,
        *,
        sent: bool = True,
    ) -> None:
        """An own message was stored, and is not safe yet.

        Args:
            published_at_ns: its signed time.
            sent: it goes out to the neighbours right now; False for what an earlier run left, which is due at once.
        """
        if message_id in self._rows:
            return
        known = self._topics.get(topic)
        if known is None:
            known = self._topics[topic] = _Topic(frozenset(neighbours(topic)))
        row = self._rows[message_id] = known.rows[message_id] = _Row(message_id, topic, published_at_ns)
        self._schedule(row, now + ANNOUNCE_SECONDS if sent else now)

    def held(self, peer: PeerId, message_ids: Iterable[MessageId], neighbours: Neighbours) -> list[MessageId]:
        """A neighbour stored these; returns what is safe by that. What is not ours, or safe already, is passed over."""
        live: dict[str, Collection[PeerId]] = {}
        safe = []
        for message_id in message_ids:
            row = self._rows.get(message_id)
            if row is None:
                continue
            row.holders.add(peer)
            row.newcomers.pop(peer, None)
            if row.topic not in live:
                live[row.topic] = neighbours(row.topic)
            if row.is_safe(live[row.topic]):
                safe.append(message_id)
                self._remove(row)
        return safe

    def seen_at(self, peer: PeerId, message_ids: Iterable[MessageId], neighbours: Neighbours) -> list[MessageId]:
        """A finished synchronisation showed that a neighbour has these; as `held`."""
        return self.held(peer, message_ids, neighbours)

    def link_lost(self, peer: PeerId) -> None:
        """What the peer held may be gone with it."""
        for topic in self._topics.values():
            topic.lose((peer,))

    def look(self, now: float, neighbours: Neighbours) -> list[MessageId]:
        """Compare the neighbours with those of the last look, which nobody reports; to be called now and then.

        What is young becomes due at once for those who have just appeared.

        Returns:
            What is safe because others are there now.
        """
        safe: list[MessageId] = []
        for name, topic in list(self._topics.items()):
            live = frozenset(neighbours(name))
            if gone := topic.known - live:
                topic.lose(gone)
            new = live - topic.known
            topic.known = live
            if topic.changed or new:
                topic.changed = False
                rows = [row for row in topic.rows.values() if row.is_safe(live)]
                safe += [row.id for row in rows]
                for row in rows:
                    self._remove(row)
            if new:
                self._greet(topic, sorted(new), now)
        return safe

    def _greet(self, topic: _Topic, new: Sequence[PeerId], now: float) -> None:
        for row in topic.rows.values():
            strangers = [peer for peer in new if peer not in row.holders]
            if row.due == math.inf or not strangers:
                continue
            row.newcomers.update(dict.fromkeys(strangers))
            if row.due > now:
                self._schedule(row, now)

    def to_announce(self, now: float, wall_ns: int, neighbours: Neighbours) -> list[Announcement]:
        """What is to be sent again now, ANNOUNCED_AT_ONCE at most; what is left stays due."""
        live: dict[str, Sequence[PeerId]] = {}
        announcements: list[Announcement] = []
        while self._due and self._due[0][0] <= now and len(announcements) < ANNOUNCED_AT_ONCE:
            entry = heappop(self._due)
            if not self._is_scheduled(entry):
                continue
            row = self._rows[entry[1]]
            if wall_ns - row.published_at_ns >= RELAY_AGE_SECONDS * 1e9:
                row.due = math.inf
                row.newcomers.clear()
                continue
            if row.topic not in live:
                live[row.topic] = sorted(neighbours(row.topic))
            others = [peer for peer in live[row.topic] if peer not in row.holders]
            newcomers = [peer for peer in others if peer in row.newcomers]
            row.newcomers.clear()
            pause = min(ANNOUNCE_SECONDS * 2**row.attempts, LONGEST_PAUSE_SECONDS)
            if others and not newcomers:
                start = row.attempts * ANNOUNCE_PEERS % len(others)
                others = [*others[start:], *others[:start]]
                row.attempts += 1
            if peers := (newcomers or others)[:ANNOUNCE_PEERS]:
                announcements.append(Announcement(row.id, tuple(peers)))
            self._schedule(row, now + pause)
        return announcements

    def dropped(self, message_ids: Iterable[MessageId]) -> None:
        """These left the store."""
        for message_id in message_ids:
            if (row := self._rows.get(message_id)) is not None:
                self._remove(row)

    def _remove(self, row: _Row) -> None:
        del self._rows[row.id]
        topic = self._topics[row.topic]
        del topic.rows[row.id]
        if not topic.rows:
            del self._topics[row.topic]
        self._tidy()

    def _schedule(self, row: _Row, due: float) -> None:
        row.due = due
        heappush(self._due, (due, row.id))
        self._tidy()

    def _tidy(self) -> None:
        """A place in the schedule that is left is found empty when its time comes; when most are, all of them go."""
        if len(self._due) > 2 * len(self._rows) + ANNOUNCED_AT_ONCE:
            self._due = [entry for entry in self._due if self._is_scheduled(entry)]
            heapify(self._due)

    def _is_scheduled(self, entry: tuple[float, MessageId]) -> bool:
        row = self._rows.get(entry[1])
        return row is not None and row.due == entry[0]
