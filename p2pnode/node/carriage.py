"""The carriage of one node's messages: gossip, NATS and HTTP put together, and the bridge where it is one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from p2pnode.core.subjects import Subjects
from p2pnode.errors import NotFound
from p2pnode.node.archive import Archive
from p2pnode.node.bridge import Bridge, BridgeTools, ImportKey
from p2pnode.node.bridge.metrics import broker_metrics
from p2pnode.node.finder import Finder
from p2pnode.node.inbound import Inbound
from p2pnode.node.intake import RoadIntake
from p2pnode.node.members import Members
from p2pnode.node.meshes import Meshes
from p2pnode.node.outbox import Announcer
from p2pnode.node.posting import Poster, lost
from p2pnode.node.posting import Tools as PosterTools
from p2pnode.node.roads import Roads
from p2pnode.node.roads import Tools as RoadTools
from p2pnode.node.settings import Keys, NodeSettings, OtherRoads
from p2pnode.node.switch import Switch
from p2pnode.ports import Change, Contents, Gossip, Host, JsonObject, MessageStore
from p2pnode.ports.roads import Broker


@dataclass(frozen=True, slots=True)
class Tools:
    """What the carriage needs of the other parts of the node.

    Args:
        store: where the bridge writes how far it is.
        inbound: checks what comes.
        finder: knows where agents are.
        meshes: asks this side for its mesh.
        outbox: own messages that neighbours do not hold yet; asked for only once the node is put together.
        is_shared: does this node take messages of a topic?
        open_topic: makes room for a topic and subscribes to it.
    """

    store: MessageStore
    inbound: Inbound
    finder: Finder
    meshes: Meshes
    outbox: Callable[[], Announcer]
    is_shared: Callable[[str], bool]
    open_topic: Callable[[str], Awaitable[None]]
    wall_ns: Callable[[], int]
    rng: Random


class Carriage:
    """Made when there is a router, then loaded; what is to be run, `tasks` gives.

    Attributes:
        intake: takes what NATS and HTTP bring.
        roads: which ways own messages go.
        switch: shows and changes that.
        listen: where other sidecars hand over messages by HTTP; None: nowhere.
        listener_metrics: of who listens there.
    """

    def __init__(
        self,
        settings: NodeSettings,
        keys: Keys,
        other: OtherRoads,
        subjects: Subjects,
        host: Host,
        gossip: Gossip,
        archive: Archive,
        members: Members,
        tools: Tools,
    ) -> None:
        self._keys = keys
        self._other = other
        self._subjects = subjects
        self._host = host
        self._archive = archive
        self._members = members
        self._tools = tools
        self.listen: str | None = None
        self.listener_metrics: Callable[[], Mapping[str, float]] = dict
        self.intake = RoadIntake(archive, tools.inbound, lambda: gossip, tools.is_shared)
        self._poster = self._make_poster(settings.legacy)
        policy = replace(settings.carriers, has_nats=other.broker is not None)
        self.roads = Roads(
            policy,
            archive,
            subjects,
            self.intake,
            other.broker,
            self._poster,
            RoadTools(
                neighbours=lambda topic: tools.outbox().keepers(topic),
                bridge=self._has_bridge,
                unreachable=self._unreachable,
                announce=lambda message: gossip.announce(message, gossip.topic_peers(message.topic)),
                done=lambda ids: tools.outbox().done(ids),
                reads=other.importing is None,
            ),
        )
        self.switch = Switch(self.roads, policy, other.broker, self._poster, lambda: self.listen, tools.wall_ns)
        self._bridge: Bridge | None = None
        if other.importing is not None and other.broker is not None:
            self._bridge = self._make_bridge(gossip, other.broker, other.importing)

    def _make_poster(self, legacy: Sequence[str]) -> Poster | None:
        if self._other.post is None:
            return None
        finder = self._tools.finder
        tools = PosterTools(
            self._host.peer_id,
            lambda: self._members.all().values(),
            lambda: [place for report in finder.reports() for place in report.places],
            legacy,
            self._tools.wall_ns,
            self._tools.rng,
        )
        return Poster(self._other.post, tools)

    def _make_bridge(self, gossip: Gossip, broker: Broker, key: ImportKey) -> Bridge:
        async def write(changes: Sequence[Change]) -> None:
            await self._tools.store.write(changes, full=False)

        return Bridge(
            broker,
            self._host,
            self._archive,
            self._members,
            self.intake,
            self._subjects,
            key,
            self._other.durable,
            BridgeTools(
                self._keys.sign,
                self._keys.verify_record,
                write,
                self._tools.open_topic,
                gossip.heard_topics,
                self._tools.meshes.collect,
                self._tools.wall_ns,
                self._tools.rng,
            ),
        )

    def _has_bridge(self) -> bool:
        """Is a live bridge on our side, beside this node?"""
        bridges = [each.record.peer_id for each in self._members.alive() if each.record.role == "bridge"]
        return any(peer != self._host.peer_id and not self._members.is_beyond(peer) for peer in bridges)

    def _unreachable(self) -> int:
        return sum(1 for _ in lost(self._members.all().values(), self._host.peer_id, self._tools.wall_ns()))

    def loaded(self, contents: Contents) -> None:
        """The outbox has asked `roads`, which was loaded before it: the rest takes over what is stored."""
        self.roads.loaded()
        if self._bridge is not None:
            self._bridge.load(contents)

    def tasks(self) -> list[Callable[[], Awaitable[None]]]:
        """What is to be run for as long as the node runs."""
        parts: list[Roads | Poster | Bridge | None] = [self.roads, self._poster, self._bridge]
        return [part.run for part in parts if part is not None]

    def bridge(self) -> JsonObject:
        """`ports.Sidecar.bridge`."""
        if self._bridge is None:
            raise NotFound("this node is no bridge", hint="`p2pnode bridge` runs one; --api names another sidecar")
        return self._bridge.document()

    def bridge_reasons(self) -> list[str]:
        """What the bridge lacks, without what the roads of this node lack just the same."""
        told = self.switch.reasons()
        found = self._bridge.health_reasons() if self._bridge is not None else []
        return [each for each in found if each.removeprefix("bridge: ") not in told]

    def metrics(self) -> Mapping[str, float]:
        return {
            **self.switch.metrics(),
            **self.listener_metrics(),
            **(self._bridge.metrics() if self._bridge is not None else {}),
            **(broker_metrics(self._other.broker) if self._other.broker is not None else {}),
        }
