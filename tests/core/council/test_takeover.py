"""Electorates, majorities, and who takes over first."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.council.documents import MAX_ELECTORATE_CHARACTERS
from p2pnode.core.council.takeover import (
    GRACE_SECONDS,
    MAX_VOTERS,
    TURN_SECONDS,
    delay,
    electorate,
    has_majority,
    size,
)
from tests.core.council.kit import peer
from tests.properties import many

FIVE = [peer(each) for each in range(5)]


@pytest.mark.parametrize(("alive", "enough"), [(0, False), (1, False), (2, False), (3, True), (5, True)])
def test_a_majority_is_more_than_half_of_those_alive_at_creation(alive: int, enough: bool) -> None:
    assert has_majority(electorate(FIVE), FIVE[:alive]) is enough


def test_half_is_no_majority() -> None:
    assert not has_majority(electorate(FIVE[:4]), FIVE[:2])


def test_who_came_later_has_no_vote() -> None:
    assert not has_majority(electorate(FIVE), [peer(f"new-{each}") for each in range(50)])


@pytest.mark.parametrize(
    "text", ["", "????", "AAAA", "AAA", "AAAAAA", "é" * 8, "AAAAAA==\n", base64.b64encode(b"12345").decode()]
)
def test_garbage_counts_nobody_and_gives_no_majority(text: str) -> None:
    assert size(text) == 0
    assert not has_majority(text, FIVE)


def test_of_very_many_members_an_electorate_that_can_be_published_is_kept() -> None:
    everybody = [peer(each) for each in range(MAX_VOTERS + 500)]
    text = electorate(everybody)
    assert len(text) <= MAX_ELECTORATE_CHARACTERS
    assert size(text) == MAX_VOTERS
    assert has_majority(text, everybody)
    assert not has_majority(text, everybody[: len(everybody) // 3])


@many
@given(st.sets(st.integers(0, 300), max_size=60), st.sets(st.integers(0, 300), max_size=60))
def test_an_electorate_survives_its_text(members: set[int], alive: set[int]) -> None:
    text = electorate(peer(each) for each in members)
    assert text == electorate(peer(each) for each in sorted(members, reverse=True))
    assert size(text) == len(members)
    assert has_majority(text, [peer(each) for each in alive]) is (2 * len(members & alive) > len(members))


def test_the_highest_peer_id_takes_over_first_and_each_has_a_turn() -> None:
    waits = [delay(each, FIVE) for each in sorted(FIVE, reverse=True)]
    assert waits == [GRACE_SECONDS + TURN_SECONDS * place for place in range(5)]


def test_who_is_not_in_line_itself_waits_for_those_who_are() -> None:
    assert delay(peer(0), FIVE[1:]) == GRACE_SECONDS + 4 * TURN_SECONDS
    assert delay(peer(0), []) == GRACE_SECONDS
