"""`bridge` starts a sidecar of that role; `bridge status` says how far behind it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from p2pnode.cli.bridge import bridge
from p2pnode.cli.run import run as run_command
from tests.cli.documents import NOW
from tests.cli.running import Run
from tests.cli.test_carriers import BROKER
from tests.local.fake import FakeSidecar, problem

BRIDGE = "/api/v1/bridge"
OTHER = {"peer_id": "12D3KooWb", "name": "bridge-b", "beyond": True, "heard_seconds_ago": 3.2}


def document(**members: Any) -> dict[str, Any]:
    counts = {"pending": 2, "published": 40, "skipped": 38, "refused": 0, "failed": 1}
    taken = {"pending": 0, "unacknowledged": 1, "redelivered": 2, "signed": 30, "plain": 4, "duplicates": 5}
    return {
        "import_key": "12D3KooWimport",
        "shared_key": True,
        "broker": BROKER,
        "importing": "all",
        "exports": [{"topic": "councils.forming", "subject": "chorus.councils.forming", **counts}],
        "imports": [{"subject": "chorus.councils.forming", "durable": "bridge-a", **taken, "refused": 6}],
        "lag_seconds": 0.4,
        "bridges": [{**OTHER, "import_key": "12D3KooWimport"}],
        "beyond": ["12D3KooWx", "12D3KooWy"],
        "last_refused": [],
        **members,
    }


def test_bridge_runs_a_sidecar_of_that_role(run: Run, started: list[Any], tmp_path: Path) -> None:
    outcome = run("bridge", "--name", "b", "--data-dir", str(tmp_path), "--", "sh", "-c", "exit 7", "--", "--role", "x")
    assert (outcome.code, outcome.err) == (7, "")
    loaded, agent = started[0]
    assert (loaded.settings.node.role, loaded.settings.node.name) == ("bridge", "b")
    assert agent == ["sh", "-c", "exit 7", "--", "--role", "x"]


def test_bridge_is_one_whatever_role_the_environment_names(
    run: Run,
    started: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("P2PNODE_NODE_ROLE", "chorus")
    run("bridge", "--data-dir", str(tmp_path))
    assert started[0][0].settings.node.role == "bridge"


def test_bridge_takes_every_option_of_run_but_the_role() -> None:
    def flags(command: click.Command) -> set[str]:
        return {flag for parameter in command.params for flag in parameter.opts}

    assert flags(run_command) - flags(bridge) == {"--role"}
    assert flags(bridge) <= flags(run_command)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sh", "-c", "true"], "No such command 'sh'"),
        (["--"], "after `--` comes the agent's command"),
        (["--role", "chorus"], "No such option '--role'"),
        (["--name", "x", "status"], "status does not know --name"),
        (["--api", "unix:/nowhere", "status"], "write --api after status"),
        (["status", "--", "sh"], "status runs no agent"),
        (["stats"], "Did you mean 'status'?"),
        (["status", "--max-lag", "-1"], "--max-lag"),
    ],
)
def test_wrong_usage_exits_64_and_starts_nothing(
    run: Run,
    started: list[Any],
    arguments: list[str],
    said: str,
) -> None:
    outcome = run("bridge", *arguments)
    assert (outcome.code, outcome.out, started) == (64, "", [])
    assert said in outcome.err


def test_a_good_bridge_tells_its_lag_its_key_and_each_subject(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves(BRIDGE, document())
    outcome = run("bridge", "status", "--api", sidecar.api)
    assert outcome.code == 0
    fields, exports, imports, bridges = outcome.out.split("\n\n")
    words = dict(line.split("  ", 1) for line in fields.splitlines())
    assert {name: text.strip() for name, text in words.items()} == {
        "nats": "nats://backbeat-nats:4222: connected, JetStream",
        "lag": "0.4s",
        "import key": "12D3KooWimport (shared: bridge.import_key_file)",
        "imports": "signed messages, and what plain NATS clients publish",
        "members beyond": "2",
    }
    assert [line.split() for line in exports.splitlines()] == [
        ["exports"],
        ["TOPIC", "SUBJECT", "PENDING", "PUBLISHED", "SKIPPED", "REFUSED", "FAILED"],
        ["councils.forming", "chorus.councils.forming", "2", "40", "38", "0", "1"],
    ]
    assert imports.splitlines()[-1].split() == ["chorus.councils.forming", *"0 1 2 30 4 5 6".split(), "bridge-a"]
    assert bridges.splitlines()[-1].split() == ["bridge-b", "yes", "3s", "ago", "12D3KooWb", "12D3KooWimport"]
    assert json.loads(run("bridge", "status", "-o", "json", "--api", sidecar.api).out) == document()


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"lag_seconds": 10.0}, 0),
        ({"lag_seconds": None}, 0),
        ({"lag_seconds": 10.1}, 1),
        ({"broker": None}, 1),
        ({"bridges": [{**OTHER, "import_key": "12D3KooWother"}]}, 1),
        ({"bridges": [OTHER]}, 0),
        ({"broker": {**BROKER, "connected": False}}, 1),
        ({"broker": {**BROKER, "code": "jetstream-full", "problem": "the stream is full", "fix": "make room"}}, 1),
    ],
)
def test_a_bridge_that_is_cut_off_or_late_exits_1(
    run: Run, sidecar: FakeSidecar, members: dict[str, Any], code: int
) -> None:
    sidecar.serves(BRIDGE, document(**members))
    for form in ("table", "json"):
        assert run("bridge", "status", "-o", form, "--api", sidecar.api).code == code


def test_a_bridge_that_signs_with_another_key_is_named_with_the_fix(run: Run, sidecar: FakeSidecar) -> None:
    other = {**OTHER, "import_key": "12D3KooWother"}
    sidecar.serves(BRIDGE, document(bridges=[other, {**other, "name": None}]))
    out = run("bridge", "status", "--api", sidecar.api).out
    assert "bridge-b, 12D3KooWb sign for plain NATS clients with another key (import-keys)" in out
    assert "bridge.import_key_file" in out


def test_how_late_is_too_late_can_be_said(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves(BRIDGE, document(lag_seconds=61.0))
    assert run("bridge", "status", "--max-lag", "60", "--api", sidecar.api).code == 1
    assert run("bridge", "status", "--max-lag", "61", "--api", sidecar.api).code == 0


def test_what_was_refused_is_shown_harmlessly(run: Run, sidecar: FakeSidecar) -> None:
    refused = {"subject": "chorus.councils.forming", "reason": "json", "detail": "no JSON: \x1b[2J", "at": NOW}
    sidecar.serves(BRIDGE, document(exports=[], imports=[], bridges=[], last_refused=[refused]))
    out = run("bridge", "status", "--api", sidecar.api).out
    assert "\x1b" not in out
    assert out.splitlines()[-1].split()[:3] == [NOW, "chorus.councils.forming", "json"]


def test_who_is_no_bridge_exits_1_and_nobody_exits_3(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", BRIDGE, problem(404, "this node is no bridge"))
    outcome = run("bridge", "status", "--api", sidecar.api)
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "error: this node is no bridge\n")
    assert run("bridge", "status").code == 3
