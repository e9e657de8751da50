"""One process per data directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pnode.errors import EnvironmentFault


@contextmanager
def locked_data_dir(path: Path) -> Iterator[Path]:
    """Make the directory if need be and hold it alone; the kernel lets go when the process ends.

    Raises:
        EnvironmentFault: it cannot be made or written, or another process holds it.
    """
    lock = path / "lock"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot use the data directory {path}: {error.strerror}",
            hint="choose one that this user can write with --data-dir",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise EnvironmentFault(
                f"the data directory {path} is in use by another p2pnode{f' (pid {holder})' if holder else ''}",
                hint="give this one its own with --data-dir, or stop the other",
            ) from error
        except OSError as error:
            raise EnvironmentFault(
                f"cannot lock the data directory {path}: {error.strerror}",
                hint="choose one on a file system that has locks with --data-dir",
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot write in the data directory {path}: {error.strerror}", hint="free space there"
            ) from error
        yield path
    finally:
        os.close(descriptor)
