"""Space set aside, so that on a full disk the node can still forget, and note what its agent handled. Blocking."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from p2pnode.store.faults import beside

log = logging.getLogger(__name__)

RESERVE_BYTES: Final = 8 << 20
"""More than the log grows between two checkpoints (1,000 pages) and by a large transaction together."""

SHARE: Final = 8
"""At most that part of the free space is taken: an eighth."""

LEAST_BYTES: Final = 256 << 10
"""Less would not help."""


class Reserve:
    """A file of nothing beside the database, given up when the disk is full and taken again at once.

    So what is new never gets this space, and its absence is only what the calls that may use it have used.

    Args:
        path: the database.
    """

    def __init__(self, path: Path) -> None:
        self._path = beside(path, "-reserve")

    def size(self) -> int:
        """In bytes; 0: there is none."""
        with suppress(OSError):
            return self._path.stat().st_size
        return 0

    def fill(self) -> None:
        """Make it as large as it should be, if there is plenty of space; that there is none is no error."""
        size = self.size()
        if size < RESERVE_BYTES:
            self._take(max(size, min(RESERVE_BYTES, self.free() // SHARE)))

    def release(self) -> int:
        """Give the space up: how many bytes; 0 when there were none."""
        size = self.size()
        try:
            self._path.unlink()
        except OSError:
            return 0
        log.info("the disk is full: using the reserve", extra={"path": str(self._path), "bytes": size})
        return size

    def retake(self, size: int) -> None:
        """After `release`: take back what is left of it."""
        self._take(min(size, self.free() + self.size()))

    def free(self) -> int:
        """Bytes free on that disk, as far as this user may have them."""
        with suppress(OSError):
            found = os.statvfs(self._path.parent)
            return found.f_bavail * found.f_frsize
        return 0

    def _take(self, size: int) -> None:
        if size < LEAST_BYTES or size <= self.size():
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            # Somebody else was faster, or the file system cannot do it; what was got of it stays.
            log.debug("no reserve", extra={"path": str(self._path), "reason": str(error)})
