"""What a webhook is sent next: in order per origin, a few origins at a time, and one probe while the agent is down.

Messages are known by their arrival, origins by their bytes. A message that fails is tried again after a pause of its
own; the messages of its origin wait behind it, those of others do not. The agent counts as down when a request got no
answer at all, when it asked for a pause, or when messages of two origins failed with no success between: one request
at a time then, after a pause that doubles, and each failed one hands over to another origin, so that one message the
agent cannot digest is not taken for a dead agent for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 60.0
JITTER = 0.2
"""A pause is this part shorter or longer, by chance: many sidecars of one agent host do not come back as one."""

MAX_RETRY_AFTER_SECONDS = 3600.0
WINDOW = 256
ORIGINS_AT_ONCE = 8

CROWDING_ATTEMPTS = 10
"""After so many (some three minutes) a message that the agent refuses is given up if nothing else can go on."""


def backoff_seconds(failures: int, rng: Random) -> float:
    """The pause after so many failures in a row: 0.5 s doubling to 60 s, each 20 % more or less."""
    plain = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 16), LAST_BACKOFF_SECONDS)
    return plain * rng.uniform(1 - JITTER, 1 + JITTER)


@dataclass(slots=True)
class _Item:
    """
    Args:
        tried: number of the attempt among all; 0 before the first.
        successes: how many messages the agent had taken when this one was first tried.
        letter: a dead letter that is tried again. It is remembered as such, so the cursor need not wait for it.
    """

    arrival: int
    origin: bytes
    letter: bool = False
    attempts: int = 0
    not_before: float = 0.0
    in_flight: bool = False
    probe: bool = False
    tried: int = 0
    successes: int = 0


class Courier:
    """The messages a webhook has before it: at most `window` ahead of the cursor, handled ones included.

    Args:
        cursor: everything up to this arrival was handled.
        attempts: after so many a message is given up.
        rng: for the jitter.
    """

    def __init__(
        self,
        cursor: int,
        *,
        attempts: int,
        rng: Random,
        window: int = WINDOW,
        origins_at_once: int = ORIGINS_AT_ONCE,
    ) -> None:
        self._attempts = attempts
        self._rng = rng
        self._window = window
        self._origins_at_once = origins_at_once
        self._cursor = cursor
        self._read = cursor
        self._items: dict[int, _Item] = {}
        self._lanes: dict[bytes, list[int]] = {}
        self._done: set[int] = set()
        self._in_flight = 0
        self._tries = 0
        self._successes = 0
        self._failing: set[bytes] = set()
        self._down = False
        self._failures = 0
        self._resume_at = 0.0

    @property
    def cursor(self) -> int:
        """Everything up to this arrival was handled."""
        return self._cursor

    @property
    def read(self) -> int:
        """The highest arrival that was offered or passed over."""
        return self._read

    @property
    def room(self) -> int:
        """How many more may be offered."""
        return max(self._window - len(self._items) - len(self._done), 0)

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def down(self) -> bool:
        """Does the agent not take messages just now?"""
        return self._down

    @property
    def failing(self) -> bool:
        """Did the agent take nothing since a message failed?"""
        return self._down or bool(self._failing)

    def __contains__(self, arrival: int) -> bool:
        return arrival in self._items

    def __len__(self) -> int:
        """Those not handled yet."""
        return len(self._items)

    def oldest(self) -> int | None:
        """The lowest arrival that is not handled; dead letters do not count."""
        return min((each.arrival for each in self._items.values() if not each.letter), default=None)

    def attempt(self, arrival: int) -> int:
        """Which attempt the next one, or the running one, is: from 1."""
        return self._items[arrival].attempts + 1

    def offer(self, arrival: int, origin: bytes, *, letter: bool = False) -> None:
        """A message to be sent: the next one in order, or a dead letter that is to be tried again."""
        assert arrival not in self._items
        self._items[arrival] = _Item(arrival, origin, letter)
        lane = self._lanes.setdefault(origin, [])
        lane.append(arrival)
        if len(lane) > 1 and lane[-2] > arrival:
            # What is on its way stays in front: the lane's head alone is ever sent.
            first = 1 if self._items[lane[0]].in_flight else 0
            lane[first:] = sorted(lane[first:])
        if not letter:
            self._read = max(self._read, arrival)

    def pass_over(self, arrival: int) -> None:
        """Nothing up to here is left to be offered."""
        self._read = max(self._read, arrival)
        self._settle()

    def next(self, now: float) -> int | None:
        """The arrival to be sent now, which counts as in flight from here; None when there is none."""
        if self._in_flight >= (1 if self._down else self._origins_at_once):
            return None
        if self._down and now < self._resume_at:
            return None
        heads = self._heads()
        if self._down:
            item = min(heads, key=lambda each: (each.tried, each.arrival), default=None)
        else:
            item = min((each for each in heads if each.not_before <= now), key=lambda each: each.arrival, default=None)
        if item is None:
            return None
        self._tries += 1
        if item.tried == 0:
            item.successes = self._successes
        item.tried = self._tries
        item.in_flight, item.probe = True, self._down
        self._in_flight += 1
        return item.arrival

    def wait(self, now: float) -> float | None:
        """Seconds until time alone makes `next` return something; None when something else must happen before."""
        if self._in_flight >= (1 if self._down else self._origins_at_once):
            return None
        heads = self._heads()
        if not heads:
            return None
        due = self._resume_at if self._down else min(each.not_before for each in heads)
        return max(due - now, 0.0)

    def handled(self, arrival: int, *, answered: bool) -> None:
        """A message is done with.

        Args:
            answered: by an answer of the agent, which therefore is up; else it was never sent.
        """
        self._remove(self._items[arrival])
        if answered:
            self._successes += 1
            self._failing.clear()
            self._down, self._failures = False, 0

    def failed(self, arrival: int, now: float, *, down: bool, retry_after: float = 0.0) -> bool:
        """A message in flight was not taken; True when it is given up.

        Args:
            down: what happened says that no other message would have been taken either.
            retry_after: seconds that the agent asked to be left alone.
        """
        item = self._items[arrival]
        retry_after = min(retry_after, MAX_RETRY_AFTER_SECONDS)
        item.attempts += 1
        item.not_before = now + max(backoff_seconds(item.attempts, self._rng), retry_after)
        self._failing.add(item.origin)
        if not self._down and (down or len(self._failing) > 1):
            self._down, self._failures = True, 1
            self._resume_at = now + max(backoff_seconds(1, self._rng), retry_after)
        elif self._down:
            if item.probe:
                self._failures += 1
                self._resume_at = now + backoff_seconds(self._failures, self._rng)
            self._resume_at = max(self._resume_at, now + retry_after)
        item.in_flight = item.probe = False
        self._in_flight -= 1
        if item.attempts >= self._attempts or self._crowds_out(item):
            self._remove(item)
            return True
        return False

    def _crowds_out(self, item: _Item) -> bool:
        """Does the agent take others, but none are left that could be sent?"""
        return (
            item.attempts >= CROWDING_ATTEMPTS
            and self._successes > item.successes
            and self.room == 0
            and all(self._items[lane[0]].attempts > 0 for lane in self._lanes.values())
        )

    def forget(self, arrival: int) -> bool:
        """Leave out a message that is not in flight; False when it is, or is not here."""
        item = self._items.get(arrival)
        if item is None or item.in_flight:
            return False
        self._remove(item)
        return True

    def _heads(self) -> list[_Item]:
        heads = (self._items[lane[0]] for lane in self._lanes.values())
        return [each for each in heads if not each.in_flight]

    def _remove(self, item: _Item) -> None:
        if item.in_flight:
            self._in_flight -= 1
        del self._items[item.arrival]
        lane = self._lanes[item.origin]
        lane.remove(item.arrival)
        if not lane:
            del self._lanes[item.origin]
            self._failing.discard(item.origin)
        if item.arrival > self._cursor and not item.letter:
            self._done.add(item.arrival)
        self._settle()

    def _settle(self) -> None:
        """Move the cursor over all that is handled without a hole."""
        oldest = self.oldest()
        cursor = self._read if oldest is None else min(oldest - 1, self._read)
        if cursor > self._cursor:
            self._cursor = cursor
            self._done = {each for each in self._done if each > cursor}
