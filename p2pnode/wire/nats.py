"""The signed message over NATS: its `data` as the body, what else it is made of in headers.

A plain client reads the body, and the headers that agents know; a node puts the message together again, to the byte.
What a plain client publishes becomes a message here too, signed with the bridges' import key; nothing of the bridge or
its clock is in it, so that two bridges make the same bytes of it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from p2pnode.core.backbeat import BACKBEAT_TOPIC, check_status_claim
from p2pnode.core.council.documents import CLAIMS_TOPIC, STATUS_TOPIC, check_claim, check_status
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC, check_opportunity
from p2pnode.core.message import (
    JSON_TOPICS,
    MAX_KEY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_SIGNATURE_BYTES,
    SEQNO_BYTES,
    SignedMessage,
    format_message_id,
    parse_topic,
)
from p2pnode.core.metadata import MAX_HEADERS, MAX_HEADERS_BYTES, MAX_TIME_NS, Metadata, Payload
from p2pnode.core.peerid import peer_id_bytes, peer_id_text
from p2pnode.core.subjects import Subjects, council_token
from p2pnode.errors import Fault, InvalidMessage
from p2pnode.wire.payload import (
    MEMBER,
    decode_payload,
    encode_envelope,
    encode_json_payload,
    format_time,
    parse_json_object,
)
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import Message
from p2pnode.wire.pubsub import decode_message, seal_message

FROM, SEQNO, TOPIC, SIGNATURE, KEY, RAW = (
    "P2P-From",
    "P2P-Seqno",
    "P2P-Topic",
    "P2P-Signature",
    "P2P-Key",
    "P2P-Message",
)
MESSAGE_ID = "Nats-Msg-Id"
VIA = "nats"
MAX_VALUE_BYTES = 4096
"""Of a header made of a document's member; a longer one is left out."""

_NOT_THE_AGENTS = ("nats-", "p2p-")
"""The server's headers, which command it (`Nats-Rollup` empties a stream), and ours."""

_MEMBERS = {
    "Council-ID": "council_id",
    "Project": "project_name",
    "Repository": "repository",
    "UCXL-Address": "ucxl_address",
}
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_STREAM_BITS = 22
_NS_PER_MS = 1_000_000
_MAX_CONTENT_TYPE = 256
_OCTETS = "application/octet-stream"
_TOLD_FAULTS = 5


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is published at a NATS server.

    Args:
        headers: values are printable, one line each, without blanks at either end.
        body: the message's `data`, byte for byte.
    """

    subject: str
    headers: Mapping[str, str]
    body: bytes


def encode_nats(message: SignedMessage, subjects: Subjects) -> Outgoing | None:
    """A signed message as NATS carries it; None when its topic is not carried.

    Raises:
        InvalidMessage: it cannot be published: reasons `council-id`, `subject`.
    """
    if not subjects.carries(message.topic):
        return None
    payload = decode_payload(message.data)
    subject = subjects.subject_of(message.topic, payload.document)
    if subject is None:
        return None
    headers = dict(_own_headers(message))
    taken = {name.lower() for name in headers}
    for name, text in _known_headers(message.topic, payload):
        value = _line(text)
        if value is not None and len(value.encode()) <= MAX_VALUE_BYTES:
            headers[name] = value
            taken.add(name.lower())
    if payload.metadata is not None:
        room = MAX_HEADERS_BYTES
        for name, text in list(payload.metadata.headers.items())[:MAX_HEADERS]:
            value = _line(text)
            if value is None or not _is_agents(name) or name.lower() in taken:
                continue
            room -= len(name) + len(value.encode())
            if room < 0:
                break
            headers[name] = value
            taken.add(name.lower())
    return Outgoing(subject, headers, message.data)


def _own_headers(message: SignedMessage) -> Iterator[tuple[str, str]]:
    yield FROM, peer_id_text(message.origin)
    yield SEQNO, str(message.number)
    yield TOPIC, message.topic
    yield SIGNATURE, base64.b64encode(message.signature).decode("ascii")
    if message.key:
        yield KEY, base64.b64encode(message.key).decode("ascii")
    yield MESSAGE_ID, format_message_id(message.id)
    parts = (message.origin, message.seqno, message.topic, message.data, message.signature, message.key)
    if _assemble(*parts) != message.raw:  # of another implementation: fields that we do not know, or in another order
        yield RAW, base64.b64encode(message.raw).decode("ascii")


def _known_headers(topic: str, payload: Payload) -> Iterator[tuple[str, object]]:
    """The headers that WHOOSH and CHORUS write and read, unchecked."""
    if payload.document is not None:
        for name, member in _MEMBERS.items():
            yield name, payload.document.get(member)
        if topic == STATUS_TOPIC:
            yield "Status", payload.document.get("status")
    if payload.metadata is not None and 0 < payload.metadata.published_at_ns <= MAX_TIME_NS:
        yield "Published-At", format_time(payload.metadata.published_at_ns)


def _line(text: object) -> str | None:
    """A header's value; None for what is no text, empty, or has no place on one printable line."""
    if not isinstance(text, str):
        return None
    value = text.strip()
    return value if value and value.isprintable() else None


def _is_agents(name: str) -> bool:
    """May an agent have a header of that name?"""
    return _NAME.fullmatch(name) is not None and not name.lower().startswith(_NOT_THE_AGENTS)


def _assemble(origin: bytes, seqno: bytes, topic: str, data: bytes, signature: bytes, key: bytes) -> bytes:
    """The bytes of a message as we, and most others, write them."""
    message = Message(data=data, seqno=seqno, topic=topic, signature=signature)
    setattr(message, "from", origin)  # `from` is a Python keyword
    if key:
        message.key = key
    return message.SerializeToString(deterministic=True)


def decode_nats(headers: Mapping[str, str], body: bytes) -> SignedMessage | None:
    """The signed message that a NATS message carries; None when it is a plain client's (no `P2P-From`).

    Its signature is not checked here.

    Raises:
        InvalidMessage: reason `headers`, naming the one that is wrong, or as `wire.pubsub.decode_message`.
    """
    found: dict[str, str] = {}
    for name, value in headers.items():
        found.setdefault(name.strip().lower(), value.strip())
    if FROM.lower() not in found:
        return None
    if len(body) > MAX_MESSAGE_BYTES:
        raise InvalidMessage("oversize", f"a body of {len(body)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    if RAW.lower() in found:
        message = decode_message(_bytes(found, RAW, MAX_MESSAGE_BYTES))
        if message.data != body:
            raise InvalidMessage("headers", f"the message in {RAW} has other data than the body")
        return message
    try:
        origin = peer_id_bytes(found[FROM.lower()])
        topic = parse_topic(found.get(TOPIC.lower(), ""))
    except InvalidMessage as error:
        raise InvalidMessage("headers", f"{FROM} or {TOPIC}: {error.detail}") from error
    seqno = found.get(SEQNO.lower(), "")
    if len(seqno) > 20 or not seqno.isascii() or not seqno.isdecimal() or int(seqno) >= 1 << 64:
        raise InvalidMessage("headers", f"{SEQNO} is {seqno[:40]!r} instead of a number of 64 bits in decimal")
    number = int(seqno).to_bytes(SEQNO_BYTES, "big")
    signature = _bytes(found, SIGNATURE, MAX_SIGNATURE_BYTES)
    key = _bytes(found, KEY, MAX_KEY_BYTES) if KEY.lower() in found else b""
    return decode_message(_assemble(origin, number, topic, body, signature, key))


def _bytes(found: Mapping[str, str], name: str, limit: int) -> bytes:
    """The bytes of a header in base64 (RFC 4648, section 4).

    Raises:
        InvalidMessage: reason `headers`.
    """
    text = found.get(name.lower(), "")
    if not text:
        raise InvalidMessage("headers", f"{name} is missing or empty")
    if len(text) > (limit + 2) // 3 * 4:
        raise InvalidMessage("headers", f"{name} has {len(text)} characters, over the limit of {limit} bytes")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise InvalidMessage("headers", f"{name} is no base64: {error}") from error


def import_seqno(stamped_ns: int, stream_seq: int) -> int:
    """The number of a plain client's message: `(ms << 22) | (stream sequence mod 2**22)`.

    Unique among those of one stream, unless it takes more than four million in one millisecond.

    Args:
        stamped_ns: when JetStream stored it, wall nanoseconds at the server.
        stream_seq: its place in the stream, from 1.

    Raises:
        InvalidMessage: reason `stamp`; the time has no place in 64 bits (before 1970 or after 2109).
    """
    number = (stamped_ns // _NS_PER_MS) << _STREAM_BITS | stream_seq % (1 << _STREAM_BITS)
    if not 0 <= number < 1 << 64:
        raise InvalidMessage("stamp", f"the time {stamped_ns} ns is before 1970 or after 2109")
    return number


def import_plain(
    subject: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    seqno: int,
    stamped_ns: int,
    origin: bytes,
    sign: Callable[[bytes], bytes],
    subjects: Subjects,
) -> SignedMessage:
    """The message that a bridge makes of a plain client's publication; the same arguments give the same bytes.

    What is refused is what every node would refuse: a deadline in the past, or a word that nobody trusts, is not judged
    here. A member `p2pnode`, of a client that repeats what it read, is taken out.

    Args:
        seqno: see `import_seqno`.
        stamped_ns: when JetStream stored it; its millisecond becomes `published_at`.
        origin: the import key's peer id, in bytes.
        sign: the import key's signature of some bytes.

    Raises:
        InvalidMessage: reasons `subject` (not carried), `oversize`, `headers` (too many), `json`, `council-id`,
            `opportunity`, `claim`, `status`, `backbeat`, `stamp`.
    """
    known = subjects.topic_of(subject)
    if known is None:
        raise InvalidMessage("subject", f"nothing is imported from the subject {subject[:200]!r}")
    topic, council_id = known
    if len(body) > MAX_PAYLOAD_BYTES:
        raise InvalidMessage("oversize", f"a body of {len(body)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
    if not 0 <= stamped_ns <= MAX_TIME_NS or not 0 <= seqno < 1 << 64:
        raise InvalidMessage("stamp", f"the time {stamped_ns} ns or the number {seqno} is out of range")
    document: dict[str, object] | None = None
    try:
        document = parse_json_object(body)
    except ValueError as error:
        if topic.startswith(JSON_TOPICS):
            raise InvalidMessage("json", f"{error}; {topic} carries JSON objects only") from error
    if document is not None and MEMBER in document:
        del document[MEMBER]
        body = _text_of(document)
    metadata = Metadata(
        published_at_ns=stamped_ns // _NS_PER_MS * _NS_PER_MS,
        expires_at_ns=_check(topic, council_id, document) if document is not None else 0,
        headers=_imported_headers(headers),
        via=VIA,
    )
    if document is not None:
        data = encode_json_payload(body, document, metadata)
    else:
        data = encode_envelope(body, _content_type(headers), metadata)
    return seal_message(origin=origin, seqno=seqno, topic=topic, data=data, sign=sign)


def _check(topic: str, council_id: str | None, document: Mapping[str, object]) -> int:
    """When the message expires, in ns since 1970; 0 for never.

    Raises:
        InvalidMessage: see `import_plain`.
    """
    if topic == OPPORTUNITY_TOPIC:
        opportunity = check_opportunity(document)
        if isinstance(opportunity, list):
            raise _refusal("opportunity", opportunity)
        return opportunity.expires_at_ns
    if topic == BACKBEAT_TOPIC and isinstance(beat := check_status_claim(document), list):
        raise _refusal("backbeat", beat)
    if topic not in (CLAIMS_TOPIC, STATUS_TOPIC):
        return 0
    named = council_token(document)
    kind, checked = ("claim", check_claim(document)) if topic == CLAIMS_TOPIC else ("status", check_status(document))
    if isinstance(checked, list):
        raise _refusal(kind, checked)
    if council_id is not None and named != council_id and checked.council_id != _uuid(council_id):
        raise InvalidMessage("council-id", f"the subject names the council {council_id}, the document {named}")
    return 0


def _refusal(reason: str, faults: list[Fault]) -> InvalidMessage:
    more = f"; and {len(faults) - _TOLD_FAULTS} more" if len(faults) > _TOLD_FAULTS else ""
    return InvalidMessage(reason, "; ".join(str(each)[:200] for each in faults[:_TOLD_FAULTS]) + more)


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _text_of(document: Mapping[str, object]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can only escape
        return json.dumps(document, separators=(",", ":")).encode()


def _imported_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """A plain client's headers as metadata, in order of their names; what is no printable line is left out.

    Raises:
        InvalidMessage: reason `headers`; more than a message of ours may have.
    """
    kept: dict[str, str] = {}
    size = 0
    for name, text in sorted(headers.items()):
        value, bare = _line(text), name.strip()
        if value is None or not _is_agents(bare) or bare in kept:
            continue
        kept[bare] = value
        size += len(json.dumps(bare)) + len(json.dumps(value, ensure_ascii=False).encode())
    if len(kept) > MAX_HEADERS or size > MAX_HEADERS_BYTES:
        raise InvalidMessage(
            "headers", f"{len(kept)} headers of {size} bytes; at most {MAX_HEADERS} of {MAX_HEADERS_BYTES} bytes in all"
        )
    return kept


def _content_type(headers: Mapping[str, str]) -> str:
    for name, text in sorted(headers.items()):
        if name.strip().lower() == "content-type" and (value := _line(text)) and len(value) <= _MAX_CONTENT_TYPE:
            return value
    return _OCTETS
