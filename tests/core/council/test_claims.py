"""Fit and rank: who of several gets a role."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.council.claims import ANYBODY_FITS, Claimant, StandingClaim, best, fit, rank
from p2pnode.core.council.opportunity import CouncilRole
from tests.core.council.kit import claim, peer
from tests.properties import many

SKILLED = CouncilRole.model_validate({"role_name": "architect", "required_skills": ["Design", "review"]})
PLAIN = CouncilRole.model_validate({"role_name": "tpm"})


def standing(
    name: str, skills: tuple[str, ...] = (), running: int = 0, at_ns: int = 0, agent: str = "a"
) -> StandingClaim:
    said = claim("architect", agent, capabilities=list(skills), running_roles=running)
    return StandingClaim(Claimant(peer(name), agent), said, 1, at_ns, 0.0)


@pytest.mark.parametrize(
    ("capabilities", "role", "share"),
    [
        ([], SKILLED, 0.0),
        (["design"], SKILLED, 0.5),
        (["DESIGN", "Review", "more"], SKILLED, 1.0),
        (["architect"], SKILLED, 0.0),
        ([], PLAIN, ANYBODY_FITS),
        (["cooking"], PLAIN, ANYBODY_FITS),
        (["TPM"], PLAIN, 1.0),
    ],
)
def test_fit_is_the_share_of_the_skills_asked_for(capabilities: list[str], role: CouncilRole, share: float) -> None:
    assert fit(capabilities, role) == share


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        (standing("z", ("design", "review"), running=9, at_ns=9), standing("a", ("design",))),
        (standing("z", ("design",), running=1, at_ns=9), standing("a", ("design",), running=2)),
        (standing("z", ("design",), at_ns=1), standing("a", ("design",), at_ns=2)),
        (standing("a", ("design",)), standing("b", ("design",))),
        (standing("a", ("design",), agent="a"), standing("a", ("design",), agent="b")),
    ],
    ids=["fit", "running roles", "signed time", "peer id", "agent id"],
)
def test_each_rule_counts_only_when_those_before_tie(winner: StandingClaim, loser: StandingClaim) -> None:
    assert rank(winner, SKILLED) < rank(loser, SKILLED)
    assert best([loser, winner], SKILLED) is winner


def test_nobody_is_best_without_claims() -> None:
    assert best([], PLAIN) is None


claims = st.builds(
    standing,
    st.sampled_from("abcd"),
    st.sampled_from([(), ("design",), ("review", "design")]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from("xy"),
)


@many
@given(st.lists(claims, min_size=1, max_size=8, unique_by=lambda each: each.claimant).flatmap(
    lambda found: st.tuples(st.just(found), st.permutations(found))
))  # fmt: skip
def test_the_same_claims_in_any_order_have_the_same_best(
    found: tuple[list[StandingClaim], list[StandingClaim]],
) -> None:
    assert best(found[0], SKILLED) == best(found[1], SKILLED)
