"""A followed topic as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import trio
from starlette.types import Receive, Scope, Send

from p2pnode.api.documents import disconnected
from p2pnode.api.limits import ApiLimits
from p2pnode.api.metrics import ApiCounters
from p2pnode.errors import TooBusy
from p2pnode.ports import Followed, Sidecar
from p2pnode.wire.json_text import encode, encode_message

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"connection", b"close"),
]
# How soon an EventSource comes back by itself, in milliseconds.
_OPENING = b"retry: 1000\n\n"
_KEEPALIVE = b": \n\n"


class EventStream:
    """The response that follows a topic until the client goes, the node ends it, or `stopping` is set.

    Starlette's StreamingResponse would hold a shutdown for the whole grace. Nothing is read ahead: while the
    client does not read, the next message stays in the node's bounded history.

    Args:
        sidecar: whose topic.
        topic: its name.
        start: `start`, `now` or a message id.
        subscription: the name of a durable subscription; None: the stream keeps no place.
        stopping: set when the API shuts down.
        limits: number of streams, time between two comments.
        counters: where open streams are counted.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        topic: str,
        start: str,
        *,
        subscription: str | None = None,
        stopping: trio.Event,
        limits: ApiLimits,
        counters: ApiCounters,
    ) -> None:
        self._sidecar = sidecar
        self._topic = topic
        self._start = start
        self._subscription = subscription
        self._stopping = stopping
        self._limits = limits
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; InvalidRequest and TooBusy come before the first byte, so that they become problem documents."""
        if self._counters.event_streams >= self._limits.event_streams:
            raise TooBusy(
                f"{self._limits.event_streams} event streams are open already",
                reason="event-streams",
                hint="close some, or read several topics in one process",
            )
        self._counters.event_streams += 1
        try:
            async with self._open() as steps:
                await self._serve(steps, scope["method"] == "HEAD", receive, send)
        finally:
            self._counters.event_streams -= 1

    def _open(self) -> AbstractAsyncContextManager[AsyncIterator[Followed]]:
        if self._subscription is None:
            return self._sidecar.follow(self._topic, start=self._start)
        return self._sidecar.subscribe(self._topic, self._subscription, start=self._start)

    async def _serve(self, steps: AsyncIterator[Followed], head_only: bool, receive: Receive, send: Send) -> None:
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
                    await write(event_bytes(step))

            nursery.start_soon(end_after, self._stopping.wait)
            nursery.start_soon(end_after, lambda: disconnected(receive))
            nursery.start_soon(end_after, pump)
            nursery.start_soon(self._keep_alive, write)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            await trio.sleep(self._limits.keepalive_seconds)
            await write(_KEEPALIVE)


def event_bytes(step: Followed) -> bytes:
    """One event. JSON in ASCII has no raw line break, so one data line holds it."""
    if step.lost:
        return b"event: lost\ndata: " + encode({"lost": step.lost}) + b"\n\n"
    if step.replaced:
        return b'event: replaced\ndata: {"reason":"another stream of this subscription was opened"}\n\n'
    identifier = str(step.document["id"]).encode()
    return b"id: " + identifier + b"\nevent: message\ndata: " + encode_message(step.document) + b"\n\n"
