"""Reads one request of a stranger: bounded in head, body and memory; and writes the one answer to it."""

from __future__ import annotations

import http
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Final

import h11
import trio

from p2pnode.carriers.http.protocol import PROBLEM_TYPE
from p2pnode.wire.json_text import encode

_MAX_HEAD_BYTES: Final = 16 * 1024
_READ_BYTES: Final = 64 * 1024
_DRAIN_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: a JSON object. `word` is fixed, and what it is counted by."""

    word: str
    status: int
    document: Mapping[str, object]
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def problem(status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> Reply:
    """A problem document (RFC 9457) whose title is the status's own phrase.

    Args:
        reason: a fixed word for programs.
    """
    title = http.HTTPStatus(status).phrase
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, "reason": reason}
    return Reply(reason, status, document, PROBLEM_TYPE, headers or {})


class Early(Exception):
    """The answer is known before the request is read to its end."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.document.get("detail", ""))
        self.reply = reply


class Gone(Exception):
    """The client closed its side before its request was whole; nobody waits for an answer."""


class Budget:
    """Bytes of bodies that may be in memory at once, over all connections."""

    def __init__(self, limit: int) -> None:
        self.used = 0
        self._limit = limit

    @contextmanager
    def share(self) -> Iterator[Share]:
        """What one request takes of it, until the block ends."""
        share = Share(self)
        try:
            yield share
        finally:
            self.used -= share.taken

    def take(self, size: int) -> bool:
        if self.used + size > self._limit:
            return False
        self.used += size
        return True


class Share:
    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.taken = 0

    def take(self, size: int) -> bool:
        """False: there is not so much left."""
        taken = self._budget.take(size)
        self.taken += size * taken
        return taken


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body; names of headers are lower case."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class Wire:
    """One connection that carries one request.

    Attributes:
        begun: the client has sent something.
        unread: more of the request may come.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._ended = False
        self.begun = False
        self.unread = True

    async def read_head(self) -> Head:
        """Raises:
        Early: it is no HTTP, or too long.
        Gone: the client left.
        """
        while True:
            event = await self._next()
            if isinstance(event, h11.Request):
                headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
                self.unread = any(name in ("content-length", "transfer-encoding") for name, _ in headers)
                return Head(event.method.decode("latin-1"), event.target.decode("latin-1"), headers)

    async def read_body(self, head: Head, limit: int, share: Share) -> bytes:
        """Raises:
        Early: longer than `limit`, without a length, or there is no memory for it now.
        Gone: the client left.
        """
        announced = head.values("content-length")
        if not announced:
            raise Early(problem(411, "length-required", "send the message with a Content-Length"))
        # h11 let only digits pass; more of them than this are no size anybody may send.
        if len(announced[0]) > 18 or int(announced[0]) > limit:
            raise Early(problem(413, "oversize", f"a message has at most {limit} bytes"))
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        body = bytearray()
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                if not share.take(len(event.data)):
                    detail = "too many messages are coming in at once; try again"
                    raise Early(problem(503, "busy", detail, {"Retry-After": "1"}))
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self.unread = False
                return bytes(body)

    async def _next(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = bytes(await self._stream.receive_some(_READ_BYTES))
                self._ended = not data
                self.begun = self.begun or bool(data)
                self._http.receive_data(data)
        except h11.RemoteProtocolError as error:
            if self._ended:
                raise Gone from error
            status = 431 if error.error_status_hint == 431 else 400
            raise Early(problem(status, "no-http", f"that is no HTTP/1.1 request: {error}")) from error
        if isinstance(event, h11.ConnectionClosed):
            raise Gone
        return event

    async def answer(self, reply: Reply) -> None:
        """Write the answer and end our side; h11 must not have sent one before."""
        body = encode(reply.document)
        headers = [
            ("Content-Type", reply.media_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            ("Date", formatdate(usegmt=True)),
            *reply.headers.items(),
        ]
        await self._send(h11.Response(status_code=reply.status, headers=headers), h11.Data(data=body))
        await self._stream.send_eof()

    async def _send(self, *events: h11.Event) -> None:
        await self._stream.send_all(b"".join(self._http.send(event) or b"" for event in events))

    async def drain(self) -> None:
        """Throw away what is left of the request, so that the client gets to the answer instead of a reset."""
        left = _DRAIN_BYTES
        while self.unread and left > 0 and not self._ended:
            data = await self._stream.receive_some(_READ_BYTES)
            self._ended = not data
            left -= len(data)
