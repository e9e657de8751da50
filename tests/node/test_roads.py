"""The other roads at work in whole nodes, with a broker in memory and in virtual time: fallback, rollback, restarts."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.message import MessageId, format_message_id
from p2pnode.core.routing import AGAIN_SECONDS, AT_ONCE, CALM_SECONDS, TROUBLE_SECONDS, Policy, in_canary
from p2pnode.node import roads
from p2pnode.node.roads import LOOK_SECONDS
from p2pnode.wire.nats import FROM, SIGNATURE
from tests.node.fakes import FakeGossip, until
from tests.node.road_world import (
    FORMING,
    TOPIC,
    TOPICS,
    UNCARRIED,
    Everything,
    carriers,
    followed,
    is_up,
    offer,
    open_linked,
    open_world,
    roads_of,
    say,
    stored,
)

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
        assert any("start the server" in each for each in one.node.carriage.switch.reasons())
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


async def test_gossip_as_fallback_is_not_said_to_have_taken_what_nobody_was_there_for(
    autojump_clock: MockClock,
) -> None:
    policy = Policy(gossip="fallback", nats="always", http="off")
    async with open_linked(carriers=policy) as (world, one, other):
        world.server.kill()
        world.fleet.network.split(one.peer_id, other.peer_id)
        message = await say(one, 1)
        await trio.sleep(3 * TROUBLE_SECONDS)
        assert roads_of(one, message) == ()
        world.fleet.network.apart.clear()
        await one.host.dial(other.addr)
        await until(lambda: message in stored(other), 30)
        await until(lambda: roads_of(one, message) == ("gossip",), 2 * AGAIN_SECONDS[1])


async def test_with_nobody_to_post_to_http_is_not_tried_and_nothing_counts_as_failed(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        one = world.add(nats=False, listens=False)
        for number in range(20):
            await say(one, number)
        await trio.sleep(120)
        assert one.node.roads.counted == {}
        assert carriers(one)["waiting"] == 20


async def test_members_that_answer_slowly_by_http_do_not_hold_nats_up(autojump_clock: MockClock) -> None:
    async with open_linked(carriers=Policy(nats="always", http="always")) as (world, one, other):
        await until(lambda: bool(one.members.get(other.peer_id).record.carrier))  # type: ignore[union-attr]
        world.mail.seconds = 600.0
        ids = [await say(one, number) for number in range(300)]
        await until(lambda: set(ids) <= set(world.by_nats()), 10)


async def test_a_road_that_does_not_answer_is_handed_no_more_than_it_can_bear(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roads, "MAX_UNDER_WAY", 50)
    async with open_linked(carriers=Policy(http="always")) as (world, one, other):
        await until(lambda: bool(one.members.get(other.peer_id).record.carrier))  # type: ignore[union-attr]
        world.mail.seconds = 600.0
        before = trio.lowlevel.current_statistics().tasks_living
        ids = [await say(one, number) for number in range(950)]
        await trio.sleep(30)
        assert trio.lowlevel.current_statistics().tasks_living - before < 50 + AT_ONCE + 20
        world.mail.seconds = 0.01
        await until(lambda: len({each for _, each in world.mail.given}) == len(ids), 3600)


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


async def test_a_flood_from_nats_is_stored_as_fast_as_the_disk_takes_many_at_once_and_in_order(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        one, other = world.add(), world.add()
        await until(lambda: is_up(one) and is_up(other))
        other.store.commit_seconds = 0.05
        one.store.commit_seconds = 0.0001
        ids = []
        for number in range(900):
            ids.append(await say(one, number))
        await until(lambda: set(ids) <= stored(other, carrier="nats"), 10)
        assert await followed(other) == ids
        assert not any(each.late for each in other.store.entries.values())


async def test_what_comes_faster_than_it_is_stored_is_dropped_counted_and_said(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(roads, "MAX_WAITING", 10)
    async with open_world() as world:
        one = world.add()
        await until(lambda: is_up(one))
        for _ in range(31):  # one is taken at once
            world.server.publish(TOPIC, b"{}")
        assert one.node.roads.counted["in", "dropped"] == 20
        assert "left to synchronisation" in caplog.text
        await until(lambda: one.node.roads.counted["in", "plain"] == 11)


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


async def test_what_was_published_under_a_rollback_ends_on_its_road_after_that_was_taken_back(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        policy = Policy(rollback="http")
        one = world.add(carriers=policy)
        others = [world.add(carriers=policy, to=[one]) for _ in range(5)]
        await until(lambda: sum(bool(each.record.carrier) for each in one.members.alive()) == 6)
        world.mail.down |= world.mail.at.keys()
        message = await say(one, 1)
        await trio.sleep(1)
        await one.node.set_carriers({"rollback": None})
        world.mail.down.clear()
        await until(lambda: roads_of(one, message) == ("http",), 120)
        assert {url for url, _ in world.mail.given} == world.mail.at.keys() - {"http://n0:9080"}
        assert all(message in stored(each) for each in others)


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


async def test_what_an_earlier_run_left_is_read_a_part_at_a_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        one = world.add(nats=False, http=False)
        ids = [await say(one, number) for number in range(350)]
        world.fleet.stop(one)
        sizes: list[int] = []
        read = one.store.read

        async def count(wanted: Sequence[MessageId]) -> Mapping[MessageId, bytes]:
            sizes.append(len(wanted))
            return await read(wanted)

        monkeypatch.setattr(one.store, "read", count)
        again = world.fleet.restart(one, topics=TOPICS, other_roads=world.roads("again", http=False))
        world.fleet.start(again)
        await until(lambda: set(world.by_nats()) == set(ids), 60)
        assert max(sizes) <= roads.LOADED_AT_ONCE


def test_calm_takes_longer_than_a_look() -> None:
    assert LOOK_SECONDS < TROUBLE_SECONDS < CALM_SECONDS
