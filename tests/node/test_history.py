"""The bounded memory of messages: bounds hold, and followers miss nothing unnoticed."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.message import SignedMessage, Topic
from p2pnode.core.metadata import Payload
from p2pnode.node import history as history_module
from p2pnode.node.history import History
from tests.properties import many, some

NOTHING = Payload(b"", "", None)


def message(number: int, topic: str = "t", size: int = 0) -> SignedMessage:
    return SignedMessage(b"\x00\x01o", number.to_bytes(8, "big"), Topic(topic), b"", b"s", b"", b"r" * size)


def keep(history: History, number: int, topic: str = "t", size: int = 0) -> bool:
    return history.append(message(number, topic, size), received_at_ns=number, carrier="gossip")


def numbers(history: History, topic: str = "t", position: int = 0, limit: int = 1000) -> list[int]:
    return [kept.message.number for kept in history.read(topic, position, limit)]


@many
@given(
    st.integers(1, 6),
    st.integers(1, 20_000),
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc"), st.integers(0, 8000)), max_size=60),
)
def test_bounds_hold_under_any_appends(keep_count: int, keep_bytes: int, appends: list[tuple[int, str, int]]) -> None:
    history = History(keep_count, keep_bytes)
    arrived = {topic: 0 for topic in "abc"}
    for number, topic, size in appends:
        known = message(number).id in history
        assert keep(history, number, topic, size) is not known
        arrived[topic] += not known
        kept = [each for name in "abc" for each in history.read(name, 0, 1000)]
        assert all(history.count(name) <= keep_count for name in "abc")
        assert history.bytes == sum(each.cost_bytes for each in kept)
        assert history.bytes <= keep_bytes or len(kept) == 1
        assert sum(arrived.values()) == len(kept) + history.evicted
        for name in "abc":
            positions = [each.position for each in history.read(name, 0, 1000)]
            assert positions == list(range(history.first_position(name), history.end_position(name)))
            assert history.end_position(name) == arrived[name]
        for each in kept:
            where = history.position_after(each.message.topic, each.message.id)
            assert where == each.position + 1


@some
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 40_000))
def test_a_follower_gets_every_message_or_an_exact_count(seed: int, keep_count: int, keep_bytes: int) -> None:
    async def main() -> None:
        rng = Random(seed)
        history = History(keep_count, keep_bytes)
        history.open("t")
        total = 80
        seen: list[int] = []
        lost = 0

        async def follow() -> None:
            nonlocal lost
            position = 0
            while position < total:
                await history.wait_beyond("t", position)
                first = history.first_position("t")
                if position < first:
                    lost += first - position
                    position = first
                for kept in tuple(history.read("t", position, rng.randint(1, 5))):
                    seen.append(kept.message.number)
                    position = kept.position + 1
                    if rng.random() < 0.3:
                        await trio.lowlevel.checkpoint()
                        break

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for number in range(total):
                keep(history, number, "t", rng.randint(0, 3000))
                keep(history, 1000 + number, "other", rng.randint(0, 3000))
                if rng.random() < 0.5:
                    await trio.lowlevel.checkpoint()
        assert len(seen) + lost == total
        assert seen == sorted(set(seen))

    trio.run(main)


def test_a_message_is_kept_once_whatever_its_topic_says() -> None:
    history = History(10, 10**6)
    assert keep(history, 1)
    assert not keep(history, 1)
    assert not keep(history, 1, "other")
    assert numbers(history) == [1]


def test_reading_goes_on_where_it_stopped() -> None:
    history = History(5, 10**6)
    for number in range(8):
        keep(history, number)
    assert numbers(history) == [3, 4, 5, 6, 7]
    assert numbers(history, position=5) == [5, 6, 7]
    assert numbers(history, position=4, limit=2) == [4, 5]
    assert numbers(history, position=8) == []
    assert history.position_after("t", message(2).id) is None
    assert history.position_after("other", message(3).id) is None


def test_the_oldest_of_all_topics_goes_when_memory_is_full() -> None:
    history = History(100, 5 * 1500)
    for number in range(7):
        keep(history, number, "even" if number % 2 == 0 else "odd")
    assert (numbers(history, "even"), numbers(history, "odd")) == ([2, 4, 6], [3, 5])
    assert history.evicted == 2


def test_one_message_is_kept_even_over_the_bound() -> None:
    history = History(10, 1)
    keep(history, 1, size=5000)
    keep(history, 2, size=5000)
    assert numbers(history) == [2]


def test_asking_for_a_topic_does_not_make_one() -> None:
    history = History(10, 10**6)
    assert (numbers(history, "x"), history.first_position("x"), history.end_position("x"), history.count("x")) == (
        [],
        0,
        0,
        0,
    )
    assert history._logs == {}


def test_no_topic_is_opened_beyond_the_bound_and_none_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MAX_TOPICS", 2)
    history = History(1, 1)
    assert keep(history, 1, "a")
    assert keep(history, 2, "b")
    assert not keep(history, 3, "c")
    assert not history.open("c")
    assert history.open("a")
    assert history.count("a") == 0
    assert keep(history, 4, "a")
    assert history.first_position("a") == 1


async def test_a_waiting_follower_wakes_for_its_topic_only() -> None:
    history = History(10, 10**6)
    history.open("t")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(history.wait_beyond, "t", 1)
        for number, topic in ((1, "other"), (2, "t")):
            keep(history, number, topic)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
        keep(history, 3, "t")
