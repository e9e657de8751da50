"""Rules of the resources of councils and agents: what is asked reaches the sidecar, what it says reaches the client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio.testing

from p2pnode.api.limits import ApiLimits
from p2pnode.errors import Conflict, Fault, Forbidden, InvalidRequest, NotFound, StorageFull, TooBusy, Unavailable
from p2pnode.ports import Followed, JsonObject
from tests.api.fake import COUNCIL, FakeSidecar, get, read_until, serving, wait_until
from tests.api.test_events import following
from tests.api.test_problems import check
from tests.api.test_shutdown import UNHURRIED, open_with

COUNCILS = "/api/v1/councils"
ONE = f"{COUNCILS}/{COUNCIL}"
OPPORTUNITY = {"project_name": "Test", "repository": "https://example.org/test", "core_roles": ["tpm"]}


def council(number: int = 1, **members: object) -> JsonObject:
    return {"council_id": f"{COUNCIL[:-2]}{number:02}", "status": "forming", **members}


async def test_a_council_is_created_with_its_place_and_all_that_was_said(sidecar: FakeSidecar, tmp_path: Path) -> None:
    said = {**OPPORTUNITY, "something_new": {"1": [2.5, None]}}
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post(COUNCILS, json=said, headers={"Idempotency-Key": "mine"})
        assert (answer.status_code, answer.headers["Location"]) == (202, ONE)
        assert answer.json() == {"council_id": COUNCIL, **said, "id": "origin-7", "status": "forming"}
        await served.client.post(COUNCILS, json=said)
    assert sidecar.asked == [("create", said, "mine"), ("create", said, None)]


async def test_a_council_that_was_created_before_is_told_so(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.duplicate = True
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post(COUNCILS, json=OPPORTUNITY)
        assert (answer.status_code, answer.json()["duplicate"]) == (202, True)


async def test_an_id_in_the_place_of_a_council_is_quoted(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post(COUNCILS, json={"council_id": "a/ü\r\n"})
        assert answer.headers["Location"] == f"{COUNCILS}/a%2F%C3%BC%0D%0A"


@pytest.mark.parametrize("count", [0, 1, 32, 33, 70])
async def test_councils_are_listed_all_or_of_one_status(sidecar: FakeSidecar, tmp_path: Path, count: int) -> None:
    sidecar.formed = [council(number) for number in range(count)]
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get(COUNCILS)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        assert answer.json() == sidecar.formed
        head = await served.client.head("/api/v1/agents")
        assert (head.status_code, head.content) == (200, b"")
        assert (await served.client.get(f"{COUNCILS}?status=active&other=1")).json() == []
        assert served.api.counters.unexpected == 0
    assert [asked for asked in sidecar.asked if asked[0] == "councils"] == [("councils", None), ("councils", "active")]


async def test_a_council_is_shown_with_its_claims(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.formed = [council()]
    async with serving(sidecar, tmp_path) as served:
        assert (await served.client.get(ONE)).json() == {**council(), "claims": []}
        check(await served.client.get(f"{COUNCILS}/a%20b"), 404, "not-found")
    assert sidecar.asked == [("council", COUNCIL), ("council", "a b")]


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("claims", {"role_name": "tpm", "confidence": 0.5}),
        ("release", {"role_name": "tpm", "reason": "ill"}),
        ("status", {"status": "completed", "term": 2**53 - 1, "n": 1}),
    ],
)
async def test_what_is_said_of_a_council_is_passed_on_as_it_is(
    sidecar: FakeSidecar, tmp_path: Path, what: str, body: JsonObject
) -> None:
    asked = {"claims": "claim"}.get(what, what)
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post(f"{ONE}/{what}", json=body)
        assert (answer.status_code, answer.json()["council_id"]) == (202, COUNCIL)
        # What members there may be is the node's to say.
        await served.client.post(f"{COUNCILS}/no%2Fid/{what}", json={"unknown": 1})
    assert sidecar.asked == [(asked, COUNCIL, body), (asked, "no/id", {"unknown": 1})]


async def test_the_agent_is_shown_and_changed(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        assert (await served.client.get("/api/v1/agent")).json()["status"] == "idle"
        answer = await served.client.patch("/api/v1/agent", json={"status": "working"})
        assert (answer.status_code, answer.json()) == (200, {"agent_id": "a", "status": "working"})
        refused = await served.client.post("/api/v1/agent", json={"status": "idle"})
        check(refused, 405, "method-not-allowed")
        assert refused.headers["Allow"] == "GET, HEAD, PATCH"
    assert sidecar.asked == [("agent", {"status": "working"})]


async def test_agents_are_chosen_by_capability_model_and_status(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.known_agents = [{"agent_id": "a"}, {"agent_id": "b"}]
    async with serving(sidecar, tmp_path) as served:
        assert (await served.client.get("/api/v1/agents")).json() == sidecar.known_agents
        await served.client.get("/api/v1/agents?capability=c%2B%2B&model=m:7b&status=idle")
        await served.client.get("/api/v1/agents?model=m")
    assert sidecar.asked == [
        ("agents", None, None, None),
        ("agents", "c++", "m:7b", "idle"),
        ("agents", None, "m", None),
    ]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (f"{COUNCILS}?status=", ["status"]),
        ("/api/v1/agents?capability=&model=&status=", ["capability", "model", "status"]),
    ],
)
async def test_an_empty_choice_is_told(sidecar: FakeSidecar, tmp_path: Path, path: str, fields: list[str]) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get(path)
        check(answer, 422, "invalid-request")
        assert [error["field"] for error in answer.json()["errors"]] == fields
    assert sidecar.asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[1]",
        b"null",
        b'"tpm"',
        b'{"a": 1',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b"[" * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'{"a": "\xff"}',
        rb'{"a": {"b": ["\ud800"]}}',
        rb'{"\udfff": 1}',
    ],
)
async def test_a_body_that_is_no_json_object_is_told_with_what_would_be_right(
    sidecar: FakeSidecar, tmp_path: Path, body: bytes
) -> None:
    async with serving(sidecar, tmp_path) as served:
        for method, path in (
            ("POST", COUNCILS),
            ("POST", f"{ONE}/claims"),
            ("POST", f"{ONE}/release"),
            ("POST", f"{ONE}/status"),
            ("PATCH", "/api/v1/agent"),
        ):
            answer = await served.client.request(method, path, content=body)
            check(answer, 422, "invalid-request")
            (error,) = answer.json()["errors"]
            assert error["field"] == "body"
            assert "send {" in error["problem"]
    assert sidecar.asked == []


async def test_a_body_at_the_bounds_is_passed_on(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        for body in (b'{"a":' * 64 + b"1" + b"}" * 64, rb'{"a": "\ud83d\ude00\u0000", "b": -1.5e300}'):
            answer = await served.client.patch("/api/v1/agent", content=body)
            assert (answer.status_code, answer.json()) == (200, {"agent_id": "a"} | json.loads(body))


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_wrong_idempotency_key_is_told_and_nothing_is_created(
    sidecar: FakeSidecar, tmp_path: Path, key: str
) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post(COUNCILS, json=OPPORTUNITY, headers={"Idempotency-Key": key})
        check(answer, 422, "invalid-request")
        assert [error["field"] for error in answer.json()["errors"]] == ["Idempotency-Key"]
    assert sidecar.asked == []


async def test_an_id_that_is_no_utf8_is_told(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        for answer in (
            await served.client.get(f"{COUNCILS}/%ff"),
            await served.client.get(f"{COUNCILS}/%ff/events"),
            await served.client.post(f"{COUNCILS}/%ff/claims", json={}),
        ):
            check(answer, 422, "invalid-request")
            assert [error["field"] for error in answer.json()["errors"]] == ["id"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("bad", [Fault("role_name", "is missing")]), 422, "invalid-request"),
        (NotFound("no such council"), 404, "not-found"),
        (Conflict("the council has ended", reason="ended"), 409, "conflict"),
        (Forbidden("this node is no trusted orchestrator", hint="see trust.orchestrators"), 403, "forbidden"),
        (TooBusy("too much"), 429, "too-busy"),
        (Unavailable("alone"), 503, "unavailable"),
        (StorageFull("no space left"), 507, "storage-full"),
    ],
)
async def test_every_refusal_has_its_status_in_each_resource(
    sidecar: FakeSidecar, tmp_path: Path, error: Exception, status: int, kind: str
) -> None:
    sidecar.error = error
    async with serving(sidecar, tmp_path) as served:
        for answer in (
            await served.client.post(COUNCILS, json=OPPORTUNITY),
            await served.client.get(COUNCILS),
            await served.client.get(ONE),
            await served.client.post(f"{ONE}/claims", json={}),
            await served.client.post(f"{ONE}/release", json={}),
            await served.client.post(f"{ONE}/status", json={}),
            await served.client.get(f"{COUNCILS}/events"),
            await served.client.get(f"{ONE}/events"),
            await served.client.get("/api/v1/agents"),
            await served.client.patch("/api/v1/agent", json={}),
        ):
            check(answer, status, kind)
        assert served.api.counters.unexpected == 0


async def test_a_conflict_tells_its_reason_and_its_facts(sidecar: FakeSidecar, tmp_path: Path) -> None:
    facts = {"agent_id": "chorus-2", "peer_id": "12D3KooWtwo", "term": 1, "n": 3, "status": "active", "detail": "x"}
    sidecar.error = Conflict("chorus-2 holds tpm", reason="filled", facts=facts, hint="claim another role")
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post(f"{ONE}/claims", json={"role_name": "tpm"})
        check(answer, 409, "conflict")
        document = answer.json()
    assert {name: document[name] for name in ("agent_id", "peer_id", "term", "n")} == {
        "agent_id": "chorus-2",
        "peer_id": "12D3KooWtwo",
        "term": 1,
        "n": 3,
    }
    assert (document["reason"], document["hint"]) == ("filled", "claim another role")
    # The problem's own members win.
    assert (document["status"], document["detail"]) == (409, "chorus-2 holds tpm")


async def test_what_a_peer_wrote_without_a_json_form_spoils_no_answer(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.formed = [council(metadata={"x": float("inf")}), council(2)]
    sidecar.known_agents = [{"agent_id": "a", "backbeat": {"metadata": [float("nan")]}}]
    async with serving(sidecar, tmp_path) as served:
        first, second = (await served.client.get(COUNCILS)).json()
        assert (first["metadata"], first["unreadable"], second) == (None, ["metadata"], council(2))
        assert (await served.client.get(ONE)).json()["unreadable"] == ["metadata"]
        assert (await served.client.get("/api/v1/agents")).json()[0]["unreadable"] == ["backbeat"]
        async with following(served, f"{COUNCILS}/events") as events:
            sidecar.push(Followed(sidecar.formed[0]))
            assert json.loads((await events.next())["data"])["unreadable"] == ["metadata"]


async def test_councils_are_events_without_an_id(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.push(Followed(council()))
    async with serving(sidecar, tmp_path) as served, following(served, f"{COUNCILS}/events") as events:
        first = await events.next()
        assert (sorted(first), first["event"]) == (["data", "event"], "council")
        assert json.loads(first["data"]) == council()
        sidecar.push(Followed(council(2, project_name="two\nlines\u2028", status="active")))
        assert json.loads((await events.next())["data"])["project_name"] == "two\nlines\u2028"
        sidecar.ended = True
        sidecar.wake()
        with pytest.raises(EOFError):
            await events.next()
    assert sidecar.watched == [None]


async def test_one_council_is_watched_by_its_id(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.formed = [council()]
    sidecar.push(Followed(council()))
    async with serving(sidecar, tmp_path) as served:
        async with following(served, f"{ONE}/events") as events:
            assert json.loads((await events.next())["data"])["council_id"] == COUNCIL
        check(await served.client.get(f"{COUNCILS}/unknown/events"), 404, "not-found")
        assert (await served.client.head(f"{ONE}/events")).status_code == 200
        await wait_until(lambda: served.api.counters.event_streams == 0)
    assert sidecar.watched == [COUNCIL, COUNCIL]


async def test_a_quiet_watch_carries_comments(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(keepalive_seconds=0.01)) as served:
        async with await served.connect() as stream:
            await stream.send_all(get(f"{COUNCILS}/events"))
            await read_until(stream, b": \n\n\r\n4\r\n: \n\n")


async def test_watches_count_among_the_event_streams(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(event_streams=1)) as served:
        async with following(served, f"{COUNCILS}/events"):
            answer = await served.client.get(f"{COUNCILS}/events")
            check(answer, 429, "too-busy")
            assert answer.json()["reason"] == "event-streams"
        await wait_until(lambda: sidecar.following == 0)


async def test_a_watcher_that_stops_reading_holds_back_only_itself(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.endless = Followed(council(project_brief="x" * 65536))
    async with serving(sidecar, tmp_path) as served:
        async with await served.connect() as stream:
            await stream.send_all(get(f"{COUNCILS}/events"))
            await wait_until(lambda: sidecar.taken > 0)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert sidecar.taken < 100
            assert (await served.client.get("/health")).status_code == 200
        await wait_until(lambda: sidecar.following == 0)


async def test_a_watch_ends_at_once_and_whole_at_shutdown(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.push(Followed(council()))
    (answer,) = await open_with(sidecar, tmp_path, UNHURRIED, [get(f"{COUNCILS}/events")])
    assert b"event: council\n" in answer
    assert answer.endswith(b"0\r\n\r\n")
