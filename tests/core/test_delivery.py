"""What a webhook is sent next: order per origin, one probe while the agent is down, bounds, the cursor."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.delivery import CROWDING_ATTEMPTS, JITTER, Courier, backoff_seconds
from tests.properties import many

A, B, C = b"a", b"b", b"c"


class _Even(Random):
    """No jitter."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def courier(*origins: bytes, attempts: int = 100, window: int = 256) -> Courier:
    """With messages 1, 2, … of these origins."""
    made = Courier(0, attempts=attempts, rng=_Even(), window=window)
    for arrival, origin in enumerate(origins, 1):
        made.offer(arrival, origin)
    return made


def all_next(made: Courier, now: float = 0.0) -> list[int]:
    found = []
    while (arrival := made.next(now)) is not None:
        found.append(arrival)
    return found


def test_backoff_doubles_from_half_a_second_to_a_minute_with_jitter() -> None:
    assert [backoff_seconds(n, _Even()) for n in (1, 2, 3, 7, 8, 9, 1440)] == [0.5, 1, 2, 32, 60, 60, 60]
    spread = [backoff_seconds(1, Random(seed)) for seed in range(200)]
    assert min(spread) >= 0.5 * (1 - JITTER)
    assert max(spread) <= 0.5 * (1 + JITTER)
    assert len(set(spread)) > 100


def test_one_message_of_an_origin_at_a_time_and_at_most_eight_origins() -> None:
    made = courier(A, A, B, C, B)
    assert all_next(made) == [1, 3, 4]
    made.handled(1, answered=True)
    assert all_next(made) == [2]
    crowd = courier(*(bytes([number]) for number in range(20)))
    assert all_next(crowd) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_failed_message_holds_back_its_origin_alone() -> None:
    made = courier(A, A, B, B)
    assert all_next(made) == [1, 3]
    assert not made.failed(1, 0.0, down=False)
    made.handled(3, answered=True)
    assert all_next(made) == [4]
    made.handled(4, answered=True)
    assert made.next(0.4) is None
    assert made.wait(0.4) == 0.5 - 0.4
    assert made.next(0.5) == 1
    made.handled(1, answered=True)
    assert made.next(0.5) == 2


def test_failures_of_two_origins_mean_that_the_agent_is_down_and_one_probe_at_a_time_goes_out() -> None:
    made = courier(*(bytes([number]) for number in range(8)))
    assert len(all_next(made)) == 8
    for arrival in range(1, 9):
        made.failed(arrival, 0.0, down=False)
    assert made.down
    times, now = list[float](), 0.0
    while len(times) < 9:
        wait = made.wait(now)
        assert wait is not None
        now += wait
        probe = made.next(now)
        assert probe is not None
        assert made.next(now) is None, "one at a time"
        times.append(now)
        made.failed(probe, now, down=True)
    assert times == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 63.5, 123.5, 183.5]


def test_a_success_ends_it_and_each_message_keeps_its_own_pause() -> None:
    made = courier(A, B)
    assert all_next(made) == [1, 2]
    made.failed(1, 0.0, down=True)
    made.handled(2, answered=True)
    assert not made.down
    assert made.next(0.4) is None
    assert made.next(0.5) == 1
    assert made.attempt(1) == 2


def test_probes_go_round_so_that_one_bad_message_does_not_stop_all_others() -> None:
    made = courier(A, B, C)
    assert made.next(0.0) == 1
    made.failed(1, 0.0, down=True)  # it hangs, say
    assert made.next(0.5) == 2
    made.handled(2, answered=True)
    assert made.next(0.5) == 1
    assert made.next(0.5) == 3


def test_what_the_agent_asks_for_is_waited_for_but_not_for_ever() -> None:
    made = courier(A, B)
    assert made.next(0.0) == 1
    made.failed(1, 0.0, down=True, retry_after=30)
    assert made.wait(0.0) == 30
    assert made.next(29.9) is None
    probe = made.next(30.0)
    assert probe == 2
    made.failed(probe, 30.0, down=True, retry_after=1e9)
    assert made.wait(30.0) == 3600


def test_a_message_is_given_up_after_its_attempts_and_its_origin_goes_on() -> None:
    made = courier(A, A, attempts=2)
    assert made.next(0.0) == 1
    assert not made.failed(1, 0.0, down=False)
    assert made.next(1.0) == 1
    assert made.failed(1, 1.0, down=False)
    assert made.cursor == 1
    assert made.next(1.0) == 2


def test_a_message_that_alone_fills_the_window_is_given_up_early() -> None:
    made = courier(A, B, *[A] * 8, window=10)
    assert all_next(made) == [1, 2]
    now, gave_up = 0.0, made.failed(1, 0.0, down=False)
    made.handled(2, answered=True)
    attempts = 1
    while not gave_up:
        now += 60
        assert made.room == 0
        assert made.next(now) == 1
        gave_up = made.failed(1, now, down=False)
        attempts += 1
    assert attempts == CROWDING_ATTEMPTS
    dead = courier(*[A] * 10, window=10)
    for step in range(3 * CROWDING_ATTEMPTS):
        assert dead.next(step * 100.0) == 1
        assert not dead.failed(1, step * 100.0, down=True), "nobody gets through: that is no fault of the message"


def test_a_dead_letter_that_is_tried_again_holds_no_cursor_and_goes_before_what_waits() -> None:
    made = Courier(10, attempts=9, rng=_Even())
    made.offer(11, A)
    assert made.next(0.0) == 11
    made.offer(12, A)
    made.offer(5, A, letter=True)
    made.handled(11, answered=True)
    assert made.cursor == 11
    assert made.next(0.0) == 5
    made.failed(5, 0.0, down=False)
    assert made.cursor == 11
    assert made.forget(5)
    assert made.next(0.0) == 12
    assert not made.forget(12), "it is on its way"


@many
@given(st.integers(0, 1 << 32), st.integers(1, 12), st.integers(1, 5))
def test_under_any_outcomes_order_bounds_and_cursor_hold(seed: int, window: int, origins: int) -> None:
    rng = Random(seed)
    made = Courier(0, attempts=4, rng=rng, window=window, origins_at_once=3)
    offered, handled, running = 0, set[int](), set[int]()
    lanes: dict[bytes, list[int]] = {}
    now, steps = 0.0, 0
    while len(handled) < 60:
        steps += 1
        assert steps < 20_000, "it got stuck"
        while offered < 60 and made.room and rng.random() < 0.7:
            offered += 1
            origin = bytes([rng.randrange(origins)])
            lanes.setdefault(origin, []).append(offered)
            made.offer(offered, origin)
        while (arrival := made.next(now)) is not None:
            assert arrival not in running | handled
            (lane,) = [lane for lane in lanes.values() if arrival in lane]
            assert all(each in handled for each in lane[: lane.index(arrival)]), "in order"
            running.add(arrival)
        assert made.in_flight == len(running) <= 3
        assert len(made) <= window
        contiguous = next((each - 1 for each in range(1, offered + 1) if each not in handled), offered)
        assert made.cursor == contiguous
        assert offered - made.cursor <= window
        if running and rng.random() < 0.8:
            arrival = rng.choice(sorted(running))
            running.discard(arrival)
            if rng.random() < 0.5:
                made.handled(arrival, answered=rng.random() < 0.9)
                handled.add(arrival)
            elif made.failed(arrival, now, down=rng.random() < 0.3, retry_after=rng.choice([0, 0, 5])):
                handled.add(arrival)
        else:
            now += made.wait(now) or 0.1
    assert made.cursor == 60
    assert len(made) == 0
