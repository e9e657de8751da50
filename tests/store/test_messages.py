"""The message store: what was written is there, in groups, and a bad call fails alone."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.message import MessageId
from p2pnode.core.routing import ROADS
from p2pnode.errors import EnvironmentFault
from p2pnode.ports import (
    Add,
    Advance,
    Change,
    Contents,
    Entry,
    Exhume,
    Horizon,
    OutboxDone,
    Release,
    Remember,
    Subscribe,
    Subscription,
    Took,
    Unsubscribe,
)
from p2pnode.store.database import DATABASE_NAME
from p2pnode.store.messages import MAX_WAITING, open_messages
from p2pnode.store.rows import MAX_REMEMBERED
from tests.programs import program
from tests.properties import some
from tests.store.kit import ROOT, Model, add, body, bury, drop, entry, left_in, message_id

LARGEST = (1 << 64) - 1
"""What a stock peer may put into a seqno."""


async def contents_of(path: Path) -> Contents:
    async with open_messages(path) as store:
        return await store.load()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_NAME


# -- what is kept ----------------------------------------------------------------------


def test_a_new_store_is_empty_and_its_file_is_for_its_owner_alone(path: Path) -> None:
    Model().holds(trio.run(contents_of, path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert not any(name.endswith(("-wal", "-shm")) for name in left_in(path.parent)), "the log is in the database"


async def test_everything_about_a_message_comes_back_also_what_is_beyond_64_bits(path: Path) -> None:
    raw = b"\x00" * 7 + b"signed"
    never = 253_402_300_799_999_999_999
    kept = Entry(message_id(1), "t.é", 9, never, never, 5, len(raw), b"d" * 16, LARGEST, "nats", True, True, ROADS)
    async with open_messages(path) as store:
        await store.write([Add(kept, raw, outbox=True), Horizon("t.é", never)], full=True)
        assert await store.read([message_id(2), message_id(1)]) == {message_id(1): raw}
    contents = await contents_of(path)
    assert contents.entries == [kept]
    assert contents.horizons == {"t.é": never}
    assert contents.outbox == [message_id(1)]


async def test_the_roads_that_took_a_message_are_kept_and_nothing_else_of_it_changes(path: Path) -> None:
    added = add(1, outbox=True)
    async with open_messages(path) as store:
        await store.write([added, add(2, outbox=True), Took(message_id(1), ("gossip",))], full=True)
    assert {each.id: each.roads for each in (await contents_of(path)).entries} == {
        message_id(1): ("gossip",),
        message_id(2): (),
    }
    async with open_messages(path) as store:
        await store.write([Took(message_id(1), ("gossip", "nats")), Took(message_id(3), ("http",))], full=False)
    contents = await contents_of(path)
    assert contents.entries[0] == replace(added.entry, roads=("gossip", "nats"))
    assert len(contents.entries) == 2, "a message that is not stored is not made up"
    assert set(contents.outbox) == {message_id(1), message_id(2)}


async def test_a_road_that_only_a_later_version_knows_is_left_out(path: Path) -> None:
    async with open_messages(path) as store:
        await store.write([add(1, outbox=True)], full=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE messages SET roads = 'carrier-pigeon nats gossip'")
    assert (await contents_of(path)).entries[0].roads == ("gossip", "nats")


async def test_arrivals_are_never_used_again_even_after_everything_was_dropped(path: Path) -> None:
    async with open_messages(path) as store:
        await store.write([add(number) for number in range(1, 6)], full=False)
        await store.write([drop(*range(1, 6))], full=False)
    contents = await contents_of(path)
    assert contents.entries == []
    assert contents.last_arrival == 5


async def test_of_too_many_idempotency_keys_the_oldest_go(path: Path) -> None:
    async with open_messages(path) as store:
        keys = [Remember(f"k{number}", b"d", message_id(number), number) for number in range(MAX_REMEMBERED)]
        await store.write(keys, full=False)
        await store.write([keys[0]], full=False)
        await store.write([Remember("one more", b"d", message_id(1), 1)], full=False)
    remembered = (await contents_of(path)).remembered
    assert len(remembered) == MAX_REMEMBERED
    assert [each.key for each in remembered[:1]] == ["k2"]
    assert [each.key for each in remembered[-2:]] == ["k0", "one more"]


numbers = st.integers(1, 5)
names = st.sampled_from(["webhook", "agent"])
topics = st.sampled_from(["councils.forming", "councils.claims"])


@st.composite
def changes(draw: st.DrawFn, arrivals: list[int]) -> Change:
    """One change, about few messages and subscriptions so that they meet; each arrival is given once."""

    def arrival() -> int:
        arrivals[0] += 1
        return arrivals[0]

    number = draw(numbers)
    match draw(st.integers(0, 12)):
        case 0 | 1:
            held = draw(st.booleans())
            return add(number, size=40 * number, arrival=0 if held else arrival(), outbox=draw(st.booleans()))
        case 2:
            return Release(message_id(number), arrival(), draw(st.booleans()))
        case 3:
            return drop(*draw(st.lists(numbers, max_size=2)))
        case 4:
            return Horizon(draw(topics), draw(st.integers(0, 1 << 70)))
        case 5:
            return OutboxDone((message_id(number), message_id(draw(numbers))))
        case 6:
            return Remember(f"key {draw(numbers)}", b"digest", message_id(number), draw(numbers))
        case 7:
            wanted = tuple(draw(st.lists(topics, unique=True)))
            return Subscribe(Subscription(draw(names), wanted, draw(st.integers(0, 9))))
        case 8:
            return Unsubscribe(draw(names))
        case 9:
            return Advance(draw(names), draw(st.integers(0, 9)))
        case 10:
            return bury(draw(names), number, attempts=draw(numbers))
        case 11:
            return Took(message_id(number), tuple(road for road in ROADS if draw(st.booleans())))
        case _:
            return Exhume(draw(names), number)


@some
@given(st.data())
def test_any_sequence_of_changes_leaves_what_a_dictionary_would_hold(data: st.DataObject) -> None:
    arrivals = [0]
    model = Model()

    async def live(path: Path, calls: int) -> None:
        async with open_messages(path) as store:
            model.holds(await store.load())
            for _ in range(calls):
                drawn = [data.draw(changes(arrivals)) for _ in range(data.draw(st.integers(1, 6)))]
                model.write(drawn)
                await store.write(drawn, full=data.draw(st.booleans()))
                model.holds(await store.load())
                again = drawn[-1:]  # idempotent
                await store.write(again, full=False)
                model.holds(await store.load())
            ids = [message_id(number) for number in range(1, 6)]
            assert await store.read(ids) == {id: raw for id, (_, raw) in model.messages.items()}

    with tempfile.TemporaryDirectory() as directory:
        for calls in data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)):
            trio.run(live, Path(directory) / DATABASE_NAME, calls)


# -- groups ----------------------------------------------------------------------------


async def test_callers_that_wait_at_the_same_time_share_transactions(path: Path) -> None:
    async with open_messages(path) as store:
        async with trio.open_nursery() as nursery:
            for number in range(1, 101):
                nursery.start_soon(lambda number=number: store.write([add(number)], full=number % 2 == 0))
        assert 1 <= store.transactions <= 10
        assert len((await store.load()).entries) == 100


async def test_more_callers_than_the_queue_holds_wait_their_turn(path: Path) -> None:
    count = MAX_WAITING + 600
    async with open_messages(path) as store:
        async with trio.open_nursery() as nursery:
            for number in range(1, count + 1):
                nursery.start_soon(lambda number=number: store.write([add(number, size=10)], full=False))
        assert len((await store.load()).entries) == count


async def test_a_bad_call_fails_alone_and_whole(path: Path) -> None:
    failed: list[int] = []
    async with open_messages(path) as store:
        await store.write([add(1000, arrival=1000)], full=True)

        async def write(number: int) -> None:
            good = add(number)
            # An arrival that is taken, and what no column can hold.
            bad = add(number + 500, arrival=1000) if number % 2 else Advance("webhook", 1 << 70)
            if number % 10 and number != 7:
                await store.write([good], full=False)
                return
            with pytest.raises(EnvironmentFault, match=str(path)):
                await store.write([good, bad], full=False)
            failed.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(1, 51):
                nursery.start_soon(write, number)
        assert sorted(failed) == [7, 10, 20, 30, 40, 50]
        kept = {each.arrival for each in (await store.load()).entries}
        assert kept == {1000, *range(1, 51)} - set(failed)


async def test_a_topic_of_a_call_that_failed_can_be_used_by_the_next(path: Path) -> None:
    raw = b"raw"
    async with open_messages(path) as store:
        new = Add(entry(1, raw, topic="new"), raw)
        with pytest.raises(EnvironmentFault):
            await store.write([new, Advance("webhook", 1 << 70)], full=False)
        await store.write([new], full=False)
        assert [each.topic for each in (await store.load()).entries] == ["new"]


async def test_what_waits_when_the_store_is_left_is_written(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        async with open_messages(path) as store:
            for number in range(1, 301):
                nursery.start_soon(lambda number=number: store.write([add(number)], full=False))
            await trio.testing.wait_all_tasks_blocked()
    assert len((await contents_of(path)).entries) == 300


async def test_what_waits_when_the_store_is_cancelled_is_written(path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_messages(path) as store, trio.open_nursery() as nursery:
            for number in range(1, 101):
                nursery.start_soon(lambda number=number: store.write([add(number)], full=True))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert len((await contents_of(path)).entries) == 100
    with pytest.raises(EnvironmentFault, match="closed"):
        await store.write([add(1)], full=False)


async def test_reads_go_on_while_writes_are_committed(path: Path) -> None:
    async with open_messages(path) as store:

        async def write(first: int) -> None:
            for number in range(first, first + 50):
                await store.write([add(number)], full=False)
                # Whoever was answered finds it.
                assert await store.read([message_id(number)]) == {message_id(number): body(number, 1024)}

        async with trio.open_nursery() as nursery:
            for first in (1, 101, 201, 301):
                nursery.start_soon(write, first)


# -- durability ------------------------------------------------------------------------


def test_full_syncs_the_log_with_every_transaction_and_normal_does_not(tmp_path: Path) -> None:
    strace = program("strace")
    assert strace is not None, "strace is missing: run `python -m tests.programs`"
    trace = tmp_path / "trace"
    watched = "trace=fsync,fdatasync,pwrite64,write"
    command = [strace, "-f", "-y", "-s", "40", "-e", watched, "-o", str(trace), sys.executable]
    done = subprocess.run(
        [*command, "-m", "tests.store.child", "syncs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    syncs: dict[str, int] = {}
    stage = ""
    for line in trace.read_text().splitlines():
        for name in ("normal", "full", "both", "end"):
            if f'"stage {name}\\n"' in line:
                stage = name
        if stage and "sync(" in line and f"{DATABASE_NAME}-wal>" in line:
            syncs[stage] = syncs.get(stage, 0) + 1
    assert syncs.get("normal", 0) == 0
    assert syncs.get("full", 0) == 10
    assert syncs.get("both", 0) >= 1, "one full call among normal ones"


async def test_ids_of_any_bytes_are_read_back(path: Path) -> None:
    async with open_messages(path) as store:
        odd = Entry(MessageId(b"\x00\xff'; DROP TABLE messages; --"), "t", 1, 0, 0, 0, 1, b"")
        await store.write([Add(odd, b"x")], full=False)
        assert await store.read([odd.id]) == {odd.id: b"x"}
