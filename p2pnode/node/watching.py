"""Whoever follows councils: each gets the newest state of what changed, however slowly it reads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import trio

from p2pnode.core.council.table import MAX_COUNCILS
from p2pnode.ports import JsonObject

TOGETHER_SECONDS = 0.02
"""Changes that come so close together are one step."""


class Watchers:
    """
    Args:
        document: the document of a council id; None when it is known no more.
        stopping: set when the node goes away; watchers end.
    """

    def __init__(self, document: Callable[[str], JsonObject | None], stopping: trio.Event) -> None:
        self._document = document
        self._stopping = stopping
        self._all: set[_Watcher] = set()

    def __len__(self) -> int:
        return len(self._all)

    def changed(self, council_id: str) -> None:
        for watcher in self._all:
            watcher.tell(council_id)
            if len(watcher.fresh) > 2 * MAX_COUNCILS:
                watcher.fresh = {each: None for each in watcher.fresh if self._document(each) is not None}

    @asynccontextmanager
    async def watch(self, council_id: str | None, known: Iterable[str]) -> AsyncIterator[AsyncIterator[JsonObject]]:
        """Of one council or of all (None), beginning with those of `known` that it is about."""
        watcher = _Watcher(council_id)
        for each in known:
            watcher.tell(each)
        self._all.add(watcher)
        steps = self._steps(watcher)
        try:
            yield steps
        finally:
            self._all.discard(watcher)
            await steps.aclose()

    async def _steps(self, watcher: _Watcher) -> AsyncGenerator[JsonObject, None]:
        while not self._stopping.is_set():
            while watcher.fresh:
                council_id = next(iter(watcher.fresh))
                del watcher.fresh[council_id]
                if (document := self._document(council_id)) is not None:
                    yield document
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with_us, nursery)
                await watcher.wait()
                await trio.sleep(TOGETHER_SECONDS)
                nursery.cancel_scope.cancel()

    async def _end_with_us(self, nursery: trio.Nursery) -> None:
        await self._stopping.wait()
        nursery.cancel_scope.cancel()


class _Watcher:
    """What one reader has not been given yet: at most each council once."""

    def __init__(self, council_id: str | None) -> None:
        self._council_id = council_id
        self.fresh: dict[str, None] = {}
        self._wake = trio.Event()

    def tell(self, council_id: str) -> None:
        if self._council_id in (None, council_id):
            self.fresh[council_id] = None
            self._wake.set()

    async def wait(self) -> None:
        await self._wake.wait()
        self._wake = trio.Event()
