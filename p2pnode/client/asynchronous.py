"""The async client, for trio and asyncio."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, cast

import anyio
import httpx

from p2pnode.client.asking import (
    ATTEMPT_SECONDS,
    TIMEOUT_SECONDS,
    Answer,
    Ask,
    Payload,
    Published,
    Steps,
    document,
    listing,
    publish,
    query,
)
from p2pnode.client.carriers import CarrierFields, bridge, carriers, set_carriers
from p2pnode.client.councils import (
    AgentFields,
    ClaimFields,
    CouncilFields,
    ReleaseFields,
    ReportFields,
    Watching,
    agent,
    agents,
    claim,
    council,
    councils,
    create_council,
    release,
    report_status,
    update_agent,
)
from p2pnode.client.following import Feed, Following, Message
from p2pnode.client.reaching import LIMITS, STREAM_TIMEOUT, Gathering, closed, find, is_event_stream, timeout_of
from p2pnode.errors import EnvironmentFault, NoSidecar

T = TypeVar("T")
AnyFeed = TypeVar("AnyFeed", bound=Feed)


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
        self._readers: set[_Reader[Any]] = set()
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

    async def create_council(
        self,
        council: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[CouncilFields],
    ) -> dict[str, Any]:
        """As `Client.create_council`."""
        return await self._run(create_council(council, fields, idempotency_key, self._timeout))

    async def councils(self, status: str | None = None) -> list[dict[str, Any]]:
        """As `Client.councils`."""
        return await self._run(councils(status, self._timeout))

    async def council(self, council_id: str) -> dict[str, Any]:
        """As `Client.council`."""
        return await self._run(council(council_id, self._timeout))

    async def claim(self, council_id: str, role_name: str, **fields: Unpack[ClaimFields]) -> dict[str, Any]:
        """As `Client.claim`."""
        return await self._run(claim(council_id, role_name, fields, self._timeout))

    async def release(self, council_id: str, role_name: str, **fields: Unpack[ReleaseFields]) -> dict[str, Any]:
        """As `Client.release`."""
        return await self._run(release(council_id, role_name, fields, self._timeout))

    async def report_status(self, council_id: str, status: str, **fields: Unpack[ReportFields]) -> dict[str, Any]:
        """As `Client.report_status`."""
        return await self._run(report_status(council_id, status, fields, self._timeout))

    def watch_councils(self, council_id: str | None = None) -> AsyncCouncilWatch:
        """As `Client.watch_councils`, with `async for`."""
        return AsyncCouncilWatch(self, Watching(council_id, self._timeout))

    async def agent(self) -> dict[str, Any]:
        """As `Client.agent`."""
        return await self._run(agent(self._timeout))

    async def agents(
        self, capability: str | None = None, model: str | None = None, status: str | None = None
    ) -> list[dict[str, Any]]:
        """As `Client.agents`."""
        return await self._run(agents(capability, model, status, self._timeout))

    async def update_agent(self, **fields: Unpack[AgentFields]) -> dict[str, Any]:
        """As `Client.update_agent`."""
        return await self._run(update_agent(fields, self._timeout))

    async def carriers(self) -> dict[str, Any]:
        """As `Client.carriers`."""
        return await self._run(carriers(self._timeout))

    async def set_carriers(self, **changes: Unpack[CarrierFields]) -> dict[str, Any]:
        """As `Client.set_carriers`."""
        return await self._run(set_carriers(changes, self._timeout))

    async def bridge(self) -> dict[str, Any]:
        """As `Client.bridge`."""
        return await self._run(bridge(self._timeout))

    async def aclose(self) -> None:
        """Close its connections, and end its subscriptions."""
        for reader in list(self._readers):
            await reader.aclose()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, steps: Steps[T]) -> T:
        got: Answer | NoSidecar | None = None
        while True:
            try:
                step = steps.send(got)
            except StopIteration as end:
                result: T = end.value
                return result
            if self._http.is_closed:
                raise closed()
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


class _Reader(Generic[AnyFeed]):
    """Reads one event stream, over all reconnections."""

    def __init__(self, client: AsyncClient, feed: AnyFeed) -> None:
        self._client = client
        self._feed = feed
        self._stream: tuple[httpx.Response, AsyncGenerator[bytes]] | None = None
        self._ready: deque[dict[str, Any]] = deque()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def _next(self) -> dict[str, Any]:
        """The next document; StopAsyncIteration when it is closed."""
        while not self._ready:
            if self._closed or self._client._http.is_closed:
                raise StopAsyncIteration
            try:
                new, calls = self._feed.feed(await self._read())
            except (NoSidecar, EnvironmentFault) as error:
                await self._hang_up()
                await anyio.sleep(self._feed.broke(error))
                continue
            self._ready.extend(new)
            for each in calls:
                await self._client._run(each)
        return self._ready.popleft()

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
        request = http.build_request("GET", self._feed.path(), headers=self._feed.headers(), timeout=STREAM_TIMEOUT)
        response = await http.send(request, stream=True)
        if not is_event_stream(response):
            answer = await self._client._gather(response, ATTEMPT_SECONDS)
            raise answer if isinstance(answer, NoSidecar) else self._feed.refused(answer)
        self._stream = response, _chunks(response)
        self._client._readers.add(self)
        self._feed.opened()
        return self._stream

    async def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        self._client._readers.discard(self)
        if stream is not None:
            await _hang_up(*stream)


class AsyncSubscription(_Reader[Following], AsyncIterator[Message[Awaitable[None]]]):
    """Made by `AsyncClient.subscribe`; as `Subscription`, with `async with`, `async for` and `aclose`."""

    async def __anext__(self) -> Message[Awaitable[None]]:
        return self._feed.message(await self._next(), self._ack, self._nack)

    async def _ack(self, message_id: str) -> None:
        await self._client._run(self._feed.acknowledge(message_id))

    async def _nack(self, message_id: str, reason: str) -> None:
        await self._client._run(self._feed.refuse(message_id, reason))


class AsyncCouncilWatch(_Reader[Watching], AsyncIterator[dict[str, Any]]):
    """Made by `AsyncClient.watch_councils`; as `CouncilWatch`, with `async with`, `async for` and `aclose`."""

    async def __anext__(self) -> dict[str, Any]:
        return await self._next()


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
