"""Errors as RFC 9457 problem documents, one table from our error tree to HTTP."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from p2pnode.errors import (
    CallerError,
    Conflict,
    EnvironmentFault,
    Fault,
    Forbidden,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    StorageFull,
    TooBusy,
    Unavailable,
)
from p2pnode.wire.json_text import encode

logger = logging.getLogger(__name__)

URN = "urn:p2pnode:problem:"
MEDIA_TYPE = "application/problem+json"
MAX_RETRY_AFTER_SECONDS = 3600

TITLES = {
    "unauthorized": "A bearer token is needed",
    "cross-origin": "Requests from foreign web pages are refused",
    "forbidden": "It is not this node's or agent's to do",
    "not-found": "No such resource",
    "method-not-allowed": "This resource does not know that method",
    "conflict": "It contradicts what is already so",
    "request-timeout": "The request body did not arrive in time",
    "payload-too-large": "The body is too large",
    "misdirected-request": "The Host header names another host",
    "invalid-request": "The request is invalid",
    "too-busy": "Too much at once",
    "internal-error": "Something unexpected went wrong here",
    "unavailable": "Not possible right now",
    "storage-full": "There is no space left to store it",
    "environment": "The sidecar's machine is in the way",
    "http-error": "The request cannot be answered",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem document.

    Args:
        status: the HTTP status.
        kind: the last part of the type URN, a key of `TITLES`.
        detail: what is wrong with this request.
        faults: what is wrong where, for invalid input.
        hint: what to do, when `detail` does not say it.
        reason: the short fixed word of an `Unavailable` or a `Conflict`.
        facts: further members, for programs; one with the name of a member above is left out.
        retry_after_seconds: when it is worth trying again.
        headers: further response headers.
    """

    status: int
    kind: str
    detail: str
    faults: Sequence[Fault] = ()
    hint: str = ""
    reason: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    retry_after_seconds: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        document: dict[str, Any] = {
            "type": URN + self.kind,
            "title": TITLES[self.kind],
            "status": self.status,
            "detail": self.detail,
        }
        headers = dict(self.headers)
        if self.faults:
            document["errors"] = [{"field": fault.field, "problem": fault.problem} for fault in self.faults]
        if self.hint:
            document["hint"] = self.hint
        if self.reason:
            document["reason"] = self.reason
        document |= {name: fact for name, fact in self.facts.items() if name not in document}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(_whole_seconds(self.retry_after_seconds))
        return Response(encode(document), self.status, headers=headers, media_type=MEDIA_TYPE)


def _whole_seconds(seconds: float) -> int:
    """At least 1, because clients take 0 for `at once`; never more than an hour."""
    if math.isnan(seconds):
        return 1
    return math.ceil(min(max(seconds, 1.0), MAX_RETRY_AFTER_SECONDS))


INTERNAL = Problem(500, "internal-error", "the sidecar's log says more; the request may have had effect or not")


def caller_problem(error: CallerError) -> Problem:
    if isinstance(error, PayloadTooLarge):
        return Problem(413, "payload-too-large", error.detail, hint=error.hint)
    if isinstance(error, NotFound):
        return Problem(404, "not-found", error.detail, hint=error.hint)
    if isinstance(error, Conflict):
        return Problem(409, "conflict", error.detail, hint=error.hint, reason=error.reason, facts=error.facts)
    if isinstance(error, Forbidden):
        return Problem(403, "forbidden", error.detail, hint=error.hint)
    faults = error.faults if isinstance(error, InvalidRequest) else ()
    return Problem(422, "invalid-request", error.detail, faults=faults, hint=error.hint)


def environment_problem(error: EnvironmentFault) -> Problem:
    if isinstance(error, Unavailable):
        status, kind = (429, "too-busy") if isinstance(error, TooBusy) else (503, "unavailable")
        return Problem(
            status,
            kind,
            error.detail,
            hint=error.hint,
            reason=error.reason,
            retry_after_seconds=error.retry_after_seconds,
        )
    if isinstance(error, StorageFull):
        return Problem(507, "storage-full", error.detail, hint=error.hint, reason="storage-full")
    return Problem(503, "environment", error.detail, hint=error.hint, reason="environment", retry_after_seconds=5.0)


def http_problem(error: HTTPException) -> Problem:
    headers = error.headers or {}
    if error.status_code == 404:
        detail = "no such path; GET / lists them; a slash inside a topic name is written %2F"
        return Problem(404, "not-found", detail, headers=headers)
    if error.status_code == 405:
        allow = ", ".join(sorted(headers.get("Allow", "").split(", ")))
        return Problem(405, "method-not-allowed", f"allowed here: {allow}", headers={"Allow": allow})
    return Problem(error.status_code, "http-error", error.detail, headers=headers)


async def on_caller_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, CallerError)
    return caller_problem(error).response()


async def on_environment_fault(_request: Request, error: Exception) -> Response:
    assert isinstance(error, EnvironmentFault)
    if not isinstance(error, Unavailable):
        logger.error("a request failed because of the machine: %s", error)
    return environment_problem(error).response()


async def on_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return http_problem(error).response()


async def on_unexpected(_request: Request, _error: Exception) -> Response:
    """Answers only; the gate logs and counts what Starlette raises again."""
    return INTERNAL.response()
