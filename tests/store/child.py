"""What runs as a process of its own in tests of the store: `python -m tests.store.child WHAT DATA_DIR [ARGUMENT]`.

Each prints what it did, a line at a time.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from p2pnode.errors import EnvironmentFault, StorageFull
from p2pnode.ports import Advance, Subscribe, Subscription
from p2pnode.store.database import DATABASE_NAME, open_database
from p2pnode.store.messages import SqliteMessages, open_messages
from p2pnode.store.schema import STEPS, Step
from tests.store.kit import add, drop

SIZE = 16 * 1024


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def acknowledge(directory: Path) -> None:
    """Write without end, from twenty tasks, every fifth call `full`; say each number once it is acknowledged."""
    async with open_messages(directory / DATABASE_NAME) as store:
        contents = await store.load()
        count = contents.last_arrival

        async def write() -> None:
            nonlocal count
            while True:
                count += 1
                number = count
                await store.write([add(number, size=200 + number % 3000)], full=number % 5 == 0)
                say(str(number))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(write)


async def syncs(directory: Path) -> None:
    """Ten calls `normal`, ten `full`, five at once of both kinds."""
    async with open_messages(directory / DATABASE_NAME) as store:
        await store.write([add(1)], full=False)
        for stage, full in (("normal", False), ("full", True)):
            say(f"stage {stage}")
            for _ in range(10):
                await store.write([add(len((await store.load()).entries) + 1)], full=full)
        say("stage both")
        async with trio.open_nursery() as nursery:
            for number in range(100, 105):
                nursery.start_soon(lambda number=number: store.write([add(number)], full=number == 104))
        say("stage end")


def migrate(directory: Path, version: int) -> None:
    """The step to `version` takes for ever, and writes all the time."""
    slow = (
        "CREATE TABLE slow (number INTEGER PRIMARY KEY, filler BLOB)",
        "WITH RECURSIVE counter(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter)"
        " INSERT INTO slow SELECT n, randomblob(1000) FROM counter",
    )
    first = Step((*STEPS[0].statements, *slow), readable_by=1)
    steps: Sequence[Step] = [first] if version == 1 else [*STEPS, Step(slow, readable_by=len(STEPS) + 1)]
    open_database(directory / DATABASE_NAME, steps)


async def fill(store: SqliteMessages, first: int) -> tuple[int, StorageFull]:
    """Write until there is no space: the last number that was acknowledged, and what came of the next."""
    number = first
    while True:
        try:
            await store.write([add(number, size=SIZE)], full=number % 2 == 0)
        except StorageFull as full:
            return number - 1, full
        number += 1


def hog(filler: Path, size: int) -> None:
    """Take so much space of the disk for somebody else, or as much as there is, to the last byte."""
    with open(filler, "ab", buffering=0) as file, suppress(OSError):
        while file.tell() < size:
            file.write(b"\0" * 4096)


def unhog(filler: Path) -> None:
    filler.unlink()


async def until_full(directory: Path, megabytes: int) -> None:
    """A disk of `megabytes`: full, not a byte free, forgetting on it, with room again."""
    path = directory / DATABASE_NAME
    filler = directory / "filler"
    told: dict[str, Any] = {}
    async with open_messages(path) as store:
        await store.write([Subscribe(Subscription("webhook", ("t",), 0))], full=True)
        hog(filler, megabytes << 18)
        last, full = await fill(store, 1)
        told["first"], told["detail"], told["hint"] = last, full.detail, full.hint
        hog(filler, megabytes << 20)
        failed = 0

        async def one_too_many(number: int) -> None:
            nonlocal failed
            try:
                await store.write([add(number, size=SIZE)], full=True)
            except StorageFull:
                failed += 1

        async with trio.open_nursery() as nursery:
            for number in range(last + 1, last + 11):
                nursery.start_soon(one_too_many, number)
            # It takes nothing, so it succeeds among those that fail.
            nursery.start_soon(lambda: store.write([Advance("webhook", last)], full=True))
        told["failed"] = failed
        await store.write([drop(*range(1, last // 2 + 1))], full=False)
        told["after drop"] = len((await store.load()).entries)
        again, _ = await fill(store, last + 1)
        told["again"] = again
        forgotten, told["cycles"] = last // 2, 0
        for _ in range(40):
            # Ten go and what then fits comes.
            await store.write([drop(*range(forgotten + 1, forgotten + 11))], full=False)
            forgotten += 10
            again, _ = await fill(store, again + 1)
            told["cycles"] += 1
        told["forgotten"] = forgotten
        unhog(filler)
        for number in range(again + 1, again + 6):
            await store.write([add(number, size=SIZE)], full=True)
        told["last"] = again + 5
    async with open_messages(path) as store:
        contents = await store.load()
        told["kept"] = sorted(each.arrival for each in contents.entries)
        told["cursor"] = contents.subscriptions[0].cursor
        ids = [each.id for each in contents.entries]
        told["whole"] = {each.id: each.size for each in contents.entries} == {
            id: len(raw) for id, raw in (await store.read(ids)).items()
        }
    say(json.dumps(told))


async def file_limit(directory: Path) -> None:
    """No file over two megabytes, and then without that limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, hard))
    async with open_messages(directory / DATABASE_NAME) as store:
        last, full = await fill(store, 1)
        assert len((await store.load()).entries) == last
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        for number in range(last + 1, last + 6):
            await store.write([add(number, size=SIZE)], full=True)
    async with open_messages(directory / DATABASE_NAME) as store:
        kept = len((await store.load()).entries)
    say(json.dumps({"acknowledged": last, "kept": kept, "detail": full.detail}))


async def refused(directory: Path) -> None:
    """Open it, and say why that cannot be."""
    try:
        async with open_messages(directory / DATABASE_NAME) as store:
            await store.write([add(1)], full=True)
    except* EnvironmentFault as group:
        fault: BaseException = group
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        assert isinstance(fault, EnvironmentFault)
        say(json.dumps({"detail": fault.detail, "hint": fault.hint}))


def main(what: str, directory: Path, argument: int) -> None:
    match what:
        case "acknowledge":
            trio.run(acknowledge, directory)
        case "syncs":
            trio.run(syncs, directory)
        case "migrate":
            migrate(directory, argument)
        case "until-full":
            trio.run(until_full, directory, argument)
        case "file-limit":
            trio.run(file_limit, directory)
        case "refused":
            trio.run(refused, directory)
        case _:
            raise ValueError(what)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
