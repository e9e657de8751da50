"""A followed topic, or councils as they change, as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import trio
from starlette.types import Receive, Scope, Send

from p2pnode.api.documents import disconnected
from p2pnode.api.limits import ApiLimits
from p2pnode.api.metrics import ApiCounters
from p2pnode.errors import TooBusy
from p2pnode.ports import Followed, JsonObject
from p2pnode.wire.json_text import encode, encode_message

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"connection", b"close"),
]
# How soon an EventSource comes back by itself, in milliseconds.
_OPENING = b"retry: 1000\n\n"
_KEEPALIVE = b": \n\n"

Step = TypeVar("Step")


class EventStream(Generic[Step]):
    """The response that follows something until the client goes, the node ends it, or `stopping` is set.

    Starlette's StreamingResponse would hold a shutdown for the whole grace. Nothing is read ahead: while the
    client does not read, the next step stays with the node, which bounds what it keeps.

    Args:
        follow: begins to follow; what it yields goes out one by one.
        to_event: one step as an event.
        stopping: set when the API shuts down.
        limits: number of streams, time between two comments.
        counters: where open streams are counted.
    """

    def __init__(
        self,
        follow: Callable[[], AbstractAsyncContextManager[AsyncIterator[Step]]],
        to_event: Callable[[Step], bytes],
        *,
        stopping: trio.Event,
        limits: ApiLimits,
        counters: ApiCounters,
    ) -> None:
        self._follow = follow
        self._to_event = to_event
        self._stopping = stopping
        self._limits = limits
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; errors of `follow` and TooBusy come before the first byte, so that they become problem documents."""
        if self._counters.event_streams >= self._limits.event_streams:
            raise TooBusy(
                f"{self._limits.event_streams} event streams are open already",
                reason="event-streams",
                hint="close some, or read several topics in one process",
            )
        self._counters.event_streams += 1
        try:
            async with self._follow() as steps:
                await self._serve(steps, scope["method"] == "HEAD", receive, send)
        finally:
            self._counters.event_streams -= 1

    async def _serve(self, steps: AsyncIterator[Step], head_only: bool, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        if head_only:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        writing = trio.Lock()

        async def write(data: bytes) -> None:
            async with writing:
                await send({"type": "http.response.body", "body": data, "more_body": True})

        await write(_OPENING)
        async with trio.open_nursery() as nursery:

            async def end_after(what: Callable[[], Awaitable[None]]) -> None:
                await what()
                nursery.cancel_scope.cancel()

            async def pump() -> None:
                async for step in steps:
                    await write(self._to_event(step))

            nursery.start_soon(end_after, self._stopping.wait)
            nursery.start_soon(end_after, lambda: disconnected(receive))
            nursery.start_soon(end_after, pump)
            nursery.start_soon(self._keep_alive, write)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            await trio.sleep(self._limits.keepalive_seconds)
            await write(_KEEPALIVE)


def topic_event(step: Followed) -> bytes:
    """One event. JSON in ASCII has no raw line break, so one data line holds it."""
    if step.lost:
        return b"event: lost\ndata: " + encode({"lost": step.lost}) + b"\n\n"
    if step.replaced:
        return b'event: replaced\ndata: {"reason":"another stream of this subscription was opened"}\n\n'
    identifier = str(step.document["id"]).encode()
    return b"id: " + identifier + b"\nevent: message\ndata: " + encode_message(step.document) + b"\n\n"


def council_event(document: JsonObject) -> bytes:
    """A council document. No id: whoever comes back is sent what is then, not what was missed."""
    return b"event: council\ndata: " + encode_message(document) + b"\n\n"
