"""Stores: what outlives a run, and the changes that are written to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from p2pnode.core.message import MessageId
from p2pnode.core.peerid import PeerId
from p2pnode.core.routing import Road


class SeqnoStore(Protocol):
    """Where the ceiling of used sequence numbers survives a restart."""

    def load(self) -> int:
        """The stored ceiling, 0 when there is none."""

    async def reserve(self, ceiling: int) -> None:
        """Make `ceiling` durable before any number up to it is used.

        Raises:
            EnvironmentFault: it could not be written.
        """


class KnownPeers(Protocol):
    """Where the peers of earlier runs are remembered."""

    def load(self) -> Mapping[PeerId, tuple[str, ...]]:
        """Addresses (multiaddrs without `/p2p/…`) by peer id; empty when there are none."""

    async def save(self, peers: Mapping[PeerId, tuple[str, ...]]) -> None:
        """Replace what is remembered.

        Raises:
            EnvironmentFault: it could not be written.
        """


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a stored message without its bytes.

    Args:
        id: the message id.
        topic: its topic.
        arrival: the local number that readers go by, strictly rising over all topics and never used twice; 0 while it
            is held back for a gap before it.
        published_at_ns: signed time; 0 without one.
        expires_at_ns: signed; 0 for never.
        received_at_ns: wall time here.
        size: of the signed bytes.
        digest: SHA-256 of the signed bytes, cut to 16 bytes.
        prev: the origin's previous seqno on this topic, signed; 0 when unknown.
        carrier: the road it came by: `local`, `gossip`, `sync`, `nats`, `http`.
        late: released after a message of the same origin that followed it.
        own: ours.
        roads: of an own message: those that took it, of `gossip`, `nats`, `http`.
    """

    id: MessageId
    topic: str
    arrival: int
    published_at_ns: int
    expires_at_ns: int
    received_at_ns: int
    size: int
    digest: bytes
    prev: int = 0
    carrier: str = "gossip"
    late: bool = False
    own: bool = False
    roads: tuple[Road, ...] = ()


@dataclass(frozen=True, slots=True)
class Subscription:
    """A durable reader of some topics.

    Args:
        name: chosen by the agent; `webhook` is the sidecar's own.
        topics: what it reads.
        cursor: everything up to this arrival was handled.
    """

    name: str
    topics: tuple[str, ...]
    cursor: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that a subscription gave up.

    Args:
        subscription: its name.
        arrival: the message's.
        id: the message id.
        topic: its topic.
        attempts: how often it was tried.
        error: what the agent answered the last time.
        at_ns: wall time of that.
    """

    subscription: str
    arrival: int
    id: MessageId
    topic: str
    attempts: int
    error: str
    at_ns: int


# What is written. All changes of one `write` are in one transaction, in their order; each is idempotent.


@dataclass(frozen=True, slots=True)
class Add:
    """Store a message; nothing happens when its id is there. `outbox`: it is ours and not safe elsewhere yet."""

    entry: Entry
    raw: bytes
    outbox: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """A message that was held back gets its arrival."""

    id: MessageId
    arrival: int
    late: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget messages, with their place in the outbox and their dead letters."""

    ids: tuple[MessageId, ...]


@dataclass(frozen=True, slots=True)
class Horizon:
    """Below this signed time (ns) nothing of the topic is kept any more."""

    topic: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class OutboxDone:
    """These are safe elsewhere."""

    ids: tuple[MessageId, ...]


@dataclass(frozen=True, slots=True)
class Took:
    """These roads took an own message."""

    id: MessageId
    roads: tuple[Road, ...]


@dataclass(frozen=True, slots=True)
class Remember:
    """An idempotency key was used for a message; `digest` is that of what was asked."""

    key: str
    digest: bytes
    id: MessageId
    at_ns: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Create or change a subscription, its cursor included."""

    subscription: Subscription


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Forget a subscription and its dead letters."""

    name: str


@dataclass(frozen=True, slots=True)
class Advance:
    """A subscription handled everything up to this arrival."""

    name: str
    cursor: int


@dataclass(frozen=True, slots=True)
class Bury:
    """A subscription gave a message up."""

    letter: DeadLetter


@dataclass(frozen=True, slots=True)
class Exhume:
    """A dead letter is none any more: tried again, or dropped."""

    subscription: str
    arrival: int


Change = (
    Add | Release | Drop | Horizon | OutboxDone | Took | Remember | Subscribe | Unsubscribe | Advance | Bury | Exhume
)


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a store holds besides the messages' bytes, as it was opened.

    Args:
        entries: by arrival, those held back (arrival 0) last.
        outbox: own messages that were not safe elsewhere.
        last_arrival: the highest ever used.
        horizons: ns by topic.
        remembered: idempotency keys, the oldest first.
        number: drawn when the store was made: one that was lost and made anew has another.
    """

    entries: Sequence[Entry] = ()
    outbox: Sequence[MessageId] = ()
    last_arrival: int = 0
    horizons: Mapping[str, int] = field(default_factory=dict)
    remembered: Sequence[Remember] = ()
    subscriptions: Sequence[Subscription] = ()
    dead_letters: Sequence[DeadLetter] = ()
    number: int = 0


class MessageStore(Protocol):
    """Where messages survive a restart. It decides nothing: what is kept and in which order is the node's business."""

    async def load(self) -> Contents:
        """Everything but the bytes; called once, before the first write.

        Raises:
            EnvironmentFault: it cannot be read, with the fix.
        """

    async def write(self, changes: Sequence[Change], *, full: bool) -> None:
        """Returns when they are committed; calls that wait at the same time share a transaction.

        Args:
            full: a power cut right after the return loses nothing; else it may lose the last moments.

        Raises:
            StorageFull: no space; nothing of these changes was written.
            EnvironmentFault: another failure, likewise.
        """

    async def read(self, ids: Sequence[MessageId]) -> Mapping[MessageId, bytes]:
        """The signed bytes of those that are there.

        Raises:
            EnvironmentFault: it cannot be read.
        """
