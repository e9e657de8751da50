"""The demo: a fleet, one council opportunity from WHOOSH, and how long it took to each agent."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from p2pnode.errors import Degraded, InvalidRequest
from p2pnode.fleet import POLL_SECONDS, START_SECONDS, Fleet, FleetNode, Interrupted, check_size, open_fleet
from p2pnode.local.http import refusal

RECEIVE_SECONDS = 30.0


def run_demo(agents: int, orchestrators: int, directory: Path | None) -> int:
    """A fleet, one council opportunity from WHOOSH, and how long it took to each agent.

    Returns:
        0 when every agent received it, 1 otherwise.
    """
    check_size(agents, orchestrators)
    if orchestrators == 0 or agents == 0:
        raise InvalidRequest("the demo needs at least one orchestrator and one agent")
    where = (directory or Path(tempfile.mkdtemp(prefix="p2pnode-demo-"))).absolute()
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {line}", flush=True)

    say(f"starting {orchestrators} WHOOSH and {agents} CHORUS sidecars; their files are in {where}")
    with open_fleet(where, say) as fleet:
        try:
            fleet.start(agents, orchestrators)
            count = len(fleet.nodes)
            say(f"joined: {count} of {count} nodes see all {count}, through one bootstrap address")
            whoosh = fleet.nodes[0]
            chorus = [node for node in fleet.nodes if node.role == "chorus"]
            _wait_for_mesh(fleet, chorus)
            message_id, published = _publish_opportunity(whoosh)
            say(f"{whoosh.name} published a council opportunity: {message_id}")
            seconds = _receipts(fleet, chorus, message_id, published)
            say(f"{len(seconds)} of {agents} sidecars have it")
        except Interrupted:
            say("interrupted")
            return 130
    if directory is None:
        shutil.rmtree(where, ignore_errors=True)
    say("all sidecars are stopped")
    times = (
        f": p50 {_percentile(seconds, 50) * 1000:.0f} ms, p95 {_percentile(seconds, 95) * 1000:.0f} ms,"
        f" last {max(seconds) * 1000:.0f} ms"
        if seconds
        else ""
    )
    print(f"{len(seconds)} of {agents} agents received the council opportunity{times}", flush=True)
    return 0 if len(seconds) == agents else 1


def _wait_for_mesh(fleet: Fleet, nodes: Sequence[FleetNode]) -> None:
    """Until each node has a mesh for opportunities: a subscription may still be on its way."""
    deadline = time.monotonic() + START_SECONDS
    for node in nodes:
        while True:
            topics = fleet.ask(node, "/api/v1/topics") or []
            if any(topic["topic"] == "councils.forming" and topic["mesh"] for topic in topics):
                break
            if time.monotonic() > deadline:
                raise Degraded(f"{node.name} has no mesh for councils.forming after {START_SECONDS:g} s")
            fleet.wait(POLL_SECONDS)


def _publish_opportunity(whoosh: FleetNode) -> tuple[str, float]:
    now = datetime.now(UTC)
    body = {
        "council_id": str(uuid.uuid4()),
        "project_name": "Test Discovery",
        "repository": "https://gitea.chorus.services/tony/test",
        "project_brief": "Find every agent, form a council and prove that each of them heard of it.",
        "core_roles": ["tpm", "senior-software-architect"],
        "ucxl_address": "ucxl://any:tpm@test-discovery:formation/*^/council.json",
        "formation_deadline": (now + timedelta(minutes=10)).isoformat(),
        "created_at": now.isoformat(),
    }
    response = whoosh.client.request(
        "POST",
        "/api/v1/topics/councils.forming/messages",
        body=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    if response.status != 202:
        raise refusal(response)
    message_id = response.json()["id"]
    for document in whoosh.client.get_json("/api/v1/topics/councils.forming/messages?limit=1000"):
        if document["id"] == message_id:
            return message_id, _seconds(document["published_at"])
    raise Degraded("the published opportunity is not kept by its own sidecar")


def _receipts(fleet: Fleet, nodes: Sequence[FleetNode], message_id: str, published: float) -> list[float]:
    """Seconds from publishing to each node's receipt, for those that got it in time."""
    deadline = time.monotonic() + RECEIVE_SECONDS
    missing, seconds = list(nodes), []
    while missing and time.monotonic() < deadline:
        for node in tuple(missing):
            documents = fleet.ask(node, "/api/v1/topics/councils.forming/messages?limit=1000") or []
            for document in documents:
                if document["id"] == message_id:
                    seconds.append(max(_seconds(document["received_at"]) - published, 0.0))
                    missing.remove(node)
        if missing:
            fleet.wait(POLL_SECONDS)
    return seconds


def _seconds(text: str) -> float:
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


def _percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)) - 1, 0)]
