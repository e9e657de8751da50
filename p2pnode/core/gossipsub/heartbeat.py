"""What happens once per heartbeat, in order (gossipsub-v1.0 "Heartbeat", gossipsub-v1.1 "Heartbeat Maintenance").

When the caller is late, missed heartbeats are not made up for: a stalled process would
otherwise shift its message cache empty at the moment it wakes.
"""

from __future__ import annotations

from p2pnode.core.gossipsub import gossip
from p2pnode.core.gossipsub.events import Connect, Disconnect
from p2pnode.core.gossipsub.fanout import Publisher
from p2pnode.core.gossipsub.inbound import Inbound
from p2pnode.core.gossipsub.mesh import maintain
from p2pnode.core.gossipsub.state import State


class Heartbeat:
    """The periodic work; the first comes at a random part of the interval, so that nodes do not beat as one."""

    __slots__ = ("_decay_due", "_direct_due", "_inbound", "_opportunistic_due", "_publisher", "_state", "due")

    def __init__(self, state: State, inbound: Inbound, publisher: Publisher) -> None:
        self._state = state
        self._inbound = inbound
        self._publisher = publisher
        params = state.params
        self.due = state.now + state.rng.random() * params.heartbeat_seconds
        self._decay_due = self.due
        self._direct_due = self.due
        self._opportunistic_due = self.due + params.opportunistic_seconds

    def beat(self) -> None:
        """One heartbeat, and when the next is due."""
        state, now = self._state, self._state.now
        interval = state.params.heartbeat_seconds
        self.due = max(self.due + interval, now + interval / 2)
        # Before the seen cache: what waits for a verdict must stay known until it is given up.
        self._inbound.expire()
        state.seen.expire(now)
        state.backoffs.expire(now)
        state.unwanted.shift()
        state.px_left = state.params.px_connects
        self._break_promises()
        if now >= self._decay_due:
            self._decay_due = max(self._decay_due + state.params.score.decay_seconds, now)
            state.scores.refresh(now)
        for peer in state.peers.by_id.values():
            peer.new_heartbeat()
        self._send_away()
        self._reconnect()
        opportunistic = now >= self._opportunistic_due
        if opportunistic:
            self._opportunistic_due = now + state.params.opportunistic_seconds
        for mesh in state.meshes.values():
            maintain(state, mesh, opportunistic)
            gossip.emit(state, mesh.topic, mesh.eager)
        self._publisher.heartbeat()
        for peer in state.peers.by_id.values():
            if peer.owed:
                gossip.settle(state, peer)
        state.mcache.shift()

    def _break_promises(self) -> None:
        state = self._state
        for peer_id in state.promises.broken(state.now):
            state.counters["control", "promise-broken"] += 1
            peer = state.peers.by_id.get(peer_id)
            if peer is not None:
                state.scores.penalise(peer.stats)

    def _send_away(self) -> None:
        """A graylisted peer only takes up room; once per connection, and never a direct peer."""
        state = self._state
        for peer in state.peers.by_id.values():
            if peer.stats.value < state.params.score.graylist_threshold and not peer.direct and not peer.sent_away:
                peer.sent_away = True
                state.counters["control", "graylisted"] += 1
                state.out.append(Disconnect(peer.id, "graylisted"))

    def _reconnect(self) -> None:
        """gossipsub-v1.1 "Explicit Peering Agreements"."""
        state = self._state
        if state.direct and state.now >= self._direct_due:
            self._direct_due = state.now + state.params.direct_connect_seconds
            missing = sorted(state.direct - state.peers.by_id.keys())
            state.out.extend(Connect(peer, None, "direct") for peer in missing)
