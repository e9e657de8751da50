"""Connections by the hundred, and peers that never read: others are still served, and memory stays bounded."""

from __future__ import annotations

import os
import signal

import trio

from p2pnode.host.outbound import QUEUE_FRAMES
from tests.e2e.harness import have_all, running_node, start_node, stop, wait_until
from tests.faults import crafted
from tests.faults.duel import BULK, TOPIC, Duel
from tests.faults.hostile import eventually, hostile_peer


async def test_after_300_connections_in_turn_and_100_at_once_an_honest_peer_is_still_accepted(duel: Duel) -> None:
    address = duel.address
    there: list[str] = []

    async def pass_through(number: int) -> None:
        async with hostile_peer(address) as peer:
            await peer.send(crafted.signed(peer.identity, TOPIC, b"passing through", number))

    async def stay() -> None:
        async with hostile_peer(address) as peer:
            await peer.send(crafted.subscribe(TOPIC))
            there.append(peer.identity.peer_id)
            await trio.sleep_forever()

    for number in range(300):
        await pass_through(number)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(stay)
        await eventually("all are linked", lambda: len(there) == 100 and set(there) <= linked(duel))
        duel.assert_unharmed()
        nursery.cancel_scope.cancel()
    await eventually("all are gone", lambda: not set(there) & linked(duel))
    with running_node(duel.directory, "latecomer", "--bootstrap", address, env=duel.env) as latecomer:
        wait_until("the latecomer is linked", lambda: latecomer.metric("p2pnode_links") >= 1)
        message_id = latecomer.publish_accepted(TOPIC, b"here I am")
        have_all([duel.victim, duel.neighbour], TOPIC, {message_id})
    duel.assert_unharmed()


async def test_peers_that_never_read_hold_nobody_up_and_are_hung_up_on(duel: Duel) -> None:
    """One stops reading its socket; the other reads that, and gives no credit for what comes by the stream."""
    frozen = start_node(duel.directory, "frozen", "--bootstrap", duel.address, env=duel.env)
    assert frozen.process is not None
    try:
        await eventually("it answers", frozen.answers)
        frozen_id = frozen.get("/api/v1/node")["peer_id"]
        async with hostile_peer(duel.address, listens=True, reads=False) as deaf:
            await deaf.send(crafted.subscribe(BULK, TOPIC))
            sinks = {frozen_id, deaf.identity.peer_id}
            await eventually("both take part", lambda: sinks <= linked(duel) and topic_peers(duel) >= 3)
            os.kill(frozen.process.pid, signal.SIGSTOP)
            ids = {duel.victim.publish_accepted(BULK, b"%04d" % n + b"." * 1020) for n in range(2000)}
            assert len(ids) == 2000
            assert duel.victim.metric("p2pnode_outbound_waiting") <= 3 * QUEUE_FRAMES
            await eventually("the neighbour has them all", lambda: ids <= duel.neighbour.ids(BULK))
            duel.assert_unharmed()
            await eventually("both were hung up on", lambda: not sinks & linked(duel))
            await eventually("nothing waits", lambda: duel.victim.metric("p2pnode_outbound_waiting") == 0)
            duel.assert_unharmed()
    finally:
        stop(frozen, signal.SIGKILL)


def linked(duel: Duel) -> set[str]:
    return {document["peer_id"] for document in duel.victim.get("/api/v1/peers") if document["connected"]}


def topic_peers(duel: Duel) -> int:
    return next(int(each["peers"]) for each in duel.victim.get("/api/v1/topics") if each["topic"] == BULK)
