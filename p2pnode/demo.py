"""The demo: a fleet, one council from WHOOSH's request to a working team, and what happens when a member dies."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from p2pnode.errors import Degraded, InvalidRequest
from p2pnode.fleet import POLL_SECONDS, START_SECONDS, Fleet, FleetNode, Interrupted, check_size, open_fleet
from p2pnode.local.http import refusal

RECEIVE_SECONDS = 30.0
FORM_SECONDS = 60.0
REFILL_SECONDS = 60.0
ARCHITECT = "senior-software-architect"
TOPICS = ("councils.forming", "councils.claims", "councils.status")
SKILLED_AGENTS = 6
"""From this number of agents on each skill of a fleet is there, and roles may ask for one."""

Document = dict[str, Any]
Tell = Callable[[str], None]


def run_demo(agents: int, orchestrators: int, directory: Path | None) -> int:
    """A fleet forms a council, loses the architect, and has another one.

    Returns:
        0 when every agent received the opportunity, the council became active with one holder of each core role, and
        the role of the one that was killed was filled again; 1 otherwise.
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
            fleet.start(agents, orchestrators, auto_claim=True)
            count = len(fleet.nodes)
            say(f"joined: {count} of {count} nodes see all {count}, through one bootstrap address")
            chorus = [node for node in fleet.nodes if node.role == "chorus"]
            _wait_for_mesh(fleet, chorus)
            story = _Story(fleet, say)
            story.announce(agents)
            seconds = story.receipts(chorus)
            story.form()
            if agents > 1:
                story.lose(ARCHITECT)
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
    for line in story.outcome:
        print(line, flush=True)
    return 0 if len(seconds) == agents else 1


class _Story:
    """One council, told step by step.

    Attributes:
        outcome: what to say at the end.
    """

    def __init__(self, fleet: Fleet, say: Tell) -> None:
        self._fleet = fleet
        self._say = say
        self._whoosh = fleet.nodes[0]
        self._council: Document = {}
        self._posted = 0.0
        self.outcome: list[str] = []

    def announce(self, agents: int) -> None:
        skills = ("task_coordination", "general_development", "testing", "security_review")
        names = ("tpm", ARCHITECT, "qa-engineer", "security-expert")
        skilled = agents >= SKILLED_AGENTS
        roles = [
            {"role_name": name, "required_skills": [skill] if skilled else []}
            for name, skill in zip(names, skills, strict=True)
        ]
        body = {
            "project_name": "Test Discovery",
            "repository": "https://gitea.chorus.services/tony/test",
            "project_brief": "Find every agent, form a council and prove that each of them heard of it.",
            "core_roles": roles[:3],
            "optional_roles": roles[3:],
            "ucxl_address": "ucxl://any:tpm@test-discovery:formation/*^/council.json",
        }
        self._posted = time.monotonic()
        response = self._whoosh.client.request(
            "POST", "/api/v1/councils", body=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        if response.status != 202:
            raise refusal(response)
        self._council = response.json()
        wanted = ", ".join(str(role["role_name"]) for role in roles[:3])
        self._say(f"{self._whoosh.name} announced council {self._council['council_id']}: it wants {wanted}")

    def receipts(self, nodes: Sequence[FleetNode]) -> list[float]:
        """Seconds from publishing to each node's receipt of the opportunity, for those that got it in time."""
        message_id, published = self._council["id"], 0.0
        for document in self._whoosh.client.get_json("/api/v1/topics/councils.forming/messages?limit=1000"):
            if document["id"] == message_id:
                published = _seconds(document["published_at"])
        deadline = time.monotonic() + RECEIVE_SECONDS
        missing, seconds = list(nodes), []
        while missing and time.monotonic() < deadline:
            for node in tuple(missing):
                documents = self._fleet.ask(node, "/api/v1/topics/councils.forming/messages?limit=1000") or []
                for document in documents:
                    if document["id"] == message_id:
                        seconds.append(max(_seconds(document["received_at"]) - published, 0.0))
                        missing.remove(node)
            if missing:
                self._fleet.wait(POLL_SECONDS)
        self._say(f"{len(seconds)} of {len(nodes)} sidecars have the opportunity")
        return seconds

    def form(self) -> None:
        """Until every node shows the council active, and the same holders."""
        document = self._agreed(FORM_SECONDS, lambda found: found["status"] == "active", "is not active")
        seconds = _seconds(document["updated_at"]) - _seconds(document["created_at"])
        claims = self._whoosh.client.get_json(f"/api/v1/councils/{document['council_id']}")["claims"]
        for role in document["roles"]:
            wanted = [claim["name"] for claim in claims if claim["role_name"] == role["role_name"]]
            self._say(f"  {role['role_name']}: claimed by {', '.join(wanted) or 'nobody'}; {_holder(role)}")
        core = [role for role in document["roles"] if role["required"]]
        if any(role["state"] != "accepted" for role in core):
            raise Degraded(f"a core role of council {document['council_id']} is not filled")
        self._say(f"active {seconds * 1000:.0f} ms after the request; all {self._alive()} nodes say so")
        self.outcome.append(
            f"the council was active after {seconds * 1000:.0f} ms, each of its {len(core)} core roles with one holder"
        )

    def lose(self, role_name: str) -> None:
        """Kill the holder of a role, and wait until it is held again."""
        before = self._role(self._document(self._whoosh), role_name)
        victim = next(node for node in self._fleet.nodes if node.peer_id == before["peer_id"])
        self._say(f"killing {victim.name} (pid {victim.pid}), which holds {role_name}")
        killed = time.monotonic()
        self._fleet.kill(victim)
        while victim.pidfd >= 0:
            self._fleet.wait(POLL_SECONDS)

        def refilled(found: Document) -> bool:
            role = self._role(found, role_name)
            return bool(role["state"] == "accepted" and role["peer_id"] != victim.peer_id)

        document = self._agreed(REFILL_SECONDS, refilled, f"has nobody for {role_name}")
        role = self._role(document, role_name)
        seconds = time.monotonic() - killed
        self._say(f"  {role_name}: {_holder(role)}, {seconds:.1f} s after the kill; all {self._alive()} nodes agree")
        self.outcome.append(f"{role_name} was held again {seconds:.1f} s after its holder was killed")

    def _agreed(self, seconds: float, done: Callable[[Document], bool], otherwise: str) -> Document:
        """The council once every live node shows it like that, with the same holders.

        Raises:
            Degraded: they did not in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = [self._document(node) for node in self._fleet.nodes if node.pidfd >= 0]
            holders = {tuple((role["role_name"], role["peer_id"]) for role in each.get("roles", ())) for each in found}
            if all(each and done(each) for each in found) and len(holders) == 1:
                return found[0]
            if time.monotonic() > deadline:
                agreeing = sum(bool(each) and done(each) for each in found)
                raise Degraded(
                    f"council {self._council['council_id']} {otherwise} after {seconds:g} s at "
                    f"{len(found) - agreeing} of {len(found)} nodes",
                    hint=f"see `p2pnode council show` and the logs in {self._fleet.directory}",
                )
            self._fleet.wait(POLL_SECONDS)

    def _document(self, node: FleetNode) -> Document:
        return self._fleet.ask(node, f"/api/v1/councils/{self._council['council_id']}") or {}

    def _role(self, document: Document, role_name: str) -> Document:
        return next(role for role in document["roles"] if role["role_name"] == role_name)

    def _alive(self) -> int:
        return sum(node.pidfd >= 0 for node in self._fleet.nodes)


def _holder(role: Document) -> str:
    if role["state"] == "open":
        return "open"
    return f"{role['agent_id']} on {role['name']} has it (term {role['term']}, n {role['n']})"


def _wait_for_mesh(fleet: Fleet, nodes: Sequence[FleetNode]) -> None:
    """Until each node has a mesh for what councils are about: a subscription may still be on its way."""
    deadline = time.monotonic() + START_SECONDS
    for node in nodes:
        while True:
            topics = fleet.ask(node, "/api/v1/topics") or []
            if {topic["topic"] for topic in topics if topic["mesh"]} >= set(TOPICS):
                break
            if time.monotonic() > deadline:
                raise Degraded(f"{node.name} has no mesh for {', '.join(TOPICS)} after {START_SECONDS:g} s")
            fleet.wait(POLL_SECONDS)


def _seconds(text: str) -> float:
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


def _percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)) - 1, 0)]
