"""How far the wall clocks of the linked peers are from ours, as their member exchanges tell it.

The estimate is Cristian's: what the other says is held against the middle of our own sending and receiving. It is off
by half a round trip at most, which is nothing against the minute that the doctor asks about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from p2pnode.core.peerid import PeerId

MAX_OFFSET_SECONDS = 366 * 86400.0
"""What is further off is told as this: a peer can say any number, and a year is wrong enough."""


class Clocks:
    """One offset for each linked peer that told its time.

    Args:
        linked: the peers with a link; nothing is kept of any other.
    """

    def __init__(self, linked: Callable[[], Collection[PeerId]]) -> None:
        self._linked = linked
        self._offsets: dict[PeerId, float] = {}

    def heard(self, peer: PeerId, their_ns: int, our_ns: int) -> None:
        """A peer's wall time came, which was `our_ns` here when it was read there; 0 is that of an older version."""
        if their_ns == 0 or peer not in self._linked():
            return
        seconds = (their_ns - our_ns) / 1e9
        self._offsets[peer] = max(-MAX_OFFSET_SECONDS, min(seconds, MAX_OFFSET_SECONDS))

    def forget(self, peer: PeerId) -> None:
        """The link is gone."""
        self._offsets.pop(peer, None)

    def offsets(self) -> Mapping[PeerId, float]:
        """Seconds that each one's clock is ahead of ours."""
        return dict(self._offsets)
