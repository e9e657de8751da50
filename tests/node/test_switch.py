"""What the API shows of the roads, what it changes, and whether a node without links can deliver."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.routing import CALM_SECONDS, TROUBLE_SECONDS, Policy
from p2pnode.errors import EnvironmentFault, InvalidRequest
from tests.node.fakes import until
from tests.node.road_world import carriers, is_up, open_linked, open_world, say, stored

# -- can a node without links deliver? -------------------------------------------------


async def test_a_node_whose_links_are_cut_and_whose_nats_is_dead_is_degraded_as_long_as_http_works(
    autojump_clock: MockClock,
) -> None:
    async with open_linked() as (world, one, other):
        await until(lambda: bool(one.members.get(other.peer_id).record.carrier))  # type: ignore[union-attr]
        assert one.node.health().readiness == "delivering"
        world.server.kill()
        world.fleet.network.split(one.peer_id, other.peer_id)
        health = one.node.health()
        assert health.readiness == "degraded"
        assert "messages go over HTTP" in health.reasons[0]
        assert any("nobody answers" in each for each in health.reasons), "and why NATS does not help"
        message = await say(one, 1)
        await until(lambda: message in stored(other, carrier="http"))
        assert one.node.health().readiness == "degraded"
        world.mail.down |= world.mail.at.keys()
        await say(one, 2)
        await until(lambda: one.node.health().readiness == "not-ready", 30)
        world.mail.down.clear()
        await until(lambda: one.node.health().readiness == "degraded", 60)


@pytest.mark.parametrize(
    ("listens", "policy"),
    [
        pytest.param(False, Policy(), id="nobody reaches it"),
        pytest.param(True, Policy(http="off"), id="off"),
        pytest.param(True, Policy(rollback="nats"), id="rolled back to NATS"),
    ],
)
async def test_http_does_not_count_where_it_carries_one_way_or_none(
    listens: bool, policy: Policy, autojump_clock: MockClock
) -> None:
    async with open_world() as world:
        world.server.up = False
        other = world.add()
        one = world.add(listens=listens, carriers=policy, to=[other])
        await until(lambda: len(one.members.alive()) == 2 and bool(one.host.links()))
        world.fleet.network.split(one.peer_id, other.peer_id)
        await until(lambda: not one.host.links())
        assert one.node.health().readiness == "not-ready"


async def test_http_does_not_count_where_no_other_sidecar_takes_messages_by_it(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.server.up = False
        one = world.add()
        await until(lambda: one.node.health().reasons[0].startswith("no peer is connected"))
        assert one.node.health().readiness == "not-ready"


async def test_both_roads_are_named_where_both_carry_everything(autojump_clock: MockClock) -> None:
    async with open_linked(carriers=Policy(nats="always", http="always")) as (world, one, other):
        await until(lambda: bool(one.members.get(other.peer_id).record.carrier))  # type: ignore[union-attr]
        world.fleet.network.split(one.peer_id, other.peer_id)
        assert "messages go over NATS and HTTP" in one.node.health().reasons[0]


@pytest.mark.parametrize("nats", [True, False])
async def test_a_node_that_can_store_nothing_is_not_ready_although_nats_is_up(
    nats: bool, autojump_clock: MockClock
) -> None:
    async with open_world() as world:
        one = world.add(nats=nats, http=False)
        await until(lambda: is_up(one) is nats)
        one.store.failing = EnvironmentFault("the disk is broken", hint="mend it")
        with pytest.raises(EnvironmentFault):
            await say(one, 1)
        health = one.node.health()
        assert health.readiness == "not-ready"
        assert health.reasons[:2] == ("messages cannot be stored: the disk is broken", "mend it")
        assert "no peer is connected" in health.reasons[2]
        one.store.failing = None
        await trio.sleep(2)
        await say(one, 2)
        assert one.node.health().readiness == ("degraded" if nats else "not-ready")


# -- what is shown ---------------------------------------------------------------------


async def test_while_gossip_is_in_trouble_its_row_says_so_and_only_the_road_that_helps_is_active(
    autojump_clock: MockClock,
) -> None:
    async with open_linked() as (world, one, other):
        await until(lambda: bool(one.members.get(other.peer_id).record.carrier))  # type: ignore[union-attr]
        assert {road: carriers(one)[road]["state"] for road in ("gossip", "nats", "http")} == {
            "gossip": "ready",
            "nats": "ready",
            "http": "ready",
        }
        world.fleet.network.split(one.peer_id, other.peer_id)
        await say(one, 1)
        document = carriers(one)
        assert document["gossip"]["state"] == "trouble"
        assert "no connected peer is subscribed" in document["gossip"]["why"]
        assert document["nats"]["state"] == "active"
        assert document["http"]["state"] == "ready", "NATS carries it"
        [why] = [each for each in one.node.carriage.switch.reasons() if "gossip is in trouble" in each]
        assert why.endswith("messages go by NATS too")
        world.server.kill()
        assert carriers(one)["http"]["state"] == "active"
        await one.node.set_carriers({"gossip": "fallback"})
        assert carriers(one)["gossip"]["state"] == "trouble", "not in use as a fallback"
        await one.node.set_carriers({"rollback": "http"})
        assert carriers(one)["gossip"]["state"] == "off"
        await one.node.set_carriers({"rollback": None, "gossip": "always"})
        world.server.start()
        world.fleet.network.apart.clear()
        await one.host.dial(other.addr)
        await until(lambda: carriers(one)["gossip"]["state"] == "ready", TROUBLE_SECONDS + CALM_SECONDS + 5)
        assert carriers(one)["gossip"]["why"] == ""


async def test_the_numbers_of_the_http_listener_are_among_the_nodes_metrics(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = world.add()
        one.node.carries_http("n0:9080", "http://n0:9080", lambda: {"p2pnode_http_turned_away_total": 7.0})
        found = one.node.metrics()
        assert found["p2pnode_http_turned_away_total"] == 7
        assert found["p2pnode_rollback"] == 0


# -- what is changed live --------------------------------------------------------------


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


async def test_a_road_that_was_off_at_the_start_is_none_that_is_left(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        node = world.add(nats=False, http=False)
        with pytest.raises(InvalidRequest, match="no road would be left"):
            await node.node.set_carriers({"gossip": "off"})
        with pytest.raises(InvalidRequest, match="HTTP was off at the start"):
            await node.node.set_carriers({"http": "always"})
