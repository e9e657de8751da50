"""`bench.bridge`: it sees a loss and a double, its kills are those of the seed, and a short run loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.bridge import judge, plan, run
from bench.bridge_place import BRIDGES, BROKER, IN, OUT

MESSAGES = 100
KILLS = 2


def test_everything_once_everywhere_is_good() -> None:
    assert judge({1, 2}, {"a": [1, 2], "b": [2, 1]}).good


def test_a_message_that_one_place_does_not_have_is_a_loss() -> None:
    verdict = judge({1, 2}, {"a": [1, 2], "b": [2]})
    assert verdict.lost == {"b": {1}}
    assert not verdict.good


def test_a_message_that_one_place_has_twice_is_a_double() -> None:
    verdict = judge({1, 2}, {"a": [1, 2, 1], "b": [1, 2]})
    assert verdict.doubled == {"a": {1}}
    assert not verdict.good


def test_the_plan_is_that_of_the_seed_and_kills_broker_and_bridges_equally_often() -> None:
    kills = plan(7, 10, 100)
    assert kills == plan(7, 10, 100)
    assert kills != plan(8, 10, 100)
    assert [kill.victim for kill in kills].count(BROKER) == 10
    assert len([kill for kill in kills if 0 <= kill.victim < BRIDGES]) == 10
    assert all(0 <= kill.at < 100 for kill in kills)


@pytest.mark.soak
def test_bridges_and_their_broker_are_killed_and_nothing_is_lost_or_doubled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path / "place", MESSAGES, KILLS, seed=7, rate=4, deadline=180)
    with capsys.disabled():
        print("", *result.lines(), sep="\n")
    assert {topic: len(numbers) for topic, numbers in result.sent.items()} == {OUT: MESSAGES, IN: MESSAGES}
    assert result.catch_up is not None
    for verdict in result.verdicts.values():
        assert not verdict.lost
        assert not verdict.doubled
