"""A set of items to reconcile that takes inserts and removals: sorted blocks, each with the sum of its items.

An item's key and fingerprint lie in their block's one piece of bytes, so 100,000 items of 62 and 16 bytes take some
83 bytes each, and 13 more once their block's inner sums are known. Blocks never change: an insert or a removal puts
another in its place, which moves half a block of bytes and hashes one item. So a set shares its blocks with the views
made of it, and a view stays what it was.

A range's fingerprint adds the sums of whole blocks, and hashes at most 7 items at each end; a changed block's inner
sums are made anew when they are first asked for. Whole blocks are added one by one: 2,000 of them, a million items,
take a tenth of a millisecond, and the disjoint ranges of one message together no more than that.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from p2pnode.core.reconcile import (
    END,
    MAX_FINGERPRINT_BYTES,
    MAX_KEY_BYTES,
    START,
    Fingerprint,
    Item,
    item_number,
    range_digest,
)
from p2pnode.errors import InvalidRequest

BLOCK_ITEMS = 512
MERGE_ITEMS = 128
"""A block that shrinks below this joins a neighbour if both fit: a set never keeps many blocks of few items."""

_STEP = 8
"""Every so many items of a block the sum of those before is kept."""


class _Block:
    """1 to BLOCK_ITEMS items in order; nothing but its inner sums ever changes.

    Args:
        data: key and fingerprint of each item.
        ends: where each ends in `data`.
        width: bytes of a fingerprint.
        total: the sum of all item numbers.
        sums: of the first 0, 8, 16, … items, as far as they are known.
    """

    __slots__ = ("_sums", "data", "ends", "total", "width")

    def __init__(self, data: bytes, ends: array[int], width: int, total: int, sums: list[int]) -> None:
        self.data = data
        self.ends = ends
        self.width = width
        self.total = total
        self._sums = sums

    @classmethod
    def of(cls, items: Sequence[Item], width: int) -> _Block:
        ends, end = array("I"), 0
        for key, fingerprint in items:
            end += len(key) + len(fingerprint)
            ends.append(end)
        total = sum(item_number(key, fingerprint) for key, fingerprint in items)
        return cls(b"".join(part for item in items for part in item), ends, width, total, [0])

    def __len__(self) -> int:
        return len(self.ends)

    def key(self, at: int) -> bytes:
        return self.data[self._start(at) : self.ends[at] - self.width]

    def fingerprint(self, at: int) -> bytes:
        return self.data[self.ends[at] - self.width : self.ends[at]]

    def items(self, start: int, end: int) -> Iterator[Item]:
        for at in range(start, end):
            yield self.key(at), self.fingerprint(at)

    def find(self, key: bytes) -> int:
        """Where the first item with this key or a higher one is."""
        return bisect_left(range(len(self.ends)), key, key=self.key)

    def sum_below(self, at: int) -> int:
        """Of the first `at` items."""
        if at == len(self.ends):
            return self.total
        sums = self._sums
        while len(sums) <= at // _STEP:
            known = (len(sums) - 1) * _STEP
            sums.append(sums[-1] + self._add_up(known, known + _STEP))
        nearest = at // _STEP
        return sums[nearest] + self._add_up(nearest * _STEP, at)

    def with_item(self, at: int, key: bytes, fingerprint: bytes) -> _Block:
        start, size = self._start(at), len(key) + len(fingerprint)
        data = b"".join((self.data[:start], key, fingerprint, self.data[start:]))
        ends = self.ends[:at]
        ends.append(start + size)
        ends.extend(end + size for end in self.ends[at:])
        total = self.total + item_number(key, fingerprint)
        return _Block(data, ends, self.width, total, self._sums[: at // _STEP + 1])

    def without_item(self, at: int) -> _Block:
        start, end = self._start(at), self.ends[at]
        ends = self.ends[:at]
        ends.extend(each - (end - start) for each in self.ends[at + 1 :])
        total = self.total - item_number(self.key(at), self.fingerprint(at))
        return _Block(self.data[:start] + self.data[end:], ends, self.width, total, self._sums[: at // _STEP + 1])

    def part(self, start: int, end: int) -> _Block:
        """Its items from `start` to before `end`, of which there must be one."""
        if start == 0 and end == len(self.ends):
            return self
        offset = self._start(start)
        ends = array("I", (each - offset for each in self.ends[start:end])) if offset else self.ends[:end]
        total = self.sum_below(end) - self.sum_below(start)
        sums = [0] if start else self._sums[: end // _STEP + 1]
        return _Block(self.data[offset : self.ends[end - 1]], ends, self.width, total, sums)

    def followed_by(self, other: _Block) -> _Block:
        offset = len(self.data)
        ends = self.ends[:]
        ends.extend(end + offset for end in other.ends)
        return _Block(self.data + other.data, ends, self.width, self.total + other.total, self._sums[:])

    def _start(self, at: int) -> int:
        return self.ends[at - 1] if at else 0

    def _add_up(self, start: int, end: int) -> int:
        return sum(item_number(key, fingerprint) for key, fingerprint in self.items(start, end))


def _shortest_between(below: bytes, above: bytes) -> bytes:
    """The shortest prefix of `above` that is greater than `below`."""
    same = next((at for at, (one, other) in enumerate(zip(below, above, strict=False)) if one != other), len(below))
    return above[: same + 1]


class BlockSet:
    """An `ItemSet` with inserts and removals.

    Args:
        items: in any order.
        fingerprint_bytes: of each item, at most MAX_FINGERPRINT_BYTES.

    Raises:
        InvalidRequest: two items with the same key, a key over MAX_KEY_BYTES, or a fingerprint of another length.
    """

    def __init__(self, items: Iterable[Item] = (), *, fingerprint_bytes: int = 16) -> None:
        if not 0 <= fingerprint_bytes <= MAX_FINGERPRINT_BYTES:
            raise InvalidRequest(f"fingerprint_bytes is {fingerprint_bytes}; it must be 0 to {MAX_FINGERPRINT_BYTES}")
        self._width = fingerprint_bytes
        ordered = sorted(items)
        for key, fingerprint in ordered:
            self._check(key, fingerprint)
        if any(one[0] == other[0] for one, other in pairwise(ordered)):
            raise InvalidRequest("two items of a set have the same key")
        self._blocks = [
            _Block.of(ordered[at : at + BLOCK_ITEMS], fingerprint_bytes) for at in range(0, len(ordered), BLOCK_ITEMS)
        ]
        self._firsts = [block.key(0) for block in self._blocks]
        self._count = len(ordered)

    def __len__(self) -> int:
        return self._count

    # -- reading -----------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        block, at = self._locate(key)
        if block < len(self._blocks) and self._blocks[block].key(at) == key:
            return self._blocks[block].fingerprint(at)
        return None

    def count(self, lower: bytes, upper: bytes) -> int:
        return sum(end - start for _, start, end in self._parts(lower, upper))

    def fingerprint(self, lower: bytes, upper: bytes) -> Fingerprint:
        count = total = 0
        for block, start, end in self._parts(lower, upper):
            count += end - start
            total += block.sum_below(end)
            if start:
                total -= block.sum_below(start)
        return Fingerprint(lower, upper, count, range_digest(count, total))

    def slice(self, lower: bytes, upper: bytes, limit: int) -> list[Item]:
        found: list[Item] = []
        for block, start, end in self._parts(lower, upper):
            found += block.items(start, min(end, start + limit - len(found)))
            if len(found) >= limit:
                break
        return found

    def split(self, lower: bytes, upper: bytes, parts: int) -> list[bytes]:
        count = self.count(lower, upper)
        parts = min(parts, count)
        cuts = iter([count * part // parts for part in range(1, parts)])
        bounds: list[bytes] = []
        cut, passed, before = next(cuts, count), 0, b""
        for block, start, end in self._parts(lower, upper):
            while cut < passed + end - start:
                at = start + cut - passed
                below = block.key(at - 1) if at > start else before
                bounds.append(_shortest_between(below, block.key(at)))
                cut = next(cuts, count)
            passed += end - start
            before = block.key(end - 1)
        return bounds

    # -- changing ----------------------------------------------------------------------

    def insert(self, key: bytes, fingerprint: bytes) -> None:
        """Add an item, or change the one with this key.

        Raises:
            InvalidRequest: key or fingerprint have a wrong length; nothing changed.
        """
        self._check(key, fingerprint)
        if not self._blocks:
            self._put(0, 0, _Block.of([(key, fingerprint)], self._width))
            return
        number = max(0, bisect_right(self._firsts, key) - 1)
        block = self._blocks[number]
        at = block.find(key)
        if at < len(block) and block.key(at) == key:
            if block.fingerprint(at) != fingerprint:
                without = block.without_item(at)
                self._put(number, 1, without.with_item(at, key, fingerprint))
        elif len(block) < BLOCK_ITEMS:
            self._put(number, 1, block.with_item(at, key, fingerprint))
        elif at == BLOCK_ITEMS and number == len(self._blocks) - 1:
            # Messages mostly come in order of time: full blocks stay full.
            self._put(number + 1, 0, _Block.of([(key, fingerprint)], self._width))
        else:
            half = BLOCK_ITEMS // 2
            low, high = block.part(0, half), block.part(half, BLOCK_ITEMS)
            if at <= half:
                low = low.with_item(at, key, fingerprint)
            else:
                high = high.with_item(at - half, key, fingerprint)
            self._put(number, 1, low, high)

    def remove(self, key: bytes) -> None:
        """Take an item out.

        Raises:
            KeyError: there is none with this key.
        """
        number, at = self._locate(key)
        if number == len(self._blocks) or self._blocks[number].key(at) != key:
            raise KeyError(key)
        block = self._blocks[number]
        if len(block) == 1:
            self._put(number, 1)
            return
        rest = block.without_item(at)
        self._put(number, 1, rest)
        if len(rest) < MERGE_ITEMS:
            for left in (number - 1, number):
                pair = self._blocks[max(0, left) : left + 2]
                if left >= 0 and len(pair) == 2 and len(pair[0]) + len(pair[1]) <= BLOCK_ITEMS:
                    self._put(left, 2, pair[0].followed_by(pair[1]))
                    return

    # -- inside ------------------------------------------------------------------------

    def _check(self, key: bytes, fingerprint: bytes) -> None:
        if len(key) > MAX_KEY_BYTES:
            raise InvalidRequest(f"a key has at most {MAX_KEY_BYTES} bytes, this one {len(key)}")
        if len(fingerprint) != self._width:
            raise InvalidRequest(f"an item's fingerprint has {self._width} bytes here, this one {len(fingerprint)}")

    def _put(self, number: int, gone: int, *blocks: _Block) -> None:
        """Put blocks in the place of `gone` others."""
        self._count += sum(map(len, blocks)) - sum(map(len, self._blocks[number : number + gone]))
        self._blocks[number : number + gone] = blocks
        self._firsts[number : number + gone] = [block.key(0) for block in blocks]

    def _locate(self, key: bytes) -> tuple[int, int]:
        """Block and place of the first item with this key or a higher one; the number of blocks and 0 at the end."""
        number = bisect_right(self._firsts, key) - 1
        if number < 0:
            return 0, 0
        at = self._blocks[number].find(key)
        return (number, at) if at < len(self._blocks[number]) else (number + 1, 0)

    def _parts(self, lower: bytes, upper: bytes) -> Iterator[tuple[_Block, int, int]]:
        """The blocks of a range in order, each with the places from and before which its items are in it."""
        if lower >= upper:
            return
        first, start = self._locate(lower)
        last, end = self._locate(upper)
        for number in range(first, last):
            yield self._blocks[number], start, len(self._blocks[number])
            start = 0
        if end > start:
            yield self._blocks[last], start, end


def view(parts: Iterable[tuple[BlockSet, bytes, bytes]]) -> BlockSet:
    """Ranges `(set, lower, upper)` as one set that stays as it is now: it shares their blocks.

    Raises:
        InvalidRequest: the ranges overlap or descend, or their fingerprints have different lengths.
    """
    result: BlockSet | None = None
    reached = START
    for source, lower, upper in parts:
        if lower < reached or upper > END:
            raise InvalidRequest("the ranges of a view must ascend and not overlap")
        reached = max(lower, upper)
        if result is None:
            result = BlockSet(fingerprint_bytes=source._width)
        if source._width != result._width:
            raise InvalidRequest("the sets of a view must have fingerprints of one length")
        blocks = [block.part(start, end) for block, start, end in source._parts(lower, upper)]
        result._put(len(result._blocks), 0, *blocks)
    return result if result is not None else BlockSet()
