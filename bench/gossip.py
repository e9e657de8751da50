"""Gossip compared: our router, py-libp2p's, js-libp2p's and kubo's; see `bench/README.md`.

python -m bench.gossip --rounds 3
python -m bench.gossip --max --systems ours,library
python -m bench.gossip --systems ours --rounds 1 --rate 10 --profile
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median

from bench.load import Window, measure, measure_idle, warm_up
from bench.processes import BenchPeer, PeerFailed, ask_all
from bench.systems import FORKED, SYSTEMS, open_fleet, prepare, say
from bench.topology import NoSuchGraph, random_regular

IDLE_SECONDS = 8.0
WARM_UP_MESSAGES = 5
MAX_RATES = (2, 5, 10, 20, 50, 100, 200)
MAX_WINDOW_SECONDS = 8.0
MAX_P99_MS = 1000.0
RETRIES = 2
DISTURBED_PERCENT = 10.0
PROFILE_LINES = 30


@dataclass(frozen=True, slots=True)
class Round:
    """One system's window in one round.

    Args:
        degree: D, the mesh links that its router aims for.
    """

    round: int
    system: str
    degree: int
    rate: float
    window: Window


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    systems: list[str] = options.systems
    try:
        links = random_regular(options.nodes, options.links, Random(options.seed))
    except NoSuchGraph as error:
        print(f"error: {error}; see --nodes and --links", file=sys.stderr)
        return 2
    prepare(systems)
    rounds: list[Round] = []
    failed = False
    try:
        for number in range(1 if options.max else options.rounds):
            for system in systems:
                try:
                    rounds += (_climb if options.max else _one)(number + 1, system, links, options)
                except PeerFailed as error:
                    failed = True
                    print(f"error: {system}: {error}", file=sys.stderr)
    finally:
        if options.json is not None and rounds:
            options.json.write_text(json.dumps(_document(options, rounds), indent=1) + "\n")
    if not rounds:
        return 1
    print(_heading(options))
    print(_steps(rounds) if options.max else _summary(rounds, systems))
    return 1 if failed else 0


def _one(number: int, system: str, links: Sequence[tuple[int, int]], options: argparse.Namespace) -> list[Round]:
    """Start a fleet, warm it up, load it once."""
    rng = Random(f"{options.seed} {number}")  # the same publishers for every system
    with open_fleet(system, options.nodes, links) as peers:
        warm_up(peers, 0, WARM_UP_MESSAGES, options.size, rng)
        idle = measure_idle(peers, IDLE_SECONDS)
        if options.profile:
            ask_all(peers, {"cmd": "profile"})
        window = measure(peers, 1, options.rate, options.seconds, options.size, rng, idle)
        if options.profile:
            _print_profile(system, peers)
        result = Round(number, system, peers[0].degree, options.rate, window)
    say(_line(result))
    return [result]


def _climb(number: int, system: str, links: Sequence[tuple[int, int]], options: argparse.Namespace) -> list[Round]:
    """Raise the rate until not everything arrives, or not in time.

    A failed window that other processes disturbed is repeated, up to `RETRIES` times.
    """
    results: list[Round] = []
    rng = Random(f"{options.seed}")
    runs = itertools.count(1)
    with open_fleet(system, options.nodes, links) as peers:
        warm_up(peers, 0, WARM_UP_MESSAGES, options.size, rng)
        idle = measure_idle(peers, IDLE_SECONDS)
        for rate in MAX_RATES:
            for _ in range(1 + RETRIES):
                window = measure(peers, next(runs), rate, MAX_WINDOW_SECONDS, options.size, rng, idle)
                results.append(Round(number, system, peers[0].degree, rate, window))
                say(_line(results[-1]))
                if _sustained(window) or window.others_percent < DISTURBED_PERCENT:
                    break
            if not _sustained(window):
                break
    return results


def _sustained(window: Window) -> bool:
    return window.delivered_percent == 100 and window.p99_ms < MAX_P99_MS and window.late_ms < MAX_P99_MS


def _print_profile(system: str, peers: Sequence[BenchPeer]) -> None:
    counts: dict[str, Counter[str]] = {"layers": Counter(), "self": Counter(), "total": Counter()}
    samples = 0
    for report in ask_all(peers, {"cmd": "profiled"}):
        samples += report["samples"]
        for kind, counter in counts.items():
            counter.update(dict(report[kind]))
    # What is on every stack says nothing.
    counts["total"] = Counter({name: count for name, count in counts["total"].items() if count < 0.94 * samples})
    for kind, counter in counts.items():
        print(f"{system}: {kind}, share of {samples} samples of CPU time")
        for name, count in counter.most_common(PROFILE_LINES):
            print(f"  {100 * count / samples:5.1f} %  {name}")


def _line(result: Round) -> str:
    window = result.window
    return (
        f"round {result.round} {result.system:8} {result.rate:5g}/s  {window.delivered_percent:6.2f} %"
        f"  p50 {window.p50_ms:.1f}  p99 {window.p99_ms:.1f}  last {window.last_p50_ms:.1f} ms"
        f"  CPU {window.cpu_ms_per_delivery:.2f} ms/delivery ({window.cpu_seconds:.1f} s loaded,"
        f" {window.idle_cpu_seconds:.1f} s in {window.idle_window_seconds:.0f} s idle;"
        f" others {window.others_percent:.0f} % of the machine)"
    )


_COLUMNS: tuple[tuple[str, Callable[[Window], float | None], int], ...] = (
    ("delivered %", lambda w: w.delivered_percent, 2),
    ("p50 ms", lambda w: w.p50_ms, 1),
    ("p95 ms", lambda w: w.p95_ms, 1),
    ("p99 ms", lambda w: w.p99_ms, 1),
    ("last p50 ms", lambda w: w.last_p50_ms, 1),
    ("CPU ms/delivery", lambda w: w.cpu_ms_per_delivery, 2),
    ("CPU s loaded", lambda w: w.cpu_seconds, 1),
    ("CPU s idle*", lambda w: w.idle_cpu_seconds * w.cpu_window_seconds / w.idle_window_seconds, 1),
    ("others %", lambda w: w.others_percent, 0),
    ("idle %/node", lambda w: w.idle_percent_per_node, 2),
    ("RSS MiB", lambda w: w.rss_mib, 0),
    ("PSS MiB", lambda w: w.pss_mib, 0),
    ("bytes/delivery", lambda w: w.bytes_per_delivery, 0),
    ("dup/delivery", lambda w: w.duplicates_per_delivery, 2),
    ("links", lambda w: w.links, 1),
    ("mesh", lambda w: w.mesh, 1),
)


def _summary(rounds: Sequence[Round], systems: Sequence[str]) -> str:
    """Medians over the rounds; the ratio to ours is the median of the ratios within each round."""
    rows = [["system", "D", *(name for name, _, _ in _COLUMNS), "CPU / ours"]]
    ours = {each.round: each.window.cpu_ms_per_delivery for each in rounds if each.system == "ours"}
    for system in systems:
        found = [each for each in rounds if each.system == system]
        cells = [_median(column, found, digits) for _, column, digits in _COLUMNS]
        ratios = [each.window.cpu_ms_per_delivery / ours[each.round] for each in found if each.round in ours]
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "n/a"
        rows.append([system, str(found[0].degree), *cells, ratio])
    return (
        _aligned(rows)
        + "\n* idle CPU of all processes for as long as the loaded window lasted; the ratio with its range"
    )


def _median(column: Callable[[Window], float | None], rounds: Sequence[Round], digits: int) -> str:
    values = [value for each in rounds if (value := column(each.window)) is not None]
    return _number(median(values), digits) if values else "n/a"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "never"


def _steps(rounds: Sequence[Round]) -> str:
    rows = [
        [
            "system",
            "D",
            "rate/s",
            "delivered %",
            "p50 ms",
            "p99 ms",
            "late ms",
            "CPU ms/delivery",
            "others %",
            "sustained",
        ]
    ]
    for each in rounds:
        window = each.window
        rows.append(
            [
                each.system,
                str(each.degree),
                f"{each.rate:g}",
                _number(window.delivered_percent, 2),
                _number(window.p50_ms, 1),
                _number(window.p99_ms, 1),
                _number(window.late_ms, 1),
                # What an overloaded fleet still has to do when the window ends is not in its CPU time.
                _number(window.cpu_ms_per_delivery, 2) if _sustained(window) else "n/a",
                _number(window.others_percent, 0),
                "yes" if _sustained(window) else "no",
            ]
        )
    best: Mapping[str, float] = {each.system: each.rate for each in rounds if _sustained(each.window)}
    highest = "\n".join(
        f"{system}: highest rate sustained {f'{best[system]:g}/s' if system in best else 'none'}"
        for system in dict.fromkeys(each.system for each in rounds)
    )
    return f"{_aligned(rows)}\n{highest}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Turned by a quarter: systems are few, figures are many."""
    columns = list(zip(*rows, strict=True)) if len(rows[0]) > 12 else rows
    widths = [max(len(row[at]) for row in columns) for at in range(len(columns[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in columns
    )


def _heading(options: argparse.Namespace) -> str:
    load = os.getloadavg()
    what = (
        f"rates up to {MAX_RATES[-1]}/s in windows of {MAX_WINDOW_SECONDS:g} s"
        if options.max
        else f"{options.rate:g} messages/s for {options.seconds:g} s, medians of {options.rounds} rounds"
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" load average {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}\n"
        f"{options.nodes} processes, {options.links} links each (random regular graph, seed {options.seed}),"
        f" {options.size} bytes, {what}"
    )


def _document(options: argparse.Namespace, rounds: Sequence[Round]) -> dict[str, object]:
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    return {"at": datetime.now(UTC).isoformat(), "settings": settings, "rounds": [_finite(asdict(r)) for r in rounds]}


def _finite(value: object) -> object:
    """JSON has no infinity: null is what never came."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gossip", description="Compare gossip routers.")
    parser.add_argument("--nodes", type=int, default=34)
    parser.add_argument("--links", type=int, default=6, help="connections of each node")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=2.0, help="messages a second, all nodes together")
    parser.add_argument("--size", type=int, default=1024, help="bytes of a payload, at least 16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max", action="store_true", help="find the highest rate each system sustains instead")
    parser.add_argument("--systems", type=_systems, default=list(SYSTEMS), help="comma-separated")
    parser.add_argument("--profile", action="store_true", help="sample the stacks of ours or library under load")
    parser.add_argument("--json", type=Path, help="write all figures of all rounds there")
    options = parser.parse_args(arguments)
    if options.profile and not FORKED.issuperset(options.systems):
        parser.error("--profile knows Python only: --systems ours,library,stock")
    if options.size < 16 or options.rate <= 0 or options.seconds <= 0 or options.rounds < 1:
        parser.error("--size must be at least 16, --rate, --seconds and --rounds positive")
    return options


def _systems(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such system: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
