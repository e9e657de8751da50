"""Reconciliation on the wire: any bytes are a message or refused by a named reason, and what is read is in order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.reconcile import (
    END,
    MAX_ITEMS,
    MAX_KEY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_RANGES,
    START,
    Fingerprint,
    Limits,
    Listing,
    Offer,
    Range,
    Reconciliation,
    Reply,
    Snapshot,
    answer,
)
from p2pnode.errors import InvalidMessage
from p2pnode.wire.pb.p2pnode.v1.reconcile_pb2 import (
    ReconcileItem,
    ReconcileListing,
    ReconcileOffer,
    ReconcileRange,
    ReconcileReply,
)
from p2pnode.wire.reconcile import decode_offer, decode_reply, encode_offer, encode_reply
from tests.properties import many

REASONS = {"oversize", "protobuf", "ranges", "items", "range", "order", "key", "fingerprint", "empty"}
DIGEST = bytes(range(16))

keys_ = st.binary(max_size=4) | st.binary(max_size=MAX_KEY_BYTES)
items_ = st.dictionaries(keys_, st.binary(max_size=32), max_size=6).map(lambda items: tuple(sorted(items.items())))


@st.composite
def ranges_(draw: st.DrawFn) -> tuple[Range, ...]:
    cuts = sorted(draw(st.sets(keys_ | st.just(START) | st.just(END), max_size=8)))
    parts: list[Range] = []
    for lower, upper in pairwise(cuts):
        kind = draw(st.sampled_from(["fingerprint", "listing", "gap"]))
        if kind == "fingerprint":
            digest = draw(st.binary(min_size=16, max_size=16))
            parts.append(Fingerprint(lower, upper, draw(st.integers(0, 2**64 - 1)), digest))
        elif kind == "listing":
            parts.append(Listing(lower, upper, tuple(i for i in draw(items_) if lower <= i[0] < upper)))
    return tuple(parts)


lacking_ = st.sets(keys_, max_size=6).map(lambda keys: tuple(sorted(keys)))
offers_ = st.builds(Offer, ranges_(), items_, lacking_).filter(lambda offer: offer != Offer())
replies_ = st.builds(Reply, ranges_(), items_, lacking_, keys_.filter(bool) | st.just(END))


def assert_in_order(message: Offer) -> None:
    reached = START
    for part in message.ranges:
        assert reached <= part.lower < part.upper <= END
        reached = part.upper
        if isinstance(part, Listing):
            keys = [part.lower, *(key for key, _ in part.items), part.upper]
            assert keys[0] <= keys[1] < keys[-1] or not part.items
            assert all(one < other for one, other in pairwise(keys[1:]))
        else:
            assert len(part.digest) == 16
    for told in ([key for key, _ in message.news], list(message.lacking)):
        assert sorted(set(told)) == told


def taken_or_refused(body: bytes) -> None:
    for decode in (decode_offer, decode_reply):
        try:
            message = decode(body)
        except InvalidMessage as error:
            assert error.reason in REASONS  # noqa: PT017
        else:
            assert_in_order(message)


@many
@given(offers_)
def test_an_offer_is_read_as_it_was_written(offer: Offer) -> None:
    assert decode_offer(encode_offer(offer)) == offer


@many
@given(replies_)
def test_a_reply_is_read_as_it_was_written(reply: Reply) -> None:
    assert decode_reply(encode_reply(reply)) == reply


@many
@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    taken_or_refused(body)


@many
@given(replies_, st.data())
def test_a_message_changed_anywhere_is_in_order_or_refused(reply: Reply, data: st.DataObject) -> None:
    body = bytearray(encode_reply(reply))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    taken_or_refused(bytes(body))


def test_ranges_side_by_side_name_each_bound_once() -> None:
    whole = Offer((Fingerprint(START, b"m" * 40, 3, DIGEST), Listing(b"m" * 40, END, ())))
    apart = Offer((Fingerprint(START, b"m" * 40, 3, DIGEST), Listing(b"m" * 39 + b"n", END, ())))
    assert len(encode_offer(apart)) == len(encode_offer(whole)) + 42


def test_the_largest_items_and_bounds_stay_within_the_limit() -> None:
    """The core's estimate of a message's size, which counts bytes without knowing protobuf, is never too low."""
    keys = [b"%064d" % number + b"k" * 64 for number in range(2_000)]
    own = Snapshot((key, b"f" * 32) for key in keys)
    for limits in (Limits(), Limits(list_items=MAX_ITEMS), Limits(branching=MAX_RANGES, list_items=1)):
        offer = Reconciliation(own, limits=limits, differs=True).next_offer()
        assert offer is not None
        asked = Offer((Listing(START, END, ()),)), Offer((Fingerprint(START, END, 1, DIGEST),))
        bodies = [encode_offer(offer), *(encode_reply(answer(own, each, limits).reply) for each in asked)]
        assert max(map(len, bodies)) <= MAX_MESSAGE_BYTES


# -- refused ------------------------------------------------------------------------------------------


def print_(lower: bytes = b"", upper: bytes = b"", digest: bytes = DIGEST) -> ReconcileRange:
    return ReconcileRange(lower=lower, upper=upper, count=1, digest=digest)


def listing(*keys: bytes, lower: bytes = b"", upper: bytes = b"", fingerprint: bytes = b"f") -> ReconcileRange:
    items = [ReconcileItem(key=key, fingerprint=fingerprint) for key in keys]
    return ReconcileRange(lower=lower, upper=upper, listing=ReconcileListing(items=items))


LONG = b"k" * (MAX_KEY_BYTES + 1)
FEW_BYTES = ReconcileItem(key=b"a")

FAULTS: dict[str, tuple[str, ReconcileOffer]] = {
    "overlap": ("order", ReconcileOffer(ranges=[print_(b"a", b"c"), print_(b"b", b"d")])),
    "descending": ("order", ReconcileOffer(ranges=[print_(b"c", b"d"), print_(b"a", b"b")])),
    "after the end": ("order", ReconcileOffer(ranges=[print_(b"a"), print_(b"b", b"c")])),
    "twice to the end": ("range", ReconcileOffer(ranges=[print_(), print_()])),
    "empty range": ("range", ReconcileOffer(ranges=[print_(b"b", b"b")])),
    "inverted range": ("range", ReconcileOffer(ranges=[print_(b"c", b"b")])),
    "ends before its start": ("range", ReconcileOffer(ranges=[print_(b"a", b"c"), print_(b"", b"b")])),
    "no content": ("range", ReconcileOffer(ranges=[ReconcileRange(lower=b"a", upper=b"b", count=1)])),
    "digest missing": ("fingerprint", ReconcileOffer(ranges=[print_(digest=b"")])),
    "digest short": ("fingerprint", ReconcileOffer(ranges=[print_(digest=DIGEST[1:])])),
    "digest long": ("fingerprint", ReconcileOffer(ranges=[print_(digest=DIGEST * 2)])),
    "lower long": ("key", ReconcileOffer(ranges=[print_(lower=LONG)])),
    "upper long": ("key", ReconcileOffer(ranges=[print_(upper=LONG)])),
    "listed key long": ("key", ReconcileOffer(ranges=[listing(LONG)])),
    "listed twice": ("order", ReconcileOffer(ranges=[listing(b"a", b"a")])),
    "listed descending": ("order", ReconcileOffer(ranges=[listing(b"b", b"a")])),
    "listed below": ("order", ReconcileOffer(ranges=[listing(b"a", b"c", lower=b"b")])),
    "listed above": ("order", ReconcileOffer(ranges=[listing(b"a", b"c", upper=b"c")])),
    "listed fingerprint": ("fingerprint", ReconcileOffer(ranges=[listing(b"a", fingerprint=b"f" * 33)])),
    "news twice": ("order", ReconcileOffer(news=[FEW_BYTES, FEW_BYTES])),
    "news key": ("key", ReconcileOffer(news=[ReconcileItem(key=LONG)])),
    "news fingerprint": ("fingerprint", ReconcileOffer(news=[ReconcileItem(fingerprint=b"f" * 33)])),
    "lacking twice": ("order", ReconcileOffer(lacking=[b"a", b"a"])),
    "lacking key": ("key", ReconcileOffer(lacking=[LONG])),
    "too many ranges": ("ranges", ReconcileOffer(ranges=[print_()] * (MAX_RANGES + 1))),
    "too many items": (
        "items",
        ReconcileOffer(
            ranges=[listing(*(n.to_bytes(2, "big") for n in range(MAX_ITEMS - 1)))], news=[FEW_BYTES], lacking=[b"z"]
        ),
    ),
}


def reason(decode: Callable[[bytes], Offer], body: bytes) -> str:
    with pytest.raises(InvalidMessage) as caught:
        decode(body)
    return caught.value.reason


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_out_of_order_or_over_a_limit_is_refused_by_name(fault: str) -> None:
    expected, wire = FAULTS[fault]
    body = wire.SerializeToString()
    assert reason(decode_offer, body) == expected
    assert reason(decode_reply, body + ReconcileReply(complete=True).SerializeToString()) == expected


def test_a_message_at_every_limit_is_taken() -> None:
    keys = [n.to_bytes(2, "big") for n in range(MAX_ITEMS)]
    assert len(decode_offer(ReconcileOffer(ranges=[listing(*keys)]).SerializeToString()).ranges) == 1
    cuts = [*keys[:MAX_RANGES], b""]
    ranges = [print_(lower, upper) for lower, upper in pairwise(cuts)]
    assert len(decode_offer(ReconcileOffer(ranges=ranges).SerializeToString()).ranges) == MAX_RANGES
    edge = ReconcileItem(key=b"k" * MAX_KEY_BYTES, fingerprint=b"f" * 32)
    assert len(decode_offer(ReconcileOffer(news=[edge]).SerializeToString()).news) == 1


@pytest.mark.parametrize("decode", [decode_offer, decode_reply])
def test_bytes_over_the_limit_are_refused_unread(decode: Callable[[bytes], Offer]) -> None:
    assert reason(decode, bytes(MAX_MESSAGE_BYTES)) == "protobuf"
    assert reason(decode, bytes(MAX_MESSAGE_BYTES + 1)) == "oversize"


def test_no_bytes_at_all_are_neither_an_offer_nor_the_answer_that_all_is_the_same() -> None:
    assert reason(decode_offer, b"") == "empty"
    assert reason(decode_reply, b"") == "empty"
    assert reason(decode_reply, ReconcileReply(complete=False).SerializeToString()) == "empty"
    assert reason(decode_reply, ReconcileReply(answered_below=b"").SerializeToString()) == "empty"
    assert reason(decode_reply, ReconcileReply(answered_below=LONG).SerializeToString()) == "key"
    assert decode_reply(ReconcileReply(complete=True).SerializeToString()) == Reply()
