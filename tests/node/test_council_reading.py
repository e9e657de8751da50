"""One node's keeper of councils before a store in memory: what it reads, what it remembers, what it says again."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from p2pnode.core.backbeat import BACKBEAT_TOPIC
from p2pnode.core.council import table as table_module
from p2pnode.core.council.claims import best
from p2pnode.core.council.council import Stamp
from p2pnode.core.council.documents import CLAIMS_TOPIC, STATUS_TOPIC
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.membership.record import Member, MemberRecord, MemberState
from p2pnode.core.message import SignedMessage
from p2pnode.core.metadata import MAX_TIME_NS, Metadata
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.errors import EnvironmentFault, P2PNodeError, PayloadTooLarge
from p2pnode.node.council_metrics import CouncilMetrics
from p2pnode.node.councils import (
    REASSERT_SECONDS,
    REFUSED_SECONDS,
    SETTLE_SECONDS,
    CouncilKeeper,
    CouncilSettings,
    Tools,
)
from p2pnode.ports import Entry, Published
from p2pnode.wire.payload import encode_envelope, encode_json_payload
from p2pnode.wire.pubsub import seal_message
from tests.node.council_fleet import REQUEST
from tests.node.stored import WALL_NS, MemoryArchive, origin

COUNCIL = "5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e11"
ME = 9
OTHER = 1
ROLE: Mapping[str, object] = {"core_roles": ["tpm"], "optional_roles": []}


def peer(number: int) -> PeerId:
    return peer_id_text(origin(number))


class Members:
    def __init__(self) -> None:
        self.own = MemberRecord(peer(ME), 1, "me", "whoosh", "online", ())
        self._all = {peer(n): replace(self.own, peer_id=peer(n), name=f"n{n}", role="chorus") for n in range(1, ME)}
        self._all[peer(ME)] = self.own

    def all(self) -> Mapping[PeerId, Member]:
        return {each: Member(record, MemberState.ALIVE, "gossip", 0, 0) for each, record in self._all.items()}

    def get(self, who: PeerId, /) -> Member | None:
        return self.all().get(who)

    def alive(self) -> Sequence[Member]:
        return list(self.all().values())


class Archive(MemoryArchive):
    async def page(self, topics: Collection[str], after: int, limit: int, /) -> Sequence[tuple[Entry, SignedMessage]]:
        assert self.pages < 5000, "it asks without end"
        return await super().page(topics, after, limit)


class Bench:
    """
    Attributes:
        said: what the keeper published, by topic and document.
        fault: raised instead of publishing.
        gate: waited for before publishing.
        breaks: the disk cannot be read after something was published.
    """

    def __init__(self, settings: CouncilSettings | None = None) -> None:
        self.archive = Archive()
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.attempts = 0
        self.fault: P2PNodeError | None = None
        self.gate: trio.Event | None = None
        self.breaks = False
        self.heard: list[tuple[str, Stamp]] = []
        self._number = 0
        self.metrics = CouncilMetrics()
        self.keeper = CouncilKeeper(
            self.archive,
            Members(),
            settings or CouncilSettings(),
            Tools(
                peer(ME),
                self.say,
                lambda: WALL_NS + round(trio.current_time() * 1e9),
                Random(1),
                trio.Event(),
                self.metrics,
                listeners=(lambda topic, _, stamp: self.heard.append((topic, stamp)),),
                topics=(BACKBEAT_TOPIC,),
            ),
        )

    async def say(self, topic: str, body: bytes) -> Published:
        await trio.lowlevel.checkpoint()
        self.attempts += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        document = json.loads(body)
        self.said.append((topic, document))
        self.store(topic, document, of=ME)
        self.archive.broken = self.breaks
        return Published("id", "1")

    def store(self, topic: str, document: Mapping[str, object], *, of: int = OTHER, at_ns: int = WALL_NS) -> Entry:
        data = encode_json_payload(json.dumps(document).encode(), document, Metadata(published_at_ns=at_ns or WALL_NS))
        return self.add(topic, data, of, at_ns)

    def add(self, topic: str, data: bytes, of: int = OTHER, at_ns: int = WALL_NS) -> Entry:
        self._number += 1
        message = seal_message(origin=origin(of), seqno=self._number, topic=topic, data=data, sign=lambda _: b"s" * 64)
        carrier = "local" if of == ME else "gossip"
        entry = replace(self.archive.add(message), published_at_ns=at_ns, carrier=carrier)
        self.archive.entries[message.id] = entry
        return entry

    def announce(self, council_id: str = COUNCIL, *, of: int = OTHER, at_ns: int = WALL_NS, **members: object) -> None:
        document = {**REQUEST, **ROLE, "council_id": council_id, **members}
        self.store(OPPORTUNITY_TOPIC, document, of=of, at_ns=at_ns)

    def claim(self, council_id: str = COUNCIL, *, of: int = 2, at_ns: int = WALL_NS, **members: object) -> None:
        document = {"council_id": council_id, "role_name": "tpm", "agent_id": f"a{of}", **members}
        self.store(CLAIMS_TOPIC, document, of=of, at_ns=at_ns)

    def decide(self, council_id: str = COUNCIL, *, of: int = OTHER, term: int = 1, n: int = 1, **m: object) -> None:
        roles = [{"role_name": "tpm", "required": True}]
        document = {"council_id": council_id, "status": "forming", "term": term, "n": n, "roles": roles, **m}
        self.store(STATUS_TOPIC, document, of=of)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CouncilKeeper]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keeper.run)
            with trio.fail_after(10):
                await self.keeper.loaded.wait()
            yield self.keeper
            nursery.cancel_scope.cancel()


# -- reading ---------------------------------------------------------------------------


async def test_a_backlog_is_read_before_anything_is_done(autojump_clock: MockClock) -> None:
    bench = Bench()
    ids = [str(uuid.UUID(int=number + 1)) for number in range(500)]
    for each in ids:
        bench.announce(each)
        bench.claim(each)
    async with bench.running() as keeper:
        assert [council.id for council in keeper.table] == ids
        assert all(len(council.claims("tpm")) == 1 for council in keeper.table)
        assert bench.said == []
        assert bench.archive.pages <= 11
        bench.announce(COUNCIL)
        await trio.sleep(0.1)
        assert keeper.table.get(COUNCIL) is not None


async def test_a_store_that_cannot_be_read_is_tried_again(autojump_clock: MockClock) -> None:
    bench = Bench()
    bench.announce()
    bench.archive.broken = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.keeper.run)
        await trio.sleep(10)
        assert not bench.keeper.loaded.is_set()
        bench.archive.broken = False
        await trio.sleep(2)
        assert bench.keeper.loaded.is_set()
        bench.archive.broken = True
        bench.claim()
        await trio.sleep(10)
        council = bench.keeper.table.get(COUNCIL)
        assert council is not None
        assert not council.claims("tpm")
        bench.archive.broken = False
        await trio.sleep(2)
        assert len(council.claims("tpm")) == 1
        nursery.cancel_scope.cancel()


async def test_what_is_no_json_object_is_passed_over(autojump_clock: MockClock) -> None:
    bench = Bench()
    for data in (b"", b"[]", b"{", b"\xff\xfe", encode_envelope(b"{}", "text/plain", Metadata())):
        for topic in (OPPORTUNITY_TOPIC, CLAIMS_TOPIC, STATUS_TOPIC, BACKBEAT_TOPIC):
            bench.add(topic, data)
    bench.announce()
    async with bench.running() as keeper:
        assert [council.id for council in keeper.table] == [COUNCIL]
        assert [topic for topic, _ in bench.heard] == [OPPORTUNITY_TOPIC]
        assert keeper.table.refused == {}


async def test_documents_that_are_none_of_a_council_are_counted_and_stop_nothing(autojump_clock: MockClock) -> None:
    bench = Bench()
    wrong: list[object] = [None, 7, [], "x", {"a": 1}, -1, 1e300, "\ud800", True]
    names = ("council_id", "core_roles", "role_name", "status", "term", "n", "roles", "opportunity", "agent_id", "kind")
    for name in names:
        for value in wrong:
            for topic in (OPPORTUNITY_TOPIC, CLAIMS_TOPIC, STATUS_TOPIC):
                base = {**REQUEST, "council_id": COUNCIL, "role_name": "tpm", "agent_id": "a", "status": "forming"}
                bench.store(topic, {**base, name: value})
    async with bench.running() as keeper:
        assert keeper.table.refused["opportunity"] > 10
        assert keeper.table.refused["claim"] > 10
        assert keeper.table.refused["status"] > 10
        assert len(bench.heard) == len(names) * len(wrong) * 3
        await trio.sleep(5)
        bench.announce("5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e99")
        await trio.sleep(1)
        assert keeper.table.get("5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e99") is not None


async def test_what_has_no_signed_time_stands_behind_all_that_has(autojump_clock: MockClock) -> None:
    bench = Bench()
    bench.announce(at_ns=0, project_name="undated")
    bench.claim(of=2, at_ns=0)
    bench.claim(of=3, at_ns=WALL_NS + 10**9)
    bench.announce(of=4, at_ns=WALL_NS + 10**9, project_name="dated")
    async with bench.running() as keeper:
        council = keeper.table.get(COUNCIL)
        assert council is not None
        assert council.opportunity is not None
        assert council.opportunity.project_name == "dated"
        standing = council.claims("tpm")
        assert sorted(each.at_ns for each in standing) == [WALL_NS + 10**9, MAX_TIME_NS]
        first = best(standing, council.seats()[0])
        assert first is not None
        assert first.claimant.peer == peer(3)


async def test_a_damaged_last_message_is_not_asked_for_without_end(autojump_clock: MockClock) -> None:
    bench = Bench()
    bench.announce()
    async with bench.running() as keeper:
        await trio.sleep(1)
        damaged = bench.add(CLAIMS_TOPIC, b"{}")
        del bench.archive.raws[damaged.id]
        before = bench.archive.pages
        await trio.sleep(60)
        assert bench.archive.pages - before < 130
        bench.claim()
        await trio.sleep(2)
        council = keeper.table.get(COUNCIL)
        assert council is not None
        assert len(council.claims("tpm")) == 1


# -- bounds ----------------------------------------------------------------------------


async def test_what_is_remembered_beside_the_table_is_bounded_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "MAX_COUNCILS", 10)
    bench = Bench()
    async with bench.running() as keeper:
        bench.gate = trio.Event()  # the disk hangs as the first decision is made
        bench.announce("00000000-0000-0000-0000-00000000ffff", of=ME)
        bench.claim("00000000-0000-0000-0000-00000000ffff")
        await trio.sleep(1)
        assert bench.attempts == 1
        for number in range(1000):
            council_id = str(uuid.UUID(int=number + 1))
            bench.claim(str(uuid.UUID(int=number + 10_000)))
            bench.announce(council_id)
            held = {"role_name": "tpm", "state": "accepted", "agent_id": "a", "peer_id": peer(ME), "term": 1, "n": 1}
            bench.decide(council_id, roles=[held])
            bench.decide(council_id, n=2, status="cancelled", roles=[held])
            await trio.sleep(0.01)
        assert len(keeper.table) == 10
        assert len(keeper._due) <= 120
        assert len(keeper._duties) <= 120
        assert len(keeper._held) <= 10
        assert keeper.running_roles("a") == 0
        bench.gate.set()
        await trio.sleep(5)
        assert len(bench.said) >= 1


async def test_a_council_that_made_room_while_its_agent_held_a_role_counts_no_more(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "MAX_COUNCILS", 1)
    bench = Bench()
    held = {"role_name": "tpm", "state": "accepted", "agent_id": "a", "peer_id": peer(ME), "term": 1, "n": 1}
    bench.announce(formation_deadline="2020-01-01T00:00:00Z")
    bench.decide(roles=[held])
    async with bench.running() as keeper:
        assert keeper.running_roles("a") == 1
        bench.announce("5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e12")
        await trio.sleep(1)
        assert [council.id for council in keeper.table] == ["5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e12"]
        assert keeper.running_roles("a") == 0


async def test_after_a_start_an_owner_decides_nothing_until_it_had_time_to_hear_others(
    autojump_clock: MockClock,
) -> None:
    bench = Bench()
    bench.announce(of=ME)
    bench.claim()
    async with bench.running():
        await trio.sleep(SETTLE_SECONDS - 0.1)
        assert bench.said == []
        await trio.sleep(1)
        assert decided(bench) == [(1, 1)]


async def test_an_owner_that_was_taken_over_while_it_was_away_decides_nothing(autojump_clock: MockClock) -> None:
    bench = Bench()
    bench.announce(of=ME)
    bench.claim()
    async with bench.running() as keeper:
        await trio.sleep(SETTLE_SECONDS / 2)
        bench.decide(of=OTHER, term=2)
        await trio.sleep(30)
        assert bench.said == []
        assert keeper.counted["yielded"] == 0


async def test_an_own_council_that_comes_back_from_others_is_not_decided_at_once(autojump_clock: MockClock) -> None:
    bench = Bench()
    async with bench.running() as keeper:
        opportunity = {**REQUEST, **ROLE, "council_id": COUNCIL}
        data = encode_json_payload(json.dumps(opportunity).encode(), opportunity, Metadata(published_at_ns=WALL_NS))
        message = bench.add(OPPORTUNITY_TOPIC, data, ME)
        bench.archive.entries[message.id] = replace(message, carrier="sync")
        bench.claim()
        await trio.sleep(SETTLE_SECONDS - 0.1)
        assert bench.said == []
        bench.decide(of=ME, n=7)
        await trio.sleep(5)
        assert decided(bench) == [(1, 8)]
        assert keeper.counted["decisions"] == 1


# -- saying ----------------------------------------------------------------------------


def decided(bench: Bench) -> list[tuple[int, int]]:
    return [(document["term"], document["n"]) for topic, document in bench.said if topic == STATUS_TOPIC]


async def test_an_owner_whose_council_others_decide_too_says_so_again_and_not_without_end(
    autojump_clock: MockClock,
) -> None:
    bench = Bench()
    async with bench.running():
        bench.announce(of=ME)
        bench.claim()
        await trio.sleep(1)
        bench.claim(kind="accept", term=1, n=1)
        await trio.sleep(1)
        assert decided(bench) == [(1, 1), (1, 2)]
        for n in range(200):
            bench.decide(of=OTHER, term=1, n=n + 1)
            await trio.sleep(0.1)
        await trio.sleep(10)
        owner = bench.keeper.document(COUNCIL)
        assert owner is not None
        assert owner["owner"] == max(peer(ME), peer(OTHER))
        said = decided(bench)
        assert len(said) == len(set(said))
        assert 4 <= len(said) <= 4 + 20 / REASSERT_SECONDS
        await trio.sleep(60)
        assert decided(bench) == said


async def test_a_decision_that_is_refused_for_what_it_is_waits_long_and_stops_nobody(
    autojump_clock: MockClock,
) -> None:
    bench = Bench()
    async with bench.running() as keeper:
        bench.fault = PayloadTooLarge("a payload of 300000 bytes is over the limit of 262144")
        bench.announce(of=ME)
        bench.claim()
        await trio.sleep(REFUSED_SECONDS / 2)
        assert keeper.counted["failed"] == 1
        assert bench.metrics.metrics()[f'whoosh_broadcast_error_total{{council_id="{COUNCIL}"}}'] > 0
        bench.fault = None
        await trio.sleep(REFUSED_SECONDS / 2 + 1)
        assert decided(bench) == [(1, 1)]


async def test_a_decision_that_cannot_be_stored_is_made_again_soon(autojump_clock: MockClock) -> None:
    bench = Bench()
    async with bench.running() as keeper:
        bench.fault = EnvironmentFault("No space left on device")
        bench.announce(of=ME)
        bench.claim()
        await trio.sleep(10)
        assert 5 <= keeper.counted["failed"] <= 12
        bench.fault = None
        await trio.sleep(3)
        assert decided(bench) == [(1, 1)]


async def test_a_decision_that_cannot_be_read_back_is_not_made_again(autojump_clock: MockClock) -> None:
    bench = Bench()
    bench.breaks = True
    async with bench.running():
        bench.announce(of=ME)
        bench.claim()
        await trio.sleep(5)
        assert decided(bench) == [(1, 1)]
        bench.breaks = bench.archive.broken = False
        bench.claim(kind="accept", term=1, n=1)
        await trio.sleep(5)
        assert decided(bench) == [(1, 1), (1, 2)]


async def test_an_assignment_is_accepted_once_however_often_the_council_changes(autojump_clock: MockClock) -> None:
    bench = Bench()
    async with bench.running() as keeper:
        bench.announce()
        bench.claim(of=ME, agent_id="mine")
        seat = {"role_name": "tpm", "required": True, "state": "assigned", "agent_id": "mine", "peer_id": peer(ME)}
        for n in range(1, 50):
            bench.decide(n=n, roles=[{**seat, "term": 1, "n": 1}])
            await trio.sleep(0.2)
        assert keeper.counted["acceptances"] == 1
        bench.decide(n=60, roles=[{**seat, "term": 1, "n": 60}])
        await trio.sleep(1)
        accepted = [(document["term"], document["n"]) for _, document in bench.said if document.get("kind") == "accept"]
        assert accepted == [(1, 1), (1, 60)]
