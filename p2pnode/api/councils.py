"""The resources of councils and of the agents that sit in them; what their documents must hold the node says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from urllib.parse import quote

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p2pnode.api.documents import JsonChunks, outside_json
from p2pnode.api.events import EventStream, council_event
from p2pnode.api.limits import ApiLimits
from p2pnode.api.metrics import ApiCounters
from p2pnode.api.reading import path_segment, read_any_object, read_filter, read_idempotency_key
from p2pnode.errors import Fault, InvalidRequest
from p2pnode.ports import JsonObject, Sidecar
from p2pnode.wire.json_text import encode_message

COUNCILS = "/api/v1/councils"
PART_DOCUMENTS = 32

_COUNCIL = '{"project_name": "NAME", "repository": "URL", "core_roles": ["tpm"]}'
_ROLE = '{"role_name": "tpm"}'
_STATUS = '{"status": "completed"}'
_AGENT = '{"status": "working"}'


class CouncilResources:
    """The endpoints over one sidecar.

    Args:
        sidecar: who answers.
        limits: bounds of event streams.
        counters: where open event streams are counted.
        stopping: set when the API shuts down; ends event streams.
    """

    def __init__(self, sidecar: Sidecar, *, limits: ApiLimits, counters: ApiCounters, stopping: trio.Event) -> None:
        self._sidecar = sidecar
        self._limits = limits
        self._counters = counters
        self._stopping = stopping

    def routes(self) -> list[Route]:
        return [
            Route(COUNCILS, self.councils, methods=["GET", "POST"]),
            Route(f"{COUNCILS}/events", self.all_events),
            Route(f"{COUNCILS}/{{id}}", self.council),
            Route(f"{COUNCILS}/{{id}}/events", self.events),
            Route(f"{COUNCILS}/{{id}}/claims", self.claim, methods=["POST"]),
            Route(f"{COUNCILS}/{{id}}/release", self.release, methods=["POST"]),
            Route(f"{COUNCILS}/{{id}}/status", self.status, methods=["POST"]),
            Route("/api/v1/agent", self.agent, methods=["GET", "PATCH"]),
            Route("/api/v1/agents", self.agents),
        ]

    async def councils(self, request: Request) -> Response | JsonChunks:
        faults: list[Fault] = []
        if request.method == "POST":
            key = read_idempotency_key(request, faults)
            if faults:
                raise InvalidRequest("the council cannot be created", faults)
            document = await read_any_object(request, _COUNCIL)
            made = await self._sidecar.create_council(document, idempotency_key=key)
            return outside_json(made, 202, Location=f"{COUNCILS}/{quote(str(made['council_id']), safe='')}")
        status = read_filter(request, "status", faults)
        if faults:
            raise InvalidRequest("the councils cannot be listed", faults)
        return _listing(self._sidecar.councils(status=status))

    async def council(self, request: Request) -> Response:
        return outside_json(self._sidecar.council(path_segment(request, "id")))

    async def claim(self, request: Request) -> Response:
        council_id = path_segment(request, "id")
        return outside_json(await self._sidecar.claim_role(council_id, await read_any_object(request, _ROLE)), 202)

    async def release(self, request: Request) -> Response:
        council_id = path_segment(request, "id")
        return outside_json(await self._sidecar.release_role(council_id, await read_any_object(request, _ROLE)), 202)

    async def status(self, request: Request) -> Response:
        council_id = path_segment(request, "id")
        return outside_json(await self._sidecar.report_status(council_id, await read_any_object(request, _STATUS)), 202)

    async def all_events(self, _request: Request) -> EventStream[JsonObject]:
        return self._watch(None)

    async def events(self, request: Request) -> EventStream[JsonObject]:
        return self._watch(path_segment(request, "id"))

    async def agent(self, request: Request) -> Response:
        if request.method == "PATCH":
            return outside_json(await self._sidecar.update_agent(await read_any_object(request, _AGENT)))
        return outside_json(self._sidecar.agent())

    async def agents(self, request: Request) -> JsonChunks:
        faults: list[Fault] = []
        capability, model, status = (read_filter(request, name, faults) for name in ("capability", "model", "status"))
        if faults:
            raise InvalidRequest("the agents cannot be listed", faults)
        return _listing(self._sidecar.agents(capability=capability, model=model, status=status))

    def _watch(self, council_id: str | None) -> EventStream[JsonObject]:
        return EventStream(
            lambda: self._sidecar.watch_councils(council_id),
            council_event,
            stopping=self._stopping,
            limits=self._limits,
            counters=self._counters,
        )


def _listing(documents: Sequence[JsonObject]) -> JsonChunks:
    return JsonChunks(_parts(documents))


async def _parts(documents: Sequence[JsonObject]) -> AsyncIterator[bytes]:
    """A JSON array, a few documents at a time: thousands of councils would hold up the node."""
    yield b"["
    for at in range(0, len(documents), PART_DOCUMENTS):
        part = b",".join(map(encode_message, documents[at : at + PART_DOCUMENTS]))
        yield b"," + part if at else part
    yield b"]"
