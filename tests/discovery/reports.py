"""A source run for a test, and what it reported."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from p2pnode.ports import Source, SourceReport

PATIENCE_SECONDS = 60.0
"""Far beyond what anything here takes: a test that reaches it has failed."""


@dataclass
class Reports:
    """What a source said so far."""

    all: list[SourceReport] = field(default_factory=list)
    _news: trio.Event = field(default_factory=trio.Event)

    def __call__(self, report: SourceReport) -> None:
        self.all.append(report)
        self._news.set()
        self._news = trio.Event()

    async def until(self, good: Callable[[SourceReport], bool]) -> SourceReport:
        """The newest report once it is `good`; reports to come count, and the last one so far."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not (self.all and good(self.all[-1])):
                await self._news.wait()
        return self.all[-1]

    async def next(self) -> SourceReport:
        """The next report that comes."""
        with trio.fail_after(PATIENCE_SECONDS):
            await self._news.wait()
        return self.all[-1]

    async def first(self) -> SourceReport:
        return await self.until(lambda _: True)


@asynccontextmanager
async def running(source: Source) -> AsyncIterator[Reports]:
    reports = Reports()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run, reports)
        yield reports
        nursery.cancel_scope.cancel()


def addrs(report: SourceReport) -> list[str]:
    return [place.addr for place in report.places]


def codes(report: SourceReport) -> list[str]:
    return [trouble.code for trouble in report.troubles]
