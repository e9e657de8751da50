"""The outbox and the notices at work on a fake network in virtual time: stored, told, announced again, written off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.message import SEQNO_BYTES, Accept, MessageId, SignedMessage, Verdict
from p2pnode.core.outbox import ANNOUNCE_SECONDS
from p2pnode.core.peerid import PeerId, peer_id_bytes
from p2pnode.errors import EnvironmentFault
from p2pnode.identity import Identity
from p2pnode.node import held
from p2pnode.node.held import BATCH_SECONDS, HeldNotices
from p2pnode.node.outbox import RETRY_SECONDS, Announcer
from p2pnode.ports import Change, Entry, OutboxDone
from p2pnode.wire.members import MEMBERS_TOPIC
from p2pnode.wire.pubsub import seal_message
from tests.node.fakes import FakeGossip, FakeHost, Network, Wall, until

TOPIC = "hmmm.t"
AGED_NS = 3600 * 10**9


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@dataclass
class Disk:
    """What survives a restart: signed bytes, and the outbox as it was written."""

    raws: dict[MessageId, bytes] = field(default_factory=dict)
    entries: dict[MessageId, Entry] = field(default_factory=dict)
    outbox: dict[MessageId, None] = field(default_factory=dict)
    writes: list[OutboxDone] = field(default_factory=list)
    broken: bool = False

    async def bytes_of(self, ids: Collection[MessageId]) -> Mapping[MessageId, bytes]:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise EnvironmentFault("cannot read: I/O error")
        return {each: self.raws[each] for each in ids if each in self.raws}

    async def write(self, changes: Sequence[Change]) -> None:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise EnvironmentFault("cannot write: No space left on device")
        for change in changes:
            assert isinstance(change, OutboxDone)
            self.writes.append(change)
            for each in change.ids:
                self.outbox.pop(each, None)


class Peer:
    """A node as far as the outbox goes: `ports.GossipEvents` on a disk that takes a moment.

    Attributes:
        deaf: it takes no message; `mute`: it tells nobody what it holds.
        commit_seconds: from the arrival of a message to its commit.
    """

    def __init__(self, town: Town, number: int, disk: Disk | None = None, identity: Identity | None = None) -> None:
        self.identity = identity or Identity(bytes([number]) * 32)
        self.peer_id = self.identity.peer_id
        self.town = town
        self.disk = disk or Disk()
        self.host = FakeHost(town.network, self.peer_id, town.next_addr())
        self.gossip = FakeGossip(self.host, town.gossips, self)
        self.deaf = self.mute = False
        self.commit_seconds = 0.005
        self.told: list[tuple[PeerId, int]] = []
        self.scope = trio.CancelScope()
        self.notices = HeldNotices(
            self.gossip.send_held,
            is_told=lambda peer: not self.mute and peer in self.host.links() and peer in town.members,
            is_stored=self.disk.entries.__contains__,
        )
        self.announcer = Announcer(
            self.gossip,
            origin=self.identity.peer_id_bytes,
            is_keeper=town.members.__contains__,
            bytes_of=self.disk.bytes_of,
            write=self.disk.write,
            wall_ns=town.wall,
        )
        self.announcer.load([self.disk.entries[each] for each in self.disk.outbox])
        town.members.add(self.peer_id)

    async def run(self) -> None:
        await self.gossip.subscribe(TOPIC)
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.notices.run)
                nursery.start_soon(self.announcer.run)

    async def publish(self, number: int) -> MessageId:
        message = seal_message(
            origin=self.identity.peer_id_bytes, seqno=number, topic=TOPIC, data=b"data", sign=self.identity.sign
        )
        now = self.town.wall()
        entry = Entry(message.id, TOPIC, 1, now, 0, now, len(message.raw), bytes(16), carrier="local", own=True)
        self.disk.raws[message.id], self.disk.entries[message.id] = message.raw, entry
        self.disk.outbox[message.id] = None
        self.announcer.added(entry)
        await self.gossip.publish(message)
        return message.id

    # -- ports.GossipEvents

    def judge(self, message: SignedMessage, source: PeerId | None) -> Verdict:
        return Accept(relay=False)

    def deliver(self, message: SignedMessage, source: PeerId | None, *, via: str = "gossip", restored: bool) -> None:
        if self.deaf:
            self.gossip._seen.discard(message.id)
        else:
            self.town.nursery.start_soon(self._store, message)

    async def _store(self, message: SignedMessage) -> None:
        now = self.town.wall()
        await trio.sleep(self.commit_seconds)
        entry = Entry(message.id, message.topic, 1, now, 0, now, len(message.raw), bytes(16))
        self.disk.raws[message.id], self.disk.entries[message.id] = message.raw, entry
        self.notices.stored([entry])

    def holds(self, message_id: MessageId) -> bool:
        return message_id in self.disk.entries

    def connect(self, peer: PeerId, record: bytes | None, why: str) -> None:
        raise AssertionError("this network exchanges no peers")

    def held(self, peer: PeerId, seqnos: Sequence[bytes]) -> None:
        self.told += [(peer, int.from_bytes(seqno, "big")) for seqno in seqnos]
        self.announcer.held(peer, seqnos)

    def repeated(self, peer: PeerId, message_id: MessageId) -> None:
        self.notices.repeated(peer, message_id)

    def joined(self, peer: PeerId, topic: str) -> None:
        raise AssertionError("all are in the topic from the start")


class Town:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.network = Network()
        self.gossips: dict[PeerId, FakeGossip] = {}
        self.members: set[PeerId] = set()
        self.wall = Wall()
        self._places = count(1)

    def next_addr(self) -> str:
        return f"/ip4/10.0.0.{next(self._places)}/tcp/9000"

    async def start(self, *peers: Peer) -> None:
        for peer in peers:
            self.nursery.start_soon(peer.run)
        await trio.testing.wait_all_tasks_blocked()

    async def link(self, one: Peer, *others: Peer) -> None:
        for other in others:
            await one.host.dial(other.host.addrs()[0])


@asynccontextmanager
async def open_town() -> AsyncIterator[Town]:
    async with trio.open_nursery() as nursery:
        yield Town(nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_star(neighbours: int) -> AsyncIterator[tuple[Town, Peer, list[Peer]]]:
    """One linked with some others, all running."""
    async with open_town() as town:
        one, others = Peer(town, 1), [Peer(town, number) for number in range(2, 2 + neighbours)]
        await town.start(one, *others)
        await town.link(one, *others)
        yield town, one, others


# -- the way it should go ----------------------------------------------------------------------------


async def test_what_two_neighbours_hold_is_written_off_and_never_announced(clock: MockClock) -> None:
    async with open_star(3) as (_, one, _others):
        since = trio.current_time()
        for number in range(1, 101):
            await one.publish(number)
        assert one.announcer.metrics()["p2pnode_outbox_messages"] == 100
        await until(lambda: not one.disk.outbox)
        assert trio.current_time() - since < ANNOUNCE_SECONDS
        assert len(one.disk.writes) < 5  # written together
        await trio.sleep(70)
        assert one.gossip.announced == []
        assert one.announcer.metrics() == {
            "p2pnode_outbox_messages": 0,
            "p2pnode_outbox_oldest_seconds": 0.0,
            "p2pnode_outbox_announced_total": 0,
            "p2pnode_outbox_safe_total": 100,
        }


async def test_notices_come_in_one_batch_within_a_tenth_of_a_second_of_the_commit(clock: MockClock) -> None:
    async with open_star(1) as (_, one, [other]):
        since = trio.current_time()
        for number in range(1, 51):
            await one.publish(number)
        await until(lambda: len(one.told) == 50)
        assert trio.current_time() - since <= other.commit_seconds + BATCH_SECONDS + 0.05
        assert sorted(one.told) == [(other.peer_id, number) for number in range(1, 51)]
        assert other.notices.sent == 50
        assert other.told == []


# -- what goes wrong ---------------------------------------------------------------------------------


async def test_a_neighbour_that_missed_it_gets_it_again_and_says_so(clock: MockClock) -> None:
    async with open_star(2) as (_, one, [good, deaf]):
        deaf.deaf = True
        mine = await one.publish(1)
        await trio.sleep(1)
        assert list(one.announcer.unsafe()) == [mine]
        deaf.deaf = False
        await until(lambda: not one.disk.outbox)
        assert one.gossip.announced == [(mine, (deaf.peer_id,))]
        assert one.told == [(good.peer_id, 1), (deaf.peer_id, 1)]


async def test_a_lost_notice_is_said_again_when_the_message_comes_again(clock: MockClock) -> None:
    async with open_star(1) as (_, one, [other]):
        other.mute = True
        await one.publish(1)
        await until(lambda: bool(other.disk.entries))
        await trio.sleep(1)
        other.mute = False
        assert one.told == []
        await until(lambda: not one.disk.outbox)
        assert one.told == [(other.peer_id, 1)]
        assert len(one.gossip.announced) == 1


async def test_peers_that_are_no_members_make_nothing_safe_and_are_told_nothing(clock: MockClock) -> None:
    async with open_star(2) as (town, one, others):
        town.members -= {other.peer_id for other in others}
        mine = await one.publish(1)
        for other in others:
            one.announcer.held(other.peer_id, [mine[-SEQNO_BYTES:]])
        await trio.sleep(30)
        assert one.gossip.announced == []
        assert list(one.announcer.unsafe()) == [mine]
        assert one.announcer.metrics()["p2pnode_outbox_oldest_seconds"] == pytest.approx(30)


async def test_alone_a_message_waits_and_who_comes_gets_it_at_once(clock: MockClock) -> None:
    async with open_town() as town:
        one, other = Peer(town, 1), Peer(town, 2)
        await town.start(one, other)
        await one.publish(1)
        await trio.sleep(20)
        await town.link(one, other)
        since = trio.current_time()
        await until(lambda: not one.disk.outbox)
        assert trio.current_time() - since < 1
        assert other.disk.entries.keys() == one.disk.entries.keys()


async def test_after_a_restart_what_was_not_safe_is_announced(clock: MockClock) -> None:
    async with open_town() as town:
        one, other = Peer(town, 1), Peer(town, 2)
        await town.start(one, other)
        ids = [await one.publish(number) for number in (1, 2, 3)]
        one.scope.cancel()
        town.network.hosts.pop(one.host.addr)
        again = Peer(town, 1, one.disk, one.identity)
        await town.start(again)
        await town.link(again, other)
        await until(lambda: not again.disk.outbox)
        assert [mid for mid, _ in again.gossip.announced] == ids
        assert set(other.disk.entries) == set(ids)


async def test_an_old_message_is_not_announced_and_ends_by_a_synchronisation(clock: MockClock) -> None:
    async with open_town() as town:
        one, other = Peer(town, 1), Peer(town, 2)
        await town.start(one, other)
        mine = await one.publish(1)
        await trio.sleep(61)
        await town.link(one, other)
        await trio.sleep(10)
        assert one.gossip.announced == []
        one.announcer.seen_at(other.peer_id, [mine, MessageId(b"another's")])
        await until(lambda: not one.disk.outbox)
        assert one.announcer.unsafe() == ()


async def test_a_holder_that_dies_before_the_second_one_spoke_counts_no_more(clock: MockClock) -> None:
    async with open_star(3) as (town, one, [first, second, third]):
        second.deaf = third.deaf = True
        mine = await one.publish(1)
        await until(lambda: bool(one.told))
        town.network.kill(first.peer_id)
        one.announcer.link_lost(first.peer_id)
        second.deaf = False
        await until(lambda: len(one.told) == 2)
        assert list(one.announcer.unsafe()) == [mine]
        third.deaf = False
        await until(lambda: not one.disk.outbox)


async def test_a_disk_that_fails_stops_nothing_and_is_written_when_it_works_again(clock: MockClock) -> None:
    async with open_star(2) as (_, one, others):
        for other in others:
            other.deaf = True
        await one.publish(1)
        one.disk.broken = True
        await trio.sleep(3)
        assert one.gossip.announced == []  # due, and not readable
        one.disk.broken = False
        for other in others:
            other.deaf = False
        await until(lambda: len(one.told) == 2)
        one.disk.broken = True
        await trio.sleep(RETRY_SECONDS / 2)
        assert one.announcer.metrics()["p2pnode_outbox_messages"] == 0
        one.disk.broken = False
        await until(lambda: not one.disk.outbox)


async def test_damaged_bytes_are_given_up(clock: MockClock) -> None:
    async with open_star(1) as (_, one, [other]):
        other.deaf = True
        mine = await one.publish(1)
        one.disk.raws[mine] = b"\xff"
        await until(lambda: not one.announcer.unsafe())
        assert one.gossip.announced == []


async def test_what_was_dropped_from_the_store_is_not_announced(clock: MockClock) -> None:
    async with open_star(1) as (_, one, [other]):
        other.deaf = True
        mine = await one.publish(1)
        one.announcer.dropped([mine])
        await trio.sleep(10)
        assert one.gossip.announced == []
        assert one.disk.writes == []


# -- notices -----------------------------------------------------------------------------------------


class Counter:
    """Notices as they were sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[PeerId, int]] = []
        self.stored: set[MessageId] = set()
        self.gone: set[PeerId] = set()
        self.notices = HeldNotices(
            lambda peer, seqnos: self.sent.append((peer, len(seqnos))),
            is_told=lambda peer: peer not in self.gone,
            is_stored=self.stored.__contains__,
        )

    def store(self, entry: Entry) -> None:
        self.stored.add(entry.id)
        self.notices.stored([entry])


OTHER = Identity(b"o" * 32).peer_id
FRESH = Entry(MessageId(peer_id_bytes(OTHER) + bytes(8)), TOPIC, 1, AGED_NS, 0, AGED_NS + 10**9, 100, bytes(16))


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (FRESH, True),
        (replace(FRESH, arrival=0), True),
        (replace(FRESH, received_at_ns=AGED_NS + 60 * 10**9), False),
        (replace(FRESH, published_at_ns=0), False),
        (replace(FRESH, own=True), False),
        (replace(FRESH, topic=MEMBERS_TOPIC), False),
    ],
    ids=["fresh", "held-back", "old", "undated", "own", "members"],
)
async def test_notice_is_given_of_what_is_fresh_and_anothers(entry: Entry, told: bool, clock: MockClock) -> None:
    counter = Counter()
    counter.store(entry)
    with trio.move_on_after(1):
        await counter.notices.run()
    assert counter.sent == ([(OTHER, 1)] if told else [])


async def test_who_left_before_the_batch_went_out_is_told_nothing(clock: MockClock) -> None:
    counter = Counter()
    counter.store(FRESH)
    counter.gone.add(OTHER)
    with trio.move_on_after(1):
        await counter.notices.run()
    assert (counter.sent, counter.notices.sent) == ([], 0)


async def test_a_repeat_of_what_is_not_committed_yet_is_told_of_when_it_is(clock: MockClock) -> None:
    counter = Counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counter.notices.run)
        counter.notices.repeated(OTHER, FRESH.id)
        await trio.sleep(1)
        assert counter.sent == []
        counter.store(FRESH)
        counter.notices.repeated(OTHER, FRESH.id)
        await trio.sleep(1)
        assert counter.sent == [(OTHER, 1)]
        nursery.cancel_scope.cancel()


async def test_notices_beyond_the_bound_are_dropped_and_counted(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "MAX_WAITING", 10)
    counter = Counter()
    for number in range(15):
        counter.store(replace(FRESH, id=MessageId(FRESH.id[:-8] + number.to_bytes(8, "big"))))
    with trio.move_on_after(1):
        await counter.notices.run()
    assert counter.sent == [(OTHER, 10)]
    assert counter.notices.dropped == 5
