"""The simulated fleet: nodes, links between them, and one clock."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any

from p2pnode.core.links import LinkPlanner, LinkSettings, LinkView
from p2pnode.core.membership.events import (
    AskHelpers,
    Effect,
    HelpersEnded,
    Input,
    LinkClosed,
    LinkOpened,
    LinkSilent,
    News,
    OwnRecord,
    Probe,
    ProbeEnded,
    Publish,
    Renew,
    StateChanged,
    Tick,
    Twin,
)
from p2pnode.core.membership.membership import Membership, Seals
from p2pnode.core.membership.params import Params
from p2pnode.core.membership.record import Accusation, Member, MemberRecord, MemberState
from p2pnode.core.membership.table import Table
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.core.places import Target
from p2pnode.core.reconcile import FEW, Reconciliation, Snapshot, answer
from p2pnode.testing.sharing import SharedTable
from p2pnode.wire.reconcile import encode_offer, encode_reply

WALL_START_NS = 1_767_225_600 * 10**9
NOTICE_SECONDS = 0.25
"""How long after the death of a process its neighbours know that the connection broke."""
SILENT_SECONDS = (3.0, 4.5)
"""How long after the last sign of a neighbour the host calls its link silent, and again and again."""
GIVE_UP_SECONDS = 12.0
"""How long after it the host closes the link."""
DIAL_SECONDS = 5.0
"""The longest that a dial takes which nobody answers."""
RETRY_SECONDS = 1.0
"""A lost packet of a handshake is sent again."""
MESH_SECONDS = 0.15
"""From a link to the first news over it."""
SETTLE_SECONDS = 0.02
EXCHANGE_SECONDS = (1.0, 60.0)
RECORD_BYTES, ACCUSATION_BYTES, GOSSIP_BYTES, EXCHANGE_BYTES, PROBE_BYTES = 330, 200, 180, 60, 1200
"""On the wire: measured with real keys, rounded up; a probe is a Noise handshake."""

_SIGNED = b"signed"


@dataclass(slots=True, eq=False)
class _Link:
    delay: float
    outbound: bool
    since: float


class SimNode:
    """One simulated process.

    Attributes:
        hidden: nobody can dial it, as behind a NAT.
        up, stopped: a stopped one keeps its links, and finds in its `inbox` what came meanwhile.
        ill_until: what is said of it until then is not false.
    """

    def __init__(self, number: int, fleet: MembersFleet, table: Table | None, bootstrap: int, role: str) -> None:
        self.number = number
        self._fleet = fleet
        self._table = table
        self.id = sim_peer(number)
        self.up = True
        self.refuses = False
        self.stopped = False
        self.hidden = False
        self.side = 0
        self.ill_until = 0.0
        self.rng = Random(fleet.rng.getrandbits(64))
        self.links: dict[PeerId, _Link] = {}
        self.inbox: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.outbox: list[Publish] = []
        self.seen: set[int] = set()
        self.tick_at = float("inf")
        self.plan_at = float("inf")
        self.compare_pause = EXCHANGE_SECONDS[0]
        self.compare_at = float("inf")
        self.settling = False
        self._items: tuple[int, Snapshot] | None = None
        self.machine = Membership(
            dataclasses.replace(sim_record(number, fleet.wall_ns()), role=role),
            Seals(
                lambda record: dataclasses.replace(record, signed=_SIGNED),
                lambda accusation: dataclasses.replace(accusation, signed=_SIGNED),
            ),
            self.rng,
            floor=0,
            now=fleet.now,
            wall_ns=fleet.wall_ns(),
            params=fleet.params,
            table=table,
        )
        bootstraps = () if number == bootstrap else (_addr(bootstrap),)
        self.planner = LinkPlanner(self.id, fleet.settings, bootstraps, {}, self.rng, self.machine.is_beyond)

    @property
    def well(self) -> bool:
        return self.up and not self.stopped

    def snapshot(self) -> Snapshot:
        if self._items is None or self._items[0] != self.machine.version:
            self._items = (self.machine.version, self._fleet.snapshot(self._table, self.machine))
        return self._items[1]

    def state(self, peer: PeerId) -> MemberState | None:
        member = self._table.peek(peer) if isinstance(self._table, SharedTable) else self.machine.get(peer)
        return member.state if member else None


def sim_peer(number: int) -> PeerId:
    return peer_id_text(b"\x12\x20" + number.to_bytes(4, "big").rjust(32, b"\x07"))


def sim_record(number: int, wall_ns: int) -> MemberRecord:
    return MemberRecord(
        sim_peer(number), 0, f"node-{number}", "chorus", "online", (_addr(number),), started_at_ns=wall_ns
    )


def _addr(number: int) -> str:
    return f"/ip4/10.{number >> 16}.{number >> 8 & 255}.{number & 255}/tcp/9000"


class MembersFleet:
    """Nodes, links between them, and one clock."""

    def __init__(
        self,
        seed: int,
        *,
        latency_seconds: float = 0.02,
        loss: float = 0.0,
        params: Params | None = None,
        settings: LinkSettings | None = None,
    ) -> None:
        self.rng = Random(seed)
        self.latency = latency_seconds
        self.loss = loss
        self.params = params or Params()
        self.settings = settings or LinkSettings()
        self.now = 0.0
        self.nodes: list[SimNode] = []
        self.by_id: dict[PeerId, SimNode] = {}
        self.by_addr: dict[str, SimNode] = {}
        self.cut = False
        self.traffic: Counter[str] = Counter()
        self.false_suspicions: set[tuple[PeerId, int]] = set()
        self.false_deaths: set[tuple[PeerId, PeerId]] = set()
        self._snapshots: dict[frozenset[tuple[PeerId, int, bool]], Snapshot] = {}
        self._arrivals: dict[int, dict[PeerId, float]] = {}
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = 0

    # -- time --------------------------------------------------------------------------

    def wall_ns(self) -> int:
        return WALL_START_NS + round(self.now * 1e9)

    def at(self, when: float, what: Callable[..., object], *args: Any) -> None:
        self._order += 1
        heappush(self._heap, (when, self._order, what, args))

    def run_until(self, when: float) -> None:
        """Let virtual time pass."""
        heap = self._heap
        while heap and heap[0][0] <= when:
            self.now, _, what, args = heappop(heap)
            what(*args)
        self.now = when

    def for_node(self, node: SimNode, when: float, what: Callable[..., object], *args: Any) -> None:
        """Like `at`; lost when the node is gone by then, kept for later while it is stopped."""
        self.at(when, self._in_node, node, what, args)

    def _in_node(self, node: SimNode, what: Callable[..., object], args: tuple[Any, ...]) -> None:
        if node.stopped:
            node.inbox.append((what, args))
        elif node.up:
            what(*args)

    def snapshot(self, table: Table | None, machine: Membership) -> Snapshot:
        """Nodes that share a table and know the same share it; the last 256 are kept."""
        if not isinstance(table, SharedTable):
            return Snapshot(machine.items())
        difference = table.difference()
        if difference not in self._snapshots:
            if len(self._snapshots) >= 256:
                del self._snapshots[next(iter(self._snapshots))]
            self._snapshots[difference] = Snapshot(machine.items())
        return self._snapshots[difference]

    # -- what happens to nodes ---------------------------------------------------------

    def start(
        self, table: Table | None = None, *, side: int | None = None, bootstrap: int = 0, role: str = "chorus"
    ) -> SimNode:
        """A new node; it knows the address of node `bootstrap` only, or what is in its table.

        Args:
            side: of a cut; None: where the first node is.
        """
        node = SimNode(len(self.nodes), self, table, bootstrap, role)
        self.nodes.append(node)
        self.by_id[node.id] = self.by_addr[_addr(node.number)] = node
        node.side = self.nodes[0].side if side is None else side
        self._publish(node, Publish((node.machine.own,), ()))
        self._reckon(node)
        self._wake(node)
        node.compare_at = self.now + EXCHANGE_SECONDS[0] * node.rng.uniform(0.75, 1.25)
        self.at(node.compare_at, self._compare, node, node.compare_at)
        return node

    def kill(self, node: SimNode, *, refuses: bool = True) -> None:
        """End a process without a word; `refuses`: its host lives and refuses dials."""
        node.up, node.refuses = False, refuses
        for peer, link in list(node.links.items()):
            other = self.by_id[peer]
            if refuses:
                self.for_node(other, self.now + NOTICE_SECONDS, self._lose, other, node.id, link, False)
            else:
                self._fall_silent(other, node)
        node.links.clear()

    def leave(self, node: SimNode) -> None:
        """Say goodbye and end."""
        self._give(node, Renew(dataclasses.replace(node.machine.own, left=True)))
        self._flush(node)
        for peer in list(node.links):
            self._hang_up(node, peer)
        node.up, node.refuses = False, True

    def stop(self, node: SimNode) -> None:
        node.stopped = True
        for peer in node.links:
            self._fall_silent(self.by_id[peer], node)

    def resume(self, node: SimNode) -> None:
        """What came while it was stopped comes now, before its timers."""
        node.stopped = False
        node.ill_until = self.now + 5.0
        inbox, node.inbox = node.inbox, []
        for what, args in inbox:
            what(*args)
        node.tick_at = float("inf")
        self._reckon(node)
        self._wake(node)
        node.compare_at = self.now
        self.at(self.now, self._compare, node, self.now)

    def partition(self, cut_off: Iterable[SimNode]) -> None:
        """Nothing gets from these nodes to others or back."""
        self.cut = True
        for node in cut_off:
            node.side = 1
        for node in self.nodes:
            for peer in node.links:
                if self.by_id[peer].side != node.side:
                    self._fall_silent(node, self.by_id[peer])

    def heal(self) -> None:
        self.cut = False
        for node in self.nodes:
            node.side = 0
            # What was said in the cut still spreads and is refuted.
            node.ill_until = self.now + 10.0

    def reach(self, one: SimNode, other: SimNode) -> bool:
        """Would a packet get through and be answered?"""
        return one.well and other.well and (not self.cut or one.side == other.side)

    # -- a node's machine --------------------------------------------------------------

    def _give(self, node: SimNode, input_: Input) -> None:
        for effect in node.machine.handle(input_, self.now, self.wall_ns()):
            self._do(node, effect)
        self._reckon(node)

    def _reckon(self, node: SimNode) -> None:
        due = node.machine.next_deadline()
        if due < node.tick_at:
            node.tick_at = due
            self.at(max(due, self.now), self._tick, node, due)

    def _tick(self, node: SimNode, due: float) -> None:
        if node.well and node.tick_at == due:
            node.tick_at = float("inf")
            self._give(node, Tick())

    def _do(self, node: SimNode, effect: Effect) -> None:
        match effect:
            case Publish(_, accusations):
                self.traffic["accusations"] += sum(each.accuser == node.id for each in accusations)
                self._publish(node, effect)
            case Probe(peer, _, patience):
                reached, took = self._try(node, self.by_id[peer], patience)
                self.for_node(node, self.now + took, self._give, node, ProbeEnded(peer, reached))
            case AskHelpers(peer, helpers, patience):
                self._ask_helpers(node, peer, helpers, patience)
            case StateChanged(peer, _, after, _):
                self._note(node, peer, after)
                if not node.settling:
                    node.settling = True
                    node.compare_pause = EXCHANGE_SECONDS[0]
                    node.compare_at = self.now + EXCHANGE_SECONDS[0] * node.rng.uniform(0.75, 1.25)
                    self.at(node.compare_at, self._compare, node, node.compare_at)
                self._wake(node)
            case Twin():
                self.traffic["twins"] += 1
            case OwnRecord():
                pass

    def _note(self, node: SimNode, peer: PeerId, after: MemberState | None) -> None:
        other = self.by_id[peer]
        if after not in (MemberState.SUSPECT, MemberState.DEAD) or not other.well or other.ill_until > self.now:
            return
        if (self.cut and other.side != node.side) or node.ill_until > self.now:
            return
        member = node.machine.members()[peer]
        self.false_suspicions.add((peer, member.record.incarnation))
        if after is MemberState.DEAD:
            self.false_deaths.add((node.id, peer))

    # -- probes ------------------------------------------------------------------------

    def _delay(self, one: SimNode, other: SimNode) -> float:
        link = one.links.get(other.id)
        return link.delay if link else self.latency * one.rng.uniform(0.5, 2.0)

    def _try(self, node: SimNode, other: SimNode, patience: float) -> tuple[bool, float]:
        """A probe: was it answered, and after how long."""
        self.traffic["probes"] += 1
        self.traffic["probes across"] += self.cut and node.side != other.side
        self.traffic["probe bytes"] += PROBE_BYTES
        took = (2 if other.id in node.links else 6) * self._delay(node, other)
        if not other.up and other.refuses and not (self.cut and node.side != other.side):
            return False, took / 3
        while self.loss and node.rng.random() < 1 - (1 - self.loss) ** 2:
            took += RETRY_SECONDS
        answers = self.reach(node, other) and (other.id in node.links or not other.hidden)
        return (True, took) if answers and took <= patience else (False, patience)

    def _ask_helpers(self, node: SimNode, peer: PeerId, helpers: Sequence[PeerId], patience: float) -> None:
        answers = []
        for each in helpers:
            helper = self.by_id[each]
            if self.reach(node, helper) and each in node.links:
                reached, took = self._try(helper, self.by_id[peer], self.params.probe_patience_seconds)
                answers.append((not reached, took + 2 * self._delay(node, helper)))
            else:
                answers.append((True, patience))
        # The first yes, or else the last no.
        failed, took = min(answers) if not all(failed for failed, _ in answers) else max(answers)
        self.for_node(
            node, self.now + min(took, patience), self._give, node, HelpersEnded(peer, not failed and took <= patience)
        )

    # -- gossip ------------------------------------------------------------------------

    def _publish(self, node: SimNode, effect: Publish) -> None:
        node.outbox.append(effect)
        if len(node.outbox) == 1:
            self.for_node(node, self.now, self._flush, node)

    def _flush(self, node: SimNode) -> None:
        """One message for all that waits; again when there is a link."""
        if not node.links or not node.outbox:
            return
        records = {each.peer_id: each for said in node.outbox for each in said.records}
        accusations = {(each.accused, each.accuser): each for said in node.outbox for each in said.accusations}
        node.outbox.clear()
        if node.id in records:
            records[node.id] = node.machine.own
        self._order += 1
        number = self._order
        self._arrivals[number] = {node.id: self.now}
        node.seen.add(number)
        self.traffic["news"] += 1
        self._spread(node, number, tuple(records.values()), tuple(accusations.values()), None)

    def _spread(
        self,
        node: SimNode,
        number: int,
        records: tuple[MemberRecord, ...],
        accusations: tuple[Accusation, ...],
        source: PeerId | None,
    ) -> None:
        size = GOSSIP_BYTES + RECORD_BYTES * len(records) + ACCUSATION_BYTES * len(accusations)
        arrivals = self._arrivals[number]
        for peer, link in node.links.items():
            if peer == source:
                continue
            self.traffic["copies"] += 1
            self.traffic["gossip bytes"] += size
            if self.loss and node.rng.random() < self.loss:
                continue
            when = self.now + link.delay
            if when < arrivals.get(peer, float("inf")):  # else it is a copy, which changes nothing
                arrivals[peer] = when
                other = self.by_id[peer]
                self.for_node(other, when, self._arrive, node, other, number, records, accusations)

    def _arrive(
        self,
        sender: SimNode,
        node: SimNode,
        number: int,
        records: tuple[MemberRecord, ...],
        accusations: tuple[Accusation, ...],
    ) -> None:
        if number in node.seen or sender.id not in node.links or (self.cut and sender.side != node.side):
            return
        node.seen.add(number)
        new = tuple(each for each in records if node.machine.wants(each))
        known = {each.peer_id for each in new}
        against = tuple(each for each in accusations if each.accused in known or node.machine.wants_accusation(each))
        if new or against:
            self._give(node, News(new, against, "gossip"))
            self._spread(node, number, records, accusations, sender.id)

    # -- exchanges ---------------------------------------------------------------------

    def _compare(self, node: SimNode, due: float) -> None:
        if not node.well or node.compare_at != due:
            return
        links = [peer for peer in node.links if peer in node.machine.members()]
        node.settling = False
        if links:
            peer = node.rng.choice(links)
            self.at(self.now + 4 * node.links[peer].delay, self._exchange, node, self.by_id[peer], True)
        node.compare_at = self.now + node.compare_pause * node.rng.uniform(0.75, 1.25)
        node.compare_pause = min(node.compare_pause * 2, EXCHANGE_SECONDS[1])
        self.at(node.compare_at, self._compare, node, node.compare_at)

    def _ask_new_link(self, node: SimNode, other: SimNode, tries: int = 3) -> None:
        if other.id in node.links and not self._exchange(node, other) and tries > 1:
            self.for_node(node, self.now + 0.5, self._ask_new_link, node, other, tries - 1)

    def _exchange(self, node: SimNode, other: SimNode, again: bool = False) -> bool:
        """Compare and hand over, in one moment; False when it did not come to that."""
        if not self.reach(node, other) or other.id not in node.links:
            return False
        if self.loss and node.rng.random() < self.loss:
            return False
        mine, theirs = node.snapshot(), other.snapshot()
        comparison = Reconciliation(mine, limits=FEW)
        size = EXCHANGE_BYTES
        while (offer := comparison.next_offer()) is not None:
            reply = answer(theirs, offer, FEW).reply
            size += len(encode_offer(offer)) + len(encode_reply(reply)) + 2 * EXCHANGE_BYTES
            comparison.receive(reply)
            self.traffic["exchange messages"] += 2
        self.traffic["exchanges"] += 1
        if comparison.want or comparison.give:
            for taker, giver, keys in ((other, node, comparison.give), (node, other, comparison.want)):
                records, accusations = _held(giver.machine, keys)
                size += RECORD_BYTES * len(records) + ACCUSATION_BYTES * len(accusations)
                new = tuple(each for each in records if taker.machine.wants(each))
                if new or accusations:
                    self._give(taker, News(new, accusations, "sync"))
            if again:
                node.compare_pause = EXCHANGE_SECONDS[0]
        self.traffic["exchange bytes"] += size
        return True

    # -- links -------------------------------------------------------------------------

    def _wake(self, node: SimNode) -> None:
        self._plan_at(node, self.now + SETTLE_SECONDS)

    def _plan_at(self, node: SimNode, when: float) -> None:
        if when < node.plan_at:
            node.plan_at = when
            self.at(when, self._plan, node, when)

    def _plan(self, node: SimNode, due: float) -> None:
        if not node.well or node.plan_at != due:
            if node.stopped and node.plan_at == due:
                node.plan_at = float("inf")
            return
        node.plan_at = float("inf")
        views = {peer: LinkView(link.outbound, link.since, 0) for peer, link in node.links.items()}
        plan = node.planner.plan(views, node.machine.members(), self.now)
        for target in plan.dial:
            self._dial(node, target)
        for peer in plan.close:
            self._hang_up(node, peer)
        self._plan_at(node, max(plan.again_at, self.now + SETTLE_SECONDS))

    def _dial(self, node: SimNode, target: Target) -> None:
        other = self.by_addr[target.addrs[0]]
        self.traffic["dials"] += 1
        self.traffic["dials across"] += self.cut and node.side != other.side
        delay = self.latency * node.rng.uniform(0.5, 2.0)
        took = 6 * delay
        if self.loss and node.rng.random() < 2 * self.loss:
            took += RETRY_SECONDS
        if (self.cut and node.side != other.side) or other.stopped or other.hidden or not (other.up or other.refuses):
            self.for_node(node, self.now + DIAL_SECONDS, self._dialled, node, other, target, None)
        else:
            self.for_node(node, self.now + took, self._dialled, node, other, target, delay)

    def _dialled(self, node: SimNode, other: SimNode, target: Target, delay: float | None) -> None:
        reached = delay is not None and self.reach(node, other) and node is not other
        if reached and delay is not None and other.id not in node.links:
            node.links[other.id] = _Link(delay, True, self.now)
            other.links[node.id] = _Link(delay, False, self.now)
            for one, another in ((node, other), (other, node)):
                self._give(one, LinkOpened(another.id))
                self.for_node(one, self.now + MESH_SECONDS, self._flush, one)
                self._wake(one)
            self.for_node(node, self.now + 4 * delay, self._ask_new_link, node, other)
        node.planner.ended(target, reached=reached, now=self.now, answered=other.id if reached else None)
        self._wake(node)

    def _hang_up(self, node: SimNode, peer: PeerId) -> None:
        link, other = node.links.get(peer), self.by_id[peer]
        if link is not None:
            theirs = other.links.get(node.id)
            self._lose(node, peer, link, True)
            if theirs is not None:
                self.for_node(other, self.now + link.delay, self._lose, other, node.id, theirs, True)

    def _lose(self, node: SimNode, peer: PeerId, link: _Link, by_intent: bool) -> None:
        held = node.links.get(peer)
        if held is not None and held.since == link.since:
            del node.links[peer]
            node.planner.closed(peer, by_intent=by_intent, lasted=self.now - link.since, now=self.now)
            self._give(node, LinkClosed(peer, by_intent))
            self._wake(node)

    def _fall_silent(self, node: SimNode, other: SimNode) -> None:
        link = node.links.get(other.id)
        if link is not None:
            self.for_node(node, self.now + node.rng.uniform(*SILENT_SECONDS), self._silent, node, other, link, self.now)

    def _silent(self, node: SimNode, other: SimNode, link: _Link, since: float) -> None:
        if node.links.get(other.id) is not link or self.reach(node, other):
            return
        if self.now - since >= GIVE_UP_SECONDS:
            self._lose(node, other.id, link, False)
            # The other side hears of it when it can.
            if other.up and (theirs := other.links.get(node.id)) is not None:
                self.for_node(other, self.now + NOTICE_SECONDS, self._lose, other, node.id, theirs, False)
            return
        self._give(node, LinkSilent(other.id))
        self.for_node(node, self.now + 1.0, self._silent, node, other, link, since)


def _held(machine: Membership, keys: Iterable[bytes]) -> tuple[tuple[MemberRecord, ...], tuple[Accusation, ...]]:
    members = [machine.members()[peer_id_text(key)] for key in sorted(keys)]
    return tuple(each.record for each in members), tuple(a for each in members for a in each.accusations.values())


def count_parts(fleet: MembersFleet) -> int:
    """Pieces into which the links of the nodes that are well fall."""
    left = {node.id for node in fleet.nodes if node.well}
    parts = 0
    while left:
        parts += 1
        edge = [min(left)]
        left.discard(edge[0])
        while edge:
            near = [peer for peer in fleet.by_id[edge.pop()].links if peer in left]
            left.difference_update(near)
            edge += dict.fromkeys(near)
    return parts


def start_known(fleet: MembersFleet, nodes: int) -> None:
    """Start nodes that know each other already; each keeps only what differs from the shared table."""
    base: dict[PeerId, Member] = {}
    for number in range(nodes):
        record = dataclasses.replace(
            sim_record(number, fleet.wall_ns()), incarnation=fleet.wall_ns() // 10**6, signed=_SIGNED
        )
        base[record.peer_id] = Member(record, MemberState.ALIVE, "shared", fleet.wall_ns(), fleet.wall_ns())
    for _ in range(nodes):
        node = fleet.start(SharedTable(base))
        node.outbox.clear()
