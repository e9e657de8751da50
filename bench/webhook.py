"""What one agent in trouble costs the other nodes: delivery latency beside a webhook that fails, hangs, or is cut off.

python -m bench.webhook                        # three rounds of five windows of a minute
python -m bench.webhook --seconds 20 --rounds 1

Twelve sidecars on loopback, each a process. One publishes at a steady rate, one has an agent with a webhook; all others
and these two are read by an event stream, as an agent would. In each window the webhook behaves in one way:

| condition | the webhook                                                                     |
|-----------|---------------------------------------------------------------------------------|
| healthy   | answers 204                                                                     |
| fail      | answers 500                                                                     |
| hang      | takes the request and does not answer                                           |
| cut       | announces a body of 100 bytes, sends seven and closes                           |
| again     | answers 204: what differs between this and `healthy` is noise                   |

Latency is from before the publisher's request until the event is read, over the nodes that neither publish nor have the
webhook. After each window the webhook is healthy again, and everything must come to it, in order. Exit 1 if not, or if
a message did not reach a node. Each round begins with another condition.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from bench.measure import cpu_seconds, machine_cpu_seconds, resident_bytes
from p2pnode.client import Client
from p2pnode.errors import NoSidecar
from p2pnode.local import sse
from tests.e2e.agents import Behaviour, Webhook, open_webhook
from tests.e2e.harness import Node, environment, running_node, start_node, stop, wait_until

TOPIC: Final = "hmmm.webhook"
CONDITIONS: Final[Mapping[str, Behaviour]] = {
    "healthy": "take",
    "fail": "fail",
    "hang": "hang",
    "cut": "cut",
    "again": "take",
}
BOOTSTRAPS: Final = 3
SETTLE_SECONDS: Final = 12.0
"""From complete to the first window: links above the bound are closed by then, and meshes have their size."""
WARM_UP_MESSAGES: Final = 50
DRAIN_SECONDS: Final = 10.0
CATCH_UP_SECONDS: Final = 180.0
SAMPLE_SECONDS: Final = 0.5
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Window:
    """One condition in one round.

    Args:
        delivered, due: messages at the other nodes.
        served_p99_ms: at the event stream of the node that has the webhook.
        posts: what the webhook was sent in the window.
        waiting: messages that waited for it at the end of the window.
        catch_up_seconds: from then until it had all.
        rss_before, rss_peak: bytes of the node that has the webhook.
        cpu_percent: of a core, by that node.
        others_percent: of the machine, by processes that are none of ours.
    """

    round: int
    condition: str
    delivered: int
    due: int
    p50_ms: float
    p99_ms: float
    served_p99_ms: float
    posts: int
    waiting: int
    catch_up_seconds: float
    rss_before: int
    rss_peak: int
    cpu_percent: float
    others_percent: float


class Stream:
    """Follows one node and notes when each message came, by its number, in ms since it was published."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.latency_ms: dict[int, float] = {}
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        if not self._opened.wait(DRAIN_SECONDS):
            raise SystemExit(f"error: {node.name} opened no event stream within {DRAIN_SECONDS:g} s")

    def _follow(self) -> None:
        try:
            with self.node.client.stream(f"/api/v1/topics/{TOPIC}/events?from=now") as stream:
                self._opened.set()
                for event in sse.events(stream.chunks):
                    now = time.monotonic_ns()
                    if event.kind == "message":
                        payload = json.loads(event.data)["payload"]
                        self.latency_ms[payload["number"]] = (now - payload["at"]) / 1e6
        except NoSidecar:
            pass  # the fleet is stopped, or what is missing shows it


@dataclass(frozen=True, slots=True)
class Places:
    publisher: Node
    served: Node
    streams: Sequence[Stream]
    webhook: Webhook

    @property
    def others(self) -> list[Stream]:
        return [each for each in self.streams if each.node not in (self.publisher, self.served)]

    @property
    def pids(self) -> list[int]:
        return [pid_of(each.node) for each in self.streams] + [os.getpid()]


def pid_of(node: Node) -> int:
    assert node.process is not None
    return node.process.pid


@contextmanager
def open_places(directory: Path, count: int) -> Iterator[Places]:
    settings = {
        "P2PNODE_GOSSIP_TOPICS": TOPIC,
        "P2PNODE_GOSSIP_PUBLISH_PER_SECOND": "1000",
        "P2PNODE_GOSSIP_PUBLISH_BURST": "1000",
    }
    with ExitStack() as stack:
        webhook = stack.enter_context(open_webhook())
        env = environment(directory / "run", **settings)
        nodes: list[Node] = []
        flags: list[str] = []
        for number in range(BOOTSTRAPS):
            nodes.append(stack.enter_context(running_node(directory, f"node-{number}", *flags, env=env)))
            flags += ["--bootstrap", nodes[-1].bootstrap]
        for number in range(BOOTSTRAPS, count):
            last = {"P2PNODE_AGENT_WEBHOOK": webhook.url} if number == count - 1 else {}
            nodes.append(start_node(directory, f"node-{number}", *flags, env=env | last))
            stack.callback(stop, nodes[-1])
        for node in nodes:
            wait_until(f"{node.name} answers", node.answers)

            def complete(node: Node = node) -> bool:
                alive = sum(peer["state"] == "alive" for peer in node.get("/api/v1/peers"))
                return alive == count and any(topic["mesh"] for topic in node.get("/api/v1/topics"))

            wait_until(f"{node.name} sees all and has a mesh", complete)
        time.sleep(SETTLE_SECONDS)
        yield Places(nodes[BOOTSTRAPS], nodes[-1], [Stream(node) for node in nodes], webhook)


class Load:
    """Publishes numbered messages; the numbers go on from window to window."""

    def __init__(self, places: Places, rate: float, size: int) -> None:
        self._places = places
        self._rate = rate
        self._filling = "x" * size
        self.published = 0

    def publish(self, count: int, tick: Callable[[], None]) -> range:
        """Send so many at the rate, and call `tick` after each; their numbers."""
        numbers = range(self.published, self.published + count)
        began = time.monotonic()
        with Client(self._places.publisher.api) as client:
            for turn, number in enumerate(numbers):
                time.sleep(max(began + turn / self._rate - time.monotonic(), 0.0))
                client.publish(TOPIC, {"number": number, "at": time.monotonic_ns(), "text": self._filling})
                tick()
        self.published = numbers.stop
        return numbers

    def settle(self, numbers: range) -> None:
        """Wait until all nodes have them, or no longer."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            if all(numbers[-1] in each.latency_ms and _count(each, numbers) for each in self._places.streams):
                return
            time.sleep(0.05)


def _count(stream: Stream, numbers: range) -> bool:
    return sum(number in stream.latency_ms for number in numbers) == len(numbers)


def measure(places: Places, load: Load, number: int, condition: str, messages: int) -> Window:
    """One window, and the time until the webhook has all of it.

    Raises:
        SystemExit: the webhook does not get everything, or not in order.
    """
    webhook, pid = places.webhook, pid_of(places.served)
    posts, rss = webhook.posts, [resident_bytes(pid)]
    sampled = time.monotonic()

    def sample() -> None:
        nonlocal sampled
        if time.monotonic() - sampled >= SAMPLE_SECONDS:
            sampled = time.monotonic()
            rss.append(resident_bytes(pid))

    webhook.behaviour = CONDITIONS[condition]
    machine, ours, own, began = machine_cpu_seconds(), _cpu(places.pids), cpu_seconds(pid), time.monotonic()
    numbers = load.publish(messages, sample)
    seconds = time.monotonic() - began
    others = machine_cpu_seconds() - machine - (_cpu(places.pids) - ours)
    own = cpu_seconds(pid) - own
    load.settle(numbers)
    rss.append(resident_bytes(pid))
    posts, waiting = webhook.posts - posts, load.published - len(webhook.taken)
    webhook.behaviour = "take"
    healed = time.monotonic()
    while len(taken := _taken(webhook)) < load.published:
        if time.monotonic() - healed > CATCH_UP_SECONDS:
            raise SystemExit(f"error: {condition}: the webhook has {len(taken)} of {load.published} messages")
        time.sleep(0.05)
    caught_up = time.monotonic() - healed
    if taken != list(range(load.published)):
        raise SystemExit(f"error: {condition}: the webhook did not get the messages in order")
    latency = [each.latency_ms[i] for each in places.others for i in numbers if i in each.latency_ms]
    served = next(each for each in places.streams if each.node is places.served)
    cuts = quantiles(latency, n=100)
    return Window(
        number,
        condition,
        len(latency),
        len(numbers) * len(places.others),
        median(latency),
        cuts[98],
        quantiles([served.latency_ms[i] for i in numbers if i in served.latency_ms], n=100)[98],
        posts,
        waiting,
        caught_up,
        rss[0],
        max(rss),
        100 * own / seconds,
        100 * max(others, 0.0) / seconds / (os.cpu_count() or 1),
    )


def _taken(webhook: Webhook) -> list[int]:
    """Numbers in the order in which they were first taken."""
    return list(dict.fromkeys(int(document["payload"]["number"]) for document in list(webhook.taken)))


def _cpu(pids: Sequence[int]) -> float:
    return sum(map(cpu_seconds, pids))


HEADINGS = (
    "condition",
    "delivered %",
    "p50 ms",
    "p99 ms",
    "p50 / healthy",
    "p99 / healthy",
    "served p99 ms",
    "posts",
    "waiting",
    "catch-up s",
    "RSS MiB before",
    "peak",
    "growth",
    "CPU %",
    "others %",
)


def summary(windows: Sequence[Window]) -> str:
    """Medians over the rounds; a ratio is the median of those within each round, with its range."""
    healthy = {each.round: each for each in windows if each.condition == "healthy"}
    rows = [HEADINGS]
    for condition in CONDITIONS:
        found = [each for each in windows if each.condition == condition]

        def middle(of: Callable[[Window], float], digits: int = 1, found: Sequence[Window] = found) -> str:
            return f"{median(map(of, found)):.{digits}f}"

        def ratio(of: Callable[[Window], float], found: Sequence[Window] = found) -> str:
            ratios = [of(each) / of(healthy[each.round]) for each in found]
            return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

        rows.append(
            (
                condition,
                middle(lambda each: 100 * each.delivered / each.due, 2),
                middle(lambda each: each.p50_ms),
                middle(lambda each: each.p99_ms),
                ratio(lambda each: each.p50_ms),
                ratio(lambda each: each.p99_ms),
                middle(lambda each: each.served_p99_ms),
                middle(lambda each: each.posts, 0),
                middle(lambda each: each.waiting, 0),
                middle(lambda each: each.catch_up_seconds),
                middle(lambda each: each.rss_before / MIB),
                middle(lambda each: each.rss_peak / MIB),
                middle(lambda each: (each.rss_peak - each.rss_before) / MIB),
                middle(lambda each: each.cpu_percent),
                middle(lambda each: each.others_percent),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.webhook", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=12, help="sidecars (12)")
    parser.add_argument("--rounds", type=int, default=3, help="of all conditions (3)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a window (60)")
    parser.add_argument("--rate", type=float, default=10.0, help="messages a second (10)")
    parser.add_argument("--size", type=int, default=1024, help="bytes of text in a message (1024)")
    parser.add_argument("--json", type=Path, help="write every figure of every window there")
    options = parser.parse_args(arguments)
    if options.nodes < BOOTSTRAPS + 2 or options.rounds < 1 or options.rate <= 0 or options.seconds * options.rate < 2:
        parser.error(f"--nodes must be at least {BOOTSTRAPS + 2}, --rounds 1, --rate positive, and two messages due")
    windows: list[Window] = []
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="bench-webhook-") as name, open_places(Path(name), options.nodes) as places:
        load = Load(places, options.rate, options.size)
        measure(places, load, 0, "healthy", WARM_UP_MESSAGES)
        for number in range(1, options.rounds + 1):
            order = list(CONDITIONS)
            order = order[number % len(order) :] + order[: number % len(order)]
            for condition in order:
                messages = round(options.seconds * options.rate)
                windows.append(measure(places, load, number, condition, messages))
                print(json.dumps(asdict(windows[-1])), file=sys.stderr, flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(each) for each in windows], indent=1) + "\n")
    averages = " ".join(f"{each:.1f}" for each in (*load_before, *os.getloadavg()))
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, load average before and after {averages}\n"
        f"{options.nodes} sidecars, {options.rate:g} messages/s of {options.size} bytes of text, "
        f"{options.rounds} rounds of {options.seconds:g} s in each condition"
    )
    print(summary(windows))
    complete = all(each.delivered == each.due for each in windows)
    print("every message reached every node and the webhook" if complete else "NOT GOOD: messages are missing")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
