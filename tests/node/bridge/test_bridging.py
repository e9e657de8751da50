"""Export and import together, with one or several bridges of one or two meshes on one broker."""

from __future__ import annotations

import base64

import pytest
import trio

from p2pnode.core.message import format_message_id
from p2pnode.core.peerid import PeerId
from p2pnode.identity import Identity
from p2pnode.node.bridge.export import CURSOR, TURN_SECONDS
from p2pnode.wire.nats import decode_nats, encode_nats
from tests.node.bridge.world import IMPORT_KEY, SUBJECT, SUBJECTS, TOPIC, World, open_world, origin_of
from tests.node.fakes import until

ANN = Identity(b"a" * 32)
BOB = Identity(b"b" * 32)


async def test_a_message_of_one_mesh_is_in_the_other_as_it_was_signed(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        left, right = world.mesh("left").add(), world.mesh("right").add()
        for each in (left, right):
            each.start()
        said = left.mesh.say(ANN, "hello")
        await world.everybody_has({"hello"})
        assert right.store.raws[said.id] == said.raw
        assert right.archive.entry(said.id).carrier == "nats"  # type: ignore[union-attr]
        await world.settle()
        (kept,) = world.server.kept
        assert decode_nats(kept.headers, kept.body) == said
        assert kept.body == said.data


async def test_what_came_from_nats_is_not_published_again(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        one, two = world.mesh("left").add(), world.mesh("right").add()
        third = one.mesh.add()
        for each in world.stations:
            each.start()
        one.mesh.say(ANN, "from the left")
        two.mesh.say(BOB, "from the right")
        world.plain("from nowhere")
        await world.everybody_has({"from the left", "from the right", "from nowhere"})
        await trio.sleep(10 * TURN_SECONDS)
        await world.settle()
        assert sorted(world.calls().values()) == [1, 1]
        assert len(world.server.kept) == 3
        assert sum(third.exporter.skipped.values()) >= 2


async def test_messages_of_all_topics_are_published_on_their_subjects(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        bridge.mesh.say(ANN, "thought", topic="hmmm.alpha")
        bridge.mesh.say(ANN, "note")
        bridge.mesh.say(ANN, "private", topic="private.things")
        await world.settle(lambda: len(world.server.kept) == 2)
        assert {each.subject for each in world.server.kept} == {"hmmm.alpha", SUBJECT}


async def test_several_bridges_share_the_work(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        mesh, far = world.mesh("m"), world.mesh("far").add()
        bridges = [mesh.add() for _ in range(3)]
        for each in world.stations:
            each.start()
        await trio.sleep(1)
        for number in range(90):
            mesh.say(ANN, f"{number}")
        await world.everybody_has({str(number) for number in range(90)})
        await trio.sleep(3 * TURN_SECONDS)
        assert set(world.calls().values()) == {1}
        shares = [each.exporter.published[TOPIC] for each in bridges]
        print("shares", shares)
        assert sum(shares) == 90
        assert min(shares) >= 10
        assert far.exporter.published.total() == 0


async def test_who_does_not_take_its_turn_is_stood_in_for(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        mesh, far = world.mesh("m"), world.mesh("far").add()
        bridges = [mesh.add() for _ in range(2)]
        for each in world.stations:
            each.start()
        await trio.sleep(1)

        async def never(*_: object) -> bool:
            await trio.sleep_forever()
            raise AssertionError

        bridges[0].broker.publish = never  # type: ignore[method-assign,assignment]
        texts = {str(number) for number in range(40)}
        for text in texts:
            mesh.say(ANN, text)
        await until(lambda: texts <= far.texts().keys(), 2 * TURN_SECONDS)
        assert bridges[1].exporter.published[TOPIC] == 40


async def test_a_plain_publication_is_the_same_message_at_all_bridges(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        left, right = world.mesh("left"), world.mesh("right")
        for mesh in (left, left, right):
            mesh.add().start()
        await trio.sleep(1)
        world.plain("one", headers={"Nats-Msg-Id": "x", "Colour": "red"})
        world.plain("one", headers={"Nats-Msg-Id": "x", "Colour": "red"})
        world.plain("two")
        await world.everybody_has({"one", "two"})
        ids = {text: {tuple(station.texts()[text]) for station in world.stations} for text in ("one", "two")}
        assert all(len(found) == 1 and len(next(iter(found))) == 1 for found in ids.values())
        assert origin_of(next(iter(ids["one"]))[0]) == IMPORT_KEY.peer_id
        await trio.sleep(10)
        assert world.calls() == {}


async def test_without_jetstream_one_bridge_of_a_mesh_imports_plain_publications(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_world(jetstream=False) as world:
        left, right = world.mesh("left"), world.mesh("right")
        for mesh in (left, left, left, right):
            mesh.add().start()
        await trio.sleep(1)
        for number in range(20):
            world.plain(f"plain {number}")
            left.say(ANN, f"left {number}")
            right.say(BOB, f"right {number}")
        texts = {f"{kind} {number}" for kind in ("plain", "left", "right") for number in range(20)}
        await world.everybody_has(texts)
        await trio.sleep(10)
        assert all(len(ids) == 1 for station in world.stations for ids in station.texts().values())
        assert set(world.calls().values()) == {1}
        importing = [station for station in left.stations if sum(t.plain for t in station.importer.tallies.values())]
        assert [each.identity.peer_id for each in importing] == [min(s.identity.peer_id for s in left.stations)]


async def test_the_cursor_survives_a_restart(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        for number in range(10):
            bridge.mesh.say(ANN, f"{number}")
        await world.settle(lambda: len(world.server.kept) == 10)
        await trio.sleep(1)
        assert bridge.store.subscriptions[CURSOR].cursor == bridge.archive.last_arrival
        bridge.crash()
        await trio.sleep(300)  # longer than the server remembers ids
        bridge.start()
        bridge.mesh.say(ANN, "after")
        await world.settle(lambda: len(world.server.kept) == 11)
        assert set(world.calls().values()) == {1}


async def test_a_broker_that_is_absent_at_first_gets_everything_later(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        world.server.kill()
        left, right = world.mesh("left").add(), world.mesh("right").add()
        for each in (left, right):
            each.start()
        for number in range(300):
            left.mesh.say(ANN, f"{number}")
        await trio.sleep(60)
        assert left.exporter.lag_seconds() > 59
        assert left.exporter.pending()[TOPIC] == 300
        world.server.start()
        await world.everybody_has({str(number) for number in range(300)})
        await world.settle()
        assert left.exporter.lag_seconds() == 0
        assert set(world.calls().values()) == {1}


async def test_an_answer_that_was_lost_does_not_make_two_of_one(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        left, right = world.mesh("left").add(), world.mesh("right").add()
        for each in (left, right):
            each.start()
        await trio.sleep(1)
        world.server.lost_answers = 5
        for number in range(10):
            left.mesh.say(ANN, f"{number}")
        await world.everybody_has({str(number) for number in range(10)})
        await world.settle()
        assert len(world.kept()) == len(set(world.kept())) == 10
        assert left.exporter.failed[TOPIC] == 5


async def test_what_can_never_be_published_is_told_and_passed_over(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        world.server.max_payload = 2000
        bridge.mesh.say(ANN, "x" * 3000)
        bridge.mesh.say(ANN, "no council here", topic="councils.claims")
        bridge.mesh.say(ANN, "good")
        await world.settle(lambda: len(world.server.kept) == 1)
        counted = bridge.refusals.counted
        assert counted == {("export", TOPIC, "broker"): 1, ("export", "councils.claims", "council-id"): 1}
        told = {each["reason"]: each["detail"] for each in bridge.refusals.last()}
        assert "max_payload" in told["broker"]
        assert "council_id" in told["council-id"]
        assert bridge.exporter.cursor == bridge.archive.last_arrival


async def test_what_expired_while_the_broker_was_away_is_passed_over(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        world.server.kill()
        bridge = world.mesh("m").add()
        bridge.start()
        bridge.mesh.say(ANN, "short", expires_at_ns=world.wall() + 10 * 10**9)
        bridge.mesh.say(ANN, "long")
        await trio.sleep(20)
        world.server.start()
        await world.settle(lambda: len(world.server.kept) == 1)
        assert bridge.exporter.skipped[TOPIC, "expired"] == 1


@pytest.mark.parametrize(
    ("subject", "body", "reason"),
    [
        ("chorus.councils.forming", b"no json", "json"),
        ("chorus.councils.forming", b'{"council_id": "x"}', "opportunity"),
        ("chorus.councils.abc.claims", b'{"council_id": "0b3c6a7e-0000-4000-8000-000000000000"}', "claim"),
        ("backbeat.status.fleet", b"[]", "json"),
    ],
)
async def test_a_wrong_plain_publication_is_refused_with_a_reason(
    subject: str, body: bytes, reason: str, autojump_clock: trio.abc.Clock
) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        world.server.publish(subject, body)
        world.plain("good")
        await world.everybody_has({"good"})
        await until(lambda: bool(bridge.refusals.counted))
        ((way, _, why),) = bridge.refusals.counted
        assert (way, why) == ("import", reason)
        assert bridge.refusals.last()[0]["subject"] == subject
        await until(lambda: not any(durable.given for durable in world.server.durables.values()))


async def test_a_forged_message_is_refused_and_does_not_hold_back_the_true_one(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_world() as world:
        left, right = world.mesh("left").add(), world.mesh("right").add()
        for each in (left, right):
            each.start()
        world.server.kill()
        said = left.mesh.say(ANN, "true")
        await trio.sleep(5)
        headers = {
            "P2P-From": ANN.peer_id,
            "P2P-Seqno": str(said.number),
            "P2P-Topic": TOPIC,
            "P2P-Signature": "AAAA",
            "Nats-Msg-Id": "other",
        }
        world.server.start()
        world.server.publish(SUBJECT, b'{"text": "forged"}', headers)
        await world.everybody_has({"true"})
        await until(lambda: ("import", SUBJECT, "signature") in right.refusals.counted)
        assert "forged" not in right.texts()


async def test_a_signed_message_on_a_subject_of_another_topic_is_refused(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        said = world.seal(ANN, "thought", topic="hmmm.alpha")
        headers = {"P2P-From": ANN.peer_id, "P2P-Seqno": str(said.number), "P2P-Topic": "hmmm.alpha"}
        headers["P2P-Signature"] = base64.b64encode(said.signature).decode()
        world.server.publish(SUBJECT, said.data, headers)
        await until(lambda: ("import", SUBJECT, "topic") in bridge.refusals.counted)
        world.server.publish("hmmm.alpha", said.data, headers)
        await world.everybody_has({"thought"})


async def test_what_cannot_be_stored_now_comes_again_and_holds_up_nothing(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        left, right = world.mesh("left").add(), world.mesh("right").add()
        for each in (left, right):
            each.start()
        bad = world.seal(ANN, "stubborn")
        right.unwritable.add(bad.data)
        await trio.sleep(1)
        left.archive.take(bad, carrier="gossip")
        await until(lambda: right.importer.troubled == 1)
        left.mesh.say(ANN, "later")
        await until(lambda: "later" in right.texts())
        await trio.sleep(60)
        assert any("cannot be stored" in each.message and each.levelname == "ERROR" for each in caplog.records)
        right.unwritable.clear()
        await until(lambda: "stubborn" in right.texts())
        await until(lambda: right.importer.troubled == 0)


async def test_a_bridge_opens_the_topics_that_peers_read_and_that_come_from_nats(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.heard = {"hmmm.read", "other.read", "hmmm.bad topic"}
        bridge.start()
        await trio.sleep(3)
        assert set(bridge.opened) == {*SUBJECTS.topics(), "hmmm.read"}
        world.plain("x", subject="hmmm.written")
        await world.everybody_has({"x"})
        assert bridge.opened[-1] == "hmmm.written"


async def test_threads_over_the_bound_are_refused(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pnode.node.bridge.topics.MAX_THREADS", 3)
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        for number in range(5):
            world.plain(f"{number}", subject=f"hmmm.t{number}")
        await until(lambda: bridge.refusals.counted["import", "hmmm.>", "topics"] == 2)
        assert sum(topic.startswith("hmmm.") for topic in bridge.opened) == 3


async def test_a_bridge_that_comes_back_reads_what_is_there_before_it_publishes(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The other one published meanwhile what this one holds too: it hears of that first."""
    async with open_world() as world:
        mesh = world.mesh("m")
        one, two = mesh.add(), mesh.add()
        for each in (one, two):
            each.start()
        await trio.sleep(1)
        two.broker.disconnect()
        two.crash()
        for number in range(50):
            mesh.say(ANN, f"{number}")
        await until(lambda: len(world.server.kept) == 50)
        await trio.sleep(300)  # the server has forgotten the ids
        two.start()
        await world.everybody_has({str(number) for number in range(50)})
        await trio.sleep(30)
        await world.settle()
        assert set(world.calls().values()) == {1}
        assert two.exporter.published.total() == 0


async def test_a_bridge_whose_connection_comes_back_reads_before_it_publishes(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        mesh = world.mesh("m")
        one, two = mesh.add(), mesh.add()
        for each in (one, two):
            each.start()
        await trio.sleep(1)
        two.broker.cut_off()
        for number in range(200):
            mesh.say(ANN, f"{number}")
        await until(lambda: len(world.server.kept) == 200)
        assert two.exporter.pending()[TOPIC] == 200
        await trio.sleep(300)
        two.broker.reach()
        await world.settle()
        assert set(world.calls().values()) == {1}
        assert two.exporter.published.total() == 0


async def test_what_was_imported_long_ago_is_not_published_by_a_bridge_that_lost_its_place(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_world() as world:
        left, right = world.mesh("left").add(), world.mesh("right").add()
        for each in (left, right):
            each.start()
        right.mesh.say(BOB, "imported")
        await world.everybody_has({"imported"})
        await trio.sleep(300)
        left.crash()
        del left.store.subscriptions[CURSOR]
        left.start()
        left.mesh.say(ANN, "new")
        await world.everybody_has({"new"})
        await world.settle()
        assert set(world.calls().values()) == {1}
        assert left.exporter.skipped == {(TOPIC, "imported"): 1}


async def test_what_is_dated_far_ahead_is_refused_and_what_is_a_little_ahead_waits(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.start()
        await trio.sleep(1)
        world.wall.step_ns = 3600 * 10**9
        far = world.seal(ANN, "next hour")
        world.wall.step_ns = 200 * 10**9
        near = world.seal(ANN, "soon")
        world.wall.step_ns = 0
        for message in (far, near):
            out = encode_nats(message, SUBJECTS)
            assert out is not None
            world.server.publish(out.subject, out.body, out.headers)
        await world.everybody_has({"soon"}, 300)
        assert bridge.refusals.counted == {("import", SUBJECT, "future"): 1}
        assert "clock" in bridge.refusals.last()[0]["detail"]
        assert bridge.importer.troubled == 0


async def test_what_lives_beyond_waits_for_its_own_bridge(autojump_clock: trio.abc.Clock) -> None:
    async with open_world() as world:
        bridge = world.mesh("m").add()
        bridge.beyond = {PeerId(BOB.peer_id)}
        bridge.start()
        await trio.sleep(1)
        said = bridge.mesh.say(BOB, "from afar")
        await trio.sleep(1)
        assert world.calls() == {}
        await world.settle(lambda: world.calls() == {format_message_id(said.id): 1})


# -- everything dies, again and again --------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shared", [False, True], ids=["own durables", "shared durable"])
async def test_nothing_is_lost_or_doubled_while_brokers_and_bridges_die(
    seed: int, shared: bool, autojump_clock: trio.abc.Clock
) -> None:
    """Own durables or a shared one: what others published is read either way."""
    print("seed", seed)
    async with open_world(seed) as world:
        rng = world.rng
        left, right = world.mesh("left"), world.mesh("right")
        for mesh, count in ((left, 3), (right, 1)):
            for _ in range(count):
                mesh.add(durable=mesh.name if shared else "")
        for each in world.stations:
            each.start()
        texts: set[str] = set()
        plain_waits: list[str] = []
        crashes = 0
        for step in range(150):
            kind = rng.random()
            if kind < 0.6:
                mesh, origin = rng.choice(((left, ANN), (right, BOB)))
                mesh.say(origin, f"said {step}")
                texts.add(f"said {step}")
            elif kind < 0.85:
                plain_waits.append(f"plain {step}")
            elif kind < 0.93:
                station = rng.choice(world.stations)
                if station.is_up:
                    crashes += 1
                    station.crash()
                else:
                    station.start()
            elif world.server.up:
                world.server.kill()
            else:
                world.server.start()
            world.server.lost_answers = rng.choice((0, 0, 0, 2))
            if world.server.up:  # a client of NATS waits for the acknowledgement, and knows what it sent
                for text in plain_waits:
                    world.plain(text, headers=rng.choice(({}, {"Nats-Msg-Id": text})))
                    texts.add(text)
                plain_waits.clear()
            await trio.sleep(rng.choice((0.0, 0.001, 0.002, 0.004, 0.01, 0.3)))
        world.server.start()
        world.server.lost_answers = 0
        for station in world.stations:
            if not station.is_up:
                station.start()
        await world.everybody_has(texts)
        await trio.sleep(30)
        await world.settle()
        _check(world, texts, crashes)


def _check(world: World, texts: set[str], crashes: int) -> None:
    for station in world.stations:
        held = station.texts()
        assert held.keys() == texts
        assert all(len(ids) == 1 for ids in held.values()), "each once"
    assert len({tuple(sorted((text, ids[0]) for text, ids in s.texts().items())) for s in world.stations}) == 1
    assert len(world.kept()) == len(set(world.kept())), "each signed message once in the stream"
    calls = world.calls()
    print("publications a message:", sum(calls.values()) / max(len(calls), 1), "at most", max(calls.values()))
    assert max(calls.values()) <= len(world.stations) + crashes
