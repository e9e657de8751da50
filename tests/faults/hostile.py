"""A hostile libp2p peer: speaks Noise and yamux well, and everything above as badly as asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol

from p2pnode.errors import Unavailable
from p2pnode.host.frames import FrameDecoder, encode_frame
from p2pnode.host.library import LIBRARY_ERRORS, LibraryHost, to_library_id
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import RPC
from p2pnode.wire.rpc import MAX_RPC_BYTES
from tests.e2e.harness import Node, wait_until

T = TypeVar("T")
MESHSUB = "/meshsub/1.1.0"
PATIENCE_SECONDS = 120.0


class HostilePeer:
    """One connection to a victim, and one pubsub stream on it that is opened again when the victim ends it.

    Attributes:
        heard: the RPCs that the victim sent.
    """

    def __init__(self, host: LibraryHost, identity: Identity, victim: str) -> None:
        self._host = host
        self._victim = victim
        self._stream: INetStream | None = None
        self.identity = identity
        self.heard: list[RPC] = []

    @property
    def connected(self) -> bool:
        return bool(self._host.links())

    async def connect(self) -> None:
        await self._host.dial(self._victim)

    async def open(self, protocol: str = MESHSUB) -> INetStream:
        peer = await self._host.dial(self._victim)
        return await self._host.library.new_stream(to_library_id(peer), [TProtocol(protocol)])

    async def write(self, data: bytes) -> None:
        """Write bytes to the pubsub stream, to a new one if that has ended; a victim that refuses both is fine."""
        for _ in range(2):
            try:
                with trio.move_on_after(10):
                    if self._stream is None:
                        self._stream = await self.open()
                    await self._stream.write(data)
                    return
            except (Unavailable, *LIBRARY_ERRORS):
                pass
            self._stream = None

    async def write_to(self, protocol: str, data: bytes) -> None:
        """Write bytes to a new stream of another protocol, and leave it open."""
        try:
            with trio.move_on_after(10):
                await (await self.open(protocol)).write(data)
        except (Unavailable, *LIBRARY_ERRORS):
            pass

    async def send(self, *rpcs: RPC) -> None:
        """Send RPCs one after the other by one stream."""
        for rpc in rpcs:
            await self.write(encode_frame(rpc.SerializeToString()))

    async def hear(self, stream: INetStream) -> None:
        """Keep what the victim sends."""
        decoder = FrameDecoder(MAX_RPC_BYTES)
        while data := await stream.read(65_536):
            self.heard += [RPC.FromString(frame) for frame in decoder.feed(data)]

    def score_at(self, victim: Node) -> float | None:
        """What the victim thinks of it; None when it is not connected."""
        found = [peer["score"] for peer in victim.get("/api/v1/peers") if peer["peer_id"] == self.identity.peer_id]
        return found[0] if found else None


async def eventually(what: str, found: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """`wait_until` in a thread, so that streams go on meanwhile."""
    return await trio.to_thread.run_sync(wait_until, what, found, seconds)


@asynccontextmanager
async def hostile_peer(victim: str, *, listens: bool = False, reads: bool = True) -> AsyncIterator[HostilePeer]:
    """A hostile peer that can dial `victim` (a multiaddr with its peer id).

    Args:
        listens: take the victim's own pubsub stream, too.
        reads: read what comes by it; else its window is never opened again.
    """
    identity = Identity.generate()
    async with open_host(identity, []) as host:
        peer = HostilePeer(host, identity, victim)
        if listens:
            host.set_handler(MESHSUB, peer.hear if reads else _never_read)
        yield peer


async def _never_read(stream: INetStream) -> None:
    await trio.sleep_forever()
