"""Councils of a fleet in virtual time: formed, kept through deaths and releases, ended; two owners at once."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.core.council.claiming import STALE_SECONDS
from p2pnode.core.council.deciding import ACCEPT_SECONDS
from p2pnode.core.council.documents import Status
from tests.core.council.fleet import Fleet
from tests.core.council.kit import START_NS, peer, snapshot
from tests.properties import some

ROLES = ["tpm", "architect", "developer", "tester"]
OPTIONAL = ["security", "writer"]
seeds = st.integers(0, 2**32)
few = settings(some, max_examples=max(1, some.max_examples // 4))


def deadline(seconds: int) -> str:
    return datetime.fromtimestamp(START_NS // 10**9 + seconds, UTC).isoformat()


def formed(seed: int, agents: int = 10, **members: object) -> Fleet:
    fleet = Fleet(seed, [[]] * agents)
    fleet.announce(ROLES, optional_roles=OPTIONAL, **members)
    fleet.run(4)
    assert fleet.status() is Status.ACTIVE
    return fleet


@few
@given(seeds, st.integers(4, 16))
def test_with_enough_agents_a_council_is_active_soon_and_everybody_knows_who_does_what(seed: int, agents: int) -> None:
    fleet = formed(seed, agents)
    holders = fleet.holders()
    assert all(holders[role] for role in ROLES)
    assert len({holders[role] for role in ROLES}) == 4
    assert len({repr(snapshot(council)) for council in fleet.councils}) == 1


@few
@given(seeds, st.integers(1, 3))
def test_few_agents_take_several_roles_each(seed: int, agents: int) -> None:
    fleet = Fleet(seed, [[]] * agents)
    fleet.announce(ROLES, optional_roles=OPTIONAL)
    fleet.run(20)
    assert fleet.status() is Status.ACTIVE
    assert all(fleet.holders().values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capable", [False, True], ids=["all fit alike", "each names some roles"])
def test_thirty_four_agents_do_not_all_shout(seed: int, capable: bool) -> None:
    names = [*ROLES, *OPTIONAL]
    fleet = Fleet(seed, [[names[each % 6], names[(each + 1) % 6]] if capable else [] for each in range(34)])
    fleet.announce(ROLES, optional_roles=OPTIONAL)
    fleet.run(1)
    assert all(fleet.holders().values())
    first = fleet.claims
    fleet.run(60)
    published = fleet["whoosh"].published
    print(f"seed {seed}: {first} claims until formed, {fleet.claims} after a minute, {published} decisions")
    assert fleet.claims == first
    assert first < 34
    assert published < 10


@pytest.mark.parametrize("seed", range(20))
def test_when_all_claim_the_same_role_at_once_one_gets_it_and_all_agree(seed: int) -> None:
    fleet = Fleet(seed, [[]] * 12)
    for node in fleet.nodes.values():
        node.claims_by_itself = False
    fleet.announce(["tpm"])
    fleet.run(1)
    for node in fleet.nodes.values():
        fleet.at(fleet.now + fleet.rng.random() * 0.05, partial(node.claim, "tpm"))
    fleet.run(1)
    assert fleet.holders()["tpm"]
    assert sum(node.works_as == ["tpm"] for node in fleet.nodes.values()) == 1


@few
@given(seeds, st.data())
def test_dead_holders_are_replaced_and_who_comes_back_yields(seed: int, data: st.DataObject) -> None:
    fleet = formed(seed)
    roles = data.draw(st.lists(st.sampled_from(ROLES), min_size=1, max_size=3, unique=True))
    before = fleet.holders()
    for role in roles:
        fleet.kill(fleet[before[role]])
    fleet.run(6)
    after = fleet.holders()
    assert all(after[role] and after[role] != before[role] for role in roles)
    for role in roles:
        fleet.restart(fleet[before[role]])
    fleet.run(6)
    assert {role: fleet.holders()[role] for role in roles} == {role: after[role] for role in roles}
    assert len({repr(snapshot(council)) for council in fleet.councils}) == 1
    for council in fleet.councils:
        assert all(not seat.is_open for seat in council.seats())


@few
@given(seeds, st.lists(st.sampled_from(["kill", "release", "restart", "wait", "claim"]), max_size=12))
def test_through_any_troubles_the_core_roles_are_filled_again(seed: int, troubles: list[str]) -> None:
    fleet = formed(seed, 14)
    agents = [node for node in fleet.nodes.values() if not node.orchestrates]
    down: list[object] = []
    for trouble in troubles:
        holding = [node for node in agents if node.works_as]
        if trouble == "kill" and holding and len(down) < 5:
            fleet.kill(node := fleet.rng.choice(holding))
            down.append(node)
        elif trouble == "restart" and down:
            fleet.restart(fleet[down.pop().name])  # type: ignore[attr-defined]
        elif trouble == "release" and holding:
            node = fleet.rng.choice(holding)
            node.release(node.works_as[0])
        elif trouble == "claim":
            fleet.rng.choice([each for each in agents if each.alive]).claim(fleet.rng.choice(ROLES))
        fleet.run(fleet.rng.choice([0.0, 0.01, 0.5, 3.0]))
    fleet.run(60)
    assert fleet.status() is Status.ACTIVE
    holders = fleet.holders()
    alive = {node.name for node in agents if node.alive}
    assert {holders[role] for role in ROLES} <= alive
    published = fleet["whoosh"].published
    fleet.run(60)
    assert fleet["whoosh"].published == published, "it goes on publishing though nothing changes"


@few
@given(seeds, st.integers(1, 6))
def test_agents_that_do_not_accept_hold_up_a_council_only_for_a_while(seed: int, mute: int) -> None:
    fleet = Fleet(seed, [["tpm"]] * mute + [[]] * 4)
    for each in range(mute):
        fleet[f"agent-{each}"].mute = True
    fleet.announce(["tpm"])
    fleet.run((mute + 1) * (ACCEPT_SECONDS + STALE_SECONDS))
    assert fleet.status() is Status.ACTIVE
    assert not fleet[fleet.holders()["tpm"]].mute


@few
@given(seeds, st.lists(st.sampled_from(["kill", "restart", "kill agent"]), max_size=8))
def test_whatever_becomes_of_the_owners_in_the_end_one_decides_and_the_council_is_active(
    seed: int, troubles: list[str]
) -> None:
    fleet = Fleet(seed, [[]] * 10, ("whoosh", "second", "third"))
    fleet.announce(ROLES)
    owners = [fleet[name] for name in ("whoosh", "second", "third")]
    fleet.run(fleet.rng.choice([0.05, 0.2, 3.0]))
    for trouble in troubles:
        up, down = [each for each in owners if each.alive], [each for each in owners if not each.alive]
        agents = [each for each in fleet.nodes.values() if each.works_as]
        if trouble == "kill" and up:
            fleet.kill(fleet.rng.choice(up))
        elif trouble == "restart" and down:
            fleet.restart(fleet.rng.choice(down))
        elif agents and sum(not each.alive for each in fleet.nodes.values()) < 7:
            fleet.kill(fleet.rng.choice(agents))
        fleet.run(fleet.rng.choice([0.1, 1.5, 5.0]))
    if not any(each.alive for each in owners):
        fleet.restart(fleet["second"])
    fleet.run(45)
    assert fleet.status() is Status.ACTIVE
    assert len({council.authority for council in fleet.councils}) == 1
    assert {fleet.holders()[role] for role in ROLES} <= {each.name for each in fleet.nodes.values() if each.alive}


@few
@given(seeds)
def test_when_all_who_claimed_a_role_are_dead_the_others_claim_it(seed: int) -> None:
    fleet = formed(seed, 12)
    council = fleet["whoosh"].council
    assert council is not None
    for node in [fleet.nodes[each.claimant.peer] for each in council.claims("tpm")]:
        fleet.kill(node)
    fleet.run(10)
    assert all(fleet.holders()[role] for role in ROLES)


@few
@given(seeds)
def test_what_nobody_can_do_is_named_when_the_deadline_has_passed(seed: int) -> None:
    fleet = Fleet(seed, [[]] * 6)
    fleet.announce([*ROLES, {"role_name": "wizard", "required_skills": ["magic"]}], formation_deadline=deadline(5))
    fleet.run(4)
    assert fleet.status() is Status.FORMING
    fleet.run(2)
    assert fleet.status() is Status.EXPIRED
    for council in fleet.councils:
        assert council.decision is not None
        assert council.decision.update.message == "not filled by the deadline: wizard"


@few
@given(seeds, st.booleans())
def test_a_request_to_cancel_ends_it_for_all(seed: int, early: bool) -> None:
    fleet = Fleet(seed, [[]] * 8, ("whoosh", "boss"))
    fleet.announce(ROLES)
    fleet.run(0.1 if early else 4)
    fleet["boss"].report("cancelled")
    fleet["agent-3"].report("failed")
    fleet.run(4)
    assert fleet.status() is Status.CANCELLED


@few
@given(seeds)
def test_when_all_members_have_completed_the_council_has(seed: int) -> None:
    fleet = formed(seed)
    for role in ROLES:
        assert fleet.status() is Status.ACTIVE
        fleet[fleet.holders()[role]].report("completed", role)
        fleet.run(1)
    assert fleet.status() is Status.COMPLETED


@few
@given(seeds, st.floats(0, 0.4))
def test_an_owner_killed_while_the_council_forms_goes_on_when_it_is_back(seed: int, when: float) -> None:
    fleet = Fleet(seed, [[]] * 8)
    fleet.announce(ROLES)
    fleet.run(when)
    fleet.kill(fleet["whoosh"])
    fleet.run(20)
    fleet.restart(fleet["whoosh"])
    fleet.run(10)
    assert fleet.status() is Status.ACTIVE
    print(f"{fleet.claims} claims with the owner away for 20 s")


@few
@given(seeds, st.floats(0.05, 3))
def test_another_orchestrator_takes_over_keeps_the_holders_and_the_first_one_yields(seed: int, when: float) -> None:
    fleet = Fleet(seed, [[]] * 8, ("whoosh", "second", "third"))
    fleet.announce(ROLES)
    fleet.run(when)
    fleet.kill(fleet["whoosh"])
    before = {node.name: node.works_as for node in fleet.nodes.values() if node.works_as}
    fleet.run(10)
    assert fleet.status() is Status.ACTIVE
    holders = fleet.holders()
    assert all(holders[role] == name for name, roles in before.items() for role in roles)
    fleet.restart(fleet["whoosh"])
    fleet.run(10)
    assert fleet.holders() == holders
    (authority,) = {council.authority for council in fleet.councils}
    assert authority is not None
    assert (authority.term, authority.peer) == (2, peer("third"))


@few
@given(seeds, st.floats(0.0, 1.0), st.sets(st.integers(0, 11), max_size=12))
def test_after_a_partition_all_agree_on_the_higher_owner_and_one_holder_for_each_role(
    seed: int, when: float, apart: set[int]
) -> None:
    fleet = Fleet(seed, [[]] * 12, ("whoosh", "second"))
    fleet.announce(ROLES)
    fleet.run(when)
    fleet.cut(["second", *(f"agent-{each}" for each in apart)])
    fleet.run(40)
    fleet.heal()
    fleet.run(5)
    for node in fleet.nodes.values():
        assert node.council is not None
        working = [role for other in fleet.nodes.values() for role in other.works_as]
        assert sorted(working) == sorted(set(working))
    assert fleet.status() is Status.ACTIVE
    assert all(fleet.holders()[role] for role in ROLES)
    authorities = {council.authority for council in fleet.councils}
    assert len(authorities) == 1
    assert len({repr(snapshot(council)) for council in fleet.councils}) == 1


@pytest.mark.parametrize(
    ("asked", "ends"),
    [("cancelled", Status.CANCELLED), ("failed", Status.FAILED), ("completed", Status.COMPLETED)],
)
def test_what_the_lower_owner_ended_in_a_partition_the_higher_one_ends_too(asked: str, ends: Status) -> None:
    fleet = Fleet(1, [[]] * 12, ("whoosh", "second"))
    fleet.announce(ROLES)
    fleet.run(4)
    fleet.cut(["second", *(f"agent-{each}" for each in range(6))])
    fleet.run(30)
    (first, second) = fleet["whoosh"].council, fleet["second"].council
    assert first is not None
    assert second is not None
    assert first.authority != second.authority
    fleet["whoosh"].report(asked)
    fleet.run(5)
    assert (first.status, second.status) == (ends, Status.ACTIVE)
    fleet.heal()
    fleet.run(5)
    assert fleet.status() is ends
    (authority,) = {council.authority for council in fleet.councils}
    assert authority is not None
    assert authority.term == 2


def test_a_lower_owners_missed_deadline_does_not_end_what_is_active_elsewhere() -> None:
    fleet = Fleet(1, [[]] * 8, ("whoosh", "second"))
    fleet.announce(ROLES, formation_deadline=deadline(30))
    fleet.run(0.02)
    fleet.cut(["second", *(f"agent-{each}" for each in range(8))])
    fleet.run(40)
    first, second = fleet["whoosh"].council, fleet["second"].council
    assert first is not None
    assert second is not None
    assert (first.status, second.status) == (Status.EXPIRED, Status.ACTIVE)
    fleet.heal()
    fleet.run(5)
    assert fleet.status() is Status.ACTIVE
