"""The signed pubsub message: the unit that is gossiped, stored, synchronised and carried.

Wire form and signing: libp2p specs, `pubsub/README.md`, sections "The Message" and
"Message Signing". Under StrictSign a message carries `from`, `seqno` and `signature`,
and its id is `from || seqno`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NewType

from p2pnode.core.peerid import peer_id_bytes, peer_id_text
from p2pnode.errors import InvalidMessage

MessageId = NewType("MessageId", bytes)
"""`from || seqno`: the origin's peer id bytes, then 8 bytes big-endian."""

Topic = NewType("Topic", str)

MAX_PAYLOAD_BYTES = 256 * 1024
"""What an agent may publish (architecture, decision 1)."""

MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + 16 * 1024
"""A payload with our metadata (headers at most 8 KiB), ids, key and signature around it."""

JSON_TOPICS = ("councils.", "backbeat.status")
"""Topics that start so carry JSON objects only."""

SEQNO_BYTES = 8
MAX_PEER_ID_BYTES = 64
MAX_TOPIC_BYTES = 200
MAX_KEY_BYTES = 1024
MAX_SIGNATURE_BYTES = 1024

_TOPIC = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_./:-]*")


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """One pubsub message, exactly as its origin signed it.

    Args:
        origin: the origin's peer id, in bytes (a multihash).
        seqno: 8 bytes, big-endian.
        topic: the topic's name.
        data: the signed payload.
        signature: over `"libp2p-pubsub:"` and the message without `signature` and `key`.
        key: the origin's public key as libp2p protobuf; empty when the peer id holds it.
        raw: the message's own protobuf bytes; what we forward, store and carry.
    """

    origin: bytes
    seqno: bytes
    topic: Topic
    data: bytes
    signature: bytes
    key: bytes
    raw: bytes

    @property
    def id(self) -> MessageId:
        return MessageId(self.origin + self.seqno)

    @property
    def number(self) -> int:
        """`seqno` as an unsigned integer."""
        return int.from_bytes(self.seqno, "big")


@dataclass(frozen=True, slots=True)
class Accept:
    """Store it, deliver it, and forward it unless it is too old for gossip.

    Args:
        relay: False for a message past the gossip age: stored and delivered, not forwarded.
    """

    relay: bool = True


@dataclass(frozen=True, slots=True)
class Ignore:
    """Not for us, or not now; whoever forwarded it did nothing wrong.

    Args:
        why: a short fixed word, counted by it.
    """

    why: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Every node would always refuse these bytes; whoever forwarded them pays with score.

    Args:
        why: a short fixed word, counted by it.
    """

    why: str


Verdict = Accept | Ignore | Reject

Verify = Callable[[SignedMessage], bool]
"""True when the signature is the origin's. Injected: `core` holds no keys."""


def parse_topic(name: str) -> Topic:
    """Check a topic name: 1 to 200 bytes of letters, digits and `_ . - / :`, not starting with `.`, `/` or `:`.

    Raises:
        InvalidMessage: reason `topic`, with what is wrong.
    """
    if not name:
        raise InvalidMessage("topic", "a topic name must not be empty")
    if len(name) > MAX_TOPIC_BYTES:
        raise InvalidMessage("topic", f"a topic name has at most {MAX_TOPIC_BYTES} bytes, this one {len(name)}")
    if not _TOPIC.fullmatch(name):
        raise InvalidMessage(
            "topic",
            f"{name!r} is no topic name: use letters, digits and _ . - / : only, and start with a letter or digit",
        )
    return Topic(name)


def format_message_id(message_id: bytes) -> str:
    """A message id for people: `<peer id>-<seqno in decimal>`.

    Raises:
        InvalidMessage: the bytes before the last 8 are no peer id.
    """
    seqno = int.from_bytes(message_id[-SEQNO_BYTES:], "big")
    return f"{peer_id_text(message_id[:-SEQNO_BYTES])}-{seqno}"


def parse_message_id(text: str) -> MessageId:
    """The inverse of `format_message_id`.

    Raises:
        InvalidMessage: reason `message-id`, saying what one looks like.
    """
    origin, _, seqno = text.partition("-")
    if len(seqno) > 20 or not seqno.isascii() or not seqno.isdecimal() or int(seqno) >= 1 << 64:
        raise InvalidMessage("message-id", f"{text[:120]!r} is no message id like 12D3KooW…-1763899200000000000")
    return MessageId(peer_id_bytes(origin) + int(seqno).to_bytes(SEQNO_BYTES, "big"))
