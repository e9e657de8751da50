"""The resources of the roads: which carriers own messages take, and what a bridge does."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p2pnode.api.documents import outside_json
from p2pnode.api.reading import read_any_object
from p2pnode.ports import Sidecar

_CHANGES = '{"rollback": "nats"}'


class CarrierResources:
    """The endpoints over one sidecar.

    Args:
        sidecar: who answers.
    """

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/carriers", self.carriers, methods=["GET", "PATCH"]),
            Route("/api/v1/bridge", self.bridge),
        ]

    async def carriers(self, request: Request) -> Response:
        if request.method == "PATCH":
            return outside_json(await self._sidecar.set_carriers(await read_any_object(request, _CHANGES)))
        return outside_json(self._sidecar.carriers())

    async def bridge(self, _request: Request) -> Response:
        return outside_json(self._sidecar.bridge())
