"""One council: whoever saw the same documents has the same, in whatever order they came."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.council.claims import Claimant
from p2pnode.core.council.council import MAX_CLAIMANTS, MAX_FENCES, MAX_OF_PEER, MAX_REPORTS, Authority, Council, Stamp
from p2pnode.core.council.documents import Status, to_json
from tests.core.council.kit import COUNCIL, START_NS, claim, held, opportunity, peer, snapshot, update
from tests.properties import many

Telling = Callable[[Council], bool]


def at(who: object, number: int = 1, at_ns: int | None = None) -> Stamp:
    return Stamp(peer(who), number, START_NS + number if at_ns is None else at_ns)


def told(*tellings: Telling) -> Council:
    council = Council(COUNCIL)
    for telling in tellings:
        telling(council)
    return council


def opens(who: object, number: int = 1, core: tuple[object, ...] = ("tpm",), **stamped: Any) -> Telling:
    return lambda council: council.take_opportunity(opportunity(core), at(who, number, **stamped))


def decides(
    who: object, number: int, term: int, n: int, *roles: object, status: str = "forming", **more: Any
) -> Telling:
    said = update(status, term=term, n=n, roles=list(roles), **more)
    return lambda council: council.take_decision(said, at(who, number))


def says(who: str, number: int, kind: str = "claim", term: int = 0, n: int = 0, role: str = "tpm") -> Telling:
    said = claim(role, who, kind=kind, term=term, n=n, reason=f"{who} {number}")
    return lambda council: council.take_claim(said, at(who, number))


def reports(who: object, number: int, status: str, *, trusted: bool = False, **more: Any) -> Telling:
    return lambda council: council.take_report(update(status, **more), at(who, number), trusted=trusted)


# -- opportunity, authority ------------------------------------------------------------


def test_a_council_of_which_nothing_is_known_has_neither_owner_nor_seats() -> None:
    council = told()
    assert (council.authority, council.seats(), council.deadline_ns) == (None, [], 0)
    assert council.status is Status.FORMING


def test_the_earliest_opportunity_stands_and_its_origin_decides() -> None:
    council = told(opens("late", 2, ("late",)), opens("early", 1, ("early",)))
    assert [seat.role_name for seat in council.seats()] == ["early"]
    assert council.authority == Authority(1, peer("early"))


def test_of_opportunities_without_signed_time_all_nodes_keep_the_same() -> None:
    first, second = opens("x", 5, ("a",), at_ns=9), opens("y", 3, ("b",), at_ns=9)
    assert snapshot(told(first, second)) == snapshot(told(second, first))


@pytest.mark.parametrize("high", [("a", 3, 2, 1), ("b", 3, 1, 9), ("a", 3, 1, 6), ("a", 4, 1, 5)])
def test_the_decision_of_the_highest_term_then_peer_then_n_then_seqno_stands(high: tuple[str, int, int, int]) -> None:
    low = decides("a", 3, 1, 5, held("tpm", "x"))
    over = decides(*high, held("tpm", "y"))
    for council in (told(opens("a"), low, over), told(opens("a"), over, low)):
        assert [seat.agent_id for seat in council.seats()] == ["y"]


def test_a_decision_brings_the_opportunity_to_whom_it_did_not_reach() -> None:
    council = told(decides("a", 1, 1, 1, opportunity=to_json(opportunity(["told"]))))
    assert council.opportunity is not None
    assert [seat.role_name for seat in council.seats()] == ["told"]
    opens("a", 2, ("direct",))(council)
    assert [seat.role_name for seat in council.seats()] == ["direct"]


@pytest.mark.parametrize(
    "document",
    [{}, {"council_id": COUNCIL}, to_json(opportunity()) | {"council_id": "6b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e11"}],
)
def test_a_decision_with_a_wrong_opportunity_still_counts_but_brings_none(document: dict[str, Any]) -> None:
    council = told(decides("a", 1, 1, 1, held("tpm", "x"), opportunity=document))
    assert council.opportunity is None
    assert [seat.agent_id for seat in council.seats()] == ["x"]


def test_the_first_owners_electorate_is_kept() -> None:
    first, second = decides("a", 1, 1, 1, electorate="AAAA"), decides("b", 1, 2, 1, electorate="BBBB")
    again = decides("a", 5, 1, 3, electorate="CCCC")
    for order in ((first, second, again), (again, second, first), (second, again, first)):
        assert told(*order).electorate == "AAAA"


def test_a_decision_without_roles_leaves_those_of_the_opportunity() -> None:
    council = told(opens("a", 1, ("x", "y")), decides("a", 2, 1, 1, status="cancelled"))
    assert [seat.role_name for seat in council.seats()] == ["x", "y"]
    assert council.has_ended


# -- seats -----------------------------------------------------------------------------


def test_roles_of_the_same_name_are_numbered_apart() -> None:
    long = "n" * 256
    council = told(opens("a", 1, ("dev", "dev#2", "dev", "dev", long, long)))
    names = [seat.role_name for seat in council.seats()]
    assert names[:4] == ["dev", "dev#2", "dev#3", "dev#4"]
    assert len(set(names)) == 6
    assert all(len(name) <= 256 for name in names)


def test_core_roles_are_required_and_optional_ones_are_not() -> None:
    council = Council(COUNCIL)
    council.take_opportunity(opportunity([{"role_name": "x", "required": False}], optional_roles=["y"]), at("a"))
    assert [(seat.role_name, seat.required) for seat in council.seats()] == [("x", True), ("y", False)]


def test_only_the_acceptance_of_this_very_assignment_counts() -> None:
    council = told(opens("o"), decides("o", 2, 1, 4, held("tpm", "a", 1, 4)))
    for word in (says("a", 1, "accept", 1, 3), says("a", 2, "accept", 2, 4), says("b", 1, "accept", 1, 4)):
        word(council)
        assert council.seats()[0].state == "assigned"
    says("a", 3, "accept", 1, 4)(council)
    assert council.seats()[0].state == "accepted"


def test_an_acceptance_may_come_before_its_assignment() -> None:
    council = told(says("a", 3, "accept", 1, 4), opens("o"), decides("o", 2, 1, 4, held("tpm", "a", 1, 4)))
    assert council.seats()[0].state == "accepted"


def test_who_reads_the_seats_cannot_change_the_council() -> None:
    council = told(opens("o", 1, ("x", "y")))
    council.seats().clear()
    assert len(council.seats()) == 2


# -- claims and releases ---------------------------------------------------------------


def standing(council: Council) -> list[str]:
    return [each.claimant.agent_id for each in council.claims("tpm")]


def test_a_release_ends_a_claim_until_a_later_claim() -> None:
    council = told(says("a", 1), says("b", 1), says("a", 2, "release"))
    assert standing(council) == ["b"]
    assert council.gave_back(Claimant(peer("a"), "a"), "tpm")
    says("a", 3)(council)
    assert standing(council) == ["a", "b"]
    assert not council.gave_back(Claimant(peer("a"), "a"), "tpm")
    assert council.claimed_by(Claimant(peer("a"), "a")) == ["tpm"]


def test_an_acceptance_after_a_release_does_not_bring_the_claim_back() -> None:
    assert standing(told(says("a", 1), says("a", 2, "release", 1, 1), says("a", 3, "accept", 1, 2))) == []


def test_a_released_assignment_stays_released_when_the_agent_claims_or_accepts_again() -> None:
    council = told(opens("o"), says("a", 1), decides("o", 2, 1, 1, held("tpm", "a")), says("a", 2, "release", 1, 1))
    for word in (says("a", 3), says("a", 4, "accept", 1, 1)):
        word(council)
        assert council.is_released(council.seats()[0]) is not None
    decides("o", 3, 1, 2, held("tpm", "a", 1, 2))(council)
    assert council.is_released(council.seats()[0]) is None


def test_a_claim_taken_back_before_its_assignment_was_known_gives_the_assignment_back() -> None:
    council = told(opens("o"), says("a", 1), says("a", 2, "release"), decides("o", 2, 1, 1, held("tpm", "a")))
    assert council.is_released(council.seats()[0]) is not None
    says("a", 3, "accept", 1, 1)(council)
    assert council.is_released(council.seats()[0]) is None


def test_a_release_of_an_earlier_assignment_leaves_the_later_one() -> None:
    council = told(
        opens("o"), says("a", 1), decides("o", 2, 1, 2, held("tpm", "a", 1, 2)), says("a", 2, "release", 1, 1)
    )
    assert council.is_released(council.seats()[0]) is None


# -- order, duplicates, lateness -------------------------------------------------------

owners = st.sampled_from(["o", "p", "q"])
agents = st.sampled_from(["a", "b", "c"])
small = st.integers(1, 3)
roles = st.lists(
    st.builds(held, st.sampled_from(["tpm", "architect"]), agents, small, small),
    max_size=2,
    unique_by=lambda seat: str(seat["role_name"]),
)
statuses = st.sampled_from([str(each) for each in Status])
tellings = st.one_of(
    st.builds(
        lambda who, core: (who, lambda number: opens(who, number, core)),
        owners,
        st.sampled_from([("tpm",), ("tpm", "architect"), ("tester", "tester")]),
    ),
    st.builds(
        lambda who, term, n, seats, status, electorate, brings: (
            who,
            lambda number: decides(
                who, number, term, n, *seats, status=status, electorate=electorate,
                opportunity=to_json(opportunity([brings])) if brings else None,
            ),
        ),
        owners, small, small, roles, statuses, st.sampled_from(["", "AAAA", "BBBB"]), st.sampled_from(["", "tpm", "x"]),
    ),
    st.builds(
        lambda who, kind, term, n: (who, lambda number: says(who, number, kind, term, n)),
        agents, st.sampled_from(["claim", "accept", "release"]), st.integers(0, 3), small,
    ),
    st.builds(
        lambda who, status, role, trusted: (
            who, lambda number: reports(who, number, status, trusted=trusted, role_name=role)
        ),
        agents | owners, statuses, st.sampled_from(["", "tpm"]), st.booleans(),
    ),
)  # fmt: skip


@st.composite
def heard(draw: st.DrawFn) -> tuple[list[Telling], list[Telling]]:
    """Documents, each with the next seqno of its origin as in life, and the same with duplicates in another order."""
    numbers: dict[str, int] = {}
    said: list[Telling] = []
    for who, telling in draw(st.lists(tellings, min_size=1, max_size=14)):
        numbers[who] = numbers.get(who, 0) + 1
        said.append(telling(numbers[who]))
    duplicates = draw(st.lists(st.sampled_from(said), max_size=5))
    return said, draw(st.permutations(said + duplicates))


@many
@given(heard())
def test_the_same_documents_in_any_order_with_duplicates_make_the_same_council(
    stories: tuple[list[Telling], list[Telling]],
) -> None:
    first, second = told(*stories[0]), told(*stories[1])
    assert snapshot(first) == snapshot(second)
    names = [seat.role_name for seat in first.seats()]
    assert len(names) == len(set(names)), "a role has two holders"
    version = first.version
    assert not any(telling(first) for telling in stories[1]), "heard before, and yet it changed something"
    assert first.version == version


@many
@given(heard())
def test_what_is_said_to_change_nothing_changes_nothing(stories: tuple[list[Telling], list[Telling]]) -> None:
    council = Council(COUNCIL)
    for telling in stories[1]:
        before = snapshot(council)
        if not telling(council):
            assert snapshot(council) == before


# -- bounds ----------------------------------------------------------------------------


def test_one_node_cannot_fill_the_claims_of_a_council() -> None:
    council = told(opens("o"))
    for each in range(MAX_OF_PEER + 50):
        council.take_claim(claim("tpm", f"agent-{each}"), at("flood", each + 1))
    assert len(council.claims("tpm")) == MAX_OF_PEER
    assert says("honest", 1)(council)


def test_claimants_are_bounded_and_those_known_are_still_heard() -> None:
    council = told(opens("o"))
    for each in range(MAX_CLAIMANTS + 20):
        says(f"agent-{each}", 1)(council)
    assert len(council.claims("tpm")) == MAX_CLAIMANTS
    assert says("agent-7", 2, "release")(council)
    assert len(council.claims("tpm")) == MAX_CLAIMANTS - 1


def test_the_highest_fences_are_kept_in_whatever_order_they_come() -> None:
    fences = list(range(1, MAX_FENCES + 5))
    Random(1).shuffle(fences)
    council = told(opens("o"), *(says("a", 1 + each, "accept", 1, each) for each in fences))
    for n in range(5, MAX_FENCES + 5):
        decides("o", 1 + n, 1, n, held("tpm", "a", 1, n))(council)
        assert council.seats()[0].state == "accepted"
    assert not says("a", 99, "accept", 1, 1)(council), "a stale one changed something"


def test_bystanders_cannot_keep_an_orchestrator_or_a_member_from_being_heard() -> None:
    council = told(opens("o"), decides("o", 2, 1, 1, held("tpm", "a", state="accepted")))
    for node in range(10):
        for each in range(MAX_OF_PEER + 5):
            reports(f"flood-{node}", each + 1, "failed", agent_id=str(each))(council)
    assert len(council.reports) == MAX_REPORTS
    assert reports("boss", 1, "cancelled", trusted=True)(council)
    assert reports("a", 1, "completed", agent_id="a", role_name="tpm")(council)
    assert not reports("other", 1, "completed", agent_id="x")(council)
    assert len(council.reports) == MAX_REPORTS


def test_a_report_is_kept_without_what_is_large_in_it() -> None:
    council = told(reports("a", 1, "completed", roles=[{"role_name": "x"}], opportunity={"k": 1}, electorate="AAAA"))
    (report,) = council.reports.values()
    assert (report.update.roles, report.update.opportunity, report.update.electorate) == ([], None, "")
