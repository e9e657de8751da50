"""Whole nodes between which messages go by gossip, by NATS and by HTTP, all in memory and in virtual time."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from p2pnode.core.message import MessageId, SignedMessage, format_message_id
from p2pnode.core.routing import Policy
from p2pnode.errors import Unavailable
from p2pnode.node.settings import OtherRoads
from p2pnode.ports.roads import LegacyAgent, Target
from p2pnode.wire.nats import FROM, MESSAGE_ID
from tests.core.council.test_opportunity import OPPORTUNITY
from tests.node.bridge.broker import FakeBroker, FakeServer
from tests.node.fakes import Fleet, Running, Wall, open_fleet, until

TOPIC, FORMING, UNCARRIED = "hmmm.t", "councils.forming", "builds.log"
TOPICS = (FORMING, TOPIC, UNCARRIED)


class Everything(set[bytes]):
    def __contains__(self, item: object) -> bool:
        return True


@dataclass
class Mail:
    """`ports.roads.Post` between the nodes of a fleet.

    Attributes:
        down: URLs that do not answer.
        given: what was handed over, by URL.
        seconds: how long an answer takes.
    """

    at: dict[str, Running] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    given: Counter[tuple[str, MessageId]] = field(default_factory=Counter)
    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.01

    async def hand_over(self, target: Target, message: SignedMessage) -> None:
        await trio.sleep(self.seconds)
        if target.url in self.down:
            raise Unavailable("nobody answers", reason="http")
        self.given[target.url, message.id] += 1
        why = await self.at[target.url].node.intake.take(message, "http")
        assert why in (None, "held")

    async def tell(self, agent: LegacyAgent, body: bytes, headers: Any) -> None:
        await trio.sleep(0.01)
        self.told[agent.endpoint, headers["X-Message-ID"]] += 1


@dataclass
class World:
    fleet: Fleet
    server: FakeServer
    mail: Mail
    brokers: dict[str, FakeBroker] = field(default_factory=dict)

    def roads(self, name: str, *, nats: bool = True, http: bool = True) -> OtherRoads:
        broker = self.brokers[name] = FakeBroker(self.server, name)
        return OtherRoads(broker if nats else None, self.mail if http else None)

    def add(
        self,
        *,
        nats: bool = True,
        http: bool = True,
        listens: bool = True,
        carriers: Policy | None = None,
        to: Sequence[Running] = (),
    ) -> Running:
        name = f"n{len(self.fleet.nodes)}"
        node = self.fleet.add(
            topics=TOPICS,
            bootstrap=[each.addr for each in to],
            other_roads=self.roads(name, nats=nats, http=http),
            carriers=carriers,
        )
        if http and listens:
            url = f"http://{name}:9080"
            self.mail.at[url] = node
            node.node.carries_http(f"{name}:9080", url)
        self.fleet.start(node)
        return node

    def by_nats(self) -> Counter[str]:
        """How often each message was published at the server, by its id."""
        return Counter(each.headers[MESSAGE_ID] for each in self.server.publications if FROM in each.headers)


@asynccontextmanager
async def open_world(*, jetstream: bool = True) -> AsyncIterator[World]:
    async with open_fleet() as fleet:
        yield World(fleet, FakeServer(Wall(), jetstream=jetstream), Mail())


@asynccontextmanager
async def open_linked(*, carriers: Policy | None = None) -> AsyncIterator[tuple[World, Running, Running]]:
    """Two nodes with a link and a server."""
    async with open_world() as world:
        one = world.add(carriers=carriers)
        other = world.add(carriers=carriers, to=[one])
        await until(lambda: all(is_up(each) for each in (one, other)) and len(one.members.all()) == 2)
        await until(lambda: other.peer_id in one.gossip.topic_peers(TOPIC))
        await until(lambda: one.peer_id in other.gossip.topic_peers(TOPIC))
        yield world, one, other


def is_up(node: Running) -> bool:
    broker = carriers(node)["broker"]
    return bool(broker is not None and broker["connected"])


def carriers(node: Running) -> dict[str, Any]:
    return dict(node.node.carriers())


async def say(node: Running, number: int, topic: str = TOPIC) -> str:
    body = json.dumps({"n": number}).encode()
    return await publish(node, body, topic)


async def offer(node: Running, council_id: str | None = None) -> str:
    document = {**OPPORTUNITY, "council_id": council_id or str(uuid.uuid4())}
    return await publish(node, json.dumps(document).encode(), FORMING)


async def publish(node: Running, body: bytes, topic: str) -> str:
    published = await node.node.publish(topic, body, content_type="application/json", headers={}, idempotency_key=None)
    return published.id


def stored(node: Running, *, carrier: str | None = None) -> set[str]:
    """Ids of what the disk of a node holds."""
    entries = node.store.entries.values()
    return {format_message_id(each.id) for each in entries if carrier in (None, each.carrier)}


def roads_of(node: Running, message_id: str) -> tuple[str, ...]:
    """As the disk has it."""
    [found] = [each.roads for each in node.store.entries.values() if format_message_id(each.id) == message_id]
    return found


async def followed(node: Running, topic: str = TOPIC) -> list[str]:
    """What an agent is given, from the start."""
    return [str(each["id"]) for each in await node.node.messages(topic, after=None, limit=1000)]
