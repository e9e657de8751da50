"""Synchronisation on the simulated network: beside each router a store that is kept equal to its neighbours'.

Gossip is the production `Router`, and so is what compares and pulls (`Asking`, `compare`), when and with whom (`Turns`,
`Wishes`). Requests and answers take a link's delay each way and vanish as often as RPCs do; who waits in vain gives up
after REQUEST_SECONDS. Their bytes are those of the wire's codec.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from p2pnode.core.asking import Asking
from p2pnode.core.gossipsub.events import Deliver, Effect, PeerConnected, PeerDisconnected
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.itemset import BlockSet
from p2pnode.core.message import MessageId, Topic
from p2pnode.core.peerid import PeerId
from p2pnode.core.sync import (
    MAX_MESSAGES_BYTES,
    SETTLE_SECONDS,
    Holding,
    SyncAnswer,
    SyncRequest,
    compare,
    id_of_key,
    item_key,
    message_digest,
    topic_hash,
)
from p2pnode.core.turns import NEVER, Outcome, Turns
from p2pnode.core.wishes import Wishes
from p2pnode.errors import InvalidMessage
from p2pnode.testing.network import TOPIC, Network, Node
from p2pnode.wire.sync import encode_answer, encode_request

REQUEST_SECONDS = 10.0
EPOCH_NS = 1_763_899_200_000_000_000
TOPIC_HASH = topic_hash(TOPIC)


@dataclass(slots=True, eq=False)
class _Store:
    """What a node has stored, and its synchronisation.

    Attributes:
        bytes: of requests and answers that it sent.
        pulled: when each message came that gossip did not bring.
    """

    node: Node
    turns: Turns
    items: BlockSet = field(default_factory=BlockSet)
    wishes: Wishes = field(default_factory=Wishes)
    asked_for: set[MessageId] = field(default_factory=set)
    bytes: int = 0
    pulled: dict[MessageId, float] = field(default_factory=dict)
    wakes_at: float = NEVER


@dataclass(slots=True, eq=False)
class _Exchange:
    """One under way.

    Attributes:
        number: of its last request: an answer or a time limit for an earlier one comes too late.
    """

    store: _Store
    peer: PeerId
    asking: Asking
    claimed: set[MessageId]
    number: int = 0


class SyncingNetwork(Network):
    """A `Network` whose nodes keep what they accept and synchronise.

    Args:
        gossip_loss: share of RPCs that vanish.
        request_loss: share of requests, and of answers, that vanish.
        others: as `Network`.
    """

    def __init__(
        self, seed: int, params: Params, *, gossip_loss: float = 0.0, request_loss: float = 0.0, **others: Any
    ) -> None:
        super().__init__(seed, params, loss=gossip_loss, **others)
        self.request_loss = request_loss
        self.stores: dict[PeerId, _Store] = {}
        self._keys: dict[MessageId, tuple[bytes, bytes]] = {}
        self._bodies: dict[MessageId, bytes] = {}
        self._ids: dict[bytes, bytes] = {}

    def add(self, *, hostile: str = "", topics: tuple[Topic, ...] = (TOPIC,)) -> Node:
        node = super().add(hostile=hostile, topics=topics)
        self.stores[node.id] = _Store(node, Turns(Random(self.rng.getrandbits(64)), self.now))
        return node

    def publish(self, node: Node, size: int, topic: Topic = TOPIC) -> MessageId:
        number = self.traffic["published"] + 1
        seqno = number.to_bytes(8, "big")
        message_id = MessageId(node.raw + seqno)
        body = node.raw + seqno.ljust(size, b".")
        key = item_key(topic, EPOCH_NS + int(self.now * 1e9), message_id)
        self._keys[message_id] = key, message_digest(body)
        self._bodies[message_id] = body
        self._ids[body] = key
        super().publish(node, size, topic)
        self._keep(node, message_id)
        return message_id

    def complete(self) -> bool:
        """Does every living node hold every message?"""
        return all(len(self.stores[peer].items) == len(self._keys) for peer in self.nodes)

    # -- gossip ------------------------------------------------------------------------

    def give(self, node: Node, input_: Any, hops: int = 0) -> None:
        super().give(node, input_, hops)
        store = self.stores.get(node.id)
        if store is None:
            return
        if isinstance(input_, PeerConnected):
            store.turns.opened(input_.peer, dialled=node.links[input_.peer].outbound, now=self.now)
            self._wake(store)
        elif isinstance(input_, PeerDisconnected):
            store.turns.closed(input_.peer)
            store.wishes.forget(input_.peer)

    def _do(self, node: Node, effect: Effect, hops: int) -> None:
        super()._do(node, effect, hops)
        if isinstance(effect, Deliver):
            self._keep(node, effect.message.id)
            store = self.stores[node.id]
            store.turns.news(self.now)
            self._wake(store)

    def _keep(self, node: Node, message_id: MessageId) -> None:
        self.stores[node.id].items.insert(*self._keys[message_id])

    # -- asking ------------------------------------------------------------------------

    def _wake(self, store: _Store) -> None:
        """Start what is due, and come back when more may be."""
        if not store.node.alive:
            return
        while (peer := store.turns.next(self.now)) is not None:
            self._start(store, peer)
        due = max(self.now, store.turns.deadline())
        if due < store.wakes_at or store.wakes_at <= self.now:
            store.wakes_at = due
            if due < NEVER:
                self.at(due, self._wake_at, store, due)

    def _wake_at(self, store: _Store, due: float) -> None:
        if store.wakes_at == due:
            store.wakes_at = NEVER
            self._wake(store)

    def _holdings(self, store: _Store) -> dict[bytes, Holding]:
        return {TOPIC_HASH: Holding(store.items, 0)}

    def _start(self, store: _Store, peer: PeerId) -> None:
        wishes, overfull = store.wishes.take(peer)
        if wishes and overfull:
            store.turns.hasten(peer, self.now)
        claimed: set[MessageId] = set()

        def claim(key: bytes, _digest: bytes) -> bool:
            message_id = id_of_key(key)
            if message_id in store.node.got or (message_id in store.asked_for and message_id not in claimed):
                return False
            store.asked_for.add(message_id)
            claimed.add(message_id)
            return True

        asking = Asking(
            self._holdings(store),
            upper_ns=EPOCH_NS + int((self.now - SETTLE_SECONDS) * 1e9),
            claim=claim,
            key_of=self._ids.__getitem__,
            wishes=wishes,
        )
        self.traffic["exchanges"] += 1
        self._ask(_Exchange(store, peer, asking, claimed))

    def _ask(self, exchange: _Exchange) -> None:
        asking, store = exchange.asking, exchange.store
        request = asking.next_request()
        if request is None:
            differed = "unfinished" if asking.unfinished else "differed"
            self._end(exchange, differed if asking.pulled else "same")  # type: ignore[arg-type]
            return
        exchange.number += 1
        store.bytes += len(encode_request(request))
        self.at(self.now + REQUEST_SECONDS, self._give_up, exchange, exchange.number)
        link = store.node.links.get(exchange.peer)
        if link is not None and self.rng.random() >= self.request_loss:
            self.at(self.now + link.delay, self._reach, exchange, exchange.number, request, link.delay)

    def _give_up(self, exchange: _Exchange, number: int) -> None:
        if exchange.number == number:
            self.traffic["given up"] += 1
            self._end(exchange, "unreachable")

    def _end(self, exchange: _Exchange, outcome: Outcome) -> None:
        exchange.number = -1
        exchange.store.asked_for -= exchange.claimed
        exchange.store.turns.ended(exchange.peer, outcome, self.now)
        self._wake(exchange.store)

    def _receive(self, exchange: _Exchange, number: int, answer: SyncAnswer) -> None:
        store = exchange.store
        if exchange.number != number or not store.node.alive:
            return
        try:
            for body in exchange.asking.receive(answer):
                message_id = id_of_key(exchange.asking.accept(body))
                if message_id not in store.node.got:
                    store.node.got[message_id] = self.now, 0
                    store.pulled[message_id] = self.now
                    self._keep(store.node, message_id)
        except InvalidMessage as error:
            raise AssertionError(f"an honest node seems to lie: {error}") from error
        self._ask(exchange)

    # -- answering ---------------------------------------------------------------------

    def _reach(self, exchange: _Exchange, number: int, request: SyncRequest, delay: float) -> None:
        asker = exchange.store.node
        node = self.nodes.get(exchange.peer)
        if node is None or asker.id not in node.links or (self.cut and node.side != asker.side):
            return
        store = self.stores[node.id]
        answer = SyncAnswer()
        if request.offer is not None:
            compared = compare(self._holdings(store), request)
            answer = compared.answer
            lacking = {key: digest for key, digest in compared.lacking.items() if id_of_key(key) not in node.got}
            if lacking:
                store.wishes.add(asker.id, lacking)
                store.turns.hasten(asker.id, self.now)
                self._wake(store)
        if request.want:
            messages = [self._bodies[each] for each in request.want if each in node.got]
            assert sum(map(len, messages)) <= MAX_MESSAGES_BYTES, "simulated messages are small"
            answer = replace(answer, messages=tuple(messages), handled=len(request.want))
            store.turns.differed(self.now)
            self._wake(store)
        store.bytes += len(encode_answer(answer))
        if self.rng.random() >= self.request_loss:
            self.at(self.now + delay, self._receive, exchange, number, answer)


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What came of a run.

    Args:
        messages: published; `due`: deliveries of them, at nodes other than their publishers.
        gossiped: share of the deliveries that gossip brought.
        complete_seconds: from the last publishing until every node held every message; None: not within the run.
        late_p99: the 99th percentile of how late sync brought what gossip did not, in seconds.
        sync_bytes: sent by each node, in the mean, in the whole run; `quiet_bytes`: in its last minute.
    """

    seed: int
    nodes: int
    messages: int
    due: int
    gossiped: float
    complete_seconds: float | None
    late_p99: float
    exchanges: int
    given_up: int
    sync_bytes: float
    quiet_bytes: float


def simulate_syncing(
    nodes: int,
    seed: int,
    *,
    gossip_loss: float = 0.2,
    request_loss: float = 0.02,
    messages: int = 60,
    message_bytes: int = 512,
    seconds: float = 300.0,
    warmup_seconds: float = 10.0,
    publish_seconds: float = 30.0,
    dials: int = 4,
    latency_ms: float = 50.0,
    params: Params | None = None,
) -> SyncReport:
    """Random nodes publish while gossip loses; then it is quiet, and sync makes good what is missing.

    Args:
        seconds: of quiet after the last message, at most; `messages` are spread over `publish_seconds` before.
        dials: links that each node opens, beside one to the first node.
        params: of gossip; None for ours.
    """
    network = SyncingNetwork(
        seed,
        params or Params().for_fleet(nodes),
        gossip_loss=gossip_loss,
        request_loss=request_loss,
        delay=latency_ms / 1000,
        jitter=0.2,
    )
    for _ in range(nodes):
        node = network.add()
        others = [peer for peer in network.nodes if peer != node.id]
        node.wanted.update(dict.fromkeys(network.rng.sample(others, min(len(others), dials))))
        for peer in node.wanted:
            network.dial(node, peer)
    network.run_until(warmup_seconds)
    published: dict[MessageId, float] = {}
    for _ in range(messages):
        network.run_until(network.now + publish_seconds / messages)
        published[network.publish(network.rng.choice(network.alive()), message_bytes)] = network.now
    last = network.now
    while not network.complete() and network.now < last + seconds:
        network.run_until(network.now + 0.25)
    complete = network.now - last if network.complete() else None
    exchanges, given_up = network.traffic["exchanges"], network.traffic["given up"]
    sync_bytes = sum(store.bytes for store in network.stores.values()) / nodes
    network.run_until(network.now + 240)
    before = sum(store.bytes for store in network.stores.values())
    network.run_until(network.now + 60)
    late = sorted(at - published[mid] for store in network.stores.values() for mid, at in store.pulled.items())
    due = messages * (nodes - 1)
    return SyncReport(
        seed=seed,
        nodes=nodes,
        messages=messages,
        due=due,
        gossiped=1 - len(late) / due,
        complete_seconds=complete,
        late_p99=late[len(late) * 99 // 100] if late else 0.0,
        exchanges=exchanges,
        given_up=given_up,
        sync_bytes=sync_bytes,
        quiet_bytes=(sum(store.bytes for store in network.stores.values()) - before) / nodes,
    )
