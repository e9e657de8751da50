"""`council watch`: what is drawn, what is printed, and when it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from p2pnode.cli.council_view import changes
from tests.cli.fake_councils import COUNCILS, EVENTS, ID, OTHER_ID, council, event, role, stream
from tests.cli.running import Run, command
from tests.cli.test_watch import CURSOR_AWAY, CURSOR_BACK, terminal, times
from tests.local.fake import Answer, FakeSidecar, Request, problem

ACTIVE = council(role("tpm", "a"), role("architect", "b"), status="active")
FORMING = [
    council(),
    council(role("tpm", claims=2), role("architect")),
    council(role("tpm", "a", state="assigned", claims=2), role("architect")),
    council(role("tpm", "a", claims=2), role("architect")),
    ACTIVE,
]


def lasting(sidecar: FakeSidecar, *documents: dict[str, Any]) -> Answer:
    """A stream that stays open after its last document."""

    def body() -> Iterator[bytes]:
        for document in documents:
            yield event(document).encode()
        sidecar.stop.wait()

    return Answer(body(), 200, {"Content-Type": "text/event-stream"}, "chunked")


def plain(out: str) -> list[str]:
    lines = out.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in lines)
    return [line[10:] for line in lines]


def test_in_a_pipe_each_change_is_a_line(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", EVENTS, stream(*FORMING))
    outcome = run("council", "watch", ID, "--until", "active", "--api", sidecar.api)
    first, *rest = plain(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.fullmatch(
        r"Test Discovery: forming, 0/2 core roles, \d+d\d\dh left; decided by whoosh-1",
        first,
    )
    assert rest == [
        "tpm: 2 claims",
        "tpm: assigned, Agent a on node-a (1.2)",
        "tpm: accepted, Agent a on node-a (1.2)",
        "architect: accepted, Agent b on node-b (1.2)",
        "forming -> active",
    ]


def test_it_goes_on_after_active_and_ends_with_the_council(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", EVENTS, stream(ACTIVE, {**ACTIVE, "status": "failed", "message": "out of money"}))
    outcome = run("council", "watch", ID, "--api", sidecar.api)
    assert outcome.code == 0
    assert plain(outcome.out)[-1] == "active -> failed: out of money"


@pytest.mark.parametrize("status", ["failed", "expired", "cancelled"])
def test_an_end_that_was_not_waited_for_is_exit_code_1(run: Run, sidecar: FakeSidecar, status: str) -> None:
    sidecar.on("GET", EVENTS, stream(council(status=status, message="because")))
    outcome = run("council", "watch", ID, "--until", "active", "--api", sidecar.api)
    assert (outcome.code, outcome.err) == (1, f"error: council {ID} is {status}: because\n")


def test_a_council_that_was_completed_has_been_active(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", EVENTS, stream({**ACTIVE, "status": "completed"}))
    assert run("council", "watch", ID, "--until", "active", "--api", sidecar.api).code == 0


def test_a_timeout_is_exit_code_1(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", EVENTS, lasting(sidecar, council()))
    outcome = run("council", "watch", ID, "--timeout", "0.3", "--api", sidecar.api)
    assert outcome.code == 1
    assert f"council {ID} is forming after 0.3 s, not ended" in outcome.err


def test_for_programs_each_change_is_the_whole_document(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", EVENTS, stream(*FORMING))
    outcome = run("council", "watch", ID, "--until", "active", "-o", "jsonl", "--api", sidecar.api)
    assert [json.loads(line) for line in outcome.out.splitlines()] == FORMING


def test_without_an_id_all_councils_are_told_apart(sidecar: FakeSidecar) -> None:
    sidecar.on("GET", f"{COUNCILS}/events", lasting(sidecar, council(), council(council_id=OTHER_ID[::-1])))
    with subprocess.Popen(
        command("council", "watch", "--api", sidecar.api), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == ""
    assert [line.split()[1] for line in lines] == ["6f1b2c3d", OTHER_ID[::-1][:8]]


def test_a_sidecar_that_does_not_answer_is_told_once_and_no_change(run: Run, sidecar: FakeSidecar) -> None:
    gone = problem(503, "it is starting")
    sidecar.on("GET", EVENTS, stream(council()), gone, gone, stream(council(), ACTIVE))
    outcome = run("council", "watch", ID, "--until", "active", "--api", sidecar.api)
    assert outcome.code == 0
    assert len(plain(outcome.out)) == 4
    assert outcome.err == "the sidecar ended the stream; reconnecting\nreconnected\n"


def test_the_first_connection_must_stand(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", EVENTS, problem(404, f"no council {ID} is known here"))
    assert run("council", "watch", ID, "--api", sidecar.api).code == 1
    assert run("council", "watch", ID, "--api", "unix:/nonexistent/api.sock").code == 3


@pytest.mark.parametrize("body", [b"event: council\ndata: {\n\n", b"event: council\ndata: []\n\n"])
def test_a_stream_that_is_no_council_is_no_sidecar(run: Run, sidecar: FakeSidecar, body: bytes) -> None:
    sidecar.on("GET", EVENTS, Answer(body, 200, {"Content-Type": "text/event-stream"}))
    assert run("council", "watch", ID, "--api", sidecar.api).code == 3


def test_on_a_terminal_the_roles_are_redrawn_until_the_council_is_active(sidecar: FakeSidecar) -> None:
    sidecar.on("GET", EVENTS, stream(*FORMING))
    with terminal("council", "watch", ID, "--until", "active", "--api", sidecar.api, columns=100, lines=20) as shown:
        shown.read_all()
        assert shown.process.wait(30) == 0
        last = shown.frames()[-1]
    assert "\x1b[2J" not in shown.text
    assert shown.text.count(CURSOR_AWAY) == shown.text.count(CURSOR_BACK) == 1
    assert last[0].endswith("  Test Discovery: active, 2/2 core roles")
    assert last[1] == f"{ID}  decided by whoosh-1, decision 1.1"
    assert [line.split()[:3] for line in last[3:6]] == [
        ["ROLE", "KIND", "STATE"],
        ["tpm", "core", "accepted"],
        ["architect", "core", "accepted"],
    ]
    assert last[-1].endswith("  forming -> active")


def test_on_a_terminal_an_end_that_was_not_waited_for_is_drawn_and_then_told(sidecar: FakeSidecar) -> None:
    sidecar.on("GET", EVENTS, stream(council(), council(status="cancelled", message="no money")))
    with terminal("council", "watch", ID, "--until", "active", "--api", sidecar.api, columns=100, lines=20) as shown:
        shown.read_all()
        assert shown.process.wait(30) == 1
        assert shown.process.stderr is not None
        assert b"is cancelled: no money" in shown.process.stderr.read()
    assert shown.frames()[-1][0].endswith("cancelled, 0/2 core roles")
    assert shown.text.endswith(f"{CURSOR_BACK}\n")


@pytest.mark.parametrize(("columns", "lines"), [(1, 1), (30, 4), (200, 3), (0, 0)])
def test_no_terminal_is_too_small_and_nothing_is_wider(sidecar: FakeSidecar, columns: int, lines: int) -> None:
    many = council(*(role(f"role-{number}", "a") for number in range(40)), message="x" * 300)
    sidecar.on("GET", EVENTS, lasting(sidecar, many))
    with terminal("council", "watch", ID, "--api", sidecar.api, columns=columns, lines=lines) as shown:
        shown.read_until(lambda text: "\x1b[J" in text)
        frame = shown.frames()[0]
    assert len(frame) <= (lines or 24)
    assert max(map(len, frame)) <= (columns or 80)


def test_a_terminal_keeps_the_last_picture_while_the_sidecar_is_away(sidecar: FakeSidecar) -> None:
    seen = threading.Event()

    def back_when_seen(_request: Request) -> Answer:
        seen.wait()
        return lasting(sidecar, ACTIVE)

    sidecar.on("GET", EVENTS, stream(council()), problem(503, "it is starting"), back_when_seen)
    with terminal("council", "watch", ID, "--api", sidecar.api, columns=100, lines=20) as shown:
        try:
            shown.read_until(lambda text: "ended the stream; reconnecting" in text)
            shown.read_until(times(shown.text.count("\x1b[J") + 1))
        finally:
            seen.set()
        troubled = [frame for frame in shown.frames() if any("reconnecting" in line for line in frame)]
        assert troubled
        assert all("forming, 0/2 core roles" in frame[0] for frame in troubled)
        shown.read_until(lambda text: "active, 2/2 core roles" in text)
        shown.process.send_signal(signal.SIGINT)
        shown.read_all()
        assert shown.process.wait(30) == 130
    assert shown.text.endswith(f"{CURSOR_BACK}\n")


def test_nothing_new_is_no_change() -> None:
    assert list(changes(ACTIVE, {**ACTIVE, "n": 9, "updated_at": "later"})) == []


def test_takeover_release_and_another_holder_are_told() -> None:
    taken = {**ACTIVE, "term": 2, "owner": "12D3KooWwhoosh-2", "owner_name": "whoosh-2"}
    assert list(changes(ACTIVE, taken)) == ["decided by whoosh-2 from now on, term 2"]
    released = council(role("tpm"), role("architect", "c", number=(1, 3)), status="active")
    assert list(changes(ACTIVE, released)) == [
        "tpm: open again, Agent a on node-a (1.2) has it no longer",
        "architect: accepted, Agent c on node-c (1.3)",
    ]


def test_reports_are_told_once_and_harmlessly() -> None:
    report = {"agent_id": "a", "role_name": "tpm", "status": "completed", "message": "done\x1b[2J", "at": "now"}
    reported = {**ACTIVE, "reports": [report]}
    assert list(changes(ACTIVE, reported)) == ["a (tpm) reports completed: done\\x1b[2J"]
    assert list(changes(reported, reported)) == []
