"""Range-based set reconciliation: two nodes find out what each lacks, at a cost that follows the difference.

Source: Aljoscha Meyer, "Range-Based Set Reconciliation", SRDS 2023 (arXiv 2212.13567). Negentropy is a
practical relative; what differs here: both sides learn the difference, and an item may change.

An item is `(key, fingerprint)`: keys are unique and ordered bytewise; a changed item keeps its key and has
another fingerprint. A range is `lower <= key < upper`. The asker sends the fingerprint of a range. Where the
answerer's own differs, it answers with the fingerprints of `branching` subranges of equal count, or lists its
items when they are few, and the asker goes on in the same way. Whoever gets a list compares it with its own
items and says what differs: `news` (own items that the other does not hold so) and `lacking` (keys that it
itself has not). Then both know, exactly.

What holds, n being the items of the larger set and k those that differ:
- Equal sets: one range of about 25 bytes, answered by 2 bytes. Else each message goes down one level: about
  log_b(n) / 2 + 2 round trips, and k * branching ranges of some 27 bytes a level, log_b(n) levels.
- A message has at most `max_message_bytes`, MAX_RANGES ranges and MAX_ITEMS items. What does not fit waits: the
  asker keeps it on its agenda, lowest key first; the answerer says below which key it answered, and the asker
  asks again from there. A message always holds one range or item more, so every exchange gets on and ends.
- The answerer keeps nothing between offers: each carries its ranges. It hashes nothing but sums: an offer costs
  it at most MAX_RANGES offered and as many answered range fingerprints (O(log n) each), and some 2 * MAX_ITEMS
  items looked at; it gets one message back, 64 KiB at most for however few bytes.
- A hostile answerer can lie about what it has, and make the asker describe its whole set, never more than one
  message in a round nor more than `max_rounds` rounds. The asker refuses answers about what it did not ask.
- Sets may change between rounds: what changed may be missed, and the next reconciliation finds it.

Fingerprint of a range: SHA-256, cut to 16 bytes, of the count and of the sum modulo 2^512 of SHA-512 over each
item. Sums of any range are one subtraction of two prefix sums. Why no xor: it is linear over GF(2), so whoever
writes some 512 items of his choice finds by Gaussian elimination a subset of them that hides another's message
from a comparison. For sums the best known attack is Wagner's generalized birthday (CRYPTO 2002), about
2^(2 * sqrt(bits)) hashes: 2^32 for 256 bits, 2^45 for 512, which cost us nothing more on the wire. What it gains
is small: two nodes overlook a difference until either meets a third, or asks for another range.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256, sha512
from itertools import accumulate, pairwise
from typing import Final, Protocol

from p2pnode.errors import InvalidMessage, InvalidRequest

Item = tuple[bytes, bytes]
"""`(key, fingerprint)`: at most MAX_KEY_BYTES and MAX_FINGERPRINT_BYTES; either may be empty."""

MAX_KEY_BYTES = 128
MAX_FINGERPRINT_BYTES = 32
DIGEST_BYTES = 16
MAX_MESSAGE_BYTES = 64 * 1024
MAX_RANGES = 1024
"""Of one message. Its ranges have 25 bytes or more."""

MAX_ITEMS = 2048
"""Of one message: listed, `news` and `lacking` together. Twice what fills a message with ids and digests."""

START: Final = b""
END: Final = b"\xff" * (MAX_KEY_BYTES + 1)
"""Above every key, so that bounds compare as keys do."""

_SUM_BYTES = 64
_RANGE_BYTES, _ITEM_BYTES, _HEAD_BYTES = 36, 9, 8 + MAX_KEY_BYTES
"""Upper bounds of what a range, an item and a message take on the wire beside keys, bounds and fingerprints."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How an exchange spends bytes and rounds; the two sides need not agree.

    Args:
        branching: subranges of a range that differs. Of 100,000 items with 10 different, 8, 16 and 32 took
            11, 14 and 21 KB in 4, 4 and 3 round trips.
        list_items: a differing range with at most so many own items is listed, not split.
        max_message_bytes: 1,024 to MAX_MESSAGE_BYTES.
        max_ranges: of a message, 1 to MAX_RANGES.
        max_rounds: after so many offers the asker stops; what it found is right, and a next
            reconciliation finds the rest.

    Raises:
        InvalidRequest: a value out of its bounds.
    """

    branching: int = 16
    list_items: int = 16
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_ranges: int = MAX_RANGES
    max_rounds: int = 256

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("branching", self.branching, 2, MAX_RANGES),
            ("list_items", self.list_items, 1, MAX_ITEMS),
            ("max_message_bytes", self.max_message_bytes, 1024, MAX_MESSAGE_BYTES),
            ("max_ranges", self.max_ranges, 1, MAX_RANGES),
            ("max_rounds", self.max_rounds, 1, 1 << 31),
        ):
            if not least <= value <= most:
                raise InvalidRequest(f"{name} is {value}; it must be from {least} to {most}")


FEW = Limits(list_items=64)
"""For small sets of small items (members): up to 64 are listed at once, so one round trip tells the asker all."""

DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the sender has in a range, in short.

    Args:
        count: of its items.
        digest: DIGEST_BYTES, by `range_digest`.
    """

    lower: bytes
    upper: bytes
    count: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Listing:
    """All that the sender has in a range, in order of key."""

    lower: bytes
    upper: bytes
    items: tuple[Item, ...]


Range = Fingerprint | Listing


@dataclass(frozen=True, slots=True)
class Offer:
    """What the asker sends.

    Args:
        ranges: in order and disjoint.
        news: in order of key: own items that the other listed with another fingerprint or not at all.
        lacking: in order: keys that the other listed and the sender has not.
    """

    ranges: tuple[Range, ...] = ()
    news: tuple[Item, ...] = ()
    lacking: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply(Offer):
    """What the answerer sends back: what it does not mention, below `answered_below`, is the same on both sides.

    Args:
        answered_below: END when the whole offer is answered.
    """

    answered_below: bytes = END


class ItemSet(Protocol):
    """What is reconciled. Bounds are keys, prefixes of keys, START or END; an inverted range is empty."""

    def get(self, key: bytes) -> bytes | None:
        """The fingerprint under a key."""

    def count(self, lower: bytes, upper: bytes) -> int:
        """Items in the range."""

    def fingerprint(self, lower: bytes, upper: bytes) -> Fingerprint:
        """Count and digest of the range, in less than linear time."""

    def slice(self, lower: bytes, upper: bytes, limit: int) -> Sequence[Item]:
        """The first `limit` items of the range, in order."""

    def split(self, lower: bytes, upper: bytes, parts: int) -> Sequence[bytes]:
        """The bounds, in order, that cut the range into `parts` of equal count (give or take one).

        At most `parts` - 1 of them, strictly within the range; at least one when it has two items.
        """


def item_number(key: bytes, fingerprint: bytes) -> int:
    """What an item adds to the sum of a range: SHA-512 over length of key (one byte), key and fingerprint."""
    return int.from_bytes(sha512(b"%c%b%b" % (len(key), key, fingerprint)).digest(), "big")


def range_digest(count: int, total: int) -> bytes:
    """The digest of `count` items whose numbers add up to `total`, which is taken modulo 2^512."""
    body = count.to_bytes(8, "big") + (total % (1 << 8 * _SUM_BYTES)).to_bytes(_SUM_BYTES, "big")
    return sha256(body).digest()[:DIGEST_BYTES]


class Snapshot:
    """An ItemSet that does not change, with prefix sums: any range's fingerprint takes two bisections.

    It keeps some 140 bytes an item beside the item itself.

    A set with inserts would keep sorted blocks of some 512 items, each with its sum, and a Fenwick tree over
    the blocks' sums and counts: an insert adds `item_number` to one block, a removal subtracts it.

    Args:
        items: in any order.

    Raises:
        InvalidRequest: two items with the same key, or one over a limit.
    """

    def __init__(self, items: Iterable[Item] = ()) -> None:
        ordered = sorted(items)
        self._keys = [key for key, _ in ordered]
        self._fingerprints = [fingerprint for _, fingerprint in ordered]
        if any(map(bytes.__eq__, self._keys, self._keys[1:])):
            raise InvalidRequest("two items of a set have the same key")
        if max(map(len, self._keys), default=0) > MAX_KEY_BYTES:
            raise InvalidRequest(f"a key has at most {MAX_KEY_BYTES} bytes")
        if max(map(len, self._fingerprints), default=0) > MAX_FINGERPRINT_BYTES:
            raise InvalidRequest(f"the fingerprint of an item has at most {MAX_FINGERPRINT_BYTES} bytes")
        self._sums = list(accumulate(map(item_number, self._keys, self._fingerprints), initial=0))

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: bytes) -> bytes | None:
        at = bisect_left(self._keys, key)
        return self._fingerprints[at] if at < len(self._keys) and self._keys[at] == key else None

    def count(self, lower: bytes, upper: bytes) -> int:
        start, end = self._span(lower, upper)
        return end - start

    def fingerprint(self, lower: bytes, upper: bytes) -> Fingerprint:
        start, end = self._span(lower, upper)
        digest = range_digest(end - start, self._sums[end] - self._sums[start])
        return Fingerprint(lower, upper, end - start, digest)

    def slice(self, lower: bytes, upper: bytes, limit: int) -> list[Item]:
        start, end = self._span(lower, upper)
        end = min(end, start + limit)
        return list(zip(self._keys[start:end], self._fingerprints[start:end], strict=True))

    def split(self, lower: bytes, upper: bytes, parts: int) -> list[bytes]:
        start, end = self._span(lower, upper)
        parts = min(parts, end - start)
        cuts = [start + (end - start) * part // parts for part in range(1, parts)]
        return [_between(self._keys[at - 1], self._keys[at]) for at in cuts]

    def _span(self, lower: bytes, upper: bytes) -> tuple[int, int]:
        start = bisect_left(self._keys, lower)
        return start, max(start, bisect_left(self._keys, upper))


def _between(below: bytes, above: bytes) -> bytes:
    """The shortest prefix of `above` that is greater than `below`: bounds cost bytes."""
    same = next((at for at, (one, other) in enumerate(zip(below, above, strict=False)) if one != other), len(below))
    return above[: same + 1]


@dataclass(slots=True)
class _Draft:
    """A message in the making, within its limits, and what was learned on the way.

    Each step returns the key up to which it got: its range's upper bound, or less when the message is full.
    """

    own: ItemSet
    limits: Limits
    ranges: list[Range] = field(default_factory=list)
    news: list[Item] = field(default_factory=list)
    lacking: list[bytes] = field(default_factory=list)
    want: dict[bytes, bytes] = field(default_factory=dict)
    give: dict[bytes, bytes] = field(default_factory=dict)
    bytes_left: int = 0
    items_left: int = MAX_ITEMS

    def __post_init__(self) -> None:
        self.bytes_left = self.limits.max_message_bytes - _HEAD_BYTES

    def probe(self, lower: bytes, upper: bytes) -> bytes:
        """Ask whether the range is the same; having nothing is said outright."""
        whole = self.own.fingerprint(lower, upper)
        if whole.count == 0:
            return self._list(lower, upper, ())
        return upper if self._add(whole) else lower

    def describe(self, lower: bytes, upper: bytes) -> bytes:
        """List or split a range that differs."""
        count = self.own.count(lower, upper)
        if count <= self.limits.list_items:
            return self._list(lower, upper, self.own.slice(lower, upper, count))
        bounds = (lower, *self.own.split(lower, upper, self.limits.branching), upper)
        for start, end in pairwise(bounds):
            if not self._add(self.own.fingerprint(start, end)):
                return start
        return upper

    def compare(self, theirs: Listing) -> bytes:
        """Find and tell what differs from a listing."""
        # Enough that the message is full before a shortened slice ends: equal items cost it nothing.
        limit = len(theirs.items) + self.items_left + 1
        mine, other = dict(self.own.slice(theirs.lower, theirs.upper, limit)), dict(theirs.items)
        for key in sorted(mine.keys() | other.keys()):
            has, hears = mine.get(key), other.get(key)
            if has == hears:
                continue
            if not self._take(_item_size(key, has or b"")):
                return key
            if has is None:
                self.lacking.append(key)
            else:
                self.news.append((key, has))
                self.give[key] = has
            if hears is not None:
                self.want[key] = hears
        return theirs.upper

    def learn(self, message: Offer) -> None:
        """Take in what the other found by comparing; what changed here since is left out."""
        for key, hears in message.news:
            has = self.own.get(key)
            if has != hears:
                self.want[key] = hears
                if has is not None:
                    self.give[key] = has
        for key in message.lacking:
            has = self.own.get(key)
            if has is not None:
                self.give[key] = has

    def _list(self, lower: bytes, upper: bytes, items: Sequence[Item]) -> bytes:
        """List as many items as fit; the listing then ends before the first that does not."""
        room = self.bytes_left - _RANGE_BYTES - len(lower) - max(len(upper), MAX_KEY_BYTES)
        fit = 0
        for key, fingerprint in items[: self.items_left]:
            room -= _item_size(key, fingerprint)
            if room < 0:
                break
            fit += 1
        reached = items[fit][0] if fit < len(items) else upper
        listing = Listing(lower, reached, tuple(items[:fit]))
        if reached == lower or not self._add(listing):
            return lower
        self.bytes_left -= sum(_item_size(*item) for item in listing.items)
        self.items_left -= fit
        return reached

    def _add(self, part: Range) -> bool:
        size = _RANGE_BYTES + len(part.lower) + len(part.upper)
        if size > self.bytes_left or len(self.ranges) >= self.limits.max_ranges:
            return False
        self.bytes_left -= size
        self.ranges.append(part)
        return True

    def _take(self, size: int) -> bool:
        if size > self.bytes_left or self.items_left == 0:
            return False
        self.bytes_left -= size
        self.items_left -= 1
        return True


def _item_size(key: bytes, fingerprint: bytes) -> int:
    return _ITEM_BYTES + len(key) + len(fingerprint)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and what the answerer learned from the offer.

    Args:
        want: keys that the asker has and we lack or hold otherwise, with the asker's fingerprint.
        give: keys that we have and the asker lacks or holds otherwise, with our fingerprint.
    """

    reply: Reply
    want: dict[bytes, bytes]
    give: dict[bytes, bytes]


def answer(own: ItemSet, offer: Offer, limits: Limits = DEFAULT) -> Answer:
    """The answerer's part, all of it; bounded work for any offer that the codec lets through."""
    draft, answered_below = _Draft(own, limits), END
    draft.learn(offer)
    for part in offer.ranges:
        if isinstance(part, Listing):
            reached = draft.compare(part)
        elif own.fingerprint(part.lower, part.upper) == part:
            continue
        else:
            reached = draft.describe(part.lower, part.upper)
        if reached < part.upper:
            answered_below = reached
            break
    reply = Reply(tuple(draft.ranges), tuple(draft.news), tuple(draft.lacking), answered_below)
    return Answer(reply, draft.want, draft.give)


@dataclass(frozen=True, slots=True)
class _Open:
    """A range still to be asked about.

    Args:
        differs: known to differ, so it is listed or split; else its fingerprint is sent.
    """

    lower: bytes
    upper: bytes
    differs: bool


class Reconciliation:
    """The asker's part: send each `next_offer()`, give each reply to `receive`, until there is no offer left.

    `want` and `give` grow in both. An offer without ranges asks nothing: it tells the answerer what the asker
    found. Who then pulls `want` and pushes `give` anyway may leave it unsent.

    Args:
        own: must not change meanwhile.
        lower, upper: the range to reconcile, of at most MAX_KEY_BYTES each, or START and END.
        differs: the sets are known to differ (a digest was seen elsewhere), which saves half a round trip.

    Attributes:
        want: keys that the answerer has and we lack or hold otherwise, with the answerer's fingerprint.
        give: keys that we have and the answerer lacks or holds otherwise, with our fingerprint.
        rounds: offers made.

    Raises:
        InvalidRequest: the range is empty or a bound too long.
    """

    def __init__(
        self,
        own: ItemSet,
        lower: bytes = START,
        upper: bytes = END,
        *,
        limits: Limits = DEFAULT,
        differs: bool = False,
    ) -> None:
        if not lower < upper <= END or len(lower) > MAX_KEY_BYTES or (len(upper) > MAX_KEY_BYTES and upper != END):
            raise InvalidRequest(f"no range of keys: from {lower.hex()!r} to {upper.hex()!r}")
        self.want: dict[bytes, bytes] = {}
        self.give: dict[bytes, bytes] = {}
        self.rounds = 0
        self._own = own
        self._limits = limits
        self._agenda: deque[_Open | Listing] = deque([_Open(lower, upper, differs)])
        self._sent: Offer | None = None

    @property
    def complete(self) -> bool:
        """`want` and `give` are all there is: no range is open."""
        return not self._agenda and (self._sent is None or not self._sent.ranges)

    def next_offer(self) -> Offer | None:
        """What to send now; the same again until its reply is received. None at the end or after `max_rounds`."""
        if self._sent is not None:
            return self._sent
        if self.rounds >= self._limits.max_rounds:
            return None
        draft = _Draft(self._own, self._limits)
        while self._agenda:
            task = self._agenda.popleft()
            if isinstance(task, Listing):
                reached = draft.compare(task)
            else:
                reached = (draft.describe if task.differs else draft.probe)(task.lower, task.upper)
            if reached < task.upper:
                self._agenda.appendleft(_rest(task, reached))
                break
        self._note(draft)
        offer = Offer(tuple(draft.ranges), tuple(draft.news), tuple(draft.lacking))
        if offer == Offer():
            return None
        self.rounds += 1
        self._sent = offer
        return offer

    def receive(self, reply: Reply) -> None:
        """Take in the reply to the last offer.

        Raises:
            InvalidMessage: reason `unasked`: it speaks of what the offer did not ask; `no-progress`: it answers
                nothing of it. The exchange stands as before.
        """
        offer = self._sent
        if offer is None:
            raise InvalidMessage("unasked", "a reply without an offer")
        self._check(offer, reply)
        draft = _Draft(self._own, self._limits)
        draft.learn(reply)
        self._note(draft)
        tasks: list[_Open | Listing] = []
        for part in reply.ranges:
            if isinstance(part, Listing):
                tasks.append(part)
            elif self._own.fingerprint(part.lower, part.upper) != part:
                tasks.append(_Open(part.lower, part.upper, differs=True))
        for asked in offer.ranges:
            if asked.upper > reply.answered_below:
                lower = max(asked.lower, reply.answered_below)
                tasks.append(_Open(lower, asked.upper, differs=isinstance(asked, Listing)))
        # An offer takes from the front, and all on the agenda is in order of key: so are these.
        self._agenda.extendleft(reversed(tasks))
        self._sent = None

    def _note(self, draft: _Draft) -> None:
        self.want |= draft.want
        self.give |= draft.give

    def _check(self, offer: Offer, reply: Reply) -> None:
        if offer.ranges and reply.answered_below <= offer.ranges[0].lower:
            raise InvalidMessage("no-progress", "a reply that answers nothing of the offer")
        starts = [asked.lower for asked in offer.ranges]

        def asked_at(key: bytes, kind: type[Fingerprint] | type[Listing]) -> bytes:
            """Up to where the offer asks about a key in this way; START when it does not."""
            at = bisect_right(starts, key) - 1
            if at < 0 or not isinstance(offer.ranges[at], kind):
                return START
            return min(offer.ranges[at].upper, reply.answered_below)

        if any(part.upper > asked_at(part.lower, Fingerprint) for part in reply.ranges):
            raise InvalidMessage("unasked", "a reply about a range that was not asked for")
        told = [*(key for key, _ in reply.news), *reply.lacking]
        if any(key >= asked_at(key, Listing) for key in told):
            raise InvalidMessage("unasked", "a reply about a key that lies in no listing")
        if any(self._own.get(key) is None for key in reply.lacking):
            raise InvalidMessage("unasked", "a reply that lacks a key we do not have")


def _rest(task: _Open | Listing, reached: bytes) -> _Open | Listing:
    """What a full message left of a task. After a part of a range was told, the rest may well be the same."""
    if reached == task.lower:
        return task
    if isinstance(task, Listing):
        return replace(task, lower=reached, items=tuple(item for item in task.items if item[0] >= reached))
    return _Open(reached, task.upper, differs=False)
