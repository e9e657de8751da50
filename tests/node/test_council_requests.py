"""What the agent asks about councils: what is answered, what is refused and why, and that a refusal leaves no trace."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.council import table as table_module
from p2pnode.errors import (
    CallerError,
    Conflict,
    EnvironmentFault,
    Forbidden,
    InvalidRequest,
    NotFound,
    TooBusy,
)
from p2pnode.node.councils import CouncilSettings
from tests.node.council_fleet import (
    REQUEST,
    TOPICS,
    CouncilFleet,
    create,
    open_council_fleet,
    seat_of,
    summary,
)
from tests.node.fakes import START_NS, Running, open_fleet, until

COUNCIL = "5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e11"
OTHER = "5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e12"
BY_HAND = CouncilSettings()


@asynccontextmanager
async def open_orchestrator(settings: CouncilSettings | None = None) -> AsyncIterator[Running]:
    """One orchestrator, alone."""
    async with open_fleet() as fleet:
        node = fleet.add(role="whoosh", topics=TOPICS, councils=settings)
        fleet.start(node)
        await until(node.node._council_keeper.loaded.is_set)
        yield node


def said(node: Running) -> int:
    return sum(each.topic in TOPICS for each in node.gossip.sent)


# -- create ----------------------------------------------------------------------------


async def test_what_a_request_leaves_out_is_filled_in(autojump_clock: MockClock) -> None:
    async with open_orchestrator() as node:
        made = await node.node.create_council(REQUEST, idempotency_key=None)
        assert str(uuid.UUID(made["council_id"])) == made["council_id"]
        assert made["id"].startswith(node.peer_id)
        assert "duplicate" not in made
        assert (made["status"], made["term"], made["owner"]) == ("forming", 1, node.peer_id)
        assert made["created_at"] == "2025-11-23T12:00:00Z" or made["created_at"].startswith("2025-11-23T12:00:0")
        deadline = node.node._council_keeper.table.get(made["council_id"])
        assert deadline is not None
        assert abs(deadline.deadline_ns - START_NS - 600 * 10**9) < 5 * 10**9
        assert made["missing"] == ["architect", "developer", "tester"]
        assert [seat["role_name"] for seat in made["roles"]] == ["architect", "developer", "tester", "operator"]
        assert node.node.council(made["council_id"])["claims"] == []


async def test_what_a_request_says_is_kept(autojump_clock: MockClock) -> None:
    said_so = {
        "council_id": COUNCIL,
        "created_at": "2025-11-01T00:00:00Z",
        "formation_deadline": "2025-11-24T12:00:00Z",
        "metadata": {"priority": 3},
        "ucxl_address": None,
    }
    async with open_orchestrator() as node:
        made = await node.node.create_council({**REQUEST, **said_so}, idempotency_key=None)
        assert {name: made[name] for name in said_so} == said_so


async def test_a_key_used_again_gives_the_same_council(autojump_clock: MockClock) -> None:
    async with open_orchestrator() as node:
        first = await node.node.create_council(REQUEST, idempotency_key="k")
        await trio.sleep(5)
        before = said(node)
        again = await node.node.create_council(REQUEST, idempotency_key="k")
        assert again["duplicate"] is True
        assert again["council_id"] == first["council_id"]
        assert said(node) == before
        other = await node.node.create_council(REQUEST, idempotency_key="l")
        assert other["council_id"] != first["council_id"]
        with pytest.raises(Conflict) as caught:
            await node.node.create_council({**REQUEST, "project_name": "Other"}, idempotency_key="k")
        assert (caught.value.reason, caught.value.facts) == ("exists", {"council_id": first["council_id"]})


async def test_a_council_id_used_again_is_a_duplicate_or_a_contradiction(autojump_clock: MockClock) -> None:
    async with open_orchestrator() as node:
        request = {**REQUEST, "council_id": COUNCIL.upper(), "core_roles": ["a", "b"]}
        await node.node.create_council(request, idempotency_key=None)
        same = {**request, "council_id": COUNCIL, "core_roles": [{"role_name": "a"}, "b"]}
        assert (await node.node.create_council(same, idempotency_key=None))["duplicate"] is True
        for change in ({"core_roles": ["a"]}, {"metadata": {"a": 1}}, {"formation_deadline": "2031-01-01T00:00:00Z"}):
            with pytest.raises(Conflict) as caught:
                await node.node.create_council({**request, **change}, idempotency_key=None)
            assert caught.value.reason == "exists"
        assert len(node.node.councils(status=None)) == 1


async def test_creates_at_once_with_one_key_make_one_council(autojump_clock: MockClock) -> None:
    async with open_orchestrator() as node:
        made: list[dict[str, Any]] = []

        async def one() -> None:
            made.append(dict(await node.node.create_council(REQUEST, idempotency_key="k")))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert len({each["council_id"] for each in made}) == 1
        assert sum("duplicate" in each for each in made) == 9
        assert len(node.node.councils(status=None)) == 1


async def test_a_key_is_remembered_over_a_restart(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=1, agent_settings=BY_HAND) as fleet:
        council_id = await create(fleet.orchestrators[0], key="k")
        fleet.fleet.stop(fleet.orchestrators[0])
        await trio.sleep(1)
        node = fleet.again(fleet.orchestrators[0], fleet.agents[0])
        again = await node.node.create_council(REQUEST, idempotency_key="k")
        assert (again["council_id"], again["duplicate"]) == (council_id, True)


async def test_only_orchestrators_create_councils_where_they_are_named(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        other = fleet.add()
        node = fleet.add(topics=TOPICS, councils=CouncilSettings(orchestrators=frozenset({other.peer_id})))
        fleet.start(node)
        with pytest.raises(Forbidden, match=r"trust\.orchestrators"):
            await node.node.create_council(REQUEST, idempotency_key=None)
        assert said(node) == 0


async def test_a_full_table_takes_no_new_council(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "MAX_COUNCILS", 2)
    async with open_orchestrator() as node:
        first = await create(node)
        await create(node)
        with pytest.raises(TooBusy) as caught:
            await create(node)
        assert caught.value.reason == "councils"
        assert len(node.node.councils(status=None)) == 2
        await node.node.report_status(first, {"status": "cancelled"})
        await until(lambda: node.node.council(first)["status"] == "cancelled", 10)
        await create(node)
        assert len(node.node.councils(status=None)) == 2


async def test_a_council_that_cannot_be_stored_is_not_there(autojump_clock: MockClock) -> None:
    async with open_orchestrator() as node:
        node.store.failing = EnvironmentFault("cannot write messages.db: No space left on device")
        with pytest.raises(EnvironmentFault, match="No space left"):
            await node.node.create_council(REQUEST, idempotency_key="k")
        assert node.node.councils(status=None) == []
        node.store.failing = None
        await trio.sleep(10)
        made = await node.node.create_council(REQUEST, idempotency_key="k")
        assert "duplicate" not in made


SKILLS = [f"skill-{number:03d}-{'s' * 40}" for number in range(64)]
WRONG: list[tuple[dict[str, object], str]] = [
    ({"council_id": "c-1"}, "council_id"),
    ({"council_id": 7}, "council_id"),
    ({"project_name": None}, "project_name"),
    ({"project_name": " "}, "project_name"),
    ({"project_name": "p" * 257}, "project_name"),
    ({"repository": 3}, "repository"),
    ({"core_roles": []}, "core_roles"),
    ({"core_roles": "architect"}, "core_roles"),
    ({"core_roles": [{"agent_name": "a"}]}, "core_roles[0].role_name"),
    ({"core_roles": ["a", {"role_name": "b", "required_skills": "x"}]}, "core_roles[1].required_skills"),
    ({"core_roles": ["a", "a"]}, "core_roles[1].role_name"),
    ({"core_roles": ["a"] * 65}, "core_roles"),
    ({"formation_deadline": "tomorrow"}, "formation_deadline"),
    ({"formation_deadline": "2020-01-01T00:00:00Z"}, "formation_deadline"),
    ({"formation_deadline": "2030-01-01T00:00:00"}, "formation_deadline"),
    ({"ucxl_address": "http://x"}, "ucxl_address"),
    ({"metadata": []}, "metadata"),
    ({"metadata": {"a": "\ud800"}}, "metadata"),
    ({"p2pnode": {}}, "p2pnode"),
    ({"core_roles": [{"role_name": f"r{n}", "required_skills": SKILLS} for n in range(64)]}, "core_roles"),
]


@pytest.mark.parametrize(("change", "field"), WRONG, ids=[f"{n}-{field}" for n, (_, field) in enumerate(WRONG)])
async def test_a_malformed_opportunity_is_refused_by_field_and_leaves_nothing(
    autojump_clock: MockClock, change: dict[str, object], field: str
) -> None:
    async with open_orchestrator() as node:
        with pytest.raises(InvalidRequest) as caught:
            await node.node.create_council({**REQUEST, **change}, idempotency_key="k")
        assert field in [fault.field for fault in caught.value.faults]
        assert node.node.councils(status=None) == []
        assert said(node) == 0


# -- reading ---------------------------------------------------------------------------


async def test_councils_are_listed_newest_first_and_by_status(autojump_clock: MockClock) -> None:
    async with open_orchestrator() as node:
        ids = []
        for _ in range(3):
            ids.append(await create(node))
            await trio.sleep(1)
        await node.node.report_status(ids[1], {"status": "cancelled", "message": "no money"})
        await until(lambda: node.node.council(ids[1])["status"] == "cancelled", 10)
        assert [each["council_id"] for each in node.node.councils(status=None)] == ids[::-1]
        assert [each["council_id"] for each in node.node.councils(status="forming")] == [ids[2], ids[0]]
        assert [each["council_id"] for each in node.node.councils(status="cancelled")] == [ids[1]]
        assert node.node.council(ids[1])["message"] == "no money"
        assert node.node.councils(status="active") == []
        with pytest.raises(InvalidRequest) as caught:
            node.node.councils(status="alive")
        assert [fault.field for fault in caught.value.faults] == ["status"]


async def test_every_request_about_an_unknown_council_says_so(autojump_clock: MockClock) -> None:
    async def watch(node: Running, council_id: str) -> None:
        async with node.node.watch_councils(council_id):
            pass

    async def show(node: Running, council_id: str) -> None:
        node.node.council(council_id)

    asks: list[Callable[[Running, str], Awaitable[object]]] = [
        show,
        watch,
        lambda node, council_id: node.node.claim_role(council_id, {"role_name": "a"}),
        lambda node, council_id: node.node.release_role(council_id, {"role_name": "a"}),
        lambda node, council_id: node.node.report_status(council_id, {"status": "failed"}),
    ]
    async with open_orchestrator() as node:
        for ask in asks:
            with pytest.raises(NotFound, match=COUNCIL):
                await ask(node, COUNCIL)
            with pytest.raises(InvalidRequest) as caught:
                await ask(node, "no-uuid")
            assert [fault.field for fault in caught.value.faults] == ["council_id"]
        assert said(node) == 0


# -- claims and releases ---------------------------------------------------------------


async def seated(fleet: CouncilFleet, role: str = "architect", agent: int = 0) -> str:
    """A council in which one agent holds one role."""
    council_id = await create(fleet.orchestrators[0], core_roles=["architect", "tester"], optional_roles=[])
    node = fleet.agents[agent]
    await until(lambda: all(summary(each, council_id) is not None for each in fleet.agents), 10)
    answer = await node.node.claim_role(council_id, {"role_name": role})
    assert {**answer, "id": ""} == {
        "id": "",
        "council_id": council_id,
        "role_name": role,
        "agent_id": node.members.own.name,
    }
    await until(
        lambda: all(seat_of(each, council_id, role)["state"] == "accepted" for each in fleet.up()),
        30,
    )
    return council_id


async def test_a_claim_is_shown_with_what_the_agent_says_of_itself(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2, agent_settings=BY_HAND) as fleet:
        council_id = await create(fleet.orchestrators[0])
        agent = fleet.agents[0]
        await until(lambda: summary(agent, council_id) is not None)
        await agent.node.claim_role(council_id, {"role_name": "architect", "confidence": 0.8})
        (claim,) = agent.node.council(council_id)["claims"]
        assert claim["role_name"] == "architect"
        assert claim["agent_id"] == claim["agent_name"] == claim["name"] == agent.members.own.name
        assert (claim["capabilities"], claim["fit"], claim["running_roles"]) == (["design"], 1.0, 0)
        assert claim["confidence"] == 0.8
        await agent.node.claim_role(council_id, {"role_name": "tester", "agent_id": "second", "capabilities": ["x"]})
        last = agent.node.council(council_id)["claims"][-1]
        assert (last["agent_id"], last["fit"], last["peer_id"]) == ("second", 0.0, agent.peer_id)


async def test_a_claim_on_a_filled_role_says_who_holds_it(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2, agent_settings=BY_HAND) as fleet:
        council_id = await seated(fleet)
        holder, other = fleet.agents
        seat = seat_of(other, council_id, "architect")
        with pytest.raises(Conflict, match="holds architect") as caught:
            await other.node.claim_role(council_id, {"role_name": "architect"})
        assert caught.value.reason == "filled"
        assert caught.value.facts == {
            "role_name": "architect",
            "agent_id": holder.members.own.name,
            "agent_name": holder.members.own.name,
            "peer_id": holder.peer_id,
            "term": seat["term"],
            "n": seat["n"],
        }
        with pytest.raises(Conflict):
            await holder.node.claim_role(council_id, {"role_name": "architect", "agent_id": "another"})
        await holder.node.claim_role(council_id, {"role_name": "architect"})
        await trio.sleep(5)
        assert seat_of(other, council_id, "architect") == {**seat, "claims": 1}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "role_name"),
        ({"role_name": " "}, "role_name"),
        ({"role_name": 7}, "role_name"),
        ({"role_name": "architect", "agent_id": ["a"]}, "agent_id"),
        ({"role_name": "architect", "agent_id": "a" * 257}, "agent_id"),
        ({"role_name": "architect", "capabilities": "design"}, "capabilities"),
        ({"role_name": "architect", "capabilities": [""]}, "capabilities[0]"),
        ({"role_name": "architect", "confidence": 2}, "confidence"),
        ({"role_name": "architect", "claimed_at": 1700000000}, "claimed_at"),
        ({"role_name": "architect", "kind": "accept"}, "kind"),
        ({"role_name": "architect", "term": 1}, "term"),
        ({"role_name": "architect", "running_roles": 0}, "running_roles"),
    ],
)
async def test_a_malformed_claim_is_refused_by_field(
    autojump_clock: MockClock, document: dict[str, object], field: str
) -> None:
    async with open_orchestrator() as node:
        council_id = await create(node)
        before = said(node)
        with pytest.raises(InvalidRequest) as caught:
            await node.node.claim_role(council_id, document)
        assert field in [fault.field for fault in caught.value.faults]
        assert said(node) == before


async def test_a_role_that_is_none_is_named_with_those_that_are(autojump_clock: MockClock) -> None:
    async with open_orchestrator() as node:
        council_id = await create(node)
        for ask in (node.node.claim_role, node.node.release_role):
            with pytest.raises(NotFound, match="no role 'poet'; it has architect, developer, tester, operator"):
                await ask(council_id, {"role_name": "poet"})


async def test_who_neither_holds_nor_claims_a_role_releases_nothing(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2, agent_settings=BY_HAND) as fleet:
        council_id = await seated(fleet)
        other = fleet.agents[1]
        with pytest.raises(NotFound, match="neither holds nor claims architect"):
            await other.node.release_role(council_id, {"role_name": "architect"})
        with pytest.raises(InvalidRequest) as caught:
            await other.node.release_role(council_id, {"role_name": "architect", "confidence": 1})
        assert [fault.field for fault in caught.value.faults] == ["confidence"]


async def test_a_claim_can_be_taken_back_before_it_is_decided(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2, agent_settings=BY_HAND) as fleet:
        council_id = await create(fleet.orchestrators[0])
        agent = fleet.agents[0]
        await until(lambda: summary(agent, council_id) is not None)
        await agent.node.claim_role(council_id, {"role_name": "architect"})
        await agent.node.release_role(council_id, {"role_name": "architect", "reason": "busy"})
        await trio.sleep(20)
        assert seat_of(agent, council_id, "architect")["state"] == "open"
        assert agent.node.council(council_id)["claims"] == []


async def test_a_released_role_can_be_claimed_again(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2, agent_settings=BY_HAND) as fleet:
        council_id = await seated(fleet)
        agent, other = fleet.agents
        first = seat_of(agent, council_id, "architect")
        await agent.node.release_role(council_id, {"role_name": "architect"})
        await until(lambda: seat_of(other, council_id, "architect")["state"] == "open", 30)
        await other.node.claim_role(council_id, {"role_name": "architect"})
        await until(lambda: seat_of(agent, council_id, "architect")["peer_id"] == other.peer_id, 30)
        second = seat_of(agent, council_id, "architect")
        assert (second["term"], second["n"]) > (first["term"], first["n"])


# -- status ----------------------------------------------------------------------------


async def refused(ask: Awaitable[object], kind: type[CallerError]) -> Any:
    with pytest.raises(kind) as caught:
        await ask
    return caught.value


async def test_an_orchestrators_word_ends_a_council_everywhere(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2, orchestrators=2, agent_settings=BY_HAND) as fleet:
        council_id = await seated(fleet)
        owner, second = fleet.orchestrators
        error = await refused(second.node.report_status(council_id, {"status": "completed"}), Conflict)
        assert (error.reason, error.facts) == ("transition", {"council_status": "forming"})
        answer = await second.node.report_status(council_id, {"status": "cancelled", "message": "no money"})
        assert (answer["council_id"], answer["status"]) == (council_id, "cancelled")
        await until(lambda: fleet.agree(council_id, "cancelled"), 10)
        assert fleet.agents[0].node.council(council_id)["message"] == "no money"
        for ask in (
            owner.node.report_status(council_id, {"status": "failed"}),
            fleet.agents[0].node.claim_role(council_id, {"role_name": "tester"}),
            fleet.agents[0].node.report_status(council_id, {"status": "completed"}),
        ):
            error = await refused(ask, Conflict)
            assert (error.reason, error.facts) == ("ended", {"council_status": "cancelled"})


async def test_who_is_neither_orchestrator_nor_holder_reports_nothing(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2, agent_settings=BY_HAND) as fleet:
        council_id = await seated(fleet)
        await refused(fleet.agents[1].node.report_status(council_id, {"status": "failed"}), Forbidden)
        fence = {"status": "failed", "term": 1, "n": 1}
        error = await refused(fleet.agents[1].node.report_status(council_id, fence), Conflict)
        assert (error.reason, error.facts) == ("stale", {"roles": []})


async def test_a_holder_reports_under_its_fencing_number_and_under_no_other(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2, agent_settings=BY_HAND) as fleet:
        council_id = await seated(fleet)
        agent = fleet.agents[0]
        seat = seat_of(agent, council_id, "architect")
        fence = {"term": seat["term"], "n": seat["n"]}
        await agent.node.report_status(council_id, {"status": "active", "message": "half done", **fence})
        await until(lambda: len(fleet.orchestrators[0].node.council(council_id)["reports"]) == 1, 10)
        (report,) = fleet.orchestrators[0].node.council(council_id)["reports"]
        assert (report["role_name"], report["message"], report["peer_id"]) == ("architect", "half done", agent.peer_id)
        stale = {"status": "active", "term": seat["term"], "n": seat["n"] + 1}
        error = await refused(agent.node.report_status(council_id, stale), Conflict)
        assert (error.reason, error.facts) == ("stale", {"roles": [{"role_name": "architect", **fence}]})
        await agent.node.release_role(council_id, {"role_name": "architect"})
        await until(lambda: seat_of(agent, council_id, "architect")["state"] == "open", 30)
        error = await refused(agent.node.report_status(council_id, {"status": "active", **fence}), Conflict)
        assert error.reason == "stale"


async def test_who_holds_two_roles_names_the_one_it_reports_on(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=1, agent_settings=BY_HAND) as fleet:
        council_id = await seated(fleet)
        agent = fleet.agents[0]
        await agent.node.claim_role(council_id, {"role_name": "tester"})
        await until(lambda: fleet.agree(council_id), 30)
        error = await refused(agent.node.report_status(council_id, {"status": "completed"}), InvalidRequest)
        assert [str(fault) for fault in error.faults] == ["role_name: name the role it is about: architect, tester"]
        for role in ("architect", "tester"):
            await agent.node.report_status(council_id, {"status": "completed", "role_name": role})
        await until(lambda: fleet.agree(council_id, "completed"), 10)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "status"),
        ({"status": "done"}, "status"),
        ({"status": "failed", "message": "m" * 5000}, "message"),
        ({"status": "failed", "roles": []}, "roles"),
        ({"status": "failed", "opportunity": {}}, "opportunity"),
        ({"status": "failed", "term": 1}, "n"),
        ({"status": "failed", "n": 1}, "term"),
        ({"status": "failed", "term": 0, "n": 1}, "term"),
        ({"status": "failed", "term": True, "n": 1}, "term"),
        ({"status": "failed", "term": 1, "n": "1"}, "n"),
        ({"status": "failed", "role_name": 7}, "role_name"),
    ],
)
async def test_a_malformed_status_is_refused_by_field(
    autojump_clock: MockClock, document: dict[str, object], field: str
) -> None:
    async with open_orchestrator() as node:
        council_id = await create(node)
        before = said(node)
        error = await refused(node.node.report_status(council_id, document), InvalidRequest)
        assert field in [fault.field for fault in error.faults]
        assert said(node) == before


async def test_where_orchestrators_are_named_the_role_alone_makes_none(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add(role="whoosh", topics=TOPICS)
        trust = CouncilSettings(orchestrators=frozenset({first.peer_id}))
        other = fleet.add(role="whoosh", topics=TOPICS, councils=trust, bootstrap=[first.addr])
        fleet.start(first, other)
        await until(lambda: len(other.members.alive()) == 2)
        council_id = await create(first)
        await until(lambda: summary(other, council_id) is not None)
        await refused(other.node.report_status(council_id, {"status": "cancelled"}), Forbidden)
