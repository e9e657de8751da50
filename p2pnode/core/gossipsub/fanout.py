"""Sending our own messages: to everybody in the topic, or to its mesh, or to a fanout.

gossipsub-v1.1 "Flood Publishing"; gossipsub-v1.0 "Fanout Maintenance" for topics that we
publish to and do not take part in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pnode.core.gossipsub import gossip
from p2pnode.core.gossipsub.events import Forward, Priority
from p2pnode.core.gossipsub.mesh import draw
from p2pnode.core.gossipsub.peers import Peer
from p2pnode.core.gossipsub.seen import Status, fingerprint
from p2pnode.core.gossipsub.state import State
from p2pnode.core.message import SignedMessage, Topic
from p2pnode.core.peerid import PeerId


@dataclass(slots=True)
class _Fanout:
    published_at: float
    peers: dict[PeerId, Peer] = field(default_factory=dict)


class Publisher:
    """Chooses who gets our own messages; bounded by `fanout_topics`, the longest unused topic goes first."""

    __slots__ = ("_fanout", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._fanout: dict[Topic, _Fanout] = {}

    def __len__(self) -> int:
        return len(self._fanout)

    def publish(self, message: SignedMessage) -> None:
        """Send an own message; it is remembered for IWANT and as seen, and may be published again."""
        state = self._state
        mid = message.id
        if mid not in state.seen:
            state.seen.add(mid, fingerprint(message), Status.VALID, state.now).valid_at = state.now
        state.mcache.put(mid, message)
        unwanted = state.unwanted.get(mid, ())
        peers = tuple(p for p in self._targets(message) if p not in unwanted)
        state.counters["publish", "sent" if peers else "no-peers"] += 1
        if peers:
            state.out.append(Forward(message, peers, Priority.OWN))

    def forget(self, topic: Topic) -> dict[PeerId, Peer]:
        """The topic is joined or left; returns who was its fanout."""
        fanout = self._fanout.pop(topic, None)
        return fanout.peers if fanout else {}

    def drop(self, peer: PeerId) -> None:
        """The peer left."""
        for fanout in self._fanout.values():
            fanout.peers.pop(peer, None)

    def heartbeat(self) -> None:
        """Forget unused topics, keep the others at D peers, and advertise."""
        state = self._state
        for topic, fanout in list(self._fanout.items()):
            if state.now - fanout.published_at > state.params.fanout_seconds:
                del self._fanout[topic]
                continue
            self._refill(topic, fanout)
            gossip.emit(state, topic, fanout.peers)

    def _targets(self, message: SignedMessage) -> Iterable[PeerId]:
        state, topic = self._state, message.topic
        threshold = state.params.score.publish_threshold
        subscribers = state.peers.of(topic)
        if state.params.flood_publish and len(message.data) <= state.params.flood_publish_bytes:
            return [peer.id for peer in subscribers.values() if peer.stats.value >= threshold or peer.direct]
        mesh = state.meshes.get(topic)
        if mesh is not None and mesh.peers:
            return mesh.eager
        direct = {peer.id: peer for peer in subscribers.values() if peer.direct}
        if mesh is not None:
            # Joined, and everybody is backing off: any topic peers are better than silence.
            open_ = [peer for peer in subscribers.values() if peer.stats.value >= threshold and not peer.direct]
            return direct | {peer.id: peer for peer in draw(state.rng, open_, state.params.d)}
        fanout = self._fanout.pop(topic, None) or _Fanout(state.now)
        fanout.published_at = state.now
        if len(self._fanout) >= state.params.fanout_topics:
            del self._fanout[next(iter(self._fanout))]
        self._fanout[topic] = fanout
        self._refill(topic, fanout)
        return direct | fanout.peers

    def _refill(self, topic: Topic, fanout: _Fanout) -> None:
        state = self._state
        subscribers = state.peers.of(topic)
        threshold = state.params.score.publish_threshold
        for peer in list(fanout.peers.values()):
            if peer.id not in subscribers or peer.stats.value < threshold:
                del fanout.peers[peer.id]
        others = [
            peer
            for peer in subscribers.values()
            if peer.id not in fanout.peers and not peer.direct and peer.stats.value >= threshold
        ]
        for peer in draw(state.rng, others, state.params.d - len(fanout.peers)):
            fanout.peers[peer.id] = peer
