"""py-libp2p's GossipSub as it is shipped, for comparison with the hardened `library_gossip`.

Three of its defaults are changed, or it would not gossip like the others: the heartbeat (120 s), adaptive gossip
(which stretches a heartbeat of 1 s to 30–60 s) and the mesh degree, which has no default. It speaks meshsub 1.1, which
costs it half of what 1.2 does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
from libp2p.custom_types import TProtocol
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from p2pnode.core.peerid import PeerId
from p2pnode.host.library import LibraryHost, from_library_id

PROTOCOL = TProtocol("/meshsub/1.1.0")


class StockGossip:
    """What the benchmark asks of a router. Made by `open_stock`."""

    def __init__(self, pubsub: Pubsub, router: GossipSub, nursery: trio.Nursery, took: Callable[[bytes], None]) -> None:
        self._pubsub = pubsub
        self._router = router
        self._nursery = nursery
        self._took = took

    async def subscribe(self, topic: str) -> None:
        subscription = await self._pubsub.subscribe(topic)

        async def read() -> None:
            own = self._pubsub.my_id.to_bytes()
            while True:
                message = await subscription.get()
                if message.from_id != own:
                    self._took(message.data)

        self._nursery.start_soon(read)

    async def publish(self, topic: str, data: bytes) -> None:
        await self._pubsub.publish(topic, data)

    def topic_peers(self, topic: str) -> frozenset[PeerId]:
        return frozenset(from_library_id(peer) for peer in self._pubsub.peer_topics.get(topic, ()))

    def mesh(self, topic: str) -> frozenset[PeerId]:
        return frozenset(from_library_id(peer) for peer in self._router.mesh.get(topic, ()))


@asynccontextmanager
async def open_stock(
    host: LibraryHost, took: Callable[[bytes], None], *, degree: int, heartbeat_seconds: int
) -> AsyncIterator[StockGossip]:
    """The running router; `took` is called with the payload of each message of another node."""
    router = GossipSub(
        [PROTOCOL],
        degree=degree,
        degree_low=degree - 1,
        degree_high=2 * degree,
        heartbeat_interval=heartbeat_seconds,
        adaptive_gossip_enabled=False,
    )
    pubsub = Pubsub(host.library, router, strict_signing=True)
    async with (
        background_trio_service(pubsub),
        background_trio_service(router),
        trio.open_nursery() as nursery,
    ):
        await pubsub.wait_until_ready()
        yield StockGossip(pubsub, router, nursery, took)
        nursery.cancel_scope.cancel()
