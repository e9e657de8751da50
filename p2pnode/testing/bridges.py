"""Simulated meshes that cannot reach each other, and a bridge in each: members over a broker, in virtual time.

What a bridge does is what `p2pnode bridge` does with production `Membership.roll` and `BeyondFilter`: it tells its roll
when something changed and every 15 s, takes in the rolls of the others, names who is in those of bridges that it cannot
reach, and forgets a side that it has not heard for 45 s. A bridge that has just started tells of all it knows, members
of the other side too: so nobody is named who was in our own mesh within those 45 s, as the links showed it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from p2pnode.core.membership.beyond import BeyondFilter
from p2pnode.core.membership.events import NATS, News, Renew
from p2pnode.core.membership.record import GONE, Accusation, MemberRecord, MemberState
from p2pnode.core.peerid import PeerId
from p2pnode.testing.fleet import MembersFleet, SimNode

POLL_SECONDS = 0.25
TELL_SECONDS = 15.0
SILENT_SECONDS = 45.0

Entry = tuple[MemberRecord, tuple[Accusation, ...]]


@dataclass(slots=True)
class _Heard:
    peers: frozenset[PeerId]
    at: float


class SimBridge:
    """One bridge process.

    Attributes:
        online: it has a connection with the broker.
        named: who lives beyond it, as it says.
    """

    def __init__(self, node: SimNode, fleet: BridgedFleet) -> None:
        self.node = node
        self.online = True
        self._fleet = fleet
        self._heard: dict[PeerId, _Heard] = {}
        self._seen_here: dict[PeerId, float] = {}
        self.named: frozenset[PeerId] = frozenset()
        self._told = (-1, -TELL_SECONDS)
        self._poll()

    def _poll(self) -> None:
        fleet, node = self._fleet, self.node
        if not node.up:
            return
        if not node.stopped:
            self._heard = {peer: heard for peer, heard in self._heard.items() if fleet.now - heard.at < SILENT_SECONDS}
            self._name()
            version, at = self._told
            if self.online and (version != node.machine.version or fleet.now - at >= TELL_SECONDS):
                self._told = (node.machine.version, fleet.now)
                roll = node.machine.roll(self.named.__contains__)
                entries = [(member.record, tuple(member.accusations.values())) for member in roll]
                fleet.tell(self, entries)
        fleet.at(fleet.now + POLL_SECONDS, self._poll)

    def hear(self, other: SimBridge, entries: Sequence[Entry]) -> None:
        """The roll of another bridge."""
        fleet, node = self._fleet, self.node
        if not self.online:
            return
        machine = node.machine
        records = tuple(record for record, _ in entries if machine.wants(record))
        accusations = tuple(each for _, against in entries for each in against)
        fleet.give(node, News(records, accusations, NATS))
        self._seen_here.update(dict.fromkeys(fleet.mesh_of(node), fleet.now))
        # As `Members.take_news` says it: not those of whom we know better.
        there = frozenset(
            record.peer_id
            for record, _ in entries
            if (member := machine.get(record.peer_id)) is not None
            and member.record.incarnation == record.incarnation
            and member.state not in GONE
            and fleet.now - self._seen_here.get(record.peer_id, -SILENT_SECONDS) >= SILENT_SECONDS
        )
        self._heard[other.node.id] = _Heard(frozenset() if fleet.reach(node, other.node) else there, fleet.now)
        self._name()

    def _name(self) -> None:
        named = frozenset[PeerId]().union(*(heard.peers for heard in self._heard.values()))
        if named != self.named:
            self.named = named
            machine = self.node.machine
            here = [peer for peer in machine.members() if peer not in named]
            beyond = BeyondFilter.make(named, avoid=here)
            if beyond != machine.own.beyond:
                self._fleet.give(self.node, Renew(dataclasses.replace(machine.own, beyond=beyond)))


class BridgedFleet(MembersFleet):
    """Meshes of the given sizes, the last node of each being its bridge.

    Attributes:
        bridges: all that were started.
    """

    def __init__(self, seed: int, sizes: Sequence[int], *, latency_seconds: float = 0.02, loss: float = 0.0) -> None:
        super().__init__(seed, latency_seconds=latency_seconds, loss=loss)
        self.cut = True
        self.bridges: list[SimBridge] = []
        self._firsts: list[int] = []
        for side, size in enumerate(sizes):
            self._firsts.append(len(self.nodes))
            for number in range(size):
                self.join(side, bridges=number == size - 1)

    def join(self, side: int, *, bridges: bool = False) -> SimNode:
        """A new node on one side."""
        node = self.start(side=side, bootstrap=self._firsts[side], role="bridge" if bridges else "chorus")
        if bridges:
            self.bridges.append(SimBridge(node, self))
        return node

    def online(self, is_online: bool) -> None:
        """The broker goes, or comes back."""
        for bridge in self.bridges:
            bridge.online = is_online

    def mesh_of(self, node: SimNode) -> frozenset[PeerId]:
        """Those whom a question gets to that goes from link to link, as `node.meshes` asks it; the node itself too."""
        found, edge = {node.id}, [node]
        while edge:
            near = [self.by_id[peer] for peer in edge.pop().links if peer not in found]
            near = [each for each in near if each.well and self.reach(node, each)]
            found.update(each.id for each in near)
            edge += near
        return frozenset(found)

    def on_side(self, side: int) -> list[SimNode]:
        return [node for node in self.nodes if node.side == side]

    def tell(self, teller: SimBridge, entries: Sequence[Entry]) -> None:
        """A bridge publishes its roll."""
        for bridge in self.bridges:
            if bridge is not teller:
                self.for_node(bridge.node, self.now + self.latency, bridge.hear, teller, entries)

    def give(self, node: SimNode, input_: News | Renew) -> None:
        self._give(node, input_)

    def wrong(self) -> list[tuple[int, int, MemberState | None]]:
        """What is not known as it is: `(who, of whom, its state there)`, all nodes that are well asked."""
        return [
            (node.number, other.number, state)
            for node in self.nodes
            for other in self.nodes
            for state in [node.state(other.id)]
            if node.well and not (state is MemberState.ALIVE if other.well else state is None or state in GONE)
        ]

    def settle(self, seconds: float) -> float | None:
        """Let time pass until everybody knows the truth of everybody; in seconds, None: not in time."""
        since = self.now
        while self.now < since + seconds:
            self.run_until(self.now + 0.1)
            if not self.wrong():
                return round(self.now - since, 3)
        return None
