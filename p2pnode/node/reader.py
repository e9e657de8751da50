"""Reading what is stored: pages of messages, and followers that wait for more."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import trio

from p2pnode.core.message import SignedMessage, parse_message_id, parse_topic
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.errors import Fault, InvalidMessage, InvalidRequest
from p2pnode.node.archive import Archive
from p2pnode.node.documents import message_document
from p2pnode.node.trust import Trust
from p2pnode.ports import Entry, Followed, JsonObject

READ_BATCH = 100


class Reader:
    """The agent's view of the stored messages.

    Args:
        name_of: the name of a member, None for a stranger.
        stopping: set when the node goes away; followers get what is stored, and end.
        trust: what followers get of what is stored; None: all of it. A page has all, marked with `"trusted": false`
            where followers get nothing.
    """

    def __init__(
        self,
        archive: Archive,
        name_of: Callable[[PeerId], str | None],
        stopping: trio.Event,
        trust: Trust | None = None,
    ) -> None:
        self._archive = archive
        self._name_of = name_of
        self._stopping = stopping
        self._trust = trust or Trust()

    async def page(self, topic: str, *, after: str | None, limit: int) -> list[JsonObject]:
        """See `ports.Sidecar.messages`."""
        arrival = self.position(topic, after if after is not None else "start")
        return [
            self.document(entry, message)
            if self._trust.is_trusted(message)
            else {**self.document(entry, message), "trusted": False}
            for entry, message in await self._archive.page([topic], arrival, limit)
        ]

    def position(self, topic: str, start: str) -> int:
        """The arrival that reading from `start`, `now` or a message id begins after.

        Raises:
            InvalidRequest: no topic name, no message id, or a message that is not stored in the topic.
        """
        try:
            parse_topic(topic)
        except InvalidMessage as error:
            raise InvalidRequest("no such topic", [Fault("topic", error.detail)]) from error
        if start == "now":
            return self._archive.last_arrival
        if start == "start":
            return 0
        try:
            entry = self._archive.entry(parse_message_id(start))
        except InvalidMessage as error:
            raise InvalidRequest("unknown message", [Fault("after", error.detail)]) from error
        if entry is None or entry.topic != topic or not entry.arrival:
            raise InvalidRequest(
                "unknown message",
                [Fault("after", f"{start} is not kept here in {topic}; read from `start` instead")],
            )
        return entry.arrival

    async def follow(self, topic: str, arrival: int) -> AsyncGenerator[Followed, None]:
        """Everything after `arrival`, until the node stops and all that is stored was handed over."""
        shelf = self._archive.shelf(topic)
        floor = shelf.last_lost if arrival == 0 else 0  # who begins at the start has lost nothing yet
        while True:
            if lost := shelf.lost_after(max(arrival, floor)):
                floor = shelf.last_lost
                yield Followed(lost=lost)
            batch = await self._archive.page([topic], arrival, READ_BATCH)
            for entry, message in batch:
                arrival = entry.arrival
                if self._trust.hands_over(message):
                    yield Followed(document=self.document(entry, message))
            if batch:
                continue
            if self._stopping.is_set():
                return
            await self._wait_for_more(topic, arrival)

    async def _wait_for_more(self, topic: str, arrival: int) -> None:
        """Until the topic goes on or the node stops."""
        async with trio.open_nursery() as nursery:

            async def until(wait: Callable[[], Awaitable[None]]) -> None:
                await wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until, lambda: self._archive.wait_beyond([topic], arrival))
            nursery.start_soon(until, self._stopping.wait)

    def document(self, entry: Entry, message: SignedMessage) -> JsonObject:
        """The message document of what is stored."""
        return message_document(entry, message, self._name_of(peer_id_text(message.origin)))
