"""Order by `prev`: each message once, in order whenever what was missing came in time, and nobody waits for ever."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core import ordering
from p2pnode.core.message import MessageId
from p2pnode.core.ordering import HOLD_SECONDS, MAX_WAITING, Gap, Ordering, Released
from tests.properties import many

ALICE, BOB = b"a" * 38, b"b" * 38


def id_of(number: int, origin: bytes = ALICE) -> MessageId:
    return MessageId(origin + number.to_bytes(8, "big"))


@dataclass(frozen=True)
class Post:
    number: int
    prev: int
    origin: bytes = ALICE
    topic: str = "t"

    @property
    def id(self) -> MessageId:
        return id_of(self.number, self.origin)

    @property
    def chain(self) -> tuple[str, bytes]:
        return self.topic, self.origin


@dataclass
class Reader:
    """An `Ordering`, what was stored, and what its readers saw, with the time."""

    ordering: Ordering = field(default_factory=Ordering)
    stored: set[MessageId] = field(default_factory=set)
    seen: list[tuple[float, Released]] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    now: float = 0.0
    floor: int = 0

    def take(self, post: Post) -> None:
        self.stored.add(post.id)
        decision = self.ordering.offer(
            post.id,
            post.topic,
            post.origin,
            post.number,
            post.prev,
            self.stored.__contains__,
            self.now,
            floor=self.floor,
        )
        self.seen += [(self.now, each) for each in decision.released]
        self.gaps += [decision.gap] if decision.gap is not None else []

    def take_all(self, posts: Iterable[Post]) -> None:
        for post in posts:
            self.take(post)

    def advance(self, seconds: float) -> None:
        """Let time pass, and act at each deadline on the way."""
        end = self.now + seconds
        while (at := self.ordering.next_deadline()) <= end:
            self.now = max(at, self.now)
            released = self.ordering.due(self.now)
            assert released, "a deadline at which nothing happens"
            self.seen += [(self.now, each) for each in released]
        self.now = end
        assert self.ordering.due(end) == ()

    def numbers(self) -> list[int]:
        return [int.from_bytes(each.id[-8:], "big") for _, each in self.seen]

    def late(self) -> list[int]:
        return [int.from_bytes(each.id[-8:], "big") for _, each in self.seen if each.late]


def chain(*numbers: int, first: int = 0) -> list[Post]:
    return [Post(number, prev) for prev, number in zip((first, *numbers), numbers, strict=False)]


# -- one chain ---------------------------------------------------------------------------------------


def test_what_comes_in_order_is_released_at_once() -> None:
    reader = Reader()
    reader.take_all(chain(10, 20, 30))
    assert reader.numbers() == [10, 20, 30]
    assert reader.late() == []
    assert reader.gaps == []
    assert reader.ordering.next_deadline() == math.inf


def test_a_message_waits_for_the_one_before_it_and_the_gap_is_told_once() -> None:
    reader = Reader()
    one, two, three, four = chain(10, 20, 30, 40)
    reader.take_all([one, three, four])
    assert reader.numbers() == [10]
    assert reader.gaps == [Gap("t", ALICE, 20)]
    reader.take(two)
    assert reader.numbers() == [10, 20, 30, 40]
    assert reader.late() == []
    assert len(reader.ordering) == 0


def test_after_two_seconds_the_waiting_one_goes_ahead_with_all_behind_it_and_the_missing_one_is_late() -> None:
    reader = Reader()
    one, two, three, four = chain(10, 20, 30, 40)
    reader.take_all([one, three])
    reader.advance(1.5)
    reader.take(four)
    assert reader.ordering.next_deadline() == HOLD_SECONDS
    reader.advance(0.5)
    assert reader.numbers() == [10, 30, 40]
    assert reader.late() == []
    reader.take(two)
    assert reader.numbers() == [10, 30, 40, 20]
    assert reader.late() == [20]


def test_a_lost_first_message_is_late_too() -> None:
    reader = Reader()
    one, two = chain(10, 20)
    reader.take(two)
    reader.advance(HOLD_SECONDS)
    reader.take(one)
    assert reader.numbers() == [20, 10]
    assert reader.late() == [10]


def test_late_ones_come_in_order_among_themselves() -> None:
    reader = Reader()
    one, two, three, four = chain(10, 20, 30, 40)
    reader.take_all([one, four])
    reader.advance(HOLD_SECONDS)
    reader.take_all([three, two])
    assert reader.numbers() == [10, 40, 20, 30]
    assert reader.late() == [20, 30]


def test_who_gives_up_takes_the_lower_numbers_with_it() -> None:
    reader = Reader()
    posts = chain(*range(1, 10))
    reader.take_all([posts[0], posts[7]])
    reader.advance(1.0)
    reader.take_all([posts[4], posts[2], posts[8]])
    reader.advance(1.0)
    assert reader.numbers() == [1, 3, 5, 8, 9]
    assert reader.late() == []
    assert len(reader.ordering) == 0


def test_two_messages_with_one_predecessor_follow_it_in_order_of_number() -> None:
    reader = Reader()
    reader.take_all([Post(30, 10), Post(40, 20), Post(20, 10), Post(50, 30)])
    reader.take(Post(10, 0))
    assert reader.numbers() == [10, 20, 30, 40, 50]
    assert reader.late() == []


# -- what says nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("prev", [0, 10, 11, 2**64 - 1])
def test_a_message_without_a_sensible_prev_is_released_at_once(prev: int) -> None:
    reader = Reader()
    reader.take(Post(10, prev))
    assert reader.numbers() == [10]
    assert reader.gaps == []


def test_an_origin_without_prev_may_number_as_it_likes() -> None:
    reader = Reader()
    reader.take_all([Post(500, 0), Post(3, 0), Post(77, 0)])
    assert reader.numbers() == [500, 3, 77]
    assert reader.late() == []


def test_an_origin_that_lost_its_store_begins_anew_and_what_it_had_sent_before_is_late() -> None:
    reader = Reader()
    reader.take_all([Post(10, 0), Post(30, 0), Post(40, 30), Post(20, 10)])
    assert reader.numbers() == [10, 30, 40, 20]
    assert reader.late() == [20]


def test_nobody_waits_for_what_lies_below_the_horizon() -> None:
    reader = Reader(floor=100)
    reader.take_all([Post(130, 99), Post(150, 140)])
    assert reader.numbers() == [130]
    assert reader.gaps == [Gap("t", ALICE, 140)]


def test_a_message_that_waits_may_be_offered_again_for_nothing() -> None:
    reader = Reader()
    for _ in range(3):
        reader.take(Post(20, 10))
    assert reader.gaps == [Gap("t", ALICE, 10)]
    reader.take(Post(10, 0))
    assert reader.numbers() == [10, 20]


def test_topics_and_origins_do_not_wait_for_each_other() -> None:
    reader = Reader()
    reader.take_all([Post(20, 10), Post(30, 0, BOB), Post(40, 0, topic="u"), Post(50, 30, BOB)])
    assert reader.numbers() == [30, 40, 50]


# -- restart -----------------------------------------------------------------------------------------


def test_after_a_restart_what_was_held_back_waits_anew_and_late_is_still_known() -> None:
    reader = Reader(stored={id_of(number) for number in (10, 30, 40, 70)})
    reader.ordering.released_before("t", ALICE, 10, 0)
    reader.ordering.released_before("t", ALICE, 70, 10)
    reader.take_all([Post(30, 20), Post(40, 30)])
    assert reader.numbers() == []
    reader.advance(HOLD_SECONDS)
    assert reader.numbers() == [30, 40]
    assert reader.late() == [30, 40]


# -- bounds ------------------------------------------------------------------------------------------


def test_an_origin_with_too_many_waiting_goes_ahead_from_the_lowest() -> None:
    reader = Reader()
    posts = chain(*range(10, 10 * (MAX_WAITING + 3), 10))
    reader.take_all(reversed(posts[2:]))  # all but two: one more than may wait
    assert len(reader.ordering) == MAX_WAITING
    assert len(reader.seen) == 0
    reader.take(Post(10 * (MAX_WAITING + 9), 10 * (MAX_WAITING + 8)))
    assert reader.numbers() == [post.number for post in posts[2:]]
    assert reader.late() == []
    assert len(reader.ordering) == 1


def test_with_too_many_waiting_in_all_the_one_that_waited_longest_goes_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "MAX_WAITING_IN_ALL", 20)
    reader = Reader()
    for number in range(30):
        reader.take(Post(20 + number, 10, bytes([number]) * 38))
        assert len(reader.ordering) <= 20
    assert reader.numbers() == list(range(20, 30))


def test_of_too_many_origins_the_longest_unheard_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "MAX_ORIGINS", 2)
    reader = Reader()
    reader.take_all([Post(10, 0), Post(30, 10), Post(5, 0, BOB), Post(6, 0, BOB, "u")])
    reader.take(Post(20, 10))
    assert reader.numbers() == [10, 30, 5, 6, 20]
    assert reader.late() == []  # it was, but nobody remembers


def test_ten_thousand_old_messages_in_any_order_stall_nothing_and_grow_nothing() -> None:
    """A late joiner's first synchronisation, at its worst: one origin, shuffled by a fixed stride."""
    reader = Reader()
    posts = chain(*range(1, 10_001))
    for index in range(10_000):
        reader.take(posts[index * 7919 % 10_000])
        assert len(reader.ordering) <= MAX_WAITING
    reader.advance(HOLD_SECONDS)
    assert sorted(reader.numbers()) == list(range(1, 10_001))


# -- any order, any loss -----------------------------------------------------------------------------


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[float, Post]]:
    """Messages of a few chains, some lost, some twice, some with nonsense before them, in any order with any pauses."""
    posts: list[Post] = []
    for topic, origin in (("t", ALICE), ("t", BOB), ("u", ALICE)):
        numbers = draw(st.lists(st.integers(1, 60), unique=True, max_size=12).map(sorted))
        if topic == "u":
            numbers = [number + 100 for number in numbers]
        before = 0
        for number in numbers:
            kind = draw(st.sampled_from(["next"] * 8 + ["fork", "none", "nonsense"]))
            prevs = {"next": before, "fork": max(before - 1, 0), "none": 0, "nonsense": number}
            posts.append(Post(number, prevs[kind], origin, topic))
            before = number
    kept = [post for post in posts if draw(st.integers(0, 9)) > 1]
    shuffled = draw(st.permutations(kept))
    return [(draw(st.sampled_from([0.0, 0.0, 0.125, 0.75, 2.5])), post) for post in shuffled]


@many
@given(plan=arrivals(), bound=st.sampled_from([3, 256]), in_all=st.sampled_from([5, 10_000]))
def test_any_order_with_losses_releases_each_once_in_time_and_says_late_exactly(
    plan: list[tuple[float, Post]], bound: int, in_all: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "MAX_WAITING", bound)
        patch.setattr(ordering, "MAX_WAITING_IN_ALL", in_all)
        reader, offered = Reader(), {}
        for pause, post in plan:
            reader.advance(pause)
            offered[post.id] = (reader.now, post)
            reader.take(post)
            assert len(reader.ordering) <= in_all
        reader.advance(HOLD_SECONDS)

    at = {each.id: when for when, each in reader.seen}
    place = {each.id: index for index, (_, each) in enumerate(reader.seen)}
    assert len(reader.seen) == len(at)
    assert at.keys() == offered.keys()
    assert all(0 <= at[mid] - since <= HOLD_SECONDS for mid, (since, _) in offered.items())

    for mid, (since, post) in offered.items():
        before = offered.get(id_of(post.prev, post.origin))
        if before is None or before[1].topic != post.topic or not 0 < post.prev < post.number:
            continue
        came_in_time = before[0] < since + HOLD_SECONDS and at[before[1].id] < since + HOLD_SECONDS
        if bound == 256 and in_all == 10_000 and came_in_time:
            overtaken = [each for _, each in offered.values() if _went_ahead(each, post, at, offered)]
            assert place[before[1].id] < place[mid] or overtaken

    for index, (_, each) in enumerate(reader.seen):
        post = offered[each.id][1]
        earlier = [offered[other.id][1] for _, other in reader.seen[:index]]
        assert each.late == any(
            other.chain == post.chain
            and other.number > post.number
            and (0 < post.prev < post.number or 0 < other.prev < other.number)
            for other in earlier
        )


def _went_ahead(
    other: Post, post: Post, at: dict[MessageId, float], offered: dict[MessageId, tuple[float, Post]]
) -> bool:
    """Did another one of the chain wait its time out, and take `post` with it?"""
    waited_out = at[other.id] == offered[other.id][0] + HOLD_SECONDS
    return other.chain == post.chain and waited_out and at[other.id] == at[post.id] and other.number >= post.number


@many
@given(
    order=st.permutations(range(1, 13)),
    lost=st.sets(st.integers(1, 12), max_size=4),
    pause=st.sampled_from([0.0, 0.0625, 0.125]),
)
def test_what_comes_within_the_time_is_in_order_whatever_the_order_of_arrival(
    order: list[int], lost: set[int], pause: float
) -> None:
    """Lost ones come last, but all within two seconds."""
    reader = Reader()
    posts = chain(*range(1, 13))
    for number in sorted(order, key=lambda number: number in lost):
        reader.take(posts[number - 1])
        reader.advance(pause)
    assert reader.numbers() == list(range(1, 13))
    assert reader.late() == []
