"""Member records and accusations on the wire: bounded, signed by who says so, read without trust."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.membership.beyond import MAX_BEYOND_BYTES, BeyondFilter
from p2pnode.core.membership.record import Accusation, MemberRecord
from p2pnode.errors import InvalidMessage
from p2pnode.identity import Identity, verifier_for
from p2pnode.wire.members import (
    MAX_ACCUSATION_BYTES,
    MAX_EXCHANGE_BYTES,
    MAX_IN_NEWS,
    MAX_NEWS_BYTES,
    MAX_RECORD_BYTES,
    MAX_WANT,
    SIGNING_PREFIX,
    EncodedNews,
    Exchange,
    batches,
    check_room,
    decode_exchange,
    decode_news,
    encode_exchange,
    encode_news,
    read_accusation,
    read_record,
    sign_accusation,
    sign_record,
)
from p2pnode.wire.pb.p2pnode.v1 import member_pb2
from tests.properties import many, some

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
RECORD = MemberRecord(
    peer_id=ALICE.peer_id,
    incarnation=5,
    name="alice",
    role="chorus",
    status="online",
    addrs=("/ip4/10.0.0.1/tcp/9000",),
    agent_id="agent-1",
    capabilities=("review",),
    model="m",
    endpoint="http://10.0.0.1:8080",
    cluster_id="c",
    tasks_completed=3,
    version="0.1.0",
    left=True,
    started_at_ns=17,
    current_team="council-7",
    carrier="http://10.0.0.1:9100",
)
BRIDGE = dataclasses.replace(RECORD, role="bridge", beyond=BeyondFilter.make([BOB.peer_id]))

CHARGE = Accusation(BOB.peer_id, ALICE.peer_id, 5, 1_763_899_200_000_000_000)


def verify(peer: bytes, key: bytes, data: bytes, signature: bytes) -> bool:
    try:
        return verifier_for(peer, key)(data, signature)
    except InvalidMessage:
        return False


def reason(encoded: bytes) -> str:
    with pytest.raises(InvalidMessage) as caught:
        read_record(encoded, verify)
    return caught.value.reason


def test_a_record_is_read_as_its_owner_wrote_it() -> None:
    encoded = sign_record(RECORD, ALICE.sign)
    assert read_record(encoded, verify) == dataclasses.replace(RECORD, signed=encoded)


def test_a_record_of_a_newer_build_is_read_and_passed_on_byte_for_byte() -> None:
    body = member_pb2.SignedRecord.FromString(sign_record(RECORD, ALICE.sign)).record
    body += b"\x9a\x01\x03new"  # field 19, text
    encoded = member_pb2.SignedRecord(record=body, signature=ALICE.sign(SIGNING_PREFIX + body)).SerializeToString()
    assert read_record(encoded, verify) == dataclasses.replace(RECORD, signed=encoded)
    news = decode_news(encode_news(EncodedNews((encoded,))))
    assert news.records == (encoded,)


def test_a_record_of_an_older_build_names_no_team() -> None:
    signed = member_pb2.SignedRecord.FromString(sign_record(RECORD, ALICE.sign))
    body = member_pb2.MemberRecord.FromString(signed.record)
    body.ClearField("current_team")
    text = body.SerializeToString(deterministic=True)
    older = member_pb2.SignedRecord(record=text, signature=ALICE.sign(SIGNING_PREFIX + text))
    record = read_record(older.SerializeToString(deterministic=True), verify)
    assert record is not None
    assert (record.agent_id, record.current_team) == ("agent-1", "")


def test_a_bridge_says_who_lives_beyond_it() -> None:
    record = read_record(sign_record(BRIDGE, ALICE.sign), verify)
    assert record is not None
    assert BeyondFilter.contains(record.beyond, BOB.peer_id)


def edited(record: MemberRecord, **fields: object) -> bytes:
    """Signed by its owner, whatever is wrong with it."""
    body = member_pb2.MemberRecord.FromString(
        member_pb2.SignedRecord.FromString(sign_record(record, ALICE.sign)).record
    )
    for name, value in fields.items():
        setattr(body, name, value)
    text = body.SerializeToString(deterministic=True)
    return member_pb2.SignedRecord(record=text, signature=ALICE.sign(SIGNING_PREFIX + text)).SerializeToString()


@pytest.mark.parametrize("beyond", [b"\x07", b"\x00abc", b"\x11abc", b"\x07" + bytes(MAX_BEYOND_BYTES)])
def test_a_bridge_with_a_broken_filter_is_refused(beyond: bytes) -> None:
    assert reason(edited(BRIDGE, beyond=beyond)) == "record"


def test_a_filter_of_one_that_is_no_bridge_is_refused() -> None:
    assert reason(edited(BRIDGE, role="chorus")) == "record"
    with pytest.raises(InvalidMessage, match="not a bridge's"):
        sign_record(dataclasses.replace(BRIDGE, role="chorus"), ALICE.sign)


@pytest.mark.parametrize(
    "carrier",
    [
        *("10.0.0.1:9100", "https://h:1", "ftp://h:1", "http://h", "http://h:0", "http://h:65536", "http://h:1/path"),
        *("http://:1", "http://a b:1", "http://h:1\n", "http://user@h:1", f"http://{'h' * 256}:1"),
    ],
)
def test_a_carrier_that_is_no_url_of_a_host_and_port_is_refused(carrier: str) -> None:
    assert reason(edited(RECORD, carrier=carrier)) == "record"


@pytest.mark.parametrize("carrier", ["http://10.0.0.1:9100", "http://host-1.example:1", "http://[fd00::1]:65535", ""])
def test_a_carrier_is_a_host_and_a_port(carrier: str) -> None:
    record = read_record(edited(RECORD, carrier=carrier), verify)
    assert record is not None
    assert record.carrier == carrier


def test_the_record_of_a_bridge_must_leave_room_for_the_largest_filter() -> None:
    nearly = dataclasses.replace(BRIDGE, capabilities=tuple(f"{number:0200}" for number in range(8)))
    check_room(dataclasses.replace(nearly, role="chorus", beyond=b""), ALICE.sign)
    with pytest.raises(InvalidMessage, match=f"is over {MAX_RECORD_BYTES}"):
        check_room(nearly, ALICE.sign)


def test_a_record_must_leave_room_for_what_grows_by_itself() -> None:
    check_room(RECORD, ALICE.sign)
    nearly = dataclasses.replace(RECORD, capabilities=tuple(f"{number:0200}" for number in range(18)))
    sign_record(nearly, ALICE.sign)
    with pytest.raises(InvalidMessage, match=f"is over {MAX_RECORD_BYTES}"):
        check_room(nearly, ALICE.sign)


@many
@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_refused_as_one(encoded: bytes) -> None:
    with pytest.raises(InvalidMessage):
        read_record(encoded, verify)


@many
@given(st.data())
def test_a_record_changed_anywhere_is_refused_or_the_same(data: st.DataObject) -> None:
    encoded = bytearray(sign_record(RECORD, ALICE.sign))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        record = read_record(bytes(encoded), verify)
    except InvalidMessage:
        return
    assert record == dataclasses.replace(RECORD, signed=bytes(encoded))


def test_a_record_signed_by_another_is_refused() -> None:
    assert reason(sign_record(RECORD, BOB.sign)) == "signature"
    bobs_key = b"\x08\x01\x12\x20" + BOB.peer_id_bytes[-32:]
    assert reason(sign_record(RECORD, BOB.sign, bobs_key)) == "signature"


def test_a_signature_for_a_message_is_none_for_a_record() -> None:
    signed = member_pb2.SignedRecord.FromString(sign_record(RECORD, ALICE.sign))
    signed.signature = ALICE.sign(b"libp2p-pubsub:" + signed.record)
    assert reason(signed.SerializeToString()) == "signature"
    signed.signature = ALICE.sign(SIGNING_PREFIX + signed.record)
    assert read_record(signed.SerializeToString(), verify) is not None


def test_old_news_end_before_the_signature_is_checked() -> None:
    def never(peer: bytes, key: bytes, data: bytes, signature: bytes) -> bool:
        raise AssertionError("checked")

    assert read_record(sign_record(RECORD, ALICE.sign), never, lambda record: False) is None


@pytest.mark.parametrize(
    "change",
    [
        {"name": "n" * 257},
        {"endpoint": "e" * 257},
        {"addrs": ("/ip4/10.0.0.1/tcp/1",) * 17},
        {"addrs": ("a" * 257,)},
        {"capabilities": ("c",) * 65},
        {"capabilities": ("c" * 257,)},
        {"capabilities": tuple("c" * 100 for _ in range(60))},
    ],
)
def test_no_record_over_a_limit_is_made_or_read(change: dict[str, str | tuple[str, ...]]) -> None:
    with pytest.raises(InvalidMessage) as caught:
        sign_record(dataclasses.replace(RECORD, **change), ALICE.sign)  # type: ignore[arg-type]
    assert caught.value.reason in ("record", "oversize")


def accusation_reason(encoded: bytes) -> str:
    with pytest.raises(InvalidMessage) as caught:
        read_accusation(encoded, verify)
    return caught.value.reason


def test_an_accusation_is_read_as_its_accuser_wrote_it() -> None:
    encoded = sign_accusation(CHARGE, BOB.sign)
    assert read_accusation(encoded, verify) == dataclasses.replace(CHARGE, signed=encoded)


@many
@given(st.binary(max_size=300))
def test_any_bytes_are_an_accusation_or_refused_as_one(encoded: bytes) -> None:
    with pytest.raises(InvalidMessage):
        read_accusation(encoded, verify)


@many
@given(st.data())
def test_an_accusation_changed_anywhere_is_refused_or_the_same(data: st.DataObject) -> None:
    encoded = bytearray(sign_accusation(CHARGE, BOB.sign))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        accusation = read_accusation(bytes(encoded), verify)
    except InvalidMessage:
        return
    assert accusation == dataclasses.replace(CHARGE, signed=bytes(encoded))


def test_an_accusation_that_its_accuser_did_not_sign_is_refused() -> None:
    assert accusation_reason(sign_accusation(CHARGE, ALICE.sign)) == "signature"
    signed = member_pb2.SignedAccusation.FromString(sign_accusation(CHARGE, BOB.sign))
    signed.signature = BOB.sign(SIGNING_PREFIX + signed.accusation)
    assert accusation_reason(signed.SerializeToString()) == "signature", "it is signed as a record"
    assert accusation_reason(b"x" * (MAX_ACCUSATION_BYTES + 1)) == "oversize"
    assert accusation_reason(b"") == "accusation"


def test_an_accusation_that_nobody_wants_is_not_verified() -> None:
    def never(peer: bytes, key: bytes, data: bytes, signature: bytes) -> bool:
        raise AssertionError("checked")

    assert read_accusation(sign_accusation(CHARGE, BOB.sign), never, lambda accusation: False) is None


def encoded_news(records: int, accusations: int) -> EncodedNews:
    return EncodedNews(
        tuple(sign_record(dataclasses.replace(RECORD, incarnation=n + 1), ALICE.sign) for n in range(records)),
        tuple(sign_accusation(dataclasses.replace(CHARGE, at_ns=n + 1), BOB.sign) for n in range(accusations)),
    )


@some
@given(st.integers(0, 4), st.integers(0, 4), st.binary(max_size=64), st.booleans(), st.integers(-(2**63), 2**63 - 1))
def test_news_and_exchanges_survive_the_wire(
    records: int, accusations: int, ranges: bytes, wants: bool, now_ns: int
) -> None:
    news = encoded_news(records, accusations)
    exchange = Exchange(ranges, news, (ALICE.peer_id_bytes, BOB.peer_id_bytes) if wants else (), now_ns)
    assert decode_exchange(encode_exchange(exchange)) == exchange
    if news:
        assert decode_news(encode_news(news)) == news


@many
@given(st.binary(max_size=300))
def test_any_bytes_are_an_exchange_or_refused_as_one(body: bytes) -> None:
    try:
        exchange = decode_exchange(body)
    except InvalidMessage:
        return
    assert len(exchange.ranges) + sum(map(len, (*exchange.news.records, *exchange.want))) <= 2 * len(body)


def test_an_exchange_of_an_older_version_tells_no_time() -> None:
    older = member_pb2.MemberExchange(want=[ALICE.peer_id_bytes]).SerializeToString()
    assert decode_exchange(older) == Exchange(want=(ALICE.peer_id_bytes,), now_ns=0)


@many
@given(st.binary(max_size=300))
def test_any_bytes_are_news_or_refused_as_such(body: bytes) -> None:
    try:
        assert decode_news(body)
    except InvalidMessage:
        pass


@some
@given(st.integers(0, 12), st.integers(0, 12), st.integers(400, 4000))
def test_news_are_parted_within_the_limit_and_in_order_and_nothing_is_lost(
    records: int, accusations: int, limit: int
) -> None:
    news = encoded_news(records, accusations)
    parts = batches(news, limit)
    assert all(parts)
    assert all(len(encode_news(part)) <= limit for part in parts)
    assert tuple(each for part in parts for each in part.records) == news.records
    assert tuple(each for part in parts for each in part.accusations) == news.accusations
    with_records = [bool(part.records) for part in parts]
    assert with_records == sorted(with_records, reverse=True), "records stand before what is said about them"


MANY_EMPTY = b"\x0a\x00" * (MAX_IN_NEWS + 1)
"""News of too many empty records: two bytes each."""

EMPTY_RECORDS = member_pb2.MemberExchange(news=member_pb2.MemberNews.FromString(MANY_EMPTY)).SerializeToString()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\0" * (MAX_EXCHANGE_BYTES + 1), "oversize"),
        (encode_exchange(Exchange(want=(b"x",))), "want"),
        (encode_exchange(Exchange(want=(ALICE.peer_id_bytes,) * (MAX_WANT + 1))), "want"),
        (EMPTY_RECORDS, "oversize"),
    ],
    ids=["bytes", "no-peer-id", "wants", "records"],
)
def test_an_exchange_over_a_limit_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_exchange(body)
    assert caught.value.reason == why


@pytest.mark.parametrize(
    ("body", "why"),
    [(b"", "empty"), (b"\0" * (MAX_NEWS_BYTES + 1025), "oversize"), (MANY_EMPTY, "oversize"), (b"\xff", "protobuf")],
    ids=["empty", "bytes", "records", "junk"],
)
def test_gossiped_news_over_a_limit_are_refused(body: bytes, why: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_news(body)
    assert caught.value.reason == why
