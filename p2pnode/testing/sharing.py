"""A membership table of which many simulated nodes share what they have in common."""

from __future__ import annotations

import dataclasses
from typing import Any

from p2pnode.core.membership.record import Member
from p2pnode.core.membership.table import Table
from p2pnode.core.peerid import PeerId


class SharedTable(Table):
    """A table that starts as a shared one and copies only what it touches; nothing is removed from it."""

    def __init__(self, base: dict[PeerId, Member]) -> None:
        super().__init__()
        self._overlay = self.members = _Overlay(base)

    def peek(self, peer: PeerId) -> Member | None:
        """To be read only: not copied."""
        return self._overlay.peek(peer)

    def difference(self) -> frozenset[tuple[PeerId, int, bool]]:
        """What of `items` differs from the shared table: equal for tables with equal items."""
        return self._overlay.difference()

    def shares_name(self, peer: PeerId) -> bool:
        return False


class _Overlay(dict[PeerId, Member]):
    def __init__(self, base: dict[PeerId, Member]) -> None:
        super().__init__()
        self._base = base
        self._extra = 0

    def __missing__(self, peer: PeerId) -> Member:
        shared = self._base[peer]
        mine = dataclasses.replace(shared, accusations=dict(shared.accusations))
        super().__setitem__(peer, mine)
        return mine

    def __setitem__(self, peer: PeerId, member: Member) -> None:
        self._extra += peer not in self
        super().__setitem__(peer, member)

    def get(self, peer: PeerId, default: Any = None) -> Any:
        return self[peer] if peer in self else default

    def __contains__(self, peer: object) -> bool:
        return super().__contains__(peer) or peer in self._base

    def __len__(self) -> int:
        return len(self._base) + self._extra

    def __iter__(self) -> Any:
        yield from self._base
        yield from (peer for peer in super().__iter__() if peer not in self._base)

    def peek(self, peer: PeerId) -> Member | None:
        return super().get(peer) or self._base.get(peer)

    def difference(self) -> frozenset[tuple[PeerId, int, bool]]:
        return frozenset(
            (peer, member.record.incarnation, bool(member.accusations))
            for peer, member in super().items()
            if member.accusations
            or peer not in self._base
            or member.record.incarnation != self._base[peer].record.incarnation
        )

    def items(self) -> Any:
        mine = dict(super().items())
        for peer, member in self._base.items():
            yield peer, mine.pop(peer, member)
        yield from mine.items()

    def values(self) -> Any:
        return (member for _, member in self.items())
