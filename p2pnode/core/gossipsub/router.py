"""GossipSub v1.1 and v1.2 as a state machine: `handle(input, now)` returns effects.

No I/O, no clock, no randomness of its own: the same inputs, times and seed give the same
effects. It never raises for anything that a peer can send. libp2p specs,
`pubsub/gossipsub/`; each module beside this one cites its section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from p2pnode.core.gossipsub import gossip, mesh
from p2pnode.core.gossipsub.events import (
    AppScore,
    Disconnect,
    Effect,
    FleetSize,
    Held,
    Inject,
    Input,
    PeerConnected,
    PeerDisconnected,
    PeerMisbehaved,
    PeerRefused,
    Priority,
    Publish,
    RpcReceived,
    SendRpc,
    Subscribe,
    Tick,
    Unsubscribe,
    Validated,
)
from p2pnode.core.gossipsub.fanout import Publisher
from p2pnode.core.gossipsub.heartbeat import Heartbeat
from p2pnode.core.gossipsub.inbound import Inbound
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.peers import Peer
from p2pnode.core.gossipsub.rpc import Rpc, Subscription
from p2pnode.core.gossipsub.seen import Status
from p2pnode.core.gossipsub.state import Count, Mesh, State
from p2pnode.core.message import MAX_TOPIC_BYTES, MessageId, Topic, Verify
from p2pnode.core.peerid import PeerId


def _nothing_held(_: MessageId) -> bool:
    return False


def _no_record(_: PeerId) -> bytes | None:
    return None


class Router:
    """One node's router.

    Args:
        local: our peer id as text.
        raw: our peer id in bytes, as it stands in the `from` of our messages.
        params: see `Params`.
        rng: every random choice comes from it.
        verify: is a message's signature its origin's?
        held: is a message with this id in the store? Called once per new id, so it may cost microseconds.
        records: the signed peer record of a connected peer, as it came (for peer exchange).
        direct: peers with which an explicit peering agreement exists.
        now: monotonic seconds; where this router's time begins.
    """

    __slots__ = ("_handlers", "_heartbeat", "_inbound", "_publisher", "_state")

    def __init__(
        self,
        local: PeerId,
        raw: bytes,
        params: Params,
        rng: Random,
        verify: Verify,
        *,
        held: Callable[[MessageId], bool] = _nothing_held,
        records: Callable[[PeerId], bytes | None] = _no_record,
        direct: Iterable[PeerId] = (),
        now: float = 0.0,
    ) -> None:
        self._state = State(local, raw, params, rng, held, records, frozenset(direct) - {local}, now)
        self._inbound = Inbound(self._state, verify)
        self._publisher = Publisher(self._state)
        self._heartbeat = Heartbeat(self._state, self._inbound, self._publisher)
        self._handlers: dict[type, Callable[[Any], None]] = {
            RpcReceived: self._on_rpc,
            Validated: self._on_validated,
            Publish: self._on_publish,
            Inject: self._on_inject,
            Tick: self._on_tick,
            PeerConnected: self._on_connected,
            PeerDisconnected: self._on_disconnected,
            PeerMisbehaved: self._on_misbehaved,
            PeerRefused: self._on_refused,
            Subscribe: self._on_subscribe,
            Unsubscribe: self._on_unsubscribe,
            Held: self._on_held,
            AppScore: self._on_app_score,
            FleetSize: self._on_fleet_size,
        }

    def handle(self, input_: Input, now: float) -> list[Effect]:
        """Take one input and say what to do, in order.

        Args:
            now: monotonic seconds; a value before the last one counts as the last one.
        """
        state = self._state
        if now > state.now:
            state.now = now
        out: list[Effect] = []
        state.out = out
        self._handlers[type(input_)](input_)
        if state.drafts:
            state.flush()
        return out

    def next_deadline(self) -> float:
        """When the next `Tick` is due, monotonic seconds."""
        return self._heartbeat.due

    @property
    def counters(self) -> Mapping[Count, int]:
        """Counts by (kind, word): `accept`, `ignore` and `reject` for messages, `publish`, `control`, `prune`."""
        return self._state.counters

    def topics(self) -> tuple[Topic, ...]:
        """Topics we take part in."""
        return tuple(self._state.meshes)

    def mesh(self, topic: Topic) -> tuple[PeerId, ...]:
        """Our mesh in a topic; empty when we do not take part."""
        known = self._state.meshes.get(topic)
        return tuple(known.peers) if known else ()

    def topic_peers(self, topic: Topic) -> tuple[PeerId, ...]:
        """Connected peers that take part in a topic."""
        return tuple(self._state.peers.of(topic))

    def heard_topics(self) -> tuple[Topic, ...]:
        """Topics that connected peers take part in."""
        return self._state.peers.topics()

    def peers(self) -> tuple[PeerId, ...]:
        """Connected peers."""
        return tuple(self._state.peers.by_id)

    def score(self, peer: PeerId) -> float:
        """The score of a connected peer, or of one that left with penalties; 0 for a stranger."""
        return self._state.scores.of(peer)

    def graylisted(self, peer: PeerId) -> bool:
        """Should a connection with the peer be refused for now?"""
        return self.score(peer) < self._state.params.score.graylist_threshold and peer not in self._state.direct

    def sizes(self) -> dict[str, int]:
        """How full each bounded container is; for metrics and tests."""
        state = self._state
        return {
            "peers": len(state.peers),
            "topics": len(state.meshes),
            "subscriptions": state.peers.subscriptions,
            "mesh_links": sum(len(each.peers) for each in state.meshes.values()),
            "fanout_topics": len(self._publisher),
            "seen": len(state.seen),
            "seen_evicted": state.seen.evicted,
            "history": len(state.mcache),
            "history_bytes": state.mcache.bytes,
            "history_evicted": state.mcache.evicted,
            "validating": len(self._inbound),
            "validating_bytes": self._inbound.bytes,
            "backoffs": len(state.backoffs),
            "promises": len(state.promises),
            "unwanted": len(state.unwanted),
            "owed": sum(len(peer.owed) for peer in state.peers.by_id.values()),
            "scores_retained": state.scores.retained,
            "counters": len(state.counters),
        }

    def _on_rpc(self, event: RpcReceived) -> None:
        state = self._state
        peer = state.peers.by_id.get(event.peer)
        if peer is None:
            state.counters["control", "rpc-stranger"] += 1
            return
        rpc = event.rpc
        if rpc.subscriptions:
            self._on_subscriptions(peer, rpc)
        if peer.stats.value < state.params.score.graylist_threshold and not peer.direct:
            state.counters["ignore", "graylisted"] += 1
            return
        for message in rpc.publish:
            self._inbound.receive(peer, message, "gossip")
            if peer.stats.value < state.params.score.graylist_threshold and not peer.direct:
                # One RPC full of forgeries must not buy a signature check for each of them.
                break
        if rpc.ihave:
            gossip.on_ihave(state, peer, rpc.ihave)
        if rpc.iwant:
            gossip.on_iwant(state, peer, rpc.iwant)
        if rpc.graft:
            mesh.on_graft(state, peer, rpc.graft)
        if rpc.prune:
            mesh.on_prune(state, peer, rpc.prune)
        if rpc.idontwant:
            gossip.on_idontwant(state, peer, rpc.idontwant)

    def _on_subscriptions(self, peer: Peer, rpc: Rpc) -> None:
        state = self._state
        for entry in rpc.subscriptions:
            topic = entry.topic
            known = state.meshes.get(topic)
            if not entry.subscribe:
                if known is not None:
                    mesh.unlink(state, known, peer)
                    known.eager.pop(peer.id, None)
                state.peers.unsubscribe(peer, topic)
                if known is not None:
                    mesh.fill(state, known)
            elif topic not in peer.topics:
                if len(peer.topics) >= state.params.max_peer_topics or len(topic) > MAX_TOPIC_BYTES:
                    state.counters["control", "subscription-excess"] += 1
                    continue
                state.peers.subscribe(peer, topic)
                if known is not None:
                    self._joined(peer, known)

    def _joined(self, peer: Peer, known: Mesh) -> None:
        peer.fresh[known.topic] = None
        if peer.direct:
            known.eager[peer.id] = peer
        mesh.consider(self._state, known, peer)

    def _on_validated(self, event: Validated) -> None:
        self._inbound.verdict(event.id, event.verdict)

    def _on_publish(self, event: Publish) -> None:
        self._publisher.publish(event.message)

    def _on_inject(self, event: Inject) -> None:
        self._inbound.receive(None, event.message, event.via)

    def _on_tick(self, _: Tick) -> None:
        if self._state.now >= self._heartbeat.due:
            self._heartbeat.beat()

    def _on_connected(self, event: PeerConnected) -> None:
        state = self._state
        if event.peer in state.peers.by_id or event.peer == state.local:
            state.counters["control", "connected-twice"] += 1
            return
        direct = event.peer in state.direct
        if len(state.peers) >= state.params.max_peers and not direct:
            state.counters["control", "too-many-peers"] += 1
            state.out.append(Disconnect(event.peer, "too-many-peers"))
            return
        stats = state.scores.connect(event.peer, event.ip, state.now)
        state.peers.add(Peer(event.peer, event.raw, event.protocol, event.outbound, direct, stats))
        if state.meshes:
            state.draft(event.peer).subscriptions.extend(Subscription(topic, True) for topic in state.meshes)

    def _on_disconnected(self, event: PeerDisconnected) -> None:
        state = self._state
        peer = state.peers.by_id.get(event.peer)
        if peer is None:
            return
        short = []
        for topic in peer.topics:
            known = state.meshes.get(topic)
            if known is not None:
                if peer.id in known.peers:
                    short.append(known)
                mesh.unlink(state, known, peer)
                known.eager.pop(peer.id, None)
        state.peers.remove(peer)
        state.promises.gone(peer.id)
        self._publisher.drop(peer.id)
        state.scores.disconnect(peer.id, state.now)
        for known in short:
            mesh.fill(state, known)

    def _on_misbehaved(self, event: PeerMisbehaved) -> None:
        state = self._state
        state.count("reject", event.why)
        peer = state.peers.by_id.get(event.peer)
        if peer is None:
            return
        if event.topic in state.meshes:
            state.scores.invalid(peer.stats, event.topic)
        else:
            state.scores.penalise(peer.stats)

    def _on_refused(self, event: PeerRefused) -> None:
        state = self._state
        state.counters["control", "queue-full"] += 1
        peer = state.peers.by_id.get(event.peer)
        if peer is None:
            return
        peer.refused = True
        for mid in event.dropped:
            peer.owed[mid] = None
            if len(peer.owed) > state.params.max_owed:
                del peer.owed[next(iter(peer.owed))]
                state.counters["control", "owed-excess"] += 1

    def _on_subscribe(self, event: Subscribe) -> None:
        state, topic = self._state, event.topic
        if topic in state.meshes:
            return
        if len(state.meshes) >= state.params.max_topics:
            state.counters["control", "topic-excess"] += 1
            return
        known = state.meshes[topic] = Mesh(topic)
        self._announce(topic, True)
        subscribers = state.peers.of(topic)
        known.eager.update((peer.id, peer) for peer in subscribers.values() if peer.direct)
        fanout = self._publisher.forget(topic)
        mesh.graft(state, known, [peer for peer in fanout.values() if mesh.graftable(state, known, peer)])
        mesh.fill(state, known)

    def _on_unsubscribe(self, event: Unsubscribe) -> None:
        state = self._state
        known = state.meshes.get(event.topic)
        if known is None:
            return
        for peer in list(known.peers.values()):
            seconds = state.params.unsubscribe_backoff_seconds
            mesh.prune(state, known, peer, exchange=False, backoff_seconds=seconds)
        del state.meshes[event.topic]
        for peer in state.peers.of(event.topic).values():
            peer.fresh.pop(event.topic, None)
        self._announce(event.topic, False)

    def _announce(self, topic: Topic, subscribe: bool) -> None:
        state = self._state
        if len(state.peers):
            rpc = Rpc(subscriptions=(Subscription(topic, subscribe),))
            state.out.append(SendRpc(tuple(state.peers.by_id), rpc, Priority.CONTROL))

    def _on_held(self, event: Held) -> None:
        state = self._state
        for mid in event.ids:
            if mid not in state.seen:
                state.seen.add(mid, None, Status.VALID, state.now).valid_at = state.now

    def _on_app_score(self, event: AppScore) -> None:
        peer = self._state.peers.by_id.get(event.peer)
        if peer is not None:
            self._state.scores.set_app_score(peer.stats, event.score)

    def _on_fleet_size(self, event: FleetSize) -> None:
        self._state.params = self._state.params.for_fleet(event.members)
