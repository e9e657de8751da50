"""A TCP relay on loopback whose link dies without a word: no FIN, no RST, what comes is swallowed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

CHUNK_BYTES = 64 * 1024


class Relay:
    """Dial `addr` instead of what it leads to. Made by `open_relay`."""

    def __init__(self, addr: str) -> None:
        self.addr = addr
        self._dead = False

    def die(self) -> None:
        """From now on nothing arrives in either direction, and nobody is told."""
        self._dead = True

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for data in source:
                if not self._dead:
                    await sink.send_all(data)
            if not self._dead:
                await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if not self._dead:
                await sink.aclose()
        if self._dead:
            await trio.sleep_forever()  # the end of one side is no news to the other


@asynccontextmanager
async def open_relay(addr: str) -> AsyncIterator[Relay]:
    """A relay to a multiaddr `/ip4/…/tcp/PORT/p2p/PEER`."""
    _, _, host, _, port, *peer = addr.split("/")
    async with trio.open_nursery() as nursery:

        async def serve(source: trio.SocketStream) -> None:
            async with source, await trio.open_tcp_stream(host, int(port)) as sink, trio.open_nursery() as pumps:
                pumps.start_soon(relay._pump, source, sink)
                pumps.start_soon(relay._pump, sink, source)

        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        relay = Relay("/".join(["", "ip4", "127.0.0.1", "tcp", str(listener.socket.getsockname()[1]), *peer]))
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield relay
        nursery.cancel_scope.cancel()
