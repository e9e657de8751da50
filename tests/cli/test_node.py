"""`id`, `status`, `topics`."""

from __future__ import annotations

import json

import pytest

from tests.cli.documents import node
from tests.cli.running import Run
from tests.local.fake import FakeSidecar, document_answer, problem

TOPICS = [
    {"topic": "hmmm.x", "subscribed": False, "peers": 0, "mesh": None, "messages": 0, "received": 0, "published": 2},
    {"topic": "a", "subscribed": True, "peers": ["p", "q"], "mesh": [], "messages": 1, "received": 1, "published": 0},
]


def test_id_shows_every_address_on_a_line_of_its_own(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/node", node())
    lines = [line.split() for line in run("id", "--api", sidecar.api).out.splitlines()]
    assert ["peer_id", "12D3KooWwhoosh-1"] in lines
    assert ["/ip4/10.0.0.1/tcp/9000/p2p/12D3KooWwhoosh-1"] in lines
    assert ["cluster_id", "-"] in lines
    assert ["uptime", "3m12s"] in lines


def test_id_as_json_is_the_apis_document(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/node", node())
    assert json.loads(run("id", "-o", "json", "--api", sidecar.api).out) == node()


@pytest.mark.parametrize(
    ("http_status", "readiness", "code"), [(200, "delivering", 0), (206, "degraded", 1), (503, "not-ready", 2)]
)
def test_status_exits_by_whether_delivery_works(
    run: Run, sidecar: FakeSidecar, http_status: int, readiness: str, code: int
) -> None:
    sidecar.on("GET", "/ready", document_answer({"status": readiness, "reasons": ["no peer: join one"]}, http_status))
    sidecar.serves("/api/v1/node", node())
    plain = run("status", "--api", sidecar.api)
    assert plain.code == code
    assert [line.split(maxsplit=1) for line in plain.out.splitlines()][:2] == [
        ["health", readiness],
        ["reasons", "no peer: join one"],
    ]
    as_json = run("status", "-o", "json", "--api", sidecar.api)
    assert as_json.code == code
    assert json.loads(as_json.out) == {
        "readiness": readiness,
        "reasons": ["no peer: join one"],
        "name": "whoosh-1",
        "role": "whoosh",
        "peer_id": "12D3KooWwhoosh-1",
        "version": "0.1.0",
        "uptime_seconds": 192.4,
    }


def test_status_of_something_without_ready_is_not_good(run: Run, sidecar: FakeSidecar) -> None:
    assert run("status", "--api", sidecar.api).code == 1


def test_status_says_that_a_token_is_needed(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", "/ready", problem(401, "a bearer token is needed"))
    outcome = run("status", "--api", sidecar.api)
    assert outcome.code == 64
    assert "--api-token-file" in outcome.err


def test_topics_are_by_name_and_lists_are_counted(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/topics", TOPICS)
    assert [line.split() for line in run("topics", "--api", sidecar.api).out.splitlines()] == [
        ["TOPIC", "SUBSCRIBED", "PEERS", "MESH", "MESSAGES", "RECEIVED", "PUBLISHED"],
        ["a", "yes", "2", "0", "1", "1", "0"],
        ["hmmm.x", "no", "0", "-", "0", "0", "2"],
    ]
    assert json.loads(run("topics", "-o", "json", "--api", sidecar.api).out) == [TOPICS[1], TOPICS[0]]
