"""`carriers`: the roads as a table, as JSON, and what is sent to change them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.documents import NOW
from tests.cli.running import Run
from tests.local.fake import FakeSidecar, document_answer, problem

CARRIERS = "/api/v1/carriers"


def road(use: str, configured: str, state: str, messages: int = 0, why: str = "") -> dict[str, Any]:
    return {"use": use, "configured": configured, "state": state, "why": why, "messages": messages}


BROKER = {
    "connected": True,
    "server": "nats://backbeat-nats:4222",
    "jetstream": True,
    "code": "",
    "problem": "",
    "fix": "",
}


def roads(**members: Any) -> dict[str, Any]:
    return {
        "gossip": road("always", "always", "ready", 120),
        "nats": road("fallback", "fallback", "ready"),
        "http": road("off", "off", "off"),
        "rollback": None,
        "canary_percent": 100.0,
        "old_road": "nats",
        "degraded": False,
        "waiting": 2,
        "broker": BROKER,
        "changed_at": None,
        "listen": None,
        **members,
    }


@pytest.mark.parametrize("arguments", [[], ["show"]])
def test_each_road_is_a_row_and_the_rest_is_in_words(run: Run, sidecar: FakeSidecar, arguments: list[str]) -> None:
    sidecar.serves(CARRIERS, roads())
    outcome = run("carriers", *arguments, "--api", sidecar.api)
    table, _, fields = outcome.out.partition("\n\n")
    assert [line.split() for line in table.splitlines()] == [
        ["ROAD", "USE", "CONFIGURED", "STATE", "MESSAGES", "WHY"],
        ["gossip", "always", "always", "ready", "120", "-"],
        ["nats", "fallback", "fallback", "ready", "0", "-"],
        ["http", "off", "off", "off", "0", "-"],
    ]
    assert [line.split(maxsplit=1)[1] for line in fields.splitlines()[:4]] == [
        "off",
        "100 % of councils by gossip, the others by nats",
        "2",
        "nats://backbeat-nats:4222: connected, JetStream",
    ]
    assert outcome.code == 0


def test_a_degraded_node_says_why_what_to_do_and_exits_1(run: Run, sidecar: FakeSidecar) -> None:
    down = {**BROKER, "connected": False, "jetstream": None, "code": "authorization"}
    down |= {"problem": "the password is wrong\x1b[31m", "fix": "set NATS_PASSWORD"}
    document = roads(
        gossip=road("off", "always", "off"),
        nats=road("always", "fallback", "down", 3, "not connected"),
        rollback="nats",
        degraded=True,
        broker=down,
        changed_at=NOW,
    )
    sidecar.serves(CARRIERS, document)
    outcome = run("carriers", "--api", sidecar.api)
    assert outcome.code == 1
    assert "\x1b" not in outcome.out
    for said in ("not connected", "the password is wrong", "(authorization)", "set NATS_PASSWORD", NOW):
        assert said in outcome.out
    assert "100 %, not in force during the rollback" in outcome.out
    as_json = run("carriers", "show", "-o", "json", "--api", sidecar.api)
    assert (as_json.code, json.loads(as_json.out)) == (1, document)


def test_a_node_without_nats_says_so(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves(CARRIERS, roads(broker=None, old_road=None, nats=road("off", "fallback", "off")))
    out = run("carriers", "--api", sidecar.api).out
    assert "not configured (nats.url)" in out
    assert out.splitlines()[2].split(maxsplit=5) == ["nats", "off", "fallback", "off", "0", "nats.url is not set"]


@pytest.mark.parametrize("document", [{}, {"gossip": None, "broker": []}, {"nats": {}, "rollback": [1], "x": 1}])
def test_a_document_of_another_version_is_shown_as_far_as_it_goes(
    run: Run, sidecar: FakeSidecar, document: dict[str, Any]
) -> None:
    sidecar.serves(CARRIERS, document)
    outcome = run("carriers", "--api", sidecar.api)
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize(
    ("words", "sent", "lasting"),
    [
        (["rollback=nats"], {"rollback": "nats"}, "P2PNODE_ROLLBACK=nats"),
        (["rollback=off"], {"rollback": None}, "start it without P2PNODE_ROLLBACK and carriers.rollback"),
        (["canary=10"], {"canary_percent": 10.0}, "P2PNODE_CARRIERS_CANARY_PERCENT=10"),
        (["canary_percent=12.5%"], {"canary_percent": 12.5}, "P2PNODE_CARRIERS_CANARY_PERCENT=12.5"),
        (
            ["gossip=off", "nats=always", "http=fallback"],
            {"gossip": "off", "nats": "always", "http": "fallback"},
            "P2PNODE_CARRIERS_GOSSIP=off; P2PNODE_CARRIERS_NATS=always; P2PNODE_CARRIERS_HTTP=fallback",
        ),
    ],
)
def test_changes_are_sent_and_how_to_make_them_last_is_said(
    run: Run, sidecar: FakeSidecar, words: list[str], sent: dict[str, Any], lasting: str
) -> None:
    sidecar.on("PATCH", CARRIERS, document_answer(roads(degraded=True, changed_at=NOW)))
    outcome = run("carriers", "set", *words, "-o", "json", "--api", sidecar.api)
    assert (outcome.code, json.loads(outcome.out)["changed_at"]) == (0, NOW)
    assert json.loads(sidecar.requests[0].body) == sent
    assert outcome.err == f"this holds until the next start of this sidecar; to make it last: {lasting}\n"
    assert run("carriers", "set", *words, "--api", sidecar.api).out.startswith("ROAD")


@pytest.mark.parametrize(
    ("words", "faults"),
    [
        (["gosip=off"], ["gosip: there is no such key; did you mean gossip?; there are gossip, nats, http, canary"]),
        (["nats=Always"], ["nats: must be one of off, fallback, always, not 'Always'; did you mean always?"]),
        (["nats=yes"], ["nats: must be one of off, fallback, always, not 'yes'"]),
        (["rollback=nat"], ["rollback: must be one of nats, http, off, not 'nat'; did you mean nats?"]),
        (["rollback="], ["rollback: must be one of nats, http, off, not ''"]),
        (["rollback"], ["rollback: has no value: write KEY=VALUE"]),
        (["=nats"], ["=nats: there is no such key"]),
        (["canary=10", "canary_percent=20"], ["canary_percent: is given twice"]),
        (["canary=-1"], ["canary: '-1' is no number from 0 to 100"]),
        (["canary=nan"], ["canary: 'nan' is no number from 0 to 100"]),
        (["canary=100.1"], ["canary: '100.1' is no number from 0 to 100"]),
        (["canary=ten", "http=on"], ["canary: 'ten' is no number", "http: must be one of off, fallback, always"]),
    ],
)
def test_each_wrong_word_is_told_and_nothing_is_sent(
    run: Run, sidecar: FakeSidecar, words: list[str], faults: list[str]
) -> None:
    outcome = run("carriers", "set", "gossip=always", *words, "--api", sidecar.api)
    assert (outcome.code, outcome.out, sidecar.requests) == (64, "", [])
    first, *lines = outcome.err.splitlines()
    assert "nothing was changed" in first
    assert len(lines) == len(faults)
    assert all(line.strip().startswith(fault) for line, fault in zip(lines, faults, strict=True))


@pytest.mark.parametrize("arguments", [["set"], ["-o", "json", "set", "nats=off"], ["sett", "nats=off"]])
def test_wrong_usage_exits_64(run: Run, sidecar: FakeSidecar, arguments: list[str]) -> None:
    outcome = run("carriers", *arguments, "--api", sidecar.api)
    assert (outcome.code, outcome.out, sidecar.requests) == (64, "", [])


def test_what_the_sidecar_refuses_is_told_and_nothing_is_promised(run: Run, sidecar: FakeSidecar) -> None:
    fault = {"field": "gossip", "problem": "no road would be left"}
    sidecar.on("PATCH", CARRIERS, problem(422, "the roads cannot be set like this", errors=[fault]))
    outcome = run("carriers", "set", "gossip=off", "--api", sidecar.api)
    assert (outcome.code, outcome.out) == (64, "")
    assert outcome.err == "error: the roads cannot be set like this\n  gossip: no road would be left\n"


def test_without_a_sidecar_it_exits_3(run: Run) -> None:
    assert [run("carriers").code, run("carriers", "set", "rollback=nats").code] == [3, 3]
