"""Synchronisation of messages on the wire: total decoding, and nothing over a limit reaches the core.

The messages are in `proto/p2pnode/v1/sync.proto`, the exchange in `p2pnode.core.sync`.
"""

from __future__ import annotations

from itertools import pairwise

from google.protobuf.message import DecodeError

from p2pnode.core.message import MAX_MESSAGE_BYTES, MAX_PEER_ID_BYTES, SEQNO_BYTES, MessageId
from p2pnode.core.reconcile import DIGEST_BYTES
from p2pnode.core.reconcile import MAX_MESSAGE_BYTES as MAX_OFFER_BYTES
from p2pnode.core.sync import (
    MAX_MESSAGES_BYTES,
    MAX_WANT,
    MAX_WINDOWS,
    TOPIC_BYTES,
    SyncAnswer,
    SyncRequest,
    Whole,
    Window,
    item_key,
)
from p2pnode.errors import InvalidMessage
from p2pnode.wire.payload import decode_payload
from p2pnode.wire.pb.p2pnode.v1 import sync_pb2 as pb
from p2pnode.wire.pubsub import decode_message
from p2pnode.wire.reconcile import decode_offer, decode_reply, encode_offer, encode_reply

SYNC_PROTOCOL = "/p2pnode/sync/1.0.0"
MAX_ID_BYTES = MAX_PEER_ID_BYTES + SEQNO_BYTES
MAX_REQUEST_BYTES = MAX_OFFER_BYTES + MAX_WANT * (MAX_ID_BYTES + 3) + MAX_WINDOWS * 24 + 64
MAX_ANSWER_BYTES = MAX_OFFER_BYTES + MAX_MESSAGES_BYTES + MAX_WANT * 5 + MAX_WINDOWS * 16 + 64


def message_key(raw: bytes) -> bytes:
    """The key under which a message is compared, by its signed bytes; the signature is not checked.

    Raises:
        InvalidMessage: as `decode_message`; `no-time`: it has no signed time, so it is no item.
    """
    message = decode_message(raw)
    metadata = decode_payload(message.data).metadata
    if metadata is None or not metadata.published_at_ns:
        raise InvalidMessage("no-time", "a message without a signed time")
    return item_key(message.topic, metadata.published_at_ns, message.id)


def encode_request(request: SyncRequest) -> bytes:
    """At most MAX_REQUEST_BYTES when `p2pnode.core.asking` made it."""
    return pb.SyncRequest(
        windows=[pb.SyncWindow(topic=each.topic, floor_ns=each.floor_ns) for each in request.windows],
        upper_ns=request.upper_ns,
        opening=request.opening,
        offer=b"" if request.offer is None else encode_offer(request.offer),
        want=request.want,
    ).SerializeToString()


def decode_request(body: bytes) -> SyncRequest:
    """Take a request apart and check that it is one.

    Raises:
        InvalidMessage: reasons `oversize`, `protobuf`, `windows` (too many, out of order, no topic hash), `want` (too
            many, twice, no message id), `empty` (asks nothing), and those of `decode_offer`.
    """
    if len(body) > MAX_REQUEST_BYTES:
        raise InvalidMessage("oversize", f"{len(body)} bytes of a sync request are over {MAX_REQUEST_BYTES}")
    wire = pb.SyncRequest()
    _parse(wire, body)
    if len(wire.windows) > MAX_WINDOWS:
        raise InvalidMessage("windows", f"{len(wire.windows)} windows in one request; the limit is {MAX_WINDOWS}")
    windows = tuple(Window(each.topic, each.floor_ns) for each in wire.windows)
    if any(len(each.topic) != TOPIC_BYTES for each in windows):
        raise InvalidMessage("windows", f"a topic hash that has not {TOPIC_BYTES} bytes")
    if any(one.topic >= other.topic for one, other in pairwise(windows)):
        raise InvalidMessage("windows", "windows that repeat or descend")
    if len(wire.want) > MAX_WANT or len(set(wire.want)) != len(wire.want):
        raise InvalidMessage("want", f"more than {MAX_WANT} messages wanted at once, or one twice")
    if any(not SEQNO_BYTES < len(each) <= MAX_ID_BYTES for each in wire.want):
        raise InvalidMessage("want", "a message wanted by what is no message id")
    if not wire.offer and not wire.want:
        raise InvalidMessage("empty", "a sync request that asks nothing")
    offer = decode_offer(wire.offer) if wire.offer else None
    return SyncRequest(windows, wire.upper_ns, wire.opening, offer, tuple(map(MessageId, wire.want)))


def encode_answer(answer: SyncAnswer) -> bytes:
    """At most MAX_ANSWER_BYTES when its messages have no more than MAX_MESSAGES_BYTES together."""
    wire = pb.SyncAnswer(
        narrowed=[pb.SyncNarrowed(window=at, floor_ns=floor) for at, floor in answer.narrowed],
        messages=answer.messages,
        handled=answer.handled,
        busy=answer.busy,
    )
    if answer.whole is not None:
        wire.whole.CopyFrom(pb.SyncWhole(count=answer.whole.count, digest=answer.whole.digest))
    elif answer.reply is not None:
        wire.reply = encode_reply(answer.reply)
    return wire.SerializeToString()


def decode_answer(body: bytes) -> SyncAnswer:
    """Take an answer apart and check that it is one; whether it fits the request, `Asking.receive` checks.

    Raises:
        InvalidMessage: reasons `oversize` (all of it, its messages together, or one of them), `protobuf`, `narrowed`
            (out of order, or without a fingerprint of the whole), `fingerprint` (of another length), and those of
            `decode_reply`.
    """
    if len(body) > MAX_ANSWER_BYTES:
        raise InvalidMessage("oversize", f"{len(body)} bytes of a sync answer are over {MAX_ANSWER_BYTES}")
    wire = pb.SyncAnswer()
    _parse(wire, body)
    messages = tuple(wire.messages)
    if sum(map(len, messages)) > MAX_MESSAGES_BYTES or max(map(len, messages), default=0) > MAX_MESSAGE_BYTES:
        raise InvalidMessage("oversize", "messages in a sync answer that are too large, alone or together")
    narrowed = tuple((each.window, each.floor_ns) for each in wire.narrowed)
    if any(one[0] >= other[0] for one, other in pairwise(narrowed)):
        raise InvalidMessage("narrowed", "windows narrowed twice or in descending order")
    compared = wire.WhichOneof("compared")
    if narrowed and compared != "whole":
        raise InvalidMessage("narrowed", "windows narrowed without a fingerprint of the whole")
    whole = None
    if compared == "whole":
        if len(wire.whole.digest) != DIGEST_BYTES:
            raise InvalidMessage("fingerprint", f"a digest of {len(wire.whole.digest)} bytes, not {DIGEST_BYTES}")
        whole = Whole(wire.whole.count, wire.whole.digest)
    reply = decode_reply(wire.reply) if compared == "reply" else None
    return SyncAnswer(reply, whole, narrowed, messages, wire.handled, wire.busy)


def _parse(wire: pb.SyncRequest | pb.SyncAnswer, body: bytes) -> None:
    try:
        wire.ParseFromString(body)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no message of synchronisation: {error}") from error
