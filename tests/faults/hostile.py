"""A hostile libp2p peer: speaks Noise and yamux well, and everything above as badly as asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol

from p2pnode.host.frames import encode_frame, encode_varint
from p2pnode.host.library import LIBRARY_ERRORS, LibraryHost, open_host, to_library_id
from p2pnode.identity import Identity
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import RPC, Message
from p2pnode.wire.pubsub import seal_message

MESHSUB = "/meshsub/1.1.0"


class HostilePeer:
    """One connection to a victim; each call opens a stream of its own."""

    def __init__(self, host: LibraryHost, identity: Identity, victim: str) -> None:
        self._host = host
        self.identity = identity
        self._victim = victim

    async def open(self, protocol: str = MESHSUB) -> INetStream:
        peer = await self._host.dial(self._victim)
        return await self._host.library.new_stream(to_library_id(peer), [TProtocol(protocol)])

    async def write(self, data: bytes, protocol: str = MESHSUB) -> None:
        """Write bytes and leave the stream open; a victim that hangs up in between is fine."""
        stream = await self.open(protocol)
        try:
            with trio.move_on_after(10):
                await stream.write(data)
        except LIBRARY_ERRORS:
            pass

    async def send_rpc(self, rpc: RPC) -> None:
        await self.write(encode_frame(rpc.SerializeToString()))


@asynccontextmanager
async def hostile_peer(victim: str) -> AsyncIterator[HostilePeer]:
    """A hostile peer that can dial `victim` (a multiaddr with its peer id)."""
    identity = Identity.generate()
    async with open_host(identity, ["/ip4/127.0.0.1/tcp/0"]) as host:
        yield HostilePeer(host, identity, victim)


def oversize_length() -> bytes:
    return encode_varint(1 << 40) + b"x" * 100


def endless_varint() -> bytes:
    return b"\xff" * 64


def garbage() -> bytes:
    return encode_frame(bytes(range(256)) * 8)


def unsigned(identity: Identity, topic: str, data: bytes, seqno: int) -> RPC:
    message = Message(data=data, seqno=seqno.to_bytes(8, "big"), topic=topic)
    setattr(message, "from", identity.peer_id_bytes)
    return RPC(publish=[message.SerializeToString()])


def signed(identity: Identity, topic: str, data: bytes, seqno: int) -> RPC:
    sealed = seal_message(origin=identity.peer_id_bytes, seqno=seqno, topic=topic, data=data, sign=identity.sign)
    return RPC(publish=[sealed.raw])


def forged(identity: Identity, topic: str, data: bytes, seqno: int) -> RPC:
    """Signed well, then changed: the signature does not fit the data any more."""
    sealed = seal_message(origin=identity.peer_id_bytes, seqno=seqno, topic=topic, data=data, sign=identity.sign)
    message = Message.FromString(sealed.raw)
    message.data = data + b"!"
    return RPC(publish=[message.SerializeToString()])
