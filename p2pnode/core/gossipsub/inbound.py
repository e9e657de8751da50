"""The way of a message through the router: checks in order, verdict, delivery, forwarding.

Order (architecture, step 4): topic, *seen*, limits, signature, mark seen, the node's
verdict. Nothing is awaited between *seen* and *mark*. Every way out is counted as
accept, ignore or reject with its reason. Rejected, and so penalised (P4), is only what
every node rejects from the bytes alone.
"""

from __future__ import annotations

from p2pnode.core.gossipsub.events import Deliver, Forward, Priority, Protocol, SendRpc, Validate
from p2pnode.core.gossipsub.peers import Peer
from p2pnode.core.gossipsub.rpc import Rpc
from p2pnode.core.gossipsub.seen import Seen, Status, fingerprint
from p2pnode.core.gossipsub.state import Mesh, State
from p2pnode.core.message import Accept, Ignore, MessageId, SignedMessage, Verdict, Verify
from p2pnode.core.peerid import PeerId

DUPLICATE = ("ignore", "duplicate")
RELAYED = ("accept", "relayed")


class _Pending:
    """A message that waits for its verdict.

    Attributes:
        source: who sent the first copy; None when injected.
        senders: everybody who sent a copy; at most one entry per connected peer.
    """

    __slots__ = ("entry", "message", "senders", "since", "source", "via")

    def __init__(self, message: SignedMessage, source: Peer | None, via: str, entry: Seen, since: float) -> None:
        self.message = message
        self.source = source
        self.via = via
        self.entry = entry
        self.since = since
        self.senders: dict[PeerId, None] = {} if source is None else {source.id: None}


class Inbound:
    """Messages from peers and from other roads.

    Args:
        verify: is the signature the origin's?
    """

    __slots__ = ("_bytes", "_pending", "_state", "_verify")

    def __init__(self, state: State, verify: Verify) -> None:
        self._state = state
        self._verify = verify
        self._pending: dict[MessageId, _Pending] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def bytes(self) -> int:
        """Of the messages that wait for a verdict."""
        return self._bytes

    def receive(self, peer: Peer | None, message: SignedMessage, via: str) -> None:
        """One copy of a message; `peer` is None when it was injected."""
        state = self._state
        counters = state.counters
        mid = MessageId(message.origin + message.seqno)
        if state.promises:
            state.promises.kept(mid)
        mesh = state.meshes.get(message.topic)
        if mesh is None:
            counters["ignore", "unsubscribed"] += 1
            return
        entry = state.seen.get(mid)
        if entry is not None:
            self._duplicate(peer, message, entry)
            return
        if state.held(mid):
            state.seen.add(mid, None, Status.VALID, state.now).valid_at = state.now
            counters[DUPLICATE] += 1
            return
        if not self._room(peer, message):
            counters["ignore", "busy"] += 1
            return
        if not self._verify(message):
            self._forged(peer, message)
            return
        entry = state.seen.add(mid, fingerprint(message), Status.PENDING, state.now)
        self._pending[mid] = _Pending(message, peer, via, entry, state.now)
        self._bytes += len(message.raw)
        if peer is not None:
            peer.validating += 1
        if len(message.data) >= state.params.idontwant_bytes:
            self._spare(mesh, peer, message, mid)
        state.out.append(Validate(message, peer.id if peer is not None else None, via))

    def verdict(self, mid: MessageId, verdict: Verdict) -> None:
        """The node's answer; one that comes too late or unasked is counted and dropped."""
        pending = self._take(mid)
        if pending is None:
            self._state.counters["ignore", "late-verdict"] += 1
        elif isinstance(verdict, Accept):
            self._accepted(pending, mid, verdict.relay)
        elif isinstance(verdict, Ignore):
            pending.entry.status = Status.IGNORED
            self._state.count("ignore", verdict.why)
        else:
            pending.entry.status = Status.INVALID
            self._state.count("reject", verdict.why)
            self._penalise(pending)

    def expire(self) -> None:
        """Give up on verdicts that take too long; another copy may try again."""
        latest = self._state.now - self._state.params.validation_seconds
        for mid, pending in list(self._pending.items()):
            if pending.since > latest:
                break
            self._take(mid)
            self._state.seen.forget(pending.entry)
            self._state.counters["ignore", "verdict-timeout"] += 1

    def _take(self, mid: MessageId) -> _Pending | None:
        pending = self._pending.pop(mid, None)
        if pending is not None:
            self._bytes -= len(pending.message.raw)
            if pending.source is not None:
                pending.source.validating -= 1
        return pending

    def _room(self, peer: Peer | None, message: SignedMessage) -> bool:
        params = self._state.params
        return (
            len(self._pending) < params.max_validations
            and self._bytes + len(message.raw) <= params.max_validation_bytes
            and (peer is None or peer.validating < params.max_validations_per_peer)
        )

    def _accepted(self, pending: _Pending, mid: MessageId, relay: bool) -> None:
        state = self._state
        message, source, entry = pending.message, pending.source, pending.entry
        entry.status = Status.VALID
        entry.valid_at = state.now
        mesh = state.meshes.get(message.topic)
        if not relay:
            state.counters["accept", "kept"] += 1
        else:
            state.counters[RELAYED] += 1
            if source is not None and source.id in state.peers.by_id:
                state.scores.first_delivery(source.stats, message.topic)
            if len(pending.senders) > 1:
                self._credit(pending)
            state.mcache.put(mid, message)
            if mesh is not None:
                self._forward(mesh, pending, mid)
        restored = message.origin == state.raw
        if restored:
            state.counters["accept", "restored"] += 1
        state.out.append(Deliver(message, source.id if source is not None else None, pending.via, restored))

    def _forward(self, mesh: Mesh, pending: _Pending, mid: MessageId) -> None:
        """To the mesh and to direct peers: not to who sent it, made it, or does not want it."""
        state, senders = self._state, pending.senders
        peers = [peer for peer in mesh.eager if peer not in senders]
        origin = state.peers.by_raw.get(pending.message.origin)
        if origin is not None and origin.id in peers:
            peers.remove(origin.id)
        unwanted = state.unwanted.get(mid)
        if unwanted is not None:
            peers = [peer for peer in peers if peer not in unwanted]
        if peers:
            state.out.append(Forward(pending.message, tuple(peers), Priority.FORWARD))

    def _spare(self, mesh: Mesh, source: Peer | None, message: SignedMessage, mid: MessageId) -> None:
        """IDONTWANT, before anything slow happens to a large message."""
        peers = tuple(
            peer.id
            for peer in mesh.eager.values()
            if peer.protocol >= Protocol.V1_2 and peer is not source and peer.raw != message.origin
        )
        if peers:
            self._state.out.append(SendRpc(peers, Rpc(idontwant=(mid,)), Priority.CONTROL))
            self._state.counters["control", "idontwant-sent"] += 1

    def _duplicate(self, peer: Peer | None, message: SignedMessage, entry: Seen) -> None:
        state = self._state
        if entry.fingerprint is not None and entry.fingerprint != fingerprint(message):
            if self._verify(message):
                # The origin signed two bodies; whoever forwards one of them cannot know of the other.
                state.counters["ignore", "equivocation"] += 1
            else:
                self._forged(peer, message)
            return
        status = entry.status
        if status is Status.INVALID:
            state.counters["reject", "repeated"] += 1
            if peer is not None:
                state.scores.invalid(peer.stats, message.topic)
            return
        state.counters[DUPLICATE] += 1
        if peer is None:
            return
        if status is Status.PENDING:
            self._pending[entry.id].senders[peer.id] = None
        elif status is Status.VALID and state.params.score.of(message.topic).counts_mesh_deliveries:
            state.scores.near_first_delivery(peer.stats, message.topic, state.now - entry.valid_at)

    def _credit(self, pending: _Pending) -> None:
        """P3 for copies that came before the verdict."""
        state, message = self._state, pending.message
        if state.params.score.of(message.topic).counts_mesh_deliveries:
            for sender in pending.senders:
                peer = state.peers.by_id.get(sender)
                if peer is not None and peer is not pending.source:
                    state.scores.near_first_delivery(peer.stats, message.topic, 0.0)

    def _penalise(self, pending: _Pending) -> None:
        """P4 for everybody who sent it."""
        for sender in pending.senders:
            peer = self._state.peers.by_id.get(sender)
            if peer is not None:
                self._state.scores.invalid(peer.stats, pending.message.topic)

    def _forged(self, peer: Peer | None, message: SignedMessage) -> None:
        """A bad signature; the id stays new, so the honest message can still come."""
        self._state.counters["reject", "signature"] += 1
        if peer is not None:
            self._state.scores.invalid(peer.stats, message.topic)
