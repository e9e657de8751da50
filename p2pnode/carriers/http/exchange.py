"""One HTTP request and its answer, on a connection of its own, bounded in time and size.

Built on h11, which the local API has loaded anyway: httpx would cost each sidecar 5 MiB more.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlsplit

import h11
import trio

from p2pnode.errors import Fault, InvalidRequest, Unavailable

MAX_ANSWER_BYTES: Final = 64 * 1024
"""Of an answer's body; what comes after is not read."""

CONNECT_SECONDS: Final = 4.0
"""Two repetitions of a lost SYN; a host that is gone must not hold a slot for longer."""

_MAX_READ_BYTES: Final = MAX_ANSWER_BYTES + 64 * 1024
"""With the head, chunk sizes and interim answers."""

_MAX_SHOWN: Final = 200
_OWN_HEADERS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "te"}
)
_PATH: Final = "/%:@!$&'()*+,;=~"
"""What a path may hold beside letters, digits and `_.-`; a `%` is taken for an escape (RFC 3986, 3.3)."""
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where to ask.

    Args:
        path: what the URL says before the route; empty, or starting and not ending with `/`.
    """

    tls: bool
    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask; headers that belong to the connection, and those that are no HTTP, are left out."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """Names of headers are lower case; the body is cut off at MAX_ANSWER_BYTES."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def parse_place(url: str) -> Place:
    """Raises:
    InvalidRequest: `url` is no `http://HOST:PORT`, `https` and a path allowed.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and "@" not in parts.netloc
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url or parts.query or parts.fragment:
        raise InvalidRequest(
            "messages cannot be posted there", [Fault("url", f"{url[:_MAX_SHOWN]!r} is no http://HOST:PORT")]
        )
    tls = parts.scheme == "https"
    return Place(tls, parts.hostname or "", port or (443 if tls else 80), parts.path.rstrip("/"))


async def ask(who: str, place: Place, request: Request, seconds: float, tls: Callable[[], ssl.SSLContext]) -> Answer:
    """Ask once. Redirects are not followed, proxies of the environment not used.

    Args:
        who: whom errors name.
        seconds: from the connection to the end of the answer.
        tls: how to check the certificate of an `https` place.

    Raises:
        Unavailable: `http-unreachable`, `http-timeout`; `http-answer` where what came back is no HTTP.
    """
    try:
        with trio.fail_after(seconds):
            stream = await _connect(who, place, min(seconds, CONNECT_SECONDS), tls)
            try:
                return await _exchange(stream, place, request)
            finally:
                await trio.aclose_forcefully(stream)
    except trio.TooSlowError:
        raise Unavailable(f"{who}: no whole answer within {seconds:g} s", reason="http-timeout") from None
    except trio.BrokenResourceError as error:
        # TLS names what it does not like in the error behind trio's.
        why = f": {shown(str(error.__cause__))}" if place.tls and error.__cause__ else ""
        raise Unavailable(f"{who}: the connection broke off{why}", reason="http-unreachable") from error
    except h11.RemoteProtocolError as error:
        raise Unavailable(f"{who}: what it answers is no HTTP: {shown(str(error))}", reason="http-answer") from error


async def _connect(
    who: str, place: Place, seconds: float, tls: Callable[[], ssl.SSLContext]
) -> trio.SocketStream | trio.SSLStream:
    try:
        with trio.fail_after(seconds):
            stream = await trio.open_tcp_stream(place.host, place.port)
    except trio.TooSlowError:
        raise Unavailable(f"{who}: no connection within {seconds:g} s", reason="http-unreachable") from None
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"{who}: no connection: {_why(error)}", reason="http-unreachable") from error
    if not place.tls:
        return stream
    return trio.SSLStream(stream, tls(), server_hostname=place.host, https_compatible=True)


def _why(error: BaseException) -> str:
    """The operating system's own word behind trio's summary."""
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    found = cause if isinstance(cause, OSError) else error
    return shown(str(getattr(found, "strerror", "") or found))


async def _exchange(stream: trio.abc.Stream, place: Place, request: Request) -> Answer:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=32 * 1024)
    headers = [
        (b"Host", place.authority.encode()),
        (b"User-Agent", b"p2pnode"),
        (b"Accept-Encoding", b"identity"),
        (b"Connection", b"close"),
        (b"Content-Length", str(len(request.body)).encode()),
        *((name.encode(), value.encode()) for name, value in request.headers.items() if _sendable(name, value)),
    ]
    head = h11.Request(method=request.method, target=place.path + quote(request.path, safe=_PATH), headers=headers)
    parts = [http.send(event) or b"" for event in (head, h11.Data(data=request.body), h11.EndOfMessage())]
    try:
        await stream.send_all(b"".join(parts))
    except trio.BrokenResourceError:
        if place.tls:
            raise
        # Whoever refuses a request may answer and close before it is read; the answer is there all the same.
    return await _read_answer(stream, http)


def _sendable(name: str, value: str) -> bool:
    """A name and value that HTTP can carry, and none of those that say how the request is framed."""
    return (
        name.lower() not in _OWN_HEADERS
        and _NAME.fullmatch(name) is not None
        and value == value.strip()
        and not any(each < " " or each == "\x7f" or "\ud800" <= each <= "\udfff" for each in value)
    )


async def _read_answer(stream: trio.abc.Stream, http: h11.Connection) -> Answer:
    head: h11.Response | None = None
    body = bytearray()
    left = _MAX_READ_BYTES
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            if left <= 0:
                break
            data = bytes(await stream.receive_some(min(left, 64 * 1024)))
            left -= len(data)
            http.receive_data(data)
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data[: MAX_ANSWER_BYTES - len(body)]
            if len(body) >= MAX_ANSWER_BYTES:
                break
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            break
    if head is None:
        raise h11.RemoteProtocolError("the connection ended before an answer")
    named = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    return Answer(head.status_code, named, bytes(body))


def shown(text: str) -> str:
    """Text of others as one bounded line of printable characters, fit for logs."""
    line = " ".join(text[: 4 * _MAX_SHOWN].split())
    return "".join(each if each.isprintable() else "?" for each in line)[:_MAX_SHOWN]
