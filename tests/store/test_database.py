"""What file the message store takes, what it refuses, and how an older one is brought up to date."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio

from p2pnode.errors import EnvironmentFault
from p2pnode.ports import Contents
from p2pnode.store.database import DATABASE_NAME, open_database
from p2pnode.store.faults import Damaged, Locked, beside
from p2pnode.store.messages import open_messages
from p2pnode.store.schema import APPLICATION_ID, STEPS, Step
from tests.e2e.harness import wait_until
from tests.store.kit import ROOT, add, left_in, message_id

MORE = Step(("CREATE TABLE more (number INTEGER PRIMARY KEY)",), readable_by=1)
OTHER_HEAD = b"not a database, but the notes of somebody else, which nobody may lose\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_NAME


def fill(path: Path, count: int = 50) -> Contents:
    """Make a store of `count` messages, or add what it lacks of them; what it holds then."""

    async def filled() -> Contents:
        async with open_messages(path) as store:
            await store.write([add(number) for number in range(1, count + 1)], full=True)
            return await store.load()

    return trio.run(filled)


def count_of(path: Path) -> int:
    """The messages in it, which must all have their bytes."""

    async def counted() -> int:
        async with open_messages(path) as store:
            ids = [each.id for each in (await store.load()).entries]
            assert set(await store.read(ids)) == set(ids)
            return len(ids)

    return trio.run(counted)


def version_of(path: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(path)) as connection:
        return (
            connection.execute("PRAGMA user_version").fetchone()[0],
            connection.execute("PRAGMA application_id").fetchone()[0],
        )


def tables_of(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


# -- versions --------------------------------------------------------------------------


def test_an_older_file_gets_the_steps_it_lacks_and_keeps_its_messages(path: Path) -> None:
    fill(path)
    assert version_of(path) == (len(STEPS), APPLICATION_ID)
    open_database(path, [*STEPS, MORE]).close()
    assert version_of(path) == (len(STEPS) + 1, APPLICATION_ID)
    assert "more" in tables_of(path)


def test_a_newer_file_that_this_version_can_read_is_used_and_stays_newer(path: Path) -> None:
    fill(path)
    open_database(path, [*STEPS, MORE]).close()
    assert len(fill(path, 60).entries) == 60
    assert version_of(path)[0] == len(STEPS) + 1


def test_a_newer_file_that_this_version_cannot_read_is_refused_with_the_fix(path: Path) -> None:
    fill(path)
    open_database(path, [*STEPS, Step(MORE.statements, readable_by=len(STEPS) + 1)]).close()
    before = path.read_bytes()
    with pytest.raises(EnvironmentFault, match="of a newer p2pnode") as refusal:
        open_database(path)
    assert str(path) in refusal.value.detail
    assert "start the newer p2pnode" in refusal.value.hint
    assert "is then lost" in refusal.value.hint
    assert path.read_bytes() == before


def test_a_step_that_fails_leaves_the_old_version_whole(path: Path) -> None:
    fill(path)
    half = Step(("CREATE TABLE half (a)", "CREATE TABLE meta (again)"), readable_by=1)
    with pytest.raises(EnvironmentFault):
        open_database(path, [*STEPS, MORE, half])
    assert version_of(path)[0] == len(STEPS) + 1
    assert "half" not in tables_of(path)


@pytest.mark.parametrize("version", [1, len(STEPS) + 1])
def test_killed_in_the_middle_of_a_migration_the_old_version_is_whole(path: Path, version: int) -> None:
    if version > 1:
        fill(path)
    command = [sys.executable, "-m", "tests.store.child", "migrate", str(path.parent), str(version)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            log = beside(path, "-wal")
            wait_until("the step has written a lot", lambda: log.exists() and log.stat().st_size > 4 << 20)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    open_database(path).close()
    assert version_of(path)[0] == len(STEPS)
    assert "slow" not in tables_of(path)
    assert count_of(path) == (50 if version > 1 else 0)
    open_database(path, [*STEPS, MORE]).close()
    assert version_of(path)[0] == len(STEPS) + 1


# -- refusals --------------------------------------------------------------------------


def test_an_empty_file_is_a_new_store_and_that_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.touch()
    with caplog.at_level(logging.WARNING):
        open_database(path).close()
    assert "empty file" in caplog.text
    assert version_of(path)[0] == len(STEPS)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_log_without_its_database_is_never_thrown_away(path: Path, is_there: bool) -> None:
    with killed_writer(path):
        pass
    log = beside(path, "-wal").read_bytes()
    assert log
    path.unlink()
    if is_there:
        path.touch()
    with pytest.raises(Damaged, match=r"missing|empty") as refusal:
        open_database(path)
    assert "move it and messages.db-wal aside" in refusal.value.hint
    assert beside(path, "-wal").read_bytes() == log


@contextmanager
def killed_writer(path: Path, count: int = 40) -> Iterator[None]:
    """A process that wrote `count` messages and was killed: they are in the log only."""
    path.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.store.child", "acknowledge", str(path.parent)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            for _ in range(count):
                process.stdout.readline()
        finally:
            process.kill()
    yield


@pytest.mark.parametrize(
    "content",
    [OTHER_HEAD, OTHER_HEAD * 200, b"SQLite format 3\0", b"SQLite format 3\0" + os.urandom(9000), b"\0" * 5000],
)
def test_what_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(EnvironmentFault) as refusal:
        open_database(path)
    assert str(path) in refusal.value.detail
    assert "aside" in refusal.value.hint or "move it away" in refusal.value.hint
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name)")
    before = path.read_bytes()
    with pytest.raises(EnvironmentFault, match="another program"):
        open_database(path)
    assert path.read_bytes() == before
    assert left_in(path.parent) == [DATABASE_NAME]


def test_a_directory_in_its_place_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(EnvironmentFault, match="is no file"):
        open_database(path)


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="No such file or directory"):
        open_database(tmp_path / "missing" / DATABASE_NAME)


def _lengths(size: int) -> Sequence[int]:
    near = [1, 15, 16, 20, 50, 99, 100, 511, 512, 1000, 4095, 4096, 4097, 8192, 12288]
    return [*near, *range(16384, size, 16384 + 1000), size - 4096, size - 1]


def test_truncated_at_any_length_it_is_refused_and_left_alone(path: Path) -> None:
    fill(path, 300)
    whole = path.read_bytes()
    for length in _lengths(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged) as refusal:
            open_database(path)
        assert str(path) in refusal.value.detail
        assert "p2pnode store check" in refusal.value.hint
        assert path.read_bytes() == whole[:length], f"after {length} bytes"
    path.write_bytes(whole)
    assert count_of(path) == 300


def test_truncated_under_a_log_it_is_refused_and_both_are_left_alone(path: Path) -> None:
    fill(path, 300)
    with killed_writer(path, 300):
        pass
    base, log = path.read_bytes(), beside(path, "-wal").read_bytes()
    for pages in (len(base) // 8192, len(base) // 4096 - 2):
        path.write_bytes(base[: -4096 * pages])
        for _ in range(2):
            with pytest.raises(Damaged, match=r"truncated|malformed"):
                open_database(path)
        assert path.read_bytes() == base[: -4096 * pages]
        assert beside(path, "-wal").read_bytes() == log
    path.write_bytes(base)
    assert count_of(path) >= 600


def test_killed_before_the_first_version_was_written_it_starts_anew(path: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with closing(sqlite3.connect(made, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE half (a)")
        connection.executemany("INSERT INTO half VALUES (?)", [(b"x" * 1000,)] * 1000)
        path.write_bytes(made.read_bytes())
        beside(path, "-journal").write_bytes(beside(made, "-journal").read_bytes())
    assert path.read_bytes()
    assert beside(path, "-journal").read_bytes()
    open_database(path).close()
    assert count_of(path) == 0


def test_a_log_that_was_cut_off_loses_its_end_only(path: Path, tmp_path: Path) -> None:
    """As after a power cut: transactions from the first incomplete one on are gone, and the store is in order."""
    with killed_writer(path, 200):
        pass
    base, log = path.read_bytes(), beside(path, "-wal").read_bytes()
    kept = []
    for number, length in enumerate(range(0, len(log), max(len(log) // 12, 1))):
        copy = tmp_path / str(number) / DATABASE_NAME
        copy.parent.mkdir()
        copy.write_bytes(base)
        beside(copy, "-wal").write_bytes(log[:length])
        kept.append(count_of(copy))
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


def test_pages_that_rot_are_noticed_when_they_are_read_and_the_rest_is_kept(path: Path) -> None:
    fill(path, 300)
    whole = path.read_bytes()
    pages = len(whole) // 4096
    path.write_bytes(whole[: 4096 * (pages // 2)] + b"\xff" * 4096 * 20 + whole[4096 * (pages // 2 + 20) :])

    async def read_all() -> list[str]:
        refused = []
        async with open_messages(path) as store:
            for number in range(1, 301):
                try:
                    await store.read([message_id(number)])
                except Damaged as fault:
                    refused.append(fault.detail)
        return refused

    refused = trio.run(read_all)
    assert 0 < len(refused) < 300
    assert all(str(path) in detail for detail in refused)


# -- in use ----------------------------------------------------------------------------


@contextmanager
def locked_by_another(path: Path) -> Iterator[subprocess.Popen[str]]:
    holder = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


async def test_locked_by_another_process_it_says_by_which_and_goes_on_afterwards(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pnode.store.database.BUSY_SECONDS", 0.05)
    async with open_messages(path) as store:
        await store.write([add(1)], full=True)
        with locked_by_another(path) as process:
            with pytest.raises(Locked, match="is locked by another process") as refusal:
                await store.write([add(2)], full=True)
            assert f"pid {process.pid} ({sys.executable}" in refusal.value.detail
            assert len((await store.load()).entries) == 1, "it is read all the same"
            with pytest.raises(Locked):
                open_database(path, [*STEPS, MORE])
        await store.write([add(2)], full=True)
        assert len((await store.load()).entries) == 2


@pytest.mark.parametrize("put", ["nothing", "another"])
async def test_a_file_that_is_taken_away_while_in_use_is_not_written_to_any_more(path: Path, put: str) -> None:
    async with open_messages(path) as store:
        await store.write([add(1)], full=True)
        aside = trio.Path(path.with_name("aside"))
        await trio.Path(path).rename(aside)
        if put == "another":
            await trio.Path(path).write_bytes(await aside.read_bytes())
        with pytest.raises(EnvironmentFault, match="removed" if put == "nothing" else "replaced"):
            await store.write([add(2)], full=True)
        await aside.rename(path)
        await store.write([add(2)], full=True)
