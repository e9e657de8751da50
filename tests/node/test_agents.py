"""The agent registry: what agents say of themselves, who is asked for, and the last status claim of each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest
from trio.testing import MockClock

from p2pnode.core.backbeat import BACKBEAT_TOPIC
from p2pnode.core.council.council import Stamp
from p2pnode.core.membership.record import Member, MemberRecord, MemberState
from p2pnode.core.metadata import MAX_TIME_NS
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.errors import InvalidMessage, InvalidRequest
from p2pnode.node import agents as agents_module
from p2pnode.node.agents import Agents, host_and_port
from p2pnode.wire.payload import format_time
from tests.core.test_backbeat import CLAIM
from tests.node.fakes import START_NS, Running, open_fleet, until

NOW_NS = START_NS + 60 * 10**9


def peer(number: int) -> PeerId:
    return peer_id_text(b"\x12\x20" + number.to_bytes(32, "big"))


ME = MemberRecord(
    peer_id=peer(1),
    incarnation=7,
    name="alpha",
    role="chorus",
    status="online",
    addrs=("/ip4/10.0.0.1/tcp/9000", "/ip4/127.0.0.1/tcp/9000"),
    agent_id="chorus-1",
    capabilities=("backend", "Testing"),
    model="m1",
    endpoint="http://10.0.0.1:8080",
    cluster_id="docker-unified-stack",
)


class FakeFleet:
    """Members that are told."""

    def __init__(self) -> None:
        self.own = ME
        self.others: dict[PeerId, Member] = {}
        self.updates: list[MemberRecord] = []

    def add(self, number: int, **said: Any) -> MemberRecord:
        record = dataclasses.replace(ME, peer_id=peer(number), name=f"n{number}", **said)
        self.others[record.peer_id] = Member(record, MemberState.ALIVE, "gossip", START_NS, START_NS)
        return record

    def get(self, who: PeerId, /) -> Member | None:
        return {member.record.peer_id: member for member in self.alive()}.get(who)

    def alive(self) -> Sequence[Member]:
        return [Member(self.own, MemberState.ALIVE, "self", START_NS, START_NS), *self.others.values()]

    def update_own(self, record: MemberRecord, /) -> None:
        self.own = record
        self.updates.append(record)


class Bench:
    def __init__(self) -> None:
        self.fleet = FakeFleet()
        self.linked: set[PeerId] = set()
        self.agents = Agents(self.fleet, lambda: self.linked, lambda _: b"s" * 64, lambda: NOW_NS)

    def ids(self, **asked: str) -> list[str]:
        wanted = {"capability": None, "model": None, "status": None, **asked}
        return [each["name"] for each in self.agents.agents(**wanted)]

    def claim(self, of: int, number: int = 1, at_ns: int = START_NS, **members: object) -> bool:
        """Was it kept?"""
        refused = self.agents.refused.total()
        self.agents.take(BACKBEAT_TOPIC, {**CLAIM, **members}, Stamp(peer(of), number, at_ns))
        return self.agents.refused.total() == refused

    async def faults(self, **changes: object) -> dict[str, str]:
        with pytest.raises(InvalidRequest) as caught:
            await self.agents.update(changes)
        assert not self.fleet.updates
        return {fault.field: fault.problem for fault in caught.value.faults}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_our_agent_is_shown_as_its_record_says(bench: Bench) -> None:
    assert bench.agents.agent() == {
        "agent_id": "chorus-1",
        "name": "alpha",
        "status": "online",
        "capabilities": ["backend", "Testing"],
        "model": "m1",
        "endpoint": "http://10.0.0.1:8080",
        "cluster_id": "docker-unified-stack",
        "current_team": None,
        "tasks_completed": 0,
        "p2p_addr": "10.0.0.1:9000",
        "last_seen": format_time(NOW_NS),
        "peer_id": ME.peer_id,
        "backbeat": None,
    }


def test_an_agent_without_a_configured_id_goes_by_its_nodes_name(bench: Bench) -> None:
    bench.fleet.own = dataclasses.replace(ME, agent_id="", model="", endpoint="", addrs=())
    agent = bench.agents.agent()
    assert (agent["agent_id"], agent["model"], agent["endpoint"], agent["p2p_addr"]) == ("alpha", None, None, None)


def test_agents_are_listed_by_name_and_nodes_without_one_are_not(bench: Bench) -> None:
    bench.fleet.add(3, agent_id="", capabilities=())
    bench.fleet.add(2)
    bench.fleet.add(4, role="bootstrap", agent_id="", capabilities=())
    bench.fleet.add(5, role="whoosh", agent_id="planner", capabilities=())
    assert bench.ids() == ["alpha", "n2", "n3", "n5"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"capability": "testing"}, ["alpha", "n2"]),
        ({"capability": "TESTING", "model": "m1"}, ["alpha"]),
        ({"model": "m2"}, ["n2"]),
        ({"model": "M2"}, []),
        ({"status": "working"}, ["n2", "n3"]),
        ({"status": "working", "capability": "security"}, ["n3"]),
        ({"capability": "test"}, []),
    ],
)
def test_agents_are_found_by_capability_model_and_status(bench: Bench, asked: dict[str, str], found: list[str]) -> None:
    bench.fleet.add(2, model="m2", status="working")
    bench.fleet.add(3, status="working", capabilities=("security",))
    assert bench.ids(**asked) == found


def test_who_is_linked_was_seen_now(bench: Bench) -> None:
    bench.fleet.add(2)
    bench.fleet.add(3)
    bench.linked.add(peer(3))
    seen = {each["name"]: each["last_seen"] for each in bench.agents.agents(capability=None, model=None, status=None)}
    assert seen == {"alpha": format_time(NOW_NS), "n2": format_time(START_NS), "n3": format_time(NOW_NS)}


@pytest.mark.parametrize(
    ("addr", "text"),
    [
        ("/ip4/10.0.0.1/tcp/9000", "10.0.0.1:9000"),
        ("/ip6/fd00::1/tcp/9000", "[fd00::1]:9000"),
        ("/dns4/node-7/tcp/9000", "node-7:9000"),
        ("/ip4/10.0.0.1/udp/9000/quic-v1", None),
        ("/ip4/10.0.0.1/tcp/9000/ws", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_an_address_is_told_as_chorus_writes_it(addr: str, text: str | None) -> None:
    assert host_and_port(addr) == text


# -- changes ---------------------------------------------------------------------------


async def test_what_the_agent_says_is_in_its_record_and_nothing_else_changes(bench: Bench) -> None:
    said = {"status": "working", "capabilities": ["b", "a", "b"], "current_team": "c-7", "tasks_completed": 3}
    agent = await bench.agents.update(said)
    assert bench.fleet.updates == [
        dataclasses.replace(ME, status="working", capabilities=("b", "a"), current_team="c-7", tasks_completed=3)
    ]
    assert {name: agent[name] for name in said} == {**said, "capabilities": ["b", "a"]}


async def test_null_empties_a_text(bench: Bench) -> None:
    agent = await bench.agents.update({"model": None, "endpoint": None, "current_team": None})
    assert (agent["model"], agent["endpoint"], agent["current_team"]) == (None, None, None)
    assert (bench.fleet.own.model, bench.fleet.own.endpoint) == ("", "")


@pytest.mark.parametrize("changes", [{}, {"status": "online", "model": "m1"}, {"current_team": None}])
async def test_what_changes_nothing_is_told_to_nobody(bench: Bench, changes: dict[str, object]) -> None:
    await bench.agents.update(changes)
    assert not bench.fleet.updates


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("status", "busy", "must be one of online, idle, working, draining, not 'busy'"),
        ("status", None, "must be one of"),
        ("status", ["idle"], "must be one of"),
        ("capabilities", "backend", "must be a list of strings"),
        ("capabilities", None, "must be a list of strings"),
        ("capabilities", ["a", 1], "must be a list of strings"),
        ("capabilities", ["a", ""], "must not be an empty string"),
        ("capabilities", ["x" * 257], "at most 256"),
        ("capabilities", [str(number) for number in range(65)], "64 are the most"),
        ("model", 7, "must be a string or null, not 7"),
        ("model", "x" * 257, "at most 256"),
        ("model", "a\nb", "printable"),
        ("endpoint", "10.0.0.1:8080", "must be a URL"),
        ("endpoint", {}, "must be a string or null"),
        ("current_team", "x" * 257, "at most 256"),
        ("current_team", False, "must be a string or null"),
        ("tasks_completed", -1, "must be a whole number from 0"),
        ("tasks_completed", 2**53 + 1, "must be a whole number from 0"),
        ("tasks_completed", True, "must be a whole number from 0"),
        ("tasks_completed", 1.0, "must be a whole number from 0"),
        ("tasks_completed", "3", "must be a whole number from 0"),
        ("name", "beta", "cannot be changed; status, capabilities, model, endpoint, current_team, tasks_completed can"),
        ("peer_id", "x", "cannot be changed"),
        ("", 1, "cannot be changed"),
    ],
)
async def test_a_wrong_change_is_told_by_its_field(bench: Bench, name: str, value: object, problem: str) -> None:
    found = await bench.faults(**{name: value})
    assert list(found) == [name]
    assert problem in found[name]


async def test_every_fault_is_told_at_once_and_nothing_changes(bench: Bench) -> None:
    found = await bench.faults(status="x", model=1, current_team="fine", colour="red")
    assert list(found) == ["status", "model", "colour"]


async def test_more_than_a_record_holds_is_refused_by_the_fields_that_grew(bench: Bench) -> None:
    many = [f"{number:0100}" for number in range(40)]
    found = await bench.faults(capabilities=many, current_team="t", model="m1", status="working")
    assert list(found) == ["capabilities", "current_team"]
    assert "is over 4096; shorten it" in found["capabilities"]


async def test_a_record_that_the_membership_refuses_is_refused_here(bench: Bench) -> None:
    def refuse(record: MemberRecord) -> None:
        raise InvalidMessage("record", "too much of it")

    bench.fleet.update_own = refuse  # type: ignore[method-assign]
    assert await bench.faults(status="idle") == {"status": "too much of it; shorten it"}


# -- status claims ---------------------------------------------------------------------


def test_the_last_status_claim_of_an_agent_stands_in_its_document(bench: Bench) -> None:
    assert bench.claim(1, agent_id="chorus-1")
    assert bench.agents.agent()["backbeat"] == {**CLAIM, "agent_id": "chorus-1", "at": format_time(START_NS)}


@pytest.mark.parametrize(("at_ns", "number"), [(START_NS + 1, 4), (START_NS, 5)])
def test_an_earlier_or_repeated_claim_changes_nothing(bench: Bench, at_ns: int, number: int) -> None:
    assert bench.claim(1, 5, agent_id="chorus-1", state="executing")
    assert not bench.claim(1, number, at_ns, agent_id="chorus-1", state="idle")
    assert bench.agents.agent()["backbeat"]["state"] == "executing"
    assert bench.agents.refused == {"old": 1}


@pytest.mark.parametrize(("at_ns", "number"), [(START_NS + 1, 6), (START_NS - 1, 6)])
def test_a_later_claim_takes_its_place(bench: Bench, at_ns: int, number: int) -> None:
    bench.claim(1, 5, agent_id="chorus-1", state="executing")
    assert bench.claim(1, number, at_ns, agent_id="chorus-1", state="completed", beat_index=1)
    assert bench.agents.agent()["backbeat"]["state"] == "completed"


def test_a_claim_without_a_signed_time_is_shown_without_one_and_does_not_stay_for_ever(bench: Bench) -> None:
    bench.claim(1, 5, MAX_TIME_NS, agent_id="chorus-1", state="executing")
    assert bench.agents.agent()["backbeat"]["at"] is None
    assert bench.claim(1, 6, agent_id="chorus-1", state="completed")
    assert bench.agents.agent()["backbeat"]["state"] == "completed"


def test_nobody_speaks_for_another_nodes_agent(bench: Bench) -> None:
    bench.claim(2, agent_id="chorus-1")
    assert bench.agents.agent()["backbeat"] is None


def test_the_latest_claim_stands_for_a_node_whose_agent_has_no_id(bench: Bench) -> None:
    bench.fleet.own = dataclasses.replace(ME, agent_id="")
    bench.claim(1, 1, agent_id="x")
    bench.claim(1, 2, agent_id="y")
    bench.claim(1, 3, agent_id="x")
    assert bench.agents.agent()["backbeat"]["agent_id"] == "x"


def test_what_is_no_claim_is_counted_and_changes_nothing(bench: Bench) -> None:
    assert not bench.claim(1, agent_id="chorus-1", state="asleep")
    bench.agents.take(BACKBEAT_TOPIC, {}, Stamp(peer(1), 1, START_NS))
    bench.agents.take("councils.claims", CLAIM, Stamp(peer(1), 1, START_NS))
    assert bench.agents.agent()["backbeat"] is None
    assert bench.agents.refused == {"invalid": 2}
    assert bench.agents.metrics() == {
        "p2pnode_backbeat_claims": 0,
        'p2pnode_backbeat_refused_total{reason="invalid"}': 2,
    }


def test_a_large_claim_is_kept_without_its_free_members(bench: Bench) -> None:
    assert bench.claim(1, agent_id="chorus-1", metadata={"x": "y" * 100_000})
    kept = bench.agents.agent()["backbeat"]
    assert kept["truncated"] is True
    assert kept["state"] == "executing"
    assert len(json.dumps(kept)) < agents_module.MAX_CLAIM_BYTES


def test_no_origin_pushes_out_the_claims_of_others(bench: Bench) -> None:
    bench.claim(1, agent_id="chorus-1")
    for number in range(agents_module.MAX_CLAIMS_OF_ONE * 3):
        assert bench.claim(2, number + 1, agent_id=f"invented-{number}")
    assert bench.agents.metrics()["p2pnode_backbeat_claims"] == agents_module.MAX_CLAIMS_OF_ONE + 1
    assert bench.agents.agent()["backbeat"] is not None


def test_claims_are_bounded_and_the_one_renewed_longest_ago_goes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_module, "MAX_CLAIMS", 3)
    for number, of in enumerate((1, 2, 3, 1, 4), 1):
        bench.claim(of, number, agent_id=f"chorus-{of}")
    for of in (2, 3, 4):
        bench.fleet.add(of, agent_id=f"chorus-{of}")
    found = bench.agents.agents(capability=None, model=None, status=None)
    assert {each["agent_id"]: each["backbeat"] is not None for each in found} == {
        "chorus-1": True,
        "chorus-2": False,
        "chorus-3": True,
        "chorus-4": True,
    }


# -- with the membership ---------------------------------------------------------------


async def test_all_members_hear_what_an_agent_says_and_forget_it_with_its_process(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        second = fleet.add(bootstrap=[first.addr])
        fleet.start(first, second)
        await until(lambda: len(first.node.peers()) == len(second.node.peers()) == 2)
        await registry(second).update({"status": "draining", "current_team": "council-7"})
        await until(lambda: told(first, second) == ("draining", "council-7"))
        fleet.stop(second)
        again = fleet.restart(second, bootstrap=[first.addr])
        fleet.start(again)
        await until(lambda: told(first, again) == ("online", None))


def registry(running: Running) -> Agents:
    members = running.node.members
    return Agents(members, lambda: running.host.links(), running.identity.sign, running.wall)


def told(at: Running, of: Running) -> tuple[object, object]:
    """Status and team of one node's agent, as another one lists them."""
    found = registry(at).agents(capability=None, model=None, status=None)
    return next(((each["status"], each["current_team"]) for each in found if each["peer_id"] == of.peer_id), ("", ""))
