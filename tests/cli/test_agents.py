"""`agent show|set` and `agents`."""

from __future__ import annotations

import json

import pytest

from tests.cli.fake_councils import ID, agent
from tests.cli.running import Run
from tests.local.fake import FakeSidecar, document_answer, problem

AGENT = "/api/v1/agent"
AGENTS = "/api/v1/agents"


@pytest.mark.parametrize("arguments", [[], ["show"]])
def test_the_agent_is_shown_field_by_field(run: Run, sidecar: FakeSidecar, arguments: list[str]) -> None:
    sidecar.serves(AGENT, agent("a", backbeat={"state": "executing", "beat_index": 7}))
    outcome = run("agent", *arguments, "--api", sidecar.api)
    said = dict(line.split(None, 1) for line in outcome.out.splitlines() if not line.startswith(" "))
    assert outcome.code == 0
    assert (said["agent_id"], said["status"], said["current_team"]) == ("agent-a", "idle", "-")
    assert said["backbeat"] == '{"state":"executing","beat_index":7}'
    assert json.loads(run("agent", *arguments, "-o", "json", "--api", sidecar.api).out)["name"] == "a"


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["--status", "working"], {"status": "working"}),
        (["--capability", "go", "--capability", "tpm"], {"capabilities": ["go", "tpm"]}),
        (["--capability", ""], {"capabilities": []}),
        (["--current-team", ID, "--tasks-completed", "0"], {"current_team": ID, "tasks_completed": 0}),
        (["--current-team", ""], {"current_team": ""}),
        (["--model", "m", "--endpoint", "http://h:1"], {"model": "m", "endpoint": "http://h:1"}),
    ],
)
def test_only_what_is_named_is_changed(
    run: Run, sidecar: FakeSidecar, arguments: list[str], body: dict[str, object]
) -> None:
    sidecar.on("PATCH", AGENT, document_answer(agent("a", status="working")))
    outcome = run("agent", "set", *arguments, "--api", sidecar.api)
    assert outcome.code == 0
    assert "working" in outcome.out
    assert json.loads(sidecar.requests[0].body) == body


@pytest.mark.parametrize("arguments", [["set"], ["set", "--tasks-completed", "-1"], ["-o", "json", "show"]])
def test_wrong_usage_exits_64(run: Run, sidecar: FakeSidecar, arguments: list[str]) -> None:
    outcome = run("agent", *arguments)
    assert (outcome.code, outcome.out, sidecar.requests) == (64, "", [])


def test_what_is_wrong_with_a_change_is_told(run: Run, sidecar: FakeSidecar) -> None:
    errors = [{"field": "status", "problem": "must be online, idle, working or draining"}]
    sidecar.on("PATCH", AGENT, problem(422, "the agent cannot be changed so", errors=errors))
    outcome = run("agent", "set", "--status", "asleep", "--api", sidecar.api)
    assert outcome.code == 64
    assert "  status: must be online, idle, working or draining\n" in outcome.err


def test_agents_are_rows_and_the_sidecar_filters(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves(AGENTS, [agent("a"), agent("b\x1b[2J", current_team=ID, status="working")])
    outcome = run("agents", "--capability", "a b", "--model", "llama", "--status", "idle", "--api", sidecar.api)
    header, first, second = outcome.out.splitlines()
    assert header.split() == ["NAME", "AGENT_ID", "STATUS", "TEAM", "DONE", "MODEL", "SEEN", "CAPABILITIES"]
    assert first.split()[:6] == ["a", "agent-a", "idle", "-", "3", "llama"]
    assert second.split()[2:4] == ["working", ID]
    assert "\x1b" not in outcome.out
    assert sidecar.requests[0].path == f"{AGENTS}?capability=a%20b&model=llama&status=idle"


def test_wide_and_json_hold_all_of_it(run: Run, sidecar: FakeSidecar) -> None:
    known = [agent("a", backbeat={"state": "blocked", "beat_index": 1})]
    sidecar.serves(AGENTS, known)
    header, row = run("agents", "-o", "wide", "--api", sidecar.api).out.splitlines()
    assert set(known[0]) == {
        {"TEAM": "current_team", "DONE": "tasks_completed", "SEEN": "last_seen"}.get(name, name.lower())
        for name in header.split()
    }
    assert row.split()[-1] == "blocked"
    assert json.loads(run("agents", "-o", "json", "--api", sidecar.api).out) == known
    assert json.loads(run("agents", "-o", "jsonl", "--api", sidecar.api).out) == known[0]
