"""Stock peers that only read the JSON of the three council topics see a council from opportunity to end."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.interop.ours import PATIENCE_SECONDS, OurNode, open_node
from tests.interop.peers import ForeignPeer, open_peer, wait_until

COUNCILS = "/api/v1/councils"
FORMING, CLAIMS, STATUS = TOPICS = ("councils.forming", "councils.claims", "councils.status")
PLAIN = Path(__file__).parents[1] / "samples" / "create-council.json"


async def post(ours: OurNode, path: str, document: object) -> dict[str, Any]:
    ask = partial(ours.node.client.request, "POST", path, body=json.dumps(document).encode(), timeout_seconds=30)
    response = await trio.to_thread.run_sync(partial(ask, headers={"Content-Type": "application/json"}))
    assert response.status == 202, response
    return dict(response.json())


async def linked_on_all_topics(peer: ForeignPeer, ours: OurNode) -> None:
    async def is_linked() -> bool:
        return all([peer.peer_id in await ours.mesh(topic) for topic in TOPICS])

    for topic in TOPICS:
        await peer.subscribe(topic)
    await peer.dial(ours.addr)
    await wait_until(is_linked, f"{peer.kind} is in our mesh for every topic", PATIENCE_SECONDS)


def read(peer: ForeignPeer, topic: str) -> list[dict[str, Any]]:
    return [json.loads(message.data) for message in peer.messages if message.topic == topic]


async def sees(peer: ForeignPeer, status: str) -> dict[str, Any]:
    """The first status document that says so."""

    async def is_seen() -> bool:
        return any(document["status"] == status for document in read(peer, STATUS))

    await wait_until(is_seen, f"{peer.kind} sees the council {status}", PATIENCE_SECONDS)
    return next(document for document in read(peer, STATUS) if document["status"] == status)


async def test_stock_js_and_go_peers_that_read_json_see_a_council_through(tmp_path: Path) -> None:
    asked = json.loads(PLAIN.read_text())
    first, second = asked["core_roles"]
    async with (
        open_peer("js") as js,
        open_peer("go") as go,
        open_node(tmp_path, "--role", "whoosh", stack="fused", P2PNODE_GOSSIP_TOPICS=",".join(TOPICS)) as ours,
    ):
        for peer in (js, go):
            await linked_on_all_topics(peer, ours)
        council_id = (await post(ours, COUNCILS, asked))["council_id"]
        for role, agent in ((first, "anna"), (second, "bert")):
            await post(ours, f"{COUNCILS}/{council_id}/claims", {"role_name": role, "agent_id": agent})
        fences = {}
        for peer in (js, go):
            active = await sees(peer, "active")
            held = {seat["role_name"]: (seat["agent_id"], seat["peer_id"], seat["state"]) for seat in active["roles"]}
            assert held == {
                first: ("anna", ours.peer_id, "accepted"),
                second: ("bert", ours.peer_id, "accepted"),
            }
            fences = {seat["role_name"]: {"term": seat["term"], "n": seat["n"]} for seat in active["roles"]}
            [opportunity] = read(peer, FORMING)
            assert opportunity["council_id"] == council_id
            assert {name: opportunity[name] for name in asked} == asked
        for role, agent in ((first, "anna"), (second, "bert")):
            said = {"status": "completed", "role_name": role, "agent_id": agent, **fences[role]}
            await post(ours, f"{COUNCILS}/{council_id}/status", said)
        for peer in (js, go):

            async def is_over(peer: ForeignPeer = peer) -> bool:
                return any(each["status"] == "completed" and each.get("term") for each in read(peer, STATUS))

            await wait_until(is_over, f"{peer.kind} sees the decision that it is completed", PATIENCE_SECONDS)
            assert {each["council_id"] for topic in TOPICS for each in read(peer, topic)} == {council_id}
            claims = read(peer, CLAIMS)
            assert {(each["agent_id"], each["role_name"]) for each in claims} == {("anna", first), ("bert", second)}
            accepted = [each for each in claims if each.get("kind") == "accept"]
            assert {each["role_name"]: {"term": each["term"], "n": each["n"]} for each in accepted} == fences
            decisions = [each for each in read(peer, STATUS) if each.get("term")]
            order = [each["status"] for each in sorted(decisions, key=lambda each: (each["term"], each["n"]))]
            assert order == sorted(order, key=("forming", "active", "completed").index)
            assert order[-1] == "completed"
