"""Our host beside foreign peers, without the node above it: streams that say again what they hear."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamError

from p2pnode.core.peerid import PeerId
from p2pnode.host.fused.connection import FusedConnection
from p2pnode.host.fused.takeover import FusingUpgrader
from p2pnode.host.library import LibraryHost, to_library_id
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity
from tests.interop.peers import ForeignPeer, wait_until
from tests.stacks import Stack

ECHO = tuple(f"/x/echo/{version}.0.0" for version in range(1, 5))
"""Four names for one thing: go's resource manager takes some 64 streams of one protocol from one peer, and no more."""

CHUNK_BYTES = 64 * 1024


@asynccontextmanager
async def open_echo_host(stack: Stack) -> AsyncIterator[LibraryHost]:
    """A host on loopback that serves `ECHO`."""
    async with open_host(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"], stack=stack) as host:
        assert isinstance(host.swarm.upgrader, FusingUpgrader) == (stack == "fused")
        for protocol in ECHO:
            host.set_handler(protocol, _say_again)
        yield host


async def connect(host: LibraryHost, peer: ForeignPeer, *, we_dial: bool) -> INetConn:
    """The one connection of the two."""
    if we_dial:
        await host.dial(peer.addrs[0])
    else:
        await peer.dial(host.addrs()[0])

    await linked(host, peer)
    connection = only_connection(host, peer.peer_id)
    assert isinstance(connection.muxed_conn, FusedConnection) == isinstance(host.swarm.upgrader, FusingUpgrader)
    return connection


async def linked(host: LibraryHost, peer: ForeignPeer) -> None:
    """Wait until our host knows of the connection: whoever is dialled hears of it later."""

    async def has_a_link() -> bool:
        return peer.peer_id in host.links()

    await wait_until(has_a_link, f"our host has a link with {peer.kind}")


def only_connection(host: LibraryHost, peer_id: str) -> INetConn:
    """The open connection with a peer, of which there must be one."""
    [connection] = host.swarm.get_connections(to_library_id(PeerId(peer_id)))
    assert not connection.is_closed
    return connection


async def echo(host: LibraryHost, peer_id: str, *, streams: int, size: int) -> int:
    """As `ForeignPeer.echo`: open so many streams at once; on how many of them `size` random bytes came back."""
    opened: list[INetStream] = []
    equal: list[bool] = []

    async def open_one(index: int) -> None:
        protocol = TProtocol(ECHO[index % len(ECHO)])
        stream = await host.library.new_stream(to_library_id(PeerId(peer_id)), [protocol])
        opened.append(stream)
        assert await _is_echoed(stream, os.urandom(1))

    async def use_one(stream: INetStream) -> None:
        equal.append(await _is_echoed(stream, os.urandom(size)))

    async with trio.open_nursery() as nursery:
        for index in range(streams):
            nursery.start_soon(open_one, index)
    async with trio.open_nursery() as nursery:
        for stream in opened:
            nursery.start_soon(use_one, stream)
    for stream in opened:
        await stream.close()
    return sum(equal)


async def _is_echoed(stream: INetStream, data: bytes) -> bool:
    came = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_say, stream, data)
        while len(came) < len(data):
            came += await stream.read(min(len(data) - len(came), CHUNK_BYTES))
    return came == data


async def _say(stream: INetStream, data: bytes) -> None:
    for offset in range(0, len(data), CHUNK_BYTES):
        await stream.write(data[offset : offset + CHUNK_BYTES])


async def _say_again(stream: INetStream) -> None:
    try:
        while data := await stream.read(CHUNK_BYTES):
            await stream.write(data)
    except StreamError:
        pass  # the library's way to say that the peer finished
    await stream.close()
