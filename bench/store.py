"""The message store alone: entries of 1 KiB, one caller and a hundred, `full` and `normal`; then a start with 100,000.

    python -m bench.store [--seconds 5] [--rounds 3] [--entries 100000] [--dir DIR] [--json FILE]

Each caller writes one message, waits until it is committed, and writes the next. The directory decides: give one on
the disk that is meant, a tmpfs syncs nothing. The rounds are interleaved, and the table has their medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import trio

from p2pnode.core.message import MessageId
from p2pnode.ports import Add, Drop, Entry, MessageStore
from p2pnode.store.database import DATABASE_NAME
from p2pnode.store.maintenance import check
from p2pnode.store.messages import open_messages

SIZE = 1024
CALLERS = (1, 100)
HEADINGS = ("system", "callers", "durability", "writes/s", "p50 ms", "p99 ms", "max ms")

Open = Callable[[Path], AbstractAsyncContextManager[MessageStore]]
"""A system that keeps messages, in a directory of its own. What is to be compared needs only `write`."""

SYSTEMS: dict[str, Open] = {"sqlite": lambda directory: open_messages(directory / DATABASE_NAME)}


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one system, one number of callers, one durability."""

    system: str
    callers: int
    full: bool
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float

    def row(self) -> tuple[str, ...]:
        durability = "full" if self.full else "normal"
        times = (f"{value:.2f}" for value in (self.p50_ms, self.p99_ms, self.max_ms))
        return (self.system, str(self.callers), durability, f"{self.per_second:,.0f}", *times)


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
            begun = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(callers):
                    nursery.start_soon(write, store, begun + seconds)
            lasted = time.perf_counter() - begun
    taken.sort()
    p50, p99 = (taken[int(len(taken) * share)] * 1e3 for share in (0.5, 0.99))
    return Figures(system, callers, full, len(taken) / lasted, p50, p99, taken[-1] * 1e3)


def median(rounds: list[Figures]) -> Figures:
    one = rounds[0]

    def middle(of: Callable[[Figures], float]) -> float:
        return statistics.median(map(of, rounds))

    return Figures(
        one.system,
        one.callers,
        one.full,
        middle(lambda each: each.per_second),
        middle(lambda each: each.p50_ms),
        middle(lambda each: each.p99_ms),
        middle(lambda each: each.max_ms),
    )


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


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in [HEADINGS, *rows]) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [HEADINGS, *rows]
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.store", description="the message store alone")
    parser.add_argument("--seconds", type=float, default=5.0, help="of writing, for each row and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=100_000, help="of the store that is started with; 0: none")
    parser.add_argument("--dir", type=Path, default=Path("."), help="where to write; on the disk that is meant")
    parser.add_argument("--json", type=Path, help="write every figure of every round there")
    options = parser.parse_args(arguments)
    cases = [(system, callers, full) for system in SYSTEMS for callers in CALLERS for full in (True, False)]
    rounds: dict[tuple[str, int, bool], list[Figures]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            rounds[case].append(trio.run(partial(measure, *case, options.seconds, options.dir)))
            print(table([rounds[case][-1].row()]), file=sys.stderr, flush=True)
    print(table([median(found).row() for found in rounds.values()]))
    started = trio.run(start, options.entries, options.dir) if options.entries else {}
    if started:
        print(
            f"{options.entries:,} entries, a file of {started['file_bytes'] / 1e6:.0f} MB: "
            f"open {started['open_seconds'] * 1e3:.0f} ms, load {started['load_seconds']:.2f} s, "
            f"RSS +{started['rss_mib']:.0f} MiB, check {started['check_seconds']:.2f} s, "
            f"{started['drops_per_second']:,.0f} dropped a second"
        )
    if options.json:
        figures = [asdict(each) for found in rounds.values() for each in found]
        options.json.write_text(json.dumps({"writes": figures, "start": started}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
