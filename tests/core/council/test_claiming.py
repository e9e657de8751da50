"""Which role an agent claims by itself, and when."""

from __future__ import annotations

from random import Random

import pytest

from p2pnode.core.council.claiming import (
    FIRST_SECONDS,
    LINE,
    MOST_SECONDS,
    OTHERS_SECONDS,
    RELAY_SECONDS,
    STALE_SECONDS,
    Rival,
    Turn,
    choose_role,
    fits,
    turn,
)
from p2pnode.core.council.claims import Claimant
from p2pnode.core.council.council import Stamp
from p2pnode.core.council.deciding import WINDOW_SECONDS
from tests.core.council.kit import OWNER, START_NS, Desk, claim, held, peer, update

ME = Claimant(peer("me"), "me")


def choice(desk: Desk, *capabilities: str, gone: tuple[str, ...] = (), running: int = 0) -> str | None:
    seat = choose_role(
        desk.council, ME, capabilities, running, START_NS + int(desk.now * 1e9) + 10**6,
        now=desk.now, is_gone=lambda who: who in {peer(each) for each in gone},
    )  # fmt: skip
    return seat.role_name if seat is not None else None


def rival(name: object, *capabilities: str, running: int = 0) -> Rival:
    return Rival(Claimant(peer(name), "a"), capabilities, running)


def turns(desk: Desk, everybody: list[Rival]) -> list[Turn]:
    found = [turn(desk.council, each, everybody, Random(1)) for each in everybody]
    return [each for each in found if each is not None]


def test_who_fits_best_and_has_least_to_do_claims_at_once_and_the_others_later() -> None:
    everybody = [rival("busy", "tpm", running=1), rival("free", "tpm"), *(rival(each) for each in range(50))]
    busy, free, *others = turns(Desk(), everybody)
    assert free.role_name == "tpm"
    assert free.seconds <= FIRST_SECONDS
    assert OTHERS_SECONDS <= busy.seconds <= min(each.seconds for each in others)
    assert all(each.seconds <= MOST_SECONDS + LINE * RELAY_SECONDS and not each.role_name for each in others)


def test_every_role_is_claimed_at_once_by_an_agent_of_its_own() -> None:
    found = turns(Desk(["x", "y", "z"]), [rival(each) for each in range(30)])
    assert sorted(each.role_name for each in found if each.role_name) == ["x", "y", "z"]


def test_every_node_finds_the_same_line_in_whatever_order_it_knows_the_others() -> None:
    desk, everybody = Desk(["x", "y", "z"]), [rival(each) for each in range(12)]
    for each in everybody:
        one, other = (
            turn(desk.council, each, everybody, Random(1)),
            turn(desk.council, each, everybody[::-1], Random(1)),
        )
        assert one == other


def test_who_fits_no_open_role_has_no_turn() -> None:
    desk = Desk([{"role_name": "x", "required_skills": ["magic"]}])
    assert turn(desk.council, rival("a"), [], Random(1)) is None
    alone = turn(desk.council, rival("a", "magic"), [], Random(1))
    assert alone is not None
    assert alone.role_name == "x"


def test_the_best_fitting_core_role_is_claimed_first() -> None:
    desk = Desk(["x", "y"], optional_roles=["z"])
    assert choice(desk, "y") == "y"
    assert choice(desk, "z") in ("x", "y")
    assert fits(desk.council, ["z"]) == 1.0


def test_a_role_that_asks_for_skills_is_not_claimed_with_less_than_half_of_them() -> None:
    desk = Desk([{"role_name": "x", "required_skills": ["a", "b", "c"]}])
    assert choice(desk, "a") is None
    assert choice(desk, "a", "b") == "x"
    assert fits(desk.council, ["nothing"]) == 0


def test_agents_spread_over_roles_that_fit_them_alike() -> None:
    desk = Desk(["x", "y", "z"])
    chosen = set()
    for each in range(40):
        seat = choose_role(desk.council, Claimant(peer(each), "a"), [], 0, START_NS)
        assert seat is not None
        chosen.add(seat.role_name)
    assert chosen == {"x", "y", "z"}


def test_a_claim_is_withheld_when_a_better_one_is_known() -> None:
    desk = Desk()
    assert choice(desk) == "tpm"
    desk.says("a")
    assert choice(desk) is None
    assert choice(desk, "tpm") == "tpm", "ours is better"


def test_a_claim_is_withheld_when_the_owner_has_choice_enough_of_equals() -> None:
    desk = Desk()
    for agent in ("a", "b", "c"):
        desk.says(agent, running_roles=5)
    assert choice(desk) is None, "earlier, but no better fit"
    assert choice(desk, "tpm") == "tpm"


@pytest.mark.parametrize("why", ["dead", "sitting", "stale"])
def test_claims_that_cannot_or_did_not_get_the_role_hold_nobody_back(why: str) -> None:
    desk = Desk(["x", "y", "z"])
    for agent in ("a", "b"):
        desk.says(agent, "x")
    for agent, role in (("a", "y"), ("b", "z")):
        desk.says(agent, role)
    others = ("y", "z")
    for agent in ("c", "d"):
        for role in others:
            desk.says(agent, role)
    assert choice(desk) is None
    if why == "dead":
        assert choice(desk, gone=("a", "b")) == "x"
    elif why == "stale":
        desk.now += STALE_SECONDS
        assert choice(desk) is not None
    else:
        seats = [{"role_name": "x", "required": True}, held("y", "a"), held("z", "b")]
        desk.council.take_decision(update(term=1, n=1, roles=seats), desk.stamp(OWNER))
        assert choice(desk) == "x"


def test_who_holds_a_role_claims_another_only_when_nobody_else_does() -> None:
    desk = Desk(["x", "y", "z"])
    desk.says("me", "x")
    desk.decide(WINDOW_SECONDS * 2)
    desk.says("other", "y")
    assert desk.holder("x") == "me"
    assert choice(desk, "y") == "z"
    desk.says("other", "z")
    assert choice(desk, "y") is None
    assert choice(desk, "y", gone=("other",)) == "y"


def test_who_waits_for_a_role_claims_another_only_when_nobody_else_does() -> None:
    desk = Desk(["x", "y"])
    desk.says("me", "x")
    assert choice(desk) == "y"
    desk.says("other", "y")
    assert choice(desk) is None


def test_what_it_claims_or_gave_back_is_not_claimed_again() -> None:
    desk = Desk()
    desk.says("me")
    assert choice(desk) is None
    desk.says("me", kind="release")
    assert choice(desk) is None


def test_the_claims_of_a_role_are_ranked_as_its_owner_ranks_them() -> None:
    desk = Desk()
    for agent in ("a", "b"):
        desk.council.take_claim(claim(agent=agent, running_roles=3), Stamp(peer(agent), 1, START_NS, 0.0))
    assert choice(desk, running=2) == "tpm"
    assert choice(desk, running=3) is None
