"""Which documents are council opportunities, and what is said about the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.council.opportunity import CouncilOpportunity, check_opportunity
from p2pnode.core.metadata import MAX_TIME_NS
from p2pnode.core.ucxl import parse_ucxl
from tests.properties import some

EXAMPLES = Path(__file__).parents[2] / "samples"
OPPORTUNITY: dict[str, Any] = {
    "council_id": "5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e11",
    "project_name": "Test Discovery",
    "repository": "https://gitea.chorus.services/tony/test",
    "core_roles": [{"role_name": "tpm", "required": True, "required_skills": ["task_coordination"]}],
    "ucxl_address": "ucxl://any:tpm@test-discovery:formation/*^/council.json",
    "formation_deadline": "2030-01-01T00:00:00Z",
    "created_at": "2026-11-23T09:00:00Z",
    "metadata": {"priority": "high"},
}
GONE = object()


def changed(**members: object) -> dict[str, Any]:
    return {name: value for name, value in {**OPPORTUNITY, **members}.items() if value is not GONE}


def opportunity(**members: object) -> CouncilOpportunity:
    checked = check_opportunity(changed(**members))
    assert isinstance(checked, CouncilOpportunity), checked
    return checked


def fields(document: dict[str, Any]) -> list[str]:
    checked = check_opportunity(document)
    assert isinstance(checked, list)
    assert all(fault.problem for fault in checked)
    return [fault.field for fault in checked]


def test_the_sample_opportunity_is_one() -> None:
    checked = check_opportunity(json.loads((EXAMPLES / "opportunity.json").read_bytes()))
    assert isinstance(checked, CouncilOpportunity)
    assert [role.role_name for role in checked.core_roles] == ["tpm", "senior-software-architect"]
    assert [role.role_name for role in checked.optional_roles] == ["security-expert"]


def test_the_sample_request_lacks_only_the_id_that_creation_gives() -> None:
    request = json.loads((EXAMPLES / "create-council.json").read_bytes())
    assert fields(request) == ["council_id"]
    assert isinstance(check_opportunity({**request, "council_id": OPPORTUNITY["council_id"]}), CouncilOpportunity)


@pytest.mark.parametrize(
    "roles",
    [
        ["tpm"],
        [{"role_name": "tpm"}],
        [{"role_name": "tpm", "required_skills": None}],
        [{"role_name": "tpm", "new": 1}],
    ],
)
def test_a_role_is_a_name_or_an_object(roles: list[object]) -> None:
    role = opportunity(core_roles=roles).core_roles[0]
    assert (role.role_name, role.required, role.required_skills) == ("tpm", False, [])


@pytest.mark.parametrize("name", ["optional_roles", "metadata", "formation_deadline", "created_at"])
@pytest.mark.parametrize("absent", [None, GONE])
def test_what_is_optional_may_be_absent_or_null_as_go_writes_it(name: str, absent: object) -> None:
    assert opportunity(**{name: absent})


def test_members_we_do_not_know_are_left_alone() -> None:
    assert opportunity(invented={"deep": [1]}, model_config=1)


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"council_id": GONE}, "council_id"),
        ({"council_id": "seven"}, "council_id"),
        ({"council_id": 7}, "council_id"),
        ({"project_name": GONE}, "project_name"),
        ({"project_name": ""}, "project_name"),
        ({"project_name": " \t"}, "project_name"),
        ({"project_name": 7}, "project_name"),
        ({"repository": GONE}, "repository"),
        ({"project_brief": "b" * 65_537}, "project_brief"),
        ({"core_roles": GONE}, "core_roles"),
        ({"core_roles": None}, "core_roles"),
        ({"core_roles": []}, "core_roles"),
        ({"core_roles": "tpm"}, "core_roles"),
        ({"core_roles": [7]}, "core_roles[0]"),
        ({"core_roles": ["tpm", ""]}, "core_roles[1].role_name"),
        ({"core_roles": [{}]}, "core_roles[0].role_name"),
        ({"core_roles": [{"role_name": "tpm", "required": "yes"}]}, "core_roles[0].required"),
        ({"core_roles": [{"role_name": "tpm", "required_skills": ["a", 1]}]}, "core_roles[0].required_skills[1]"),
        ({"core_roles": ["tpm"] * 65}, "core_roles"),
        ({"core_roles": [7] * 100_000}, "core_roles"),
        ({"optional_roles": [{"role_name": " "}]}, "optional_roles[0].role_name"),
        ({"ucxl_address": "ucxl://nobody"}, "ucxl_address"),
        ({"formation_deadline": "tomorrow"}, "formation_deadline"),
        ({"formation_deadline": "2030-01-01T00:00:00"}, "formation_deadline"),
        ({"formation_deadline": 1_900_000_000}, "formation_deadline"),
        ({"formation_deadline": "1900000000"}, "formation_deadline"),
        ({"created_at": "2030-13-01T00:00:00Z"}, "created_at"),
        ({"metadata": [1]}, "metadata"),
    ],
)
def test_each_fault_names_its_field(members: dict[str, object], field: str) -> None:
    assert fields(changed(**members)) == [field]


def test_every_fault_is_reported_at_once() -> None:
    found = fields(changed(council_id="x", project_name=GONE, core_roles=[{}, 7], created_at="never"))
    assert found == ["council_id", "project_name", "core_roles[0].role_name", "core_roles[1]", "created_at"]


@pytest.mark.parametrize(
    ("deadline", "ns"),
    [
        (None, 0),
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("2030-01-01T01:00:00+01:00", 1_893_456_000_000_000_000),
        ("2030-01-01T00:00:00.000001Z", 1_893_456_000_000_001_000),
        ("1969-12-31T23:59:59Z", 1),
        ("0001-01-01T00:00:00+23:59", 1),
        ("9999-12-31T23:59:59-23:59", MAX_TIME_NS),
    ],
)
def test_a_deadline_becomes_a_time_that_can_be_written(deadline: str | None, ns: int) -> None:
    assert opportunity(formation_deadline=deadline).expires_at_ns == ns


@some
@given(
    st.dictionaries(
        st.sampled_from(sorted(OPPORTUNITY)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=10,
        ),
    )
)
def test_any_document_is_an_opportunity_or_has_faults(members: dict[str, object]) -> None:
    checked = check_opportunity({**OPPORTUNITY, **members})
    assert isinstance(checked, CouncilOpportunity) or checked


@pytest.mark.parametrize(
    "text",
    [
        "ucxl://any:tpm@test-discovery:formation/*^/council.json",
        "ucxl://a:b@c:d/*~/",
        "ucxl://a:b@c:d/*~12/x/y",
        "ucxl://a:b@c:d/~~3/x_y-z.w",
        "ucxl://any:any@any:any/^^1/",
    ],
)
def test_a_ucxl_address_survives_parsing(text: str) -> None:
    assert str(parse_ucxl(text)) == text


def test_a_ucxl_address_may_end_with_its_time() -> None:
    assert parse_ucxl("ucxl://a:b@c:d/*^").path == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://a:b@c:d/*^/",
        "ucxl://a:b@c/*^/",
        "ucxl://a@c:d/*^/",
        "ucxl://a:b@c:d/",
        "ucxl://a:b@c:d/now/",
        "ucxl://a:b@c:d/~~/",
        "ucxl://a:b@c:d/^^x/",
        "ucxl://a b:b@c:d/*^/",
        "ucxl://ä:b@c:d/*^/",
        "ucxl://a:b@c:d/*^/sp ace",
        "ucxl://a:b@c:d/*^/x\n",
    ],
)
def test_what_is_no_ucxl_address_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="ucxl://agent:role@project:task"):
        parse_ucxl(text)
