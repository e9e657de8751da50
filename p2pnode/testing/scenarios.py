"""Scenarios as data, running one, and the report of what came of it."""

from __future__ import annotations

import statistics
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from p2pnode.core.gossipsub.params import Params
from p2pnode.core.message import MessageId
from p2pnode.testing.network import TOPIC, Network, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One simulated situation, as data.

    Args:
        rule: what it shows, as a sentence.
        run: `test` (part of `make test`) or `soak`.
        nodes: of which the share `hostile` is of kind `hostile_kind`; the first node is always honest.
        topology: `random` (each joins by one node and dials `dials` others) or `star` (all dial the first only).
        latency_ms: one way; `jitter` is the share by which links differ.
        loss: share of RPCs that vanish.
        uplink_bytes: per second and node; 0: no limit.
        judge_ms: how long each node takes for its verdict.
        churn_per_minute: share of the nodes replaced, at random times; the first stays.
        cut_at_seconds: when the network falls into halves, for `cut_seconds`; 0: never. No messages count
            that are published less than 10 s before or during the cut, or within `settle_seconds` after it.
        warmup_seconds: from the start until the first publish.
        duration_seconds: of publishing, at `publish_per_second`, by random honest nodes.
        fleet: the size that the mesh degree is chosen for; 0: `nodes`.
        missed_share: the most that may be missed, of all deliveries due.
    """

    name: str
    rule: str = ""
    run: str = "test"
    nodes: int
    topology: str = "random"
    dials: int = 8
    latency_ms: float = 50.0
    jitter: float = 0.2
    loss: float = 0.0
    uplink_bytes: float = 0.0
    judge_ms: float = 0.0
    churn_per_minute: float = 0.0
    hostile: float = 0.0
    hostile_kind: str = ""
    cut_at_seconds: float = 0.0
    cut_seconds: float = 0.0
    settle_seconds: float = 15.0
    warmup_seconds: float = 10.0
    duration_seconds: float = 60.0
    publish_per_second: float = 1.0
    message_bytes: int = 1024
    fleet: int = 0
    missed_share: float = 0.0


UP_SECONDS = 10.0
"""A delivery is due at nodes up for this long before and after a publish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of a run; delays are in units of the scenario's latency.

    Args:
        due: pairs of message and node that had to meet; `missed` of them did not.
        duplicates: copies received beyond the first, per delivery.
        control_bytes: sent per node and second.
        mesh: smallest, mean and largest mesh at the end; `links` likewise.
    """

    name: str
    seed: int
    messages: int
    due: int
    missed: int
    hops_mean: float
    hops_max: int
    delay_p50: float
    delay_p99: float
    delay_max: float
    duplicates: float
    control_bytes: float
    mesh: tuple[int, float, int]
    links: tuple[int, float, int]
    counters: dict[str, int] = field(repr=False)

    @property
    def missed_share(self) -> float:
        return self.missed / self.due if self.due else 1.0


def load_scenarios(path: Path) -> list[Scenario]:
    """The `[[scenario]]` tables of a TOML file.

    Raises:
        ValueError: an unknown key, with the scenario's name.
    """
    known = {each.name for each in fields(Scenario)}
    scenarios = []
    for table in tomllib.loads(path.read_text(encoding="utf-8"))["scenario"]:
        unknown = sorted(table.keys() - known)
        if unknown:
            raise ValueError(f"scenario {table.get('name')!r} has unknown keys {unknown}")
        scenarios.append(Scenario(**table))
    return scenarios


@dataclass(slots=True, eq=False)
class _Sent:
    message: MessageId
    at: float
    counts: bool


def simulate(scenario: Scenario, seed: int, params: Params | None = None) -> Report:
    """Run one scenario.

    Args:
        params: None for ours, with the degree for the scenario's fleet.
    """
    chosen = params or Params().for_fleet(scenario.fleet or scenario.nodes)
    network = Network(
        seed,
        chosen,
        delay=scenario.latency_ms / 1000,
        jitter=scenario.jitter,
        loss=scenario.loss,
        uplink=scenario.uplink_bytes,
        judge_seconds=scenario.judge_ms / 1000,
    )
    _start(network, scenario)
    sent: list[_Sent] = []
    begin = scenario.warmup_seconds
    end = begin + scenario.duration_seconds
    for when in _every(begin, end, 1 / scenario.publish_per_second):
        network.at(when, _publish, network, scenario, sent)
    for when in _every(0, end, 60 / (scenario.churn_per_minute * scenario.nodes) if scenario.churn_per_minute else 0):
        network.at(when, _replace, network, scenario)
    if scenario.cut_at_seconds:
        network.at(scenario.cut_at_seconds, network.partition, lambda node: int(node.raw[-1]) % 2)
        network.at(scenario.cut_at_seconds + scenario.cut_seconds, network.heal)
    network.run_until(end + UP_SECONDS)
    return _report(network, scenario, seed, sent)


def _every(begin: float, end: float, step: float) -> Iterator[float]:
    if step > 0:
        for number in range(1, int((end - begin) / step) + 1):
            yield begin + number * step


def _start(network: Network, scenario: Scenario) -> None:
    hostile = round(scenario.nodes * scenario.hostile)
    kinds = [scenario.hostile_kind] * hostile + [""] * (scenario.nodes - hostile - 1)
    network.rng.shuffle(kinds)
    for kind in ["", *kinds]:
        _join(network, scenario, network.add(hostile=kind))


def _join(network: Network, scenario: Scenario, node: Node) -> None:
    """Dial the bootstrap, and as many members as the scenario says."""
    others = [peer for peer in network.nodes if peer != node.id]
    if not others:
        return
    bootstrap = network.everyone[0].id
    dialled = [] if scenario.topology == "star" else network.rng.sample(others, min(len(others), scenario.dials))
    node.wanted.update(dict.fromkeys([*dialled, *([bootstrap] if scenario.topology == "star" else [])]))
    for peer in dict.fromkeys([bootstrap, *dialled]):
        network.dial(node, peer)


def _publish(network: Network, scenario: Scenario, sent: list[_Sent]) -> None:
    publishers = [node for node in network.alive() if not node.hostile and network.now - node.up_from >= UP_SECONDS]
    if publishers:
        cut, now = scenario.cut_at_seconds, network.now
        spoiled = cut and cut - UP_SECONDS <= now < cut + scenario.cut_seconds + scenario.settle_seconds
        mid = network.publish(network.rng.choice(publishers), scenario.message_bytes)
        sent.append(_Sent(mid, now, not spoiled))


def _replace(network: Network, scenario: Scenario) -> None:
    gone = network.rng.choice([node for node in network.alive() if node is not network.everyone[0]])
    network.kill(gone)
    _join(network, scenario, network.add(hostile=gone.hostile))


def _report(network: Network, scenario: Scenario, seed: int, sent: list[_Sent]) -> Report:
    unit = scenario.latency_ms / 1000
    due = missed = 0
    delays: list[float] = []
    hops: list[int] = []
    for each in sent:
        if not each.counts:
            continue
        for node in network.everyone:
            if node.hostile or node.up_from > each.at - UP_SECONDS or node.up_to < each.at + UP_SECONDS:
                continue
            due += 1
            got = node.got.get(each.message)
            if got is None or got[0] > each.at + UP_SECONDS:
                missed += 1
            elif got[1]:
                delays.append((got[0] - each.at) / unit)
                hops.append(got[1])
    honest = [node for node in network.everyone if not node.hostile]
    alive = [node for node in honest if node.alive]
    counters: Counter[str] = Counter()
    for node in honest:
        counters.update({" ".join(key): count for key, count in node.router.counters.items()})
    delays.sort()
    lived = sum(min(node.up_to, network.now) - node.up_from for node in network.everyone)
    return Report(
        name=scenario.name,
        seed=seed,
        messages=len(sent),
        due=due,
        missed=missed,
        hops_mean=statistics.fmean(hops or [0]),
        hops_max=max(hops, default=0),
        delay_p50=delays[len(delays) // 2] if delays else 0.0,
        delay_p99=delays[len(delays) * 99 // 100] if delays else 0.0,
        delay_max=delays[-1] if delays else 0.0,
        duplicates=counters["ignore duplicate"] / max(1, counters["accept relayed"]),
        control_bytes=network.traffic["control bytes"] / lived,
        mesh=_spread([len(node.router.mesh(TOPIC)) for node in alive]),
        links=_spread([len(node.links) for node in alive]),
        counters=dict(counters),
    )


def _spread(values: list[int]) -> tuple[int, float, int]:
    return min(values), statistics.fmean(values), max(values)
