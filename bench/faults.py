"""What a fleet makes of nodes that die, stand still, or starve: real processes, real signals; see `bench/README.md`.

python -m bench.faults                          # all of it, the ten minutes beside busy loops last
python -m bench.faults kill crash stop --runs 3
python -m bench.faults busy --seconds 60

| run   | what is done                                  | what is measured, over all other nodes                     |
|-------|-----------------------------------------------|------------------------------------------------------------|
| kill  | SIGKILL to one node                           | until none shows it alive; until all show it dead          |
| crash | SIGKILL to 20 nodes at once                   | until all survivors show all 20 dead                       |
| stop  | SIGSTOP to one, SIGCONT 10 s later; then 30 s | until none shows it alive; after SIGCONT, until all do     |
| busy  | four busy loops beside the fleet              | suspected, and declared dead, though everybody lives       |

Nobody is told by these programs who is gone: each node is asked for its own count of members, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from statistics import median

from bench.measure import machine_cpu_seconds
from bench.systems import say
from p2pnode.fleet import Fleet, FleetNode, open_fleet

SETTLE_SECONDS = 12.0
"""From complete to the fault: links above the bound are closed by then, and meshes have their size."""

PATIENCE_SECONDS = 90.0
SWEEP_SECONDS = 0.02
BUSY_LOOPS = 4
CRASHED = 20

Shown = Callable[[Mapping[str, int]], bool]
Figures = dict[str, float]


class NotShown(Exception):
    """A node did not come to see what it should, in time."""


@contextmanager
def settled_fleet(nodes: int) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as name:
        with open_fleet(Path(name), lambda text: None) as fleet:
            fleet.start(nodes - 1, 1)
            rest(fleet, SETTLE_SECONDS)
            yield fleet


def rest(fleet: Fleet, seconds: float) -> None:
    """Let time pass; Ctrl-C ends it."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        fleet.wait(left)


def until(fleet: Fleet, nodes: Sequence[FleetNode], what: str, shown: Shown, since: float) -> float:
    """Seconds from `since` until each of the nodes has shown it.

    Raises:
        NotShown: not within `PATIENCE_SECONDS`.
    """
    waiting = list(nodes)
    while True:
        counts: dict[str, Mapping[str, int]] = {}
        for node in tuple(waiting):
            document = fleet.ask(node, "/api/v1/node")
            counts[node.name] = document["members"] if document is not None else {}
            if shown(counts[node.name]):
                waiting.remove(node)
        now = time.monotonic()
        if not waiting:
            return now - since
        if now - since > PATIENCE_SECONDS:
            name = waiting[0].name
            raise NotShown(f"{len(waiting)} nodes do not show {what} after {now - since:.0f} s; {name}: {counts[name]}")
        fleet.wait(SWEEP_SECONDS)


def alive_are(count: int) -> Shown:
    return lambda members: members.get("alive", 0) == count


def dead_are(count: int) -> Shown:
    return lambda members: members.get("dead", 0) == count


def told(node: FleetNode, offset: int = 0) -> Counter[tuple[str, str]]:
    """What a node's log says of others from `offset` bytes on: `(state, peer id)`."""
    found: Counter[tuple[str, str]] = Counter()
    with (node.data_dir / "node.log").open("rb") as file:
        file.seek(offset)
        for line in file:
            if b"a member is " in line:
                entry = json.loads(line)
                found[entry["message"].rpartition(" ")[2], entry["peer"]] += 1
    return found


def wrongly(nodes: Sequence[FleetNode], gone: Sequence[FleetNode], state: str) -> int:
    """How often the nodes' logs say so of somebody who is not among `gone`."""
    guilty = {node.peer_id for node in gone}
    return sum(n for node in nodes for (said, peer), n in told(node).items() if said == state and peer not in guilty)


def kill(nodes: int, rng: Random, seconds: float) -> Figures:
    return _kill(nodes, rng, 1)


def crash(nodes: int, rng: Random, seconds: float) -> Figures:
    return _kill(nodes, rng, CRASHED)


def _kill(nodes: int, rng: Random, count: int) -> Figures:
    with settled_fleet(nodes) as fleet:
        victims = rng.sample(fleet.nodes, count)
        others = [node for node in fleet.nodes if node not in victims]
        began = time.monotonic()
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        not_alive = until(fleet, others, f"{len(others)} alive", alive_are(len(others)), began)
        dead = until(fleet, others, f"{count} dead", dead_are(count), began)
        return {
            "s until none shows it alive": not_alive,
            "s until all show it dead": dead,
            "others wrongly suspected": wrongly(others, victims, "suspect"),
            "others wrongly declared dead": wrongly(others, victims, "dead"),
        }


def stop(nodes: int, rng: Random, seconds: float) -> Figures:
    figures: Figures = {}
    with settled_fleet(nodes) as fleet:
        victims = rng.sample(fleet.nodes, 2)
        for pause, victim in zip((10.0, 30.0), victims, strict=True):
            others = [node for node in fleet.nodes if node is not victim]
            began = time.monotonic()
            os.kill(victim.pid, signal.SIGSTOP)
            try:
                not_alive = until(fleet, others, f"{nodes - 1} alive", alive_are(nodes - 1), began)
                rest(fleet, began + pause - time.monotonic())
            finally:
                os.kill(victim.pid, signal.SIGCONT)
            began = time.monotonic()
            alive = until(fleet, fleet.nodes, f"{nodes} alive", alive_are(nodes), began)
            figures[f"{pause:.0f} s: s until none shows it alive"] = not_alive
            figures[f"{pause:.0f} s: s from SIGCONT until all do"] = alive
            figures[f"{pause:.0f} s: others wrongly declared dead"] = wrongly(fleet.nodes, victims, "dead")
            rest(fleet, SETTLE_SECONDS)
    return figures


def busy(nodes: int, rng: Random, seconds: float) -> Figures:
    with settled_fleet(nodes) as fleet, ExitStack() as loops:
        offsets = {node.name: (node.data_dir / "node.log").stat().st_size for node in fleet.nodes}
        for _ in range(BUSY_LOOPS):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            loops.callback(loop.wait)
            loops.callback(loop.kill)
        began, spent = time.monotonic(), machine_cpu_seconds()
        rest(fleet, seconds)
        taken = (machine_cpu_seconds() - spent) / (time.monotonic() - began)
        said: Counter[str] = Counter()
        for node in fleet.nodes:
            for (state, _), count in told(node, offsets[node.name]).items():
                said[state] += count
        loops.close()
        alive = until(fleet, fleet.nodes, f"{nodes} alive", alive_are(nodes), time.monotonic())
        return {
            "s beside four busy loops": time.monotonic() - began,
            "cores in use": taken,
            "suspicions, over all nodes": said["suspect"],
            "declared dead, over all nodes": said["dead"],
            "s after it until all show all": alive,
        }


RUNS: dict[str, Callable[[int, Random, float], Figures]] = {"kill": kill, "crash": crash, "stop": stop, "busy": busy}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", metavar="run", help=f"{', '.join(RUNS)} (all)")
    parser.add_argument("--nodes", type=int, default=34, help="processes (34)")
    parser.add_argument("--runs", type=int, default=1, help="of each, on a new fleet (1); busy runs once")
    parser.add_argument("--seconds", type=float, default=600.0, help="beside the busy loops (600)")
    parser.add_argument("--seed", type=int, default=1, help="chooses the victims (1)")
    options = parser.parse_args(arguments)
    if unknown := set(options.which) - RUNS.keys():
        parser.error(f"no such run: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="bench-run-") as runtime:
        os.environ["XDG_RUNTIME_DIR"] = runtime
        for name in options.which or RUNS:
            found: list[Figures] = []
            for number in range(1 if name == "busy" else options.runs):
                say(f"{name}, run {number + 1}, load average {os.getloadavg()[0]:.1f}")
                try:
                    found.append(RUNS[name](options.nodes, Random(options.seed + number), options.seconds))
                except NotShown as error:
                    print(f"error: {name}: {error}", file=sys.stderr)
                    return 1
            _print(name, options.nodes, found)
    return 0


def _print(name: str, nodes: int, found: Sequence[Figures]) -> None:
    load = os.getloadavg()
    print(f"{name}: {nodes} processes, {len(found)} run(s), load average {load[0]:.1f} {load[1]:.1f}")
    for figure in found[0]:
        values = [each[figure] for each in found]
        print(f"  {figure:40} median {median(values):7.2f}  max {max(values):7.2f}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
