"""yamux by example: bytes as the specification has them, each way to break it, and what real peers do."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from p2pnode.core import yamux
from p2pnode.core.yamux import Budget, Data, Finished, GoneAway, Limits, Opened, Pong, Session, Stream, WasReset

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
KIB = 1024
WINDOW_BYTES = 256 * KIB


def frame(
    kind: int, flags: int, stream: int, length: int | None = None, body: bytes = b"", *, version: int = 0
) -> bytes:
    """Packed here, not by the machine's own encoder: a mistake in that must not hide in what it is fed."""
    return struct.pack(">BBHII", version, kind, flags, stream, len(body) if length is None else length) + body


def listening(limits: Limits | None = None, budget: Budget | None = None) -> Session:
    """The listener's side: its peer opens odd streams, it opens even ones."""
    return Session(initiator=False, limits=limits, budget=budget)


def opened(session: Session, stream_id: int = 1) -> Stream:
    """Stream `stream_id`, opened by the peer and accepted."""
    [event] = session.receive(frame(WINDOW, SYN, stream_id), 0.0)
    assert isinstance(event, Opened)
    session.accept(event.stream)
    session.take(0)
    return event.stream


def opens(session: Session) -> Stream:
    """A stream of ours, whose first frame has left."""
    stream = session.open()
    session.take(0)
    return stream


def reason_of(session: Session, data: bytes) -> str:
    with pytest.raises(yamux.YamuxError) as caught:
        session.receive(data, 0.0)
    return caught.value.reason


def headers(data: bytes) -> list[tuple[int, int, int, int]]:
    """Type, flags, stream and length of each frame."""
    found, position = [], 0
    while position < len(data):
        version, kind, flags, stream, length = struct.unpack_from(">BBHII", data, position)
        assert version == 0
        found.append((kind, flags, stream, length))
        position += 12 + (length if kind == DATA else 0)
    assert position == len(data)
    return found


# -- bytes, written down from the specification ----------------------------------------


def test_opening_a_stream_sends_a_window_update_with_syn() -> None:
    dialler, listener = Session(initiator=True), Session(initiator=False)
    assert [dialler.open().id, dialler.open().id] == [1, 3]
    assert dialler.take(0).hex() == "000100010000000100000000" + "000100010000000300000000"
    assert [listener.open().id, listener.open().id] == [2, 4]
    assert listener.take(0).hex() == "000100010000000200000000" + "000100010000000400000000"


def test_accepting_sends_a_window_update_with_ack() -> None:
    session = listening()
    [event] = session.receive(bytes.fromhex("000100010000000100000000"), 0.0)
    assert isinstance(event, Opened)
    session.accept(event.stream)
    assert session.take(0).hex() == "000100020000000100000000"


def test_data_is_a_header_and_its_payload() -> None:
    session = Session(initiator=True)
    session.write(opens(session), b"hello")
    assert session.take(KIB).hex() == "000000000000000100000005" + b"hello".hex()


def test_the_end_travels_on_the_last_data_frame() -> None:
    session = Session(initiator=True)
    stream = opens(session)
    session.write(stream, b"hi")
    session.finish(stream)
    assert session.take(KIB).hex() == "000000040000000100000002" + b"hi".hex()
    assert session.take(KIB) == b""


def test_the_end_of_a_stream_with_nothing_to_say_is_a_window_update_with_fin() -> None:
    session = Session(initiator=True)
    session.finish(opens(session))
    assert session.take(0).hex() == "000100040000000100000000"


def test_a_reset_is_a_window_update_with_rst() -> None:
    session = Session(initiator=True)
    session.reset(opens(session))
    assert session.take(0).hex() == "000100080000000100000000"


def test_credit_is_a_window_update_with_the_bytes_read() -> None:
    session = listening()
    stream = opened(session)
    session.receive(frame(DATA, 0, 1, body=bytes(128 * KIB)), 0.0)
    session.consumed(stream, 128 * KIB)
    assert session.take(0).hex() == "000100000000000100020000"


def test_a_ping_is_echoed_with_ack_and_ours_is_sent_with_syn() -> None:
    session = listening()
    assert session.receive(bytes.fromhex("0002000100000000deadbeef"), 0.0) == []
    assert session.take(0).hex() == "0002000200000000deadbeef"
    assert session.ping() == 1
    assert session.take(0).hex() == "000200010000000000000001"
    assert session.receive(bytes.fromhex("000200020000000000000001"), 0.0) == [Pong(1)]
    assert not session.pending()


@pytest.mark.parametrize(
    ("code", "sent"),
    [
        (yamux.GoAwayCode.NORMAL, "000300000000000000000000"),
        (yamux.GoAwayCode.PROTOCOL_ERROR, "000300000000000000000001"),
        (yamux.GoAwayCode.INTERNAL_ERROR, "000300000000000000000002"),
    ],
)
def test_go_away_carries_its_code(code: yamux.GoAwayCode, sent: str) -> None:
    session = Session(initiator=True)
    session.go_away(code)
    assert session.take(0).hex() == sent


# -- the ways to break the protocol ----------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("version", frame(DATA, 0, 1, version=1)),
        ("type", frame(4, 0, 1)),
        ("stream-zero", frame(DATA, 0, 0)),
        ("stream-zero", frame(WINDOW, SYN, 0)),
        ("parity", frame(WINDOW, SYN, 2)),
        ("duplicate-stream", frame(WINDOW, SYN, 1) * 2),
        ("unknown-stream", frame(DATA, 0, 1)),
        ("unknown-stream", frame(WINDOW, RST, 2)),
        ("unknown-stream", frame(WINDOW, SYN, 1) + frame(WINDOW, 0, 3)),
        ("window-overrun", frame(DATA, SYN, 1, WINDOW_BYTES + 1)),
        ("window-overrun", frame(DATA, SYN, 1, 2**32 - 1)),
        ("window-overrun", frame(DATA, SYN | RST, 1, 2**32 - 1)),
        ("window-overflow", frame(WINDOW, SYN, 1, 2**32 - WINDOW_BYTES)),
        ("after-fin", frame(WINDOW, SYN | FIN, 1) + frame(DATA, 0, 1, body=b"x")),
    ],
)
def test_the_smallest_input_that_breaks_each_rule(reason: str, data: bytes) -> None:
    session = listening()
    assert reason_of(session, data) == reason
    session.close()
    assert session.streams == 0


@pytest.mark.parametrize(
    "data",
    [
        frame(DATA, SYN, 1, WINDOW_BYTES),
        frame(WINDOW, SYN, 1, 2**32 - 1 - WINDOW_BYTES),
        frame(WINDOW, SYN | FIN, 1) + frame(WINDOW, 0, 1, 1) + frame(DATA, FIN, 1),
    ],
)
def test_the_largest_input_within_each_rule_is_taken(data: bytes) -> None:
    session = listening()
    session.receive(data, 0.0)
    assert session.streams == 1


def test_the_window_is_counted_over_frames() -> None:
    session = listening()
    opened(session)
    session.receive(frame(DATA, 0, 1, body=bytes(WINDOW_BYTES)), 0.0)
    assert reason_of(session, frame(DATA, 0, 1, body=b"x")) == "window-overrun"


@pytest.mark.parametrize(
    "useless",
    [
        frame(PING, SYN, 0, 7),
        frame(PING, ACK, 0, 7),
        frame(GO_AWAY, 0, 0, 0),
        frame(DATA, 0, 1),
        frame(WINDOW, 0, 1),
        frame(WINDOW, ACK, 1),
        frame(DATA, 0, 3),
        frame(WINDOW, RST, 3),
        frame(WINDOW, FIN, 5),
        frame(DATA, FIN, 5),
    ],
)
def test_a_flood_of_frames_that_carry_nothing_ends_the_session(useless: bytes) -> None:
    session = listening(Limits(empty_frames=50))
    opened(session, 1)
    session.reset(opened(session, 3))
    session.receive(frame(WINDOW, SYN | FIN, 5), 0.0)
    session.receive(useless * 50, 0.0)
    assert reason_of(session, useless) == "flood"


def test_a_flood_of_streams_opened_and_reset_ends_the_session() -> None:
    session = listening()
    both = b"".join(frame(WINDOW, SYN | RST, number) for number in range(1, 20_001, 2))
    assert reason_of(session, both) == "flood"


@pytest.mark.parametrize("early", [b"", b"x"])
def test_a_flood_of_ten_thousand_refused_streams_ends_the_session(early: bytes) -> None:
    session = listening()
    for number in range(1, 513, 2):
        opened(session, number)
    refused = b"".join(frame(DATA, SYN, number, body=early) for number in range(513, 20_513, 2))
    assert reason_of(session, refused) == "flood"
    assert session.streams == 256


def test_the_allowance_of_empty_frames_comes_back_with_time() -> None:
    session = listening(Limits(empty_frames=10, empty_frames_per_second=2.0))
    session.receive(frame(PING, ACK, 0, 1) * 10, 100.0)
    session.receive(frame(PING, ACK, 0, 1) * 4, 102.0)
    session.receive(frame(PING, ACK, 0, 1) * 10, 1_000.0)
    with pytest.raises(yamux.YamuxError, match="more than 10"):
        session.receive(frame(PING, ACK, 0, 1), 1_000.0)


def test_frames_that_carry_something_cost_no_allowance() -> None:
    session = listening(Limits(empty_frames=0))
    ours = opens(session)
    session.receive(frame(WINDOW, ACK, ours.id), 0.0)
    stream = opened(session)
    for _ in range(100):
        session.receive(frame(DATA, 0, 1, body=b"x") + frame(WINDOW, 0, 1, 1), 0.0)
    session.receive(frame(DATA, FIN, 1), 0.0)
    assert stream.remote_finished


def ping_and_read_nothing(session: Session) -> None:
    for number in range(20):
        session.receive(frame(PING, SYN, 0, number), 0.0)


def open_and_read_nothing(session: Session) -> None:
    for number in range(1, 41, 2):
        opening, _ = session.receive(frame(WINDOW, SYN | FIN, number), 0.0)
        assert isinstance(opening, Opened)
        session.accept(opening.stream)
        session.finish(opening.stream)


@pytest.mark.parametrize("ask", [ping_and_read_nothing, open_and_read_nothing])
def test_a_peer_that_asks_and_reads_no_answers_is_left(ask: Callable[[Session], None]) -> None:
    session = listening(Limits(max_answer_bytes=120))
    with pytest.raises(yamux.YamuxError) as caught:
        ask(session)
    assert caught.value.reason == "unread-answers"
    assert len(session.take(0)) <= 120 + 2 * 12


def test_a_peer_that_reads_its_answers_may_ask_on() -> None:
    session = listening(Limits(max_answer_bytes=120))
    for number in range(100):
        session.receive(frame(PING, SYN, 0, number), 0.0)
        assert headers(session.take(0)) == [(PING, ACK, 0, number)]


# -- tolerance towards real peers ------------------------------------------------------


def test_streams_may_be_opened_in_any_order() -> None:
    session = listening()
    events = session.receive(frame(WINDOW, SYN, 5) + frame(DATA, SYN, 1, body=b"x") + frame(WINDOW, SYN, 3), 0.0)
    streams = [event.stream for event in events if isinstance(event, Opened)]
    assert [stream.id for stream in streams] == [5, 1, 3]
    session.reset(streams[0])
    assert session.receive(frame(DATA, 0, 5, body=b"under way"), 0.0) == []


@pytest.mark.parametrize("kind", [DATA, WINDOW])
def test_an_ack_may_come_on_data_or_on_a_window_update(kind: int) -> None:
    session = Session(initiator=True, limits=Limits(max_unacknowledged=1))
    stream = opens(session)
    body = b"answer" if kind == DATA else b""
    session.receive(frame(kind, ACK, 1, body=body), 0.0)
    assert stream.acknowledged
    session.open()


def test_a_syn_may_come_with_data_an_end_and_a_wider_window() -> None:
    session = listening()
    first, data, end = session.receive(frame(DATA, SYN | FIN, 1, body=b"all"), 0.0)
    assert isinstance(first, Opened)
    assert (data, end) == (Data(first.stream, b"all"), Finished(first.stream))
    [wider] = session.receive(frame(WINDOW, SYN, 3, 100), 0.0)
    assert isinstance(wider, Opened)
    assert wider.stream.send_window == WINDOW_BYTES + 100


@pytest.mark.parametrize("body", [b"", b"what nobody wants"])
def test_a_reset_may_come_on_a_data_frame_whose_payload_is_dropped(body: bytes) -> None:
    session = listening()
    stream = opened(session)
    assert session.receive(frame(DATA, RST, 1, body=body) + frame(GO_AWAY, 0, 0, 0), 0.0) == [
        WasReset(stream, ""),
        GoneAway(0),
    ]
    assert stream.gone
    assert session.streams == 0


def test_empty_data_frames_are_nothing_and_may_carry_the_end() -> None:
    session = listening()
    stream = opened(session)
    assert session.receive(frame(DATA, 0, 1), 0.0) == []
    assert session.receive(frame(DATA, FIN, 1), 0.0) == [Finished(stream)]
    assert session.receive(frame(DATA, FIN, 1) + frame(WINDOW, FIN, 1), 0.0) == []


def test_data_under_way_when_we_reset_is_dropped_up_to_the_window_and_no_further() -> None:
    session = listening(Limits(empty_frames=0))
    session.reset(opened(session))
    small = frame(DATA, 0, 1, body=bytes(64))
    assert session.receive(small * (WINDOW_BYTES // 64), 0.0) == []
    assert reason_of(session, frame(DATA, 0, 1, body=b"x")) == "window-overrun"


def test_credit_for_closed_streams_is_dropped() -> None:
    # js-libp2p gives credit for each data frame it reads, so a window of small frames brings thousands.
    session = listening(Limits(empty_frames=0))
    session.reset(opened(session))
    assert session.receive(frame(WINDOW, 0, 1, 64) * 5_000, 0.0) == []
    assert not session.receive(frame(DATA, 0, 1, body=b"late"), 0.0)


def test_what_was_read_before_a_reset_is_not_allowed_again() -> None:
    session = listening()
    stream = opened(session)
    session.receive(frame(DATA, 0, 1, body=bytes(100)), 0.0)
    session.reset(stream)
    session.receive(frame(DATA, 0, 1, WINDOW_BYTES - 100, bytes(WINDOW_BYTES - 100)), 0.0)
    assert reason_of(session, frame(DATA, 0, 1, body=b"x")) == "window-overrun"


@pytest.mark.parametrize("ending", [frame(WINDOW, RST, 1), frame(WINDOW, FIN, 1)])
def test_a_peer_that_ended_its_side_may_send_nothing_more(ending: bytes) -> None:
    session = listening()
    stream = opened(session)
    session.receive(ending, 0.0)
    session.reset(stream)
    assert reason_of(session, frame(DATA, 0, 1, body=b"x")) == "window-overrun"


def test_data_for_a_refused_stream_is_dropped_up_to_its_window() -> None:
    session = listening(Limits(max_inbound_streams=1))
    opened(session)
    assert session.receive(frame(DATA, SYN, 3, body=b"early"), 0.0) == []
    assert headers(session.take(0)) == [(WINDOW, RST, 3, 0)]
    assert session.receive(frame(DATA, 0, 3, body=bytes(WINDOW_BYTES - 5)), 0.0) == []
    assert reason_of(session, frame(DATA, 0, 3, body=b"x")) == "window-overrun"


def test_our_reset_in_the_middle_of_a_payload_drops_the_rest_of_it() -> None:
    session = listening()
    stream, other = opened(session), opened(session, 3)
    data = frame(DATA, FIN, 1, body=bytes(1_000)) + frame(DATA, 0, 3, body=b"intact")
    assert session.receive(data[:500], 0.0) == [Data(stream, bytes(488))]
    assert session.cut
    session.reset(stream)
    assert session.unread == 0
    assert session.receive(data[500:], 0.0) == [Data(other, b"intact")]
    # The whole frame came off the window when its header came: what is left of it is all the peer may still send.
    session.receive(frame(DATA, 0, 1, body=bytes(WINDOW_BYTES - 1_000)), 0.0)
    assert reason_of(session, frame(DATA, 0, 1, body=b"x")) == "window-overrun"
