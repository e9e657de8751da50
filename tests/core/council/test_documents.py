"""Which documents are claims and status updates, and what is said about the others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.council.documents import (
    ENDED,
    MAX_TERM,
    NEXT,
    Claim,
    Status,
    StatusUpdate,
    check_claim,
    check_status,
    to_json,
)
from p2pnode.core.council.opportunity import CouncilOpportunity, check_opportunity
from tests.core.council.kit import COUNCIL, claim, held, opportunity, update
from tests.properties import some

CLAIM: dict[str, Any] = {
    "council_id": COUNCIL,
    "role_name": "tpm",
    "agent_id": "chorus-7",
    "agent_name": "Seven",
    "capabilities": ["planning"],
    "confidence": 0.5,
    "claimed_at": "2026-11-23T09:00:00Z",
    "running_roles": 2,
}
STATUS: dict[str, Any] = {
    "council_id": COUNCIL,
    "status": "active",
    "message": "go",
    "roles": [held("tpm", "a"), {"role_name": "tester"}],
    "at": "2026-11-23T09:00:00Z",
    "by": "whoosh-1",
    "term": 1,
    "n": 3,
    "opportunity": {"council_id": COUNCIL},
    "electorate": "AAAAAA==",
}


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"council_id": None}, "council_id"),
        ({"council_id": "seven"}, "council_id"),
        ({"role_name": ""}, "role_name"),
        ({"role_name": None}, "role_name"),
        ({"role_name": "r" * 257}, "role_name"),
        ({"agent_id": "  "}, "agent_id"),
        ({"agent_id": 7}, "agent_id"),
        ({"agent_name": "n" * 257}, "agent_name"),
        ({"kind": "shout"}, "kind"),
        ({"capabilities": "planning"}, "capabilities"),
        ({"capabilities": ["a", 1]}, "capabilities[1]"),
        ({"capabilities": [""]}, "capabilities[0]"),
        ({"capabilities": ["c"] * 257}, "capabilities"),
        ({"confidence": 1.5}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
        ({"claimed_at": "yesterday"}, "claimed_at"),
        ({"claimed_at": 1_700_000_000}, "claimed_at"),
        ({"claimed_at": "2026-11-23T09:00:00"}, "claimed_at"),
        ({"running_roles": -1}, "running_roles"),
        ({"term": MAX_TERM + 1}, "term"),
        ({"n": 1.5}, "n"),
        ({"reason": "r" * 1025}, "reason"),
    ],
)
def test_each_fault_of_a_claim_names_its_field(members: dict[str, object], field: str) -> None:
    checked = check_claim({**CLAIM, **members})
    assert isinstance(checked, list)
    assert [fault.field for fault in checked] == [field]
    assert all(fault.problem for fault in checked)


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"council_id": "x"}, "council_id"),
        ({"status": "done"}, "status"),
        ({"status": None}, "status"),
        ({"message": "m" * 4097}, "message"),
        ({"roles": "tpm"}, "roles"),
        ({"roles": [7]}, "roles[0]"),
        ({"roles": [{"agent_id": "a"}]}, "roles[0].role_name"),
        ({"roles": [held("tpm", "a", state="sold")]}, "roles[0].state"),
        ({"roles": [{"role_name": str(each)} for each in range(129)]}, "roles"),
        ({"at": "now"}, "at"),
        ({"term": -1}, "term"),
        ({"n": 2**53}, "n"),
        ({"opportunity": []}, "opportunity"),
        ({"electorate": "A" * 65_537}, "electorate"),
    ],
)
def test_each_fault_of_a_status_update_names_its_field(members: dict[str, object], field: str) -> None:
    checked = check_status({**STATUS, **members})
    assert isinstance(checked, list)
    assert [fault.field for fault in checked] == [field]


def test_a_decision_gives_a_role_to_one_agent_only() -> None:
    checked = check_status({**STATUS, "roles": [held("tpm", "a"), held("tpm", "b")]})
    assert isinstance(checked, list)
    assert [fault.field for fault in checked] == ["roles[1].role_name"]
    assert "roles[0]" in checked[0].problem


@pytest.mark.parametrize("name", ["agent_id", "peer_id"])
def test_a_decision_says_who_holds_what_is_not_open(name: str) -> None:
    checked = check_status({**STATUS, "roles": [{**held("tpm", "a"), name: ""}]})
    assert isinstance(checked, list)
    assert [fault.field for fault in checked] == [f"roles[0].{name}"]


def test_a_report_may_name_roles_as_it_likes() -> None:
    assert not update(roles=[{"role_name": "tpm"}, {"role_name": "tpm"}]).is_decision


@pytest.mark.parametrize("name", ["capabilities", "confidence", "claimed_at"])
def test_what_a_claim_may_leave_out_may_be_null_as_go_writes_it(name: str) -> None:
    assert isinstance(check_claim({**CLAIM, name: None}), Claim)


@pytest.mark.parametrize("name", ["roles", "at", "opportunity"])
def test_what_a_status_update_may_leave_out_may_be_null_as_go_writes_it(name: str) -> None:
    assert isinstance(check_status({**STATUS, name: None}), StatusUpdate)


def test_a_seat_may_have_null_for_its_skills() -> None:
    assert update(roles=[{"role_name": "tpm", "required_skills": None}]).roles[0].required_skills == []


@pytest.mark.parametrize("name", ["invented", "is_open", "copy", "model_fields", "__class__", "is_decision"])
def test_members_we_do_not_know_are_left_alone(name: str) -> None:
    more: dict[str, Any] = {name: {"deep": [1]}}
    for checked in (check_claim({**CLAIM, **more}), check_status({**STATUS, **more})):
        assert not isinstance(checked, list)
        assert to_json(checked)[name] == {"deep": [1]}


def test_documents_come_back_from_json_as_they_were() -> None:
    for members in (CLAIM, {**CLAIM, "kind": "release", "term": 2, "n": 9, "reason": "busy", "x": 1}):
        first = check_claim(members)
        assert isinstance(first, Claim)
        assert check_claim(to_json(first)) == first
    status = check_status(STATUS)
    assert isinstance(status, StatusUpdate)
    assert check_status(to_json(status)) == status
    announced = opportunity(["tpm", {"role_name": "x", "required_skills": ["a"]}], metadata={"k": [1]})
    assert check_opportunity(to_json(announced)) == announced


def test_what_is_empty_is_not_published() -> None:
    assert to_json(claim()) == {"council_id": COUNCIL, "role_name": "tpm", "agent_id": "a"}
    assert to_json(update()) == {"council_id": COUNCIL, "status": "forming"}


def test_only_a_term_makes_a_decision() -> None:
    assert update(term=1).is_decision
    assert not update(n=7).is_decision


def test_an_ended_council_goes_nowhere_and_every_status_can_be_reached() -> None:
    assert {Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED} == ENDED
    assert frozenset().union(*NEXT.values()) | {Status.FORMING} == set(Status)
    assert Status.FORMING not in frozenset().union(*NEXT.values())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@some
@given(
    st.dictionaries(st.sampled_from(sorted({*CLAIM, "kind", "term"})), anything),
    st.dictionaries(st.sampled_from(sorted(STATUS)), anything),
)
def test_any_document_is_one_or_has_faults(claimed: dict[str, object], said: dict[str, object]) -> None:
    first, second = check_claim({**CLAIM, **claimed}), check_status({**STATUS, **said})
    assert isinstance(first, Claim) or (first and all(fault.problem for fault in first))
    assert isinstance(second, StatusUpdate) or (second and all(fault.problem for fault in second))
    assert not isinstance(check_opportunity({**STATUS, **said}), CouncilOpportunity)
