"""The resources of delivery to the agent: subscriptions, acknowledgements, what waits and what was given up."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p2pnode.api.documents import json_response
from p2pnode.api.reading import MAX_LIMIT, path_segment, read_limit, read_object, read_text
from p2pnode.errors import Fault, InvalidRequest
from p2pnode.ports import Sidecar

_ACK = '{"id": "MESSAGE ID"}'
_NACK = '{"id": "MESSAGE ID", "reason": "why"}'
_CHOICE = '{"id": "MESSAGE ID"} or {"all": true}, with "subscription" if only one is meant'


class DeliveryResources:
    """The endpoints over one sidecar."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/subscriptions", self.subscriptions),
            Route("/api/v1/subscriptions/{name}", self.unsubscribe, methods=["DELETE"]),
            Route("/api/v1/subscriptions/{name}/ack", self.acknowledge, methods=["POST"]),
            Route("/api/v1/subscriptions/{name}/nack", self.nack, methods=["POST"]),
            Route("/api/v1/deliveries", self.deliveries),
            Route("/api/v1/deliveries/failed", self.failed),
            Route("/api/v1/deliveries/retry", self.retry, methods=["POST"]),
            Route("/api/v1/deliveries/drop", self.drop, methods=["POST"]),
        ]

    async def subscriptions(self, _request: Request) -> Response:
        return json_response(await self._sidecar.subscriptions())

    async def unsubscribe(self, request: Request) -> Response:
        await self._sidecar.unsubscribe(path_segment(request, "name"))
        return Response(status_code=204)

    async def acknowledge(self, request: Request) -> Response:
        name = path_segment(request, "name")
        document = await read_object(request, frozenset({"id"}), _ACK)
        faults: list[Fault] = []
        message_id = read_text(document, "id", faults)
        if faults:
            raise InvalidRequest("nothing to acknowledge", faults, hint=f"send {_ACK}")
        return json_response(await self._sidecar.acknowledge(name, message_id))

    async def nack(self, request: Request) -> Response:
        name = path_segment(request, "name")
        document = await read_object(request, frozenset({"id", "reason"}), _NACK)
        faults: list[Fault] = []
        message_id = read_text(document, "id", faults)
        reason = read_text(document, "reason", faults, default="")
        if faults:
            raise InvalidRequest("nothing to give up", faults, hint=f"send {_NACK}")
        return json_response(await self._sidecar.nack(name, message_id, reason))

    async def deliveries(self, _request: Request) -> Response:
        return json_response(await self._sidecar.deliveries())

    async def failed(self, request: Request) -> Response:
        faults: list[Fault] = []
        limit = read_limit(request, MAX_LIMIT, faults)
        if faults:
            raise InvalidRequest("the failed deliveries cannot be listed", faults)
        return json_response(self._sidecar.dead_letters(request.query_params.get("subscription"), limit))

    async def retry(self, request: Request) -> Response:
        return json_response({"retried": await self._sidecar.retry_deliveries(*await self._chosen(request))})

    async def drop(self, request: Request) -> Response:
        return json_response({"dropped": await self._sidecar.drop_deliveries(*await self._chosen(request))})

    async def _chosen(self, request: Request) -> tuple[str | None, str | None]:
        """Subscription and message id; None for all of either."""
        document = await read_object(request, frozenset({"subscription", "id", "all"}), _CHOICE)
        faults: list[Fault] = []
        subscription = read_text(document, "subscription", faults) if "subscription" in document else None
        message_id = read_text(document, "id", faults) if "id" in document else None
        if ("all" in document) == ("id" in document):
            faults.append(Fault("id", 'give either this or "all"'))
        elif document.get("all", True) is not True:
            faults.append(Fault("all", "must be true, or left out"))
        if faults:
            raise InvalidRequest("which deliveries are meant?", faults, hint=f"send {_CHOICE}")
        return subscription, message_id
