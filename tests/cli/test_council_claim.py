"""`council claim`: until the role is decided, and whose it is."""

from __future__ import annotations

import json

import pytest

from tests.cli.fake_councils import EVENTS, ID, ONE, council, role, stream
from tests.cli.running import Run
from tests.local.fake import FakeSidecar, document_answer, problem

MADE = {"id": "12D3KooWa-1763899200000000000", "council_id": ID, "role_name": "tpm", "agent_id": "a"}


@pytest.fixture
def claiming(sidecar: FakeSidecar) -> FakeSidecar:
    sidecar.on("POST", f"{ONE}/claims", document_answer(MADE, 202))
    return sidecar


def test_a_role_that_becomes_ours_is_exit_code_0(run: Run, claiming: FakeSidecar) -> None:
    ours = role("tpm", "a", state="assigned")
    claiming.on("GET", EVENTS, stream(council(role("tpm")), council(role("tpm", claims=1)), council(ours)))
    outcome = run("council", "claim", ID, "tpm", "--api", claiming.api)
    assert (outcome.code, outcome.out, outcome.err) == (0, "tpm: Agent a on node-a (1.2)\n", "")
    assert json.loads(claiming.requests[0].body) == {"role_name": "tpm"}
    assert json.loads(run("council", "claim", ID, "tpm", "-o", "json", "--api", claiming.api).out) == ours


@pytest.mark.parametrize(
    "holder",
    [role("tpm", "b"), role("tpm", "a", peer_id="12D3KooWb"), role("tpm", "b", peer_id="12D3KooWa")],
    ids=["another", "another-node-of-that-agent-id", "another-agent-of-that-node"],
)
def test_a_role_that_somebody_else_gets_is_exit_code_1_and_says_whose(
    run: Run, claiming: FakeSidecar, holder: dict[str, object]
) -> None:
    claiming.on("GET", EVENTS, stream(council(role("tpm")), council(holder)))
    outcome = run("council", "claim", ID, "tpm", "--api", claiming.api)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"error: tpm: {holder['agent_name']} on {holder['name']} (1.2), not ours\n")


def test_a_filled_role_is_refused_by_the_sidecar(run: Run, sidecar: FakeSidecar) -> None:
    detail = "tpm is held by agent b on node-b"
    sidecar.on("POST", f"{ONE}/claims", problem(409, detail, reason="filled", agent_id="b"))
    outcome = run("council", "claim", ID, "tpm", "--api", sidecar.api)
    assert (outcome.code, outcome.out, outcome.err) == (1, "", f"error: {detail}\n")


def test_a_role_that_nobody_got_in_time_is_exit_code_1(run: Run, claiming: FakeSidecar) -> None:
    claiming.on("GET", EVENTS, stream(council(role("tpm", claims=1))))
    outcome = run("council", "claim", ID, "tpm", "--wait", "0.3", "--api", claiming.api)
    assert (outcome.code, outcome.out) == (1, "")
    assert "error: tpm is nobody's after 0.3 s: 1 claims, and whoosh-1 decides (decision 1.1)\n" in outcome.err
    assert f"p2pnode council watch {ID}" in outcome.err


def test_a_council_that_ends_meanwhile_is_exit_code_1(run: Run, claiming: FakeSidecar) -> None:
    claiming.on("GET", EVENTS, stream(council(), council(status="cancelled", message="no money")))
    outcome = run("council", "claim", ID, "tpm", "--api", claiming.api)
    assert (outcome.code, outcome.err) == (1, "error: the council is cancelled: no money\n")


def test_a_claim_that_nobody_waits_for_prints_its_id(run: Run, claiming: FakeSidecar) -> None:
    outcome = run(
        *("council", "claim", ID, "tpm", "--wait", "0", "--agent-id", "a", "--agent-name", "A"),
        *("--capability", "go", "--capability", "tpm", "--confidence", "0.5", "--api", claiming.api),
    )
    assert (outcome.code, outcome.out) == (0, f"{MADE['id']}\n")
    assert len(claiming.requests) == 1
    assert json.loads(claiming.requests[0].body) == {
        "role_name": "tpm",
        "agent_id": "a",
        "agent_name": "A",
        "capabilities": ["go", "tpm"],
        "confidence": 0.5,
    }


def test_a_stream_that_breaks_is_read_again(run: Run, claiming: FakeSidecar) -> None:
    claiming.on(
        "GET",
        EVENTS,
        stream(council(role("tpm"))),
        problem(503, "it is starting"),
        problem(404, "not read from the store yet"),
        stream(council(role("tpm", "a"))),
    )
    outcome = run("council", "claim", ID, "tpm", "--wait", "30", "--api", claiming.api)
    assert outcome.code == 0
    assert outcome.err == "the sidecar ended the stream; reconnecting\nreconnected\n"
