"""Which documents are BACKBEAT status claims, and what is said about the others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.backbeat import StatusClaim, WorkState, check_status_claim, claim_json
from tests.properties import some

CLAIM: dict[str, Any] = {
    "type": "backbeat.statusclaim.v1",
    "agent_id": "chorus-7",
    "task_id": "council:5b0c",
    "beat_index": 42,
    "state": "executing",
    "beats_left": 3,
    "progress": 0.5,
    "notes": "half way",
    "hlc": "7ffd:0001:beef",
    "resources": {"gpu": 1},
    "dependencies": ["chorus-8"],
    "metadata": {"k": [1]},
}
GONE = object()


def changed(**members: object) -> dict[str, Any]:
    return {name: value for name, value in {**CLAIM, **members}.items() if value is not GONE}


def claim(**members: object) -> StatusClaim:
    checked = check_status_claim(changed(**members))
    assert isinstance(checked, StatusClaim), checked
    return checked


def fields(document: dict[str, Any]) -> list[str]:
    checked = check_status_claim(document)
    assert isinstance(checked, list)
    assert all(fault.problem for fault in checked)
    return [fault.field for fault in checked]


def test_a_claim_is_written_as_it_was_read() -> None:
    assert claim_json(claim()) == CLAIM


def test_what_backbeat_does_not_define_is_accepted_and_not_kept() -> None:
    assert claim_json(claim(invented={"deep": [1]})) == CLAIM


@pytest.mark.parametrize("state", list(WorkState))
def test_every_state_of_backbeat_is_one(state: WorkState) -> None:
    assert claim(state=state.value).state is state


@pytest.mark.parametrize(
    "name", ["task_id", "beats_left", "progress", "notes", "resources", "dependencies", "metadata"]
)
@pytest.mark.parametrize("absent", [None, GONE])
def test_what_is_optional_may_be_absent_or_null_as_go_writes_it(name: str, absent: object) -> None:
    assert name not in claim_json(claim(**{name: absent}))


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"type": GONE}, "type"),
        ({"type": "backbeat.statusclaim.v2"}, "type"),
        ({"agent_id": GONE}, "agent_id"),
        ({"agent_id": " "}, "agent_id"),
        ({"agent_id": 7}, "agent_id"),
        ({"agent_id": "x" * 257}, "agent_id"),
        ({"beat_index": GONE}, "beat_index"),
        ({"beat_index": "42"}, "beat_index"),
        ({"beat_index": True}, "beat_index"),
        ({"beat_index": 1.5}, "beat_index"),
        ({"beat_index": -1}, "beat_index"),
        ({"beat_index": 2**63}, "beat_index"),
        ({"state": GONE}, "state"),
        ({"state": "sleeping"}, "state"),
        ({"state": None}, "state"),
        ({"hlc": GONE}, "hlc"),
        ({"hlc": ""}, "hlc"),
        ({"hlc": 7}, "hlc"),
        ({"task_id": 7}, "task_id"),
        ({"beats_left": -1}, "beats_left"),
        ({"progress": 1.01}, "progress"),
        ({"progress": "half"}, "progress"),
        ({"notes": "n" * 257}, "notes"),
        ({"resources": []}, "resources"),
        ({"dependencies": "chorus-8"}, "dependencies"),
        ({"dependencies": ["a", 1]}, "dependencies[1]"),
        ({"dependencies": ["a"] * 257}, "dependencies"),
        ({"metadata": "m"}, "metadata"),
    ],
)
def test_each_fault_names_its_field(members: dict[str, object], field: str) -> None:
    assert fields(changed(**members)) == [field]


def test_every_fault_is_reported_at_once() -> None:
    assert fields({"state": "x", "notes": 1}) == ["type", "agent_id", "beat_index", "state", "hlc", "notes"]


@some
@given(
    st.dictionaries(
        st.sampled_from(sorted(CLAIM)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=10,
        ),
    )
)
def test_any_document_is_a_claim_or_has_faults(members: dict[str, object]) -> None:
    checked = check_status_claim({**CLAIM, **members})
    assert isinstance(checked, StatusClaim) or checked
