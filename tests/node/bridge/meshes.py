"""Whole nodes in meshes that cannot reach each other, with bridges between them on one broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Literal

import trio

from p2pnode.core.membership.record import MemberState
from p2pnode.core.message import SignedMessage
from p2pnode.core.peerid import PeerId
from p2pnode.core.subjects import Subjects
from p2pnode.identity import Identity
from p2pnode.node.bridge import Bridge, BridgeTools, ImportKey
from p2pnode.ports import Change
from tests.node.bridge.broker import FakeBroker, FakeServer
from tests.node.fakes import Fleet, Running, Wall, open_fleet, verify_message, verify_record

SUBJECTS = Subjects("fleet")


class Bridging:
    """A bridge on a running node of a fleet. `crash` ends both."""

    def __init__(self, running: Running, server: FakeServer, key: Identity, *, is_shared: bool = True) -> None:
        self.running = running
        self.broker = FakeBroker(server, running.members.own.name)
        self.archive = running.node._archive
        self.bridge = Bridge(
            self.broker,
            running.host,
            self.archive,
            running.members,
            self,
            SUBJECTS,
            ImportKey(key.peer_id, key.peer_id_bytes, key.sign, is_shared),
            "",
            BridgeTools(
                running.identity.sign,
                verify_record,
                self._write,
                running.node._open_topic,
                lambda: (),
                running.node._meshes.collect,
                running.wall,
                Random(7),
            ),
        )
        self._scope = trio.CancelScope()

    async def _write(self, changes: Sequence[Change]) -> None:
        await self.running.store.write(changes, full=False)

    async def take(self, message: SignedMessage, carrier: Literal["nats", "http"]) -> str | None:
        """`Intake`, but for the router."""
        if message.id in self.archive:
            return "held" if await self.archive.written(message.id) else "storage"
        if not verify_message(message):
            return "signature"
        if (why := self.archive.take(message, carrier=carrier)) is not None:
            return why
        gossip = self.running.gossip
        gossip._seen.add(message.id)
        gossip._spread(message)
        return None if await self.archive.written(message.id) else "storage"

    async def run(self) -> None:
        with self._scope:
            self.bridge.load(await self.running.store.load())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.broker.run)
                nursery.start_soon(self.bridge.run)

    def crash(self, fleet: Fleet) -> None:
        self._scope.cancel()
        fleet.stop(self.running)


class Meshes:
    """
    Attributes:
        sides: the nodes of each mesh.
    """

    def __init__(self, fleet: Fleet, server: FakeServer, nursery: trio.Nursery) -> None:
        self.fleet = fleet
        self.server = server
        self.nursery = nursery
        self.sides: list[list[Running]] = []
        self.bridges: list[Bridging] = []

    def mesh(self, agents: int, bridges: int = 1) -> list[Running]:
        side: list[Running] = []
        for number in range(bridges + agents):
            role = "bridge" if number < bridges else "chorus"
            side.append(self.add(role, [each.addr for each in side[:1]]))
        for other in self.sides:
            self.separate(side, other)
        self.sides.append(side)
        return side

    def add(self, role: str, bootstrap: Sequence[str]) -> Running:
        return self.fleet.add(role=role, topics=("councils.forming", "hmmm.talk"), bootstrap=bootstrap)

    def separate(self, one: Sequence[Running], other: Sequence[Running]) -> None:
        for each in one:
            for far in other:
                self.fleet.network.split(each.peer_id, far.peer_id)

    def bridge(self, running: Running, key: Identity, *, is_shared: bool = True) -> Bridging:
        bridging = Bridging(running, self.server, key, is_shared=is_shared)
        self.bridges.append(bridging)
        self.nursery.start_soon(bridging.run)
        return bridging

    def everybody(self) -> set[PeerId]:
        return {each.peer_id for side in self.sides for each in side}

    def all_know_all(self) -> bool:
        wanted = self.everybody()
        return all(alive(each) == wanted for side in self.sides for each in side)


def alive(running: Running) -> set[PeerId]:
    members = running.members.all().items()
    return {peer for peer, member in members if member.state is MemberState.ALIVE}


@asynccontextmanager
async def open_meshes(seed: int = 1, *, jetstream: bool = True) -> AsyncIterator[Meshes]:
    async with open_fleet(seed) as fleet, trio.open_nursery() as nursery:
        yield Meshes(fleet, FakeServer(Wall(), jetstream=jetstream), nursery)
        nursery.cancel_scope.cancel()
