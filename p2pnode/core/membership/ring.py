"""In which order members are probed: all of them once around, shuffled anew each time.

Source: A. Das, I. Gupta, A. Motivala, "SWIM" (2002), section 4.3: so a member's turn comes within a bounded time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from p2pnode.core.membership.record import Member
from p2pnode.core.peerid import PeerId


class Ring:
    """Holds at most twice as many turns as there are members.

    Args:
        members: everybody who is known now.
    """

    def __init__(self, members: Mapping[PeerId, Member], rng: Random) -> None:
        self._members = members
        self._rng = rng
        self._turns: list[PeerId] = []

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._turns

    def add(self, peer: PeerId) -> None:
        """A new member gets its turn at a random place of the round under way."""
        if len(self._turns) < 2 * len(self._members):
            self._turns.insert(self._rng.randrange(len(self._turns) + 1), peer)

    def next(self, is_worth_probing: Callable[[PeerId], bool]) -> PeerId | None:
        """Whose turn it is, those left out that are not worth it; None when nobody is."""
        for _ in range(len(self._turns) + len(self._members)):
            if not self._turns:
                self._turns = sorted(self._members)
                self._rng.shuffle(self._turns)
            peer = self._turns.pop()
            if is_worth_probing(peer):
                return peer
        return None
