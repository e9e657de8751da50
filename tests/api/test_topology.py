"""Rules of `/topology`: every end of a link is a node, and each link is there once."""

from __future__ import annotations

from pathlib import Path

from p2pnode.api.topology import topology_document
from p2pnode.ports import JsonObject
from tests.api.fake import FakeSidecar, serving


def node(peer_id: str, *links: str) -> JsonObject:
    return {"peer_id": peer_id, "name": peer_id.upper(), "role": "chorus", "links": list(links), "topics": {}}


FLEET: JsonObject = {
    "nodes": [node("b", "a", "c"), node("a", "b", "x")],
    "missing": [{"peer_id": "c", "name": "C"}, {"peer_id": "d", "name": "D"}],
}


def test_nodes_are_who_answered_who_is_missing_and_who_is_only_told_of() -> None:
    assert topology_document(FLEET)["nodes"] == [
        {"peer_id": "b", "name": "B", "role": "chorus", "answered": True},
        {"peer_id": "a", "name": "A", "role": "chorus", "answered": True},
        {"peer_id": "c", "name": "C", "role": None, "answered": False},
        {"peer_id": "d", "name": "D", "role": None, "answered": False},
        {"peer_id": "x", "name": None, "role": None, "answered": False},
    ]


def test_a_link_is_there_once_and_says_whether_both_told_of_it() -> None:
    assert topology_document(FLEET)["links"] == [
        {"source": "a", "target": "b", "mutual": True},
        {"source": "a", "target": "x", "mutual": False},
        {"source": "b", "target": "c", "mutual": False},
    ]


async def test_it_is_served(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.fleet = FLEET
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get("/api/v1/topology")
        assert (answer.status_code, answer.json()) == (200, topology_document(FLEET))
