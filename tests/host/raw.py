"""A peer that shakes hands as the library does, and writes afterwards whatever bytes a test wants."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.abc import ISecureConn
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair
from libp2p.custom_types import TMuxerClass, TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr.multiaddr import Multiaddr

from p2pnode.core.peerid import PeerId
from p2pnode.core.yamux import HEADER
from p2pnode.host.fused.takeover import Handshaken, take_over
from p2pnode.host.library import to_library_id
from p2pnode.identity import Identity

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
CLOSED = (trio.BrokenResourceError, trio.ClosedResourceError)


def frame(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    """A yamux frame that says of itself what it is told to."""
    return HEADER.pack(0, kind, flags, stream, length) + body


def data_frame(stream: int, body: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream, len(body), body)


def upgrader_of(identity: Identity, protocol: str = YAMUX, muxer: TMuxerClass = Yamux) -> TransportUpgrader:
    """The library's, with Noise and one muxer."""
    private = Ed25519PrivateKey.from_bytes(identity.seed)
    keys = KeyPair(private, private.get_public_key())
    return TransportUpgrader(
        {NOISE: NoiseTransport(keys, new_x25519_key_pair().private_key)}, {TProtocol(protocol): muxer}
    )


def library_id(identity: Identity) -> ID:
    return to_library_id(identity.peer_id)


@asynccontextmanager
async def secured_pair(dials: Identity, listens: Identity) -> AsyncIterator[tuple[ISecureConn, ISecureConn]]:
    """Two ends of a loopback connection after the library's own Noise handshake; who dialled is the first."""
    ends: dict[bool, ISecureConn] = {}
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        near = await trio.open_tcp_stream(*listener.socket.getsockname())
        far = await listener.accept()

    async def secure(stream: trio.SocketStream, identity: Identity, initiator: bool) -> None:
        raw = RawConnection(TrioTCPStream(stream), initiator)
        peer = library_id(listens) if initiator else None
        ends[initiator] = await upgrader_of(identity).upgrade_security(raw, initiator, peer)

    async with near, far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(secure, near, dials, True)
            nursery.start_soon(secure, far, listens, False)
        yield ends[True], ends[False]


class RawPeer:
    """The keys of a real connection, in the hands of a test.

    Attributes:
        identity: who it is.
        plain: what the other side sent, decrypted, as far as it was read.
    """

    def __init__(self, identity: Identity, handshaken: Handshaken) -> None:
        self.identity = identity
        self.plain = bytearray(handshaken.early)
        self._stream = handshaken.stream
        self.seal = handshaken.seal.seal
        self._open = handshaken.open.feed

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    async def send(self, *frames: bytes) -> None:
        """Yamux bytes, sealed; a connection that is closed already takes them silently."""
        await self.send_raw(self.seal(b"".join(frames)))

    async def send_raw(self, data: bytes) -> None:
        """Bytes for the socket, as they are."""
        try:
            await self._stream.send_all(data)
        except CLOSED:
            pass

    async def read_some(self) -> bool:
        """Read once; False when the connection is closed."""
        try:
            data = await self._stream.receive_some(65_536)
        except CLOSED:
            return False
        if data:
            self.plain += self._open(data)
        return bool(data)

    async def read_until(self, part: bytes) -> None:
        while part not in self.plain:
            assert await self.read_some(), "the connection was closed before that came"

    async def closed(self) -> float:
        """Read until the other side closes; seconds until it did."""
        start = trio.current_time()
        while await self.read_some():
            self.plain.clear()
        return trio.current_time() - start

    async def end(self) -> None:
        """Close the socket for writing; closing it whole would be a reset when something is unread."""
        await self._stream.send_eof()


async def tcp_to(addr: str) -> trio.SocketStream:
    """A plain TCP connection to a multiaddr."""
    multiaddr = Multiaddr(addr)
    host, port = multiaddr.value_for_protocol("ip4"), multiaddr.value_for_protocol("tcp")
    assert host is not None
    assert port is not None
    return await trio.open_tcp_stream(host, int(port))


@asynccontextmanager
async def raw_peer(addr: str, identity: Identity | None = None) -> AsyncIterator[RawPeer]:
    """Dial a multiaddr with a peer id, shake hands, agree on yamux; from there on the test writes."""
    identity = identity or Identity.generate()
    peer = to_library_id(PeerId(addr.rpartition("/p2p/")[2]))
    stream = await tcp_to(addr)
    try:
        upgrader = upgrader_of(identity)
        secured = await upgrader.upgrade_security(RawConnection(TrioTCPStream(stream), True), True, peer)
        await upgrader.muxer_multistream.select_transport(secured)
        yield RawPeer(identity, take_over(secured))
    finally:
        await trio.aclose_forcefully(stream)


class Proxy:
    """Forwards TCP to a port of this machine until it is told to stop: then it keeps its sockets and moves no byte."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self._target = target
        self._scope = trio.CancelScope()

    def blackhole(self) -> None:
        self._scope.cancel()

    async def serve(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self._target)
        async with near, far:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_copy, near, far)
                    nursery.start_soon(_copy, far, near)
            if self._scope.cancelled_caught:
                await trio.sleep_forever()


async def _copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()
    except CLOSED:
        pass


@asynccontextmanager
async def proxy_to(addr: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy, and the address by which `addr` is reached through it."""
    port = Multiaddr(addr).value_for_protocol("tcp")
    assert port
    async with trio.open_nursery() as nursery:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        proxy = Proxy(listener.socket.getsockname()[1], int(port))
        nursery.start_soon(functools.partial(trio.serve_listeners, proxy.serve, [listener]))
        yield proxy, addr.replace(f"/tcp/{port}/", f"/tcp/{proxy.port}/")
        nursery.cancel_scope.cancel()
