"""Which message ids were met lately, and what became of them.

The seen cache of gossipsub-v1.0 ("Message Cache"), with what a later copy needs to be
judged by: the verdict, and a fingerprint that tells a copy from another body under the
same id. An id is entered only once its signature is good, so nobody can make us deaf to
an honest message by sending a forgery first.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from p2pnode.core.message import MessageId, SignedMessage


class Status(IntEnum):
    """What became of a message."""

    PENDING = 0
    VALID = 1
    IGNORED = 2
    INVALID = 3


def fingerprint(message: SignedMessage) -> int:
    """Equal for copies of one message, whatever their encoding; keyed by the interpreter's hash secret."""
    return hash((message.topic, message.signature, message.data))


class Seen:
    """One id that was met.

    Attributes:
        fingerprint: of the body we know; None when only the store knows it.
        valid_at: when the verdict was Accept, monotonic seconds.
    """

    __slots__ = ("expires", "fingerprint", "id", "status", "valid_at")

    def __init__(self, mid: MessageId, print_: int | None, status: Status, expires: float) -> None:
        self.id = mid
        self.fingerprint = print_
        self.status = status
        self.expires = expires
        self.valid_at = 0.0


class SeenCache:
    """Ids in order of arrival, each for the same time.

    Args:
        seconds: how long an id is remembered.
        bound: how many; at it the oldest is forgotten early and `evicted` counts it, except one that
            still waits for its verdict, which is put back to the end.
    """

    __slots__ = ("_bound", "_by_id", "_order", "_seconds", "evicted", "get")

    def __init__(self, seconds: float, bound: int) -> None:
        self._seconds = seconds
        self._bound = bound
        self._by_id: dict[MessageId, Seen] = {}
        self._order: deque[Seen] = deque()
        self.evicted = 0
        # Bound once: it is asked for every copy of every message.
        self.get = self._by_id.get

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, mid: MessageId) -> bool:
        return mid in self._by_id

    def add(self, mid: MessageId, print_: int | None, status: Status, now: float) -> Seen:
        """Enter an id that is not in."""
        entry = Seen(mid, print_, status, now + self._seconds)
        self._by_id[mid] = entry
        self._order.append(entry)
        if len(self._order) > self._bound:
            self._make_room()
        return entry

    def forget(self, entry: Seen) -> None:
        """Make the id new again; its slot is freed when its time is over."""
        if self._by_id.get(entry.id) is entry:
            del self._by_id[entry.id]

    def expire(self, now: float) -> None:
        """Forget what is past its time."""
        order = self._order
        while order and order[0].expires <= now:
            self.forget(order.popleft())

    def _make_room(self) -> None:
        for _ in range(len(self._order)):
            oldest = self._order.popleft()
            known = self._by_id.get(oldest.id) is oldest
            if known and oldest.status is Status.PENDING:
                self._order.append(oldest)
                continue
            if known:
                self.forget(oldest)
                self.evicted += 1
            return
