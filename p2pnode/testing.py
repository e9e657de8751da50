"""A simulated gossip network in virtual time: the production `Router`, unmodified, on invented links.

Discrete events on one heap; nothing sleeps and nothing is random but by the seed, so a
failing run is replayed by its seed. `Network` is the machine; `Scenario` is data for it
(`tests/sim/scenarios.toml`), `simulate` runs one and `Report` says what came of it.

    report = simulate(Scenario(name="mine", nodes=50, loss=0.02), seed=7)
    assert report.missed_share == 0, report
"""

from __future__ import annotations

import statistics
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from typing import Any

from p2pnode.core.gossipsub.events import (
    Connect,
    Deliver,
    Disconnect,
    Effect,
    Forward,
    Input,
    PeerConnected,
    PeerDisconnected,
    Priority,
    Protocol,
    Publish,
    RpcReceived,
    SendRpc,
    Subscribe,
    Tick,
    Validate,
    Validated,
)
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.router import Router
from p2pnode.core.gossipsub.rpc import Rpc
from p2pnode.core.message import Accept, MessageId, SignedMessage, Topic, Verdict
from p2pnode.core.peerid import PeerId

TOPIC = Topic("sim")
DIAL_EVERY_SECONDS = 2.0
NOTICE_SECONDS = 0.25
"""How long after a kill its neighbours know (`facts/py-libp2p.md`: 0.23 s)."""
CUT_NOTICE_SECONDS = 10.0
"""How long after a partition the links across it are given up."""
SPAM_EVERY_SECONDS = 0.25
_GENUINE = b"genuine"
_ACCEPT = Accept()


def fake_verify(message: SignedMessage) -> bool:
    """The signature is a constant: 70 microseconds saved per message and node."""
    return message.signature == _GENUINE


def rpc_bytes(rpc: Rpc) -> int:
    """About the size of an RPC without its messages, on the wire."""
    ids = sum(len(each.ids) for each in rpc.ihave) + len(rpc.iwant) + len(rpc.idontwant)
    exchanged = sum(len(each.peers) for each in rpc.prune)
    entries = len(rpc.subscriptions) + len(rpc.ihave) + len(rpc.graft) + len(rpc.prune)
    return 4 + 48 * ids + 240 * exchanged + 16 * entries


@dataclass(slots=True, eq=False)
class Link:
    """One side's view of a connection: `delay` in seconds one way, `outbound` when this side dialled."""

    delay: float
    outbound: bool


class Node:
    """One simulated process: a router, its links, and what it was told.

    Attributes:
        got: when each message was delivered here, in virtual seconds, and after how many hops.
        wanted: whom it keeps dialled, for ever.
        hostile: empty, `dropper`, `graft-spammer` or `forger`.
    """

    __slots__ = (
        "_first_hops",
        "got",
        "hostile",
        "id",
        "links",
        "raw",
        "router",
        "side",
        "up_from",
        "up_to",
        "uplink_free",
        "wanted",
    )

    def __init__(self, number: int, params: Params, rng: Random, now: float, hostile: str) -> None:
        self.id = PeerId(f"n{number:05d}")
        self.raw = b"node" + number.to_bytes(34, "big")
        self.got: dict[MessageId, tuple[float, int]] = {}
        self.router = Router(self.id, self.raw, params, rng, fake_verify, held=self.got.__contains__, now=now)
        self.links: dict[PeerId, Link] = {}
        self.wanted: dict[PeerId, None] = {}
        self.hostile = hostile
        self.side = 0
        self.up_from = now
        self.up_to = float("inf")
        self.uplink_free = 0.0
        self._first_hops: dict[MessageId, int] = {}

    @property
    def alive(self) -> bool:
        return self.up_to == float("inf")

    def heard(self, mid: MessageId, hops: int) -> None:
        self._first_hops[mid] = hops

    def hops(self, mid: MessageId) -> int:
        return self._first_hops.get(mid, 0)


class Network:
    """Nodes, links between them, and one clock.

    Args:
        seed: replays everything.
        delay: one-way seconds of a link; each link draws its own within `jitter` (a share) of it.
        loss: share of RPCs that vanish. Announcements of topics are spared: the protocol sends them once,
            over a stream that does not lose.
        uplink: message bytes per second that a node can send; 0: no limit. Control overtakes messages.
        judge: a node's verdict on a message, which takes `judge_seconds`.
    """

    def __init__(
        self,
        seed: int,
        params: Params,
        *,
        delay: float = 0.05,
        jitter: float = 0.0,
        loss: float = 0.0,
        uplink: float = 0.0,
        judge: Callable[[Node, SignedMessage], Verdict] = lambda _node, _message: _ACCEPT,
        judge_seconds: float = 0.0,
    ) -> None:
        self.rng = Random(seed)
        self.params = params
        self.delay = delay
        self.jitter = jitter
        self.loss = loss
        self.uplink = uplink
        self.judge = judge
        self.judge_seconds = judge_seconds
        self.now = 0.0
        self.nodes: dict[PeerId, Node] = {}
        self.everyone: list[Node] = []
        self.cut = False
        self.traffic: Counter[str] = Counter()
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        """Call `what` at virtual time `when`."""
        self._order += 1
        heappush(self._heap, (when, self._order, what, args))

    def run_until(self, when: float) -> None:
        """Let virtual time pass."""
        heap = self._heap
        while heap and heap[0][0] <= when:
            self.now, _, what, args = heappop(heap)
            what(*args)
        self.now = when

    def alive(self) -> list[Node]:
        return list(self.nodes.values())

    def add(self, *, hostile: str = "", topics: tuple[Topic, ...] = (TOPIC,)) -> Node:
        """Start a node; it has no links yet."""
        node = Node(len(self.everyone), self.params, Random(self.rng.getrandbits(64)), self.now, hostile)
        self.everyone.append(node)
        self.nodes[node.id] = node
        for topic in topics:
            self.give(node, Subscribe(topic))
        self.at(node.router.next_deadline(), self._tick, node)
        self.at(self.now + self.rng.random() * DIAL_EVERY_SECONDS, self._keep_dialled, node)
        if hostile == "graft-spammer":
            self.at(self.now + SPAM_EVERY_SECONDS, self._spam, node)
        return node

    def kill(self, node: Node) -> None:
        """Stop a node without a word; its neighbours notice after `NOTICE_SECONDS`."""
        node.up_to = self.now
        del self.nodes[node.id]
        for peer in list(node.links):
            self.at(self.now + NOTICE_SECONDS, self._lose, peer, node.id)
        node.links.clear()

    def dial(self, node: Node, peer: PeerId) -> None:
        """Connect after one and a half round trips, if nothing is in the way by then."""
        delay = self.delay * (1 + self.jitter * (2 * self.rng.random() - 1))
        self.at(self.now + 3 * delay, self._open, node, peer, delay)

    def hang_up(self, node: Node, peer: PeerId) -> None:
        """Close a link; the other side hears of it one delay later."""
        link = node.links.get(peer)
        if link is not None:
            self._lose(node.id, peer)
            self.at(self.now + link.delay, self._lose, peer, node.id)

    def partition(self, sides: Callable[[Node], int]) -> None:
        """Cut the network between nodes for which `sides` differs."""
        self.cut = True
        for node in self.everyone:
            node.side = sides(node)
        self.at(self.now + CUT_NOTICE_SECONDS, self._drop_cut_links)

    def heal(self) -> None:
        self.cut = False

    def publish(self, node: Node, size: int, topic: Topic = TOPIC) -> MessageId:
        """Let a node publish `size` bytes."""
        number = self.traffic["published"] = self.traffic["published"] + 1
        seqno = number.to_bytes(8, "big")
        data = seqno.ljust(size, b".")
        message = SignedMessage(node.raw, seqno, topic, data, _GENUINE, b"", data)
        node.heard(message.id, 0)
        node.got[message.id] = (self.now, 0)
        self.give(node, Publish(message))
        return message.id

    def give(self, node: Node, input_: Input, hops: int = 0) -> None:
        """One input for a node's router, and what it wants done."""
        for effect in node.router.handle(input_, self.now):
            self._do(node, effect, hops)

    def _do(self, node: Node, effect: Effect, hops: int) -> None:
        match effect:
            case Forward():
                self._forward(node, effect)
            case Validate(message=message):
                node.heard(message.id, hops)
                if self.judge_seconds:
                    self.at(self.now + self.judge_seconds, self._judge, node, message)
                else:
                    self._judge(node, message)
            case Deliver(message=message):
                node.got[message.id] = (self.now, node.hops(message.id))
            case SendRpc():
                size = rpc_bytes(effect.rpc)
                self.traffic["control bytes"] += size * len(effect.peers)
                for peer in effect.peers:
                    self._send(node, peer, effect.rpc, size, 0, spared=bool(effect.rpc.subscriptions))
            case Connect(peer=peer):
                self.dial(node, peer)
            case Disconnect(peer=peer):
                self.hang_up(node, peer)

    def _judge(self, node: Node, message: SignedMessage) -> None:
        if node.alive:
            self.give(node, Validated(message.id, self.judge(node, message)))

    def _forward(self, node: Node, effect: Forward) -> None:
        message = effect.message
        if node.hostile and effect.priority is not Priority.OWN:
            if node.hostile != "forger":
                return
            message = replace(message, signature=b"forged", data=b"forged")
        rpc = Rpc(publish=(message,))
        hops = node.hops(message.id) + 1
        size = len(message.raw) + 160
        self.traffic["copies"] += len(effect.peers)
        for peer in effect.peers:
            self._send(node, peer, rpc, size, hops)

    def _send(self, node: Node, peer: PeerId, rpc: Rpc, size: int, hops: int, spared: bool = False) -> None:
        link = node.links.get(peer)
        if link is None:
            return
        leaves = self.now
        if self.uplink and rpc.publish:
            leaves = node.uplink_free = max(self.now, node.uplink_free) + size / self.uplink
        if self.loss and not spared and self.rng.random() < self.loss:
            self.traffic["lost"] += 1
            return
        self.at(leaves + link.delay, self._arrive, node, peer, rpc, hops, link)

    def _arrive(self, sender: Node, peer: PeerId, rpc: Rpc, hops: int, link: Link) -> None:
        node = self.nodes.get(peer)
        if node is None or sender.id not in node.links or (self.cut and node.side != sender.side):
            return
        self.give(node, RpcReceived(sender.id, rpc), hops)

    def _tick(self, node: Node) -> None:
        if node.alive:
            self.give(node, Tick())
            self.at(node.router.next_deadline(), self._tick, node)

    def _spam(self, node: Node) -> None:
        if node.alive:
            for peer in list(node.links):
                self._send(node, peer, Rpc(graft=(TOPIC,)), 32, 0)
            self.at(self.now + SPAM_EVERY_SECONDS, self._spam, node)

    def _keep_dialled(self, node: Node) -> None:
        if not node.alive:
            return
        for peer in list(node.wanted):
            if peer not in self.nodes:
                del node.wanted[peer]
                others = [other for other in self.nodes if other != node.id and other not in node.links]
                if others:
                    node.wanted[self.rng.choice(others)] = None
        for peer in node.wanted:
            if peer not in node.links:
                self.dial(node, peer)
        self.at(self.now + DIAL_EVERY_SECONDS, self._keep_dialled, node)

    def _open(self, node: Node, peer: PeerId, delay: float) -> None:
        other = self.nodes.get(peer)
        if other is None or not node.alive or peer in node.links or (self.cut and node.side != other.side):
            return
        if other.router.graylisted(node.id) or node.router.graylisted(peer):
            return
        node.links[peer] = Link(delay, True)
        other.links[node.id] = Link(delay, False)
        self.give(node, PeerConnected(peer, other.raw, Protocol.V1_2, True, "10.0.0.1"))
        self.give(other, PeerConnected(node.id, node.raw, Protocol.V1_2, False, "10.0.0.1"))

    def _lose(self, here: PeerId, peer: PeerId) -> None:
        node = self.nodes.get(here)
        if node is not None and node.links.pop(peer, None) is not None:
            self.give(node, PeerDisconnected(peer))

    def _drop_cut_links(self) -> None:
        if self.cut:
            for node in self.alive():
                for peer in list(node.links):
                    other = self.nodes.get(peer)
                    if other is not None and other.side != node.side:
                        self._lose(node.id, peer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One simulated situation, as data.

    Args:
        rule: what it shows, as a sentence.
        run: `test` (part of `make test`) or `soak`.
        nodes: of which the share `hostile` is of kind `hostile_kind`; the first node is always honest.
        topology: `random` (each joins by one node and dials `dials` others) or `star` (all dial the first only).
        latency_ms: one way; `jitter` is the share by which links differ.
        loss: share of RPCs that vanish.
        uplink_bytes: per second and node; 0: no limit.
        judge_ms: how long each node takes for its verdict.
        churn_per_minute: share of the nodes replaced, at random times; the first stays.
        cut_at_seconds: when the network falls into halves, for `cut_seconds`; 0: never. No messages count
            that are published less than 10 s before or during the cut, or within `settle_seconds` after it.
        warmup_seconds: from the start until the first publish.
        duration_seconds: of publishing, at `publish_per_second`, by random honest nodes.
        fleet: the size that the mesh degree is chosen for; 0: `nodes`.
        missed_share: the most that may be missed, of all deliveries due.
    """

    name: str
    rule: str = ""
    run: str = "test"
    nodes: int
    topology: str = "random"
    dials: int = 8
    latency_ms: float = 50.0
    jitter: float = 0.2
    loss: float = 0.0
    uplink_bytes: float = 0.0
    judge_ms: float = 0.0
    churn_per_minute: float = 0.0
    hostile: float = 0.0
    hostile_kind: str = ""
    cut_at_seconds: float = 0.0
    cut_seconds: float = 0.0
    settle_seconds: float = 15.0
    warmup_seconds: float = 10.0
    duration_seconds: float = 60.0
    publish_per_second: float = 1.0
    message_bytes: int = 1024
    fleet: int = 0
    missed_share: float = 0.0


UP_SECONDS = 10.0
"""A delivery is due at nodes up for this long before and after a publish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of a run; delays are in units of the scenario's latency.

    Args:
        due: pairs of message and node that had to meet; `missed` of them did not.
        duplicates: copies received beyond the first, per delivery.
        control_bytes: sent per node and second.
        mesh: smallest, mean and largest mesh at the end; `links` likewise.
    """

    name: str
    seed: int
    messages: int
    due: int
    missed: int
    hops_mean: float
    hops_max: int
    delay_p50: float
    delay_p99: float
    delay_max: float
    duplicates: float
    control_bytes: float
    mesh: tuple[int, float, int]
    links: tuple[int, float, int]
    counters: dict[str, int] = field(repr=False)

    @property
    def missed_share(self) -> float:
        return self.missed / self.due if self.due else 1.0


def load_scenarios(path: Path) -> list[Scenario]:
    """The `[[scenario]]` tables of a TOML file.

    Raises:
        ValueError: an unknown key, with the scenario's name.
    """
    known = {each.name for each in fields(Scenario)}
    scenarios = []
    for table in tomllib.loads(path.read_text(encoding="utf-8"))["scenario"]:
        unknown = sorted(table.keys() - known)
        if unknown:
            raise ValueError(f"scenario {table.get('name')!r} has unknown keys {unknown}")
        scenarios.append(Scenario(**table))
    return scenarios


@dataclass(slots=True, eq=False)
class _Sent:
    message: MessageId
    at: float
    counts: bool


def simulate(scenario: Scenario, seed: int, params: Params | None = None) -> Report:
    """Run one scenario.

    Args:
        params: None for ours, with the degree for the scenario's fleet.
    """
    chosen = params or Params().for_fleet(scenario.fleet or scenario.nodes)
    network = Network(
        seed,
        chosen,
        delay=scenario.latency_ms / 1000,
        jitter=scenario.jitter,
        loss=scenario.loss,
        uplink=scenario.uplink_bytes,
        judge_seconds=scenario.judge_ms / 1000,
    )
    _start(network, scenario)
    sent: list[_Sent] = []
    begin = scenario.warmup_seconds
    end = begin + scenario.duration_seconds
    for when in _every(begin, end, 1 / scenario.publish_per_second):
        network.at(when, _publish, network, scenario, sent)
    for when in _every(0, end, 60 / (scenario.churn_per_minute * scenario.nodes) if scenario.churn_per_minute else 0):
        network.at(when, _replace, network, scenario)
    if scenario.cut_at_seconds:
        network.at(scenario.cut_at_seconds, network.partition, lambda node: int(node.raw[-1]) % 2)
        network.at(scenario.cut_at_seconds + scenario.cut_seconds, network.heal)
    network.run_until(end + UP_SECONDS)
    return _report(network, scenario, seed, sent)


def _every(begin: float, end: float, step: float) -> Iterator[float]:
    if step > 0:
        for number in range(1, int((end - begin) / step) + 1):
            yield begin + number * step


def _start(network: Network, scenario: Scenario) -> None:
    hostile = round(scenario.nodes * scenario.hostile)
    kinds = [scenario.hostile_kind] * hostile + [""] * (scenario.nodes - hostile - 1)
    network.rng.shuffle(kinds)
    for kind in ["", *kinds]:
        _join(network, scenario, network.add(hostile=kind))


def _join(network: Network, scenario: Scenario, node: Node) -> None:
    """Dial the bootstrap, and as many members as the scenario says."""
    others = [peer for peer in network.nodes if peer != node.id]
    if not others:
        return
    bootstrap = network.everyone[0].id
    dialled = [] if scenario.topology == "star" else network.rng.sample(others, min(len(others), scenario.dials))
    node.wanted.update(dict.fromkeys([*dialled, *([bootstrap] if scenario.topology == "star" else [])]))
    for peer in dict.fromkeys([bootstrap, *dialled]):
        network.dial(node, peer)


def _publish(network: Network, scenario: Scenario, sent: list[_Sent]) -> None:
    publishers = [node for node in network.alive() if not node.hostile and network.now - node.up_from >= UP_SECONDS]
    if publishers:
        cut, now = scenario.cut_at_seconds, network.now
        spoiled = cut and cut - UP_SECONDS <= now < cut + scenario.cut_seconds + scenario.settle_seconds
        mid = network.publish(network.rng.choice(publishers), scenario.message_bytes)
        sent.append(_Sent(mid, now, not spoiled))


def _replace(network: Network, scenario: Scenario) -> None:
    gone = network.rng.choice([node for node in network.alive() if node is not network.everyone[0]])
    network.kill(gone)
    _join(network, scenario, network.add(hostile=gone.hostile))


def _report(network: Network, scenario: Scenario, seed: int, sent: list[_Sent]) -> Report:
    unit = scenario.latency_ms / 1000
    due = missed = 0
    delays: list[float] = []
    hops: list[int] = []
    for each in sent:
        if not each.counts:
            continue
        for node in network.everyone:
            if node.hostile or node.up_from > each.at - UP_SECONDS or node.up_to < each.at + UP_SECONDS:
                continue
            due += 1
            got = node.got.get(each.message)
            if got is None or got[0] > each.at + UP_SECONDS:
                missed += 1
            elif got[1]:
                delays.append((got[0] - each.at) / unit)
                hops.append(got[1])
    honest = [node for node in network.everyone if not node.hostile]
    alive = [node for node in honest if node.alive]
    counters: Counter[str] = Counter()
    for node in honest:
        counters.update({" ".join(key): count for key, count in node.router.counters.items()})
    delays.sort()
    lived = sum(min(node.up_to, network.now) - node.up_from for node in network.everyone)
    return Report(
        name=scenario.name,
        seed=seed,
        messages=len(sent),
        due=due,
        missed=missed,
        hops_mean=statistics.fmean(hops or [0]),
        hops_max=max(hops, default=0),
        delay_p50=delays[len(delays) // 2] if delays else 0.0,
        delay_p99=delays[len(delays) * 99 // 100] if delays else 0.0,
        delay_max=delays[-1] if delays else 0.0,
        duplicates=counters["ignore duplicate"] / max(1, counters["accept relayed"]),
        control_bytes=network.traffic["control bytes"] / lived,
        mesh=_spread([len(node.router.mesh(TOPIC)) for node in alive]),
        links=_spread([len(node.links) for node in alive]),
        counters=dict(counters),
    )


def _spread(values: list[int]) -> tuple[int, float, int]:
    return min(values), statistics.fmean(values), max(values)
