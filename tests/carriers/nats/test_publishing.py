"""Publishing: many at once, and what NATS cannot carry is refused before it can hurt the connection."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nats
import pytest
import trio
from nats.aio.msg import Msg

from p2pnode.carriers.nats import NatsBroker
from p2pnode.carriers.nats.thread import AsyncioThread
from p2pnode.errors import InvalidRequest, Unavailable
from tests.carriers.nats.kit import FORMING, STATUS, Taken, connected, running, settings, until
from tests.carriers.nats.server import Build, NatsServer

ODD_SUBJECTS = [
    "",
    ".",
    "a..b",
    ".a",
    "a.",
    "a.*",
    "a.>",
    ">",
    "a b",
    "a\tb",
    "a\r\nPUB b 0",
    "a\x00b",
    "a\x0bb",
    "a\u2028b",
    "\ud800",
    "$JS.API.STREAM.DELETE.X",
    "a." + "x" * 5000,
    "ä" * 2049,
]


@pytest.mark.parametrize("subject", ODD_SUBJECTS, ids=ascii)
async def test_an_odd_subject_is_refused_without_a_connection_even(subject: str, tmp_path: Path) -> None:
    broker = NatsBroker(settings(NatsServer(tmp_path)))
    with pytest.raises(InvalidRequest) as caught:
        await broker.publish(subject, b"", {})
    assert caught.value.faults[0].field == "subject"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "headers", [{"": "x"}, {"a b": "x"}, {"a:b": "x"}, {"ä": "x"}, {"a": "x\r\ny"}, {"a": "\ud800"}], ids=ascii
)
async def test_headers_that_nats_cannot_carry_are_refused(headers: dict[str, str], tmp_path: Path) -> None:
    broker = NatsBroker(settings(NatsServer(tmp_path)))
    with pytest.raises(InvalidRequest) as caught:
        await broker.publish(FORMING, b"", headers)
    assert caught.value.faults[0].field.startswith("headers.")


async def test_what_is_over_max_payload_with_its_headers_is_refused_and_the_connection_stands(
    tmp_path: Path, build: Build
) -> None:
    with NatsServer(tmp_path / "server", build=build, config="max_payload: 4096").start() as server:
        taken = Taken()
        broker = NatsBroker(settings(server))
        broker.consume("bridge", [FORMING], taken.take)
        async with connected(broker):
            for body, headers in ((b"x" * 4097, {}), (b"x" * 4090, {"Council-ID": "c1"}), (b"", {"a": "x" * 4096})):
                with pytest.raises(InvalidRequest, match="max_payload"):
                    await broker.publish(FORMING, body, headers)
            header = {"Council-ID": "c1"}
            size = len("NATS/1.0\r\nCouncil-ID: c1\r\n\r\n")
            assert await broker.publish(FORMING, b"x" * (4096 - size), header) is True
            assert await broker.publish(FORMING, b"x" * 4096, {}) is True
            await until("taken", lambda: len(taken.messages) >= 2)
        counters = broker.counters()
        assert counters["publish-failed", FORMING] == 3
        assert counters["out", FORMING] == 2
        assert ("disconnected", "") not in counters


async def test_two_hundred_callers_publish_at_once(server: NatsServer) -> None:
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING, STATUS], taken.take)
    stored: list[bool] = []

    async def call(index: int) -> None:
        for count in range(10):
            name = f"{index}-{count}"
            subject = f"chorus.councils.c{index}.status" if count % 2 else FORMING
            stored.append(await broker.publish(subject, name.encode(), {"Nats-Msg-Id": name}))

    async with connected(broker):
        async with trio.open_nursery() as nursery:
            for index in range(200):
                nursery.start_soon(call, index)
        assert stored == [True] * 2000
        await until("all taken", lambda: len(taken.messages) >= 2000)
    assert len(taken.ids) == len(taken.messages) == 2000
    # A council's id is no label of its own.
    assert broker.counters()["out", STATUS] == broker.counters()["out", FORMING] == 1000


async def test_core_publishing_at_once_reaches_every_subscriber_in_order(tmp_path: Path, build: Build) -> None:
    with NatsServer(tmp_path / "server", build=build, jetstream=False).start() as server:
        taken = Taken()
        sender, receiver = NatsBroker(settings(server)), NatsBroker(settings(server))
        receiver.watch(["hmmm.>"], taken.note)

        async def call(index: int) -> None:
            for count in range(20):
                assert await sender.publish(f"hmmm.{index}", str(count).encode(), {}) is False

        async with connected(sender), connected(receiver):
            async with trio.open_nursery() as nursery:
                for index in range(100):
                    nursery.start_soon(call, index)
            await until("all heard", lambda: len(taken.messages) >= 2000)
        for index in range(100):
            heard = [each.body for each in taken.messages if each.subject == f"hmmm.{index}"]
            assert heard == [str(each).encode() for each in range(20)]


async def test_a_caller_who_goes_away_leaves_nothing_behind(server: NatsServer) -> None:
    broker = NatsBroker(settings(server))
    async with connected(broker):
        for _ in range(50):
            with trio.CancelScope() as scope:
                scope.cancel()
                await broker.publish(FORMING, b"x", {})
            with trio.move_on_after(0.0005):
                await broker.publish(FORMING, b"x", {})
        assert await broker.publish(FORMING, b"x", {}) is False


@pytest.mark.parametrize("build", ["current", pytest.param("debian", marks=pytest.mark.soak)], indirect=True)
async def test_nobody_waits_for_ever_for_a_server_that_stands_still(server: NatsServer) -> None:
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], Taken().take)
    async with connected(broker):
        server.freeze()
        refused = []

        async def call() -> None:
            with pytest.raises(Unavailable) as caught:
                await broker.publish(FORMING, b"x" * 100_000, {})
            refused.append(caught.value.reason)

        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(call)
        assert refused == ["nats"] * 500
        # Its silence is noticed by pings, and it is left.
        await until("left", lambda: not broker.state().connected)
        server.thaw()
        await until("back", lambda: broker.state().connected)
        assert await broker.publish(FORMING, b"x", {}) is True


async def test_somebody_who_answers_for_the_stream_is_not_believed(server: NatsServer) -> None:
    """A subscriber that replies to whatever has a reply subject, as echo services do."""
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], Taken().take)
    listening = trio.Event()
    enough = asyncio.Event()

    async def echo() -> None:
        client = await nats.connect(server.url)

        async def answer(message: Msg) -> None:
            await client.publish(message.reply, b'{"hello": 1}')

        await client.subscribe(FORMING, cb=answer)
        await client.flush()
        thread.call_trio_soon(listening.set)
        await enough.wait()
        await client.close()

    async with connected(broker):
        thread = AsyncioThread(echo, "echo")
        thread.start()
        await listening.wait()
        for _ in range(20):
            assert await broker.publish(FORMING, b"x", {}) is True
        thread.call_soon(enough.set)
        await thread.ended()
        assert thread.crash is None


async def test_not_connected_is_said_at_once(tmp_path: Path) -> None:
    broker = NatsBroker(settings(NatsServer(tmp_path)))
    with pytest.raises(Unavailable, match="not connected"):
        await broker.publish(FORMING, b"x", {})
    async with running(broker):
        await until("tried", lambda: broker.state().code)
        with pytest.raises(Unavailable, match="cannot be reached"):
            await broker.publish(FORMING, b"x", {})
