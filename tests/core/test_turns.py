"""Whom to compare with, and when."""

from __future__ import annotations

from random import Random

import pytest

from p2pnode.core.peerid import PeerId
from p2pnode.core.turns import (
    LIED_SECONDS,
    MAX_DISTRUSTED,
    NEVER,
    PAUSE_SECONDS,
    UNREACHABLE_SECONDS,
    Outcome,
    Turns,
)

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


class Clocked:
    """Turns with a clock that jumps to the next deadline."""

    def __init__(self, *peers: PeerId, dialled: bool = False, seed: int = 1) -> None:
        self.now = 100.0
        self.turns = Turns(Random(seed), self.now)
        for peer in peers:
            self.turns.opened(peer, dialled=dialled, now=self.now)

    def next(self) -> tuple[float, PeerId]:
        """When the next exchange starts, from now, and with whom."""
        since = self.now
        for _ in range(1000):
            peer = self.turns.next(self.now)
            if peer is not None:
                return self.now - since, peer
            due = self.turns.deadline()
            assert due > self.now, "a deadline that has passed, and nothing to do"
            assert due < NEVER, "nothing will ever happen"
            self.now = due
        raise AssertionError("deadlines without end")

    def exchange(self, outcome: Outcome) -> tuple[float, PeerId]:
        waited, peer = self.next()
        self.turns.ended(peer, outcome, self.now)
        return waited, peer


def near(seconds: float) -> object:
    """Give or take the jitter of a quarter."""
    return pytest.approx(seconds, rel=0.26)


def test_whoever_dialled_asks_half_a_second_later_and_the_other_waits_for_its_turn() -> None:
    assert Clocked(A, dialled=True).next() == (near(0.5), A)
    assert Clocked(A).next() == (near(PAUSE_SECONDS[0]), A)


def test_neighbours_are_asked_in_turn_at_pauses_that_double_while_nothing_differs() -> None:
    clocked = Clocked(A, B, C)
    asked = [clocked.exchange("same") for _ in range(9)]
    assert [waited for waited, _ in asked] == [near(each) for each in (2, 4, 8, 16, 32, 60, 60, 60, 60)]
    peers = [peer for _, peer in asked]
    assert sorted(peers[:3]) == [A, B, C]
    assert peers[:3] == peers[3:6] == peers[6:]


def test_a_difference_makes_the_pause_short_again() -> None:
    clocked = Clocked(A, B)
    for _ in range(6):
        clocked.exchange("same")
    clocked.exchange("differed")
    assert clocked.exchange("same")[0] == near(2)
    assert clocked.exchange("same")[0] == near(4)
    clocked.turns.differed(clocked.now)
    assert clocked.exchange("same")[0] == near(2)


def test_after_news_the_next_turn_is_soon_and_the_pause_grows_on() -> None:
    clocked = Clocked(A, B)
    for _ in range(6):
        clocked.exchange("same")
    since = clocked.now
    for _ in range(5):
        clocked.now += 1
        clocked.turns.news(clocked.now)
    clocked.exchange("same")
    assert clocked.now - since < 1 + 10
    assert clocked.exchange("same")[0] == near(60)


def test_an_exchange_that_was_not_finished_goes_on_at_once() -> None:
    clocked = Clocked(A, B, C)
    _, peer = clocked.exchange("unfinished")
    assert clocked.exchange("same") == (0.0, peer)


def test_a_busy_neighbour_is_asked_again_a_second_later() -> None:
    clocked = Clocked(A)
    clocked.exchange("busy")
    assert clocked.exchange("same")[0] == near(1)


def test_a_reason_makes_a_neighbour_the_next_and_not_more_often_than_is_decent() -> None:
    clocked = Clocked(A, B, C)
    for _ in range(6):
        clocked.exchange("same")
    clocked.turns.hasten(B, clocked.now + 1)
    clocked.now += 1
    assert clocked.exchange("same") == (0.0, B)
    clocked.turns.hasten(B, clocked.now)
    waited, peer = clocked.exchange("same")
    assert peer == B
    assert waited == pytest.approx(0.2)
    clocked.turns.hasten(PeerId("a stranger"), clocked.now)


def test_a_reason_that_has_time_comes_at_a_chance_moment_and_never_later_than_one_that_is_due() -> None:
    waits = []
    for seed in range(20):
        clocked = Clocked(A, B, seed=seed)
        for _ in range(6):
            clocked.exchange("same")
        clocked.now += 1
        clocked.turns.hasten(B, clocked.now, (0.5, 1.0))
        waited, peer = clocked.exchange("same")
        assert peer == B
        waits.append(waited)
        clocked.now += 1
        clocked.turns.hasten(B, clocked.now)
        clocked.turns.hasten(B, clocked.now, (0.5, 1.0))
        assert clocked.exchange("same") == (0.0, B)
    assert min(waits) >= 0.5
    assert max(waits) <= 1.0
    assert len(set(waits)) == 20


def test_at_most_two_are_under_way_and_one_with_each_neighbour() -> None:
    clocked = Clocked(A, B, C, dialled=True)
    first, second = clocked.next()[1], clocked.next()[1]
    assert first != second
    clocked.now += 3600
    assert clocked.turns.next(clocked.now) is None
    assert clocked.turns.deadline() == NEVER
    clocked.turns.hasten(first, clocked.now)
    clocked.turns.ended(second, "same", clocked.now)
    assert clocked.turns.next(clocked.now) not in (first, second, None)


def test_a_neighbour_that_does_not_answer_is_left_alone_longer_each_time_until_it_connects_anew() -> None:
    clocked = Clocked(A)
    waits = [clocked.exchange("unreachable")[0] for _ in range(12)]
    assert waits[5] > 20 > waits[0]
    assert max(waits) < UNREACHABLE_SECONDS[1] * 1.26 + PAUSE_SECONDS[1] * 1.26
    assert not clocked.turns.may_ask(A, clocked.now)
    clocked.turns.closed(A)
    clocked.turns.opened(A, dialled=True, now=clocked.now)
    assert clocked.turns.may_ask(A, clocked.now)
    assert clocked.exchange("same")[0] == near(0.5)


def test_a_liar_is_left_alone_over_connections_and_longer_each_time() -> None:
    clocked = Clocked(A, dialled=True)
    clocked.exchange("lied")
    clocked.turns.closed(A)
    clocked.turns.opened(A, dialled=True, now=clocked.now)
    clocked.turns.hasten(A, clocked.now)
    assert not clocked.turns.may_ask(A, clocked.now)
    assert clocked.exchange("lied")[0] == near(LIED_SECONDS[0])
    clocked.turns.hasten(A, clocked.now)
    assert clocked.exchange("same")[0] == near(2 * LIED_SECONDS[0])
    assert clocked.turns.times_distrusted(A) == 0
    assert clocked.turns.may_ask(A, clocked.now)


def test_the_memory_of_liars_is_bounded() -> None:
    turns = Turns(Random(1), 0.0)
    peers = [PeerId(f"liar-{number}") for number in range(MAX_DISTRUSTED + 10)]
    for peer in peers:
        turns.opened(peer, dialled=True, now=0.0)
        assert turns.next(1.0) == peer
        turns.ended(peer, "lied", 1.0)
        turns.closed(peer)
    assert [turns.times_distrusted(peer) for peer in peers].count(1) == MAX_DISTRUSTED


def test_an_exchange_may_end_after_the_link_is_gone() -> None:
    clocked = Clocked(A, B)
    _, peer = clocked.next()
    clocked.turns.closed(peer)
    clocked.turns.ended(peer, "same", clocked.now)
    assert clocked.next()[1] != peer
