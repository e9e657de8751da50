"""What p2pnode adds to a payload: signed times, the origin's previous seqno, headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

METADATA_VERSION = 1
RELAY_AGE_SECONDS = 60.0
"""Gossip forwards and answers IWANT only below this signed age (architecture, decision 3)."""

FUTURE_ALLOWANCE_SECONDS = 120.0
"""How far ahead of our wall clock a signed time may be before the message is ignored."""

MAX_TIME_NS = 253_402_300_799_999_999_999
"""The last nanosecond that RFC 3339 can write: the end of the year 9999, UTC."""

MAX_HEADERS_BYTES = 8 * 1024
MAX_HEADERS = 64


@dataclass(frozen=True, slots=True)
class Metadata:
    """The signed metadata of one message.

    Args:
        published_at_ns: wall time at the origin, nanoseconds since 1970 UTC; 0 when not given.
        expires_at_ns: after this it is of no use; 0 for never.
        prev: the origin's previous seqno on this topic; 0 when unknown.
        headers: text to text, at most 64 entries and 8 KiB.
        via: the bridge that brought it; empty when it was born here.
        traceparent: W3C trace context; empty when absent.
    """

    published_at_ns: int = 0
    expires_at_ns: int = 0
    prev: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    via: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Payload:
    """A message's data, taken apart.

    Args:
        body: what the agent published; for a JSON object the whole text, our member included.
        content_type: `application/json` for JSON objects; from the envelope; empty for a stock peer's bytes.
        metadata: None when a stock peer published it.
        document: the JSON object without our member, when `body` is one.
    """

    body: bytes
    content_type: str
    metadata: Metadata | None
    document: Mapping[str, object] | None = None
