"""The webhook against a real server: everything arrives, in order per origin, whatever the agent does.

Time is trio's, and jumps where nothing happens: pauses of minutes pass in no time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.message import format_message_id
from p2pnode.errors import InvalidRequest
from p2pnode.node import ledger as ledger_module
from p2pnode.node import webhook as webhook_module
from p2pnode.node.deliveries import WEBHOOK, Deliveries, WebhookSettings
from p2pnode.ports import JsonObject
from tests.node.agent import Agent, Behaviour, Post, Wire, endless, good, hang, open_agent_server, raw, status
from tests.node.stored import WALL_NS, MemoryArchive, MemoryStore, signed


class Bench:
    """Deliveries over an archive and a store that outlive them."""

    def __init__(self) -> None:
        self.archive = MemoryArchive()
        self.store = MemoryStore()
        self.attempts = 1440
        self.timeout_seconds = 10.0
        self.wall_ns = WALL_NS

    @asynccontextmanager
    async def running(self, url: str) -> AsyncIterator[Deliveries]:
        """One run of the node; what it did not write down is lost at its end, as in a kill."""
        made = Deliveries(
            self.archive,
            self.store.write,
            WebhookSettings(url, ("t", "u"), self.timeout_seconds, self.attempts) if url else None,
            lambda peer: "name",
            stopping=trio.Event(),
            wall_ns=lambda: self.wall_ns,
            rng=Random(1),
        )
        made.load(self.store.subscriptions.values(), self.store.letters.values())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            # The subscription of a new webhook begins now.
            await self.store.until(lambda: not url or WEBHOOK in self.store.subscriptions)
            yield made
            nursery.cancel_scope.cancel()

    def publish(self, *messages: tuple[int, int], size: int = 0) -> None:
        """Origin and number of each."""
        for of, number in messages:
            self.archive.add(signed(of, number, size=size))

    @property
    def cursor(self) -> int:
        return self.store.subscriptions[WEBHOOK].cursor


@pytest.fixture
def clock() -> MockClock:
    """Jumps only after a while without anything: bytes on a socket are nothing that trio knows of."""
    return MockClock(autojump_threshold=0.05)


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with open_agent_server() as made:
        yield made


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def delivery(deliveries: Deliveries) -> JsonObject:
    (told,) = await deliveries.deliveries()
    return told


async def written(bench: Bench, cursor: int) -> None:
    await bench.store.until(lambda: bench.cursor >= cursor)


def of_origin(taken: list[tuple[int, int]], of: int) -> list[int]:
    return [number for each, number in taken if each == of]


async def test_a_message_comes_as_its_document_with_headers(clock: MockClock, agent: Agent, bench: Bench) -> None:
    async with bench.running(agent.url):
        entry = bench.archive.add(signed(1, 7), late=True)
        await agent.until(lambda: bool(agent.taken))
        (post,) = agent.posts
        assert post.headers["content-type"] == "application/json"
        assert post.headers["p2pnode-message-id"] == format_message_id(entry.id) == post.document["id"]
        assert post.headers["p2pnode-topic"] == post.document["topic"] == "t"
        assert post.headers["p2pnode-attempt"] == "1"
        assert (post.document["late"], post.document["origin_name"], post.of) == (True, "name", (1, 7))


async def test_who_is_new_gets_what_comes_from_now_on(clock: MockClock, agent: Agent, bench: Bench) -> None:
    bench.publish((1, 1))
    async with bench.running(agent.url):
        bench.publish((1, 2))
        await agent.until(lambda: bool(agent.taken))
        assert agent.taken == [(1, 2)]


@pytest.mark.parametrize(
    "behaviour",
    [
        status(500, b"broken"),
        status(503),
        status(599),
        status(429, retry_after="7"),
        status(429, retry_after="Sun, 23 Nov 2025 12:00:09 GMT"),
        hang,
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
        raw(b"HTTP/1.1 200 OK\r\nContent-"),
        raw(b"\x00\xff nonsense\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000),
    ],
    ids=["500", "503", "599", "429", "429-date", "hangs", "closes", "half-body", "half-head", "garbage", "long-head"],
)
async def test_an_agent_that_fails_for_a_minute_gets_everything_later_in_order(
    clock: MockClock, agent: Agent, bench: Bench, behaviour: Behaviour
) -> None:
    agent.behave = behaviour
    async with bench.running(agent.url) as deliveries:
        bench.publish(*((of, number) for number in range(5) for of in range(20)))
        await trio.sleep(60)
        told = await delivery(deliveries)
        assert (told["state"], told["pending"], told["failed"]) == ("waiting", 100, 0)
        assert told["last_error"]
        assert len(agent.posts) <= 20, "eight at first, then single probes at longer and longer pauses"
        agent.behave = good
        await agent.until(lambda: len(agent.taken) == 100)
        for of in range(20):
            assert of_origin(agent.taken, of) == list(range(5))
        assert agent.most_at_once <= 8
        await written(bench, 100)
        assert (await delivery(deliveries))["pending"] == 0


async def test_retry_after_is_honoured(clock: MockClock, agent: Agent, bench: Bench) -> None:
    agent.behave = status(429, retry_after="600")
    async with bench.running(agent.url):
        bench.publish((1, 1))
        await agent.until(lambda: bool(agent.posts))
        await trio.sleep(599)
        assert len(agent.posts) == 1
        agent.behave = good
        await agent.until(lambda: bool(agent.taken))
        assert agent.posts[1].at - agent.posts[0].at >= 600


async def test_an_agent_that_is_not_there_yet_is_waited_for(clock: MockClock, agent: Agent, bench: Bench) -> None:
    (closed,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = closed.socket.getsockname()[1]
    await closed.aclose()
    async with bench.running(f"http://127.0.0.1:{port}/x") as deliveries:
        bench.publish((1, 1))
        await trio.sleep(30)
        told = await delivery(deliveries)
        assert told["state"] == "waiting"
        assert "cannot connect to the agent" in told["last_error"]
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, agent.serve, listeners)
            await agent.until(lambda: agent.taken == [(1, 1)])
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (status(410, b"no such council"), "HTTP 410: no such council"),
        (status(400), "HTTP 400"),
        (status(302, location="/other"), "redirects are not followed; set agent.webhook to /other"),
    ],
)
async def test_what_the_agent_refuses_for_good_is_a_dead_letter_and_the_next_one_goes_on(
    clock: MockClock, agent: Agent, bench: Bench, behaviour: Behaviour, error: str
) -> None:
    agent.behave = behaviour
    async with bench.running(agent.url) as deliveries:
        bench.publish((1, 1))
        await written(bench, 1)
        agent.behave = good
        bench.publish((1, 2))
        await agent.until(lambda: agent.taken == [(1, 2)])
        (letter,) = deliveries.dead_letters(None, 10)
        assert (letter["attempts"], letter["subscription"], letter["retrying"]) == (1, WEBHOOK, False)
        assert error in letter["error"]
        assert len(agent.posts) == 2
        assert deliveries.metrics()['p2pnode_deliveries_total{subscription="webhook",result="dropped"}'] == 1


@pytest.mark.parametrize("behaviour", [endless, status(200, b"x" * 1_000_000)], ids=["endless", "huge"])
async def test_a_long_answer_is_read_no_further_than_64_kib(
    clock: MockClock, agent: Agent, bench: Bench, behaviour: Behaviour
) -> None:
    agent.behave = behaviour
    async with bench.running(agent.url) as deliveries:
        bench.publish((1, 1), (1, 2))
        await written(bench, 2)
        assert len(agent.posts) == 2
        assert (await delivery(deliveries))["delivered"] == 2


async def test_a_message_that_is_never_taken_becomes_a_dead_letter_after_its_attempts(
    clock: MockClock, agent: Agent, bench: Bench
) -> None:
    bench.attempts = 20
    agent.behave = status(500)
    async with bench.running(agent.url) as deliveries:
        bench.publish((1, 1))
        await written(bench, 1)
        assert [post.attempt for post in agent.posts] == list(range(1, 21))
        assert 600 < agent.posts[-1].at - agent.posts[0].at < 960
        (letter,) = deliveries.dead_letters(None, 10)
        assert (letter["attempts"], letter["error"]) == (20, "HTTP 500")


async def test_one_message_that_the_agent_chokes_on_holds_up_only_its_origin(
    clock: MockClock, agent: Agent, bench: Bench
) -> None:
    async def choke(post: Post, wire: Wire) -> None:
        if post.of == (1, 0):
            await wire.answer(500)
        else:
            await wire.answer(200)
            agent.taken.append(post.of)

    agent.behave = choke
    async with bench.running(agent.url):
        bench.publish((1, 0), (1, 1), *((2, number) for number in range(100)))
        await agent.until(lambda: len(agent.taken) == 100)
        assert {of for of, _ in agent.taken} == {2}
        agent.behave = good
        await agent.until(lambda: len(agent.taken) == 102)
        assert of_origin(agent.taken, 1) == [0, 1]


async def test_a_dead_agent_costs_a_bounded_window(clock: MockClock, agent: Agent, bench: Bench) -> None:
    agent.behave = hang
    async with bench.running(agent.url) as deliveries:
        bench.publish(*((number % 50, number) for number in range(2000)), size=20_000)
        await trio.sleep(300)
        webhook = deliveries._webhook
        assert webhook is not None
        assert webhook.held == 256
        assert webhook._held_bytes <= webhook_module.HELD_BYTES
        assert bench.archive.largest_page <= webhook_module.PAGE_MESSAGES
        assert bench.archive.pages <= 2 + 256 // webhook_module.PAGE_MESSAGES
        assert (await delivery(deliveries))["pending"] == 2000


async def test_after_a_restart_it_goes_on_behind_the_cursor(clock: MockClock, agent: Agent, bench: Bench) -> None:
    async with bench.running(agent.url):
        bench.publish(*((1, number) for number in range(10)))
        await written(bench, 10)
    bench.publish(*((1, number) for number in range(10, 20)))
    async with bench.running(agent.url):
        await written(bench, 20)
    assert agent.taken == [(1, number) for number in range(20)]


async def test_what_was_not_written_down_comes_again_after_a_kill(clock: MockClock, agent: Agent, bench: Bench) -> None:
    async with bench.running(agent.url):
        bench.store.broken = True
        bench.publish((1, 1), (1, 2))
        await agent.until(lambda: len(agent.taken) == 2)
    bench.store.broken = False
    async with bench.running(agent.url):
        await written(bench, 2)
    assert agent.taken == [(1, 1), (1, 2)] * 2


async def test_a_disk_that_takes_nothing_for_a_while_holds_up_no_delivery(
    clock: MockClock, agent: Agent, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench.running(agent.url):
        bench.store.broken = True
        bench.publish(*((1, number) for number in range(200)))
        await agent.until(lambda: len(agent.taken) == 200)
        await trio.sleep(10)
        bench.store.broken = False
        await written(bench, 200)
    assert sum("cannot be written down" in record.message for record in caplog.records) == 1


async def test_cursors_are_written_in_groups(clock: MockClock, agent: Agent, bench: Bench) -> None:
    async with bench.running(agent.url):
        before = len(bench.store.writes)
        bench.publish(*((1, number) for number in range(128)))
        await written(bench, 128)
        assert len(bench.store.writes) - before <= 2 + 128 // ledger_module.WRITE_MESSAGES


async def test_a_store_that_cannot_be_read_is_tried_again(clock: MockClock, agent: Agent, bench: Bench) -> None:
    async with bench.running(agent.url) as deliveries:
        bench.archive.broken = True
        bench.publish((1, 1))
        await trio.sleep(5)
        assert agent.posts == []
        bench.archive.broken = False
        await agent.until(lambda: agent.taken == [(1, 1)])
        assert "Input/output error" in (await delivery(deliveries))["last_error"]


async def test_expired_and_dropped_messages_are_passed_over_and_counted(
    clock: MockClock, agent: Agent, bench: Bench
) -> None:
    agent.behave = status(503)
    async with bench.running(agent.url) as deliveries:
        bench.publish((1, 1))
        bench.archive.add(signed(1, 2), expires_at_ns=WALL_NS + 60 * 10**9)
        gone = bench.archive.add(signed(1, 3, size=webhook_module.HELD_BYTES // 4))
        large = [bench.archive.add(signed(1, number, size=200_000)) for number in range(4, 12)]
        bench.publish((1, 99))
        await trio.sleep(5)
        bench.archive.drop(large[-1].id)
        assert bench.archive.entry(gone.id) is not None
        bench.wall_ns += 61 * 10**9
        agent.behave = good
        await written(bench, 12)
        assert of_origin(agent.taken, 1) == [1, *range(3, 11), 99]
        counted = deliveries.metrics()
        assert counted['p2pnode_deliveries_total{subscription="webhook",result="expired"}'] == 1
        assert counted['p2pnode_deliveries_total{subscription="webhook",result="gone"}'] == 1
        assert counted['p2pnode_delivery_seconds_count{subscription="webhook"}'] == 10
        assert counted['p2pnode_delivery_seconds_sum{subscription="webhook"}'] == 10 * 61


async def test_dead_letters_are_tried_again_and_survive_a_restart_until_then(
    clock: MockClock, agent: Agent, bench: Bench
) -> None:
    agent.behave = status(410)
    async with bench.running(agent.url):
        bench.publish((1, 1), (1, 2), (2, 1))
        await written(bench, 3)
    assert len(bench.store.letters) == 3
    agent.behave = good
    async with bench.running(agent.url) as deliveries:
        letters = deliveries.dead_letters(WEBHOOK, 10)
        assert [letter["attempts"] for letter in letters] == [1, 1, 1]
        assert await deliveries.retry_deliveries(None, format_message_id(signed(1, 2).id)) == 1
        await bench.store.until(lambda: len(bench.store.letters) == 2)
        assert agent.taken == [(1, 2)]
        assert await deliveries.retry_deliveries(WEBHOOK, None) == 2
        await bench.store.until(lambda: not bench.store.letters)
        assert len(agent.taken) == 3
        assert deliveries.dead_letters(None, 10) == []
        assert bench.cursor == 3


async def test_a_dead_letter_that_fails_again_stays_one_and_holds_nothing_up(
    clock: MockClock, agent: Agent, bench: Bench
) -> None:
    agent.behave = status(410)
    async with bench.running(agent.url) as deliveries:
        bench.publish((1, 1))
        await written(bench, 1)
        agent.behave = status(503)
        await deliveries.retry_deliveries(None, None)
        await agent.until(lambda: len(agent.posts) == 2)
        (letter,) = deliveries.dead_letters(None, 10)
        assert letter["retrying"]
        agent.behave = good
        await agent.until(lambda: agent.taken == [(1, 1)])
        bench.publish((2, 1))
        await bench.store.until(lambda: bench.cursor >= 2 and not bench.store.letters)
        assert deliveries.dead_letters(None, 10) == []


async def test_dropped_dead_letters_are_forgotten(clock: MockClock, agent: Agent, bench: Bench) -> None:
    agent.behave = status(410)
    async with bench.running(agent.url) as deliveries:
        bench.publish((1, 1), (1, 2))
        await written(bench, 2)
        first, second = deliveries.dead_letters(None, 10)
        assert await deliveries.drop_deliveries(None, first["id"]) == 1
        assert [letter["id"] for letter in deliveries.dead_letters(None, 10)] == [second["id"]]
        assert await deliveries.drop_deliveries(WEBHOOK, None) == 1
        assert bench.store.letters == {}


async def test_dead_letters_are_bounded(
    clock: MockClock, agent: Agent, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_DEAD_LETTERS", 5)
    agent.behave = status(400)
    async with bench.running(agent.url) as deliveries:
        bench.publish(*((1, number) for number in range(20)))
        await written(bench, 20)
        await deliveries.flush()
        assert len(bench.store.letters) == 5
        assert deliveries.metrics()['p2pnode_deliveries_total{subscription="webhook",result="forgotten"}'] == 15


async def test_without_a_webhook_its_subscription_is_off_and_can_be_deleted(
    clock: MockClock, agent: Agent, bench: Bench
) -> None:
    agent.behave = status(410)
    async with bench.running(agent.url) as deliveries:
        bench.publish((1, 1))
        await written(bench, 1)
        with pytest.raises(InvalidRequest):
            await deliveries.unsubscribe(WEBHOOK)
    async with bench.running("") as deliveries:
        assert (await delivery(deliveries))["state"] == "off"
        with pytest.raises(InvalidRequest, match="the webhook is off"):
            await deliveries.retry_deliveries(None, None)
        await deliveries.unsubscribe(WEBHOOK)
        assert await deliveries.deliveries() == []
    assert bench.store.subscriptions == {}
    assert bench.store.letters == {}


async def test_other_topics_keep_the_place(clock: MockClock, agent: Agent, bench: Bench) -> None:
    async with bench.running(agent.url) as deliveries:
        bench.publish((1, 1))
        await written(bench, 1)
        assert deliveries.topics() == ("t", "u")
        bench.archive.add(signed(1, 2, topic="elsewhere"))
        bench.archive.add(signed(1, 3, topic="u"))
        await agent.until(lambda: len(agent.taken) == 2)
        assert agent.taken == [(1, 1), (1, 3)]


async def test_a_message_without_bytes_costs_a_look_a_second_not_the_processor(
    clock: MockClock, agent: Agent, bench: Bench
) -> None:
    async with bench.running(agent.url):
        bench.archive.broken = True
        bench.publish((1, 1))
        bench.archive.raws.clear()
        bench.archive.broken = False
        before = bench.archive.pages
        await trio.sleep(10)
        assert bench.archive.pages - before <= 12


async def test_one_failing_message_alone_is_shown_as_waiting(clock: MockClock, agent: Agent, bench: Bench) -> None:
    agent.behave = status(500)
    async with bench.running(agent.url) as deliveries:
        bench.publish((1, 1))
        await trio.sleep(40)
        told = await delivery(deliveries)
        assert (told["state"], told["last_error"]) == ("waiting", "HTTP 500")
        assert told["retry_in_seconds"] > 1
        agent.behave = good
        await written(bench, 1)
        assert (await delivery(deliveries))["state"] == "delivering"
