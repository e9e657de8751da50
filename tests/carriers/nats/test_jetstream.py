"""JetStream: what it keeps is read in order, acknowledged once taken, and survives the server's death."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import nats
import pytest
import trio

from p2pnode.carriers.nats import NatsBroker
from p2pnode.carriers.nats import session as session_module
from p2pnode.carriers.nats.connection import Connection
from p2pnode.carriers.nats.subjects import durable_name
from p2pnode.errors import Unavailable
from p2pnode.ports.roads import NatsMessage
from tests.carriers.nats.kit import (
    DEADLINE_SECONDS,
    FORMING,
    STATUS,
    Taken,
    api,
    connected,
    plain_publish,
    publish_until_stored,
    ready,
    running,
    settings,
    until,
    with_asyncio,
)
from tests.carriers.nats.server import Build, NatsServer, free_port


async def test_a_message_is_stored_once_and_read_with_its_headers_place_and_time(server: NatsServer) -> None:
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], taken.take)
    headers = {"Nats-Msg-Id": "one", "Council-ID": "c1", "Project": "größe"}
    async with connected(broker):
        assert await broker.publish(FORMING, b"{}", headers) is True
        assert await broker.publish(FORMING, b"{}", headers) is True
        assert await broker.publish(FORMING, b"last", {}) is True
        await until("both taken", lambda: len(taken.messages) >= 2)
    assert taken.bodies == [b"{}", b"last"]
    first, last = taken.messages
    assert first.headers == headers
    assert (first.stream_seq, last.stream_seq) == (1, 2)
    assert 0 < first.stamped_ns <= last.stamped_ns
    assert broker.counters()["out", FORMING] == 3
    assert broker.counters()["in", FORMING] == 2


async def test_a_publisher_s_status_header_is_a_header_like_any_other(server: NatsServer) -> None:
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [STATUS], taken.take)
    async with connected(broker):
        subject = "chorus.councils.c1.status"
        await plain_publish(server, [(subject, b"", {"Status": each}) for each in ("404", "408", "409", "503", "100")])
        await plain_publish(server, [(subject, b"{}", {"Status": "active"})])
        await until("all taken", lambda: len(taken.messages) >= 6)
    assert [each.headers["Status"] for each in taken.messages] == ["404", "408", "409", "503", "100", "active"]


async def test_nothing_is_lost_either_way_while_the_server_is_killed(server: NatsServer) -> None:
    ours, theirs = Taken(), Taken()
    left = NatsBroker(settings(server))
    right = NatsBroker(settings(server))
    left.consume("left", [FORMING, STATUS], ours.take)
    right.consume("right", [FORMING, STATUS], theirs.take)
    sent: set[str] = set()
    stopping = trio.Event()
    rng = random.Random(7)

    async def publish_for_ever(broker: NatsBroker, who: str) -> None:
        count = 0
        while not stopping.is_set():
            count += 1
            name = f"{who}-{count}"
            subject = rng.choice([FORMING, f"chorus.councils.{who}.status"])
            while True:
                try:
                    await broker.publish(subject, name.encode(), {"Nats-Msg-Id": name, "Status": "404"})
                except Unavailable:
                    await trio.sleep(0.1)
                else:
                    break
            sent.add(name)
            await trio.sleep(0.01)

    async with connected(left), connected(right):
        async with trio.open_nursery() as nursery:
            for index in range(3):
                nursery.start_soon(publish_for_ever, left, f"l{index}")
                nursery.start_soon(publish_for_ever, right, f"r{index}")
            for _ in range(4):
                before = len(sent)
                await until("messages flow", lambda before=before: len(sent) > before + 60)  # type: ignore[misc]
                server.kill()
                await until("both notice", lambda: not left.state().connected and not right.state().connected)
                server.start()
                await ready(left)
                await ready(right)
            stopping.set()
        await until("all taken left", lambda: ours.ids >= sent)
        await until("all taken right", lambda: theirs.ids >= sent)
    assert left.counters()["reconnected", ""] >= 4
    assert left.counters()["disconnected", ""] >= 4
    assert ours.ids == sent == theirs.ids


async def test_a_durable_goes_on_where_it_stopped(server: NatsServer) -> None:
    first = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], first.take)
    async with connected(broker):
        await broker.publish(FORMING, b"1", {})
        await until("taken", lambda: first.bodies == [b"1"])
        await until("acknowledged", lambda: broker.consumers()[0].unacknowledged == 0)
    await plain_publish(server, [(FORMING, b"2", None), (FORMING, b"3", None)])
    again = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], again.take)
    async with connected(broker):
        await until("the rest taken", lambda: len(again.messages) >= 2)
        await until("caught up", lambda: broker.consumers()[0].caught_up)
    assert again.bodies == [b"2", b"3"]


async def test_what_was_not_finished_at_the_end_is_for_the_next_at_once(server: NatsServer) -> None:
    begun = trio.Event()

    async def never(_message: NatsMessage) -> None:
        begun.set()
        await trio.sleep_forever()

    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], never)
    async with connected(broker):
        await broker.publish(FORMING, b"1", {})
        await begun.wait()
    again = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], again.take)
    async with connected(broker):
        await until("taken", lambda: again.bodies == [b"1"])


async def test_a_durable_made_by_an_earlier_release_becomes_as_patient_as_ours(server: NatsServer) -> None:
    name = durable_name("bridge", FORMING)
    await api(server, "STREAM.CREATE.P2PNODE", {"name": "P2PNODE", "subjects": [FORMING]})
    config = {"durable_name": name, "ack_policy": "explicit", "filter_subject": FORMING, "max_ack_pending": 777}
    question = {"stream_name": "P2PNODE", "config": {**config, "ack_wait": 30_000_000_000}}
    assert "error" not in await api(server, f"CONSUMER.DURABLE.CREATE.P2PNODE.{name}", question)
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], taken.take)
    async with connected(broker):
        assert await broker.publish(FORMING, b"1", {}) is True
        await until("taken", lambda: taken.bodies == [b"1"])
    held = (await api(server, f"CONSUMER.INFO.P2PNODE.{name}"))["config"]
    assert held["ack_wait"] == 10_000_000_000
    assert held["max_ack_pending"] == 777


async def test_what_another_reader_left_is_read_before_all_is_said_to_be_read(server: NatsServer) -> None:
    name = durable_name("bridge", FORMING)
    said: list[bool] = []
    broker = NatsBroker(settings(server))

    async def take(_message: NatsMessage) -> None:
        said.append(broker.consumers()[0].caught_up)

    await api(server, "STREAM.CREATE.P2PNODE", {"name": "P2PNODE", "subjects": [FORMING]})
    config = {"durable_name": name, "ack_policy": "explicit", "filter_subject": FORMING}
    await api(server, f"CONSUMER.DURABLE.CREATE.P2PNODE.{name}", {"stream_name": "P2PNODE", "config": config})
    await plain_publish(server, [(FORMING, b"1", None)])

    async def give_back() -> None:
        client = await nats.connect(server.url)
        inbox = await client.subscribe("inbox.here")
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.P2PNODE.{name}", b"1", reply="inbox.here")
        await (await inbox.next_msg(30)).nak()
        await client.flush()
        await client.close()

    await with_asyncio(give_back)
    assert (await api(server, f"CONSUMER.INFO.P2PNODE.{name}"))["num_pending"] == 0
    broker.consume("bridge", [FORMING], take)
    async with connected(broker):
        await until("all read", lambda: broker.consumers()[0].caught_up)
        assert said == [False]


async def test_a_message_that_cannot_be_taken_comes_again_before_those_behind_it(server: NatsServer) -> None:
    failing = True
    taken = Taken(lambda message: failing and message.body == b"2")
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [STATUS], taken.take)
    subject = "chorus.councils.a.status"
    other = "chorus.councils.b.status"
    await plain_publish(server, [])
    async with connected(broker):
        messages = [(subject, str(each).encode(), None) for each in range(1, 6)]
        await plain_publish(server, [*messages, (other, b"b", None)])
        await until("failed twice", lambda: taken.failed >= 2)
        assert b"b" in taken.bodies
        failing = False
        await until("all taken", lambda: len(taken.messages) >= 6)
    assert [each for each in taken.bodies if each != b"b"] == [b"1", b"2", b"3", b"4", b"5"]
    assert broker.counters()["take-failed", STATUS] == taken.failed


async def test_a_message_that_always_fails_does_not_hold_up_its_subject_for_ever(server: NatsServer) -> None:
    taken = Taken(lambda message: message.body == b"poison")
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], taken.take)
    async with connected(broker):
        await plain_publish(server, [(FORMING, b"poison", None), (FORMING, b"good", None)])
        await until("the next is taken", lambda: taken.bodies == [b"good"])


async def test_consumers_of_one_name_share_the_work(server: NatsServer) -> None:
    left, right = Taken(), Taken()
    one, two = NatsBroker(settings(server)), NatsBroker(settings(server))
    one.consume("shared", [FORMING], left.take)
    two.consume("shared", [FORMING], right.take)
    async with connected(one), connected(two):
        for index in range(600):
            await one.publish(FORMING, b"x", {"Nats-Msg-Id": str(index)})
        await until("all taken", lambda: len(left.messages) + len(right.messages) >= 600)
        assert left.ids | right.ids == {str(each) for each in range(600)}
        assert not left.ids & right.ids


async def test_a_stream_deleted_under_us_is_made_again(server: NatsServer) -> None:
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], taken.take)
    async with connected(broker):
        await broker.publish(FORMING, b"1", {})
        await until("taken", lambda: taken.bodies == [b"1"])
        await plain_publish(server, [("$JS.API.STREAM.DELETE.P2PNODE", b"", None)])
        await publish_until_stored(broker, FORMING, b"2")
        await until("taken again", lambda: b"2" in taken.bodies)


async def test_nothing_goes_past_the_stream_that_we_read_while_it_is_being_made_again(server: NatsServer) -> None:
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], taken.take)
    async with connected(broker):
        assert await broker.publish(FORMING, b"1", {}) is True
        await api(server, "STREAM.DELETE.P2PNODE")
        waited, stored = 0, 0
        with trio.fail_after(DEADLINE_SECONDS):
            while not stored:
                try:
                    stored += await broker.publish(FORMING, b"2", {})
                    assert stored, "only those who listened got it"
                except Unavailable:
                    waited += 1
                    await trio.sleep(0.05)
        assert waited
        await until("taken", lambda: b"2" in taken.bodies)


async def test_a_server_that_comes_back_with_an_empty_store_is_read_from_its_beginning(server: NatsServer) -> None:
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], taken.take)
    async with connected(broker):
        for index in range(3):
            assert await broker.publish(FORMING, b"old", {"Nats-Msg-Id": f"old-{index}"}) is True
        await until("taken", lambda: len(taken.messages) >= 3)
        server.kill()
        await until("noticed", lambda: not broker.state().connected)
        shutil.rmtree(server.directory / "store")
        server.start()
        await publish_until_stored(broker, FORMING, b"new")
        await until("taken again", lambda: b"new" in taken.bodies)
    # The number begins again, the time goes on: an import's seqno, which holds both, is no other's.
    places = [(each.stamped_ns // 1_000_000, each.stream_seq) for each in taken.messages]
    assert places[-1][1] == 1
    assert len(set(places)) == len(places)
    assert places[-1] > max(places[:-1])


async def test_a_cluster_without_a_leader_is_waited_for_and_not_passed_by(tmp_path: Path, build: Build) -> None:
    alone = f'cluster {{ name: c, listen: "127.0.0.1:{free_port()}", routes: ["nats://127.0.0.1:{free_port()}"] }}'
    with NatsServer(tmp_path / "server", build=build, config=alone).start() as server:
        broker = NatsBroker(settings(server))
        broker.consume("bridge", [FORMING], Taken().take)
        async with running(broker):
            await until("connected", lambda: broker.state().connected)
            for subject in (FORMING, "hmmm.thread"):
                with pytest.raises(Unavailable, match="JetStream at the NATS server does not answer"):
                    await broker.publish(subject, b"x", {})
            assert broker.state().jetstream is None
            assert broker.state().code == "stream"
            server.kill()
            shutil.rmtree(server.directory / "store")
            server.config = ""
            server.start()
            await publish_until_stored(broker, FORMING, b"x")
            assert broker.state().code == ""


async def test_a_user_who_may_not_ask_for_jetstream_uses_core_nats(tmp_path: Path, build: Build) -> None:
    users = 'authorization { users: [ { user: a, password: a, permissions: { publish: { deny: ["$JS.>"] } } } ] }'
    with NatsServer(tmp_path / "server", build=build, config=users).start() as server:
        broker = NatsBroker(settings(server, user="a", password="a"))
        broker.consume("bridge", [FORMING], Taken().take)
        async with running(broker):
            await until("connected", lambda: broker.state().connected)
            assert await broker.publish(FORMING, b"x", {}) is False
            assert broker.state().jetstream is False
            assert broker.state().code == ""


async def test_a_stream_that_acknowledges_nothing_is_told(tmp_path: Path) -> None:
    """As at a server whose disk is full: it logs that it cannot store, and says nothing to the publisher."""
    with NatsServer(tmp_path / "server").start() as server:
        await api(server, "STREAM.CREATE.MUTE", {"name": "MUTE", "subjects": ["hmmm.>"], "no_ack": True})
        broker = NatsBroker(settings(server))
        async with connected(broker):
            with pytest.raises(Unavailable, match="did not acknowledge"):
                await broker.publish("hmmm.a", b"x", {})
            await until("told", lambda: broker.state().code == "stream")
            assert "hmmm.a" in broker.state().problem
            await api(server, "STREAM.DELETE.MUTE")
            await api(server, "STREAM.CREATE.GOOD", {"name": "GOOD", "subjects": ["hmmm.>"]})
            await publish_until_stored(broker, "hmmm.a", b"x")
            assert broker.state().code == ""


async def test_subjects_that_a_stream_of_others_holds_are_read_from_it(server: NatsServer) -> None:
    others = b'{"name":"LEGACY","subjects":["chorus.councils.>"],"retention":"limits","storage":"file"}'
    await plain_publish(server, [("$JS.API.STREAM.CREATE.LEGACY", others, None)])
    taken = Taken()
    broker = NatsBroker(settings(server))
    async with connected(broker):
        await publish_until_stored(broker, FORMING, b"old")
    broker.consume("bridge", [FORMING, STATUS, "hmmm.>"], taken.take)
    async with connected(broker):
        assert await broker.publish("hmmm.thread", b"new", {}) is True
        await until("both taken", lambda: {b"old", b"new"} <= set(taken.bodies))
        assert broker.state().code == ""
        report = server.directory / "store" / "jetstream" / "$G" / "streams"
        assert {each.name for each in report.iterdir()} == {"LEGACY", "P2PNODE"}


async def test_a_stream_in_the_way_is_named(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_ASK_AGAIN_SECONDS", 0.05)
    told: list[str] = []
    whole = Connection.changed

    def changed(self: Connection, **how: Any) -> None:
        whole(self, **how)
        told.append(self.state.code)

    monkeypatch.setattr(Connection, "changed", changed)
    others = b'{"name":"PART","subjects":["chorus.councils.c1.status"],"retention":"limits","storage":"file"}'
    await plain_publish(server, [("$JS.API.STREAM.CREATE.PART", others, None)])
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [STATUS, FORMING], Taken().take)
    async with running(broker):
        await until("told", lambda: broker.state().code == "stream")
        assert "PART" in broker.state().problem
        assert broker.state().connected
        await until("the others are read", lambda: broker.subscriptions().get(FORMING))
        # What nobody can store is for those who listen; nothing waits for a stream that cannot be.
        assert await broker.publish("chorus.councils.c2.status", b"x", {}) is False
        count = len(told)
        await until("tried again", lambda: len(told) > count + 5)
        assert set(told[told.index("stream") :]) == {"stream"}


async def test_a_full_stream_refuses_and_says_so_and_is_well_again(server: NatsServer) -> None:
    small = b'{"name":"SMALL","subjects":["hmmm.>"],"retention":"limits","storage":"file","discard":"new","max_msgs":2}'
    await plain_publish(server, [("$JS.API.STREAM.CREATE.SMALL", small, None)])
    broker = NatsBroker(settings(server))
    async with connected(broker):
        assert await broker.publish("hmmm.a", b"1", {})
        assert await broker.publish("hmmm.a", b"2", {})
        with pytest.raises(Unavailable, match="maximum messages"):
            await broker.publish("hmmm.a", b"3", {})
        assert broker.state().code == "jetstream-full"
        assert broker.state().connected
        await plain_publish(server, [("$JS.API.STREAM.PURGE.SMALL", b"", None)])
        assert await broker.publish("hmmm.a", b"4", {})
        assert broker.state().code == ""


async def test_jetstream_that_is_missing_is_told_and_found_when_it_comes(tmp_path: Path, build: Build) -> None:
    with NatsServer(tmp_path / "server", build=build, jetstream=False).start() as server:
        taken = Taken()
        wanted = NatsBroker(settings(server, jetstream="on"))
        either = NatsBroker(settings(server))
        never = NatsBroker(settings(server, jetstream="off"))
        for index, each in enumerate((wanted, either, never)):
            each.consume(f"bridge-{index}", [FORMING], taken.take)
        async with running(wanted), running(either), running(never):
            for each in (wanted, either, never):
                await until("connected", lambda each=each: each.state().connected)  # type: ignore[misc]
                assert await each.publish(FORMING, b"x", {}) is False
                assert each.state().jetstream is False
            assert wanted.state().code == "jetstream-off"
            assert wanted.state().problem
            assert wanted.state().fix
            assert either.state().code == never.state().code == ""
            server.stop()
            server.jetstream = True
            server.start()
            await ready(either)
            await ready(wanted)
            assert await either.publish(FORMING, b"kept", {}) is True
            await until("both read it", lambda: taken.bodies == [b"kept", b"kept"])
            assert either.state().jetstream is wanted.state().jetstream is True
            assert wanted.state().code == ""
            await until("the third is back", lambda: never.state().connected)
            assert never.state().jetstream is False
            assert never.subscriptions() == {}


async def test_a_backlog_is_read_in_order(server: NatsServer) -> None:
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("first", [FORMING], Taken().take)
    async with connected(broker):
        await plain_publish(server, [(FORMING, str(each).encode(), None) for each in range(3000)])
        broker.consume("late", [FORMING], taken.take)
        await until("all taken", lambda: len(taken.messages) >= 3000)
        await until("caught up", lambda: all(each.caught_up and not each.pending for each in broker.consumers()))
    assert taken.bodies == [str(each).encode() for each in range(3000)]
