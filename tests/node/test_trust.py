"""With trusted orchestrators the agent hears of councils and decisions from them alone; all of it stays stored."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from random import Random

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.council.documents import STATUS_TOPIC
from p2pnode.core.message import SignedMessage, format_message_id
from p2pnode.core.metadata import Metadata
from p2pnode.core.peerid import peer_id_text
from p2pnode.node.deliveries import WEBHOOK, Deliveries, WebhookSettings
from p2pnode.node.reader import Reader
from p2pnode.node.trust import Trust
from p2pnode.ports import JsonObject
from p2pnode.wire.payload import encode_envelope, encode_json_payload
from p2pnode.wire.pubsub import seal_message
from tests.node.agent import open_agent_server
from tests.node.fakes import Running, open_fleet, until
from tests.node.stored import WALL_NS, MemoryArchive, MemoryStore, origin

TOPICS = ("councils.forming", "councils.claims", "councils.status")
WHOOSH, STRANGER = 1, 2
LISTED = [peer_id_text(origin(WHOOSH))]


def message(of: int, number: int, topic: str, data: bytes) -> SignedMessage:
    return seal_message(origin=origin(of), seqno=number, topic=topic, data=data, sign=lambda _: b"s" * 64)


def said(of: int, number: int, topic: str, **members: object) -> SignedMessage:
    document: Mapping[str, object] = {"of": of, "number": number, **members}
    data = encode_json_payload(json.dumps(document).encode(), document, Metadata(published_at_ns=WALL_NS))
    return message(of, number, topic, data)


def wrapped(body: bytes, content_type: str) -> SignedMessage:
    data = encode_envelope(body, content_type, Metadata(published_at_ns=WALL_NS))
    return message(STRANGER, 1, "councils.status", data)


@pytest.mark.parametrize(
    ("told", "trusted"),
    [
        (said(WHOOSH, 1, "councils.forming"), True),
        (said(WHOOSH, 1, "councils.status", term=3), True),
        (said(STRANGER, 1, "councils.forming"), False),
        (message(STRANGER, 1, "councils.forming", b"\xff"), False),
        (said(STRANGER, 1, "councils.claims", term=3), True),
        (said(STRANGER, 1, "hmmm.x", term=3), True),
        (said(STRANGER, 1, "councils.status", status="completed"), True),
        (said(STRANGER, 1, "councils.status", term=0), True),
        (said(STRANGER, 1, "councils.status", term=None), True),
        (said(STRANGER, 1, "councils.status", term=1), False),
        (said(STRANGER, 1, "councils.status", term="1"), False),
        (said(STRANGER, 1, "councils.status", TERM=1), False),
        (said(STRANGER, 1, "councils.status", term=0, Term=1), False),
        (wrapped(b'{"term": 1}', "application/json"), False),
        (wrapped(b'{"term": 1}', "text/plain"), False),
        (wrapped(b'{"status": "active"}', "application/json"), True),
        (wrapped(b"[1]", "application/json"), True),
        (wrapped(b"text", "text/plain"), True),
    ],
)
def test_opportunities_and_decisions_are_the_orchestrators(told: SignedMessage, trusted: bool) -> None:
    assert Trust(LISTED).is_trusted(told) is trusted
    assert Trust().is_trusted(told)


def test_only_who_is_listed_is_an_orchestrator_and_without_a_list_anyone() -> None:
    assert Trust(LISTED).is_orchestrator(LISTED[0], STATUS_TOPIC)
    assert not Trust(LISTED).is_orchestrator(peer_id_text(origin(STRANGER)), STATUS_TOPIC)
    assert Trust().is_orchestrator(LISTED[0], STATUS_TOPIC)


class Bench:
    """Deliveries with a list of one orchestrator."""

    def __init__(self, url: str = "") -> None:
        self.archive = MemoryArchive()
        self.store = MemoryStore()
        self.trust = Trust(LISTED)
        self.url = url

    def made(self) -> Deliveries:
        made = Deliveries(
            self.archive,
            self.store.write,
            WebhookSettings(self.url, TOPICS, 10.0, 1440) if self.url else None,
            lambda peer: None,
            stopping=trio.Event(),
            wall_ns=lambda: WALL_NS,
            rng=Random(1),
            trust=self.trust,
        )
        made.load(self.store.subscriptions.values(), self.store.letters.values())
        return made

    def publish(self, topic: str, base: int = 0) -> None:
        self.archive.add(said(STRANGER, base + 1, topic, term=1))
        self.archive.add(said(WHOOSH, base + 2, topic, term=1))
        self.archive.add(said(STRANGER, base + 3, topic, term=2))


async def numbers(steps: AsyncIterator[object], count: int) -> list[int]:
    return [(await anext(steps)).document["payload"]["number"] for _ in range(count)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("topic", ["councils.forming", "councils.status"])
async def test_a_subscription_passes_over_what_is_not_trusted(autojump_clock: MockClock, topic: str) -> None:
    bench = Bench()
    deliveries = bench.made()
    async with deliveries.subscribe(topic, "a", start="now") as steps:
        bench.publish(topic)
        bench.archive.add(said(WHOOSH, 4, topic))
        assert await numbers(steps, 2) == [2, 4]
        await deliveries.acknowledge("a", format_message_id(origin(WHOOSH) + (4).to_bytes(8, "big")))
    await deliveries.flush()
    assert bench.store.subscriptions["a"].cursor == 4
    assert bench.trust.metrics() == {"p2pnode_deliveries_untrusted_total": 2}
    assert deliveries.metrics()['p2pnode_deliveries_total{subscription="a",result="untrusted"}'] == 2


async def test_the_cursor_goes_on_when_nothing_is_trusted(autojump_clock: MockClock) -> None:
    bench = Bench()
    deliveries = bench.made()
    async with deliveries.subscribe("councils.forming", "a", start="now") as steps:
        for number in range(1, 601):
            bench.archive.add(said(STRANGER, number, "councils.forming"))
        with trio.move_on_after(5):
            await anext(steps)
        assert (await deliveries.subscriptions())[0]["pending"] == 0


async def test_a_dead_letter_from_before_the_list_is_not_handed_over(autojump_clock: MockClock) -> None:
    bench = Bench()
    bench.trust = Trust()
    deliveries = bench.made()
    async with deliveries.subscribe("councils.forming", "a", start="now") as steps:
        bench.publish("councils.forming")
        await numbers(steps, 1)
        await deliveries.nack("a", format_message_id(origin(STRANGER) + (1).to_bytes(8, "big")), "no")
    bench.trust = Trust(LISTED)
    deliveries = bench.made()
    assert await deliveries.retry_deliveries("a", None) == 1
    async with deliveries.subscribe("councils.forming", "a", start="now") as steps:
        assert await numbers(steps, 1) == [2]
        assert deliveries.dead_letters("a", 10) == []


async def test_the_webhook_is_not_sent_what_is_not_trusted() -> None:
    async with open_agent_server() as agent, trio.open_nursery() as nursery:
        bench = Bench(agent.url)
        deliveries = bench.made()
        nursery.start_soon(deliveries.run)
        await bench.store.until(lambda: WEBHOOK in bench.store.subscriptions)
        for number, topic in enumerate(TOPICS):
            bench.publish(topic, 10 * number)
        await bench.store.until(lambda: bench.store.subscriptions[WEBHOOK].cursor == 9)
        assert sorted((post.headers["p2pnode-topic"], post.of) for post in agent.posts) == [
            ("councils.claims", (WHOOSH, 12)),
            ("councils.claims", (STRANGER, 11)),
            ("councils.claims", (STRANGER, 13)),
            ("councils.forming", (WHOOSH, 2)),
            ("councils.status", (WHOOSH, 22)),
        ]
        assert bench.trust.passed_over == 4
        assert deliveries.metrics()['p2pnode_deliveries_total{subscription="webhook",result="untrusted"}'] == 4
        nursery.cancel_scope.cancel()


async def test_pages_show_it_marked_and_followers_get_none_of_it(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        whoosh = fleet.add(role="whoosh")
        stranger = fleet.add(bootstrap=[whoosh.addr])
        fleet.start(whoosh, stranger)
        await until(lambda: len(whoosh.node.peers()) == len(stranger.node.peers()) == 2)
        for each in (whoosh, stranger):
            await each.gossip.subscribe("councils.status")
        for by, document in ((stranger, {"term": 1}), (whoosh, {"term": 2}), (stranger, {"status": "active"})):
            await publish(by, document)
        trust = Trust([whoosh.peer_id])
        stopping = trio.Event()
        reader = Reader(whoosh.node._archive, lambda peer: None, stopping, trust)
        page: list[JsonObject] = []
        while len(page) < 3:
            await trio.sleep(0.05)
            page = await reader.page("councils.status", after=None, limit=10)
        shown = sorted(((each["payload"], each.get("trusted")) for each in page), key=str)
        assert shown == [({"status": "active"}, None), ({"term": 1}, False), ({"term": 2}, None)]
        assert trust.passed_over == 0
        stopping.set()
        followed = [step.document["payload"] async for step in reader.follow("councils.status", 0)]
        assert sorted(followed, key=str) == [{"status": "active"}, {"term": 2}]
        assert trust.passed_over == 1


async def publish(by: Running, document: Mapping[str, object]) -> None:
    body = json.dumps(document).encode()
    await by.node.publish("councils.status", body, content_type="application/json", headers={}, idempotency_key=None)
