"""The other roads at work in whole nodes, with a broker in memory and in virtual time: fallback, rollback, restarts."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.message import MessageId, SignedMessage, format_message_id
from p2pnode.core.routing import CALM_SECONDS, TROUBLE_SECONDS, Policy, in_canary
from p2pnode.errors import InvalidRequest, Unavailable
from p2pnode.node.roads import LOOK_SECONDS
from p2pnode.node.sidecar import OtherRoads
from p2pnode.ports.roads import LegacyAgent, Target
from p2pnode.wire.nats import FROM, MESSAGE_ID, SIGNATURE
from tests.core.council.test_opportunity import OPPORTUNITY
from tests.node.bridge.broker import FakeBroker, FakeServer
from tests.node.fakes import FakeGossip, Fleet, Running, Wall, open_fleet, until

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
    """

    at: dict[str, Running] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    given: Counter[tuple[str, MessageId]] = field(default_factory=Counter)
    told: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def hand_over(self, target: Target, message: SignedMessage) -> None:
        await trio.sleep(0.01)
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
        self, *, nats: bool = True, http: bool = True, carriers: Policy | None = None, to: Sequence[Running] = ()
    ) -> Running:
        name = f"n{len(self.fleet.nodes)}"
        node = self.fleet.add(
            topics=TOPICS,
            bootstrap=[each.addr for each in to],
            other_roads=self.roads(name, nats=nats, http=http),
            carriers=carriers,
        )
        if http:
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


# -- gossip and its fallback -----------------------------------------------------------


@pytest.mark.parametrize("jetstream", [True, False])
async def test_nodes_without_a_link_hear_each_other_by_nats_and_store_everything_once(
    jetstream: bool, autojump_clock: MockClock
) -> None:
    async with open_world(jetstream=jetstream) as world:
        one, other, third = (world.add() for _ in range(3))
        await until(lambda: all(map(is_up, (one, other, third))))
        ids = [await say(node, number) for number in range(5) for node in (one, other)]
        await until(lambda: all(set(ids) <= stored(node) for node in (one, other, third)), 60)
        await trio.sleep(5)
        for node in (one, other, third):
            assert sorted(await followed(node)) == sorted(ids)
        assert stored(third, carrier="nats") == set(ids)
        assert set(world.by_nats().values()) == {1}, "what a road took is not given to it again"
        assert all(roads_of(one, each) == ("nats",) for each in ids[::2])
        document, health = carriers(one), one.node.health()
        assert document["nats"]["state"] == "active"
        assert document["nats"]["messages"] == 5
        assert "no connected peer" in document["nats"]["why"]
        assert document["waiting"] == 0
        assert document["degraded"] is True
        assert health.readiness == "degraded"
        assert "messages go over NATS" in health.reasons[0]
        assert "messages go by NATS too" in health.reasons[1]


async def test_linked_nodes_use_gossip_alone(autojump_clock: MockClock) -> None:
    async with open_linked() as (world, one, other):
        ids = [await say(one, number) for number in range(20)]
        await until(lambda: set(ids) <= stored(other, carrier="gossip"))
        await until(lambda: carriers(one)["waiting"] == 0)
        await trio.sleep(2 * TROUBLE_SECONDS)
        assert world.server.publications == []
        assert world.mail.given == {}
        assert carriers(one)["nats"]["state"] == "ready"
        assert carriers(one)["degraded"] is False
        await until(lambda: all(roads_of(one, each) == ("gossip",) for each in ids))


async def test_a_link_that_breaks_and_heals_moves_messages_to_nats_and_back(autojump_clock: MockClock) -> None:
    async with open_linked() as (world, one, other):
        world.fleet.network.split(one.peer_id, other.peer_id)
        ids = [await say(node, number) for number in range(5) for node in (one, other)]
        await until(lambda: all(set(ids) <= stored(node) for node in (one, other)), 30)
        world.fleet.network.apart.clear()
        await one.host.dial(other.addr)
        await until(lambda: carriers(one)["degraded"] is False and carriers(other)["degraded"] is False, 10)
        before = len(world.server.publications)
        ids += [await say(node, number) for number in range(5, 10) for node in (one, other)]
        await until(lambda: all(set(ids) <= stored(node) for node in (one, other)), 30)
        await trio.sleep(10)
        assert len(world.server.publications) == before
        for node in (one, other):
            assert sorted(await followed(node)) == sorted(ids)


async def test_a_link_over_which_nothing_comes_is_found_out_in_two_seconds(autojump_clock: MockClock) -> None:
    async with open_linked() as (world, one, other):
        deaf = FakeGossip(other.host, {}, other.node)  # instead of it: what is gossiped to it is lost on the way
        world.fleet.gossips[other.peer_id] = deaf
        deaf._topics, deaf._seen = {TOPIC}, Everything()
        message = await say(one, 1)
        await until(lambda: message in stored(other, carrier="nats"), TROUBLE_SECONDS + 1)
        assert "not held by its neighbours" in carriers(one)["nats"]["why"]


async def test_http_reaches_those_whom_neither_gossip_nor_nats_reaches(autojump_clock: MockClock) -> None:
    async with open_linked() as (world, one, other):
        await until(lambda: bool(one.members.get(other.peer_id).record.carrier))  # type: ignore[union-attr]
        world.server.kill()
        world.fleet.network.split(one.peer_id, other.peer_id)
        ids = [await say(one, number) for number in range(3)]
        await until(lambda: set(ids) <= stored(other, carrier="http"), 60)
        await until(lambda: all(roads_of(one, each) == ("http",) for each in ids))
        assert carriers(one)["nats"]["state"] == "down"
        assert carriers(one)["nats"]["why"] == "nobody answers"
        assert any("start the server" in each for each in one.node.roads.reasons())
        await trio.sleep(60)
        assert set(world.mail.given.values()) == {1}


async def test_what_was_sent_before_a_member_was_known_to_be_dead_is_told_to_it_by_nats(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        one = world.add()
        two, lost = world.add(to=[one]), world.add(to=[one])
        nodes = (one, two, lost)
        await until(lambda: all(is_up(each) and len(each.members.alive()) == 3 for each in nodes))
        await until(lambda: len(one.gossip.topic_peers(TOPIC)) == 2)
        for each in (one, two):
            world.fleet.network.split(each.peer_id, lost.peer_id)
        ids = [await say(one, number) for number in range(3)]
        await until(lambda: set(ids) <= stored(lost), 120)
        assert set(ids) <= stored(two)
        assert set(ids) <= stored(lost, carrier="nats")


async def test_with_nats_dead_they_are_told_by_http_although_their_deaths_are_noticed_one_by_one(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        one = world.add()
        nodes = [one, *(world.add(to=[one]) for _ in range(4))]
        lost = nodes[2:]
        await until(lambda: all(is_up(each) and len(each.members.alive()) == 5 for each in nodes))
        await until(lambda: all(each.record.carrier for each in one.members.alive()))
        await until(lambda: len(one.gossip.topic_peers(TOPIC)) == 4)
        world.server.kill()
        for each in lost:
            for other in nodes:
                if other is not each:
                    world.fleet.network.split(each.peer_id, other.peer_id)
        ids = [await say(one, number) for number in range(3)]
        await until(lambda: all(set(ids) <= stored(each, carrier="http") for each in lost), 120)
        await trio.sleep(60)
        assert set(world.mail.given.values()) == {1}, "to nobody twice"


async def test_everything_waits_for_a_server_that_comes_late(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.server.up = False
        one, other = world.add(http=False), world.add(http=False)
        ids = [await say(one, number) for number in range(10)]
        await trio.sleep(60)
        assert carriers(one)["waiting"] == 10
        assert stored(other) == set()
        world.server.start()
        await until(lambda: set(ids) <= stored(other), 60)
        assert carriers(one)["waiting"] == 0


# -- what comes from NATS --------------------------------------------------------------


async def test_what_is_no_message_of_ours_is_counted_and_ignored(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, other = world.add(), world.add()
        await until(lambda: is_up(one) and is_up(other))
        await say(one, 1)
        await until(lambda: len(stored(other)) == 1)
        true = next(each for each in world.server.publications if FROM in each.headers)
        world.server.publish(TOPIC, b'{"n": 1}', {"Council-ID": "plain"})
        world.server.publish(TOPIC, b'{"n": 2}', true.headers)
        world.server.publish(TOPIC, true.body, {**true.headers, SIGNATURE: "AAAA", "P2P-Seqno": "7"})
        world.server.publish(TOPIC, true.body, {**true.headers, "P2P-Seqno": "x" * 10_000})
        world.server.publish(TOPIC, b"\xff" * 1000, {FROM: "nobody"})
        world.server.publish("hmmm.", b"")
        counted = other.node.roads.counted
        await until(lambda: sum(count for (what, _), count in counted.items() if what == "in") >= 6, 10)
        assert counted["in", "plain"] >= 1, "a bridge signs and imports it"
        assert counted["in", "taken"] == 1
        assert counted["in", "headers"] == 2
        assert counted["in", "signature"] == 1
        assert len(stored(other)) == 1
        more = await say(one, 2)
        await until(lambda: more in stored(other), 30)


# -- policies --------------------------------------------------------------------------


async def test_a_council_outside_the_canary_share_goes_by_nats_alone(autojump_clock: MockClock) -> None:
    async with open_linked(carriers=Policy(canary_percent=50)) as (world, one, other):
        councils = [str(uuid.UUID(int=number)) for number in range(40)]
        ids = {each: await offer(one, each) for each in councils}
        await until(lambda: set(ids.values()) <= stored(other))
        await until(lambda: carriers(one)["waiting"] == 0)
        chosen = {each for each in councils if in_canary(each, 50)}
        assert 0 < len(chosen) < len(councils)
        assert {format_message_id(each.id) for each in one.gossip.sent if each.topic == FORMING} == {
            ids[each] for each in chosen
        }
        assert set(world.by_nats()) == {ids[each] for each in councils if each not in chosen}
        assert len(await followed(other, FORMING)) == len(councils)
        await until(lambda: not one.store.outbox)


@pytest.mark.parametrize("rollback", ["nats", "http"])
async def test_a_rollback_under_load_loses_nothing_and_doubles_nothing(
    rollback: str, autojump_clock: MockClock
) -> None:
    async with open_linked() as (_, one, other):
        await until(lambda: bool(one.members.get(other.peer_id).record.carrier))  # type: ignore[union-attr]
        ids: list[str] = []
        for number in range(120):
            if number == 40:
                document = await one.node.set_carriers({"rollback": rollback})
                assert document["rollback"] == rollback
                assert document["gossip"] != document[rollback]
            if number == 80:
                assert (await one.node.set_carriers({"rollback": None}))["rollback"] is None
            ids.append(await say(one, number))
            await trio.sleep(0.02)
        await until(lambda: set(ids) <= stored(other), 60)
        await until(lambda: carriers(one)["waiting"] == 0 and not one.store.outbox, 60)
        assert await followed(other) == ids, "each once, in order"
        assert all("gossip" in roads_of(one, each) for each in ids[:40] + ids[80:])
        assert all(rollback in roads_of(one, each) for each in ids[40:80])
        gossiped = {format_message_id(each.id) for each in one.gossip.sent if each.topic == TOPIC}
        assert gossiped == {*ids[:40], *ids[80:]}


async def test_what_the_old_road_cannot_carry_goes_by_gossip_whatever_the_rollback_says(
    autojump_clock: MockClock,
) -> None:
    async with open_linked(carriers=Policy(rollback="nats")) as (world, one, other):
        carried, uncarried = await say(one, 1), await say(one, 2, UNCARRIED)
        await until(lambda: {carried, uncarried} <= stored(other))
        assert set(world.by_nats()) == {carried}
        assert stored(other, carrier="nats") == {carried}
        assert carriers(one)["gossip"]["state"] == "off"


async def test_what_nats_switched_on_live_is_used(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        off = Policy(nats="off", http="off")
        one, other = world.add(carriers=off), world.add(carriers=off)
        message = await say(one, 1)
        await trio.sleep(10)
        assert not is_up(one), "a server that is not to be used is left alone"
        for node in (one, other):
            await node.node.set_carriers({"nats": "always"})
        await until(lambda: is_up(one) and is_up(other), 10)
        later = await say(one, 2)
        await until(lambda: later in stored(other), 10)
        assert message not in stored(other), "a change holds for what is published from then on"


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"gossip": "sometimes"}, {"gossip": "must be one of off, fallback, always, not 'sometimes'"}),
        ({"nats": None}, {"nats": "must be one of"}),
        ({"http": ["always"]}, {"http": "must be one of"}),
        ({"canary_percent": 101}, {"canary_percent": "a number from 0 to 100, not 101"}),
        ({"canary_percent": -0.1}, {"canary_percent": "from 0 to 100"}),
        ({"canary_percent": True}, {"canary_percent": "not True"}),
        ({"canary_percent": float("nan")}, {"canary_percent": "not nan"}),
        ({"canary_percent": "10"}, {"canary_percent": "not '10'"}),
        ({"rollback": "gossip"}, {"rollback": "must be nats, http or null"}),
        ({"rollback": False}, {"rollback": "must be nats, http or null"}),
        ({"pigeon": "always"}, {"pigeon": "there is no such field"}),
        ({}, {"body": "names nothing to change"}),
        ({"gossip": "off", "nats": "off", "http": "off"}, {"gossip": "no road would be left"}),
        ({"gossip": "no", "nats": "no", "x": 1}, {"gossip": "must", "nats": "must", "x": "there is no such field"}),
        ({"gossip": "x" * 1000}, {"gossip": "must be one of"}),
    ],
)
async def test_wrong_changes_are_named_field_by_field_and_change_nothing(
    changes: dict[str, object], faults: dict[str, str], autojump_clock: MockClock
) -> None:
    async with open_world() as world:
        node = world.add()
        before = carriers(node)
        with pytest.raises(InvalidRequest) as caught:
            await node.node.set_carriers(changes)
        found = {fault.field: fault.problem for fault in caught.value.faults}
        assert found.keys() == faults.keys()
        for where, what in faults.items():
            assert what in found[where]
            assert len(found[where]) < 200
        assert carriers(node) == before


@pytest.mark.parametrize("changes", [{"rollback": "nats"}, {"nats": "always"}])
async def test_nats_cannot_be_chosen_without_a_server(changes: dict[str, str], autojump_clock: MockClock) -> None:
    async with open_world() as world:
        node = world.add(nats=False)
        with pytest.raises(InvalidRequest) as caught:
            await node.node.set_carriers(changes)
        assert "nats.url" in str(caught.value.faults[0])


async def test_the_last_road_cannot_be_switched_off_where_there_is_no_server(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        node = world.add(nats=False, http=False)
        with pytest.raises(InvalidRequest):
            await node.node.set_carriers({"gossip": "off", "http": "off"})
        with pytest.raises(InvalidRequest):
            await node.node.set_carriers({"rollback": "http"})


# -- restarts --------------------------------------------------------------------------


async def test_the_roads_of_a_message_are_known_after_a_restart(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = world.add()
        await until(lambda: is_up(one))
        message = await say(one, 1)
        await until(lambda: roads_of(one, message) == ("nats",))
        world.fleet.stop(one)
        again = world.fleet.restart(one, topics=TOPICS, other_roads=world.roads("again"))
        world.fleet.start(again)
        await until(lambda: is_up(again))
        await trio.sleep(10 * LOOK_SECONDS)
        [document] = await again.node.messages(TOPIC, after=None, limit=10)
        assert document["roads"] == ["nats"]
        assert world.by_nats() == {message: 1}, "NATS has it"


async def test_what_a_crash_left_undone_is_sent_by_the_next_run(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.server.up = False
        one, other = world.add(http=False), world.add(http=False)
        ids = [await say(one, number) for number in range(5)]
        world.fleet.stop(one)
        world.server.start()
        again = world.fleet.restart(one, topics=TOPICS, other_roads=world.roads("again", http=False))
        world.fleet.start(again)
        await until(lambda: set(ids) <= stored(other), 60)
        await trio.sleep(10)
        assert set(world.by_nats().values()) == {1}
        assert len(await followed(other)) == len(ids)


async def test_a_rollback_at_the_next_start_holds_for_what_was_left_too(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, other = world.add(nats=False, http=False), world.add()
        ids = [await say(one, number) for number in range(5)]
        world.fleet.stop(one)
        again = world.fleet.restart(
            one, topics=TOPICS, other_roads=world.roads("again"), carriers=Policy(rollback="nats")
        )
        world.fleet.start(again)
        await until(lambda: set(ids) <= stored(other), 60)
        await until(lambda: not again.store.outbox, 10)
        assert carriers(again)["rollback"] == "nats"


async def test_what_was_done_but_not_written_as_done_leaves_the_outbox_at_the_next_start(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        policy = Policy(rollback="nats")
        one = world.add(carriers=policy)
        await until(lambda: is_up(one))
        message = await say(one, 1)
        await until(lambda: roads_of(one, message) == ("nats",))
        world.fleet.stop(one)
        one.store.outbox.update(dict.fromkeys(one.store.entries))  # killed before that was written
        again = world.fleet.restart(one, topics=TOPICS, other_roads=world.roads("again"), carriers=policy)
        world.fleet.start(again)
        await until(lambda: not again.store.outbox, 10)
        assert world.by_nats() == {message: 1}


def test_calm_takes_longer_than_a_look() -> None:
    assert LOOK_SECONDS < TROUBLE_SECONDS < CALM_SECONDS
