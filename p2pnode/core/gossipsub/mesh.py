"""Whom a topic's mesh is made of: GRAFT, PRUNE, and the choices between.

gossipsub-v1.0 "Mesh Maintenance", gossipsub-v1.1 "PRUNE Backoff and Peer Exchange",
"Outbound Mesh Quotas", "Heartbeat Maintenance", "Opportunistic Grafting". One addition:
a mesh below D_lo is filled as soon as somebody suitable appears, not at the next
heartbeat, so that a small or young network connects within a round trip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random

from p2pnode.core.gossipsub.events import Connect
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.peers import Peer
from p2pnode.core.gossipsub.rpc import Prune, PxPeer
from p2pnode.core.gossipsub.state import Mesh, State
from p2pnode.core.message import Topic


def survivors(peers: Iterable[Peer], params: Params, rng: Random) -> list[Peer]:
    """Which D of an oversubscribed mesh stay: the D_score best, the rest drawn, D_out of them dialled by us."""
    ranked = list(peers)
    rng.shuffle(ranked)
    ranked.sort(key=lambda peer: -peer.stats.value)
    best, rest = ranked[: params.d_score], ranked[params.d_score :]
    rng.shuffle(rest)
    places = params.d - len(best)
    kept, left = best + rest[:places], rest[places:]
    missing = params.d_out - sum(peer.outbound for peer in kept)
    for newcomer in [peer for peer in left if peer.outbound][: max(0, missing)]:
        for place in reversed(range(len(kept))):
            if not kept[place].outbound:
                kept[place] = newcomer
                break
    return kept


def median_score(peers: Iterable[Peer]) -> float:
    """The median by gossipsub-v1.1 "Opportunistic Grafting"; the upper one of an even number."""
    scores = sorted(peer.stats.value for peer in peers)
    return scores[len(scores) // 2]


def graftable(state: State, mesh: Mesh, peer: Peer) -> bool:
    """May we ask this topic peer into the mesh?"""
    return (
        peer.stats.value >= 0
        and peer.id not in mesh.peers
        and not peer.direct
        and not state.backoffs.blocks(mesh.topic, peer.id, state.now)
    )


def link(state: State, mesh: Mesh, peer: Peer) -> None:
    """Take a peer into the mesh, on either side's wish."""
    mesh.peers[peer.id] = peer
    mesh.eager[peer.id] = peer
    state.scores.grafted(peer.stats, mesh.topic, state.now)


def unlink(state: State, mesh: Mesh, peer: Peer) -> None:
    """Drop a peer from the mesh, on either side's wish."""
    if mesh.peers.pop(peer.id, None) is not None:
        state.scores.pruned(peer.stats, mesh.topic)
        if not (peer.direct and mesh.topic in peer.topics):
            mesh.eager.pop(peer.id, None)


def graft(state: State, mesh: Mesh, peers: Iterable[Peer]) -> None:
    """Take peers into the mesh and tell them."""
    for peer in peers:
        link(state, mesh, peer)
        state.draft(peer.id).graft.append(mesh.topic)
        state.counters["control", "graft-sent"] += 1


def prune(state: State, mesh: Mesh, peer: Peer, *, exchange: bool, backoff_seconds: float | None = None) -> None:
    """Drop a peer (or refuse it), back off from it, and tell it.

    Args:
        exchange: give it other peers to turn to, where its score allows.
        backoff_seconds: None for the ordinary one.
    """
    unlink(state, mesh, peer)
    seconds = state.params.prune_backoff_seconds if backoff_seconds is None else backoff_seconds
    state.backoffs.add(mesh.topic, peer.id, seconds, state.now)
    others = _exchange(state, mesh.topic, peer) if exchange and peer.stats.value >= 0 else ()
    state.draft(peer.id).prune.append(Prune(mesh.topic, others, math.ceil(seconds)))
    state.counters["control", "prune-sent"] += 1


def _exchange(state: State, topic: Topic, pruned: Peer) -> tuple[PxPeer, ...]:
    """Others in the topic with a score of at least 0 (gossipsub-v1.1, "Score Thresholds")."""
    others = [peer for peer in state.peers.of(topic).values() if peer is not pruned and peer.stats.value >= 0]
    chosen = draw(state.rng, others, state.params.prune_peers)
    return tuple(PxPeer(peer.id, state.records(peer.id) or b"") for peer in chosen)


def draw(rng: Random, peers: Sequence[Peer], count: int) -> list[Peer]:
    """`count` of the peers at random, or all."""
    return rng.sample(peers, min(max(count, 0), len(peers)))


def fill(state: State, mesh: Mesh) -> None:
    """Top up to D when below D_lo."""
    params = state.params
    if len(mesh.peers) < params.d_lo:
        candidates = [peer for peer in state.peers.of(mesh.topic).values() if graftable(state, mesh, peer)]
        graft(state, mesh, draw(state.rng, candidates, params.d - len(mesh.peers)))


def consider(state: State, mesh: Mesh, peer: Peer) -> None:
    """A peer joined the topic: graft it at once if the mesh is short."""
    if len(mesh.peers) < state.params.d_lo and graftable(state, mesh, peer):
        graft(state, mesh, (peer,))


def maintain(state: State, mesh: Mesh, opportunistic: bool) -> None:
    """One heartbeat of one mesh."""
    params = state.params
    for peer in list(mesh.peers.values()):
        if peer.stats.value < 0:
            state.counters["prune", "score"] += 1
            prune(state, mesh, peer, exchange=False)
        elif peer.slow >= params.slow_heartbeats:
            state.counters["prune", "slow"] += 1
            prune(state, mesh, peer, exchange=False)
    fill(state, mesh)
    if len(mesh.peers) > params.d_hi:
        kept = {peer.id for peer in survivors(mesh.peers.values(), params, state.rng)}
        for peer in [peer for peer in mesh.peers.values() if peer.id not in kept]:
            state.counters["prune", "oversubscribed"] += 1
            prune(state, mesh, peer, exchange=True)
    if len(mesh.peers) >= params.d_lo:
        missing = params.d_out - sum(peer.outbound for peer in mesh.peers.values())
        if missing > 0:
            ours = [p for p in state.peers.of(mesh.topic).values() if p.outbound and graftable(state, mesh, p)]
            graft(state, mesh, draw(state.rng, ours, missing))
    if opportunistic and len(mesh.peers) > 1:
        median = median_score(mesh.peers.values())
        if median < params.score.opportunistic_threshold:
            subscribers = state.peers.of(mesh.topic).values()
            better = [peer for peer in subscribers if peer.stats.value > median and graftable(state, mesh, peer)]
            graft(state, mesh, draw(state.rng, better, params.opportunistic_peers))


def on_graft(state: State, peer: Peer, topics: Iterable[Topic]) -> None:
    """Handle GRAFT: every refusal backs off and is answered by PRUNE, except for topics we do not know."""
    params = state.params
    for topic in topics:
        mesh = state.meshes.get(topic)
        if mesh is None:
            state.counters["control", "graft-unknown-topic"] += 1
            continue
        if peer.id in mesh.peers:
            continue
        end = state.backoffs.end(topic, peer.id, state.now)
        if peer.direct:
            state.counters["control", "graft-direct"] += 1
            prune(state, mesh, peer, exchange=False)
        elif end is not None:
            state.counters["control", "graft-backoff"] += 1
            pruned_at = end - params.prune_backoff_seconds
            state.scores.penalise(peer.stats, 2 if state.now < pruned_at + params.graft_flood_seconds else 1)
            prune(state, mesh, peer, exchange=False)
        elif peer.stats.value < 0:
            state.counters["control", "graft-score"] += 1
            prune(state, mesh, peer, exchange=False)
        elif len(mesh.peers) >= params.d_hi and not (peer.outbound and params.d_hi):
            state.counters["control", "graft-full"] += 1
            prune(state, mesh, peer, exchange=True)
        elif topic not in peer.topics and len(peer.topics) >= params.max_peer_topics:
            state.counters["control", "graft-unsubscribed"] += 1
            prune(state, mesh, peer, exchange=False)
        else:
            # Whoever grafts takes part, even if its subscription is still to come.
            state.peers.subscribe(peer, topic)
            link(state, mesh, peer)


def on_prune(state: State, peer: Peer, prunes: Iterable[Prune]) -> None:
    """Handle PRUNE: obey its backoff, take up its peers, and find a replacement."""
    for entry in prunes:
        mesh = state.meshes.get(entry.topic)
        if mesh is None:
            continue
        was_linked = peer.id in mesh.peers
        unlink(state, mesh, peer)
        seconds = entry.backoff_seconds or state.params.prune_backoff_seconds
        state.backoffs.add(entry.topic, peer.id, seconds, state.now)
        if entry.peers:
            _take_up(state, peer, entry, was_linked)
        if was_linked:
            fill(state, mesh)


def _take_up(state: State, giver: Peer, entry: Prune, was_linked: bool) -> None:
    """Dial peers given in exchange, no more than make D_hi connected peers in the topic.

    Only from whom we had a link with: nobody can make us dial by sending PRUNE unasked.
    """
    if not was_linked or giver.stats.value < state.params.score.accept_px_threshold:
        state.counters["control", "px-refused"] += 1
        return
    strangers = {each.peer: each for each in entry.peers[: state.params.prune_peers]}
    unknown = [each for each in strangers.values() if each.peer != state.local and each.peer not in state.peers.by_id]
    wanted = min(state.params.d_hi - len(state.peers.of(entry.topic)), state.px_left, len(unknown))
    if wanted <= 0:
        return
    state.px_left -= wanted
    for each in state.rng.sample(unknown, wanted):
        state.counters["control", "px-connect"] += 1
        state.out.append(Connect(each.peer, each.record or None, "px"))
