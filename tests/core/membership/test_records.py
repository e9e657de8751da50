"""Which records are taken, passed on, forgotten."""

from __future__ import annotations

import dataclasses

import pytest

from p2pnode.core.membership import record as bounds
from p2pnode.core.membership import table
from p2pnode.core.membership.events import Renew
from tests.core.membership.kit import (
    ALIVE,
    DEAD,
    LEFT,
    WALL_MS,
    A,
    B,
    Bench,
    C,
    D,
    accusation,
    changes,
    peer,
    published,
    record,
)

DAY = 24 * 3600.0


def test_the_newer_incarnation_wins_and_an_older_one_is_counted() -> None:
    bench = Bench([A])
    bench.gossip(dataclasses.replace(record(A, WALL_MS + 5), status="busy"))
    assert bench.gossip(record(A, WALL_MS)) == []
    member = bench.machine.get(A)
    assert member is not None
    assert (member.record.incarnation, member.record.status) == (WALL_MS + 5, "busy")
    assert bench.machine.refused["old-record"] == 1


def test_the_same_record_again_is_neither_news_nor_a_fault() -> None:
    bench = Bench([A])
    version = bench.machine.version
    assert bench.gossip(record(A)) == []
    assert bench.machine.version == version
    assert not +bench.machine.refused


def test_an_own_record_grows_with_the_clock_and_stands_above_the_floor() -> None:
    assert Bench().machine.own.incarnation == WALL_MS
    stepped_back = Bench(floor=WALL_MS + 1000)
    assert stepped_back.machine.own.incarnation == WALL_MS + 1001
    stepped_back.give(Renew(stepped_back.machine.own))
    assert stepped_back.machine.own.incarnation == WALL_MS + 1002


def test_an_incarnation_that_nobody_could_top_is_refused() -> None:
    bench = Bench()
    assert bench.gossip(record(A, bounds.MAX_INCARNATION + 1), record(bench.machine.own.peer_id, 2**64 - 1)) == []
    assert bench.machine.refused["incarnation"] == 2
    assert list(bench.machine.items())


def test_what_came_by_gossip_is_not_gossiped_again() -> None:
    bench = Bench()
    bench.gossip(record(A))
    assert published(bench.go(2)) == ([], [])


def test_what_came_by_sync_is_gossiped_once_unless_gossip_brings_it_first() -> None:
    bench = Bench([A, B, C])
    bench.sync(record(A, WALL_MS + 1), record(D), accusation(B, C))
    bench.gossip(record(A, WALL_MS + 1))
    assert published(bench.go(1)) == ([record(D)], [accusation(B, C)])
    assert published(bench.go(2)) == ([], [])


def test_a_newcomer_does_not_gossip_the_whole_table_that_it_was_given() -> None:
    others = [peer(number) for number in range(10, 110)]
    newcomer, old_hand = Bench(), Bench(others)
    newcomer.sync(*(record(each) for each in others), accusation(others[0], others[1]))
    assert published(newcomer.go(2)) == ([], [])
    old_hand.sync(record(A))
    assert published(old_hand.go(2)) == ([record(A)], [])


def test_a_member_that_left_and_comes_back_is_alive() -> None:
    bench = Bench([A])
    bench.gossip(record(A, WALL_MS + 1, left=True))
    assert bench.state(A) is LEFT
    bench.gossip(record(A, WALL_MS))
    assert bench.state(A) is LEFT
    bench.gossip(record(A, WALL_MS + 2))
    assert bench.state(A) is ALIVE


def test_who_is_gone_is_forgotten_after_a_day_and_not_learned_anew_from_who_forgets_later() -> None:
    bench = Bench([A, B, C])
    left = record(A, WALL_MS, left=True)
    left = dataclasses.replace(left, incarnation=WALL_MS + 1)
    bench.gossip(left, accusation(B, C))
    bench.go(10)
    assert (bench.state(A), bench.state(C)) == (LEFT, DEAD)
    bench.sleep(DAY - 20)
    bench.go(5)
    assert (bench.state(A), bench.state(C)) == (LEFT, DEAD)
    forgotten = changes(bench.go(120))
    assert {each.peer for each in forgotten if each.after is None} == {A, C}
    bench.sync(left, record(C), accusation(B, C))
    assert (bench.state(A), bench.state(C)) == (None, None)
    assert bench.machine.refused["expired"] == 2


def test_the_time_of_a_death_is_the_accusers_so_that_all_forget_it_together() -> None:
    """Else each learns it later than the one before, and keeps it for a day from then: for ever, by turns."""
    bench = Bench([B])
    hours_ago = WALL_MS - 23.9 * 3600 * 1000
    bench.sync(record(C), accusation(B, C, at_ms=hours_ago))
    assert bench.state(C) is DEAD
    bench.sleep(0.2 * 3600)
    bench.go(70)
    assert bench.state(C) is None


def test_a_full_table_gives_the_place_of_the_longest_gone_to_who_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_MEMBERS", 4)
    bench = Bench([A, B, C])
    bench.gossip(record(D))
    assert bench.state(D) is None
    assert bench.machine.refused["table-full"] == 1
    bench.gossip(record(A, WALL_MS + 9, left=True))
    bench.gossip(record(B, WALL_MS + 2, left=True))
    bench.gossip(record(peer(9), WALL_MS, left=True))
    assert bench.state(peer(9)) is None
    bench.gossip(record(D))
    assert bench.state(D) is ALIVE
    assert bench.state(A) is LEFT or bench.state(B) is LEFT
    assert len(bench.machine.members()) == 4


def test_a_shared_name_is_told_until_the_other_is_gone() -> None:
    bench = Bench([A])
    other = dataclasses.replace(record(B), name=record(A).name)
    bench.gossip(other)
    assert bench.machine.shares_name(A)
    bench.gossip(record(A, WALL_MS + 1, left=True))
    assert not bench.machine.shares_name(B)
    assert not bench.machine.shares_name(C)
