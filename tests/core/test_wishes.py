"""What a peer showed that we lack is kept until it is pulled, within bounds."""

from __future__ import annotations

from p2pnode.core.peerid import PeerId
from p2pnode.core.wishes import MAX_OF_ALL, MAX_OF_ONE, Wishes

A, B = PeerId("a"), PeerId("b")


def keys(count: int, start: int = 0) -> dict[bytes, bytes]:
    return {number.to_bytes(62, "big"): bytes(16) for number in range(start, start + count)}


def test_what_is_taken_is_forgotten_and_belongs_to_its_peer() -> None:
    wishes = Wishes()
    wishes.add(A, keys(3))
    wishes.add(A, keys(3, start=2))
    wishes.add(B, keys(1))
    assert wishes.take(A) == (keys(5), False)
    assert wishes.take(A) == ({}, False)
    wishes.forget(B)
    assert (len(wishes), wishes.take(B)) == (0, ({}, False))


def test_one_peer_cannot_have_us_remember_more_than_its_share() -> None:
    wishes = Wishes()
    wishes.add(A, keys(MAX_OF_ONE))
    wishes.add(A, keys(10, start=5))
    assert wishes.take(A) == (keys(MAX_OF_ONE), False)
    wishes.add(A, keys(MAX_OF_ONE + 1))
    assert wishes.take(A) == (keys(MAX_OF_ONE), True)


def test_all_peers_together_are_bounded_and_who_found_no_room_is_asked_again() -> None:
    wishes = Wishes()
    peers = [PeerId(str(number)) for number in range(MAX_OF_ALL // MAX_OF_ONE + 3)]
    for number, peer in enumerate(peers):
        wishes.add(peer, keys(MAX_OF_ONE, start=number * MAX_OF_ONE))
    assert len(wishes) == MAX_OF_ALL
    assert [wishes.take(peer)[1] for peer in peers] == [False] * 4 + [True] * 3
