"""What crosses between the trio loop and the asyncio thread: plain values, and nothing waits in the other's loop."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from p2pnode.errors import P2PNodeError
from p2pnode.ports.roads import NatsMessage

WAITING_MESSAGES: Final = 8192
"""Core messages that wait for the trio loop; what comes when they are that many is dropped, and counted."""

WAITING_BYTES: Final = 64 * 1024 * 1024
"""The same in bytes of bodies."""

CHECKPOINT_EVERY: Final = 32

HOLD_SECONDS: Final = 1.0
"""When a message whose `take` failed is given again, with those of its subject behind it."""

HOLD_AT_MOST_SECONDS: Final = 3.0
"""How long those behind it are held for its return; another reader of the same name may have got it."""

ALONE_SECONDS: Final = 30.0
"""The same for a message that failed often: by itself, and holding up nobody."""

HELD_ATTEMPTS: Final = 5


@dataclass(slots=True, eq=False)
class Watch:
    """A core subscription."""

    subject: str
    take: Callable[[NatsMessage], None]


@dataclass(slots=True, eq=False)
class Reading:
    """A durable consumer of one subject, over all connections.

    Args:
        name: of the consumer at the server.
        pending: as of the last connection; likewise the rest.
    """

    subject: str
    name: str
    take: Callable[[NatsMessage], Awaitable[None]]
    pending: int = 0
    unacknowledged: int = 0
    redelivered: int = 0
    caught_up: bool = False
    open: bool = False


@dataclass(slots=True, eq=False)
class Delivery:
    """A message of a durable consumer, on its way to `take` and back to be acknowledged.

    Args:
        reply: where it is acknowledged.
        attempts: how often it has been given, this time counted.
        settle: called on the asyncio loop with it and the seconds until it is to be given again; None: acknowledge.
        stale: its connection is gone, so it will be given again.
        touched: asyncio's seconds when the server last heard of it.
    """

    message: NatsMessage
    reply: str
    attempts: int
    settle: Callable[[Delivery, float | None], None]
    touched: float
    settled: bool = False
    stale: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """A publication.

    Args:
        outcome: whether a stream stored it, or why it could not be published; None as long as that is open.
        abandoned: the caller has gone.
        reply: where its answer is expected.
        asked: how often a stream was expected to answer.
        sent: asyncio's seconds when that was last.
    """

    subject: str
    body: bytes
    headers: Mapping[str, str]
    done: trio.Event = field(default_factory=trio.Event)
    outcome: bool | P2PNodeError | None = None
    abandoned: bool = False
    reply: str = ""
    asked: int = 0
    sent: float = 0.0


class Inbox:
    """Core messages on their way to trio, bounded; filled by the asyncio thread, emptied by trio.

    Args:
        wake: asks trio to look.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._waiting: deque[tuple[Watch, NatsMessage]] = deque()
        self._wake = wake
        self._added = 0
        self._taken = 0
        self.dropped: Counter[str] = Counter()

    def put(self, watch: Watch, message: NatsMessage) -> None:
        # Each thread writes one of the two sums alone.
        if len(self._waiting) >= WAITING_MESSAGES or self._added - self._taken >= WAITING_BYTES:
            self.dropped[watch.subject] += 1
            return
        self._added += len(message.body)
        self._waiting.append((watch, message))
        self._wake()

    def take(self) -> tuple[Watch, NatsMessage] | None:
        if not self._waiting:
            return None
        watch, message = self._waiting.popleft()
        self._taken += len(message.body)
        return watch, message
