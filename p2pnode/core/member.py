"""A member's record and the table of all members: newer incarnations win, strangers' words do not count."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from p2pnode.core.peerid import PeerId

MAX_MEMBERS = 10_000
"""Bound of the table; at the bound a new member is refused, known ones still change."""


class Role(StrEnum):
    CHORUS = "chorus"
    WHOOSH = "whoosh"
    BRIDGE = "bridge"
    BOOTSTRAP = "bootstrap"


class MemberState(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """What a node says of itself, signed by it.

    Args:
        peer_id: the owner.
        incarnation: wall milliseconds at start, raised with each change; the newer record wins.
        addrs: multiaddrs it can be dialled at, without `/p2p/…`.
        left: it said goodbye.
        started_at_ns: wall time of its start, nanoseconds since 1970.
        signed: the SignedRecord bytes as the owner made them; what is passed on.
    """

    peer_id: PeerId
    incarnation: int
    name: str
    role: str
    status: str
    addrs: tuple[str, ...]
    agent_id: str = ""
    capabilities: tuple[str, ...] = ()
    model: str = ""
    endpoint: str = ""
    cluster_id: str = ""
    tasks_completed: int = 0
    version: str = ""
    left: bool = False
    started_at_ns: int = 0
    signed: bytes = b""


@dataclass(slots=True)
class Member:
    """A record and what this node knows about it.

    Args:
        record: the newest one seen.
        state: as far as this node can tell.
        source: how it was first found (`bootstrap`, `gossip`, `sync`, `inbound`, …).
        first_seen_ns: wall time here, nanoseconds.
        last_seen_ns: wall time of the last sign of life here.
    """

    record: MemberRecord
    state: MemberState
    source: str
    first_seen_ns: int
    last_seen_ns: int


class MemberTable:
    """All members this node knows, itself included. Pure: wall time comes in with each call."""

    def __init__(self) -> None:
        self._members: dict[PeerId, Member] = {}
        self.refused = 0

    def __len__(self) -> int:
        return len(self._members)

    def get(self, peer: PeerId) -> Member | None:
        return self._members.get(peer)

    def all(self) -> Mapping[PeerId, Member]:
        return self._members

    def merge(self, record: MemberRecord, source: str, wall_ns: int) -> bool:
        """Take a verified record; True when it told us something new."""
        known = self._members.get(record.peer_id)
        state = MemberState.LEFT if record.left else MemberState.ALIVE
        if known is None:
            if len(self._members) >= MAX_MEMBERS:
                self.refused += 1
                return False
            self._members[record.peer_id] = Member(record, state, source, wall_ns, wall_ns)
            return True
        if record.incarnation <= known.record.incarnation:
            return False
        known.record, known.state, known.last_seen_ns = record, state, wall_ns
        return True

    def heard_from(self, peer: PeerId, wall_ns: int) -> None:
        """A connection to it stands: whatever we feared, it lives, unless it said goodbye."""
        known = self._members.get(peer)
        if known is not None:
            known.last_seen_ns = wall_ns
            if known.state is not MemberState.LEFT:
                known.state = MemberState.ALIVE

    def mark(self, peer: PeerId, state: MemberState) -> None:
        """What this node concluded by itself, after it lost the link and could not dial."""
        known = self._members.get(peer)
        if known is not None and known.state is not MemberState.LEFT:
            known.state = state

    def is_news(self, record: MemberRecord) -> bool:
        """Whether `merge` would change anything."""
        known = self._members.get(record.peer_id)
        return known is None or record.incarnation > known.record.incarnation

    def digest(self) -> bytes:
        """SHA-256 over peer ids and incarnations in order of peer id: equal tables have equal digests."""
        text = "\n".join(f"{peer} {self._members[peer].record.incarnation}" for peer in sorted(self._members))
        return hashlib.sha256(text.encode()).digest()

    def alive(self) -> list[Member]:
        return [member for member in self._members.values() if member.state is MemberState.ALIVE]
