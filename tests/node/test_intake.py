"""What NATS or HTTP brings into a node: checked as gossip is, stored once, and passed on while it is young."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.message import SignedMessage
from p2pnode.core.metadata import FUTURE_ALLOWANCE_SECONDS, RELAY_AGE_SECONDS, Metadata
from p2pnode.errors import EnvironmentFault
from p2pnode.identity import Identity
from p2pnode.node.archive import RETRY_SECONDS
from p2pnode.node.intake import FOR_GOOD
from p2pnode.wire.members import MEMBERS_TOPIC
from p2pnode.wire.payload import encode_json_payload
from p2pnode.wire.pubsub import decode_message, seal_message
from tests.core.council.test_opportunity import OPPORTUNITY
from tests.node.fakes import START_NS, Fleet, Running, open_fleet, until

ALICE = Identity(b"a" * 32)
TOPIC, FORMING = "hmmm.t", "councils.forming"
SECOND = 1_000_000_000
Carrier = Literal["nats", "http"]
CARRIERS: tuple[Carrier, ...] = ("nats", "http")


def sealed(
    number: int,
    *,
    topic: str = TOPIC,
    document: Mapping[str, object] | None = None,
    at_ns: int = START_NS,
    expires_at_ns: int = 0,
) -> SignedMessage:
    said = {"n": number} if document is None else document
    data = encode_json_payload(json.dumps(said).encode(), said, Metadata(at_ns, expires_at_ns))
    return seal_message(origin=ALICE.peer_id_bytes, seqno=START_NS + number, topic=topic, data=data, sign=ALICE.sign)


@asynccontextmanager
async def open_node() -> AsyncIterator[tuple[Fleet, Running]]:
    async with open_fleet() as fleet:
        node = fleet.add(topics=(FORMING, TOPIC))
        fleet.start(node)
        await until(lambda: TOPIC in node.gossip.topics())
        yield fleet, node


def forged(message: SignedMessage) -> SignedMessage:
    """As somebody on the way would change it."""
    return decode_message(message.raw.replace(b'"n":', b'"m":').replace(b'"n": ', b'"m": '))


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_message_is_stored_once_and_says_by_which_road_it_came(
    carrier: Carrier, autojump_clock: MockClock
) -> None:
    async with open_node() as (_, node):
        message = sealed(1)
        assert await node.node.intake.take(message, carrier) is None
        assert node.store.raws == {message.id: message.raw}, "it is on the disk when the call returns"
        assert node.store.entries[message.id].carrier == carrier
        for again in CARRIERS:
            assert await node.node.intake.take(message, again) == "held"
        assert node.store.entries[message.id].carrier == carrier
        [document] = await node.node.messages(TOPIC, after=None, limit=10)
        assert document["roads"] == [carrier]


async def test_a_message_by_two_roads_at_once_is_stored_once(autojump_clock: MockClock) -> None:
    async with open_node() as (_, node):
        message, said = sealed(1), list[str | None]()

        async def take(carrier: Carrier) -> None:
            said.append(await node.node.intake.take(message, carrier))

        async with trio.open_nursery() as nursery:
            for carrier in CARRIERS * 3:
                nursery.start_soon(take, carrier)
        assert sorted(each or "" for each in said) == ["", *["held"] * 5]
        assert len(await node.node.messages(TOPIC, after=None, limit=10)) == 1


async def test_a_power_cut_after_the_call_returned_loses_nothing(autojump_clock: MockClock) -> None:
    async with open_node() as (_, node):
        node.store.commit_seconds = 3.0
        started = trio.current_time()
        assert await node.node.intake.take(sealed(1), "nats") is None
        assert trio.current_time() - started >= 3.0
        assert node.store.writes[-1][1], "the broker forgets it now, so a power cut must not"


async def test_a_changed_message_is_refused_for_good_and_the_true_one_is_taken(autojump_clock: MockClock) -> None:
    async with open_node() as (_, node):
        message = sealed(1)
        bad = forged(message)
        assert bad.id == message.id
        assert bad.raw != message.raw
        assert await node.node.intake.take(bad, "nats") == "signature"
        assert "signature" in FOR_GOOD
        assert node.store.raws == {}
        assert await node.node.intake.take(message, "nats") is None


@pytest.mark.parametrize("topic", [MEMBERS_TOPIC, "hmmm.other"])
async def test_a_topic_that_this_node_does_not_share_is_refused(topic: str, autojump_clock: MockClock) -> None:
    async with open_node() as (_, node):
        seen = len(node.gossip._seen)
        assert await node.node.intake.take(sealed(1, topic=topic), "http") == "topic"
        assert node.store.raws == {}
        assert node.gossip.sizes() == {"seen": seen}, "the router was not asked"


async def test_a_document_that_is_no_opportunity_is_refused_for_good(autojump_clock: MockClock) -> None:
    async with open_node() as (_, node):
        why = await node.node.intake.take(sealed(1, topic=FORMING, document={"council_id": "c"}), "nats")
        assert why == "opportunity"
        assert why in FOR_GOOD
        assert await node.node.intake.take(sealed(2, topic=FORMING, document=OPPORTUNITY), "nats") is None


async def test_times_are_judged_as_those_of_gossip(autojump_clock: MockClock) -> None:
    async with open_node() as (_, node):
        now = node.wall()
        future = sealed(1, at_ns=now + int((FUTURE_ALLOWANCE_SECONDS + 5) * SECOND))
        assert await node.node.intake.take(future, "nats") == "future"
        assert "future" not in FOR_GOOD, "it is taken when its time has come"
        assert await node.node.intake.take(sealed(2, expires_at_ns=now - 1), "nats") == "expired"
        await trio.sleep(10)
        assert await node.node.intake.take(future, "nats") is None


async def test_a_young_message_goes_on_by_gossip_and_an_old_one_is_left_to_synchronisation(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as (fleet, node):
        other = fleet.add(topics=(FORMING, TOPIC), bootstrap=[node.addr])
        fleet.start(other)
        await until(lambda: other.peer_id in node.gossip.topic_peers(TOPIC))
        await trio.sleep(2 * RELAY_AGE_SECONDS)
        young = sealed(1, at_ns=node.wall() - int(RELAY_AGE_SECONDS / 2 * SECOND))
        old = sealed(2, at_ns=node.wall() - int((RELAY_AGE_SECONDS + 1) * SECOND))
        for each in (young, old):
            assert await node.node.intake.take(each, "nats") is None
        await until(lambda: {young.id, old.id} <= other.store.entries.keys())
        assert other.store.entries[young.id].carrier == "gossip"
        assert other.store.entries[old.id].carrier == "sync"


async def test_a_full_disk_is_told_and_the_message_is_taken_when_there_is_room_again(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as (_, node):
        message = sealed(1)
        node.store.failing = EnvironmentFault("cannot write: No space left on device")
        with pytest.raises(EnvironmentFault, match="No space"):
            await node.node.intake.take(message, "nats")
        assert await node.node.intake.take(message, "nats") == "storage", "not tried again at once"
        assert "storage" not in FOR_GOOD
        node.store.failing = None
        await trio.sleep(2 * RETRY_SECONDS)
        assert await node.node.intake.take(message, "nats") is None, "although the router has seen it before"
        assert node.store.entries[message.id].carrier == "nats"
