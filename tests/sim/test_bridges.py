"""Meshes that cannot reach each other and know each other by bridges, in virtual time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from p2pnode.core.membership.record import GONE, MemberState
from p2pnode.testing.bridges import SILENT_SECONDS, TELL_SECONDS, BridgedFleet
from p2pnode.testing.fleet import SimNode, count_parts

SEEDS = (1, 2, 3)
SIZES = [(5, 5), (30, 20), (8, 6, 5)]


def known(fleet: BridgedFleet, seconds: float) -> None:
    """Let time pass until all know the truth of all."""
    assert fleet.settle(seconds) is not None, f"not after {seconds:g} s: (who, of whom, state) {fleet.wrong()[:8]}"


def states(of: Iterable[SimNode], at: Iterable[SimNode]) -> set[MemberState | None]:
    asked = [each for each in at if each.up]
    return {node.state(each.id) for node in asked for each in of if each.up}


def all_gone(fleet: BridgedFleet) -> None:
    for one, other in ((0, 1), (1, 0)):
        assert states(fleet.on_side(one), fleet.on_side(other)) <= GONE


def accusations(fleet: BridgedFleet) -> int:
    return fleet.traffic["accusations"]


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    print(f"seed {request.param}")
    assert isinstance(request.param, int)
    return request.param


@pytest.mark.parametrize("sizes", SIZES)
def test_all_list_all_and_in_five_minutes_nobody_is_accused_or_dialled_across(
    sizes: tuple[int, ...], seed: int
) -> None:
    fleet = BridgedFleet(seed, sizes)
    known(fleet, 5)
    dials = fleet.traffic["dials across"]
    while fleet.now < 300:
        fleet.run_until(fleet.now + 1)
        assert fleet.wrong() == []
    assert accusations(fleet) == 0
    assert (fleet.traffic["dials across"] - dials, fleet.traffic["probes across"]) == (0, 0)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_death_on_one_side_is_known_on_the_other(sizes: tuple[int, ...], seed: int) -> None:
    fleet = BridgedFleet(seed, sizes)
    known(fleet, 5)
    fleet.run_until(60)
    victim = fleet.on_side(1)[2]
    fleet.kill(victim)
    known(fleet, 10)
    assert states([victim], fleet.on_side(0)) == set(), "it is down itself"
    assert all(node.state(victim.id) is MemberState.DEAD for node in fleet.nodes if node.up)


@pytest.mark.parametrize("sizes", SIZES)
def test_while_the_broker_is_away_the_others_are_dead_and_then_all_answer(sizes: tuple[int, ...], seed: int) -> None:
    fleet = BridgedFleet(seed, sizes)
    known(fleet, 5)
    fleet.online(False)
    fleet.run_until(fleet.now + 240)
    all_gone(fleet)
    fleet.online(True)
    known(fleet, TELL_SECONDS + 5)
    accused = accusations(fleet)
    assert accused > 0
    fleet.run_until(fleet.now + 120)
    assert (fleet.wrong(), accusations(fleet)) == ([], accused)


def test_a_broker_that_is_away_for_less_than_bridges_wait_is_not_noticed(seed: int) -> None:
    fleet = BridgedFleet(seed, (6, 5))
    known(fleet, 5)
    fleet.run_until(60)
    for is_online in (False, True):
        fleet.online(is_online)
        fleet.run_until(fleet.now + SILENT_SECONDS - TELL_SECONDS - 1)
    assert (fleet.wrong(), accusations(fleet)) == ([], 0)


def test_a_dead_bridge_is_replaced_by_another_that_knows_only_what_its_mesh_does(seed: int) -> None:
    fleet = BridgedFleet(seed, (6, 5))
    known(fleet, 5)
    fleet.kill(fleet.bridges[0].node)
    fleet.run_until(fleet.now + 240)
    all_gone(fleet)
    fleet.join(0, bridges=True)
    known(fleet, TELL_SECONDS + 5)
    accused = accusations(fleet)
    fleet.run_until(fleet.now + 120)
    assert (fleet.wrong(), accusations(fleet)) == ([], accused)


def test_one_of_two_bridges_of_a_mesh_may_die(seed: int) -> None:
    fleet = BridgedFleet(seed, (6, 5))
    known(fleet, 5)
    fleet.join(1, bridges=True)
    known(fleet, 5)
    fleet.run_until(fleet.now + 30)
    victim = fleet.bridges[1].node
    fleet.kill(victim)
    known(fleet, 10)
    fleet.run_until(fleet.now + 120)
    assert fleet.wrong() == []
    assert all(node.state(victim.id) is MemberState.DEAD for node in fleet.nodes if node.up)
    assert accusations(fleet) <= 5, "by its four neighbours and the other bridge"


def test_who_joins_later_gets_its_links_on_its_own_side(seed: int) -> None:
    fleet = BridgedFleet(seed, (12, 9))
    known(fleet, 5)
    node = fleet.join(0)
    known(fleet, 5)
    fleet.run_until(fleet.now + 30)
    assert len(node.links) >= 6
    assert accusations(fleet) == 0


def test_lossy_links_kill_nobody_across_bridges(seed: int) -> None:
    fleet = BridgedFleet(seed, (12, 9), loss=0.05)
    known(fleet, 10)
    fleet.run_until(300)
    assert fleet.wrong() == []


def test_meshes_that_can_reach_each_other_again_become_one(seed: int) -> None:
    fleet = BridgedFleet(seed, (5, 4))
    known(fleet, 5)
    fleet.run_until(60)
    fleet.heal()
    fleet.run_until(fleet.now + 120)
    assert (fleet.wrong(), accusations(fleet), count_parts(fleet)) == ([], 0, 1)
