"""The codec of synchronisation: what it writes it reads, and it reads nothing else."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.core.message import MAX_MESSAGE_BYTES, MessageId
from p2pnode.core.metadata import Metadata
from p2pnode.core.reconcile import END, START, Fingerprint, Offer, Reply
from p2pnode.core.sync import (
    MAX_MESSAGES_BYTES,
    MAX_TIME_NS,
    MAX_WANT,
    MAX_WINDOWS,
    SyncAnswer,
    SyncRequest,
    Whole,
    Window,
    item_key,
)
from p2pnode.errors import InvalidMessage
from p2pnode.identity import Identity
from p2pnode.wire.payload import encode_envelope
from p2pnode.wire.pb.p2pnode.v1 import sync_pb2 as pb
from p2pnode.wire.pubsub import seal_message
from p2pnode.wire.sync import (
    MAX_ANSWER_BYTES,
    MAX_ID_BYTES,
    MAX_REQUEST_BYTES,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    message_key,
)
from tests.properties import many

WHOLE = pb.SyncWhole(digest=bytes(16))
OFFER = Offer((Fingerprint(START, END, 3, bytes(16)),))
times = st.integers(0, MAX_TIME_NS)
ids = st.binary(min_size=9, max_size=MAX_ID_BYTES).map(MessageId)
windows = st.dictionaries(st.binary(min_size=8, max_size=8), times, max_size=5).map(
    lambda each: tuple(Window(topic, floor) for topic, floor in sorted(each.items()))
)
wants = st.lists(ids, max_size=5, unique=True).map(tuple)
requests = st.builds(SyncRequest, windows, times, st.booleans(), st.just(OFFER), wants)
narrowings = st.dictionaries(st.integers(0, MAX_WINDOWS), times, max_size=4).map(
    lambda each: tuple(sorted(each.items()))
)
messages = st.lists(st.binary(max_size=200), max_size=4).map(tuple)
answers = st.one_of(
    st.builds(SyncAnswer, reply=st.none() | st.just(Reply()), messages=messages, handled=st.integers(0, MAX_WANT)),
    st.builds(SyncAnswer, whole=st.builds(Whole, st.integers(0, 2**63), st.binary(min_size=16, max_size=16)),
              narrowed=narrowings, messages=messages),
    st.just(SyncAnswer(busy=True)),
)  # fmt: skip


@given(requests)
@settings(many)
def test_a_request_survives_the_wire(request: SyncRequest) -> None:
    assert decode_request(encode_request(request)) == request


@given(answers)
@settings(many)
def test_an_answer_survives_the_wire(answer: SyncAnswer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


@given(st.binary(max_size=300))
@settings(many)
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    for decode in (decode_request, decode_answer, message_key):
        with suppress(InvalidMessage):
            decode(body)


def test_the_largest_messages_fit_their_bounds() -> None:
    request = SyncRequest(
        tuple(Window(number.to_bytes(8, "big"), MAX_TIME_NS) for number in range(MAX_WINDOWS)),
        MAX_TIME_NS,
        True,
        OFFER,
        tuple(MessageId(number.to_bytes(MAX_ID_BYTES, "big")) for number in range(MAX_WANT)),
    )
    assert len(encode_request(request)) < MAX_REQUEST_BYTES - 60 * 1024
    answer = SyncAnswer(
        whole=Whole(2**63, bytes(16)),
        narrowed=tuple((number, MAX_TIME_NS) for number in range(MAX_WINDOWS)),
        messages=(bytes(MAX_MESSAGES_BYTES // MAX_WANT),) * MAX_WANT,
        handled=MAX_WANT,
    )
    assert len(encode_answer(answer)) < MAX_ANSWER_BYTES - 60 * 1024
    assert decode_answer(encode_answer(answer)) == answer


def wire(*windows: tuple[bytes, int], want: tuple[bytes, ...] = (), offer: bool = True) -> bytes:
    offered = encode_request(SyncRequest(offer=OFFER))
    request = pb.SyncRequest(
        windows=[pb.SyncWindow(topic=topic, floor_ns=floor) for topic, floor in windows], want=want
    )
    if offer:
        request.offer = pb.SyncRequest.FromString(offered).offer
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (bytes(MAX_REQUEST_BYTES + 1), "oversize"),
        (b"\xff\xff", "protobuf"),
        (wire((b"7 bytes", 0)), "windows"),
        (wire((b"topic--b", 0), (b"topic--a", 0)), "windows"),
        (wire((b"topic--a", 0), (b"topic--a", 0)), "windows"),
        (wire(*((number.to_bytes(8, "big"), 0) for number in range(MAX_WINDOWS + 1))), "windows"),
        (wire(want=(b"sequence",)), "want"),
        (wire(want=(bytes(MAX_ID_BYTES + 1),)), "want"),
        (wire(want=(bytes(46), bytes(46))), "want"),
        (wire(want=tuple(number.to_bytes(9, "big") for number in range(MAX_WANT + 1))), "want"),
        (wire(offer=False), "empty"),
        (b"", "empty"),
        (pb.SyncRequest(offer=b"\xff").SerializeToString(), "protobuf"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage) as raised:
        decode_request(body)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (bytes(MAX_ANSWER_BYTES + 1), "oversize"),
        (pb.SyncAnswer(messages=[bytes(MAX_MESSAGE_BYTES + 1)]).SerializeToString(), "oversize"),
        (pb.SyncAnswer(messages=[bytes(MAX_MESSAGE_BYTES)] * 4).SerializeToString(), "oversize"),
        (b"\xff\xff", "protobuf"),
        (pb.SyncAnswer(narrowed=[pb.SyncNarrowed()]).SerializeToString(), "narrowed"),
        (pb.SyncAnswer(narrowed=[pb.SyncNarrowed()] * 2, whole=WHOLE).SerializeToString(), "narrowed"),
        (pb.SyncAnswer(whole=pb.SyncWhole(digest=bytes(15))).SerializeToString(), "fingerprint"),
        (pb.SyncAnswer(reply=b"").SerializeToString(), "empty"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage) as raised:
        decode_answer(body)
    assert raised.value.reason == reason


def sealed(data: bytes) -> bytes:
    me = Identity(bytes(31) + b"\x01")
    return seal_message(origin=me.peer_id_bytes, seqno=7, topic="chat", data=data, sign=me.sign).raw


def test_the_key_of_a_message_is_its_topic_signed_time_and_id() -> None:
    me = Identity(bytes(31) + b"\x01")
    raw = sealed(encode_envelope(b"hello", "text/plain", Metadata(published_at_ns=1234)))
    assert message_key(raw) == item_key("chat", 1234, MessageId(me.peer_id_bytes + (7).to_bytes(8, "big")))


def test_a_message_without_a_signed_time_has_no_key() -> None:
    for data in (b"as a stock peer publishes", encode_envelope(b"hello", "text/plain", Metadata())):
        with pytest.raises(InvalidMessage) as raised:
            message_key(sealed(data))
        assert raised.value.reason == "no-time"
