"""Whatever a peer writes to a node's streams, the node stays up, counts it, and goes on delivering."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from p2pnode.wire.members import MEMBERS_PROTOCOL, MEMBERS_TOPIC
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import RPC, ControlGraft, ControlIHave, ControlIWant, ControlMessage
from tests.e2e.harness import Node, have_all, running_node, wait_until
from tests.faults.hostile import (
    HostilePeer,
    endless_varint,
    forged,
    garbage,
    hostile_peer,
    oversize_length,
    signed,
    unsigned,
)

TOPIC = "hmmm.hostile"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """A victim, and an honest neighbour it must go on delivering to."""
    directory: Path = tmp_path_factory.mktemp("hostile")
    topics = ("P2PNODE_GOSSIP_TOPICS",)
    from tests.e2e.harness import environment

    env = environment(directory / "run", **dict.fromkeys(topics, f"councils.forming,{TOPIC}"))
    with (
        running_node(directory, "victim", env=env) as victim,
        running_node(directory, "neighbour", "--bootstrap", victim.bootstrap, env=env) as neighbour,
    ):
        yield victim, neighbour


def assert_still_delivers(pair: tuple[Node, Node]) -> None:
    for sender, receiver in (pair, pair[::-1]):
        message_id = sender.publish_accepted(TOPIC, b"still here")
        have_all([receiver], TOPIC, {message_id}, 30)


def counted(victim: Node, verdict: str, reason: str) -> float:
    return victim.metric(f'p2pnode_gossip_inbound_total{{verdict="{verdict}",reason="{reason}"}}') + victim.metric(
        f'p2pnode_gossip_inbound_total{{reason="{reason}",verdict="{verdict}"}}'
    )


async def attack(victim: Node, how: str) -> None:
    async with hostile_peer(victim.bootstrap) as peer:
        await _ATTACKS[how](peer)
        # The connection stays until the victim had the bytes: a ping over it comes back behind them.
        await trio.to_thread.run_sync(victim.answers)
        await peer.write(b"")


async def _garbage(peer: HostilePeer) -> None:
    await peer.write(garbage())


async def _varint(peer: HostilePeer) -> None:
    await peer.write(endless_varint())


async def _oversize(peer: HostilePeer) -> None:
    await peer.write(oversize_length())


async def _unsigned(peer: HostilePeer) -> None:
    await peer.send_rpc(unsigned(peer.identity, TOPIC, b"{}", 1))


async def _forged(peer: HostilePeer) -> None:
    await peer.send_rpc(forged(peer.identity, TOPIC, b"forged", 2))


async def _no_message(peer: HostilePeer) -> None:
    await peer.send_rpc(RPC(publish=[b"\xff\xff\xff"]))


async def _member_record(peer: HostilePeer) -> None:
    await peer.send_rpc(signed(peer.identity, MEMBERS_TOPIC, b"no record", 3))


_ATTACKS = {
    "garbage": _garbage,
    "varint": _varint,
    "oversize": _oversize,
    "unsigned": _unsigned,
    "forged": _forged,
    "no-message": _no_message,
    "member-record": _member_record,
}


@pytest.mark.parametrize(
    ("how", "verdict", "reason"),
    [
        ("garbage", "rpc", "protobuf"),
        ("varint", "rpc", "varint"),
        ("oversize", "rpc", "oversize"),
        ("unsigned", "reject", "unsigned"),
        ("forged", "reject", "signature"),
        ("no-message", "reject", "protobuf"),
        ("member-record", "reject", "member-record"),
    ],
)
def test_hostile_bytes_are_counted_and_the_node_still_delivers(
    pair: tuple[Node, Node], how: str, verdict: str, reason: str
) -> None:
    victim, _ = pair
    before = counted(victim, verdict, reason)
    trio.run(attack, victim, how)
    wait_until(f"{how} is counted", lambda: counted(victim, verdict, reason) > before, 30)
    assert_still_delivers(pair)


async def _flood(victim: Node) -> None:
    async with hostile_peer(victim.bootstrap) as peer:
        control = ControlMessage(
            ihave=[ControlIHave(topic_id=TOPIC, message_ids=[bytes([n % 256]) * 40 for n in range(5000)])],
            iwant=[ControlIWant(message_ids=[b"nothing" * 6] * 5000)],
            graft=[ControlGraft(topic_id=f"no.such.topic{n}") for n in range(200)],
        )
        rpc = RPC(subscriptions=[RPC.SubOpts(subscribe=True, topic_id=f"t{n}") for n in range(10_000)], control=control)
        for _ in range(5):
            await peer.send_rpc(rpc)
        await peer.write(b"\x00" * 1000, MEMBERS_PROTOCOL)
        for _ in range(20):
            await peer.write(garbage())


def test_floods_of_control_messages_leave_the_node_up(pair: tuple[Node, Node]) -> None:
    trio.run(_flood, pair[0])
    assert_still_delivers(pair)


async def _replay(victim: Node) -> HostilePeer:
    async with hostile_peer(victim.bootstrap) as peer:
        await peer.send_rpc(signed(peer.identity, TOPIC, b"first body", 7))
        await trio.to_thread.run_sync(
            lambda: wait_until("the first body is kept", lambda: victim.ids(TOPIC) & {f"{peer.identity.peer_id}-7"}, 30)
        )
        await peer.send_rpc(signed(peer.identity, TOPIC, b"second body", 7))
        await peer.send_rpc(signed(peer.identity, TOPIC, b"next", 8))
        await trio.to_thread.run_sync(
            lambda: wait_until("the next one is kept", lambda: victim.ids(TOPIC) & {f"{peer.identity.peer_id}-8"}, 30)
        )
        return peer


def test_a_second_body_under_a_known_id_changes_nothing(pair: tuple[Node, Node]) -> None:
    peer = trio.run(_replay, pair[0])
    kept = [document for document in pair[0].messages(TOPIC) if document["id"] == f"{peer.identity.peer_id}-7"]
    assert [document["payload"] for document in kept] == ["Zmlyc3QgYm9keQ=="]
