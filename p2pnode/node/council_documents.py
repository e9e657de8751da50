"""Councils as the local API shows them, and decisions as they are published."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from p2pnode.core.council.claims import StandingClaim, fit, rank
from p2pnode.core.council.council import Council, Report
from p2pnode.core.council.documents import Seat, Status, StatusUpdate, to_json
from p2pnode.core.peerid import PeerId
from p2pnode.ports import JsonObject
from p2pnode.wire.payload import format_time

NameOf = Callable[[PeerId], str | None]

ABANDONED_SECONDS = 30.0
"""After the deadline of a council that still forms: nobody is there to say that it expired."""


def decision_json(update: StatusUpdate) -> dict[str, Any]:
    """A decision as it is published. Every seat says who holds it; what roles are about the opportunity says."""
    return {
        **to_json(update),
        "roles": [
            {
                "role_name": seat.role_name,
                "required": seat.required,
                "required_skills": list(seat.required_skills),
                "state": seat.state,
                **(
                    {
                        "agent_id": seat.agent_id,
                        "agent_name": seat.agent_name,
                        "peer_id": seat.peer_id,
                        "term": seat.term,
                        "n": seat.n,
                    }
                    if not seat.is_open
                    else {}
                ),
            }
            for seat in update.roles
        ],
    }


def council_document(council: Council, me: PeerId, name_of: NameOf, now_ns: int) -> JsonObject:
    """See `ports.Sidecar.councils`."""
    opportunity, decision = council.opportunity, council.decision
    update = decision.update if decision is not None else None
    authority = council.authority
    seats = council.seats()
    status, message = council.status, update.message if update is not None else ""
    if status is Status.FORMING and 0 < council.deadline_ns < now_ns - ABANDONED_SECONDS * 1e9:
        status, message = Status.EXPIRED, "the deadline passed, and nobody who could decide said anything"
    described = {seat.role_name: seat.description for seat in council.offered}
    return {
        "council_id": council.id,
        "project_name": opportunity.project_name if opportunity else update.project_name if update else None,
        "repository": opportunity.repository if opportunity else update.repository if update else None,
        "project_brief": opportunity.project_brief if opportunity else None,
        "ucxl_address": (opportunity.ucxl_address if opportunity else update.ucxl_address if update else "") or None,
        "formation_deadline": _time(opportunity.formation_deadline) if opportunity else None,
        "created_at": _time(opportunity.created_at) if opportunity else None,
        "metadata": dict(opportunity.metadata) if opportunity else {},
        "status": status.value,
        "message": message,
        "term": authority.term if authority is not None else 0,
        "n": update.n if update is not None else 0,
        "owner": authority.peer if authority is not None else None,
        "owner_name": name_of(authority.peer) if authority is not None else None,
        "updated_at": format_time(decision.at_ns) if decision is not None else None,
        "roles": [_seat(council, seat, described.get(seat.role_name, ""), name_of) for seat in seats],
        "missing": [seat.role_name for seat in seats if seat.required and seat.state != "accepted"],
        "mine": [seat.role_name for seat in seats if not seat.is_open and seat.peer_id == me],
        "reports": [
            _report(report, name_of)
            for report in sorted(council.reports.values(), key=lambda each: (each.at_ns, each.peer, each.number))
        ],
    }


def claims_of(council: Council, name_of: NameOf) -> list[JsonObject]:
    """Who wants which role, those first that would get it."""
    return [
        _claim(standing, seat, name_of)
        for seat in council.seats()
        for standing in sorted(council.claims(seat.role_name), key=lambda each, seat=seat: rank(each, seat))  # type: ignore[misc]
    ]


def _seat(council: Council, seat: Seat, description: str, name_of: NameOf) -> JsonObject:
    held = not seat.is_open
    return {
        "role_name": seat.role_name,
        "required": seat.required,
        "required_skills": list(seat.required_skills),
        "description": description,
        "state": seat.state,
        "agent_id": seat.agent_id if held else None,
        "agent_name": (seat.agent_name or None) if held else None,
        "peer_id": seat.peer_id if held else None,
        "name": name_of(PeerId(seat.peer_id)) if held else None,
        "term": seat.term if held else None,
        "n": seat.n if held else None,
        "claims": len(council.claims(seat.role_name)),
    }


def _claim(standing: StandingClaim, seat: Seat, name_of: NameOf) -> JsonObject:
    claim = standing.claim
    return {
        "role_name": seat.role_name,
        "agent_id": claim.agent_id,
        "agent_name": claim.agent_name or None,
        "peer_id": standing.claimant.peer,
        "name": name_of(standing.claimant.peer),
        "capabilities": list(claim.capabilities),
        "fit": round(fit(claim.capabilities, seat), 3),
        "running_roles": claim.running_roles,
        "confidence": claim.confidence,
        "claimed_at": _time(claim.claimed_at),
    }


def _report(report: Report, name_of: NameOf) -> JsonObject:
    update = report.update
    return {
        "peer_id": report.peer,
        "name": name_of(report.peer),
        "agent_id": update.agent_id or None,
        "role_name": update.role_name or None,
        "status": update.status.value,
        "message": update.message,
        "at": format_time(report.at_ns),
    }


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat().replace("+00:00", "Z") if moment is not None else None
