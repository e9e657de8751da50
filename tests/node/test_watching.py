"""Watchers of councils: the newest state of what changed, however slowly it is read."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from p2pnode.errors import NotFound
from p2pnode.node import watching
from p2pnode.node.watching import TOGETHER_SECONDS, Watchers
from p2pnode.ports import JsonObject
from tests.node.council_fleet import create, open_council_fleet
from tests.node.fakes import until


class States:
    """Councils, by id, with a number that each change raises."""

    def __init__(self) -> None:
        self.stopping = trio.Event()
        self.numbers: dict[str, int] = {}
        self.asked = 0
        self.watchers = Watchers(self.document, self.stopping)

    def document(self, council_id: str) -> JsonObject | None:
        self.asked += 1
        return {"council_id": council_id, "n": self.numbers[council_id]} if council_id in self.numbers else None

    def change(self, council_id: str) -> None:
        self.numbers[council_id] = self.numbers.get(council_id, 0) + 1
        self.watchers.changed(council_id)


async def test_a_watcher_begins_with_what_is_and_goes_on_with_what_changes(autojump_clock: MockClock) -> None:
    states = States()
    states.change("a")
    states.change("b")
    async with states.watchers.watch(None, ["a", "b"]) as steps:
        assert [await anext(steps), await anext(steps)] == [
            {"council_id": "a", "n": 1},
            {"council_id": "b", "n": 1},
        ]
        states.change("b")
        assert await anext(steps) == {"council_id": "b", "n": 2}


async def test_a_watcher_of_one_council_hears_of_no_other(autojump_clock: MockClock) -> None:
    states = States()
    states.change("a")
    async with states.watchers.watch("a", ["a"]) as steps:
        await anext(steps)
        states.change("b")
        with trio.move_on_after(10) as waited:
            await anext(steps)
        assert waited.cancelled_caught
    async with states.watchers.watch("a", ["a", "b"]) as steps:
        assert (await anext(steps))["council_id"] == "a"


async def test_a_slow_reader_gets_the_newest_state_once(autojump_clock: MockClock) -> None:
    states = States()
    async with states.watchers.watch(None, ()) as steps:
        for _ in range(1000):
            states.change("a")
            states.change("b")
        assert [await anext(steps), await anext(steps)] == [
            {"council_id": "a", "n": 1000},
            {"council_id": "b", "n": 1000},
        ]
        with trio.move_on_after(10) as waited:
            await anext(steps)
        assert waited.cancelled_caught


async def test_changes_close_together_are_one_step(autojump_clock: MockClock) -> None:
    states = States()
    got: list[int] = []

    async def read() -> None:
        async with states.watchers.watch("a", ()) as steps:
            async for step in steps:
                got.append(step["n"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(1)
        for _ in range(5):
            states.change("a")
            await trio.sleep(TOGETHER_SECONDS / 10)
        await trio.sleep(1)
        states.stopping.set()
    assert got == [5]


async def test_what_is_known_no_more_is_no_step(autojump_clock: MockClock) -> None:
    states = States()
    states.change("b")
    async with states.watchers.watch(None, ["a", "b"]) as steps:
        assert (await anext(steps))["council_id"] == "b"


async def test_a_reader_that_stands_still_does_not_keep_what_is_gone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MAX_COUNCILS", 10)
    states = States()
    async with states.watchers.watch(None, ()) as steps:
        for number in range(1000):
            states.change(f"c{number}")
            if number >= 10:
                del states.numbers[f"c{number - 10}"]
        (watcher,) = states.watchers._all
        assert len(watcher.fresh) <= 20
        got = [(await anext(steps))["council_id"] for _ in range(10)]
        assert got == [f"c{number}" for number in range(990, 1000)]
        assert states.asked < 3000


async def test_watchers_end_when_the_node_stops_and_are_forgotten(autojump_clock: MockClock) -> None:
    states = States()
    ended: list[int] = []

    async def read(number: int) -> None:
        async with states.watchers.watch(None, ()) as steps:
            async for _ in steps:
                raise AssertionError("nothing changed")
        ended.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(read, number)
        await trio.testing.wait_all_tasks_blocked()
        assert len(states.watchers) == 5
        states.stopping.set()
    assert sorted(ended) == list(range(5))
    assert len(states.watchers) == 0


async def test_a_cancelled_watcher_is_forgotten(autojump_clock: MockClock) -> None:
    states = States()
    with trio.move_on_after(1):
        async with states.watchers.watch(None, ()) as steps:
            await anext(steps)
    assert len(states.watchers) == 0


async def test_a_node_shows_a_council_forming_until_it_is_active(autojump_clock: MockClock) -> None:
    async with open_council_fleet() as fleet:
        watching_node = fleet.agents[3]
        council_id = await create(fleet.orchestrators[0])
        await until(lambda: any(each["council_id"] == council_id for each in watching_node.node.councils(status=None)))
        seen = []
        async with watching_node.node.watch_councils(council_id) as steps:
            assert watching_node.node.metrics()["p2pnode_council_watchers"] == 1
            async for step in steps:
                seen.append(step)
                if step["status"] == "active":
                    break
        assert all(each["council_id"] == council_id for each in seen)
        assert [(each["term"], each["n"]) for each in seen] == sorted((each["term"], each["n"]) for each in seen)
        assert seen[-1]["missing"] == []


async def test_a_watcher_of_an_unknown_council_is_told_so(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=1) as fleet:
        with pytest.raises(NotFound):
            async with fleet.agents[0].node.watch_councils("5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e11"):
                raise AssertionError("there is none")


async def test_a_watcher_at_a_node_ends_when_the_node_leaves(autojump_clock: MockClock) -> None:
    async with open_council_fleet(agents=2) as fleet:
        node = fleet.agents[0].node
        ended = trio.Event()

        async def read() -> None:
            async with node.watch_councils(None) as steps:
                async for _ in steps:
                    pass
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(1)
            await node.drain()
            with trio.fail_after(10):
                await ended.wait()
