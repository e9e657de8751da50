"""The pubsub Message on the wire: total decoding, and the bytes that are signed.

libp2p specs, pubsub/README.md, "The Message" and "Message Signing".
"""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import DecodeError, EncodeError

from p2pnode.core.message import (
    MAX_KEY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_SIGNATURE_BYTES,
    SEQNO_BYTES,
    SignedMessage,
    Topic,
    Verify,
    parse_topic,
)
from p2pnode.core.peerid import is_peer_id
from p2pnode.errors import InvalidMessage
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import Message

SIGNING_PREFIX = b"libp2p-pubsub:"


def decode_message(raw: bytes) -> SignedMessage:
    """Take one serialized Message apart and check its shape (StrictSign).

    Raises:
        InvalidMessage: reasons `oversize`, `protobuf`, `from`, `seqno`, `unsigned`, `key`, `topic`.
    """
    if len(raw) > MAX_MESSAGE_BYTES:
        raise InvalidMessage("oversize", f"a message of {len(raw)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    message = Message()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no pubsub message: {error}") from error
    # `from` is a Python keyword, so the generated class has no attribute of that name.
    origin: bytes = getattr(message, "from")
    if not is_peer_id(origin):
        raise InvalidMessage("from", "`from` is no peer id")
    if len(message.seqno) != SEQNO_BYTES:
        raise InvalidMessage("seqno", f"seqno has {len(message.seqno)} bytes instead of {SEQNO_BYTES}")
    if not message.signature or len(message.signature) > MAX_SIGNATURE_BYTES:
        raise InvalidMessage("unsigned", "the message is not signed")
    if len(message.key) > MAX_KEY_BYTES:
        raise InvalidMessage("key", f"a key of {len(message.key)} bytes is over the limit of {MAX_KEY_BYTES}")
    if not message.topic or len(message.topic) > 4096:
        raise InvalidMessage("topic", "the message has no topic")
    return SignedMessage(
        origin=origin,
        seqno=message.seqno,
        topic=Topic(message.topic),
        data=message.data,
        signature=message.signature,
        key=message.key,
        raw=raw,
    )


def signing_payload(raw: bytes) -> bytes:
    """What the signature of a serialized Message covers: the prefix and the message without signature and key.

    Unknown fields stay in, as they do in go-libp2p.

    Raises:
        InvalidMessage: reason `protobuf`.
    """
    message = Message()
    try:
        message.ParseFromString(raw)
        message.ClearField("signature")
        message.ClearField("key")
        return SIGNING_PREFIX + message.SerializeToString(deterministic=True)
    except (DecodeError, EncodeError) as error:
        raise InvalidMessage("protobuf", f"no pubsub message: {error}") from error


def seal_message(
    *, origin: bytes, seqno: int, topic: str, data: bytes, sign: Callable[[bytes], bytes], key: bytes = b""
) -> SignedMessage:
    """Build and sign a message.

    Args:
        origin: our peer id, in bytes.
        seqno: 0 to 2**64 - 1.
        sign: our key's signature of some bytes.
        key: our public key as libp2p protobuf, where the peer id does not hold it.

    Raises:
        InvalidMessage: reason `topic` or `oversize`; nothing was signed.
    """
    name = parse_topic(topic)
    number = seqno.to_bytes(SEQNO_BYTES, "big")
    message = Message(data=data, seqno=number, topic=name)
    setattr(message, "from", origin)
    size = message.ByteSize() + 256 + len(key)
    if size > MAX_MESSAGE_BYTES:
        raise InvalidMessage("oversize", f"a message of {size} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    signature = sign(SIGNING_PREFIX + message.SerializeToString(deterministic=True))
    message.signature = signature
    if key:
        message.key = key
    return SignedMessage(
        origin=origin,
        seqno=number,
        topic=name,
        data=data,
        signature=signature,
        key=key,
        raw=message.SerializeToString(deterministic=True),
    )


def message_verify(verifier_for: Callable[[bytes, bytes], Callable[[bytes, bytes], bool]]) -> Verify:
    """A `Verify` from a way to find an origin's key.

    Args:
        verifier_for: `(peer id, key) -> (signed bytes, signature) -> bool`; raises InvalidMessage
            when the key is not the origin's.
    """

    def verify(message: SignedMessage) -> bool:
        try:
            check = verifier_for(message.origin, message.key)
            return check(signing_payload(message.raw), message.signature)
        except InvalidMessage:
            return False

    return verify
