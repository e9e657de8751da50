"""yamux under anything: two sessions on any wire lose nothing; any bytes at all break no bound."""

from __future__ import annotations

import struct
from collections import defaultdict
from random import Random

from hypothesis import example, given
from hypothesis import strategies as st

from p2pnode.core import yamux
from p2pnode.core.yamux import Budget, Data, Event, Finished, Limits, Opened, Session, Stream, WasReset
from p2pnode.errors import Unavailable
from tests.core.test_yamux import DATA, SYN, WINDOW_BYTES
from tests.properties import many, some

PERIOD = 1 << 19
NOISE = Random(0).randbytes(PERIOD) * 2
"""What streams carry: no two places of a period look alike, so that bytes in the wrong place show."""

BUDGET_BYTES = 1 << 30


def carried(stream_id: int, offset: int, size: int) -> bytes:
    start = (stream_id * 1_009 + offset) % PERIOD
    return NOISE[start : start + size]


# -- two sessions on one wire ----------------------------------------------------------


class Side:
    """A session and an application that checks what it hears."""

    def __init__(self, *, initiator: bool, limits: Limits) -> None:
        self.limits = limits
        self.budget = Budget(BUDGET_BYTES)
        self.session = Session(initiator=initiator, limits=limits, budget=self.budget)
        self.streams: list[Stream] = []
        self.written: dict[int, int] = defaultdict(int)
        self.got: dict[int, int] = defaultdict(int)
        self.unread: dict[int, int] = defaultdict(int)
        self.ended: set[int] = set()
        self.was_reset: set[int] = set()
        self.drained: set[int] = set()
        self.wire = b""

    def open(self) -> None:
        try:
            self.streams.append(self.session.open())
        except Unavailable:
            assert sum(not stream.acknowledged for stream in self.streams) >= self.limits.max_unacknowledged

    def write(self, stream: Stream, size: int) -> None:
        if not stream.finishing:
            self.session.write(stream, carried(stream.id, self.written[stream.id], size))
            self.written[stream.id] += size
            if size:
                self.drained.discard(stream.id)

    def consume(self, stream: Stream, size: int) -> None:
        size = min(size, self.unread[stream.id])
        self.unread[stream.id] -= size
        self.session.consumed(stream, size)

    def reset(self, stream: Stream) -> None:
        if not stream.gone:
            self.session.reset(stream)
            self.was_reset.add(stream.id)

    def receive(self, data: bytes) -> None:
        for event in self.session.receive(data, 0.0):
            match event:
                case Opened(stream):
                    self.streams.append(stream)
                    self.session.accept(stream)
                case Data(stream, part):
                    assert stream.id not in self.ended
                    assert part
                    assert part == carried(stream.id, self.got[stream.id], len(part))
                    self.got[stream.id] += len(part)
                    self.unread[stream.id] += len(part)
                case Finished(stream):
                    assert stream.id not in self.ended
                    self.ended.add(stream.id)
                case WasReset(stream, _):
                    assert stream.id not in self.was_reset
                    self.was_reset.add(stream.id)

    def take(self, max_bytes: int, order: Random) -> None:
        before = {stream: (stream.waiting, stream.send_window, stream.sent) for stream in self.streams}
        taken = self.session.take(max_bytes)
        assert bool(taken) or max_bytes == 0 or not self.session.pending()
        for stream in self.session.drained():
            self.drained.add(stream.id)
        for stream, (waiting, window, sent) in before.items():
            assert 0 <= stream.sent - sent <= min(waiting, window)
        self.wire += reordered(taken, order)

    def check(self) -> None:
        session, alive = self.session, [stream for stream in self.streams if not stream.gone]
        assert session.streams == len(alive)
        assert session.unread == sum(stream.unread for stream in alive) <= self.limits.max_unread_bytes
        assert self.budget.left == BUDGET_BYTES - session.unread
        for stream in alive:
            assert stream.unread == self.unread[stream.id]
            assert stream.credited <= stream.sent
            if not session.cut:  # a frame comes off the window when it begins, and counts as unread as it comes
                assert stream.recv_window + stream.unread + stream.owed == WINDOW_BYTES


def frames_of(data: bytes) -> list[bytes]:
    found, position = [], 0
    while position < len(data):
        _, kind, _, _, length = struct.unpack_from(">BBHII", data, position)
        end = position + 12 + (length if kind == DATA else 0)
        found.append(data[position:end])
        position = end
    return found


def reordered(data: bytes, order: Random) -> bytes:
    """The same frames, those of different streams in any order: what a peer with a thread for each may send."""
    queues: dict[bytes, list[bytes]] = defaultdict(list)
    for each in reversed(frames_of(data)):
        queues[each[4:8]].append(each)
    picks = [stream for stream, queue in queues.items() for _ in queue]
    order.shuffle(picks)
    return b"".join(queues[stream].pop() for stream in picks)


seeds = st.integers(0, 2**32 - 1).map(Random)
sizes = st.one_of(st.integers(0, 40), st.integers(0, 3 * WINDOW_BYTES // 2))
steps = st.tuples(
    st.booleans(),
    st.sampled_from("open write write write finish reset consume consume take take deliver deliver".split()),
    st.integers(0, 7),
    sizes,
)
# Without a least size hypothesis makes short lists, which open and write and seldom get to the rest.
histories = st.one_of(st.lists(steps, max_size=30), st.lists(steps, min_size=40, max_size=120))
all_limits = st.sampled_from(
    [
        Limits(),
        Limits(max_frame_bytes=7_000, max_unacknowledged=3),
        Limits(max_unread_bytes=WINDOW_BYTES // 2, max_inbound_streams=2),
    ]
)


def settle(sides: tuple[Side, Side], order: Random) -> None:
    """Everything is finished, sent and read, until nothing moves."""
    for side in sides:
        for stream in side.streams:
            side.session.finish(stream)
    moved = True
    while moved:
        moved = False
        for side, other in (sides, sides[::-1]):
            while side.session.pending():
                side.take(1 << 20, order)
            data, side.wire = side.wire, b""
            moved = moved or bool(data)
            other.receive(data)
            for stream in other.streams:
                other.consume(stream, 1 << 30)
                other.session.finish(stream)
            other.check()


@many
@given(all_limits, histories, seeds)
def test_two_sessions_lose_nothing_and_keep_nothing(
    limits: Limits, history: list[tuple[bool, str, int, int]], order: Random
) -> None:
    sides = (Side(initiator=True, limits=limits), Side(initiator=False, limits=limits))
    sides[0].open()
    for first, what, pick, size in history:
        side, other = sides if first else sides[::-1]
        if what == "open":
            side.open()
        elif what == "take":
            side.take(size, order)
        elif what == "deliver":
            data, other.wire = other.wire[:size], other.wire[size:]
            side.receive(data)
        elif side.streams:
            stream = side.streams[pick % len(side.streams)]
            if what == "write":
                side.write(stream, size)
            elif what == "finish":
                side.session.finish(stream)
            elif what == "consume":
                side.consume(stream, size)
            else:
                side.reset(stream)
        side.check()

    settle(sides, order)

    for side, other in (sides, sides[::-1]):
        for stream in side.streams:
            assert stream.gone
            assert not stream.waiting
            if stream.id not in side.was_reset | other.was_reset:
                assert side.got[stream.id] == other.written[stream.id]
                assert stream.id in side.ended
                assert bool(side.written[stream.id]) == (stream.id in side.drained)
        assert (side.session.streams, side.session.unread, side.budget.left) == (0, 0, BUDGET_BYTES)
        assert not side.session.pending()
        assert not side.session.cut
    for _ in range(limits.max_unacknowledged):
        sides[0].session.open()


@some
@given(st.integers(WINDOW_BYTES, 8 * WINDOW_BYTES), st.integers(500, WINDOW_BYTES // 2), seeds)
@example(8 * WINDOW_BYTES, WINDOW_BYTES // 2, Random(1))
def test_a_reader_that_waits_for_half_a_window_stalls_nobody(total: int, bite: int, order: Random) -> None:
    sides = (Side(initiator=True, limits=Limits()), Side(initiator=False, limits=Limits()))
    writer, reader = sides
    writer.open()
    while writer.written[1] < total:
        writer.write(writer.streams[0], min(WINDOW_BYTES, total - writer.written[1]))
    moved = True
    while moved:
        moved = False
        for side, other in (sides, sides[::-1]):
            side.take(1 << 20, order)
            data, side.wire = side.wire, b""
            moved = moved or bool(data)
            other.receive(data)
        while reader.unread[1] >= bite:
            reader.consume(reader.streams[0], bite)
    assert reader.got[1] == total


# -- any bytes at all ------------------------------------------------------------------

TIGHT = Limits(
    max_inbound_streams=4, max_unread_bytes=3_000, max_answer_bytes=240, empty_frames=40, empty_frames_per_second=0.0
)

kinds = st.sampled_from([0, 0, 0, 1, 1, 2, 3])
lengths = st.one_of(
    st.integers(0, 3), st.integers(0, 2_000), st.sampled_from([WINDOW_BYTES, WINDOW_BYTES + 1, 2**31, 2**32 - 1])
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame with any fields, mostly with the payload that it announces."""
    kind, length = draw(kinds), draw(lengths)
    body = NOISE[: min(length, draw(st.sampled_from([4_000, 4_000, 4_000, 10])))] if kind == DATA else b""
    flags = draw(st.one_of(st.sampled_from([0, 0, SYN, SYN, 2, 4]), st.integers(0, 15)))
    version = draw(st.sampled_from([0] * 30 + [1]))
    return struct.pack(">BBHII", version, kind, flags, draw(st.integers(0, 9)), length) + body


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """What a session really sends, with some bytes changed, lost or doubled."""
    session = Session(initiator=True)
    for size in draw(st.lists(st.integers(0, 3_000), min_size=1, max_size=4)):
        stream = session.open()
        session.write(stream, NOISE[:size])
        draw(st.sampled_from([session.finish, session.reset, lambda _: None]))(stream)
    session.ping()
    data = bytearray(session.take(1 << 20))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        size = draw(st.integers(0, 20))
        change = draw(st.sampled_from(["flip", "lose", "double"]))
        if change == "flip":
            data[at] ^= draw(st.integers(1, 255))
        elif change == "lose" and len(data) > size:
            del data[at : at + size]
        else:
            data[at:at] = data[at : at + size]
        if not data:
            break
    return bytes(data)


traffic = st.one_of(st.binary(max_size=100), damaged(), st.lists(frames(), max_size=25).map(b"".join))


@many
@given(st.lists(traffic, max_size=4), st.lists(st.integers(1, 4_000), min_size=1, max_size=8), seeds)
def test_any_bytes_raise_nothing_but_a_yamux_error_and_keep_every_bound(
    sent: list[bytes], cuts: list[int], whim: Random
) -> None:
    budget = Budget(BUDGET_BYTES)
    session = Session(initiator=False, limits=TIGHT, budget=budget)
    ours = [session.open() for _ in range(2)]
    session.write(ours[0], bytes(300_000))
    session.take(1_000)
    data, position, received = b"".join(sent), 0, 0
    try:
        while position < len(data):
            part = data[position : position + cuts[received % len(cuts)]]
            position += len(part)
            received += 1
            for event in session.receive(part, received / 10):
                any_reaction(session, event, whim)
            assert session.unread <= TIGHT.max_unread_bytes
            assert session.streams <= TIGHT.max_inbound_streams + len(ours)
            assert budget.left == BUDGET_BYTES - session.unread
    except yamux.YamuxError:
        pass
    # Nobody read an answer: so many were queued when the last was asked for, and for each stream open then an
    # acknowledgement and an end or a reset; credit is too little traffic here to come into it.
    assert len(session.take(0)) <= TIGHT.max_answer_bytes + 12 * (1 + 2 * (TIGHT.max_inbound_streams + len(ours)))
    session.close()
    assert (session.streams, session.unread, budget.left) == (0, 0, BUDGET_BYTES)


def any_reaction(session: Session, event: Event, whim: Random) -> None:
    match event:
        case Opened(stream):
            whim.choice([session.accept, session.accept, session.accept, session.reset, session.finish])(stream)
        case Data(stream, part):
            session.consumed(stream, whim.choice([0, len(part) // 2, len(part), 10 * len(part)]))
            if not stream.finishing:
                session.write(stream, part)
        case Finished(stream):
            whim.choice([session.finish, session.finish, session.reset])(stream)
        case WasReset(stream, _):
            assert stream.gone


# -- cutting ---------------------------------------------------------------------------


def heard(session: Session, parts: list[bytes]) -> tuple[list[object], str, bytes]:
    """Events with neighbouring data joined, the reason of the end if any, and what is sent in answer."""
    events: list[object] = []
    reason = ""
    try:
        for part in parts:
            for event in session.receive(part, 0.0):
                match event:
                    case Data(stream, data):
                        session.consumed(stream, len(data))
                        match events:
                            case [*_, (stream_id, bytes(before))] if stream_id == stream.id:
                                events[-1] = (stream.id, before + data)
                            case _:
                                events.append((stream.id, data))
                    case Opened(stream) | Finished(stream) | WasReset(stream):
                        events.append((type(event), stream.id))
                    case _:
                        events.append(event)
    except yamux.YamuxError as error:
        reason = error.reason
    return events, reason, session.take(0)


@many
@given(traffic, st.integers(1, 20))
def test_how_the_bytes_are_cut_makes_no_difference(data: bytes, size: int) -> None:
    cuts = [[data], [data[at : at + 1] for at in range(len(data))]]
    cuts.append([data[at : at + size] for at in range(0, len(data), size)])
    whole, by_bytes, by_parts = (heard(Session(initiator=False), parts) for parts in cuts)
    assert whole[1] == by_bytes[1] == by_parts[1]
    if not whole[1]:  # with a fault, the events before it are lost with the call that raised
        assert whole == by_bytes == by_parts
