"""The node as its documents show it: read only, from the parts that know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from p2pnode.core.peerid import PeerId
from p2pnode.node.archive import Archive
from p2pnode.node.dialer import Dialer
from p2pnode.node.documents import member_document, peer_order, stranger_document
from p2pnode.node.finder import DialState, Finder
from p2pnode.node.inbound import Inbound
from p2pnode.node.members import Members
from p2pnode.node.reach import Reach
from p2pnode.node.switch import Switch
from p2pnode.ports import Gossip, Health, Host, JsonObject, Link
from p2pnode.wire.payload import format_time


@dataclass(frozen=True, slots=True)
class View:
    """
    Args:
        gossip: None while the node starts.
        switch: of the roads; likewise.
        extra_reasons: what else works less than configured.
        published: own messages by topic.
        topics: those that are subscribed from the start.
        mode: of discovery.
        is_stopping: the node says goodbye.
        wall_ns: the wall clock.
        started: monotonic time of the start.
        api_addresses: where the local API is served.
    """

    host: Host
    members: Members
    dialer: Dialer
    finder: Finder
    reach: Reach
    archive: Archive
    inbound: Inbound
    gossip: Callable[[], Gossip | None]
    switch: Callable[[], Switch | None]
    extra_reasons: Callable[[], list[str]]
    published: Callable[[], Mapping[str, int]]
    topics_wanted: Sequence[str]
    mode: str
    is_stopping: Callable[[], bool]
    wall_ns: Callable[[], int]
    started: float
    api_addresses: Callable[[], Sequence[str]]

    def node(self) -> JsonObject:
        """`ports.Sidecar.node`."""
        own = self.members.own
        health = self.health()
        errors = self.dialer.bootstrap_errors
        return {
            **self._member(own.peer_id, None),
            "multiaddrs": list(self.host.addrs()),
            "api": list(self.api_addresses()),
            "health": {"status": health.readiness, "reasons": list(health.reasons)},
            "started_at": format_time(own.started_at_ns),
            "uptime_seconds": round(trio.current_time() - self.started, 3),
            "links": len(self.host.links()),
            "members": {state: count for state, count in sorted(self.states().items())},
            "reachability": self.reach.document(),
            "bootstrap": [{"addr": addr, "error": errors.get(addr)} for addr in self.dialer.bootstraps],
        }

    def peers(self) -> list[JsonObject]:
        """`ports.Sidecar.peers`."""
        links = self.host.links()
        members = self.members.all()
        here = (member.record for peer, member in members.items() if not self.members.is_beyond(peer))
        self.finder.note(here, self.dialer.answerers())
        documents = [self._member(peer, links.get(peer)) for peer in members]
        documents += [
            stranger_document(link, rtt_ms=self._rtt_ms(peer), mesh=self._mesh_of(peer), score=self._score(peer))
            for peer, link in links.items()
            if peer not in members
        ]
        return sorted(documents, key=peer_order)

    def _member(self, peer: PeerId, link: Link | None) -> JsonObject:
        is_self = peer == self.host.peer_id
        return member_document(
            self.members.all()[peer],
            link,
            is_self=is_self,
            bridged=self.members.is_beyond(peer),
            same_name=self.members.machine.shares_name(peer),
            rtt_ms=None if is_self else self._rtt_ms(peer),
            mesh=self._mesh_of(None if is_self else peer),
            score=None if is_self else self._score(peer),
            source=self.finder.source_of(peer),
            now_ns=self.wall_ns(),
        )

    def _mesh_of(self, peer: PeerId | None) -> list[str]:
        """Topics in whose mesh a peer is; for None, topics where we have a mesh at all."""
        gossip = self.gossip()
        if gossip is None:
            return []
        return [topic for topic in gossip.topics() if (mesh := gossip.mesh(topic)) and (peer is None or peer in mesh)]

    def _score(self, peer: PeerId) -> float | None:
        gossip = self.gossip()
        return gossip.score(peer) if gossip is not None else None

    def _rtt_ms(self, peer: PeerId) -> float | None:
        seconds = self.host.round_trip(peer)
        return None if seconds is None else seconds * 1000

    def topics(self, gossip: Gossip) -> list[JsonObject]:
        """`ports.Sidecar.topics`."""
        return [
            {
                "topic": topic,
                "subscribed": True,
                "peers": len(gossip.topic_peers(topic)),
                "mesh": sorted(gossip.mesh(topic)),
                "messages": self.archive.shelf(topic).released,
                "received": self.inbound.received[topic],
                "published": self.published().get(topic, 0),
            }
            for topic in gossip.topics()
        ]

    def health(self) -> Health:
        """Can this node deliver?"""
        gossip = self.gossip()
        if self.is_stopping():
            return Health("not-ready", ("the sidecar is stopping",))
        if gossip is None:
            return Health("not-ready", ("the sidecar is starting",))
        errors = self.dialer.bootstrap_errors
        down = [f"bootstrap {addr}: {error}" for addr, error in sorted(errors.items())]
        switch = self.switch()
        others = [*(switch.reasons() if switch is not None else []), *self.extra_reasons()]
        fault = self.archive.fault
        storage = [f"messages cannot be stored: {fault.detail}", fault.hint] if fault is not None else []
        if not self.host.links() and switch is not None and (carrying := switch.other_roads()):
            roads = " and ".join(road.upper() for road in carrying)
            why = f"no peer is connected over libp2p; messages go over {roads}; `p2pnode doctor` says more"
            return Health("not-ready" if storage else "degraded", (*storage, why, *others, *down))
        if not self.host.links():
            why = "no peer is connected, so nothing can be delivered"
            if not self.finder.reports():
                why += "; no source of peers is configured (--bootstrap), so this node waits to be dialled"
            troubles = [trouble.problem for report in self.finder.reports() for trouble in report.troubles]
            return Health("not-ready", (*storage, f"{why}; `p2pnode doctor` says more", *down, *troubles))
        if storage:
            return Health("not-ready", tuple(storage))
        alone = self.topics_alone(gossip)
        reasons = [f"no connected peer is subscribed to {', '.join(alone)}"] if alone else []
        if self.dialer.bootstraps and len(down) == len(self.dialer.bootstraps):
            reasons += down
        reasons += others
        return Health("degraded" if reasons else "delivering", tuple(reasons))

    def topics_alone(self, gossip: Gossip) -> list[str]:
        """Wanted topics that no connected peer is subscribed to."""
        return [topic for topic in self.topics_wanted if not gossip.topic_peers(topic)]

    def discovery(self) -> JsonObject:
        """`ports.Sidecar.discovery`."""
        return self.finder.document(self.mode, self._dial_state)

    def _dial_state(self, addr: str) -> DialState:
        peer = self.dialer.lives_at(addr)
        failure = self.dialer.failures.get(addr)
        error = failure.error if failure is not None else ""
        if peer == self.host.peer_id:
            return "self", ""
        if peer in self.host.links():
            return "linked", ""
        if peer is not None and self.members.get(peer) is not None:
            return "member", error
        return ("unreached" if error else "unknown"), error

    def states(self) -> Counter[str]:
        """Members by state."""
        return Counter(member.state.value for member in self.members.all().values())
