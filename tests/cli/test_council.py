"""`council create|list|show|release|status|cancel`: what is asked, what is printed, exit codes."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from p2pnode.cli.output import epoch_seconds
from tests.cli.fake_councils import COUNCILS, EVENTS, ID, ONE, OTHER_ID, THIRD_ID, council, role, stream
from tests.cli.running import Run
from tests.local.fake import FakeSidecar, document_answer, problem

PLAIN = {
    "project_name": "Test Discovery",
    "repository": "https://example.org/test",
    "core_roles": ["tpm", "senior-software-architect"],
}


def posted(sidecar: FakeSidecar) -> Any:
    return json.loads(next(each.body for each in sidecar.requests if each.method == "POST"))


@pytest.fixture
def creating(sidecar: FakeSidecar) -> FakeSidecar:
    sidecar.on("POST", COUNCILS, document_answer(council(), 202))
    return sidecar


def test_flags_make_an_opportunity_and_the_id_is_printed(run: Run, creating: FakeSidecar) -> None:
    before = time.time()
    outcome = run(
        *("council", "create", "--project", "P", "--repository", "R", "--brief", "B", "--api", creating.api),
        *("--role", "tpm", "--role", "architect:go, review", "--optional-role", "scribe", "--deadline", "600"),
        *("--ucxl", "ucxl://any:any@p:t/*^/", "--metadata", "a=1", "--metadata", "b=x=y", "--id", ID),
    )
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{ID}\n", "")
    document = posted(creating)
    deadline = epoch_seconds(document.pop("formation_deadline"))
    assert deadline is not None
    assert before + 599 < deadline < time.time() + 601
    assert document == {
        "project_name": "P",
        "repository": "R",
        "project_brief": "B",
        "core_roles": [{"role_name": "tpm"}, {"role_name": "architect", "required_skills": ["go", "review"]}],
        "optional_roles": [{"role_name": "scribe"}],
        "ucxl_address": "ucxl://any:any@p:t/*^/",
        "metadata": {"a": "1", "b": "x=y"},
        "council_id": ID,
    }


def test_a_file_is_posted_as_it_is_and_flags_replace_its_members(
    run: Run, creating: FakeSidecar, tmp_path: Path
) -> None:
    path = tmp_path / "council.json"
    path.write_text(json.dumps({**PLAIN, "unknown": {"kept": True}}))
    outcome = run(
        *("council", "create", "--file", str(path), "--project", "Q", "--api", creating.api, "-o", "json"),
        *("--idempotency-key", "k-1"),
    )
    assert (outcome.code, json.loads(outcome.out)) == (0, council())
    assert posted(creating) == {**PLAIN, "project_name": "Q", "unknown": {"kept": True}}
    assert creating.requests[0].headers["idempotency-key"] == "k-1"


def test_a_council_comes_from_standard_input(run: Run, creating: FakeSidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(PLAIN).encode())))
    assert run("council", "create", "--file", "-", "--api", creating.api).code == 0
    assert posted(creating) == PLAIN


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "holds no JSON"), ("[]", "but no object"), (None, "No such file"), ("[" * 99999, "holds no JSON")],
)
def test_a_file_that_is_no_opportunity_is_told_with_an_example(
    run: Run, creating: FakeSidecar, tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "council.json"
    if content is not None:
        path.write_text(content)
    outcome = run("council", "create", "--file", str(path), "--api", creating.api)
    assert (outcome.code, outcome.out, creating.requests) == (64, "", [])
    assert str(path) in outcome.err
    assert words in outcome.err
    assert content is None or '"core_roles": ["tpm"]' in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["create"],
        ["create", "--role", ":go"],
        ["create", "--role", "tpm:"],
        ["create", "--role", "tpm:go,,review"],
        ["create", "--metadata", "novalue"],
        ["create", "--deadline", "0"],
        ["create", "--deadline", "nan"],
        ["create", "--project", "P", "--wait", "0"],
        ["list", "--status", "sleeping"],
        ["status", ID, "sleeping"],
        ["status", ID, "active", "--fence", "0.1"],
        ["claim", ID],
        ["claim", ID, "tpm", "--confidence", "2"],
        ["watch", "--until", "active"],
        ["watch", "--timeout", "3"],
    ],
)
def test_wrong_usage_exits_64_and_asks_nobody(run: Run, sidecar: FakeSidecar, arguments: list[str]) -> None:
    outcome = run("council", *arguments, "--api", sidecar.api)
    assert (outcome.code, outcome.out, sidecar.requests) == (64, "", [])
    assert outcome.err.startswith("error: ")


def test_what_is_wrong_with_an_opportunity_is_told_field_by_field(run: Run, sidecar: FakeSidecar) -> None:
    errors = [{"field": "core_roles[0].role_name", "problem": "must not be empty"}]
    sidecar.on("POST", COUNCILS, problem(422, "the council cannot be announced", errors=errors))
    outcome = run("council", "create", "--project", "P", "--api", sidecar.api)
    assert outcome.code == 64
    assert outcome.err == "error: the council cannot be announced\n  core_roles[0].role_name: must not be empty\n"


@pytest.mark.parametrize("status", [403, 409])
def test_a_refusal_that_is_no_mistake_in_the_request_exits_1(run: Run, sidecar: FakeSidecar, status: int) -> None:
    sidecar.on("POST", COUNCILS, problem(status, "not here", reason="exists"))
    outcome = run("council", "create", "--project", "P", "--api", sidecar.api)
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "error: not here\n")


def test_create_can_wait_until_the_council_is_active(run: Run, creating: FakeSidecar) -> None:
    active = council(role("tpm", "a"), role("architect", "b"), status="active")
    creating.on("GET", EVENTS, stream(council(), council(role("tpm", "a"), role("architect")), active))
    outcome = run("council", "create", "--project", "P", "--wait", "30", "--api", creating.api)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{ID}\n", "")
    told = run("council", "create", "--project", "P", "--wait", "30", "-o", "json", "--api", creating.api)
    assert json.loads(told.out) == active


def test_a_council_that_is_not_active_in_time_exits_1_with_what_is_missing(run: Run, creating: FakeSidecar) -> None:
    creating.on("GET", EVENTS, stream(council(role("tpm", "a"), role("architect"))))
    outcome = run("council", "create", "--project", "P", "--wait", "0.3", "--api", creating.api)
    assert (outcome.code, outcome.out) == (1, f"{ID}\n")
    assert outcome.err.endswith(
        f"error: council {ID} is forming after 0.3 s, not active\n  not accepted yet: architect\n"
    )


def test_a_council_that_ends_instead_is_told_at_once(run: Run, creating: FakeSidecar) -> None:
    expired = council(status="expired", message="not filled by the deadline: tpm")
    creating.on("GET", EVENTS, stream(council(), expired))
    outcome = run("council", "create", "--project", "P", "--wait", "600", "--api", creating.api)
    assert outcome.code == 1
    assert outcome.err == f"error: council {ID} is expired: not filled by the deadline: tpm\n"


def test_the_list_has_a_row_for_each_council_and_ids_that_tell_them_apart(run: Run, sidecar: FakeSidecar) -> None:
    one = council(role("tpm", "a"), role("architect"), role("scribe", required=False))
    two = council(role("tpm", "a"), council_id=OTHER_ID, status="active", formation_deadline=None)
    three = council(council_id=THIRD_ID, status="expired", project_name="a\x1b[2Jb")
    sidecar.serves(COUNCILS, [one, two, three])
    outcome = run("council", "list", "--api", sidecar.api)
    header, first, second, third = (line.split("  ") for line in outcome.out.splitlines())
    rows = [[text.strip() for text in line if text.strip()] for line in (header, first, second, third)]
    assert rows[0] == ["COUNCIL", "STATUS", "PROJECT", "CORE", "OPTIONAL", "OWNER", "UPDATED", "LEFT", "MISSING"]
    assert [row[0] for row in rows[1:]] == [ID, OTHER_ID, THIRD_ID]
    assert rows[1][1:6] == ["forming", "Test Discovery", "1/2", "0/1", "whoosh-1"]
    assert rows[1][7] != "-"
    assert rows[1][8] == "architect"
    assert rows[2][7:] == ["-", "-"]
    assert "\x1b" not in outcome.out
    sidecar.serves(COUNCILS, [one, three])
    assert run("council", "list", "--api", sidecar.api).out.splitlines()[1].startswith("6f1b2c3d ")


def test_the_list_is_json_for_programs_and_the_sidecar_filters(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves(COUNCILS, [council()])
    assert json.loads(run("council", "list", "-o", "json", "--api", sidecar.api).out) == [council()]
    lines = run("council", "list", "--status", "forming", "-o", "jsonl", "--api", sidecar.api).out.splitlines()
    assert [json.loads(line) for line in lines] == [council()]
    assert [each.path for each in sidecar.requests] == [COUNCILS, f"{COUNCILS}?status=forming"]


def test_one_council_is_fields_and_a_row_for_each_role(run: Run, sidecar: FakeSidecar) -> None:
    roles = [
        role("tpm", "a"),
        role("architect", required_skills=["go", "review"], claims=3),
        role("scribe", required=False),
    ]
    claim = {"role_name": "architect", "agent_id": "b", "name": "node-b", "fit": 0.5, "running_roles": 0}
    report = {"agent_id": "a", "role_name": "tpm", "status": "active", "message": "half done", "at": None, "name": "n"}
    shown = council(*roles, mine=["tpm"], claims=[claim], reports=[report])
    sidecar.serves(ONE, shown)
    outcome = run("council", "show", ID, "--api", sidecar.api)
    assert outcome.code == 0
    top, table, reports = outcome.out.split("\n\n")
    said = dict(line.split(None, 1) for line in top.splitlines())
    assert said["council"] == ID
    assert said["status"] == "forming"
    assert said["missing"] == "architect"
    assert said["owner"] == "whoosh-1 (12D3KooWwhoosh-1)"
    assert said["decision"] == "1.1"
    assert [line.split() for line in table.splitlines()] == [
        ["ROLE", "KIND", "STATE", "HOLDER", "NODE", "FENCE", "CLAIMS", "SKILLS"],
        ["tpm*", "core", "accepted", "Agent", "a", "node-a", "1.2", "0", "-"],
        ["architect", "core", "open", "-", "-", "-", "3", "go,review"],
        ["scribe", "optional", "open", "-", "-", "-", "0", "-"],
    ]
    assert reports.splitlines()[1].split() == ["active", "tpm", "a", "n", "-", "half", "done"]
    claims = run("council", "show", ID, "--claims", "--api", sidecar.api).out.split("\n\n")[2]
    assert claims.splitlines()[1].split() == ["architect", "b", "node-b", "0.50", "0", "-", "-"]
    assert json.loads(run("council", "show", ID, "-o", "json", "--api", sidecar.api).out) == shown


def test_the_beginning_of_an_id_is_enough_when_it_is_the_only_one(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves(COUNCILS, [council(), council(council_id=OTHER_ID), council(council_id=THIRD_ID)])
    sidecar.serves(f"{COUNCILS}/{THIRD_ID}", council(council_id=THIRD_ID))
    assert run("council", "show", "7", "--api", sidecar.api).code == 0
    outcome = run("council", "show", "6F1B", "--api", sidecar.api)
    assert outcome.code == 64
    assert outcome.err == (
        "error: '6F1B' begins the ids of 2 councils; which one?\n"
        f"  ID: {ID} Test Discovery\n  ID: {OTHER_ID} Test Discovery\n  give more of it\n"
    )
    outcome = run("council", "show", "9", "--api", sidecar.api)
    assert outcome.code == 1
    assert "`p2pnode council list` shows them" in outcome.err


@pytest.mark.parametrize("text", [ID, ID.upper(), ID.replace("-", "")])
def test_a_whole_id_is_asked_for_at_once_however_it_is_written(run: Run, sidecar: FakeSidecar, text: str) -> None:
    sidecar.serves(ONE, council())
    assert run("council", "show", text, "--api", sidecar.api).code == 0
    assert [each.path for each in sidecar.requests] == [ONE]


def test_a_council_that_is_not_there_exits_1(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", ONE, problem(404, f"no council {ID} is known here"))
    outcome = run("council", "show", ID, "--api", sidecar.api)
    assert (outcome.code, outcome.out, outcome.err) == (1, "", f"error: no council {ID} is known here\n")


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["release", ID, "tpm"], "release", {"role_name": "tpm"}),
        (
            ["release", ID, "tpm", "--reason", "tired", "--agent-id", "a"],
            "release",
            {"role_name": "tpm", "reason": "tired", "agent_id": "a"},
        ),
        (["cancel", ID], "status", {"status": "cancelled"}),
        (["cancel", ID, "--message", "no"], "status", {"status": "cancelled", "message": "no"}),
        (["status", ID, "completed", "--message", "done"], "status", {"status": "completed", "message": "done"}),
        (
            ["status", ID, "completed", "--role", "tpm", "--agent-id", "a", "--fence", "2.10"],
            "status",
            {"status": "completed", "role_name": "tpm", "agent_id": "a", "term": 2, "n": 10},
        ),
    ],
)
def test_what_is_said_of_a_council_is_posted_and_the_message_id_printed(
    run: Run, sidecar: FakeSidecar, arguments: list[str], path: str, body: dict[str, Any]
) -> None:
    sidecar.on("POST", f"{ONE}/{path}", document_answer({"id": "12D3KooWa-7", "council_id": ID}, 202))
    outcome = run("council", *arguments, "--api", sidecar.api)
    assert (outcome.code, outcome.out, outcome.err) == (0, "12D3KooWa-7\n", "")
    assert posted(sidecar) == body
    told = run("council", *arguments, "-o", "json", "--api", sidecar.api)
    assert json.loads(told.out)["council_id"] == ID


def test_no_sidecar_is_exit_code_3(run: Run) -> None:
    assert run("council", "list").code == 3
