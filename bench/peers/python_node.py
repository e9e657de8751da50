"""Our router or one of py-libp2p as a bench peer: host, streams and router of the product, without its node and API.

`ours` is what the product runs: our router on our Noise and yamux. `unfused` is the same router on the library's
streams, `library` and `stock` are the library's router on them: these three share everything below the router. And
`stock` signs and verifies by itself, the others by libsodium.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import trio

from bench.peers.library_gossip import open_gossip
from bench.peers.sampler import Sampler
from bench.peers.stock_gossip import open_stock
from bench.processes import HEADER
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.message import Accept, MessageId, SignedMessage, Verdict
from p2pnode.core.peerid import PeerId
from p2pnode.host.library import LibraryHost
from p2pnode.host.meshsub import open_meshsub
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity, verifier_for
from p2pnode.node.gossip import RoutedGossip
from p2pnode.wire.pubsub import message_verify, seal_message

LIBRARY_DEGREE = 4
HEARTBEAT_SECONDS = 1


class Gossip(Protocol):
    """What all routers have."""

    async def subscribe(self, topic: str) -> None: ...

    def topic_peers(self, topic: str) -> frozenset[PeerId]: ...

    def mesh(self, topic: str) -> frozenset[PeerId]: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A running router.

    Args:
        publish: a payload to a topic.
        duplicates: copies of known messages received so far; None: it does not tell.
        degree: D.
    """

    gossip: Gossip
    publish: Callable[[str, bytes], Awaitable[None]]
    duplicates: Callable[[], int | None]
    degree: int


class Receipts:
    """`ports.GossipEvents` that accepts everything and remembers when it came."""

    def __init__(self) -> None:
        self.by_run: dict[int, list[tuple[int, int]]] = {}

    def judge(self, message: SignedMessage, source: PeerId | None) -> Verdict:
        return Accept()

    def deliver(self, message: SignedMessage, source: PeerId | None, *, via: str = "gossip", restored: bool) -> None:
        self.took(message.data)

    def took(self, data: bytes) -> None:
        now = time.monotonic_ns()
        run, index, sent = HEADER.unpack_from(data)
        self.by_run.setdefault(run, []).append((index, (now - sent) // 1000))

    def holds(self, message_id: MessageId) -> bool:
        return False

    def held(self, peer: PeerId, seqnos: Sequence[bytes]) -> None:
        """Nobody counts what others store."""

    def repeated(self, peer: PeerId, message_id: MessageId) -> None:
        """Nothing is kept, so nothing is told."""

    def joined(self, peer: PeerId, topic: str) -> None:
        """Who reads what is of no interest here."""

    def connect(self, peer: PeerId, record: bytes | None, why: str) -> None:
        """The benchmark's topology is fixed."""


class Sealer:
    """Signs payloads as our node does."""

    def __init__(self, identity: Identity, publish: Callable[[SignedMessage], Awaitable[None]]) -> None:
        self._identity = identity
        self._publish = publish
        self._seqno = time.time_ns()

    async def publish(self, topic: str, data: bytes) -> None:
        self._seqno += 1
        origin, sign = self._identity.peer_id_bytes, self._identity.sign
        await self._publish(seal_message(origin=origin, seqno=self._seqno, topic=topic, data=data, sign=sign))


class Node:
    """Answers the commands of `bench.processes`."""

    def __init__(self, host: LibraryHost, opened: Opened, receipts: Receipts, nursery: trio.Nursery) -> None:
        self._host = host
        self._opened = opened
        self._gossip = opened.gossip
        self._receipts = receipts
        self._nursery = nursery
        self._topic = ""
        self._sent: dict[int, list[tuple[int, int]]] = {}
        self._duplicates_before: int | None = None
        self._sampler = Sampler()

    async def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["cmd"]:
            case "dial":
                await self._host.dial(command["addr"])
            case "subscribe":
                self._topic = command["topic"]
                await self._gossip.subscribe(self._topic)
            case "state":
                return {
                    "links": len(self._host.links()),
                    "topic_peers": len(self._gossip.topic_peers(self._topic)),
                    "mesh": len(self._gossip.mesh(self._topic)),
                }
            case "load":
                self._duplicates_before = self._opened.duplicates()
                self._nursery.start_soon(self._publish, command)
            case "count":
                run = command["run"]
                return {"received": len(self._receipts.by_run.get(run, ())), "sent": len(self._sent.get(run, ()))}
            case "report":
                run, duplicates = command["run"], self._opened.duplicates()
                if duplicates is not None and self._duplicates_before is not None:
                    duplicates -= self._duplicates_before
                return {
                    "receipts": self._receipts.by_run.pop(run, []),
                    "sent": self._sent.pop(run, []),
                    "duplicates": duplicates,
                }
            case "profile":
                self._sampler.start()
            case "profiled":
                return self._sampler.stop()
            case unknown:
                return {"error": f"unknown command {unknown}"}
        return {}

    async def _publish(self, command: dict[str, Any]) -> None:
        run, filling = command["run"], Random(command["run"]).randbytes(command["size"] - HEADER.size)
        for index, offset in command["at"]:
            due = command["start_ns"] + offset
            await trio.sleep(max(due - time.monotonic_ns(), 0) / 1e9)
            now = time.monotonic_ns()
            await self._opened.publish(self._topic, HEADER.pack(run, index, now) + filling)
            self._sent.setdefault(run, []).append((index, (now - due) // 1000))


@asynccontextmanager
async def open_routed(identity: Identity, host: LibraryHost, receipts: Receipts, nodes: int) -> AsyncIterator[Opened]:
    """Our router on the streams of `host`; its mesh degree follows the number of nodes."""
    async with open_meshsub(host, Random(os.urandom(16))) as streams, trio.open_nursery() as nursery:
        params = Params(heartbeat_seconds=HEARTBEAT_SECONDS).for_fleet(nodes)
        gossip = RoutedGossip(
            identity.peer_id, streams, receipts, message_verify(verifier_for), params, Random(os.urandom(16))
        )
        streams.report_to(gossip)
        host.report_to(streams)
        nursery.start_soon(gossip.run)
        publish = Sealer(identity, gossip.publish).publish
        yield Opened(gossip, publish, lambda: gossip.counters().get(("ignore", "duplicate"), 0), params.d)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_library(identity: Identity, host: LibraryHost, receipts: Receipts, nodes: int) -> AsyncIterator[Opened]:
    verify = message_verify(verifier_for)
    async with open_gossip(
        host, receipts, verify, degree=LIBRARY_DEGREE, heartbeat_seconds=HEARTBEAT_SECONDS
    ) as gossip:
        publish = Sealer(identity, gossip.publish).publish
        yield Opened(gossip, publish, lambda: gossip.counters().get(("ignore", "seen"), 0), LIBRARY_DEGREE)


@asynccontextmanager
async def _open_stock(identity: Identity, host: LibraryHost, receipts: Receipts, nodes: int) -> AsyncIterator[Opened]:
    async with open_stock(host, receipts.took, degree=LIBRARY_DEGREE, heartbeat_seconds=HEARTBEAT_SECONDS) as gossip:
        yield Opened(gossip, gossip.publish, lambda: None, LIBRARY_DEGREE)


_OPEN: dict[str, Callable[[Identity, LibraryHost, Receipts, int], AbstractAsyncContextManager[Opened]]] = {
    "ours": open_routed,
    "unfused": open_routed,
    "library": _open_library,
    "stock": _open_stock,
}


async def _serve(system: str, nodes: int) -> None:
    identity, receipts = Identity.generate(), Receipts()
    async with (
        open_host(identity, ["/ip4/127.0.0.1/tcp/0"], stack="fused" if system == "ours" else "library") as host,
        _OPEN[system](identity, host, receipts, nodes) as opened,
        trio.open_nursery() as nursery,
    ):
        node = Node(host, opened, receipts, nursery)
        _emit({"peer_id": identity.peer_id, "addr": host.addrs()[0], "d": opened.degree})
        rest = b""
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            async for data in stdin:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    try:
                        _emit(await node.answer(json.loads(line)))
                    except Exception as error:
                        _emit({"error": f"{type(error).__name__}: {error}"})
        os._exit(0)  # the library may hang at closing


def _emit(value: dict[str, Any]) -> None:
    data = memoryview(json.dumps(value).encode() + b"\n")
    while data:
        data = data[os.write(1, data) :]


def run(system: str, nodes: int) -> None:
    """The whole life of a forked peer.

    Args:
        system: `ours`, `unfused`, `library` or `stock`.
        nodes: how many there will be; our mesh degree follows it.
    """
    trio.run(_serve, system, nodes)
