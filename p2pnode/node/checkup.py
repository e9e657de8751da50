"""The doctor's visit: gathers what the parts of the node know, and has it judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.doctor import CLOCK_SECONDS
from p2pnode.core.facts import (
    BootstrapFacts,
    BridgeFacts,
    DialBack,
    DialFailure,
    Reachability,
    RoadsFacts,
    TwinFacts,
)
from p2pnode.core.membership.record import Member, MemberState, Role
from p2pnode.core.peerid import PeerId
from p2pnode.errors import NotFound
from p2pnode.node.carriage import Carriage
from p2pnode.node.dialer import Dialer
from p2pnode.node.finder import CONFIGURED, Finder
from p2pnode.node.members import Members
from p2pnode.node.reach import Reach
from p2pnode.node.road_facts import bridge_facts, roads_facts
from p2pnode.node.trust import Trust
from p2pnode.node.vitals import DiskCheck, doctor_document, facts_of, names_of, source_facts, twin_facts
from p2pnode.ports import Gossip, Host, JsonObject

CLOCKS_SECONDS = 2.0
"""For the peers whose clocks seemed wrong to tell their time once more."""


@dataclass(frozen=True, slots=True)
class Checkup:
    """
    Args:
        topics_wanted: those that are subscribed from the start.
        wall_ns: the wall clock.
        started: monotonic time of the start: the wall clock may be set back at boot.
        trust: whose opportunities count.
        carriage: None while there is none yet.
    """

    host: Host
    members: Members
    dialer: Dialer
    finder: Finder
    reach: Reach
    disk: DiskCheck
    topics_wanted: Sequence[str]
    wall_ns: Callable[[], int]
    started: float
    trust: Trust
    carriage: Callable[[], Carriage | None]

    async def document(self, gossip: Gossip) -> JsonObject:
        """`ports.Sidecar.doctor`."""
        await self.members.exchanges.check_clocks(CLOCK_SECONDS, CLOCKS_SECONDS)
        disk = await self.disk.run()
        own, now_ns = self.members.own, self.wall_ns()
        facts = facts_of(
            own,
            self.host.addrs(),
            self._members_to_judge(),
            len(self.host.links()),
            uptime_seconds=trio.current_time() - self.started,
            sources=[
                source_facts(report, wanted=self.finder.is_wanted(report))
                for report in self.finder.reports()
                if report.subject != CONFIGURED
            ],
            bootstraps=[self._bootstrap(addr) for addr in self.dialer.bootstraps],
            dial_failures=self._failures(),
            reachability=self._reachability(),
            clock_offsets=self.members.clock_offsets(),
            twin=self._twin(now_ns),
            topics={topic: len(gossip.topic_peers(topic)) for topic in self.topics_wanted},
            disk=disk,
            strangers=self.host.strangers(),
            roads=self._roads(),
            bridge=self._bridge(now_ns),
        )
        return doctor_document(facts, now_ns)

    def _members_to_judge(self) -> Mapping[PeerId, Member]:
        """Without those that are dead here and yet live beyond a bridge, by its word: they are about to say so."""
        return {
            peer: member
            for peer, member in self.members.all().items()
            if member.state is not MemberState.DEAD or not self.members.is_beyond(peer)
        }

    def _bootstrap(self, addr: str) -> BootstrapFacts:
        error = self.dialer.bootstrap_errors.get(addr, "")
        failure = self.dialer.failures.get(addr)
        names = names_of(self.members.all())
        answered = [
            names[peer]
            for peer in self.dialer.answerers().get(addr, ())
            if (member := self.members.get(peer)) is not None and member.state is MemberState.ALIVE
        ]
        return BootstrapFacts(addr, error, failure.reason if failure and error else "", tuple(answered))

    def _failures(self) -> list[DialFailure]:
        own = set(self.dialer.bootstraps)
        return [
            DialFailure(addr, failure.reason, failure.error, self.finder.method_of(addr) or "members")
            for addr, failure in self.dialer.failures.items()
            if addr not in own
        ]

    def _reachability(self) -> Reachability:
        document = self.reach.document()
        observed = {each["by"]: each["addr"] for each in document["observed"]}
        tried: dict[str, list[JsonObject]] = {}
        for each in document["tried"]:
            tried.setdefault(each["by"], []).append(each)
        reached = dict.fromkeys(each["addr"] for each in document["tried"] if each["reached"])
        backs = [
            DialBack(
                attempts[0]["name"] or by,
                tuple(each["addr"] for each in attempts),
                observed.get(by, ""),
                "" if any(each["reached"] for each in attempts) else "nobody answered",
            )
            for by, attempts in tried.items()
        ]
        return Reachability(document["state"], tuple(reached), tuple(backs))

    def _roads(self) -> RoadsFacts | None:
        carriage = self.carriage()
        if carriage is None:
            return None
        bridges = [each.record.peer_id for each in self.members.alive() if each.record.role == Role.BRIDGE]
        return roads_facts(
            carriage.switch.document(),
            plain=carriage.roads.counted["in", "plain"],
            bridged=any(each != self.host.peer_id and not self.members.is_beyond(each) for each in bridges),
            carried=bool(carriage.switch.other_roads()),
            is_bridge=self.members.own.role == Role.BRIDGE,
        )

    def _bridge(self, now_ns: int) -> BridgeFacts | None:
        carriage = self.carriage()
        try:
            document = carriage.bridge() if carriage is not None else None
        except NotFound:
            return None
        if document is None:
            return None
        trusted = self.trust.is_orchestrator(document["import_key"], OPPORTUNITY_TOPIC)
        return bridge_facts(document, trusted=trusted, now_ns=now_ns)

    def _twin(self, now_ns: int) -> TwinFacts | None:
        met = self.members.twin_met
        return None if met is None else twin_facts(met[0], seen_ns=met[1], now_ns=now_ns)
