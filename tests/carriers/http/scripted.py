"""A real HTTP server on loopback that answers as a test says, and counts what is asked at once."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import trio


@dataclass(frozen=True)
class Asked:
    """One request; names of headers are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Behaviour = Callable[[Asked, trio.abc.Stream], Awaitable[None]]


def answer(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return raw("\r\n".join([*lines, "", ""]).encode() + body)


def raw(data: bytes) -> Behaviour:
    """These bytes, and the end of the connection."""

    async def behave(_asked: Asked, stream: trio.abc.Stream) -> None:
        await stream.send_all(data)

    return behave


async def hang(_asked: Asked, stream: trio.abc.Stream) -> None:
    """Nothing, until the other side hangs up."""
    while await stream.receive_some():
        pass


def endless(start: bytes, again: bytes) -> Behaviour:
    """`start`, then `again` until the other side hangs up."""

    async def behave(_asked: Asked, stream: trio.abc.Stream) -> None:
        await stream.send_all(start)
        while True:
            await stream.send_all(again)

    return behave


class Scripted:
    """Answers by path.

    Attributes:
        asked: every request, in order of arrival.
        most_at_once: requests open at the same time.
    """

    def __init__(self, port: int, *, tls: bool) -> None:
        self.port = port
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        self.behaviours: dict[str, Behaviour] = {}
        self.other: Behaviour = answer(200, b'{"stored": true}')
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._open = 0
        self._news = trio.Event()

    async def serve(self, stream: trio.abc.Stream) -> None:
        try:
            async with stream:
                asked = await _read(stream)
                self.asked.append(asked)
                self._open += 1
                self.most_at_once = max(self.most_at_once, self._open)
                self._news.set()
                self._news = trio.Event()
                try:
                    await self.behaviours.get(asked.path, self.other)(asked, stream)
                finally:
                    self._open -= 1
        except (OSError, trio.BrokenResourceError, h11.ProtocolError):
            pass

    async def until_asked(self, times: int) -> None:
        while len(self.asked) < times:
            await self._news.wait()

    def paths(self) -> list[str]:
        return [each.path for each in self.asked]


async def _read(stream: trio.abc.Stream) -> Asked:
    http = h11.Connection(h11.SERVER)
    request: h11.Request | None = None
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            headers = {name.decode(): value.decode() for name, value in request.headers}
            return Asked(request.method.decode(), request.target.decode(), headers, body)
        else:
            raise BrokenPipeError


@asynccontextmanager
async def open_scripted(tls: ssl.SSLContext | None = None) -> AsyncIterator[Scripted]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Scripted(listener.socket.getsockname()[1], tls=tls is not None)

    async def handle(stream: trio.SocketStream) -> None:
        await server.serve(trio.SSLStream(stream, tls, server_side=True, https_compatible=True) if tls else stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield server
        nursery.cancel_scope.cancel()
