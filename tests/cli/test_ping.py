"""`ping`: round trips, what was lost, who is meant."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.running import Outcome, Run
from tests.local.fake import Answer, FakeSidecar, document_answer, problem

PEER = "12D3KooWchorus-1"
PATH = "/api/v1/peers/chorus-1/ping"
BY_ID = f"/api/v1/peers/{PEER}/ping"


def answered(rtt_ms: float, **members: Any) -> Answer:
    return document_answer({"peer_id": PEER, "name": "chorus-1", "rtt_ms": rtt_ms, **members})


LOST = problem(503, "no echo within 10 s", reason="ping")


@pytest.fixture
def ping(run: Run, sidecar: FakeSidecar) -> Run:
    def ping(*answers: Answer, arguments: tuple[str, ...] = ()) -> Outcome:
        sidecar.on("POST", PATH, *answers)
        sidecar.on("POST", BY_ID, *answers[1:])
        count = ("--count", str(len(answers)))
        return run("ping", "chorus-1", *count, "--interval", "0", "--api", sidecar.api, *arguments)

    return ping


def test_each_round_trip_and_a_summary_are_printed(ping: Run) -> None:
    outcome = ping(answered(1.25), answered(30.0), answered(0.04))
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "1  chorus-1  1.2ms",
        "2  chorus-1  30.0ms",
        "3  chorus-1  0.04ms",
        f"3 tries, 0 lost, min 0.04ms, median 1.2ms, max 30.0ms; chorus-1 {PEER}",
    ]


def test_once_found_the_peer_is_asked_for_by_its_id(ping: Run, sidecar: FakeSidecar) -> None:
    ping(answered(1.0), answered(1.0))
    assert [(request.method, request.path) for request in sidecar.requests] == [("POST", PATH), ("POST", BY_ID)]


def test_a_lost_one_says_why_and_the_exit_code_is_1(ping: Run) -> None:
    outcome = ping(answered(2.0), LOST, answered(4.0))
    assert outcome.code == 1
    assert outcome.out.splitlines()[1] == "2  chorus-1  lost: no echo within 10 s"
    assert outcome.out.splitlines()[3].startswith("3 tries, 1 lost, min 2.0ms, median 3.0ms, max 4.0ms")


def test_all_lost_has_no_times(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("POST", PATH, LOST)
    outcome = run("ping", "chorus-1", "--count", "2", "--interval", "0", "--api", sidecar.api, "-o", "json")
    assert outcome.code == 1
    document = json.loads(outcome.out)
    assert (document["tries"], document["lost"], document["rtt_ms"], document["peer_id"]) == (2, 2, None, None)
    assert [trip["problem"] for trip in document["round_trips"]] == ["no echo within 10 s"] * 2


def test_json_holds_every_round_trip(ping: Run) -> None:
    document = json.loads(ping(answered(1.0), answered(3.0), arguments=("-o", "json")).out)
    assert document["rtt_ms"] == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert (document["peer_id"], document["name"], document["lost"]) == (PEER, "chorus-1", 0)
    assert document["round_trips"][1] == {
        "number": 2,
        "peer_id": PEER,
        "name": "chorus-1",
        "rtt_ms": 3.0,
        "linked": True,
    }


def test_jsonl_has_a_line_each_and_the_summary_last(ping: Run) -> None:
    lines = [json.loads(line) for line in ping(answered(1.0), LOST, arguments=("-o", "jsonl")).out.splitlines()]
    assert [line.get("rtt_ms") for line in lines] == [1.0, None, None]
    assert lines[1]["problem"] == "no echo within 10 s"
    assert lines[2]["summary"]["lost"] == 1


def test_a_handshake_without_a_link_is_told(ping: Run) -> None:
    assert ping(answered(5.0, linked=False)).out.splitlines()[0] == "1  chorus-1  5.0ms  no link: by a handshake"


def test_who_is_not_known_exits_1_with_candidates(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("POST", PATH, problem(404, "nobody known here is called 'chorus-1'", hint="known here: chorus-2"))
    outcome = run("ping", "chorus-1", "--api", sidecar.api)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: nobody known here is called 'chorus-1'\n  known here: chorus-2\n"


def test_an_ambiguous_name_lists_who_is_meant(run: Run, sidecar: FakeSidecar) -> None:
    errors = [{"field": "peer", "problem": "a 12D3KooWx alive"}, {"field": "peer", "problem": "a 12D3KooWy alive"}]
    sidecar.on("POST", PATH, problem(422, "'chorus-1' names 2 peers; which one?", errors=errors))
    outcome = run("ping", "chorus-1", "--api", sidecar.api)
    assert outcome.code == 64
    assert "12D3KooWx" in outcome.err
    assert "12D3KooWy" in outcome.err


def test_without_a_sidecar_it_exits_3(run: Run) -> None:
    assert run("ping", "x").code == 3


@pytest.mark.parametrize("document", [[], {}, {"peer_id": PEER}, {"peer_id": 1, "rtt_ms": 1}, "x"])
def test_an_answer_of_another_shape_is_no_sidecars(ping: Run, document: object) -> None:
    assert ping(document_answer(document)).code == 3


def test_a_name_of_any_letters_is_one_path_segment(run: Run, sidecar: FakeSidecar) -> None:
    run("ping", "a/b ü", "--api", sidecar.api)
    assert sidecar.requests[0].path == "/api/v1/peers/a%2Fb%20%C3%BC/ping"


def test_ctrl_c_still_prints_the_summary(ping: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    outcome = ping(answered(1.0), answered(1.0))
    assert outcome.code == 130
    assert outcome.out.splitlines()[-1].startswith("1 tries, 0 lost")


@pytest.mark.parametrize(
    "arguments", [[], ["a", "b"], ["a", "--count", "0"], ["a", "--interval", "-1"], ["a", "-o", "x"]]
)
def test_wrong_usage_exits_64(run: Run, arguments: list[str]) -> None:
    assert run("ping", *arguments).code == 64


def test_hostile_names_cannot_drive_the_terminal(ping: Run) -> None:
    outcome = ping(answered(1.0, name="\x1b[2J"), problem(503, "\x1b]0;x\x07"))
    assert "\x1b" not in outcome.out
