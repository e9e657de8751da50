"""A real HTTP server that behaves as badly as agents do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11
import trio


@dataclass(frozen=True)
class Post:
    """One request as it came, at trio's time `at`."""

    at: float
    headers: dict[str, str]
    document: dict[str, Any]

    @property
    def of(self) -> tuple[int, int]:
        """Origin and number of the message."""
        payload = self.document["payload"]
        return payload["of"], payload["number"]

    @property
    def attempt(self) -> int:
        return int(self.headers["p2pnode-attempt"])


class Wire:
    """One connection, for behaviours that break HTTP."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.SERVER)

    async def post(self) -> Post | None:
        """The next request; None at the end of the connection."""
        headers: dict[str, str] = {}
        body = b""
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(await self.stream.receive_some())
            elif isinstance(event, h11.Request):
                assert event.method == b"POST"
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return Post(trio.current_time(), headers, json.loads(body))
            else:
                return None

    async def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        response = h11.Response(status_code=status, headers=[*named, ("Content-Length", str(len(body)))])
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            await self.stream.send_all(self.http.send(event) or b"")


Behaviour = Callable[[Post, Wire], Awaitable[None]]


async def good(_post: Post, wire: Wire) -> None:
    await wire.answer(200)


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    async def behave(_post: Post, wire: Wire) -> None:
        await wire.answer(code, body, **headers)

    return behave


async def hang(_post: Post, wire: Wire) -> None:
    """Nothing, until the sidecar hangs up."""
    while await wire.stream.receive_some():
        pass


def raw(data: bytes) -> Behaviour:
    """These bytes, and then the end of the connection."""

    async def behave(_post: Post, wire: Wire) -> None:
        await wire.stream.send_all(data)
        raise ConnectionAbortedError

    return behave


async def endless(_post: Post, wire: Wire) -> None:
    """200, and a body that never ends."""
    await wire.stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await wire.stream.send_all(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")


class Agent:
    """Takes posts; each goes to `behave`, which tests replace.

    Attributes:
        posts: every one that came.
        taken: origin and number of those answered with 200, in that order.
        most_at_once: requests open at the same time.
    """

    def __init__(self) -> None:
        self.url = ""
        self.behave: Behaviour = good
        self.posts: list[Post] = []
        self.taken: list[tuple[int, int]] = []
        self.most_at_once = 0
        self._open = 0
        self._news = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        wire = Wire(stream)
        try:
            async with stream:
                while (post := await wire.post()) is not None:
                    self.posts.append(post)
                    self._open += 1
                    self.most_at_once = max(self.most_at_once, self._open)
                    self._wake()
                    behaviour = self.behave
                    try:
                        await behaviour(post, wire)
                        if behaviour is good:
                            self.taken.append(post.of)
                    finally:
                        self._open -= 1
                        self._wake()
                    if wire.http.our_state is not h11.DONE:
                        return
                    wire.http.start_next_cycle()
        except (OSError, trio.BrokenResourceError, h11.ProtocolError):
            pass

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a post brings about."""
        while not condition():
            await self._news.wait()


@asynccontextmanager
async def open_agent_server() -> AsyncIterator[Agent]:
    """An agent on a port of its own."""
    agent = Agent()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    agent.url = f"http://127.0.0.1:{port}/messages"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, agent.serve, [listener])
        yield agent
        nursery.cancel_scope.cancel()
