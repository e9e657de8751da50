"""The signed message on the wire: total decoding, and signatures that only its origin can make."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.message import MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, SignedMessage
from p2pnode.errors import InvalidMessage
from p2pnode.host.frames import encode_varint
from p2pnode.identity import Identity, peer_id_of, verifier_for
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import Message
from p2pnode.wire.pubsub import SIGNING_PREFIX, decode_message, message_verify, seal_message, signing_payload
from tests.properties import many, some

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
good = message_verify(verifier_for)


def seal(data: bytes = b"data", seqno: int = 7, topic: str = "councils.forming") -> SignedMessage:
    return seal_message(origin=ALICE.peer_id_bytes, seqno=seqno, topic=topic, data=data, sign=ALICE.sign)


def changed(raw: bytes, **fields: bytes | str) -> bytes:
    message = Message.FromString(raw)
    for name, value in fields.items():
        setattr(message, name.rstrip("_"), value)
    return message.SerializeToString()


@some
@given(
    data=st.binary(max_size=2000),
    seqno=st.integers(0, 2**64 - 1),
    topic=st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_./:-]{0,40}", fullmatch=True),
)
def test_a_sealed_message_is_read_as_it_was_sealed(data: bytes, seqno: int, topic: str) -> None:
    message = seal(data, seqno, topic)
    assert decode_message(message.raw) == message
    assert (message.number, message.topic, message.data) == (seqno, topic, data)
    assert message.id == ALICE.peer_id_bytes + seqno.to_bytes(8, "big")
    assert good(message)


@many
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused_as_one(raw: bytes) -> None:
    try:
        message = decode_message(raw)
    except InvalidMessage:
        return
    assert message.raw == raw
    assert not good(message)


@many
@given(raw=st.binary(max_size=300))
def test_any_bytes_have_a_signing_payload_or_are_refused(raw: bytes) -> None:
    try:
        payload = signing_payload(raw)
    except InvalidMessage:
        return
    assert payload.startswith(SIGNING_PREFIX)


@many
@given(st.data())
def test_a_message_changed_anywhere_is_refused_or_badly_signed_or_the_same(data: st.DataObject) -> None:
    original = seal()
    raw = bytearray(original.raw)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        message = decode_message(bytes(raw))
    except InvalidMessage:
        return
    assert not good(message) or dataclasses.replace(message, raw=original.raw) == original


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"from_": b""}, "from"),
        ({"from_": b"\x00\x24short"}, "from"),
        ({"seqno": b""}, "seqno"),
        ({"seqno": b"1234567"}, "seqno"),
        ({"seqno": b"123456789"}, "seqno"),
        ({"signature": b""}, "unsigned"),
        ({"signature": b"s" * 1025}, "unsigned"),
        ({"key": b"k" * 1025}, "key"),
        ({"topic": ""}, "topic"),
        ({"topic": "t" * 4097}, "topic"),
        ({"data": b"d" * MAX_MESSAGE_BYTES}, "oversize"),
    ],
)
def test_a_message_that_breaks_strict_signing_is_refused(fields: dict[str, bytes | str], reason: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_message(changed(seal().raw, **fields))
    assert caught.value.reason == reason


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x22\x01\xff"], ids=["tag", "length", "utf-8"])
def test_what_is_no_protobuf_is_refused_as_that(raw: bytes) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_message(raw)
    assert caught.value.reason == "protobuf"


@pytest.mark.parametrize(
    "fields",
    [
        {"from_": BOB.peer_id_bytes},
        {"seqno": b"87654321"},
        {"topic": "councils.status"},
        {"data": b"other"},
        {"signature": b"s" * 64},
        {"signature": b"s" * 63},
        {"key": b"\x08\x01\x12\x20" + b"k" * 32},
        {"key": b"no key"},
    ],
)
def test_a_forged_message_is_read_but_not_verified(fields: dict[str, bytes | str]) -> None:
    message = decode_message(changed(seal().raw, **fields))
    assert not good(message)


def test_a_message_signed_with_anothers_key_is_not_verified() -> None:
    forged = seal_message(origin=BOB.peer_id_bytes, seqno=1, topic="t", data=b"", sign=ALICE.sign)
    assert not good(forged)
    key = b"\x08\x01\x12\x20" + ALICE.peer_id_bytes[-32:]
    with_key = seal_message(origin=BOB.peer_id_bytes, seqno=1, topic="t", data=b"", sign=ALICE.sign, key=key)
    assert not good(with_key)


def test_unknown_fields_are_covered_by_the_signature() -> None:
    message = Message(data=b"d", seqno=b"12345678", topic="t")
    setattr(message, "from", ALICE.peer_id_bytes)
    unsigned = message.SerializeToString() + b"\x7a\x03new"
    signature = ALICE.sign(SIGNING_PREFIX + unsigned)
    signed = unsigned + b"\x2a\x40" + signature
    assert good(decode_message(signed))
    assert not good(decode_message(signed.replace(b"\x7a\x03new", b"\x7a\x03old")))


def test_a_payload_at_the_limit_can_be_sealed_and_read() -> None:
    assert decode_message(seal(b"d" * MAX_PAYLOAD_BYTES).raw).data == b"d" * MAX_PAYLOAD_BYTES


def test_nothing_is_signed_that_others_would_refuse() -> None:
    asked: list[bytes] = []

    def sign(data: bytes) -> bytes:
        asked.append(data)
        return b""

    for topic, data, reason in (("two words", b"", "topic"), ("t", b"d" * MAX_MESSAGE_BYTES, "oversize")):
        with pytest.raises(InvalidMessage) as caught:
            seal_message(origin=ALICE.peer_id_bytes, seqno=1, topic=topic, data=data, sign=sign)
        assert caught.value.reason == reason
    assert asked == []


def der(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_key(kind: int, data: bytes) -> bytes:
    return bytes((0x08, kind, 0x12)) + encode_varint(len(data)) + data


RSA_2048 = rsa.generate_private_key(65537, 2048)
RSA_1024 = rsa.generate_private_key(65537, 1024)
P256 = ec.generate_private_key(ec.SECP256R1())
K256 = ec.generate_private_key(ec.SECP256K1())
K256_POINT = K256.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def rsa_sign(key: rsa.RSAPrivateKey, data: bytes) -> bytes:
    return key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def ec_sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "secp256k1"])
def test_messages_of_stock_peers_with_other_keys_are_verified(kind: str) -> None:
    key = {
        "rsa": public_key(0, der(RSA_2048)),
        "ecdsa": public_key(3, der(P256)),
        "secp256k1": public_key(2, K256_POINT),
    }[kind]

    def sign(data: bytes) -> bytes:
        return rsa_sign(RSA_2048, data) if kind == "rsa" else ec_sign(P256 if kind == "ecdsa" else K256, data)

    origin = peer_id_of(key)
    message = seal_message(origin=origin, seqno=1, topic="t", data=b"d", sign=sign, key=key)
    assert good(decode_message(message.raw))
    assert not good(decode_message(changed(message.raw, data=b"other")))
    without = seal_message(origin=origin, seqno=1, topic="t", data=b"d", sign=sign)
    # Only a key of at most 42 bytes is in the peer id itself.
    assert good(decode_message(without.raw)) is (kind == "secp256k1")


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"\x08\x01\x12",
        b"\x08\x01\x12\x20" + b"k" * 31,
        b"\x08\x01\x12\x20" + b"k" * 33,
        public_key(1, b"k" * 31),
        public_key(0, b"not DER"),
        public_key(0, der(P256)),
        public_key(3, der(RSA_2048)),
        public_key(2, b"\x02" + b"\xff" * 32),
        public_key(4, b"k" * 32),
        public_key(0, der(RSA_1024)),
        b"\x08\x00\x12\xff\xff\x01" + b"k" * 100,
    ],
)
def test_a_malformed_or_weak_key_is_refused(key: bytes) -> None:
    with pytest.raises(InvalidMessage) as caught:
        verifier_for(peer_id_of(key), key)
    assert caught.value.reason == "key"


@many
@given(key=st.binary(max_size=200), signature=st.binary(max_size=100))
def test_any_key_verifies_or_is_refused(key: bytes, signature: bytes) -> None:
    for peer_id, given_key in ((peer_id_of(key), key), (peer_id_of(key), b"")):
        try:
            verify = verifier_for(peer_id, given_key)
        except InvalidMessage:
            continue
        assert not verify(b"data", signature)


@some
@given(kind=st.sampled_from([0, 2, 3]), signature=st.binary(max_size=300))
def test_any_signature_is_good_or_bad(kind: int, signature: bytes) -> None:
    key = public_key(kind, {0: der(RSA_2048), 2: K256_POINT, 3: der(P256)}[kind])
    assert not verifier_for(peer_id_of(key), key)(b"data", signature)
