"""The client side of the NATS protocol's reader (NATS documentation, "Client protocol"), in nats-py's place.

nats-py's takes a vertical tab or a form feed in a subject for a blank: a stranger who publishes there, which servers
allow, would end the connection of each subscriber, and again whenever a durable consumer gives the message again.
"""

from __future__ import annotations

import json
from typing import Final, Protocol

from nats.errors import ProtocolError
from nats.protocol.parser import Parser

_MAX_LINE_BYTES: Final = 1024 * 1024
"""INFO names all servers of a cluster; other lines are at most 4 KiB by a server's default."""


class _Client(Protocol):
    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None: ...
    async def _process_err(self, err_msg: str) -> None: ...
    async def _process_ping(self) -> None: ...
    async def _process_pong(self) -> None: ...
    async def _process_info(self, info: dict[str, object]) -> None: ...


class StrictParser(Parser):
    """Splits lines where the server does: at blanks."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._message: tuple[bytes, int, bytes, int, int] | None = None
        super().__init__(client)

    def reset(self) -> None:
        super().reset()
        self._message = None

    async def parse(self, data: bytes = b"") -> None:
        """
        Raises:
            ProtocolError: it is not NATS.
        """
        self.buf.extend(data)
        while self.buf:
            if self._message is None:
                end = self.buf.find(b"\r\n")
                if end < 0:
                    if len(self.buf) > _MAX_LINE_BYTES:
                        raise ProtocolError
                    return
                line = bytes(self.buf[:end])
                del self.buf[: end + 2]
                await self._line(line)
                continue
            subject, sid, reply, header_size, size = self._message
            if len(self.buf) < size + 2:
                return
            headers, body = bytes(self.buf[:header_size]), bytes(self.buf[header_size:size])
            del self.buf[: size + 2]
            self._message = None
            await self._client._process_msg(sid, subject, reply, body, headers)

    async def _line(self, line: bytes) -> None:
        operation, _, rest = line.partition(b" ")
        match operation.upper():
            case b"MSG" | b"HMSG" as kind:
                self._message = _message(rest, 2 if kind == b"HMSG" else 1)
            case b"PING":
                await self._client._process_ping()
            case b"PONG":
                await self._client._process_pong()
            case b"-ERR":
                await self._client._process_err(rest.decode("utf-8", "replace").strip().lower())
            case b"INFO":
                await self._client._process_info(_info(rest))
            case b"+OK" | b"":
                return
            case _:
                raise ProtocolError


def _message(rest: bytes, sizes: int) -> tuple[bytes, int, bytes, int, int]:
    """Subject, subscription, reply subject, size of the headers and of all."""
    words = [each for each in rest.split(b" ") if each]
    try:
        subject, sid, *reply = words[:-sizes]
        numbers = [int(each) for each in words[-sizes:]]
        header_size, size = numbers if sizes == 2 else (0, numbers[0])
        if len(reply) > 1 or not 0 <= header_size <= size:
            raise ProtocolError
        return subject, int(sid), reply[0] if reply else b"", header_size, size
    except (ValueError, IndexError):
        raise ProtocolError from None


def _info(rest: bytes) -> dict[str, object]:
    try:
        info = json.loads(rest)
    except (ValueError, RecursionError):
        raise ProtocolError from None
    if not isinstance(info, dict):
        raise ProtocolError
    return info
