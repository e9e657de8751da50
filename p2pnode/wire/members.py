"""Member records and accusations on the wire: bounded, total decoding, and the bytes that are signed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from p2pnode.core.membership.beyond import MAX_BEYOND_BYTES, is_filter
from p2pnode.core.membership.record import MAX_INCARNATION, Accusation, MemberRecord, Role
from p2pnode.core.peerid import is_peer_id, peer_id_bytes, peer_id_text
from p2pnode.errors import InvalidMessage
from p2pnode.wire.pb.p2pnode.v1 import member_pb2

MEMBERS_PROTOCOL = "/p2pnode/members/1.0.0"
MEMBERS_TOPIC = "p2pnode.members"
SIGNING_PREFIX = b"p2pnode-member-record:"
MAX_RECORD_BYTES = 4096
PROBE_PROTOCOL = "/p2pnode/probe/1.0.0"
"""Asked with a peer id in bytes; answered by one byte: 1 when the helper reached that member, or a bridge vouches for
it; else 0."""

ACCUSATION_PREFIX = b"p2pnode-accusation:"
MAX_ACCUSATION_BYTES = 512
MAX_NEWS_BYTES = 128 * 1024
"""Of one gossip message; what does not fit waits for the next."""

MAX_EXCHANGE_BYTES = 1024 * 1024
MAX_IN_NEWS = 8192
"""Records, and accusations, of one news: each has some 150 bytes or more, so that no more fit an exchange."""

MAX_WANT = 16_384
MAX_ADDRS = 16
MAX_CAPABILITIES = 64
MAX_TEXT = 256

_CARRIER = re.compile(r"http://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


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
        current_team=record.current_team,
        beyond=record.beyond,
        carrier=record.carrier,
    ).SerializeToString(deterministic=True)
    signed = member_pb2.SignedRecord(record=body, signature=sign(SIGNING_PREFIX + body), key=key)
    encoded = signed.SerializeToString(deterministic=True)
    _decode(encoded)
    return encoded


def check_room(record: MemberRecord, sign: Callable[[bytes], bytes]) -> None:
    """Will others take the record however it grows: with many long addresses, the largest numbers, a bridge's filter?

    Raises:
        InvalidMessage: they will not; reason `oversize` or `record`.
    """
    largest = dataclasses.replace(
        record,
        addrs=("x" * 64,) * MAX_ADDRS,
        incarnation=MAX_INCARNATION,
        tasks_completed=MAX_INCARNATION,
        started_at_ns=2**63 - 1,
        left=True,
        beyond=b"\x01".ljust(MAX_BEYOND_BYTES, b"\xff") if record.role == Role.BRIDGE else b"",
    )
    sign_record(largest, sign)


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


def sign_accusation(accusation: Accusation, sign: Callable[[bytes], bytes], key: bytes = b"") -> bytes:
    """The serialized SignedAccusation of an own accusation."""
    body = member_pb2.Accusation(
        accuser=peer_id_bytes(accusation.accuser),
        accused=peer_id_bytes(accusation.accused),
        incarnation=accusation.incarnation,
        at_ns=accusation.at_ns,
    ).SerializeToString(deterministic=True)
    signed = member_pb2.SignedAccusation(accusation=body, signature=sign(ACCUSATION_PREFIX + body), key=key)
    return signed.SerializeToString(deterministic=True)


def read_accusation(
    encoded: bytes, verify: RecordVerify, wanted: Callable[[Accusation], bool] = lambda accusation: True
) -> Accusation | None:
    """Take a SignedAccusation apart and check the accuser's signature.

    Args:
        wanted: asked before the signature, which costs most: False ends it with None.

    Raises:
        InvalidMessage: reasons `oversize`, `protobuf`, `accusation`, `signature`.
    """
    if len(encoded) > MAX_ACCUSATION_BYTES:
        raise InvalidMessage("oversize", f"an accusation of {len(encoded)} bytes is over {MAX_ACCUSATION_BYTES}")
    signed, body = member_pb2.SignedAccusation(), member_pb2.Accusation()
    try:
        signed.ParseFromString(encoded)
        body.ParseFromString(signed.accusation)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no accusation: {error}") from error
    if not is_peer_id(body.accuser) or not is_peer_id(body.accused):
        raise InvalidMessage("accusation", "an accusation without the peer ids of both")
    accusation = Accusation(
        peer_id_text(body.accuser), peer_id_text(body.accused), body.incarnation, body.at_ns, encoded
    )
    if not wanted(accusation):
        return None
    if not verify(body.accuser, signed.key, ACCUSATION_PREFIX + signed.accusation, signed.signature):
        raise InvalidMessage("signature", f"the accusation by {accusation.accuser} is not signed by it")
    return accusation


@dataclass(frozen=True, slots=True)
class EncodedNews:
    """Serialized SignedRecords and SignedAccusations, not yet verified."""

    records: tuple[bytes, ...] = ()
    accusations: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.records or self.accusations)


def batches(news: EncodedNews, limit_bytes: int = MAX_NEWS_BYTES) -> list[EncodedNews]:
    """The same in parts that encode to at most `limit_bytes` each, records before the accusations about them."""
    out: list[EncodedNews] = []
    records: list[bytes] = []
    accusations: list[bytes] = []
    size = 0
    for taken, encoded in [*((records, each) for each in news.records), *((accusations, e) for e in news.accusations)]:
        if size + len(encoded) + 8 > limit_bytes and size:
            out.append(EncodedNews(tuple(records), tuple(accusations)))
            records.clear()
            accusations.clear()
            size = 0
        taken.append(encoded)
        size += len(encoded) + 8
    if size:
        out.append(EncodedNews(tuple(records), tuple(accusations)))
    return out


def encode_news(news: EncodedNews) -> bytes:
    """A MemberNews."""
    return _news(news).SerializeToString()


def decode_news(body: bytes) -> EncodedNews:
    """A MemberNews of a gossip message.

    Raises:
        InvalidMessage: reasons `oversize`, `protobuf`, `empty`.
    """
    if len(body) > MAX_NEWS_BYTES + 1024:
        raise InvalidMessage("oversize", f"member news of {len(body)} bytes")
    message = member_pb2.MemberNews()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no member news: {error}") from error
    news = _encoded(message)
    if not news:
        raise InvalidMessage("empty", "member news without records and accusations")
    return news


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request or an answer of the member exchange.

    Args:
        ranges: of what the sender holds, as `wire.reconcile` encodes them; empty when there is nothing more to compare.
        news: what the other side was seen to lack.
        want: peer ids of records that the sender lacks.
        now_ns: the sender's wall clock as it sends, nanoseconds since 1970: any 64-bit number, and 0 from an older
            version.
    """

    ranges: bytes = b""
    news: EncodedNews = EncodedNews()
    want: tuple[bytes, ...] = ()
    now_ns: int = 0


def encode_exchange(exchange: Exchange) -> bytes:
    message = member_pb2.MemberExchange(
        ranges=exchange.ranges, news=_news(exchange.news), want=exchange.want, now_ns=exchange.now_ns
    )
    return message.SerializeToString()


def decode_exchange(body: bytes) -> Exchange:
    """A MemberExchange; its records are not yet verified.

    Raises:
        InvalidMessage: reasons `oversize` (bytes, records or accusations), `protobuf`, `want`.
    """
    if len(body) > MAX_EXCHANGE_BYTES:
        raise InvalidMessage("oversize", f"a member exchange of {len(body)} bytes")
    message = member_pb2.MemberExchange()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no member exchange: {error}") from error
    if len(message.want) > MAX_WANT or not all(map(is_peer_id, message.want)):
        raise InvalidMessage("want", "a member exchange wants what are no peer ids, or too many")
    return Exchange(message.ranges, _encoded(message.news), tuple(message.want), message.now_ns)


def _news(news: EncodedNews) -> member_pb2.MemberNews:
    return member_pb2.MemberNews(
        records=[member_pb2.SignedRecord.FromString(each) for each in news.records],
        accusations=[member_pb2.SignedAccusation.FromString(each) for each in news.accusations],
    )


def _encoded(message: member_pb2.MemberNews) -> EncodedNews:
    if max(len(message.records), len(message.accusations)) > MAX_IN_NEWS:
        raise InvalidMessage("oversize", f"member news of more than {MAX_IN_NEWS} records or accusations")
    return EncodedNews(
        tuple(each.SerializeToString(deterministic=True) for each in message.records),
        tuple(each.SerializeToString(deterministic=True) for each in message.accusations),
    )


def is_carrier(url: str) -> bool:
    """Is it `http://HOST:PORT`, of at most 256 characters? An IPv6 address stands in brackets."""
    match = _CARRIER.fullmatch(url) if len(url) <= MAX_TEXT else None
    return match is not None and 0 < int(match[1]) < 65536


def _decode(encoded: bytes) -> tuple[member_pb2.SignedRecord, MemberRecord]:
    if len(encoded) > MAX_RECORD_BYTES:
        raise InvalidMessage("oversize", f"a member record of {len(encoded)} bytes is over {MAX_RECORD_BYTES}")
    signed, body = member_pb2.SignedRecord(), member_pb2.MemberRecord()
    try:
        signed.ParseFromString(encoded)
        body.ParseFromString(signed.record)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no member record: {error}") from error
    texts = (
        *(body.name, body.role, body.status, body.agent_id, body.model),
        *(body.endpoint, body.cluster_id, body.version, body.current_team),
    )
    if (
        not is_peer_id(body.peer_id)
        or len(body.addrs) > MAX_ADDRS
        or len(body.capabilities) > MAX_CAPABILITIES
        or any(len(text) > MAX_TEXT for text in (*texts, *body.addrs, *body.capabilities))
    ):
        raise InvalidMessage("record", "a member record without a peer id, or with a field over its limit")
    if not is_filter(body.beyond) or (body.beyond and body.role != Role.BRIDGE):
        raise InvalidMessage("record", "a member record whose `beyond` is no filter, or which is not a bridge's")
    if body.carrier and not is_carrier(body.carrier):
        raise InvalidMessage("record", "a member record whose `carrier` is no http://HOST:PORT")
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
        current_team=body.current_team,
        beyond=body.beyond,
        carrier=body.carrier,
        signed=encoded,
    )
    return signed, record
