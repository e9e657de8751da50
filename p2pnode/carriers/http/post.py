"""Posts signed messages to sidecars, and opportunities to agents that have none: few at once, each answer explained."""

from __future__ import annotations

import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from p2pnode.carriers.http.exchange import Answer, Place, Request, ask, parse_place, shown
from p2pnode.carriers.http.protocol import (
    HEALTH_PATH,
    MESSAGE_TYPE,
    MESSAGES_PATH,
    PROBLEM_TYPE,
    authorization,
    carrier_key,
)
from p2pnode.core.message import SignedMessage
from p2pnode.errors import InvalidRequest, TooBusy, Unavailable
from p2pnode.ports.roads import LegacyAgent, Target

_MAX_RETRY_AFTER_SECONDS = 3600.0
_KNOWN_AGENTS = 1024
_NOT_FOR_GOOD = frozenset({401, 408, 429})
"""4xx that say nothing against the message: other network keys, a slow road, too much at once."""


@dataclass(frozen=True, slots=True)
class PostLimits:
    """Only tests should need other values.

    Args:
        seconds: for one request, from the connection to the end of its answer; waiting for a slot comes before.
        at_once: requests open in all.
        at_once_each: to one target or agent.
        waiting: requests that wait for a slot; one more is refused.
        health_seconds: how long an agent's answer to `GET /health` counts.
    """

    seconds: float = 10.0
    at_once: int = 8
    at_once_each: int = 2
    waiting: int = 1024
    health_seconds: float = 5.0


@dataclass(slots=True)
class _Lane:
    slots: trio.Semaphore
    users: int = 0


@dataclass(slots=True)
class _Health:
    """What an agent last said; `problem` is empty when it was healthy. Asked by one caller at a time."""

    asking: trio.Lock = field(default_factory=trio.Lock)
    until: float = 0.0
    problem: str = ""


class HttpPost:
    """Implements `ports.roads.Post`.

    Every `Unavailable` has one of these reasons: `http-unreachable`, `http-timeout`, `http-busy` (429, 5xx, or our own
    queue is full), `http-unauthorized` (another network key), `http-unhealthy`, `http-answer` (something else answers
    there).

    Args:
        network_key: of the private network; empty in a public one.
        legacy_path: where agents take opportunities.
        health_port: where they answer `GET /health`.

    Attributes:
        counters: how often each came about: `stored`, `held`, `told`, `refused`, and the reasons above.
        waiting: requests that wait for a slot now.
    """

    def __init__(
        self, *, network_key: bytes = b"", legacy_path: str, health_port: int, limits: PostLimits | None = None
    ) -> None:
        self._key = carrier_key(network_key) if network_key else b""
        self._legacy_path = legacy_path
        self._health_port = health_port
        self._limits = limits or PostLimits()
        self._all = trio.Semaphore(self._limits.at_once)
        self._lanes: dict[str, _Lane] = {}
        self._health: dict[str, _Health] = {}
        self._tls: ssl.SSLContext | None = None
        self.counters: Counter[str] = Counter()
        self.waiting = 0

    async def hand_over(self, target: Target, message: SignedMessage) -> None:
        """See `ports.roads.Post`."""
        who = f"{target.name} at {shown(target.url)}"
        try:
            place = parse_place(target.url)
            headers = {"Content-Type": MESSAGE_TYPE}
            if self._key:
                headers["Authorization"] = authorization(self._key, message.raw)
            async with self._slot(who, target.url):
                answer = await self._ask(who, place, Request("POST", MESSAGES_PATH, headers, message.raw))
            self.counters[_stored(who, answer)] += 1
        except Unavailable as error:
            self.counters[error.reason] += 1
            raise
        except InvalidRequest:
            self.counters["refused"] += 1
            raise

    async def tell(self, agent: LegacyAgent, body: bytes, headers: Mapping[str, str]) -> None:
        """See `ports.roads.Post`. A value among `headers` that HTTP cannot carry is left out."""
        who = f"{agent.name} at {shown(agent.endpoint)}"
        try:
            place = parse_place(agent.endpoint)
            named = {name: value for name, value in headers.items() if name.lower() != "content-type"}
            request = Request("POST", self._legacy_path, {**named, "Content-Type": "application/json"}, body)
            # An agent known to be unwell is not worth a slot.
            self._raise_unhealthy(who, self._health.get(agent.endpoint))
            async with self._slot(who, agent.endpoint):
                await self._check_health(who, agent, place)
                try:
                    _taken(who, await self._ask(who, place, request))
                except Unavailable:
                    self._health.pop(agent.endpoint, None)
                    raise
            self.counters["told"] += 1
        except Unavailable as error:
            self.counters[error.reason] += 1
            raise
        except InvalidRequest:
            self.counters["refused"] += 1
            raise

    async def _check_health(self, who: str, agent: LegacyAgent, place: Place) -> None:
        """Raises:
        Unavailable: it did not answer `GET /health` with 2xx, now or within `health_seconds` before.
        """
        if agent.endpoint not in self._health and len(self._health) >= _KNOWN_AGENTS:
            self._health = {name: health for name, health in self._health.items() if health.asking.locked()}
        health = self._health.setdefault(agent.endpoint, _Health())
        async with health.asking:
            if trio.current_time() >= health.until:
                where = Place(False, place.host, self._health_port)
                health.problem = ""
                try:
                    answer = await self._ask(
                        f"{agent.name} at {where}{HEALTH_PATH}", where, Request("GET", HEALTH_PATH)
                    )
                    if not 200 <= answer.status < 300:
                        health.problem = f"GET {where}{HEALTH_PATH} answers {_said(answer)}"
                except Unavailable as error:
                    health.problem = f"asked for its health, {error.detail}"
                health.until = trio.current_time() + self._limits.health_seconds
        self._raise_unhealthy(who, health)

    def _raise_unhealthy(self, who: str, health: _Health | None) -> None:
        if health is not None and health.problem and (left := health.until - trio.current_time()) > 0:
            raise Unavailable(
                f"{who} is not healthy: {health.problem}",
                reason="http-unhealthy",
                retry_after_seconds=left,
                hint="start the agent, or correct legacy.endpoints and legacy.health_port",
            )

    async def _ask(self, who: str, place: Place, request: Request) -> Answer:
        return await ask(who, place, request, self._limits.seconds, self._context)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    @asynccontextmanager
    async def _slot(self, who: str, key: str) -> AsyncIterator[None]:
        """One of the target's slots, then one of all: who waits for a slow target keeps nobody else waiting.

        Raises:
            TooBusy: too many wait already.
        """
        if self.waiting >= self._limits.waiting:
            raise TooBusy(f"{who}: {self.waiting} requests by HTTP are waiting already", reason="http-busy")
        lane = self._lanes.setdefault(key, _Lane(trio.Semaphore(self._limits.at_once_each)))
        lane.users += 1
        self.waiting += 1
        waits = True
        try:
            async with lane.slots, self._all:
                self.waiting -= 1
                waits = False
                yield
        finally:
            self.waiting -= waits
            lane.users -= 1
            if not lane.users:
                del self._lanes[key]


def _stored(who: str, answer: Answer) -> str:
    """`stored` or `held`, as the other sidecar answers.

    Raises:
        Unavailable: anything that may be otherwise later.
        InvalidRequest: a problem document against the message itself.
    """
    document = _document(answer)
    if answer.status == 200 and document.get("stored") is True:
        return "stored"
    if answer.status == 200 and document.get("held") is True:
        return "held"
    _raise_if_busy(who, answer)
    is_ours = answer.headers.get("content-type", "").partition(";")[0].strip().lower() == PROBLEM_TYPE
    if answer.status == 401 and is_ours:
        raise Unavailable(
            f"{who} answers {_said(answer)}",
            reason="http-unauthorized",
            retry_after_seconds=60.0,
            hint="all members of a private network need the same network.key",
        )
    if 400 <= answer.status < 500 and answer.status not in _NOT_FOR_GOOD and is_ours:
        raise InvalidRequest(f"{who} refuses the message for good: {_said(answer)}")
    if answer.status == 408:
        raise Unavailable(f"{who} answers {_said(answer)}", reason="http-timeout")
    raise Unavailable(
        f"{who} does not answer as a sidecar's carrier does: {_said(answer)}",
        reason="http-answer",
        retry_after_seconds=60.0,
        hint="see that the member's carriers.announce names its carriers.listen",
    )


def _taken(who: str, answer: Answer) -> None:
    """Raises:
    Unavailable: 429 or 5xx.
    InvalidRequest: any other answer that is no 2xx.
    """
    if 200 <= answer.status < 300:
        return
    _raise_if_busy(who, answer)
    if 300 <= answer.status < 400:
        leads = shown(answer.headers.get("location", "")) or "nowhere"
        raise InvalidRequest(
            f"{who} answers {answer.status}, to {leads}",
            hint="redirects are not followed; give the address that it leads to in legacy.endpoints and legacy.path",
        )
    raise InvalidRequest(f"{who} refuses the opportunity: {_said(answer)}")


def _raise_if_busy(who: str, answer: Answer) -> None:
    if answer.status == 429 or answer.status >= 500:
        raise Unavailable(
            f"{who} answers {_said(answer)}", reason="http-busy", retry_after_seconds=_retry_after(answer)
        )


def _retry_after(answer: Answer) -> float:
    """Seconds, at most an hour (RFC 9110, 10.2.3); 1 where there is none, or a date, which sidecars never write."""
    text = answer.headers.get("retry-after", "").strip()
    return min(float(text[:9]), _MAX_RETRY_AFTER_SECONDS) if text.isascii() and text.isdigit() else 1.0


def _said(answer: Answer) -> str:
    """Status and reason of an answer, for people."""
    document = _document(answer)
    words = [str(document[name]) for name in ("reason", "detail") if isinstance(document.get(name), str)]
    text = shown(": ".join(words) if words else answer.body.decode("utf-8", "replace"))
    return f"{answer.status} ({text})" if text else str(answer.status)


def _document(answer: Answer) -> Mapping[str, object]:
    """The body as a JSON object; an empty one when it is none."""
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
