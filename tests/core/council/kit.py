"""Short words for the documents of a council and for who says them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from p2pnode.core.council.council import Council, Stamp
from p2pnode.core.council.deciding import Owner, Times, Verdict, as_update, number
from p2pnode.core.council.documents import Claim, Status, StatusUpdate, check_claim, check_status, to_json
from p2pnode.core.council.opportunity import CouncilOpportunity, check_opportunity
from p2pnode.core.peerid import PeerId

COUNCIL = "5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e11"
START_NS = 1_795_000_000_000_000_000
"""2026-11-18, as the first wall time of a test."""


def peer(name: object) -> PeerId:
    return PeerId(f"peer-{name}")


OWNER = peer("owner")


def opportunity(core: Iterable[object] = ("tpm",), **members: object) -> CouncilOpportunity:
    checked = check_opportunity(
        {"council_id": COUNCIL, "project_name": "p", "repository": "r", "core_roles": list(core), **members}
    )
    assert isinstance(checked, CouncilOpportunity), checked
    return checked


def claim(role: str = "tpm", agent: str = "a", **members: object) -> Claim:
    checked = check_claim({"council_id": COUNCIL, "role_name": role, "agent_id": agent, **members})
    assert isinstance(checked, Claim), checked
    return checked


def update(status: str = "forming", **members: object) -> StatusUpdate:
    checked = check_status({"council_id": COUNCIL, "status": status, **members})
    assert isinstance(checked, StatusUpdate), checked
    return checked


def held(role: str, agent: str, term: int = 1, n: int = 1, **members: object) -> dict[str, Any]:
    """A seat of a decision; the agent `a` sits behind `peer("a")`."""
    seat = {"role_name": role, "required": True, "agent_id": agent, "peer_id": peer(agent), "term": term, "n": n}
    return {**seat, "state": "assigned", **members}


def snapshot(council: Council) -> object:
    """All that others can see of a council."""
    roles = sorted({seat.role_name for seat in council.seats()} | {"tpm", "architect", "tester"})
    return (
        council.status,
        council.authority,
        council.decision.key if council.decision is not None else None,
        [seat.model_dump() for seat in council.seats()],
        [(role, [(each.claimant, each.number) for each in council.claims(role)]) for role in roles],
        [council.is_released(seat) for seat in council.seats()],
        council.electorate,
        to_json(council.opportunity) if council.opportunity is not None else None,
        sorted((key, report.number, report.trusted) for key, report in council.reports.items()),
    )


@dataclass
class Known:
    """What an owner knows of the others: all are our nodes unless said otherwise."""

    gone: set[PeerId] = field(default_factory=set)
    strangers: Collection[PeerId] = ()

    def is_gone(self, who: PeerId) -> bool:
        return who in self.gone

    def accepts(self, who: PeerId) -> bool:
        return who not in self.strangers


class Desk:
    """An owner with one council, in a time that the test moves."""

    def __init__(self, core: Iterable[object] = ("tpm",), known: Known | None = None, **members: object) -> None:
        self.council = Council(COUNCIL)
        self.owner = Owner()
        self.known = known or Known()
        self.now = 0.0
        self.seqno = 0
        self.council.take_opportunity(opportunity(core, **members), self.stamp(OWNER))

    def stamp(self, who: PeerId) -> Stamp:
        self.seqno += 1
        return Stamp(who, self.seqno, START_NS + int(self.now * 1e9), self.now)

    def says(self, agent: str, role: str = "tpm", **members: object) -> None:
        self.council.take_claim(claim(role, agent, **members), self.stamp(peer(agent)))

    def accepts(self, agent: str, role: str = "tpm") -> None:
        seat = self.seat(role)
        self.says(agent, role, kind="accept", term=seat.term, n=seat.n)

    def releases(self, agent: str, role: str = "tpm", **members: object) -> None:
        seat = self.seat(role)
        self.says(agent, role, kind="release", term=seat.term, n=seat.n, **members)

    def reports(self, who: PeerId, status: str, *, trusted: bool = False, **members: object) -> None:
        self.council.take_report(update(status, **members), self.stamp(who), trusted=trusted)

    def decide(self, after: float = 0.0) -> Verdict:
        """The verdict some seconds later, published when it changed something."""
        self.now += after
        verdict = self.owner.decide(self.council, self.known, Times(self.now, START_NS + int(self.now * 1e9)))
        if verdict.changed:
            n = self.council.decision.update.n + 1 if self.council.decision is not None else 1
            published = as_update(self.council, verdict, number(verdict, 1, n), term=1, n=n)
            again = check_status(to_json(published))
            assert isinstance(again, StatusUpdate), again
            assert self.council.take_decision(again, self.stamp(OWNER))
        return verdict

    def seat(self, role: str = "tpm") -> Any:
        return next(seat for seat in self.council.seats() if seat.role_name == role)

    def holder(self, role: str = "tpm") -> str:
        return str(self.seat(role).agent_id)

    @property
    def status(self) -> Status:
        return self.council.status
