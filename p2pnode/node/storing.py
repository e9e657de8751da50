"""What waits to be written by the archive, and how it is to be kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

import trio

from p2pnode.core.message import MessageId
from p2pnode.core.routing import Road
from p2pnode.errors import EnvironmentFault
from p2pnode.ports import Add, Change, Entry, Release, Remember, Took

RECENT_BYTES = 8 * 1024 * 1024
"""Bytes of the latest messages kept in memory: readers that keep up need no disk."""


@dataclass(frozen=True, slots=True)
class Durability:
    """Does a power cut right after the commit lose nothing: of own messages, of received ones?"""

    own: bool = True
    received: bool = False


SHIPPED = Durability()


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept.

    Args:
        count: messages of a topic.
        bytes: of a topic's signed messages.
        seconds: after its signed time (or its arrival, without one) a message is dropped.
    """

    count: int
    bytes: int
    seconds: float


class Storing:
    """An own message on its way to the disk."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._error: EnvironmentFault | None = None

    def end(self, error: EnvironmentFault | None = None) -> None:
        self._error = error
        self._done.set()

    async def wait(self) -> None:
        """Return once it is committed.

        Raises:
            StorageFull: no space left; it is not stored.
            EnvironmentFault: the store failed otherwise; likewise.
        """
        await self._done.wait()
        if self._error is not None:
            raise self._error


@dataclass(slots=True)
class Adding:
    """A message to be written.

    Args:
        storing: of an own message; None for received ones, which nobody waits for.
    """

    entry: Entry
    raw: bytes
    remember: Remember | None = None
    storing: Storing | None = None

    def changes(self) -> Iterator[Change]:
        yield Add(self.entry, self.raw, outbox=self.storing is not None)
        if self.remember is not None:
            yield self.remember


@dataclass(frozen=True, slots=True)
class Releasing:
    """A message that was held back gets its arrival; it is stored, or will be by an earlier step."""

    id: MessageId
    arrival: int
    late: bool

    def changes(self) -> Iterator[Change]:
        yield Release(self.id, self.arrival, self.late)


@dataclass(frozen=True, slots=True)
class Marking:
    """Roads that took a stored own message."""

    id: MessageId
    roads: tuple[Road, ...]

    def changes(self) -> Iterator[Change]:
        yield Took(self.id, self.roads)


Step = Adding | Releasing | Marking


class Recent:
    """The bytes of the latest messages, the oldest out first."""

    def __init__(self) -> None:
        self._raws: OrderedDict[MessageId, bytes] = OrderedDict()
        self._bytes = 0

    def put(self, message_id: MessageId, raw: bytes) -> None:
        self._raws[message_id] = raw
        self._bytes += len(raw)
        while self._bytes > RECENT_BYTES:
            _, gone = self._raws.popitem(last=False)
            self._bytes -= len(gone)

    def get(self, message_id: MessageId) -> bytes | None:
        return self._raws.get(message_id)

    def drop(self, message_id: MessageId) -> None:
        raw = self._raws.pop(message_id, None)
        if raw is not None:
            self._bytes -= len(raw)


def is_own(step: Step) -> TypeGuard[Adding]:
    return isinstance(step, Adding) and step.storing is not None
