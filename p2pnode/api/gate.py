"""What a request passes before a resource sees it: who may ask, for which host, with how large a body.

Rules for TCP listeners (a Unix socket is guarded by its mode, 0600):
- Host must name this machine: localhost, a loopback address, the listener's host, the address the
  connection came in on, or one of `allowed_hosts`; the port does not matter. Against DNS rebinding.
- Origin, which only browsers send, must be the Host itself. Against posts from foreign web pages.
- With a token set, every TCP listener asks for it, loopback too: a token is set where users of this
  machine are not all trusted. `/health` and `/ready` never do.

The body is read whole before the resource runs, so its size and time are bounded in one place, and no
resource can leave a half-read one behind (hypercorn would wait for its reader forever).
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
from collections.abc import Mapping, Sequence

import trio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2pnode.api.connection import Connection
from p2pnode.api.limits import ApiLimits
from p2pnode.api.metrics import ApiCounters
from p2pnode.api.problems import INTERNAL, Problem
from p2pnode.local.address import TcpAddress

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready"})
NO_ROUTE = "-"

_DRAIN_BYTES = 8 * 1024 * 1024
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{0,5})?")


class ClientGone(Exception):
    """The client closed its side before its request was complete."""


class _TooLarge(Exception):
    pass


def host_name(header: str) -> str | None:
    """The host of a Host header without port, in one spelling; None when it is none."""
    match = _HOST.fullmatch(header.strip().lower())
    return canonical_host(match.group(1)) if match else None


def canonical_host(host: str) -> str:
    """A name in lower case, an IP address (with or without brackets or zone) as `ipaddress` writes it."""
    bare = host.strip("[]").partition("%")[0].lower()
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return bare


class Gate:
    """The outermost ASGI application: checks, reads the body, counts, and survives whatever is inside.

    Args:
        inside: the resources.
        route_of: route templates by endpoint, for the counters.
        token: what TCP clients must present; None asks nobody.
        allowed_hosts: further names clients reach us by.
        limits: of the body.
        counters: where answers are counted.
    """

    def __init__(
        self,
        inside: ASGIApp,
        *,
        route_of: Mapping[object, str],
        token: str | None,
        allowed_hosts: Sequence[str],
        limits: ApiLimits,
        counters: ApiCounters,
    ) -> None:
        self._inside = inside
        self._route_of = route_of
        self._token = token.encode() if token is not None else None
        self._hosts = frozenset({"localhost", "127.0.0.1", "::1", *map(canonical_host, allowed_hosts)})
        self._limits = limits
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["state"]["connection"]
        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._counters.requests[self._route_of.get(scope.get("endpoint"), NO_ROUTE), message["status"]] += 1
            await send(message)

        # Routed by the raw path: a decoded %2F could not be told from a slash between two segments.
        scope["path"] = scope["raw_path"].decode("ascii")
        scope["p2pnode.raw_headers"] = scope["headers"]
        scope["headers"] = [(name.lower(), value) for name, value in scope["headers"]]
        try:
            await self._pass(connection, scope, receive, counted)
        except ClientGone:
            connection.abort()
        except Exception:
            self._counters.unexpected += 1
            logger.exception("unexpected error while answering %s %s", scope["method"], scope["path"])
            if started:
                # A cut connection is the only way left to say that the answer is not whole.
                connection.abort()
            else:
                await INTERNAL.response()(scope, receive, counted)

    async def _pass(self, connection: Connection, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._refusal(connection, scope)
        body = b""
        if problem is None:
            try:
                with trio.fail_after(self._limits.body_seconds):
                    body = await self._read_body(scope, receive)
            except _TooLarge:
                limit = self._limits.body_bytes
                problem = Problem(413, "payload-too-large", f"a body has at most {limit} bytes; nothing was stored")
            except trio.TooSlowError:
                detail = f"the body was not complete after {self._limits.body_seconds:g} s; nothing was stored"
                problem = Problem(408, "request-timeout", detail)
        if problem is not None:
            await self._refuse(problem.response(), connection, scope, receive, send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._inside(scope, replay, send)

    def _refusal(self, connection: Connection, scope: Scope) -> Problem | None:
        if not isinstance(connection.address, TcpAddress):
            return None
        hosts = _values(scope, b"host")
        name = host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None or name not in {*self._hosts, *connection.own_hosts()}:
            given = ", ".join(hosts) or "missing"
            return Problem(
                421,
                "misdirected-request",
                f"the Host header is {given!r}",
                hint="ask by an address of this machine, or add the name to the API's allowed hosts",
            )
        for origin in _values(scope, b"origin"):
            if origin.partition("://")[2].lower() != hosts[0].strip().lower():
                return Problem(403, "cross-origin", f"the Origin header is {origin!r}, the Host header {hosts[0]!r}")
        if self._token is None or scope["path"] in OPEN_PATHS:
            return None
        return None if self._authorized(_values(scope, b"authorization")) else _unauthorized()

    def _authorized(self, headers: list[str]) -> bool:
        if len(headers) != 1 or self._token is None:
            return False
        scheme, _, presented = headers[0].partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(presented.strip().encode("latin-1"), self._token)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            _TooLarge: longer than the limit, as announced or as sent.
            ClientGone: the client closed before the end.
        """
        limit = self._limits.body_bytes
        for announced in _values(scope, b"content-length"):
            # h11 let only digits pass; more of them than this are no size anybody may send.
            if len(announced) > 18 or int(announced) > limit:
                raise _TooLarge
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > limit:
                raise _TooLarge
            if not message.get("more_body", False):
                return bytes(body)

    async def _refuse(
        self, response: Response, connection: Connection, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request whose body nobody wants: read on for a moment, so that the client gets to our answer."""
        response.headers["Connection"] = "close"
        complete = True

        async def send_then_drain(message: Message) -> None:
            nonlocal complete
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({**message, "more_body": True})
            complete = await self._drained(receive)
            if complete:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await response(scope, receive, send_then_drain)
        if not complete:
            connection.abort()

    async def _drained(self, receive: Receive) -> bool:
        """Throw the rest of the body away; False when it did not end within the limits."""
        size = 0
        with trio.move_on_after(self._limits.drain_seconds):
            while size <= _DRAIN_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return True
        return False


def _unauthorized() -> Problem:
    return Problem(
        401,
        "unauthorized",
        "this listener asks for the sidecar's token: send `Authorization: Bearer TOKEN`",
        hint="the token is in the file that api.token_file names; the Unix socket needs none",
        headers={"WWW-Authenticate": 'Bearer realm="p2pnode"'},
    )


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
