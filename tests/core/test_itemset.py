"""BlockSet: whatever is put in and taken out, it answers as a Snapshot of the same items does."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.core import itemset
from p2pnode.core.itemset import BLOCK_ITEMS, BlockSet, view
from p2pnode.core.reconcile import END, START, ItemSet, Snapshot
from p2pnode.errors import InvalidRequest
from tests.properties import many, some

Items = dict[bytes, bytes]


def key_of(number: int) -> bytes:
    return number.to_bytes(3, "big")


def assert_alike(blocks: ItemSet, items: Items, bounds: list[bytes], parts: int = 16) -> None:
    truth = Snapshot(items.items())
    for lower in bounds:
        for upper in bounds:
            assert blocks.count(lower, upper) == truth.count(lower, upper)
            assert blocks.fingerprint(lower, upper) == truth.fingerprint(lower, upper)
            assert list(blocks.slice(lower, upper, 40)) == truth.slice(lower, upper, 40)
            assert list(blocks.split(lower, upper, parts)) == truth.split(lower, upper, parts)
    for key in bounds:
        assert blocks.get(key) == truth.get(key)


@given(
    st.integers(2, 6).map(lambda each: each * 2),
    st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 3)), max_size=80),
    st.lists(st.integers(0, 41), min_size=1, max_size=4),
)
@settings(many)
def test_small_blocks_that_split_and_merge_answer_as_a_snapshot(
    size: int, steps: list[tuple[bool, int, int]], bounds: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(itemset, "BLOCK_ITEMS", size)
        patch.setattr(itemset, "MERGE_ITEMS", size // 2)
        blocks, items = BlockSet(fingerprint_bytes=1), Items()
        for put, number, value in steps:
            key = key_of(number)
            if put:
                blocks.insert(key, bytes([value]))
                items[key] = bytes([value])
            elif key in items:
                blocks.remove(key)
                del items[key]
            else:
                with pytest.raises(KeyError):
                    blocks.remove(key)
        assert len(blocks) == len(items)
        assert_alike(blocks, items, [START, END, *map(key_of, bounds)], parts=3)


@given(st.integers(0, 2**32), st.sampled_from(["in order", "in reverse", "anyhow"]))
@settings(some, max_examples=12)
def test_full_blocks_answer_as_a_snapshot_in_any_order_of_inserts(seed: int, order: str) -> None:
    rng = Random(seed)
    numbers = sorted(rng.sample(range(1 << 24), rng.randrange(1, 4 * BLOCK_ITEMS)), reverse=order == "in reverse")
    if order == "anyhow":
        rng.shuffle(numbers)
    items: Items = {}
    blocks = BlockSet()
    for at, number in enumerate(numbers):
        items[key_of(number)] = rng.randbytes(16)
        blocks.insert(key_of(number), items[key_of(number)])
        if at % 200 == 0:  # inner sums are known before some inserts and not before others
            blocks.fingerprint(key_of(rng.randrange(1 << 24)), END)
    for key in rng.sample(sorted(items), len(items) // 3):
        blocks.remove(key)
        del items[key]
    bounds = [START, END, *(key_of(rng.randrange(1 << 24)) for _ in range(4)), *rng.sample(sorted(items), 1)]
    assert_alike(blocks, items, bounds)
    assert_alike(BlockSet(items.items()), items, bounds)


def test_keys_of_different_lengths_and_the_empty_key_are_kept_in_order() -> None:
    keys = [b"", b"\x00", b"a", b"ab", b"b" * 128, b"\xff" * 128]
    items = {key: bytes([at]) * 16 for at, key in enumerate(keys)}
    blocks = BlockSet()
    for key in reversed(keys):
        blocks.insert(key, items[key])
    assert_alike(blocks, items, [START, *keys, END])


def test_a_view_of_ranges_stays_as_it_was_when_the_sets_change() -> None:
    rng = Random(3)
    first = {b"a" + key_of(rng.randrange(1 << 24)): rng.randbytes(16) for _ in range(1500)}
    second = {b"b" + key_of(rng.randrange(1 << 24)): rng.randbytes(16) for _ in range(700)}
    one, other = BlockSet(first.items()), BlockSet(second.items())
    lower, upper = b"a" + key_of(1 << 22), b"a" + key_of(3 << 22)
    seen = view([(one, lower, upper), (other, b"b", b"c"), (other, b"c", b"d")])
    items = {key: first[key] for key in first if lower <= key < upper} | second
    for key in list(first)[:900]:
        one.remove(key)
    for number in range(500):
        other.insert(b"b" + key_of(number), bytes(16))
    assert len(seen) == len(items)
    assert_alike(seen, items, [START, lower, b"a\x80", b"b", b"b\x20", END])
    assert view([]).count(START, END) == 0


def test_what_a_set_cannot_hold_is_refused_and_leaves_no_trace() -> None:
    blocks = BlockSet([(b"k", bytes(16))])
    with pytest.raises(InvalidRequest, match="128 bytes"):
        blocks.insert(bytes(129), bytes(16))
    with pytest.raises(InvalidRequest, match="16 bytes"):
        blocks.insert(b"l", b"short")
    with pytest.raises(InvalidRequest, match="same key"):
        BlockSet([(b"k", bytes(16)), (b"k", bytes(16))])
    with pytest.raises(InvalidRequest, match="0 to 32"):
        BlockSet(fingerprint_bytes=33)
    with pytest.raises(InvalidRequest, match="ascend"):
        view([(blocks, b"k", b"z"), (blocks, b"m", b"o")])
    with pytest.raises(InvalidRequest, match="one length"):
        view([(blocks, b"a", b"b"), (BlockSet(fingerprint_bytes=4), b"b", b"c")])
    assert blocks.slice(START, END, 9) == [(b"k", bytes(16))]


def test_many_removals_leave_few_blocks() -> None:
    rng = Random(1)
    keys = [key_of(number) for number in range(20 * BLOCK_ITEMS)]
    blocks = BlockSet((key, bytes(16)) for key in keys)
    for key in rng.sample(keys, len(keys) * 9 // 10):
        blocks.remove(key)
    assert len(blocks._blocks) <= 2 * len(blocks) // itemset.MERGE_ITEMS + 1


MEASURE = """
import resource, time
from random import Random
from p2pnode.core.itemset import BlockSet
rng = Random(1)
count = 100_000
def kib(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 1024
before = kib()
blocks = BlockSet()
began = time.perf_counter()
for number in range(count):
    blocks.insert(b"topichsh" + number.to_bytes(8, "big") + rng.randbytes(46), rng.randbytes(16))
took = time.perf_counter() - began
rows = kib() - before
keys = [b"topichsh" + rng.randrange(count).to_bytes(8, "big") + rng.randbytes(46) for _ in range(2000)]
began = time.perf_counter()
for key in keys:
    blocks.insert(key, bytes(16))
anyhow = time.perf_counter() - began
began = time.perf_counter()
for _ in range(100):
    blocks.fingerprint(b"topichsh", b"topichsi")
whole = time.perf_counter() - began
print(rows * 1024 // count, round(took / count * 1e6, 1), round(anyhow / 2000 * 1e6, 1), round(whole / 100 * 1e6, 1))
"""


def test_a_hundred_thousand_items_take_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, check=True, text=True, env=os.environ)
    each, at_end, anywhere, whole = map(float, done.stdout.split())
    with capsys.disabled():
        print(f"\n  100,000 items: {each:.0f} bytes each; insert {at_end} us at the end, {anywhere} us anywhere;"
              f" fingerprint of all {whole} us")  # fmt: skip
    assert each < 130
