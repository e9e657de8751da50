"""What the answerer of a comparison learned that it lacks, until it pulls it from that asker."""

from __future__ import annotations

from collections.abc import Mapping

from p2pnode.core.peerid import PeerId

MAX_OF_ONE = 2048
MAX_OF_ALL = 8192
"""Some 3 MB. What is over a bound is left out, and found by a comparison after the rest was pulled."""


class Wishes:
    """Keys with the digests that were offered, by peer."""

    def __init__(self) -> None:
        self._of: dict[PeerId, dict[bytes, bytes]] = {}
        self._overfull: set[PeerId] = set()

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def add(self, peer: PeerId, lacking: Mapping[bytes, bytes]) -> None:
        wishes = self._of.setdefault(peer, {})
        room = min(MAX_OF_ONE - len(wishes), MAX_OF_ALL - len(self))
        new = [(key, digest) for key, digest in lacking.items() if key not in wishes]
        wishes.update(new[:room])
        if len(new) > room:
            self._overfull.add(peer)

    def take(self, peer: PeerId) -> tuple[dict[bytes, bytes], bool]:
        """What to pull from a peer, and whether something had to be left out; it is forgotten here."""
        wishes, overfull = self._of.pop(peer, {}), peer in self._overfull
        self._overfull.discard(peer)
        return wishes, overfull

    def forget(self, peer: PeerId) -> None:
        self._of.pop(peer, None)
        self._overfull.discard(peer)
