"""What the store adds to a hop: a real sidecar between two ends, with its store and with one that answers at once.

Both ends are bare routers in this process, so that one clock reads all: one publishes, the other notes when a message
was forwarded to it, and a reader of the sidecar's event stream when the agent has it. The sidecar is a process of its
own, started anew for each round and store. Messages carry metadata as a sidecar's do, and come one by one at a steady
rate.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from bench.peers.python_node import Opened, Receipts, open_routed
from bench.processes import HEADER
from bench.sidecars import Sidecar, SidecarFailed, open_sidecar
from p2pnode.core.message import SignedMessage, format_message_id
from p2pnode.core.metadata import Metadata
from p2pnode.core.peerid import PeerId
from p2pnode.host.library import LibraryHost
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity
from p2pnode.wire.payload import decode_payload, encode_envelope

SIZE = 1024
TOPIC = "hmmm.bench"
JOIN_SECONDS = 60.0
DRAIN_SECONDS = 30.0
WARM_UP = 100
"""Messages that do not count."""

STORES = {
    "at once": ("bench.peers.storeless", "normal"),
    "sqlite, normal": ("p2pnode", "normal"),
    "sqlite, full": ("p2pnode", "full"),
}
"""Program and durability of received messages; `normal` is the default."""

HEADINGS = ("store", "forwarded p50", "p99 ms", "to agent p50", "p99 ms", "added p50 ms")
_ID = re.compile(rb"(?m)^id: ([^\n]+)\n")


@dataclass(frozen=True, slots=True)
class Hop:
    """Milliseconds from publishing at one end, for each message: until the other end had it, until the agent had it."""

    store: str
    forwarded_ms: tuple[float, ...]
    delivered_ms: tuple[float, ...]


class Arrivals(Receipts):
    """When each message came to the far end, by index, and under which id."""

    def __init__(self) -> None:
        super().__init__()
        self.sent_ns: dict[str, int] = {}
        self.at_ns: dict[str, int] = {}
        self.ids: list[str] = []

    def deliver(self, message: SignedMessage, source: PeerId | None, *, via: str = "gossip", restored: bool) -> None:
        now = time.monotonic_ns()
        _, _, sent = HEADER.unpack_from(decode_payload(message.data).body)
        message_id = format_message_id(message.id)
        self.ids.append(message_id)
        self.sent_ns[message_id], self.at_ns[message_id] = sent, now


@asynccontextmanager
async def _open_end(receipts: Receipts, addr: str) -> AsyncIterator[Opened]:
    """A bare router linked with the sidecar, and in its mesh."""
    identity = Identity.generate()
    host: LibraryHost
    async with (
        open_host(identity, ["/ip4/127.0.0.1/tcp/0"]) as host,
        open_routed(identity, host, receipts, 3) as opened,
    ):
        await opened.gossip.subscribe(TOPIC)
        await host.dial(addr)
        with trio.fail_after(JOIN_SECONDS):
            while not opened.gossip.mesh(TOPIC):  # noqa: ASYNC110 - the router has no event for it
                await trio.sleep(0.05)
        yield opened


async def _follow(socket: str, at_ns: dict[str, int], opened: trio.Event) -> None:
    """Note when the sidecar's agent has each message."""
    async with await trio.open_unix_socket(socket) as stream:
        # HTTP/1.0: without chunks.
        await stream.send_all(
            f"GET /api/v1/topics/{TOPIC}/events?from=now HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
        )
        rest = b""
        async for data in stream:
            now = time.monotonic_ns()
            if not opened.is_set():
                if not data.startswith(b"HTTP/1.1 200 "):
                    raise SidecarFailed(f"no event stream: {data!r}")
                opened.set()
            # Complete events only; what follows the last blank line is the beginning of the next.
            events, blank, rest = (rest + data).rpartition(b"\n\n")
            for found in _ID.finditer(events + blank):
                at_ns[found[1].decode()] = now


async def _pass(sidecar: Sidecar, messages: int, rate: float) -> tuple[list[float], list[float]]:
    """Milliseconds forwarded and delivered, by message.

    Raises:
        SidecarFailed: a message came nowhere in time.
    """
    arrivals = Arrivals()
    agent: dict[str, int] = {}
    async with (
        _open_end(Receipts(), sidecar.addr) as near,
        _open_end(arrivals, sidecar.addr),
        trio.open_nursery() as nursery,
    ):
        opened = trio.Event()
        nursery.start_soon(_follow, sidecar.socket, agent, opened)
        await opened.wait()
        filling = os.urandom(SIZE - HEADER.size)

        async def publish(index: int) -> None:
            body = HEADER.pack(0, index, time.monotonic_ns()) + filling
            metadata = Metadata(published_at_ns=time.time_ns())
            await near.publish(TOPIC, encode_envelope(body, "application/octet-stream", metadata))

        due = trio.current_time()
        for index in range(WARM_UP + messages):
            due += 1 / rate
            await trio.sleep_until(due)
            await publish(index)
        with trio.move_on_after(DRAIN_SECONDS):
            while min(len(arrivals.ids), len(agent)) < WARM_UP + messages:  # noqa: ASYNC110 - two places, one poll
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    if min(len(arrivals.ids), len(agent)) < WARM_UP + messages:
        raise SidecarFailed(f"{len(arrivals.ids)} forwarded and {len(agent)} delivered of {WARM_UP + messages}")
    counted = arrivals.ids[WARM_UP:]
    return (
        [(arrivals.at_ns[each] - arrivals.sent_ns[each]) / 1e6 for each in counted],
        [(agent[each] - arrivals.sent_ns[each]) / 1e6 for each in counted],
    )


def measure(store: str, messages: int, rate: float, where: Path) -> Hop:
    """One round with one store, in an empty directory below `where`."""
    module, durability = STORES[store]
    settings = {"P2PNODE_GOSSIP_TOPICS": TOPIC, "P2PNODE_MESSAGES_RECEIVED_DURABILITY": durability}
    with (
        tempfile.TemporaryDirectory(dir=where) as name,
        open_sidecar(Path(name) / "data", settings, module=module) as sidecar,
    ):
        forwarded, delivered = trio.run(_pass, sidecar, messages, rate)
    return Hop(store, tuple(forwarded), tuple(delivered))


def rows(rounds: Sequence[Sequence[Hop]]) -> list[tuple[str, ...]]:
    """Medians over the rounds; `added` is how much longer the agent waits than with the store that answers at once."""
    by_store = {store: [hop for found in rounds for hop in found if hop.store == store] for store in STORES}
    instant = [_percentile(hop.delivered_ms, 0.5) for hop in by_store["at once"]]
    lines = []
    for store, hops in by_store.items():
        forwarded, delivered = [hop.forwarded_ms for hop in hops], [hop.delivered_ms for hop in hops]
        figures = [
            statistics.median(_percentile(each, share) for each in values)
            for values in (forwarded, delivered)
            for share in (0.5, 0.99)
        ]
        added = [_percentile(each, 0.5) - base for each, base in zip(delivered, instant, strict=True)]
        lines.append((store, *(f"{value:.2f}" for value in figures), f"{statistics.median(added):+.2f}"))
    return lines


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]
