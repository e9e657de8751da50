"""The node's knowledge of itself as the doctor's facts, and the doctor's answer as a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import trio

from p2pnode.core.doctor import Diagnosis, diagnose, summary
from p2pnode.core.facts import (
    BootstrapFacts,
    BridgeFacts,
    DialFailure,
    Disk,
    Facts,
    Reachability,
    RoadsFacts,
    SourceFacts,
    SourceTrouble,
    TwinFacts,
)
from p2pnode.core.findings import EXIT_CODES
from p2pnode.core.membership.record import Member, MemberRecord
from p2pnode.core.peerid import PeerId
from p2pnode.node.disk import look_at_disk
from p2pnode.ports import JsonObject, SourceReport
from p2pnode.wire.payload import format_time

DISK_SECONDS = 2.0
"""A disk that takes longer to take one block (a dead network mount) is as good as none."""


class DiskCheck:
    """Looks at the disk in a thread: the event loop never waits for one. A look that hangs is left alone, and while it
    does, no other is begun.

    Args:
        directory: the data directory.
        look: `look_at_disk`, or what stands in for it.
    """

    def __init__(
        self,
        directory: Path,
        look: Callable[[Path], Disk] = look_at_disk,
        patience_seconds: float = DISK_SECONDS,
    ) -> None:
        self._directory = directory
        self._look = look
        self._patience_seconds = patience_seconds
        self._one_at_a_time = trio.CapacityLimiter(1)

    async def run(self) -> Disk:
        """How full it is, and whether it can be written, within `patience_seconds`."""
        disk = Disk(str(self._directory), 0, 0, f"it took no block within {self._patience_seconds:g} s")
        with trio.move_on_after(self._patience_seconds):
            # The stubs that libp2p brings are of an older trio.
            disk = await trio.to_thread.run_sync(  # type: ignore[call-arg]
                lambda: self._look(self._directory), abandon_on_cancel=True, limiter=self._one_at_a_time
            )
        return disk


def source_facts(report: SourceReport, *, wanted: bool) -> SourceFacts:
    """One source as it reported last; `wanted`: the operator asked for it by name."""
    troubles = tuple(SourceTrouble(each.code, each.problem, each.fix) for each in report.troubles)
    return SourceFacts(report.method, report.subject, wanted, len(report.places), troubles)


def twin_facts(record: MemberRecord, *, seen_ns: int, now_ns: int) -> TwinFacts:
    """Another process with our identity, by the record it sent, heard of at `seen_ns` (wall time)."""
    return TwinFacts(record.name, record.addrs, format_time(seen_ns), max(now_ns - seen_ns, 0) / 1e9)


def facts_of(
    own: MemberRecord,
    addrs: Sequence[str],
    members: Mapping[PeerId, Member],
    links: int,
    *,
    uptime_seconds: float,
    sources: Iterable[SourceFacts] = (),
    bootstraps: Iterable[BootstrapFacts] = (),
    dial_failures: Iterable[DialFailure] = (),
    reachability: Reachability | None = None,
    clock_offsets: Mapping[PeerId, float] | None = None,
    twin: TwinFacts | None = None,
    topics: Mapping[str, int] | None = None,
    disk: Disk | None = None,
    strangers: Mapping[str, int] | None = None,
    roads: RoadsFacts | None = None,
    bridge: BridgeFacts | None = None,
) -> Facts:
    """The facts, with names in place of peer ids.

    Args:
        own: our record.
        addrs: ours, multiaddrs with `/p2p/…`.
        members: all that are known, ourselves among them.
        links: how many peers are connected.
        topics: connected peers subscribed to each topic that this node is configured for.
        strangers: connections without our network key, by IP address.
    """
    names = names_of(members)
    by_state: dict[str, list[str]] = {}
    for peer, member in members.items():
        by_state.setdefault(member.state.value, []).append(names[peer])
    offsets = clock_offsets or {}
    return Facts(
        name=own.name,
        role=own.role,
        peer_id=own.peer_id,
        addrs=tuple(addrs),
        uptime_seconds=uptime_seconds,
        links=links,
        members={state: tuple(sorted(found)) for state, found in sorted(by_state.items())},
        sources=tuple(sources),
        bootstraps=tuple(bootstraps),
        dial_failures=tuple(dial_failures),
        reachability=reachability or Reachability(),
        clock_offsets={names.get(peer) or _short(peer): offset for peer, offset in offsets.items()},
        twin=twin,
        topics=dict(topics or {}),
        disk=disk,
        strangers=dict(strangers or {}),
        roads=roads,
        bridge=bridge,
    )


def names_of(members: Mapping[PeerId, Member]) -> Mapping[PeerId, str]:
    """A name for each that no other has: where several share one, the end of the peer id goes with it."""
    counts = Counter(member.record.name for member in members.values())
    return {
        peer: name if (name := member.record.name) and counts[name] == 1 else f"{name} ({_short(peer)})".lstrip()
        for peer, member in members.items()
    }


def doctor_document(facts: Facts, at_ns: int) -> JsonObject:
    """What `GET /api/v1/doctor` answers, of facts gathered at `at_ns` (wall time)."""
    diagnosis: Diagnosis = diagnose(facts)
    return {
        "status": diagnosis.status,
        "exit_code": EXIT_CODES[diagnosis.status],
        "summary": summary(facts),
        "findings": [{**asdict(each), "evidence": list(each.evidence)} for each in diagnosis.findings],
        "checked": list(diagnosis.checked),
        "at": format_time(at_ns),
    }


def _short(peer: PeerId) -> str:
    return f"…{peer[-6:]}"
