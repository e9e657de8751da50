"""Sequence numbers never repeat, whatever clock and disk do."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import EnvironmentFault
from p2pnode.node.seqno import RESERVE_NS, SeqnoSource
from tests.node.fakes import START_NS, MemorySeqnos, Wall
from tests.properties import many

SECOND = 1_000_000_000
EVENTS = st.one_of(
    st.just(("take", 0)),
    st.just(("restart", 0)),
    st.just(("disk full", 0)),
    st.tuples(st.just("clock"), st.integers(-3600 * SECOND, 3600 * SECOND)),
    st.tuples(st.just("clock"), st.integers(-5, 5)),
    st.tuples(st.just("together"), st.integers(2, 5)),
)


@many
@given(st.lists(EVENTS, max_size=40))
def test_no_number_repeats_over_restarts_and_clock_steps(events: list[tuple[str, int]]) -> None:
    async def main() -> None:
        store, wall, taken = MemorySeqnos(), Wall(runs=False), list[int]()
        source = SeqnoSource(store, wall)

        async def take() -> None:
            taken.append(await source.take())

        for event, value in events:
            if event == "take":
                await take()
            elif event == "together":
                async with trio.open_nursery() as nursery:
                    for _ in range(value):
                        nursery.start_soon(take)
            elif event == "restart":
                source = SeqnoSource(store, wall)
            elif event == "clock":
                wall.step_ns += value
            else:
                store.broken = True
                try:
                    await take()
                except EnvironmentFault:
                    pass
                store.broken = False
        assert taken == sorted(set(taken))
        assert all(number <= store.ceiling for number in taken)

    trio.run(main)


async def test_a_number_follows_the_clock_and_costs_one_write_in_ten_seconds() -> None:
    store, wall = MemorySeqnos(), Wall(runs=False)
    source = SeqnoSource(store, wall)
    assert await source.take() == START_NS
    for tick in range(1, 101):
        wall.step_ns = tick * RESERVE_NS // 100
        assert await source.take() == START_NS + wall.step_ns
    assert store.writes == 1


async def test_a_full_disk_gives_no_number_and_takes_none() -> None:
    store = MemorySeqnos()
    source = SeqnoSource(store, Wall(runs=False))
    store.broken = True
    for _ in range(2):
        with pytest.raises(EnvironmentFault):
            await source.take()
    store.broken = False
    assert await source.take() == START_NS


async def test_a_cancelled_caller_blocks_nobody() -> None:
    store = MemorySeqnos()
    source = SeqnoSource(store, Wall(runs=False))
    store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.take)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    store.gate = None
    assert await source.take() == START_NS
