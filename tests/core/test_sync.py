"""The exchange of `p2pnode.core.sync`, both sides, over the wire's codec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.core.asking import Asking, Limits
from p2pnode.core.itemset import BlockSet
from p2pnode.core.message import MessageId
from p2pnode.core.reconcile import END, START, Fingerprint, Listing, Offer, Reply
from p2pnode.core.sync import (
    MAX_MESSAGES_BYTES,
    MAX_WANT,
    Conflict,
    Holding,
    SyncAnswer,
    SyncRequest,
    Whole,
    compare,
    id_of_key,
    item_key,
    message_digest,
    time_of_key,
    topic_hash,
)
from p2pnode.errors import InvalidMessage
from p2pnode.wire.sync import decode_answer, decode_request, encode_answer, encode_request
from tests.properties import some

NOW = 1_763_899_200_000_000_000
TOPICS = ("councils.forming", "councils.status", "backbeat.status", "chat", "jobs")


def key_in(raw: bytes) -> bytes:
    """Test messages begin with their key, after a length."""
    if not raw or len(raw) <= raw[0]:
        raise InvalidMessage("protobuf", "no message")
    return raw[1 : 1 + raw[0]]


def body_of(key: bytes, text: bytes = b"") -> bytes:
    return bytes([len(key)]) + key + text


def many(count: int) -> list[bytes]:
    """Keys of messages a millisecond apart."""
    return [key_at(each, published_at_ns=NOW - (count - each) * 10**6) for each in range(count)]


def key_at(number: int, topic: str = TOPICS[0], published_at_ns: int | None = None) -> bytes:
    when = NOW - (1000 - number) * 10**9 if published_at_ns is None else published_at_ns
    return item_key(
        topic,
        when,
        MessageId(b"origin of thirty-eight bytes".ljust(38 - 8) + topic_hash(topic) + number.to_bytes(8, "big")),
    )


@dataclass
class Side:
    """What one node holds, and how it answers."""

    horizons: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOPICS, 0))
    bodies: dict[bytes, bytes] = field(default_factory=dict)
    wishes: dict[bytes, bytes] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)
    tamper: Callable[[SyncAnswer], SyncAnswer] = lambda answer: answer

    def put(self, keys: Iterable[bytes], text: bytes = b"") -> Side:
        self.bodies.update((key, body_of(key, text)) for key in keys)
        return self

    def holdings(self) -> dict[bytes, Holding]:
        by_topic: dict[bytes, list[tuple[bytes, bytes]]] = {topic_hash(each): [] for each in self.horizons}
        for key, body in self.bodies.items():
            by_topic[key[:8]].append((key, message_digest(body)))
        return {
            topic_hash(each): Holding(BlockSet(by_topic[topic_hash(each)]), at) for each, at in self.horizons.items()
        }

    def answer(self, request: SyncRequest) -> SyncAnswer:
        answer = SyncAnswer()
        if request.offer is not None:
            compared = compare(self.holdings(), request)
            self.wishes.update(compared.lacking)
            self.conflicts += compared.conflicts
            answer = compared.answer
        by_id = {id_of_key(key): body for key, body in self.bodies.items()}
        messages: list[bytes] = []
        handled = 0
        for each in request.want:
            if sum(map(len, messages)) + len(by_id.get(each, b"")) > MAX_MESSAGES_BYTES:
                break
            handled += 1
            messages += [by_id[each]] if each in by_id else []
        return self.tamper(replace(answer, messages=tuple(messages), handled=handled))

    def asking(
        self, upper_ns: int = NOW, limits: Limits | None = None, wishes: Mapping[bytes, bytes] | None = None
    ) -> Asking:
        return Asking(
            self.holdings(),
            upper_ns=upper_ns,
            claim=lambda key, _digest: key not in self.bodies,
            key_of=key_in,
            wishes=wishes,
            limits=limits,
        )


@dataclass
class Cost:
    out: int = 0
    back: int = 0
    trips: int = 0


def run(asking: Asking, asker: Side, answerer: Side) -> Cost:
    cost = Cost()
    while (request := asking.next_request()) is not None:
        body = encode_request(request)
        answer = encode_answer(answerer.answer(decode_request(body)))
        cost.out, cost.back, cost.trips = cost.out + len(body), cost.back + len(answer), cost.trips + 1
        assert cost.trips < 1000
        for raw in asking.receive(decode_answer(answer)):
            asker.bodies[asking.accept(raw)] = raw
    return cost


def sync_both(one: Side, other: Side) -> tuple[Asking, Asking, Cost]:
    """One asks, then the other pulls what it learned that it lacks."""
    asking = one.asking()
    cost = run(asking, one, other)
    pulling = other.asking(wishes=other.wishes) if other.wishes else other.asking()
    run(pulling, other, one)
    return asking, pulling, cost


def test_equal_stores_of_five_topics_cost_one_small_request_and_answer(capsys: pytest.CaptureFixture[str]) -> None:
    keys = [key_at(number, topic) for topic in TOPICS for number in range(100)]
    one, other = Side().put(keys), Side().put(keys)
    one.horizons = other.horizons = dict.fromkeys(TOPICS, NOW - 10**12)
    cost = run(one.asking(), one, other)
    with capsys.disabled():
        print(f"\n  nothing to do, 5 topics: {cost.out} bytes out, {cost.back} back, {cost.trips} round trip")
    assert cost.trips == 1
    assert cost.out + cost.back < 300


@given(
    st.sets(st.integers(0, 999), max_size=300),
    st.sets(st.integers(0, 999), max_size=300),
    st.sets(st.integers(0, 999), max_size=600),
    st.tuples(*[st.integers(0, 999)] * 2),
    st.integers(0, 1010),
)
@settings(some)
def test_both_end_with_all_that_is_above_both_horizons_and_below_the_upper_bound(
    mine: set[int], theirs: set[int], shared: set[int], floors: tuple[int, int], upper: int
) -> None:
    """Numbers are seconds of signed time, spread over topics; horizons have dropped what was below them."""

    def keys(numbers: set[int], floor: int) -> list[bytes]:
        return [key_at(each, TOPICS[each % 3]) for each in numbers if each >= floor]

    one, other = Side().put(keys(mine | shared, floors[0])), Side().put(keys(theirs | shared, floors[1]))
    ns = [NOW - (1000 - floor) * 10**9 for floor in floors]
    one.horizons, other.horizons = dict.fromkeys(TOPICS, ns[0]), dict.fromkeys(TOPICS, ns[1])
    before = set(one.bodies), set(other.bodies)
    upper_ns = NOW - (1000 - upper) * 10**9
    run(one.asking(upper_ns), one, other)
    if other.wishes:
        run(other.asking(wishes=other.wishes), other, one)
    common = {key for key in before[0] | before[1] if max(ns) <= time_of_key(key) < upper_ns}
    assert set(one.bodies) == before[0] | common
    assert set(other.bodies) == before[1] | common


def test_a_late_horizon_of_the_answerer_costs_no_round_trip_when_the_rest_is_the_same() -> None:
    one, other = Side().put(map(key_at, range(1000))), Side().put(map(key_at, range(600, 1000)))
    other.horizons[TOPICS[0]] = time_of_key(key_at(600))
    cost = run(asking := one.asking(), one, other)
    assert (cost.trips, asking.told, asking.pulled, other.wishes) == (1, 0, 0, {})


def test_what_fell_below_the_answerers_horizon_meanwhile_is_not_wanted_any_more() -> None:
    one, other = Side().put(map(key_at, range(100))), Side()
    asking = one.asking()
    opening = asking.next_request()
    assert opening is not None
    asking.receive(other.answer(opening))
    other.horizons[TOPICS[0]] = time_of_key(key_at(60))
    run(asking, one, other)
    assert set(other.wishes) == set(map(key_at, range(60, 100)))


def test_topics_that_the_answerer_does_not_keep_are_left_out() -> None:
    one, other = Side().put(key_at(each, topic) for each in range(50) for topic in TOPICS), Side()
    other.horizons = {TOPICS[1]: 0, "another": 0}
    other.put(key_at(each, TOPICS[1]) for each in range(40, 60))
    sync_both(one, other)
    assert {key[:8] for key in other.bodies} == {topic_hash(TOPICS[1])}
    assert len(other.bodies) == 60
    assert set(other.bodies) < set(one.bodies)


@pytest.mark.parametrize("missing", [1, 10, 100, 1000])
def test_the_cost_of_a_comparison_follows_what_is_missing(missing: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = Random(missing)
    keys = many(20_000)
    one, other = Side().put(rng.sample(keys, len(keys) - missing)), Side().put(keys)
    asking = one.asking()
    cost = run(asking, one, other)
    each = (cost.out + cost.back - asking.pulled_bytes) / missing
    with capsys.disabled():
        print(f"\n  {missing} of 20,000 missing: {each:.0f} bytes each beside itself, {cost.trips} round trips")
    assert one.bodies.keys() == other.bodies.keys()
    assert each < 8000 / missing + 1500


def test_who_has_nothing_gets_everything_in_batches() -> None:
    other = Side().put(many(5000), text=b"." * 700)
    one = Side()
    asking = one.asking()
    cost = run(asking, one, other)
    assert len(one.bodies) == 5000
    assert not asking.unfinished
    assert cost.trips < 20


def test_who_has_all_tells_one_that_has_nothing_enough_and_no_more() -> None:
    one, other = Side().put(many(20_000)), Side()
    asking = one.asking()
    run(asking, one, other)
    assert Limits().tell <= asking.told == len(other.wishes) < 2 * Limits().tell


def test_a_byte_limit_ends_the_exchange_and_the_next_one_brings_the_rest() -> None:
    other, one = Side().put(many(3000), text=b"." * 2000), Side()
    limits = Limits(pull_bytes=2 * 1024 * 1024)
    rounds = 0
    while (asking := one.asking(limits=limits)).next_request() is not None:
        run(asking, one, other)
        rounds += 1
        assert asking.pulled_bytes < 4 * 1024 * 1024
        if not asking.unfinished:
            break
    assert len(one.bodies) == 3000
    assert rounds > 1


def test_two_bodies_under_one_key_are_found_by_both_and_pulled_by_neither() -> None:
    shared = [key_at(each) for each in range(500)]
    one, other = Side().put(shared), Side().put(shared)
    one.put([shared[77]], b"mine")
    other.put([shared[77]], b"yours")
    asking, _, _ = sync_both(one, other)
    digests = message_digest(one.bodies[shared[77]]), message_digest(other.bodies[shared[77]])
    assert asking.conflicts == [Conflict(shared[77], *digests)]
    assert (asking.pulled, asking.told, other.wishes) == (0, 0, {})
    assert one.bodies[shared[77]].endswith(b"mine")
    third = other.asking()
    run(third, other, one)
    assert [each.ours for each in third.conflicts] == [digests[1]]


def test_a_busy_answerer_ends_the_exchange() -> None:
    one, other = Side(), Side().put(map(key_at, range(5)))
    other.tamper = lambda _answer: SyncAnswer(busy=True)
    run(asking := one.asking(), one, other)
    assert asking.busy
    assert asking.unfinished


def always(answer: SyncAnswer) -> Callable[[SyncAnswer], SyncAnswer]:
    return lambda _: answer


def expect(reason: str, tamper: Callable[[SyncAnswer], SyncAnswer], text: bytes = b"") -> Asking:
    one, other = Side().put(map(key_at, range(0, 400, 2)), text), Side().put(map(key_at, range(400)), text)
    other.tamper = tamper
    asking = one.asking()
    with pytest.raises(InvalidMessage) as raised:
        run(asking, one, other)
    assert raised.value.reason == reason
    return asking


def test_a_message_other_than_the_one_offered_is_refused() -> None:
    def other_body(answer: SyncAnswer) -> SyncAnswer:
        return replace(answer, messages=tuple(each + b"!" for each in answer.messages))

    def other_time(answer: SyncAnswer) -> SyncAnswer:
        return replace(answer, messages=tuple(body_of(each[1:9] + bytes(8) + each[17:]) for each in answer.messages))

    assert expect("other-body", other_body).pulled == 0
    assert expect("other-body", other_time).pulled == 0


def test_a_message_that_was_not_asked_for_is_refused() -> None:
    def another(answer: SyncAnswer) -> SyncAnswer:
        return replace(answer, messages=(body_of(key_at(999)), *answer.messages[1:]))

    def twice(answer: SyncAnswer) -> SyncAnswer:
        return replace(answer, messages=answer.messages[:1] * min(2, len(answer.messages)) + answer.messages[2:])

    def more(answer: SyncAnswer) -> SyncAnswer:
        return replace(answer, messages=(*answer.messages, body_of(key_at(999))))

    def handled(answer: SyncAnswer) -> SyncAnswer:
        return replace(answer, handled=answer.handled + 1)

    for tamper in (another, twice, more, handled):
        expect("unasked", tamper)


def test_garbage_in_place_of_a_message_is_refused() -> None:
    expect("protobuf", lambda answer: replace(answer, messages=(b"\xff\xff",) * len(answer.messages)))


def test_answers_that_leave_out_what_was_asked_are_refused() -> None:
    expect("no-progress", lambda answer: replace(answer, messages=(), handled=0))
    expect("no-progress", lambda answer: replace(answer, reply=None))


def test_who_offers_and_does_not_deliver_is_found_out() -> None:
    one, other = Side(), Side().put(map(key_at, range(300)))
    other.tamper = lambda answer: replace(answer, messages=answer.messages[: len(answer.messages) // 3])
    asking = one.asking()
    run(asking, one, other)
    assert (asking.pulled, asking.undelivered) == (100, 200)


def test_items_outside_the_windows_are_refused_on_both_sides() -> None:
    stranger = key_at(1, "a topic nobody offered")
    too_young = key_at(1, published_at_ns=NOW)
    for key in (stranger, too_young, b"short"):
        item = ((key, bytes(16)),)
        one, other = Side(), Side()
        other.tamper = always(SyncAnswer(reply=Reply(news=item)))
        with pytest.raises(InvalidMessage, match="no window"):
            run(one.asking(), one, other)
        request = one.asking().next_request()
        assert request is not None
        with pytest.raises(InvalidMessage, match="no window"):
            compare(other.holdings(), replace(request, opening=False, offer=Offer((Listing(START, END, item),))))


def test_an_answerer_that_never_comes_to_the_point_is_given_up() -> None:
    """All differs, it says, one range at a time; and what is listed then is the same after all."""
    asking = Side().put(map(key_at, range(1000))).asking()
    rounds = 0

    def ask_on() -> None:
        nonlocal rounds
        while (request := asking.next_request()) is not None:
            assert request.offer is not None
            first = request.offer.ranges[0]
            lie = (Fingerprint(first.lower, first.upper, 5, bytes(16)),) if isinstance(first, Fingerprint) else ()
            rounds += 1
            asking.receive(SyncAnswer(reply=Reply(lie, answered_below=first.upper)))

    with pytest.raises(InvalidMessage) as raised:
        ask_on()
    assert raised.value.reason == "endless"
    assert rounds == Limits().fruitless_rounds + 1


def test_windows_cannot_be_widened_nor_narrowed_twice() -> None:
    one, other = Side().put(map(key_at, range(50))), Side()
    one.horizons[TOPICS[0]] = NOW - 10**12
    whole = Whole(0, bytes(16))
    for narrowed in (((0, 1), (1, 1), (2, 1), (3, 1), (4, 1)), ((9, NOW),), ()):
        other.tamper = always(SyncAnswer(whole=whole, narrowed=narrowed))
        with pytest.raises(InvalidMessage, match="narrow"):
            run(one.asking(), one, other)
    other.tamper = lambda _answer: SyncAnswer(whole=Whole(7, bytes(16)), narrowed=((0, NOW - 10**11),))
    with pytest.raises(InvalidMessage, match="not possible"):
        run(one.asking(), one, other)


def test_a_request_is_the_same_until_its_answer_comes_and_an_answer_needs_a_request() -> None:
    asking = Side().put([key_at(1)]).asking()
    assert asking.next_request() == asking.next_request()
    asking.receive(SyncAnswer(reply=Reply()))
    with pytest.raises(InvalidMessage, match="without a request"):
        asking.receive(SyncAnswer(reply=Reply()))


def test_no_more_ids_are_asked_for_at_once_than_the_wire_takes() -> None:
    wishes = {key_at(each): message_digest(body_of(key_at(each))) for each in range(3000)}
    one, other = Side(), Side().put(wishes)
    asking = one.asking(wishes=wishes)
    first = asking.next_request()
    assert first is not None
    assert len(first.want) == MAX_WANT
    assert first.offer is None
    run(asking, one, other)
    assert len(one.bodies) == 3000
