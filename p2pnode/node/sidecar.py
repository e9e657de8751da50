"""The node: its parts put together behind `ports.Sidecar`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

import trio

from p2pnode.core.backbeat import BACKBEAT_TOPIC
from p2pnode.core.message import (
    MessageId,
    SignedMessage,
    Verdict,
    format_message_id,
)
from p2pnode.core.peerid import PeerId
from p2pnode.core.subjects import Subjects
from p2pnode.errors import EnvironmentFault, InvalidMessage, TooBusy, Unavailable
from p2pnode.node.agents import Agents
from p2pnode.node.archive import MAX_TOPICS, Archive
from p2pnode.node.carriage import Carriage
from p2pnode.node.carriage import Tools as CarriageTools
from p2pnode.node.checkup import Checkup
from p2pnode.node.council_metrics import CouncilMetrics
from p2pnode.node.council_requests import CouncilRequests
from p2pnode.node.councils import CouncilKeeper
from p2pnode.node.councils import Tools as CouncilTools
from p2pnode.node.dialer import Dialer
from p2pnode.node.finder import Finder
from p2pnode.node.inbound import Inbound
from p2pnode.node.keeping import Keeping
from p2pnode.node.keeping import Tools as KeepingTools
from p2pnode.node.members import Members, Tools
from p2pnode.node.meshes import Meshes
from p2pnode.node.metrics import archive_metrics, discovery_metrics, gossip_metrics, host_metrics, member_metrics
from p2pnode.node.pinging import ping
from p2pnode.node.presence import Presence
from p2pnode.node.publish import Publisher, Signer, TokenBucket
from p2pnode.node.reach import Reach
from p2pnode.node.reader import Reader
from p2pnode.node.roads import Roads
from p2pnode.node.seqno import SeqnoSource
from p2pnode.node.settings import Keys, NodeSettings, OtherRoads, Stores
from p2pnode.node.view import View
from p2pnode.node.vitals import DiskCheck
from p2pnode.ports import (
    Followed,
    Gossip,
    Health,
    Host,
    JsonObject,
    Link,
    Published,
)
from p2pnode.wire.members import MEMBERS_TOPIC
from p2pnode.wire.peerrecord import read_peer_record

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0


class Node:
    """`ports.Sidecar`, `ports.HostEvents` and `ports.GossipEvents` of one process.

    Made before the gossip layer, which needs it as listener; `attach` closes the circle.
    """

    def __init__(
        self,
        settings: NodeSettings,
        keys: Keys,
        host: Host,
        stores: Stores,
        *,
        wall_ns: Callable[[], int],
        rng: Random,
        api_addresses: Callable[[], Sequence[str]],
        other_roads: OtherRoads | None = None,
    ) -> None:
        self._other_roads = other_roads or OtherRoads()
        self._subjects = Subjects(settings.cluster, settings.subjects)
        self._carriage: Carriage | None = None
        self._settings = settings
        self._keys = keys
        self._host = host
        self._wall_ns = wall_ns
        self._store = stores.messages
        self._archive = Archive(
            stores.messages,
            settings.retention,
            keys.origin,
            durability=settings.durability,
            wall_ns=wall_ns,
            gap=self._on_gap,
        )
        self._seqnos = SeqnoSource(stores.seqnos, wall_ns)
        self.presence = Presence(host, lambda: self.members, lambda: self.gossip, self._seqnos, keys)
        own = replace(settings.record, addrs=self.presence.addrs(), started_at_ns=wall_ns())
        self.members = Members(
            host,
            Tools(keys.sign, keys.verify_record, wall_ns, rng, stores.incarnations),
            own,
            self.presence.publish,
            self._members_changed,
            self.presence.meet_twin,
        )
        self._inbound = Inbound(self._archive, self.members, keys.verify_message, wall_ns)
        self._dialer = Dialer(
            host, self.members, settings.links, settings.bootstrap, self._mesh_counts, stores.known, rng
        )
        self._finder = Finder(self._dialer.bootstraps, settings.sources, self._dialer.found)
        self._meshes = Meshes(host, self._mesh_by_topic, self.members.all, is_beyond=self.members.is_beyond)
        self._gossip: Gossip | None = None
        self._publisher: Publisher | None = None
        self._keeping: Keeping | None = None
        self._rng = rng
        self._stopping = trio.Event()
        self._followers = 0
        self._trust = settings.councils.trust()
        self._reader = Reader(self._archive, self._name_of, self._stopping, self._trust)
        self._reach = Reach(host, self._is_member, self._name_of, wall_ns=wall_ns, rng=rng)
        self._checkup = Checkup(
            host,
            self.members,
            self._dialer,
            self._finder,
            self._reach,
            DiskCheck(stores.directory),
            settings.topics,
            wall_ns,
            trio.current_time(),
            self._trust,
            lambda: self._carriage,
        )
        self._view = View(
            host,
            self.members,
            self._dialer,
            self._finder,
            self._reach,
            self._archive,
            self._inbound,
            gossip=lambda: self._gossip,
            switch=lambda: self._carriage.switch if self._carriage is not None else None,
            extra_reasons=lambda: self._carriage.bridge_reasons() if self._carriage is not None else [],
            published=lambda: self._publisher.published if self._publisher is not None else {},
            topics_wanted=settings.topics,
            mode=settings.mode,
            is_stopping=self._stopping.is_set,
            wall_ns=wall_ns,
            started=trio.current_time(),
            api_addresses=api_addresses,
        )

        self._agents = Agents(self.members, host.links, keys.sign, wall_ns)
        self._council_metrics = CouncilMetrics()
        self._council_keeper = CouncilKeeper(
            self._archive,
            self.members,
            settings.councils,
            CouncilTools(
                host.peer_id,
                self._say,
                wall_ns,
                rng,
                self._stopping,
                listeners=(self._agents.take,),
                topics=(BACKBEAT_TOPIC,),
                metrics=self._council_metrics,
            ),
        )
        self._councils = CouncilRequests(
            self._council_keeper,
            self._ask,
            host.peer_id,
            settings.record.role,
            lambda: self.members.own,
            wall_ns,
        )

    def attach(self, gossip: Gossip) -> None:
        self._gossip = gossip
        tools = CarriageTools(
            self._store,
            self._inbound,
            self._finder,
            self._meshes,
            lambda: self.keeping.outbox,
            self._is_shared,
            self._open_topic,
            self._wall_ns,
            self._rng,
        )
        self._carriage = Carriage(
            self._settings,
            self._keys,
            self._other_roads,
            self._subjects,
            self._host,
            gossip,
            self._archive,
            self.members,
            tools,
        )
        self.intake, roads = self._carriage.intake, self._carriage.roads
        self._keeping = Keeping(
            self._archive,
            self._store,
            self._host,
            gossip,
            self._settings.webhook,
            KeepingTools(
                self._keys.origin,
                self._is_member,
                self._name_of,
                lambda raw, _: self._inbound.take_synced(raw, self._is_shared),
                self._stopping,
                self._wall_ns,
                self._rng,
                self._trust,
                roads.is_gossiped,
                roads.safe,
            ),
        )
        self._archive.on_dropped.append(roads.dropped)
        self._publisher = Publisher(
            gossip,
            self._archive,
            self._seqnos,
            Signer(self._keys.origin, self._keys.sign),
            TokenBucket(self._settings.publish_per_second, self._settings.publish_burst),
            self._wall_ns,
            roads,
        )

    def carries_http(self, listen: str, url: str, metrics: Callable[[], Mapping[str, float]] = dict) -> None:
        """Other sidecars can hand over messages by HTTP here: they are told so. `metrics`: of who listens."""
        self.carriage.listen, self.carriage.listener_metrics = listen, metrics
        self.members.update_own(replace(self.members.own, carrier=url))

    async def load(self) -> None:
        """Take over what is stored; called once, after `attach` and before `run`.

        Raises:
            EnvironmentFault: the store cannot be read.
        """
        contents = await self._archive.load()
        waiting = [entry for each in contents.outbox if (entry := self._archive.entry(each)) is not None]
        await self.roads.load(waiting)
        self.keeping.load(contents)
        self.carriage.loaded(contents)

    @property
    def gossip(self) -> Gossip:
        if self._gossip is None:
            raise Unavailable("the node is starting", reason="starting")
        return self._gossip

    @property
    def carriage(self) -> Carriage:
        if self._carriage is None:
            raise Unavailable("the node is starting", reason="starting")
        return self._carriage

    @property
    def roads(self) -> Roads:
        return self.carriage.roads

    @property
    def keeping(self) -> Keeping:
        if self._keeping is None:
            raise Unavailable("the node is starting", reason="starting")
        return self._keeping

    @property
    def publisher(self) -> Publisher:
        if self._publisher is None:
            raise Unavailable("the node is starting", reason="starting")
        return self._publisher

    async def run(self) -> None:
        """Join and stay joined, until cancelled."""
        read = self.keeping.deliveries.topics()
        for topic in dict.fromkeys((MEMBERS_TOPIC, *self._settings.topics, *read)):
            await self.gossip.subscribe(topic)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._archive.run)
            nursery.start_soon(self._council_keeper.run)
            nursery.start_soon(self.keeping.run)
            for task in self.carriage.tasks():
                nursery.start_soon(task)
            nursery.start_soon(self.members.run)
            nursery.start_soon(self._dialer.run)
            nursery.start_soon(self._finder.run)
            nursery.start_soon(self._reach.run)
            nursery.start_soon(self.presence.follow_addrs)
            nursery.start_soon(self.gossip.run)
            nursery.start_soon(self.presence.answer_twin)

    async def drain(self) -> None:
        """Take no more, say goodbye, let what is queued go out: at most two seconds."""
        self._stopping.set()
        if self._publisher is not None:
            self._publisher.draining = True
        with trio.move_on_after(FLUSH_SECONDS):
            try:
                await self.presence.publish(self.members.goodbye())
            except EnvironmentFault as error:  # nobody there to say goodbye to, or a full disk
                log.debug("left without a goodbye", extra={"reason": error.detail})
            await self.keeping.flush()
            if self._gossip is not None:
                await self._gossip.flush()
                # Written is not read: a socket closed now may take the goodbye with it.
                await trio.sleep(0.1)

    async def close(self) -> None:
        """Store what was accepted and not stored yet; called once `run` has ended."""
        await self._archive.close()

    # -- what the host and the router report -------------------------------------------

    def link_opened(self, link: Link) -> None:
        self.members.link_opened(link)
        self._dialer.link_opened(link)
        if self._keeping is not None:
            self._keeping.link_opened(link)

    def link_closed(self, peer: PeerId, *, by_intent: bool) -> None:
        if self._keeping is not None:
            self._keeping.link_closed(peer)
        self._dialer.link_closed(peer, by_intent=by_intent)
        self.members.link_closed(peer, by_intent=by_intent)

    def link_silent(self, peer: PeerId) -> None:
        self.members.link_silent(peer)

    def judge(self, message: SignedMessage, source: PeerId | None) -> Verdict:
        return self._inbound.judge(message, source)

    def deliver(self, message: SignedMessage, source: PeerId | None, *, via: str = "gossip", restored: bool) -> None:
        if restored and message.topic != MEMBERS_TOPIC:
            log.warning("an own message that was lost here came back", extra={"id": format_message_id(message.id)})
        self._inbound.deliver(message, carrier=via)

    def held(self, peer: PeerId, seqnos: Sequence[bytes]) -> None:
        self.keeping.outbox.held(peer, seqnos)

    def repeated(self, peer: PeerId, message_id: MessageId) -> None:
        self.keeping.notices.repeated(peer, message_id)

    def joined(self, peer: PeerId, topic: str) -> None:
        self.keeping.joined(topic, peer)

    def holds(self, message_id: MessageId) -> bool:
        return message_id in self._archive

    def connect(self, peer: PeerId, record: bytes | None, why: str) -> None:
        """Dial whom the router wants, at the addresses that the peer itself signed."""
        if record is None:
            member = self.members.get(peer)
            self._dialer.hint(peer, member.record.addrs if member else ())
            return
        try:
            told = read_peer_record(record, self._keys.verify_record)
        except InvalidMessage as error:
            self.members.refused[f"px-{error.reason}"] += 1
            return
        if told.peer != peer:
            self.members.refused["px-other-peer"] += 1
            return
        self._dialer.hint(peer, told.addrs)

    def _on_gap(self, topic: str, origin: PeerId) -> None:
        if self._keeping is not None:
            self._keeping.gap(topic, origin)

    def _members_changed(self) -> None:
        self._dialer.wake()
        self._council_keeper.members_changed()
        if self._carriage is not None:
            self._carriage.roads.members_changed()
        if self._gossip is not None:
            here = sum(1 for each in self.members.alive() if not self.members.is_beyond(each.record.peer_id))
            self._gossip.fleet_size(here)

    def _mesh_counts(self) -> Mapping[PeerId, int]:
        """In how many of our meshes each peer is."""
        gossip = self._gossip
        return Counter(peer for topic in gossip.topics() for peer in gossip.mesh(topic)) if gossip is not None else {}

    def _mesh_by_topic(self) -> Mapping[str, frozenset[PeerId]]:
        gossip = self.gossip
        return {topic: gossip.mesh(topic) for topic in gossip.topics()}

    # -- ports.Sidecar -----------------------------------------------------------------

    def node(self) -> JsonObject:
        return self._view.node()

    def peers(self) -> list[JsonObject]:
        return self._view.peers()

    def topics(self) -> list[JsonObject]:
        return self._view.topics(self.gossip)

    def health(self) -> Health:
        return self._view.health()

    def discovery(self) -> JsonObject:
        return self._view.discovery()

    async def doctor(self) -> JsonObject:
        return await self._checkup.document(self.gossip)

    async def publish(
        self, topic: str, body: bytes, *, content_type: str, headers: Mapping[str, str], idempotency_key: str | None
    ) -> Published:
        return await self.publisher.publish(
            topic, body, content_type=content_type, headers=headers, idempotency_key=idempotency_key
        )

    async def _say(self, topic: str, body: bytes) -> Published:
        """What the node says of councils by itself."""
        return await self.publisher.publish(
            topic, body, content_type="application/json", headers={}, idempotency_key=None, metered=False
        )

    async def _ask(self, topic: str, body: bytes) -> Published:
        """What the agent has said of councils."""
        return await self.publish(topic, body, content_type="application/json", headers={}, idempotency_key=None)

    async def create_council(self, document: Mapping[str, object], *, idempotency_key: str | None) -> JsonObject:
        return await self._councils.create(document, idempotency_key)

    def councils(self, *, status: str | None) -> list[JsonObject]:
        return self._councils.councils(status)

    def council(self, council_id: str) -> JsonObject:
        return self._councils.council(council_id)

    async def claim_role(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        return await self._councils.claim(council_id, document)

    async def release_role(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        return await self._councils.release(council_id, document)

    async def report_status(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        return await self._councils.report(council_id, document)

    @asynccontextmanager
    async def watch_councils(self, council_id: str | None) -> AsyncIterator[AsyncIterator[JsonObject]]:
        async with self._councils.watch(council_id) as steps:
            yield steps

    def agent(self) -> JsonObject:
        return self._agents.agent()

    def agents(self, *, capability: str | None, model: str | None, status: str | None) -> list[JsonObject]:
        return self._agents.agents(capability=capability, model=model, status=status)

    async def update_agent(self, changes: Mapping[str, object]) -> JsonObject:
        return await self._agents.update(changes)

    async def messages(self, topic: str, *, after: str | None, limit: int) -> list[JsonObject]:
        return await self._reader.page(topic, after=after, limit=limit)

    @asynccontextmanager
    async def follow(self, topic: str, *, start: str) -> AsyncIterator[AsyncIterator[Followed]]:
        position = self._reader.position(topic, start)
        await self._open_topic(topic)
        self._followers += 1
        stream = self._reader.follow(topic, position)
        try:
            yield stream
        finally:
            self._followers -= 1
            await stream.aclose()

    @asynccontextmanager
    async def subscribe(self, topic: str, name: str, *, start: str) -> AsyncIterator[AsyncIterator[Followed]]:
        deliveries = self.keeping.deliveries
        await self._open_topic(topic)
        async with deliveries.subscribe(topic, name, start=start) as stream:
            yield stream

    async def acknowledge(self, name: str, message_id: str) -> JsonObject:
        return await self.keeping.deliveries.acknowledge(name, message_id)

    async def nack(self, name: str, message_id: str, reason: str) -> JsonObject:
        return await self.keeping.deliveries.nack(name, message_id, reason)

    async def subscriptions(self) -> list[JsonObject]:
        return await self.keeping.deliveries.subscriptions()

    async def unsubscribe(self, name: str) -> None:
        await self.keeping.deliveries.unsubscribe(name)

    async def deliveries(self) -> list[JsonObject]:
        return await self.keeping.deliveries.deliveries()

    def dead_letters(self, subscription: str | None, limit: int) -> list[JsonObject]:
        return self.keeping.deliveries.dead_letters(subscription, limit)

    async def retry_deliveries(self, subscription: str | None, message_id: str | None) -> int:
        return await self.keeping.deliveries.retry_deliveries(subscription, message_id)

    async def drop_deliveries(self, subscription: str | None, message_id: str | None) -> int:
        return await self.keeping.deliveries.drop_deliveries(subscription, message_id)

    async def _open_topic(self, topic: str) -> None:
        if not self._archive.open(topic):
            raise TooBusy(f"this sidecar keeps {MAX_TOPICS} topics and takes no other", reason="topics")
        await self.gossip.subscribe(topic)
        self.keeping.keeps(topic)

    async def mesh(self) -> JsonObject:
        return await self._meshes.document()

    async def ping(self, peer: str) -> JsonObject:
        return await ping(self._host, self.members, peer)

    def bootstrap_peers(self) -> list[str]:
        addrs = list(self._host.addrs())
        for member in sorted(self.members.alive(), key=lambda member: member.record.peer_id):
            peer = member.record.peer_id
            if peer != self._host.peer_id and not self.members.is_beyond(peer):
                addrs += [f"{addr}/p2p/{member.record.peer_id}" for addr in member.record.addrs]
        return addrs

    def carriers(self) -> JsonObject:
        return self.carriage.switch.document()

    async def set_carriers(self, changes: Mapping[str, object]) -> JsonObject:
        return self.carriage.switch.set(changes)

    def bridge(self) -> JsonObject:
        return self.carriage.bridge()

    def metrics(self) -> Mapping[str, float]:
        own = {**host_metrics(self._host), "p2pnode_followers": float(self._followers)}
        gossip = gossip_metrics(self._gossip, self._inbound, self.publisher) if self._gossip is not None else {}
        discovery = discovery_metrics(self._finder, self._dialer)
        kept = {**archive_metrics(self._archive), **(self._keeping.metrics() if self._keeping is not None else {})}
        councils = {**self._council_keeper.metrics(), **self._council_metrics.metrics()}
        councils |= {**self._agents.metrics(), **self._trust.metrics()}
        carriage = self._carriage.metrics() if self._carriage is not None else {}
        return {**carriage, **own, **kept, **member_metrics(self.members), **discovery, **gossip, **councils}

    # -- helpers -----------------------------------------------------------------------

    def _is_shared(self, topic: str) -> bool:
        """Does this node take messages of the topic: because somebody here reads it, or it published to it?"""
        return topic in self.gossip.topics() or topic in self._archive.topics()

    def _is_member(self, peer: PeerId) -> bool:
        return self.members.get(peer) is not None

    def _name_of(self, peer: PeerId) -> str | None:
        member = self.members.get(peer)
        return member.record.name if member else None
