"""Serves the one route by which other sidecars hand over signed messages, to a network that is not trusted.

Every connection carries one request. What it can take from us is bounded (`CarrierLimits`), and what is wrong with it
is said in a problem document; `take` judges the message itself.
"""

from __future__ import annotations

import errno
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_network
from typing import Final

import trio

from p2pnode.carriers.http.protocol import (
    HEALTH_PATH,
    MESSAGE_TYPE,
    MESSAGES_PATH,
    carrier_key,
    is_authorization,
    is_authorized,
)
from p2pnode.carriers.http.receiving import Budget, Early, Gone, Head, Reply, Share, Wire, problem
from p2pnode.core.message import MAX_MESSAGE_BYTES, SignedMessage
from p2pnode.errors import EnvironmentFault, InvalidMessage, Unavailable
from p2pnode.wire.members import MEMBERS_TOPIC
from p2pnode.wire.pubsub import decode_message

log = logging.getLogger(__name__)

Take = Callable[[SignedMessage], Awaitable[str | None]]
"""`node.intake.Intake.take`: None when the message was stored now, `held` when it was before, else why it was not."""

_METHODS: Final = {HEALTH_PATH: "GET", MESSAGES_PATH: "POST"}
_MAX_RETRY_AFTER_SECONDS: Final = 3600.0
_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class CarrierLimits:
    """What one client, or all of them together, can take from us. Only tests should need other values.

    Args:
        connections: open at once; one more is answered 503 unread.
        connections_each: of one IPv4 address, or of one IPv6 network of 64 bits, which one machine may hold.
        buffered_bytes: of bodies in memory; what would go beyond gets 503. One address cannot use it up.
        request_seconds: within which a request must have arrived, else 408.
        take_seconds: within which the node must have taken a message, else 503; its sender waits no longer.
        drain_seconds: how long the rest of a refused request is read and thrown away.
        grace_seconds: how long whole requests get at the end.
    """

    connections: int = 64
    connections_each: int = 8
    buffered_bytes: int = 8 * 1024 * 1024
    request_seconds: float = 10.0
    take_seconds: float = 10.0
    drain_seconds: float = 1.0
    grace_seconds: float = 0.75


@dataclass(slots=True)
class CarrierCounters:
    """Args:
    connections: open now.
    turned_away: connections over the limits.
    unexpected: faults of ours.
    answers: `stored`, `held`, `healthy`, or the `reason` of a problem document.
    """

    connections: int = 0
    turned_away: int = 0
    unexpected: int = 0
    answers: Counter[str] = field(default_factory=Counter)

    def metrics(self) -> Mapping[str, float]:
        """By Prometheus name."""
        return {
            **{f'p2pnode_http_received_total{{result="{word}"}}': float(n) for word, n in self.answers.items()},
            "p2pnode_http_connections": float(self.connections),
            "p2pnode_http_turned_away_total": float(self.turned_away),
            "p2pnode_http_failures_total": float(self.unexpected),
        }


@dataclass(frozen=True, slots=True)
class Carrier:
    """An open carrier.

    Args:
        addresses: where it listens, `HOST:PORT`, with the port that the system chose where it was 0; more than one
            where a host name has more than one address.
        counters: its own numbers.
    """

    addresses: tuple[str, ...]
    counters: CarrierCounters


@asynccontextmanager
async def open_carrier(
    listen: str,
    take: Take,
    *,
    for_good: Collection[str],
    network_key: bytes = b"",
    limits: CarrierLimits | None = None,
) -> AsyncIterator[Carrier]:
    """Take messages on `listen` until the block ends, and for less than a second more.

    Args:
        listen: `HOST:PORT`, IPv6 addresses in brackets; port 0 is a free one.
        take: verifies and stores a message; it may raise EnvironmentFault.
        for_good: answers of `take` with which a message will never be taken: 422; for others it may come again: 503.
        network_key: of the private network, whose members alone may hand over messages; empty in a public one.

    Raises:
        EnvironmentFault: the address is in use, not allowed, or none of this machine.
    """
    listeners = await _listeners(listen)
    server = _Server(take, frozenset(for_good), carrier_key(network_key) if network_key else b"", limits)
    addresses = tuple(_address(listener.socket.getsockname()) for listener in listeners)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.accept, listeners, nursery)
        try:
            yield Carrier(addresses, server.counters)
        except Exception as error:
            failure = error  # raised again outside the nursery, which would wrap it in a group
        finally:
            with trio.CancelScope(shield=True):
                await server.stop()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _listeners(listen: str) -> list[trio.SocketListener]:
    host, _, port = listen.rpartition(":")
    try:
        return list(await trio.open_tcp_listeners(int(port), host=host.strip("[]")))
    except (OSError, UnicodeError) as error:
        code = error.errno if isinstance(error, OSError) else None
        hints = {
            errno.EADDRINUSE: "another program listens there: stop it, or choose another port (0 takes a free one)",
            errno.EACCES: "ports below 1024 need a privilege: choose a higher one",
            errno.EADDRNOTAVAIL: "that is no address of this machine: use 0.0.0.0 or [::] for all of them",
        }
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise EnvironmentFault(
            f"carriers.listen {listen}: cannot listen there ({why})",
            hint=hints.get(code or 0, "write HOST:PORT with an address of this machine, such as 0.0.0.0:9001"),
        ) from None


def _address(name: tuple[object, ...]) -> str:
    host, port = str(name[0]), name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _client(stream: trio.SocketStream) -> str:
    """By what the connections of one client are counted.

    Raises:
        OSError: it is gone already.
    """
    host = str(stream.socket.getpeername()[0]).partition("%")[0]
    return str(ip_network((IPv6Address(host), 64), strict=False)) if ":" in host else host


class _Server:
    def __init__(self, take: Take, for_good: frozenset[str], key: bytes, limits: CarrierLimits | None) -> None:
        self._take = take
        self._for_good = for_good
        self._key = key
        self._limits = limits or CarrierLimits()
        self._budget = Budget(self._limits.buffered_bytes)
        self._clients: Counter[str] = Counter()
        self._accepting = trio.CancelScope()
        self._reading: set[trio.CancelScope] = set()
        self._stopping = trio.Event()
        self._empty = trio.Event()
        self.counters = CarrierCounters()

    async def accept(self, listeners: list[trio.SocketListener], nursery: trio.Nursery) -> None:
        with self._accepting:
            await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)

    async def stop(self) -> None:
        """No connection and no request any more; those that arrived whole get the grace."""
        self._stopping.set()
        self._accepting.cancel()
        for scope in self._reading:
            scope.cancel()
        if self.counters.connections:
            with trio.move_on_after(self._limits.grace_seconds):
                await self._empty.wait()

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            client = _client(stream)
        except OSError:
            return
        if (
            self._stopping.is_set()
            or self.counters.connections >= self._limits.connections
            or self._clients.get(client, 0) >= self._limits.connections_each
        ):
            self.counters.turned_away += 1
            with suppress(OSError, trio.BrokenResourceError):
                await stream.send_all(_BUSY)  # never waits: a new socket has room for so few bytes
            return
        self.counters.connections += 1
        self._clients[client] += 1
        try:
            await self._talk(Wire(stream))
        except (OSError, trio.BrokenResourceError, Gone):
            pass  # the client has gone
        except Exception:
            self.counters.unexpected += 1
            log.exception("a request to the HTTP carrier ended by an unexpected error")
        finally:
            self._clients[client] -= 1
            self._clients += Counter()  # forgets those at 0
            self.counters.connections -= 1
            if self._stopping.is_set() and not self.counters.connections:
                self._empty.set()

    async def _talk(self, wire: Wire) -> None:
        with self._budget.share() as share:
            try:
                head, body = await self._receive(wire, share)
            except Early as early:
                reply = early.reply
            else:
                reply = await self._judge(head, body)
        self.counters.answers[reply.word] += 1
        with trio.move_on_after(self._limits.drain_seconds):
            await wire.answer(reply)
            await wire.drain()

    async def _receive(self, wire: Wire, share: Share) -> tuple[Head, bytes]:
        """A whole request to take a message.

        Raises:
            Early: anything else, with the answer to it.
            Gone: the client left, said nothing, or we stop.
        """
        with trio.move_on_after(self._limits.request_seconds) as patience:
            self._reading.add(patience)
            try:
                head = await wire.read_head()
                self._check(head)
                body = await wire.read_body(head, MAX_MESSAGE_BYTES, share)
            finally:
                self._reading.discard(patience)
        if patience.cancelled_caught:
            if self._stopping.is_set() or not wire.begun:
                raise Gone
            seconds = f"{self._limits.request_seconds:g}"
            raise Early(problem(408, "timeout", f"the request was not complete after {seconds} s"))
        return head, body

    def _check(self, head: Head) -> None:
        """Raises:
        Early: with what is wrong, or with the answer to `GET /health`.
        """
        method = _METHODS.get(head.target)
        if method is None:
            detail = f"there is POST {MESSAGES_PATH} and GET {HEALTH_PATH}, and nothing else"
            raise Early(problem(404, "not-found", detail))
        if head.method != method:
            raise Early(problem(405, "method", f"{head.target} knows {method} only", {"Allow": method}))
        if head.target == HEALTH_PATH:
            raise Early(Reply("healthy", 200, {"status": "healthy"}))
        media_type = ",".join(head.values("content-type")).partition(";")[0].strip().lower()
        if media_type != MESSAGE_TYPE:
            raise Early(problem(415, "media-type", f"the Content-Type must be {MESSAGE_TYPE}"))
        if self._key:
            proofs = head.values("authorization")
            if len(proofs) != 1 or not is_authorization(proofs[0]):
                raise Early(_unauthorized("the request carries no proof of the network key"))

    async def _judge(self, head: Head, body: bytes) -> Reply:
        if self._key and not is_authorized(head.values("authorization")[0], self._key, body):
            return _unauthorized("the proof was made with another network key, or for another body")
        try:
            message = decode_message(body)
        except InvalidMessage as error:
            return problem(422, error.reason, error.detail)
        if message.topic == MEMBERS_TOPIC:
            return problem(422, "members", f"{MEMBERS_TOPIC} is spoken between bridges only")
        try:
            with trio.move_on_after(self._limits.take_seconds) as patience:
                word = await self._take(message)
        except Unavailable as error:
            return _later(error.reason, error.detail, error.retry_after_seconds)
        except EnvironmentFault as error:
            return problem(507, "storage", error.detail)
        except Exception:
            self.counters.unexpected += 1
            log.exception("unexpected error while taking a message by HTTP")
            return problem(500, "internal", "the sidecar's log says more; the message may be stored or not")
        if patience.cancelled_caught:
            return _later("slow", f"the message was not stored within {self._limits.take_seconds:g} s", 5.0)
        if word is None:
            return Reply("stored", 200, {"stored": True})
        if word == "held":
            return Reply("held", 200, {"stored": False, "held": True})
        if word in self._for_good:
            return problem(422, word, f"the message is not taken, and never will be: {word}")
        return _later(word, f"the message is not taken now: {word}", 5.0)


def _unauthorized(detail: str) -> Reply:
    return problem(401, "unauthorized", detail, {"WWW-Authenticate": "P2PNode-MAC"})


def _later(reason: str, detail: str, seconds: float) -> Reply:
    # An hour for NaN too.
    wait = math.ceil(max(seconds, 1.0)) if seconds < _MAX_RETRY_AFTER_SECONDS else int(_MAX_RETRY_AFTER_SECONDS)
    return problem(503, reason, detail, {"Retry-After": str(wait)})
