"""Councils among real sidecars: who claims, holds, releases, reports and is refused, the same at every node.

Agents claim by request only, and one orchestrator is trusted. Every document that any node shows is judged at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from p2pnode.client import Client
from p2pnode.identity import create_key_file
from p2pnode.local.http import Response
from tests.e2e.council_fleet import (
    COUNCILS,
    CouncilFleet,
    Document,
    Place,
    holders,
    is_formed,
    open_council_fleet,
    role,
)
from tests.e2e.harness import environment, have_all, wait_until
from tests.programs import program

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "tests" / "samples" / "create-council.json"
EXAMPLES = ROOT / "docs" / "examples"
RACES = 20
JSON = {"Content-Type": "application/json"}

Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}; load average {os.getloadavg()[0]:.1f}")

    return say


@contextmanager
def claiming_by_request(directory: Path, agents: int) -> Iterator[CouncilFleet]:
    """One trusted orchestrator, and agents alike that claim nothing by themselves."""
    trusted = create_key_file(directory / "whoosh" / "identity.key").peer_id
    settings = {
        "P2PNODE_AGENT_CAPABILITIES": "testing,example_work",
        "P2PNODE_TRUST_ORCHESTRATORS": trusted,
    }
    names = ["whoosh", *(f"agent-{number:02}" for number in range(1, agents + 1))]
    with open_council_fleet(directory, [Place(name, settings) for name in names]) as fleet:
        yield fleet
        assert not fleet.watch.faults()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CouncilFleet]:
    with claiming_by_request(tmp_path_factory.mktemp("calm"), agents=7) as fleet:
        yield fleet


# -- claims that race ----------------------------------------------------------------------


def race(fleet: CouncilFleet, council_id: str, role_name: str) -> dict[str, Response]:
    """What every agent is answered that claims the role at the same moment as all others."""
    start = threading.Barrier(len(fleet.agents))
    answers: dict[str, Response] = {}

    def claim(name: str) -> None:
        start.wait()
        answers[name] = fleet.claim(name, council_id, role_name)

    threads = [threading.Thread(target=claim, args=(name,)) for name in fleet.agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def race_often(fleet: CouncilFleet, councils: int, seed: int) -> str:
    """Each race has a straggler too, which claims what it was told is held; `seed` chooses it."""
    rng, statuses = Random(seed), Counter[int]()
    winners: Counter[str] = Counter()
    began = time.monotonic()
    for number in range(councils):
        council_id = fleet.create("whoosh", {"role_name": "lead", "required_skills": ["testing"]})
        fleet.everywhere("the council is known", council_id, bool)
        answers = race(fleet, council_id, "lead")
        lead = role(fleet.everywhere("the council is active", council_id, is_formed), "lead")
        winner = fleet.name_of(lead["peer_id"])
        assert set(answers) == set(fleet.agents)
        assert answers[winner].status == 202, (number, answers[winner])
        straggler = rng.choice([name for name in fleet.agents if name != winner])
        answers[f"{straggler}, late"] = late = fleet.claim(straggler, council_id, "lead")
        assert late.status == 409, (number, late)
        for name, answer in answers.items():
            statuses[answer.status] += 1
            if answer.status != 202:
                assert answer.status == 409, (number, name, answer)
                problem = answer.json()
                assert (problem["reason"], problem["peer_id"]) == ("filled", lead["peer_id"])
                assert (problem["term"], problem["n"]) == (lead["term"], lead["n"])
        # Not only at the end: no node ever showed another holder.
        assert set(map(tuple, fleet.watch.hands(council_id).values())) == {(lead["peer_id"],)}
        winners[winner] += 1
    took = (time.monotonic() - began) / councils
    return (
        f"seed {seed}: {councils} races of {len(fleet.agents)} agents and a straggler: answers {dict(statuses)}, "
        f"won by {dict(winners)}, {took:.2f} s each, {len(fleet.watch.told)} documents seen"
    )


def test_twenty_roles_that_all_agents_claim_at_once_have_one_holder_each(calm: CouncilFleet, report: Report) -> None:
    report(race_often(calm, RACES, seed=1))


@pytest.mark.soak
def test_of_33_agents_that_claim_a_role_at_once_one_holds_it(tmp_path: Path, report: Report) -> None:
    with claiming_by_request(tmp_path, agents=33) as fleet:
        report(race_often(fleet, RACES, seed=2))


# -- the life of a council -----------------------------------------------------------------


def test_a_released_role_is_another_ones_and_the_old_number_acts_no_more(calm: CouncilFleet) -> None:
    first, second = calm.agents[:2]
    council_id = calm.create("whoosh", "tpm")
    old = calm.given(first, council_id, "tpm")
    refused = calm.claim(second, council_id, "tpm")
    assert refused.status == 409
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["reason"] == "filled"
    assert refused.json()["agent_id"] == old["agent_id"]
    assert old["agent_id"] in refused.json()["detail"]

    released = calm.post(first, f"{COUNCILS}/{council_id}/release", {"role_name": "tpm", "reason": "no time"})
    assert released.status == 202, released
    shown = calm.everywhere("the role is open", council_id, lambda document: document["missing"] == ["tpm"])
    assert "no time" in shown["message"]
    new = calm.given(second, council_id, "tpm")
    assert (new["term"], new["n"]) > (old["term"], old["n"])
    for name, told in ((first, old), (second, old)):
        stale = calm.report(name, council_id, "completed", role_name="tpm", term=told["term"], n=told["n"])
        assert (stale.status, stale.json()["reason"]) == (409, "stale")
    assert set(calm.watch.hands(council_id)[("whoosh", "tpm")]) == {old["peer_id"], new["peer_id"]}
    assert calm.watch.shown(council_id)[-1][1]["status"] == "active"


def test_a_council_that_nobody_fills_expires_and_names_what_is_missing(calm: CouncilFleet) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    roles = ("tpm", {"role_name": "astronaut", "required_skills": ["orbit"]})
    council_id = calm.create("whoosh", *roles, formation_deadline=deadline)
    calm.given(calm.agents[0], council_id, "tpm")
    shown = calm.everywhere("it is expired", council_id, lambda document: document["status"] == "expired")
    assert shown["missing"] == ["astronaut"]
    assert "astronaut" in shown["message"]
    assert "tpm" not in shown["message"]
    late = calm.claim(calm.agents[1], council_id, "astronaut")
    assert (late.status, late.json()["reason"]) == (409, "ended")


def test_a_council_is_cancelled_by_whoosh_alone(calm: CouncilFleet) -> None:
    council_id = calm.create("whoosh", "tpm", "writer")
    calm.given(calm.agents[0], council_id, "tpm")
    assert calm.report(calm.agents[1], council_id, "cancelled").status == 403
    assert calm.report("whoosh", council_id, "cancelled", message="budget").status == 202
    shown = calm.everywhere("it is cancelled", council_id, lambda document: document["status"] == "cancelled")
    assert shown["message"] == "budget"
    late = calm.claim(calm.agents[2], council_id, "writer")
    assert (late.status, late.json()["reason"], late.json()["council_status"]) == (409, "ended", "cancelled")


def test_a_council_is_completed_when_every_holder_of_a_core_role_says_so(calm: CouncilFleet) -> None:
    council_id = calm.create("whoosh", "tpm", "writer", optional_roles=["critic"])
    held = {
        name: calm.given(name, council_id, each) for name, each in zip(calm.agents, ("tpm", "writer"), strict=False)
    }
    calm.everywhere("it is active", council_id, is_formed)
    for number, (name, seat) in enumerate(held.items()):

        def has_heard(document: Document, number: int = number) -> bool:
            return len(document["reports"]) == number

        assert calm.everywhere("reports are told", council_id, has_heard)["status"] == "active"
        said = calm.report(name, council_id, "completed", role_name=seat["role_name"], term=seat["term"], n=seat["n"])
        assert said.status == 202, said
    shown = calm.everywhere("it is completed", council_id, lambda document: document["status"] == "completed")
    said_by_holders = [(each["role_name"], each["status"]) for each in shown["reports"] if each["role_name"]]
    assert sorted(said_by_holders) == [("tpm", "completed"), ("writer", "completed")]


# -- trust ---------------------------------------------------------------------------------


def refused_documents(fleet: CouncilFleet, name: str) -> float:
    return fleet.nodes[name].metric('p2pnode_council_documents_refused_total{reason="untrusted"}')


def test_the_word_of_a_node_that_is_no_trusted_orchestrator_counts_nowhere(calm: CouncilFleet, report: Report) -> None:
    stranger, reader, holder = calm.agents[:3]
    refused = calm.post(stranger, COUNCILS, json.loads(PLAIN.read_text()))
    assert refused.status == 403
    assert "trust.orchestrators" in refused.json()["detail"]

    council_id = calm.create("whoosh", "tpm")
    seat = calm.given(holder, council_id, "tpm")
    before = {name: refused_documents(calm, name) for name in calm.names}
    false_id = str(uuid.uuid4())
    opportunity = {"council_id": false_id, "project_name": "x", "repository": "y", "core_roles": ["tpm"]}
    stolen = {
        **{"role_name": "tpm", "agent_id": "thief", "peer_id": calm.peer_ids[stranger]},
        **{"term": 99, "n": 1, "state": "accepted"},
    }
    decision = {"council_id": council_id, "status": "cancelled", "term": 99, "n": 1, "roles": [stolen]}
    node, nodes = calm.nodes[stranger], list(calm.nodes.values())
    latest = {topic: calm.nodes[reader].messages(topic)[-1]["id"] for topic in ("councils.forming", "councils.status")}
    false = node.publish_accepted("councils.forming", json.dumps(opportunity).encode(), JSON)
    theft = node.publish_accepted("councils.status", json.dumps(decision).encode(), JSON)
    have_all(nodes, "councils.forming", {false})
    have_all(nodes, "councils.status", {theft})
    for name in calm.names:
        wait_until(f"{name} refused both", lambda name=name: refused_documents(calm, name) >= before[name] + 2)  # type: ignore[misc]
    true_id = calm.create("whoosh", "writer")
    calm.given(holder, true_id, "writer")
    with Client(calm.nodes[reader].api, timeout=90) as client:
        for topic, after in latest.items():
            with client.subscribe(topic, start=after) as stream:
                found = [next(stream)]
                while found[-1].payload["council_id"] != true_id:
                    found.append(next(stream))
            assert {message.origin for message in found} == {calm.peer_ids["whoosh"]}
    for name in calm.names:
        answer = calm.nodes[name].client.request("GET", f"{COUNCILS}/{false_id}", timeout_seconds=20)
        assert answer.status == 404, (name, answer)
        shown = calm.nodes[name].get(f"{COUNCILS}/{council_id}")
        assert (shown["status"], shown["term"], role(shown, "tpm")["peer_id"]) == ("active", 1, seat["peer_id"])
        [listed] = [each for each in calm.nodes[name].messages("councils.forming") if each["id"] == false]
        assert listed["trusted"] is False
    peers = [peer for name in calm.names for peer in calm.nodes[name].get("/api/v1/peers") if not peer["self"]]
    scores = [peer["score"] for peer in peers if peer["connected"]]
    assert min(scores) >= 0
    report(f"refused by {len(calm.names)} nodes; scores of {len(scores)} links from {min(scores)} to {max(scores)}")


# -- requests ------------------------------------------------------------------------------


MALFORMED: tuple[tuple[str, dict[str, object]], ...] = (
    ("project_name", {"project_name": None}),
    ("project_name", {"project_name": "  "}),
    ("project_name", {"project_name": 7}),
    ("repository", {"repository": None}),
    ("repository", {"repository": ["https://gitea.example/e2e"]}),
    ("core_roles", {"core_roles": None}),
    ("core_roles", {"core_roles": []}),
    ("core_roles", {"core_roles": "tpm"}),
    ("core_roles[1].role_name", {"core_roles": ["tpm", {"required_skills": []}]}),
    ("core_roles[1].role_name", {"core_roles": ["tpm", "tpm"]}),
    ("optional_roles[0].required_skills", {"optional_roles": [{"role_name": "x", "required_skills": "testing"}]}),
    ("ucxl_address", {"ucxl_address": "http://example.com"}),
    ("formation_deadline", {"formation_deadline": "tomorrow"}),
    ("formation_deadline", {"formation_deadline": "2030-01-01T00:00:00"}),
    ("council_id", {"council_id": "42"}),
)


@pytest.mark.parametrize(("field", "change"), MALFORMED)
def test_a_malformed_request_is_told_which_field_is_wrong(
    calm: CouncilFleet, field: str, change: dict[str, object]
) -> None:
    before = len(calm.nodes["whoosh"].messages("councils.forming"))
    request = {**json.loads(PLAIN.read_text()), **change}
    status, problem = calm.curl("whoosh", COUNCILS, json.dumps(request))
    assert (status, problem["status"]) == (422, 422)
    assert [fault["field"] for fault in problem["errors"]] == [field], problem
    assert problem["errors"][0]["problem"]
    assert len(calm.nodes["whoosh"].messages("councils.forming")) == before


def test_a_council_that_nobody_knows_is_not_found(calm: CouncilFleet) -> None:
    path = f"{COUNCILS}/{uuid.uuid4()}"
    assert calm.nodes["whoosh"].client.request("GET", path).status == 404
    for what, document in (("claims", {"role_name": "tpm"}), ("status", {"status": "completed"})):
        status, problem = calm.curl(calm.agents[0], f"{path}/{what}", json.dumps(document))
        assert (status, problem["title"]) == (404, "No such resource")


# -- agents --------------------------------------------------------------------------------


@contextmanager
def agent(fleet: CouncilFleet, name: str, directory: Path, *command: str) -> Iterator[Path]:
    """A program beside a sidecar, and where its output goes; it ends with the block, with all that it started."""
    output = directory / f"{name}-agent.out"
    env = environment(directory / "run", P2PNODE_API=fleet.nodes[name].api)
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
    try:
        yield output
        assert process.poll() is None, output.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_an_agent_in_python_and_one_in_shell_see_a_council_through(
    calm: CouncilFleet, tmp_path: Path, report: Report
) -> None:
    assert program("jq"), "jq is missing: run `python -m tests.programs`"
    python, shell = calm.agents[:2]
    in_shell = ("sh", str(EXAMPLES / "council-agent.sh"), "shell_work", "sh", "-c", 'echo "$ROLE in $COUNCIL_ID"')
    with (
        agent(calm, python, tmp_path, sys.executable, str(EXAMPLES / "council_agent.py")) as said_python,
        agent(calm, shell, tmp_path, *in_shell) as said_shell,
    ):
        began = time.monotonic()
        council_id = calm.create(
            "whoosh",
            {"role_name": "in-python", "required_skills": ["example_work"]},
            {"role_name": "in-shell", "required_skills": ["shell_work"]},
        )
        shown = calm.everywhere("it is completed", council_id, lambda document: document["status"] == "completed")
        took = time.monotonic() - began
        held = {name: peer for name, (peer, *_) in holders(shown).items()}
        assert held == {"in-python": calm.peer_ids[python], "in-shell": calm.peer_ids[shell]}
        assert "working as in-python" in said_python.read_text()
        assert f'"in-shell" in {council_id}' in said_shell.read_text()
    statuses = [document["status"] for name, document in calm.watch.shown(council_id) if name == "whoosh"]
    assert list(dict.fromkeys(statuses)) == ["forming", "active", "completed"]
    report(f"two agents saw a council through in {took:.1f} s")
