"""The roads and the bridge: what goes out, what comes back, what is raised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pnode.client import NotASidecar
from p2pnode.errors import InvalidRequest, NotFound
from tests.client.flavours import Connect, Scenario
from tests.client.server import answer, serving
from tests.client.test_publish import script

Run = Callable[[Scenario], None]
CARRIERS = "/api/v1/carriers"
ROADS = {"gossip": {"use": "always"}, "rollback": None}


@pytest.mark.parametrize(("what", "path"), [("carriers", CARRIERS), ("bridge", "/api/v1/bridge")])
def test_documents_are_asked_for(run: Run, tmp_path: Path, what: str, path: str) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            assert await client.call(what) == ROADS
            with pytest.raises(NotASidecar):
                await client.call(what)

    with serving(tmp_path, script(answer(200, ROADS), answer(200, []))) as server:
        run(scenario)
        assert [(each.method, each.path) for each in server.requests] == [("GET", path)] * 2


@pytest.mark.parametrize(
    "changes", [{"rollback": "nats"}, {"rollback": None}, {"gossip": "off", "nats": "always", "canary_percent": 12.5}]
)
def test_changes_go_out_and_are_tried_again(run: Run, tmp_path: Path, changes: dict[str, Any]) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            assert await client.call("set_carriers", **changes) == ROADS

    with serving(tmp_path, script(answer(503, {}), answer(200, ROADS))) as server:
        run(scenario)
        assert [(each.method, each.path, each.json()) for each in server.requests] == [("PATCH", CARRIERS, changes)] * 2


def test_a_road_that_no_sidecar_knows_is_not_sent(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            with pytest.raises(TypeError, match="canary_percent"):
                await client.call("set_carriers", canary=10)

    with serving(tmp_path, script()) as server:
        run(scenario)
        assert server.requests == []


def test_what_is_wrong_is_named(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            with pytest.raises(InvalidRequest) as caught:
                await client.call("set_carriers", nats="sometimes")
            assert [fault.field for fault in caught.value.faults] == ["nats"]
            with pytest.raises(NotFound, match="no bridge"):
                await client.call("bridge")

    refused = answer(422, {"detail": "no", "errors": [{"field": "nats", "problem": "is no use"}]})
    with serving(tmp_path, script(refused, answer(404, {"detail": "this node is no bridge"}))) as server:
        run(scenario)
