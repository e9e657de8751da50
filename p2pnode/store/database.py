"""Opening the message store's file: what it must be, how it is set up, and how an older one is brought up to date.

All here blocks. No file is ever replaced: what cannot be used is refused with what to do.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from p2pnode.errors import EnvironmentFault
from p2pnode.store.faults import BUSY_SECONDS, LOST, beside, damaged, size_of, translated
from p2pnode.store.schema import APPLICATION_ID, READABLE_BY, STEPS, Step

log = logging.getLogger(__name__)

DATABASE_NAME: Final = "messages.db"
"""In the data directory."""

KEPT_WAL_BYTES: Final = 16 << 20
"""To what the write-ahead log is cut back after it had to grow; it is reused, so a full disk leaves us that much."""

PAGE_BYTES: Final = 4096

_HEADER_BYTES: Final = 100
_WAL_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class Versions:
    """Of a file.

    Args:
        version: how many migrations it has behind it; 0: it is new.
        readable_by: the lowest version of a program that may use it.
    """

    version: int
    readable_by: int


def open_database(path: Path, steps: Sequence[Step] = STEPS) -> sqlite3.Connection:
    """A connection to write with, to a file of this version or one that this version may use; made when missing.

    Raises:
        Damaged: it is truncated or corrupt; a later read or write may find what this cheap look did not.
        StorageFull: no space to make or migrate it.
        EnvironmentFault: it is another program's or a newer one's, locked, or cannot be read and written.
    """
    with translated(path):
        _prepare(path)
        _examine(path, len(steps))
        connection = connect(path, "rw")
        try:
            versions = identify(connection, path, len(steps))
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                raise EnvironmentFault(
                    f"the file system of {path} has no shared memory between processes, which the message store needs",
                    hint="choose a data directory on a local disk with --data-dir",
                )
            _migrate(connection, versions.version, steps)
        except BaseException:
            connection.close()
            raise
        return connection


def connect(path: Path, mode: Literal["ro", "rw", "immutable"]) -> sqlite3.Connection:
    """A connection to a file that exists, set up as all of ours are; it may be used in any thread, one at a time.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    how = "immutable=1" if mode == "immutable" else f"mode={mode}"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for setting in (
            f"page_size={PAGE_BYTES}",  # of a new file; an old one keeps its own
            "foreign_keys=ON",
            "synchronous=FULL",
            "trusted_schema=OFF",
            "cell_size_check=ON",
            # Some builds overwrite what is deleted, which costs writes just when the disk is full.
            "secure_delete=OFF",
            f"journal_size_limit={KEPT_WAL_BYTES}",
        ):
            connection.execute(f"PRAGMA {setting}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def identify(connection: sqlite3.Connection, path: Path, ours: int = len(STEPS)) -> Versions:
    """Whose file it is and of which version.

    Args:
        ours: the version of this program.

    Raises:
        EnvironmentFault: another program's, or of a version that this one cannot use.
        sqlite3.Error: it cannot be read, or is no database.
    """
    application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    if application != APPLICATION_ID:
        if application == version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            return Versions(0, 0)
        raise EnvironmentFault(
            f"{path} is the database of another program and not a message store",
            hint="move it away, or choose another data directory with --data-dir",
        )
    (readable_by,) = connection.execute("SELECT value FROM meta WHERE key = ?", (READABLE_BY,)).fetchone() or (version,)
    if version > ours and readable_by > ours:
        raise EnvironmentFault(
            f"the message store {path} has version {version}, of a newer p2pnode; this one knows {ours}, and it takes "
            f"at least {readable_by}",
            hint=f"start the newer p2pnode, or move the file aside to start with an empty one: {LOST}",
        )
    return Versions(version, readable_by)


def refuse_truncated(connection: sqlite3.Connection, path: Path) -> None:
    """Pages that are missing in the file must be in the write-ahead log.

    Raises:
        Damaged: more are missing.
        sqlite3.Error: it cannot be read.
    """
    page = _pragma(connection, "page_size")
    there, due = size_of(path) // page, _pragma(connection, "page_count")
    if there < due and not _pages_in_log(path, page).issuperset(range(there + 1, due + 1)):
        raise damaged(path, f"the file is truncated: {(due - there) * page:,} bytes are missing at its end")


def _pages_in_log(path: Path, page: int) -> set[int]:
    """Numbers of the pages that the write-ahead log holds (sqlite.org/fileformat2.html, section 4.1)."""
    pages = set()
    try:
        with open(beside(path, "-wal"), "rb") as log:
            salt = log.read(_WAL_HEADER_BYTES)[16:24]
            while len(frame := log.read(_FRAME_HEADER_BYTES)) == _FRAME_HEADER_BYTES and frame[8:16] == salt:
                pages.add(int.from_bytes(frame[:4], "big"))
                log.seek(page, os.SEEK_CUR)
    except FileNotFoundError:
        pass
    return pages


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _prepare(path: Path) -> None:
    """Refuse what SQLite would silently overwrite, and make the file when it is missing.

    The file is never opened here: to close it would drop the locks that SQLite holds on it in this process.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        found = None
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise EnvironmentFault(f"{path} is no file, and the message store belongs there", hint="move it away")
    if found is None or found.st_size == 0:
        if size_of(beside(path, "-wal")):
            # SQLite would delete the log, and with it the last that was acknowledged.
            what = "missing" if found is None else "empty"
            raise damaged(path, f"the file is {what}, and what was written last lies in {path.name}-wal")
        if found is not None:
            log.warning("the message store is an empty file, starting a new one", extra={"path": str(path)})
            return
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    elif found.st_size < _HEADER_BYTES:
        # SQLite takes a file of one byte for an empty one.
        raise damaged(path, f"the file is truncated: it has {found.st_size} bytes")


def _examine(path: Path, ours: int) -> None:
    """Refuse what must not be touched.

    By a connection that only reads: one that may write brings the log into the file when it is closed.
    """
    if not size_of(path):
        return
    try:
        with closing(connect(path, "ro")) as connection:
            identify(connection, path, ours)
            refuse_truncated(connection, path)
    except sqlite3.OperationalError as error:
        # Killed when it was made: who may write rolls that back.
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise


def _migrate(connection: sqlite3.Connection, version: int, steps: Sequence[Step]) -> None:
    for number, step in enumerate(steps[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in step.statements:
            connection.execute(statement)
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (READABLE_BY, step.readable_by))
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={number}")
        connection.execute("COMMIT")
