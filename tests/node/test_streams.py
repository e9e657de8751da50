"""Durable event streams: what is not acknowledged comes again, one reader at a time, a bounded number in flight."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.message import format_message_id
from p2pnode.core.unacked import ACK_SECONDS, MAX_UNACKED
from p2pnode.errors import EnvironmentFault, InvalidRequest, NotFound, TooBusy
from p2pnode.node import deliveries as deliveries_module
from p2pnode.node.deliveries import Deliveries
from p2pnode.ports import Followed
from tests.node.stored import WALL_NS, MemoryArchive, MemoryStore, origin, signed


class Node:
    """Deliveries without a webhook, over an archive and a store that outlive them."""

    def __init__(self) -> None:
        self.archive = MemoryArchive()
        self.store = MemoryStore()
        self.stopping = trio.Event()
        self.wall_ns = WALL_NS
        self.deliveries = self.started()

    def started(self) -> Deliveries:
        made = Deliveries(
            self.archive,
            self.store.write,
            None,
            lambda peer: None,
            stopping=self.stopping,
            wall_ns=lambda: self.wall_ns,
            rng=Random(1),
        )
        made.load(self.store.subscriptions.values(), self.store.letters.values())
        return made

    def publish(self, *numbers: int, topic: str = "t") -> None:
        for number in numbers:
            self.archive.add(signed(1, number, topic=topic))

    @asynccontextmanager
    async def reading(self, name: str = "a", start: str = "now", topic: str = "t") -> AsyncIterator[Steps]:
        async with self.deliveries.subscribe(topic, name, start=start) as steps:
            yield Steps(steps)

    async def ack(self, number: int) -> int:
        pending = (await self.deliveries.acknowledge("a", message_id(number)))["pending"]
        assert isinstance(pending, int)
        return pending


class Steps:
    def __init__(self, steps: AsyncIterator[Followed]) -> None:
        self._steps = steps

    async def next(self) -> Followed:
        return await anext(self._steps)

    async def numbers(self, count: int) -> list[int]:
        return [(await self.next()).document["payload"]["number"] for _ in range(count)]

    async def nothing_for(self, seconds: float) -> bool:
        """Nothing comes for so long. The stream is of no use afterwards: a cancelled generator has ended."""
        with trio.move_on_after(seconds) as scope:
            await self.next()
        return scope.cancelled_caught


def message_id(number: int) -> str:
    return format_message_id(origin(1) + number.to_bytes(8, "big"))


@pytest.fixture
async def node(autojump_clock: MockClock) -> Node:
    return Node()


@pytest.mark.parametrize(("start", "first"), [("start", 1), ("now", 3), (message_id(1), 2)])
async def test_a_subscription_is_created_where_it_is_asked_to_begin(
    autojump_clock: MockClock, node: Node, start: str, first: int
) -> None:
    node.publish(1, 2)
    async with node.reading(start=start) as steps:
        node.publish(3)
        assert await steps.numbers(1) == [first]
    assert node.store.subscriptions["a"].topics == ("t",)


async def test_it_goes_on_behind_what_was_acknowledged_wherever_it_is_asked_to_begin(
    autojump_clock: MockClock, node: Node
) -> None:
    async with node.reading(start="start") as steps:
        node.publish(1, 2, 3, 4)
        assert await steps.numbers(4) == [1, 2, 3, 4]
        assert await node.ack(2) == 2
    async with node.reading(start="start") as steps:
        assert await steps.numbers(2) == [3, 4]
    await node.deliveries.flush()
    assert node.store.subscriptions["a"].cursor == 2
    node.deliveries = node.started()
    async with node.reading(start="now") as steps:
        assert await steps.numbers(2) == [3, 4]


async def test_what_is_not_acknowledged_in_time_comes_again_in_order(autojump_clock: MockClock, node: Node) -> None:
    async with node.reading() as steps:
        node.publish(1, 2)
        started = trio.current_time()
        assert await steps.numbers(2) == [1, 2]
        assert await steps.numbers(2) == [1, 2]
        assert trio.current_time() - started == pytest.approx(ACK_SECONDS)
        await node.ack(1)
        node.publish(3)
        assert await steps.numbers(2) == [3, 3]
        assert await steps.numbers(1) == [2]


async def test_at_most_256_are_in_flight(autojump_clock: MockClock, node: Node) -> None:
    async with node.reading() as steps:
        node.publish(*range(1, 400))
        assert await steps.numbers(MAX_UNACKED) == list(range(1, MAX_UNACKED + 1))
        (told,) = await node.deliveries.deliveries()
        assert (told["in_flight"], told["pending"], told["state"]) == (256, 399, "connected")
        async with trio.open_nursery() as nursery:

            async def ack_later() -> None:
                await trio.sleep(1)
                await node.ack(2)

            nursery.start_soon(ack_later)
            assert await steps.numbers(2) == [257, 258]
        assert await steps.nothing_for(ACK_SECONDS - 2)
        assert node.archive.largest_page <= 16


async def test_a_newer_stream_takes_over_and_the_older_is_told(autojump_clock: MockClock, node: Node) -> None:
    node.publish(1)
    async with node.reading(start="start") as older:
        assert await older.numbers(1) == [1]
        async with node.reading() as newer:
            assert (await older.next()).replaced
            with pytest.raises(StopAsyncIteration):
                await older.next()
            assert await newer.numbers(1) == [1]
            assert await node.ack(1) == 0
        assert (await node.deliveries.subscriptions())[0]["state"] == "idle"


async def test_an_acknowledgement_without_a_stream_counts(autojump_clock: MockClock, node: Node) -> None:
    async with node.reading():
        pass
    node.publish(1, 2, 3)
    assert await node.ack(2) == 1
    assert await node.ack(1) == 1, "an older one changes nothing"
    async with node.reading() as steps:
        assert await steps.numbers(1) == [3]


async def test_what_was_acknowledged_before_it_was_sent_is_not_sent(autojump_clock: MockClock, node: Node) -> None:
    async with node.reading() as steps:
        node.publish(1, 2, 3, 4)
        assert await steps.numbers(1) == [1]
        await node.ack(3)
        assert await steps.numbers(1) == [4]


async def test_one_message_can_be_given_up_and_tried_again(autojump_clock: MockClock, node: Node) -> None:
    async with node.reading() as steps:
        node.publish(1, 2, 3)
        assert await steps.numbers(3) == [1, 2, 3]
        await node.deliveries.nack("a", message_id(2), "no such council")
        assert await node.ack(1) == 1
        assert await node.ack(3) == 0
        (letter,) = node.deliveries.dead_letters("a", 10)
        assert (letter["id"], letter["error"], letter["attempts"]) == (message_id(2), "no such council", 1)
        assert len(node.store.letters) == 1
        assert await node.deliveries.retry_deliveries("a", message_id(2)) == 1
        assert node.deliveries.dead_letters("a", 10)[0]["retrying"]
        assert await steps.numbers(1) == [2]
        node.publish(4)
        assert await steps.numbers(1) == [4]
        await node.ack(3)
        assert len(node.deliveries.dead_letters("a", 10)) == 1, "3 was sent before it"
        await node.ack(4)
        assert node.deliveries.dead_letters("a", 10) == []
    await node.deliveries.flush()
    assert node.store.letters == {}


async def test_what_was_given_up_ahead_of_the_cursor_does_not_come_after_a_restart(
    autojump_clock: MockClock, node: Node
) -> None:
    async with node.reading() as steps:
        node.publish(1, 2, 3)
        await steps.numbers(2)
        await node.deliveries.nack("a", message_id(2), "")
    node.deliveries = node.started()
    async with node.reading() as steps:
        assert await steps.numbers(2) == [1, 3]


async def test_a_dead_letter_to_be_tried_again_waits_for_a_reader(autojump_clock: MockClock, node: Node) -> None:
    async with node.reading() as steps:
        node.publish(1)
        await steps.numbers(1)
        await node.deliveries.nack("a", message_id(1), "")
    assert await node.deliveries.retry_deliveries(None, None) == 1
    async with node.reading() as steps:
        assert await steps.numbers(1) == [1]
    async with node.reading() as steps:
        assert await steps.numbers(1) == [1]
        await node.ack(1)
        assert node.deliveries.dead_letters(None, 10) == []


async def test_expired_messages_are_passed_over_and_dropped_ones_told(autojump_clock: MockClock, node: Node) -> None:
    async with node.reading() as steps:
        node.archive.add(signed(1, 1), expires_at_ns=WALL_NS + 5)
        node.publish(2, 3, 4)
        node.wall_ns += 10
        node.archive.drop(node.archive.page_of("t")[1].id)
        assert (await steps.next()).lost == 1
        assert await steps.numbers(2) == [3, 4]
        await node.ack(4)
        assert node.deliveries.metrics()['p2pnode_deliveries_total{subscription="a",result="expired"}'] == 1
        assert (await node.deliveries.deliveries())[0]["pending"] == 0


async def test_a_stopping_node_hands_over_what_is_stored_and_ends_the_stream(
    autojump_clock: MockClock, node: Node
) -> None:
    async with node.reading() as steps:
        node.publish(1, 2)
        node.stopping.set()
        assert await steps.numbers(2) == [1, 2]
        with pytest.raises(StopAsyncIteration):
            await steps.next()


async def test_a_deleted_subscription_ends_its_stream_and_is_forgotten(autojump_clock: MockClock, node: Node) -> None:
    async with node.reading() as steps:
        await node.deliveries.unsubscribe("a")
        with pytest.raises(StopAsyncIteration):
            await steps.next()
    assert node.store.subscriptions == {}
    with pytest.raises(NotFound):
        await node.ack(1)


@pytest.mark.parametrize(
    ("topic", "name", "start", "field"),
    [
        ("t", "", "now", "subscription"),
        ("t", "a b", "now", "subscription"),
        ("t", "x" * 65, "now", "subscription"),
        ("t", "webhook", "now", "subscription"),
        ("two words", "a", "now", "topic"),
        ("u", "known", "now", "subscription"),
        ("t", "a", "nonsense", "from"),
        ("t", "a", message_id(99), "from"),
        ("t", "a", message_id(7), "from"),
    ],
)
async def test_what_cannot_be_subscribed_to_leaves_no_trace(
    autojump_clock: MockClock, node: Node, topic: str, name: str, start: str, field: str
) -> None:
    node.archive.hold_back(signed(1, 7))
    async with node.reading("known"):
        pass
    with pytest.raises(InvalidRequest) as caught:
        async with node.reading(name, start, topic):
            pass
    assert [fault.field for fault in caught.value.faults] == [field]
    assert list(node.store.subscriptions) == ["known"]


async def test_wrong_acknowledgements_are_refused(autojump_clock: MockClock, node: Node) -> None:
    node.publish(1, 2)
    node.publish(9, topic="u")
    async with node.reading(start="start"):
        for wrong in ("nonsense", message_id(5), message_id(9)):
            with pytest.raises(InvalidRequest):
                await node.deliveries.acknowledge("a", wrong)
            with pytest.raises(InvalidRequest):
                await node.deliveries.nack("a", wrong, "")
        await node.ack(1)
        with pytest.raises(InvalidRequest, match="nothing to give up"):
            await node.deliveries.nack("a", message_id(1), "")
        for name in ("b", "webhook"):
            with pytest.raises((NotFound, InvalidRequest)):
                await node.deliveries.acknowledge(name, message_id(1))
        with pytest.raises(NotFound):
            await node.deliveries.retry_deliveries("a", message_id(1))


async def test_subscriptions_are_bounded(
    autojump_clock: MockClock, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries_module, "MAX_SUBSCRIPTIONS", 1)
    async with node.reading("a"):
        pass
    with pytest.raises(TooBusy):
        async with node.reading("b"):
            pass


async def test_a_full_disk_creates_nothing_and_gives_nothing_up(autojump_clock: MockClock, node: Node) -> None:
    node.store.broken = True
    with pytest.raises(EnvironmentFault):
        async with node.reading():
            pass
    assert await node.deliveries.subscriptions() == []


async def test_a_message_without_bytes_costs_a_look_a_second_not_the_processor(
    autojump_clock: MockClock, node: Node
) -> None:
    async with node.reading() as steps:
        node.publish(1)
        node.archive.raws.clear()
        assert await steps.nothing_for(10.0)
        assert node.archive.pages <= 12
