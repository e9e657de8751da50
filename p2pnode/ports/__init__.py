"""What the node needs of the world, and what the local API needs of the node: Protocols, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from p2pnode.core.gossipsub.events import Priority
from p2pnode.core.gossipsub.events import Protocol as MeshsubVersion
from p2pnode.core.message import MessageId, SignedMessage, Verdict
from p2pnode.core.peerid import PeerId
from p2pnode.core.routing import Road

JsonObject = dict[str, Any]
Direction = Literal["inbound", "outbound"]
Readiness = Literal["delivering", "degraded", "not-ready"]
Method = Literal["bootstrap", "mdns", "docker", "dns"]


@dataclass(frozen=True, slots=True)
class Link:
    """One open connection.

    Args:
        peer: who is at the other end, proven by the handshake.
        direction: who dialled.
        addr: the remote address as a multiaddr without `/p2p/…`; empty when unknown.
    """

    peer: PeerId
    direction: Direction
    addr: str


class HostEvents(Protocol):
    """What the host reports; called on the event loop, must return at once and never raise."""

    def link_opened(self, link: Link) -> None: ...

    def link_closed(self, peer: PeerId, *, by_intent: bool) -> None:
        """The last connection to `peer` is gone.

        Args:
            by_intent: one of the two sides said that it closes; else something broke.
        """

    def link_silent(self, peer: PeerId) -> None:
        """The connection stands, but the peer answers no ping; said again for as long as it does not."""


@dataclass(frozen=True, slots=True)
class FoundAgent:
    """What an orchestrator says of the agent at a place (facts of the Swarm API, named as WHOOSH names them).

    Args:
        id: the first 12 characters of the task's id.
        name: `CHORUS-Task-<slot>`.
        endpoint: its own HTTP API, `http://<ip>:8080`.
        p2p_addr: `<ip>:9000`.
        cluster_id: the cluster it belongs to.
    """

    id: str
    name: str
    endpoint: str
    p2p_addr: str
    cluster_id: str


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere a node may be reached.

    Args:
        addr: a multiaddr that can be dialled, with `/p2p/<peer id>` when the source knows who lives there.
        agent: what the source knows of the agent there.
    """

    addr: str
    agent: FoundAgent | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a source finds less than it should.

    Args:
        code: one of a fixed set of words, by which the doctor and tests name it (`docker-socket-missing`).
        problem: what is wrong and where, with the evidence: one sentence.
        fix: what the operator is to do.
    """

    code: str
    problem: str
    fix: str


@dataclass(frozen=True, slots=True)
class SourceReport:
    """All that one source knows now; it replaces what the source said before.

    Args:
        method: what kind of source it is.
        subject: what it looks at: a socket's URL, a DNS name, interface names, a file's path. With `method` it is the
            source's own name.
        places: what it found; in a failure, what it found last and still believes.
        troubles: empty when all is well.
        took_seconds: how long this look took; None for a source that is told rather than asks.
    """

    method: Method
    subject: str
    places: tuple[Place, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    took_seconds: float | None = None


Report = Callable[[SourceReport], None]
"""Called on the event loop; returns at once and never raises."""


class Source(Protocol):
    """A place to look for peers at. What it cannot do it reports as a trouble, and tries on."""

    @property
    def method(self) -> Method: ...

    @property
    def subject(self) -> str: ...

    async def run(self, report: Report) -> None:
        """Look, and report what changed, until cancelled; an exception is a bug, and starts it anew after a pause."""


class Host(Protocol):
    """Connections and request streams over libp2p."""

    @property
    def peer_id(self) -> PeerId: ...

    def addrs(self) -> tuple[str, ...]:
        """Where this node can be dialled: multiaddrs ending in `/p2p/<peer id>`."""

    def links(self) -> Mapping[PeerId, Link]: ...

    async def dial(self, addr: str) -> PeerId:
        """Connect to a multiaddr, with or without `/p2p/…`; returns who answered.

        An address without a peer id may lead to somebody there is a link with already: that link stays the only one.

        Raises:
            Unavailable: reason `dial`: nobody answers there; `dns`: the name does not resolve; `other-peer`: somebody
                else lives there than the address names; `network-key`: who answers is in another private network, or
                in none; `self`: it is this node.
        """

    async def hang_up(self, peer: PeerId) -> None:
        """Close every connection to `peer`; returns within two seconds whatever the peer does."""

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, limit_bytes: int) -> bytes:
        """Open a stream, send one length-prefixed body, return the one that comes back.

        Raises:
            Unavailable: no connection, no such protocol, or no answer in time.
            InvalidMessage: the answer is longer than `limit_bytes` or cut short.
        """

    def serve(self, protocol: str, answer: Callable[[PeerId, bytes], Awaitable[bytes]], *, limit_bytes: int) -> None:
        """Answer requests; `answer` raising InvalidMessage ends that stream only."""

    async def probe(self, peer: PeerId, addrs: Sequence[str], patience_seconds: float, *, fresh: bool = False) -> bool:
        """Does `peer` answer at one of `addrs` (multiaddrs without `/p2p/…`)? A handshake proves it; no link stays.

        Args:
            fresh: dial in any case; else a link that said something within the last second is proof enough.
        """

    def round_trip(self, peer: PeerId) -> float | None:
        """The newest measured round trip of a link, in seconds."""

    def counters(self) -> Mapping[tuple[str, str], int]:
        """How often each `(what, reason)` happened.

        `broken`: connections that ended by what the peer sent, or left dying. `refused`: connections that came in
        from another private network or none (`network-key`). `failed`: exceptions of our own that nobody expected,
        by where they came from.
        """

    def strangers(self) -> Mapping[str, int]:
        """How many connections from another private network, or from none, were refused, by IP address.

        At most 64 addresses, those heard of last, the latest at the end. Only who said something that shows it is
        counted: who hung up at once may be a health check.
        """

    async def ping(self, peer: PeerId) -> float:
        """Round trip over `/ipfs/ping/1.0.0`, in seconds.

        Raises:
            Unavailable: not connected, or no echo in time.
        """


class MeshsubEvents(Protocol):
    """What the pubsub streams report; called on the event loop, must return at once."""

    def peer_ready(self, link: Link, protocol: MeshsubVersion) -> None:
        """A peer speaks meshsub: the first stream in either direction is open."""

    def peer_reopened(self, peer: PeerId) -> None:
        """Our stream to it broke and was opened again: it must hear our subscriptions anew."""

    def peer_gone(self, peer: PeerId) -> None:
        """The last connection with a peer that was ready is gone."""

    def peer_refused(self, peer: PeerId, lost: tuple[MessageId, ...]) -> None:
        """These messages were dropped for it by a full queue, or may have been lost in a stream that broke."""

    def frame(self, peer: PeerId, frame: bytes) -> None:
        """One whole frame from a peer.

        Raises:
            InvalidMessage: it is no RPC; the stream is reset and `misbehaved` called.
        """

    def misbehaved(self, peer: PeerId, why: str) -> None:
        """Its stream held what is no RPC."""


class Meshsub(Protocol):
    """Pubsub streams: one kept open to each peer, written to without waiting."""

    def send(self, peers: Iterable[PeerId], body: bytes, priority: Priority, message_id: MessageId | None) -> None:
        """Queue one RPC (without length prefix) for each of `peers`; strangers are left out."""

    def hang_up(self, peer: PeerId) -> None:
        """Close all connections with a peer, without waiting for it."""

    def waiting(self, peer: PeerId) -> int:
        """Frames queued for one peer."""

    def peer_record(self, peer: PeerId) -> bytes | None:
        """A connected peer's signed peer record, as it came."""

    def agent_version(self, peer: PeerId) -> str | None:
        """What a connected peer called its software in identify; None until it did."""


class GossipEvents(Protocol):
    """What the gossip layer asks of the node."""

    def judge(self, message: SignedMessage, source: PeerId | None) -> Verdict | None:
        """Verdict on a message whose size, shape, newness and signature are already good.

        None: it takes longer, and comes by `Gossip.answer`.
        """

    def deliver(self, message: SignedMessage, source: PeerId | None, *, via: str = "gossip", restored: bool) -> None:
        """An accepted message of a subscribed topic; called once for each id.

        Args:
            via: `gossip`, or the road that `Gossip.inject` named.
            restored: it is our own and our store had lost it.
        """

    def holds(self, message_id: MessageId) -> bool:
        """Is the message kept already, by whatever road it came?"""

    def connect(self, peer: PeerId, record: bytes | None, why: str) -> None:
        """The router wants a connection: `record` is a signed peer record still to be checked."""

    def held(self, peer: PeerId, seqnos: Sequence[bytes]) -> None:
        """A peer has stored own messages of ours: 8-byte seqnos, as it says, at most 1,024."""

    def repeated(self, peer: PeerId, message_id: MessageId) -> None:
        """A peer sent an own message of its again that is kept here: it has not heard that it is held."""

    def joined(self, peer: PeerId, topic: str) -> None:
        """A peer subscribed to a topic that it did not name when it connected."""


class Gossip(Protocol):
    """The router behind one seam: subscriptions and own messages in, messages and mesh out."""

    async def run(self) -> None:
        """Drive the router's timers, until cancelled."""

    async def subscribe(self, topic: str) -> None: ...

    def admit(self, topic: str) -> None:
        """Can an own message of this topic be promised right now?

        Raises:
            Unavailable: reason `no-peers` when no peer is subscribed to the topic.
            TooBusy: reason `peer-slow`: every peer's queue is too full.
        """

    async def publish(self, message: SignedMessage) -> None:
        """Hand an own message to the mesh."""

    def inject(self, message: SignedMessage, via: str) -> None:
        """A message that came by another road goes through all checks, and to the mesh while it is young.

        Args:
            via: the road, `nats` or `http`; comes back in `GossipEvents.deliver`.
        """

    def heard_topics(self) -> Collection[str]:
        """Topics that connected peers are subscribed to, this node's own not among them unless a peer's too."""

    def announce(self, message: SignedMessage, peers: Collection[PeerId]) -> None:
        """Send an own message again, to those of `peers` that are in its topic; they pass on what is new to them."""

    def misbehaved(self, peer: PeerId, why: str) -> None:
        """A peer did elsewhere what no honest one does: it costs score."""

    def send_held(self, peer: PeerId, seqnos: Sequence[bytes]) -> None:
        """Tell a peer of our kind which of its own messages are stored here, by 8-byte seqno.

        Sent when nothing else waits for it, and dropped when its queue is full.
        """

    def answer(self, message_id: MessageId, verdict: Verdict) -> None:
        """The verdict on a message whose `judge` returned None."""

    def fleet_size(self, members: int) -> None:
        """How many nodes there are, this one included: the mesh degree follows it."""

    def waiting(self) -> int:
        """Messages in outbound queues."""

    async def flush(self) -> None:
        """Return once the outbound queues are empty; the caller sets the deadline."""

    def counters(self) -> Mapping[tuple[str, str], int]:
        """How often each `(verdict, reason)` happened."""

    def topics(self) -> tuple[str, ...]: ...

    def topic_peers(self, topic: str) -> frozenset[PeerId]: ...

    def mesh(self, topic: str) -> frozenset[PeerId]: ...

    def score(self, peer: PeerId) -> float | None: ...

    def sizes(self) -> Mapping[str, int]:
        """How full each bounded container is."""


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
    """

    entries: Sequence[Entry] = ()
    outbox: Sequence[MessageId] = ()
    last_arrival: int = 0
    horizons: Mapping[str, int] = field(default_factory=dict)
    remembered: Sequence[Remember] = ()
    subscriptions: Sequence[Subscription] = ()
    dead_letters: Sequence[DeadLetter] = ()


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


@dataclass(frozen=True, slots=True)
class Published:
    """What a publisher gets back once its message is kept.

    Args:
        id: the message id as text, `<peer id>-<seqno>`.
        seqno: the sequence number, in decimal.
        duplicate: True when the idempotency key had been seen; id and seqno are the first one's.
    """

    id: str
    seqno: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Followed:
    """One step of a followed topic: a message, or news that some were lost to this follower.

    Args:
        document: the message document; empty when messages were lost.
        lost: how many fell out of the bounded history before this follower read them.
        replaced: another stream of the same subscription took over; the last step of this one.
    """

    document: JsonObject = field(default_factory=dict)
    lost: int = 0
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """Can this node deliver?

    Args:
        readiness: `delivering`, `degraded` (works, but not as configured), `not-ready`.
        reasons: one sentence each, with what to do; empty when delivering.
    """

    readiness: Readiness
    reasons: tuple[str, ...] = ()


class Sidecar(Protocol):
    """The node as its local API sees it. Documents are as the interface reference gives them."""

    def node(self) -> JsonObject:
        """This node: the member document and `multiaddrs`, `api`, `health`, `uptime_seconds`."""

    def peers(self) -> list[JsonObject]:
        """Member documents, this node's own included (`"self": true`), ordered by role, name, peer id."""

    def topics(self) -> list[JsonObject]:
        """`topic`, `subscribed`, `peers`, `mesh`, `messages` (kept here), `received`, `published`; by name."""

    def health(self) -> Health: ...

    async def publish(
        self, topic: str, body: bytes, *, content_type: str, headers: Mapping[str, str], idempotency_key: str | None
    ) -> Published:
        """Check, sign, keep and send.

        Raises:
            InvalidRequest: topic, payload or headers are wrong; `faults` names each field.
            PayloadTooLarge: over the payload limit.
            TooBusy: 429, with `retry_after_seconds`.
            Unavailable: 503, with a reason; nothing was sent.
        """

    async def messages(self, topic: str, *, after: str | None, limit: int) -> list[JsonObject]:
        """Message documents in order of arrival here, after the message with id `after` (None: from the start).

        Raises:
            InvalidRequest: `after` is no message id, or not (or no longer) kept here; or the topic name is wrong.
        """

    def follow(self, topic: str, *, start: str) -> AbstractAsyncContextManager[AsyncIterator[Followed]]:
        """Follow a topic: `start` is `start`, `now` or a message id. Subscribes to the topic if need be.

        The iterator ends when the node shuts down.

        Raises:
            InvalidRequest: as `messages`.
        """

    def subscribe(self, topic: str, name: str, *, start: str) -> AbstractAsyncContextManager[AsyncIterator[Followed]]:
        """Read a durable subscription: all that was not acknowledged, then what comes.

        It is created at `start` (as in `follow`) when there is none of that name. An open stream of it ends with
        `replaced`. What is not acknowledged for long is sent again; at most 256 messages are sent ahead of that.

        Raises:
            InvalidRequest: as `messages`; or the name is no name, or that of a subscription to another topic.
            TooBusy: there are as many subscriptions as can be.
            EnvironmentFault: it could not be stored.
        """

    async def acknowledge(self, name: str, message_id: str) -> JsonObject:
        """Everything a subscription was sent up to a message was handled: `subscription`, `pending`.

        Raises:
            NotFound: no such subscription.
            InvalidRequest: no message id, or of none that is stored here and belongs to the subscription.
        """

    async def nack(self, name: str, message_id: str, reason: str) -> JsonObject:
        """A subscription's reader gives one message up; answers and raises as `acknowledge`.

        Raises:
            EnvironmentFault: the dead letter could not be stored.
        """

    async def subscriptions(self) -> list[JsonObject]:
        """`name`, `topics`, `cursor`, `pending`, `state`; by name."""

    async def unsubscribe(self, name: str) -> None:
        """Forget a subscription, its place and its dead letters.

        Raises:
            NotFound: no such subscription.
            InvalidRequest: it is that of the configured webhook.
            EnvironmentFault: it could not be stored.
        """

    async def deliveries(self) -> list[JsonObject]:
        """What waits for the agent, by subscription: `subscription`, `topics`, `cursor`, `pending`,
        `oldest_pending_seconds`, `in_flight`, `failed` (dead letters), `delivered`, `state`, `retry_in_seconds`,
        `last_error`, `last_error_at`. `state`: `delivering`, `waiting` (the webhook does not take messages just now),
        `connected` (its stream is open), `idle` (it is not), `off` (the webhook is not configured)."""

    def dead_letters(self, subscription: str | None, limit: int) -> list[JsonObject]:
        """What was given up, the oldest first: `subscription`, `id`, `topic`, `attempts`, `error`, `at`, `retrying`.

        Raises:
            NotFound: no such subscription.
        """

    async def retry_deliveries(self, subscription: str | None, message_id: str | None) -> int:
        """Try dead letters again: one or all, of one subscription or of all; how many.

        Raises:
            NotFound: no such subscription, or no such dead letter.
            InvalidRequest: no message id, or the webhook whose it is is off.
        """

    async def drop_deliveries(self, subscription: str | None, message_id: str | None) -> int:
        """Forget dead letters; as `retry_deliveries`. One that is on its way to the agent just now stays.

        Raises:
            EnvironmentFault: it could not be stored.
        """

    async def mesh(self) -> JsonObject:
        """Who is in whose mesh, over the whole fleet: `nodes` (`peer_id`, `name`, `role`, `links`, `topics`: peer ids
        by topic) of every node that answered, this one included, and `missing` (`peer_id`, `name`): live members that
        did not. Both ordered as `peers`; asks the fleet, which takes three seconds at most.

        Raises:
            Unavailable: 503, with a reason.
        """

    async def doctor(self) -> JsonObject:
        """Why this node is alone or degraded: `status` (`healthy`, `degraded`, `failed`), `exit_code` (0, 1, 2),
        `summary` (one line of what there is of good), `findings` (`code`, `severity`, `title`, `evidence`: lines,
        `fix`; the worst first), `checked` (names of the checks made), `at`. Takes five seconds at most.

        Raises:
            Unavailable: 503, with a reason.
        """

    def discovery(self) -> JsonObject:
        """Where peers are looked for: `mode`, and `sources`, each with `method`, `subject`, `wanted` (asked for by
        name), `state` (`working`, `failing`), `places` (`addr`, `peer_id`, `name`, `agent_id`, `endpoint`, `state`,
        `error`) and `troubles` (`code`, `problem`, `fix`). A place is `linked`, a `member` without a link, `unreached`
        (`error` says why), `unknown` (not tried yet) or `self`: this node; what nobody knows is null.
        """

    async def ping(self, peer: str) -> JsonObject:
        """One round trip: `peer_id`, `name`, `rtt_ms`, and `"linked": false` when a handshake stood in for a link.

        Args:
            peer: the peer id of one of `peers`, not of this node.

        Raises:
            InvalidRequest: nobody here knows that peer id.
            Unavailable: 503, with a reason: it does not answer.
        """

    def bootstrap_peers(self) -> list[str]:
        """Multiaddrs another node can join by: our own first."""

    async def create_council(self, document: Mapping[str, object], *, idempotency_key: str | None) -> JsonObject:
        """Announce a council; this node decides its claims. What is left out is filled in: `council_id`, `created_at`,
        `formation_deadline`. The council document, with the message id as `id`, and `"duplicate": true` when the key
        or the same `council_id` with the same content was used before.

        Raises:
            InvalidRequest: what is wrong with the opportunity, field by field.
            Conflict: reason `exists`: another council has that id.
            Forbidden: this node is none of `trust.orchestrators`.
            TooBusy, Unavailable, EnvironmentFault: as `publish`.
        """

    def councils(self, *, status: str | None) -> list[JsonObject]:
        """Council documents, the newest first: `council_id`, `project_name`, `repository`, `project_brief`,
        `ucxl_address`, `formation_deadline`, `created_at`, `metadata`, `status`, `message`, `term`, `n`, `owner`
        (peer id), `owner_name`, `updated_at`, `roles` (`role_name`, `required`, `required_skills`, `description`,
        `state`: `open`, `assigned` or `accepted`, `agent_id`, `agent_name`, `peer_id`, `name` (of the node), `term`,
        `n`, `claims`: how many want it), `missing` (core roles that are not accepted yet), `mine` (roles that this
        node's agent holds), `reports` (`peer_id`, `name`, `agent_id`, `role_name`, `status`, `message`, `at`).

        Args:
            status: only those; None for all.

        Raises:
            InvalidRequest: no such status.
        """

    def council(self, council_id: str) -> JsonObject:
        """One council document, with `claims` (`role_name`, `agent_id`, `agent_name`, `peer_id`, `name`,
        `capabilities`, `fit`, `running_roles`, `confidence`, `claimed_at`), those first that would get the role.

        Raises:
            NotFound: no such council here.
            InvalidRequest: no council id.
        """

    async def claim_role(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        """Claim a role for this node's agent: `role_name`, optional `agent_id`, `agent_name`, `capabilities` (those of
        the agent when left out), `confidence`, `claimed_at`. `id`, `council_id`, `role_name`, `agent_id`.

        Raises:
            NotFound: no such council, or it has no such role.
            InvalidRequest: what is wrong with the claim, field by field.
            Conflict: reason `filled`: somebody holds it (`facts`: `agent_id`, `peer_id`, `term`, `n`); `ended`.
            TooBusy, Unavailable, EnvironmentFault: as `publish`.
        """

    async def release_role(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        """Give back a role that this node's agent holds, or take back a claim: `role_name`, optional `agent_id`,
        `reason`. Answers as `claim_role`.

        Raises:
            NotFound: no such council or role, or neither held nor claimed by the agent.
            InvalidRequest, TooBusy, Unavailable, EnvironmentFault: as `claim_role`.
        """

    async def report_status(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        """Say where a council stands: `status`, optional `message`, `role_name`, `agent_id`. An orchestrator's word
        ends the council (`completed`, `failed`, `cancelled`); who holds a role reports on it, with its fencing number
        `term` and `n` if it gives them. `id`, `council_id`, `status`.

        Raises:
            NotFound, InvalidRequest: as `claim_role`.
            Conflict: reason `ended`, `transition`: not from where it stands; `stale`: the fencing number is not, or no
                longer, that of a role the agent holds.
            Forbidden: neither an orchestrator nor a holder of a role there.
            TooBusy, Unavailable, EnvironmentFault: as `publish`.
        """

    def watch_councils(self, council_id: str | None) -> AbstractAsyncContextManager[AsyncIterator[JsonObject]]:
        """Council documents as they change, beginning with those that are: of one council, or of all. A slow reader
        gets the newest state of each and not every step. Ends when the node shuts down.

        Raises:
            NotFound: no such council here.
        """

    def agent(self) -> JsonObject:
        """What is said of this node's agent: `agent_id`, `name`, `status`, `capabilities`, `model`, `endpoint`,
        `cluster_id`, `current_team`, `tasks_completed`, `p2p_addr`, `last_seen`, `peer_id`, `backbeat` (its last
        StatusClaim, or null)."""

    def agents(self, *, capability: str | None, model: str | None, status: str | None) -> list[JsonObject]:
        """The agents of live members, as `agent`; only those that match. By name, then peer id."""

    async def update_agent(self, changes: Mapping[str, object]) -> JsonObject:
        """Change what is said of this node's agent: `status`, `capabilities`, `model`, `endpoint`, `current_team`,
        `tasks_completed`; all members hear of it. The agent's document.

        Raises:
            InvalidRequest: unknown or wrong fields, each named; or more than a member record holds.
        """

    def carriers(self) -> JsonObject:
        """Which roads own messages take: `gossip`, `nats`, `http`, each with `use` (in force), `configured` (both
        `off`, `fallback` or `always`), `state` (`off`, `ready`, `active`: in use as a fallback just now, `down`), `why`
        (one sentence when it is down or active, else empty) and `messages` (own messages that took it); `rollback`
        (`nats`, `http` or null), `canary_percent`, `old_road` (`nats` or `http`: what councils outside the canary share
        take), `waiting` (own messages that are not where they should be),
        `degraded` (bool), `broker` (null without NATS; else `connected`, `server`, `jetstream`, `code`, `problem`,
        `fix`), `changed_at` (when it was set live; null when it stands as at the start), `listen` (where HTTP is taken
        from others; null)."""

    async def set_carriers(self, changes: Mapping[str, object]) -> JsonObject:
        """Change roads until the next start: `gossip`, `nats`, `http`, `canary_percent`, `rollback` (`nats`, `http`, or
        null: none). The document of `carriers`.

        Raises:
            InvalidRequest: unknown or wrong fields, each named; or no road would be left.
        """

    def bridge(self) -> JsonObject:
        """What a bridge does: `import_key` (peer id), `shared_key` (it was configured), `broker` (as in `carriers`),
        `importing` (`all`, `signed`: another bridge imports what plain clients publish), `exports` (`topic`, `subject`,
        `pending`, `published`, `skipped`, `refused`, `failed`), `imports` (`subject`, `durable`, `pending`,
        `unacknowledged`, `redelivered`, `signed`, `plain`, `duplicates`, `refused`), `lag_seconds` (of the oldest
        message that waits for NATS), `bridges` (`peer_id`, `name`, `beyond`: bool, `heard_seconds_ago`), `beyond`
        (members beyond other bridges), `last_refused` (`subject`, `reason`, `detail`, `at`; the newest first, at most
        20).

        Raises:
            NotFound: this node is no bridge.
        """

    def metrics(self) -> Mapping[str, float]:
        """Counters and gauges by Prometheus name, labels in braces: `p2pnode_links`,
        `p2pnode_messages_total{topic="…",verdict="…"}`. Names ending in `_total` are counters."""
