"""Councils and agents: what goes out, what comes back, what is raised; and councils as they change."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.client import NotASidecar
from p2pnode.client.councils import REMEMBERED_COUNCILS, Watching
from p2pnode.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NoSidecar,
    NotFound,
    P2PNodeError,
    StorageFull,
    TooBusy,
)
from p2pnode.local.sse import MAX_EVENT_BYTES
from tests.client.flavours import Connect, Scenario
from tests.client.server import Request, answer, serving, stream_head
from tests.client.test_publish import script
from tests.client.test_subscribe import streams

# httpcore 1.0 leaves a Unix socket that did not connect to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

Run = Callable[[Scenario], None]
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "client.md"
COUNCIL = "3d6f0c7e-6d0e-4a43-9a68-0d1c3f6f2e01"
COUNCILS = "/api/v1/councils"
ONE = f"{COUNCILS}/{COUNCIL}"
FIELDS: dict[str, Any] = {"project_name": "Test", "repository": "https://example.org/t", "core_roles": ["tpm"]}


def council(number: int = 1, **members: object) -> dict[str, Any]:
    return {"council_id": f"{COUNCIL[:-2]}{number:02}", "status": "forming", **members}


def changed(*documents: dict[str, Any]) -> bytes:
    return b"".join(f"event: council\ndata: {json.dumps(each)}\n\n".encode() for each in documents)


@pytest.mark.parametrize(
    ("what", "given", "named", "method", "path", "body"),
    [
        ("create_council", [FIELDS], {}, "POST", COUNCILS, FIELDS),
        ("create_council", [], FIELDS, "POST", COUNCILS, FIELDS),
        (
            "create_council",
            [{"project_name": "x", "own": 1}],
            {"project_name": "y", "metadata": {"a": [1]}},
            "POST",
            COUNCILS,
            {"project_name": "y", "own": 1, "metadata": {"a": [1]}},
        ),
        ("claim", [COUNCIL, "tpm"], {}, "POST", f"{ONE}/claims", {"role_name": "tpm"}),
        (
            "claim",
            [COUNCIL, "tpm"],
            {"agent_id": "a", "capabilities": ["go"], "confidence": 0.5},
            "POST",
            f"{ONE}/claims",
            {"role_name": "tpm", "agent_id": "a", "capabilities": ["go"], "confidence": 0.5},
        ),
        (
            "release",
            [COUNCIL, "tpm"],
            {"reason": "ill"},
            "POST",
            f"{ONE}/release",
            {"role_name": "tpm", "reason": "ill"},
        ),
        (
            "report_status",
            [COUNCIL, "completed"],
            {"message": "done", "role_name": "tpm", "term": 1, "n": 0},
            "POST",
            f"{ONE}/status",
            {"status": "completed", "message": "done", "role_name": "tpm", "term": 1, "n": 0},
        ),
        ("update_agent", [], {"status": "idle", "current_team": ""}, "PATCH", "/api/v1/agent", None),
    ],
)
def test_what_is_said_goes_out_and_the_answer_is_given(
    run: Run,
    tmp_path: Path,
    what: str,
    given: list[Any],
    named: dict[str, Any],
    method: str,
    path: str,
    body: dict[str, Any] | None,
) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            assert await client.call(what, *given, **named) == {"id": "origin-7", "new": None}

    good = answer(200 if method == "PATCH" else 202, {"id": "origin-7", "new": None})
    with serving(tmp_path, script(answer(503, {}), good)) as server:
        run(scenario)
        first, second = server.requests
    assert (first.method, first.path, first.json()) == (method, path, named if body is None else body)
    assert first.headers["content-type"] == "application/json"
    # What was not stored is sent again as it was, a creation under one key.
    assert second.json() == first.json()
    keys = [request.headers.get("idempotency-key") for request in (first, second)]
    assert keys[0] == keys[1]
    assert (keys[0] is not None) == (what == "create_council")


@pytest.mark.parametrize(
    ("what", "given", "path", "query"),
    [
        ("councils", [], COUNCILS, {}),
        ("councils", ["active"], COUNCILS, {"status": "active"}),
        ("agents", [], "/api/v1/agents", {}),
        (
            "agents",
            ["c++ & go", "m:7b", "idle"],
            "/api/v1/agents",
            {"capability": "c++ & go", "model": "m:7b", "status": "idle"},
        ),
        ("council", [COUNCIL], ONE, {}),
        ("agent", [], "/api/v1/agent", {}),
    ],
)
def test_documents_are_asked_for(
    run: Run, tmp_path: Path, what: str, given: list[str], path: str, query: dict[str, str]
) -> None:
    listed = what in ("councils", "agents")

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            assert await client.call(what, *given) == ([council()] if listed else council())
            with pytest.raises(NotASidecar):
                await client.call(what, *given)

    wrong = answer(200, {} if listed else [])
    with serving(tmp_path, script(answer(200, [council()] if listed else council()), wrong)) as server:
        run(scenario)
        assert [(each.method, each.path, each.query) for each in server.requests] == [("GET", path, query)] * 2


def test_a_creation_may_have_a_key_of_its_own(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            made = await client.call("create_council", FIELDS, idempotency_key="mine")
            assert made["duplicate"] is True
            for wrong in ("", "ü", "a\r\nb"):
                with pytest.raises(InvalidRequest) as caught:
                    await client.call("create_council", FIELDS, idempotency_key=wrong)
                assert [fault.field for fault in caught.value.faults] == ["Idempotency-Key"]

    refused = answer(422, {"detail": "no", "errors": [{"field": "Idempotency-Key", "problem": "is empty"}]})
    with serving(tmp_path, script(answer(202, council(duplicate=True)), refused)) as server:
        run(scenario)
        assert server.requests[0].headers["idempotency-key"] == "mine"
        # What no header can hold was not sent.
        assert len(server.requests) == 2


def test_a_conflict_has_its_reason_and_its_facts(run: Run, tmp_path: Path) -> None:
    facts = {"agent_id": "chorus-2", "peer_id": "12D3KooWtwo", "term": 1, "n": 3}

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            with pytest.raises(Conflict, match="chorus-2 holds tpm") as caught:
                await client.call("claim", COUNCIL, "tpm")
        error = caught.value
        assert (error.reason, error.facts, error.hint) == ("filled", facts, "claim another")

    problem = {
        "type": "urn:p2pnode:problem:conflict",
        "title": "No",
        "status": 409,
        "detail": "chorus-2 holds tpm",
        "hint": "claim another",
        "reason": "filled",
        **facts,
    }
    with serving(tmp_path, script(answer(409, problem))) as server:
        run(scenario)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (422, InvalidRequest),
        (429, TooBusy),
        (507, StorageFull),
    ],
)
def test_a_refusal_is_the_error_of_whoever_erred(
    run: Run, tmp_path: Path, status: int, error: type[P2PNodeError]
) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api, timeout=0.2) as client:
            with pytest.raises(P2PNodeError, match="because") as caught:
                await client.call("report_status", COUNCIL, "completed")
            assert type(caught.value) is error

    with serving(tmp_path, script(answer(status, {"detail": "because"}))) as server:
        run(scenario)


@pytest.mark.parametrize("wrong", ["", "..", "events", "a/b", None, 7])
def test_an_id_that_is_no_uuid_is_told_and_nothing_is_asked(run: Run, tmp_path: Path, wrong: Any) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            for what, rest in (("council", []), ("claim", ["r"]), ("release", ["r"]), ("report_status", ["failed"])):
                with pytest.raises(InvalidRequest) as caught:
                    await client.call(what, wrong, *rest)
                assert [fault.field for fault in caught.value.faults] == ["council_id"]
            if wrong is not None:
                with pytest.raises(InvalidRequest):
                    client.watch(wrong)

    with serving(tmp_path, script(answer(202, {}))) as server:
        run(scenario)
        assert server.requests == []


def test_a_keyword_that_no_request_has_is_a_type_error(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            for what, given in (
                ("create_council", []),
                ("claim", [COUNCIL, "tpm"]),
                ("release", [COUNCIL, "tpm"]),
                ("report_status", [COUNCIL, "failed"]),
                ("update_agent", []),
            ):
                with pytest.raises(TypeError, match="'core_role' is none of the keywords"):
                    await client.call(what, *given, core_role=["tpm"])

    with serving(tmp_path, script(answer(202, {}))) as server:
        run(scenario)
        assert server.requests == []


@pytest.mark.parametrize("wrong", [{1}, float("nan")])
def test_what_has_no_json_form_is_told_and_not_sent(run: Run, tmp_path: Path, wrong: object) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            with pytest.raises(InvalidRequest):
                await client.call("create_council", {**FIELDS, "metadata": {"a": wrong}})

    with serving(tmp_path, script(answer(202, {}))) as server:
        run(scenario)
        assert server.requests == []


@pytest.mark.parametrize(("council_id", "path"), [(None, f"{COUNCILS}/events"), (COUNCIL, f"{ONE}/events")])
def test_councils_come_as_they_change_over_reconnections(
    run: Run, tmp_path: Path, council_id: str | None, path: str
) -> None:
    first, second = council(1), council(2)
    active = council(1, status="active")

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            watch = client.watch(council_id)
            assert [await watch.next() for _ in range(4)] == [first, second, active, first]
            await watch.close()

    parts = (b": \n\n" + changed(first, second), None, changed(first, second, active), changed(active, second, first))
    with serving(tmp_path, streams(*parts)) as server:
        run(scenario)
        assert [(each.path, each.query) for each in server.requests] == [(path, {})] * 4
        assert all("last-event-id" not in each.headers for each in server.requests)


def test_a_watch_of_an_unknown_council_raises_not_found(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            watch = client.watch(COUNCIL)
            with pytest.raises(NotFound, match="no such council"):
                await watch.next()
            await watch.close()

    with serving(tmp_path, script(answer(404, {"detail": "no such council"}))) as server:
        run(scenario)


def test_a_closed_watch_ends_and_so_does_that_of_a_closed_client(run: Run, tmp_path: Path) -> None:
    def say(request: Request) -> Iterator[bytes]:
        yield stream_head() + changed(council())
        request.gone.wait()

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            watch = client.watch()
            assert await watch.next() == council()
            await watch.close()
            with pytest.raises((StopIteration, StopAsyncIteration, RuntimeError)):
                await watch.next()
            assert await client.watch().next() == council()

    with serving(tmp_path, say) as server:
        run(scenario)


def test_what_is_no_council_is_skipped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    watching = Watching(None, 1)
    noise = (
        b"event: council\ndata: [1]\n\nevent: council\ndata: {\n\nevent: council\ndata: {}\n\nevent: new\ndata: 1\n\n"
    )
    assert watching.feed(noise + changed(council())) == ([council()], [])
    assert caplog.text.count("is no council") == 3


def test_events_may_be_cut_anywhere() -> None:
    stream = b"retry: 1000\n\n" + changed(council(1), council(2)) + b": \n\n"
    for size in (1, 7, len(stream)):
        watching, found = Watching(None, 1), []
        for at in range(0, len(stream), size):
            found += watching.feed(stream[at : at + size])[0]
        assert found == [council(1), council(2)], size


def test_what_came_with_an_endless_event_comes_again() -> None:
    watching = Watching(None, 1)
    with pytest.raises(NoSidecar):
        watching.feed(changed(council()) + b"data: " + b"x" * MAX_EVENT_BYTES + b"\n\n")
    assert watching.path() == f"{COUNCILS}/events"
    assert watching.feed(changed(council()))[0] == [council()]


def test_what_is_known_of_councils_is_bounded() -> None:
    watching = Watching(None, 1)
    many = [{"council_id": str(number)} for number in range(REMEMBERED_COUNCILS + 1)]
    assert watching.feed(changed(*many))[0] == many
    assert watching.feed(changed(many[-1]))[0] == []
    assert watching.feed(changed(many[0]))[0] == [many[0]]


def test_the_example_of_the_documentation_claims_what_is_open_and_says_that_it_works(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text().partition("## Councils")[2], re.DOTALL)
    open_role = {"role_name": "tpm", "state": "open", "claims": 0}
    taken = {"role_name": "qa", "state": "accepted", "claims": 1}
    forming = council(roles=[open_role, taken], mine=[], project_name="Test")
    active = council(roles=[taken], mine=["qa"], project_name="Test", status="active")

    def say(request: Request) -> Iterator[bytes]:
        if request.method == "GET":
            yield stream_head() + changed(forming, active)
            request.gone.wait()
        elif request.method == "POST":
            yield answer(409, {"detail": "too late", "reason": "filled", "agent_id": "chorus-2"})
        else:
            yield answer(200, {})

    with serving(tmp_path, say) as server:
        env = {**os.environ, "P2PNODE_API": server.api, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        agent = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
        try:
            server.wait_for(lambda: len(server.requests) == 3)
            assert agent.stdout is not None
            assert agent.stdout.readline() == b"tpm filled chorus-2\n"
        finally:
            agent.kill()
            agent.communicate()
        _, claim, update = server.requests
    assert (claim.path, claim.json()) == (f"{ONE}/claims", {"role_name": "tpm", "confidence": 0.5})
    assert (update.method, update.json()) == ("PATCH", {"status": "working", "current_team": "Test"})
