"""Records spread both ways, by gossip and by exchange; nobody is believed about another."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.member import MemberRecord, MemberState
from p2pnode.core.message import Accept, Ignore, Reject, SignedMessage
from p2pnode.core.peerid import PeerId
from p2pnode.errors import InvalidMessage
from p2pnode.identity import Identity
from p2pnode.node.members import Members, Tools
from p2pnode.ports import Link
from p2pnode.wire.members import MEMBERS_TOPIC, decode_exchange, encode_exchange, sign_record
from p2pnode.wire.pubsub import seal_message
from tests.node.fakes import (
    START_NS,
    FakeHost,
    MemorySeqnos,
    Network,
    Running,
    Wall,
    open_fleet,
    open_pair,
    until,
    verify_record,
)

ME, ALICE, BOB = Identity(b"m" * 32), Identity(b"a" * 32), Identity(b"b" * 32)


def record_of(identity: Identity, incarnation: int = 1, **change: str | bool) -> MemberRecord:
    record = MemberRecord(identity.peer_id, incarnation, "n", "chorus", "online", ("/ip4/10.9.9.9/tcp/1",))
    return dataclasses.replace(record, **change)  # type: ignore[arg-type]


def gossiped(signed: bytes, by: Identity = BOB) -> SignedMessage:
    return seal_message(origin=by.peer_id_bytes, seqno=1, topic=MEMBERS_TOPIC, data=signed, sign=by.sign)


class Desk:
    """Members without a network."""

    def __init__(self, step_ns: int = 0) -> None:
        self.wall = Wall(runs=False)
        self.wall.step_ns = step_ns
        self.host = FakeHost(Network(), ME.peer_id, "/ip4/10.0.0.9/tcp/9000")
        self.changes = 0
        self.members = Members(
            self.host, Tools(ME.sign, verify_record, self.wall, Random(1)), record_of(ME), self._publish, self._changed
        )

    async def _publish(self, signed: bytes) -> None:
        await trio.lowlevel.checkpoint()

    def _changed(self) -> None:
        self.changes += 1

    def state(self, peer: PeerId) -> MemberState | None:
        known = self.members.table.get(peer)
        return known.state if known else None


def test_an_own_record_is_there_from_the_start_and_dated() -> None:
    members = Desk().members
    assert members.own.incarnation == START_NS // 1_000_000
    assert members.table.all().keys() == {ME.peer_id}
    assert members.table.all()[ME.peer_id].record == members.own


def test_an_own_record_grows_with_each_change_even_when_the_clock_falls() -> None:
    desk = Desk()
    before = desk.members.own
    desk.wall.step_ns = -3600 * 10**9
    desk.members.update_own(dataclasses.replace(before, status="working"))
    assert desk.members.own.incarnation == before.incarnation + 1
    assert desk.members.own.signed != before.signed


def test_news_are_relayed_and_old_news_are_not() -> None:
    desk = Desk()
    newer, older = (gossiped(sign_record(record_of(ALICE, n, name=str(n)), ALICE.sign)) for n in (5, 4))
    assert desk.members.judge(newer) == Accept()
    assert desk.members.judge(newer) == Ignore("old-record")
    assert desk.members.judge(older) == Ignore("old-record")
    known = desk.members.table.get(ALICE.peer_id)
    assert known is not None
    assert (known.record.name, known.source, desk.changes) == ("5", "gossip", 1)


@pytest.mark.parametrize(
    ("signed", "reason"),
    [
        (sign_record(record_of(ALICE, 9), BOB.sign), "signature"),
        (sign_record(record_of(ME, 2**40), BOB.sign), None),
        (sign_record(record_of(ME, 2**60), BOB.sign), "signature"),
        (b"junk", "protobuf"),
        (b"", "record"),
        (b"x" * 5000, "oversize"),
    ],
)
def test_a_forged_record_changes_nothing(signed: bytes, reason: str | None) -> None:
    desk = Desk()
    desk.members.judge(gossiped(sign_record(record_of(ALICE, 1), ALICE.sign)))
    before = (desk.members.table.digest(), desk.members.own, desk.changes)
    assert desk.members.judge(gossiped(signed)) == (Reject("member-record") if reason else Ignore("old-record"))
    assert (desk.members.table.digest(), desk.members.own, desk.changes) == before
    assert dict(desk.members.refused) == ({reason: 1} if reason else {})


def test_a_newer_own_record_is_topped() -> None:
    desk = Desk()
    theirs = record_of(ME, 2**50, left=True, name="past life")
    assert desk.members.judge(gossiped(sign_record(theirs, ME.sign))) == Ignore("old-record")
    assert desk.members.own.incarnation == 2**50 + 1
    assert (desk.members.own.name, desk.members.own.left) == ("n", False)
    assert desk.state(ME.peer_id) is MemberState.ALIVE


def test_who_said_goodbye_is_left_until_it_is_back() -> None:
    desk = Desk()
    for incarnation, left, state in (
        (1, False, MemberState.ALIVE),
        (2, True, MemberState.LEFT),
        (3, False, MemberState.ALIVE),
    ):
        desk.members.judge(gossiped(sign_record(record_of(ALICE, incarnation, left=left), ALICE.sign)))
        assert desk.state(ALICE.peer_id) is state
        if left:
            desk.members.link_opened(Link(ALICE.peer_id, "inbound", ""))
            desk.members.mark_unreachable(ALICE.peer_id, gone=True)
            assert desk.state(ALICE.peer_id) is MemberState.LEFT


async def test_equal_tables_answer_with_a_digest_alone() -> None:
    members = Desk().members
    digest = members.table.digest()
    assert decode_exchange(await members.answer(ALICE.peer_id, encode_exchange(digest))) == (digest, [])


async def test_an_unequal_table_is_answered_with_all_records_and_one_forged_one_spoils_no_other() -> None:
    members = Desk().members
    answer = decode_exchange(await members.answer(ALICE.peer_id, encode_exchange(b"?")))
    assert answer == (members.table.digest(), [members.own.signed])
    records = [
        sign_record(record_of(BOB), ALICE.sign),
        sign_record(record_of(ALICE), ALICE.sign),
    ]
    digest, rest = decode_exchange(await members.answer(ALICE.peer_id, encode_exchange(b"?", records)))
    assert members.table.all().keys() == {ME.peer_id, ALICE.peer_id}
    assert (digest, rest) == (members.table.digest(), [])
    assert members.refused == {"signature": 1}


async def test_a_request_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidMessage):
        await Desk().members.answer(ALICE.peer_id, b"\xff")


def known(running: Running) -> dict[PeerId, int]:
    return {peer: member.record.incarnation for peer, member in running.node.members.table.all().items()}


async def test_an_exchange_spreads_records_both_ways(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        a, b = fleet.add(), fleet.add()
        for running, stranger in ((a, ALICE), (b, BOB)):
            message = gossiped(sign_record(record_of(stranger), stranger.sign))
            assert running.node.members.judge(message) == Accept()
            running.host.serve("/p2pnode/members/1.0.0", running.node.members.answer, limit_bytes=2**22)
        await a.host.dial(b.addr)
        assert await a.node.members.exchange_with(b.peer_id)
        assert known(a) == known(b)
        assert len(known(a)) == 4
        assert len(fleet.network.requests) == 2
        assert not await a.node.members.exchange_with(b.peer_id)
        equal = fleet.network.requests[-1]
        assert len(fleet.network.requests) == 3
        assert equal.sent < 64
        assert equal.got < 64


async def test_all_know_all_through_one_bootstrap(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add(role="bootstrap")
        others = [fleet.add(bootstrap=[first.addr]) for _ in range(11)]
        fleet.start(first, *others)
        await until(lambda: all(len(each.node.peers()) == 12 for each in fleet.nodes))
        await until(lambda: len({each.node.members.table.digest() for each in fleet.nodes}) == 1)
        assert all(peer["state"] == "alive" for each in fleet.nodes for peer in each.node.peers())


async def test_a_record_that_gossip_lost_is_made_good(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        a.node.members.table.merge(record_of(ALICE), "gossip", 1)
        signed = sign_record(record_of(ALICE, 2), ALICE.sign)
        a.node.members.judge(gossiped(signed))
        assert ALICE.peer_id not in known(b)
        await until(lambda: known(a) == known(b), seconds=200)


async def test_idle_nodes_compare_less_and_less_often(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, _):
        network = a.host.network
        await trio.sleep(600)
        before = len(network.requests)
        await trio.sleep(600)
        exchanges = network.requests[before:]
        assert 2 * 600 / 75 - 2 <= len(exchanges) <= 2 * 600 / 45 + 2
        assert all(each.sent < 64 and each.got < 64 for each in exchanges)


async def test_a_node_that_comes_back_with_a_clock_behind_is_believed_again(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        old = fleet.add(bootstrap=[first.addr])
        fleet.start(first, old)
        await until(lambda: len(first.node.peers()) == 2)
        fleet.stop(old)
        fleet.network.revive(old.peer_id)
        new = fleet.add(bootstrap=[first.addr], identity=old.identity, seqnos=old.seqnos)
        fleet.network.hosts.pop(old.host.addr)
        new.wall.step_ns = -3600 * 10**9
        new.node.members.table._members.clear()
        new.node.members._write_own(dataclasses.replace(new.node.members.own, name="new"))
        assert new.node.members.own.incarnation < known(first)[old.peer_id]
        fleet.start(new)
        await until(lambda: {p["name"] for p in first.node.peers()} == {"node-001", "new"})
        await until(lambda: known(first) == known(new))


async def test_a_full_disk_delays_the_record_and_ends_nothing(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        seqnos = MemorySeqnos()
        seqnos.broken = True
        first = fleet.add(seqnos=seqnos)
        second = fleet.add(bootstrap=[first.addr])
        fleet.start(first, second)
        await trio.sleep(60)
        assert first.gossip.sent == []
        assert len(second.node.peers()) == 2
        seqnos.broken = False
        await until(lambda: bool(first.gossip.sent))


async def test_a_peer_that_answers_nonsense_or_nothing_ends_nothing(autojump_clock: MockClock) -> None:
    async def nonsense(peer: PeerId, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"\xff\xff"

    async with open_fleet() as fleet:
        odd, mute = (
            FakeHost(fleet.network, each.peer_id, f"/ip4/10.8.0.{n}/tcp/1") for n, each in enumerate((ALICE, BOB))
        )
        odd.serve("/p2pnode/members/1.0.0", nonsense, limit_bytes=2**22)
        node = fleet.add(bootstrap=[odd.addrs()[0], mute.addrs()[0]])
        fleet.start(node)
        await trio.sleep(300)
        assert node.node.members.refused["protobuf"] >= 3
        assert node.host.links().keys() == {ALICE.peer_id, BOB.peer_id}
        assert [peer["name"] for peer in node.node.peers()] == ["node-001", None, None]
