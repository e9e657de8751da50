"""Councils in a fleet: formed, kept through deaths, restarts, takeovers and splits, in virtual time."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.council.documents import CLAIMS_TOPIC, STATUS_TOPIC
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.council.takeover import Policy
from p2pnode.errors import EnvironmentFault
from p2pnode.identity import Identity
from p2pnode.node.councils import CouncilSettings
from tests.node.council_fleet import (
    REQUEST,
    CouncilFleet,
    create,
    decisions,
    open_council_fleet,
    says,
    seat_of,
    summary,
)
from tests.node.fakes import Running, until

STRANGER = Identity(b"s" * 32)


def take_overs(fleet: CouncilFleet) -> int:
    return sum(each.node._council_keeper.counted["takeovers"] for each in fleet.up())


def assert_fenced(fleet: CouncilFleet) -> None:
    """No owner decided twice under one number, and no fencing number of a role has two holders."""
    numbers = Counter((origin, d["council_id"], d["term"], d["n"]) for origin, d in decisions(fleet))
    assert [each for each, count in numbers.items() if count > 1] == []
    holders: dict[tuple[object, ...], set[str]] = {}
    for origin, document in decisions(fleet):
        owner = origin if document["term"] else ""
        for seat in document["roles"]:
            if seat["state"] != "open":
                key = (document["council_id"], owner, seat["role_name"], seat["term"], seat["n"])
                holders.setdefault(key, set()).add(f"{seat['peer_id']} {seat['agent_id']}")
    assert [each for each in holders.values() if len(each) > 1] == []


# -- forming ---------------------------------------------------------------------------


async def test_a_council_becomes_active_and_every_node_shows_the_same(autojump_clock: MockClock) -> None:
    async with open_council_fleet() as fleet:
        started = trio.current_time()
        council_id = await create(fleet.orchestrators[0])
        await until(lambda: fleet.agree(council_id), 60)
        assert trio.current_time() - started < 2
        document = fleet.agents[0].node.council(council_id)
        assert document["missing"] == []
        assert len({seat["peer_id"] for seat in document["roles"]}) == 4
        assert document["owner"] == fleet.orchestrators[0].peer_id
        for skill, role in (("design", "architect"), ("backend", "developer"), ("testing", "tester")):
            assert fleet.holder(council_id, role).members.own.capabilities == (skill,)
        holder = fleet.holder(council_id, "architect")
        assert holder.node.council(council_id)["mine"] == ["architect"]
        assert_fenced(fleet)


async def test_an_active_council_is_quiet(autojump_clock: MockClock) -> None:
    async with open_council_fleet() as fleet:
        council_id = await create(fleet.orchestrators[0])
        await until(lambda: fleet.agree(council_id), 60)
        await trio.sleep(30)
        acts = Counter[str]()
        for each in fleet.up():
            acts.update(each.node._council_keeper.counted)
        assert acts["acceptances"] == 4
        assert acts["refused"] == acts["failed"] == acts["takeovers"] == 0
        before = fleet.said()
        await trio.sleep(60)
        assert fleet.said() == before


async def test_ten_councils_at_once_all_become_active(autojump_clock: MockClock) -> None:
    async with open_council_fleet() as fleet:
        made: list[str] = []

        async def one() -> None:
            made.append(await create(fleet.orchestrators[0]))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        await until(lambda: all(fleet.agree(each) for each in made), 120)
        assert len(set(made)) == 10
        assert_fenced(fleet)


async def test_an_agent_that_is_cut_off_while_a_council_forms_hears_of_it_later(autojump_clock: MockClock) -> None:
    async with open_council_fleet() as fleet:
        away = fleet.agents[-1]
        fleet.split([away], [each for each in fleet.up() if each is not away])
        council_id = await create(fleet.orchestrators[0])
        there = [each for each in fleet.up() if each is not away]
        await until(lambda: fleet.agree(council_id, nodes=there), 60)
        assert summary(away, council_id) is None
        fleet.heal()
        await until(lambda: fleet.agree(council_id), 120)
        assert_fenced(fleet)


async def test_agents_that_start_after_the_opportunity_fill_it(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=4) as fleet:
        gone = fleet.agents[0]
        fleet.fleet.stop(gone)
        await trio.sleep(20)
        council_id = await create(fleet.orchestrators[0])
        await trio.sleep(20)
        assert fleet.up()[0].node.council(council_id)["missing"] == ["architect"]
        fleet.again(gone, fleet.orchestrators[0])
        await until(lambda: fleet.agree(council_id), 60)
        assert_fenced(fleet)


async def test_a_council_that_is_not_filled_in_time_expires_everywhere(autojump_clock: MockClock) -> None:
    settings = CouncilSettings(formation_seconds=20)
    async with open_council_fleet(agents=3, settings=settings) as fleet:
        council_id = await create(fleet.orchestrators[0], core_roles=["architect", *(f"r{n}" for n in range(9))])
        fleet.split(fleet.orchestrators, fleet.agents)
        await trio.sleep(25)
        fleet.heal()
        await until(lambda: fleet.agree(council_id, "expired"), 120)
        await trio.sleep(10)
        before = fleet.said()
        await trio.sleep(60)
        assert fleet.said() == before


# -- the owner's restart ---------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.08, 0.12, 0.2, 0.3])
async def test_an_owner_killed_while_a_council_forms_goes_on_after_its_restart(
    autojump_clock: MockClock, seconds: float
) -> None:
    async with open_council_fleet() as fleet:
        council_id = await create(fleet.orchestrators[0])
        await trio.sleep(seconds)
        fleet.fleet.stop(fleet.orchestrators[0])
        await trio.sleep(3)
        owner = fleet.again(fleet.orchestrators[0], fleet.agents[0])
        await until(lambda: fleet.agree(council_id), 120)
        document = owner.node.council(council_id)
        assert (document["owner"], document["term"]) == (owner.peer_id, 1)
        assert_fenced(fleet)
        await trio.sleep(30)
        before = fleet.said()
        await trio.sleep(60)
        assert fleet.said() == before


async def test_an_owner_that_lost_its_store_hears_its_own_decisions_before_it_makes_new_ones(
    autojump_clock: MockClock,
) -> None:
    async with open_council_fleet() as fleet:
        council_id = await create(fleet.orchestrators[0])
        await until(lambda: fleet.agree(council_id), 60)
        before = summary(fleet.agents[0], council_id)
        fleet.fleet.stop(fleet.orchestrators[0])
        await trio.sleep(3)
        owner = fleet.again(fleet.orchestrators[0], fleet.agents[0], forgets=True)
        await until(lambda: summary(owner, council_id) == before, 60)
        await trio.sleep(30)
        assert fleet.agree(council_id)
        assert summary(owner, council_id) == before
        assert_fenced(fleet)


# -- takeover --------------------------------------------------------------------------


async def test_the_second_orchestrator_takes_a_council_over_and_the_first_yields_when_it_comes_back(
    autojump_clock: MockClock,
) -> None:
    async with open_council_fleet(orchestrators=2) as fleet:
        first, second = fleet.orchestrators
        council_id = await create(first)
        fleet.fleet.stop(first)
        await until(lambda: fleet.agree(council_id), 120)
        document = second.node.council(council_id)
        assert (document["owner"], document["term"]) == (second.peer_id, 2)
        holders = {seat["role_name"]: seat["peer_id"] for seat in document["roles"]}
        back = fleet.again(first, second)
        await until(lambda: fleet.agree(council_id), 60)
        await trio.sleep(30)
        document = back.node.council(council_id)
        assert (document["owner"], document["term"]) == (second.peer_id, 2)
        assert {seat["role_name"]: seat["peer_id"] for seat in document["roles"]} == holders
        assert fleet.agree(council_id)
        assert_fenced(fleet)
        before = fleet.said()
        await trio.sleep(60)
        assert fleet.said() == before


async def test_an_active_council_keeps_its_holders_when_it_is_taken_over(autojump_clock: MockClock) -> None:
    async with open_council_fleet(orchestrators=2) as fleet:
        first, second = fleet.orchestrators
        council_id = await create(first)
        await until(lambda: fleet.agree(council_id), 60)
        seats = second.node.council(council_id)["roles"]
        fleet.fleet.stop(first)
        await until(lambda: second.node.council(council_id)["term"] == 2, 120)
        await until(lambda: fleet.agree(council_id), 10)
        assert second.node.council(council_id)["roles"] == seats


async def test_the_next_in_line_takes_over_and_nobody_else_does(autojump_clock: MockClock) -> None:
    async with open_council_fleet(orchestrators=4) as fleet:
        first, *others = fleet.orchestrators
        council_id = await create(first)
        fleet.fleet.stop(first)
        await until(lambda: take_overs(fleet) > 0, 120)
        await until(lambda: fleet.agree(council_id), 60)
        await trio.sleep(30)
        assert take_overs(fleet) == 1
        assert others[0].node.council(council_id)["owner"] == max(each.peer_id for each in others)


@pytest.mark.parametrize(("policy", "takes"), [("majority", False), ("any", True), ("off", False)])
async def test_without_a_majority_only_the_policy_any_takes_over(
    autojump_clock: MockClock, policy: Policy, takes: bool
) -> None:
    settings = CouncilSettings(takeover=policy)
    async with open_council_fleet(agents=7, orchestrators=2, settings=settings) as fleet:
        first, second = fleet.orchestrators
        council_id = await create(first)
        await until(lambda: fleet.agree(council_id), 60)
        seats = [seat["peer_id"] for seat in second.node.council(council_id)["roles"]]
        for each in [each for each in fleet.agents if each.peer_id not in seats] + fleet.agents:
            if len(fleet.up()) > 5:
                fleet.fleet.stop(each) if each in fleet.up() else None
        fleet.fleet.stop(first)
        await trio.sleep(60)
        assert (second.node.council(council_id)["term"] == 2) is takes


@pytest.mark.parametrize(("policy", "takes"), [("majority", True), ("off", False)])
async def test_with_a_majority_all_policies_but_off_take_over(
    autojump_clock: MockClock, policy: Policy, takes: bool
) -> None:
    async with open_council_fleet(orchestrators=2, settings=CouncilSettings(takeover=policy)) as fleet:
        council_id = await create(fleet.orchestrators[0])
        fleet.fleet.stop(fleet.orchestrators[0])
        await trio.sleep(60)
        assert (fleet.orchestrators[1].node.council(council_id)["term"] == 2) is takes
        assert (fleet.orchestrators[1].node.council(council_id)["status"] == "active") is takes


async def test_a_majority_that_comes_back_lets_the_waiting_orchestrator_take_over(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=8, orchestrators=2) as fleet:
        first, second = fleet.orchestrators
        council_id = await create(first)
        await until(lambda: fleet.agree(council_id), 60)
        gone = fleet.agents[:6]
        for each in (*gone, first):
            fleet.fleet.stop(each)
        await trio.sleep(60)
        assert second.node.council(council_id)["term"] == 1
        for each in gone:
            fleet.again(each, second)
        await until(lambda: second.node.council(council_id)["term"] == 2, 120)
        await until(lambda: fleet.agree(council_id), 60)
        assert_fenced(fleet)


# -- a fleet cut apart -----------------------------------------------------------------


def assert_peaceful(fleet: CouncilFleet, council_id: str, said: int) -> None:
    assert fleet.said() == said
    assert fleet.agree(council_id)
    assert_fenced(fleet)


async def test_both_sides_of_a_split_agree_on_the_higher_term_once_it_is_healed(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=12, orchestrators=2, settings=CouncilSettings(takeover="any")) as fleet:
        first, second = fleet.orchestrators
        council_id = await create(first)
        await until(lambda: fleet.agree(council_id), 60)
        here, there = [first, *fleet.agents[:6]], [second, *fleet.agents[6:]]
        fleet.split(here, there)
        await until(lambda: second.node.council(council_id)["term"] == 2, 120)
        await until(lambda: fleet.agree(council_id, nodes=there) and fleet.agree(council_id, nodes=here), 120)
        await trio.sleep(10)
        assert first.node.council(council_id)["term"] == 1
        before = fleet.said([STATUS_TOPIC])
        fleet.heal()
        await until(lambda: fleet.agree(council_id), 120)
        assert first.node.council(council_id)["owner"] == second.peer_id
        assert first.node._council_keeper.counted["yielded"] == 1
        assert second.node._council_keeper.counted["yielded"] == 0
        await trio.sleep(60)
        assert fleet.said([STATUS_TOPIC]) <= before + 10
        said = fleet.said()
        await trio.sleep(60)
        assert_peaceful(fleet, council_id, said)


async def test_of_two_that_took_over_under_one_term_the_higher_peer_id_decides(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=12, orchestrators=3, settings=CouncilSettings(takeover="any")) as fleet:
        first, second, third = fleet.orchestrators
        council_id = await create(first)
        await until(lambda: fleet.agree(council_id), 60)
        here, there = [second, *fleet.agents[:6]], [third, *fleet.agents[6:]]
        fleet.split(here, there)
        fleet.fleet.stop(first)
        for each in (second, third):
            await until(lambda each=each: each.node.council(council_id)["owner"] == each.peer_id, 120)  # type: ignore[misc]
        await until(lambda: fleet.agree(council_id, nodes=there) and fleet.agree(council_id, nodes=here), 120)
        fleet.heal()
        await until(lambda: fleet.agree(council_id), 120)
        winner = max(second, third, key=lambda each: each.peer_id)
        assert {each.node.council(council_id)["owner"] for each in fleet.up()} == {winner.peer_id}
        await trio.sleep(60)
        said = fleet.said()
        await trio.sleep(60)
        assert_peaceful(fleet, council_id, said)


# -- holders ---------------------------------------------------------------------------


async def test_the_role_of_a_dead_agent_is_filled_again(autojump_clock: MockClock) -> None:
    async with open_council_fleet() as fleet:
        council_id = await create(fleet.orchestrators[0])
        await until(lambda: fleet.agree(council_id), 60)
        holder = fleet.holder(council_id, "architect")
        before = summary(fleet.orchestrators[0], council_id)
        fleet.fleet.stop(holder)

        def filled() -> bool:
            seat = seat_of(fleet.orchestrators[0], council_id, "architect")
            return bool(seat["state"] == "accepted" and seat["peer_id"] != holder.peer_id)

        await until(filled, 120)
        await until(lambda: fleet.agree(council_id), 10)
        after = summary(fleet.orchestrators[0], council_id)
        assert before is not None
        assert after is not None
        assert [seat for seat in after["roles"] if seat[0] != "architect"] == [
            seat for seat in before["roles"] if seat[0] != "architect"
        ]
        assert_fenced(fleet)


async def test_a_holder_that_comes_back_late_finds_its_role_given_to_another(autojump_clock: MockClock) -> None:
    async with open_council_fleet() as fleet:
        council_id = await create(fleet.orchestrators[0])
        await until(lambda: fleet.agree(council_id), 60)
        holder = fleet.holder(council_id, "architect")
        fleet.fleet.stop(holder)
        await until(
            lambda: seat_of(fleet.up()[0], council_id, "architect")["peer_id"] not in (None, holder.peer_id), 120
        )
        back = fleet.again(holder, fleet.orchestrators[0])
        await until(lambda: fleet.agree(council_id), 60)
        assert back.node.council(council_id)["mine"] == []


async def test_a_released_role_goes_to_another_agent_and_is_not_claimed_again_by_the_first(
    autojump_clock: MockClock,
) -> None:
    async with open_council_fleet() as fleet:
        council_id = await create(fleet.orchestrators[0])
        await until(lambda: fleet.agree(council_id), 60)
        holder = fleet.holder(council_id, "architect")
        await holder.node.release_role(council_id, {"role_name": "architect", "reason": "out of tokens"})
        await until(lambda: seat_of(holder, council_id, "architect")["peer_id"] not in (None, holder.peer_id), 60)
        await until(lambda: seat_of(holder, council_id, "architect")["state"] == "accepted", 10)
        assert holder.node.council(council_id)["mine"] == []
        await trio.sleep(30)
        said = fleet.said()
        await trio.sleep(60)
        assert_peaceful(fleet, council_id, said)


async def test_a_draining_agent_gives_back_what_it_is_given(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2, agent_settings=CouncilSettings()) as fleet:
        council_id = await create(fleet.orchestrators[0], core_roles=["architect"], optional_roles=[])
        agent = fleet.agents[0]
        await until(lambda: summary(agent, council_id) is not None)
        await agent.node.claim_role(council_id, {"role_name": "architect"})
        agent.members.update_own(dataclasses.replace(agent.members.own, status="draining"))
        await until(lambda: agent.node._council_keeper.counted["refused"] > 0, 30)
        await trio.sleep(30)
        assert agent.node._council_keeper.counted["refused"] == 1
        assert agent.node._council_keeper.counted["acceptances"] == 0
        assert seat_of(fleet.orchestrators[0], council_id, "architect")["state"] == "open"


async def test_an_assignment_that_nobody_asked_for_is_given_back_once(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2, agent_settings=CouncilSettings()) as fleet:
        owner, agent = fleet.orchestrators[0], fleet.agents[0]
        council_id = await create(owner, core_roles=["architect"], optional_roles=[])
        await trio.sleep(1)
        seat = {"role_name": "architect", "required": True, "state": "assigned", "agent_id": "x", "term": 1, "n": 7}
        forced = {"council_id": council_id, "status": "forming", "term": 1, "n": 7}
        forced["roles"] = [{**seat, "peer_id": agent.peer_id}]
        await owner.node._say(STATUS_TOPIC, json.dumps(forced).encode())
        await until(lambda: agent.node._council_keeper.counted["refused"] > 0, 30)
        await until(lambda: seat_of(agent, council_id, "architect")["state"] == "open", 30)
        await trio.sleep(30)
        assert agent.node._council_keeper.counted["refused"] == 1
        said = fleet.said()
        await trio.sleep(60)
        assert fleet.said() == said


# -- what may not stop the process -----------------------------------------------------


async def forms(fleet: CouncilFleet, owner: Running) -> None:
    """The process still does its work."""
    council_id = await create(owner)
    await until(lambda: fleet.agree(council_id, nodes=[owner, *fleet.agents]), 60)


@pytest.mark.parametrize(
    "members",
    [
        {"project_brief": "b" * 65_000, "metadata": {"notes": "x" * 196_400}},
        {"metadata": json.loads('{"a":' * 127 + "1" + "}" * 127)},
    ],
    ids=["large", "deep"],
)
async def test_an_opportunity_that_does_not_fit_into_a_decision_is_left_out_of_it(
    autojump_clock: MockClock, members: dict[str, Any]
) -> None:
    async with open_council_fleet() as fleet:
        owner = fleet.orchestrators[0]
        council_id = await create(owner, **members)
        await until(lambda: fleet.agree(council_id), 60)
        assert all("opportunity" not in document for _, document in decisions(fleet))
        await forms(fleet, owner)


def outrageous() -> dict[str, object]:
    skills = [f"skill-{number:03d}-{'s' * 14}" for number in range(64)]
    roles = [{"role_name": f"role-{number}", "required_skills": skills} for number in range(128)]
    assert 220_000 < len(json.dumps(roles)) < 262_000
    return {"core_roles": roles[:64], "optional_roles": roles[64:]}


async def test_a_council_whose_decisions_fit_into_no_message_stops_nobody(autojump_clock: MockClock) -> None:
    async with open_council_fleet(settings=CouncilSettings(takeover="any")) as fleet:
        owner = fleet.orchestrators[0]
        council_id = str(uuid.uuid4())
        raw = says(STRANGER, OPPORTUNITY_TOPIC, {**REQUEST, **outrageous(), "council_id": council_id})
        owner.gossip.receive(raw, fleet.agents[0].peer_id)
        for number in range(1, 129):
            claim = {"council_id": council_id, "role_name": f"role-{number - 1}", "agent_id": "a" * 250}
            owner.gossip.receive(
                says(Identity(bytes([number]) * 32), CLAIMS_TOPIC, {**claim, "agent_name": "n" * 250}),
                fleet.agents[0].peer_id,
            )
        await until(lambda: owner.node._council_keeper.counted["failed"] > 0, 60)
        failed = owner.node._council_keeper.counted["failed"]
        await trio.sleep(30)
        assert owner.node._council_keeper.counted["failed"] <= failed + 1
        await forms(fleet, owner)


async def test_half_a_surrogate_pair_in_an_opportunity_stops_nobody(autojump_clock: MockClock) -> None:
    async with open_council_fleet(settings=CouncilSettings(takeover="any")) as fleet:
        owner = fleet.orchestrators[0]
        document = {**REQUEST, "council_id": str(uuid.uuid4()), "metadata": {"a": "\ud800"}}
        owner.gossip.receive(says(STRANGER, OPPORTUNITY_TOPIC, document), fleet.agents[0].peer_id)
        role = {"role_name": "r", "note": "\ud800"}
        document = {"council_id": str(uuid.uuid4()), "status": "forming", "term": 1, "n": 1, "roles": [role]}
        owner.gossip.receive(says(STRANGER, STATUS_TOPIC, document, number=2), fleet.agents[0].peer_id)
        await trio.sleep(30)
        assert take_overs(fleet) == 1
        await forms(fleet, owner)


async def test_an_owner_whose_disk_is_full_goes_on_when_there_is_room_again(autojump_clock: MockClock) -> None:
    async with open_council_fleet() as fleet:
        owner = fleet.orchestrators[0]
        council_id = await create(owner)
        await until(lambda: seat_of(owner, council_id, "architect")["claims"] > 0, 5)
        owner.store.failing = EnvironmentFault("cannot write messages.db: No space left on device")
        await until(lambda: owner.node._council_keeper.counted["failed"] > 2, 60)
        owner.store.failing = None
        await until(lambda: fleet.agree(council_id), 120)
        assert_fenced(fleet)
        metrics = owner.node.metrics()
        assert metrics[f'whoosh_broadcast_error_total{{council_id="{council_id}"}}'] > 0


# -- metrics ---------------------------------------------------------------------------


async def test_councils_are_counted_under_the_names_that_operators_chart(autojump_clock: MockClock) -> None:
    async with open_council_fleet() as fleet:
        owner = fleet.orchestrators[0]
        council_id = await create(owner)
        await until(lambda: fleet.agree(council_id), 60)
        metrics = owner.node.metrics()
        assert metrics['p2pnode_councils{status="active"}'] == 1
        assert metrics['p2pnode_councils{status="forming"}'] == 0
        assert metrics['p2pnode_council_acts_total{what="decisions"}'] >= 2
        assert metrics[f'whoosh_broadcast_success_total{{council_id="{council_id}"}}'] >= 3
        assert metrics[f'whoosh_broadcast_error_total{{council_id="{council_id}"}}'] == 0
        assert metrics["p2pnode_council_watchers"] == 0
        holder = fleet.holder(council_id, "architect").node.metrics()
        assert holder["chorus_council_opportunity_handled_total"] == 1
        assert holder['p2pnode_council_acts_total{what="claims"}'] >= 1
        assert holder['p2pnode_council_acts_total{what="acceptances"}'] == 1
