"""The table of members: bounded, indexed by name, and forgetting who is gone for a day."""

from __future__ import annotations

from collections.abc import Iterator

from p2pnode.core.membership.record import GONE, MAX_MEMBERS, Accusation, Member, MemberRecord, MemberState
from p2pnode.core.peerid import PeerId, peer_id_bytes


class Table:
    """What one node knows of everybody, itself included.

    At `MAX_MEMBERS` a live stranger takes the place of whoever is gone longest; when nobody is gone it is refused.

    Attributes:
        members: by peer id.
        version: another one after each change of what two nodes compare.
    """

    def __init__(self) -> None:
        self.members: dict[PeerId, Member] = {}
        self.version = 0
        self._names: dict[str, set[PeerId]] = {}

    def has_room(self) -> bool:
        """For a live stranger."""
        return len(self.members) < MAX_MEMBERS or self._longest_gone() is not None

    def is_full(self) -> bool:
        return len(self.members) >= MAX_MEMBERS

    def add(self, record: MemberRecord, state: MemberState, source: str, wall_ns: int) -> Member | None:
        """Take in a stranger; returns whose place it took."""
        longest = self._longest_gone() if self.is_full() else None
        evicted = self.remove(longest) if longest is not None else None
        self.members[record.peer_id] = Member(record, state, source, wall_ns, wall_ns)
        self._index(record)
        self.version += 1
        return evicted

    def replace(self, member: Member, record: MemberRecord, wall_ns: int) -> None:
        """A newer record: what was said about the older one is void."""
        self._unindex(member.record)
        member.record, member.last_seen_ns = record, wall_ns
        member.accusations.clear()
        self._index(record)
        self.version += 1

    def accuse(self, member: Member, accusation: Accusation) -> None:
        member.accusations[accusation.accuser] = accusation
        self.version += 1

    def bury(self, member: Member) -> None:
        """Its name is free."""
        self._unindex(member.record)

    def remove(self, peer: PeerId) -> Member:
        member = self.members.pop(peer)
        self._unindex(member.record)
        self.version += 1
        return member

    def shares_name(self, peer: PeerId) -> bool:
        """Does another member that is not gone have the same name?"""
        member = self.members.get(peer)
        return member is not None and bool(self._names.get(member.record.name, set()) - {peer})

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """What two nodes compare: `(peer id, incarnation and whether it stands accused)`."""
        for peer, member in self.members.items():
            yield peer_id_bytes(peer), member.record.incarnation.to_bytes(8, "big") + bytes([bool(member.accusations)])

    def _longest_gone(self) -> PeerId | None:
        gone = [(member.gone_at_ns, peer) for peer, member in self.members.items() if member.state in GONE]
        return min(gone)[1] if gone else None

    def _index(self, record: MemberRecord) -> None:
        if not record.left:
            self._names.setdefault(record.name, set()).add(record.peer_id)

    def _unindex(self, record: MemberRecord) -> None:
        peers = self._names.get(record.name)
        if peers is not None:
            peers.discard(record.peer_id)
            if not peers:
                del self._names[record.name]
