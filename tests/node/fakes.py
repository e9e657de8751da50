"""A network in memory: hosts that dial, links that break, gossip that floods. Virtual time comes from trio's clock."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import trio

from p2pnode.core.links import LinkSettings
from p2pnode.core.membership.record import MemberRecord
from p2pnode.core.message import Accept, MessageId, SignedMessage, Verdict
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.core.routing import Policy
from p2pnode.errors import EnvironmentFault, InvalidMessage, TooBusy, Unavailable
from p2pnode.identity import Identity, verifier_for
from p2pnode.node.councils import CouncilSettings
from p2pnode.node.finder import Chosen
from p2pnode.node.members import Members
from p2pnode.node.settings import Keys, NodeSettings, OtherRoads, Stores
from p2pnode.node.sidecar import Node
from p2pnode.node.storing import SHIPPED, Retention
from p2pnode.ports import Direction, GossipEvents, HostEvents, Link, Source
from p2pnode.wire.pubsub import decode_message, message_verify
from tests.node.stores import MemoryStore

START_NS = 1_763_899_200_000_000_000
"""2025-11-23T12:00:00Z."""

verify_message = message_verify(verifier_for)


def verify_record(peer: bytes, key: bytes, data: bytes, signature: bytes) -> bool:
    try:
        return verifier_for(peer, key)(data, signature)
    except InvalidMessage:
        return False


class Wall:
    """A wall clock that runs with trio's clock, or stands where it is put outside of one."""

    def __init__(self, *, runs: bool = True) -> None:
        self.step_ns = 0
        self._runs = runs
        self._since = trio.current_time() if runs else 0.0

    def __call__(self) -> int:
        passed = trio.current_time() - self._since if self._runs else 0.0
        return START_NS + round(passed * 1e9) + self.step_ns


class MemorySeqnos:
    """`ports.SeqnoStore`; `broken` is a full disk, `gate` a slow one."""

    def __init__(self) -> None:
        self.ceiling = 0
        self.broken = False
        self.writes = 0
        self.gate: trio.Event | None = None

    def load(self) -> int:
        return self.ceiling

    async def reserve(self, ceiling: int) -> None:
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if self.broken:
            raise EnvironmentFault("cannot write seqno: No space left on device")
        assert ceiling > self.ceiling, "a stored ceiling never falls"
        self.ceiling = ceiling
        self.writes += 1


class MemoryPeers:
    """`ports.KnownPeers`; `broken` is a full disk."""

    def __init__(self, saved: Mapping[PeerId, tuple[str, ...]] | None = None) -> None:
        self.saved = dict(saved or {})
        self.broken = False
        self.writes = 0

    def load(self) -> Mapping[PeerId, tuple[str, ...]]:
        return self.saved

    async def save(self, peers: Mapping[PeerId, tuple[str, ...]]) -> None:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise EnvironmentFault("cannot write peers.json: No space left on device")
        self.saved = dict(peers)
        self.writes += 1


@dataclass(frozen=True)
class Dial:
    at: float
    peer: PeerId
    addr: str


@dataclass(frozen=True)
class Request:
    at: float
    by: PeerId
    to: PeerId
    protocol: str
    sent: int
    got: int


class Network:
    """Who listens where, and what happened.

    Attributes:
        down: processes that are gone.
        apart: pairs that cannot reach each other.
        dial_seconds, probe_seconds: what a dial and a probe take.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, FakeHost] = {}
        self.down: set[PeerId] = set()
        self.apart: set[frozenset[PeerId]] = set()
        self.dial_seconds = 0.01
        self.probe_seconds = 0.01
        self.dials: list[Dial] = []
        self.probes: list[Dial] = []
        self.requests: list[Request] = []

    def reaches(self, one: PeerId, other: PeerId) -> bool:
        return not {one, other} & self.down and frozenset((one, other)) not in self.apart

    def split(self, one: PeerId, other: PeerId) -> None:
        """No way from one to the other any more; both see their link break."""
        self.apart.add(frozenset((one, other)))
        self.cut(one, other)

    def kill(self, peer: PeerId) -> None:
        """The process is gone: its links close, dialling it fails."""
        self.down.add(peer)
        for host in self.hosts.values():
            if host.peer_id == peer:
                for other in tuple(host.links()):
                    self.cut(peer, other)

    def revive(self, peer: PeerId) -> None:
        self.down.discard(peer)

    def cut(self, one: PeerId, other: PeerId, *, by_intent: bool = False) -> None:
        for host in tuple(self.hosts.values()):
            if host.peer_id in (one, other):
                host.lose(other if host.peer_id == one else one, by_intent=by_intent)


class FakeHost:
    """`ports.Host` on a `Network`.

    Attributes:
        addr: where it listens.
        announced: what it tells others instead.
        refused: strangers by IP address.
    """

    def __init__(self, network: Network, peer_id: PeerId, addr: str) -> None:
        self.network = network
        self._peer_id = peer_id
        self.addr = addr
        self._links: dict[PeerId, Link] = {}
        self._served: dict[str, tuple[Callable[[PeerId, bytes], Awaitable[bytes]], int]] = {}
        self._events: HostEvents | None = None
        self.pings = True
        self.announced: Sequence[str] = (addr,)
        self.refused: Counter[str] = Counter()
        self.counted: Counter[tuple[str, str]] = Counter()
        network.hosts[addr] = self

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def report_to(self, events: HostEvents) -> None:
        self._events = events

    def addrs(self) -> tuple[str, ...]:
        return tuple(f"{addr}/p2p/{self._peer_id}" for addr in self.announced)

    def links(self) -> Mapping[PeerId, Link]:
        return self._links

    async def dial(self, addr: str) -> PeerId:
        self.network.dials.append(Dial(trio.current_time(), self._peer_id, addr))
        where, _, wanted = addr.partition("/p2p/")
        other = self.network.hosts.get(where)
        if wanted == self._peer_id:
            raise Unavailable(f"{addr} is this node itself", reason="self")
        if PeerId(wanted) in self._links:
            await trio.lowlevel.checkpoint()
            return PeerId(wanted)
        await trio.sleep(self.network.dial_seconds)
        if other is None or not self.network.reaches(self._peer_id, other.peer_id):
            raise Unavailable(f"{addr}: nobody answers", reason="dial")
        if wanted and other.peer_id != wanted:
            raise Unavailable(
                f"{addr}: the address names {wanted}, but {other.peer_id} answers there", reason="other-peer"
            )
        if other is self:
            raise Unavailable(f"{addr}: this node itself answers there", reason="self")
        self.gain(Link(other.peer_id, "outbound", other.addr))
        other.gain(Link(self._peer_id, "inbound", self.addr))
        return other.peer_id

    def gain(self, link: Link) -> None:
        if link.peer not in self._links:
            self._links[link.peer] = link
            if self._events is not None:
                self._events.link_opened(link)

    def lose(self, peer: PeerId, *, by_intent: bool = False) -> None:
        if self._links.pop(peer, None) is not None and self._events is not None:
            self._events.link_closed(peer, by_intent=by_intent)

    async def hang_up(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        self.network.cut(self._peer_id, peer, by_intent=True)

    async def probe(self, peer: PeerId, addrs: Sequence[str], patience_seconds: float, *, fresh: bool = False) -> bool:
        self.network.probes += [Dial(trio.current_time(), self._peer_id, f"{addr}/p2p/{peer}") for addr in addrs]
        await trio.sleep(min(self.network.probe_seconds, patience_seconds))
        there = [self.network.hosts[addr] for addr in addrs if addr in self.network.hosts]
        in_time = self.network.probe_seconds < patience_seconds
        return in_time and any(h.peer_id == peer and self.network.reaches(self._peer_id, peer) for h in there)

    def round_trip(self, peer: PeerId) -> float | None:
        return 0.002 if peer in self._links else None

    def _at(self, peer: PeerId) -> FakeHost:
        link = self._links.get(peer)
        if link is None:
            raise Unavailable(f"not connected to {peer}", reason="not-connected")
        return next(host for host in self.network.hosts.values() if host.peer_id == peer)

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, limit_bytes: int) -> bytes:
        await trio.sleep(0.001)
        served = self._at(peer)._served.get(protocol)
        if served is None:
            raise Unavailable(f"{peer} does not speak {protocol}", reason="protocol")
        answer, limit = served
        if len(body) > limit:
            raise Unavailable("the stream was reset", reason="stream")
        try:
            reply = await answer(self._peer_id, body)
            self._at(peer)  # the link may be gone meanwhile
        except InvalidMessage as error:
            raise Unavailable("the stream was reset", reason="stream") from error
        if len(reply) > limit_bytes:
            raise InvalidMessage("oversize")
        self.network.requests.append(Request(trio.current_time(), self._peer_id, peer, protocol, len(body), len(reply)))
        return reply

    def serve(self, protocol: str, answer: Callable[[PeerId, bytes], Awaitable[bytes]], *, limit_bytes: int) -> None:
        self._served[protocol] = (answer, limit_bytes)

    def counters(self) -> Mapping[tuple[str, str], int]:
        return self.counted

    def strangers(self) -> Mapping[str, int]:
        return self.refused

    async def ping(self, peer: PeerId) -> float:
        await trio.sleep(0.002)
        if not self._at(peer).pings:
            raise Unavailable("no echo", reason="ping")
        return 0.002


class FakeGossip:
    """`ports.Gossip` that floods along the links of `FakeHost`s; what `judge` relays goes on."""

    def __init__(self, host: FakeHost, gossips: dict[PeerId, FakeGossip], events: GossipEvents) -> None:
        self._host = host
        self._gossips = gossips
        self._events = events
        self._topics: set[str] = set()
        self._seen: set[bytes] = set()
        self._counters: Counter[tuple[str, str]] = Counter()
        self.sent: list[SignedMessage] = []
        self.announced: list[tuple[MessageId, tuple[PeerId, ...]]] = []
        self.busy = False
        self.members = 0
        self.gate: trio.Event | None = None
        gossips[host.peer_id] = self

    async def run(self) -> None:
        await trio.sleep_forever()

    def answer(self, message_id: MessageId, verdict: Verdict) -> None:
        raise AssertionError("this network waits for no verdict")

    def fleet_size(self, members: int) -> None:
        self.members = members

    def sizes(self) -> Mapping[str, int]:
        return {"seen": len(self._seen)}

    async def subscribe(self, topic: str) -> None:
        await trio.lowlevel.checkpoint()
        if topic not in self._topics:
            self._topics.add(topic)
            for peer in self._host.links():
                if (other := self._gossips.get(peer)) is not None:
                    other._events.joined(self._host.peer_id, topic)

    def admit(self, topic: str) -> None:
        if not self.topic_peers(topic):
            raise Unavailable(f"no connected peer is subscribed to {topic}", reason="no-peers")
        if self.busy:
            raise TooBusy("a queue is too full", reason="peer-slow")

    async def publish(self, message: SignedMessage) -> None:
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        self.sent.append(message)
        self._seen.add(message.id)
        self._spread(message)

    def announce(self, message: SignedMessage, peers: Collection[PeerId]) -> None:
        self.announced.append((message.id, tuple(peers)))
        for peer in self.topic_peers(message.topic) & frozenset(peers):
            self._gossips[peer].receive(message.raw, self._host.peer_id)

    def misbehaved(self, peer: PeerId, why: str) -> None:
        self._counters["misbehaved", why] += 1

    def send_held(self, peer: PeerId, seqnos: Sequence[bytes]) -> None:
        if peer in self._host.links() and (other := self._gossips.get(peer)):
            other._events.held(self._host.peer_id, seqnos)

    def _spread(self, message: SignedMessage) -> None:
        for peer in tuple(self.topic_peers(message.topic)):
            self._gossips[peer].receive(message.raw, self._host.peer_id)

    def inject(self, message: SignedMessage, via: str) -> None:
        self._receive(message.raw, None, via)

    def heard_topics(self) -> Collection[str]:
        links = self._host.links()
        return {topic for peer, other in self._gossips.items() if peer in links for topic in other._topics}

    def receive(self, raw: bytes, source: PeerId) -> None:
        """Size, shape, seen, signature, mark, judge; then deliver and pass on."""
        self._receive(raw, source, "gossip")

    def _receive(self, raw: bytes, source: PeerId | None, via: str) -> None:
        try:
            message = decode_message(raw)
        except InvalidMessage as error:
            self._counters["reject", error.reason] += 1
            return
        if message.topic not in self._topics:
            return
        if message.id in self._seen:
            if source is not None and peer_id_text(message.origin) == source and self._events.holds(message.id):
                self._events.repeated(source, message.id)
            return
        if not verify_message(message):
            self._counters["reject", "signature"] += 1
            return
        self._seen.add(message.id)
        verdict = self._events.judge(message, source)
        assert verdict is not None, "this network waits for no verdict"
        if not isinstance(verdict, Accept):
            self._counters[type(verdict).__name__.lower(), verdict.why] += 1
            return
        self._counters["accept", "relayed" if verdict.relay else "old"] += 1
        self._events.deliver(message, source, via=via, restored=False)
        if verdict.relay:
            self._spread(message)

    def waiting(self) -> int:
        return 0

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    def counters(self) -> Mapping[tuple[str, str], int]:
        return self._counters

    def topics(self) -> tuple[str, ...]:
        return tuple(sorted(self._topics))

    def topic_peers(self, topic: str) -> frozenset[PeerId]:
        return frozenset(
            peer for peer in self._host.links() if (other := self._gossips.get(peer)) and topic in other._topics
        )

    def mesh(self, topic: str) -> frozenset[PeerId]:
        return self.topic_peers(topic) if topic in self._topics else frozenset()

    def score(self, peer: PeerId) -> float | None:
        return None


@dataclass
class Running:
    """One node and what it stands on."""

    identity: Identity
    host: FakeHost
    node: Node
    gossip: FakeGossip
    seqnos: MemorySeqnos
    incarnations: MemorySeqnos
    known: MemoryPeers
    store: MemoryStore
    wall: Wall
    scope: trio.CancelScope | None = None

    @property
    def members(self) -> Members:
        return self.node.members

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def addr(self) -> str:
        return self.host.addrs()[0]


class Fleet:
    """Nodes on one network. `add` makes one, `start` runs it in the nursery given."""

    def __init__(self, nursery: trio.Nursery, seed: int = 1) -> None:
        self.network = Network()
        self.gossips: dict[PeerId, FakeGossip] = {}
        self.nodes: list[Running] = []
        self._nursery = nursery
        self._rng = Random(seed)

    def add(
        self,
        *,
        bootstrap: Sequence[str] = (),
        topics: Sequence[str] = ("councils.forming",),
        target_links: int = 8,
        max_links: int = 32,
        own_links: int = 3,
        publish_per_second: float = 1000.0,
        publish_burst: int = 1000,
        keep_count: int = 1000,
        keep_bytes: int = 64 * 1024 * 1024,
        keep_seconds: float = 7 * 86400.0,
        store: MemoryStore | None = None,
        identity: Identity | None = None,
        seqnos: MemorySeqnos | None = None,
        incarnations: MemorySeqnos | None = None,
        known: MemoryPeers | None = None,
        wall: Wall | None = None,
        role: str = "chorus",
        sources: Sequence[Source] = (),
        councils: CouncilSettings | None = None,
        capabilities: Sequence[str] = (),
        other_roads: OtherRoads | None = None,
        carriers: Policy | None = None,
        legacy: Sequence[str] = (),
    ) -> Running:
        """Make a node. With the identity and the address of one that is gone, it takes its place."""
        number = len(self.nodes) + 1
        identity = identity or Identity(number.to_bytes(32, "big"))
        wall = wall or Wall()
        host = FakeHost(self.network, identity.peer_id, f"/ip4/10.0.{number // 256}.{number % 256}/tcp/9000")
        seqnos, incarnations, known = seqnos or MemorySeqnos(), incarnations or MemorySeqnos(), known or MemoryPeers()
        store = store or MemoryStore()
        record = MemberRecord(
            identity.peer_id, 0, f"node-{number:03d}", role, "online", (), capabilities=tuple(capabilities)
        )
        node = Node(
            NodeSettings(
                record=record,
                topics=topics,
                bootstrap=bootstrap,
                sources=[Chosen(source, True) for source in sources],
                mode="auto",
                links=LinkSettings(target=target_links, most=max_links, own=own_links),
                publish_per_second=publish_per_second,
                publish_burst=publish_burst,
                retention=Retention(keep_count, keep_bytes, keep_seconds),
                durability=SHIPPED,
                webhook=None,
                councils=councils or CouncilSettings(),
                carriers=carriers or Policy(),
                legacy=legacy,
            ),
            Keys(identity.peer_id_bytes, identity.sign, verify_record, verify_message),
            host,
            Stores(seqnos, incarnations, known, store, Path(tempfile.gettempdir())),
            wall_ns=wall,
            rng=Random(self._rng.getrandbits(64)),
            api_addresses=lambda: ["unix:/run/p2pnode/api.sock"],
            other_roads=other_roads,
        )
        gossip = FakeGossip(host, self.gossips, node)
        node.attach(gossip)
        host.report_to(node)
        running = Running(identity, host, node, gossip, seqnos, incarnations, known, store, wall)
        self.nodes.append(running)
        return running

    def start(self, *nodes: Running) -> None:
        for running in nodes:
            running.scope = trio.CancelScope()
            self._nursery.start_soon(self._run, running, running.scope)

    async def _run(self, running: Running, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await running.node.load()
                await running.node.run()
        finally:
            with trio.CancelScope(shield=True):
                await running.node.close()

    def restart(
        self,
        running: Running,
        *,
        bootstrap: Sequence[str] = (),
        wall: Wall | None = None,
        other_roads: OtherRoads | None = None,
        carriers: Policy | None = None,
        topics: Sequence[str] = ("councils.forming",),
    ) -> Running:
        """The same node once more, with what its disk holds, at another address."""
        self.network.hosts.pop(running.host.addr)
        self.network.revive(running.peer_id)
        return self.add(
            bootstrap=bootstrap,
            topics=topics,
            identity=running.identity,
            seqnos=running.seqnos,
            incarnations=running.incarnations,
            known=running.known,
            store=running.store,
            wall=wall,
            other_roads=other_roads,
            carriers=carriers,
        )

    def stop(self, running: Running) -> None:
        """As kill -9: no goodbye."""
        assert running.scope is not None
        running.scope.cancel()
        self.network.kill(running.peer_id)


@asynccontextmanager
async def open_fleet(seed: int = 1) -> AsyncIterator[Fleet]:
    async with trio.open_nursery() as nursery:
        yield Fleet(nursery, seed)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_pair() -> AsyncIterator[tuple[Running, Running]]:
    """Two running nodes, linked; the second one dialled."""
    async with open_fleet() as fleet:
        first = fleet.add(role="whoosh")
        second = fleet.add(bootstrap=[first.addr])
        fleet.start(first, second)
        await until(lambda: len(first.node.peers()) == len(second.node.peers()) == 2)
        await until(lambda: all(each.gossip.sent for each in (first, second)))
        yield first, second


async def until(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    """Let virtual time pass until something holds."""
    with trio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110  # virtual time
            await trio.sleep(0.05)
        return
    raise AssertionError(f"did not come true within {seconds:g} virtual seconds")


def direction_of(running: Running, peer: PeerId) -> Direction:
    return running.host.links()[peer].direction
