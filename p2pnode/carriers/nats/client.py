"""nats-py's client with what publishers can write read without fail, and answers matched by ourselves.

nats-py puts the server's inline status and a publisher's `Status` header under one name, which breaks its pull
consumers for ever; it ends its reader on text that is not UTF-8. Its JetStream layer is not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any, Final

from nats.aio.client import Client as LibraryClient
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from p2pnode.carriers.nats.parser import StrictParser

INLINE_STATUS: Final = ""
"""The header name under which the server's own status stands; no publisher can write an empty name."""

API_SECONDS: Final = 5.0
_CLOSING_SECONDS: Final = 0.5


class PlaintextServer(NatsError):
    """A server behind `tls://` does not offer TLS."""


class ApiFault(Exception):
    """JetStream refused a request.

    Args:
        code: as in HTTP; 503: there is no JetStream, or nobody answers for it now.
        number: the server's `err_code`; 0 when unknown.
    """

    def __init__(self, code: int, number: int, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.number = number
        self.description = description


class NatsClient(LibraryClient):
    """One connection, never taken up again: after a loss the next one gets a new client.

    Args:
        refuse_plaintext: give up before credentials are sent when the server's INFO does not ask for TLS.
    """

    def __init__(self, *, refuse_plaintext: bool = False) -> None:
        super().__init__()
        self._refuse_plaintext = refuse_plaintext
        self._ps = StrictParser(self)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._refuse_plaintext and not info.get("tls_required"):
            raise PlaintextServer("the server does not use TLS")
        await super()._process_info(info, initial_connection)

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        return parse_headers(headers) if headers else None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return self.msg_class(
            subject=subject.decode("utf-8", "replace"),
            reply=reply.decode("utf-8", "replace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

    async def end(self) -> None:
        """Close within a second, also when the server reads nothing more; never raises."""
        writer = getattr(self._transport, "_io_writer", None)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.close(), _CLOSING_SECONDS)
        if writer is not None:
            writer.transport.abort()
            await asyncio.sleep(0)


def parse_headers(raw: bytes) -> dict[str, str]:
    """A header block: the first value of each name, names in their own case; what is malformed is left out."""
    first, _, rest = raw.partition(b"\r\n")
    found: dict[str, str] = {}
    if status := first.removeprefix(b"NATS/1.0").strip():
        found[INLINE_STATUS] = status.decode("utf-8", "replace")
    for line in rest.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        with contextlib.suppress(UnicodeDecodeError):
            key = name.strip().decode("ascii")
            if colon and key and not any(each.isspace() for each in key):
                found.setdefault(key, value.strip().decode("utf-8", "replace"))
    return found


def status_of(message: Msg) -> tuple[int, str]:
    """The server's inline status and its text; `(0, "")` for a message of a publisher."""
    code, _, text = (message.headers or {}).get(INLINE_STATUS, "").partition(" ")
    return (int(code) if code.isascii() and code.isdecimal() else 0, text)


class Answers:
    """Requests over one subscription: each reply subject is used once and calls back.

    Whoever expects an answer also gives up on it (`forget`), so that the table holds no more than is in flight.
    """

    def __init__(self, client: NatsClient) -> None:
        self._client = client
        self.prefix = client.new_inbox()
        self._expected: dict[str, Callable[[Msg], None]] = {}
        self._count = 0

    async def open(self) -> None:
        await self._client.subscribe(f"{self.prefix}.*", cb=self._arrived)

    def expect(self, call: Callable[[Msg], None]) -> str:
        """A reply subject whose message goes to `call`."""
        self._count += 1
        token = f"{self._count:x}"
        self._expected[token] = call
        return f"{self.prefix}.{token}"

    def expect_again(self, reply: str, call: Callable[[Msg], None]) -> None:
        """One more message is to come for a reply subject."""
        self._expected[reply.rpartition(".")[2]] = call

    def forget(self, reply: str) -> None:
        self._expected.pop(reply.rpartition(".")[2], None)

    async def ask(self, subject: str, question: object = None, *, timeout_seconds: float = API_SECONDS) -> Any:
        """A request to JetStream's API; its answer's JSON.

        Raises:
            ApiFault: it refused, or (503) nobody is there to answer.
            TimeoutError: no answer.
        """
        body = b"" if question is None else json.dumps(question).encode()
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        reply = self.expect(lambda message: None if answer.done() else answer.set_result(message))
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._client.publish(subject, body, reply=reply)
                message = await answer
        finally:
            self.forget(reply)
        if status_of(message)[0] == 503:
            raise ApiFault(503, 0, "nobody answers for JetStream")
        return read_answer(message.data)

    async def _arrived(self, message: Msg) -> None:
        call = self._expected.pop(message.subject.rpartition(".")[2], None)
        if call is not None:
            call(message)


def read_answer(data: bytes) -> dict[str, Any]:
    """The JSON object of JetStream's answer.

    Raises:
        ApiFault: it says that it refused, or it is no answer of JetStream's (code 0).
    """
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ApiFault(0, 0, "the answer is not JetStream's")
    error = answer.get("error")
    if isinstance(error, dict):
        raise ApiFault(
            int(error.get("code") or 0), int(error.get("err_code") or 0), str(error.get("description") or "refused")
        )
    return answer
