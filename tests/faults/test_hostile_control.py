"""Floods of subscriptions and control messages, and peers exchanged that are none: bounded, counted, paid for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from p2pnode.core.gossipsub.params import Params
from p2pnode.core.message import parse_message_id
from p2pnode.core.peerid import peer_id_text
from p2pnode.identity import Identity
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import PeerInfo
from p2pnode.wire.rpc import MAX_SUBSCRIPTIONS
from tests.faults import crafted
from tests.faults.duel import TOPIC, Duel
from tests.faults.hostile import HostilePeer, eventually, hostile_peer

LIMITS = Params()


def made_up_ids(count: int) -> list[bytes]:
    return [Identity(b"o" * 32).peer_id_bytes + os.urandom(8) for _ in range(count)]


async def link(peer: HostilePeer, duel: Duel) -> None:
    """Get into the victim's mesh of the topic."""
    await peer.send(crafted.subscribe(TOPIC), crafted.graft(TOPIC))
    await eventually("it is in the mesh", lambda: peer.identity.peer_id in mesh_of(duel))


def mesh_of(duel: Duel) -> list[str]:
    return next(each["mesh"] for each in duel.victim.get("/api/v1/topics") if each["topic"] == TOPIC)


async def test_ten_thousand_subscriptions_are_remembered_up_to_the_limit(duel: Duel) -> None:
    left_out, refused = duel.counted("ignore", "control-excess"), duel.counted("control", "subscription-excess")
    async with hostile_peer(duel.address) as peer:
        known = duel.entries("subscriptions")
        names = [f"topic{n}" for n in range(10_000)]
        await peer.send(
            crafted.subscribe(*names), *(crafted.subscribe(*names[n : n + 1000]) for n in range(0, 10_000, 1000))
        )
        await duel.until_counted("ignore", "control-excess", left_out, len(names) - MAX_SUBSCRIPTIONS)
        await duel.until_counted("control", "subscription-excess", refused, len(names) - LIMITS.max_peer_topics)
        assert duel.entries("subscriptions") <= known + LIMITS.max_peer_topics
        duel.assert_unharmed()
    await eventually("its subscriptions are forgotten", lambda: duel.entries("subscriptions") <= known)


async def test_an_ihave_flood_is_asked_for_up_to_the_limit_and_its_broken_promises_count(duel: Duel) -> None:
    words = ("ihave-excess", "ihave-ignored", "promise-broken")
    before = {word: duel.counted("control", word) for word in words}
    async with hostile_peer(duel.address, listens=True) as peer:
        asked = duel.counted("control", "iwant-ids-sent")
        await peer.send(*(crafted.ihave(TOPIC, made_up_ids(5000)) for _ in range(20)))
        for word in words:
            await duel.until_counted("control", word, before[word])
        # Twenty RPCs may fall into two or three heartbeats on a busy machine, never into a hundred.
        assert duel.counted("control", "iwant-ids-sent") - asked <= 20 * LIMITS.max_ihave_ids
        assert duel.entries("promises") <= LIMITS.max_promises
        duel.assert_unharmed()
        assert any(rpc.control.iwant for rpc in peer.heard)


async def test_an_iwant_flood_is_answered_three_times_at_most(duel: Duel) -> None:
    excess, repeated = duel.counted("control", "iwant-excess"), duel.counted("control", "iwant-repeated")
    async with hostile_peer(duel.address, listens=True) as peer:
        await peer.send(crafted.subscribe(TOPIC))
        mid = parse_message_id(duel.victim.publish_accepted(TOPIC, b"wanted again and again"))
        await peer.send(*(crafted.iwant([mid]) for _ in range(200)))
        await duel.until_counted("control", "iwant-repeated", repeated, 200 - LIMITS.gossip_retransmissions)
        await peer.send(*(crafted.iwant(made_up_ids(5000)) for _ in range(5)))
        await duel.until_counted("control", "iwant-excess", excess)
        duel.assert_unharmed()
        copies = sum(b"wanted again and again" in raw for rpc in tuple(peer.heard) for raw in rpc.publish)
        assert copies <= LIMITS.gossip_retransmissions + 1


async def test_grafting_during_backoff_is_penalised_until_the_peer_is_sent_away(duel: Duel) -> None:
    grafts, graylisted = duel.counted("control", "graft-backoff"), duel.counted("control", "graylisted")
    async with hostile_peer(duel.address, listens=True) as peer:
        await link(peer, duel)
        await peer.send(crafted.prune(TOPIC), crafted.graft(TOPIC))
        await duel.until_counted("control", "graft-backoff", grafts)
        await eventually(
            "the refusal is heard", lambda: any(entry.backoff for rpc in peer.heard for entry in rpc.control.prune)
        )
        assert peer.identity.peer_id not in mesh_of(duel)
        assert peer.score_at(duel.victim) == 0  # one such graft may be a race
        await peer.send(crafted.graft(*[TOPIC] * 1000))
        await duel.until_counted("control", "graylisted", graylisted)
        await eventually("it is sent away", lambda: peer.score_at(duel.victim) is None)
        duel.assert_unharmed()


async def test_grafts_into_topics_we_do_not_know_are_not_answered(duel: Duel) -> None:
    before = duel.counted("control", "graft-unknown-topic")
    async with hostile_peer(duel.address, listens=True) as peer:
        await peer.send(crafted.graft(*(f"no.such.topic{n}" for n in range(200))))
        await duel.until_counted("control", "graft-unknown-topic", before, 200)
        duel.assert_unharmed()
        assert not any(rpc.control.prune for rpc in peer.heard)


# -- peer exchange that lies ------------------------------------------------------------------------

Lie = Callable[[Identity, str], PeerInfo]


def anothers_record(peer: Identity, addr: str) -> PeerInfo:
    return PeerInfo(peer_id=peer.peer_id_bytes, signed_peer_record=crafted.peer_record(Identity(b"x" * 32), addr))


def badly_signed(peer: Identity, addr: str) -> PeerInfo:
    record = crafted.peer_record(peer, addr, signer=Identity(b"x" * 32))
    return PeerInfo(peer_id=peer.peer_id_bytes, signed_peer_record=record)


def no_record(peer: Identity, addr: str) -> PeerInfo:
    return PeerInfo(peer_id=peer.peer_id_bytes, signed_peer_record=b"\xff" * 100)


def liars(lie: Lie, addr: str) -> list[PeerInfo]:
    return [lie(Identity.generate(), addr) for _ in range(64)]


@pytest.mark.parametrize(
    ("lie", "reason"),
    [(anothers_record, "px-other-peer"), (badly_signed, "px-signature"), (no_record, "px-protobuf")],
)
async def test_peers_exchanged_with_records_that_lie_are_counted_and_nobody_is_dialled(
    duel: Duel, lie: Lie, reason: str
) -> None:
    before, asked = duel.records_refused(reason), duel.counted("control", "px-connect")
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        exchanged = liars(lie, f"/ip4/127.0.0.1/tcp/{trap.getsockname()[1]}")
        async with hostile_peer(duel.address) as peer:
            await link(peer, duel)
            await peer.send(crafted.prune(TOPIC, exchanged))
            await eventually(f"{reason} is counted", lambda: duel.records_refused(reason) > before)
            duel.assert_unharmed()
            assert duel.counted("control", "px-connect") - asked <= LIMITS.px_connects
        lied = {peer_id_text(info.peer_id) for info in exchanged}
        assert not lied & {document["peer_id"] for document in duel.victim.get("/api/v1/peers")}
        with pytest.raises(BlockingIOError):  # nobody knocked
            trap.accept()


async def test_peers_exchanged_by_whoever_was_in_no_mesh_are_not_looked_at(duel: Duel) -> None:
    before, asked = duel.counted("control", "px-refused"), duel.counted("control", "px-connect")
    async with hostile_peer(duel.address) as peer:
        await peer.send(crafted.prune(TOPIC, liars(no_record, "/ip4/127.0.0.1/tcp/1")))
        await duel.until_counted("control", "px-refused", before)
        assert duel.counted("control", "px-connect") == asked
        duel.assert_unharmed()
