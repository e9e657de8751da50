"""What synchronisation costs: bytes and time of one exchange between two real hosts on loopback.

    python -m bench.sync [--stored 100000] [--missing 0,1,10,100,1000] [--catch-up 5000] [--seed 1] [--json FILE]

Two `Sync`s in one process on two libp2p hosts (Noise, yamux, TCP), stores in memory: what is measured is comparison,
transport, signature checks and decoding of both sides on one core, without a disk. The first rows have `--stored`
messages of five topics on both sides and some more, of 1 KiB, on the answerer's; the last has an empty asker. `first`
is an exchange right after start, when no inner sum of a block is known; `again` the next one, some seconds later.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import cast

import trio

from p2pnode.core.asking import Limits
from p2pnode.core.itemset import BlockSet
from p2pnode.core.message import MessageId
from p2pnode.core.metadata import Metadata
from p2pnode.core.peerid import PeerId
from p2pnode.core.reconcile import Item
from p2pnode.core.sync import item_key, message_digest
from p2pnode.host.library import LibraryHost
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity, verifier_for
from p2pnode.node.sync import Sync
from p2pnode.ports import Host, Link
from p2pnode.wire.payload import encode_envelope
from p2pnode.wire.pubsub import decode_message, message_verify, seal_message
from p2pnode.wire.sync import message_key

TOPICS = tuple(f"bench.topic-{number}" for number in range(5))
DAY_NS = 86_400 * 10**9
MESSAGE_BYTES = 1024
verify = message_verify(verifier_for)


class Store:
    """Messages in memory; of most of them only the items are there."""

    def __init__(self, items: Mapping[str, Sequence[Item]]) -> None:
        self._sets = {topic: BlockSet(items.get(topic, ())) for topic in TOPICS}
        self._raws: dict[MessageId, bytes] = {}

    def __contains__(self, message_id: MessageId) -> bool:
        return message_id in self._raws

    def topics(self) -> Sequence[str]:
        return TOPICS

    def items(self, topic: str) -> BlockSet:
        return self._sets[topic]

    def horizon(self, topic: str) -> int:
        return 1  # as after any dropping: it is sent along

    async def bytes_of(self, ids: Collection[MessageId]) -> Mapping[MessageId, bytes]:
        await trio.lowlevel.checkpoint()
        return {each: self._raws[each] for each in ids if each in self._raws}

    def put(self, raw: bytes) -> None:
        message = decode_message(raw)
        self._raws[message.id] = raw
        self._sets[message.topic].insert(message_key(raw), message_digest(raw))

    def take(self, raw: bytes, _peer: PeerId) -> str | None:
        message = decode_message(raw)
        if message.id in self._raws:
            return "held"
        if not verify(message):
            return "signature"
        self.put(raw)
        return None


class Watched:
    """The asker's host: when its first request began."""

    def __init__(self, host: LibraryHost) -> None:
        self.host = host
        self.began = 0.0

    def links(self) -> Mapping[PeerId, Link]:
        return self.host.links()

    def serve(self, protocol: str, answer: Callable[[PeerId, bytes], Awaitable[bytes]], *, limit_bytes: int) -> None:
        self.host.serve(protocol, answer, limit_bytes=limit_bytes)

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, limit_bytes: int) -> bytes:
        self.began = self.began or time.perf_counter()
        return await self.host.request(peer, protocol, body, limit_bytes=limit_bytes)


@dataclass
class Row:
    """One exchange: bytes of requests and answers without transport, seconds from its first request to its end."""

    what: str
    missing: int
    requests: int
    bytes: int
    seconds: float

    def text(self) -> str:
        beside = (self.bytes - self.missing * MESSAGE_BYTES) / self.missing if self.missing else 0
        each = f"{beside:8.0f}" if self.missing else "       -"
        return f"{self.what:>28}  {self.missing:>7}  {self.requests:>8}  {self.bytes:>9}  {each}  {self.seconds:8.3f}"


HEADINGS = f"{'stores':>28}  {'missing':>7}  {'requests':>8}  {'bytes':>9}  {'B each':>8}  {'seconds':>8}"


def items_of(count: int, rng: Random, now_ns: int) -> dict[str, list[Item]]:
    """As 34 agents would leave in a day."""
    origins = [b"\x00\x24\x08\x01\x12\x20" + rng.randbytes(32) for _ in range(34)]
    items: dict[str, list[Item]] = {topic: [] for topic in TOPICS}
    for number in range(count):
        at = now_ns - rng.randrange(10**10, DAY_NS)
        message_id = MessageId(rng.choice(origins) + at.to_bytes(8, "big"))
        topic = TOPICS[number % len(TOPICS)]
        items[topic].append((item_key(topic, at, message_id), rng.randbytes(16)))
    return items


def messages_of(count: int, rng: Random, now_ns: int) -> list[bytes]:
    """Signed messages of MESSAGE_BYTES, from the whole of the day."""
    origin = Identity.generate()
    raws: list[bytes] = []
    for number in range(count):
        at = now_ns - rng.randrange(10**10, DAY_NS)
        data = encode_envelope(rng.randbytes(800), "application/octet-stream", Metadata(published_at_ns=at))
        short = seal_message(
            origin=origin.peer_id_bytes, seqno=at, topic=TOPICS[number % 5], data=data, sign=origin.sign
        )
        body = rng.randbytes(800 + MESSAGE_BYTES - len(short.raw))
        data = encode_envelope(body, "application/octet-stream", Metadata(published_at_ns=at))
        raws.append(
            seal_message(
                origin=origin.peer_id_bytes, seqno=at, topic=TOPICS[number % 5], data=data, sign=origin.sign
            ).raw
        )
    return raws


async def measure(what: str, asker: Store, answerer: Store, missing: int, rng: Random) -> list[Row]:
    """A first exchange, and when nothing was missing another."""
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(open_host(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"])) for _ in range(2)
        ]
        watched = Watched(hosts[0])

        def sync(host: object, store: Store) -> Sync:
            return Sync(
                cast(Host, host),
                store,
                store.take,
                topic_peers=lambda _topic: (),
                misbehaved=lambda peer, why: sys.exit(f"{peer} misbehaved: {why}"),
                wall_ns=time.time_ns,
                rng=rng,
                limits=Limits(),
            )

        asking, answering = sync(watched, asker), sync(hosts[1], answerer)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(answering.run)
        await hosts[0].dial(hosts[1].addrs()[0])
        nursery.start_soon(asking.run)
        for name in ("first", "again")[: 1 if missing else 2]:
            before, ended = asking.counted.copy(), sum_of(asking, "exchanges")
            watched.began = 0.0
            with trio.fail_after(300):
                while sum_of(asking, "exchanges") == ended:  # noqa: ASYNC110 - no event tells it
                    await trio.sleep(0.001)
            took = time.perf_counter() - watched.began
            spent = asking.counted - before
            if spent["messages", "pulled"] != missing:
                sys.exit(f"{spent['messages', 'pulled']} of {missing} messages came: {dict(spent)}")
            requests = answering.counted["answers", "given"] - (rows[-1].requests if rows else 0)
            size = spent["bytes", "out"] + spent["bytes", "in"]
            rows.append(Row(f"{what}, {name}" if not missing else what, missing, requests, size, took))
        nursery.cancel_scope.cancel()
    return rows


def sum_of(sync: Sync, name: str) -> int:
    return sum(count for (what, _), count in sync.counted.items() if what == name)


async def run(options: argparse.Namespace) -> list[Row]:
    rng = Random(options.seed)
    now_ns = time.time_ns()
    rows: list[Row] = []
    items = items_of(options.stored, rng, now_ns)
    cases = [(f"{options.stored:,} equal", count, items) for count in map(int, options.missing.split(","))]
    for what, missing, shared in [*cases, ("an empty one", options.catch_up, {})]:
        asker, answerer = Store(shared), Store(shared)
        for raw in messages_of(missing, rng, now_ns):
            answerer.put(raw)
        for row in await measure(what, asker, answerer, missing, rng):
            rows.append(row)
            print(row.text(), flush=True)
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.sync", description="one exchange between two stores")
    parser.add_argument("--stored", type=int, default=100_000, help="messages that both hold")
    parser.add_argument("--missing", default="0,1,10,100,1000", help="how many the asker lacks, with commas")
    parser.add_argument("--catch-up", type=int, default=5000, help="messages that an empty node gets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every figure there")
    options = parser.parse_args(arguments)
    print(HEADINGS)
    rows = trio.run(run, options)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
