"""Two nodes compare the messages they hold, and each learns what it lacks and pulls it.

An item's key is topic, signed time and message id, its fingerprint a digest of the signed bytes; so a topic, and its
messages from one time to another, are ranges of keys. One exchange compares all topics at once, by
`p2pnode.core.reconcile`: each within a *window* from the later of the two horizons to a time that the asker chooses.
The asker proposes windows from its own horizons; where the answerer's are later, or it keeps no such topic, it says so
with its first answer, and with the fingerprint of all it has in the windows so narrowed: if that is the same, that was
all. Horizons are never remembered from one exchange to the next, so a node that lost its store gets everything again.

Both sides pull, nobody pushes: a message comes because it was asked for, by an id that was offered with a digest, so
what to check it against is known, and the receiver alone decides how much it takes and when. The asker pulls what it
finds as it goes. The answerer learns by the asker's offers what it lacks (`Compared.lacking`), and pulls that by an
exchange of its own that compares nothing. The alternatives: pushing would make each side take what it did not ask for;
a mere hint that something is lacking would cost the comparison twice.

The answerer keeps nothing between requests. What an exchange may cost the asker is in `p2pnode.core.asking`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from p2pnode.core.itemset import BlockSet, view
from p2pnode.core.message import MessageId
from p2pnode.core.reconcile import END, START, Limits, Offer, Reply, answer
from p2pnode.errors import InvalidMessage

TOPIC_BYTES = 8
TIME_BYTES = 8
DIGEST_BYTES = 16
MAX_TIME_NS = (1 << 64) - 1
NOT_KEPT: Final = 0
"""In place of a floor: the answerer does not keep the topic."""

SETTLE_SECONDS = 3.0
"""What was published less than that long ago is left to gossip, which may still be bringing it."""

COMPARISON: Final = Limits(branching=8, list_items=4)
"""Items are large, some 90 bytes, ranges some 45: with 100 of 100,000 missing this took 1,070 bytes for each in 5 round
trips; 16 and 16 took 1,540 in 7, 4 and 2 took 970 in 7."""

MAX_WANT = 1024
"""Ids in one request."""

MAX_WINDOWS = 1024
MAX_MESSAGES_BYTES = 1024 * 1024
"""Of the messages in one answer."""


def topic_hash(topic: str) -> bytes:
    """8 bytes of SHA-256: 2^-64 for two topics to share it."""
    return sha256(topic.encode()).digest()[:TOPIC_BYTES]


def item_key(topic: str, published_at_ns: int, message_id: MessageId) -> bytes:
    """The key of a message that has a signed time."""
    return topic_hash(topic) + min(published_at_ns, MAX_TIME_NS).to_bytes(TIME_BYTES, "big") + message_id


def id_of_key(key: bytes) -> MessageId:
    return MessageId(key[TOPIC_BYTES + TIME_BYTES :])


def time_of_key(key: bytes) -> int:
    """Nanoseconds since 1970."""
    return int.from_bytes(key[TOPIC_BYTES : TOPIC_BYTES + TIME_BYTES], "big")


def message_digest(raw: bytes) -> bytes:
    """The fingerprint of a message by its signed bytes."""
    return sha256(raw).digest()[:DIGEST_BYTES]


@dataclass(frozen=True, slots=True)
class Holding:
    """What a node keeps of a topic.

    Args:
        items: of messages with a signed time that did not expire.
        horizon_ns: nothing older is kept or taken.
    """

    items: BlockSet
    horizon_ns: int


Holdings = Mapping[bytes, Holding]
"""By topic hash."""


@dataclass(frozen=True, slots=True)
class Window:
    """What is compared of a topic: from `floor_ns` on."""

    topic: bytes
    floor_ns: int


@dataclass(frozen=True, slots=True)
class Whole:
    """Count and digest of all that the answerer has in narrowed windows."""

    count: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """What the asker sends.

    Args:
        windows: in ascending order of topic.
        upper_ns: their common upper bound, exclusive.
        opening: this is the first offer.
        offer: None when only messages are asked for.
        want: at most MAX_WANT.
    """

    windows: tuple[Window, ...] = ()
    upper_ns: int = 0
    opening: bool = False
    offer: Offer | None = None
    want: tuple[MessageId, ...] = ()


@dataclass(frozen=True, slots=True)
class SyncAnswer:
    """What comes back.

    Args:
        reply: to the offer; or `whole` instead, with `narrowed`.
        narrowed: `(position of the window, floor)`; NOT_KEPT as a floor.
        messages: signed bytes, in the order in which they were wanted.
        handled: how many of the ids wanted are dealt with.
        busy: nothing was done.
    """

    reply: Reply | None = None
    whole: Whole | None = None
    narrowed: tuple[tuple[int, int], ...] = ()
    messages: tuple[bytes, ...] = ()
    handled: int = 0
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two different messages under one id, both signed by its origin, or one node's word for it.

    Args:
        key: theirs.
        ours, theirs: digests of the signed bytes.
    """

    key: bytes
    ours: bytes
    theirs: bytes


@dataclass(frozen=True, slots=True)
class Compared:
    """The answerer's part of a comparison.

    Args:
        answer: without messages.
        lacking: keys that the asker has and we lack, with the asker's digest.
        conflicts: keys that both have, with other bytes.
        given: how many the asker was told of, or is known to lack.
    """

    answer: SyncAnswer
    lacking: dict[bytes, bytes]
    conflicts: tuple[Conflict, ...]
    given: int


def compare(holdings: Holdings, request: SyncRequest, limits: Limits = COMPARISON) -> Compared:
    """Answer the offer of a request.

    Raises:
        InvalidMessage: reason `unasked`: the offer lists what lies in none of its windows.
    """
    windows = request.windows
    if request.opening and (narrowed := tuple(_narrowed(holdings, windows))):
        mine = items_within(holdings, narrow(windows, narrowed), request.upper_ns).fingerprint(START, END)
        whole = Whole(mine.count, mine.digest)
        return Compared(SyncAnswer(whole=whole, narrowed=narrowed), {}, (), 0)
    own = items_within(holdings, windows, request.upper_ns)
    found = answer(own, request.offer or Offer(), limits)
    check_keys(found.want, windows, request.upper_ns)
    conflicts = tuple(conflicts_of(own, found.want))
    lacking = {
        key: digest
        for key, digest in found.want.items()
        if own.get(key) is None
        and (holding := holdings.get(key[:TOPIC_BYTES])) is not None
        and time_of_key(key) >= holding.horizon_ns
    }
    return Compared(SyncAnswer(reply=found.reply), lacking, conflicts, len(found.give) - len(conflicts))


def items_within(holdings: Holdings, windows: Sequence[Window], upper_ns: int) -> BlockSet:
    """All items of the windows, as they are now."""
    upper = min(upper_ns, MAX_TIME_NS).to_bytes(TIME_BYTES, "big")
    return view(
        (holding.items, each.topic + lower, each.topic + upper)
        for each in windows
        if (holding := holdings.get(each.topic)) is not None
        and (lower := min(each.floor_ns, MAX_TIME_NS).to_bytes(TIME_BYTES, "big")) < upper
    )


def _narrowed(holdings: Holdings, windows: Sequence[Window]) -> Iterator[tuple[int, int]]:
    for at, window in enumerate(windows):
        holding = holdings.get(window.topic)
        if holding is None:
            yield at, NOT_KEPT
        elif holding.horizon_ns > window.floor_ns:
            yield at, holding.horizon_ns


def narrow(windows: Sequence[Window], narrowed: Sequence[tuple[int, int]]) -> tuple[Window, ...]:
    """The windows as the answerer narrowed them."""
    floors = dict(narrowed)
    return tuple(
        Window(window.topic, floors.get(at, window.floor_ns))
        for at, window in enumerate(windows)
        if floors.get(at) != NOT_KEPT
    )


def conflicts_of(own: BlockSet, want: Mapping[bytes, bytes]) -> Iterator[Conflict]:
    """Which of the keys we have ourselves, with other bytes."""
    for key, theirs in want.items():
        ours = own.get(key)
        if ours is not None:
            yield Conflict(key, ours, theirs)


def check_keys(keys: Mapping[bytes, bytes], windows: Sequence[Window], upper_ns: int) -> None:
    """Refuse what cannot have been found in these windows.

    Raises:
        InvalidMessage: reason `unasked`: a key that lies in no window, or has no id; or a digest that is none.
    """
    floors = {window.topic: window.floor_ns for window in windows}
    for key, digest in keys.items():
        floor = floors.get(key[:TOPIC_BYTES])
        if floor is None or not floor <= time_of_key(key) < upper_ns or not id_of_key(key):
            raise InvalidMessage("unasked", f"an item that lies in no window: {key.hex()}")
        if len(digest) != DIGEST_BYTES:
            raise InvalidMessage("unasked", f"a message's digest of {len(digest)} bytes, not {DIGEST_BYTES}")
