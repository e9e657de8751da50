"""The small parts of a bridge, and what they do when disk or broker are in the way."""

from __future__ import annotations

from random import Random

import trio

from p2pnode.core.message import MessageId
from p2pnode.errors import EnvironmentFault
from p2pnode.identity import Identity
from p2pnode.node.bridge import importing
from p2pnode.node.bridge.export import CURSOR
from p2pnode.node.bridge.importing import MAX_QUEUED, UNDECIDED_SECONDS, root_of
from p2pnode.node.bridge.refusals import MAX_LISTED, Refusals
from p2pnode.node.bridge.seen import Seen
from p2pnode.node.bridge.turns import rank
from p2pnode.node.deliveries import Deliveries
from p2pnode.ports import Subscription
from p2pnode.ports.roads import BrokerState, NatsMessage
from tests.node.bridge.world import SUBJECT, SUBJECTS, TOPIC, open_world
from tests.node.fakes import Wall, until
from tests.node.stored import MemoryArchive

ANN = Identity(b"a" * 32)


def test_every_message_has_one_first_bridge_and_an_order_of_the_others() -> None:
    bridges = [Identity(bytes([number]) * 32).peer_id for number in range(1, 5)]
    firsts = dict.fromkeys(bridges, 0)
    for number in range(400):
        message_id = MessageId(ANN.peer_id_bytes + number.to_bytes(8, "big"))
        ranks = {own: rank(message_id, own, bridges) for own in bridges}
        assert sorted(ranks.values()) == [0, 1, 2, 3]
        firsts[min(ranks, key=lambda own: ranks[own])] += 1
    assert min(firsts.values()) > 60


def test_when_a_bridge_goes_the_others_keep_their_shares() -> None:
    bridges = [Identity(bytes([number]) * 32).peer_id for number in range(1, 5)]
    for number in range(100):
        message_id = MessageId(ANN.peer_id_bytes + number.to_bytes(8, "big"))
        first = next(own for own in bridges if rank(message_id, own, bridges) == 0)
        rest = [each for each in bridges if each != bridges[-1]]
        if first != bridges[-1]:
            assert rank(message_id, first, rest) == 0


def test_what_was_seen_is_bounded_and_the_oldest_goes_first() -> None:
    seen = Seen(3)
    for digest in (b"1", b"2", b"3", b"1", b"4"):
        seen.note(digest)
    assert len(seen) == 3
    assert b"2" not in seen
    assert b"1" in seen


def test_the_last_refusals_are_listed_and_late_ones_only_counted() -> None:
    refusals = Refusals(Wall(runs=False))
    for number in range(MAX_LISTED + 5):
        refusals.note("import", "a.>", "a.b", "json", f"number {number}")
    refusals.note("import", "a.>", "a.b", "expired", "too late")
    assert len(refusals.last()) == MAX_LISTED
    assert refusals.last()[0]["detail"] == f"number {MAX_LISTED + 4}"
    assert refusals.of("import", "a.>") == MAX_LISTED + 6


def test_a_subject_has_one_root() -> None:
    roots = SUBJECTS.roots()
    for subject in SUBJECTS.watched():
        assert root_of(subject, roots) in roots
    assert root_of("chorus.other", roots) is None
    assert root_of("ops.notes.more", roots) is None


async def test_the_cursor_is_no_subscription_of_an_agent(autojump_clock: trio.abc.Clock) -> None:
    async def write(_: object) -> None:
        raise AssertionError("nothing is to be written")

    deliveries = Deliveries(
        MemoryArchive(),
        write,
        None,
        lambda _: None,
        stopping=trio.Event(),
        wall_ns=Wall(),
        rng=Random(1),
    )
    deliveries.load([Subscription(CURSOR, ("t",), 3), Subscription("bridge", ("u",), 4)], ())
    assert [each["name"] for each in await deliveries.subscriptions()] == ["bridge"]
    assert deliveries.topics() == ("u",)


async def test_a_cursor_that_cannot_be_written_is_written_later(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        bridge.mesh.say(ANN, "one")
        await world.settle(lambda: len(world.server.kept) == 1)
        await trio.sleep(1)
        before = bridge.store.subscriptions[CURSOR].cursor
        world.server.kill()
        bridge.mesh.say(ANN, "two")
        await until(lambda: "two" in bridge.texts())
        bridge.store.failing = EnvironmentFault("No space left on device")
        world.server.start()
        await until(lambda: len(world.server.kept) == 2)
        await trio.sleep(10)
        assert bridge.store.subscriptions[CURSOR].cursor == before
        bridge.store.failing = None
        await until(lambda: bridge.store.subscriptions[CURSOR].cursor == bridge.archive.last_arrival)


async def test_what_comes_before_it_is_known_whether_a_stream_keeps_it_waits(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_world(jetstream=False) as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        broker, states = bridge.broker, {"jetstream": None}
        broker.state = lambda: BrokerState(True, "n", states["jetstream"])  # type: ignore[method-assign]
        world.plain("early")
        await trio.sleep(UNDECIDED_SECONDS / 2)
        assert bridge.texts() == {}
        states["jetstream"] = False  # type: ignore[assignment]
        await until(lambda: "early" in bridge.texts(), 1)


async def test_what_a_stream_keeps_is_not_taken_from_the_core_subscription(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        for number in range(50):
            world.plain(f"{number}")
        await world.everybody_has({str(number) for number in range(50)})
        assert all(len(ids) == 1 for ids in bridge.texts().values())
        assert bridge.importer.tallies[SUBJECT].plain == bridge.importer.tallies[SUBJECT].received == 50


async def test_a_flood_is_dropped_over_the_bound_and_counted(autojump_clock: trio.abc.Clock) -> None:
    async with open_world(jetstream=False) as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        for number in range(MAX_QUEUED + 100):
            world.plain(f"{number}")
        await until(lambda: len(bridge.texts()) + bridge.importer.tallies[SUBJECT].dropped == MAX_QUEUED + 100)
        # Workers that wait take one each beside what is queued.
        assert 100 - importing.WORKERS <= bridge.importer.tallies[SUBJECT].dropped <= 100


async def test_a_message_of_no_subject_of_ours_is_left_alone(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        await bridge.importer._take(NatsMessage("someone.else", {}, b"{}", 1, 1))
        await bridge.importer._take(NatsMessage("chorus.councils.a.b.c.other", {}, b"{}", 1, 1))
        assert [way for way, _, _ in bridge.refusals.counted] == ["import"]
        assert bridge.refusals.last()[0]["reason"] == "subject"
        assert bridge.texts() == {}


async def test_an_error_of_ours_costs_one_message_only(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        good = bridge.broker.publish

        async def publish(subject: str, body: bytes, headers: dict[str, str]) -> bool:
            if b"bad" in body:
                raise ZeroDivisionError
            return await good(subject, body, headers)

        bridge.broker.publish = publish  # type: ignore[method-assign,assignment]
        bridge.mesh.say(ANN, "bad")
        bridge.mesh.say(ANN, "good")
        await world.settle(lambda: len(world.server.kept) == 1)
        assert bridge.refusals.counted == {("export", TOPIC, "unexpected"): 1}
