"""The ceiling of used sequence numbers, in a file of its own."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from p2pnode.errors import EnvironmentFault, InvalidRequest

_MAX_DIGITS = 19
"""Of a time in nanoseconds; what has more fits no sequence number."""


class SeqnoFile:
    """`ports.SeqnoStore` as one small file, replaced atomically and synced.

    Raises:
        InvalidRequest: the file holds something else than a number.
        EnvironmentFault: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.load()

    def load(self) -> int:
        try:
            text = self._path.read_text("ascii", errors="replace").strip()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise EnvironmentFault(f"cannot read {self._path}: {error.strerror}") from error
        if not text.isdecimal() or len(text) > _MAX_DIGITS:
            raise InvalidRequest(
                f"{self._path} should hold one number and holds {text[:40]!r}",
                hint="remove it; the next sequence number is then taken from the clock",
            )
        return int(text)

    async def reserve(self, ceiling: int) -> None:
        await trio.to_thread.run_sync(self._write, ceiling)

    def _write(self, ceiling: int) -> None:
        scratch = self._path.with_name(self._path.name + ".new")
        try:
            with open(scratch, "w", encoding="ascii") as file:
                file.write(f"{ceiling}\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)  # else a power cut brings the old ceiling back
            finally:
                os.close(directory)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot write {self._path}: {error.strerror}", hint="free space there or fix its permissions"
            ) from error
