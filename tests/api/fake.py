"""A sidecar without a node, and clients on real sockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio

from p2pnode.api.limits import ApiLimits
from p2pnode.api.server import Api, open_api
from p2pnode.errors import Fault, InvalidRequest, NotFound
from p2pnode.local.address import TcpAddress, UnixAddress
from p2pnode.ports import Followed, Health, JsonObject, Published

DEADLINE_SECONDS = 20.0
"""Far above anything that should happen: a test that gets here hangs."""

LOOPBACK = TcpAddress("127.0.0.1", 0)
EVERYWHERE = TcpAddress("0.0.0.0", 0)
COUNCIL = "3d6f0c7e-6d0e-4a43-9a68-0d1c3f6f2e01"


@dataclass(frozen=True, slots=True)
class Publication:
    """What arrived at `FakeSidecar.publish`."""

    topic: str
    body: bytes
    content_type: str
    headers: Mapping[str, str]
    idempotency_key: str | None


def message(number: int, payload: object = None) -> JsonObject:
    return {"id": f"origin-{number}", "topic": "t", "seqno": str(number), "payload": payload}


class FakeSidecar:
    """Answers from its attributes and remembers what it was asked.

    Set `error` to have everything but the probes raise it, `unanswered` to have `ping` alone do so; set `gate` to have
    `publish` wait for it.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate: trio.Event | None = None
        self.readiness = Health("delivering")
        self.series: dict[str, float] = {}
        self.kept: list[JsonObject] = []
        self.duplicate = False
        self.fleet: JsonObject = {"nodes": [], "missing": []}
        self.found: JsonObject = {"mode": "auto", "sources": []}
        self.diagnosis: JsonObject = {"status": "healthy", "findings": [], "checked": ["links"]}
        self.members: list[JsonObject] = [{"peer_id": "12D3KooWself", "self": True}]
        self.pinged: list[str] = []
        self.unanswered: Exception | None = None
        self.publications: list[Publication] = []
        self.listed: list[tuple[str, str | None, int]] = []
        self.follows: list[tuple[str, str]] = []
        self.subscribed: list[tuple[str, str, str]] = []
        self.asked: list[tuple[object, ...]] = []
        self.waiting: list[JsonObject] = []
        self.letters: list[JsonObject] = []
        self.following = 0
        self.taken = 0
        self.endless: Followed | None = None
        self.ended = False
        self.formed: list[JsonObject] = []
        self.known_agents: list[JsonObject] = []
        self.watched: list[str | None] = []
        self.roads: JsonObject = {"gossip": {"use": "always"}, "rollback": None, "degraded": False}
        self.bridging: JsonObject | None = None
        self._steps: list[Followed] = []
        self._news = trio.Event()

    def node(self) -> JsonObject:
        self._raise()
        return {"peer_id": "12D3KooWself", "name": "one"}

    def peers(self) -> list[JsonObject]:
        self._raise()
        return self.members

    def topics(self) -> list[JsonObject]:
        self._raise()
        return [{"topic": "councils.forming", "peers": 3}]

    def health(self) -> Health:
        return self.readiness

    async def publish(
        self, topic: str, body: bytes, *, content_type: str, headers: Mapping[str, str], idempotency_key: str | None
    ) -> Published:
        self._raise()
        self.publications.append(Publication(topic, body, content_type, headers, idempotency_key))
        if self.gate is not None:
            await self.gate.wait()
        return Published("origin-7", "7", self.duplicate)

    async def messages(self, topic: str, *, after: str | None, limit: int) -> list[JsonObject]:
        self._raise()
        self.listed.append((topic, after, limit))
        ids = [document["id"] for document in self.kept]
        if after is not None and after not in ids:
            raise InvalidRequest("no such message", [Fault("after", "is not kept here")])
        first = 0 if after is None else ids.index(after) + 1
        return self.kept[first : first + limit]

    def follow(self, topic: str, *, start: str) -> AbstractAsyncContextManager[AsyncIterator[Followed]]:
        return self._follow(topic, start)

    def subscribe(self, topic: str, name: str, *, start: str) -> AbstractAsyncContextManager[AsyncIterator[Followed]]:
        self.subscribed.append((topic, name, start))
        return self._follow(topic, start)

    async def acknowledge(self, name: str, message_id: str) -> JsonObject:
        return self._asked("ack", name, message_id)

    async def nack(self, name: str, message_id: str, reason: str) -> JsonObject:
        return self._asked("nack", name, message_id, reason)

    async def subscriptions(self) -> list[JsonObject]:
        self._raise()
        return self.waiting

    async def unsubscribe(self, name: str) -> None:
        self._asked("unsubscribe", name)

    async def deliveries(self) -> list[JsonObject]:
        self._raise()
        return self.waiting

    def dead_letters(self, subscription: str | None, limit: int) -> list[JsonObject]:
        self._asked("failed", subscription, limit)
        return self.letters

    async def retry_deliveries(self, subscription: str | None, message_id: str | None) -> int:
        self._asked("retry", subscription, message_id)
        return 2

    async def drop_deliveries(self, subscription: str | None, message_id: str | None) -> int:
        self._asked("drop", subscription, message_id)
        return 3

    def _asked(self, *what: object) -> JsonObject:
        self._raise()
        self.asked.append(what)
        return {"pending": 4}

    @asynccontextmanager
    async def _follow(self, topic: str, start: str) -> AsyncIterator[AsyncIterator[Followed]]:
        self._raise()
        self.follows.append((topic, start))
        self.following += 1
        try:
            async with aclosing(self._walk()) as steps:
                yield steps
        finally:
            self.following -= 1

    async def _walk(self) -> AsyncGenerator[Followed]:
        at = 0
        while True:
            self._raise()
            if self.endless is not None:
                self.taken += 1
                yield self.endless
            elif at < len(self._steps):
                at += 1
                yield self._steps[at - 1]
            elif self.ended:
                return
            else:
                await self._news.wait()

    def push(self, *steps: Followed) -> None:
        self._steps.extend(steps)
        self.wake()

    def wake(self) -> None:
        """Let followers look again: at new steps, `ended` or `error`."""
        self._news.set()
        self._news = trio.Event()

    async def mesh(self) -> JsonObject:
        self._raise()
        return self.fleet

    async def doctor(self) -> JsonObject:
        self._raise()
        return self.diagnosis

    def discovery(self) -> JsonObject:
        self._raise()
        return self.found

    async def ping(self, peer: str) -> JsonObject:
        self._raise()
        self.pinged.append(peer)
        if self.unanswered is not None:
            raise self.unanswered
        return {"peer_id": peer, "name": "chorus-1", "rtt_ms": 1.5}

    def bootstrap_peers(self) -> list[str]:
        self._raise()
        return ["/ip4/192.0.2.1/tcp/9000/p2p/12D3KooWself"]

    async def create_council(self, document: Mapping[str, object], *, idempotency_key: str | None) -> JsonObject:
        self._asked("create", document, idempotency_key)
        made: JsonObject = {"council_id": COUNCIL, **document, "id": "origin-7", "status": "forming"}
        return made | ({"duplicate": True} if self.duplicate else {})

    def councils(self, *, status: str | None) -> list[JsonObject]:
        self._asked("councils", status)
        return [each for each in self.formed if status in (None, each["status"])]

    def council(self, council_id: str) -> JsonObject:
        self._asked("council", council_id)
        for each in self.formed:
            if each["council_id"] == council_id:
                return {**each, "claims": []}
        raise NotFound(f"no council {council_id!r} is known here")

    async def claim_role(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        self._asked("claim", council_id, document)
        return {"id": "origin-8", "council_id": council_id, "role_name": document.get("role_name"), "agent_id": "a"}

    async def release_role(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        self._asked("release", council_id, document)
        return {"id": "origin-9", "council_id": council_id, "role_name": document.get("role_name"), "agent_id": "a"}

    async def report_status(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        self._asked("status", council_id, document)
        return {"id": "origin-10", "council_id": council_id, "status": document.get("status")}

    @asynccontextmanager
    async def watch_councils(self, council_id: str | None) -> AsyncIterator[AsyncIterator[JsonObject]]:
        if council_id is not None:
            self.council(council_id)
        self.watched.append(council_id)
        async with (
            self._follow("councils", "now") as steps,
            aclosing(step.document async for step in steps) as documents,
        ):
            yield documents

    def agent(self) -> JsonObject:
        self._raise()
        return {"agent_id": "a", "status": "idle", "backbeat": None}

    def agents(self, *, capability: str | None, model: str | None, status: str | None) -> list[JsonObject]:
        self._asked("agents", capability, model, status)
        return self.known_agents

    async def update_agent(self, changes: Mapping[str, object]) -> JsonObject:
        self._asked("agent", changes)
        return {"agent_id": "a", **changes}

    def carriers(self) -> JsonObject:
        self._raise()
        return self.roads

    async def set_carriers(self, changes: Mapping[str, object]) -> JsonObject:
        self._asked("carriers", changes)
        return {**self.roads, **changes}

    def bridge(self) -> JsonObject:
        self._raise()
        if self.bridging is None:
            raise NotFound("this node is no bridge")
        return self.bridging

    def metrics(self) -> Mapping[str, float]:
        self._raise()
        return self.series

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error


async def wait_until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - the conditions are numbers of the API, which sets no events
            await trio.sleep(0.001)


@dataclass(frozen=True, slots=True)
class Served:
    """An open API on a Unix socket, with a client of it."""

    api: Api
    path: str
    client: httpx.AsyncClient

    async def connect(self) -> trio.SocketStream:
        return await trio.open_unix_socket(self.path)


@asynccontextmanager
async def serving(sidecar: FakeSidecar, directory: Path, limits: ApiLimits | None = None) -> AsyncIterator[Served]:
    """The API on `directory/api.sock`; the whole block has the deadline."""
    path = str(directory / "api.sock")
    with trio.fail_after(DEADLINE_SECONDS):
        async with (
            open_api(sidecar, [UnixAddress(path)], limits=limits) as api,
            unix_client(path) as client,
        ):
            yield Served(api, path, client)


def unix_client(path: str) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=path)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=DEADLINE_SECONDS)


def tcp_client(api: Api) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port_of(api)}", timeout=DEADLINE_SECONDS, trust_env=False)


def port_of(api: Api) -> int:
    (address,) = [address for address in api.addresses if isinstance(address, TcpAddress)]
    return address.port


async def read_all(stream: trio.SocketStream) -> bytes:
    """Everything until the server closes, cleanly or not."""
    data = b""
    try:
        while part := await stream.receive_some():
            data += part
    except trio.BrokenResourceError:
        pass
    return data


async def read_until(stream: trio.SocketStream, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        part = await stream.receive_some()
        assert part, f"closed before {mark!r}: {data!r}"
        data += part
    return data


def get(path: str, *headers: str) -> bytes:
    """The head of a GET request over HTTP/1.1."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()
