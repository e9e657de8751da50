"""One window of load on a fleet, and what came of it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any

from bench.measure import cpu_seconds, machine_cpu_seconds, proportional_bytes, resident_bytes, tcp_bytes_sent
from bench.processes import BenchPeer, ask_all

LEAD_SECONDS = 0.5
"""From telling the plan to the first message."""

GRACE_SECONDS = 1.0
"""From the end of publishing to the end of the CPU window: the last messages are still on their way."""

DRAIN_SECONDS = 8.0
"""How much longer late messages are waited for."""

POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Idle:
    """CPU of all processes together without load."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Window:
    """What one window of load gave. Times in milliseconds, infinite for what never arrived.

    Args:
        messages: planned.
        published: by the time the window was evaluated.
        deliveries: receipts of distinct messages, of `messages * (nodes - 1)`.
        twice: receipts of a message the application had already.
        late_ms: how late the latest message was published: a starved publisher.
        last_p50_ms: median over messages of the time until the last node had it.
        cpu_seconds: of all processes, from the first message until `GRACE_SECONDS` after the last.
        others_percent: of the machine's cores, used by processes that are none of ours: above some percent, the
            window was disturbed.
        cpu_ms_per_delivery: without what the processes would have used idle.
        bytes_per_delivery: TCP payload sent, all layers included; None where the kernel does not tell.
        duplicates_per_delivery: copies of known messages that the router got; None where it does not tell.
    """

    messages: int
    published: int
    deliveries: int
    delivered_percent: float
    twice: int
    late_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    last_p50_ms: float
    cpu_seconds: float
    cpu_window_seconds: float
    others_percent: float
    idle_cpu_seconds: float
    idle_window_seconds: float
    cpu_ms_per_delivery: float
    idle_percent_per_node: float
    rss_mib: float
    pss_mib: float
    links: float
    mesh: float | None
    bytes_per_delivery: float | None
    duplicates_per_delivery: float | None


def measure_idle(peers: Sequence[BenchPeer], seconds: float) -> Idle:
    before, started = _cpu(peers), time.monotonic()
    time.sleep(seconds)
    return Idle(time.monotonic() - started, _cpu(peers) - before)


def warm_up(peers: Sequence[BenchPeer], run: int, messages: int, size: int, rng: Random) -> None:
    """Messages that do not count."""
    _tell(peers, run, messages, 2.0, size, rng)
    _wait_for_all(peers, run, messages, time.monotonic() + messages / 2 + DRAIN_SECONDS)
    ask_all(peers, {"cmd": "report", "run": run})


def measure(
    peers: Sequence[BenchPeer], run: int, rate: float, seconds: float, size: int, rng: Random, idle: Idle
) -> Window:
    """Publish at `rate` messages a second in total, from nodes drawn at random, and see who got what.

    Args:
        run: a number not used before with these peers.
        size: of a payload, in bytes.
        idle: measured before, to be subtracted.
    """
    messages = max(round(rate * seconds), 1)
    sent_before = _tcp_bytes(peers)
    start = _tell(peers, run, messages, rate, size, rng)
    _sleep_until(start)
    machine_before, cpu_before, from_ = machine_cpu_seconds(), _cpu(peers), time.monotonic()
    _sleep_until(start + seconds + GRACE_SECONDS)
    machine, cpu, window = machine_cpu_seconds() - machine_before, _cpu(peers) - cpu_before, time.monotonic() - from_
    _wait_for_all(peers, run, messages, time.monotonic() + DRAIN_SECONDS)
    sent_after = _tcp_bytes(peers)
    states = ask_all(peers, {"cmd": "state"})
    reports = ask_all(peers, {"cmd": "report", "run": run})
    return _evaluate(
        reports,
        messages,
        cpu=cpu,
        window=window,
        others=max(machine - cpu, 0) / window / (os.cpu_count() or 1),
        idle=idle,
        rss=median(resident_bytes(peer.pid) for peer in peers),
        pss=median(proportional_bytes(peer.pid) for peer in peers),
        links=sum(state["links"] for state in states) / len(states),
        mesh=None if states[0]["mesh"] is None else sum(state["mesh"] for state in states) / len(states),
        sent=None if sent_before is None or sent_after is None else sent_after - sent_before,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; infinite when there are none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)) - 1, 0)] if ordered else math.inf


def _evaluate(
    reports: Sequence[dict[str, Any]],
    messages: int,
    *,
    cpu: float,
    window: float,
    others: float,
    idle: Idle,
    rss: float,
    pss: float,
    links: float,
    mesh: float | None,
    sent: int | None,
) -> Window:
    receivers = len(reports) - 1
    expected = messages * receivers
    by_message: dict[int, list[float]] = {index: [] for index in range(messages)}
    twice = 0
    for report in reports:
        first: dict[int, float] = {}
        for index, micros in report["receipts"]:
            first.setdefault(index, micros / 1000)
        twice += len(report["receipts"]) - len(first)
        for index, millis in first.items():
            by_message[index].append(millis)
    latencies = [millis for found in by_message.values() for millis in found]
    latencies_or_never = latencies + [math.inf] * (expected - len(latencies))
    late = [micros / 1000 for report in reports for _, micros in report["sent"]]
    duplicates = [report["duplicates"] for report in reports]
    return Window(
        messages=messages,
        published=len(late),
        deliveries=len(latencies),
        delivered_percent=100 * len(latencies) / expected,
        twice=twice,
        late_ms=max(late, default=math.inf),
        p50_ms=percentile(latencies_or_never, 50),
        p95_ms=percentile(latencies_or_never, 95),
        p99_ms=percentile(latencies_or_never, 99),
        last_p50_ms=percentile([max(m) if len(m) == receivers else math.inf for m in by_message.values()], 50),
        cpu_seconds=cpu,
        cpu_window_seconds=window,
        others_percent=100 * others,
        idle_cpu_seconds=idle.cpu_seconds,
        idle_window_seconds=idle.seconds,
        cpu_ms_per_delivery=1000 * (cpu - idle.cpu_seconds * window / idle.seconds) / expected,
        idle_percent_per_node=100 * idle.cpu_seconds / idle.seconds / len(reports),
        rss_mib=rss / 2**20,
        pss_mib=pss / 2**20,
        links=links,
        mesh=mesh,
        bytes_per_delivery=None if sent is None else sent / expected,
        duplicates_per_delivery=None if None in duplicates else sum(duplicates) / expected,
    )


def _tell(peers: Sequence[BenchPeer], run: int, messages: int, rate: float, size: int, rng: Random) -> float:
    """Give everybody his part of the plan; returns when it begins, in monotonic seconds."""
    plans: list[list[tuple[int, int]]] = [[] for _ in peers]
    for index in range(messages):
        rng.choice(plans).append((index, round(index / rate * 1e9)))
    start_ns = time.monotonic_ns() + round(LEAD_SECONDS * 1e9)
    for peer, plan in zip(peers, plans, strict=True):
        peer.send({"cmd": "load", "run": run, "start_ns": start_ns, "size": size, "at": plan})
    for peer in peers:
        peer.receive()
    return start_ns / 1e9


def _wait_for_all(peers: Sequence[BenchPeer], run: int, messages: int, deadline: float) -> None:
    while True:
        counts = ask_all(peers, {"cmd": "count", "run": run})
        if sum(count["received"] for count in counts) >= messages * (len(peers) - 1) or time.monotonic() > deadline:
            return
        time.sleep(POLL_SECONDS)


def _cpu(peers: Sequence[BenchPeer]) -> float:
    return sum(cpu_seconds(peer.pid) for peer in peers)


def _tcp_bytes(peers: Sequence[BenchPeer]) -> int | None:
    total = 0
    for peer in peers:
        sent = tcp_bytes_sent(peer.pid)
        if sent is None:
            return None
        total += sent
    return total


def _sleep_until(when: float) -> None:
    time.sleep(max(when - time.monotonic(), 0))
