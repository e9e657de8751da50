"""What members say of themselves and of each other, and what a node knows about each."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from p2pnode.core.peerid import PeerId

MAX_MEMBERS = 10_000
"""Bound of the table; at the bound a live stranger takes the place of one that is gone, known ones still change."""

MAX_INCARNATION = 2**53
"""A record above it is refused: its owner could not be topped for ever in eight bytes, and JSON holds no more."""

MAX_ACCUSATIONS = 3
"""More accusers than this do not shorten a suspicion any further, so no more are kept or passed on."""


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


GONE = frozenset({MemberState.DEAD, MemberState.LEFT})


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """What a node says of itself, signed by it.

    Args:
        peer_id: the owner.
        incarnation: wall milliseconds at start, raised with each change; the newer record wins.
        addrs: multiaddrs it can be dialled at, without `/p2p/…`.
        left: it said goodbye.
        started_at_ns: wall time of its start, nanoseconds since 1970.
        current_team: the council or team that its agent works in; empty: none, or an older version that says nothing.
        beyond: of role `bridge`: who lives beyond it, as `BeyondFilter.make` writes it; empty: nobody.
        carrier: where it takes messages by HTTP, `http://HOST:PORT`; empty: nowhere.
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
    current_team: str = ""
    beyond: bytes = b""
    carrier: str = ""
    signed: bytes = b""


@dataclass(frozen=True, slots=True)
class Accusation:
    """One node says that another does not answer. Signed by the accuser; only a newer record of the accused ends it.

    Args:
        accuser: who says so.
        accused: whom it means.
        incarnation: the accused's record that it is about; a newer one is not touched by it.
        at_ns: wall time of the accusation at the accuser, nanoseconds since 1970.
        signed: the SignedAccusation bytes as the accuser made them; what is passed on.
    """

    accuser: PeerId
    accused: PeerId
    incarnation: int
    at_ns: int
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
        accusations: of this incarnation, by accuser; at most `MAX_ACCUSATIONS` are kept.
        suspected_at: monotonic time of the first of them here.
        gone_at_ns: since when it is dead or left, in the wall time of whoever signed that: the earliest accusation or
            its goodbye. So all nodes forget it at the same time, and nobody learns it anew from who forgets later.
    """

    record: MemberRecord
    state: MemberState
    source: str
    first_seen_ns: int
    last_seen_ns: int
    accusations: dict[PeerId, Accusation] = field(default_factory=dict)
    suspected_at: float = 0.0
    gone_at_ns: int = 0
