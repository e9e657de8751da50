"""One HTTP/1.1 connection: hypercorn's server on a stream that cannot be stalled forever."""

from __future__ import annotations

import logging
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from p2pnode.api.limits import ApiLimits
from p2pnode.local.address import ApiListener, TcpAddress

logger = logging.getLogger(__name__)

_SLICE_BYTES = 64 * 1024


def hypercorn_config(limits: ApiLimits) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logger
    config.include_server_header = False
    # hypercorn's timer covers both the wait for a request and the arrival of its head.
    config.keep_alive_timeout = limits.idle_seconds
    return config


class BoundedStream:
    """A socket stream whose sends fail when the client stops reading, and that can be closed from outside at once.

    hypercorn shields its sends from cancellation, so without the limit a client could hold a shutdown.

    Args:
        stream: the accepted connection.
        stall_seconds: how long one slice of 64 KiB may wait for the client.
        context: this connection's; told when the client has closed its side, so that hypercorn does not keep
            an idle connection for its whole timeout.
    """

    def __init__(self, stream: trio.SocketStream, *, stall_seconds: float, context: WorkerContext) -> None:
        self._stream = stream
        self._stall_seconds = stall_seconds
        self._context = context
        self.socket = stream.socket

    async def send_all(self, data: bytes) -> None:
        """Raises:
        trio.BrokenResourceError: the client is gone, or has not read for `stall_seconds`.
        """
        with memoryview(data) as view:
            for at in range(0, len(data), _SLICE_BYTES):
                with trio.move_on_after(self._stall_seconds) as patience, view[at : at + _SLICE_BYTES] as part:
                    await self._stream.send_all(part)
                if patience.cancelled_caught:
                    self.close_now()
                    raise trio.BrokenResourceError("the client does not read")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = b""
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        finally:
            if not data:
                await self._context.terminated.set()
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close_now(self) -> None:
        """Close the socket; whoever waits on it gets trio.ClosedResourceError."""
        self.socket.close()


class Connection:
    """What the rest of the API knows of one accepted connection.

    Args:
        stream: as accepted.
        address: the listener it came in on.
        limits: for the stall limit.
    """

    def __init__(self, stream: trio.SocketStream, address: ApiListener, limits: ApiLimits) -> None:
        self.address = address
        self.context = WorkerContext(None)
        self.stream = BoundedStream(stream, stall_seconds=limits.stall_seconds, context=self.context)
        self.scope = trio.CancelScope()

    def own_hosts(self) -> frozenset[str]:
        """The listener's host, and the IP address the client reached us by (no page can rebind an address)."""
        if not isinstance(self.address, TcpAddress):
            return frozenset()
        try:
            local = str(self.stream.socket.getsockname()[0]).partition("%")[0]
        except OSError:
            local = ""
        return frozenset({self.address.host.lower(), local} - {""})

    async def finish(self) -> None:
        """No further request: idle ends now, busy ends after the answer."""
        await self.context.terminated.set()

    def abort(self) -> None:
        """End it at once, in the middle of whatever it does."""
        self.scope.cancel()
        self.stream.close_now()


class HttpServer(TCPServer):
    """hypercorn's server, speaking HTTP/1.1 only.

    Args:
        app: the application.
        config: from `hypercorn_config`.
        connection: what to serve; requests find it in `scope["state"]["connection"]`.
    """

    def __init__(self, app: AppWrapper, config: Config, connection: Connection) -> None:
        state: dict[str, Any] = {"connection": connection}
        super().__init__(app, config, connection.context, state, connection.stream)  # type: ignore[arg-type]

    async def run(self) -> None:
        sock = self.stream.socket  # type: ignore[attr-defined]
        try:
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup() as task_group:
                self._task_group = task_group
                self.protocol = _Http1(  # type: ignore[assignment]
                    self.app,
                    self.config,
                    self.context,
                    task_group,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                )
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self._read_data()
        finally:
            await self._close()


class _Http1(H11Protocol):
    """HTTP/1.1 that leaves every `Upgrade` unanswered, as RFC 9110 section 7.8 allows.

    Neither HTTP/2 nor WebSocket serves a local API, and each is a parser more that anybody could feed.
    """

    async def _check_protocol(self, event: h11.Request) -> None:
        return

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                # `P2P-Council-ID` reaches the message as the client spelled it.
                headers=request.headers.raw_items(),
                http_version=request.http_version.decode("ascii"),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1
