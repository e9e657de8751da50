"""Reconciliation: any two sets are told apart exactly, at a cost that follows the difference, whoever answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256, sha512
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.reconcile import (
    DEFAULT,
    END,
    FEW,
    MAX_ITEMS,
    MAX_KEY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_RANGES,
    START,
    Answer,
    Fingerprint,
    Item,
    ItemSet,
    Limits,
    Listing,
    Offer,
    Range,
    Reconciliation,
    Reply,
    Snapshot,
    answer,
)
from p2pnode.errors import InvalidMessage, InvalidRequest
from p2pnode.wire.reconcile import decode_offer, decode_reply, encode_offer, encode_reply
from tests.properties import many, some

Items = dict[bytes, bytes]


# -- an exchange, with the codec between the two ------------------------------------------------------


@dataclass
class Outcome:
    """What the asker found (`want`, `give`), what the answerer learned, and bytes each way of each round."""

    asker: Reconciliation
    want: Items = field(default_factory=dict)
    give: Items = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        return sum(map(sum, self.sizes))


def exchange(asker: Reconciliation, own: ItemSet, limits: Limits, most_bytes: int = MAX_MESSAGE_BYTES) -> Outcome:
    outcome = Outcome(asker)
    while (offer := asker.next_offer()) is not None:
        request = encode_offer(offer)
        answered = answer(own, decode_offer(request), limits)
        outcome.want |= answered.want
        outcome.give |= answered.give
        response = encode_reply(answered.reply)
        assert len(request) <= most_bytes
        assert len(response) <= limits.max_message_bytes
        outcome.sizes.append((len(request), len(response)))
        asker.receive(decode_reply(response))
    return outcome


def lacks(mine: Items, theirs: Items, lower: bytes = START, upper: bytes = END) -> Items:
    """What is in `theirs` and not so in `mine`."""
    return {key: value for key, value in theirs.items() if lower <= key < upper and mine.get(key) != value}


def assert_exact(outcome: Outcome, asker: Items, answerer: Items, lower: bytes = START, upper: bytes = END) -> None:
    assert outcome.asker.complete
    assert outcome.asker.want == outcome.give == lacks(asker, answerer, lower, upper)
    assert outcome.asker.give == outcome.want == lacks(answerer, asker, lower, upper)


limits_ = st.builds(
    Limits,
    branching=st.integers(2, 20),
    list_items=st.integers(1, 20) | st.integers(1, MAX_ITEMS),
    max_message_bytes=st.integers(1024, 1600) | st.integers(1024, MAX_MESSAGE_BYTES),
    max_ranges=st.integers(1, 6) | st.integers(1, MAX_RANGES),
    max_rounds=st.just(1_000_000),
)
keys_ = (
    st.binary(max_size=MAX_KEY_BYTES)
    | st.text("ab", max_size=9).map(str.encode)
    | st.binary(max_size=2).map((b"p" * 120).__add__)
    | st.integers(0, MAX_KEY_BYTES).map(lambda n: b"\xff" * n)
    | st.integers(0, 300).map(lambda n: n.to_bytes(8, "big"))
)
values_ = st.sampled_from([b"", b"1", b"2", b"\0" * 32])
sets_ = st.dictionaries(keys_, values_, max_size=60)
bounds_ = keys_ | st.just(START) | st.just(END)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Items, Items]:
    """Two sets, unrelated or nearly the same."""
    one = draw(sets_)
    if draw(st.booleans()):
        return one, draw(sets_)
    other = dict(one)
    for key in draw(st.lists(st.sampled_from(sorted(one)), max_size=5)) if one else []:
        other.pop(key, None)
    return one, other | draw(st.dictionaries(keys_, values_, max_size=5))


@many
@given(pairs(), limits_, limits_, bounds_, bounds_, st.booleans())
def test_both_learn_exactly_what_differs_under_any_limits(
    sets: tuple[Items, Items], ours: Limits, theirs: Limits, one: bytes, other: bytes, differs: bool
) -> None:
    lower, upper = min(one, other), max(one, other)
    if lower == upper:
        lower, upper = START, END
    asker = Reconciliation(Snapshot(sets[0].items()), lower, upper, limits=ours, differs=differs)
    outcome = exchange(asker, Snapshot(sets[1].items()), theirs, ours.max_message_bytes)
    assert_exact(outcome, *sets, lower, upper)


def random_items(count: int, seed: int, key_bytes: int = 46, value_bytes: int = 32) -> Items:
    rng = Random(seed)
    return {rng.randbytes(key_bytes): rng.randbytes(value_bytes) for _ in range(count)}


def differing(items: Items, changed: int, seed: int = 99) -> Items:
    """The same items but for `changed` of them: a third missing, a third otherwise, a third new."""
    keys = Random(seed).sample(sorted(items), changed)
    other = dict(items)
    for number, key in enumerate(keys):
        value = other.pop(key)
        if number % 3:
            other[key[:-1] + b"new" if number % 3 == 1 else key] = bytes(len(value))
    return other


@pytest.mark.parametrize("flip", [False, True], ids=["asker-empty", "answerer-empty"])
def test_a_set_that_does_not_fit_one_message_is_told_in_many(flip: bool) -> None:
    full = random_items(3_000, 1, 128)
    asker, answerer = (full, {}) if flip else ({}, full)
    outcome = exchange(Reconciliation(Snapshot(asker.items())), Snapshot(answerer.items()), DEFAULT)
    assert_exact(outcome, asker, answerer)
    told = 3_000 * (128 + 32)
    assert told < outcome.total_bytes < told * 1.1
    assert len(outcome.sizes) <= told / MAX_MESSAGE_BYTES * 1.2 + 2


@pytest.mark.parametrize("our_bytes", [1024, MAX_MESSAGE_BYTES])
@pytest.mark.parametrize("their_bytes", [1024, MAX_MESSAGE_BYTES])
def test_lists_longer_than_a_message_are_told_in_parts(our_bytes: int, their_bytes: int) -> None:
    one, other = random_items(400, 2, 128), random_items(400, 3, 128)
    ours = Limits(list_items=MAX_ITEMS, max_message_bytes=our_bytes, max_rounds=1000)
    theirs = Limits(list_items=MAX_ITEMS, max_message_bytes=their_bytes)
    outcome = exchange(Reconciliation(Snapshot(one.items()), limits=ours), Snapshot(other.items()), theirs, our_bytes)
    assert_exact(outcome, one, other)


@pytest.mark.parametrize(
    ("count", "limits"),
    [(5_000, Limits(list_items=100)), (400, Limits(list_items=1, max_message_bytes=1024))],
    ids=["items", "bytes"],
)
def test_tiny_items_side_by_side_stay_within_the_limits(count: int, limits: Limits) -> None:
    one, other = ({number.to_bytes(2, "big"): value for number in range(count)} for value in (b"", b"1"))
    for mine, theirs in ((one, other), ({}, other), (one, {})):
        asker = Reconciliation(Snapshot(mine.items()), limits=limits)
        outcome = exchange(asker, Snapshot(theirs.items()), limits, limits.max_message_bytes)
        assert_exact(outcome, mine, theirs)


# -- what it costs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_items() -> Items:
    return random_items(100_000, 4)


@pytest.fixture(scope="module")
def many_in_order(many_items: Items) -> Snapshot:
    return Snapshot(many_items.items())


def test_equal_sets_cost_one_small_message_each_way(many_in_order: Snapshot) -> None:
    outcome = exchange(Reconciliation(many_in_order), many_in_order, DEFAULT)
    assert len(outcome.sizes) == 1
    assert outcome.total_bytes < 30
    assert outcome.asker.complete
    assert not outcome.asker.want
    assert not outcome.asker.give


@pytest.mark.parametrize(("changed", "rounds", "kilobytes"), [(1, 4, 2.2), (10, 4, 16), (100, 6, 120)])
def test_cost_follows_the_difference(
    many_items: Items, many_in_order: Snapshot, changed: int, rounds: int, kilobytes: float
) -> None:
    other = differing(many_items, changed)
    outcome = exchange(Reconciliation(many_in_order), Snapshot(other.items()), DEFAULT)
    assert_exact(outcome, many_items, other)
    assert len(outcome.sizes) <= rounds
    assert outcome.total_bytes <= kilobytes * 1000


@some
@given(st.integers(0, 1500), st.integers(0, 6), st.integers(2, 32), st.integers(0, 2**32))
def test_rounds_and_bytes_stay_logarithmic(count: int, changed: int, branching: int, seed: int) -> None:
    items = random_items(count, seed)
    other = differing(items, min(changed, count), seed)
    limits = Limits(branching=branching)
    outcome = exchange(Reconciliation(Snapshot(items.items()), limits=limits), Snapshot(other.items()), limits)
    assert_exact(outcome, items, other)
    levels = math.log(max(count / limits.list_items, 1), branching)
    assert len(outcome.sizes) <= levels / 2 + 3
    a_level, a_list = branching * 32, limits.list_items * 90 + 40
    # An item found is told once more; one in a split range is listed in the worst case by either side.
    assert outcome.total_bytes <= 60 + 2 * changed * (a_level * (math.ceil(levels) + 1) + a_list + 180)


def test_who_has_nothing_is_told_all_at_once() -> None:
    items = random_items(500, 5)
    outcome = exchange(Reconciliation(Snapshot()), Snapshot(items.items()), DEFAULT)
    assert_exact(outcome, {}, items)
    assert len(outcome.sizes) == 1


@pytest.mark.parametrize("count", [34, 64])
@pytest.mark.parametrize("changed", [1, 3, 30])
def test_one_round_trip_tells_the_asker_all_of_a_small_set(count: int, changed: int) -> None:
    items = random_items(count, 5, 38, 9)
    other = differing(items, changed)
    asker = Reconciliation(Snapshot(items.items()), limits=FEW)
    first = asker.next_offer()
    assert first is not None
    assert len(encode_offer(first)) < 30
    asker.receive(answer(Snapshot(other.items()), first, FEW).reply)
    last = asker.next_offer()
    assert last is not None
    assert last.ranges == ()
    assert asker.complete
    assert (asker.want, asker.give) == (lacks(items, other), lacks(other, items))
    told = answer(Snapshot(other.items()), last, FEW)
    assert (told.give, told.want) == (asker.want, asker.give)
    assert told.reply == Reply()


def test_one_round_trip_tells_both_when_the_asker_knew_that_they_differ() -> None:
    items = random_items(64, 6, 38, 9)
    other = differing(items, 5)
    asker = Reconciliation(Snapshot(items.items()), limits=FEW, differs=True)
    outcome = exchange(asker, Snapshot(other.items()), FEW)
    assert_exact(outcome, items, other)
    assert len(outcome.sizes) == 1


# -- rounds that are lost, late or too many -----------------------------------------------------------


def test_an_offer_is_the_same_until_its_reply_comes() -> None:
    asker = Reconciliation(Snapshot([(b"a", b"1")]))
    offer = asker.next_offer()
    assert offer is not None
    assert asker.next_offer() is offer
    assert asker.rounds == 1
    assert not asker.complete
    asker.receive(answer(Snapshot([(b"b", b"1")]), offer).reply)
    assert asker.next_offer() is not offer


def test_what_was_found_before_the_last_round_is_right_and_the_next_exchange_finds_the_rest() -> None:
    limits = Limits(max_message_bytes=1024, max_rounds=5)
    mine, theirs = random_items(300, 7), random_items(300, 8)
    exchanges = 0
    while mine != theirs:
        asker = Reconciliation(Snapshot(mine.items()), limits=limits)
        exchange(asker, Snapshot(theirs.items()), limits)
        assert asker.rounds <= 5
        assert asker.want.items() <= lacks(mine, theirs).items()
        assert asker.give.items() <= lacks(theirs, mine).items()
        assert asker.want or asker.give
        assert asker.complete == (asker.want == lacks(mine, theirs) and asker.give == lacks(theirs, mine))
        mine |= asker.want
        theirs |= {key: value for key, value in asker.give.items() if key not in asker.want}
        exchanges += 1
    assert exchanges > 10


def test_what_changed_since_is_neither_wanted_nor_given() -> None:
    own = Snapshot([(b"a", b"1"), (b"b", b"1")])
    told = answer(own, Offer((), ((b"a", b"1"), (b"b", b"2"), (b"c", b"1")), (b"a", b"d")))
    assert told == Answer(Reply(), want={b"b": b"2", b"c": b"1"}, give={b"a": b"1", b"b": b"1"})


def test_sets_that_change_between_rounds_end_the_exchange_all_the_same() -> None:
    rng = Random(9)
    theirs = random_items(500, 10)
    asker = Reconciliation(Snapshot(random_items(500, 11).items()), limits=Limits(max_message_bytes=1024))
    while (offer := asker.next_offer()) is not None:
        for key in rng.sample(sorted(theirs), 20):
            del theirs[key]
            theirs[rng.randbytes(46)] = b""
        asker.receive(decode_reply(encode_reply(answer(Snapshot(theirs.items()), offer).reply)))
    assert asker.complete


# -- hostile peers ------------------------------------------------------------------------------------


@st.composite
def ranges_(draw: st.DrawFn, max_count: int = 6) -> tuple[Range, ...]:
    """Ranges in order, as the codec lets them through, mostly lies."""
    cuts = sorted(draw(st.sets(bounds_, max_size=2 * max_count)))
    parts: list[Range] = []
    for lower, upper in pairwise(cuts):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            parts.append(Fingerprint(lower, upper, draw(st.integers(0, 2**64 - 1)), draw(st.binary()).ljust(16)[:16]))
        elif kind == 1:
            items = draw(st.dictionaries(keys_, values_, max_size=5))
            parts.append(Listing(lower, upper, tuple(sorted(i for i in items.items() if lower <= i[0] < upper))))
    return tuple(parts)


items_ = st.dictionaries(keys_, values_, max_size=5).map(lambda items: tuple(sorted(items.items())))
lacking_ = st.sets(keys_, max_size=5).map(lambda keys: tuple(sorted(keys)))
offers_ = st.builds(Offer, ranges_(), items_, lacking_)
replies_ = st.builds(Reply, ranges_(), items_, lacking_, bounds_.filter(bool))


@many
@given(sets_, offers_, limits_)
def test_any_offer_has_a_small_answer_that_gets_on(items: Items, offer: Offer, limits: Limits) -> None:
    answered = answer(Snapshot(items.items()), offer, limits)
    response = encode_reply(answered.reply)
    assert len(response) <= limits.max_message_bytes
    assert decode_reply(response) == answered.reply
    assert not offer.ranges or answered.reply.answered_below > offer.ranges[0].lower
    assert answered.give.items() <= items.items()


@many
@given(sets_, st.lists(replies_, max_size=6), limits_, limits_)
def test_any_reply_is_taken_or_refused_and_refused_without_a_trace(
    items: Items, replies: list[Reply], limits: Limits, theirs: Limits
) -> None:
    asker = Reconciliation(Snapshot(items.items()), limits=limits)
    for reply in replies:
        offer = asker.next_offer()
        if offer is None:
            return
        assert len(encode_offer(offer)) <= limits.max_message_bytes
        before = dict(asker.want), dict(asker.give)
        try:
            asker.receive(reply)
        except InvalidMessage as error:
            assert error.reason in ("unasked", "no-progress")  # noqa: PT017
            assert asker.next_offer() is offer
            assert (asker.want, asker.give) == before
            asker.receive(answer(Snapshot(), offer, theirs).reply)
    assert asker.give.items() <= items.items()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(ranges=(Listing(b"", b"b", ()),)), "unasked"),
        (Reply(ranges=(Listing(b"f", b"z", ()),)), "unasked"),
        (Reply(ranges=(Listing(b"x", END, ()),)), "unasked"),
        (Reply(ranges=(Listing(b"b", b"e", ()),), answered_below=b"d"), "unasked"),
        (Reply(news=((b"c", b""),)), "unasked"),
        (Reply(lacking=(b"c",)), "unasked"),
        (Reply(answered_below=b"b"), "no-progress"),
        (Reply(answered_below=b"a"), "no-progress"),
    ],
)
def test_a_reply_about_what_was_not_asked_is_refused(reply: Reply, reason: str) -> None:
    asker = Reconciliation(Snapshot([(b"c", b"1")]), b"b", b"f")
    asker.next_offer()
    with pytest.raises(InvalidMessage) as caught:
        asker.receive(reply)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "reply",
    [
        Reply(ranges=(Fingerprint(b"c", b"d", 1, bytes(16)),)),
        Reply(ranges=(Listing(b"c", b"d", ()),)),
        Reply(news=((b"a", b""),)),
        Reply(news=((b"f", b""),)),
        Reply(news=((b"d", b""),), answered_below=b"d"),
        Reply(lacking=(b"d",)),
    ],
)
def test_a_listing_is_answered_by_what_differs_in_it_and_nothing_else(reply: Reply) -> None:
    asker = Reconciliation(Snapshot([(b"c", b"1"), (b"g", b"1")]), b"b", b"f", differs=True)
    asker.next_offer()
    with pytest.raises(InvalidMessage) as caught:
        asker.receive(reply)
    assert caught.value.reason == "unasked"


def test_a_reply_without_an_offer_is_refused() -> None:
    with pytest.raises(InvalidMessage):
        Reconciliation(Snapshot()).receive(Reply())


def test_who_answers_crumb_by_crumb_is_given_up() -> None:
    asker = Reconciliation(Snapshot(), limits=Limits(max_rounds=20))
    crumb = b""
    while asker.next_offer() is not None:
        crumb += b"\0"
        asker.receive(Reply(answered_below=crumb))
    assert asker.rounds == 20
    assert not asker.complete


@dataclass
class Counted:
    """A set that counts what is asked of it."""

    inner: Snapshot
    fingerprints: int = 0
    items: int = 0

    def get(self, key: bytes) -> bytes | None:
        self.items += 1
        return self.inner.get(key)

    def count(self, lower: bytes, upper: bytes) -> int:
        return self.inner.count(lower, upper)

    def fingerprint(self, lower: bytes, upper: bytes) -> Fingerprint:
        self.fingerprints += 1
        return self.inner.fingerprint(lower, upper)

    def slice(self, lower: bytes, upper: bytes, limit: int) -> Sequence[Item]:
        found = self.inner.slice(lower, upper, limit)
        self.items += len(found)
        return found

    def split(self, lower: bytes, upper: bytes, parts: int) -> Sequence[bytes]:
        return self.inner.split(lower, upper, parts)


@pytest.mark.parametrize("kind", ["fingerprints", "one-list", "empty-lists", "true-lists", "news"])
def test_the_work_for_one_offer_is_bounded(many_items: Items, many_in_order: Snapshot, kind: str) -> None:
    own = Counted(many_in_order)
    bounds = [START, *many_in_order.split(START, END, 1 if kind == "one-list" else MAX_RANGES), END]
    ranges: list[Range] = []
    for lower, upper in pairwise(bounds):
        if kind == "fingerprints":
            ranges.append(Fingerprint(lower, upper, 0, bytes(16)))
        elif kind in ("one-list", "empty-lists"):
            ranges.append(Listing(lower, upper, ()))
        elif kind == "true-lists":
            ranges.append(Listing(lower, upper, tuple(many_in_order.slice(lower, upper, MAX_ITEMS // MAX_RANGES))))
    told = tuple(sorted(many_items.items())[:MAX_ITEMS]) if kind == "news" else ()
    answered = answer(own, Offer(tuple(ranges), told))
    assert own.fingerprints <= 2 * MAX_RANGES + DEFAULT.branching
    assert own.items <= 2 * MAX_ITEMS + 1
    assert len(encode_reply(answered.reply)) <= MAX_MESSAGE_BYTES


# -- sets ---------------------------------------------------------------------------------------------


@many
@given(sets_, bounds_, bounds_, st.integers(0, 70), st.integers(1, 20))
def test_a_snapshot_answers_as_its_sorted_items_do(
    items: Items, lower: bytes, upper: bytes, limit: int, parts: int
) -> None:
    own = Snapshot(items.items())
    inside = sorted(item for item in items.items() if lower <= item[0] < upper)
    assert len(own) == len(items)
    assert own.count(lower, upper) == len(inside)
    assert own.slice(lower, upper, limit) == inside[:limit]
    total = sum(int.from_bytes(sha512(bytes([len(k)]) + k + v).digest(), "big") for k, v in inside)
    digest = sha256(len(inside).to_bytes(8, "big") + (total % 2**512).to_bytes(64, "big")).digest()[:16]
    assert own.fingerprint(lower, upper) == Fingerprint(lower, upper, len(inside), digest)
    assert all(own.get(key) == value for key, value in items.items())
    assert own.get(lower) == items.get(lower)
    cuts = own.split(lower, upper, parts)
    counts = [own.count(*bounds) for bounds in pairwise([lower, *cuts, upper])]
    assert len(cuts) == max(min(parts, len(inside)) - 1, 0)
    assert sum(counts) == len(inside)
    assert max(counts) - min(counts) <= 1
    assert all(lower < cut < upper and len(cut) <= MAX_KEY_BYTES for cut in cuts)


def test_bounds_are_as_short_as_they_can_be() -> None:
    keys = [b"aaaa1", b"aaaa2xyz", b"ab", b"abc", b"c" * 100]
    own = Snapshot((key, b"") for key in keys)
    assert own.split(START, END, 5) == [b"aaaa2", b"ab", b"abc", b"c"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([], [(b"", b"")]),
        ([(b"a", b"bc")], [(b"ab", b"c")]),
        ([(b"a", b"1"), (b"b", b"2")], [(b"a", b"2"), (b"b", b"1")]),
        ([(b"a", b"1")], [(b"a", b"2")]),
    ],
)
def test_different_sets_have_different_fingerprints(one: list[Item], other: list[Item]) -> None:
    assert Snapshot(one).fingerprint(START, END).digest != Snapshot(other).fingerprint(START, END).digest


@pytest.mark.parametrize(
    "items",
    [[(b"a", b"1"), (b"a", b"2")], [(b"k" * (MAX_KEY_BYTES + 1), b"")], [(b"a", b"f" * 33)]],
    ids=["twice", "key", "fingerprint"],
)
def test_a_set_that_could_not_be_told_is_refused(items: list[Item]) -> None:
    with pytest.raises(InvalidRequest):
        Snapshot(items)


@pytest.mark.parametrize(
    "bounds",
    [(b"b", b"b"), (b"c", b"b"), (b"a", b"b" * 129), (b"a" * 129, END), (b"a", END + b"\0"), (END, END)],
)
def test_a_range_that_is_none_is_refused(bounds: tuple[bytes, bytes]) -> None:
    with pytest.raises(InvalidRequest):
        Reconciliation(Snapshot(), *bounds)


@pytest.mark.parametrize(
    "settings",
    [
        {"branching": 1},
        {"list_items": 0},
        {"list_items": MAX_ITEMS + 1},
        {"max_message_bytes": 1023},
        {"max_message_bytes": MAX_MESSAGE_BYTES + 1},
        {"max_ranges": 0},
        {"max_ranges": MAX_RANGES + 1},
        {"max_rounds": 0},
    ],
)
def test_limits_under_which_nothing_gets_on_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest):
        Limits(**settings)
