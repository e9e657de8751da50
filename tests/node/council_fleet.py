"""Fleets in memory that form councils: who is in them, what they say, what each node shows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from p2pnode.core.council.documents import CLAIMS_TOPIC, STATUS_TOPIC
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.metadata import Metadata
from p2pnode.errors import NotFound
from p2pnode.identity import Identity
from p2pnode.node.councils import CouncilSettings
from p2pnode.wire.payload import decode_payload, encode_json_payload
from p2pnode.wire.pubsub import decode_message, seal_message
from tests.node.fakes import START_NS, Fleet, Running, open_fleet, until
from tests.node.stores import MemoryStore

TOPICS = (OPPORTUNITY_TOPIC, CLAIMS_TOPIC, STATUS_TOPIC)
SKILLS = ("design", "backend", "testing", "operations")
REQUEST: Mapping[str, Any] = {
    "project_name": "Beacon",
    "repository": "https://example.org/beacon.git",
    "core_roles": [
        {"role_name": "architect", "required_skills": ["design"]},
        {"role_name": "developer", "required_skills": ["backend"]},
        {"role_name": "tester", "required_skills": ["testing"]},
    ],
    "optional_roles": [{"role_name": "operator", "required_skills": ["operations"]}],
}
AUTO = CouncilSettings(auto_claim=True)


class CouncilFleet:
    """Orchestrators and agents that know each other."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.orchestrators: list[Running] = []
        self.agents: list[Running] = []

    @property
    def network(self) -> Any:
        return self.fleet.network

    def up(self) -> list[Running]:
        return [each for each in (*self.orchestrators, *self.agents) if each.peer_id not in self.network.down]

    def again(self, old: Running, by: Running, *, forgets: bool = False) -> Running:
        """A process that was stopped, started once more with what its disk holds, or with a new one."""
        self.network.hosts.pop(old.host.addr)
        self.network.revive(old.peer_id)
        is_orchestrator = old in self.orchestrators
        new = self.fleet.add(
            bootstrap=[by.addr],
            topics=TOPICS,
            identity=old.identity,
            seqnos=old.seqnos,
            incarnations=old.incarnations,
            known=old.known,
            store=MemoryStore() if forgets else old.store,
            role=old.members.own.role,
            councils=old.node._settings.councils,
            capabilities=old.members.own.capabilities,
        )
        group = self.orchestrators if is_orchestrator else self.agents
        group[group.index(old)] = new
        self.fleet.start(new)
        return new

    def split(self, one: Iterable[Running], other: Iterable[Running]) -> None:
        others = list(other)
        for each in one:
            for far in others:
                self.network.split(each.peer_id, far.peer_id)

    def heal(self) -> None:
        self.network.apart.clear()

    def said(self, topics: Collection[str] = TOPICS) -> int:
        """How many messages about councils were published, by anybody."""
        return sum(each.topic in topics for node in self.fleet.nodes for each in node.gossip.sent)

    def agree(self, council_id: str, status: str = "active", nodes: Sequence[Running] | None = None) -> bool:
        """Does every node that is up show the same council, in this status?"""
        shown = [summary(each, council_id) for each in (self.up() if nodes is None else nodes)]
        return shown[0] is not None and shown[0]["status"] == status and all(each == shown[0] for each in shown)

    def named(self, name: str) -> Running:
        return next(each for each in self.up() if each.members.own.name == name)

    def holder(self, council_id: str, role: str) -> Running:
        """The node whose agent holds a role, as the first orchestrator that is up sees it."""
        seat = seat_of(self.up()[0], council_id, role)
        return next(each for each in self.fleet.nodes if each.peer_id == seat["peer_id"] and each in self.up())


@asynccontextmanager
async def open_council_fleet(
    agents: int = 8,
    orchestrators: int = 1,
    *,
    settings: CouncilSettings | None = None,
    agent_settings: CouncilSettings = AUTO,
    seed: int = 1,
) -> AsyncIterator[CouncilFleet]:
    """Running, and everybody knows everybody. Agents have one of `SKILLS` each, in turn."""
    async with open_fleet(seed) as fleet:
        councils = CouncilFleet(fleet)
        first = fleet.add(role="whoosh", topics=TOPICS, councils=settings)
        councils.orchestrators = [first] + [
            fleet.add(role="whoosh", topics=TOPICS, councils=settings, bootstrap=[first.addr])
            for _ in range(orchestrators - 1)
        ]
        councils.agents = [
            fleet.add(
                topics=TOPICS,
                councils=agent_settings,
                capabilities=[SKILLS[number % len(SKILLS)]],
                bootstrap=[first.addr],
            )
            for number in range(agents)
        ]
        fleet.start(*fleet.nodes)
        await until(lambda: all(len(each.members.alive()) == len(fleet.nodes) for each in fleet.nodes))
        await trio.sleep(5)
        yield councils


async def create(node: Running, key: str | None = None, **members: object) -> str:
    made = await node.node.create_council({**REQUEST, **members}, idempotency_key=key)
    council_id = made["council_id"]
    assert isinstance(council_id, str)
    return council_id


def summary(node: Running, council_id: str) -> dict[str, Any] | None:
    """What must be the same at every node."""
    try:
        document = node.node.council(council_id)
    except NotFound:
        return None
    seats = [tuple(seat[name] for name in ("role_name", "state", "peer_id", "term", "n")) for seat in document["roles"]]
    return {**{name: document[name] for name in ("status", "owner", "term", "n")}, "roles": seats}


def seat_of(node: Running, council_id: str, role: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in node.node.council(council_id)["roles"] if each["role_name"] == role)
    return found


def decisions(fleet: CouncilFleet) -> list[tuple[str, dict[str, Any]]]:
    """Every decision that anybody stored, once, with its origin."""
    raws = {raw for node in fleet.fleet.nodes for raw in node.store.raws.values()}
    messages = [decode_message(raw) for raw in raws]
    documents = [(m.origin.hex(), decode_payload(m.data).document) for m in messages if m.topic == STATUS_TOPIC]
    return [(origin, dict(document)) for origin, document in documents if document is not None and document.get("term")]


def says(
    identity: Identity, topic: str, document: Mapping[str, object], number: int = START_NS, body: bytes = b""
) -> bytes:
    """The signed bytes of a document, as somebody outside may send it."""
    data = encode_json_payload(body or json.dumps(document).encode(), document, Metadata(published_at_ns=START_NS))
    return seal_message(origin=identity.peer_id_bytes, seqno=number, topic=topic, data=data, sign=identity.sign).raw
