"""Verdicts on what peers bring, by what is inside."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
import trio

from p2pnode.core.membership.record import MemberRecord
from p2pnode.core.message import Accept, Ignore, SignedMessage, Topic, Verdict
from p2pnode.core.metadata import Metadata
from p2pnode.identity import Identity
from p2pnode.node import archive as archive_module
from p2pnode.node.archive import Archive
from p2pnode.node.documents import message_document
from p2pnode.node.inbound import Inbound
from p2pnode.node.members import Members, Tools
from p2pnode.node.storing import Retention
from p2pnode.wire.payload import encode_envelope, encode_json_payload
from p2pnode.wire.pubsub import seal_message
from tests.core.council.test_opportunity import OPPORTUNITY
from tests.node.fakes import START_NS, FakeHost, MemorySeqnos, Network, Wall, verify_message, verify_record
from tests.node.stores import MemoryStore

SECOND = 1_000_000_000
ALICE, SELF = Identity(b"a" * 32), Identity(b"s" * 32)


class Desk:
    def __init__(self) -> None:
        self.wall = Wall(runs=False)
        self.store = MemoryStore()
        self.archive = Archive(
            self.store,
            Retention(100, 10**7, 10.0**9),
            SELF.peer_id_bytes,
            wall_ns=self.wall,
            gap=lambda topic, peer: None,
        )
        own = MemberRecord(SELF.peer_id, 0, "self", "chorus", "online", ())
        host = FakeHost(Network(), SELF.peer_id, "/ip4/10.0.0.9/tcp/9000")

        async def publish(signed: bytes) -> None:
            await trio.lowlevel.checkpoint()

        members = Members(
            host,
            Tools(SELF.sign, verify_record, self.wall, Random(1), MemorySeqnos()),
            own,
            publish,
            lambda: None,
            lambda record: None,
        )
        self.inbound = Inbound(self.archive, members, verify_message, self.wall)

    def take(self, message: SignedMessage) -> Verdict:
        verdict = self.inbound.judge(message, ALICE.peer_id)
        if isinstance(verdict, Accept):
            self.inbound.deliver(message, carrier="gossip")
        return verdict

    def take_synced(self, raw: bytes, *subscribed: str) -> str | None:
        return self.inbound.take_synced(raw, subscribed.__contains__)

    async def documents(self, topic: str) -> list[dict[str, Any]]:
        """Of what is stored, once all that was taken is written."""
        await self.archive.close()
        return [message_document(entry, each, None) for entry, each in await self.archive.page([topic], 0, 100)]

    async def count(self, topic: str) -> int:
        return len(await self.documents(topic))


def sealed(data: bytes, topic: str = "hmmm.t", seqno: int = 1) -> SignedMessage:
    return seal_message(origin=ALICE.peer_id_bytes, seqno=seqno, topic=topic, data=data, sign=ALICE.sign)


def opportunity(metadata: Metadata | None, **change: object) -> SignedMessage:
    document = {**OPPORTUNITY, **change}
    body = json.dumps(document).encode()
    return sealed(encode_json_payload(body, document, metadata) if metadata else body, "councils.forming")


@pytest.mark.parametrize(
    ("age", "expires_in", "verdict"),
    [
        (0, None, Accept()),
        (59, None, Accept()),
        (60, None, Accept(relay=False)),
        (3600 * 24 * 365, None, Accept(relay=False)),
        (-120, None, Accept()),
        (-121, None, Ignore("future")),
        (-(10**9), None, Ignore("future")),
        (0, 1, Accept()),
        (0, 0, Ignore("expired")),
        (0, -1, Ignore("expired")),
        (100, 1, Accept(relay=False)),
        (-121, -1, Ignore("future")),
    ],
)
async def test_signed_times_decide_by_our_clock_and_blame_nobody(
    age: int, expires_in: int | None, verdict: Verdict
) -> None:
    metadata = Metadata(
        published_at_ns=START_NS - age * SECOND,
        expires_at_ns=0 if expires_in is None else START_NS + expires_in * SECOND,
    )
    for message in (opportunity(metadata), sealed(encode_envelope(b"x", "", metadata))):
        desk = Desk()
        assert desk.take(message) == verdict
        assert await desk.count(message.topic) == isinstance(verdict, Accept)


async def test_an_expired_opportunity_is_ignored() -> None:
    desk = Desk()
    message = opportunity(Metadata(START_NS - SECOND, START_NS + SECOND))
    desk.wall.step_ns = 2 * SECOND
    assert desk.take(message) == Ignore("expired")


@pytest.mark.parametrize(
    "data", [b"", b"\x00\xff", b"{", b'{"a":1}', b'{"a":1,"p2pnode":7}', b'{"a":1e999}', b'{"a":NaN}']
)
async def test_a_stock_peers_payload_is_accepted_as_it_is(data: bytes) -> None:
    desk = Desk()
    assert desk.take(sealed(data)) == Accept()
    (document,) = await desk.documents("hmmm.t")
    assert document["published_at"] is None
    assert json.dumps(document, allow_nan=False)


@pytest.mark.parametrize(
    "data",
    [
        encode_envelope(b"NaN", "application/json", Metadata(START_NS)),
        encode_envelope(b"1e999", "application/json", Metadata(START_NS)),
        encode_envelope(b"[" * 100_000, "application/json", Metadata(START_NS)),
        encode_envelope(b"[" * 900 + b"]" * 900, "application/json", Metadata(START_NS)),
        encode_envelope(b"x", "\n", Metadata(START_NS, 2**63 - 1)),
        encode_json_payload(b'{"a":"\\ud800"}', {"a": 1}, Metadata(START_NS)),
        b'{"p2pnode":{"v":1,"published_at":"2025-11-23T12:00:00Z","expires_at":"9999-12-31T23:59:59-23:59"}}',
        b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
async def test_nothing_a_peer_sends_spoils_the_documents_of_a_topic(data: bytes) -> None:
    desk = Desk()
    assert isinstance(desk.take(sealed(data)), Accept)
    (document,) = await desk.documents("hmmm.t")
    assert json.loads(json.dumps(document, allow_nan=False)) == document


async def test_a_stock_peers_opportunity_is_accepted() -> None:
    assert Desk().take(opportunity(None)) == Accept()


@pytest.mark.parametrize(
    "message",
    [
        opportunity(None, project_name=""),
        opportunity(Metadata(START_NS), core_roles=[]),
        opportunity(None, core_roles=[7] * 10_000),
        sealed(b"no JSON", "councils.forming"),
        sealed(
            encode_envelope(json.dumps(OPPORTUNITY).encode(), "application/json", Metadata(START_NS)),
            "councils.forming",
        ),
    ],
)
async def test_what_is_no_opportunity_is_ignored_on_its_topic(
    message: SignedMessage, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk()
    assert desk.take(message) == Ignore("opportunity")
    assert await desk.count("councils.forming") == 0
    (record,) = caplog.records
    assert 1 <= len(record.faults) <= 5  # type: ignore[attr-defined]


async def test_what_is_held_is_ignored_and_delivered_once() -> None:
    desk = Desk()
    message = sealed(b"x")
    assert desk.take(message) == Accept()
    assert desk.take(message) == Ignore("held")
    assert desk.inbound.deliver(message, carrier="gossip") == "held"
    assert await desk.count("hmmm.t") == 1
    assert desk.take(message) == Ignore("held")
    assert desk.inbound.received == {"hmmm.t": 1}


async def test_deliveries_keep_their_own_payload_whatever_was_judged_between() -> None:
    desk = Desk()
    messages = [sealed(json.dumps({"n": number}).encode(), seqno=number) for number in range(3)]
    for message in messages:
        assert desk.inbound.judge(message, ALICE.peer_id) == Accept()
    for message in messages:
        desk.inbound.deliver(message, carrier="gossip")
    assert [document["payload"] for document in await desk.documents("hmmm.t")] == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_records_are_taken_from_their_topic_and_not_kept_as_messages() -> None:
    desk = Desk()
    message = SignedMessage(ALICE.peer_id_bytes, b"12345678", Topic("p2pnode.members"), b"junk", b"s", b"", b"")
    assert type(desk.take(message)).__name__ == "Reject"
    desk.inbound.deliver(message, carrier="gossip")
    assert await desk.count("p2pnode.members") == 0


# -- by synchronisation -----------------------------------------------------------------


async def test_what_a_neighbour_brings_is_stored_once_and_named_so() -> None:
    desk = Desk()
    message = sealed(b"x")
    assert desk.take_synced(message.raw, "hmmm.t") is None
    assert desk.take_synced(message.raw, "hmmm.t") == "held"
    assert [document["carrier"] for document in await desk.documents("hmmm.t")] == ["sync"]
    assert desk.inbound.received == {"hmmm.t": 1}


async def test_an_old_message_is_taken_from_a_neighbour_and_a_signed_time_binds_it_too() -> None:
    desk = Desk()
    old = sealed(encode_envelope(b"x", "", Metadata(START_NS - 10**6 * SECOND)))
    assert desk.take_synced(old.raw, "hmmm.t") is None
    for number, (metadata, why) in enumerate(
        ((Metadata(START_NS + 200 * SECOND), "future"), (Metadata(START_NS - SECOND, START_NS - 1), "expired")), 2
    ):
        assert desk.take_synced(sealed(encode_envelope(b"x", "", metadata), seqno=number).raw, "hmmm.t") == why
    assert await desk.count("hmmm.t") == 1


async def test_what_a_neighbour_brings_is_checked_as_if_it_were_gossiped() -> None:
    desk = Desk()
    message = sealed(b"x")
    cases = [
        (b"\xff", ("hmmm.t",), "protobuf"),
        (message.raw, (), "topic"),
        (message.raw.replace(b"x", b"y", 1), ("hmmm.t",), "signature"),
        (opportunity(None, project_name="").raw, ("councils.forming",), "opportunity"),
        (sealed(b"x", "p2pnode.members").raw, ("p2pnode.members",), "topic"),
    ]
    for raw, subscribed, why in cases:
        assert desk.take_synced(raw, *subscribed) == why
    assert not desk.archive.queued
    assert not desk.inbound.received


async def test_what_is_not_stored_is_not_counted_as_received(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_QUEUED_BYTES", 0)
    desk = Desk()
    assert desk.take_synced(sealed(b"x").raw, "hmmm.t") == "queue"
    assert desk.inbound.deliver(sealed(b"x"), carrier="gossip") == "queue"
    assert not desk.inbound.received
