"""What the client asks about councils and agents, and councils as they change; no I/O."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Mapping
from typing import Any, Final, TypedDict
from urllib.parse import quote, urlencode

from p2pnode.client.asking import Call, NotASidecar, Steps, checked, document, listing, query, send_json
from p2pnode.client.following import Feed
from p2pnode.errors import Fault, InvalidRequest
from p2pnode.local.sse import Event, MalformedStream, events

logger = logging.getLogger(__name__)

COUNCILS: Final = "/api/v1/councils"
REMEMBERED_COUNCILS: Final = 4096
"""Councils whose last document is known, so that it is not given out again after a reconnection."""


class CouncilFields(TypedDict, total=False):
    """An opportunity's members; the sidecar fills in `council_id`, `created_at` and `formation_deadline`.

    Args:
        core_roles: each a name or an object (`role_name`, `required_skills`, `description`, …).
        formation_deadline: RFC 3339 with a time zone.
    """

    project_name: str
    repository: str
    core_roles: list[str | dict[str, Any]]
    optional_roles: list[str | dict[str, Any]]
    project_brief: str
    ucxl_address: str
    council_id: str
    formation_deadline: str
    metadata: dict[str, Any]


class ClaimFields(TypedDict, total=False):
    """What a claim may say besides its role; what is left out the sidecar knows of its agent."""

    agent_id: str
    agent_name: str
    capabilities: list[str]
    confidence: float
    claimed_at: str


class ReleaseFields(TypedDict, total=False):
    agent_id: str
    reason: str


class ReportFields(TypedDict, total=False):
    """What a report may say besides its status; `term` and `n` are the fencing number of the role."""

    message: str
    role_name: str
    agent_id: str
    term: int
    n: int


class AgentFields(TypedDict, total=False):
    """What an agent says of itself."""

    status: str
    capabilities: list[str]
    model: str
    endpoint: str
    current_team: str
    tasks_completed: int


def create_council(
    council: Mapping[str, Any] | None, fields: CouncilFields, key: str | None, timeout: float
) -> Steps[dict[str, Any]]:
    content = {**(council or {}), **checked(fields, CouncilFields)}
    # One key for all attempts: an answer that was lost on the way makes no second council.
    return send_json("POST", COUNCILS, content, timeout, key=uuid.uuid4().hex if key is None else key)


def councils(status: str | None, timeout: float) -> Steps[list[dict[str, Any]]]:
    return _list(COUNCILS, {"status": status}, timeout)


def council(council_id: str, timeout: float) -> Steps[dict[str, Any]]:
    return document((yield from query(_path(council_id), timeout)))


def claim(council_id: str, role_name: str, fields: ClaimFields, timeout: float) -> Steps[dict[str, Any]]:
    content = {"role_name": role_name, **checked(fields, ClaimFields)}
    return send_json("POST", f"{_path(council_id)}/claims", content, timeout)


def release(council_id: str, role_name: str, fields: ReleaseFields, timeout: float) -> Steps[dict[str, Any]]:
    content = {"role_name": role_name, **checked(fields, ReleaseFields)}
    return send_json("POST", f"{_path(council_id)}/release", content, timeout)


def report_status(council_id: str, status: str, fields: ReportFields, timeout: float) -> Steps[dict[str, Any]]:
    content = {"status": status, **checked(fields, ReportFields)}
    return send_json("POST", f"{_path(council_id)}/status", content, timeout)


def agent(timeout: float) -> Steps[dict[str, Any]]:
    return document((yield from query("/api/v1/agent", timeout)))


def agents(
    capability: str | None, model: str | None, status: str | None, timeout: float
) -> Steps[list[dict[str, Any]]]:
    return _list("/api/v1/agents", {"capability": capability, "model": model, "status": status}, timeout)


def update_agent(fields: AgentFields, timeout: float) -> Steps[dict[str, Any]]:
    return send_json("PATCH", "/api/v1/agent", checked(fields, AgentFields), timeout)


class Watching(Feed):
    """Councils as they change: of one id, or all.

    A stream begins with the councils that are; after a reconnection one that has not changed is not given out again.
    """

    def __init__(self, council_id: str | None, timeout: float) -> None:
        self._events = COUNCILS if council_id is None else _path(council_id)
        super().__init__("councils" if council_id is None else f"council {council_id}", timeout)
        # By council id: a digest of the last document.
        self._given: dict[str, bytes] = {}

    def path(self) -> str:
        self._forget_pending()
        return f"{self._events}/events"

    def feed(self, chunk: bytes) -> tuple[list[dict[str, Any]], list[Call]]:
        whole = self._whole(chunk)
        try:
            found = [each for event in events([whole]) for each in self._changed(event)]
        except MalformedStream as error:
            self._given.clear()  # what came with it was not given out: it has to come again
            raise NotASidecar(str(error)) from None
        return found, []

    def _changed(self, event: Event) -> list[dict[str, Any]]:
        """The council of an event; none when it is known already."""
        self._progressed()
        if event.kind != "council":
            return []
        try:
            found = json.loads(event.data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("council_id"), str):
            logger.warning("an event on councils is no council and is skipped: %.200s", event.data)
            return []
        digest = hashlib.sha256(event.data.encode()).digest()
        before = self._given.pop(found["council_id"], None)
        self._given[found["council_id"]] = digest
        if len(self._given) > REMEMBERED_COUNCILS:
            del self._given[next(iter(self._given))]
        return [] if before == digest else [found]


def _list(path: str, chosen: Mapping[str, str | None], timeout: float) -> Steps[list[dict[str, Any]]]:
    asked = urlencode({name: text for name, text in chosen.items() if text is not None})
    return listing((yield from query(f"{path}?{asked}" if asked else path, timeout)))


def _path(council_id: str) -> str:
    try:
        uuid.UUID(council_id)
    except (ValueError, TypeError, AttributeError):
        fault = Fault("council_id", f"{council_id!r} is no UUID; `councils()` tells those that are known")
        raise InvalidRequest("no council is named", [fault]) from None
    return f"{COUNCILS}/{quote(council_id, safe='')}"
