"""A go-libp2p 0.24 peer (pubsub 0.8) through the PyPI binding `libp2p-go`; speaks the protocol of `control.py`.

Run by `tests.interop.peers` with the interpreter of its own virtual environment: the binding's package is named
`libp2p` and would collide with py-libp2p's.
"""

# ruff: noqa: E402 - stdout is taken before the binding is imported

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from control import Output, serve

output = Output()

from libp2p import (
    DefaultTransports,
    DisableRelay,
    Host,
    Identity,
    ListenAddrStrings,
    MuxerYamux,
    Ping,
    PrivateNetwork,
    SecurityNoise,
    Stream,
)
from libp2p.crypto import KeyType, crypto_generate_keypair
from libp2p.peer import Peer, addr_info_from_p2p_addr
from libp2p.pubsub import PubSub, Subscription, Topic
from libp2p.utils import GoString, LibP2PError

# The binding parks one thread of the loop's executor for each subscription and for each stream that is read or
# written; the default pool holds six.
EXECUTOR_THREADS = 512
ECHO_CHUNK_BYTES = 65536
KEY_TYPES = {"ed25519": KeyType.Ed25519, "rsa": KeyType.RSA, "secp256k1": KeyType.Secp256k1, "ecdsa": KeyType.ECDSA}
RSA_BITS = 2048


class GoPeer:
    """The asyncio binding behind blocking calls; its loop runs in a thread of its own."""

    def __init__(self, key_type: str, network_key: bytes) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(EXECUTOR_THREADS))
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._topics: dict[str, Topic] = {}
        self._readers: dict[str, asyncio.Task] = {}
        private_key, _public_key = crypto_generate_keypair(KEY_TYPES[key_type], RSA_BITS)
        self._host = Host(
            Identity(private_key),
            ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
            # The defaults without a transport named are those that a private network knows: no QUIC.
            PrivateNetwork(network_key, True) if network_key else DefaultTransports,
            SecurityNoise,
            MuxerYamux(GoString.new("/yamux/1.0.0")),
            DisableRelay,
            Ping(True),
            loop=self._loop,
        )
        self._pubsub = self._wait(PubSub.new_gossip(self._host))
        self.peer_id: str = self._host.id.string
        self.addrs: list[str] = [f"{addr}/p2p/{self.peer_id}" for addr in self._host.addrs]

    def dial(self, addr: str) -> None:
        self._wait(self._host.connect(addr_info_from_p2p_addr(addr)))

    def subscribe(self, topic: str) -> None:
        if topic not in self._readers:
            subscription = self._wait(self._joined(topic).subscription())
            self._readers[topic] = self._wait(self._start_reading(subscription))

    def publish(self, topic: str, data: bytes) -> None:
        self._wait(self._joined(topic).publish(data))

    def peers(self) -> list[str]:
        """Peers that speak pubsub: the binding does not list connections."""
        return list(self._wait(self._pubsub.list_peers("")))

    def topic_peers(self, topic: str) -> list[str]:
        self._joined(topic)
        return list(self._wait(self._pubsub.list_peers(topic)))

    def mesh(self, topic: str) -> None:
        """The binding does not show the mesh."""

    def streams(self, peer: str) -> None:
        """The binding does not show streams."""

    def serve_echo(self, protocols: list[str]) -> None:
        for protocol in protocols:
            self._host.set_stream_handler(protocol, self._say_again)

    def echo(self, peer: str, protocols: list[str], streams: int, size: int) -> int:
        return self._wait(self._echo(Peer.decode(peer), protocols, streams, size))

    async def _echo(self, peer: Peer, protocols: list[str], streams: int, size: int) -> int:
        opened = await asyncio.gather(
            *(self._host.new_stream(peer, protocols[index % len(protocols)]) for index in range(streams))
        )
        first = await asyncio.gather(*(self._is_echoed(stream, os.urandom(1)) for stream in opened))
        rest = await asyncio.gather(*(self._is_echoed(stream, os.urandom(size)) for stream in opened))
        await asyncio.gather(*(stream.close() for stream in opened))
        return sum(map(min, first, rest))

    async def _is_echoed(self, stream: Stream, data: bytes) -> bool:
        writing = asyncio.create_task(self._say(stream, data))
        came = bytearray()
        while len(came) < len(data):
            count, chunk = await stream.read_bytes(min(len(data) - len(came), ECHO_CHUNK_BYTES))
            came += chunk[:count]
        await writing
        return came == data

    async def _say(self, stream: Stream, data: bytes) -> None:
        for offset in range(0, len(data), ECHO_CHUNK_BYTES):
            await stream.write(data[offset : offset + ECHO_CHUNK_BYTES])

    async def _say_again(self, stream: Stream) -> None:
        try:
            while True:
                count, data = await stream.read_bytes(ECHO_CHUNK_BYTES)
                await stream.write(data[:count])
        except LibP2PError:  # the end is an error too
            await stream.close()

    def _joined(self, topic: str) -> Topic:
        if topic not in self._topics:
            self._topics[topic] = self._wait(self._pubsub.join(topic))
        return self._topics[topic]

    def _wait(self, awaitable: Awaitable):
        async def run():
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _start_reading(self, subscription: Subscription) -> asyncio.Task:
        return asyncio.create_task(self._read(subscription))

    async def _read(self, subscription: Subscription) -> None:
        async for message in subscription:
            author = message.from_peer.string
            if author != self.peer_id:
                output.message(message.topic, author, message.seq_no.to_bytes(8, "big"), message.data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--key-type", choices=KEY_TYPES, default="ed25519")
    parser.add_argument("--network-key", type=bytes.fromhex, default=b"")
    flags = parser.parse_args()
    peer = GoPeer(flags.key_type, flags.network_key)
    output.ready(peer.peer_id, peer.addrs)
    serve(peer, output)
    os._exit(0)  # threads parked inside Go would keep the interpreter waiting


main()
