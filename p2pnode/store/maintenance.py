"""What an operator does to a store by hand: look whether it is whole, and give unused space back. Blocking; no trio."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from p2pnode.errors import EnvironmentFault, NotFound
from p2pnode.store.database import connect, identify, refuse_truncated
from p2pnode.store.faults import Damaged, beside, code_of, fault_of, size_of, translated
from p2pnode.store.lock import locked_data_dir
from p2pnode.store.schema import LAST_ARRIVAL

MAX_PROBLEMS: Final = 100

_TABLES: Final = ("messages", "outbox", "remembered", "subscriptions", "dead_letters")

Judge = Callable[[bytes, bytes], str]
"""What is wrong with a message, by its id and its signed bytes; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found.

    Args:
        version: of the file; 0: it is new and holds nothing.
        readable_by: the lowest version of a program that may use it.
        problems: one line each, at most MAX_PROBLEMS; empty: the store is whole.
        counts: rows by table, `held_back` (messages without an arrival yet) and `dead_letters` among them.
        topics: messages by topic.
        last_arrival: the highest arrival number ever given.
        file_bytes: of the database.
        log_bytes: of the write-ahead log beside it.
        unused_bytes: in the database, reused by what comes; `compact` gives them back.
    """

    version: int = 0
    readable_by: int = 0
    problems: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    topics: Mapping[str, int] = field(default_factory=dict)
    last_arrival: int = 0
    file_bytes: int = 0
    log_bytes: int = 0
    unused_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Compaction:
    """Bytes of the database and its log, before and after."""

    before: int
    after: int


def check(path: Path, judge: Judge | None = None) -> Report:
    """Read all of a store, beside a running sidecar too; nothing is changed.

    It reads one moment's state; a running sidecar goes on writing, and its log grows until the check is done.

    Args:
        judge: asked of each message: signatures, for one.

    Raises:
        NotFound: there is no store.
        EnvironmentFault: it is another program's or a newer one's, locked, or cannot be read.
    """
    _refuse_missing(path)
    sizes = {"file_bytes": size_of(path), "log_bytes": size_of(beside(path, "-wal"))}
    problems: list[str] = []
    found: dict[str, object] = {}
    if sizes["log_bytes"] and not sizes["file_bytes"]:
        problems.append(f"the file is empty, and what was written last lies in {path.name}-wal")
        return Report(problems=problems, file_bytes=0, log_bytes=sizes["log_bytes"])
    try:
        with closing(_open_to_read(path)) as connection:
            connection.execute("BEGIN")
            versions = identify(connection, path)
            found = {"version": versions.version, "readable_by": versions.readable_by}
            refuse_truncated(connection, path)
            for problem in _problems(connection, versions.version, judge):
                problems.append(problem)
                if len(problems) >= MAX_PROBLEMS:
                    break
            if versions.version:
                found |= _figures(connection)
    except Damaged as error:
        problems.append(error.detail)
    except (sqlite3.Error, OSError) as error:
        fault = fault_of(error, path)
        if not isinstance(fault, Damaged):
            raise fault from error
        problems.append(str(error))
    return Report(problems=problems, **found, **sizes)  # type: ignore[arg-type]


def compact(path: Path) -> Compaction:
    """Write the store anew without unused space, and give that back to the disk.

    It needs room for a second copy in the directory of temporary files (`SQLITE_TMPDIR`, `TMPDIR`, `/var/tmp`, `/tmp`)
    and for a third beside the database. Killed in the middle, it leaves the store as it was.

    Raises:
        NotFound: there is no store.
        StorageFull: not enough room; the store is as it was.
        EnvironmentFault: a sidecar uses it, or it is damaged or not ours.
    """
    _refuse_missing(path)
    with _alone(path), translated(path):
        before = size_of(path) + size_of(beside(path, "-wal"))
        with closing(connect(path, "rw")) as connection:
            identify(connection, path)
            refuse_truncated(connection, path)
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return Compaction(before, size_of(path) + size_of(beside(path, "-wal")))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    held = False
    try:
        with locked_data_dir(path.parent):
            held = True
            yield
    except EnvironmentFault as fault:
        if held:
            raise
        raise EnvironmentFault(fault.detail, hint="stop the sidecar that uses this store first") from fault


def _refuse_missing(path: Path) -> None:
    with translated(path):
        if not path.exists() and not size_of(beside(path, "-wal")):
            raise NotFound(
                f"there is no message store at {path}",
                hint="no sidecar has kept messages there yet, or its data directory is another: see --data-dir",
            )


def _open_to_read(path: Path) -> sqlite3.Connection:
    try:
        return connect(path, "ro")
    except sqlite3.Error as error:
        # Without a log nobody has it open, and where its index cannot be made nobody can open it meanwhile.
        if code_of(error) == sqlite3.SQLITE_CANTOPEN and path.exists() and not size_of(beside(path, "-wal")):
            return connect(path, "immutable")
        raise


def _problems(connection: sqlite3.Connection, version: int, judge: Judge | None) -> Iterator[str]:
    for (line,) in connection.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})"):
        if line != "ok":
            yield str(line)
    if not version:
        return
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} refers to a row of {parent} that is not there"
    (highest,) = connection.execute("SELECT ifnull(max(arrival), 0) FROM messages").fetchone()
    (last,) = connection.execute("SELECT value FROM meta WHERE key = ?", (LAST_ARRIVAL,)).fetchone() or (0,)
    if highest > last:
        yield f"arrival {highest} is in use, and the last one given is noted as {last}"
    for id, size, digest, raw in connection.execute(
        "SELECT id, size, digest, raw FROM messages LEFT JOIN bodies ON message = number"
    ):
        if raw is None:
            yield f"message {_name(id)} has no bytes"
        elif len(raw) != size or hashlib.sha256(raw).digest()[: len(digest)] != digest:
            yield f"the bytes of message {_name(id)} are not those that were stored"
        elif judge is not None and (wrong := judge(id, raw)):
            yield f"message {_name(id)}: {wrong}"


def _figures(connection: sqlite3.Connection) -> dict[str, object]:
    counts = {
        table: int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # fixed names
        for table in _TABLES
    }
    counts["held_back"] = connection.execute("SELECT count(*) FROM messages WHERE arrival IS NULL").fetchone()[0]
    topics = connection.execute(
        "SELECT name, count(*) FROM messages JOIN topics ON topics.number = topic GROUP BY name ORDER BY name"
    ).fetchall()
    (last,) = connection.execute("SELECT value FROM meta WHERE key = ?", (LAST_ARRIVAL,)).fetchone()
    (unused,) = connection.execute("PRAGMA freelist_count").fetchone()
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    return {"counts": counts, "topics": dict(topics), "last_arrival": last, "unused_bytes": unused * page}


def _name(message_id: bytes) -> str:
    from p2pnode.core.message import format_message_id
    from p2pnode.errors import InvalidMessage

    try:
        return format_message_id(message_id)
    except InvalidMessage:
        return message_id.hex()
