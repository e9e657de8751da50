"""The resources of the local API: each reads its request, asks the sidecar and writes the document."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from p2pnode.api import problems
from p2pnode.api.carriers import CarrierResources
from p2pnode.api.councils import CouncilResources
from p2pnode.api.deliveries import DeliveryResources
from p2pnode.api.documents import JsonChunks, json_response
from p2pnode.api.events import EventStream, topic_event
from p2pnode.api.limits import ApiLimits
from p2pnode.api.metrics import CONTENT_TYPE, ApiCounters, Exposition
from p2pnode.api.naming import find_peer
from p2pnode.api.reading import path_segment, read_idempotency_key, read_limit
from p2pnode.api.topology import topology_document
from p2pnode.errors import CallerError, EnvironmentFault, Fault, InvalidRequest
from p2pnode.ports import Followed, JsonObject, Sidecar
from p2pnode.wire.json_text import encode_message

DEFAULT_CONTENT_TYPE = "application/octet-stream"
DEFAULT_MESSAGES = 100
PAGE_MESSAGES = 32
"""Messages taken from the node at a time, so that an answer of 1,000 large ones never stands in memory at once."""

_READY_STATUS = {"delivering": 200, "degraded": 206, "not-ready": 503}
_HEADER_PREFIX = "p2p-"

_INDEX = """\
p2pnode: local API of a libp2p gossip sidecar

GET  /health                                 alive
GET  /ready                                  200 delivering, 206 degraded, 503 not ready, and why
GET  /metrics                                Prometheus text
GET  /api/v1/node                            this node
GET  /api/v1/peers                           who is there
POST /api/v1/peers/{peer}/ping               round trip to a peer id, a unique prefix of one, or a name
GET  /api/v1/mesh                            who is in whose mesh, asked of the whole fleet
GET  /api/v1/topology                        nodes and links, asked of the whole fleet
GET  /api/v1/discovery                       where peers are looked for, and what was found there
GET  /api/v1/doctor                          why this node is alone or degraded, and the fix
GET  /api/v1/topics                          topics with peers and counts
POST /api/v1/topics/{topic}/messages         publish the body; headers: Content-Type, Idempotency-Key, P2P-*
GET  /api/v1/topics/{topic}/messages         kept messages: ?after=ID&limit=N (1 to 1000, default 100)
GET  /api/v1/topics/{topic}/events           follow: server-sent events; Last-Event-ID or ?from=start|now|ID
                                             ?subscription=NAME keeps its place until it is acknowledged
GET  /api/v1/subscriptions                   durable subscriptions
POST /api/v1/subscriptions/{name}/ack        {"id"}: everything up to it was handled
POST /api/v1/subscriptions/{name}/nack       {"id","reason"}: this one is given up
DELETE /api/v1/subscriptions/{name}          forget a subscription
GET  /api/v1/deliveries                      what waits for the agent, by subscription
GET  /api/v1/deliveries/failed               what was given up: ?subscription=NAME&limit=N (1 to 1000)
POST /api/v1/deliveries/retry                {"id"} or {"all":true}, "subscription" if only one is meant
POST /api/v1/deliveries/drop                 likewise: forget what was given up
POST /api/v1/councils                        announce a council: {"project_name","repository","core_roles":["tpm"]};
                                             header Idempotency-Key
GET  /api/v1/councils                        councils, the newest first: ?status=forming|active|completed|...
GET  /api/v1/councils/{id}                   one, with the claims for its roles
POST /api/v1/councils/{id}/claims            {"role_name"}: claim a role for this node's agent
POST /api/v1/councils/{id}/release           {"role_name"}: give it back, or withdraw the claim
POST /api/v1/councils/{id}/status            {"status"}: report, or end the council
GET  /api/v1/councils/events                 councils as they change: server-sent events `council`
GET  /api/v1/councils/{id}/events            likewise, of one
GET  /api/v1/agent                           what is said of this node's agent
PATCH /api/v1/agent                          change it: {"status","current_team","capabilities",...}
GET  /api/v1/agents                          agents of live members: ?capability=&model=&status=
GET  /api/v1/carriers                        which roads own messages take: gossip, NATS, HTTP
PATCH /api/v1/carriers                       change them until the next start: {"gossip","nats","http",
                                             "canary_percent","rollback"}
GET  /api/v1/bridge                          what a bridge does; 404 where the node is none
GET  /api/v1/bootstrap-peers                 addresses another node can join by

A slash inside a topic name is written %2F. Errors are application/problem+json (RFC 9457).
"""


class Resources:
    """The endpoints over one sidecar.

    Args:
        sidecar: who answers.
        limits: bounds of event streams.
        counters: the API's own numbers.
        stopping: set when the API shuts down; ends event streams.
    """

    def __init__(self, sidecar: Sidecar, *, limits: ApiLimits, counters: ApiCounters, stopping: trio.Event) -> None:
        self._sidecar = sidecar
        self._limits = limits
        self._counters = counters
        self._stopping = stopping
        self._exposition = Exposition(sidecar.metrics, counters)
        self._deliveries = DeliveryResources(sidecar)
        self._councils = CouncilResources(sidecar, limits=limits, counters=counters, stopping=stopping)

    def routes(self) -> list[Route]:
        return [
            Route("/", self.index),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/api/v1/node", self.node),
            Route("/api/v1/peers", self.peers),
            Route("/api/v1/peers/{peer}/ping", self.ping, methods=["POST"]),
            Route("/api/v1/mesh", self.mesh),
            Route("/api/v1/topology", self.topology),
            Route("/api/v1/discovery", self.discovery),
            Route("/api/v1/doctor", self.doctor),
            Route("/api/v1/topics", self.topics),
            Route("/api/v1/topics/{topic}/messages", self.topic_messages, methods=["GET", "POST"]),
            Route("/api/v1/topics/{topic}/events", self.topic_events),
            *self._deliveries.routes(),
            *self._councils.routes(),
            *CarrierResources(self._sidecar).routes(),
            Route("/api/v1/bootstrap-peers", self.bootstrap_peers),
        ]

    def application(self) -> Starlette:
        application = Starlette(
            routes=self.routes(),
            exception_handlers={
                CallerError: problems.on_caller_error,
                EnvironmentFault: problems.on_environment_fault,
                HTTPException: problems.on_http_exception,
                Exception: problems.on_unexpected,
            },
        )
        # A redirect would be built from the Host header; there is one spelling of each path.
        application.router.redirect_slashes = False
        return application

    async def index(self, _request: Request) -> Response:
        return PlainTextResponse(_INDEX)

    async def health(self, _request: Request) -> Response:
        return json_response({"status": "healthy"})

    async def ready(self, _request: Request) -> Response:
        health = self._sidecar.health()
        document = {"status": health.readiness, "reasons": list(health.reasons)}
        return json_response(document, _READY_STATUS[health.readiness])

    async def metrics(self, _request: Request) -> Response:
        return Response(self._exposition.text(), headers={"Content-Type": CONTENT_TYPE})

    async def node(self, _request: Request) -> Response:
        return json_response(self._sidecar.node())

    async def peers(self, _request: Request) -> Response:
        return json_response(self._sidecar.peers())

    async def ping(self, request: Request) -> Response:
        known = find_peer(path_segment(request, "peer"), self._sidecar.peers())
        return json_response(await self._sidecar.ping(known["peer_id"]))

    async def mesh(self, _request: Request) -> Response:
        return json_response(await self._sidecar.mesh())

    async def topology(self, _request: Request) -> Response:
        return json_response(topology_document(await self._sidecar.mesh()))

    async def discovery(self, _request: Request) -> Response:
        return json_response(self._sidecar.discovery())

    async def doctor(self, _request: Request) -> Response:
        return json_response(await self._sidecar.doctor())

    async def topics(self, _request: Request) -> Response:
        return json_response(self._sidecar.topics())

    async def bootstrap_peers(self, _request: Request) -> Response:
        return json_response(self._sidecar.bootstrap_peers())

    async def topic_messages(self, request: Request) -> Response | JsonChunks:
        if request.method == "POST":
            return await self._publish(request)
        return await self._messages(request)

    async def topic_events(self, request: Request) -> EventStream[Followed]:
        topic, start, name = _topic(request), _start(request), request.query_params.get("subscription")
        return EventStream(
            lambda: (
                self._sidecar.follow(topic, start=start)
                if name is None
                else self._sidecar.subscribe(topic, name, start=start)
            ),
            topic_event,
            stopping=self._stopping,
            limits=self._limits,
            counters=self._counters,
        )

    async def _publish(self, request: Request) -> Response:
        faults: list[Fault] = []
        headers = _message_headers(request, faults)
        key = read_idempotency_key(request, faults)
        topic = _topic(request, faults)
        if faults:
            raise InvalidRequest("the message cannot be published", faults)
        published = await self._sidecar.publish(
            topic,
            await request.body(),
            content_type=request.headers.get("content-type") or DEFAULT_CONTENT_TYPE,
            headers=headers,
            idempotency_key=key,
        )
        document: JsonObject = {"id": published.id, "seqno": published.seqno}
        if published.duplicate:
            document["duplicate"] = True
        return json_response(document, 202)

    async def _messages(self, request: Request) -> Response | JsonChunks:
        faults: list[Fault] = []
        limit = read_limit(request, DEFAULT_MESSAGES, faults)
        after = request.query_params.get("after")
        if after == "":
            faults.append(Fault("after", "is empty: give a message id, or leave it out to read from the start"))
        topic = _topic(request, faults)
        if faults:
            raise InvalidRequest("the messages cannot be listed", faults)
        asked = min(limit, PAGE_MESSAGES)
        first = await self._sidecar.messages(topic, after=after, limit=asked)
        if len(first) < asked or limit == asked:
            body = b"[" + b",".join(encode_message(document) for document in first) + b"]"
            return Response(body, media_type="application/json")
        return JsonChunks(self._pages(topic, first, limit))

    async def _pages(self, topic: str, page: list[JsonObject], limit: int) -> AsyncIterator[bytes]:
        """A JSON array of up to `limit` messages, page by page, beginning with `page`."""
        sent = 0
        while page:
            for document in page:
                yield (b"," if sent else b"[") + encode_message(document)
                sent += 1
            if sent >= limit:
                break
            try:
                page = await self._sidecar.messages(topic, after=page[-1]["id"], limit=min(limit - sent, PAGE_MESSAGES))
            except InvalidRequest:
                break  # the last one sent fell out of the history meanwhile; the caller's next question says so
        yield b"]"


def _topic(request: Request, faults: list[Fault] | None = None) -> str:
    """The topic's name; whether it is a valid one the sidecar says. Without `faults` a bad one raises at once."""
    return path_segment(request, "topic", faults)


def _start(request: Request) -> str:
    """Where to follow from. `Last-Event-ID` wins: a client that comes back sends its first URL again."""
    resumed = request.headers.get("last-event-id")
    if resumed:
        return resumed
    start = request.query_params.get("from", "now")
    if not start:
        fault = Fault("from", "is empty: write start, now or a message id")
        raise InvalidRequest("the topic cannot be followed", [fault])
    return start


def _message_headers(request: Request, faults: list[Fault]) -> dict[str, str]:
    """`P2P-Council-ID: x` as `{"Council-ID": "x"}`, spelled as the client spelled it."""
    headers: dict[str, str] = {}
    seen: set[str] = set()
    raw: list[tuple[bytes, bytes]] = request.scope["p2pnode.raw_headers"]
    for name_bytes, value_bytes in raw:
        given = name_bytes.decode("ascii", errors="replace")
        if not given.lower().startswith(_HEADER_PREFIX):
            continue
        name = given[len(_HEADER_PREFIX) :]
        if not name:
            faults.append(Fault(given, "a name must follow the prefix, as in P2P-Council-ID"))
        elif name.lower() in seen:
            faults.append(Fault(given, "is given twice; once is right"))
        else:
            seen.add(name.lower())
            try:
                headers[name] = value_bytes.decode()
            except UnicodeDecodeError:
                faults.append(Fault(given, "its value is no UTF-8"))
    return headers
