"""The router at work: its inputs from the streams and the node, its effects carried out.

One function interprets effects; nothing here awaits, so between *seen* and *mark*, and
between an effect and its queue, nobody else runs.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from random import Random

import trio

from p2pnode.core.gossipsub.events import (
    Connect,
    Deliver,
    Disconnect,
    Effect,
    FleetSize,
    Forward,
    Inject,
    Input,
    PeerConnected,
    PeerDisconnected,
    PeerMisbehaved,
    PeerRefused,
    Priority,
    Protocol,
    Publish,
    RpcReceived,
    SendRpc,
    Subscribe,
    Tick,
    Validate,
    Validated,
)
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.router import Router
from p2pnode.core.gossipsub.rpc import Rpc, Subscription
from p2pnode.core.message import Ignore, MessageId, SignedMessage, Topic, Verdict, Verify
from p2pnode.core.peerid import PeerId, peer_id_bytes
from p2pnode.errors import TooBusy, Unavailable
from p2pnode.node.forwarding import Forwarding
from p2pnode.ports import GossipEvents, Link, Meshsub
from p2pnode.wire.rpc import MAX_HELD, Decoded, RpcDecoder, encode_held, encode_publish, encode_rpc

log = logging.getLogger(__name__)

GOSSIP = "gossip"
BUSY_FRAMES = 512
"""Own publishes are refused while every mesh peer has this many frames unsent, far below the queue's bound."""


class RoutedGossip:
    """`ports.Gossip` and `ports.MeshsubEvents`: our own router on the host's streams.

    Args:
        local: our peer id.
        streams: writes frames and reports them.
        events: the node: judges and takes messages, dials whom the router wants.
        verify: checks an origin's signature.
        params: of the router.
        rng: every random choice of the router comes from it.
        fixed_degree: the operator chose the mesh degree; the fleet's size does not change it.
    """

    def __init__(
        self,
        local: PeerId,
        streams: Meshsub,
        events: GossipEvents,
        verify: Verify,
        params: Params,
        rng: Random,
        *,
        fixed_degree: bool = False,
    ) -> None:
        self._fixed_degree = fixed_degree
        self._streams = streams
        self._events = events
        self._router = Router(
            local,
            peer_id_bytes(local),
            params,
            rng,
            verify,
            held=events.holds,
            records=streams.peer_record,
            now=trio.current_time(),
        )
        self._key_ids: set[PeerId] = set()
        self._silent: set[PeerId] = set()
        self._inputs: deque[Input] = deque()
        self._running = False
        self._counters: Counter[tuple[str, str]] = Counter()
        self._decoder = RpcDecoder()
        self._forwarding = Forwarding(self._forward, streams.soon)

    # -- the loop ----------------------------------------------------------------------

    async def run(self) -> None:
        """Drive the router's timers, until cancelled."""
        while True:
            await trio.sleep_until(self._router.next_deadline())
            self._handle(Tick())

    def _handle(self, first: Input) -> None:
        """Feed the router, and what its effects bring about, until it is quiet."""
        self._inputs.append(first)
        if self._running:
            return  # an effect led back here; the loop below takes it
        self._running = True
        try:
            while self._inputs:
                for effect in self._router.handle(self._inputs.popleft(), trio.current_time()):
                    self._carry_out(effect)
        finally:
            self._running = False

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Forward(message, peers, Priority.FORWARD):
                self._forwarding.add(message, peers)
            case Forward(message, peers, priority):
                self._streams.send(peers, encode_publish(message), priority, message.id)
            case Validate(message, source, _):
                verdict = self._judge(message, source)
                if verdict is not None:
                    self._inputs.append(Validated(message.id, verdict))
            case Deliver(message, source, via, restored):
                self._events.deliver(message, source, via=via if source is None else GOSSIP, restored=restored)
            case SendRpc(peers, rpc, priority):
                self._send(peers, rpc, priority)
            case Connect(peer, record, why):
                self._events.connect(peer, record, why)
            case Disconnect(peer, why):
                log.info("hanging up on a peer", extra={"peer": peer, "reason": why})
                self._streams.hang_up(peer)

    def _forward(self, message: SignedMessage, peers: Sequence[PeerId]) -> None:
        self._streams.send(peers, encode_publish(message), Priority.FORWARD, message.id)

    def _send(self, peers: Sequence[PeerId], rpc: Rpc, priority: Priority) -> None:
        """Send control in the form of ids that each peer understands."""
        others = peers
        if rpc.ihave or rpc.iwant or rpc.idontwant:
            by_key = [peer for peer in peers if self._names_by_key(peer)]
            if by_key:
                others = [peer for peer in peers if peer not in by_key]
                self._streams.send(by_key, encode_rpc(rpc, key_ids=True), priority, None)
        if others:
            self._streams.send(others, encode_rpc(rpc), priority, None)

    def _names_by_key(self, peer: PeerId) -> bool:
        """Does the peer know messages by js-libp2p's default id? Told by its own ids, or by what it calls itself."""
        return peer in self._key_ids or (self._streams.agent_version(peer) or "").startswith("js-libp2p")

    def _judge(self, message: SignedMessage, source: PeerId | None) -> Verdict | None:
        try:
            return self._events.judge(message, source)
        except Exception:
            # A validator's failure must not end the peer's reader, and says nothing about the peer.
            log.exception("a validator failed", extra={"topic": message.topic})
            return Ignore("validator-failed")

    # -- ports.MeshsubEvents -----------------------------------------------------------

    def peer_ready(self, link: Link, protocol: Protocol) -> None:
        parts = link.addr.split("/")
        ip = parts[2] if len(parts) > 2 else None
        self._silent.add(link.peer)
        self._handle(PeerConnected(link.peer, peer_id_bytes(link.peer), protocol, link.direction == "outbound", ip))

    def peer_reopened(self, peer: PeerId) -> None:
        hello = Rpc(subscriptions=tuple(Subscription(topic, True) for topic in self._router.topics()))
        self._streams.send((peer,), encode_rpc(hello), Priority.CONTROL, None)

    def peer_gone(self, peer: PeerId) -> None:
        self._key_ids.discard(peer)
        self._silent.discard(peer)
        self._handle(PeerDisconnected(peer))

    def peer_refused(self, peer: PeerId, lost: tuple[MessageId, ...]) -> None:
        self._counters["drop", "queue-full"] += max(len(lost), 1)
        self._handle(PeerRefused(peer, lost))

    def misbehaved(self, peer: PeerId, why: str) -> None:
        self._counters["rpc", why] += 1
        self._handle(PeerMisbehaved(peer, why))

    def frame(self, peer: PeerId, frame: bytes) -> None:
        """One RPC from a peer.

        Raises:
            InvalidMessage: it is none; the stream is of no more use.
        """
        decoded = self._decoder.decode(frame)
        if decoded.key_ids:
            self._key_ids.add(peer)
        for refused in decoded.refused:
            self._handle(PeerMisbehaved(peer, refused.reason, refused.topic))
        if decoded.excess:
            self._counters["ignore", "control-excess"] += decoded.excess
        if decoded.held or decoded.held_malformed:
            self._held(peer, decoded)
        if decoded.rpc.publish:
            self._find_repeats(peer, decoded.rpc.publish)
        if self._forwarding:
            for message in decoded.rpc.publish:
                self._forwarding.spare(peer, message.id)
            for message_id in decoded.rpc.idontwant:
                self._forwarding.spare(peer, message_id)
        new = self._new_topics(peer, decoded.rpc.subscriptions) if decoded.rpc.subscriptions else ()
        self._handle(RpcReceived(peer, decoded.rpc))
        for topic in new:
            if peer in self._router.topic_peers(topic):
                self._events.joined(peer, topic)

    def _new_topics(self, peer: PeerId, told: Sequence[Subscription]) -> Sequence[Topic]:
        """What a peer subscribes to now; none at its first words, in which it tells all that it reads."""
        if peer in self._silent:
            self._silent.remove(peer)
            return ()
        subscribed = dict.fromkeys(each.topic for each in told if each.subscribe)
        return [topic for topic in subscribed if peer not in self._router.topic_peers(topic)]

    def _held(self, peer: PeerId, decoded: Decoded) -> None:
        if decoded.held_malformed:
            self._counters["ignore", "held-malformed"] += decoded.held_malformed
        if self._router.graylisted(peer):
            self._counters["ignore", "held-graylisted"] += len(decoded.held)
        elif decoded.held:
            self._events.held(peer, decoded.held)

    def _find_repeats(self, peer: PeerId, messages: Sequence[SignedMessage]) -> None:
        """Who sends its own message although it is kept here: before the router, which counts it as a duplicate."""
        raw = peer_id_bytes(peer)
        for message in messages:
            if message.origin == raw and self._events.holds(message.id):
                self._events.repeated(peer, message.id)

    # -- ports.Gossip ------------------------------------------------------------------

    async def subscribe(self, topic: str) -> None:
        self._handle(Subscribe(Topic(topic)))

    async def publish(self, message: SignedMessage) -> None:
        self._handle(Publish(message))

    def inject(self, message: SignedMessage, via: str) -> None:
        self._handle(Inject(message, via))

    def heard_topics(self) -> Collection[str]:
        return self._router.heard_topics()

    def announce(self, message: SignedMessage, peers: Collection[PeerId]) -> None:
        # Not by the router: it would send to everybody in the topic, or to the mesh alone when the message is large.
        there = [peer for peer in self._router.topic_peers(message.topic) if peer in peers]
        self._streams.send(there, encode_publish(message), Priority.OWN, message.id)

    def send_held(self, peer: PeerId, seqnos: Sequence[bytes]) -> None:
        for start in range(0, len(seqnos), MAX_HELD):
            body = encode_held(seqnos[start : start + MAX_HELD])
            self._streams.send((peer,), body, Priority.GOSSIP, None)

    def answer(self, message_id: MessageId, verdict: Verdict) -> None:
        """The verdict on a message whose `judge` returned None."""
        self._handle(Validated(message_id, verdict))

    def fleet_size(self, members: int) -> None:
        """How many nodes there are, us included: the mesh degree follows it."""
        if not self._fixed_degree:
            self._handle(FleetSize(members))

    def admit(self, topic: str) -> None:
        peers = self._router.topic_peers(Topic(topic))
        if not peers:
            raise Unavailable(
                f"no connected peer is subscribed to {topic}, so nobody could receive the message",
                reason="no-peers",
                retry_after_seconds=2.0,
                hint="`p2pnode peers` shows who is there; check the bootstrap addresses",
            )
        # The least busy one decides: it passes the message on, and one peer that reads nothing must not silence us.
        waiting = min(map(self._streams.waiting, self._router.mesh(Topic(topic)) or peers))
        if waiting >= BUSY_FRAMES:
            raise TooBusy(
                f"{waiting} or more messages wait for each peer of {topic}; more cannot be promised",
                reason="peer-slow",
                retry_after_seconds=1.0,
            )

    def waiting(self) -> int:
        return sum(self._streams.waiting(peer) for peer in self._router.peers())

    async def flush(self) -> None:
        self._forwarding.flush()
        for pause in itertools.repeat(0.02):
            if not self.waiting():
                return
            await trio.sleep(pause)

    def topics(self) -> tuple[str, ...]:
        return tuple(sorted(self._router.topics()))

    def topic_peers(self, topic: str) -> frozenset[PeerId]:
        return frozenset(self._router.topic_peers(Topic(topic)))

    def mesh(self, topic: str) -> frozenset[PeerId]:
        return frozenset(self._router.mesh(Topic(topic)))

    def score(self, peer: PeerId) -> float | None:
        return round(self._router.score(peer), 3)

    def counters(self) -> Mapping[tuple[str, str], int]:
        return {**self._router.counters, **self._counters}

    def sizes(self) -> Mapping[str, int]:
        return self._router.sizes()
