"""Councils in a fleet of real processes: from POST to active at every member, and who holds which role meanwhile.

python -m bench.councils                               # 50 councils one at a time, then 50 ten at once
python -m bench.councils --agents 33 --councils 20 --at-once 1

One WHOOSH and its agents' sidecars, which claim by themselves. Councils have 4 core and 2 optional roles. Every node is
watched all the time: each document of each council, at each node, is checked for a role with two holders, and for two
nodes that name different holders under the same fencing number. Exit 1 if there is one, or if a council is not active.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import selectors
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import cpu_seconds
from p2pnode.fleet import Fleet, FleetNode, open_fleet
from p2pnode.local.http import refusal

PATIENCE_SECONDS = 120.0
MESH_SECONDS = 60.0
PAUSE_SECONDS = 1.0
CORE = (
    {"role_name": "tpm", "required_skills": ["task_coordination"]},
    {"role_name": "senior-software-architect", "required_skills": ["general_development"]},
    {"role_name": "qa-engineer", "required_skills": ["testing"]},
    {"role_name": "technical-writer", "required_skills": ["documentation"]},
)
OPTIONAL = (
    {"role_name": "security-expert", "required_skills": ["security_review"]},
    {"role_name": "data-engineer", "required_skills": ["data_engineering"]},
)


@dataclass(slots=True)
class Seen:
    """Of one council.

    Args:
        begun: when it was posted, monotonic seconds.
        active: when each node first said that it is active, by name.
        complete: when each node first showed every role held.
    """

    begun: float
    active: dict[str, float] = field(default_factory=dict)
    complete: dict[str, float] = field(default_factory=dict)


class Watch:
    """One event stream of all councils from each node."""

    def __init__(self, nodes: Sequence[FleetNode]) -> None:
        self.councils: dict[str, Seen] = {}
        self.faults: list[str] = []
        self.holders: dict[tuple[str, str, int, int, str], str] = {}
        self.documents = 0
        self._nodes = len(nodes)
        self._selector = selectors.DefaultSelector()
        for node in nodes:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(node.api.removeprefix("unix:"))
            sock.sendall(b"GET /api/v1/councils/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
            self._selector.register(sock, selectors.EVENT_READ, (node.name, bytearray()))

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def read(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            name, buffer = key.data
            data = key.fileobj.recv(1 << 20)  # type: ignore[union-attr]
            now = time.monotonic()
            if not data:
                self._selector.unregister(key.fileobj)
                continue
            buffer += data
            while (end := buffer.find(b"\n\n")) >= 0:
                block, rest = bytes(buffer[:end]), buffer[end + 2 :]
                buffer[:] = rest
                for line in block.splitlines():
                    if line.startswith(b"data:"):
                        self._note(name, json.loads(line[5:]), now)

    def _note(self, node: str, document: dict[str, Any], now: float) -> None:
        self.documents += 1
        council_id = document["council_id"]
        holders: Counter[str] = Counter()
        for role in document["roles"]:
            if role["state"] == "open":
                continue
            holders[role["role_name"]] += 1
            key = (council_id, role["role_name"], role["term"], role["n"], document["owner"])
            who = f"{role['peer_id']}/{role['agent_id']}"
            if self.holders.setdefault(key, who) != who:
                self.faults.append(f"{node}: {key} is held by {who} and by {self.holders[key]}")
        self.faults += [
            f"{node}: {council_id} {role} has {count} holders" for role, count in holders.items() if count > 1
        ]
        seen = self.councils.get(council_id)
        if seen is not None and document["status"] == "active":
            seen.active.setdefault(node, now)
            if all(role["state"] != "open" for role in document["roles"]):
                seen.complete.setdefault(node, now)

    def is_active(self, council_id: str) -> bool:
        return len(self.councils[council_id].active) >= self._nodes

    def is_complete(self, council_id: str) -> bool:
        return len(self.councils[council_id].complete) >= self._nodes


def create(node: FleetNode, watch: Watch, number: int) -> str:
    body = {
        "project_name": f"bench {number}",
        "repository": "https://gitea.example/bench",
        "core_roles": CORE,
        "optional_roles": OPTIONAL,
    }
    begun = time.monotonic()
    response = node.client.request(
        "POST", "/api/v1/councils", body=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    if response.status != 202:
        raise refusal(response)
    council_id: str = response.json()["council_id"]
    watch.councils[council_id] = Seen(begun)
    return council_id


def run(fleet: Fleet, watch: Watch, councils: int, at_once: int) -> list[Seen]:
    """Create them, `at_once` at a time; the next when one is active everywhere and its optional roles are filled."""
    whoosh = fleet.nodes[0]
    going: list[str] = []
    done: list[str] = []
    created = 0
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(done) < councils:
        while created < councils and len(going) < at_once:
            going.append(create(whoosh, watch, created))
            created += 1
            deadline = time.monotonic() + PATIENCE_SECONDS
        watch.read(0.05)
        for council_id in [each for each in going if watch.is_active(each) and watch.is_complete(each)]:
            going.remove(council_id)
            done.append(council_id)
            if at_once == 1:  # what was said late about one council must not slow the next one down
                quiet = time.monotonic() + PAUSE_SECONDS
                while time.monotonic() < quiet:
                    watch.read(0.05)
        if time.monotonic() > deadline:
            watch.faults += [f"{each}: not active everywhere: {watch.councils[each]}" for each in going]
            break
    return [watch.councils[each] for each in (*done, *going)]


def wait_for_mesh(fleet: Fleet) -> None:
    deadline = time.monotonic() + MESH_SECONDS
    for node in fleet.nodes:
        for topic in ("councils.forming", "councils.claims", "councils.status"):
            while not any(each["topic"] == topic and each["mesh"] for each in fleet.ask(node, "/api/v1/topics") or []):
                if time.monotonic() > deadline:
                    raise SystemExit(f"error: {node.name} has no mesh for {topic}")
                fleet.wait(0.1)


def table(name: str, seen: Sequence[Seen], nodes: int) -> str:
    whole = sorted(max(each.active.values()) - each.begun for each in seen if len(each.active) >= nodes)
    filled = sorted(max(each.complete.values()) - each.begun for each in seen if len(each.complete) >= nodes)
    if not whole:
        return f"{name}: none of {len(seen)} active everywhere"

    def at(values: Sequence[float], share: float) -> str:
        return f"{values[min(int(len(values) * share), len(values) - 1)]:.3f}" if values else "-"

    return (
        f"{name}: {len(whole)} of {len(seen)} active at all {nodes} nodes; seconds from POST to active everywhere: "
        f"p50 {at(whole, 0.5)}, p95 {at(whole, 0.95)}, max {whole[-1]:.3f}; every role held everywhere: "
        f"p50 {at(filled, 0.5)}, p95 {at(filled, 0.95)}"
    )


def messages(fleet: Fleet) -> dict[str, int]:
    topics = fleet.ask(fleet.nodes[-1], "/api/v1/topics") or []
    return {each["topic"]: each["messages"] for each in topics if each["topic"].startswith("councils.")}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.councils", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--agents", type=int, default=33)
    parser.add_argument("--councils", type=int, default=50)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--dir", type=Path, help="where data and logs go and stay (a temporary directory)")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="p2pnode-bench-") as temporary:
        with open_fleet(options.dir or Path(temporary), lambda line: print(line, file=sys.stderr, flush=True)) as fleet:
            fleet.start(options.agents, 1, auto_claim=True)
            wait_for_mesh(fleet)
            watch = Watch(fleet.nodes)
            try:
                for at_once in options.at_once:
                    before, cpu = messages(fleet), sum(cpu_seconds(node.pid) for node in fleet.nodes)
                    seen = run(fleet, watch, options.councils, at_once)
                    print(table(f"{at_once} at a time", seen, len(fleet.nodes)), flush=True)
                    after = messages(fleet)
                    each = {topic: round((after[topic] - before[topic]) / len(seen), 1) for topic in after}
                    cpu = sum(cpu_seconds(node.pid) for node in fleet.nodes) - cpu
                    deliveries = (sum(after.values()) - sum(before.values())) * len(fleet.nodes)
                    print(
                        f"  messages per council: {each}; CPU {cpu / len(seen):.2f} s per council, "
                        f"{cpu / deliveries * 1e3:.2f} ms per message and node; load average {os.getloadavg()[0]:.1f}",
                        flush=True,
                    )
            finally:
                watch.close()
            print(f"{watch.documents} council documents seen at {len(fleet.nodes)} nodes, {len(watch.faults)} faults")
            for fault in watch.faults[:20]:
                print(f"  {fault}")
            return 1 if watch.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
