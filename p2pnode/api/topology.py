"""Nodes and links of the fleet, out of one mesh document."""

from __future__ import annotations

from p2pnode.ports import JsonObject


def topology_document(mesh: JsonObject) -> JsonObject:
    """The topology document of the interface reference.

    `nodes` (`peer_id`, `name`, `role`, `answered`) holds every end of a link: first the nodes that answered, then the
    missing, then those that only others tell of (peers of other software). `links` (`source`, `target`, `mutual`)
    holds each once, `source` before `target`; `mutual` is false when only one of the two told of it.
    """
    nodes: dict[str, JsonObject] = {}
    for answered, listed in ((True, mesh["nodes"]), (False, mesh["missing"])):
        for node in listed:
            nodes[node["peer_id"]] = _node(node["peer_id"], node["name"], node.get("role"), answered)
    told = {(node["peer_id"], other) for node in mesh["nodes"] for other in node["links"]}
    for other in sorted({other for _, other in told}):
        nodes.setdefault(other, _node(other, None, None, False))
    return {
        "nodes": list(nodes.values()),
        "links": [
            {"source": one, "target": other, "mutual": {(one, other), (other, one)} <= told}
            for one, other in sorted({(min(link), max(link)) for link in told})
        ],
    }


def _node(peer_id: str, name: str | None, role: str | None, answered: bool) -> JsonObject:
    return {"peer_id": peer_id, "name": name, "role": role, "answered": answered}
