"""What goes into the router and what comes out of it.

All are values. Those that occur once per message are not frozen, because that
costs a microsecond each; nobody changes them all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from p2pnode.core.gossipsub.rpc import Rpc
from p2pnode.core.message import MessageId, SignedMessage, Topic, Verdict
from p2pnode.core.peerid import PeerId


class Protocol(IntEnum):
    """What a peer speaks; `V1_2` knows IDONTWANT."""

    V1_1 = 11
    V1_2 = 12


class Priority(IntEnum):
    """Classes of an outbound queue, most urgent first."""

    CONTROL = 0
    OWN = 1
    FORWARD = 2
    GOSSIP = 3


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A peer with which we speak meshsub is there; its first connection.

    Args:
        raw: the peer id in bytes, as it stands in a message's `from`.
        outbound: we dialled.
        ip: the remote address without port, None when there is none (a relay, a pipe).
    """

    peer: PeerId
    raw: bytes
    protocol: Protocol
    outbound: bool
    ip: str | None = None


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    """The last connection with the peer is gone."""

    peer: PeerId


@dataclass(slots=True)
class RpcReceived:
    """One decoded RPC."""

    peer: PeerId
    rpc: Rpc


@dataclass(frozen=True, slots=True)
class PeerMisbehaved:
    """The decoder refused bytes of the peer.

    Args:
        why: a short fixed word, counted by it.
        topic: of the refused message when that much was readable: then P4, else P7.
    """

    peer: PeerId
    why: str
    topic: Topic | None = None


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """The peer's outbound queue was full and dropped messages to it.

    Args:
        dropped: what it lost; the router will offer it again by IHAVE.
    """

    peer: PeerId
    dropped: tuple[MessageId, ...] = ()


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Take part in a topic."""

    topic: Topic


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Leave a topic."""

    topic: Topic


@dataclass(slots=True)
class Publish:
    """Our own message, signed and stored; sent, not delivered to us. Also on a repeat."""

    message: SignedMessage


@dataclass(slots=True)
class Inject:
    """A message that came by another road than gossip and should go through the same checks.

    Args:
        via: the road's name (`nats`, `http`, `sync`); comes back in `Validate` and `Deliver`.
    """

    message: SignedMessage
    via: str


@dataclass(slots=True)
class Validated:
    """The node's answer to `Validate`."""

    id: MessageId
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Held:
    """These messages reached the store by another road: copies of them are duplicates."""

    ids: tuple[MessageId, ...]


@dataclass(frozen=True, slots=True)
class AppScore:
    """P5: what the node thinks of a connected peer."""

    peer: PeerId
    score: float


@dataclass(frozen=True, slots=True)
class FleetSize:
    """How many nodes there are, us included; sets the mesh degree (`Params.for_fleet`)."""

    members: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due at `Router.next_deadline()`."""


Input = (
    RpcReceived
    | Validated
    | Publish
    | Inject
    | Tick
    | PeerConnected
    | PeerDisconnected
    | PeerMisbehaved
    | PeerRefused
    | Subscribe
    | Unsubscribe
    | Held
    | AppScore
    | FleetSize
)


@dataclass(slots=True)
class SendRpc:
    """Send control to each of `peers`; the same RPC for all."""

    peers: tuple[PeerId, ...]
    rpc: Rpc
    priority: Priority


@dataclass(slots=True)
class Forward:
    """Send one message to each of `peers`, encoded once.

    Args:
        priority: OWN for our message, FORWARD for another's, GOSSIP for an answer to IWANT.
    """

    message: SignedMessage
    peers: tuple[PeerId, ...]
    priority: Priority

    @property
    def own(self) -> bool:
        return self.priority is Priority.OWN


@dataclass(slots=True)
class Validate:
    """Judge a message whose signature is good; answer with `Validated`, at once or later.

    Args:
        source: the peer that sent it, None when it was injected.
        via: `gossip`, or as given to `Inject`.
    """

    message: SignedMessage
    source: PeerId | None
    via: str


@dataclass(slots=True)
class Deliver:
    """Store the message and hand it to the agent.

    Args:
        restored: it is our own, and neither cache nor store knew it (a lost store).
    """

    message: SignedMessage
    source: PeerId | None
    via: str
    restored: bool


@dataclass(frozen=True, slots=True)
class Connect:
    """Dial the peer if there is room.

    Args:
        record: a signed peer record still to be checked; None: use known addresses.
        why: `px` or `direct`.
    """

    peer: PeerId
    record: bytes | None
    why: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close all connections with the peer; `why` is a short fixed word."""

    peer: PeerId
    why: str


Effect = SendRpc | Forward | Validate | Deliver | Connect | Disconnect
