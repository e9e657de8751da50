"""Two fleets that only a NATS server joins: members, councils and messages across it."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cable import needs_cables
from tests.e2e.harness import Node, wait_until
from tests.e2e.plain import bridge_document, create_council
from tests.e2e.two_fleets import THREAD, Ear, TwoFleets, open_two_fleets, publish_from


def bridged_states(node: Node) -> dict[str, tuple[str, bool]]:
    """Of everybody by name: the state, and whether it lives beyond a bridge."""
    return {peer["name"]: (peer["state"], peer["bridged"]) for peer in node.get("/api/v1/peers")}


def sees_both_sides(node: Node, fleets: TwoFleets) -> bool:
    own = fleets.left if node in fleets.left else fleets.right
    return bridged_states(node) == {each.name: ("alive", each not in own) for each in fleets.nodes}


def council_holders(node: Node, council: str) -> dict[str, str]:
    """Who holds each role, once the council is active at this node; empty before."""
    response = node.client.request("GET", f"/api/v1/councils/{council}", timeout_seconds=20)
    document: dict[str, Any] = response.json() if response.status == 200 else {"status": "unknown"}
    if document["status"] != "active":
        return {}
    return {role["role_name"]: role["peer_id"] for role in document["roles"]}


@needs_cables
@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.soak)])
def test_two_fleets_that_only_nats_joins_are_one(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with open_two_fleets(tmp_path) as fleets, ExitStack() as ears:
        for node in fleets.nodes:
            wait_until(f"{node.name} sees both sides", partial(sees_both_sides, node, fleets))
        joined = time.monotonic() - began
        roles = [{"role_name": skill, "required_skills": [skill]} for skill in ("testing", "security")]
        council = create_council(fleets.left[0], *roles)
        ids = {node.name: node.get("/api/v1/node")["peer_id"] for node in fleets.nodes}
        wanted = {"testing": ids["left-1"], "security": ids["right-1"]}
        for node in fleets.nodes:
            wait_until(f"it is formed at {node.name}", lambda node=node: council_holders(node, council) == wanted)  # type: ignore[misc]
        formed = time.monotonic() - began - joined

        listening = []
        for node in fleets.nodes:
            listening.append(Ear(node, THREAD))
            ears.callback(listening[-1].close)
        began = time.monotonic()
        origins = publish_from([*fleets.left[:-1], *fleets.right[:-1]], 2 * count)
        published = time.monotonic() - began
        for ear in listening:
            wait_until(f"{ear.name} has all {2 * count}", lambda ear=ear: set(origins) <= set(ear.heard))  # type: ignore[misc]
        everywhere = time.monotonic() - began
        for node, ear in zip(fleets.nodes, listening, strict=True):
            assert ear.heard == Counter(list(origins)), f"{node.name} gave a message twice, or one too many"
            assert {each["id"]: each["origin"] for each in node.messages(THREAD)} == origins
        wait_until(
            "nothing waits for NATS",
            lambda: not any(row["pending"] for bridge in fleets.bridges for row in bridge_document(bridge)["exports"]),
        )
        wait_until("the agent has them", lambda: len(fleets.agent.heard(THREAD)) >= len(origins))
        times = Counter(each["headers"]["Nats-Msg-Id"] for each in fleets.agent.heard(THREAD))
        assert set(times) == set(origins)
        assert max(times.values()) <= 2
    with capsys.disabled():
        print(
            f"\neach saw both sides after {joined:.1f} s, a council formed across in {formed:.1f} s; {count} messages "
            f"each way at ten nodes {everywhere - published:.1f} s after the last of {published:.1f} s; publications "
            f"per message: {times.total() / len(times):.3f}, at most {max(times.values())}"
        )
