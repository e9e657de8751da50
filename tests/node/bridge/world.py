"""Meshes whose bridges stand on one broker: an archive each, gossip as a loop over the others, in virtual time."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Literal

import trio

from p2pnode.core.message import MessageId, SignedMessage
from p2pnode.core.metadata import FUTURE_ALLOWANCE_SECONDS, Metadata
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.core.subjects import Subjects
from p2pnode.identity import Identity
from p2pnode.node.archive import Archive
from p2pnode.node.bridge.export import Exporter, Neighbours
from p2pnode.node.bridge.importing import Importer, ImportKey
from p2pnode.node.bridge.refusals import Refusals
from p2pnode.node.bridge.seen import Seen
from p2pnode.node.bridge.topics import Topics
from p2pnode.node.storing import Retention
from p2pnode.ports import Change
from p2pnode.wire.payload import decode_payload, encode_json_payload
from p2pnode.wire.pubsub import decode_message, seal_message
from tests.node.bridge.broker import FakeBroker, FakeServer
from tests.node.fakes import Wall, until, verify_message
from tests.node.stores import MemoryStore

GOSSIP_SECONDS = 0.005
TOPIC = "ops.notes"
SUBJECT = "ops.notes"
SUBJECTS = Subjects("fleet", (f"{TOPIC}={SUBJECT}",))
IMPORT_KEY = Identity(b"i" * 32)


class Mesh:
    """Nodes that gossip with each other.

    Attributes:
        known: all that was ever stored by one of them: what a node that comes back synchronises.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.stations: list[Station] = []
        self.known: dict[MessageId, SignedMessage] = {}

    def say(self, origin: Identity, text: str, *, topic: str = TOPIC, **metadata: str | int) -> SignedMessage:
        """A node of the mesh publishes; every bridge gets it by gossip."""
        message = self.world.seal(origin, text, topic=topic, **metadata)
        self.known[message.id] = message
        self.spread(message, None)
        return message

    def spread(self, message: SignedMessage, source: Station | None) -> None:
        self.known.setdefault(message.id, message)
        self.world.nursery.start_soon(self._spread, message, source)

    async def _spread(self, message: SignedMessage, source: Station | None) -> None:
        await trio.sleep(GOSSIP_SECONDS)
        for station in self.stations:
            if station is not source and station.is_loaded:
                station.archive.take(message, carrier="gossip")

    def add(self, **options: bool | str | FakeServer) -> Station:
        station = Station(self, len(self.stations), **options)  # type: ignore[arg-type]
        self.stations.append(station)
        return station


class Station:
    """One bridge. `start` runs it, `crash` ends it as kill -9 does, and `start` again takes up what its disk holds."""

    def __init__(
        self,
        mesh: Mesh,
        number: int,
        *,
        key: Identity = IMPORT_KEY,
        durable: str = "",
        server: FakeServer | None = None,
    ) -> None:
        self.mesh = mesh
        self.world = mesh.world
        self.server = server or self.world.server
        self.name = f"{mesh.name}{number}"
        self.identity = Identity(self.name.encode().ljust(32, b"."))
        self.durable = durable
        self.key = key
        self.store = MemoryStore()
        self.beyond: set[PeerId] = set()
        self.opened: list[str] = []
        self.heard: set[str] = set()
        self.unwritable: set[bytes] = set()
        self.is_loaded = False
        self._scope: trio.CancelScope | None = None
        self._make()

    @property
    def is_up(self) -> bool:
        return self._scope is not None

    def _make(self) -> None:
        wall, rng = self.world.wall, Random(self.world.rng.getrandbits(64))
        self.broker = FakeBroker(self.server, self.name)
        self.refusals = Refusals(wall)
        self.archive = Archive(
            self.store,
            Retention(100_000, 1 << 30, 86400.0),
            self.identity.peer_id_bytes,
            wall_ns=wall,
            gap=lambda _topic, _peer: None,
        )
        neighbours = Neighbours(self.identity.peer_id, self._partners, lambda peer: peer in self.beyond)
        self.exporter = Exporter(
            self.broker, self.archive, SUBJECTS, neighbours, Seen(), self.refusals, self._write, wall_ns=wall, rng=rng
        )
        key = ImportKey(self.key.peer_id, self.key.peer_id_bytes, self.key.sign, True)
        self.topics = Topics(SUBJECTS, self._open, lambda: self.heard)
        self.importer = Importer(
            self.broker,
            self,
            SUBJECTS,
            self.topics,
            key,
            self.durable,
            self.refusals,
            imports_plain=self._imports_plain,
            saw=self.exporter.saw,
            wall_ns=wall,
            rng=rng,
        )

    def _partners(self) -> list[PeerId]:
        others = [each for each in self.mesh.stations if each.server is self.server and each is not self]
        return [each.identity.peer_id for each in others if each.is_up]

    def _imports_plain(self, is_kept: bool) -> bool:
        return is_kept or self.identity.peer_id == min([self.identity.peer_id, *self._partners()])

    async def _open(self, topic: str) -> None:
        await trio.lowlevel.checkpoint()
        self.opened.append(topic)
        self.archive.open(topic)

    async def _write(self, changes: Sequence[Change]) -> None:
        await self.store.write(changes, full=False)

    async def take(self, message: SignedMessage, carrier: Literal["nats", "http"]) -> str | None:
        """`Intake`, but for the router."""
        if message.id in self.archive:
            return "held" if await self.archive.written(message.id) else "storage"
        if not verify_message(message):
            return "signature"
        if message.data in self.unwritable:
            return "storage"
        metadata = decode_payload(message.data).metadata
        if metadata is not None and metadata.published_at_ns > self.world.wall() + FUTURE_ALLOWANCE_SECONDS * 1e9:
            return "future"
        if (why := self.archive.take(message, carrier=carrier)) is not None:
            return why
        self.mesh.spread(message, self)
        return None if await self.archive.written(message.id) else "storage"

    def start(self) -> None:
        assert self._scope is None
        self._scope = trio.CancelScope()
        self.world.nursery.start_soon(self._run, self._scope)

    async def _run(self, scope: trio.CancelScope) -> None:
        with scope:
            contents = await self.archive.load()
            self.exporter.load(contents.subscriptions)
            self.importer.read(f"{self.name}-{contents.number:x}")
            self.is_loaded = True
            async with trio.open_nursery() as nursery:
                for task in (
                    self.archive.run,
                    self.broker.run,
                    self.topics.run,
                    self.exporter.run,
                    self.importer.run,
                    self._sync,
                ):
                    nursery.start_soon(task)

    async def _sync(self) -> None:
        """What the mesh has and this one has not, as synchronisation brings it a little later, and now and then."""
        while True:
            await trio.sleep(1.5)
            for message in list(self.mesh.known.values()):
                if message.id not in self.archive:
                    self.archive.take(message, carrier="sync")

    def crash(self) -> None:
        assert self._scope is not None
        self._scope.cancel()
        self._scope = None
        self.is_loaded = False
        self._make()

    def lose_store(self) -> None:
        """Its key is left, as where that is a secret of the container's."""
        assert self._scope is None
        self.store = MemoryStore()
        self._make()

    def texts(self) -> dict[str, list[MessageId]]:
        """What its disk holds: the ids of the messages, by what they say."""
        found: dict[str, list[MessageId]] = {}
        for raw in self.store.raws.values():
            message = decode_message(raw)
            found.setdefault(text_of(message), []).append(message.id)
        return found


class World:
    def __init__(self, nursery: trio.Nursery, seed: int, *, jetstream: bool = True) -> None:
        self.nursery = nursery
        self.rng = Random(seed)
        self.wall = Wall()
        self.server = FakeServer(self.wall, jetstream=jetstream)
        self.meshes: list[Mesh] = []
        self._seqno = 0

    def mesh(self, name: str) -> Mesh:
        mesh = Mesh(self, name)
        self.meshes.append(mesh)
        return mesh

    @property
    def stations(self) -> list[Station]:
        return [station for mesh in self.meshes for station in mesh.stations]

    def seal(self, origin: Identity, text: str, *, topic: str = TOPIC, **metadata: str | int) -> SignedMessage:
        self._seqno += 1
        document = {"text": text}
        signed = Metadata(published_at_ns=self.wall(), **metadata)  # type: ignore[arg-type]
        data = encode_json_payload(json.dumps(document).encode(), document, signed)
        seqno = self.wall() + self._seqno
        return seal_message(origin=origin.peer_id_bytes, seqno=seqno, topic=topic, data=data, sign=origin.sign)

    def plain(self, text: str, subject: str = SUBJECT, headers: Mapping[str, str] | None = None) -> None:
        """A plain NATS client publishes."""
        self.server.publish(subject, json.dumps({"text": text}).encode(), headers)

    async def everybody_has(self, texts: set[str], seconds: float = 600.0) -> None:
        """At each bridge, and each text once."""
        await until(lambda: all(texts <= station.texts().keys() for station in self.stations), seconds)

    async def settle(self, condition: Callable[[], bool] = lambda: True) -> None:
        """Until nothing waits for NATS."""
        await until(lambda: condition() and not any(sum(s.exporter.pending().values()) for s in self.stations))

    def calls(self) -> dict[str, int]:
        """How often each message that a node signed was published, by its id."""
        found: dict[str, int] = {}
        for each in self.server.publications:
            if (message_id := each.headers.get("Nats-Msg-Id")) is not None and "P2P-From" in each.headers:
                found[message_id] = found.get(message_id, 0) + 1
        return found

    def kept(self) -> list[str]:
        """The ids in the stream of what nodes signed, in order."""
        return [m.headers["Nats-Msg-Id"] for m in self.server.kept if "P2P-From" in m.headers]


def text_of(message: SignedMessage) -> str:
    document = decode_payload(message.data).document
    return str(document["text"]) if document is not None and "text" in document else ""


def origin_of(message_id: MessageId) -> PeerId:
    return peer_id_text(message_id[:-8])


@asynccontextmanager
async def open_world(seed: int = 1, *, jetstream: bool = True) -> AsyncIterator[World]:
    logging.getLogger(__name__).info("seed %d", seed)
    async with trio.open_nursery() as nursery:
        yield World(nursery, seed, jetstream=jetstream)
        nursery.cancel_scope.cancel()
