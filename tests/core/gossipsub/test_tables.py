"""The small tables: what they remember, for how long, and what happens at their bound."""

from __future__ import annotations

from p2pnode.core.gossipsub.backoff import Backoffs
from p2pnode.core.gossipsub.mcache import MessageCache
from p2pnode.core.gossipsub.promises import Promises
from p2pnode.core.gossipsub.seen import SeenCache, Status, fingerprint
from p2pnode.core.gossipsub.unwanted import Unwanted
from p2pnode.core.message import MessageId
from p2pnode.core.peerid import PeerId
from tests.core.gossipsub.kit import OTHER, T, message

A, B = PeerId("a"), PeerId("b")
X, Y, Z = MessageId(b"x"), MessageId(b"y"), MessageId(b"z")


def test_a_seen_id_is_forgotten_after_its_time() -> None:
    seen = SeenCache(300.0, 10)
    seen.add(X, 1, Status.VALID, 0.0)
    seen.expire(299.0)
    assert X in seen
    seen.expire(300.0)
    assert X not in seen
    assert len(seen) == 0


def test_at_the_bound_the_oldest_seen_id_goes_and_is_counted() -> None:
    seen = SeenCache(300.0, 2)
    for mid in (X, Y, Z):
        seen.add(mid, 1, Status.VALID, 0.0)
    assert (X in seen, Y in seen, Z in seen, seen.evicted, len(seen)) == (False, True, True, 1, 2)


def test_an_id_that_waits_for_its_verdict_is_not_evicted() -> None:
    seen = SeenCache(300.0, 2)
    seen.add(X, 1, Status.PENDING, 0.0)
    seen.add(Y, 1, Status.VALID, 0.0)
    seen.add(Z, 1, Status.VALID, 0.0)
    assert (X in seen, Y in seen, Z in seen) == (True, False, True)


def test_a_forgotten_id_can_come_again() -> None:
    seen = SeenCache(300.0, 2)
    seen.forget(seen.add(X, 1, Status.PENDING, 0.0))
    assert X not in seen
    again = seen.add(X, 2, Status.PENDING, 1.0)
    seen.expire(300.5)
    assert seen.get(X) is again


def test_the_fingerprint_tells_bodies_apart_and_not_encodings() -> None:
    first = message(1, data=b"one")
    reencoded = type(first)(first.origin, first.seqno, first.topic, first.data, first.signature, b"key", b"other raw")
    assert fingerprint(first) == fingerprint(reencoded)
    assert fingerprint(first) != fingerprint(message(1, data=b"two"))


def test_the_cache_advertises_the_newest_windows_and_serves_all() -> None:
    cache = MessageCache(4, 2, 10**6)
    old, new, other = message(1), message(2), message(3, topic=OTHER)
    cache.put(old.id, old)
    cache.shift()
    cache.shift()
    cache.put(new.id, new)
    cache.put(other.id, other)
    assert cache.gossip_ids(T) == [new.id]
    assert cache.get(old.id) is old
    cache.shift()
    cache.shift()
    assert cache.get(old.id) is None
    assert cache.get(new.id) is new


def test_the_cache_is_bounded_in_bytes() -> None:
    cache = MessageCache(4, 2, 1000)
    for number in range(30):
        each = message(number, data=b"x" * 54)
        cache.put(each.id, each)
        if number % 7 == 0:
            cache.shift()
    assert cache.bytes <= 1000
    assert len(cache) == 10
    assert cache.get(message(29).id) is not None
    assert len(cache.gossip_ids(T)) <= 10
    for _ in range(4):
        cache.shift()
    assert (len(cache), cache.bytes) == (0, 0)


def test_the_cache_counts_who_asked_how_often() -> None:
    cache = MessageCache(4, 2, 1000)
    cache.put(X, message(1))
    assert [cache.ask(X, peer) for peer in (A, A, B)] == [(message(1), 1), (message(1), 2), (message(1), 1)]
    assert cache.ask(Y, A) is None


def test_a_backoff_is_never_shortened_and_never_endless() -> None:
    backoffs = Backoffs(1.0, 600.0, 10)
    backoffs.add(T, A, 60.0, 0.0)
    backoffs.add(T, A, 10.0, 0.0)
    assert backoffs.end(T, A, 59.0) == 60.0
    backoffs.add(T, B, 1e9, 0.0)
    assert backoffs.end(T, B, 0.0) == 600.0


def test_we_wait_longer_than_we_ask_of_others() -> None:
    backoffs = Backoffs(1.0, 600.0, 10)
    backoffs.add(T, A, 60.0, 0.0)
    assert backoffs.end(T, A, 60.5) is None
    assert backoffs.blocks(T, A, 60.5)
    assert not backoffs.blocks(T, A, 61.0)
    backoffs.expire(61.0)
    assert len(backoffs) == 0


def test_backoffs_are_bounded() -> None:
    backoffs = Backoffs(1.0, 600.0, 3)
    for number in range(9):
        backoffs.add(T, PeerId(str(number)), 60.0, 0.0)
    assert len(backoffs) == 3
    assert backoffs.blocks(T, PeerId("8"), 0.0)


def test_only_a_tracked_promise_can_be_broken_and_only_once() -> None:
    promises = Promises(3.0, 1.0, 10)
    promises.ask(X, A, True, 0.0)
    promises.ask(Y, A, False, 0.0)
    assert promises.broken(2.9) == []
    assert promises.broken(3.0) == [A]
    assert promises.broken(9.0) == []
    assert not promises


def test_a_promise_is_kept_by_whoever_sends_the_message() -> None:
    promises = Promises(3.0, 1.0, 10)
    promises.ask(X, A, True, 0.0)
    promises.ask(X, B, True, 0.0)
    promises.kept(X)
    assert promises.broken(5.0) == []


def test_a_promise_asked_again_has_its_own_time() -> None:
    promises = Promises(3.0, 1.0, 10)
    promises.ask(X, A, True, 0.0)
    promises.kept(X)
    promises.ask(X, A, True, 2.0)
    assert promises.broken(3.5) == []
    assert promises.broken(5.0) == [A]


def test_a_peer_that_left_owes_nothing() -> None:
    promises = Promises(3.0, 1.0, 10)
    promises.ask(X, A, True, 0.0)
    promises.gone(A)
    assert promises.asked(X, B, 0.0) == (0, False)
    assert promises.broken(5.0) == []


def test_others_are_asked_when_patience_ends() -> None:
    promises = Promises(3.0, 1.0, 10)
    promises.ask(X, A, True, 0.0)
    assert promises.asked(X, B, 0.5) == (1, False)
    assert promises.asked(X, B, 1.0) == (0, False)
    assert promises.asked(X, A, 1.0) == (0, True)


def test_promises_are_bounded() -> None:
    promises = Promises(3.0, 1.0, 2)
    for mid in (X, Y, Z):
        promises.ask(mid, A, True, 0.0)
    assert len(promises) == 2
    assert promises.broken(3.0) == [A, A]


def test_unwanted_notices_expire_and_are_bounded() -> None:
    unwanted = Unwanted(2, 2)
    assert unwanted.add(X, A)
    assert unwanted.add(X, A)
    assert unwanted.add(X, B)
    assert not unwanted.add(Y, A)
    unwanted.shift()
    assert unwanted.get(X) == {A: None, B: None}
    unwanted.shift()
    assert unwanted.get(X) is None
    assert len(unwanted) == 0
