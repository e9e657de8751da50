"""`ports.MessageStore` in SQLite: writes in groups, off the event loop; reads on a connection of their own."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

from p2pnode.core.message import MessageId
from p2pnode.errors import EnvironmentFault
from p2pnode.ports import Change, Contents
from p2pnode.store import rows
from p2pnode.store.database import connect
from p2pnode.store.faults import ERRORS, fault_of
from p2pnode.store.writer import Call, Writer

T = TypeVar("T")

MAX_GROUP_CALLS: Final = 512
MAX_GROUP_BYTES: Final = 4 << 20
"""Of messages in one transaction; one call may be larger by itself."""

MAX_WAITING: Final = 1024
"""Calls that wait for the writer; a further one waits for its place, and its changes are its caller's to bound."""


@asynccontextmanager
async def open_messages(path: Path) -> AsyncIterator[SqliteMessages]:
    """The message store at `path`, made or migrated when need be.

    At the end of the block what waits to be written is written, also when the block is cancelled.

    Raises:
        StorageFull: no space to make or migrate it.
        EnvironmentFault: the file is damaged, another program's, a newer program's, locked or not accessible; it is
            left as it is, and the hint says what to do.
    """
    writer = await trio.to_thread.run_sync(Writer, path)
    store = SqliteMessages(path, writer)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store._run)
            try:
                yield store
            finally:
                store._queue.close()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store._close)


class SqliteMessages:
    """A `ports.MessageStore`, made by `open_messages`.

    A call of `write` that is cancelled may be committed all the same. A failed one leaves nothing, and the next one
    finds the store in order: there is nothing to reopen after a disk was full or a lock was held.
    """

    def __init__(self, path: Path, writer: Writer) -> None:
        self._path = path
        self._writer = writer
        self._reader: sqlite3.Connection | None = None
        # Own limiters: threads of others that hang, in the resolver for one, must not hold up a commit.
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(1)
        self._queue, self._waiting = trio.open_memory_channel[tuple[Call, trio.Event]](MAX_WAITING)

    @property
    def transactions(self) -> int:
        """How many were committed."""
        return self._writer.transactions

    async def load(self) -> Contents:
        return await self._read(rows.contents)

    async def write(self, changes: Sequence[Change], *, full: bool) -> None:
        if not changes:
            await trio.lowlevel.checkpoint()
            return
        call, done = Call(changes, full), trio.Event()
        try:
            await self._queue.send((call, done))
        except trio.ClosedResourceError:
            raise EnvironmentFault(f"the message store {self._path} is closed") from None
        await done.wait()
        if call.fault is not None:
            raise call.fault

    async def read(self, ids: Sequence[MessageId]) -> Mapping[MessageId, bytes]:
        return await self._read(lambda connection: rows.bodies(connection, ids))

    async def _read(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        def asked() -> T:
            try:
                if self._reader is None:
                    self._reader = connect(self._path, "ro")
                return ask(self._reader)
            except ERRORS as error:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
                raise fault_of(error, self._path) from error

        return await trio.to_thread.run_sync(asked, limiter=self._reading)

    async def _run(self) -> None:
        # Shielded: what was taken on is finished. It ends when the queue is closed.
        with trio.CancelScope(shield=True):
            async for first in self._waiting:
                group = self._rest(first)
                await trio.to_thread.run_sync(self._writer.commit, [call for call, _ in group], limiter=self._writing)
                for _, done in group:
                    done.set()

    def _rest(self, first: tuple[Call, trio.Event]) -> Sequence[tuple[Call, trio.Event]]:
        """With `first`, those that wait already, as many as fit a transaction."""
        group = [first]
        room = MAX_GROUP_BYTES - first[0].weight
        while len(group) < MAX_GROUP_CALLS and room > 0:
            try:
                group.append(self._waiting.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            room -= group[-1][0].weight
        return group

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._writer.close()
