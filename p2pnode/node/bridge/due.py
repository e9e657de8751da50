"""Which message for NATS is next: in order of their turns, and one at a time of a topic of which NATS took none lately.

A topic that may not be published, or whose stream is full, so holds up no other.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

import trio

from p2pnode.node.bridge.topics import THREADS
from p2pnode.ports import Entry

RETRY_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Row:
    """A message that is not done.

    Args:
        since: monotonic time when it was stored here.
        rank: how many turns others have before us.
        is_under_way: it is being published.
    """

    entry: Entry
    since: float
    rank: int
    is_under_way: bool = False


@dataclass(slots=True, eq=False)
class _Parked:
    """What is due of a topic of which NATS did not take the last one.

    Args:
        probe_at: when the next one is tried; infinity while it is.
        reason: what the broker said.
        arrivals: of rows, some of them done by now.
    """

    probe_at: float
    reason: str
    arrivals: deque[int] = field(default_factory=deque)


class Due:
    """
    Args:
        rows: by arrival, those that are not done; what is no more among them is passed over.
        due_at: when it is a row's turn, monotonic; may become later, never sooner.
    """

    def __init__(self, rows: Mapping[int, Row], due_at: Callable[[Row], float], rng: Random) -> None:
        self._rows = rows
        self._due_at = due_at
        self._rng = rng
        self._heap: list[tuple[float, int]] = []
        self._parked: dict[str, _Parked] = {}

    def push(self, row: Row) -> None:
        heappush(self._heap, (self._due_at(row), row.entry.arrival))

    def pop(self) -> Row | float:
        """The first that is due; else when one is."""
        now = trio.current_time()
        while self._heap:
            at, arrival = self._heap[0]
            if at > now and arrival in self._rows:
                break
            heappop(self._heap)
            row = self._rows.get(arrival)
            if row is None:
                continue
            if self._due_at(row) > now:  # the broker was away meanwhile: the turns begin anew
                self.push(row)
            elif (parked := self._parked.get(topic_label(row.entry.topic))) is not None:
                parked.arrivals.append(arrival)
            else:
                return row
        return self._probe(now) or min(self._heap[0][0] if self._heap else math.inf, self._next_probe())

    def _probe(self, now: float) -> Row | None:
        for parked in self._parked.values():
            while parked.probe_at <= now and parked.arrivals:
                row = self._rows.get(parked.arrivals.popleft())
                if row is not None:
                    parked.probe_at = math.inf
                    return row
        return None

    def _next_probe(self) -> float:
        return min((each.probe_at for each in self._parked.values() if each.arrivals), default=math.inf)

    def park(self, row: Row, reason: str) -> None:
        """It was not taken and is tried again; its topic waits until one of it is taken."""
        parked = self._parked.setdefault(topic_label(row.entry.topic), _Parked(0.0, reason))
        parked.reason = reason
        parked.probe_at = trio.current_time() + RETRY_SECONDS * self._rng.uniform(0.75, 1.25)
        parked.arrivals.append(row.entry.arrival)

    def unpark(self, row: Row) -> None:
        """It is done: its topic need not wait."""
        parked = self._parked.pop(topic_label(row.entry.topic), None)
        for arrival in parked.arrivals if parked is not None else ():
            if (waiting := self._rows.get(arrival)) is not None:
                self.push(waiting)

    def trouble(self) -> str:
        """A topic that waits, and why; empty when none does."""
        return next((f"{label}: {each.reason}" for label, each in self._parked.items()), "")


def topic_label(topic: str) -> str:
    """A topic as metrics name it: threads are one."""
    return f"{THREADS}*" if topic.startswith(THREADS) else topic
