"""What goes into the membership and what comes out of it; all are values."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.core.membership.record import Accusation, MemberRecord, MemberState
from p2pnode.core.peerid import PeerId

NATS = "nats"
"""The source of what came through a bridge."""


@dataclass(frozen=True, slots=True)
class News:
    """Records and accusations, each already verified by its signer's key.

    Args:
        source: `gossip`, `sync`, `nats`, …; what came by anything but gossip is passed on by it.
    """

    records: tuple[MemberRecord, ...]
    accusations: tuple[Accusation, ...]
    source: str


@dataclass(frozen=True, slots=True)
class LinkOpened:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """The last connection with a peer is gone.

    Args:
        by_intent: one of the two sides said that it closes; no sign of trouble.
    """

    peer: PeerId
    by_intent: bool


@dataclass(frozen=True, slots=True)
class LinkSilent:
    """A link stands, and its pings are not answered."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class ProbeEnded:
    """Our own probe of a member, asked for by `Probe`, ended."""

    peer: PeerId
    reached: bool


@dataclass(frozen=True, slots=True)
class HelpersEnded:
    """The probes by others, asked for by `AskHelpers`, ended: did any of them reach it?"""

    peer: PeerId
    reached: bool


@dataclass(frozen=True, slots=True)
class Renew:
    """Our own record changes, or must be said again.

    Args:
        record: the new one; its incarnation and signature are made here.
    """

    record: MemberRecord


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `Membership.next_deadline` gave has come."""


Input = News | LinkOpened | LinkClosed | LinkSilent | ProbeEnded | HelpersEnded | Renew | Tick


@dataclass(frozen=True, slots=True)
class Publish:
    """Gossip these to everyone."""

    records: tuple[MemberRecord, ...]
    accusations: tuple[Accusation, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out whether a member answers, by its link or a new connection; tell by `ProbeEnded`."""

    peer: PeerId
    addrs: tuple[str, ...]
    patience_seconds: float


@dataclass(frozen=True, slots=True)
class AskHelpers:
    """Let these linked members probe another; tell by `HelpersEnded`."""

    peer: PeerId
    helpers: tuple[PeerId, ...]
    patience_seconds: float


@dataclass(frozen=True, slots=True)
class StateChanged:
    """What is known of a member changed.

    Args:
        before: None for a new member.
        after: None for one that was forgotten.
        why: for logs, in a few words.
    """

    peer: PeerId
    before: MemberState | None
    after: MemberState | None
    why: str


@dataclass(frozen=True, slots=True)
class OwnRecord:
    """Our own record has a new incarnation, which must be remembered over a restart."""

    record: MemberRecord


@dataclass(frozen=True, slots=True)
class Twin:
    """Another live process has our identity.

    Args:
        record: what it says of itself.
        yield_to_it: it is the older one: we must stop.
    """

    record: MemberRecord
    yield_to_it: bool


Effect = Publish | Probe | AskHelpers | StateChanged | OwnRecord | Twin
