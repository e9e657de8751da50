"""One council as a node knows it: what was said, merged so that the order of arrival does not matter.

The opportunity is the earliest one; the decision the highest by (term, owner, n); of each claimant and each role the
latest word counts. So whoever saw the same documents has the same council. A role has at most one holder, as a
decision names each role once. Only at a bound does the order of arrival decide what is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pnode.core.council.claims import Claimant, StandingClaim
from p2pnode.core.council.documents import ENDED, Claim, Seat, Status, StatusUpdate
from p2pnode.core.council.opportunity import MAX_NAME, MAX_ROLES, CouncilOpportunity, check_opportunity
from p2pnode.core.peerid import PeerId

MAX_CLAIMANTS = 2048
"""Agents heard of in one council, counted anew for each role; more are refused."""

MAX_OF_PEER = 2 * MAX_ROLES
"""Of those behind one node; as many of its reports."""

MAX_REPORTS = 512
"""Kept of one council: those of its members make room for themselves, others' are refused."""

MAX_FENCES = 16
"""Assignments that one claimant accepted or gave back, by role: those of the highest fencing numbers are kept."""

Fence = tuple[int, int]
"""The fencing number of an assignment: `(term, n)`."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the signed message says of a document.

    Args:
        peer: the origin.
        number: its seqno.
        at_ns: signed time, else that of arrival here, nanoseconds since 1970.
        seen_at: monotonic seconds here.
    """

    peer: PeerId
    number: int
    at_ns: int
    seen_at: float = 0.0


@dataclass(frozen=True, slots=True, order=True)
class Authority:
    """Who decides: of two the one with the higher term, then the higher peer id."""

    term: int
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Decision:
    """What an owner decided: the whole council, not a change of it."""

    authority: Authority
    update: StatusUpdate
    at_ns: int
    number: int = 0

    @property
    def key(self) -> tuple[Authority, int, int]:
        """The highest stands. The message's seqno counts when an owner that lost its store gives out `n` again."""
        return self.authority, self.update.n, self.number


@dataclass(frozen=True, slots=True)
class Report:
    """What a member or an orchestrator says of the council; only its owner decides by it."""

    peer: PeerId
    update: StatusUpdate
    number: int
    at_ns: int
    trusted: bool


@dataclass(slots=True)
class _Said:
    """What a claimant said of one role. Every part only grows, so any order of words gives the same.

    Args:
        claim: the latest.
        withdrawn: the latest release without a fencing number, with its seqno.
        silent_from: seqno of the latest release; a claim before it is none any more.
        accepted: the latest acceptance's seqno, by fencing number.
        released: the first release, with its seqno, by fencing number. It is final: no later word undoes it.
    """

    claim: StandingClaim | None = None
    withdrawn: tuple[int, Claim] | None = None
    silent_from: int = -1
    accepted: dict[Fence, int] = field(default_factory=dict)
    released: dict[Fence, tuple[int, Claim]] = field(default_factory=dict)

    def take(self, claim: Claim, claimant: Claimant, stamp: Stamp) -> bool:
        """Did anything change?"""
        fence, seqno = (claim.term, claim.n), stamp.number
        if claim.kind == "claim":
            if self.claim is not None and seqno <= self.claim.number:
                return False
            self.claim = StandingClaim(claimant, claim, seqno, stamp.at_ns, stamp.seen_at)
            return True
        if claim.kind == "accept":
            if seqno <= self.accepted.get(fence, -1):
                return False
            self.accepted[fence] = seqno
            return _keep_highest(self.accepted, fence)
        changed, self.silent_from = seqno > self.silent_from, max(seqno, self.silent_from)
        if not claim.term:
            if self.withdrawn is None or seqno > self.withdrawn[0]:
                self.withdrawn, changed = (seqno, claim), True
        elif fence not in self.released or seqno < self.released[fence][0]:
            self.released[fence] = seqno, claim
            changed |= _keep_highest(self.released, fence)
        return changed

    @property
    def standing(self) -> StandingClaim | None:
        return self.claim if self.claim is not None and self.claim.number > self.silent_from else None

    def release_of(self, fence: Fence) -> Claim | None:
        """Its word that it does not want, or no longer wants, an assignment."""
        if fence in self.released:
            return self.released[fence][1]
        latest = max(self.accepted.get(fence, -1), self.claim.number if self.claim is not None else -1)
        return self.withdrawn[1] if self.withdrawn is not None and self.withdrawn[0] > latest else None


def _keep_highest(table: MutableMapping[Fence, Any], fence: Fence) -> bool:
    """Hold the bound; is the one just added still there?"""
    if len(table) > MAX_FENCES:
        del table[min(table)]
    return fence in table


_Origin = tuple[Authority, int, int]
"""From which decision something comes: authority, n, seqno of the message."""


class Council:
    """Made empty, then told; `version` rises with each change.

    Args:
        council_id: the UUID as text.
    """

    def __init__(self, council_id: str) -> None:
        self.id = council_id
        self.version = 0
        self.decision: Decision | None = None
        self.opened_by: tuple[int, int, PeerId] | None = None
        self._direct: CouncilOpportunity | None = None
        self._told: tuple[_Origin, CouncilOpportunity] | None = None
        self._electorate: tuple[_Origin, str] | None = None
        self._said: dict[str, dict[Claimant, _Said]] = {}
        self._claimants: Counter[PeerId] = Counter()
        self._seats: list[Seat] | None = None
        self._shown: dict[str, tuple[Seat, Seat]] = {}
        self._standing: dict[str, Sequence[StandingClaim]] = {}
        self._announcer: Authority | None = None
        self._offered: tuple[CouncilOpportunity, int, Sequence[Seat]] | None = None
        self.reports: dict[tuple[PeerId, str, str], Report] = {}

    # -- told --------------------------------------------------------------------------

    def take_opportunity(self, opportunity: CouncilOpportunity, stamp: Stamp) -> bool:
        """The earliest one stands; did anything change?"""
        key = (stamp.at_ns, stamp.number, stamp.peer)
        if self.opened_by is not None and self.opened_by <= key:
            return False
        self.opened_by, self._direct = key, opportunity
        self._announcer = Authority(1, stamp.peer)
        return self._changed()

    def take_decision(self, update: StatusUpdate, stamp: Stamp) -> bool:
        """Of a trusted orchestrator; did anything change?"""
        decision = Decision(Authority(update.term, stamp.peer), update, stamp.at_ns, stamp.number)
        changed = False
        if update.electorate and (self._electorate is None or decision.key < self._electorate[0]):
            self._electorate = decision.key, update.electorate
            changed = True
        if update.opportunity is not None and (self._told is None or decision.key < self._told[0]):
            checked = check_opportunity(update.opportunity)
            if isinstance(checked, CouncilOpportunity) and str(checked.council_id) == self.id:
                self._told = decision.key, checked
                changed = True
        if self.decision is None or decision.key > self.decision.key:
            self.decision = decision
            self._shown.clear()
            changed = True
        if update.status in ENDED:  # under a higher authority it is what this one asks for
            changed |= self._report(update, stamp, trusted=True)
        return changed and self._changed()

    def take_claim(self, claim: Claim, stamp: Stamp) -> bool:
        """Of anybody: it speaks for the agent behind its origin; did anything change?"""
        claimant = Claimant(stamp.peer, claim.agent_id)
        said = self._said.get(claim.role_name, {}).get(claimant)
        if said is None:
            if self._claimants[stamp.peer] >= MAX_OF_PEER or self._claimants.total() >= MAX_CLAIMANTS:
                return False
            self._claimants[stamp.peer] += 1
            said = self._said.setdefault(claim.role_name, {})[claimant] = _Said()
        return said.take(claim, claimant, stamp) and self._changed()

    def take_report(self, update: StatusUpdate, stamp: Stamp, *, trusted: bool) -> bool:
        """A status update that is no decision; did anything change?"""
        return self._report(update, stamp, trusted=trusted) and self._changed()

    def _report(self, update: StatusUpdate, stamp: Stamp, *, trusted: bool) -> bool:
        key = (stamp.peer, update.agent_id, update.role_name)
        known = self.reports.get(key)
        if known is not None and known.number >= stamp.number:
            return False
        if known is None and not self._has_room_for(key, trusted=trusted):
            return False
        brief = update.model_copy(update={"roles": [], "opportunity": None, "electorate": ""})
        self.reports[key] = Report(stamp.peer, brief, stamp.number, stamp.at_ns, trusted)
        return True

    def _has_room_for(self, key: tuple[PeerId, str, str], *, trusted: bool) -> bool:
        """Bystanders' reports make room for those of orchestrators and members."""
        if sum(peer == key[0] for peer, _, _ in self.reports) >= MAX_OF_PEER:
            return False
        if len(self.reports) < MAX_REPORTS:
            return True
        members = {(PeerId(seat.peer_id), seat.agent_id) for seat in self.seats() if not seat.is_open}
        if not trusted and key[:2] not in members:
            return False
        for other, report in self.reports.items():
            if not report.trusted and other[:2] not in members:
                del self.reports[other]
                return True
        return False

    def _changed(self) -> bool:
        self.version += 1
        self._seats = None
        self._standing.clear()
        return True

    # -- known -------------------------------------------------------------------------

    @property
    def opportunity(self) -> CouncilOpportunity | None:
        if self._direct is not None:
            return self._direct
        return self._told[1] if self._told is not None else None

    @property
    def electorate(self) -> str:
        """Who was alive at the creation, as the first owner saw it; empty when unknown."""
        return self._electorate[1] if self._electorate is not None else ""

    @property
    def authority(self) -> Authority | None:
        """Who decides now: whoever decided last, else who announced the council; None when neither is known."""
        if self.decision is not None:
            return self.decision.authority
        return self._announcer

    @property
    def status(self) -> Status:
        return self.decision.update.status if self.decision is not None else Status.FORMING

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def deadline_ns(self) -> int:
        """Of forming, nanoseconds since 1970; 0 without one."""
        offer = self._offer()
        return offer[1] if offer is not None else 0

    @property
    def offered(self) -> Sequence[Seat]:
        """The seats of the opportunity, nobody on them; none without one."""
        offer = self._offer()
        return offer[2] if offer is not None else ()

    def _offer(self) -> tuple[CouncilOpportunity, int, Sequence[Seat]] | None:
        """The opportunity with what is made of it, once."""
        opportunity = self.opportunity
        if opportunity is None:
            return None
        if self._offered is None or self._offered[0] is not opportunity:
            self._offered = opportunity, opportunity.expires_at_ns, tuple(open_seats(opportunity))
        return self._offered

    def seats(self) -> list[Seat]:
        """Every role, core roles first, with its holder as decided; acceptances that came since are counted in."""
        if self._seats is None:
            self._seats = [
                self._as_accepted(seat) if seat.state == "assigned" and self.is_accepted(seat) else seat
                for seat in self._decided_seats()
            ]
        return list(self._seats)

    def _as_accepted(self, seat: Seat) -> Seat:
        known = self._shown.get(seat.role_name)
        if known is None or known[0] is not seat:
            known = self._shown[seat.role_name] = seat, seat.model_copy(update={"state": "accepted"})
        return known[1]

    def _decided_seats(self) -> Sequence[Seat]:
        if self.decision is not None and self.decision.update.roles:
            return self.decision.update.roles
        return self.offered

    def is_accepted(self, seat: Seat) -> bool:
        """Did the holder say that it takes this very assignment?"""
        said = self._said.get(seat.role_name, {}).get(holder_of(seat))
        return said is not None and (seat.term, seat.n) in said.accepted

    def is_released(self, seat: Seat) -> Claim | None:
        """The holder's word that it gives this very assignment back, or that it took back its claim and did not claim
        or accept since; None when there is none."""
        said = self._said.get(seat.role_name, {}).get(holder_of(seat))
        return said.release_of((seat.term, seat.n)) if said is not None else None

    def claims(self, role_name: str) -> Sequence[StandingClaim]:
        """Of those who want a role and did not take it back, by claimant.

        An acceptance leaves the claim standing: it is still wanted. A release ends it, until a later claim.
        """
        if (known := self._standing.get(role_name)) is not None:
            return known
        if (said := self._said.get(role_name)) is None:
            return ()
        standing = (each.standing for each in said.values())
        found = tuple(sorted((each for each in standing if each is not None), key=lambda each: each.claimant))
        self._standing[role_name] = found
        return found

    def claimed_by(self, claimant: Claimant) -> list[str]:
        """The roles that somebody claims."""
        found = ((role, said.get(claimant)) for role, said in self._said.items())
        return sorted(role for role, said in found if said is not None and said.standing is not None)

    def gave_back(self, claimant: Claimant, role_name: str) -> bool:
        """Did somebody release a role, or take back its claim, and not claim it since?"""
        said = self._said.get(role_name, {}).get(claimant)
        return said is not None and said.silent_from >= 0 and said.standing is None


def open_seats(opportunity: CouncilOpportunity) -> Iterator[Seat]:
    """The seats of an opportunity, nobody on them. A name that comes again gets a number: `developer#2`."""
    taken: set[str] = set()
    for required, roles in ((True, opportunity.core_roles), (False, opportunity.optional_roles)):
        for role in roles:
            name, count = role.role_name, 1
            while name in taken:
                count += 1
                name = f"{role.role_name[: MAX_NAME - 4]}#{count}"
            taken.add(name)
            yield Seat(
                role_name=name,
                agent_name="",
                required=required,
                required_skills=role.required_skills,
                description=role.description,
            )


def holder_of(seat: Seat) -> Claimant:
    return Claimant(PeerId(seat.peer_id), seat.agent_id)
