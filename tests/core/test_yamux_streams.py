"""yamux by example: how streams end, share the connection, and are bounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pnode.core import yamux
from p2pnode.core.yamux import Budget, Data, Finished, GoneAway, Limits, Opened, Session, Stream, WasReset
from p2pnode.errors import Unavailable
from tests.core.test_yamux import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    KIB,
    RST,
    SYN,
    WINDOW,
    WINDOW_BYTES,
    frame,
    headers,
    listening,
    opened,
    opens,
    reason_of,
)

# -- ending ----------------------------------------------------------------------------


def test_a_stream_that_we_end_first_is_read_to_its_end() -> None:
    session = listening()
    stream = opened(session)
    session.finish(stream)
    assert headers(session.take(0)) == [(WINDOW, FIN, 1, 0)]
    assert session.receive(frame(DATA, 0, 1, body=b"more"), 0.0) == [Data(stream, b"more")]
    assert session.receive(frame(DATA, FIN, 1, body=b"last"), 0.0) == [Data(stream, b"last"), Finished(stream)]
    assert (stream.gone, session.streams) == (True, 0)


def test_a_stream_that_the_peer_ends_first_is_written_to_its_end() -> None:
    session = listening()
    stream = opened(session)
    assert session.receive(frame(WINDOW, FIN, 1), 0.0) == [Finished(stream)]
    session.write(stream, b"answer")
    session.finish(stream)
    assert not stream.finished
    assert headers(session.take(KIB)) == [(DATA, FIN, 1, 6)]
    assert stream.gone
    assert session.streams == 0


def test_the_end_waits_for_the_window_with_the_data_before_it() -> None:
    session = listening()
    stream = opened(session)
    session.write(stream, bytes(WINDOW_BYTES + 1))
    session.finish(stream)
    assert [flags for _, flags, _, _ in headers(session.take(1 << 20))] == [0, 0, 0, 0]
    assert not session.pending()
    session.receive(frame(WINDOW, 0, 1, 10), 0.0)
    assert headers(session.take(1 << 20)) == [(DATA, FIN, 1, 1)]


def test_a_stream_that_was_finished_takes_no_more_data() -> None:
    session = listening()
    stream = opened(session)
    session.finish(stream)
    session.finish(stream)
    assert headers(session.take(0)) == [(WINDOW, FIN, 1, 0)]
    with pytest.raises(ValueError, match="stream 1 was finished"):
        session.write(stream, b"x")


def test_what_is_done_to_a_stream_that_the_peer_just_reset_is_nothing() -> None:
    # `receive` digests all that came before its caller sees the first event.
    session = listening()
    events = session.receive(frame(DATA, SYN, 1, body=b"x") + frame(WINDOW, RST, 1), 0.0)
    assert isinstance(events[0], Opened)
    stream = events[0].stream
    assert events[1:] == [Data(stream, b"x"), WasReset(stream, "")]
    session.accept(stream)
    session.write(stream, b"answer")
    session.consumed(stream, 1)
    session.finish(stream)
    session.reset(stream)
    assert not session.pending()
    assert (session.take(KIB), session.drained(), stream.waiting) == (b"", [], 0)


def test_a_reset_drops_what_waits_and_its_place_in_the_turn() -> None:
    session = listening()
    first, second = opened(session), opened(session, 3)
    session.write(first, bytes(KIB))
    session.write(second, b"hi")
    session.reset(first)
    assert headers(session.take(1 << 20)) == [(WINDOW, RST, 1, 0), (DATA, 0, 3, 2)]
    assert session.drained() == [second]


def test_a_reset_reported_by_the_peer_needs_no_answer() -> None:
    session = listening()
    stream = opened(session)
    session.write(stream, b"late")
    assert session.receive(frame(WINDOW, RST, 1), 0.0) == [WasReset(stream, "")]
    assert session.take(KIB) == b""


# -- windows and turns -----------------------------------------------------------------


def test_no_more_is_sent_than_the_window_holds() -> None:
    session = Session(initiator=True)
    stream = opens(session)
    session.write(stream, bytes(WINDOW_BYTES + 5))
    assert sum(length for *_, length in headers(session.take(1 << 20))) == WINDOW_BYTES
    assert (stream.waiting, session.drained(), session.pending()) == (5, [], False)
    session.write(stream, b"more")
    assert not session.pending()
    session.receive(frame(WINDOW, 0, 1, 3), 0.0)
    assert headers(session.take(1 << 20)) == [(DATA, 0, 1, 3)]
    session.receive(frame(WINDOW, 0, 1, 100), 0.0)
    assert headers(session.take(1 << 20)) == [(DATA, 0, 1, 6)]
    assert session.drained() == [stream]
    assert session.drained() == []


def test_credit_is_given_by_halves_of_the_window() -> None:
    session = listening()
    stream = opened(session)
    session.receive(frame(DATA, 0, 1, body=bytes(WINDOW_BYTES)), 0.0)
    session.consumed(stream, 128 * KIB - 1)
    assert not session.pending()
    session.consumed(stream, 1)
    assert headers(session.take(0)) == [(WINDOW, 0, 1, 128 * KIB)]
    session.consumed(stream, 1)
    assert not session.pending()
    session.receive(frame(DATA, 0, 1, body=bytes(128 * KIB)), 0.0)
    assert reason_of(session, frame(DATA, 0, 1, body=b"x")) == "window-overrun"


def test_who_will_send_no_more_gets_no_more_credit() -> None:
    session = listening()
    stream = opened(session)
    session.receive(frame(DATA, FIN, 1, body=bytes(WINDOW_BYTES)), 0.0)
    session.consumed(stream, WINDOW_BYTES)
    assert not session.pending()
    assert session.unread == 0


def test_nothing_more_is_credited_than_came() -> None:
    session = listening()
    stream = opened(session)
    session.receive(frame(DATA, 0, 1, body=b"abc"), 0.0)
    session.consumed(stream, WINDOW_BYTES)
    assert not session.pending()
    assert session.unread == 0


def test_credit_beyond_what_was_sent_is_a_wider_window_and_nothing_read() -> None:
    session = Session(initiator=True)
    stream = opens(session)
    session.receive(frame(WINDOW, ACK, 1, 1 << 20), 0.0)
    assert (stream.send_window, stream.credited) == (WINDOW_BYTES + (1 << 20), 0)
    session.write(stream, bytes(1_000))
    session.take(1 << 20)
    session.receive(frame(WINDOW, 0, 1, 600), 0.0)
    assert (stream.sent, stream.credited) == (1_000, 600)


def test_streams_take_turns() -> None:
    session = Session(initiator=True)
    large, small = opens(session), opens(session)
    session.receive(frame(WINDOW, ACK, 1, 8 << 20), 0.0)
    session.write(large, bytes(8 << 20))
    session.write(small, bytes(10))
    sent = headers(session.take(256 * KIB))
    assert [(stream, length) for _, _, stream, length in sent[:3]] == [(1, 64 * KIB), (3, 10), (1, 64 * KIB)]
    assert session.drained() == [small]
    session.write(small, bytes(20))
    assert (DATA, 0, 3, 20) in headers(session.take(128 * KIB))


def test_a_take_of_nothing_gives_control_frames_only() -> None:
    session = Session(initiator=True)
    session.write(session.open(), b"data")
    assert headers(session.take(0)) == [(WINDOW, SYN, 1, 0)]
    assert session.pending()
    assert headers(session.take(1)) == [(DATA, 0, 1, 4)]


def test_a_write_of_nothing_sends_nothing() -> None:
    session = Session(initiator=True)
    session.write(opens(session), b"")
    assert not session.pending()


def test_chunks_are_cut_and_joined_as_frames_need() -> None:
    session = Session(initiator=True, limits=Limits(max_frame_bytes=4))
    stream = opens(session)
    for part in (b"a", b"bcdefghi", b"j", b"klm"):
        session.write(stream, part)
    sent = session.take(KIB)
    assert b"".join(sent[at + 12 : at + 16] for at in range(0, len(sent), 16)) == b"abcdefghijklm"
    assert [length for *_, length in headers(sent)] == [4, 4, 4, 1]


# -- bounds ----------------------------------------------------------------------------


def test_no_more_streams_are_opened_than_the_peer_may_keep_unacknowledged() -> None:
    session = Session(initiator=True)
    streams = [session.open() for _ in range(256)]
    with pytest.raises(Unavailable) as caught:
        session.open()
    assert caught.value.reason == "stream-backlog"
    session.receive(frame(WINDOW, ACK, streams[7].id), 0.0)
    session.open()
    session.reset(streams[8])
    session.open()
    session.receive(frame(WINDOW, RST, streams[9].id), 0.0)
    session.open()
    session.reset(streams[7])
    with pytest.raises(Unavailable):
        session.open()


def test_stream_numbers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(initiator=True)
    monkeypatch.setattr(session, "_next_id", 2**32 - 1)
    session.open()
    with pytest.raises(Unavailable) as caught:
        session.open()
    assert caught.value.reason == "stream-numbers"
    assert headers(session.take(0)) == [(WINDOW, SYN, 2**32 - 1, 0)]


def test_a_stream_that_ends_makes_room_for_another() -> None:
    session = listening(Limits(max_inbound_streams=1))
    for number, end in ((1, session.reset), (3, session.finish), (5, session.reset)):
        stream = opened(session, number)
        end(stream)
        if not stream.gone:
            session.receive(frame(WINDOW, FIN, number), 0.0)
        session.take(0)
    opened(session, 7)
    assert session.receive(frame(WINDOW, SYN, 9), 0.0) == []
    assert headers(session.take(0)) == [(WINDOW, RST, 9, 0)]


def test_the_limit_of_unread_bytes_resets_only_the_stream_that_exceeds_it() -> None:
    session = listening(Limits(max_unread_bytes=100))
    first, second, third = (opened(session, number) for number in (1, 3, 5))
    session.receive(frame(DATA, 0, 1, body=bytes(90)), 0.0)
    assert session.receive(frame(DATA, 0, 3, body=bytes(11)) + frame(DATA, 0, 5, body=bytes(10)), 0.0) == [
        WasReset(second, "unread-limit"),
        Data(third, bytes(10)),
    ]
    assert headers(session.take(0)) == [(WINDOW, RST, 3, 0)]
    assert (first.gone, second.gone, third.gone, session.unread) == (False, True, False, 100)


def test_a_budget_is_shared_and_given_back() -> None:
    budget = Budget(100, share_bytes=0)
    one, two = listening(budget=budget), listening(budget=budget)
    first, second = opened(one), opened(two)
    one.receive(frame(DATA, 0, 1, body=bytes(60)), 0.0)
    two.receive(frame(DATA, 0, 1, body=bytes(40)), 0.0)
    assert budget.left == 0
    one.consumed(first, 60)
    two.receive(frame(DATA, 0, 1, body=bytes(60)), 0.0)
    assert one.receive(frame(DATA, 0, 1, body=b"x"), 0.0) == [WasReset(first, "unread-limit")]
    two.reset(second)
    assert budget.left == 100


def test_a_session_has_its_share_however_much_the_others_hold() -> None:
    budget = Budget(100, share_bytes=10)
    greedy, modest = listening(budget=budget), listening(budget=budget)
    opened(greedy)
    stream = opened(modest)
    greedy.receive(frame(DATA, 0, 1, body=bytes(100)), 0.0)
    assert modest.receive(frame(DATA, 0, 1, body=bytes(10)), 0.0) == [Data(stream, bytes(10))]
    assert modest.receive(frame(DATA, 0, 1, body=b"x"), 0.0) == [WasReset(stream, "unread-limit")]
    greedy.close()
    assert budget.left == 100


def end_both_sides(session: Session, stream: Stream) -> None:
    session.finish(stream)
    session.receive(frame(WINDOW, FIN, stream.id), 0.0)


def reset_by_peer(session: Session, stream: Stream) -> None:
    session.receive(frame(WINDOW, RST, stream.id), 0.0)


@pytest.mark.parametrize("end", [end_both_sides, reset_by_peer, Session.reset, lambda session, _: session.close()])
def test_however_a_stream_ends_its_unread_bytes_count_no_more(end: Callable[[Session, Stream], None]) -> None:
    # Whoever closed it may never read the rest; a peer could fill the budget for good with such streams.
    budget = Budget(100)
    session = listening(budget=budget)
    stream = opened(session)
    session.receive(frame(DATA, 0, 1, body=bytes(60)), 0.0)
    end(session, stream)
    assert (stream.gone, session.unread, budget.left) == (True, 0, 100)
    session.consumed(stream, 60)
    assert (session.unread, budget.left) == (0, 100)


def test_close_gives_everything_back() -> None:
    budget = Budget(1_000)
    session = listening(budget=budget)
    held, half = opened(session, 1), opened(session, 3)
    ours = session.open()
    session.write(ours, bytes(10))
    session.receive(frame(DATA, 0, 1, body=bytes(100)) + frame(DATA, 0, 3, 200, bytes(50)), 0.0)
    session.close()
    session.close()
    assert (budget.left, session.unread, session.streams) == (1_000, 0, 0)
    assert (session.pending(), session.take(KIB), session.drained()) == (False, b"", [])
    assert held.gone
    assert half.gone
    assert ours.gone


# -- going away ------------------------------------------------------------------------


def test_nothing_is_opened_when_the_peer_goes_away() -> None:
    session = Session(initiator=True)
    stream = opens(session)
    assert session.receive(frame(GO_AWAY, 0, 0, 0), 0.0) == [GoneAway(0)]
    with pytest.raises(Unavailable) as caught:
        session.open()
    assert caught.value.reason == "gone-away"
    assert session.receive(frame(DATA, ACK, 1, body=b"still"), 0.0) == [Data(stream, b"still")]


def test_streams_are_refused_when_we_go_away() -> None:
    session = listening()
    stream = opened(session)
    session.go_away(yamux.GoAwayCode.NORMAL)
    assert session.receive(frame(WINDOW, SYN, 3), 0.0) == []
    assert headers(session.take(0)) == [(GO_AWAY, 0, 0, 0), (WINDOW, RST, 3, 0)]
    assert session.receive(frame(DATA, 0, 1, body=b"still"), 0.0) == [Data(stream, b"still")]
    with pytest.raises(Unavailable):
        session.open()


def test_a_connection_that_ends_within_a_frame_is_cut() -> None:
    session = listening()
    data = frame(DATA, SYN, 1, body=b"abc")
    cut = [session.cut]
    for byte in data:
        session.receive(bytes([byte]), 0.0)
        cut.append(session.cut)
    # Not cut at the ends; the place between header and payload is within the frame too.
    assert cut == [False, *[True] * (len(data) - 1), False]
