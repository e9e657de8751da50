"""A stock py-libp2p peer with the GossipSub it ships; speaks the protocol of `control.py`.

Run by `tests.interop.peers` with our own interpreter, but without a line of p2pnode: host, Noise, yamux and pubsub are
the library's as it makes them. Three defaults of its router are changed, or it would not gossip at all like the others:
the heartbeat (120 s), adaptive gossip (which stretches it) and spam protection (10 messages a second and topic).
"""

# ruff: noqa: E402 - stdout is taken before the library is imported

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.interop.control import Output, serve

output = Output()

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr.multiaddr import Multiaddr

T = TypeVar("T")
MESHSUB = TProtocol("/meshsub/1.2.0")
ECHO_CHUNK_BYTES = 65536


class LibraryPeer:
    """Blocking calls, made from a thread, into the trio loop of the library."""

    def __init__(self, host: IHost, pubsub: Pubsub, router: GossipSub, nursery: trio.Nursery) -> None:
        self._host, self._pubsub, self._router, self._nursery = host, pubsub, router, nursery
        self._topics: set[str] = set()
        self.peer_id = str(host.get_id())
        self.addrs = [str(addr) for addr in host.get_addrs()]

    def dial(self, addr: str) -> None:
        self._wait(lambda: self._host.connect(info_from_p2p_addr(Multiaddr(addr))))

    def subscribe(self, topic: str) -> None:
        if topic not in self._topics:
            self._topics.add(topic)
            self._wait(lambda: self._read(topic))

    def publish(self, topic: str, data: bytes) -> None:
        self._wait(lambda: self._pubsub.publish(topic, data))

    def peers(self) -> list[str]:
        return self._now(lambda: [str(peer) for peer in self._host.get_connected_peers()])

    def topic_peers(self, topic: str) -> list[str]:
        return self._now(lambda: [str(peer) for peer in self._pubsub.peer_topics.get(topic, ())])

    def mesh(self, topic: str) -> list[str]:
        return self._now(lambda: [str(peer) for peer in self._router.mesh.get(topic, ())])

    def streams(self, peer: str) -> None:
        """The library does not say which of its streams are pubsub's."""

    def serve_echo(self, protocols: list[str]) -> None:
        for protocol in protocols:
            self._now(lambda protocol=protocol: self._host.set_stream_handler(TProtocol(protocol), _say_again))  # type: ignore[misc]

    def echo(self, peer: str, protocols: list[str], streams: int, size: int) -> int:
        return self._wait(lambda: self._echo(ID.from_string(peer), protocols, streams, size))

    async def _read(self, topic: str) -> None:
        subscription = await self._pubsub.subscribe(topic)

        async def read() -> None:
            while True:
                message = await subscription.get()
                author = str(ID(message.from_id))
                if author != self.peer_id:
                    output.message(topic, author, message.seqno, message.data)

        self._nursery.start_soon(read)

    async def _echo(self, peer: ID, protocols: list[str], streams: int, size: int) -> int:
        opened = [
            await self._host.new_stream(peer, [TProtocol(protocols[index % len(protocols)])])
            for index in range(streams)
        ]
        first = await _all_echoed(opened, 1)
        rest = await _all_echoed(opened, size)
        for stream in opened:
            await stream.close()
        return sum(map(min, first, rest))

    def _wait(self, call: Callable[[], Awaitable[T]]) -> T:
        return trio.from_thread.run(call)

    def _now(self, call: Callable[[], T]) -> T:
        return trio.from_thread.run_sync(call)


async def _all_echoed(streams: list[INetStream], size: int) -> list[bool]:
    equal = [False] * len(streams)

    async def one(index: int) -> None:
        equal[index] = await _is_echoed(streams[index], os.urandom(size))

    async with trio.open_nursery() as nursery:
        for index in range(len(streams)):
            nursery.start_soon(one, index)
    return equal


async def _is_echoed(stream: INetStream, data: bytes) -> bool:
    came = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_say, stream, data)
        while len(came) < len(data):
            came += await stream.read(min(len(data) - len(came), ECHO_CHUNK_BYTES))
    return came == data


async def _say(stream: INetStream, data: bytes) -> None:
    for offset in range(0, len(data), ECHO_CHUNK_BYTES):
        await stream.write(data[offset : offset + ECHO_CHUNK_BYTES])


async def _say_again(stream: INetStream) -> None:
    try:
        while data := await stream.read(ECHO_CHUNK_BYTES):
            await stream.write(data)
    except StreamError:
        pass  # the end is an error too
    await stream.close()


async def main() -> None:
    logging.getLogger("libp2p").addHandler(logging.NullHandler())
    host = new_host()
    router = GossipSub(
        [MESHSUB],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,
    )
    pubsub = Pubsub(host, router, strict_signing=True)
    async with (
        host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]),
        background_trio_service(pubsub),
        background_trio_service(router),
        trio.open_nursery() as nursery,
    ):
        await pubsub.wait_until_ready()
        peer = LibraryPeer(host, pubsub, router, nursery)
        output.ready(peer.peer_id, peer.addrs)
        await trio.to_thread.run_sync(serve, peer, output)
        os._exit(0)  # the library may hang at closing


if __name__ == "__main__":
    trio.run(main)
