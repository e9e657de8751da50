"""Opens the API: bound and accepting when `open_api` yields, closed within two seconds when it ends."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.typing import ASGIFramework

from p2pnode.api.connection import Connection, HttpServer, hypercorn_config
from p2pnode.api.gate import Gate, host_name
from p2pnode.api.limits import ApiLimits
from p2pnode.api.listeners import Endpoint, Listener, open_tcp, open_unix, resolve
from p2pnode.api.metrics import ApiCounters
from p2pnode.api.routes import Resources
from p2pnode.errors import Fault, InvalidRequest
from p2pnode.local.address import ApiListener, TcpAddress, UnixAddress
from p2pnode.ports import Sidecar

logger = logging.getLogger(__name__)

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Api:
    """An open API.

    Args:
        addresses: where it listens, in the order asked for, with the ports the system chose.
        counters: its own numbers; also in `/metrics`.
    """

    addresses: tuple[ApiListener, ...]
    counters: ApiCounters


@asynccontextmanager
async def open_api(
    sidecar: Sidecar,
    listeners: Sequence[ApiListener],
    *,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    limits: ApiLimits | None = None,
) -> AsyncIterator[Api]:
    """Serve `sidecar` over HTTP until the block ends.

    At the end no connection is accepted any more, event streams are ended, running requests get the grace of
    `limits`, and then their sockets are closed, whatever the clients do.

    Args:
        sidecar: who answers.
        listeners: where; addresses are all checked before the first is opened.
        token: what TCP clients must present as `Authorization: Bearer`; needed for a listener off loopback,
            and asked for on every TCP listener when set. `/health`, `/ready` and the Unix socket need none.
        allowed_hosts: names, without port, by which TCP clients may also address this machine (Host header).
        limits: bounds; the default ones are for everybody but tests.

    Raises:
        InvalidRequest: a listener off loopback without token, an unusable token, a name that is no host.
        EnvironmentFault: an address in use, not allowed, too long, or held by another sidecar.
    """
    limits = limits or ApiLimits()
    endpoints = [await resolve(address) if isinstance(address, TcpAddress) else address for address in listeners]
    _check(endpoints, token, allowed_hosts)
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(open_tcp(where) if isinstance(where, Endpoint) else open_unix(where))
            for where in endpoints
        ]
        server = _Server(sidecar, opened, token=token, allowed_hosts=allowed_hosts, limits=limits)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            for listener in opened:
                nursery.start_soon(server.accept, listener, nursery)
            try:
                yield Api(tuple(listener.address for listener in opened), server.counters)
            except Exception as error:
                # Raised again outside the nursery, which would wrap it in a group.
                failure = error
            finally:
                with trio.CancelScope(shield=True):
                    await server.stop_accepting()
                    await stack.aclose()
                    await server.drain()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


def _check(endpoints: Sequence[Endpoint | UnixAddress], token: str | None, allowed_hosts: Sequence[str]) -> None:
    faults = []
    if token is None:
        faults += [
            Fault(
                str(where.address),
                "a listener off loopback needs a bearer token: set api.token_file, or listen on tcp:127.0.0.1:"
                f"{where.address.port}",
            )
            for where in endpoints
            if isinstance(where, Endpoint) and not where.is_loopback
        ]
    elif not token or not token.isascii() or not token.isprintable() or " " in token:
        faults.append(Fault("api.token_file", "a token is one line of printable ASCII without blanks, and not empty"))
    faults += [
        Fault("api.allowed_hosts", f"{name!r} is no host name: write it as clients do, such as sidecar.example")
        for name in allowed_hosts
        if host_name(name) is None
    ]
    if faults:
        raise InvalidRequest("the API cannot be opened like this", faults)


class _Server:
    """The accept loops and the connections they opened."""

    def __init__(
        self,
        sidecar: Sidecar,
        listeners: Sequence[Listener],
        *,
        token: str | None,
        allowed_hosts: Sequence[str],
        limits: ApiLimits,
    ) -> None:
        self.counters = ApiCounters()
        self._limits = limits
        self._stopping = trio.Event()
        self._config = hypercorn_config(limits)
        self._connections: set[Connection] = set()
        self._empty = trio.Event()
        self._accepting = [trio.CancelScope() for _ in listeners]
        self._scope_of = dict(zip(map(id, listeners), self._accepting, strict=True))
        resources = Resources(sidecar, limits=limits, counters=self.counters, stopping=self._stopping)
        application = resources.application()
        gate = Gate(
            application,
            route_of={route.endpoint: route.path for route in resources.routes()},
            token=token,
            allowed_hosts=allowed_hosts,
            limits=limits,
            counters=self.counters,
        )
        self._app = ASGIWrapper(cast(ASGIFramework, gate))

    async def accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        """Accept for as long as there are free slots; what comes beyond waits in the system's backlog."""
        slots = trio.Semaphore(self._limits.connections)
        with self._scope_of[id(listener)]:
            while True:
                await slots.acquire()
                stream = await self._next(listener)
                connection = Connection(stream, listener.address, self._limits)
                self._connections.add(connection)
                self.counters.connections += 1
                nursery.start_soon(self._serve, connection, slots)

    async def _next(self, listener: Listener) -> trio.SocketStream:
        while True:
            try:
                return await listener.listener.accept()
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    self.counters.unexpected += 1
                logger.error("%s: cannot accept a connection: %s", listener.address, error)
                await trio.sleep(_ACCEPT_PAUSE_SECONDS)

    async def _serve(self, connection: Connection, slots: trio.Semaphore) -> None:
        try:
            with connection.scope:
                await HttpServer(self._app, self._config, connection).run()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client is gone
        except* Exception:
            self.counters.unexpected += 1
            logger.exception("a connection ended by an unexpected error")
        finally:
            connection.stream.close_now()
            self._connections.discard(connection)
            self.counters.connections -= 1
            slots.release()
            if self._stopping.is_set() and not self._connections:
                self._empty.set()

    async def stop_accepting(self) -> None:
        for scope in self._accepting:
            scope.cancel()
        self._stopping.set()
        for connection in list(self._connections):
            await connection.finish()
        if not self._connections:
            self._empty.set()

    async def drain(self) -> None:
        """Give running requests the grace, then cut them."""
        with trio.move_on_after(self._limits.grace_seconds):
            await self._empty.wait()
        for connection in list(self._connections):
            connection.abort()
