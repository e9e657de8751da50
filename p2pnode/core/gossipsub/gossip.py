"""IHAVE, IWANT and IDONTWANT: who is told what we have, and who is sent what it asks for.

gossipsub-v1.0 "Gossip Emission", gossipsub-v1.1 "Adaptive Gossip Dissemination" and "Spam
Protection Measures", gossipsub-v1.2. Two additions, because our meshes are small: a peer
that has just joined a topic hears of the last messages once, mesh link or not, and a peer
whose queue dropped messages is offered them again.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pnode.core.gossipsub.events import Forward, Priority
from p2pnode.core.gossipsub.peers import Peer
from p2pnode.core.gossipsub.rpc import IHave
from p2pnode.core.gossipsub.state import State
from p2pnode.core.message import MAX_PEER_ID_BYTES, SEQNO_BYTES, MessageId, Topic


def emit(state: State, topic: Topic, exclude: Iterable[str]) -> None:
    """Advertise the recent messages of a topic.

    Args:
        exclude: who gets messages at once anyway.
    """
    ids = state.mcache.gossip_ids(topic)
    subscribers = state.peers.of(topic)
    if ids:
        params = state.params
        skip = set(exclude)
        threshold = params.score.gossip_threshold
        lazy = [peer for peer in subscribers.values() if peer.id not in skip and peer.stats.value >= threshold]
        count = min(len(lazy), max(params.d_lazy, int(params.gossip_factor * len(lazy))))
        told = {peer.id: peer for peer in state.rng.sample(lazy, count)}
        told |= {peer.id: peer for peer in subscribers.values() if topic in peer.fresh}
        for peer in told.values():
            some = ids if len(ids) <= params.max_ihave_ids else state.rng.sample(ids, params.max_ihave_ids)
            state.draft(peer.id).ihave.append(IHave(topic, tuple(some)))
    for peer in subscribers.values():
        peer.fresh.pop(topic, None)


def settle(state: State, peer: Peer) -> None:
    """Offer a peer what its queue dropped, as far as we still have it."""
    by_topic: dict[Topic, list[MessageId]] = {}
    for mid in peer.owed:
        message = state.mcache.get(mid)
        if message is not None:
            by_topic.setdefault(message.topic, []).append(mid)
    peer.owed.clear()
    for topic, ids in by_topic.items():
        state.draft(peer.id).ihave.append(IHave(topic, tuple(ids)))


def on_ihave(state: State, peer: Peer, entries: Iterable[IHave]) -> None:
    """Ask for what we do not know, within the peer's allowance of RPCs and ids per heartbeat."""
    params = state.params
    peer.ihave_rpcs += 1
    if peer.stats.value < params.score.gossip_threshold or peer.ihave_rpcs > params.max_ihave_rpcs:
        state.counters["control", "ihave-ignored"] += 1
        return
    wanted: dict[MessageId, None] = {}
    for entry in entries:
        if entry.topic not in state.meshes:
            continue
        allowance = params.max_ihave_ids - peer.ihave_ids
        if len(entry.ids) > allowance:
            state.counters["control", "ihave-excess"] += 1
        some = entry.ids[: max(0, allowance)]
        peer.ihave_ids += len(some)
        wanted.update((mid, None) for mid in some if _wanted(state, peer, mid))
    if not wanted:
        return
    asked = list(wanted)
    state.rng.shuffle(asked)
    for place, mid in enumerate(asked):
        state.promises.ask(mid, peer.id, place == 0, state.now)
    state.draft(peer.id).iwant.extend(asked)
    state.counters["control", "iwant-ids-sent"] += len(asked)


def _wanted(state: State, peer: Peer, mid: MessageId) -> bool:
    if mid in state.seen or not SEQNO_BYTES < len(mid) <= SEQNO_BYTES + MAX_PEER_ID_BYTES:
        return False
    if state.promises:
        others, already = state.promises.asked(mid, peer.id, state.now)
        if already or others >= state.params.max_asks_per_id:
            return False
    return not state.held(mid)


def on_iwant(state: State, peer: Peer, ids: Iterable[MessageId]) -> None:
    """Send what is asked for and still cached, within the peer's allowance.

    An own message of the asker is sent too: it asks only if it lost it.
    """
    params = state.params
    if peer.stats.value < params.score.gossip_threshold:
        state.counters["control", "iwant-ignored"] += 1
        return
    for mid in dict.fromkeys(ids):
        if peer.iwant_ids >= params.max_iwant_ids or peer.iwant_bytes >= params.max_iwant_bytes:
            state.counters["control", "iwant-excess"] += 1
            return
        peer.iwant_ids += 1
        found = state.mcache.ask(mid, peer.id)
        if found is None:
            continue
        message, times = found
        if times > params.gossip_retransmissions:
            state.counters["control", "iwant-repeated"] += 1
            continue
        unwanted = state.unwanted.get(mid)
        if unwanted is not None and peer.id in unwanted:
            continue
        peer.iwant_bytes += len(message.raw)
        state.out.append(Forward(message, (peer.id,), Priority.GOSSIP))
        state.counters["control", "iwant-answered"] += 1


def on_idontwant(state: State, peer: Peer, ids: Iterable[MessageId]) -> None:
    """Remember what not to send, within the peer's allowance."""
    for mid in ids:
        if peer.idontwant_ids >= state.params.max_idontwant_ids or len(mid) > SEQNO_BYTES + MAX_PEER_ID_BYTES:
            state.counters["control", "idontwant-excess"] += 1
            return
        peer.idontwant_ids += 1
        if not state.unwanted.add(mid, peer.id):
            state.counters["control", "idontwant-excess"] += 1
            return
