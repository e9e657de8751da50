"""Nothing is lost: 12 real nodes with agents, killed, stopped, cut off while messages flow, then counted.

python -m bench.chaos                       # five minutes of faults, then quiet until all is there
python -m bench.chaos --seconds 60 --seed 7

Each node and its agent stand in a network namespace of their own, on one switch. Half of the agents are webhooks that
fail every twentieth post, half read a durable event stream. A message counts when its publisher got the 202. At the end
every node must hold each of them, every agent must have handled each at least once, and no publish may have become two
messages, whatever was killed between its commit and its 202. Exit 1 if not.

The faults of one seed are the same ones at the same times; what they meet there is chance.
"""

from __future__ import annotations

import argparse
import queue
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.chaos_places import TOPIC, Place, Switch, eventually, open_places
from p2pnode.client import Client
from p2pnode.errors import P2PNodeError

PUBLISH_SECONDS: Final = 20.0
QUEUED: Final = 1000
"""Messages that wait for one stopped node; more are not published."""
ANSWER_SECONDS: Final = 20.0
PAUSE_SECONDS: Final = 2.0
"""Between two faults, on average."""
LONGEST_SECONDS: Final = {"kill": 3.0, "stop": 10.0, "cut": 15.0, "crash": 3.0}
"""Until a killed node or a crashed agent starts again, a stopped one goes on, a cut link is mended."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one node: `kill`, `stop`, `cut`, or to its agent: `crash`. Times in seconds from the start."""

    at: float
    kind: str
    node: int
    until: float


def plan(seed: int, nodes: int, seconds: float) -> list[Fault]:
    """The faults of a run, by time; never two at once on one node, and none lasts longer than the run."""
    rng = random.Random(seed)
    free = [0.0] * nodes
    faults = []
    now = rng.expovariate(1 / PAUSE_SECONDS)
    while now < seconds:
        node, kind = rng.randrange(nodes), rng.choice(list(LONGEST_SECONDS))
        until = min(now + rng.uniform(0.1, 1.0) * LONGEST_SECONDS[kind], seconds)
        if free[node] <= now:
            faults.append(Fault(now, kind, node, until))
            free[node] = until
        now += rng.expovariate(1 / PAUSE_SECONDS)
    return faults


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong at the end; all empty when nothing was lost.

    Args:
        lost: acknowledged ids that a node does not hold, by node.
        unhandled: acknowledged ids that its agent never handled, by node.
        doubled: numbers of publishes that became more than one message.
    """

    lost: Mapping[str, Collection[str]]
    unhandled: Mapping[str, Collection[str]]
    doubled: Collection[int]

    @property
    def good(self) -> bool:
        return not (self.lost or self.unhandled or self.doubled)


def judge(
    acknowledged: Collection[str], held: Mapping[str, Mapping[str, int]], handled: Mapping[str, Collection[str]]
) -> Verdict:
    """
    Args:
        acknowledged: ids that were answered with 202.
        held: by node: the number in the payload of each message it holds, by id.
        handled: by node: ids that its agent wrote down.
    """
    wanted = set(acknowledged)
    lost = {name: missing for name, found in held.items() if (missing := wanted - found.keys())}
    unhandled = {name: missing for name, found in handled.items() if (missing := wanted - set(found))}
    numbers = {message_id: number for found in held.values() for message_id, number in found.items()}
    doubled = [number for number, times in Counter(numbers.values()).items() if times > 1]
    return Verdict(lost, unhandled, sorted(doubled))


class Publishers:
    """One thread for each node, so that a stopped one holds up nobody else.

    `acknowledged`: the number in the payload of each message that was answered with 202, by id.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.acknowledged: dict[str, int] = {}
        self.outcomes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._queues = [queue.Queue[int | None](QUEUED) for _ in places]
        self._threads = [
            threading.Thread(target=self._run, args=(place.api, waiting))
            for place, waiting in zip(places, self._queues, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def publish(self, node: int, number: int) -> None:
        try:
            self._queues[node].put_nowait(number)
        except queue.Full:
            self._count("not sent: too many wait")

    def finish(self) -> None:
        """Returns when each was answered or given up."""
        for waiting in self._queues:
            waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, api: str, waiting: queue.Queue[int | None]) -> None:
        with Client(api, timeout=PUBLISH_SECONDS) as client:
            while (number := waiting.get()) is not None:
                try:
                    sent = client.publish(
                        TOPIC, {"number": number, "text": "x" * 200}, idempotency_key=f"chaos-{number}"
                    )
                except P2PNodeError as error:
                    self._count(type(error).__name__)
                else:
                    with self._lock:
                        self.acknowledged[sent.id] = number
                    self._count("202, asked again" if sent.duplicate else "202")

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1


class Chaos:
    """Carries the plan out; what it broke it makes whole."""

    def __init__(self, switch: Switch, places: Sequence[Place]) -> None:
        self._switch = switch
        self._places = places

    def begin(self, fault: Fault) -> None:
        place = self._places[fault.node]
        assert place.node is not None
        assert place.agent is not None
        if fault.kind == "kill":
            place.node.kill()
            place.node.wait()
        elif fault.kind == "stop":
            place.node.send_signal(signal.SIGSTOP)
        elif fault.kind == "cut":
            self._switch.cut(place.port)
        else:
            place.agent.kill()
            place.agent.wait()

    def finish(self, fault: Fault) -> None:
        place = self._places[fault.node]
        assert place.node is not None
        if fault.kind == "kill":
            place.start_node()
        elif fault.kind == "stop":
            place.node.send_signal(signal.SIGCONT)
        elif fault.kind == "cut":
            self._switch.mend(place.port)
        else:
            place.start_agent()


def rage(
    chaos: Chaos, publishers: Publishers, faults: Sequence[Fault], seed: int, nodes: int, options: Options
) -> None:
    """Publish and break, each at its time, until the time is up and everything is whole again."""
    rng = random.Random(seed + 1)
    due: list[tuple[float, Callable[[], None]]] = []
    for fault in faults:
        due.append((fault.at, lambda fault=fault: chaos.begin(fault)))  # type: ignore[misc]
        due.append((fault.until, lambda fault=fault: chaos.finish(fault)))  # type: ignore[misc]
    for number in range(int(options.seconds * options.rate)):
        node = rng.randrange(nodes)
        due.append((number / options.rate, lambda node=node, number=number: publishers.publish(node, number)))  # type: ignore[misc]
    began = time.monotonic()
    for at, act in sorted(due, key=lambda each: each[0]):
        time.sleep(max(began + at - time.monotonic(), 0.0))
        act()


@dataclass(frozen=True, slots=True)
class Options:
    """
    Args:
        seconds: of faults.
        rate: messages a second, over all nodes.
        deadline: seconds of quiet within which all must be there.
    """

    seconds: float
    rate: float
    deadline: float


def catch_up(places: Sequence[Place], complete: Callable[[Place], bool], quiet: float, deadline: float) -> float | None:
    """Seconds from `quiet` until the last of them was complete; None when one was not until the deadline."""
    took = 0.0
    for place in places:
        if not eventually(lambda place=place: complete(place), deadline):  # type: ignore[misc]
            return None
        took = max(took, time.monotonic() - quiet)
    return took


def shown(seconds: float | None) -> str:
    return "not within the deadline" if seconds is None else f"{seconds:.1f} s"


def run(directory: Path, nodes: int, seed: int, options: Options) -> bool:
    faults = plan(seed, nodes, options.seconds)
    counts = Counter(fault.kind for fault in faults)
    print(f"seed {seed}: {nodes} nodes, {options.rate:g} messages/s, {options.seconds:g} s", flush=True)
    print("faults: " + ", ".join(f"{kind} {counts[kind]}" for kind in LONGEST_SECONDS), flush=True)
    with open_places(directory, nodes) as (switch, places):
        publishers = Publishers(places)
        try:
            rage(Chaos(switch, places), publishers, faults, seed, nodes, options)
        finally:
            quiet = time.monotonic()
            publishers.finish()
        wanted = publishers.acknowledged.keys()
        print("published: " + ", ".join(f"{what} {times}" for what, times in sorted(publishers.outcomes.items())))
        deadline = quiet + options.deadline
        nodes_took = catch_up(places, lambda place: place.holds(wanted), quiet, deadline)
        agents_took = catch_up(places, lambda place: place.has_handled(wanted), quiet, deadline)
        silent = [place.name for place in places if not eventually(place.answers, time.monotonic() + ANSWER_SECONDS)]
        unacknowledged = sum(place.pending() for place in places if place.name not in silent)
        handled = {place.name: place.handled() for place in places}
        verdict = judge(wanted, {place.name: place.held for place in places}, handled)
        crashes = sum(
            (directory / f"{place.name}.log").read_text(errors="replace").count("Traceback") for place in places
        )
    again = sum(len(ids) - len(set(ids)) for ids in handled.values())
    print(f"acknowledged {len(wanted)}, lost {sum(map(len, verdict.lost.values()))}, doubled {len(verdict.doubled)}")
    print(
        f"agents: unhandled {sum(map(len, verdict.unhandled.values()))}, handled again {again}, "
        f"unacknowledged at the end {unacknowledged}"
    )
    print(
        f"worst catch-up after quiet: nodes {shown(nodes_took)}, agents {shown(agents_took)}; "
        f"tracebacks in logs {crashes}"
    )
    for what, missing in (("does not hold", verdict.lost), ("its agent never handled", verdict.unhandled)):
        for name, ids in missing.items():
            print(f"  {name} {what} {len(ids)}: {', '.join(sorted(ids)[:3])}")
    if silent:
        print(f"  no longer answering: {', '.join(silent)}")
    if verdict.doubled:
        print(f"  two messages of one publish: {list(verdict.doubled)[:10]}")
    in_time = nodes_took is not None and agents_took is not None
    return verdict.good and in_time and not unacknowledged and not silent


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="of faults (300)")
    parser.add_argument("--nodes", type=int, default=12, help="processes, each with an agent (12)")
    parser.add_argument("--rate", type=float, default=10.0, help="messages a second over all nodes (10)")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds of quiet until all must be there (120)")
    parser.add_argument("--seed", type=int, help="chooses faults and publishers (by chance)")
    parser.add_argument("--dir", type=Path, help="where data and logs go and stay (a temporary directory)")
    chosen = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    options = Options(chosen.seconds, chosen.rate, chosen.deadline)
    with ExitStack() as stack:
        directory = chosen.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "run").mkdir(mode=0o700, exist_ok=True)
        good = run(directory, chosen.nodes, seed, options)
    print("nothing was lost" if good else "NOT GOOD", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
