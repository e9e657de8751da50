"""The simulated network: nodes with the production `Router` on invented links, one heap of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heappop, heappush
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
