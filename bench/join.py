"""How long a fleet needs from the first fork until every node is ready and sees every other; see `bench/README.md`.

python -m bench.join --runs 10
python -m bench.join --serf lan,local           # Serf's agents in turns with ours
python -m bench.join --nodes 34 --serf none
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import cpu_seconds, tcp_connections
from bench.serf import PROFILES, NoSerf, find_serf, open_agents, wait_until_complete
from p2pnode.fleet import Fleet, FleetNode, open_fleet

TOPIC = "councils.forming"
POLL_SECONDS = 0.02
PATIENCE_SECONDS = 120.0
LINKS_AFTER_SECONDS = 30.0

Figures = dict[str, float]


class _Watched(Fleet):
    """A fleet that tells when each stage of its start was reached by its last node; in wall time, as logs have it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.reached: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def _stage(self, name: str, done: Callable[[FleetNode], bool]) -> None:
        waiting = list(self.nodes)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while waiting:
            if done(waiting[-1]):
                waiting.pop()
            elif time.monotonic() > deadline:
                raise SystemExit(f"error: {waiting[-1].name} is not {name} after {PATIENCE_SECONDS:g} s")
            else:
                self.wait(POLL_SECONDS)
        self.reached[name] = time.time()
        self.cpu[name] = sum(cpu_seconds(node.pid) for node in self.nodes)

    def _wait_until_complete(self) -> None:
        self.reached["answered"] = time.time()
        self.cpu["ready"] = sum(cpu_seconds(node.pid) for node in self.nodes)
        self._stage("complete", lambda node: self._alive(node) >= len(self.nodes))
        self._stage("meshed", lambda node: any(t["topic"] == TOPIC and t["mesh"] for t in self._topics(node)))
        # Asked node by node all of it was seen later than it was, by a run queue each.
        self.reached["ready"] = max(_logged(node, "ready")[0] for node in self.nodes)
        self.reached["complete"] = max(_logged(node, "a member is alive")[len(self.nodes) - 2] for node in self.nodes)

    def _topics(self, node: FleetNode) -> list[dict[str, Any]]:
        return self.ask(node, "/api/v1/topics") or []

    def _alive(self, node: FleetNode) -> int:
        document = self.ask(node, "/api/v1/node")
        return int(document["members"].get("alive", 0)) if document else 0


def _logged(node: FleetNode, message: str) -> list[float]:
    """When a node's log said so."""
    with (node.data_dir / "node.log").open(encoding="utf-8") as log:
        entries = [entry for entry in map(json.loads, log) if entry["message"] == message]
    return [datetime.fromisoformat(entry["time"]).timestamp() for entry in entries]


def one(nodes: int, links_after: float | None) -> Figures:
    """Seconds from the first fork to each stage, and CPU seconds of all processes by then.

    Args:
        links_after: seconds after the last stage when the connections are counted.
    """
    with tempfile.TemporaryDirectory(prefix="bench-join-") as name:
        with open_fleet(Path(name), lambda text: None, _Watched) as fleet:
            assert isinstance(fleet, _Watched)
            started = time.time()
            fleet.start(nodes - 1, 1)
            stages = ("ready", "answered", "complete", "meshed")
            ready, answered, complete, meshed = (fleet.reached[stage] - started for stage in stages)
            figures = {
                "ready s": ready,
                "complete s": complete,
                "meshed s": meshed,
                "complete after ready s": complete - ready,
                "complete after answers s": complete - answered,
                "CPU s until ready": fleet.cpu["ready"],
                "CPU s until complete": fleet.cpu["complete"],
            }
            if links_after is not None:
                deadline = time.monotonic() + links_after
                while (left := deadline - time.monotonic()) > 0:
                    fleet.wait(left)
                connections = [tcp_connections(node.pid) for node in fleet.nodes]
                print(
                    f"TCP connections per node {links_after:g} s later: median {median(connections):g}, "
                    f"least {min(connections)}, most {max(connections)}",
                    flush=True,
                )
            return figures


def one_of_serf(program: str, profile: str, nodes: int) -> Figures:
    """The same of Serf: all agents but the first start at once, told to join it.

    Raises:
        NoSerf: they did not.
    """
    with tempfile.TemporaryDirectory(prefix="bench-join-") as name:
        started = time.monotonic()
        with open_agents(program, profile, nodes, Path(name), at_once=nodes) as agents:
            ready = time.monotonic() - started
            cpu = sum(cpu_seconds(agent.pid) for agent in agents)
            wait_until_complete(agents, PATIENCE_SECONDS)
            complete = time.monotonic() - started
            return {
                "ready s": ready,
                "complete s": complete,
                "complete after ready s": complete - ready,
                "CPU s until ready": cpu,
                "CPU s until complete": sum(cpu_seconds(agent.pid) for agent in agents),
            }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=34, help="processes (34)")
    parser.add_argument("--runs", type=int, default=5, help="(5)")
    parser.add_argument("--serf", default="lan", help="profiles of Serf to run beside it, or `none` (lan)")
    options = parser.parse_args(arguments)
    profiles = [] if options.serf == "none" else options.serf.split(",")
    if unknown := set(profiles) - set(PROFILES):
        parser.error(f"Serf has no profile {', '.join(sorted(unknown))}")
    program = ""
    if profiles:
        try:
            program = find_serf()
        except NoSerf as error:
            print(f"without Serf: {error}", file=sys.stderr)
            profiles = []
    found: dict[str, list[Figures]] = {"ours": [], **{f"serf, {profile} profile": [] for profile in profiles}}
    with tempfile.TemporaryDirectory(prefix="bench-run-") as runtime:
        os.environ["XDG_RUNTIME_DIR"] = runtime
        for number in range(options.runs):
            last = number == options.runs - 1
            _add(found["ours"], number, "ours", one(options.nodes, LINKS_AFTER_SECONDS if last else None))
            for profile in profiles:
                name = f"serf, {profile} profile"
                try:
                    _add(found[name], number, name, one_of_serf(program, profile, options.nodes))
                except NoSerf as error:
                    print(f"run {number + 1}, {name}: {error}", file=sys.stderr)
    load = os.getloadavg()
    print(f"{options.nodes} processes, one bootstrap, {options.runs} runs, load average {load[0]:.1f} {load[1]:.1f}")
    for name, runs in found.items():
        print(f"{name}: {len(runs)} of {options.runs} runs complete")
        for figure in runs[0] if runs else ():
            values = [each[figure] for each in runs]
            print(f"  {figure:24} median {median(values):6.2f}  max {max(values):6.2f}")
    return 0


def _add(runs: list[Figures], number: int, name: str, figures: Figures) -> None:
    runs.append(figures)
    text = ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
    print(f"run {number + 1}, {name}: {text}; load average {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
