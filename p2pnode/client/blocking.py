"""The blocking client."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

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
from p2pnode.errors import CallerError, EnvironmentFault, NoSidecar

T = TypeVar("T")
AnyFeed = TypeVar("AnyFeed", bound=Feed)


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
        self._over = threading.Event()
        self._transport = httpx.HTTPTransport(uds=self._target.socket, limits=LIMITS)
        self._http = httpx.Client(
            transport=self._transport,
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

    def create_council(
        self,
        council: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[CouncilFields],
    ) -> dict[str, Any]:
        """Announce a council: a document, keywords, or both; returns the council once the sidecar has stored it.

        Tried again as `publish`, with one idempotency key: there is one council.

        Raises:
            InvalidRequest: with one fault for each field that is wrong.
            Conflict: reason `exists`: another council has that id.
            Forbidden: the sidecar is no trusted orchestrator.
            Unavailable, StorageFull, NoSidecar: as `publish`.
        """
        return self._run(create_council(council, fields, idempotency_key, self._timeout))

    def councils(self, status: str | None = None) -> list[dict[str, Any]]:
        """Council documents, the newest first; with `status` only those. Raises as `publish`."""
        return self._run(councils(status, self._timeout))

    def council(self, council_id: str) -> dict[str, Any]:
        """One council with the `claims` for its roles; NotFound when it is not known there."""
        return self._run(council(council_id, self._timeout))

    def claim(self, council_id: str, role_name: str, **fields: Unpack[ClaimFields]) -> dict[str, Any]:
        """Claim a role; who gets it the council's owner decides (`watch_councils` tells).

        Tried again as `publish`, without a key: of two claims of one agent the later one counts.

        Raises:
            NotFound: no such council, or no such role in it.
            Conflict: reason `filled`: `facts` says who holds it (`agent_id`, `peer_id`, `term`, `n`); `ended`.
            InvalidRequest, Unavailable, NoSidecar: as `publish`.
        """
        return self._run(claim(council_id, role_name, fields, self._timeout))

    def release(self, council_id: str, role_name: str, **fields: Unpack[ReleaseFields]) -> dict[str, Any]:
        """Give a role back, or withdraw the claim for it.

        Raises as `claim`; NotFound also when the agent neither holds nor claims it, which the next attempt after a
        lost answer may meet.
        """
        return self._run(release(council_id, role_name, fields, self._timeout))

    def report_status(self, council_id: str, status: str, **fields: Unpack[ReportFields]) -> dict[str, Any]:
        """Say where a council stands; an orchestrator's `completed`, `failed` or `cancelled` ends it.

        Raises:
            Conflict: reason `ended` (which the next attempt after a lost answer may meet), `transition`, `stale`.
            Forbidden: the agent holds no role there, and the sidecar is no orchestrator.
            NotFound, InvalidRequest, Unavailable, NoSidecar: as `claim`.
        """
        return self._run(report_status(council_id, status, fields, self._timeout))

    def watch_councils(self, council_id: str | None = None) -> CouncilWatch:
        """Council documents as they change, beginning with those that are: an endless iterator that reconnects.

        Who reads slowly gets the newest state of each council and not every step.
        """
        return CouncilWatch(self, Watching(council_id, self._timeout))

    def agent(self) -> dict[str, Any]:
        """What is said of the sidecar's own agent; raises as `publish`."""
        return self._run(agent(self._timeout))

    def agents(
        self, capability: str | None = None, model: str | None = None, status: str | None = None
    ) -> list[dict[str, Any]]:
        """The agents of live members that match; raises as `publish`."""
        return self._run(agents(capability, model, status, self._timeout))

    def update_agent(self, **fields: Unpack[AgentFields]) -> dict[str, Any]:
        """Change what is said of the sidecar's agent; all members hear of it. Raises as `publish`."""
        return self._run(update_agent(fields, self._timeout))

    def carriers(self) -> dict[str, Any]:
        """Which roads the sidecar's own messages take, and how each stands; raises as `publish`."""
        return self._run(carriers(self._timeout))

    def set_carriers(self, **changes: Unpack[CarrierFields]) -> dict[str, Any]:
        """Change roads until the sidecar's next start; what is not named stays. What `carriers` gives then.

        Raises:
            InvalidRequest: with one fault for each field that is wrong, or no road would be left.
            Unavailable, NoSidecar: as `publish`.
        """
        return self._run(set_carriers(changes, self._timeout))

    def bridge(self) -> dict[str, Any]:
        """What a bridge exports and imports, and how far behind it is; NotFound when the sidecar is no bridge."""
        return self._run(bridge(self._timeout))

    def close(self) -> None:
        """Close its connections, and end its subscriptions; from any thread.

        What another thread calls just now raises CallerError, as every call does from then on. A thread that waits for
        bytes notices when some come, or after 10 s, one that reads a subscription after 60 s.
        """
        self._over.set()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    def _run(self, steps: Steps[T]) -> T:
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
                self._over.wait(step)
            if self._is_over() and not isinstance(got, Answer):
                raise closed()

    def _is_over(self) -> bool:
        """Was it closed? Then what this thread may have opened meanwhile is closed as well."""
        if self._over.is_set():
            self._transport.close()
        return self._over.is_set()

    def _exchange(self, ask: Ask) -> Answer | NoSidecar:
        try:
            with self._http.stream(
                ask.method, ask.path, headers=dict(ask.headers), content=ask.body, timeout=timeout_of(ask)
            ) as response:
                return self._gather(response, ask.seconds)
        except httpx.TransportError as error:
            return self._target.no_answer(error)
        except RuntimeError:  # what httpx says of a client that is closed
            if self._over.is_set():
                raise closed() from None
            raise

    def _gather(self, response: httpx.Response, seconds: float) -> Answer | NoSidecar:
        gathering = Gathering(response, seconds)
        for chunk in response.iter_raw():
            if (error := gathering.add(chunk)) is not None:
                return error
        return gathering.answer


class _Reader(Generic[AnyFeed]):
    """Reads one event stream, over all reconnections."""

    def __init__(self, client: Client, feed: AnyFeed) -> None:
        self._client = client
        self._feed = feed
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._ready: deque[dict[str, Any]] = deque()
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def _next(self) -> dict[str, Any]:
        """The next document; StopIteration when it is closed."""
        over = self._client._over
        while not self._ready:
            if self._client._is_over() or self._closed:
                raise StopIteration
            try:
                new, calls = self._feed.feed(self._read())
            except (NoSidecar, EnvironmentFault) as error:
                self._hang_up()
                if not self._closed and not over.is_set():
                    over.wait(self._feed.broke(error))
                continue
            self._ready.extend(new)
            try:
                for each in calls:
                    self._client._run(each)
            except CallerError:
                if not over.is_set():
                    raise
        return self._ready.popleft()

    def close(self) -> None:
        """End it; what was read ahead and not given out is dropped, and comes again if the subscription is durable."""
        self._closed = True
        self._ready.clear()
        self._hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self) -> bytes:
        try:
            if self._response is None:
                self._open()
            return next(self._chunks)
        except StopIteration:
            raise NoSidecar("the sidecar ended the stream") from None
        except httpx.TransportError as error:
            raise self._client._target.no_answer(error) from error
        except RuntimeError as error:  # what httpx says of a client or a stream that is closed
            if self._closed or self._client._over.is_set():
                raise NoSidecar("the stream was closed") from error
            raise

    def _open(self) -> None:
        http = self._client._http
        request = http.build_request("GET", self._feed.path(), headers=self._feed.headers(), timeout=STREAM_TIMEOUT)
        response = self._response = http.send(request, stream=True)
        if not is_event_stream(response):
            answer = self._client._gather(response, ATTEMPT_SECONDS)
            raise answer if isinstance(answer, NoSidecar) else self._feed.refused(answer)
        self._chunks = response.iter_raw()
        self._feed.opened()

    def _hang_up(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()


class Subscription(_Reader[Following], Iterator[Message[None]]):
    """Made by `Client.subscribe`. A context manager, or `close` it; `Client.close` ends it too.

    Iterating raises CallerError when the sidecar refuses, and NoSidecar or EnvironmentFault when the first connection
    does not come about within the client's timeout; later ones are tried for ever. CallerError too when another reader
    takes over a named subscription.
    """

    def __next__(self) -> Message[None]:
        return self._feed.message(self._next(), self._ack, self._nack)

    def _ack(self, message_id: str) -> None:
        self._client._run(self._feed.acknowledge(message_id))

    def _nack(self, message_id: str, reason: str) -> None:
        self._client._run(self._feed.refuse(message_id, reason))


class CouncilWatch(_Reader[Watching], Iterator[dict[str, Any]]):
    """Made by `Client.watch_councils`; ends and raises as `Subscription`. NotFound: no such council there."""

    def __next__(self) -> dict[str, Any]:
        return self._next()
