"""Doubts, accusations, refutations, deaths."""

from __future__ import annotations

import dataclasses

import pytest

from p2pnode.core.membership.admission import FUTURE_NS
from p2pnode.core.membership.events import (
    AskHelpers,
    HelpersEnded,
    LinkClosed,
    LinkOpened,
    LinkSilent,
    ProbeEnded,
    Renew,
)
from p2pnode.core.membership.params import Params
from tests.core.membership.kit import (
    ALIVE,
    DEAD,
    ME,
    SUSPECT,
    WALL_MS,
    A,
    B,
    Bench,
    C,
    D,
    accusation,
    changes,
    peer,
    probed,
    published,
    record,
)

CALM = Params(probe_every_seconds=10_000.0, alarm_probe_seconds=10_000.0)
"""Without turns of the ring."""


@pytest.mark.parametrize("trouble", [LinkClosed(A, by_intent=False), LinkSilent(A)])
def test_who_broke_its_link_and_does_not_answer_is_accused_and_dies(trouble: LinkClosed | LinkSilent) -> None:
    bench = Bench([A, B], params=CALM)
    bench.give(LinkOpened(A))
    assert probed(bench.give(trouble)) == [A]
    _, accusations = published(bench.give(ProbeEnded(A, reached=False)))
    assert [(each.accuser, each.accused, each.incarnation) for each in accusations] == [(ME, A, WALL_MS)]
    assert bench.state(A) is SUSPECT
    bench.go(3.9)
    assert bench.state(A) is SUSPECT
    bench.go(0.2)
    assert bench.state(A) is DEAD


def test_who_answers_after_all_is_not_accused() -> None:
    bench = Bench([A], params=CALM)
    bench.give(LinkClosed(A, by_intent=False))
    assert bench.give(ProbeEnded(A, reached=True)) == []
    bench.go(60)
    assert bench.state(A) is ALIVE


def test_a_link_closed_by_intent_raises_no_doubt() -> None:
    bench = Bench([A], params=CALM)
    bench.give(LinkOpened(A))
    assert bench.give(LinkClosed(A, by_intent=True)) == []


def test_a_new_link_ends_the_doubt() -> None:
    bench = Bench([A], params=CALM)
    bench.give(LinkClosed(A, by_intent=False))
    bench.give(LinkOpened(A))
    assert bench.give(ProbeEnded(A, reached=False)) == []
    assert bench.state(A) is ALIVE


def test_a_change_of_status_made_before_its_death_does_not_end_the_doubt() -> None:
    bench = Bench([A], params=CALM)
    bench.give(LinkClosed(A, by_intent=False))
    bench.gossip(record(A, WALL_MS + 1))
    bench.give(ProbeEnded(A, reached=False))
    assert bench.state(A) is SUSPECT


@pytest.mark.parametrize(("accusers", "seconds"), [(1, 4.0), (2, 3.0), (3, 2.5), (5, 2.5)])
def test_more_accusers_shorten_the_suspicion(accusers: int, seconds: float) -> None:
    others = [peer(number) for number in range(10, 16)]
    bench = Bench([A, *others], params=CALM)
    bench.gossip(*(accusation(each, A) for each in others[:accusers]))
    bench.go(seconds - 0.1)
    assert bench.state(A) is SUSPECT
    bench.go(0.2)
    assert bench.state(A) is DEAD
    member = bench.machine.get(A)
    assert member is not None
    assert len(member.accusations) <= 3


def test_a_refutation_brings_back_the_suspect_and_the_dead() -> None:
    bench = Bench([A, B], params=CALM)
    bench.gossip(accusation(B, A))
    bench.gossip(record(A, WALL_MS + 1))
    assert bench.state(A) is ALIVE
    bench.gossip(accusation(B, A, WALL_MS + 1))
    bench.go(10)
    assert bench.state(A) is DEAD
    bench.gossip(record(A, WALL_MS + 2))
    assert bench.state(A) is ALIVE
    bench.go(60)
    assert bench.state(A) is ALIVE


def test_an_accused_member_that_lives_refutes_once_for_all_who_accuse_it() -> None:
    bench = Bench([A, B, C])
    own = bench.machine.own.incarnation
    records, _ = published(bench.gossip(*(accusation(each, ME, own) for each in (A, B, C))))
    assert [each.incarnation for each in records] == [own + 1]
    assert published(bench.gossip(accusation(A, ME, own))) == ([], [])
    assert bench.state(ME) is ALIVE


def test_who_said_goodbye_does_not_refute_nor_accuse() -> None:
    bench = Bench([A, B])
    bench.give(LinkClosed(B, by_intent=False))
    bench.give(Renew(dataclasses.replace(bench.machine.own, left=True)))
    assert published(bench.gossip(accusation(A, ME, bench.machine.own.incarnation))) == ([], [])
    assert bench.give(LinkClosed(A, by_intent=False)) == []
    assert bench.give(ProbeEnded(B, reached=False)) == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (accusation(B, A, WALL_MS - 1), "old-accusation"),
        (accusation(B, A, WALL_MS + 1), "unknown-accused"),
        (accusation(B, D), "unknown-accused"),
        (accusation(D, A), "unknown-accuser"),
        (accusation(A, A), "unknown-accuser"),
        (accusation(B, A, at_ms=WALL_MS + FUTURE_NS / 1e6 + 1000), "future-accusation"),
        (accusation(B, A, at_ms=WALL_MS - 24 * 3600 * 1000 - 1000), "expired"),
    ],
)
def test_an_accusation_that_does_not_count_changes_nothing_and_is_counted(bad: object, reason: str) -> None:
    bench = Bench([A, B])
    version = bench.machine.version
    assert bench.gossip(bad) == []  # type: ignore[arg-type]
    assert bench.state(A) is ALIVE
    assert bench.machine.version == version
    assert bench.machine.refused[reason] == 1


def test_an_accuser_is_heard_so_often_a_minute() -> None:
    others = [peer(number) for number in range(10, 120)]
    bench = Bench([A, *others], params=CALM)
    bench.gossip(*(accusation(A, each) for each in others))
    assert sum(bench.state(each) is SUSPECT for each in others) == 100
    assert bench.machine.refused["accuser-limit"] == 10


def test_a_newcomer_takes_the_whole_past_whoever_accused() -> None:
    others = [peer(number) for number in range(10, 160)]
    bench = Bench()
    past = [accusation(A, each, at_ms=WALL_MS - 60_000) for each in others]
    bench.sync(record(A), *(record(each) for each in others), *past)
    assert all(bench.state(each) is DEAD for each in others)


def test_our_own_accusations_are_rationed() -> None:
    others = [peer(number) for number in range(10, 60)]
    bench = Bench(others, params=CALM)
    for each in others:
        bench.give(LinkClosed(each, by_intent=False))
        bench.give(ProbeEnded(each, reached=False))
    assert sum(bench.state(each) is SUSPECT for each in others) == 40
    assert bench.machine.refused["own-accusation-limit"] == 10


def test_each_member_without_a_link_has_its_turn_and_its_helpers() -> None:
    bench = Bench([A, B, C, D])
    for each in (A, B):
        bench.give(LinkOpened(each))
    effects = bench.go(30)
    assert set(probed(effects)) == {C, D}
    (asked,) = (each for each in bench.give(ProbeEnded(C, reached=False)) if isinstance(each, AskHelpers))
    assert set(asked.helpers) == {A, B}
    assert bench.state(C) is ALIVE
    bench.give(HelpersEnded(C, reached=False))
    assert bench.state(C) is SUSPECT


def test_a_newcomer_has_its_turn_in_the_round_that_runs() -> None:
    bench = Bench([peer(number) for number in range(10, 30)])
    bench.go(6)
    bench.gossip(record(A))
    assert A in bench.machine._ring


def test_several_deaths_at_once_make_every_node_look_faster() -> None:
    others = [peer(number) for number in range(10, 40)]
    calm, alarmed = Bench(others), Bench(others)
    alarmed.gossip(accusation(others[0], others[1]), accusation(others[0], others[2]))
    assert len(probed(alarmed.go(5))) > 3 * max(1, len(probed(calm.go(5))))


def test_who_refutes_rests_from_turns_and_longer_each_time() -> None:
    """A member that nobody can dial, but that lives: else every node would accuse it whenever its turn comes."""
    bench = Bench([A, B])
    accused_at = []
    for _ in range(3000):
        for each in probed(bench.go(1)):
            bench.give(ProbeEnded(each, reached=each != A))
        if bench.state(A) is SUSPECT:
            accused_at.append(bench.now)
            member = bench.machine.get(A)
            assert member is not None
            bench.gossip(record(A, member.record.incarnation + 1))
    assert 3 <= len(accused_at) <= 3000 / 600 + 6


def test_a_broken_link_is_a_reason_even_at_rest() -> None:
    bench = Bench([A, B], params=CALM)
    bench.gossip(accusation(B, A))
    bench.gossip(record(A, WALL_MS + 1))
    assert bench.give(LinkSilent(A)) == []
    assert probed(bench.give(LinkClosed(A, by_intent=False))) == [A]


def test_who_was_stopped_gives_suspects_their_time_again() -> None:
    bench = Bench([A, B], params=CALM)
    bench.gossip(accusation(B, A))
    bench.sleep(60)
    bench.go(0)
    assert bench.state(A) is SUSPECT
    bench.go(3)
    assert bench.state(A) is SUSPECT
    bench.gossip(record(A, WALL_MS + 1))
    bench.go(20)
    assert bench.state(A) is ALIVE


def test_who_was_stopped_looks_twice_before_it_accuses_whatever_comes_first() -> None:
    bench = Bench([A, B], params=CALM)
    bench.give(LinkClosed(A, by_intent=False))
    bench.sleep(30)
    assert bench.give(ProbeEnded(A, reached=False)) == []
    assert probed(bench.give(LinkClosed(B, by_intent=False))) == [B]
    bench.give(ProbeEnded(B, reached=False))
    assert (bench.state(A), bench.state(B)) == (ALIVE, ALIVE)
    assert sorted(probed(bench.go(2))) == sorted([A, B])
    bench.give(ProbeEnded(A, reached=False))
    assert bench.state(A) is SUSPECT


def test_deaths_come_in_the_order_of_the_suspicions() -> None:
    others = [peer(number) for number in range(10, 60)]
    bench = Bench([A, *others], params=CALM)
    bench.gossip(*(accusation(A, each) for each in others))
    dead = [each.peer for each in changes(bench.go(6)) if each.after is DEAD]
    assert dead == others


def test_both_halves_of_a_healed_network_come_back_to_life() -> None:
    """Each thinks the other dead; one exchange tells each side what it is accused of, and gossip the rest."""
    ours, theirs = Bench([A, B], params=CALM), record(A)
    ours.gossip(accusation(B, A))
    ours.go(10)
    assert ours.state(A) is DEAD
    own = ours.machine.own
    ours.sync(theirs, accusation(A, ME, own.incarnation))
    records, _ = published(ours.said)
    assert records[-1].incarnation > own.incarnation
    ours.gossip(record(A, WALL_MS + 10_000))
    assert ours.state(A) is ALIVE
