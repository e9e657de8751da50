"""The thread ends when `run` is cancelled, whatever the server does, and a sidecar without NATS never loads nats-py."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pnode.carriers.nats import NatsBroker
from p2pnode.carriers.nats.thread import AsyncioThread
from p2pnode.errors import Unavailable
from tests.carriers.nats.kit import FORMING, Taken, connected, running, settings
from tests.carriers.nats.server import NatsServer


def ours() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "nats"]


async def test_nothing_is_left_running(server: NatsServer) -> None:
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], Taken().take)
    for _ in range(3):
        async with connected(broker):
            assert ours() == ["nats"]
            await broker.publish(FORMING, b"x", {})
        assert ours() == []
        assert not broker.state().connected
        with pytest.raises(Unavailable):
            await broker.publish(FORMING, b"x", {})


async def test_it_ends_while_the_server_stands_still(server: NatsServer) -> None:
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], Taken().take)

    async def publish() -> None:
        with pytest.raises(Unavailable):
            await broker.publish(FORMING, b"x" * 500_000, {})

    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            async with connected(broker):
                server.freeze()
                for _ in range(50):
                    nursery.start_soon(publish)
                await trio.testing.wait_all_tasks_blocked(0.2)
        assert ours() == []


async def test_it_ends_while_a_connection_is_being_made_to_a_server_that_says_nothing(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "server").start() as server:
        server.freeze()
        broker = NatsBroker(settings(server))
        async with running(broker):
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert ours() == ["nats"]
        assert ours() == []


async def test_a_crash_of_the_thread_is_survived(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from p2pnode.carriers.nats.connection import Connection

    whole = Connection.run
    crashes: list[int] = []

    async def crash_once(self: Connection) -> None:
        if not crashes:
            crashes.append(1)
            raise RuntimeError("planted")
        await whole(self)

    monkeypatch.setattr(Connection, "run", crash_once)
    async with connected(NatsBroker(settings(server))) as broker:
        assert crashes == [1]
        assert await broker.publish(FORMING, b"x", {}) is False


async def test_what_happens_in_the_thread_does_not_reach_trio_as_a_cancellation() -> None:
    import asyncio

    async def cancelled() -> None:
        raise asyncio.CancelledError

    thread = AsyncioThread(cancelled, "nats")
    thread.start()
    with trio.fail_after(30):
        await thread.ended()
    assert isinstance(thread.crash, asyncio.CancelledError)
    assert thread.join(30)
    thread.call_soon(print, "never")


def test_a_sidecar_without_nats_does_not_load_it() -> None:
    code = (
        "import sys; from p2pnode.carriers.nats import NatsBroker, BrokerSettings; "
        "NatsBroker(BrokerSettings(('nats://127.0.0.1',), 'x')).watch(['a'], print); "
        "sys.exit('nats' in sys.modules or 'nkeys' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
