"""The async client, for trio and asyncio."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import anyio
import httpx

from p2pnode.client.asking import (
    ATTEMPT_SECONDS,
    TIMEOUT_SECONDS,
    Answer,
    Ask,
    Payload,
    Published,
    document,
    listing,
    publish,
    query,
)
from p2pnode.client.following import Following, Message
from p2pnode.client.reaching import LIMITS, STREAM_TIMEOUT, Gathering, find, is_event_stream, timeout_of
from p2pnode.errors import EnvironmentFault, NoSidecar

T = TypeVar("T")


class AsyncClient:
    """Talks to one sidecar, as `Client` does. An async context manager, or `aclose` it.

    Args:
        api: `unix:PATH` or `tcp:HOST:PORT`; None: the environment's `P2PNODE_API`.
        token: the bearer token of a TCP listener; None: what the file named by `P2PNODE_API_TOKEN_FILE` holds.
        timeout: seconds until a call gives up, all its attempts together.

    Raises:
        CallerError: no address, or one that cannot be used.
    """

    def __init__(self, api: str | None = None, *, token: str | None = None, timeout: float = TIMEOUT_SECONDS) -> None:
        self._target = find(api, token)
        self._timeout = timeout
        self._subscriptions: set[AsyncSubscription] = set()
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=self._target.socket, limits=LIMITS),
            base_url=self._target.base_url,
            headers=self._target.headers,
            trust_env=False,
        )

    async def publish(
        self,
        topic: str,
        payload: Payload,
        headers: Mapping[str, str] | None = None,
        *,
        content_type: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Published:
        """As `Client.publish`."""
        seconds = self._timeout if timeout is None else timeout
        return await self._run(publish(topic, payload, headers or {}, content_type, idempotency_key, seconds))

    def subscribe(self, topic: str, name: str | None = None, start: str = "now") -> AsyncSubscription:
        """As `Client.subscribe`; `await message.ack()`."""
        return AsyncSubscription(self, Following(topic, name, start, self._timeout))

    async def peers(self) -> list[dict[str, Any]]:
        """As `Client.peers`."""
        return listing(await self._run(query("/api/v1/peers", self._timeout)))

    async def node(self) -> dict[str, Any]:
        """As `Client.node`."""
        return document(await self._run(query("/api/v1/node", self._timeout)))

    async def health(self) -> dict[str, Any]:
        """As `Client.health`."""
        return document(await self._run(query("/ready", self._timeout, good=(200, 206, 503))))

    async def aclose(self) -> None:
        """Close its connections, and end its subscriptions."""
        for subscription in list(self._subscriptions):
            await subscription.aclose()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, steps: Generator[Ask | float, Answer | NoSidecar | None, T]) -> T:
        got: Answer | NoSidecar | None = None
        while True:
            try:
                step = steps.send(got)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Ask):
                got = await self._exchange(step)
            else:
                got = None
                await anyio.sleep(step)

    async def _exchange(self, ask: Ask) -> Answer | NoSidecar:
        try:
            async with self._http.stream(
                ask.method, ask.path, headers=dict(ask.headers), content=ask.body, timeout=timeout_of(ask)
            ) as response:
                return await self._gather(response, ask.seconds)
        except httpx.TransportError as error:
            return self._target.no_answer(error)

    async def _gather(self, response: httpx.Response, seconds: float) -> Answer | NoSidecar:
        gathering = Gathering(response, seconds)
        chunks = _chunks(response)
        async for chunk in chunks:
            if (error := gathering.add(chunk)) is not None:
                await _hang_up(response, chunks)
                return error
        return gathering.answer


class AsyncSubscription(AsyncIterator[Message[Awaitable[None]]]):
    """Made by `AsyncClient.subscribe`; as `Subscription`, with `async with`, `async for` and `aclose`."""

    def __init__(self, client: AsyncClient, following: Following) -> None:
        self._client = client
        self._following = following
        self._stream: tuple[httpx.Response, AsyncGenerator[bytes]] | None = None
        self._ready: deque[dict[str, Any]] = deque()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message[Awaitable[None]]:
        while not self._ready:
            if self._closed:
                raise StopAsyncIteration
            try:
                new, again = self._following.feed(await self._read())
            except (NoSidecar, EnvironmentFault) as error:
                await self._hang_up()
                await anyio.sleep(self._following.broke(error))
                continue
            self._ready.extend(new)
            for message_id in again:
                await self._ack(message_id)
        return self._following.message(self._ready.popleft(), self._ack, self._nack)

    async def aclose(self) -> None:
        """As `Subscription.close`; not while another task waits for the next message."""
        self._closed = True
        self._ready.clear()
        await self._hang_up()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ack(self, message_id: str) -> None:
        await self._client._run(self._following.acknowledge(message_id))

    async def _nack(self, message_id: str, reason: str) -> None:
        await self._client._run(self._following.refuse(message_id, reason))

    async def _read(self) -> bytes:
        try:
            _, chunks = self._stream or await self._open()
            return await anext(chunks)
        except StopAsyncIteration:
            raise NoSidecar("the sidecar ended the stream") from None
        except httpx.TransportError as error:
            raise self._client._target.no_answer(error) from error

    async def _open(self) -> tuple[httpx.Response, AsyncGenerator[bytes]]:
        http = self._client._http
        request = http.build_request(
            "GET", self._following.path(), headers=self._following.headers(), timeout=STREAM_TIMEOUT
        )
        response = await http.send(request, stream=True)
        if not is_event_stream(response):
            answer = await self._client._gather(response, ATTEMPT_SECONDS)
            raise answer if isinstance(answer, NoSidecar) else self._following.refused(answer)
        self._stream = response, _chunks(response)
        self._client._subscriptions.add(self)
        self._following.opened()
        return self._stream

    async def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        self._client._subscriptions.discard(self)
        if stream is not None:
            await _hang_up(*stream)


def _chunks(response: httpx.Response) -> AsyncGenerator[bytes]:
    return cast("AsyncGenerator[bytes]", response.aiter_raw())


async def _hang_up(response: httpx.Response, chunks: AsyncGenerator[bytes]) -> None:
    """Close a stream in the middle.

    httpx reads through several generators, one in the other. To close the outer one would leave the inner ones to the
    garbage collector, which trio reports; once what was received already is used up, a read from the closed connection
    ends them all.
    """
    await response.aclose()
    with suppress(httpx.HTTPError, httpx.StreamError, StopAsyncIteration):
        while True:
            await anext(chunks)
