"""What SQLite says, in words of ours: what is wrong, in which file, and what to do."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from p2pnode.errors import EnvironmentFault, StorageFull
from p2pnode.local.holders import command_of

BUSY_SECONDS: Final = 5.0
"""How long a lock of another process is waited for."""

ERRORS: Final = (sqlite3.Error, sqlite3.Warning, OSError, OverflowError, ValueError, TypeError, MemoryError)
"""All that a call of sqlite3 with values from outside can raise."""

LOST: Final = (
    "what it held is then lost here: own messages that no other node has yet, cursors of subscriptions, dead letters "
    "and idempotency keys; messages that neighbours still keep come back by sync"
)

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PROBE_BYTES: Final = 4096


def beside(path: Path, suffix: str) -> Path:
    """A file that SQLite or we keep next to the database, as `messages.db-wal`."""
    return path.with_name(path.name + suffix)


def size_of(path: Path) -> int:
    """In bytes; 0 when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Damaged(EnvironmentFault):
    """The file is there and is not, or no longer, a message store that can be used; it is left as it is."""


class Locked(EnvironmentFault):
    """Another process held the database for longer than BUSY_SECONDS."""


def damaged(path: Path, reason: str) -> Damaged:
    return Damaged(
        f"the message store {path} is damaged: {reason}",
        hint=f"`p2pnode store check --data-dir {path.parent}` tells more. Restore it from a backup, or move it and "
        f"{path.name}-wal aside to start with an empty one: {LOST}",
    )


def locked(path: Path) -> Locked:
    holders = ", ".join(f"pid {pid} ({command_of(pid) or 'unknown'})" for pid in _writers(path))
    return Locked(
        f"the message store {path} is locked by another process{f': {holders}' if holders else ''}",
        hint="end it, or let it finish; nothing else may write to the data directory of a running node",
    )


def storage_full(path: Path, why: str = "") -> StorageFull:
    """`why`: in place of the plain fact that the disk has no room."""
    free = "unknown"
    try:
        found = os.statvfs(path.parent)
        free = f"{found.f_bavail * found.f_frsize:,}"
    except OSError:
        pass
    return StorageFull(
        f"no space to store anything in {path}: {why or 'the disk is full'} ({free} bytes free on it)",
        hint="free space there, or keep fewer messages; what is stored is kept, and storing goes on once there is room",
    )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what the block raises of `ERRORS` into `fault_of` it."""
    try:
        yield
    except ERRORS as error:
        raise fault_of(error, path) from error


def fault_of(error: BaseException, path: Path) -> EnvironmentFault:
    """The fault to raise for an error of `ERRORS` that using the database `path` raised."""
    if isinstance(error, OSError):
        if error.errno in _NO_SPACE:
            return storage_full(path)
        return EnvironmentFault(
            f"the message store {path} cannot be used: {error.strerror}", hint="make it readable and writable for us"
        )
    code = code_of(error)
    if code == sqlite3.SQLITE_FULL:
        return storage_full(path)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return locked(path)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return _of_the_disk(error, path)
    if isinstance(error, MemoryError) or code == sqlite3.SQLITE_NOMEM:
        return EnvironmentFault(f"no memory left to use the message store {path}", hint="give this process more")
    return EnvironmentFault(f"the message store {path} refused it: {error}")


def code_of(error: BaseException) -> int:
    """SQLite's primary result code; 0 when there is none (sqlite.org/rescode.html)."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _of_the_disk(error: BaseException, path: Path) -> EnvironmentFault:
    # SQLite keeps errno to itself, and calls only ENOSPC full: a quota and a limit on file sizes are I/O errors to it.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    largest = max(size_of(path), size_of(beside(path, "-wal")))
    if limit != resource.RLIM_INFINITY and largest + 2 * _PROBE_BYTES > limit:
        return storage_full(path, f"this process may make no file over {limit:,} bytes (ulimit -f)")
    problem = _try_to_write(path.parent)
    if problem is not None and problem.errno in _NO_SPACE:
        return storage_full(path, problem.strerror or "")
    told = f"{error}" if problem is None else f"{error}; {problem.strerror}"
    name = getattr(error, "sqlite_errorname", "")
    if problem is None and code_of(error) == sqlite3.SQLITE_IOERR:
        hint = "look for errors of that disk in the kernel's log, and make a backup"
    else:
        hint = "its file and directory must be there, and readable and writable for this user"
    return EnvironmentFault(f"the message store {path} cannot be used: {told} ({name})", hint=hint)


def _try_to_write(directory: Path) -> OSError | None:
    """What writing a block there fails with."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(b"\0" * _PROBE_BYTES)
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _writers(path: Path) -> list[int]:
    """Other processes that hold a write lock on the database or its index (proc(5), `/proc/locks`)."""
    inodes = set()
    for file in (path, beside(path, "-shm")):
        try:
            inodes.add(str(file.stat().st_ino))
        except OSError:
            continue
    try:
        lines = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return []
    pids = set()
    for line in lines:
        # `1: POSIX  ADVISORY  WRITE 1234 08:01:131090 120 120`; who waits for a lock has `->` before the kind.
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "POSIX" and fields[3] == "WRITE":
            if fields[5].rpartition(":")[2] in inodes and int(fields[4]) not in (0, -1, os.getpid()):
                pids.add(int(fields[4]))
    return sorted(pids)
