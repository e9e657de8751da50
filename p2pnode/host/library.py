"""The libp2p host behind `ports.Host`: dialling, requests, streams and links on py-libp2p, with its traps covered."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from libp2p.abc import IHost, INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.peer.peerstore import PeerStoreError

from p2pnode.core.peerid import PeerId, peer_id_bytes
from p2pnode.core.yamux import GoAwayCode
from p2pnode.errors import P2PNodeError, Unavailable
from p2pnode.host.announcing import Announced
from p2pnode.host.dialling import Dialling
from p2pnode.host.foreign import LIBRARY_ERRORS, from_library_id, reason_of, to_library_id
from p2pnode.host.frames import encode_frame, read_frame
from p2pnode.host.fused.connection import FusedConnection
from p2pnode.host.fused.outbox import Outbox
from p2pnode.host.strangers import Strangers
from p2pnode.identity import Identity
from p2pnode.ports import Direction, HostEvents, Link

__all__ = ["AGENT_KEY", "LIBRARY_ERRORS", "LibraryHost", "from_library_id", "quiet_library_logs", "to_library_id"]

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_SECONDS = 10.0
HANG_UP_SECONDS = 2.0
COLLAPSE_SECONDS = 1.0
WATCH_SECONDS = 2.0
PING_PROTOCOL = TProtocol("/ipfs/ping/1.0.0")
PING_BYTES = 32
AGENT_KEY = "agent_version"

DEAD_LINK_OPTIONS = (
    ("TCP_KEEPIDLE", 4),  # seconds
    ("TCP_KEEPINTVL", 2),
    ("TCP_KEEPCNT", 4),
    ("TCP_USER_TIMEOUT", 12_000),  # milliseconds; for what was sent and not acknowledged, where no keepalive is sent
)
"""A silent link of the library's is given up 12 s after the last sign of life, as `fused/outbox.py` does its own."""


def quiet_library_logs() -> None:
    """Its warnings go to stderr unformatted otherwise."""
    library = logging.getLogger("libp2p")
    library.addHandler(logging.NullHandler())
    library.propagate = False


class LibraryHost:
    """`ports.Host` on py-libp2p. Made by `open_host`, usable inside it only.

    Attributes:
        refused: connections that came in from another private network, or from none.
    """

    def __init__(
        self,
        identity: Identity,
        host: IHost,
        swarm: Swarm,
        outbox: Outbox,
        *,
        announce: Sequence[str] = (),
        announce_cidr: Sequence[str] = (),
    ) -> None:
        self._identity = identity
        self.library = host
        self.swarm = swarm
        self.outbox = outbox
        self.refused = Strangers()
        self._links: dict[PeerId, Link] = {}
        self._sockets: dict[INetConn, trio.SocketStream | None] = {}
        self._listeners: list[HostEvents] = []
        self._round_trips: dict[PeerId, float] = {}
        self._hung_up: set[PeerId] = set()
        self._tasks: trio.Nursery | None = None
        self.handler_failures = 0
        self._announced = Announced(self.peer_id, announce, announce_cidr, self._listening)
        self._dialling = Dialling(self.peer_id, swarm, self._links)
        outbox.on_silent = self._silent

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    def report_to(self, events: HostEvents) -> None:
        """Who else hears of links from now on; the ones already open are told at once."""
        self._listeners.append(events)
        for link in tuple(self._links.values()):
            events.link_opened(link)

    def addrs(self) -> tuple[str, ...]:
        return self._announced.addrs()

    def _listening(self) -> list[str]:
        return [str(addr) for listener in self.swarm.listeners.values() for addr in listener.get_addrs()]

    def links(self) -> Mapping[PeerId, Link]:
        return self._links

    async def dial(self, addr: str) -> PeerId:
        return await self._dialling.dial(addr)

    async def probe(self, peer: PeerId, addrs: Sequence[str], patience_seconds: float, *, fresh: bool = False) -> bool:
        if not fresh and self._is_heard(peer):
            return True
        return await self._dialling.probe(peer, addrs, patience_seconds)

    def round_trip(self, peer: PeerId) -> float | None:
        return next((c.round_trip for c in self._fused(peer) if c.round_trip is not None), self._round_trips.get(peer))

    def _is_heard(self, peer: PeerId) -> bool:
        """Did a link say something within the last second?"""
        return any(not connection.silent_looks for connection in self._fused(peer))

    def _fused(self, peer: PeerId) -> list[FusedConnection]:
        connections = [each.muxed_conn for each in self.swarm.get_connections(to_library_id(peer))]
        return [each for each in connections if isinstance(each, FusedConnection) and not each.is_closed]

    async def hang_up(self, peer: PeerId) -> None:
        self._hung_up.add(peer)
        # The library's own connections hang behind a stalled write when closed: closing the raw sockets does not.
        connections = tuple(self.swarm.get_connections(to_library_id(peer)))
        with trio.move_on_after(HANG_UP_SECONDS / 2) as patience:
            try:
                await self.swarm.close_peer(to_library_id(peer))
            except LIBRARY_ERRORS as error:
                log.debug("closing a connection failed", extra={"peer": peer, "reason": reason_of(error)})
        if patience.cancelled_caught:
            for connection in connections:
                self._cut(connection)
            for connection in connections:
                await self._bury(connection)

    async def _bury(self, connection: INetConn) -> None:
        """End what the library thinks is closed already: a second `close` of it does nothing and reports nothing."""
        if isinstance(connection, SwarmConn):
            with trio.move_on_after(HANG_UP_SECONDS / 4):
                try:
                    await connection._cleanup()
                except LIBRARY_ERRORS as error:
                    log.debug("clearing up after a connection failed", extra={"reason": reason_of(error)})
            self.swarm.remove_conn(connection)
        self.closed(connection)

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, limit_bytes: int) -> bytes:
        async with self._stream(peer, protocol) as stream:
            await stream.write(encode_frame(body))
            return await read_frame(stream, limit_bytes)

    def counters(self) -> Mapping[tuple[str, str], int]:
        counted = {("broken", reason): count for reason, count in self.outbox.broken_by.items()}
        if self.refused.refused:
            counted["refused", "network-key"] = self.refused.refused
        return {
            **counted,
            ("failed", "stream"): self.outbox.failures,
            ("failed", "handler"): self.handler_failures,
        }

    def strangers(self) -> Mapping[str, int]:
        return self.refused.by_ip()

    def agent_version(self, peer: PeerId) -> str | None:
        """What the peer called its software in identify; None until it did."""
        try:
            return str(self.library.get_peerstore().get(to_library_id(peer), AGENT_KEY))
        except PeerStoreError:
            return None

    def serve(self, protocol: str, answer: Callable[[PeerId, bytes], Awaitable[bytes]], *, limit_bytes: int) -> None:
        async def handle(stream: INetStream) -> None:
            peer = from_library_id(stream.muxed_conn.peer_id)
            with trio.fail_after(REQUEST_TIMEOUT_SECONDS):
                body = await read_frame(stream, limit_bytes)
                await stream.write(encode_frame(await answer(peer, body)))
                await stream.close()

        self.set_handler(protocol, handle)

    def set_handler(self, protocol: str, handle: Callable[[INetStream], Awaitable[None]]) -> None:
        """Serve a protocol; whatever goes wrong in `handle` ends that stream only.

        An exception that leaves a handler ends the library's host.
        """

        async def guarded(stream: INetStream) -> None:
            try:
                await handle(stream)
            except (P2PNodeError, trio.TooSlowError, *LIBRARY_ERRORS) as error:
                log.debug("stream ended", extra={"protocol": protocol, "reason": reason_of(error)})
                await self.reset(stream)
            except Exception:
                self.handler_failures += 1
                log.exception("a stream handler failed; only its stream ends", extra={"protocol": protocol})
                await self.reset(stream)

        self.library.set_stream_handler(TProtocol(protocol), guarded)

    async def reset(self, stream: INetStream) -> None:
        """End a stream whatever state it is in, without waiting for a peer that does not read."""
        with trio.move_on_after(1.0):
            try:
                await stream.reset()
            except LIBRARY_ERRORS:
                pass  # it was gone already

    async def ping(self, peer: PeerId) -> float:
        async with self._stream(peer, PING_PROTOCOL) as stream:
            return await _echoed(peer, stream)

    @asynccontextmanager
    async def _stream(self, peer: PeerId, protocol: str) -> AsyncIterator[INetStream]:
        if peer not in self._links:
            raise Unavailable(f"not connected to {peer}", reason="not-connected")
        stream: INetStream | None = None
        try:
            with trio.fail_after(REQUEST_TIMEOUT_SECONDS):
                stream = await self.library.new_stream(to_library_id(peer), [TProtocol(protocol)])
                yield stream
                await stream.close()
        except trio.TooSlowError as error:
            raise Unavailable(
                f"{peer} did not answer {protocol} within {REQUEST_TIMEOUT_SECONDS:g} s", reason="timeout"
            ) from error
        except LIBRARY_ERRORS as error:
            raise Unavailable(f"{protocol} with {peer}: {reason_of(error)}", reason="stream") from error
        finally:
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await self.reset(stream)

    def opened(self, connection: INetConn) -> None:
        if connection.is_closed:
            # It broke while the library made it known, and `closed` was called first or will be called still.
            if isinstance(connection, SwarmConn):
                self.swarm.remove_conn(connection)
            return
        peer = from_library_id(connection.muxed_conn.peer_id)
        self._sockets[connection] = stream = _tcp_stream(connection)
        if stream is not None:
            _notice_a_dead_link(stream)
        if peer in self._links:
            self._start(self._collapse, peer)
            return
        self._hung_up.discard(peer)
        if not isinstance(connection.muxed_conn, FusedConnection):
            self._start(self._watch, peer)
        dialled = bool(getattr(connection.muxed_conn, "is_initiator", False))
        direction: Direction = "outbound" if dialled else "inbound"
        link = Link(peer, direction, _remote_addr(connection))
        self._links[peer] = link
        for listener in self._listeners:
            listener.link_opened(link)

    def cut_all(self) -> None:
        """Close every socket at once, as when the process ended."""
        for connection in tuple(self._sockets):
            self._cut(connection)

    def _cut(self, connection: INetConn) -> None:
        stream = self._sockets.pop(connection, None)
        if isinstance(connection.muxed_conn, FusedConnection):
            connection.muxed_conn.abort("closed by us", GoAwayCode.NORMAL)
        elif stream is not None:
            stream.socket.close()

    def closed(self, connection: INetConn) -> None:
        # The library leaves the socket of a connection that the other side closed to the garbage collector.
        self._cut(connection)
        if isinstance(connection, SwarmConn):
            # One that broke while the library made it known was removed before it was added.
            self.swarm.remove_conn(connection)
        peer_id = connection.muxed_conn.peer_id
        if any(not other.is_closed for other in self.swarm.get_connections(peer_id) if other is not connection):
            return
        peer = from_library_id(peer_id)
        muxed = connection.muxed_conn
        by_intent = peer in self._hung_up or (isinstance(muxed, FusedConnection) and muxed.by_intent)
        self._round_trips.pop(peer, None)
        if self._links.pop(peer, None) is not None:
            for listener in self._listeners:
                listener.link_closed(peer, by_intent=by_intent)

    def work_in(self, nursery: trio.Nursery) -> None:
        """Where what a link needs beside its streams runs from now on."""
        self._tasks = nursery

    def _start(self, task: Callable[[PeerId], Awaitable[None]], peer: PeerId) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(task, peer)

    def _silent(self, connection: FusedConnection) -> None:
        peer = from_library_id(connection.peer_id)
        if peer in self._links:
            for listener in self._listeners:
                listener.link_silent(peer)

    async def _watch(self, peer: PeerId) -> None:
        """Ping a link of the library's stack for as long as it stands: nobody else notices that its peer stopped."""
        while peer in self._links:
            try:
                await self._ping_until_silent(peer)
            except (Unavailable, trio.TooSlowError, *LIBRARY_ERRORS):
                if peer in self._links:
                    for listener in self._listeners:
                        listener.link_silent(peer)
            await trio.sleep(WATCH_SECONDS)

    async def _ping_until_silent(self, peer: PeerId) -> None:
        """By one stream that is kept open: a new one for each ping costs two per cent of a core."""
        with trio.fail_after(WATCH_SECONDS):
            stream = await self.library.new_stream(to_library_id(peer), [PING_PROTOCOL])
        try:
            while peer in self._links:
                with trio.fail_after(WATCH_SECONDS):
                    self._round_trips[peer] = await _echoed(peer, stream)
                await trio.sleep(WATCH_SECONDS)
        finally:
            with trio.CancelScope(shield=True):
                await self.reset(stream)

    async def _collapse(self, peer: PeerId) -> None:
        """Close what is one connection too many, after both dialled at once: both sides keep the same one.

        That is the one dialled by the smaller peer id, and of two of those the older.
        """
        await trio.sleep(COLLAPSE_SECONDS)  # the other side must know both
        mine_wins = peer_id_bytes(self.peer_id) < peer_id_bytes(peer)
        standing = [each for each in self.swarm.get_connections(to_library_id(peer)) if not each.is_closed]
        standing.sort(key=lambda each: bool(getattr(each.muxed_conn, "is_initiator", False)) is not mine_wins)
        for extra in standing[1:]:
            log.debug("closing a second connection", extra={"peer": peer})
            with trio.move_on_after(HANG_UP_SECONDS):
                await extra.close()


async def _echoed(peer: PeerId, stream: INetStream) -> float:
    """One round trip on a ping stream, in seconds (libp2p specs, ping/ping.md)."""
    challenge = secrets.token_bytes(PING_BYTES)
    start = trio.current_time()
    await stream.write(challenge)
    echo = b""
    while len(echo) < PING_BYTES:
        data = await stream.read(PING_BYTES - len(echo))
        if not data:
            raise Unavailable(f"{peer} closed the ping stream", reason="ping")
        echo += data
    if echo != challenge:
        raise Unavailable(f"{peer} answered a ping with other bytes", reason="ping")
    return trio.current_time() - start


def _tcp_stream(connection: INetConn) -> trio.SocketStream | None:
    """The socket under yamux, Noise and the library's own wrappers."""
    layer: Any = connection.muxed_conn
    for name in ("secured_conn", "conn", "conn", "stream", "stream"):
        layer = getattr(layer, name, None)
    return layer if isinstance(layer, trio.SocketStream) else None


def _notice_a_dead_link(stream: trio.SocketStream) -> None:
    """Let the kernel look after silence, because the library's yamux pings and does not mind when nothing comes back.

    Only a link is looked after so: a process that stands still has a kernel that goes on to answer.
    """
    with suppress(OSError):  # a socket that is closed already
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE, 1)
        for option, value in DEAD_LINK_OPTIONS:
            number = getattr(trio.socket, option, None)
            if number is not None:  # macOS has other names for some
                stream.setsockopt(trio.socket.IPPROTO_TCP, number, value)


def _remote_addr(connection: INetConn) -> str:
    try:
        muxed: Any = connection.muxed_conn
        remote = muxed.get_remote_address()
    except (AttributeError, *LIBRARY_ERRORS):
        return ""
    if remote is None:
        return ""
    kind = "ip6" if ":" in remote[0] else "ip4"
    return f"/{kind}/{remote[0]}/tcp/{remote[1]}"
