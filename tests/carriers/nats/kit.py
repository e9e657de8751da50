"""Brokers under test, and waiting for what they are to do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import nats
import trio

from p2pnode.carriers.nats import BrokerSettings, NatsBroker
from p2pnode.carriers.nats.thread import AsyncioThread
from p2pnode.errors import Unavailable
from p2pnode.ports.roads import NatsMessage
from tests.carriers.nats.server import NatsServer

DEADLINE_SECONDS: Final = 90.0

FORMING: Final = "chorus.councils.forming"
STATUS: Final = "chorus.councils.*.status"


def settings(server: NatsServer, **changes: Any) -> BrokerSettings:
    return replace(BrokerSettings((server.url,), "CHORUS Agent test"), **changes)


async def until(what: str, condition: Callable[[], object]) -> None:
    """Wait for it to become true.

    Raises:
        AssertionError: it did not, within the deadline.
    """
    with trio.move_on_after(DEADLINE_SECONDS):
        while True:
            if condition():
                return
            await trio.sleep(0.02)
    raise AssertionError(f"never: {what}")


@asynccontextmanager
async def running(broker: NatsBroker) -> AsyncIterator[NatsBroker]:
    """The broker runs, connected or not; it is stopped at the end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.run)
        yield broker
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(broker: NatsBroker) -> AsyncIterator[NatsBroker]:
    """The same, with all it watches and consumes open."""
    async with running(broker):
        await ready(broker)
        yield broker


async def ready(broker: NatsBroker) -> None:
    await until("connected", lambda: broker.state().connected)
    await until("consumers open", lambda: all(broker.subscriptions().get(each.subject) for each in broker.consumers()))


async def publish_until_stored(broker: NatsBroker, subject: str, body: bytes) -> None:
    """Publish, again and again, until a stream took it; the same id, so that it is there once."""
    with trio.fail_after(DEADLINE_SECONDS):
        while True:
            with contextlib.suppress(Unavailable):
                if await broker.publish(subject, body, {"Nats-Msg-Id": body.hex()}):
                    return
            await trio.sleep(0.1)


class Taken:
    """What was given to `take`, in order.

    Args:
        fail: raise for a message for which this is true.
    """

    def __init__(self, fail: Callable[[NatsMessage], bool] = lambda message: False) -> None:
        self.messages: list[NatsMessage] = []
        self._fail = fail
        self.failed = 0

    async def take(self, message: NatsMessage) -> None:
        await trio.lowlevel.checkpoint()
        if self._fail(message):
            self.failed += 1
            raise RuntimeError("cannot take it now")
        self.messages.append(message)

    def note(self, message: NatsMessage) -> None:
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [each.body for each in self.messages]

    @property
    def ids(self) -> set[str]:
        return {each.headers["Nats-Msg-Id"] for each in self.messages}


async def plain_publish(
    server: NatsServer, messages: Sequence[tuple[str, bytes, dict[str, str] | None]], **options: Any
) -> None:
    """As a client that knows nothing of us publishes: core NATS, by nats-py itself."""

    async def publish() -> None:
        client = await nats.connect(server.url, **options)
        for subject, body, headers in messages:
            await client.publish(subject, body, headers=headers)
        await client.flush()
        await client.close()

    await with_asyncio(publish)


async def api(server: NatsServer, subject: str, question: object = None) -> dict[str, Any]:
    """JetStream's answer, asked by nats-py itself."""
    answers: list[dict[str, Any]] = []

    async def ask() -> None:
        client = await nats.connect(server.url)
        message = await client.request(f"$JS.API.{subject}", json.dumps(question or {}).encode(), timeout=30)
        answers.append(json.loads(message.data))
        await client.close()

    await with_asyncio(ask)
    return answers[0]


async def with_asyncio(work: Callable[[], Any]) -> None:
    """Run a coroutine of asyncio's beside trio."""
    thread = AsyncioThread(work, "plain client")
    thread.start()
    await thread.ended()
    if thread.crash is not None:
        raise thread.crash
