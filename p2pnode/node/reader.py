"""Reading what is kept: pages of messages, and followers that wait for more."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import trio

from p2pnode.core.message import parse_message_id, parse_topic
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.errors import Fault, InvalidMessage, InvalidRequest
from p2pnode.node.documents import message_document
from p2pnode.node.history import History, Kept
from p2pnode.ports import Followed, JsonObject

READ_BATCH = 100


class Reader:
    """The agent's view of the kept messages.

    Args:
        name_of: the name of a member, None for a stranger.
        stopping: set when the node goes away; followers get what is kept, and end.
    """

    def __init__(self, history: History, name_of: Callable[[PeerId], str | None], stopping: trio.Event) -> None:
        self._history = history
        self._name_of = name_of
        self._stopping = stopping

    def page(self, topic: str, *, after: str | None, limit: int) -> list[JsonObject]:
        """See `ports.Sidecar.messages`."""
        position = self.position(topic, after if after is not None else "start")
        return [self._document(kept) for kept in self._history.read(topic, position, limit)]

    def position(self, topic: str, start: str) -> int:
        """Where reading from `start`, `now` or behind a message id begins.

        Raises:
            InvalidRequest: no topic name, no message id, or a message that is not kept in the topic.
        """
        try:
            parse_topic(topic)
        except InvalidMessage as error:
            raise InvalidRequest("no such topic", [Fault("topic", error.detail)]) from error
        if start == "now":
            return self._history.end_position(topic)
        if start == "start":
            return self._history.first_position(topic)
        try:
            position = self._history.position_after(topic, parse_message_id(start))
        except InvalidMessage as error:
            raise InvalidRequest("unknown message", [Fault("after", error.detail)]) from error
        if position is None:
            raise InvalidRequest(
                "unknown message",
                [Fault("after", f"{start} is not kept here in {topic}; read from `start` instead")],
            )
        return position

    async def follow(self, topic: str, position: int) -> AsyncGenerator[Followed, None]:
        """Everything from `position` on, until the node stops and all that is kept was handed over."""
        while True:
            first = self._history.first_position(topic)
            if position < first:
                yield Followed(lost=first - position)
                position = first
            batch = tuple(self._history.read(topic, position, READ_BATCH))
            for kept in batch:
                yield Followed(document=self._document(kept))
                position = kept.position + 1
            if batch:
                continue
            if self._stopping.is_set():
                return
            await self._wait_for_more(topic, position)

    async def _wait_for_more(self, topic: str, position: int) -> None:
        """Until the topic goes on or the node stops."""
        async with trio.open_nursery() as nursery:

            async def until(wait: Callable[[], Awaitable[None]]) -> None:
                await wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until, lambda: self._history.wait_beyond(topic, position))
            nursery.start_soon(until, self._stopping.wait)

    def _document(self, kept: Kept) -> JsonObject:
        return message_document(kept, self._name_of(peer_id_text(kept.message.origin)))
