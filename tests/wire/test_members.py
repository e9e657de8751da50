"""Member records on the wire: bounded, signed by their owner, read without trust."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.member import MAX_MEMBERS, MemberRecord
from p2pnode.errors import InvalidMessage
from p2pnode.identity import Identity, verifier_for
from p2pnode.wire import members as wire
from p2pnode.wire.members import (
    MAX_EXCHANGE_BYTES,
    SIGNING_PREFIX,
    decode_exchange,
    encode_exchange,
    read_record,
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
)


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


@many
@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_refused_as_one(encoded: bytes) -> None:
    with pytest.raises(InvalidMessage):
        read_record(encoded, verify)


@many
@given(st.binary(max_size=300))
def test_any_bytes_are_an_exchange_or_refused_as_one(body: bytes) -> None:
    try:
        digest, records = decode_exchange(body)
    except InvalidMessage:
        return
    assert len(digest) + sum(map(len, records)) <= 2 * len(body)


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


@some
@given(st.binary(max_size=64), st.lists(st.integers(1, 2**63), max_size=8))
def test_an_exchange_survives_the_wire(digest: bytes, incarnations: list[int]) -> None:
    records = [sign_record(dataclasses.replace(RECORD, incarnation=n), ALICE.sign) for n in incarnations]
    assert decode_exchange(encode_exchange(digest, records)) == (digest, records)


def test_an_exchange_stops_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_EXCHANGE_BYTES", 2000)
    body = encode_exchange(b"d" * 32, [sign_record(RECORD, ALICE.sign)] * 100)
    assert len(body) <= 2000
    assert len(decode_exchange(body)[1]) >= 4


@pytest.mark.parametrize(
    "body", [b"\x0a\x00" * (MAX_MEMBERS + 1), b"\0" * (MAX_EXCHANGE_BYTES + 1)], ids=["records", "bytes"]
)
def test_an_exchange_over_a_limit_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_exchange(body)
    assert caught.value.reason == "oversize"
