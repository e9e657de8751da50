"""What is stored: committed before it is seen, in order, within its bounds, and there again after a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pnode.core.message import SEQNO_BYTES, SignedMessage, Topic
from p2pnode.core.metadata import Metadata
from p2pnode.core.ordering import HOLD_SECONDS
from p2pnode.core.peerid import PeerId
from p2pnode.errors import EnvironmentFault, StorageFull, TooBusy
from p2pnode.identity import Identity
from p2pnode.node import archive as archive_module
from p2pnode.node.archive import RETRY_SECONDS, Archive
from p2pnode.node.storing import SHIPPED, Durability, Retention
from p2pnode.ports import Add, Entry, Remember
from p2pnode.wire.payload import encode_envelope
from p2pnode.wire.pubsub import seal_message
from tests.node.fakes import START_NS, Wall, until
from tests.node.stores import MemoryStore
from tests.properties import some

OWN, OTHER, THIRD = (Identity(letter * 32) for letter in (b"o", b"x", b"y"))
TOPIC = "hmmm.thread"
SECOND = 10**9
PLENTY = Retention(1000, 1 << 20, 3600.0)


def sealed(
    number: int,
    *,
    origin: Identity = OTHER,
    topic: str = TOPIC,
    prev: int = 0,
    published_at: int | None = None,
    expires_at: int = 0,
    size: int = 0,
) -> SignedMessage:
    """A message numbered, and by default dated, `START_NS + number`."""
    at = START_NS + number
    metadata = Metadata(
        published_at_ns=at if published_at is None else published_at,
        expires_at_ns=expires_at,
        prev=START_NS + prev if prev else 0,
    )
    data = encode_envelope(bytes(size), "application/octet-stream", metadata)
    return seal_message(origin=origin.peer_id_bytes, seqno=at, topic=Topic(topic), data=data, sign=origin.sign)


class Site:
    """An archive and what it said."""

    def __init__(self, store: MemoryStore, retention: Retention, durability: Durability, wall: Wall) -> None:
        self.store = store
        self.gaps: list[tuple[str, PeerId]] = []
        self.stored: list[int] = []
        self.archive = Archive(
            store,
            retention,
            OWN.peer_id_bytes,
            durability=durability,
            wall_ns=wall,
            gap=lambda topic, origin: self.gaps.append((topic, origin)),
        )
        self.archive.on_stored.append(lambda entries: self.stored.extend(map(number_of, entries)))

    def fault_kind(self) -> type[EnvironmentFault] | None:
        return None if self.archive.fault is None else type(self.archive.fault)

    async def numbers(self, *topics: str, after: int = 0, limit: int = 1000) -> list[int]:
        return [number_of(entry) for entry, _ in await self.archive.page(topics or (TOPIC,), after, limit)]


def number_of(entry: Entry) -> int:
    return int.from_bytes(entry.id[-SEQNO_BYTES:], "big") - START_NS


@asynccontextmanager
async def opened(
    store: MemoryStore | None = None,
    retention: Retention = PLENTY,
    durability: Durability = SHIPPED,
    wall: Wall | None = None,
) -> AsyncIterator[Site]:
    site = Site(store or MemoryStore(), retention, durability, wall or Wall())
    await site.archive.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.archive.run)
        yield site
        nursery.cancel_scope.cancel()
    await site.archive.close()


async def until_idle(site: Site) -> None:
    await until(lambda: not site.archive.queued)


async def publish(site: Site, number: int, remember: Remember | None = None) -> None:
    await site.archive.begin(sealed(number, origin=OWN), remember).wait()


# -- visible once committed -------------------------------------------------------------


async def test_a_message_is_known_at_once_and_readable_once_it_is_committed(autojump_clock: MockClock) -> None:
    async with opened() as site:
        site.store.commit_seconds = 1.0
        message = sealed(1)
        assert site.archive.take(message, carrier="gossip") is None
        assert message.id in site.archive
        assert site.archive.take(message, carrier="sync") == "held"
        assert await site.numbers() == []
        await site.archive.wait_beyond([TOPIC], 0)
        assert trio.current_time() >= 1.0
        ((entry, read),) = await site.archive.page([TOPIC], 0, 10)
        assert (read, entry.carrier, entry.late) == (message, "gossip", False)
        assert site.stored == [1]


async def test_what_comes_during_a_commit_shares_the_next_one(autojump_clock: MockClock) -> None:
    async with opened() as site:
        site.store.commit_seconds = 0.01
        async with trio.open_nursery() as nursery:
            for number in range(1, 101):
                nursery.start_soon(publish, site, number)
        assert len(site.store.writes) <= 3
        assert sorted(await site.numbers()) == list(range(1, 101))


async def test_own_messages_are_written_for_a_power_cut_and_received_ones_not(autojump_clock: MockClock) -> None:
    async with opened() as site:
        await publish(site, 1)
        site.archive.take(sealed(2), carrier="gossip")
        await site.archive.wait_beyond([TOPIC], 1)
        assert [full for _, full in site.store.writes] == [True, False]
        assert [change.outbox for changes, _ in site.store.writes for change in changes if isinstance(change, Add)] == [
            True,
            False,
        ]
    async with opened(durability=Durability(own=False, received=True)) as site:
        await publish(site, 1)
        site.archive.take(sealed(2), carrier="gossip")
        await site.archive.wait_beyond([TOPIC], 1)
        assert [full for _, full in site.store.writes] == [False, True]


async def test_readers_of_several_topics_get_them_in_order_of_arrival(autojump_clock: MockClock) -> None:
    async with opened() as site:
        for number, topic in enumerate(("a", "b", "c", "a", "b"), 1):
            site.archive.take(sealed(number, topic=topic), carrier="gossip")
        await site.archive.wait_beyond(["b"], 4)
        assert await site.numbers("a", "b") == [1, 2, 4, 5]
        assert await site.numbers("a", "b", after=2, limit=1) == [4]
        assert await site.numbers("nothing") == []


# -- order ------------------------------------------------------------------------------


async def test_a_message_waits_for_the_one_before_it_and_the_gap_is_told(autojump_clock: MockClock) -> None:
    async with opened() as site:
        site.archive.take(sealed(1), carrier="gossip")
        site.archive.take(sealed(3, prev=2), carrier="gossip")
        await trio.sleep(HOLD_SECONDS / 2)
        assert await site.numbers() == [1]
        assert site.stored == [1, 3], "stored all the same"
        assert site.gaps == [(TOPIC, OTHER.peer_id)]
        site.archive.take(sealed(2, prev=1), carrier="sync")
        await trio.sleep(0.1)
        assert await site.numbers() == [1, 2, 3]
        assert not any(entry.late for entry, _ in await site.archive.page([TOPIC], 0, 10))


async def test_a_message_waits_two_seconds_and_the_one_that_comes_later_is_marked(autojump_clock: MockClock) -> None:
    async with opened() as site:
        site.archive.take(sealed(1), carrier="gossip")
        site.archive.take(sealed(3, prev=2), carrier="gossip")
        site.archive.take(sealed(7, origin=THIRD), carrier="gossip")
        await trio.sleep(HOLD_SECONDS + 0.1)
        assert await site.numbers() == [1, 7, 3]
        site.archive.take(sealed(2, prev=1), carrier="sync")
        await trio.sleep(0.1)
        assert [(number_of(entry), entry.late) for entry, _ in await site.archive.page([TOPIC], 0, 10)] == [
            (1, False),
            (7, False),
            (3, False),
            (2, True),
        ]


async def test_what_was_held_back_at_the_end_is_released_after_a_restart(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with opened(store) as site:
        site.archive.take(sealed(3, prev=2), carrier="gossip")
        await trio.sleep(0.1)
        assert await site.numbers() == []
    async with opened(store) as site:
        await trio.sleep(HOLD_SECONDS + 0.1)
        assert await site.numbers() == [3]


# -- failures ---------------------------------------------------------------------------


async def test_a_full_disk_is_told_to_who_publishes_and_nothing_stays_behind(autojump_clock: MockClock) -> None:
    async with opened() as site:
        await publish(site, 1)
        site.store.failing = StorageFull("no space", hint="make some")
        with pytest.raises(StorageFull):
            await publish(site, 2)
        received = sealed(3)
        site.archive.take(received, carrier="gossip")
        await trio.sleep(5 * RETRY_SECONDS)
        assert received.id not in site.archive, "so synchronisation brings it again"
        assert site.fault_kind() is StorageFull
        assert site.archive.refused == {"storage": 1}
        site.store.failing = None
        await publish(site, 4)
        assert site.fault_kind() is None
        assert await site.numbers() == [1, 4]


async def test_on_a_full_disk_what_is_too_old_goes_all_the_same(autojump_clock: MockClock) -> None:
    wall = Wall()
    async with opened(retention=Retention(100, 1 << 20, 60.0), wall=wall) as site:
        await publish(site, 1)
        site.store.full = True
        wall.step_ns += 120 * SECOND
        site.archive.sweep()
        with pytest.raises(StorageFull):
            await publish(site, 2)
        assert site.store.entries == {}


async def test_a_release_that_could_not_be_written_is_written_later(autojump_clock: MockClock) -> None:
    async with opened() as site:
        site.archive.take(sealed(3, prev=2), carrier="gossip")
        await trio.sleep(0.1)
        site.store.failing = EnvironmentFault("away")
        await trio.sleep(HOLD_SECONDS + 1)
        assert await site.numbers() == []
        site.store.failing = None
        await site.archive.wait_beyond([TOPIC], 0)
        assert await site.numbers() == [3]


async def test_a_release_that_is_written_later_keeps_its_place_before_newer_ones(autojump_clock: MockClock) -> None:
    async with opened() as site:
        site.archive.take(sealed(3, prev=2), carrier="gossip")
        await trio.sleep(HOLD_SECONDS - 0.5)
        site.store.commit_seconds = 1.0
        site.archive.take(sealed(4, origin=THIRD), carrier="gossip")
        await trio.sleep(1.2)  # while that is written, 3 gets its arrival
        site.store.failing = EnvironmentFault("away")
        site.archive.take(sealed(5, origin=THIRD), carrier="gossip")
        await trio.sleep(1.0)
        assert site.fault_kind() is EnvironmentFault
        site.store.failing = None
        await until_idle(site)
        arrivals = [entry.arrival for entry, _ in await site.archive.page([TOPIC], 0, 10)]
        assert arrivals == sorted(arrivals)
        assert await site.numbers() == [4, 3, 5]


async def test_own_messages_that_follow_one_that_was_not_stored_are_not_stored_either(
    autojump_clock: MockClock,
) -> None:
    async with opened() as site:
        await publish(site, 1)
        site.store.failing = StorageFull("no space")
        first = site.archive.begin(sealed(2, origin=OWN), None)
        await trio.sleep(0.0005)  # in the middle of the write
        second = site.archive.begin(sealed(3, origin=OWN, prev=2), None)
        assert site.archive.previous(TOPIC) == START_NS + 3
        for storing in (first, second):
            with pytest.raises(StorageFull):
                await storing.wait()
        assert site.archive.previous(TOPIC) == START_NS + 1
        assert site.archive.queued == 0
        site.store.failing = None
        await publish(site, 4)
        assert await site.numbers() == [1, 4]


async def test_a_disk_that_does_not_keep_up_refuses_instead_of_filling_memory(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "MAX_QUEUED_BYTES", 4000)
    async with opened() as site:
        site.store.commit_seconds = 10.0
        assert site.archive.take(sealed(1, size=3000), carrier="gossip") is None
        assert site.archive.take(sealed(2, size=3000), carrier="gossip") == "queue"
        assert site.archive.refused == {"queue": 1}
        with pytest.raises(TooBusy) as refusal:
            site.archive.begin(sealed(3, origin=OWN, size=3000), None)
        assert refusal.value.reason == "disk"
        await site.archive.wait_beyond([TOPIC], 0)
        assert site.archive.take(sealed(2, size=3000), carrier="sync") is None


# -- restart ----------------------------------------------------------------------------


async def test_everything_is_there_again_after_a_restart_and_arrivals_go_on(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    remember = Remember("key", b"digest", sealed(1, origin=OWN).id, START_NS)
    async with opened(store) as site:
        await publish(site, 1, remember)
        site.archive.take(sealed(2, topic="b"), carrier="gossip")
        await site.archive.wait_beyond(["b"], 0)
        last = site.archive.last_arrival
    async with opened(store) as site:
        assert await site.numbers(TOPIC, "b") == [1, 2]
        assert site.archive.previous(TOPIC) == START_NS + 1
        assert site.archive.remembered["key"] == remember
        assert sealed(2, topic="b").id in site.archive
        assert site.archive.last_arrival == last
        await publish(site, 3)
        assert site.archive.last_arrival == last + 1
        assert site.archive.items(TOPIC).count(b"", b"\xff" * 129) == 2


async def test_an_arrival_is_never_used_twice_even_when_all_is_gone(autojump_clock: MockClock) -> None:
    store, wall = MemoryStore(), Wall()
    async with opened(store, Retention(10, 1 << 20, 60.0), wall=wall) as site:
        await publish(site, 1)
        wall.step_ns += 120 * SECOND
        site.archive.sweep()
        await trio.sleep(0.1)
        assert await site.numbers() == []
    async with opened(store, wall=wall) as site:
        assert site.archive.last_arrival == 1


# -- retention --------------------------------------------------------------------------


async def test_the_oldest_by_signed_time_go_first_and_the_horizon_follows(autojump_clock: MockClock) -> None:
    async with opened(retention=Retention(3, 1 << 20, 3600.0)) as site:
        for number in (5, 1, 4, 2, 3):
            site.archive.take(sealed(number), carrier="sync")
            await trio.sleep(0.1)
        assert sorted(await site.numbers()) == [3, 4, 5]
        assert site.archive.horizon(TOPIC) == START_NS + 3
        assert site.archive.dropped == {"count": 2}
        assert site.archive.take(sealed(1), carrier="sync") == "horizon", "below the horizon nothing comes back"
        assert site.archive.refused == {"horizon": 1}
        assert len(site.store.entries) == 3
        assert site.store.horizons == {TOPIC: START_NS + 3}


async def test_a_topics_bytes_are_bounded_and_its_last_message_stays(autojump_clock: MockClock) -> None:
    async with opened(retention=Retention(100, 5000, 3600.0)) as site:
        for number in (1, 2, 3):
            site.archive.take(sealed(number, size=2000), carrier="gossip")
        site.archive.take(sealed(4, topic="big", size=9000), carrier="gossip")
        await trio.sleep(0.1)
        assert await site.numbers() == [2, 3]
        assert await site.numbers("big") == [4]


async def test_old_and_expired_messages_are_dropped_and_not_taken(autojump_clock: MockClock) -> None:
    wall = Wall()
    async with opened(retention=Retention(100, 1 << 20, 60.0), wall=wall) as site:
        site.archive.take(sealed(1), carrier="gossip")
        site.archive.take(sealed(2, expires_at=START_NS + 10 * SECOND), carrier="gossip")
        site.archive.take(sealed(3, published_at=0), carrier="gossip")
        await trio.sleep(0.1)
        wall.step_ns += 20 * SECOND
        site.archive.sweep()
        assert await site.numbers() == [1, 3]
        assert site.archive.take(sealed(4, expires_at=START_NS + 10 * SECOND), carrier="gossip") == "expired"
        wall.step_ns += 60 * SECOND
        site.archive.sweep()
        await trio.sleep(0.1)
        assert await site.numbers() == []
        assert site.archive.dropped == {"expired": 1, "age": 2}
        assert site.archive.take(sealed(5), carrier="sync") == "horizon"
        assert site.archive.refused == {"expired": 1, "horizon": 1}
        assert site.store.entries == {}


async def test_a_reader_learns_how_much_it_missed_of_what_was_dropped_for_room(autojump_clock: MockClock) -> None:
    wall = Wall()
    async with opened(retention=Retention(3, 1 << 20, 60.0), wall=wall) as site:
        for number in range(1, 8):
            site.archive.take(sealed(number), carrier="gossip")
            await trio.sleep(0.01)
        shelf = site.archive.shelf(TOPIC)
        assert [shelf.lost_after(arrival) for arrival in (0, 2, 4, 7)] == [4, 2, 0, 0]
        wall.step_ns += 120 * SECOND
        site.archive.sweep()
        assert shelf.lost_after(4) == 0, "what was too old is no loss"


@some
@given(seed=st.integers(0, 2**32), count=st.integers(1, 5), size=st.integers(200, 3000))
def test_bounds_hold_and_the_store_holds_what_the_archive_says(seed: int, count: int, size: int) -> None:
    async def run() -> None:
        rng, store = Random(seed), MemoryStore()
        retention = Retention(count, size, 3600.0)
        async with opened(store, retention) as site:
            for _ in range(40):
                number, topic = rng.randrange(1, 60), rng.choice(["a", "b"])
                own = rng.random() < 0.2
                message = sealed(number, origin=OWN if own else OTHER, topic=topic, size=rng.randrange(800))
                if message.id not in site.archive:
                    site.archive.take(message, carrier="gossip")
                if rng.random() < 0.3:
                    await trio.sleep(0.01)
            await trio.sleep(0.1)
            for topic in ("a", "b"):
                shelf = site.archive.shelf(topic)
                assert len(shelf) <= count
                assert shelf.bytes <= size or len(shelf) == 1
                entries = [entry for entry in store.entries.values() if entry.topic == topic]
                assert len(entries) == len(shelf)
                assert sum(entry.size for entry in entries) == shelf.bytes
                read = await site.archive.page([topic], 0, 1000)
                assert [entry for entry, _ in read] == sorted(entries, key=lambda entry: entry.arrival)
                assert all(replace(entry) == site.archive.entry(entry.id) for entry in entries)

    trio.run(run, clock=MockClock(autojump_threshold=0))
