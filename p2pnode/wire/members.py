"""Member records on the wire: bounded, total decoding, and the bytes that are signed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from google.protobuf.message import DecodeError

from p2pnode.core.member import MAX_MEMBERS, MemberRecord
from p2pnode.core.peerid import is_peer_id, peer_id_bytes, peer_id_text
from p2pnode.errors import InvalidMessage
from p2pnode.wire.pb.p2pnode.v1 import member_pb2

MEMBERS_PROTOCOL = "/p2pnode/members/1.0.0"
MEMBERS_TOPIC = "p2pnode.members"
SIGNING_PREFIX = b"p2pnode-member-record:"
MAX_RECORD_BYTES = 4096
MAX_EXCHANGE_BYTES = 4 * 1024 * 1024
MAX_ADDRS = 16
MAX_CAPABILITIES = 64
MAX_TEXT = 256


def sign_record(record: MemberRecord, sign: Callable[[bytes], bytes], key: bytes = b"") -> bytes:
    """The serialized SignedRecord of an own record.

    Raises:
        InvalidMessage: reason `record`; it is over a limit that others would refuse.
    """
    body = member_pb2.MemberRecord(
        peer_id=peer_id_bytes(record.peer_id),
        incarnation=record.incarnation,
        name=record.name,
        role=record.role,
        status=record.status,
        addrs=record.addrs,
        agent_id=record.agent_id,
        capabilities=record.capabilities,
        model=record.model,
        endpoint=record.endpoint,
        cluster_id=record.cluster_id,
        tasks_completed=record.tasks_completed,
        version=record.version,
        left=record.left,
        started_at_ns=record.started_at_ns,
    ).SerializeToString(deterministic=True)
    signed = member_pb2.SignedRecord(record=body, signature=sign(SIGNING_PREFIX + body), key=key)
    encoded = signed.SerializeToString(deterministic=True)
    _decode(encoded)
    return encoded


RecordVerify = Callable[[bytes, bytes, bytes, bytes], bool]
"""`(peer id, key, signed bytes, signature) -> good?`"""


def read_record(
    encoded: bytes, verify: RecordVerify, newer_than: Callable[[MemberRecord], bool] = lambda record: True
) -> MemberRecord | None:
    """Take a SignedRecord apart and check its owner's signature.

    Args:
        newer_than: asked before the signature, which costs most: False ends it with None.

    Raises:
        InvalidMessage: reasons `oversize`, `protobuf`, `record`, `signature`.
    """
    signed, record = _decode(encoded)
    if not newer_than(record):
        return None
    if not verify(peer_id_bytes(record.peer_id), signed.key, SIGNING_PREFIX + signed.record, signed.signature):
        raise InvalidMessage("signature", f"the record of {record.peer_id} is not signed by it")
    return record


def encode_exchange(digest: bytes, records: Iterable[bytes] = ()) -> bytes:
    """A MemberExchange of a digest and serialized SignedRecords, as far as they fit."""
    exchange = member_pb2.MemberExchange(digest=digest)
    size = 64
    for encoded in records:
        size += len(encoded) + 4
        if size > MAX_EXCHANGE_BYTES:
            break
        exchange.records.append(member_pb2.SignedRecord.FromString(encoded))
    return exchange.SerializeToString()


def decode_exchange(body: bytes) -> tuple[bytes, list[bytes]]:
    """Digest and serialized SignedRecords of a MemberExchange, not yet verified.

    Raises:
        InvalidMessage: reasons `oversize`, `protobuf`.
    """
    if len(body) > MAX_EXCHANGE_BYTES:
        raise InvalidMessage("oversize", f"a member exchange of {len(body)} bytes")
    exchange = member_pb2.MemberExchange()
    try:
        exchange.ParseFromString(body)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no member exchange: {error}") from error
    if len(exchange.records) > MAX_MEMBERS:
        raise InvalidMessage("oversize", f"{len(exchange.records)} records in one member exchange")
    return exchange.digest, [record.SerializeToString(deterministic=True) for record in exchange.records]


def _decode(encoded: bytes) -> tuple[member_pb2.SignedRecord, MemberRecord]:
    if len(encoded) > MAX_RECORD_BYTES:
        raise InvalidMessage("oversize", f"a member record of {len(encoded)} bytes is over {MAX_RECORD_BYTES}")
    signed, body = member_pb2.SignedRecord(), member_pb2.MemberRecord()
    try:
        signed.ParseFromString(encoded)
        body.ParseFromString(signed.record)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no member record: {error}") from error
    texts = (body.name, body.role, body.status, body.agent_id, body.model, body.endpoint, body.cluster_id, body.version)
    if (
        not is_peer_id(body.peer_id)
        or len(body.addrs) > MAX_ADDRS
        or len(body.capabilities) > MAX_CAPABILITIES
        or any(len(text) > MAX_TEXT for text in (*texts, *body.addrs, *body.capabilities))
    ):
        raise InvalidMessage("record", "a member record without a peer id, or with a field over its limit")
    record = MemberRecord(
        peer_id=peer_id_text(body.peer_id),
        incarnation=body.incarnation,
        name=body.name,
        role=body.role,
        status=body.status,
        addrs=tuple(body.addrs),
        agent_id=body.agent_id,
        capabilities=tuple(body.capabilities),
        model=body.model,
        endpoint=body.endpoint,
        cluster_id=body.cluster_id,
        tasks_completed=body.tasks_completed,
        version=body.version,
        left=body.left,
        started_at_ns=body.started_at_ns,
        signed=encoded,
    )
    return signed, record
