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
from p2pnode.node.documents import message_document
from p2pnode.node.history import History
from p2pnode.node.inbound import Inbound
from p2pnode.node.members import Members, Tools
from p2pnode.wire.payload import encode_envelope, encode_json_payload
from p2pnode.wire.pubsub import seal_message
from tests.core.test_council import OPPORTUNITY
from tests.node.fakes import START_NS, FakeHost, MemorySeqnos, Network, Wall, verify_record

SECOND = 1_000_000_000
ALICE, SELF = Identity(b"a" * 32), Identity(b"s" * 32)


class Desk:
    def __init__(self) -> None:
        self.wall = Wall(runs=False)
        self.history = History(100, 10**7)
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
        self.inbound = Inbound(self.history, members, self.wall)

    def take(self, message: SignedMessage) -> Verdict:
        verdict = self.inbound.judge(message, ALICE.peer_id)
        if isinstance(verdict, Accept):
            self.inbound.deliver(message, carrier="gossip")
        return verdict

    def documents(self, topic: str) -> list[dict[str, Any]]:
        return [message_document(kept, None) for kept in self.history.read(topic, 0, 100)]


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
        assert desk.history.count(message.topic) == isinstance(verdict, Accept)


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
    (document,) = desk.documents("hmmm.t")
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
    (document,) = desk.documents("hmmm.t")
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
    assert desk.history.count("councils.forming") == 0
    (record,) = caplog.records
    assert 1 <= len(record.faults) <= 5  # type: ignore[attr-defined]


async def test_what_is_held_is_ignored_and_delivered_once() -> None:
    desk = Desk()
    message = sealed(b"x")
    assert desk.take(message) == Accept()
    assert desk.take(message) == Ignore("held")
    desk.inbound.deliver(message, carrier="gossip")
    assert desk.history.count("hmmm.t") == 1
    assert desk.inbound.received == {"hmmm.t": 1}


async def test_deliveries_keep_their_own_payload_whatever_was_judged_between() -> None:
    desk = Desk()
    messages = [sealed(json.dumps({"n": number}).encode(), seqno=number) for number in range(3)]
    for message in messages:
        assert desk.inbound.judge(message, ALICE.peer_id) == Accept()
    for message in messages:
        desk.inbound.deliver(message, carrier="gossip")
    assert [document["payload"] for document in desk.documents("hmmm.t")] == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_records_are_taken_from_their_topic_and_not_kept_as_messages() -> None:
    desk = Desk()
    message = SignedMessage(ALICE.peer_id_bytes, b"12345678", Topic("p2pnode.members"), b"junk", b"s", b"", b"")
    assert type(desk.take(message)).__name__ == "Reject"
    desk.inbound.deliver(message, carrier="gossip")
    assert desk.history.count("p2pnode.members") == 0
