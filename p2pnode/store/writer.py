"""The one connection that writes: groups of calls become transactions, and a failure leaves it fit for the next.

All here blocks; one thread at a time.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from p2pnode import ports
from p2pnode.errors import EnvironmentFault, StorageFull
from p2pnode.store.database import PAGE_BYTES, connect, identify, open_database
from p2pnode.store.faults import ERRORS, code_of, fault_of, size_of
from p2pnode.store.reserve import Reserve
from p2pnode.store.rows import Changes

log = logging.getLogger(__name__)

_TAKING_SPACE: Final = (ports.Add, ports.Remember, ports.Subscribe, ports.Bury)
"""These may not use the reserve."""

SCARCE_BYTES: Final = 64 << 20
"""With less than that free on the disk, it is watched that what is in the log finds room in the file."""

_UNBOUND: Final = 1_073_741_823
"""SQLite's own limit, for versions before 3.45."""

_LEAST_LOG_PAGES: Final = 100

_LEVEL_AT_FIRST: Final = "FULL"
"""`PRAGMA synchronous` of a connection from `connect`."""

_OF_ONE_CALL: Final = frozenset(
    {0, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_TOOBIG}
)
"""Result codes that the values of a call lead to; 0: Python refused them before SQLite saw them."""

_LOSES_CONNECTION: Final = frozenset(
    {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""After these the connection is opened anew: what it remembers of the file may be wrong."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of `write` in a group.

    Args:
        changes: what it wants done.
        full: durable against a power cut.
        fault: what became of it; None: it is committed.
    """

    changes: Sequence[ports.Change]
    full: bool
    fault: EnvironmentFault | None = field(default=None, init=False)

    @property
    def weight(self) -> int:
        """Bytes of messages in it."""
        return sum(len(change.raw) for change in self.changes if isinstance(change, ports.Add))


@dataclass(frozen=True, slots=True)
class _Failure:
    """Args: of_one_call: another call of the group may succeed."""

    fault: EnvironmentFault
    of_one_call: bool


class Writer:
    """Commits groups of calls.

    Args:
        path: the database; made or migrated when need be.

    Raises:
        EnvironmentFault, StorageFull: as `open_database`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reserve = Reserve(path)
        self._connection: sqlite3.Connection | None = self._first()
        self._changes = Changes(self._connection)
        self._level = _LEVEL_AT_FIRST
        self._most_pages = _UNBOUND
        self.transactions = 0
        found = path.stat()
        self._place = (found.st_dev, found.st_ino)
        self._reserve.fill()

    def _first(self) -> sqlite3.Connection:
        try:
            return open_database(self._path)
        except StorageFull:
            if not self._reserve.release():
                raise
            return open_database(self._path)

    def commit(self, calls: Sequence[Call]) -> None:
        """All of them in one transaction; if that fails, each in its own, so that a bad one fails alone.

        Nothing is raised: each call gets its own fault.
        """
        failure = self._try(calls)
        if failure is None:
            return
        for call in calls:
            if failure is None or failure.of_one_call:
                failure = self._alone(call)
            if failure is not None:
                # A new one for each: an exception that several tasks raise gathers the tracebacks of all.
                call.fault = type(failure.fault)(failure.fault.detail, hint=failure.fault.hint)
                call.fault.__cause__ = failure.fault.__cause__

    def close(self) -> None:
        """Bring the log into the database and let go of both."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            # All of it is in the log, and the next start reads that.
            log.warning("the message store was closed as it is", extra={"path": str(self._path), "reason": str(error)})
        finally:
            connection.close()

    def _try(self, calls: Sequence[Call]) -> _Failure | None:
        try:
            self._transaction(calls)
        except EnvironmentFault as error:
            return _Failure(error, of_one_call=False)
        except ERRORS as error:
            fault = fault_of(error, self._path)  # before anything is closed, which changes sizes
            fault.__cause__ = error
            self._recover(error)
            return _Failure(fault, isinstance(fault, StorageFull) or code_of(error) in _OF_ONE_CALL)
        return None

    def _alone(self, call: Call) -> _Failure | None:
        failure = self._try([call])
        if failure is None or not isinstance(failure.fault, StorageFull):
            return failure
        # A checkpoint alone may make room: then the log is written anew from its beginning.
        self._checkpoint()
        failure = self._try([call])
        if failure is None or any(isinstance(change, _TAKING_SPACE) for change in call.changes):
            return failure
        if released := self._reserve.release():
            failure = self._try([call])
            self._checkpoint()
            self._reserve.retake(released)
        return failure

    def _checkpoint(self) -> None:
        with suppress(EnvironmentFault, *ERRORS):
            self._open().execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def _transaction(self, calls: Sequence[Call]) -> None:
        connection = self._open()
        level = "FULL" if any(call.full for call in calls) else "NORMAL"
        if level != self._level:
            connection.execute(f"PRAGMA synchronous={level}")
            self._level = level
        self._bound_growth(connection)
        connection.execute("BEGIN IMMEDIATE")
        for call in calls:
            self._changes.apply(call.changes)
        self._changes.finish()
        connection.execute("COMMIT")
        self.transactions += 1
        self._reserve.fill()

    def _bound_growth(self, connection: sqlite3.Connection) -> None:
        """Keep the file from growing, in the log, to what it could not be brought to on the disk."""
        free = self._reserve.free()
        wanted = _UNBOUND if free >= SCARCE_BYTES else (size_of(self._path) + free // 2) // PAGE_BYTES
        if wanted != self._most_pages:
            connection.execute(f"PRAGMA max_page_count={wanted}").fetchall()
            # The log may hold new pages for half of the reserve, which so pays for bringing them home.
            log_pages = min(1000, max(self._reserve.size() // (2 * PAGE_BYTES), _LEAST_LOG_PAGES))
            connection.execute(f"PRAGMA wal_autocheckpoint={log_pages}").fetchall()
            self._most_pages = wanted

    def _open(self) -> sqlite3.Connection:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._place:
            raise EnvironmentFault(
                f"the message store {self._path} was {'removed' if found is None else 'replaced'} while it was in use",
                hint="nothing more is stored: put the file back, or start the node anew with what is there",
            )
        if self._connection is None:
            connection = connect(self._path, "rw")
            try:
                identify(connection, self._path)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self._changes = Changes(connection)
            self._level = _LEVEL_AT_FIRST
            self._most_pages = _UNBOUND
        return self._connection

    def _recover(self, error: BaseException) -> None:
        self._changes.forget()
        connection = self._connection
        if connection is None:
            return
        lost = code_of(error) in _LOSES_CONNECTION
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            lost = True
        if lost:
            self._connection = None
            with suppress(sqlite3.Error):
                connection.close()
