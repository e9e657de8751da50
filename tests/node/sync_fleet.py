"""Nodes that synchronise and do nothing else, on the network in memory; a test puts where it belongs what spreads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from random import Random

import trio

from p2pnode.core.asking import Limits
from p2pnode.core.itemset import BlockSet
from p2pnode.core.message import MessageId
from p2pnode.core.metadata import Metadata
from p2pnode.core.peerid import PeerId
from p2pnode.core.sync import message_digest
from p2pnode.identity import Identity
from p2pnode.node.sync import Sync
from p2pnode.ports import Link
from p2pnode.wire.payload import decode_payload, encode_envelope
from p2pnode.wire.pubsub import decode_message, seal_message
from p2pnode.wire.sync import SYNC_PROTOCOL, message_key
from tests.node.fakes import START_NS, FakeHost, Network, verify_message

TOPIC = "councils.forming"


class MemoryArchive:
    """`Messages` without a disk, and the taking of pulled ones.

    Attributes:
        refusing: reasons to refuse, by message id.
        taken: every message that was handed over, and what became of it.
        room: how many more are taken; None: no limit. Over it `full` is the reason.
    """

    def __init__(self, topics: Iterable[str]) -> None:
        self._raws: dict[MessageId, bytes] = {}
        self._sets = {topic: BlockSet() for topic in topics}
        self.horizons = dict.fromkeys(self._sets, 0)
        self.refusing: dict[MessageId, str] = {}
        self.taken: Counter[tuple[MessageId, str]] = Counter()
        self.room: int | None = None
        self.full = "queue"
        self.reads = 0

    def __contains__(self, message_id: MessageId) -> bool:
        return message_id in self._raws

    def __len__(self) -> int:
        return len(self._raws)

    def ids(self) -> set[MessageId]:
        return set(self._raws)

    def topics(self) -> Sequence[str]:
        return tuple(self._sets)

    def items(self, topic: str) -> BlockSet:
        return self._sets.get(topic) or BlockSet()

    def horizon(self, topic: str) -> int:
        return self.horizons[topic]

    async def bytes_of(self, ids: Collection[MessageId]) -> Mapping[MessageId, bytes]:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        return {each: self._raws[each] for each in ids if each in self._raws}

    def keep(self, topic: str) -> None:
        """Take part in a topic from now on."""
        self._sets.setdefault(topic, BlockSet())
        self.horizons.setdefault(topic, 0)

    def put(self, raw: bytes) -> None:
        message = decode_message(raw)
        self._raws[message.id] = raw
        self._sets[message.topic].insert(message_key(raw), message_digest(raw))

    def drop_below(self, topic: str, at_ns: int) -> None:
        """As retention by count does."""
        self.horizons[topic] = at_ns
        for message_id, raw in tuple(self._raws.items()):
            metadata = decode_payload(decode_message(raw).data).metadata
            if metadata is not None and metadata.published_at_ns < at_ns:
                del self._raws[message_id]
                self._sets[topic].remove(message_key(raw))

    def take(self, raw: bytes, peer: PeerId) -> str | None:
        why = self._why_not(raw)
        self.taken[decode_message(raw).id, why or ""] += 1
        if why is None:
            self.put(raw)
        return why

    def _why_not(self, raw: bytes) -> str | None:
        message = decode_message(raw)
        if message.id in self:
            return "held"
        if not verify_message(message):
            return "signature"
        if self.room is not None:
            if self.room == 0:
                return self.full
            self.room -= 1
        return self.refusing.get(message.id)


class SyncNode:
    """One of them.

    Attributes:
        blamed: who misbehaved, and how.
    """

    def __init__(self, fleet: SyncFleet, number: int, topics: Iterable[str], limits: Limits | None) -> None:
        self._fleet = fleet
        self.identity = Identity(number.to_bytes(32, "big"))
        self.host = FakeHost(fleet.network, self.identity.peer_id, f"/ip4/10.0.0.{number}/tcp/9000")
        self.host.report_to(self)
        self.archive = MemoryArchive(topics)
        self.blamed: list[tuple[PeerId, str]] = []
        self.topic_peers: set[PeerId] = set()
        self.sync = Sync(
            self.host,
            self.archive,
            lambda raw, peer: self.archive.take(raw, peer),
            topic_peers=lambda _topic: self.topic_peers,
            misbehaved=lambda peer, why: self.blamed.append((peer, why)),
            wall_ns=fleet.wall_ns,
            rng=Random(fleet.rng.getrandbits(64)),
            limits=limits,
        )

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def link_opened(self, link: Link) -> None:
        self.sync.link_opened(link)

    def link_closed(self, peer: PeerId, *, by_intent: bool) -> None:
        self.sync.link_closed(peer)

    def link_silent(self, peer: PeerId) -> None:
        pass

    async def dial(self, other: SyncNode) -> None:
        await self.host.dial(other.host.addrs()[0])

    def seal(self, *, topic: str = TOPIC, age: float = 60.0, size: int = 100, seqno: int | None = None) -> bytes:
        """A message of this node, published so many seconds ago."""
        fleet = self._fleet
        fleet.seqno += 1
        metadata = Metadata(published_at_ns=fleet.wall_ns() - int(age * 1e9))
        return seal_message(
            origin=self.identity.peer_id_bytes,
            seqno=fleet.seqno if seqno is None else seqno,
            topic=topic,
            data=encode_envelope(fleet.rng.randbytes(size), "application/octet-stream", metadata),
            sign=self.identity.sign,
        ).raw


class SyncFleet:
    """All of them, and what they said to each other."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = Random(seed)
        self.network = Network()
        self.nodes: list[SyncNode] = []
        self.seqno = 1000
        self._since = trio.current_time()

    def wall_ns(self) -> int:
        return START_NS + int((trio.current_time() - self._since) * 1e9)

    def add(self, topics: Iterable[str] = (TOPIC,), limits: Limits | None = None) -> SyncNode:
        node = SyncNode(self, len(self.nodes) + 1, topics, limits)
        self.nodes.append(node)
        return node

    def spread(self, raw: bytes, nodes: Iterable[SyncNode]) -> None:
        """As gossip would."""
        for node in nodes:
            node.archive.put(raw)

    def same(self, nodes: Iterable[SyncNode] | None = None) -> bool:
        """Do they hold the same?"""
        first, *others = [node.archive.ids() for node in (self.nodes if nodes is None else nodes)]
        return all(each == first for each in others)

    def sync_bytes(self) -> int:
        return sum(each.sent + each.got for each in self.network.requests)

    async def rewire(self, node: SyncNode, answer: object) -> None:
        """Let a node answer sync requests in another way."""
        node.host.serve(SYNC_PROTOCOL, answer, limit_bytes=1 << 20)  # type: ignore[arg-type]
