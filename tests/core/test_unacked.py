"""What a stream sends again, and what an acknowledgement covers."""

from __future__ import annotations

from p2pnode.core.unacked import Unacked, ack_seconds


def sent(*arrivals: int, cursor: int = 0) -> Unacked:
    made = Unacked(cursor)
    for arrival in arrivals:
        made.send(arrival, 0.0)
    return made


def test_an_acknowledgement_covers_everything_before_it() -> None:
    made = sent(1, 2, 5, 9)
    assert made.ack(5) == [1, 2, 5]
    assert (made.cursor, len(made)) == (8, 1)
    assert made.ack(5) == []
    assert made.ack(9) == [9]
    assert made.cursor == 9


def test_what_was_acknowledged_ahead_of_the_stream_moves_it() -> None:
    made = sent(1, 2)
    assert made.ack(7) == [1, 2]
    assert (made.cursor, made.read) == (7, 7)


def test_one_message_taken_out_leaves_the_cursor_before_the_oldest() -> None:
    made = sent(1, 2, 3)
    assert made.drop(2)
    assert not made.drop(2)
    assert made.cursor == 0
    assert made.ack(1) == [1]
    assert made.cursor == 2


def test_the_pause_before_it_is_sent_again_doubles_to_five_minutes() -> None:
    assert [ack_seconds(n) for n in (1, 2, 3, 4, 5, 50)] == [30, 60, 120, 240, 300, 300]
    made = sent(1, 2)
    assert made.wait(10.0) == 20
    assert made.due(29.9) is None
    assert [made.due(30.0), made.due(30.0), made.due(30.0)] == [1, 2, None]
    assert made.wait(30.0) == 60


def test_what_is_in_flight_is_bounded() -> None:
    made = sent(*range(1, 257))
    assert made.room == 0
    made.ack(1)
    assert made.room == 1


def test_a_dead_letter_sent_again_is_covered_by_what_was_sent_after_it_only() -> None:
    made = sent(11, 12, cursor=10)
    made.send(4, 0.0, letter=True)
    assert made.ack(11) == [11]
    assert made.cursor == 11
    made.send(13, 0.0)
    assert made.ack(12) == [12]
    assert 4 in made
    assert made.ack(13) == [4, 13]
    made.send(4, 0.0, letter=True)
    made.send(14, 0.0)
    assert made.ack(4) == [4]
    assert made.cursor == 13
