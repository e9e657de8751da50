"""The blocking client."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

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


class Client:
    """Talks to one sidecar; may be used by several threads. A context manager, or `close` it.

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
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=self._target.socket, limits=LIMITS),
            base_url=self._target.base_url,
            headers=self._target.headers,
            trust_env=False,
        )

    def publish(
        self,
        topic: str,
        payload: Payload,
        headers: Mapping[str, str] | None = None,
        *,
        content_type: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Published:
        """Publish a message; returns once the sidecar has stored it.

        429, 503, a refused connection and a lost answer are tried again until `timeout`, all with one idempotency
        key, so that there is one message.

        Args:
            payload: a dict travels as JSON, text and bytes as they are.
            headers: go with the message.
            content_type: None: by the type of `payload`.
            idempotency_key: None: a new one for each call.

        Raises:
            InvalidRequest: with one fault for each field that is wrong.
            PayloadTooLarge: it is over the limit.
            StorageFull: the sidecar's disk is full.
            Unavailable: the sidecar refused until `timeout`.
            NoSidecar: none answered until `timeout`; the message may be stored or not, and the same key tells.
        """
        return self._run(publish(topic, payload, headers or {}, content_type, idempotency_key, self._seconds(timeout)))

    def subscribe(self, topic: str, name: str | None = None, start: str = "now") -> Subscription:
        """Follow a topic: an endless iterator of messages, each id once, that reconnects by itself for ever.

        Args:
            name: makes it durable: the sidecar keeps its place, also over restarts of the agent, and gives again what
                was not acknowledged with `Message.ack`. One reader at a time.
            start: `start`, `now` or a message id; with a name only where that is new.
        """
        return Subscription(self, Following(topic, name, start, self._timeout))

    def peers(self) -> list[dict[str, Any]]:
        """The member documents, this node's own (`"self": true`) included; raises as `publish`."""
        return listing(self._run(query("/api/v1/peers", self._timeout)))

    def node(self) -> dict[str, Any]:
        """The sidecar's own document; raises as `publish`."""
        return document(self._run(query("/api/v1/node", self._timeout)))

    def health(self) -> dict[str, Any]:
        """`status` (`delivering`, `degraded`, `not-ready`) and `reasons`; raises NoSidecar when none answers."""
        return document(self._run(query("/ready", self._timeout, good=(200, 206, 503))))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    def _run(self, steps: Generator[Ask | float, Answer | NoSidecar | None, T]) -> T:
        got: Answer | NoSidecar | None = None
        while True:
            try:
                step = steps.send(got)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Ask):
                got = self._exchange(step)
            else:
                got = None
                time.sleep(step)

    def _exchange(self, ask: Ask) -> Answer | NoSidecar:
        try:
            with self._http.stream(
                ask.method, ask.path, headers=dict(ask.headers), content=ask.body, timeout=timeout_of(ask)
            ) as response:
                return self._gather(response, ask.seconds)
        except httpx.TransportError as error:
            return self._target.no_answer(error)

    def _gather(self, response: httpx.Response, seconds: float) -> Answer | NoSidecar:
        gathering = Gathering(response, seconds)
        for chunk in response.iter_raw():
            if (error := gathering.add(chunk)) is not None:
                return error
        return gathering.answer


class Subscription(Iterator[Message[None]]):
    """Made by `Client.subscribe`. A context manager, or `close` it; `Client.close` ends it too.

    Iterating raises CallerError when the sidecar refuses, and NoSidecar or EnvironmentFault when the first connection
    does not come about within the client's timeout; later ones are tried for ever. CallerError too when another reader
    takes over a named subscription.
    """

    def __init__(self, client: Client, following: Following) -> None:
        self._client = client
        self._following = following
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._ready: deque[dict[str, Any]] = deque()
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message[None]:
        while not self._ready:
            if self._closed:
                raise StopIteration
            try:
                new, again = self._following.feed(self._read())
            except (NoSidecar, EnvironmentFault) as error:
                self._hang_up()
                time.sleep(self._following.broke(error))
                continue
            self._ready.extend(new)
            for message_id in again:
                self._ack(message_id)
        return self._following.message(self._ready.popleft(), self._ack, self._nack)

    def close(self) -> None:
        """End it; what was read ahead and not given out is dropped, and comes again if the subscription is durable."""
        self._closed = True
        self._ready.clear()
        self._hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ack(self, message_id: str) -> None:
        self._client._run(self._following.acknowledge(message_id))

    def _nack(self, message_id: str, reason: str) -> None:
        self._client._run(self._following.refuse(message_id, reason))

    def _read(self) -> bytes:
        try:
            if self._response is None:
                self._open()
            return next(self._chunks)
        except StopIteration:
            raise NoSidecar("the sidecar ended the stream") from None
        except httpx.TransportError as error:
            raise self._client._target.no_answer(error) from error

    def _open(self) -> None:
        http = self._client._http
        request = http.build_request(
            "GET", self._following.path(), headers=self._following.headers(), timeout=STREAM_TIMEOUT
        )
        response = self._response = http.send(request, stream=True)
        if not is_event_stream(response):
            answer = self._client._gather(response, ATTEMPT_SECONDS)
            raise answer if isinstance(answer, NoSidecar) else self._following.refused(answer)
        self._chunks = response.iter_raw()
        self._following.opened()

    def _hang_up(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()
