"""How full the disk under the data directory is, and whether it can be written. Blocking; imports no trio."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from p2pnode.core.facts import Disk

PROBE_BYTES = 4096
"""One block: an empty file can often be made on a full disk."""


def look_at_disk(directory: Path) -> Disk:
    """Free space there, and the result of writing one block to a file that is gone afterwards."""
    try:
        found = os.statvfs(directory)
    except OSError as error:
        return Disk(str(directory), 0, 0, _words(error))
    problem = ""
    try:
        # Without a name from the start where the file system can (O_TMPFILE): nothing is left if we are killed here.
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(b"\0" * PROBE_BYTES)
            os.fsync(file.fileno())
    except OSError as error:
        problem = _words(error)
    return Disk(str(directory), found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, problem)


def _words(error: OSError) -> str:
    return error.strerror or str(error)
