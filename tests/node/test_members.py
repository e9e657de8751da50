"""Members at work: records spread both ways, claims are checked, doubts are looked into, and no peer ends a node."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pnode.core.membership.beyond import BeyondFilter
from p2pnode.core.membership.record import MAX_INCARNATION, Accusation, MemberRecord, MemberState
from p2pnode.core.message import Accept, Ignore, Reject, SignedMessage, Verdict
from p2pnode.core.peerid import PeerId
from p2pnode.core.reconcile import Fingerprint, Listing, Reply
from p2pnode.errors import InvalidMessage, Unavailable
from p2pnode.identity import Identity
from p2pnode.node.clocks import MAX_OFFSET_SECONDS
from p2pnode.node.members import ROLL_BYTES, Members, Tools
from p2pnode.node.probing import MAX_PROBES_FOR_ONE, MAX_PROBES_FOR_OTHERS
from p2pnode.node.records import NEWS_IN_ANSWER_BYTES, VERIFY_AT_ONCE
from p2pnode.ports import Link
from p2pnode.wire.members import (
    MAX_EXCHANGE_BYTES,
    MEMBERS_PROTOCOL,
    MEMBERS_TOPIC,
    PROBE_PROTOCOL,
    EncodedNews,
    Exchange,
    decode_exchange,
    decode_news,
    encode_exchange,
    encode_news,
    sign_accusation,
    sign_record,
)
from p2pnode.wire.pubsub import seal_message
from p2pnode.wire.reconcile import encode_reply
from tests.node.fakes import (
    START_NS,
    FakeHost,
    Fleet,
    MemorySeqnos,
    Network,
    Running,
    Wall,
    open_fleet,
    open_pair,
    until,
    verify_record,
)
from tests.properties import some

ME, ALICE, BOB, CAROL = (Identity(letter * 32) for letter in (b"m", b"a", b"b", b"c"))
NOW_MS = START_NS // 10**6
DAY_NS = 24 * 3600 * 10**9
BIG = tuple("c" * 250 for _ in range(12))
"""Capabilities that make a record three quarters as large as it may be."""


def ghost(number: int) -> Identity:
    """A member that nobody runs."""
    return Identity(b"ghost" + number.to_bytes(27, "big"))


def record_of(identity: Identity, incarnation: int = NOW_MS, **change: object) -> MemberRecord:
    record = MemberRecord(identity.peer_id, incarnation, "n", "chorus", "online", ("/ip4/10.9.9.9/tcp/1",))
    return dataclasses.replace(record, **change)  # type: ignore[arg-type]


def signed(identity: Identity, incarnation: int = NOW_MS, *, by: Identity | None = None, **change: object) -> bytes:
    return sign_record(record_of(identity, incarnation, **change), (by or identity).sign)


def accused(
    accuser: Identity, whom: Identity, incarnation: int = NOW_MS, at_ns: int = START_NS, *, by: Identity | None = None
) -> bytes:
    return sign_accusation(Accusation(accuser.peer_id, whom.peer_id, incarnation, at_ns), (by or accuser).sign)


def gossiped(*records: bytes, accusations: tuple[bytes, ...] = ()) -> SignedMessage:
    return in_gossip(encode_news(EncodedNews(records, accusations)))


def in_gossip(data: bytes) -> SignedMessage:
    return seal_message(origin=BOB.peer_id_bytes, seqno=1, topic=MEMBERS_TOPIC, data=data, sign=BOB.sign)


class Desk:
    """Members on a fake host. What they publish is kept while `listening`, else refused."""

    def __init__(
        self,
        network: Network | None = None,
        identity: Identity = ME,
        *,
        wall: Wall | None = None,
        incarnations: MemorySeqnos | None = None,
        started_at_ns: int = START_NS,
    ) -> None:
        self.network = network or Network()
        self.wall = wall or Wall(runs=False)
        self.identity = identity
        self.addr = f"/ip4/10.1.0.{len(self.network.hosts) + 1}/tcp/9000"
        self.host = FakeHost(self.network, identity.peer_id, self.addr)
        self.incarnations = incarnations or MemorySeqnos()
        self.listening = True
        self.published: list[EncodedNews] = []
        self.refused = 0
        self.changes = 0
        self.twins: list[MemberRecord] = []
        self.members = Members(
            self.host,
            Tools(identity.sign, verify_record, self.wall, Random(1), self.incarnations),
            record_of(identity, 0, name=f"n{len(self.network.hosts)}", addrs=(self.addr,), started_at_ns=started_at_ns),
            self._publish,
            self._changed,
            self.twins.append,
        )
        self.host.report_to(self.members)
        self.host.serve(MEMBERS_PROTOCOL, self.members.exchanges.answer, limit_bytes=MAX_EXCHANGE_BYTES)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    async def _publish(self, body: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if not self.listening:
            self.refused += 1
            raise Unavailable("nobody listens", reason="no-peers")
        self.published.append(decode_news(body))

    def _changed(self) -> None:
        self.changes += 1

    def hear(self, *records: bytes, accusations: tuple[bytes, ...] = ()) -> Verdict:
        return self.members.judge(gossiped(*records, accusations=accusations))

    def meet(self, *others: Desk) -> None:
        """Know their records, as if gossip had brought them."""
        for other in others:
            assert self.hear(other.members.own.signed) == Accept()

    def state(self, who: Identity) -> MemberState | None:
        member = self.members.get(who.peer_id)
        return member.state if member else None

    def known(self) -> dict[PeerId, int]:
        return {peer: member.record.incarnation for peer, member in self.members.all().items()}

    def picture(self) -> object:
        return (
            {
                peer: (member.record, member.state, len(member.accusations))
                for peer, member in self.members.all().items()
            },
            self.members.machine.version,
            self.changes,
        )

    def records_published(self) -> list[bytes]:
        return [record for news in self.published for record in news.records]

    def accusations_published(self) -> list[bytes]:
        return [accusation for news in self.published for accusation in news.accusations]


@asynccontextmanager
async def running(*desks: Desk) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for desk in desks:
            nursery.start_soon(desk.members.run)
        yield
        nursery.cancel_scope.cancel()


# -- our own record --------------------------------------------------------------------


async def test_an_own_record_is_there_from_the_start_and_dated() -> None:
    desk = Desk()
    assert desk.known() == {ME.peer_id: NOW_MS}
    assert desk.members.alive()[0].record == desk.members.own


async def test_an_own_record_grows_with_each_change_even_when_the_clock_falls() -> None:
    desk = Desk()
    before = desk.members.own
    desk.wall.step_ns = -3600 * 10**9
    desk.members.update_own(dataclasses.replace(before, status="working"))
    assert desk.members.own.incarnation == before.incarnation + 1
    assert desk.members.own.signed != before.signed


async def test_a_change_that_others_would_refuse_is_refused_and_changes_nothing() -> None:
    desk = Desk()
    before = desk.picture()
    with pytest.raises(InvalidMessage):
        desk.members.update_own(dataclasses.replace(desk.members.own, status="x" * 300))
    assert desk.picture() == before


async def test_a_newer_own_record_is_topped() -> None:
    desk = Desk()
    assert desk.hear(signed(ME, NOW_MS + 10**9, left=True, name="past life")) == Accept()
    assert desk.members.own.incarnation > NOW_MS + 10**9
    assert (desk.members.own.name, desk.members.own.left) == ("n1", False)
    assert desk.state(ME) is MemberState.ALIVE
    assert desk.twins == []


async def test_an_accusation_of_ourselves_is_refuted_and_the_answer_published(autojump_clock: MockClock) -> None:
    desk = Desk()
    desk.hear(signed(ALICE))
    async with running(desk):
        await until(lambda: desk.members.own.signed in desk.records_published())
        before = desk.members.own
        assert desk.hear(accusations=(accused(ALICE, ME, before.incarnation),)) == Accept()
        assert desk.members.own.incarnation > before.incarnation
        assert desk.state(ME) is MemberState.ALIVE
        await until(lambda: desk.members.own.signed in desk.records_published())


async def test_an_incarnation_is_stored_and_the_next_run_is_above_it_whatever_the_clock_says(
    autojump_clock: MockClock,
) -> None:
    store = MemorySeqnos()
    first = Desk(incarnations=store)
    async with running(first):
        await until(lambda: store.ceiling == first.members.own.incarnation)
        first.members.update_own(dataclasses.replace(first.members.own, status="working"))
        await until(lambda: store.ceiling == first.members.own.incarnation)
        first.members.goodbye()
        await until(lambda: store.ceiling == first.members.own.incarnation)
    wall = Wall(runs=False)
    wall.step_ns = -3600 * 10**9
    again = Desk(incarnations=store, wall=wall)
    assert again.members.own.incarnation > first.members.own.incarnation
    assert not again.members.own.left


async def test_a_full_disk_ends_nothing_and_the_incarnation_is_stored_when_there_is_room(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemorySeqnos()
    store.broken = True
    desk = Desk(incarnations=store)
    async with running(desk):
        await until(lambda: len([each for each in caplog.records if "could not be stored" in each.message]) == 3)
        assert desk.records_published() == [desk.members.own.signed]
        store.broken = False
        await until(lambda: store.ceiling == desk.members.own.incarnation)


async def test_a_goodbye_is_a_record_that_others_take_for_one() -> None:
    desk, other = Desk(), Desk(identity=ALICE)
    other.meet(desk)
    assert other.members.judge(in_gossip(desk.members.goodbye())) == Accept()
    assert other.state(ME) is MemberState.LEFT


async def test_of_two_live_processes_with_one_identity_the_newer_one_is_told_to_stop() -> None:
    late = Wall(runs=False)
    late.step_ns = 10 * 10**9
    older, newer = Desk(), Desk(wall=late, started_at_ns=START_NS + 10 * 10**9)
    for _ in range(3):
        older.hear(newer.members.own.signed)
        newer.hear(older.members.own.signed)
    assert older.twins == []
    assert [record.started_at_ns for record in newer.twins][:1] == [START_NS]
    assert newer.members.counted["twin"] >= 1


# -- gossip ----------------------------------------------------------------------------


async def test_news_are_accepted_and_old_news_are_ignored() -> None:
    desk = Desk()
    newer, older = (signed(ALICE, NOW_MS + n, name=str(n)) for n in (5, 4))
    assert [desk.hear(newer), desk.hear(newer), desk.hear(older)] == [Accept(), *[Ignore("old-record")] * 2]
    member = desk.members.get(ALICE.peer_id)
    assert member is not None
    assert (member.record.name, member.source, desk.changes) == ("5", "gossip", 1)
    charge = accused(BOB, ALICE, NOW_MS + 5)
    assert desk.hear(signed(BOB), accusations=(charge,)) == Accept()
    assert desk.hear(accusations=(charge,)) == Ignore("old-record")
    assert desk.state(ALICE) is MemberState.SUSPECT


async def test_one_message_may_bring_a_stranger_its_accuser_and_the_accusation() -> None:
    desk = Desk()
    assert desk.hear(signed(ALICE), signed(BOB), accusations=(accused(BOB, ALICE),)) == Accept()
    assert [desk.state(ALICE), desk.state(BOB)] == [MemberState.SUSPECT, MemberState.ALIVE]


@pytest.mark.parametrize(
    ("data", "verdict", "reason"),
    [
        (encode_news(EncodedNews((signed(CAROL, by=BOB),))), Reject("member-record"), "signature"),
        (encode_news(EncodedNews((signed(ME, NOW_MS + 9, by=BOB),))), Reject("member-record"), "signature"),
        (encode_news(EncodedNews((signed(BOB), signed(CAROL, by=BOB)))), Reject("member-record"), "signature"),
        (encode_news(EncodedNews((signed(ALICE, NOW_MS - 1),))), Ignore("old-record"), "old-record"),
        (encode_news(EncodedNews((signed(ALICE, MAX_INCARNATION + 1),))), Ignore("old-record"), "incarnation"),
        (
            encode_news(EncodedNews((signed(CAROL, (START_NS - DAY_NS) // 10**6 - 1, left=True),))),
            Ignore("old-record"),
            "expired",
        ),
        (encode_news(EncodedNews((), (accused(BOB, ALICE, by=CAROL),))), Reject("member-record"), "signature"),
        (encode_news(EncodedNews((), (accused(CAROL, ALICE),))), Ignore("old-record"), "unknown-accuser"),
        (encode_news(EncodedNews((), (accused(BOB, CAROL),))), Ignore("old-record"), "unknown-accused"),
        (encode_news(EncodedNews((), (accused(BOB, ALICE, NOW_MS - 1),))), Ignore("old-record"), "old-accusation"),
        (encode_news(EncodedNews((), (accused(BOB, ALICE, NOW_MS + 1),))), Ignore("old-record"), "unknown-accused"),
        (
            encode_news(EncodedNews((), (accused(BOB, ALICE, at_ns=START_NS + 121 * 10**9),))),
            Ignore("old-record"),
            "future-accusation",
        ),
        (
            encode_news(EncodedNews((), (accused(BOB, ALICE, at_ns=START_NS - DAY_NS - 1),))),
            Ignore("old-record"),
            "expired",
        ),
        (b"junk", Reject("member-record"), "protobuf"),
        (b"", Reject("member-record"), "empty"),
        (b"x" * 200_000, Reject("member-record"), "oversize"),
    ],
)
async def test_what_is_forged_expired_or_replayed_changes_nothing_and_is_counted(
    data: bytes, verdict: Verdict, reason: str
) -> None:
    desk = Desk()
    desk.hear(signed(ALICE), signed(BOB))
    before = desk.picture()
    assert desk.members.judge(in_gossip(data)) == verdict
    assert desk.picture() == before
    assert dict(desk.members.refused) == {reason: 1}


async def test_the_accusations_of_a_chatterer_are_not_passed_on_without_end() -> None:
    desk = Desk()
    desk.hear(signed(BOB), *(signed(ghost(number)) for number in range(120)))
    verdicts = [desk.hear(accusations=(accused(BOB, ghost(number)),)) for number in range(120)]
    assert verdicts == [Accept()] * 100 + [Ignore("unwelcome-record")] * 20
    assert desk.members.refused["accuser-limit"] == 20


async def test_who_said_goodbye_is_left_until_it_is_back() -> None:
    desk = Desk()
    for number, left, state in ((1, False, "alive"), (2, True, "left"), (3, False, "alive")):
        desk.hear(signed(ALICE, NOW_MS + number, left=left))
        assert desk.state(ALICE) == state
        if left:
            desk.members.link_opened(Link(ALICE.peer_id, "inbound", ""))
            desk.members.link_closed(ALICE.peer_id, by_intent=False)
            assert desk.state(ALICE) == state


async def test_each_change_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    desk = Desk()
    desk.hear(signed(ALICE, name="alice"), signed(CAROL, name="carol"))
    assert desk.changes == 1, "once for all that one message brought"
    desk.hear(signed(BOB, name="alice"))
    desk.hear(accusations=(accused(BOB, ALICE),))
    desk.hear(signed(ALICE, NOW_MS + 1, name="alice"))
    assert dict(desk.members.counted) == {"alive": 4, "suspect": 1}
    told = [record.getMessage() for record in caplog.records]
    assert told.count("a member is alive") == 4
    assert told.count("a member is suspect") == 1
    assert told.count("two members have the same name; both stay, told apart by peer id") == 1


# -- publishing ------------------------------------------------------------------------


async def test_publishing_waits_until_somebody_listens_and_then_tells_the_newest_only(
    autojump_clock: MockClock,
) -> None:
    desk = Desk()
    desk.listening = False
    async with running(desk):
        for status in ("a", "b", "c"):
            desk.members.update_own(dataclasses.replace(desk.members.own, status=status))
            await trio.sleep(10)
        assert 20 <= desk.refused <= 80, "neither gives up nor spins"
        assert len(desk.members._outbox) == 1
        desk.listening = True
        await until(lambda: bool(desk.published))
        await trio.sleep(10)
        assert desk.published == [EncodedNews((desk.members.own.signed,))]


async def test_what_became_untrue_while_nobody_listened_is_never_published(autojump_clock: MockClock) -> None:
    network = Network()
    desk, other = Desk(network), Desk(network, ALICE)
    desk.meet(other)
    await desk.host.dial(other.host.addrs()[0])
    async with running(desk):
        await until(lambda: bool(desk.published))
        desk.published.clear()
        desk.listening = False
        network.kill(ALICE.peer_id)
        await until(lambda: desk.state(ALICE) is MemberState.SUSPECT)
        desk.hear(signed(ALICE, other.members.own.incarnation + 1, started_at_ns=START_NS))
        await trio.sleep(5)
        desk.listening = True
        await trio.sleep(5)
        assert desk.published == []
        assert len(desk.members._outbox) == 0


async def test_much_news_goes_out_in_several_messages_each_within_its_limit(autojump_clock: MockClock) -> None:
    network = Network()
    a, b = Desk(network), Desk(network, ALICE)
    for number in range(100):  # known to both, so that 60 changes are news and no strangers
        for desk in (a, b):
            desk.hear(signed(ghost(number)))
        b.hear(signed(ghost(number), NOW_MS + 1, capabilities=BIG))
    await a.host.dial(b.host.addrs()[0])
    async with running(a):
        await until(lambda: len(a.records_published()) >= 102, seconds=30)
    assert set(a.records_published()) >= {signed(ghost(number), NOW_MS + 1, capabilities=BIG) for number in range(100)}
    assert len(a.published) >= 3
    assert all(len(encode_news(news)) <= 129 * 1024 for news in a.published)


# -- doubts ----------------------------------------------------------------------------


async def test_who_is_lost_is_probed_then_accused_to_all_then_dead(autojump_clock: MockClock) -> None:
    network = Network()
    desk, other = Desk(network), Desk(network, ALICE)
    desk.meet(other)
    await desk.host.dial(other.host.addrs()[0])
    async with running(desk):
        await trio.sleep(1)
        network.kill(ALICE.peer_id)
        await until(lambda: desk.state(ALICE) is MemberState.SUSPECT, seconds=3)
        assert [probe.addr for probe in network.probes] == [other.host.addrs()[0]]
        await until(lambda: len(desk.accusations_published()) == 1, seconds=1)
        await until(lambda: desk.state(ALICE) is MemberState.DEAD, seconds=6)
    third = Desk(identity=BOB)
    third.hear(desk.members.own.signed, other.members.own.signed)
    assert third.hear(accusations=tuple(desk.accusations_published())) == Accept()
    assert third.state(ALICE) is MemberState.SUSPECT


@pytest.mark.parametrize("why", ["its link broke, but it answers", "it closed by intent"])
async def test_who_answers_or_said_that_it_closes_is_not_accused(autojump_clock: MockClock, why: str) -> None:
    network = Network()
    desk, other = Desk(network), Desk(network, ALICE)
    desk.meet(other)
    await desk.host.dial(other.host.addrs()[0])
    async with running(desk):
        await trio.sleep(1)
        by_intent = why == "it closed by intent"
        network.cut(ME.peer_id, ALICE.peer_id, by_intent=by_intent)
        await trio.sleep(1)  # the ring's first turn comes later
        assert len(network.probes) == (0 if by_intent else 1)
        await trio.sleep(30)
        assert desk.state(ALICE) is MemberState.ALIVE
        assert desk.accusations_published() == []


async def test_a_silent_link_is_looked_into(autojump_clock: MockClock) -> None:
    network = Network()
    desk, other = Desk(network), Desk(network, ALICE)
    desk.meet(other)
    await desk.host.dial(other.host.addrs()[0])
    network.down.add(ALICE.peer_id)
    async with running(desk):
        desk.members.link_silent(ALICE.peer_id)
        await until(lambda: desk.state(ALICE) is MemberState.SUSPECT, seconds=3)


async def test_whom_a_helper_reaches_is_not_accused_and_whom_none_reaches_is(autojump_clock: MockClock) -> None:
    network = Network()
    desk, helper, victim = Desk(network), Desk(network, ALICE), Desk(network, BOB)
    desk.meet(helper, victim)
    helper.meet(desk, victim)
    network.split(ME.peer_id, BOB.peer_id)
    await desk.host.dial(helper.host.addrs()[0])
    async with running(desk, helper):
        await until(lambda: any(probe.peer == ALICE.peer_id for probe in network.probes), seconds=30)
        await trio.sleep(20)
        assert desk.state(BOB) is MemberState.ALIVE
        network.split(ALICE.peer_id, BOB.peer_id)
        await until(lambda: desk.state(BOB) is MemberState.SUSPECT, seconds=30)


async def test_a_helper_probes_members_only_at_the_addresses_it_knows() -> None:
    network = Network()
    asker, helper, victim = Desk(network), Desk(network, ALICE), Desk(network, BOB)
    helper.meet(victim)
    await asker.host.dial(helper.host.addrs()[0])

    async def ask(body: bytes) -> bytes:
        return await asker.host.request(ALICE.peer_id, PROBE_PROTOCOL, body, limit_bytes=8)

    async with running(helper):
        await trio.testing.wait_all_tasks_blocked()
        assert await ask(BOB.peer_id_bytes) == b"\0", "the asker is no member"
        helper.meet(asker)
        for stranger in (CAROL.peer_id_bytes, b"", b"junk", b"\xff" * 64):
            assert await ask(stranger) == b"\0"
        assert network.probes == []
        assert await ask(BOB.peer_id_bytes) == b"\1"
        assert {probe.addr for probe in network.probes} == {victim.host.addrs()[0]}
        network.down.add(BOB.peer_id)
        assert await ask(BOB.peer_id_bytes) == b"\0"
        assert await ask(ALICE.peer_id_bytes) == b"\1", "it is the helper itself"
        assert len(network.probes) == 2


async def test_probes_for_others_are_bounded_in_all_and_for_each_asker(autojump_clock: MockClock) -> None:
    network = Network()
    network.probe_seconds = 1.0
    helper, victim = Desk(network, ALICE), Desk(network, BOB)
    askers = [Desk(network, ghost(number)) for number in range(8)]
    helper.meet(victim, *askers)
    answers: list[bytes] = []

    async def ask(asker: Desk) -> None:
        answers.append(await asker.host.request(ALICE.peer_id, PROBE_PROTOCOL, BOB.peer_id_bytes, limit_bytes=8))

    async with running(helper):
        await trio.testing.wait_all_tasks_blocked()
        for asker in askers:
            await asker.host.dial(helper.host.addrs()[0])
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask, askers[0])
        assert answers.count(b"\1") == MAX_PROBES_FOR_ONE
        answers.clear()
        async with trio.open_nursery() as nursery:
            for asker in askers * 2:
                nursery.start_soon(ask, asker)
        assert answers.count(b"\1") == MAX_PROBES_FOR_OTHERS
        answers.clear()
        await ask(askers[0])
        assert answers == [b"\1"], "ended probes are forgotten"


async def test_links_reported_before_the_start_and_after_the_end_raise_nothing(autojump_clock: MockClock) -> None:
    network = Network()
    desk, other = Desk(network), Desk(network, ALICE)
    desk.meet(other)
    await desk.host.dial(other.host.addrs()[0])
    network.kill(ALICE.peer_id)
    assert network.probes == []
    async with running(desk):
        await until(lambda: len(network.probes) == 1, seconds=1)
    network.revive(ALICE.peer_id)
    desk.hear(signed(ALICE, other.members.own.incarnation + 1))
    await desk.host.dial(other.host.addrs()[0])
    network.cut(ME.peer_id, ALICE.peer_id)
    desk.members.link_silent(ALICE.peer_id)


# -- exchanges -------------------------------------------------------------------------


async def test_small_tables_are_compared_in_one_round_trip_and_made_equal_in_the_next() -> None:
    network = Network()
    a, b = Desk(network), Desk(network, ALICE)
    for number in range(20):
        (a if number % 2 else b).hear(signed(ghost(number)))
    a.hear(signed(ghost(1)), signed(BOB), accusations=(accused(BOB, ghost(1)),))
    b.hear(signed(ghost(1)))
    await a.host.dial(b.host.addrs()[0])
    assert await a.members.exchanges.exchange_with(ALICE.peer_id)
    assert a.known() == b.known()
    assert len(a.known()) == 23
    assert b.state(ghost(1)) is MemberState.SUSPECT
    assert len(network.requests) == 2
    assert not await a.members.exchanges.exchange_with(ALICE.peer_id)
    equal = network.requests[-1]
    assert len(network.requests) == 3
    assert equal.sent < 64
    assert equal.got < 64


@pytest.mark.parametrize("way", ["pull", "push", "both"])
async def test_large_tables_are_made_equal_by_several_exchanges_each_within_its_limit(way: str) -> None:
    network = Network()
    a, b = Desk(network), Desk(network, ALICE)
    for number in range(500):
        desk = {"pull": b, "push": a, "both": a if number % 2 else b}[way]
        desk.hear(signed(ghost(number), capabilities=BIG))
    await a.host.dial(b.host.addrs()[0])
    count = 0
    while a.known() != b.known() and count < 12:
        await a.members.exchanges.exchange_with(ALICE.peer_id)
        count += 1
    assert len(a.known()) == 502
    assert count > 1
    assert all(max(each.sent, each.got) <= NEWS_IN_ANSWER_BYTES + 80 * 1024 for each in network.requests)


async def test_one_bad_record_or_accusation_costs_only_itself_and_is_counted() -> None:
    desk = Desk()
    desk.hear(signed(ghost(2)))
    news = EncodedNews(
        (signed(CAROL, by=BOB), signed(ALICE), b"", signed(BOB)),
        (accused(ALICE, BOB, by=CAROL), accused(CAROL, ghost(2)), accused(BOB, ALICE), accused(ALICE, ghost(1))),
    )
    answer = decode_exchange(await desk.members.exchanges.answer(ALICE.peer_id, encode_exchange(Exchange(news=news))))
    assert answer == Exchange(now_ns=START_NS)
    assert desk.known().keys() == {ME.peer_id, ALICE.peer_id, BOB.peer_id, ghost(2).peer_id}
    assert [desk.state(ALICE), desk.state(BOB)] == [MemberState.SUSPECT, MemberState.ALIVE]
    assert dict(desk.members.refused) == {"signature": 2, "record": 1, "unknown-accuser": 1, "unknown-accused": 1}


async def test_what_is_wanted_is_given_with_what_is_said_about_it() -> None:
    desk = Desk()
    charge = accused(BOB, ALICE)
    desk.hear(signed(ALICE), signed(BOB), accusations=(charge,))
    request = Exchange(want=(ALICE.peer_id_bytes, CAROL.peer_id_bytes))
    answer = decode_exchange(await desk.members.exchanges.answer(ALICE.peer_id, encode_exchange(request)))
    assert answer.news == EncodedNews((signed(ALICE),), (charge,))


async def test_a_big_exchange_leaves_others_their_turns() -> None:
    desk = Desk()
    desk.hear(signed(ALICE), signed(BOB))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    junk = EncodedNews(tuple([signed(CAROL, by=BOB)] * 640), tuple([accused(BOB, ALICE, by=CAROL)] * 640))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await trio.lowlevel.checkpoint()
        await desk.members.exchanges.answer(ALICE.peer_id, encode_exchange(Exchange(news=junk)))
        nursery.cancel_scope.cancel()
    assert desk.members.refused["signature"] == 1280
    assert turns >= 1280 // VERIFY_AT_ONCE - 2


async def test_what_came_by_an_exchange_is_gossiped_a_moment_later(autojump_clock: MockClock) -> None:
    desk = Desk()
    async with running(desk):
        await until(lambda: bool(desk.published))
        # Not at once: it may come by gossip as well, and the machine's next look is a second away.
        await desk.members.exchanges.answer(
            ALICE.peer_id, encode_exchange(Exchange(news=EncodedNews((signed(BOB), signed(CAROL)))))
        )
        desk.members.judge(gossiped(signed(CAROL)))
        assert len(desk.published) == 1
        await until(lambda: signed(BOB) in desk.records_published(), seconds=0.35)
        await trio.sleep(5)
        assert signed(CAROL) not in desk.records_published()
        assert desk.records_published().count(signed(BOB)) == 1


@some
@given(st.binary(max_size=200))
def test_any_request_is_answered_or_refused_as_one(body: bytes) -> None:
    async def main() -> None:
        desk = Desk()
        for ranges in (False, True):
            try:
                await desk.members.exchanges.answer(ALICE.peer_id, encode_exchange(Exchange(body)) if ranges else body)
            except InvalidMessage:
                pass
        assert desk.known().keys() == {ME.peer_id}

    trio.run(main)


LIES = st.one_of(
    st.binary(max_size=100),
    st.builds(
        lambda ranges, records, want: encode_exchange(Exchange(ranges, EncodedNews(tuple(records)), tuple(want))),
        st.one_of(
            st.binary(max_size=60),
            st.just(b""),
            st.builds(
                lambda parts, news, lacking: encode_reply(Reply(tuple(parts), tuple(news), tuple(lacking))),
                st.lists(
                    st.one_of(
                        st.builds(Fingerprint, st.just(b""), st.just(b"\xff"), st.integers(0, 9), st.just(b"d" * 16)),
                        st.builds(
                            lambda keys: Listing(b"", b"\xff", tuple((key, b"f") for key in sorted(set(keys)))),
                            st.lists(st.one_of(st.binary(max_size=4), st.just(BOB.peer_id_bytes)), max_size=5),
                        ),
                    ),
                    max_size=2,
                ),
                st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=9)), max_size=3),
                st.lists(st.one_of(st.binary(max_size=5), st.just(ME.peer_id_bytes)), max_size=3),
            ),
        ),
        st.lists(st.sampled_from([signed(BOB), signed(CAROL, by=BOB), b"", b"\x0a\x01x"]), max_size=3),
        st.lists(st.sampled_from([BOB.peer_id_bytes, b"x"]), max_size=2),
    ),
)


@some
@given(st.lists(LIES, min_size=1, max_size=4))
def test_no_answer_of_a_peer_raises_anything_or_keeps_us_busy_for_ever(answers: list[bytes]) -> None:
    async def main() -> None:
        network = Network()
        desk, odd = Desk(network), FakeHost(network, ALICE.peer_id, "/ip4/10.8.0.1/tcp/1")
        asked = 0

        async def lie(peer: PeerId, body: bytes) -> bytes:
            nonlocal asked
            await trio.lowlevel.checkpoint()
            asked += 1
            return answers[asked % len(answers)]

        odd.serve(MEMBERS_PROTOCOL, lie, limit_bytes=MAX_EXCHANGE_BYTES)
        await desk.host.dial(odd.addrs()[0])
        await desk.members.exchanges.try_exchange(ALICE.peer_id)
        assert asked <= 13
        assert desk.known().keys() <= {ME.peer_id, BOB.peer_id}

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_peer_that_wants_more_each_time_gets_one_small_exchange_after_another_no_more(
    autojump_clock: MockClock,
) -> None:
    """Whoever always claims to lack all must not keep us at the shortest pause."""
    network = Network()
    desk, odd = Desk(network), FakeHost(network, ALICE.peer_id, "/ip4/10.8.0.1/tcp/1")
    asked = []

    async def forget(peer: PeerId, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        asked.append(trio.current_time())
        listing = Listing(b"", b"\xff" * 129, ())
        return encode_exchange(Exchange(encode_reply(Reply((listing,), (), ()))))

    odd.serve(MEMBERS_PROTOCOL, forget, limit_bytes=MAX_EXCHANGE_BYTES)
    desk.hear(signed(ALICE))
    async with running(desk):
        await desk.host.dial(odd.addrs()[0])
        await trio.sleep(600)
        assert len(asked) < 60


# -- clocks ----------------------------------------------------------------------------


def desks_apart(seconds: float) -> tuple[Desk, Desk]:
    """Two on one network; the second one's wall clock is ahead by that much."""
    network = Network()
    ahead = Wall(runs=False)
    ahead.step_ns = round(seconds * 1e9)
    return Desk(network), Desk(network, ALICE, wall=ahead)


@pytest.mark.parametrize("seconds", [0.0, 3600.0, -7.5])
async def test_one_exchange_tells_both_how_far_their_clocks_are_apart(seconds: float) -> None:
    here, there = desks_apart(seconds)
    await here.host.dial(there.host.addrs()[0])
    assert here.members.clock_offsets() == there.members.clock_offsets() == {}
    await here.members.exchanges.exchange_with(ALICE.peer_id)
    assert here.members.clock_offsets() == {ALICE.peer_id: seconds}
    assert there.members.clock_offsets() == {ME.peer_id: -seconds}


async def test_the_time_an_answer_takes_counts_half(autojump_clock: MockClock) -> None:
    network = Network()
    desk, slow = Desk(network, wall=Wall()), FakeHost(network, ALICE.peer_id, "/ip4/10.8.0.1/tcp/1")

    async def answer(peer: PeerId, body: bytes) -> bytes:
        now_ns = START_NS + round(trio.current_time() * 1e9)
        await trio.sleep(4)
        return encode_exchange(Exchange(now_ns=now_ns))

    started = trio.current_time()
    slow.serve(MEMBERS_PROTOCOL, answer, limit_bytes=MAX_EXCHANGE_BYTES)
    await desk.host.dial(slow.addrs()[0])
    with pytest.raises(InvalidMessage):  # an answer to ranges without ranges
        await desk.members.exchanges.exchange_with(ALICE.peer_id)
    offset = desk.members.clock_offsets()[ALICE.peer_id] - started
    assert offset == pytest.approx(-2.0, abs=0.1)


async def test_a_clock_is_forgotten_with_its_link_and_a_stranger_s_is_not_kept() -> None:
    here, there = desks_apart(100)
    await here.host.dial(there.host.addrs()[0])
    await here.members.exchanges.exchange_with(ALICE.peer_id)
    here.network.cut(ME.peer_id, ALICE.peer_id)
    assert here.members.clock_offsets() == there.members.clock_offsets() == {}
    await here.members.exchanges.answer(BOB.peer_id, encode_exchange(Exchange(now_ns=START_NS + 10**12)))
    assert here.members.clock_offsets() == {}


async def test_a_peer_of_an_older_version_has_no_clock() -> None:
    here, there = desks_apart(100)
    await here.host.dial(there.host.addrs()[0])
    await here.members.exchanges.answer(ALICE.peer_id, encode_exchange(Exchange(want=(ALICE.peer_id_bytes,))))
    assert here.members.clock_offsets() == {}


@pytest.mark.parametrize("now_ns", [2**63 - 1, -(2**63), -1, 1])
async def test_no_peer_can_tell_a_time_further_off_than_a_year(now_ns: int) -> None:
    here, there = desks_apart(0)
    await here.host.dial(there.host.addrs()[0])
    await here.members.exchanges.answer(ALICE.peer_id, encode_exchange(Exchange(now_ns=now_ns)))
    assert abs(here.members.clock_offsets()[ALICE.peer_id]) == MAX_OFFSET_SECONDS


async def test_a_clock_that_was_set_right_is_seen_when_doubtful_ones_are_checked(autojump_clock: MockClock) -> None:
    here, there = desks_apart(3600)
    await here.host.dial(there.host.addrs()[0])
    await here.members.exchanges.exchange_with(ALICE.peer_id)
    there.wall.step_ns = 0
    before = len(here.network.requests)
    await here.members.exchanges.check_clocks(suspicious_seconds=7200, patience_seconds=2)
    assert len(here.network.requests) == before, "nobody was in doubt"
    await here.members.exchanges.check_clocks(suspicious_seconds=60, patience_seconds=2)
    assert here.members.clock_offsets() == {ALICE.peer_id: 0.0}


async def test_who_does_not_answer_holds_up_no_check_of_clocks(autojump_clock: MockClock) -> None:
    here, there = desks_apart(3600)
    await here.host.dial(there.host.addrs()[0])
    await here.members.exchanges.exchange_with(ALICE.peer_id)

    async def hang(peer: PeerId, body: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    there.host.serve(MEMBERS_PROTOCOL, hang, limit_bytes=MAX_EXCHANGE_BYTES)
    started = trio.current_time()
    await here.members.exchanges.check_clocks(suspicious_seconds=60, patience_seconds=2)
    assert trio.current_time() - started == pytest.approx(2)
    assert here.members.clock_offsets() == {ALICE.peer_id: 3600.0}


# -- fleets ----------------------------------------------------------------------------


def known(each: Running) -> dict[PeerId, int]:
    return {peer: member.record.incarnation for peer, member in each.members.all().items()}


def states(each: Running) -> set[str]:
    return {member.state for member in each.members.all().values()}


async def grown(fleet: Fleet, count: int) -> Running:
    """`count` nodes that all know each other, joined through the one returned."""
    first = fleet.add(role="bootstrap")
    others = [fleet.add(bootstrap=[first.addr]) for _ in range(count - 1)]
    fleet.start(first, *others)
    await until(lambda: all(len(known(each)) == count for each in fleet.nodes), seconds=60)
    return first


async def test_all_know_all_through_one_bootstrap(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = await grown(fleet, 12)
        await until(lambda: all(known(each) == known(first) for each in fleet.nodes), seconds=60)
        assert all(states(each) == {"alive"} for each in fleet.nodes)


async def test_a_killed_member_is_dead_for_all_and_back_for_all(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = await grown(fleet, 8)
        victim = fleet.nodes[-1]
        rest = fleet.nodes[:-1]
        fleet.stop(victim)
        await until(lambda: all(each.members.all()[victim.peer_id].state == "dead" for each in rest), seconds=30)
        wall = Wall()
        wall.step_ns = -3600 * 10**9
        again = fleet.restart(victim, bootstrap=[first.addr], wall=wall)
        fleet.start(again)
        await until(lambda: all(states(each) == {"alive"} for each in (*rest, again)), seconds=30)


async def test_a_record_that_gossip_lost_is_made_good_by_an_exchange(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await trio.sleep(300)
        a.members.judge(gossiped(signed(ALICE, a.wall() // 10**6, addrs=())))
        assert ALICE.peer_id not in known(b)
        await until(lambda: known(a) == known(b), seconds=90)


async def test_idle_nodes_compare_less_and_less_often(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, _):
        network = a.host.network
        await trio.sleep(600)
        before = len(network.requests)
        await trio.sleep(600)
        exchanges = [each for each in network.requests[before:] if each.protocol == MEMBERS_PROTOCOL]
        assert 2 * 600 / 75 - 2 <= len(exchanges) <= 2 * 600 / 45 + 2
        assert all(each.sent < 64 and each.got < 64 for each in exchanges)


async def test_peers_that_answer_nonsense_or_nothing_end_nothing(autojump_clock: MockClock) -> None:
    async def nonsense(peer: PeerId, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"\xff\xff"

    async with open_fleet() as fleet:
        odd, mute = (
            FakeHost(fleet.network, each.peer_id, f"/ip4/10.8.0.{n}/tcp/1") for n, each in enumerate((ALICE, BOB))
        )
        odd.serve(MEMBERS_PROTOCOL, nonsense, limit_bytes=MAX_EXCHANGE_BYTES)
        node = fleet.add(bootstrap=[odd.addrs()[0], mute.addrs()[0]])
        fleet.start(node)
        await trio.sleep(300)
        assert node.members.refused["protobuf"] == 3
        assert node.host.links().keys() == {ALICE.peer_id, BOB.peer_id}
        assert [peer["name"] for peer in node.node.peers()] == ["node-001", None, None]


# -- other roads -----------------------------------------------------------------------


async def test_a_roll_taken_in_by_another_road_is_known_gossiped_on_and_says_who_is_in_it() -> None:
    here, there = Desk(identity=ALICE), Desk(identity=BOB)
    there.hear(signed(CAROL), signed(ghost(1)), accusations=(accused(CAROL, ghost(1)),))
    (part,) = there.members.roll(lambda peer: False)
    async with running(here):
        assert await here.members.take_news(part, "nats") == {BOB.peer_id, CAROL.peer_id, ghost(1).peer_id}
        assert here.state(ghost(1)) is MemberState.SUSPECT
        member = here.members.get(CAROL.peer_id)
        assert member is not None
        assert member.source == "nats"
        await until(lambda: set(part.records) <= set(here.records_published()))
        assert here.accusations_published() == list(part.accusations)
        assert await here.members.take_news(part, "nats") >= {BOB.peer_id, CAROL.peer_id}, "known just so"


async def test_of_a_roll_those_are_not_told_of_whom_we_know_better_nor_we_ourselves() -> None:
    desk = Desk()
    desk.hear(signed(ALICE, NOW_MS + 5), signed(CAROL, NOW_MS, left=True))
    news = EncodedNews((signed(ALICE), signed(CAROL, NOW_MS, left=True), signed(BOB), desk.members.own.signed))
    assert await desk.members.take_news(news) == {BOB.peer_id}


async def test_what_is_forged_in_a_roll_costs_only_itself() -> None:
    desk = Desk()
    news = EncodedNews((b"nonsense", signed(ALICE, by=BOB), signed(CAROL)), (accused(CAROL, BOB, by=ALICE), b""))
    assert await desk.members.take_news(news) == {CAROL.peer_id}
    assert set(desk.known()) == {ME.peer_id, CAROL.peer_id}


async def test_a_roll_comes_in_parts_that_fit_and_leaves_out_who_is_excluded() -> None:
    desk = Desk()
    crowd = [ghost(number) for number in range(60)]
    for each in crowd:
        desk.hear(signed(each, capabilities=BIG))
    out = {each.peer_id for each in crowd[:20]}
    parts = desk.members.roll(out.__contains__)
    assert len(parts) > 1
    assert all(len(encode_news(part)) <= ROLL_BYTES for part in parts)
    other = Desk(identity=ALICE)
    for part in parts:
        await other.members.take_news(part)
    assert set(other.known()) == {ME.peer_id, ALICE.peer_id, *(each.peer_id for each in crowd[20:])}


async def test_a_helper_answers_for_one_beyond_a_bridge_without_probing_it() -> None:
    network = Network()
    asker, helper = Desk(network), Desk(network, ALICE)
    helper.meet(asker)
    helper.hear(signed(CAROL), signed(BOB, role="bridge", beyond=BeyondFilter.make([CAROL.peer_id])))
    await asker.host.dial(helper.host.addrs()[0])
    async with running(helper):
        await trio.testing.wait_all_tasks_blocked()
        said = await asker.host.request(ALICE.peer_id, PROBE_PROTOCOL, CAROL.peer_id_bytes, limit_bytes=8)
    assert said == b"\x01"
    assert network.probes == []


async def test_an_address_in_the_record_of_one_beyond_a_bridge_is_not_its_address_here() -> None:
    desk = Desk()
    desk.hear(signed(CAROL, addrs=("/ip4/10.4.4.4/tcp/1",)))
    assert desk.members.living_at("/ip4/10.4.4.4/tcp/1") == CAROL.peer_id
    desk.hear(signed(BOB, role="bridge", beyond=BeyondFilter.make([CAROL.peer_id])))
    assert desk.members.living_at("/ip4/10.4.4.4/tcp/1") is None
