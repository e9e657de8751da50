"""An HTTP server that answers from a script, on a Unix socket or TCP, and misbehaves where the script says so."""

from __future__ import annotations

import http
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import trio

Hang = Literal["", "before", "after-headers"]
Framing = Literal["length", "chunked", "truncated", "raw"]


@dataclass(frozen=True)
class Answer:
    """One answer.

    Args:
        body: sent `times` times over.
        framing: `truncated` announces one byte more than it sends, and closes; `raw` sends `body` alone, without a
            status line or headers, and closes.
        hang: where it stops for ever.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: Framing = "length"
    hang: Hang = ""
    times: int = 1


Script = Callable[[str], Answer]
"""From the target of a GET request to the answer."""


class ScriptedServer:
    """Answers as `script` says, which may be replaced at any time.

    Args:
        script: what to answer.

    `bodies_sent` counts how often a body went out whole, each of `Answer.times` by itself.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.targets: list[str] = []
        self.open_connections = 0
        self.bodies_sent = 0

    async def handle(self, stream: trio.SocketStream) -> None:
        self.open_connections += 1
        try:
            async with stream:
                await self._converse(stream)
        except trio.BrokenResourceError:
            pass  # The client went away in the middle of an answer.
        finally:
            self.open_connections -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                chunk = await stream.receive_some()
                if not chunk:
                    return
                received += chunk
            head, _, received = received.partition(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n")[0].decode("ascii").split(" ")
            assert method == "GET"
            self.targets.append(target)
            answer = self.script(target)
            await self._send(stream, answer)
            if answer.framing in ("truncated", "raw"):
                return

    async def _send(self, stream: trio.SocketStream, answer: Answer) -> None:
        if answer.hang == "before":
            await trio.sleep_forever()
        if answer.framing == "raw":
            await stream.send_all(answer.body)
            return
        try:
            phrase = http.HTTPStatus(answer.status).phrase
        except ValueError:
            phrase = "Other"
        lines = [f"HTTP/1.1 {answer.status} {phrase}", *(f"{name}: {value}" for name, value in answer.headers.items())]
        if answer.framing == "chunked":
            lines.append("Transfer-Encoding: chunked")
        else:
            extra = 1 if answer.framing == "truncated" else 0
            lines.append(f"Content-Length: {len(answer.body) * answer.times + extra}")
        await stream.send_all("\r\n".join([*lines, "", ""]).encode())
        if answer.hang == "after-headers":
            await trio.sleep_forever()
        for _ in range(answer.times):
            if answer.framing == "chunked":
                await stream.send_all(b"%x\r\n%b\r\n" % (len(answer.body), answer.body))
            else:
                await stream.send_all(answer.body)
            self.bodies_sent += 1
        if answer.framing == "chunked":
            await stream.send_all(b"0\r\n\r\n")


@asynccontextmanager
async def serving_unix(path: Path, script: Script) -> AsyncIterator[ScriptedServer]:
    """Answer on a Unix socket at `path` while the block runs."""
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(path))
    sock.listen()
    async with _serving(trio.SocketListener(sock), script) as server:
        yield server
    os.unlink(path)


@asynccontextmanager
async def serving_tcp(host: str, script: Script) -> AsyncIterator[tuple[ScriptedServer, int]]:
    """Answer on a free port of `host`, a loopback address, while the block runs."""
    (listener,) = await trio.open_tcp_listeners(0, host=host)
    port = int(listener.socket.getsockname()[1])
    async with _serving(listener, script) as server:
        yield server, port


@asynccontextmanager
async def _serving(listener: trio.SocketListener, script: Script) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(script)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, server.handle, [listener])
        yield server
        nursery.cancel_scope.cancel()
