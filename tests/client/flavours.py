"""The three ways to use the client, as one: a scenario is a coroutine that is given a way to connect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import anyio
import trio

from p2pnode.client import AsyncClient, AsyncCouncilWatch, Client, CouncilWatch, Message, Published, Subscription

DEADLINE_SECONDS = 60.0


class AnySubscription(Protocol):
    async def next(self) -> Message[Any]: ...

    async def ack(self, message: Message[Any]) -> None: ...

    async def nack(self, message: Message[Any], reason: str) -> None: ...

    async def close(self) -> None: ...


class AnyWatch(Protocol):
    async def next(self) -> dict[str, Any]: ...

    async def close(self) -> None: ...


class AnyClient(Protocol):
    async def publish(self, topic: str, payload: Any, **options: Any) -> Published: ...

    async def get(self, what: str) -> Any: ...

    async def call(self, what: str, *given: Any, **named: Any) -> Any:
        """A method of the client by its name."""

    def subscribe(self, topic: str, name: str | None = None, start: str = "now") -> AnySubscription: ...

    def watch(self, council_id: str | None = None) -> AnyWatch: ...


Connect = Callable[..., AbstractAsyncContextManager[AnyClient]]
Scenario = Callable[[Connect], Coroutine[Any, Any, None]]


class _Sync:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def publish(self, topic: str, payload: Any, **options: Any) -> Published:
        return self._client.publish(topic, payload, **options)

    async def get(self, what: str) -> Any:
        return {"peers": self._client.peers, "node": self._client.node, "health": self._client.health}[what]()

    async def call(self, what: str, *given: Any, **named: Any) -> Any:
        return getattr(self._client, what)(*given, **named)

    def subscribe(self, topic: str, name: str | None = None, start: str = "now") -> AnySubscription:
        return _SyncSubscription(self._client.subscribe(topic, name, start))

    def watch(self, council_id: str | None = None) -> AnyWatch:
        return _SyncWatch(self._client.watch_councils(council_id))


class _SyncWatch:
    def __init__(self, councils: CouncilWatch) -> None:
        self._councils = councils

    async def next(self) -> dict[str, Any]:
        return next(self._councils)

    async def close(self) -> None:
        self._councils.close()


class _SyncSubscription:
    def __init__(self, messages: Subscription) -> None:
        self._messages = messages

    async def next(self) -> Message[Any]:
        return next(self._messages)

    async def ack(self, message: Message[Any]) -> None:
        message.ack()

    async def nack(self, message: Message[Any], reason: str) -> None:
        message.nack(reason)

    async def close(self) -> None:
        self._messages.close()


class _Async:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def publish(self, topic: str, payload: Any, **options: Any) -> Published:
        return await self._client.publish(topic, payload, **options)

    async def get(self, what: str) -> Any:
        asked: dict[str, Callable[[], Awaitable[Any]]] = {
            "peers": self._client.peers,
            "node": self._client.node,
            "health": self._client.health,
        }
        return await asked[what]()

    async def call(self, what: str, *given: Any, **named: Any) -> Any:
        return await getattr(self._client, what)(*given, **named)

    def subscribe(self, topic: str, name: str | None = None, start: str = "now") -> AnySubscription:
        return _AsyncSubscription(self._client, topic, name, start)

    def watch(self, council_id: str | None = None) -> AnyWatch:
        return _AsyncWatch(self._client.watch_councils(council_id))


class _AsyncWatch:
    def __init__(self, councils: AsyncCouncilWatch) -> None:
        self._councils = councils

    async def next(self) -> dict[str, Any]:
        return await anext(self._councils)

    async def close(self) -> None:
        await self._councils.aclose()


class _AsyncSubscription:
    def __init__(self, client: AsyncClient, topic: str, name: str | None, start: str) -> None:
        self._messages = client.subscribe(topic, name, start)

    async def next(self) -> Message[Any]:
        return await anext(self._messages)

    async def ack(self, message: Message[Any]) -> None:
        await message.ack()

    async def nack(self, message: Message[Any], reason: str) -> None:
        await message.nack(reason)

    async def close(self) -> None:
        await self._messages.aclose()


@asynccontextmanager
async def _connect_blocking(api: str | None = None, **options: Any) -> Any:
    with Client(api, **options) as client:
        yield _Sync(client)


@asynccontextmanager
async def _connect_async(api: str | None = None, **options: Any) -> Any:
    async with AsyncClient(api, **options) as client:
        yield _Async(client)


def play(flavour: str, scenario: Scenario) -> None:
    """Run a scenario as `blocking`, `trio` or `asyncio`; it fails at the deadline."""

    async def within(connect: Connect) -> None:
        with anyio.fail_after(DEADLINE_SECONDS):
            await scenario(connect)

    if flavour == "asyncio":
        asyncio.run(within(_connect_async))
    else:
        trio.run(within, _connect_async if flavour == "trio" else _connect_blocking)
