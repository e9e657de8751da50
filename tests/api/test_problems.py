"""Rules of errors: every one is a problem document, and none stops the API."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest
from starlette.exceptions import HTTPException

from p2pnode.api.limits import ApiLimits
from p2pnode.api.problems import http_problem
from p2pnode.errors import (
    CallerError,
    Conflict,
    EnvironmentFault,
    Fault,
    Forbidden,
    InvalidMessage,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    StorageFull,
    TooBusy,
    Unavailable,
)
from tests.api.fake import FakeSidecar, serving, wait_until

MESSAGES = "/api/v1/topics/t/messages"
EVENTS = "/api/v1/topics/t/events"


def check(answer: httpx.Response, status: int, kind: str) -> None:
    document = answer.json()
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert document["status"] == status
    assert document["type"] == f"urn:p2pnode:problem:{kind}"
    assert document["title"]
    assert document["detail"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (InvalidRequest("bad"), 422, "invalid-request", None),
        (CallerError("bad"), 422, "invalid-request", None),
        (NotFound("nobody is called so"), 404, "not-found", None),
        (Forbidden("not yours to do"), 403, "forbidden", None),
        (Conflict("somebody has it", reason="filled"), 409, "conflict", None),
        (PayloadTooLarge("too long"), 413, "payload-too-large", None),
        (TooBusy("queue full", retry_after_seconds=2.1), 429, "too-busy", "3"),
        (Unavailable("alone", reason="no-peers"), 503, "unavailable", "1"),
        (Unavailable("alone", retry_after_seconds=0.0), 503, "unavailable", "1"),
        (Unavailable("alone", retry_after_seconds=float("inf")), 503, "unavailable", "3600"),
        (Unavailable("alone", retry_after_seconds=float("nan")), 503, "unavailable", "1"),
        (EnvironmentFault("disk broken"), 503, "environment", "5"),
        (StorageFull("no space left", hint="make room"), 507, "storage-full", None),
    ],
)
async def test_every_error_of_the_sidecar_has_its_status(
    sidecar: FakeSidecar, tmp_path: Path, error: Exception, status: int, kind: str, retry_after: str | None
) -> None:
    sidecar.error = error
    async with serving(sidecar, tmp_path) as served:
        for answer in (
            await served.client.post(MESSAGES, content=b"x"),
            await served.client.get(MESSAGES),
            await served.client.get(EVENTS),
            await served.client.get("/api/v1/node"),
        ):
            check(answer, status, kind)
            assert answer.headers.get("Retry-After") == retry_after
        assert (await served.client.get("/health")).status_code == 200
        assert served.api.counters.unexpected == 0


async def test_each_fault_and_the_hint_are_told(sidecar: FakeSidecar, tmp_path: Path) -> None:
    faults = [Fault("a", "is short"), Fault("b[0]", "is long")]
    sidecar.error = InvalidRequest("two things", faults, hint="see the guide")
    async with serving(sidecar, tmp_path) as served:
        document = (await served.client.post(MESSAGES, content=b"x")).json()
        assert document["detail"] == "two things"
        assert document["errors"] == [{"field": "a", "problem": "is short"}, {"field": "b[0]", "problem": "is long"}]
        assert document["hint"] == "see the guide"


async def test_unavailable_names_its_reason(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.error = Unavailable("alone", reason="no-peers")
    async with serving(sidecar, tmp_path) as served:
        assert (await served.client.post(MESSAGES, content=b"x")).json()["reason"] == "no-peers"


@pytest.mark.parametrize("error", [ZeroDivisionError("secret detail"), InvalidMessage("topic"), RecursionError()])
async def test_an_unexpected_error_is_logged_counted_and_survived(
    sidecar: FakeSidecar, tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    sidecar.error = error
    async with serving(sidecar, tmp_path) as served:
        with caplog.at_level(logging.ERROR):
            for count, path in enumerate(("/api/v1/node", MESSAGES, EVENTS, "/metrics"), start=1):
                answer = await served.client.get(path)
                check(answer, 500, "internal-error")
                assert "secret" not in answer.text
                await wait_until(lambda count=count: served.api.counters.unexpected == count)  # type: ignore[misc]
        assert type(error).__name__ in caplog.text
        assert "Traceback" in caplog.text
        sidecar.error = None
        assert (await served.client.get("/api/v1/node")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/nowhere", "/api/v1", "/health/", "/api/v1/topics//messages", "/api/v1/topics/a/b/messages"]
)
async def test_an_unknown_path_is_a_404_document(sidecar: FakeSidecar, tmp_path: Path, path: str) -> None:
    async with serving(sidecar, tmp_path) as served:
        check(await served.client.get(path), 404, "not-found")


async def test_a_wrong_method_is_a_405_document_with_all_right_ones(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        for method in ("DELETE", "OPTIONS", "PUT"):
            answer = await served.client.request(method, MESSAGES)
            check(answer, 405, "method-not-allowed")
            assert answer.headers["Allow"] == "GET, HEAD, POST"
        check(await served.client.post("/health"), 405, "method-not-allowed")


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "", "ten", "1.0", "٣", "9" * 30, " 1"])
async def test_a_wrong_limit_names_its_field(sidecar: FakeSidecar, tmp_path: Path, limit: str) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get(MESSAGES, params={"limit": limit, "after": ""})
        check(answer, 422, "invalid-request")
        assert [error["field"] for error in answer.json()["errors"]] == ["limit", "after"]
    assert sidecar.listed == []


async def test_wrong_headers_are_all_named_and_nothing_is_published(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post(
            "/api/v1/topics/%ff/messages",
            content=b"x",
            headers=[
                (b"P2P-A", b"1"),
                (b"p2p-a", b"2"),
                (b"P2P-", b"x"),
                (b"P2P-B", b"\xff"),
                (b"Idempotency-Key", b"k" * 256),
            ],
        )
        check(answer, 422, "invalid-request")
        fields = [error["field"] for error in answer.json()["errors"]]
        assert fields == ["p2p-a", "P2P-", "P2P-B", "Idempotency-Key", "topic"]
    assert sidecar.publications == []


async def test_an_empty_start_is_refused(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        for path in (f"{EVENTS}?from=", "/api/v1/topics/%ff/events"):
            check(await served.client.get(path), 422, "invalid-request")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [101, 3_000_000])
async def test_a_body_over_the_limit_is_a_413_document(
    sidecar: FakeSidecar, tmp_path: Path, size: int, chunked: bool
) -> None:
    async def chunks() -> object:
        yield b"x" * size

    async with serving(sidecar, tmp_path, ApiLimits(body_bytes=100)) as served:
        for path in (MESSAGES, "/health", "/nowhere"):
            content = chunks() if chunked else b"x" * size
            answer = await served.client.post(path, content=content)  # type: ignore[arg-type]
            check(answer, 413, "payload-too-large")
        assert (await served.client.post(MESSAGES, content=b"x" * 100)).status_code == 202
    assert len(sidecar.publications) == 1


async def test_the_largest_payload_reaches_the_sidecar_by_default(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        assert (await served.client.post(MESSAGES, content=b"x" * 256 * 1024)).status_code == 202
        check(await served.client.post(MESSAGES, content=b"x" * 273 * 1024), 413, "payload-too-large")


def test_other_http_errors_keep_their_status() -> None:
    assert http_problem(HTTPException(418, "teapot")).response().status_code == 418
