"""With whom to compare next, and when: after connecting, at once when there is reason, else each neighbour in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from random import Random
from typing import Literal

from p2pnode.core.peerid import PeerId

Outcome = Literal["same", "differed", "unfinished", "busy", "unreachable", "undelivered", "lied"]
"""How an exchange ended.

`differed`: something came. `unfinished`: so too, and there is more. `busy`: the other had no time. `unreachable`: no
connection, no answer, or a stock peer. `undelivered`: it offered what it did not give. `lied`: it said what no honest
node says.
"""

PAUSE_SECONDS = (2.0, 60.0)
"""Between two turns: the longest is doubled up to while nothing differs, the shortest comes after a difference."""

NEWS_SECONDS = 10.0
"""After something came by gossip the next turn is no later: what gossip lost last leaves no gap that shows it."""

SETTLED_SECONDS = 4.0
"""A turn sooner than that after the news did not compare it; another follows."""

AFTER_CONNECTING_SECONDS = 0.5
KEPT_SECONDS = (0.0, 0.3)
"""After this node began to keep a topic: somewhere in between."""

JOINED_SECONDS = (0.5, 1.0)
"""After a neighbour began to: it asks by itself first."""

AT_ONCE_SECONDS = 0.2
"""Least time from the end of an exchange to the next with the same peer, whatever the reason."""

BUSY_SECONDS = 1.0
UNREACHABLE_SECONDS = (2.0, 600.0)
"""Not asked for so long, doubled each time in a row; a new connection starts anew."""

UNDELIVERED_SECONDS = (10.0, 600.0)
LIED_SECONDS = (60.0, 3600.0)
"""As above, and a new connection changes nothing."""

MAX_UNDER_WAY = 2
MAX_DISTRUSTED = 256
"""Peers remembered over connections; the one that erred longest ago is forgotten first."""

NEVER = float("inf")


@dataclass(slots=True)
class _Neighbour:
    due: float = NEVER
    blocked_until: float = 0.0
    failures: int = 0
    under_way: bool = False


@dataclass(slots=True)
class _Distrust:
    until: float
    times: int


class Turns:
    """Told what happens, it says whom to ask; times are seconds of one monotonic clock.

    Bounded by the number of links and MAX_DISTRUSTED.
    """

    def __init__(self, rng: Random, now: float) -> None:
        self._rng = rng
        self._neighbours: dict[PeerId, _Neighbour] = {}
        self._ring: deque[PeerId] = deque()
        self._distrusted: OrderedDict[PeerId, _Distrust] = OrderedDict()
        self._pause = PAUSE_SECONDS[0]
        self._turn_at = now + self._jittered(self._pause)
        self._in_turn: PeerId | None = None
        self._turn_began = self._news_at = -NEVER

    @property
    def pause(self) -> float:
        """Seconds between two turns, give or take a quarter."""
        return self._pause

    def opened(self, peer: PeerId, *, dialled: bool, now: float) -> None:
        """There is a connection with a peer; whoever dialled asks."""
        if peer in self._neighbours:
            return
        neighbour = self._neighbours[peer] = _Neighbour()
        if dialled:
            neighbour.due = now + self._jittered(AFTER_CONNECTING_SECONDS)
        self._ring.insert(self._rng.randint(0, len(self._ring)), peer)

    def closed(self, peer: PeerId) -> None:
        if self._neighbours.pop(peer, None) is not None:
            self._ring.remove(peer)

    def hasten(self, peer: PeerId, now: float, within: tuple[float, float] = (0.0, 0.0)) -> None:
        """Ask this neighbour as soon as it is decent, or at a chance moment between so many seconds from now."""
        neighbour = self._neighbours.get(peer)
        if neighbour is not None:
            neighbour.due = min(neighbour.due, now + self._rng.uniform(*within))

    def may_ask(self, peer: PeerId, now: float) -> bool:
        """Is it a neighbour that answered last time, and is trusted?"""
        neighbour, distrust = self._neighbours.get(peer), self._distrusted.get(peer)
        return neighbour is not None and neighbour.failures == 0 and (distrust is None or distrust.until <= now)

    def next(self, now: float) -> PeerId | None:
        """Whom to ask now, if anybody; `ended` must follow."""
        if self._is_full():
            return None
        ready = [(each.due, peer) for peer, each in self._neighbours.items() if self._is_due(peer, each, now)]
        if ready:
            return self._start(min(ready)[1])
        if now >= self._turn_at and self._in_turn is None:
            for _ in range(len(self._ring)):
                peer = self._ring[0]
                self._ring.rotate(-1)
                neighbour = self._neighbours[peer]
                if not neighbour.under_way and self._free_at(peer, neighbour) <= now:
                    self._in_turn, self._turn_began = peer, now
                    return self._start(peer)
            self._turn_at = now + self._jittered(self._pause)
        return None

    def deadline(self) -> float:
        """When `next` may say something new, if nothing happens before."""
        if self._is_full():
            return NEVER
        waiting = [
            max(each.due, self._free_at(peer, each))
            for peer, each in self._neighbours.items()
            if not each.under_way and each.due < NEVER
        ]
        return min([*waiting, self._turn_at if self._ring and self._in_turn is None else NEVER])

    def ended(self, peer: PeerId, outcome: Outcome, now: float) -> None:
        """An exchange that `next` asked for is over."""
        in_turn = self._in_turn == peer
        if in_turn:
            self._in_turn = None
            if outcome == "same":
                self._pause = min(self._pause * 2, PAUSE_SECONDS[1])
            self._turn_at = now + self._jittered(self._pause)
            if self._turn_began < self._news_at + SETTLED_SECONDS:
                self._take_turn_within(NEWS_SECONDS, now)
            if outcome == "unreachable":
                self._take_turn_within(PAUSE_SECONDS[0], now)  # the next one may answer
        if outcome in ("differed", "unfinished"):
            self.differed(now)
        if outcome == "undelivered":
            self._distrust(peer, UNDELIVERED_SECONDS, now)
        elif outcome == "lied":
            self._distrust(peer, LIED_SECONDS, now)
        elif outcome != "busy" and outcome != "unreachable":
            self._distrusted.pop(peer, None)
        neighbour = self._neighbours.get(peer)
        if neighbour is None:
            return
        neighbour.under_way = False
        neighbour.blocked_until = now + AT_ONCE_SECONDS
        if outcome == "unreachable":
            neighbour.failures += 1
            neighbour.blocked_until = now + self._jittered(_doubled(UNREACHABLE_SECONDS, neighbour.failures))
        else:
            neighbour.failures = 0
        if outcome == "unfinished":
            neighbour.due = now
            neighbour.blocked_until = now
        elif outcome == "busy":
            neighbour.due = now
            neighbour.blocked_until = now + self._jittered(BUSY_SECONDS)

    def differed(self, now: float) -> None:
        """There was something to exchange, so there may be more soon."""
        self._pause = PAUSE_SECONDS[0]
        self._turn_at = min(self._turn_at, now + self._jittered(self._pause))

    def news(self, now: float) -> None:
        """Something was published: it may not have come everywhere."""
        self._news_at = now
        self._take_turn_within(NEWS_SECONDS, now)

    def times_distrusted(self, peer: PeerId) -> int:
        """How often in a row it did not deliver, or lied."""
        distrust = self._distrusted.get(peer)
        return distrust.times if distrust else 0

    def _is_full(self) -> bool:
        return sum(each.under_way for each in self._neighbours.values()) >= MAX_UNDER_WAY

    def _take_turn_within(self, seconds: float, now: float) -> None:
        if self._turn_at > now + seconds:
            self._turn_at = now + seconds * self._rng.uniform(0.6, 1.0)

    def _start(self, peer: PeerId) -> PeerId:
        neighbour = self._neighbours[peer]
        neighbour.under_way = True
        neighbour.due = NEVER
        return peer

    def _is_due(self, peer: PeerId, neighbour: _Neighbour, now: float) -> bool:
        return not neighbour.under_way and neighbour.due <= now and self._free_at(peer, neighbour) <= now

    def _free_at(self, peer: PeerId, neighbour: _Neighbour) -> float:
        distrust = self._distrusted.get(peer)
        return max(neighbour.blocked_until, distrust.until if distrust else 0.0)

    def _distrust(self, peer: PeerId, seconds: tuple[float, float], now: float) -> None:
        times = self.times_distrusted(peer) + 1
        self._distrusted[peer] = _Distrust(now + self._jittered(_doubled(seconds, times)), times)
        self._distrusted.move_to_end(peer)
        if len(self._distrusted) > MAX_DISTRUSTED:
            self._distrusted.popitem(last=False)

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(0.75, 1.25)


def _doubled(bounds: tuple[float, float], times: int) -> float:
    least, most = bounds
    return min(most, least * 2.0 ** min(times - 1, 20))
