"""Own messages: safe once two live neighbours hold them, told of again until then, forgotten when dropped."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.message import MessageId
from p2pnode.core.outbox import ANNOUNCE_PEERS, ANNOUNCED_AT_ONCE, Announcement, Outbox
from p2pnode.core.peerid import PeerId
from tests.properties import many

WALL_NS = 1_763_899_200_000_000_000
A, B, C, D = (PeerId(name) for name in "ABCD")
EVERYBODY = [PeerId(f"P{number}") for number in range(10)]
LOOK = 0.25


def id_of(number: int) -> MessageId:
    return MessageId(b"o" * 38 + number.to_bytes(8, "big"))


@dataclass
class Desk:
    """An outbox, who is in which topic, and what was announced when."""

    live: dict[str, set[PeerId]] = field(default_factory=lambda: {"t": {A, B, C}})
    outbox: Outbox = field(default_factory=Outbox)
    safe: list[MessageId] = field(default_factory=list)
    announced: list[tuple[float, Announcement]] = field(default_factory=list)
    now: float = 0.0

    def neighbours(self, topic: str) -> Collection[PeerId]:
        return self.live.get(topic, set())

    def publish(self, number: int, topic: str = "t", *, age: float = 0.0, sent: bool = True) -> MessageId:
        published_at_ns = WALL_NS + round((self.now - age) * 1e9)
        self.outbox.added(id_of(number), topic, published_at_ns, self.now, self.neighbours, sent=sent)
        return id_of(number)

    def held(self, peer: PeerId, *ids: MessageId) -> None:
        self.safe += self.outbox.held(peer, ids, self.neighbours)

    def look(self) -> None:
        self.safe += self.outbox.look(self.now, self.neighbours)
        due = self.outbox.to_announce(self.now, WALL_NS + round(self.now * 1e9), self.neighbours)
        assert len(due) <= ANNOUNCED_AT_ONCE
        self.announced += [(self.now, each) for each in due]

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += LOOK
            self.look()

    def times(self) -> list[float]:
        return [when for when, _ in self.announced]

    def told(self) -> set[PeerId]:
        return {peer for _, each in self.announced for peer in each.peers}


# -- safe --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("live", "holders", "safe"),
    [
        ({A, B, C}, [A], False),
        ({A, B, C}, [A, A], False),
        ({A, B, C}, [A, B], True),
        ({A, B}, [A], False),
        ({A, B}, [B, A], True),
        ({A}, [A], True),
        ({A}, [B], False),
        ({A, B}, [A, D], False),
        (set(), [A, B], False),
    ],
)
def test_safe_is_what_two_live_neighbours_hold_or_the_only_one(
    live: set[PeerId], holders: list[PeerId], safe: bool
) -> None:
    desk = Desk({"t": live})
    mine = desk.publish(1)
    for peer in holders:
        desk.held(peer, mine)
    assert (desk.safe == [mine]) is safe
    assert (mine not in desk.outbox) is safe


def test_who_held_it_and_is_gone_counts_no_more_until_it_says_so_again() -> None:
    desk = Desk({"t": {A, B, C}})
    mine = desk.publish(1)
    desk.held(A, mine)
    desk.outbox.link_lost(A)  # and is back before anybody looked
    desk.held(B, mine)
    desk.look()
    assert desk.safe == []
    desk.held(A, mine)
    assert desk.safe == [mine]


def test_once_safe_a_message_stays_safe() -> None:
    desk = Desk()
    mine = desk.publish(1)
    desk.held(A, mine)
    desk.held(B, mine)
    desk.live["t"] = set()
    desk.outbox.link_lost(A)
    desk.outbox.link_lost(B)
    desk.pass_time(5)
    assert desk.safe == [mine]
    assert desk.announced == []


def test_what_the_only_one_left_holds_is_safe_when_the_others_go() -> None:
    desk = Desk({"t": {A, B}})
    mine = desk.publish(1)
    desk.held(A, mine)
    desk.live["t"] = {A}
    desk.look()
    assert desk.safe == [mine]


def test_a_link_lost_unseen_settles_what_the_others_hold() -> None:
    desk = Desk({"t": {A, B}})
    mine = desk.publish(1)
    desk.held(A, mine)
    desk.outbox.link_lost(B)
    desk.live["t"] = {A}
    desk.look()
    assert desk.safe == [mine]


def test_words_about_what_is_not_in_the_outbox_are_passed_over() -> None:
    desk = Desk()
    desk.held(A, id_of(1), MessageId(b"other"))
    assert desk.safe == []
    mine = desk.publish(1)
    desk.held(B, mine)
    assert desk.safe == []  # A said so before there was anything to hold


def test_a_synchronisation_that_showed_it_counts_as_a_notice() -> None:
    desk = Desk()
    mine = desk.publish(1, age=3600)
    desk.held(A, mine)
    assert desk.outbox.seen_at(B, [mine], desk.neighbours) == [mine]


# -- announcing --------------------------------------------------------------------------------------


def test_what_is_not_safe_after_two_seconds_is_announced_with_growing_pauses_until_it_is_too_old() -> None:
    desk = Desk()
    desk.publish(1)
    desk.pass_time(300)
    assert desk.times() == [2, 4, 8, 16, 32]
    assert all(set(each.peers) == {A, B, C} for _, each in desk.announced)
    assert len(desk.outbox) == 1
    assert desk.outbox.next_deadline() == math.inf


def test_who_says_that_it_holds_it_is_not_told_again() -> None:
    desk = Desk()
    desk.held(A, desk.publish(1))
    desk.pass_time(2)
    assert [each.peers for _, each in desk.announced] == [(B, C)]


def test_of_many_neighbours_others_are_told_each_time() -> None:
    desk = Desk({"t": set(EVERYBODY)})
    desk.publish(1)
    desk.pass_time(8)
    assert [len(each.peers) for _, each in desk.announced] == [ANNOUNCE_PEERS] * 3
    assert desk.told() == set(EVERYBODY)


def test_what_is_safe_in_time_is_never_announced() -> None:
    desk = Desk()
    mine = desk.publish(1)
    desk.held(A, mine)
    desk.held(B, mine)
    desk.pass_time(70)
    assert desk.announced == []
    assert desk.outbox.next_deadline() == math.inf


def test_a_neighbour_that_appears_is_told_at_once_and_nobody_else_is_for_that() -> None:
    desk = Desk({"t": {A}})
    desk.publish(1)
    desk.publish(2, "u")
    desk.pass_time(0.5)
    assert desk.announced == []
    desk.live["t"] = {A, B}
    desk.pass_time(0.25)
    assert [each for _, each in desk.announced] == [Announcement(id_of(1), (B,))]
    desk.pass_time(2)
    assert desk.told() == {A, B}


def test_alone_nothing_is_announced_and_who_comes_first_is_told_at_once() -> None:
    desk = Desk({})
    desk.publish(1)
    desk.pass_time(30.5)
    assert desk.announced == []
    desk.live["t"] = {A}
    desk.pass_time(0.25)
    assert desk.times() == [30.75]
    desk.held(A, id_of(1))
    assert desk.safe == [id_of(1)]


def test_a_neighbour_that_comes_back_is_told_anew() -> None:
    desk = Desk({"t": {A, B}})
    desk.held(A, desk.publish(1))
    desk.outbox.link_lost(A)
    desk.pass_time(0.25)
    assert [each.peers for _, each in desk.announced] == [(A,)]


def test_what_an_earlier_run_left_is_announced_at_once_when_young_and_left_to_synchronisation_when_old() -> None:
    desk = Desk()
    desk.publish(1, age=59, sent=False)
    desk.publish(2, age=60, sent=False)
    desk.pass_time(0.25)
    assert [each.id for _, each in desk.announced] == [id_of(1)]
    desk.pass_time(1)
    desk.live["t"] = {A, B, C, D}
    desk.pass_time(10)
    assert len(desk.announced) == 1
    assert len(desk.outbox) == 2


def test_much_that_is_due_goes_out_piece_by_piece_in_the_order_of_publishing() -> None:
    desk = Desk()
    for number in range(1000):
        desk.publish(number, sent=False)
    desk.pass_time(2)
    assert [each.id for _, each in desk.announced][:1000] == [id_of(number) for number in range(1000)]


# -- bounds ------------------------------------------------------------------------------------------


def test_what_leaves_the_store_leaves_the_outbox_and_its_schedule() -> None:
    desk = Desk()
    for number in range(10, 5010):
        desk.publish(number)
        desk.outbox.dropped([id_of(number - 10), MessageId(b"unknown")])
    assert len(desk.outbox) == 10
    assert len(desk.outbox._due) <= 2 * 10 + ANNOUNCED_AT_ONCE + 1
    assert len(desk.outbox._topics) == 1
    desk.outbox.dropped(list(desk.outbox))
    assert (len(desk.outbox), desk.outbox._topics, desk.outbox.oldest_ns()) == (0, {}, 0)
    desk.pass_time(5)
    assert desk.announced == []


def test_neighbours_that_come_and_go_do_not_fill_the_schedule() -> None:
    desk = Desk({"t": {A}})
    for number in range(100):
        desk.publish(number)
    for _ in range(40):
        desk.live["t"] ^= {B}
        desk.pass_time(LOOK)
        assert len(desk.outbox._due) <= 2 * 100 + ANNOUNCED_AT_ONCE


def test_the_oldest_is_told() -> None:
    desk = Desk()
    desk.publish(1, age=10)
    desk.publish(2, age=100)
    assert desk.outbox.oldest_ns() == WALL_NS - 100 * 10**9


# -- any order ---------------------------------------------------------------------------------------

steps = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 5), st.sampled_from([0.0, 58.0, 90.0])),
    st.tuples(st.just("held"), st.integers(0, 5), st.sampled_from([A, B, C])),
    st.tuples(st.just("lost"), st.sampled_from([A, B, C])),
    st.tuples(st.just("there"), st.sets(st.sampled_from([A, B, C]))),
    st.tuples(st.just("pass"), st.sampled_from([0.25, 1.0, 7.0])),
)


@many
@given(plan=st.lists(steps, max_size=25))
def test_in_any_order_of_events_a_message_leaves_once_and_only_when_enough_live_ones_hold_it(
    plan: list[tuple[object, ...]],
) -> None:
    desk = Desk({"t": {A}})
    holders: dict[MessageId, set[PeerId]] = {}
    published: set[MessageId] = set()
    for step in plan:
        before = len(desk.safe)
        match step:
            case ("publish", int(number), float(age)):
                if id_of(number) not in published:
                    published.add(desk.publish(number, age=age))
            case ("held", int(number), str(peer)):
                if id_of(number) in published:
                    holders.setdefault(id_of(number), set()).add(PeerId(peer))
                desk.held(PeerId(peer), id_of(number))
            case ("lost", str(peer)):
                desk.live["t"].discard(PeerId(peer))
                desk.outbox.link_lost(PeerId(peer))
                for each in holders.values():
                    each.discard(PeerId(peer))
            case ("there", set(peers)):
                for peer in desk.live["t"] - peers:
                    desk.outbox.link_lost(peer)
                    for each in holders.values():
                        each.discard(peer)
                desk.live["t"] = set(peers)
            case ("pass", float(seconds)):
                desk.pass_time(seconds)
        desk.look()
        for mid in desk.safe[before:]:
            assert len(holders[mid] & desk.live["t"]) >= min(2, len(desk.live["t"])) >= 1
        for mid in desk.outbox:
            held_by = holders.get(mid, set()) & desk.live["t"]
            assert len(held_by) < max(1, min(2, len(desk.live["t"])))
    assert len(set(desk.safe)) == len(desk.safe)
    assert set(desk.safe) | set(desk.outbox) == published
