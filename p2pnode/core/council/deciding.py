"""What a council's owner decides: the next decision from what is known, and when to look again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from p2pnode.core.council.claims import StandingClaim, best
from p2pnode.core.council.council import Council, holder_of
from p2pnode.core.council.documents import ENDED, MAX_MESSAGE, MAX_UCXL, NEXT, Seat, Status, StatusUpdate
from p2pnode.core.peerid import PeerId

WINDOW_SECONDS = 0.1
"""From the first claim for an open role to the next assignments: time for a better claim that is on its way."""

ACCEPT_SECONDS = 10.0
"""After which a role is given to somebody else whose sidecar did not accept it."""

MAX_PAUSE_SECONDS = 600.0
"""A claim that did not lead to an acceptance counts again after a pause, doubled each time up to this."""

SECOND_ROLE_SECONDS = 2.0
"""How long an open role waits for a claim of one of our nodes whose agent holds none in this council. Then it is given
to an agent that does, that did not accept it before, or that is behind a node the membership does not know and that
nobody can find dead."""


class Fleet(Protocol):
    """What the owner knows of those who claim."""

    def is_gone(self, peer: PeerId) -> bool:
        """Is it dead, or did it leave? A stranger is not gone."""

    def accepts(self, peer: PeerId) -> bool:
        """Is it one of our nodes, which accept an assignment by themselves?"""


@dataclass(frozen=True, slots=True)
class Times:
    """
    Args:
        now: monotonic seconds.
        now_ns: wall time, nanoseconds since 1970.
    """

    now: float
    now_ns: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    Args:
        status: where the council stands.
        message: why, for people; empty when nothing needs saying.
        seats: every role with its holder; new assignments have no fencing number yet (both 0).
        changed: is there anything to publish?
        look_again_at: monotonic seconds; infinite when only news matters.
    """

    status: Status
    message: str
    seats: tuple[Seat, ...]
    changed: bool
    look_again_at: float


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A claim that did not lead to an acceptance; a later claim of the same agent counts anew.

    Args:
        number: the claim's seqno.
        fence: of the assignment that was not accepted.
        until: monotonic seconds; then it counts again.
        times: how often.
    """

    number: int
    fence: tuple[int, int]
    until: float
    times: int


class Owner:
    """Decides for one council.

    Attributes:
        passed_over: by role, node and agent.
    """

    def __init__(self) -> None:
        self.passed_over: dict[tuple[str, PeerId, str], PassedOver] = {}
        self._assigned_at: dict[tuple[str, int, int], float] = {}
        self._open_since: dict[str, float] = {}

    def decide(self, council: Council, fleet: Fleet, times: Times) -> Verdict:
        """The council as it should be now."""
        status, seats = council.status, council.seats()
        if status in ENDED or not seats:
            return Verdict(status, "", tuple(seats), False, math.inf)
        if (asked := _asked_to_end(council, seats)) is not None:
            return Verdict(*asked, tuple(seats), True, math.inf)
        again, notes = math.inf, []
        current = {(seat.role_name, seat.term, seat.n) for seat in seats}
        self._assigned_at = {each: since for each, since in self._assigned_at.items() if each in current}
        for index, seat in enumerate(seats):
            if seat.is_open:
                continue
            why, patience = self._vacate(council, seat, fleet, times.now)
            again = min(again, patience)
            if why:
                notes.append(f"{seat.role_name} is open again: {why}")
                seats[index] = _vacant(seat)
        again = min(again, self._fill(council, seats, fleet, times.now))
        status, note, wait = _status_of(council, seats, times)
        if note:
            notes.append(note)
        changed = status != council.status or [_key(seat) for seat in seats] != [_key(s) for s in council.seats()]
        return Verdict(status, "; ".join(notes), tuple(seats), changed, min(again, wait))

    def _vacate(self, council: Council, seat: Seat, fleet: Fleet, now: float) -> tuple[str, float]:
        """Why a held role is open again, empty when it is not; and when to look again."""
        holder = holder_of(seat)
        who = seat.agent_name or seat.agent_id
        if fleet.is_gone(holder.peer):
            return f"{who} is gone", math.inf
        if (released := council.is_released(seat)) is not None:
            return f"{who} released it" + (f" ({released.reason})" if released.reason else ""), math.inf
        if seat.state == "accepted" or not fleet.accepts(holder.peer):
            return "", math.inf
        since = self._assigned_at.setdefault((seat.role_name, seat.term, seat.n), now)
        if now < since + ACCEPT_SECONDS:
            return "", since + ACCEPT_SECONDS
        for standing in council.claims(seat.role_name):
            if standing.claimant == holder:
                self._pass_over(seat, standing, now)
        return f"{who} did not accept it", math.inf

    def _pass_over(self, seat: Seat, standing: StandingClaim, now: float) -> None:
        key, fence = (seat.role_name, standing.claimant.peer, standing.claimant.agent_id), (seat.term, seat.n)
        before = self.passed_over.get(key)
        if before is not None and before.fence == fence:
            return
        times = before.times + 1 if before is not None and before.number == standing.number else 1
        pause = min(ACCEPT_SECONDS * 2 ** min(times, 10), MAX_PAUSE_SECONDS)
        self.passed_over[key] = PassedOver(standing.number, fence, now + pause, times)

    def _passed(self, standing: StandingClaim) -> PassedOver | None:
        claimant = standing.claimant
        passed = self.passed_over.get((standing.claim.role_name, claimant.peer, claimant.agent_id))
        return passed if passed is not None and standing.number <= passed.number else None

    def _fill(self, council: Council, seats: list[Seat], fleet: Fleet, now: float) -> float:
        """Give open roles to claims, once their window is over; when to look again."""
        opened = {seat.role_name for seat in seats if seat.is_open}
        self._open_since = {role: self._open_since.get(role, now) for role in opened}
        again, wanted = math.inf, {}
        for role in opened:
            wanted[role], retry = self._wanting(council, role, fleet, now)
            again = min(again, retry)
        sitting = {holder_of(seat) for seat in seats if not seat.is_open}

        def comes_first(claim: StandingClaim) -> bool:
            is_ours = fleet.accepts(claim.claimant.peer)
            return is_ours and claim.claimant not in sitting and self._passed(claim) is None

        seen = [claim.seen_at for claims in wanted.values() for claim in claims if comes_first(claim)]
        if seen and now < min(seen) + WINDOW_SECONDS:
            return min(again, min(seen) + WINDOW_SECONDS)
        for index, seat in enumerate(seats):
            if not (claims := wanted.get(seat.role_name)):
                continue
            since = self._open_since[seat.role_name]
            turns = [max(claim.seen_at, since) + SECOND_ROLE_SECONDS for claim in claims]
            patient = [claim for claim, turn in zip(claims, turns, strict=True) if turn <= now]
            if (winner := best(filter(comes_first, claims), seat) or best(patient, seat)) is None:
                again = min(again, *turns)
                continue
            seats[index] = _given(seat, winner, "assigned" if fleet.accepts(winner.claimant.peer) else "accepted")
            sitting.add(winner.claimant)
        return again

    def _wanting(
        self, council: Council, role_name: str, fleet: Fleet, now: float
    ) -> tuple[Sequence[StandingClaim], float]:
        """The claims for a role that can get it, and when one more can."""
        found, again = [], math.inf
        for each in council.claims(role_name):
            if fleet.is_gone(each.claimant.peer):
                continue
            if (passed := self._passed(each)) is not None and now < passed.until:
                again = min(again, passed.until)
            else:
                found.append(each)
        return found, again


def number(verdict: Verdict, term: int, n: int) -> list[Seat]:
    """The seats of a verdict as they are published in decision `(term, n)`: new assignments bear its number."""
    return [
        seat if seat.is_open or seat.term else seat.model_copy(update={"term": term, "n": n}) for seat in verdict.seats
    ]


def _asked_to_end(council: Council, seats: Sequence[Seat]) -> tuple[Status, str] | None:
    """What an orchestrator asked for, or what all holders of core roles report."""
    asked = [
        report
        for report in council.reports.values()
        if report.trusted and report.update.status in ENDED & NEXT[council.status] and not report.update.role_name
    ]
    if asked:
        first = min(asked, key=lambda report: (report.at_ns, report.peer, report.number))
        return first.update.status, first.update.message
    if council.status is not Status.ACTIVE:
        return None
    core = [seat for seat in seats if seat.required]
    done = {
        (report.peer, report.update.agent_id, report.update.role_name)
        for report in council.reports.values()
        if report.update.status is Status.COMPLETED
    }
    if core and all((seat.peer_id, seat.agent_id, seat.role_name) in done for seat in core):
        return Status.COMPLETED, "every core role reports completed"
    return None


def _status_of(council: Council, seats: Sequence[Seat], times: Times) -> tuple[Status, str, float]:
    """The status that follows from the seats, why, and when time alone may change it (monotonic)."""
    if Status.ACTIVE not in NEXT[council.status]:
        return council.status, "", math.inf
    if all(seat.state == "accepted" for seat in seats if seat.required):
        return Status.ACTIVE, "", math.inf
    if not council.deadline_ns:
        return council.status, "", math.inf
    left = (council.deadline_ns - times.now_ns) / 1e9
    if left > 0:
        return council.status, "", times.now + left
    missing = [seat.role_name for seat in seats if seat.required and seat.state != "accepted"]
    return Status.EXPIRED, f"not filled by the deadline: {', '.join(missing)}", math.inf


def _vacant(seat: Seat) -> Seat:
    return seat.model_copy(update={"state": "open", "agent_id": "", "agent_name": "", "peer_id": "", "term": 0, "n": 0})


def _given(seat: Seat, winner: StandingClaim, state: str) -> Seat:
    return seat.model_copy(
        update={
            "state": state,
            "agent_id": winner.claimant.agent_id,
            "agent_name": winner.claim.agent_name,
            "peer_id": winner.claimant.peer,
            "term": 0,
            "n": 0,
        }
    )


def _key(seat: Seat) -> tuple[str, str, str, int, int]:
    """What makes a decision worth publishing; an acceptance alone everybody hears."""
    return seat.role_name, seat.peer_id, seat.agent_id, seat.term, seat.n


def as_update(council: Council, verdict: Verdict, seats: Sequence[Seat], **members: object) -> StatusUpdate:
    """The document of a decision."""
    opportunity = council.opportunity
    before = council.decision.update if council.decision is not None else None
    address = opportunity.ucxl_address if opportunity else before.ucxl_address if before else ""
    return StatusUpdate.model_validate(
        {
            "council_id": council.id,
            "status": verdict.status,
            "message": _cut(verdict.message, MAX_MESSAGE),
            "roles": list(seats),
            "project_name": opportunity.project_name if opportunity else before.project_name if before else "",
            "repository": opportunity.repository if opportunity else before.repository if before else "",
            "ucxl_address": address if len(address) <= MAX_UCXL else "",
            **members,
        }
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
