"""A small HTTP/1.1 client for the local API: one request per connection, Unix socket or TCP, blocking.

`http.client` and `urllib` cost a command more time than the request itself, hence our own; what it speaks
is RFC 9112: bodies by length, in chunks, or up to the end of the connection.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from p2pnode.errors import (
    CallerError,
    Conflict,
    Degraded,
    EnvironmentFault,
    Fault,
    Forbidden,
    InvalidRequest,
    NoSidecar,
    P2PNodeError,
    PayloadTooLarge,
    TooBusy,
    Unavailable,
)
from p2pnode.local.address import ApiListener, UnixAddress, bracketed

ANSWER_SECONDS: Final = 5.0
"""How long a sidecar may take to answer in full: far above its worst loop delay, and still bearable to wait."""
MAX_LINE_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 100
MAX_BODY_BYTES: Final = 64 * 1024 * 1024


class TimedOut(NoSidecar):
    """The deadline passed before the answer was complete."""


class NotASidecar(NoSidecar):
    """Something answers there, but not as a sidecar would."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Raises NotASidecar when the body is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise NotASidecar("the answer is no JSON", hint="is this a p2pnode sidecar?") from error


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer whose body still comes in; `chunks` ends with the body."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Client:
    """Asks one sidecar.

    Args:
        address: where it listens.
        token: the bearer token; empty for none.
    """

    address: ApiListener
    token: str = ""

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> Response:
        """Whatever the sidecar answers, any status.

        Raises:
            NoSidecar: nobody answers, or not within `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._exchange(method, path, body, headers, deadline) as wire:
            status, answered, chunks = wire.answer()
            whole = bytearray()
            for chunk in chunks:
                whole += chunk
                if len(whole) > MAX_BODY_BYTES:
                    raise NotASidecar(f"the answer of {self.address} is longer than {MAX_BODY_BYTES} bytes")
        return Response(status, answered, bytes(whole))

    def get_json(self, path: str, *, timeout_seconds: float = ANSWER_SECONDS) -> Any:
        """The document at `path`.

        Raises:
            NoSidecar: nobody answers in time.
            P2PNodeError: the sidecar refused; see `refusal`.
        """
        response = self.request("GET", path, timeout_seconds=timeout_seconds)
        if response.status != 200:
            raise refusal(response)
        return response.json()

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        deadline: float | None = None,
        silence_seconds: float | None = None,
    ) -> Generator[Stream]:
        """Read a body while it comes.

        Args:
            deadline: on the monotonic clock, in seconds; None: for ever. The head of the answer is due within
                `ANSWER_SECONDS` in any case.
            silence_seconds: how long no byte may come; None: for ever.

        Raises:
            NoSidecar: nobody answers, or the connection broke inside the body.
            TimedOut: the deadline passed, or it was silent for too long.
        """
        first = time.monotonic() + ANSWER_SECONDS
        with self._exchange("GET", path, None, headers, first if deadline is None else min(first, deadline)) as wire:
            status, answered, chunks = wire.answer()
            wire.deadline, wire.silence_seconds = deadline, silence_seconds
            yield Stream(status, answered, chunks)

    @contextmanager
    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None, deadline: float
    ) -> Generator[_Wire]:
        fields = {"Host": _authority(self.address), "Connection": "close", "Accept": "*/*", **(headers or {})}
        if self.token:
            fields["Authorization"] = f"Bearer {self.token}"
        if body is not None:
            fields["Content-Length"] = str(len(body))
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        with _connect(self.address, deadline) as connection:
            wire = _Wire(connection, str(self.address), deadline)
            wire.send(head.encode() + b"\r\n" + (body or b""))
            yield wire


def refusal(response: Response) -> P2PNodeError:
    """The error an answer other than 2xx stands for, by who erred (RFC 9457 gives the words)."""
    try:
        problem = json.loads(response.body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    status = response.status
    detail = str(problem.get("detail") or problem.get("title") or f"the sidecar answered {status}")
    hint = str(problem.get("hint") or "")
    if status == 401:
        return CallerError(detail, hint="give the sidecar's token with --api-token-file or P2PNODE_API_TOKEN_FILE")
    if status == 404:
        return Degraded(detail, hint=hint)
    if status == 403:
        return Forbidden(detail, hint=hint)
    if status == 409:
        return Conflict(detail, reason=str(problem.get("reason") or "conflict"), facts=problem, hint=hint)
    if status == 413:
        return PayloadTooLarge(detail, hint=hint)
    if status in (429, 503):
        seconds = _seconds(response.headers.get("retry-after", ""))
        kind = TooBusy if status == 429 else Unavailable
        reason = str(problem.get("reason") or "unavailable")
        return kind(detail, reason=reason, retry_after_seconds=seconds, hint=hint or f"try again in {seconds:g} s")
    if 400 <= status < 500:
        errors = problem.get("errors")
        faults = [
            Fault(str(error.get("field") or "-"), str(error.get("problem") or "-"))
            for error in (errors if isinstance(errors, list) else [])
            if isinstance(error, dict)
        ]
        return InvalidRequest(detail, faults, hint=hint)
    return EnvironmentFault(detail, hint=hint)


def quote(segment: str) -> str:
    """One path segment, percent-encoded (RFC 3986: all but the unreserved characters)."""
    return "".join(
        chr(byte) if (byte < 128 and chr(byte).isalnum()) or byte in b"-._~" else f"%{byte:02X}"
        for byte in segment.encode("utf-8", "surrogateescape")
    )


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 1.0


def _authority(address: ApiListener) -> str:
    """What the Host header says."""
    return "localhost" if isinstance(address, UnixAddress) else f"{bracketed(address.host)}:{address.port}"


def _connect(address: ApiListener, deadline: float) -> socket.socket:
    try:
        seconds = max(deadline - time.monotonic(), 0.001)
        if not isinstance(address, UnixAddress):
            return socket.create_connection((address.host, address.port), timeout=seconds)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(seconds)
            connection.connect(address.path)
        except BaseException:
            connection.close()
            raise
        return connection
    except TimeoutError as error:
        raise TimedOut(f"no sidecar answers at {address} in time") from error
    except OSError as error:
        raise NoSidecar(
            f"no sidecar answers at {address}: {error.strerror or error}",
            hint="is it running, and is this the address it was started with (--api)?",
        ) from error


class _Wire:
    """One connection, read up to a deadline that may be moved; `name` is for messages."""

    def __init__(self, connection: socket.socket, name: str, deadline: float | None) -> None:
        self.deadline = deadline
        self.silence_seconds: float | None = None
        self._connection = connection
        self._name = name
        self._buffer = bytearray()

    def send(self, data: bytes) -> None:
        try:
            self._arm()
            self._connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a server may refuse before it has read everything: its answer tells why
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise self._broken(str(error)) from error

    def answer(self) -> tuple[int, Mapping[str, str], Iterator[bytes]]:
        """Status, headers, and the body as it comes; interim (1xx) answers are skipped."""
        while True:
            version, _, rest = self._line().partition(b" ")
            code = rest[:3]
            if not version.startswith(b"HTTP/1.") or not code.isdigit() or len(code) != 3:
                raise NotASidecar(f"what answers at {self._name} does not speak HTTP", hint="check the address")
            headers = self._headers()
            if int(code) >= 200:
                return int(code), headers, self._body(int(code), headers)

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for _ in range(MAX_HEADERS):
            line = self._line()
            if not line:
                return headers
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        raise NotASidecar(f"more than {MAX_HEADERS} headers from {self._name}")

    def _body(self, status: int, headers: Mapping[str, str]) -> Iterator[bytes]:
        if status in (204, 304):
            return iter(())
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunked()
        length = headers.get("content-length")
        if length is None:
            return self._to_the_end()
        if not (length.isascii() and length.isdigit()):
            raise NotASidecar(f"{self._name} sent the content length {length!r}")
        return self._counted(int(length))

    def _chunked(self) -> Iterator[bytes]:
        while True:
            size = self._line().partition(b";")[0].strip()
            if not size or size.strip(b"0123456789abcdefABCDEF"):
                raise NotASidecar(f"{self._name} sent the chunk size {size!r}")
            left = int(size, 16)
            if left == 0:
                while self._line():
                    pass
                return
            yield from self._counted(left)
            if self._line():
                raise NotASidecar(f"{self._name} sent a chunk longer than announced")

    def _counted(self, left: int) -> Iterator[bytes]:
        while left > 0:
            if not self._buffer and not self._fill():
                raise self._broken("the connection closed")
            part = bytes(self._buffer[:left])
            del self._buffer[:left]
            left -= len(part)
            yield part

    def _to_the_end(self) -> Iterator[bytes]:
        while self._buffer or self._fill():
            part = bytes(self._buffer)
            self._buffer.clear()
            yield part

    def _line(self) -> bytes:
        start = 0
        while (end := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer)
            if start > MAX_LINE_BYTES:
                raise NotASidecar(f"{self._name} sent a line longer than {MAX_LINE_BYTES} bytes")
            if not self._fill():
                raise self._broken("the connection closed")
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        return line

    def _fill(self) -> bool:
        """Wait for more bytes; False at the end of the connection."""
        try:
            self._arm()
            data = self._connection.recv(65536)
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from error
        self._buffer += data
        return bool(data)

    def _arm(self) -> None:
        limits = [] if self.silence_seconds is None else [self.silence_seconds]
        if self.deadline is not None:
            limits.append(self.deadline - time.monotonic())
        seconds = min(limits, default=None)
        if seconds is not None and seconds <= 0:
            raise TimeoutError
        self._connection.settimeout(seconds)

    def _late(self) -> TimedOut:
        return TimedOut(
            f"the sidecar at {self._name} did not answer in time", hint="it may be overloaded or stopped; see its log"
        )

    def _broken(self, why: str) -> NoSidecar:
        return NoSidecar(f"the sidecar at {self._name} broke off its answer: {why}", hint="see its log")
