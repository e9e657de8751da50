"""Whom not to graft again yet, by topic (gossipsub-v1.1, "PRUNE Backoff and Peer Exchange")."""

from __future__ import annotations

from p2pnode.core.message import Topic
from p2pnode.core.peerid import PeerId


class Backoffs:
    """Ends of backoffs, in monotonic seconds.

    Args:
        slack: seconds that we wait longer ourselves, so that the peer's clock has surely passed it.
        longest: no backoff lasts longer, whatever a peer asks.
        bound: entries remembered; at it the one entered first goes.
    """

    __slots__ = ("_bound", "_ends", "_longest", "_slack")

    def __init__(self, slack: float, longest: float, bound: int) -> None:
        self._slack = slack
        self._longest = longest
        self._bound = bound
        self._ends: dict[tuple[Topic, PeerId], float] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, topic: Topic, peer: PeerId, seconds: float, now: float) -> None:
        """Begin or prolong a backoff; never shortens one."""
        key = (topic, peer)
        end = now + min(seconds, self._longest)
        known = self._ends.get(key)
        if known is None and len(self._ends) >= self._bound:
            del self._ends[next(iter(self._ends))]
        if known is None or known < end:
            self._ends[key] = end

    def end(self, topic: Topic, peer: PeerId, now: float) -> float | None:
        """When the running backoff ends; None when none runs. A GRAFT before it is misbehaviour."""
        end = self._ends.get((topic, peer))
        return end if end is not None and now < end else None

    def blocks(self, topic: Topic, peer: PeerId, now: float) -> bool:
        """True while we ourselves should not graft, slack included."""
        end = self._ends.get((topic, peer))
        return end is not None and now < end + self._slack

    def expire(self, now: float) -> None:
        """Forget what is over."""
        over = [key for key, end in self._ends.items() if end + self._slack <= now]
        for key in over:
            del self._ends[key]
