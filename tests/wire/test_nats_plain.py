"""What plain NATS clients publish: one message, the same at every bridge, or a refusal with its reason."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.backbeat import BACKBEAT_TOPIC
from p2pnode.core.council.documents import CLAIMS_TOPIC, STATUS_TOPIC
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.message import MAX_PAYLOAD_BYTES, SignedMessage
from p2pnode.core.metadata import MAX_HEADERS, MAX_HEADERS_BYTES, MAX_TIME_NS, Metadata
from p2pnode.core.subjects import Subjects
from p2pnode.errors import InvalidMessage
from p2pnode.identity import Identity, verifier_for
from p2pnode.wire.nats import decode_nats, encode_nats, import_plain, import_seqno
from p2pnode.wire.payload import MEMBER, decode_payload, encode_envelope, encode_json_payload, parse_time
from p2pnode.wire.pubsub import decode_message, message_verify
from tests.properties import many

IMPORT = Identity(b"i" * 32)
SUBJECTS = Subjects("east", ["alerts=ops.alerts"])
OPPORTUNITY: dict[str, Any] = json.loads((Path(__file__).parents[1] / "samples" / "opportunity.json").read_text())
ID = OPPORTUNITY["council_id"]
NOW = 1_763_899_200_123_456_789
HEADERS = st.dictionaries(st.text(max_size=12), st.text(max_size=20), max_size=6)
MEMBERS = st.dictionaries(st.sampled_from(["status", "kind", "x"]), st.text(max_size=12) | st.integers())
good = message_verify(verifier_for)


def import_of(
    subject: str, body: bytes | Mapping[str, object], headers: Mapping[str, str] | None = None, at: int = NOW
) -> SignedMessage:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return import_plain(
        subject,
        headers or {},
        raw,
        seqno=import_seqno(at, 5),
        stamped_ns=at,
        origin=IMPORT.peer_id_bytes,
        sign=IMPORT.sign,
        subjects=SUBJECTS,
    )


STATUS = {"council_id": ID, "status": "active"}
CLAIM = {"council_id": ID, "role_name": "tpm", "agent_id": "a1"}
BEAT = {"type": "backbeat.statusclaim.v1", "agent_id": "a1", "beat_index": 1, "state": "idle", "hlc": "7:1"}


@pytest.mark.parametrize(
    ("subject", "document", "topic"),
    [
        ("chorus.councils.forming", OPPORTUNITY, OPPORTUNITY_TOPIC),
        (f"chorus.councils.{ID}.status", STATUS, STATUS_TOPIC),
        (f"chorus.councils.{ID.upper()}.status", STATUS, STATUS_TOPIC),
        (f"chorus.councils.{uuid.UUID(ID).hex}.claims", CLAIM, CLAIMS_TOPIC),
        ("backbeat.status.east", BEAT, BACKBEAT_TOPIC),
        ("hmmm.thread", {"any": "thing"}, "hmmm.thread"),
        ("ops.alerts", {}, "alerts"),
    ],
)
def test_a_plain_clients_json_becomes_a_signed_message(subject: str, document: dict[str, Any], topic: str) -> None:
    message = import_of(subject, document, {"Council-ID": ID, "Nats-Msg-Id": "x", "P2P-Seqno": "9"})
    payload = decode_payload(message.data)
    assert (message.topic, message.origin) == (topic, IMPORT.peer_id_bytes)
    assert good(message)
    assert payload.document == document
    expires = parse_time("2030-01-01T00:00:00Z") if topic == OPPORTUNITY_TOPIC else 0
    assert payload.metadata == Metadata(1_763_899_200_123_000_000, expires, 0, {"Council-ID": ID}, "nats")
    again = encode_nats(message, SUBJECTS)
    assert again is not None
    assert decode_nats(again.headers, again.body) == message


def test_the_number_is_milliseconds_and_place_in_the_stream() -> None:
    assert import_seqno(NOW, 5) == (1_763_899_200_123 << 22) | 5
    assert import_seqno(NOW, 2**22 + 5) == import_seqno(NOW, 5)
    assert import_seqno(NOW + 999_999_999, 0) > import_seqno(NOW, 2**22 - 1)


@pytest.mark.parametrize("stamped_ns", [-1, (1 << 42) * 1_000_000, MAX_TIME_NS])
def test_a_time_without_a_number_is_refused(stamped_ns: int) -> None:
    with pytest.raises(InvalidMessage) as caught:
        import_seqno(stamped_ns, 1)
    assert caught.value.reason == "stamp"


@many
@given(
    subject=st.sampled_from(
        [*SUBJECTS.watched(), "hmmm.x", f"chorus.councils.{ID}.claims", f"chorus.councils.{ID}.status"]
    ),
    headers=HEADERS,
    body=st.binary(max_size=60)
    | MEMBERS.map(lambda each: json.dumps({**STATUS, **CLAIM, **each, MEMBER: 1}).encode())
    | st.just(json.dumps(BEAT).encode()),
    at=st.integers(-1, 5 * 10**18),
)
def test_any_publication_becomes_the_same_message_at_every_bridge_or_is_refused(
    subject: str, headers: dict[str, str], body: bytes, at: int
) -> None:
    try:
        message = import_of(subject, body, headers, at)
    except InvalidMessage:
        return
    assert good(message)
    assert decode_message(message.raw) == message
    backwards = dict(reversed(headers.items()))
    if len({name.strip() for name in headers}) == len(headers):
        assert import_of(subject, body, backwards, at).raw == message.raw
    payload = decode_payload(message.data)
    assert payload.metadata is not None
    assert payload.metadata.via == "nats"
    assert payload.metadata.published_at_ns == at // 1_000_000 * 1_000_000
    assert payload.document is not None or payload.body == body


@pytest.mark.parametrize(
    ("subject", "body", "reason", "problem"),
    [
        ("chorus.councils.forming", b"hello", "json", "not JSON"),
        ("chorus.councils.forming", b"[]", "json", "not a JSON object"),
        ("chorus.councils.forming", b"\xff", "json", "not UTF-8"),
        ("backbeat.status.east", b"", "json", "not JSON"),
        ("chorus.councils.forming", {"council_id": ID}, "opportunity", "project_name: is missing"),
        ("chorus.councils.forming", {**OPPORTUNITY, "council_id": "a.b"}, "opportunity", "council_id"),
        (f"chorus.councils.{ID}.claims", {"council_id": ID}, "claim", "role_name: is missing; agent_id: is missing"),
        (f"chorus.councils.{ID}.status", {**STATUS, "status": "lively"}, "status", "status"),
        (f"chorus.councils.{ID}.status", {"status": "active"}, "council-id", "missing"),
        (f"chorus.councils.{uuid.UUID(int=1)}.status", STATUS, "council-id", "the document"),
        ("chorus.councils.c1.status", STATUS, "council-id", "names the council c1"),
        ("chorus.councils.c1.status", {**STATUS, "council_id": "c1"}, "status", "council_id"),
        (f"chorus.councils.{ID}.status", {**STATUS, "council_id": "a.b"}, "council-id", "single token"),
        ("chorus.councils.a b.status", STATUS, "subject", "nothing is imported"),
        ("elsewhere", STATUS, "subject", "nothing is imported"),
        ("backbeat.status.east", {**BEAT, "state": "asleep"}, "backbeat", "state"),
        ("hmmm.x", bytes(MAX_PAYLOAD_BYTES + 1), "oversize", "over the limit"),
    ],
)
def test_what_no_node_would_take_is_refused_with_the_reason(
    subject: str, body: bytes | dict[str, Any], reason: str, problem: str
) -> None:
    with pytest.raises(InvalidMessage) as caught:
        import_of(subject, body)
    assert caught.value.reason == reason
    assert problem in caught.value.detail


def test_metadata_that_a_client_repeats_is_taken_out() -> None:
    text = json.dumps(OPPORTUNITY).encode()
    echo = encode_json_payload(text, OPPORTUNITY, Metadata(1, prev=9, via="x"))
    payload = decode_payload(import_of("chorus.councils.forming", echo).data)
    assert payload.document == OPPORTUNITY
    assert payload.metadata is not None
    assert (payload.metadata.prev, payload.metadata.via) == (0, "nats")


def test_a_lone_surrogate_beside_repeated_metadata_stays() -> None:
    payload = decode_payload(import_of("hmmm.x", b'{"x": "\\ud800", "p2pnode": {}}').data)
    assert payload.document == {"x": "\ud800"}


def test_a_clients_json_keeps_its_text() -> None:
    text = b'{ "a": 1.00, "a2": "\\u00e9" '
    assert import_of("hmmm.x", text + b"}\n").data.startswith(text.rstrip())


@pytest.mark.parametrize(
    ("headers", "content_type"),
    [
        ({}, "application/octet-stream"),
        ({"content-type": " text/plain "}, "text/plain"),
        ({"Content-Type": "x" * 257}, "application/octet-stream"),
        ({"Content-Type": "a\nb"}, "application/octet-stream"),
    ],
)
def test_what_is_no_json_object_goes_in_an_envelope(headers: dict[str, str], content_type: str) -> None:
    for body in (b"", b"plain text", b"[1]", encode_envelope(b"x", "text/plain", Metadata(1))):
        payload = decode_payload(import_of("hmmm.x", body, headers).data)
        assert (payload.body, payload.content_type) == (body, content_type)


def test_a_body_of_the_largest_size_is_taken() -> None:
    assert len(decode_payload(import_of("hmmm.x", bytes(MAX_PAYLOAD_BYTES)).data).body) == MAX_PAYLOAD_BYTES


@pytest.mark.parametrize("headers", [{f"H{n}": "v" for n in range(MAX_HEADERS + 1)}, {"A": "v" * MAX_HEADERS_BYTES}])
def test_more_headers_than_a_message_may_have_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidMessage) as caught:
        import_of("hmmm.x", {}, headers)
    assert caught.value.reason == "headers"


def test_a_clients_headers_are_kept_in_the_order_of_their_names() -> None:
    given_headers = {
        "Status": "active",
        "Nats-Rollup": "all",
        "p2p-key": "k",
        "A": " b ",
        "Bad": "\x00",
        "E": "",
        "C": "Ü",
    }
    metadata = decode_payload(import_of("hmmm.x", {}, given_headers).data).metadata
    assert metadata is not None
    assert list(metadata.headers.items()) == [("A", "b"), ("C", "Ü"), ("Status", "active")]
