"""Discovery at work: keeps the sources running, and knows what each of them finds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import trio

from p2pnode.core.membership.record import MemberRecord
from p2pnode.core.peerid import PeerId
from p2pnode.core.places import peer_of, without_peer
from p2pnode.ports import JsonObject, Method, Place, Source, SourceReport, Trouble

log = logging.getLogger(__name__)

RESTART_SECONDS = 5.0
CONFIGURED = "network.bootstrap"
"""Subject of the addresses that are configured one by one."""

MAX_SOURCED = 10_000
"""Members of whom is remembered which source found them; the table of members has the same bound."""

DialState = tuple[str, str]
"""What came of dialling a place: `linked`, `member`, `self`, `unreached` or `unknown`; and the error, if any."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A source that this node uses.

    Args:
        source: where it looks.
        wanted: the operator asked for it; else it runs because it was there.
    """

    source: Source
    wanted: bool


class Finder:
    """
    Args:
        configured: the addresses of `network.bootstrap`, which are dialled in any case.
        sources: what runs beside them.
        found: called with all found addresses when they changed; returns at once.
    """

    def __init__(
        self, configured: Sequence[str], sources: Sequence[Chosen], found: Callable[[Iterable[str]], None]
    ) -> None:
        self._chosen = tuple(sources)
        self._found = found
        self._reports: dict[tuple[Method, str], SourceReport] = {}
        self._method_of: dict[str, Method] = {}
        self._sourced: dict[PeerId, Method] = {}
        if configured:
            self._keep(SourceReport("bootstrap", CONFIGURED, tuple(map(Place, configured))))
        for each in sources:
            self._keep(SourceReport(each.source.method, each.source.subject))
        self.counted: Counter[Method] = Counter()
        """Places found anew, by method."""
        self.looks: Counter[Method] = Counter()
        self.look_seconds: dict[Method, float] = {}

    async def run(self) -> None:
        """Look everywhere, until cancelled."""
        async with trio.open_nursery() as nursery:
            for each in self._chosen:
                nursery.start_soon(self._keep_running, each.source)

    async def _keep_running(self, source: Source) -> None:
        key = (source.method, source.subject)
        while True:
            try:
                await source.run(self.report)
            except Exception as error:
                log.exception("a source of peers failed and starts anew", extra={"source": " ".join(key)})
                crashed = Trouble(
                    "source-failed",
                    f"{source.method} ({source.subject}) failed by a fault of this program: {type(error).__name__}",
                    "report it with the log; it starts anew by itself, and the other sources go on",
                )
                self.report(replace(self._reports[key], troubles=(crashed,)))
            await trio.sleep(RESTART_SECONDS)

    def report(self, report: SourceReport) -> None:
        """Take what a source knows now."""
        before = self._reports.get((report.method, report.subject))
        known = {place.addr for place in before.places} if before is not None else set()
        self.counted[report.method] += sum(place.addr not in known for place in report.places)
        if report.took_seconds is not None:
            self.looks[report.method] += 1
            self.look_seconds[report.method] = self.look_seconds.get(report.method, 0.0) + report.took_seconds
        self._keep(report)
        if before is None or before.places != report.places:
            self._found(self._method_of)

    def _keep(self, report: SourceReport) -> None:
        self._reports[report.method, report.subject] = report
        self._method_of = {}
        for each in self._reports.values():
            for place in each.places:
                self._method_of.setdefault(place.addr, each.method)

    @property
    def chosen(self) -> Sequence[Chosen]:
        return self._chosen

    def reports(self) -> Sequence[SourceReport]:
        """One for each source, in a stable order."""
        return tuple(self._reports.values())

    def is_wanted(self, report: SourceReport) -> bool:
        """Did the operator ask for this source?"""
        key = (report.method, report.subject)
        asked = {(each.source.method, each.source.subject): each.wanted for each in self._chosen}
        return asked.get(key, True)

    def note(self, records: Iterable[MemberRecord], answerers: Mapping[str, Sequence[PeerId]]) -> None:
        """Remember which source found whom, for those of whom it is not known yet.

        Args:
            answerers: who answered at places that name nobody.
        """
        if not self._method_of:
            return
        by_peer = {
            peer: self._method_of[addr]
            for addr, peers in answerers.items()
            for peer in peers
            if addr in self._method_of
        }
        by_addr: dict[str, Method] = {}
        for addr, method in self._method_of.items():
            named = peer_of(addr)
            if named is not None:
                by_peer.setdefault(named, method)
            else:
                by_addr[without_peer(addr)] = method
        for record in records:
            peer = record.peer_id
            if peer in self._sourced or len(self._sourced) >= MAX_SOURCED:
                continue
            located = next((by_addr[addr] for addr in record.addrs if addr in by_addr), None)
            if (found_by := by_peer.get(peer, located)) is not None:
                self._sourced[peer] = found_by

    def method_of(self, addr: str) -> Method | None:
        """Which source finds a place now."""
        return self._method_of.get(addr)

    def source_of(self, peer: PeerId) -> Method | None:
        """By which source a member was found; None when only other members told of it."""
        return self._sourced.get(peer)

    def document(self, mode: str, state_of: Callable[[str], DialState]) -> JsonObject:
        """`mode` and `sources`, as the interface reference gives them."""
        return {"mode": mode, "sources": [self._source_document(report, state_of) for report in self.reports()]}

    def _source_document(self, report: SourceReport, state_of: Callable[[str], DialState]) -> JsonObject:
        return {
            "method": report.method,
            "subject": report.subject,
            "wanted": self.is_wanted(report),
            "state": "failing" if report.troubles else "working",
            "places": [_place_document(place, *state_of(place.addr)) for place in report.places],
            "troubles": [
                {"code": trouble.code, "problem": trouble.problem, "fix": trouble.fix} for trouble in report.troubles
            ],
        }


def _place_document(place: Place, state: str, error: str) -> JsonObject:
    agent = place.agent
    return {
        "addr": place.addr,
        "peer_id": peer_of(place.addr),
        "name": agent.name if agent else None,
        "agent_id": agent.id if agent else None,
        "endpoint": agent.endpoint if agent else None,
        "state": state,
        "error": error or None,
    }
