"""How long a fleet takes from the first fork until each node is ready, is meshed, and sees every other.


python -m bench.join
python -m bench.join --nodes 34 --runs 10
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import cpu_seconds
from p2pnode.fleet import Fleet, FleetNode, open_fleet

TOPIC = "councils.forming"
POLL_SECONDS = 0.02
PATIENCE_SECONDS = 120.0


class _Watched(Fleet):
    """A fleet that tells when each stage of its start was reached by its last node."""

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
        self.reached[name] = time.monotonic()
        self.cpu[name] = sum(cpu_seconds(node.pid) for node in self.nodes)

    def _wait_until_complete(self) -> None:
        self.reached["ready"] = time.monotonic()
        self.cpu["ready"] = sum(cpu_seconds(node.pid) for node in self.nodes)
        self._stage("meshed", lambda node: any(t["topic"] == TOPIC and t["mesh"] for t in self._topics(node)))
        self._stage("complete", lambda node: self._alive(node) >= len(self.nodes))

    def _topics(self, node: FleetNode) -> list[dict[str, Any]]:
        return self.ask(node, "/api/v1/topics") or []

    def _alive(self, node: FleetNode) -> int:
        document = self.ask(node, "/api/v1/node")
        return int(document["members"].get("alive", 0)) if document else 0


def one(nodes: int) -> dict[str, float]:
    """Seconds from the first fork to each stage, and CPU seconds of all processes by then."""
    with tempfile.TemporaryDirectory(prefix="bench-join-") as name:
        with open_fleet(Path(name), lambda text: None, _Watched) as fleet:
            assert isinstance(fleet, _Watched)
            started = time.monotonic()
            fleet.start(nodes - 1, 1)
            ready, meshed, complete = (fleet.reached[stage] - started for stage in ("ready", "meshed", "complete"))
            return {
                "ready s": ready,
                "meshed s": meshed,
                "complete s": complete,
                "complete after ready s": complete - ready,
                "CPU s until ready": fleet.cpu["ready"],
                "CPU s until complete": fleet.cpu["complete"],
            }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=34, help="processes (34)")
    parser.add_argument("--runs", type=int, default=5, help="(5)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-run-") as runtime:
        os.environ["XDG_RUNTIME_DIR"] = runtime
        found = []
        for number in range(options.runs):
            found.append(one(options.nodes))
            print(f"run {number + 1}: " + ", ".join(f"{k} {v:.2f}" for k, v in found[-1].items()), file=sys.stderr)
    print(f"{options.nodes} processes, one bootstrap, {options.runs} runs, load average {os.getloadavg()[0]:.1f}")
    for name in found[0]:
        values = [each[name] for each in found]
        print(f"  {name:24} median {median(values):6.2f}  max {max(values):6.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
