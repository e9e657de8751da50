"""Sequence numbers that never repeat, over restarts and clock steps."""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pnode.ports import SeqnoStore

RESERVE_NS = 10_000_000_000
"""Numbers reserved at once: ten seconds of the clock they follow, so one write in ten seconds at most."""


class SeqnoSource:
    """`max(wall clock in ns, stored ceiling + 1)`, reserved in blocks (architecture, decision 1).

    Args:
        store: keeps the ceiling; every number handed out lies at or below a stored one.
        wall_ns: the wall clock.
    """

    def __init__(self, store: SeqnoStore, wall_ns: Callable[[], int]) -> None:
        self._store = store
        self._wall_ns = wall_ns
        self._ceiling = store.load()
        self._last = self._ceiling
        self._turn = trio.StrictFIFOLock()

    async def take(self) -> int:
        """The next number.

        Raises:
            EnvironmentFault: the ceiling could not be stored; no number was taken.
        """
        async with self._turn:  # messages and records are numbered from here, each in its own turn
            number = max(self._wall_ns(), self._last + 1)
            if number > self._ceiling:
                await self._store.reserve(number + RESERVE_NS)
                self._ceiling = number + RESERVE_NS
            self._last = number
            return number
