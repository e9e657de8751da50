"""The stored messages of one topic: by arrival for readers, by signed time for synchronisation and for dropping."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import islice

from p2pnode.core.itemset import BlockSet
from p2pnode.core.message import MessageId
from p2pnode.core.reconcile import END, START
from p2pnode.core.sync import id_of_key, item_key
from p2pnode.ports import Entry

REMEMBERED_LOSSES = 1024
"""Arrivals of dropped messages, so that a reader who comes too late learns how many it missed, at least."""


class Shelf:
    """
    Attributes:
        horizon: signed time (ns) below which something was dropped; nothing below it is stored any more.
        items: what synchronisation compares: messages with a signed time, released or held back.
        bytes: of the signed messages.
    """

    def __init__(self, topic: str, horizon: int = 0) -> None:
        self.topic = topic
        self.horizon = horizon
        self.items = BlockSet()
        self.bytes = 0
        self._arrivals: list[int] = []
        self._ids: list[MessageId] = []
        self._unsigned: deque[MessageId] = deque()
        self._count = 0
        self._lost: deque[int] = deque(maxlen=REMEMBERED_LOSSES)
        self._gone: set[int] = set()

    def __len__(self) -> int:
        """All that is stored, what is held back included."""
        return self._count

    def put(self, entry: Entry) -> None:
        """A message is committed."""
        self._count += 1
        self.bytes += entry.size
        if entry.published_at_ns:
            self.items.insert(item_key(entry.topic, entry.published_at_ns, entry.id), entry.digest)
        else:
            self._unsigned.append(entry.id)
        if entry.arrival:
            self.release(entry)

    def release(self, entry: Entry) -> None:
        """A message has its arrival, which is above all others of the topic."""
        self._arrivals.append(entry.arrival)
        self._ids.append(entry.id)

    def drop(self, entry: Entry, *, is_loss: bool) -> None:
        """A message is no longer stored; a loss to who has not read it, unless it was too old to be of use."""
        self._count -= 1
        self.bytes -= entry.size
        if entry.published_at_ns:
            self.items.remove(item_key(entry.topic, entry.published_at_ns, entry.id))
        elif self._unsigned and self._unsigned[0] == entry.id:
            self._unsigned.popleft()
        else:
            self._unsigned.remove(entry.id)
        if entry.arrival:
            if is_loss:
                self._lost.append(entry.arrival)
            self._gone.add(entry.arrival)
            if len(self._gone) * 2 > len(self._arrivals):
                self._compact()

    def _compact(self) -> None:
        kept = [(at, id_) for at, id_ in zip(self._arrivals, self._ids, strict=True) if at not in self._gone]
        self._arrivals = [at for at, _ in kept]
        self._ids = [id_ for _, id_ in kept]
        self._gone.clear()

    def oldest(self) -> Iterator[MessageId]:
        """By signed time, then those without one by arrival."""
        limit = 64
        for key, _ in self.items.slice(START, END, limit):
            yield id_of_key(key)
        yield from islice(self._unsigned, limit)

    def after(self, arrival: int) -> Iterator[tuple[int, MessageId]]:
        """What was released after an arrival, in order."""
        for at in range(bisect_right(self._arrivals, arrival), len(self._arrivals)):
            if self._arrivals[at] not in self._gone:
                yield self._arrivals[at], self._ids[at]

    def count_after(self, arrival: int) -> int:
        """How many of them there are."""
        gone = sum(at > arrival for at in self._gone)
        return len(self._arrivals) - bisect_right(self._arrivals, arrival) - gone

    @property
    def first_arrival(self) -> int:
        """0 when there is nothing."""
        return next((at for at, _ in self.after(0)), 0)

    @property
    def released(self) -> int:
        return len(self._arrivals) - len(self._gone)

    def lost_after(self, arrival: int) -> int:
        """How many were dropped that a reader who got up to `arrival` has not seen."""
        lost = sorted(self._lost)
        return len(lost) - bisect_left(lost, arrival + 1)

    @property
    def last_lost(self) -> int:
        """The highest arrival that was dropped before everybody had read it; 0 when there is none."""
        return max(self._lost, default=0)
