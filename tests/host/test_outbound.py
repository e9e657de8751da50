"""What waits for one peer: bounds, order, who is dropped first, and that no loss goes unreported."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.gossipsub.events import Priority
from p2pnode.core.message import MessageId
from p2pnode.host.outbound import Frame, OutboundQueue
from tests.properties import many

C, O, F, G = Priority.CONTROL, Priority.OWN, Priority.FORWARD, Priority.GOSSIP  # noqa: E741


def frame(name: str, size: int = 10) -> Frame:
    return Frame(name.encode().ljust(size, b"."), MessageId(name.encode()))


def queue_of(*entries: tuple[str, Priority], max_frames: int = 3) -> OutboundQueue:
    queue = OutboundQueue(max_bytes=1000, max_frames=max_frames)
    for name, priority in entries:
        assert queue.push(frame(name), priority) == (True, ())
    return queue


def names(queue: OutboundQueue) -> list[str]:
    """What is written, frame by frame."""
    out = []
    while queue.frames:
        out.append(queue.take(max_bytes=1)[0].rstrip(b".").decode())
    return out


@pytest.mark.parametrize(
    ("waiting", "new", "taken", "lost", "left"),
    [
        ([("f1", F), ("f2", F), ("g1", G)], ("f3", F), True, ["f1"], ["f2", "f3", "g1"]),
        ([("g1", G), ("f1", F), ("o1", O)], ("g2", G), True, ["f1"], ["o1", "g1", "g2"]),
        ([("g1", G), ("g2", G), ("o1", O)], ("f1", F), True, ["g1"], ["o1", "f1", "g2"]),
        ([("g1", G), ("c1", C), ("o1", O)], ("c2", C), True, ["g1"], ["c1", "c2", "o1"]),
        ([("f1", F), ("c1", C), ("o1", O)], ("o2", O), True, ["f1"], ["c1", "o1", "o2"]),
        ([("c1", C), ("c2", C), ("o1", O)], ("f1", F), False, ["f1"], ["c1", "c2", "o1"]),
        ([("c1", C), ("o1", O), ("o2", O)], ("o3", O), False, ["o3"], ["c1", "o1", "o2"]),
        ([("c1", C), ("o1", O), ("o2", O)], ("c2", C), False, ["c2"], ["c1", "o1", "o2"]),
    ],
    ids=[
        "oldest-forward",
        "forward-before-gossip",
        "gossip-when-no-forward",
        "control-drops-gossip",
        "own-drops-forward",
        "forward-refused",
        "own-refused",
        "control-refused",
    ],
)
def test_a_full_queue_drops_forwards_then_gossip_and_never_control_or_own(
    waiting: list[tuple[str, Priority]], new: tuple[str, Priority], taken: bool, lost: list[str], left: list[str]
) -> None:
    queue = queue_of(*waiting)
    assert queue.push(frame(new[0]), new[1]) == (taken, tuple(name.encode() for name in lost))
    assert queue.dropped == len(lost)
    assert names(queue) == left


def test_a_large_frame_drops_as_many_as_it_needs() -> None:
    queue = OutboundQueue(max_bytes=100, max_frames=100)
    for n in range(10):
        queue.push(frame(f"f{n}"), F)
    assert queue.push(frame("big", 35), O) == (True, (b"f0", b"f1", b"f2", b"f3"))
    assert (queue.bytes, queue.frames) == (95, 7)


def test_a_frame_over_the_whole_bound_is_refused_and_drops_nobody() -> None:
    queue = OutboundQueue(max_bytes=100, max_frames=100)
    queue.push(frame("f1"), F)
    queue.push(frame("g1"), G)
    assert queue.push(frame("huge", 101), O) == (False, (b"huge",))
    assert names(queue) == ["f1", "g1"]


def test_a_frame_that_is_refused_drops_nobody_else() -> None:
    queue = OutboundQueue(max_bytes=100, max_frames=100)
    queue.push(frame("own", 80), O)
    queue.push(frame("f1", 10), F)
    assert queue.push(frame("big", 50), O) == (False, (b"big",))
    assert names(queue) == ["own", "f1"]


def test_control_that_is_lost_has_no_id_to_report() -> None:
    queue = queue_of(("o1", O), ("o2", O), ("o3", O))
    assert queue.push(Frame(b"graft"), C) == (False, ())
    assert queue.dropped == 1


def test_frames_are_joined_up_to_a_limit_and_at_least_one_goes() -> None:
    queue = queue_of(("a", F), ("b", F), ("c", C), max_frames=9)
    assert queue.take(max_bytes=25)[0] == frame("c").data + frame("a").data
    queue.push(frame("huge", 500), O)
    assert queue.take(max_bytes=25)[0] == frame("huge", 500).data
    assert queue.take()[0] == frame("b").data
    assert (queue.bytes, queue.frames, queue.message_ids()) == (0, 0, ())


def test_a_more_urgent_frame_that_does_not_fit_is_not_overtaken() -> None:
    queue = OutboundQueue()
    queue.push(frame("o1", 20), O)
    queue.push(frame("o2", 20), O)
    queue.push(frame("f1", 5), F)
    assert queue.take(max_bytes=30)[0] == frame("o1", 20).data


Push = tuple[Priority, int]
pushes = st.tuples(st.sampled_from(Priority), st.integers(1, 60))


@many
@given(
    steps=st.lists(pushes | st.integers(1, 80), max_size=60),
    max_bytes=st.integers(1, 200),
    max_frames=st.integers(1, 8),
)
def test_bounds_hold_each_class_is_fifo_and_every_loss_is_reported_once(
    steps: list[Push | int], max_bytes: int, max_frames: int
) -> None:
    queue = OutboundQueue(max_bytes, max_frames)
    priorities: dict[bytes, Priority] = {}
    refused: set[bytes] = set()
    lost: Counter[bytes] = Counter()
    written: list[bytes] = []

    def take(limit: int) -> None:
        data, _ = queue.take(limit)
        assert len(data) <= limit or data.count(b"|") == 1
        written.extend(part + b"|" for part in data.split(b"|")[:-1])

    for number, step in enumerate(steps):
        if isinstance(step, int):
            take(step)
        else:
            priority, size = step
            data = b"%d" % number + b"." * size + b"|"
            mid = MessageId(data)
            priorities[mid] = priority
            taken, dropped = queue.push(Frame(data, mid), priority)
            lost.update(dropped)
            if not taken:
                refused.add(mid)
                assert dropped == (mid,)
            else:
                assert mid not in dropped
        assert queue.bytes <= max_bytes
        assert queue.frames <= max_frames
        assert queue.bytes == sum(map(len, queue.message_ids()))
        assert queue.frames == len(queue.message_ids())
    while queue.frames:
        take(1)
    assert queue.bytes == 0
    assert set(lost.values()) <= {1}
    assert queue.dropped == lost.total()
    assert sorted([*written, *lost]) == sorted(priorities)
    assert {priorities[mid] for mid in lost.keys() - refused} <= {F, G}
    for priority in Priority:
        order = [int(data.split(b".")[0]) for data in written if priorities[data] is priority]
        assert order == sorted(order)


def test_what_is_taken_comes_with_the_ids_of_its_messages() -> None:
    queue = OutboundQueue()
    for number, mid in enumerate((b"m0", None, b"m2")):
        queue.push(Frame(b"x" * 10, MessageId(mid) if mid else None), Priority.FORWARD)
        assert queue.frames == number + 1
    assert queue.take() == (b"x" * 30, (b"m0", b"m2"))
