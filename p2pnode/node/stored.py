"""What deliveries read: the stored messages by arrival."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from p2pnode.core.message import MessageId, SignedMessage
from p2pnode.ports import Entry


class Archive(Protocol):
    """The node's memory of what is stored, as far as deliveries need it."""

    @property
    def last_arrival(self) -> int:
        """The highest arrival that readers can see."""

    def entry(self, message_id: MessageId, /) -> Entry | None:
        """A stored message."""

    async def page(self, topics: Collection[str], after: int, limit: int, /) -> Sequence[tuple[Entry, SignedMessage]]:
        """What was released after an arrival, in order.

        Raises:
            EnvironmentFault: it cannot be read.
        """

    async def bytes_of(self, ids: Collection[MessageId], /) -> Mapping[MessageId, bytes]:
        """The signed bytes of those that are stored; raises as `page`."""

    async def wait_beyond(self, topics: Collection[str], arrival: int, /) -> None:
        """Return once one of the topics has something after an arrival."""

    def count_beyond(self, topics: Collection[str], arrival: int, /) -> int:
        """How many messages of the topics readers can see after an arrival."""

    def lost_beyond(self, topics: Collection[str], arrival: int, /) -> int:
        """How many with a later arrival were dropped by retention, as far as that is remembered."""
