"""Which role an agent claims, and when, so that a fleet does not shout: the better it fits, the sooner."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from random import Random

from p2pnode.core.council.claims import Claimant, StandingClaim, fit, rank
from p2pnode.core.council.council import Council, holder_of
from p2pnode.core.council.documents import Claim, Seat
from p2pnode.core.peerid import PeerId

MIN_FIT = 0.5
"""Below it no role is claimed on an agent's behalf."""

MOST_SECONDS = 0.3
"""The longest wait before a claim."""

FIRST_SECONDS = 0.02
"""Within it the first in line claims."""

OTHERS_SECONDS = 0.2
"""Before it nobody else claims: time for the first ones' claims, one for each role, to reach all."""

RELAY_SECONDS = 0.25
"""How much longer each one further down the line waits for those before it, who are alive and ought to speak."""

LINE = 6
"""Who stands further down than this waits no longer than this one."""

ENOUGH_BETTER = 1
"""As many better claims are known, of agents that are there and hold no role yet: then ours is withheld."""

ENOUGH = 3
"""As many claims for a role are known that fit no worse: the owner has choice enough."""

STALE_SECONDS = 15.0
"""A claim that got nothing for so long keeps nobody from claiming the same role: longer than an owner waits for an
acceptance (`deciding.ACCEPT_SECONDS`)."""

AGAIN_SECONDS = 1.0
"""After which an agent looks again at roles that are still open."""


@dataclass(frozen=True, slots=True)
class Rival:
    """An agent that may claim too, as the membership and the councils tell of it."""

    claimant: Claimant
    capabilities: tuple[str, ...]
    running_roles: int


@dataclass(frozen=True, slots=True)
class Turn:
    """When an agent claims.

    Args:
        seconds: from now: 0 to 0.3 for the first two in a line.
        role_name: the role it stands first in line for; empty when it is first for none.
    """

    seconds: float
    role_name: str = ""


def turn(council: Council, me: Rival, rivals: Iterable[Rival], rng: Random) -> Turn | None:
    """When an agent claims, and which role is its own to claim; None when no open role fits it.

    Every node knows who is there, what they can do and how many roles they hold, so each finds its own place in the
    line for each open role: best fit, fewest running roles, then an order that differs from role to role. Each role has
    a first one in line, who claims it at once, and a second one 0.2 to 0.3 s later; the others, in turn, only if they
    still hear of nobody: on a crowded machine the first claim may take that long to reach them.
    """
    everybody = [me, *(each for each in rivals if each.claimant.peer != me.claimant.peer)]
    known: dict[tuple[str, tuple[str, ...]], float] = {}

    def fitness(rival: Rival, seat: Seat) -> float:
        key = (seat.role_name, rival.capabilities)
        if key not in known:
            known[key] = fit(rival.capabilities, seat)
        return known[key]

    first: set[PeerId] = set()
    places = []
    for seat in council.seats():
        line = [
            (-fitness(each, seat), each.running_roles, _spread(council.id, each.claimant, seat.role_name), each)
            for each in everybody
            if seat.is_open and fitness(each, seat) >= MIN_FIT
        ]
        line.sort(key=lambda each: each[:3])
        ahead = next((each[3] for each in line if each[3].claimant.peer not in first), None)
        if ahead is me:
            return Turn(FIRST_SECONDS * rng.random(), seat.role_name)
        if ahead is not None:
            first.add(ahead.claimant.peer)
        places += [place for place, each in enumerate(line) if each[3] is me]
    if not places:
        return None
    second = OTHERS_SECONDS + (MOST_SECONDS - OTHERS_SECONDS) * rng.random()
    return Turn(second + RELAY_SECONDS * min(max(min(places) - 1, 0), LINE))


def fits(council: Council, capabilities: Collection[str]) -> float:
    """The agent's best fit for an open role of the council; 0 when there is none for it."""
    return max((fit(capabilities, seat) for seat in council.seats() if seat.is_open), default=0.0)


def choose_role(
    council: Council,
    me: Claimant,
    capabilities: Collection[str],
    running_roles: int,
    now_ns: int,
    *,
    now: float = 0.0,
    is_gone: Callable[[PeerId], bool] = lambda _: False,
    first_for: str = "",
) -> Seat | None:
    """The open role that an agent should claim now; None when it should not.

    It claims one at a time, and none while it holds a role there. Only a role that nobody else claims does it ask for
    besides: a council of few agents forms too. What it gave back it does not ask for again.

    Args:
        now: monotonic seconds, as in `Stamp.seen_at`.
        is_gone: is a node dead, or did it leave? Claims behind it do not count: it can't take the role.
        first_for: the role that it stands first in line for (`Turn.role_name`), and takes before others.
    """
    seats = council.seats()
    sitting = {holder_of(seat) for seat in seats if not seat.is_open}
    sits = me in sitting
    mine = {seat.role_name for seat in seats if any(each.claimant == me for each in council.claims(seat.role_name))}
    waits = any(seat.is_open and seat.role_name in mine for seat in seats)
    found = []
    for seat in seats:
        fitness = fit(capabilities, seat)
        if not seat.is_open or seat.role_name in mine or fitness < MIN_FIT or council.gave_back(me, seat.role_name):
            continue
        others = [
            each
            for each in council.claims(seat.role_name)
            if not is_gone(each.claimant.peer) and now < each.seen_at + STALE_SECONDS
        ]
        own = Claim.model_construct(capabilities=list(capabilities), running_roles=running_roles)
        ours = rank(StandingClaim(me, own, 0, now_ns, 0.0), seat)
        free = [each for each in others if each.claimant not in sitting]
        better = sum(rank(each, seat) < ours for each in free)
        alike = sum(fit(each.claim.capabilities, seat) >= fitness for each in free)
        if better >= ENOUGH_BETTER or alike >= ENOUGH or ((sits or waits) and others):
            continue
        found.append(
            (
                seat.role_name != first_for,
                not seat.required,
                -fitness,
                len(others),
                _spread(council.id, me, seat.role_name),
                seat,
            )
        )
    return min(found, key=lambda each: each[:-1])[-1] if found else None


def _spread(council_id: str, me: Claimant, role_name: str) -> bytes:
    """An order of roles that differs from agent to agent."""
    return hashlib.sha256(f"{council_id}\0{me.peer}\0{me.agent_id}\0{role_name}".encode()).digest()
