"""Gossip: the router as the node uses it, and what it asks of the node."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from p2pnode.core.message import MessageId, SignedMessage, Verdict
from p2pnode.core.peerid import PeerId


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
