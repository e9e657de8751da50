"""Messages that wait to be passed on: to whom they go in the end, in which order, and how many may wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pnode.core.message import MessageId, SignedMessage, Topic
from p2pnode.core.peerid import PeerId
from p2pnode.node.forwarding import MAX_WAITING, Forwarding

A, B, C = (PeerId(name) for name in "abc")


def numbered(number: int) -> SignedMessage:
    return SignedMessage(b"origin", number.to_bytes(8, "big"), Topic("t"), b"", b"signature", b"", b"raw")


class Turn:
    """What was passed on, and what is to be done when the turn is over."""

    def __init__(self) -> None:
        self.sent: list[tuple[MessageId, tuple[PeerId, ...]]] = []
        self.calls: list[Callable[[], None]] = []
        self.forwarding = Forwarding(self._send, self.calls.append)

    def _send(self, message: SignedMessage, peers: Sequence[PeerId]) -> None:
        self.sent.append((message.id, tuple(peers)))

    def end(self) -> None:
        calls, self.calls[:] = self.calls[:], []
        for call in calls:
            call()


def test_messages_are_passed_on_in_order_when_the_turn_is_over() -> None:
    turn = Turn()
    first, second = numbered(1), numbered(2)
    turn.forwarding.add(first, (A, B))
    turn.forwarding.add(second, (B,))
    assert (turn.sent, len(turn.forwarding)) == ([], 2)
    turn.end()
    assert turn.sent == [(first.id, (A, B)), (second.id, (B,))]
    turn.forwarding.add(third := numbered(3), (C,))
    turn.end()
    assert turn.sent[2:] == [(third.id, (C,))]


def test_who_has_a_message_by_then_is_spared_it_and_nobody_else() -> None:
    turn = Turn()
    one, other = numbered(1), numbered(2)
    turn.forwarding.add(one, (A, B, C))
    turn.forwarding.add(other, (B,))
    turn.forwarding.spare(B, one.id)
    turn.forwarding.spare(C, numbered(3).id)
    turn.end()
    assert turn.sent == [(one.id, (A, C)), (other.id, (B,))]


def test_a_message_that_all_have_by_then_is_not_passed_on() -> None:
    turn = Turn()
    turn.forwarding.add(message := numbered(1), (A,))
    turn.forwarding.spare(A, message.id)
    turn.end()
    assert turn.sent == []


def test_no_more_than_so_many_wait() -> None:
    turn = Turn()
    for number in range(MAX_WAITING):
        turn.forwarding.add(numbered(number), (A,))
    assert turn.sent == []
    turn.forwarding.add(numbered(MAX_WAITING), (A,))
    assert (len(turn.sent), len(turn.forwarding)) == (MAX_WAITING + 1, 0)
    turn.end()
    assert len(turn.sent) == MAX_WAITING + 1
