"""What the message store costs: alone, behind the local API beside JetStream, and in a hop.

    python -m bench.store [alone] [publish] [hop] [--seconds 5] [--rounds 3] [--dir DIR] [--json FILE]

`alone`: entries of 1 KiB, one caller and a hundred, each waits for its commit; then a start with 100,000. `publish`:
see `bench/store_publish.py`. `hop`: see `bench/store_hop.py`. All three without a name. The directory decides: give
one on the disk that is meant, a tmpfs syncs nothing. The rounds are interleaved, and the tables have their medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import trio

from bench import store_hop, store_publish
from bench.measure import machine_cpu_seconds
from bench.writes import HEADINGS, Figures, figures, median, table
from p2pnode.core.message import MessageId
from p2pnode.ports import Add, Drop, Entry, MessageStore
from p2pnode.store.database import DATABASE_NAME
from p2pnode.store.maintenance import check
from p2pnode.store.messages import open_messages

SIZE = 1024
CALLERS = (1, 100)
PARTS = ("alone", "publish", "hop")

Open = Callable[[Path], AbstractAsyncContextManager[MessageStore]]
"""A system that keeps messages, in a directory of its own. What is to be compared needs only `write`."""

SYSTEMS: dict[str, Open] = {"sqlite": lambda directory: open_messages(directory / DATABASE_NAME)}


def add(number: int, arrival: int) -> Add:
    """A message of one of 34 origins."""
    raw = os.urandom(SIZE)
    origin = b"\x00\x24\x08\x01\x12\x20" + bytes([number % 34]) * 32
    digest = hashlib.sha256(raw).digest()[:16]
    entry = Entry(
        MessageId(origin + number.to_bytes(8, "big")),
        "councils.forming",
        arrival,
        time.time_ns(),
        0,
        time.time_ns(),
        SIZE,
        digest,
        max(number - 34, 0),
    )
    return Add(entry, raw)


async def measure(system: str, callers: int, full: bool, seconds: float, where: Path) -> Figures:
    taken: list[float] = []
    number = 0

    async def write(store: MessageStore, end: float) -> None:
        nonlocal number
        while (begun := time.perf_counter()) < end:
            number += 1
            await store.write([add(number, number)], full=full)
            taken.append(time.perf_counter() - begun)

    with tempfile.TemporaryDirectory(dir=where) as directory:
        async with SYSTEMS[system](Path(directory)) as store:
            begun, cpu = time.perf_counter(), time.process_time()
            async with trio.open_nursery() as nursery:
                for _ in range(callers):
                    nursery.start_soon(write, store, begun + seconds)
            lasted, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return figures(system, callers, "full" if full else "normal", taken, lasted, cpu)


LOADER = """
import sys, time, trio
from pathlib import Path
from p2pnode.store.messages import open_messages
def rss():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
async def main():
    before, begun = rss(), time.perf_counter()
    async with open_messages(Path(sys.argv[1])) as store:
        opened = time.perf_counter()
        contents = await store.load()
        loaded = time.perf_counter()
        print(opened - begun, loaded - opened, rss() - before, len(contents.entries))
trio.run(main)
"""


async def start(entries: int, where: Path) -> dict[str, float]:
    """Fill a store, start with it in a fresh process, check it, and forget half of it."""
    with tempfile.TemporaryDirectory(dir=where) as directory:
        path = Path(directory) / DATABASE_NAME
        async with open_messages(path) as store:
            for first in range(1, entries + 1, 1000):
                numbers = range(first, min(first + 1000, entries + 1))
                await store.write([add(number, number) for number in numbers], full=False)
        command = [sys.executable, "-c", LOADER, str(path)]
        done = await trio.run_process(command, capture_stdout=True)
        opened, loaded, kib, count = map(float, done.stdout.split())
        begun = time.perf_counter()
        report = await trio.to_thread.run_sync(check, path)
        checked = time.perf_counter() - begun
        async with open_messages(path) as store:
            ids = [each.id for each in (await store.load()).entries]
            begun = time.perf_counter()
            for index in range(0, len(ids) // 2, 1000):
                await store.write([Drop(tuple(ids[index : index + 1000]))], full=False)
            dropped = time.perf_counter() - begun
        assert (count, report.problems) == (entries, [])
        return {
            "entries": entries,
            "file_bytes": report.file_bytes,
            "open_seconds": opened,
            "load_seconds": loaded,
            "rss_mib": kib / 1024,
            "check_seconds": checked,
            "drops_per_second": entries / 2 / dropped,
        }


def alone(options: argparse.Namespace) -> Mapping[str, object]:
    cases = [(system, callers, full) for system in SYSTEMS for callers in CALLERS for full in (True, False)]
    found = rounds_of([partial(_alone, *case, options) for case in cases], options.rounds)
    started = trio.run(start, options.entries, options.dir) if options.entries else {}
    if started:
        print(
            f"{options.entries:,} entries, a file of {started['file_bytes'] / 1e6:.0f} MB: "
            f"open {started['open_seconds'] * 1e3:.0f} ms, load {started['load_seconds']:.2f} s, "
            f"RSS +{started['rss_mib']:.0f} MiB, check {started['check_seconds']:.2f} s, "
            f"{started['drops_per_second']:,.0f} dropped a second"
        )
    return {"writes": found, "start": started}


def _alone(system: str, callers: int, full: bool, options: argparse.Namespace) -> Figures:
    return trio.run(measure, system, callers, full, options.seconds, options.dir)


def publish(options: argparse.Namespace) -> Mapping[str, object]:
    cases = store_publish.cases([int(count) for count in options.callers.split(",")])
    return {
        "publish": rounds_of(
            [
                partial(
                    store_publish.measure, system, durability, store_publish.Load(callers, options.seconds), options.dir
                )
                for system, durability, callers in cases
            ],
            options.rounds,
        )
    }


def rounds_of(cases: Sequence[Callable[[], Figures]], rounds: int) -> list[Mapping[str, object]]:
    """Each case in turn, `rounds` times; prints the medians and returns every figure."""
    found: list[list[Figures]] = [[] for _ in cases]
    for _ in range(rounds):
        for case, figures_of_case in zip(cases, found, strict=True):
            figures_of_case.append(case())
            print("  ".join(figures_of_case[-1].row()), file=sys.stderr, flush=True)
    print(table(HEADINGS, [median(each).row() for each in found]), flush=True)
    return [asdict(each) for case_figures in found for each in case_figures]


def hop(options: argparse.Namespace) -> Mapping[str, object]:
    rounds = []
    stores = deque(store_hop.STORES)
    for _ in range(options.rounds):
        rounds.append([store_hop.measure(each, options.messages, options.rate, options.dir) for each in stores])
        stores.rotate()  # none is always the first
        print(table(store_hop.HEADINGS, store_hop.rows(rounds[-1:])), file=sys.stderr, flush=True)
    print(f"one hop, {options.rate:g} messages/s, {options.messages} in each of {options.rounds} rounds")
    print(table(store_hop.HEADINGS, store_hop.rows(rounds)), flush=True)
    return {"hop": [asdict(each) for found in rounds for each in found]}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.store", description="what the message store costs")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all without a name")
    parser.add_argument("--seconds", type=float, default=5.0, help="of writing, for each row and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=100_000, help="of the store that is started with; 0: none")
    parser.add_argument("--callers", default="1,16", help="that publish, with commas")
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second through a hop")
    parser.add_argument("--messages", type=int, default=1000, help="through a hop, for each store and round")
    parser.add_argument("--dir", type=Path, default=Path("."), help="where to write; on the disk that is meant")
    parser.add_argument("--json", type=Path, help="write every figure of every round there")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts).difference(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    document: dict[str, object] = {}
    for name, measure_part in zip(PARTS, (alone, publish, hop), strict=True):
        if name in (options.parts or PARTS):
            began, busy = time.monotonic(), machine_cpu_seconds()
            print(f"\n{name}: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load average {os.getloadavg()[0]:.1f}")
            document |= measure_part(options)
            share = (machine_cpu_seconds() - busy) / (time.monotonic() - began) / (os.cpu_count() or 1)
            print(f"{os.cpu_count()} cores, busy {share:.0%} of the time, load average {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
