"""Set reconciliation on the wire: total decoding, and nothing out of order or over a limit reaches the core.

The messages are in `proto/p2pnode/v1/reconcile.proto`, the exchange in `p2pnode.core.reconcile`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from google.protobuf.message import DecodeError

from p2pnode.core.reconcile import (
    DIGEST_BYTES,
    END,
    MAX_FINGERPRINT_BYTES,
    MAX_ITEMS,
    MAX_KEY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_RANGES,
    START,
    Fingerprint,
    Item,
    Listing,
    Offer,
    Range,
    Reply,
)
from p2pnode.errors import InvalidMessage
from p2pnode.wire.pb.p2pnode.v1 import reconcile_pb2 as pb


def encode_offer(offer: Offer) -> bytes:
    """The bytes of a ReconcileOffer: at most MAX_MESSAGE_BYTES when `p2pnode.core.reconcile` made it."""
    wire = pb.ReconcileOffer(news=_write_items(offer.news), lacking=offer.lacking)
    _write_ranges(wire, offer.ranges)
    return wire.SerializeToString()


def encode_reply(reply: Reply) -> bytes:
    """The bytes of a ReconcileReply: at most MAX_MESSAGE_BYTES when `p2pnode.core.reconcile` made it."""
    wire = pb.ReconcileReply(news=_write_items(reply.news), lacking=reply.lacking)
    _write_ranges(wire, reply.ranges)
    if reply.answered_below == END:
        wire.complete = True
    else:
        wire.answered_below = reply.answered_below
    return wire.SerializeToString()


def decode_offer(body: bytes) -> Offer:
    """Take an offer apart and check that it is one.

    Raises:
        InvalidMessage: reasons `oversize` (bytes), `protobuf`, `ranges` (too many), `items` (too many), `range`
            (neither digest nor listing, or empty), `order` (ranges or keys that overlap, repeat, descend or lie
            outside their range), `key` (too long), `fingerprint` (wrong length), `empty` (says nothing).
    """
    wire = pb.ReconcileOffer()
    _parse(wire, body)
    offer = Offer(*_read(wire))
    if offer == Offer():
        raise InvalidMessage("empty", "an offer that says nothing")
    return offer


def decode_reply(body: bytes) -> Reply:
    """Take a reply apart and check that it is one; whether it fits the offer, `Reconciliation.receive` checks.

    Raises:
        InvalidMessage: as `decode_offer`; `empty`: it does not say how much of the offer it answers.
    """
    wire = pb.ReconcileReply()
    _parse(wire, body)
    ranges, news, lacking = _read(wire)
    if wire.complete:
        return Reply(ranges, news, lacking)
    if not wire.answered_below:
        raise InvalidMessage("empty", "a reply that does not say how much of the offer it answers")
    return Reply(ranges, news, lacking, _key(wire.answered_below))


def _parse(wire: pb.ReconcileOffer | pb.ReconcileReply, body: bytes) -> None:
    if len(body) > MAX_MESSAGE_BYTES:
        raise InvalidMessage("oversize", f"{len(body)} bytes of reconciliation are over {MAX_MESSAGE_BYTES}")
    try:
        wire.ParseFromString(body)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no message of reconciliation: {error}") from error


def _read(
    wire: pb.ReconcileOffer | pb.ReconcileReply,
) -> tuple[tuple[Range, ...], tuple[Item, ...], tuple[bytes, ...]]:
    if len(wire.ranges) > MAX_RANGES:
        raise InvalidMessage("ranges", f"{len(wire.ranges)} ranges in one message; the limit is {MAX_RANGES}")
    items = len(wire.news) + len(wire.lacking) + sum(len(part.listing.items) for part in wire.ranges)
    if items > MAX_ITEMS:
        raise InvalidMessage("items", f"{items} items in one message; the limit is {MAX_ITEMS}")
    ranges: list[Range] = []
    reached = START
    for part in wire.ranges:
        # Only the last range may have no end, so another after it starts at END and is empty.
        ranges.append(_read_range(part, reached))
        reached = ranges[-1].upper
    news = _read_items(wire.news)
    lacking = tuple(map(_key, wire.lacking))
    _ascending(lacking)
    return tuple(ranges), news, lacking


def _read_range(part: pb.ReconcileRange, reached: bytes) -> Range:
    lower = _key(part.lower) or reached
    upper = _key(part.upper) or END
    if lower < reached:
        raise InvalidMessage("order", "ranges that overlap or descend")
    if lower >= upper:
        raise InvalidMessage("range", "a range that ends where it starts or before")
    match part.WhichOneof("content"):
        case "digest":
            if len(part.digest) != DIGEST_BYTES:
                raise InvalidMessage("fingerprint", f"a digest of {len(part.digest)} bytes, not {DIGEST_BYTES}")
            return Fingerprint(lower, upper, part.count, part.digest)
        case "listing":
            items = _read_items(part.listing.items)
            if items and not lower <= items[0][0] <= items[-1][0] < upper:
                raise InvalidMessage("order", "a listed key outside its range")
            return Listing(lower, upper, items)
        case _:
            raise InvalidMessage("range", "a range with neither digest nor listing")


def _read_items(entries: Sequence[pb.ReconcileItem]) -> tuple[Item, ...]:
    items = tuple((_key(entry.key), entry.fingerprint) for entry in entries)
    _ascending([key for key, _ in items])
    for _, fingerprint in items:
        if len(fingerprint) > MAX_FINGERPRINT_BYTES:
            raise InvalidMessage(
                "fingerprint", f"a fingerprint of {len(fingerprint)} bytes is over {MAX_FINGERPRINT_BYTES}"
            )
    return items


def _key(key: bytes) -> bytes:
    if len(key) > MAX_KEY_BYTES:
        raise InvalidMessage("key", f"a key or bound of {len(key)} bytes is over {MAX_KEY_BYTES}")
    return key


def _ascending(keys: Sequence[bytes]) -> None:
    if any(one >= other for one, other in pairwise(keys)):
        raise InvalidMessage("order", "keys that repeat or descend")


def _write_items(items: Iterable[Item]) -> list[pb.ReconcileItem]:
    return [pb.ReconcileItem(key=key, fingerprint=fingerprint) for key, fingerprint in items]


def _write_ranges(wire: pb.ReconcileOffer | pb.ReconcileReply, ranges: Iterable[Range]) -> None:
    reached = START
    for part in ranges:
        entry = wire.ranges.add(
            lower=b"" if part.lower == reached else part.lower, upper=b"" if part.upper == END else part.upper
        )
        if isinstance(part, Fingerprint):
            entry.count, entry.digest = part.count, part.digest
        else:
            entry.listing.SetInParent()
            entry.listing.items.extend(_write_items(part.items))
        reached = part.upper
