"""Bridges and their broker are killed while messages cross both ways: is anything lost, does anything come twice?

python -m bench.bridge                       # three bridges, 1,000 messages each way, 10 + 10 kills: three minutes
python -m bench.bridge --quiet               # nobody is killed: the latency that a bridge adds
python -m bench.bridge --messages 100 --kills 2 --seed 7

One mesh of four sidecars and three bridges that share an import key, one nats-server with JetStream. The sidecars
publish to NATS; a plain nats-py client reads that from the stream, and publishes to the mesh, half with `Nats-Msg-Id`
and half without. It repeats until the PubAck; without an id it looks into the stream first. Who is killed (-9) starts
again after a second. A message counts when its publisher got its answer. An agent at each sidecar reads the event
stream all the time. Exit 1 when a message is lost, or is there twice at a sidecar, its agent or, by id, at the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.bridge_client import Heard, PlainClient, open_client
from bench.bridge_place import BRIDGES, BROKER, IN, OUT, SIDECARS, Agent, Place, held, open_place
from tests.e2e.harness import Node

DOWN_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 8.0
"""At the end, for what is still on its way twice: longer than three bridges' turns."""
TEXT: Final = "x" * 200


@dataclass(frozen=True, slots=True)
class Kill:
    """`victim`: number of a bridge, or `BROKER`. Seconds from the start."""

    at: float
    victim: int


def plan(seed: int, kills: int, seconds: float) -> list[Kill]:
    """`kills` of the broker and as many of bridges, by time, each in its own part of the run; they may overlap."""
    rng, part, found = random.Random(seed), seconds / max(kills, 1), []
    for number in range(kills):
        for victim in (BROKER, rng.randrange(BRIDGES)):
            found.append(Kill((number + rng.uniform(0.0, 0.7)) * part, victim))
    return sorted(found, key=lambda each: each.at)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong at the end; all empty when all is well.

    Args:
        lost: numbers that are not there, by place.
        doubled: numbers that are there more often than once, by place.
    """

    lost: Mapping[str, set[int]]
    doubled: Mapping[str, set[int]]

    @property
    def good(self) -> bool:
        return not self.lost and not self.doubled


def judge(wanted: set[int], found: Mapping[str, Sequence[int]]) -> Verdict:
    """`found`: the numbers at each place, each as often as it is there."""
    lost = {place: missing for place, numbers in found.items() if (missing := wanted - set(numbers))}
    doubled = {
        place: again
        for place, numbers in found.items()
        if (again := {number for number, count in Counter(numbers).items() if count > 1})
    }
    return Verdict(lost, doubled)


@dataclass
class Result:
    """Of one run.

    Args:
        sent: numbers that were acknowledged, by topic.
        catch_up: seconds from the last publish and restart until all was everywhere; None when it never was.
        outgoing: what the plain client read.
        incoming: what its core subscription saw of its own.
    """

    sent: dict[str, set[int]]
    verdicts: dict[str, Verdict]
    catch_up: float | None
    outgoing: Heard
    incoming: Heard
    agents: Sequence[Agent]
    repeated: int
    tracebacks: int

    @property
    def by_id(self) -> int:
        """Messages of the stream that one before them had the id of."""
        return sum(count - 1 for count in Counter(self.outgoing.ids.values()).values())

    @property
    def good(self) -> bool:
        return self.catch_up is not None and not self.by_id and all(each.good for each in self.verdicts.values())

    def lines(self) -> Iterator[str]:
        for topic, name in ((OUT, "fleet to NATS"), (IN, "NATS to fleet")):
            verdict = self.verdicts[topic]
            lost, doubled = (len(set().union(*each.values())) for each in (verdict.lost, verdict.doubled))
            yield f"{name}: acknowledged {len(self.sent[topic])}, lost {lost}, doubled {doubled}"
            for what, places in (("lost at", verdict.lost), ("doubled at", verdict.doubled)):
                yield from (f"  {what} {place}: {sorted(numbers)[:8]}" for place, numbers in places.items())
        yield (
            f"plain client: stream messages {len(self.outgoing.numbers)}, doubled by id {self.by_id}, handed out again "
            f"{self.outgoing.again}; own publishes repeated {self.repeated}"
        )
        counts, kept = self.outgoing.publications, len(self.outgoing.numbers)
        yield (
            f"publications per message to NATS: in the stream {ratio(kept, len(self.sent[OUT]))}, "
            f"on the wire {ratio(counts.total(), len(counts))}, at most {max(counts.values(), default=0)}"
        )
        took = "not within the deadline" if self.catch_up is None else f"{self.catch_up:.1f} s"
        yield f"catch-up after the last publish and restart: {took}; tracebacks in logs {self.tracebacks}"

    def latencies(self) -> Iterator[str]:
        local = [each for agent in self.agents for each in agent.latency_ns[OUT]]
        yield f"fleet publish to NATS client: {percentiles(self.outgoing.latency_ns)}; to sidecars {percentiles(local)}"
        across = [each for agent in self.agents for each in agent.latency_ns[IN]]
        yield f"NATS publish to sidecars: {percentiles(across)}; to NATS client {percentiles(self.incoming.latency_ns)}"


def ratio(count: int, of: int) -> str:
    return f"{count / of:.3f}" if of else "-"


def percentiles(nanoseconds: Sequence[int]) -> str:
    values = sorted(nanoseconds)
    p50, p95 = (values[min(int(len(values) * share), len(values) - 1)] / 1e6 for share in (0.5, 0.95))
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms"


async def load(place: Place, client: PlainClient, messages: int, rate: float) -> dict[str, set[int]]:
    """Publish both ways at `rate` a second each; returns what was acknowledged once all was."""
    sent: dict[str, set[int]] = {OUT: set(), IN: set()}

    async def from_fleet(number: int) -> None:
        await asyncio.to_thread(publish, place.sidecars[number % SIDECARS], number)
        sent[OUT].add(number)

    async def from_nats(number: int) -> None:
        message_id = f"bench-{number}" if number % 2 else None
        await client.publish(IN, number, document(number), message_id)
        sent[IN].add(number)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(messages):
            await asyncio.sleep(began + number / rate - time.monotonic())
            group.create_task(from_fleet(number))
            await asyncio.sleep(began + (number + 0.5) / rate - time.monotonic())
            group.create_task(from_nats(number))
    return sent


def document(number: int) -> dict[str, Any]:
    return {"number": number, "at_ns": time.monotonic_ns(), "text": TEXT}


def publish(node: Node, number: int) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"bench-{number}"}
    node.publish_accepted(OUT, json.dumps(document(number)).encode(), headers)


async def break_things(place: Place, kills: Sequence[Kill]) -> None:
    began = time.monotonic()

    async def one(kill: Kill) -> None:
        await asyncio.sleep(began + kill.at - time.monotonic())
        await asyncio.to_thread(place.kill, kill.victim)
        await asyncio.sleep(DOWN_SECONDS)
        await asyncio.to_thread(place.restart, kill.victim)

    async with asyncio.TaskGroup() as group:
        for victim in {kill.victim for kill in kills}:
            group.create_task(in_turn(one, [kill for kill in kills if kill.victim == victim]))


async def in_turn(act: Callable[[Kill], Awaitable[None]], kills: Sequence[Kill]) -> None:
    for kill in kills:
        await act(kill)


async def crossing(place: Place, messages: int, kills: Sequence[Kill], rate: float, deadline: float) -> Result:
    """Load and kills, then quiet until all is everywhere or the deadline is over."""
    outgoing, incoming = Heard(), Heard()
    async with open_client(place.server.url) as client:
        await client.watch(OUT, outgoing)
        await client.watch(IN, incoming)
        reader = asyncio.create_task(client.read(OUT, "bench", outgoing))
        sent, _ = await asyncio.gather(load(place, client, messages, rate), break_things(place, kills))
        catch_up = await complete(place, sent, outgoing, deadline)
        await asyncio.sleep(SETTLE_SECONDS)
        reader.cancel()
    verdicts = {
        topic: judge(numbers, await asyncio.to_thread(everywhere, place, topic, outgoing))
        for topic, numbers in sent.items()
    }
    tracebacks = sum(node.log.read_text(errors="replace").count("Traceback") for node in place.nodes() if node.log)
    return Result(sent, verdicts, catch_up, outgoing, incoming, place.agents, client.repeated, tracebacks)


def everywhere(place: Place, topic: str, outgoing: Heard) -> dict[str, Sequence[int]]:
    """The numbers of one topic at every place that must have them; a place that does not answer has none."""
    found: dict[str, Sequence[int]] = {node.name: held(node, topic) or [] for node in place.nodes()}
    found |= {f"agent of {agent.node.name}": list(agent.numbers[topic]) for agent in place.agents}
    if topic == OUT:
        found["plain client"] = list(outgoing.numbers.values())
    return found


async def complete(place: Place, sent: Mapping[str, set[int]], outgoing: Heard, deadline: float) -> float | None:
    quiet = time.monotonic()
    while time.monotonic() < quiet + deadline:
        found = {topic: await asyncio.to_thread(everywhere, place, topic, outgoing) for topic in sent}
        if not any(judge(sent[topic], places).lost for topic, places in found.items()):
            return time.monotonic() - quiet
        await asyncio.sleep(0.2)
    return None


def run(directory: Path, messages: int, kills: int, seed: int, rate: float, deadline: float) -> Result:
    """A whole run in a place of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    faults = plan(seed, kills, messages / rate)
    with open_place(directory) as place:
        return asyncio.run(crossing(place, messages, faults, rate, deadline))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1000, help="each way (1000)")
    parser.add_argument("--kills", type=int, default=10, help="of the broker, and as many of bridges (10)")
    parser.add_argument("--rate", type=float, default=10.0, help="messages a second each way (10)")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds of quiet until all must be there (120)")
    parser.add_argument("--seed", type=int, help="chooses whom to kill and when (by chance)")
    parser.add_argument("--quiet", action="store_true", help="kill nobody and print latencies")
    parser.add_argument("--dir", type=Path, help="where data and logs go and stay (a temporary directory)")
    chosen = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    kills = 0 if chosen.quiet else chosen.kills
    print(f"seed {seed}: {chosen.messages} messages each way at {chosen.rate:g}/s, {kills} + {kills} kills", flush=True)
    with ExitStack() as stack:
        directory = chosen.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-")))
        result = run(directory, chosen.messages, kills, seed, chosen.rate, chosen.deadline)
    for line in result.lines():
        print(line)
    if chosen.quiet:
        for line in result.latencies():
            print(line)
    print("nothing was lost, nothing came twice" if result.good else "NOT GOOD", flush=True)
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
