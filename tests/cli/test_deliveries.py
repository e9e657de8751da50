"""`deliveries` and `messages`: tables, JSON, what is sent, exit codes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.documents import NOW, message
from tests.cli.running import Run
from tests.local.fake import FakeSidecar, document_answer, problem

PENDING = "/api/v1/deliveries"
FAILED = "/api/v1/deliveries/failed"
MESSAGES = "/api/v1/topics/councils.forming/messages"


def waiting(**members: Any) -> dict[str, Any]:
    return {
        "subscription": "webhook",
        "topics": ["councils.forming"],
        "cursor": 7,
        "pending": 12,
        "oldest_pending_seconds": 61.5,
        "in_flight": 1,
        "failed": 2,
        "delivered": 0,
        "state": "delivering",
        "retry_in_seconds": None,
        "last_error": None,
        "last_error_at": None,
        **members,
    }


LETTER = {
    "subscription": "webhook",
    "id": "12D3KooWx-1",
    "topic": "councils.forming",
    "attempts": 1,
    "error": "HTTP 410: gone\x1b[31m",
    "at": NOW,
    "retrying": False,
}


@pytest.mark.parametrize("arguments", [[], ["pending"]])
def test_what_waits_is_a_row_a_subscription(run: Run, sidecar: FakeSidecar, arguments: list[str]) -> None:
    sidecar.serves(PENDING, [waiting()])
    outcome = run("deliveries", *arguments, "--api", sidecar.api)
    header, row = outcome.out.splitlines()
    assert header.split()[:5] == ["SUBSCRIPTION", "STATE", "PENDING", "OLDEST", "IN-FLIGHT"]
    assert row.split() == ["webhook", "delivering", "12", "1m01s", "1", "2", "0", "-", "-"]
    assert outcome.code == 0


def test_a_webhook_that_is_stuck_is_exit_code_1(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves(PENDING, [waiting(state="waiting", retry_in_seconds=30.2, last_error="HTTP 500")])
    outcome = run("deliveries", "-o", "json", "--api", sidecar.api)
    assert (outcome.code, json.loads(outcome.out)[0]["last_error"]) == (1, "HTTP 500")


def test_what_was_given_up_is_listed_harmlessly(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves(FAILED, [LETTER])
    outcome = run("deliveries", "failed", "--subscription", "a b", "--api", sidecar.api)
    assert outcome.code == 0
    assert outcome.out.splitlines()[1].split()[:4] == ["webhook", "12D3KooWx-1", "councils.forming", "1"]
    assert "\x1b" not in outcome.out
    assert sidecar.requests[0].path == f"{FAILED}?limit=1000&subscription=a%20b"
    assert json.loads(run("deliveries", "failed", "-o", "json", "--api", sidecar.api).out) == [LETTER]


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["12D3KooWx-1"], {"id": "12D3KooWx-1"}),
        (["--all"], {"all": True}),
        (["--all", "--subscription", "webhook"], {"all": True, "subscription": "webhook"}),
    ],
)
@pytest.mark.parametrize(("what", "done"), [("retry", "retried"), ("drop", "dropped")])
def test_one_or_all_are_retried_or_dropped(
    run: Run, sidecar: FakeSidecar, what: str, done: str, arguments: list[str], body: dict[str, object]
) -> None:
    sidecar.on("POST", f"{PENDING}/{what}", document_answer({done: 3}))
    outcome = run("deliveries", what, *arguments, "--api", sidecar.api)
    assert (outcome.code, outcome.out) == (0, f"{done}: 3\n")
    assert json.loads(sidecar.requests[0].body) == body


@pytest.mark.parametrize("arguments", [["retry"], ["retry", "x-1", "--all"], ["drop"], ["-o", "json", "retry", "x-1"]])
def test_which_one_must_be_said_and_wrong_usage_exits_64(run: Run, sidecar: FakeSidecar, arguments: list[str]) -> None:
    outcome = run("deliveries", *arguments)
    assert (outcome.code, outcome.out, sidecar.requests) == (64, "", [])


def test_what_is_no_dead_letter_is_told(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("POST", f"{PENDING}/retry", problem(404, "x-1 is no dead letter here"))
    outcome = run("deliveries", "retry", "x-1", "--api", sidecar.api)
    assert (outcome.code, outcome.err) == (1, "error: x-1 is no dead letter here\n")


def test_messages_are_rows_with_late_ones_marked(run: Run, sidecar: FakeSidecar) -> None:
    long = message(2, {"text": "x" * 500}, late=True)
    sidecar.serves(MESSAGES, [message(1, late=False), long])
    outcome = run("messages", "councils.forming", "--api", sidecar.api)
    header, first, second = outcome.out.splitlines()
    assert header.split() == ["ID", "RECEIVED", "ORIGIN", "CARRIER", "LATE", "PAYLOAD"]
    assert first.split() == ["12D3KooWchorus-1-1", NOW, "chorus-1", "gossip", "no", '{"number":1}']
    assert second.split()[4] == "yes"
    assert second.endswith("…")
    assert sidecar.requests[0].path == f"{MESSAGES}?limit=100"


def test_messages_are_asked_for_from_one_on(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves(MESSAGES, [message(1), message(2)])
    outcome = run("messages", "councils.forming", "--after", "a-1", "--limit", "2", "-o", "jsonl", "--api", sidecar.api)
    assert [json.loads(line) for line in outcome.out.splitlines()] == [message(1), message(2)]
    assert sidecar.requests[0].path == f"{MESSAGES}?limit=2&after=a-1"
    table = run("messages", "councils.forming", "--limit", "2", "--api", sidecar.api)
    assert table.err == "there may be more: --after 12D3KooWchorus-1-2\n"


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--limit", "1001"], ["-o", "raw"]])
def test_wrong_usage_of_messages_exits_64(run: Run, arguments: list[str]) -> None:
    assert run("messages", "t", *arguments).code == 64
