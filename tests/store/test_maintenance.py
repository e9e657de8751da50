"""`p2pnode store check` and `compact`, on stores that run, that are damaged, and that are not there."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pnode.errors import EnvironmentFault, NotFound
from p2pnode.identity import Identity
from p2pnode.ports import Add, Change, Contents, Subscribe, Subscription
from p2pnode.store.database import DATABASE_NAME
from p2pnode.store.lock import locked_data_dir
from p2pnode.store.maintenance import check, compact
from p2pnode.store.messages import open_messages
from p2pnode.wire.pubsub import seal_message
from tests.cli.running import p2pnode
from tests.e2e.cable import needs_cables
from tests.store.kit import ROOT, add, bury, drop, entry, left_in
from tests.store.test_disk import mounted


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_NAME


async def write(path: Path, *calls: Sequence[Change]) -> Contents:
    async with open_messages(path) as store:
        for changes in calls:
            await store.write(changes, full=True)
        return await store.load()


@pytest.fixture
def filled(path: Path) -> Path:
    subscribe = Subscribe(Subscription("webhook", ("t",), 5))
    messages = [add(number, outbox=number <= 3) for number in range(1, 201)]
    trio.run(write, path, messages, [add(201, arrival=0), subscribe], [bury("webhook", 7)])
    return path


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def test_check_counts_what_is_there(filled: Path) -> None:
    report = check(filled)
    assert report.problems == []
    assert report.counts == {
        "messages": 201,
        "outbox": 3,
        "remembered": 0,
        "subscriptions": 1,
        "dead_letters": 1,
        "held_back": 1,
    }
    assert report.topics == {"councils.forming": 201}
    assert report.last_arrival == 200
    assert report.file_bytes == filled.stat().st_size


async def test_check_reads_beside_a_running_store_what_is_committed(path: Path) -> None:
    async with open_messages(path) as store:
        await store.write([add(1)], full=True)
        stop = trio.Event()

        async def write_on() -> None:
            number = 1
            while not stop.is_set():
                number += 1
                await store.write([add(number)], full=False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on)
            for _ in range(3):
                done = await trio.to_thread.run_sync(
                    lambda: p2pnode("store", "check", "--data-dir", str(path.parent), "-o", "json")
                )
                assert done.returncode == 0, done.stderr
                told = json.loads(done.stdout)
                assert told["good"]
                assert told["counts"]["messages"] == told["last_arrival"] >= 1
            stop.set()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM bodies WHERE message = 4", "has no bytes"),
        ("UPDATE bodies SET raw = zeroblob(1024) WHERE message = 4", "are not those that were stored"),
        ("UPDATE meta SET value = 10 WHERE key = 'last_arrival'", "arrival 200 is in use"),
        ("INSERT INTO outbox VALUES (4444)", "row 4444 of outbox refers to a row of messages that is not there"),
    ],
)
def test_check_finds_what_does_not_fit_together(filled: Path, statement: str, said: str) -> None:
    change(filled, statement)
    problems = check(filled).problems
    assert len(problems) == 1
    assert said in problems[0]


def test_check_tells_what_is_damaged_and_changes_nothing(filled: Path) -> None:
    whole = filled.read_bytes()
    rotten = whole[: 4096 * 20] + b"\xff" * 4096 * 5 + whole[4096 * 25 :]
    for content in (rotten, whole[:-4096], whole[:3000], b"nonsense" * 500):
        filled.write_bytes(content)
        done = p2pnode("store", "check", "--data-dir", str(filled.parent))
        assert done.returncode == 2
        assert done.stdout.startswith(f"damaged: {filled}\n"), done.stderr
        assert "  fix: " in done.stdout
        assert filled.read_bytes() == content


def test_check_reads_what_a_killed_process_left(path: Path) -> None:
    command = [sys.executable, "-m", "tests.store.child", "acknowledge", str(path.parent)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(100)]
        process.kill()
    log = path.with_name(path.name + "-wal").read_bytes()
    assert log
    report = check(path)
    assert report.problems == []
    assert report.counts["messages"] >= len(told)
    assert path.with_name(path.name + "-wal").read_bytes() == log


def test_check_of_a_log_without_database_says_so(filled: Path) -> None:
    filled.with_name(filled.name + "-wal").write_bytes(b"x" * 5000)
    filled.write_bytes(b"")
    assert "lies in messages.db-wal" in check(filled).problems[0]


@needs_cables
def test_check_works_on_a_read_only_disk(filled: Path) -> None:
    data = filled.parent
    over = mounted(f"mount --bind {data} {data} && mount -o remount,bind,ro {data}")
    command = [*over, sys.executable, "-m", "p2pnode", "store", "check", "--data-dir", str(data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("good: ")


async def test_signatures_are_verified_when_asked_for(path: Path) -> None:
    identity = Identity(bytes(range(32)))
    good = seal_message(origin=identity.peer_id_bytes, seqno=1, topic="councils.forming", data=b"1", sign=identity.sign)
    forged = seal_message(
        origin=identity.peer_id_bytes, seqno=2, topic="councils.forming", data=b"2", sign=lambda _: b"\0" * 64
    )
    stored = [
        Add(replace(entry(number, message.raw), id=message.id), message.raw)
        for number, message in enumerate((good, forged), 1)
    ]
    async with open_messages(path) as store:
        await store.write([*stored, add(3)], full=True)
    where = ("--data-dir", str(path.parent), "-o", "json")
    assert p2pnode("store", "check", *where).returncode == 0
    done = p2pnode("store", "check", "--signatures", *where)
    assert done.returncode == 2
    problems = json.loads(done.stdout)["problems"]
    assert [problem.endswith("-2: its signature is not its origin's") for problem in problems] == [True, False]
    assert "no pubsub message" in problems[1]


def test_compact_gives_space_back_and_keeps_the_rest(filled: Path) -> None:
    trio.run(write, filled, [drop(*range(1, 151))])
    assert check(filled).unused_bytes > 100_000
    done = p2pnode("store", "compact", "--data-dir", str(filled.parent), "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["before_bytes"] - told["after_bytes"] > 100_000
    assert told["after_bytes"] == filled.stat().st_size
    report = check(filled)
    assert (report.problems, report.counts["messages"], report.unused_bytes) == ([], 51, 0)
    contents = trio.run(write, filled)
    assert [each.arrival for each in contents.entries] == [*range(151, 201), 0]
    assert contents.last_arrival == 200


def test_compact_refuses_while_a_sidecar_uses_the_store(filled: Path) -> None:
    with locked_data_dir(filled.parent):
        done = p2pnode("store", "compact", "--data-dir", str(filled.parent))
    assert done.returncode == 2
    assert "in use by another p2pnode (pid " in done.stderr
    assert "stop the sidecar" in done.stderr


def test_compact_leaves_a_damaged_store_as_it_is(filled: Path) -> None:
    content = filled.read_bytes()[:-8192]
    filled.write_bytes(content)
    with pytest.raises(EnvironmentFault, match=r"truncated|malformed"):
        compact(filled)
    assert filled.read_bytes() == content


@pytest.mark.parametrize("what", [check, compact])
def test_where_there_is_no_store_none_is_made(path: Path, what: object) -> None:
    assert callable(what)
    with pytest.raises(NotFound, match="there is no message store at"):
        what(path)
    assert left_in(path.parent) == []


@pytest.mark.parametrize("name", ["check", "compact"])
def test_the_settings_say_where_the_store_is(filled: Path, name: str) -> None:
    done = p2pnode("store", name, env={"P2PNODE_NODE_DATA_DIR": str(filled.parent)})
    assert (done.returncode, done.stderr) == (0, "")
    assert str(filled) in done.stdout


@pytest.mark.parametrize("name", ["check", "compact"])
def test_the_commands_import_nothing_heavy(filled: Path, name: str) -> None:
    script = (
        "import sys\n"
        "from p2pnode.cli.main import main\n"
        f"assert main(['store', {name!r}, '--data-dir', {str(filled.parent)!r}]) == 0\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert not set(done.stderr.split()) & {"trio", "libp2p", "pydantic", "nacl", "asyncio", "cryptography"}


def test_a_copy_of_a_closed_store_is_a_backup(filled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "backup" / DATABASE_NAME
    copy.parent.mkdir()
    shutil.copy(filled, copy)
    assert check(copy).counts == check(filled).counts
