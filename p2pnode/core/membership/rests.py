"""Who refuted an accusation is left in peace for a while."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.core.peerid import PeerId


@dataclass(frozen=True, slots=True)
class _Rest:
    """For how long who refuted is not doubted, and until when. Remembered for twice as long after it."""

    seconds: float
    until: float


class Rests:
    """One for each member that refuted lately.

    Args:
        seconds: the shortest and the longest rest.
    """

    def __init__(self, seconds: tuple[float, float]) -> None:
        self._shortest, self._longest = seconds
        self._rests: dict[PeerId, _Rest] = {}

    def peers(self) -> frozenset[PeerId]:
        """Those that are remembered."""
        return frozenset(self._rests)

    def is_resting(self, peer: PeerId, now: float) -> bool:
        rest = self._rests.get(peer)
        return rest is not None and now < rest.until

    def refuted(self, peer: PeerId, now: float) -> None:
        """Leave it in peace; twice as long when it refutes again soon after."""
        before = self._rests.get(peer)
        seconds = self._shortest if before is None else min(2 * before.seconds, self._longest)
        self._rests[peer] = _Rest(seconds, now + seconds)

    def forget(self, now: float) -> None:
        self._rests = {peer: rest for peer, rest in self._rests.items() if rest.until + 2 * rest.seconds > now}
