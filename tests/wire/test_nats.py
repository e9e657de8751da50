"""Messages over NATS: the same bytes on the other side, and the headers that agents read."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.council.documents import CLAIMS_TOPIC, STATUS_TOPIC
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.message import (
    MAX_KEY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_SIGNATURE_BYTES,
    SignedMessage,
    format_message_id,
)
from p2pnode.core.metadata import MAX_HEADERS_BYTES, Metadata
from p2pnode.core.subjects import Subjects
from p2pnode.errors import InvalidMessage
from p2pnode.identity import Identity, verifier_for
from p2pnode.wire.nats import MAX_VALUE_BYTES, Outgoing, decode_nats, encode_nats
from p2pnode.wire.payload import encode_envelope, encode_json_payload
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import Message
from p2pnode.wire.pubsub import decode_message, message_verify, seal_message
from tests.properties import many, some

ALICE = Identity(b"a" * 32)
SUBJECTS = Subjects("east", ["alerts=ops.alerts"])
OPPORTUNITY: dict[str, Any] = json.loads((Path(__file__).parents[1] / "samples" / "opportunity.json").read_text())
ID = OPPORTUNITY["council_id"]
NOW = 1_763_899_200_123_456_789
good = message_verify(verifier_for)

UNKNOWN_FIELD = b"\xc2\x3e\x03abc"
TEXT = st.text(max_size=12)
SAFE = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
METADATA = st.builds(
    Metadata,
    published_at_ns=st.integers(0, 2**63 - 1),
    prev=st.integers(0, 2**64 - 1),
    headers=st.dictionaries(
        SAFE | st.sampled_from(["Nats-Rollup", "P2P-From", "status", "council-id", "X-Agent"]), SAFE, max_size=5
    ),
    via=SAFE,
)
DOCUMENTS = st.dictionaries(
    st.sampled_from(["project_name", "repository", "ucxl_address", "status", "x"]), TEXT | st.integers()
)


@st.composite
def datas(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["json", "envelope", "stock", "stock-json"]))
    if kind == "json":
        document = {"council_id": ID, **draw(DOCUMENTS)}
        return encode_json_payload(json.dumps(document).encode(), document, draw(METADATA))
    if kind == "envelope":
        return encode_envelope(draw(st.binary(max_size=50)), "text/plain", draw(METADATA))
    return draw(st.binary(max_size=50)) if kind == "stock" else json.dumps(draw(DOCUMENTS)).encode()


@st.composite
def messages(draw: st.DrawFn) -> SignedMessage:
    """As any implementation may write them: with a key, without data, unknown fields, fields in another order."""
    fields = [
        Message(data=draw(datas())) if draw(st.integers(0, 9)) else Message(),
        Message(seqno=draw(st.binary(min_size=8, max_size=8))),
        Message(topic=draw(st.sampled_from([*SUBJECTS.topics(), "hmmm.thread", "hmmm.a/b:c"]))),
        Message(signature=draw(st.binary(min_size=1, max_size=MAX_SIGNATURE_BYTES))),
        Message(key=draw(st.binary(max_size=MAX_KEY_BYTES))) if draw(st.booleans()) else Message(),
    ]
    origin = Message()
    setattr(origin, "from", ALICE.peer_id_bytes)
    parts = [each.SerializeToString() for each in (origin, *fields)]
    if draw(st.booleans()):
        parts = draw(st.permutations([*parts, UNKNOWN_FIELD]))
    return decode_message(b"".join(parts))


def seal(topic: str, data: bytes, key: bytes = b"") -> SignedMessage:
    return seal_message(origin=ALICE.peer_id_bytes, seqno=7, topic=topic, data=data, sign=ALICE.sign, key=key)


def sealed_json(topic: str, document: Mapping[str, object], metadata: Metadata) -> SignedMessage:
    return seal(topic, encode_json_payload(json.dumps(document).encode(), document, metadata))


def encoded(message: SignedMessage) -> Outgoing:
    outgoing = encode_nats(message, SUBJECTS)
    assert outgoing is not None
    return outgoing


@many
@given(messages())
def test_every_message_is_the_same_to_the_byte_on_the_other_side(message: SignedMessage) -> None:
    try:
        outgoing = encoded(message)
    except InvalidMessage:
        assert message.topic in (CLAIMS_TOPIC, STATUS_TOPIC)
        return
    assert outgoing.body == message.data
    assert decode_nats(outgoing.headers, outgoing.body) == message
    assert encoded(message) == outgoing
    assert list(encoded(message).headers.items()) == list(outgoing.headers.items())


@many
@given(messages())
def test_every_header_fits_on_one_line_as_clients_write_it(message: SignedMessage) -> None:
    try:
        headers = encoded(message).headers
    except InvalidMessage:
        return
    lowered = [name.lower() for name in headers]
    assert len(set(lowered)) == len(lowered)
    for name, value in headers.items():
        assert name.isascii()
        assert not set(name) & set(" :\r\n")
        assert value == value.strip() != ""
        assert value.isprintable()
        assert value.encode().decode() == value
    assert {name for name in lowered if name.startswith("nats-")} == {"nats-msg-id"}
    assert headers["Nats-Msg-Id"] == format_message_id(message.id)
    assert headers["P2P-From"] == ALICE.peer_id


@some
@given(messages(), st.randoms(use_true_random=False))
def test_header_names_in_any_case_and_blanks_around_values_are_read(message: SignedMessage, random: Any) -> None:
    try:
        outgoing = encoded(message)
    except InvalidMessage:
        return
    headers = {
        "".join(random.choice((str.upper, str.lower))(each) for each in name): f" {value}\t"
        for name, value in outgoing.headers.items()
    }
    assert decode_nats(headers, outgoing.body) == message


def test_an_opportunity_has_every_header_that_agents_read() -> None:
    metadata = Metadata(published_at_ns=NOW, headers={"X-Trace": "abc", "project": "another", "Nats-Rollup": "all"})
    message = sealed_json(OPPORTUNITY_TOPIC, OPPORTUNITY, metadata)
    outgoing = encoded(message)
    assert outgoing.subject == "chorus.councils.forming"
    assert json.loads(outgoing.body)["project_name"] == "Test Discovery"
    assert outgoing.headers == {
        "P2P-From": ALICE.peer_id,
        "P2P-Seqno": "7",
        "P2P-Topic": "councils.forming",
        "P2P-Signature": base64.b64encode(message.signature).decode(),
        "Nats-Msg-Id": f"{ALICE.peer_id}-7",
        "Council-ID": ID,
        "Project": "Test Discovery",
        "Repository": "https://gitea.chorus.services/tony/test",
        "UCXL-Address": "ucxl://any:tpm@test-discovery:formation/*^/council.json",
        "Published-At": "2025-11-23T12:00:00.123456789Z",
        "X-Trace": "abc",
    }


def test_a_status_update_has_its_status_as_a_header_and_its_council_in_the_subject() -> None:
    outgoing = encoded(sealed_json(STATUS_TOPIC, {"council_id": ID, "status": "active"}, Metadata(NOW)))
    assert outgoing.subject == f"chorus.councils.{ID}.status"
    assert outgoing.headers["Status"] == "active"
    claim = encoded(sealed_json(CLAIMS_TOPIC, {"council_id": ID, "status": "active"}, Metadata(NOW)))
    assert claim.subject == f"chorus.councils.{ID}.claims"
    assert "Status" not in claim.headers


def test_values_that_are_no_printable_line_or_too_long_are_left_out() -> None:
    document = {
        **OPPORTUNITY,
        "project_name": "Grün \N{ROCKET}",
        "repository": "a\r\nNats-Rollup: all",
        "ucxl_address": "x" * (MAX_VALUE_BYTES + 1),
    }
    headers = encoded(
        sealed_json(OPPORTUNITY_TOPIC, document, Metadata(NOW, headers={"A": "\x07", "B b": "c"}))
    ).headers
    assert headers["Project"] == "Grün \N{ROCKET}"
    assert not {"Repository", "UCXL-Address", "A", "B b"} & headers.keys()


def test_a_strangers_many_headers_are_cut_at_the_bound() -> None:
    many_headers = {f"H-{number:03}": "v" * 500 for number in range(100)}
    headers = encoded(sealed_json("hmmm.x", {}, Metadata(NOW, headers=many_headers))).headers
    kept = {name: value for name, value in headers.items() if name.startswith("H-")}
    assert 0 < sum(len(name) + len(value) for name, value in kept.items()) <= MAX_HEADERS_BYTES
    assert list(kept) == list(many_headers)[: len(kept)]


def test_only_a_message_that_cannot_be_put_together_again_travels_twice() -> None:
    ours = seal("hmmm.x", b"text", key=b"k")
    assert "P2P-Message" not in encoded(ours).headers
    assert "P2P-Key" in encoded(ours).headers
    theirs = decode_message(ours.raw + UNKNOWN_FIELD)
    assert base64.b64decode(encoded(theirs).headers["P2P-Message"]) == theirs.raw


def test_the_largest_message_with_unknown_fields_is_read_again() -> None:
    whole = seal("hmmm.x", bytes(MAX_MESSAGE_BYTES - 400))
    message = decode_message(whole.raw + UNKNOWN_FIELD)
    outgoing = encoded(message)
    assert decode_nats(outgoing.headers, outgoing.body) == message
    assert len(outgoing.body) + sum(map(len, outgoing.headers.values())) < 1024 * 1024  # a server's default max_payload


def test_a_topic_that_is_not_carried_is_not_encoded() -> None:
    assert encode_nats(seal("p2pnode.members", b"{}"), SUBJECTS) is None


@pytest.mark.parametrize("data", [b"text", b"[]", b'{"council_id": "a.b"}', b'{"council_id": null}', b"{}"])
def test_a_status_update_without_a_token_for_its_council_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessage) as caught:
        encode_nats(seal(STATUS_TOPIC, data), SUBJECTS)
    assert caught.value.reason == "council-id"


NAMES = [
    "P2P-From",
    "p2p-from",
    "P2P-Seqno",
    "P2P-Topic",
    "P2P-Signature",
    "P2P-Key",
    "P2P-Message",
    "Nats-Msg-Id",
    "A",
]


@many
@given(st.data())
def test_hostile_headers_are_a_message_a_plain_one_or_refused(data: st.DataObject) -> None:
    outgoing = encoded(seal("hmmm.x", b"text", key=b"k"))
    headers = dict(outgoing.headers)
    for _ in range(data.draw(st.integers(0, 3))):
        headers.pop(data.draw(st.sampled_from(NAMES)), None)
    changes = st.text(max_size=30) | st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode())
    headers |= data.draw(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), changes, max_size=4))
    body = data.draw(st.just(outgoing.body) | st.binary(max_size=40))
    try:
        message = decode_nats(headers, body)
    except InvalidMessage:
        return
    if message is None:
        assert "p2p-from" not in {name.strip().lower() for name in headers}
    else:
        assert message.data == body
        assert decode_message(message.raw) == message


def test_a_message_without_from_is_a_plain_one() -> None:
    assert decode_nats({"P2P-Seqno": "7", "Status": "active"}, b"{}") is None
    assert decode_nats({}, b"") is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"P2P-From": "nobody"}, "'nobody' is no peer id"),
        ({"P2P-Topic": "a b"}, "no topic name"),
        ({"P2P-Topic": "\ud800"}, "no topic name"),
        ({"P2P-Seqno": str(2**64)}, "P2P-Seqno"),
        ({"P2P-Seqno": "-1"}, "P2P-Seqno"),
        ({"P2P-Seqno": "٣"}, "P2P-Seqno"),
        ({"P2P-Seqno": "9" * 10_000}, "P2P-Seqno"),
        ({"P2P-Seqno": ""}, "P2P-Seqno"),
        ({"P2P-Signature": ""}, "P2P-Signature is missing"),
        ({"P2P-Signature": "?"}, "P2P-Signature is no base64"),
        ({"P2P-Signature": "é" * 8}, "P2P-Signature is no base64"),
        ({"P2P-Signature": "A" * 2000}, "P2P-Signature has 2000 characters"),
        ({"P2P-Key": ""}, "P2P-Key is missing or empty"),
        ({"P2P-Key": "A" * 2000}, "P2P-Key has 2000 characters"),
        ({"P2P-Message": "A" * 400_000}, "P2P-Message has 400000 characters"),
        ({"P2P-Message": "AAA"}, "P2P-Message is no base64"),
        (
            {"P2P-Message": base64.b64encode(seal("hmmm.x", b"another").raw).decode()},
            "the message in P2P-Message has other data than the body",
        ),
    ],
)
def test_a_broken_header_is_told_by_name(changes: dict[str, str], problem: str) -> None:
    outgoing = encoded(seal("hmmm.x", b"text"))
    with pytest.raises(InvalidMessage) as caught:
        decode_nats({**outgoing.headers, **changes}, outgoing.body)
    assert caught.value.reason == "headers"
    assert problem in caught.value.detail


def test_a_body_over_the_limit_is_refused() -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_nats(encoded(seal("hmmm.x", b"text")).headers, bytes(MAX_MESSAGE_BYTES + 1))
    assert caught.value.reason == "oversize"


def test_a_changed_body_has_no_good_signature() -> None:
    outgoing = encoded(seal("hmmm.x", b"text"))
    same, changed = (decode_nats(outgoing.headers, body) for body in (b"text", b"Text"))
    assert same is not None
    assert changed is not None
    assert good(same)
    assert not good(changed)
