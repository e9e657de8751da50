"""Rules of the resources of the roads: what is asked reaches the sidecar, what it says reaches the client."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.api.server import open_api
from p2pnode.errors import Fault, InvalidRequest
from p2pnode.ports import JsonObject
from tests.api.fake import LOOPBACK, FakeSidecar, serving, tcp_client
from tests.api.test_problems import check

CARRIERS = "/api/v1/carriers"
BRIDGE = "/api/v1/bridge"


async def test_the_roads_are_shown(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get(CARRIERS)
        assert (answer.status_code, answer.json()) == (200, sidecar.roads)
    assert sidecar.asked == []


@pytest.mark.parametrize(
    "changes", [{"rollback": "nats"}, {"rollback": None, "canary_percent": 12.5, "gossip": "off"}, {}, {"gosip": [1]}]
)
async def test_changes_reach_the_sidecar_as_they_were_sent(
    sidecar: FakeSidecar, tmp_path: Path, changes: JsonObject
) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.patch(CARRIERS, json=changes)
        assert (answer.status_code, answer.json()) == (200, {**sidecar.roads, **changes})
    assert sidecar.asked == [("carriers", changes)]


async def test_each_field_that_is_wrong_is_named(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.error = InvalidRequest("no such roads", [Fault("nats", "is no word"), Fault("canary_percent", "is 120")])
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.patch(CARRIERS, json={"nats": "x", "canary_percent": 120})
        check(answer, 422, "invalid-request")
        assert [error["field"] for error in answer.json()["errors"]] == ["nats", "canary_percent"]


@pytest.mark.parametrize("body", [b"", b"[]", b'"nats"', b"{", b'{"canary_percent": NaN}', b'{"rollback": "\\ud800"}'])
async def test_a_body_that_is_no_json_object_changes_nothing(sidecar: FakeSidecar, tmp_path: Path, body: bytes) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.patch(CARRIERS, content=body)
        check(answer, 422, "invalid-request")
        (error,) = answer.json()["errors"]
        assert error["field"] == "body"
        assert '{"rollback": "nats"}' in error["problem"]
    assert sidecar.asked == []


async def test_a_bridge_says_what_it_does_whatever_others_wrote_into_it(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.bridging = {"import_key": "12D3KooWimport", "last_refused": [{"subject": "\ud800"}], "lag_seconds": 0.5}
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get(BRIDGE)
        assert (answer.status_code, answer.json()) == (200, sidecar.bridging)


async def test_a_node_that_is_no_bridge_says_so(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get(BRIDGE)
        check(answer, 404, "not-found")
        assert answer.json()["detail"] == "this node is no bridge"


async def test_other_methods_are_refused(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        check(await served.client.post(CARRIERS, json={"rollback": "nats"}), 405, "method-not-allowed")
        check(await served.client.patch(BRIDGE, json={}), 405, "method-not-allowed")
    assert sidecar.asked == []


async def test_whoever_may_not_ask_changes_no_road(sidecar: FakeSidecar) -> None:
    async with open_api(sidecar, [LOOPBACK], token="secret") as api, tcp_client(api) as client:
        known = {"Authorization": "Bearer secret"}
        for headers, status in (
            ({}, 401),
            ({**known, "Host": "evil.example"}, 421),
            ({**known, "Origin": "http://evil.example"}, 403),
            (known, 200),
        ):
            answer = await client.patch(CARRIERS, json={"rollback": "nats"}, headers=headers)
            assert answer.status_code == status
    assert len(sidecar.asked) == 1
