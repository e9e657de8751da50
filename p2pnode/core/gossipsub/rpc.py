"""What one pubsub RPC says, decoded; `wire` turns it into bytes and back.

Wire form: libp2p specs, `pubsub/README.md` ("The RPC") and the protobuf sections of
`gossipsub-v1.0.md`, `-v1.1.md` and `-v1.2.md`. Sizes and counts are bounded by the
decoder; the router bounds only what accumulates.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.core.message import MessageId, SignedMessage, Topic
from p2pnode.core.peerid import PeerId


@dataclass(frozen=True, slots=True)
class Subscription:
    """The sender begins (`subscribe`) or ends to take part in `topic`."""

    topic: Topic
    subscribe: bool


@dataclass(frozen=True, slots=True)
class IHave:
    """The sender holds these messages of `topic`."""

    topic: Topic
    ids: tuple[MessageId, ...]


@dataclass(frozen=True, slots=True)
class PxPeer:
    """A peer given in exchange for a lost mesh link.

    Args:
        peer: whom to connect to.
        record: its signed peer record (an envelope), opaque here; empty when the sender has none.
    """

    peer: PeerId
    record: bytes = b""


@dataclass(frozen=True, slots=True)
class Prune:
    """The sender leaves the mesh link with us in `topic`.

    Args:
        peers: others to turn to.
        backoff_seconds: how long not to graft again; 0 when the sender does not say.
    """

    topic: Topic
    peers: tuple[PxPeer, ...] = ()
    backoff_seconds: int = 0


@dataclass(slots=True)
class Rpc:
    """One RPC; a value: never changed after it was made (not frozen, for speed).

    Args:
        idontwant: ids of all IDONTWANT entries, in order; `iwant` likewise.
    """

    subscriptions: tuple[Subscription, ...] = ()
    publish: tuple[SignedMessage, ...] = ()
    ihave: tuple[IHave, ...] = ()
    iwant: tuple[MessageId, ...] = ()
    graft: tuple[Topic, ...] = ()
    prune: tuple[Prune, ...] = ()
    idontwant: tuple[MessageId, ...] = ()
