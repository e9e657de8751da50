"""Records with our own identity that we did not write: of earlier runs, and of live twins."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.membership.events import OwnRecord
from tests.core.membership.kit import ME, WALL_MS, Bench, published, record, twins
from tests.properties import some


def talk(one: Bench, other: Bench, rounds: int) -> None:
    """Each hears what the other says of itself."""
    for _ in range(rounds):
        for speaker, hearer in ((one, other), (other, one)):
            hearer.gossip(speaker.machine.own)
        one.go(1)
        other.go(1)


def test_a_record_of_an_earlier_run_is_topped() -> None:
    bench = Bench()
    records, _ = published(bench.gossip(record(ME, WALL_MS + 500)))
    assert [each.incarnation > WALL_MS + 500 for each in records] == [True]
    assert OwnRecord(bench.machine.own) in bench.said


def test_of_two_live_twins_the_newer_yields_and_the_older_stays() -> None:
    older, newer = Bench(started=5), Bench(started=6, wall_ms=WALL_MS + 40)
    talk(older, newer, 3)
    assert {each.yield_to_it for each in twins(newer.said)} == {True}
    assert {each.yield_to_it for each in twins(older.said)} <= {False}


def test_twins_with_the_same_incarnation_meet_too() -> None:
    older, newer = Bench(started=5), Bench(started=6)
    assert older.machine.own.incarnation == newer.machine.own.incarnation
    talk(older, newer, 3)
    assert {each.yield_to_it for each in twins(newer.said)} == {True}


@some
@given(
    st.lists(st.integers(WALL_MS - 10**6, WALL_MS + 10**9), min_size=1, max_size=20, unique=True),
    st.sampled_from([1, 10]),
    st.randoms(use_true_random=False),
)
def test_a_restarted_process_whose_clock_stepped_back_is_no_twin(
    incarnations: list[int], started: int, rng: object
) -> None:
    """However many records of earlier runs still go round, in whatever order: none of them answers ours."""
    bench = Bench(started=5)
    for number, incarnation in enumerate(incarnations):
        bench.gossip(record(ME, incarnation, started=started + number % 3))
        bench.go(0.3)
    answers = twins(bench.said)
    assert not answers, f"by chance one in 65,536: {answers}"


def test_a_copy_of_a_running_machine_is_told_but_nobody_yields() -> None:
    bench = Bench(started=5)
    bench.gossip(record(ME, WALL_MS + 1, started=5))
    assert [each.yield_to_it for each in twins(bench.said)] == [False]


def test_a_thief_of_the_key_makes_us_answer_once_a_second_at_most() -> None:
    bench = Bench()
    answered = []
    for number in range(500):
        bench.gossip(record(ME, WALL_MS + 10**6 + number * 10**5))
        before = len(published(bench.said)[0])
        bench.go(0.01)
        answered.append(before)
    records, _ = published(bench.said)
    assert len(records) <= 7
    bench.go(2)
    assert bench.machine.own.incarnation > WALL_MS + 10**6 + 499 * 10**5


def test_own_incarnations_never_fall() -> None:
    bench = Bench(floor=WALL_MS + 77)
    for incarnation in (WALL_MS, WALL_MS + 10**5, WALL_MS + 3, WALL_MS + 10**6):
        bench.gossip(record(ME, incarnation))
        bench.go(2)
    written = [each.record.incarnation for each in bench.said if isinstance(each, OwnRecord)]
    assert all(later > earlier for earlier, later in pairwise(written))
    assert written[-1] > WALL_MS + 10**6
