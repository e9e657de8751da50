"""What a bridge does when something is in the way: a subject that is forbidden, a full disk, a long absence."""

from __future__ import annotations

import logging

import pytest
import trio

from p2pnode.core.gossipsub.params import Params
from p2pnode.identity import Identity
from p2pnode.node.bridge.export import CURSOR, TURN_SECONDS
from p2pnode.node.bridge.gate import STUCK_SECONDS, Gate
from p2pnode.node.bridge.importing import TROUBLE_SECONDS
from p2pnode.node.bridge.topics import MAX_THREADS
from p2pnode.ports.roads import BrokerState, Consumed
from tests.node.bridge.broker import FakeBroker, FakeServer
from tests.node.bridge.world import SUBJECT, SUBJECTS, open_world
from tests.node.fakes import Wall, until

ANN = Identity(b"a" * 32)
FORBIDDEN = "hmmm.forbidden"


# -- export ----------------------------------------------------------------------------


async def test_a_subject_that_may_not_be_published_holds_up_no_other(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        world.server.denied.add(FORBIDDEN)
        bridge = world.mesh("m").add()
        bridge.start()
        for number in range(200):
            bridge.mesh.say(ANN, f"thought {number}", topic=FORBIDDEN)
        await until(lambda: bridge.exporter.failed["hmmm.*"] > 0)
        for number in range(200, 400):
            bridge.mesh.say(ANN, f"thought {number}", topic=FORBIDDEN)
        await trio.sleep(1)
        bridge.mesh.say(ANN, "note")
        await until(lambda: len(world.server.kept) == 1, 1)
        before = world.server.calls[FORBIDDEN]
        await trio.sleep(60)
        assert 0 < world.server.calls[FORBIDDEN] - before <= 20, "one is tried at a time"
        assert bridge.exporter.pending()["hmmm.*"] == 400
        assert FORBIDDEN in bridge.exporter.trouble()
        said = [each for each in caplog.records if each.levelno == logging.WARNING and "did not take" in each.message]
        assert said
        world.server.denied.clear()
        await world.settle(lambda: len(world.server.kept) == 401)
        assert set(world.calls().values()) == {1}
        assert bridge.exporter.trouble() == ""


@pytest.mark.parametrize("is_new", [False, True], ids=["its disk kept", "another disk and key"])
async def test_what_others_of_a_shared_durable_read_is_not_published_again(
    is_new: bool, autojump_clock: trio.abc.Clock
) -> None:
    async with open_world() as world:
        mesh, far = world.mesh("m"), world.mesh("far").add()
        one, two = mesh.add(durable="shared"), mesh.add(durable="shared")
        for each in (one, far) if is_new else (one, two, far):
            each.start()
        await trio.sleep(1)
        if not is_new:
            two.crash()
        for number in range(50):
            mesh.say(ANN, f"ours {number}")
            far.mesh.say(ANN, f"theirs {number}")
        await until(lambda: len(world.server.kept) == 100)
        await trio.sleep(300)  # the server has forgotten the ids
        two.start()
        await world.everybody_has({f"{who} {number}" for who in ("ours", "theirs") for number in range(50)})
        await trio.sleep(30)
        await world.settle()
        assert set(world.calls().values()) == {1}
        assert two.store.subscriptions[CURSOR].cursor == two.archive.last_arrival


async def test_a_bridge_that_lost_its_store_publishes_nothing_again(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        mesh, far = world.mesh("m"), world.mesh("far").add()
        one = mesh.add()
        for each in (one, far):
            each.start()
        for number in range(50):
            mesh.say(ANN, f"ours {number}")
            far.mesh.say(ANN, f"theirs {number}")
        await until(lambda: len(world.server.kept) == 100)
        await world.settle()
        one.crash()
        await trio.sleep(300)  # the server has forgotten the ids
        one.lose_store()
        one.start()
        await world.everybody_has({f"{who} {number}" for who in ("ours", "theirs") for number in range(50)})
        await trio.sleep(30)
        await world.settle()
        assert set(world.calls().values()) == {1}
        mesh.say(ANN, "and goes on")
        await until(lambda: len(world.server.kept) == 101)


async def test_a_connection_of_a_shared_durable_that_comes_back_publishes_nothing_again(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_world() as world:
        mesh = world.mesh("m")
        one, two = mesh.add(durable="shared"), mesh.add(durable="shared")
        for each in (one, two):
            each.start()
        await trio.sleep(1)
        two.broker.cut_off()
        for number in range(50):
            mesh.say(ANN, f"{number}")
        await until(lambda: len(world.server.kept) == 50)
        await trio.sleep(300)
        two.broker.reach()
        await world.settle()
        assert set(world.calls().values()) == {1}


# -- the gate --------------------------------------------------------------------------


class Reading(FakeBroker):
    """A broker as the gate sees it."""

    def __init__(self) -> None:
        super().__init__(FakeServer(Wall()), "b")
        self.read: list[Consumed] = []

    def state(self) -> BrokerState:
        return BrokerState(True, "nats://n:4222", True)

    def consumers(self) -> list[Consumed]:
        return self.read


def consumed(
    *, taken: int, pending: int = 0, unacknowledged: int = 0, redelivered: int = 0, durable: str = "d"
) -> Consumed:
    return Consumed(durable, "a", pending, unacknowledged, redelivered, pending == 0, taken)


async def opens_within(gate: Gate, seconds: float) -> bool:
    with trio.move_on_after(seconds) as scope:
        await gate.wait()
    return not scope.cancelled_caught


async def test_the_gate_opens_while_messages_keep_coming(autojump_clock: trio.abc.Clock) -> None:
    broker = Reading()
    gate = Gate(broker, ["a"])
    broker.read = [consumed(taken=100, unacknowledged=20)]
    assert not await opens_within(gate, 1)
    broker.read = [consumed(taken=119, unacknowledged=30)]
    assert not await opens_within(gate, 1)
    broker.read = [consumed(taken=120, unacknowledged=30)]
    assert await opens_within(gate, 1)


async def test_the_gate_waits_for_as_long_as_a_backlog_is_being_read(autojump_clock: trio.abc.Clock) -> None:
    broker = Reading()
    gate = Gate(broker, ["a"])
    for taken in range(0, 1000, 100):
        broker.read = [consumed(taken=taken, pending=1000 - taken)]
        assert not await opens_within(gate, STUCK_SECONDS - 1)
    broker.read = [consumed(taken=1000, pending=5000)]
    assert await opens_within(gate, 1), "what came since does not count"


async def test_what_is_given_again_does_not_stand_for_what_was_not_read_yet(autojump_clock: trio.abc.Clock) -> None:
    broker = Reading()
    gate = Gate(broker, ["a"])
    broker.read = [consumed(taken=0, pending=100)]
    assert not await opens_within(gate, 1)
    broker.read = [consumed(taken=100, pending=50, redelivered=50)]
    assert not await opens_within(gate, 1)
    broker.read = [consumed(taken=150, pending=7, redelivered=50)]
    assert await opens_within(gate, 1)


async def test_the_gate_waits_for_all_consumers_of_a_subject_and_not_for_one_that_is_stuck(
    autojump_clock: trio.abc.Clock,
) -> None:
    broker = Reading()
    gate = Gate(broker, ["a"])
    broker.read = [consumed(taken=10), consumed(taken=3, pending=7, durable="own")]
    assert not await opens_within(gate, STUCK_SECONDS - 1)
    assert await opens_within(gate, 2)


# -- import ----------------------------------------------------------------------------


async def test_nothing_is_acknowledged_while_the_disk_is_full_and_all_comes_when_there_is_room(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        bridge.store.full = True
        for number in range(20):
            world.plain(f"plain {number}")
        await trio.sleep(60)
        (durable,) = [each for each in world.server.durables.values() if each.subject == SUBJECT]
        assert len(durable.again) + len(durable.given) == 20
        assert bridge.importer.troubled == 20
        assert bridge.archive.fault is not None
        assert any("cannot be stored" in each.message and each.levelno == logging.ERROR for each in caplog.records)
        bridge.store.full = False
        await world.everybody_has({f"plain {number}" for number in range(20)})
        await until(lambda: bridge.importer.troubled == 0)
        assert bridge.importer.tallies[SUBJECT].plain == 20
        assert not durable.again


async def test_a_message_that_another_bridge_took_meanwhile_is_no_trouble_any_more(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        bad = world.seal(ANN, "stubborn")
        bridge.unwritable.add(bad.data)
        out_of = world.mesh("other").add()
        out_of.start()
        out_of.mesh.say(ANN, "fine")
        out_of.archive.take(bad, carrier="gossip")
        await until(lambda: bridge.importer.troubled == 1)
        for durable in world.server.durables.values():
            durable.again.clear()  # its name's other reader got it
        await trio.sleep(TROUBLE_SECONDS + 1)
        assert bridge.importer.troubled == 0


def test_the_router_has_room_for_all_threads_and_mapped_topics() -> None:
    assert MAX_THREADS + len(SUBJECTS.topics()) < Params().max_topics


# -- brokers in a row ------------------------------------------------------------------


async def test_over_two_brokers_in_a_row_signed_messages_cross_once_and_plain_ones_stop_at_the_second(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_world() as world:
        second = FakeServer(world.wall)
        left = world.mesh("left").add()
        near = world.mesh("middle").add()
        far = near.mesh.add(server=second)
        right = world.mesh("right").add(server=second)
        for each in world.stations:
            each.start()
        await trio.sleep(5)
        left.mesh.say(ANN, "from the left")
        near.mesh.say(ANN, "from the middle")
        right.mesh.say(ANN, "from the right")
        world.plain("plain")
        await world.everybody_has({"from the left", "from the middle", "from the right"})
        await trio.sleep(10 * TURN_SECONDS)
        for server in (world.server, second):
            published = [each.headers["Nats-Msg-Id"] for each in server.publications if "P2P-From" in each.headers]
            assert len(published) == len(set(published)) == 3
        assert "plain" in far.texts()
        assert "plain" not in right.texts()
        assert all(len(ids) == 1 for each in world.stations for ids in each.texts().values())
