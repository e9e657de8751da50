"""Metadata into and out of a message's data: one more JSON member, or an envelope.

A JSON object travels as that very JSON with a last member `"p2pnode"`, so that a plain
agent reads it; anything else in a `p2pnode.v1.Envelope` (architecture, decision 1).
Nanosecond times and sequence numbers are written as text in JSON: they do not fit a
double.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError

from p2pnode.core.metadata import MAX_TIME_NS, METADATA_VERSION, Metadata, Payload
from p2pnode.errors import Fault, InvalidRequest
from p2pnode.wire.pb.p2pnode.v1 import envelope_pb2

MEMBER = "p2pnode"
_MAGIC = 0x316E_6E70_3270_21FF
_MAGIC_PREFIX = b"\x09" + _MAGIC.to_bytes(8, "little")
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|z|[+-]\d\d:\d\d)", re.ASCII)
REMEMBERED_BYTES = 16 * 1024
_SPACE = b" \t\r\n"
_MAX_DEPTH = 128
"""Far below where Python's own JSON writer gives up, so that what was read can be written again."""


def format_time(ns: int) -> str:
    """RFC 3339 with nanoseconds, UTC: `2026-11-23T09:00:00.000000000Z`."""
    seconds, fraction = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 UTC of an RFC 3339 time.

    Raises:
        ValueError: it is none, or it lies before 1970 or after 9999, UTC.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 time like 2026-11-23T09:00:00Z")
    day, clock, fraction, zone = match.groups()
    moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    seconds = int(moment.timestamp())
    ns = seconds * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))
    if not 0 <= ns <= MAX_TIME_NS:
        raise ValueError("a time before 1970 or after 9999")
    return ns


def parse_json(data: bytes) -> Any:
    """The JSON value in `data`, which can be written as JSON again.

    Raises:
        ValueError: not UTF-8, not JSON (RFC 8259: no NaN, no Infinity), a number that no double
            holds, or nested more than 128 deep.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if data.count(b"[") + data.count(b"{") > _MAX_DEPTH and _deeper_than(value, _MAX_DEPTH):
        raise ValueError("nested too deeply")
    return value


def parse_json_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        ValueError: as `parse_json`, or no object.
    """
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"not JSON: {name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is over the range of a double")
    return value


def _deeper_than(value: object, depth: int) -> bool:
    level: list[Any] = [value]
    for _ in range(depth):
        level = [
            child
            for outer in level
            for child in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(child, (dict, list))
        ]
    return bool(level)


def encode_json_payload(body: bytes, document: Mapping[str, object], metadata: Metadata) -> bytes:
    """The agent's JSON text with our metadata as its last member; every other byte stays as it was.

    Args:
        body: the JSON text of `document`, an object.

    Raises:
        InvalidRequest: the object already has a member `p2pnode`.
    """
    if MEMBER in document:
        raise InvalidRequest(
            "the payload cannot be published",
            [Fault(MEMBER, "this member name is reserved for p2pnode's metadata; rename it")],
        )
    text = body.rstrip(_SPACE)
    member = json.dumps({MEMBER: _metadata_to_json(metadata)}, separators=(",", ":"), ensure_ascii=False)
    comma = b"," if document else b""
    return text[:-1].rstrip(_SPACE) + comma + member[1:].encode()


def encode_envelope(body: bytes, content_type: str, metadata: Metadata) -> bytes:
    """Any bytes, with our metadata around them."""
    envelope = envelope_pb2.Envelope(
        magic=_MAGIC,
        content_type=content_type,
        payload=body,
        metadata=envelope_pb2.Metadata(
            v=METADATA_VERSION,
            published_at_ns=metadata.published_at_ns,
            expires_at_ns=metadata.expires_at_ns,
            prev=metadata.prev,
            headers=dict(metadata.headers),
            via=metadata.via,
            traceparent=metadata.traceparent,
        ),
    )
    return envelope.SerializeToString(deterministic=True)


def decode_payload(data: bytes) -> Payload:
    """Take a message's data apart; total: what is neither ours nor JSON is a stock peer's payload.

    A node asks several times about a message that just came, so the last small ones are remembered: nobody may change
    the document.
    """
    return _decode_small(data) if len(data) <= REMEMBERED_BYTES else _decode(data)


@lru_cache(maxsize=32)
def _decode_small(data: bytes) -> Payload:
    return _decode(data)


def _decode(data: bytes) -> Payload:
    if data.startswith(_MAGIC_PREFIX):
        envelope = envelope_pb2.Envelope()
        try:
            envelope.ParseFromString(data)
        except DecodeError:
            return Payload(body=data, content_type="", metadata=None)
        found = envelope.metadata
        return Payload(
            body=envelope.payload,
            content_type=envelope.content_type,
            metadata=Metadata(
                published_at_ns=max(found.published_at_ns, 0),
                expires_at_ns=max(found.expires_at_ns, 0),
                prev=found.prev,
                headers=dict(found.headers),
                via=found.via,
                traceparent=found.traceparent,
            ),
        )
    if data.lstrip(_SPACE)[:1] == b"{":
        try:
            document = parse_json_object(data)
        except ValueError:
            return Payload(body=data, content_type="", metadata=None)
        metadata = _metadata_from_json(document.get(MEMBER))
        if metadata is not None:
            del document[MEMBER]
        return Payload(body=data, content_type="application/json", metadata=metadata, document=document)
    return Payload(body=data, content_type="", metadata=None)


def _metadata_to_json(metadata: Metadata) -> dict[str, object]:
    member: dict[str, object] = {"v": METADATA_VERSION, "published_at": format_time(metadata.published_at_ns)}
    if metadata.expires_at_ns:
        member["expires_at"] = format_time(metadata.expires_at_ns)
    if metadata.prev:
        member["prev"] = str(metadata.prev)
    if metadata.headers:
        member["headers"] = dict(metadata.headers)
    if metadata.via:
        member["via"] = metadata.via
    if metadata.traceparent:
        member["traceparent"] = metadata.traceparent
    return member


def _metadata_from_json(member: object) -> Metadata | None:
    """Metadata of a JSON member; None when it is not of our making.

    A newer version is read as far as it is understood; a wrong type makes the whole
    member a stranger's, which costs nobody anything.
    """
    if not isinstance(member, dict) or not isinstance(member.get("v"), int):
        return None
    headers = member.get("headers", {})
    prev = member.get("prev", "0")
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        return None
    if not isinstance(prev, str) or not prev.isascii() or not prev.isdecimal() or len(prev) > 20:
        return None
    via, traceparent = member.get("via", ""), member.get("traceparent", "")
    if not isinstance(via, str) or not isinstance(traceparent, str):
        return None
    try:
        published = parse_time(str(member["published_at"]))
        expires = parse_time(str(member["expires_at"])) if "expires_at" in member else 0
    except (KeyError, ValueError, OverflowError):
        return None
    return Metadata(published, expires, int(prev), headers, via, traceparent)
