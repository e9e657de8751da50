"""Core subscriptions: after each reconnect, bounded, and with whatever others publish."""

from __future__ import annotations

import socket

import pytest
import trio

from p2pnode.carriers.nats import NatsBroker
from p2pnode.carriers.nats import handing as handing_module
from p2pnode.ports.roads import NatsMessage
from tests.carriers.nats.kit import FORMING, STATUS, Taken, connected, plain_publish, settings, until
from tests.carriers.nats.server import NatsServer


async def test_a_watch_hears_core_messages_and_again_after_the_server_was_killed(server: NatsServer) -> None:
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.watch([FORMING], taken.note)
    async with connected(broker):
        broker.watch([STATUS], taken.note)  # while connected
        await until("subscribed", lambda: broker.subscriptions() == {FORMING: 1, STATUS: 1})
        for count in range(3):
            before = len(taken.messages)
            await until("connected", lambda: broker.state().connected)
            while len(taken.messages) < before + 2:
                await plain_publish(
                    server, [(FORMING, b"f", {"Status": "x"}), ("chorus.councils.a.status", b"s", None)]
                )
                await trio.sleep(0.05)
            assert {each.subject for each in taken.messages[before:]} == {FORMING, "chorus.councils.a.status"}
            assert all(each.stream_seq == each.stamped_ns == 0 for each in taken.messages)
            if count < 2:
                server.kill()
                await until("noticed", lambda: not broker.state().connected)
                assert broker.subscriptions() == {}
                server.start()


async def test_a_watcher_that_fails_at_a_message_gets_the_next(server: NatsServer) -> None:
    heard: list[bytes] = []

    def take(message: NatsMessage) -> None:
        if message.body == b"bad":
            raise ValueError("planted")
        heard.append(message.body)

    broker = NatsBroker(settings(server))
    broker.watch(["hmmm.>"], take)
    async with connected(broker):
        await plain_publish(server, [("hmmm.a", b"bad", None), ("hmmm.a", b"good", None)])
        await until("heard", lambda: heard == [b"good"])
        assert broker.counters()["take-failed", "hmmm.>"] == 1


async def test_a_flood_is_bounded_and_what_is_dropped_is_counted(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handing_module, "WAITING_MESSAGES", 50)
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.watch(["hmmm.>"], taken.note)

    def slow(message: NatsMessage) -> None:
        taken.note(message)
        if len(taken.messages) == 1:
            # The loop is held up, as by a burst of other work, until the flood is here.
            with pytest.raises(AssertionError):
                wait_blocking()

    def wait_blocking() -> None:
        import time

        deadline = time.monotonic() + 60
        while broker.counters().get(("dropped", "slow.>"), 0) < 100:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise AssertionError("enough was dropped")

    broker.watch(["slow.>"], slow)
    async with connected(broker):
        messages = [("slow.a", str(each).encode(), None) for each in range(1000)]
        await plain_publish(server, messages)
        await until("all are accounted for", lambda: total(broker) >= 1000)
        await broker.publish("hmmm.b", b"after", {})
        await until("heard again", lambda: b"after" in taken.bodies)
    assert broker.counters()["dropped", "slow.>"] >= 100
    assert broker.counters()["in", "slow.>"] + broker.counters()["dropped", "slow.>"] == 1000


def total(broker: NatsBroker) -> int:
    counters = broker.counters()
    return counters.get(("in", "slow.>"), 0) + counters.get(("dropped", "slow.>"), 0)


async def test_a_stranger_s_bytes_do_not_end_the_connection(server: NatsServer) -> None:
    taken, kept = Taken(), Taken()
    broker = NatsBroker(settings(server))
    broker.watch(["hmmm.>"], taken.note)
    broker.consume("bridge", ["hmmm.>"], kept.take)
    odd = [
        b"PUB hmmm.\xff\xfe 1\r\nx\r\n",
        b"PUB hmmm.a\x0bb 1\r\nx\r\n",
        b"PUB hmmm.a\x0cb 1\r\nx\r\n",
        b"PUB hmmm." + b"x" * 4000 + b" 1\r\nx\r\n",
        b"HPUB hmmm.a 16 17\r\nNATS/1.0 \xff\xff\xff\r\n\r\nx\r\n",
        b"HPUB hmmm.a 18 19\r\nNATS/1.0\r\n\xff: a\r\n\r\nx\r\n",
        b"HPUB hmmm.a 20 21\r\nNATS/1.0\r\na: \xff\xfe\xfd\r\n\r\nx\r\n",
        b"HPUB hmmm.a 19 20\r\nNATS/1.0 404 x\r\n\r\n\r\nx\r\n",
        b"HPUB hmmm.a 24 25\r\nNATS/1.0\r\nA: 1\r\nA: 2\r\n\r\nx\r\n",
        b"HPUB hmmm.a 14 14\r\nNATS/1.0 1\r\n\r\n\r\n",
    ]
    async with connected(broker):
        for each in odd:
            raw(server, each)
        raw(server, b"PUB hmmm.last 1\r\nx\r\n")
        await until("heard", lambda: any(each.subject == "hmmm.last" for each in taken.messages))
        await until("kept", lambda: any(each.subject == "hmmm.last" for each in kept.messages))
        assert ("disconnected", "") not in broker.counters()
        twice = next(each for each in kept.messages if "A" in each.headers)
        assert twice.headers["A"] == "1"


def raw(server: NatsServer, command: bytes) -> None:
    """Say it to the server as it stands."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n' + command + b"PING\r\n")
        heard = b""
        while b"PONG" not in heard and b"-ERR" not in heard:
            more = connection.recv(4096)
            if not more:
                return
            heard += more
