"""Which of several claims gets the role: the same answer on every node that sees the same claims."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from p2pnode.core.council.documents import Claim
from p2pnode.core.council.opportunity import CouncilRole
from p2pnode.core.peerid import PeerId

ANYBODY_FITS = 0.5
"""Fit for a role that asks for no skills: anybody may, but who names the role among its capabilities fits better."""


@dataclass(frozen=True, slots=True, order=True)
class Claimant:
    """Who claims: an agent, behind the node that signed for it."""

    peer: PeerId
    agent_id: str


@dataclass(frozen=True, slots=True)
class StandingClaim:
    """A claim that was not withdrawn.

    Args:
        claimant: who claims.
        claim: what it said.
        number: the message's seqno; a later document of the same claimant replaces it.
        at_ns: signed time, nanoseconds since 1970.
        seen_at: monotonic seconds here; not part of the rule.
    """

    claimant: Claimant
    claim: Claim
    number: int
    at_ns: int
    seen_at: float


def fit(capabilities: Collection[str], role: CouncilRole) -> float:
    """How well an agent fits a role, 0 to 1: the share of the required skills that it has.

    Letters' case does not matter. Without required skills: 1 for an agent with a capability of the role's name, else
    `ANYBODY_FITS`.
    """
    has = {each.casefold() for each in capabilities}
    if role.required_skills:
        return sum(skill.casefold() in has for skill in role.required_skills) / len(role.required_skills)
    return 1.0 if role.role_name.casefold() in has else ANYBODY_FITS


def rank(standing: StandingClaim, role: CouncilRole) -> tuple[float, int, int, PeerId, str]:
    """The smallest wins: best fit, then fewest running roles, then signed time, then peer id and agent id."""
    claim = standing.claim
    return (
        -fit(claim.capabilities, role),
        claim.running_roles,
        standing.at_ns,
        standing.claimant.peer,
        standing.claimant.agent_id,
    )


def best(claims: Iterable[StandingClaim], role: CouncilRole) -> StandingClaim | None:
    """The claim that gets the role; None without any."""
    return min(claims, key=lambda each: rank(each, role), default=None)
