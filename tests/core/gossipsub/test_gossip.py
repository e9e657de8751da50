"""IHAVE, IWANT, IDONTWANT, flood publishing and fanout."""

from __future__ import annotations

import pytest

from p2pnode.core.gossipsub.events import (
    AppScore,
    Forward,
    PeerRefused,
    Priority,
    Protocol,
    Publish,
    RpcReceived,
    SendRpc,
    Subscribe,
    Unsubscribe,
    Validate,
)
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.rpc import IHave, Rpc
from p2pnode.core.message import MessageId, SignedMessage
from p2pnode.core.peerid import PeerId
from tests.core.gossipsub.kit import ME, OTHER, Kit, T, message, names, px, verify


def asked(kit: Kit, name: str) -> tuple[MessageId, ...]:
    return tuple(mid for rpc in kit.sent_to(name) for mid in rpc.iwant)


def own(number: int = 1, size: int = 5) -> SignedMessage:
    return message(number, origin=ME, data=b"x" * size)


def settled(count: int, **changes: object) -> Kit:
    """A router whose peers have had their first heartbeat."""
    kit = Kit(**changes).join().connect(*names(count))  # type: ignore[arg-type]
    kit.beat()
    return kit


def test_gossip_goes_to_d_lazy_peers_outside_the_mesh_for_three_heartbeats() -> None:
    kit = settled(20)
    kit.accepted("p0", message())
    for _ in range(3):
        kit.beat()
        assert len(kit.told()) == Params().d_lazy
        assert not kit.told().keys() & kit.mesh()
    kit.beat()
    assert kit.told() == {}


def test_gossip_goes_to_a_quarter_of_many_peers() -> None:
    kit = settled(105)
    kit.accepted("p0", message())
    kit.beat()
    assert len(kit.told()) == 25


def test_gossip_alone_may_wait_behind_messages() -> None:
    kit = settled(20)
    kit.accepted("p0", message())
    kit.beat()
    assert {each.priority for each in kit.some(SendRpc)} == {Priority.GOSSIP}


def test_a_peer_below_the_gossip_threshold_is_neither_told_nor_heard() -> None:
    kit = settled(6)
    (outside,) = set(names(6)) - kit.mesh()
    kit.do(AppScore(PeerId(outside), -150.0))
    kit.accepted("p0", message())
    kit.beat()
    assert outside not in kit.told()
    assert kit.rpc(outside, iwant=(message().id,)) == []
    assert kit.rpc(outside, ihave=(message(9).id,)) == []


def test_what_is_unknown_is_asked_for_and_what_is_known_is_not() -> None:
    kit = settled(3)
    kit.held.add(message(3).id)
    kit.accepted("p0", message(1))
    kit.rpc("p1", ihave=(message(1).id, message(2).id, message(3).id))
    assert asked(kit, "p1") == (message(2).id,)


def test_ids_that_cannot_be_ids_and_foreign_topics_are_not_asked_for() -> None:
    kit = settled(3)
    assert kit.rpc("p1", ihave=(MessageId(b"short"), MessageId(b"x" * 500))) == []
    rpc = Rpc(ihave=(IHave(OTHER, (message(1).id,)),))
    assert kit.do(RpcReceived(PeerId("p1"), rpc)) == []


def test_one_id_is_asked_of_three_peers_at_a_time() -> None:
    kit = settled(5)
    askings = []
    for name in names(5):
        kit.rpc(name, ihave=(message().id,))
        askings.append(bool(asked(kit, name)))
    assert askings == [True, True, True, False, False]
    kit.wait(1.1)
    kit.rpc("p0", ihave=(message().id,))
    assert not asked(kit, "p0")
    kit.rpc("p4", ihave=(message().id,))
    assert asked(kit, "p4")


def test_an_ihave_flood_is_cut_off_by_rpcs_and_by_ids() -> None:
    kit = settled(2)
    total = 0
    for batch in range(30):
        kit.rpc("p0", ihave=tuple(message(batch * 50 + n).id for n in range(50)))
        total += len(asked(kit, "p0"))
    assert total == 10 * 50
    kit.rpc("p1", ihave=tuple(message(10_000 + n).id for n in range(5_000)))
    assert len(asked(kit, "p1")) == 1_000
    kit.beat()
    kit.rpc("p0", ihave=(message(99_999).id,))
    assert asked(kit, "p0")


def test_who_never_keeps_its_promises_loses_mesh_and_ear() -> None:
    kit = settled(3)
    for second in range(30):
        kit.rpc("p0", ihave=tuple(message(second * 10 + n).id for n in range(10)))
        kit.wait(1)
    assert kit.count("control", "promise-broken") >= 10
    assert kit.score("p0") < Params().score.gossip_threshold
    assert "p0" not in kit.mesh()
    assert kit.rpc("p0", ihave=(message(99_999).id,)) == []
    assert kit.score("p1") == 0.0


def test_a_lost_answer_now_and_then_costs_nothing() -> None:
    kit = settled(3)
    for number in range(5):
        kit.rpc("p0", ihave=(message(number).id,))
        kit.wait(30)
    assert kit.score("p0") >= 0


def test_a_promise_is_kept_by_a_message_that_then_waits_or_is_refused() -> None:
    kit = settled(3, max_validations_per_peer=1)
    kit.rpc("p0", ihave=(message(1).id, message(2).id))
    kit.rpc("p0", message(1), message(2))
    assert len(kit.some(Validate)) == 1
    kit.wait(5)
    assert kit.count("control", "promise-broken") == 0


def test_iwant_is_answered_from_the_cache_three_times() -> None:
    kit = settled(3)
    kit.accepted("p0", message())
    answers = []
    for _ in range(5):
        kit.rpc("p1", iwant=(message().id,))
        answers.append(kit.some(Forward))
    assert answers[:3] == [[Forward(message(), (PeerId("p1"),), Priority.GOSSIP)]] * 3
    assert answers[3:] == [[], []]
    kit.rpc("p2", iwant=(message().id, message().id))
    assert len(kit.some(Forward)) == 1


def test_iwant_is_answered_for_ten_heartbeats() -> None:
    kit = settled(3)
    kit.accepted("p0", message())
    kit.beat(9)
    kit.rpc("p1", iwant=(message().id,))
    assert kit.some(Forward)
    kit.beat()
    kit.rpc("p2", iwant=(message().id,))
    assert kit.some(Forward) == []


def test_an_iwant_flood_is_cut_off_by_ids_and_by_bytes() -> None:
    kit = settled(3, max_iwant_bytes=300_000, max_iwant_ids=10)
    big = [message(n, data=b"x" * 150_000) for n in range(4)]
    kit.accepted("p0", *big)
    kit.rpc("p1", iwant=tuple(each.id for each in big))
    assert len(kit.some(Forward)) == 2
    kit.rpc("p2", iwant=tuple(message(100 + n).id for n in range(100)))
    kit.rpc("p2", iwant=(big[0].id,))
    assert kit.some(Forward) == []
    assert kit.count("control", "iwant-excess") == 3


def test_a_peer_that_joins_late_hears_of_the_last_messages_though_it_is_grafted() -> None:
    kit = settled(2)
    kit.accepted("p0", message())
    kit.connect("late")
    assert "late" in kit.mesh()
    kit.beat()
    assert kit.told() == {"late": {message().id}}
    kit.beat()
    assert "late" not in kit.told()


def test_a_message_published_before_anybody_is_there_reaches_the_first_who_comes() -> None:
    kit = Kit().join()
    assert kit.do(Publish(own())) == []
    assert kit.count("publish", "no-peers") == 1
    kit.beat()
    kit.connect("a")
    kit.beat()
    assert kit.told() == {"a": {own().id}}
    kit.rpc("a", iwant=(own().id,))
    assert kit.forwarded_to() == {"a"}


def test_what_a_full_queue_dropped_is_offered_again() -> None:
    kit = settled(2)
    kit.accepted("p0", message(1), message(2))
    kit.do(PeerRefused(PeerId("p1"), (message(1).id, message(77).id)))
    kit.beat()
    assert kit.told() == {"p1": {message(1).id}}
    kit.beat()
    assert kit.told() == {}


def test_what_is_owed_to_a_peer_is_bounded() -> None:
    kit = settled(2)
    kit.do(PeerRefused(PeerId("p1"), tuple(message(n).id for n in range(1_000))))
    assert kit.router.sizes()["owed"] == 256


def test_a_large_message_is_announced_as_unwanted_before_it_is_judged() -> None:
    kit = settled(4)
    kit.connect("old", protocol=Protocol.V1_1)
    large = message(data=b"x" * 10_000)
    notice, validate = kit.rpc("p0", large)
    assert isinstance(notice, SendRpc)
    assert set(notice.peers) == {"p1", "p2", "p3"}
    assert notice.rpc == Rpc(idontwant=(large.id,))
    assert isinstance(validate, Validate)
    assert kit.rpc("p1", message(2)) == [Validate(message(2), PeerId("p1"), "gossip")]


def test_what_a_peer_does_not_want_is_not_sent_to_it() -> None:
    kit = settled(4)
    kit.rpc("p1", idontwant=(message().id,))
    kit.accepted("p0", message())
    assert kit.forwarded_to() == {"p2", "p3"}
    assert kit.rpc("p1", iwant=(message().id,)) == []


def test_unwanted_notices_are_bounded_per_heartbeat_and_expire() -> None:
    kit = settled(3)
    kit.rpc("p1", idontwant=tuple(message(n).id for n in range(2_000)))
    assert kit.router.sizes()["unwanted"] == 512
    kit.beat(3)
    assert kit.router.sizes()["unwanted"] == 0


def test_own_messages_go_to_every_peer_in_the_topic_above_the_publish_threshold() -> None:
    kit = settled(20)
    kit.connect("elsewhere", topics=(OTHER,))
    kit.do(AppScore(PeerId("p3"), -250.0))
    (forward,) = kit.do(Publish(own()))
    assert isinstance(forward, Forward)
    assert forward.own
    assert set(forward.peers) == set(names(20)) - {"p3"}


@pytest.mark.parametrize("change", [{"flood_publish": False}, {"flood_publish_bytes": 100}])
def test_without_flood_or_too_large_own_messages_go_to_the_mesh(change: dict[str, object]) -> None:
    kit = settled(20, **change)
    kit.do(Publish(own(size=200)))
    assert kit.forwarded_to() == kit.mesh()


def test_an_own_message_is_not_taken_from_others_as_new() -> None:
    kit = settled(3)
    kit.do(Publish(own()))
    assert kit.rpc("p0", own()) == []
    assert kit.count("ignore", "duplicate") == 1


def test_publishing_again_sends_again() -> None:
    kit = settled(3)
    kit.do(Publish(own()))
    kit.connect("new")
    kit.do(Publish(own()))
    assert "new" in kit.forwarded_to()


def test_a_mesh_of_nobody_falls_back_on_topic_peers() -> None:
    kit = settled(3, flood_publish=False)
    for name in names(3):
        kit.rpc(name, prune=(px(),))
    assert kit.mesh() == set()
    kit.do(Publish(own()))
    assert kit.forwarded_to() == set(names(3))


def test_a_topic_we_only_publish_to_has_a_fanout_that_is_kept_and_expires() -> None:
    kit = Kit(flood_publish=False).connect(*names(20))
    kit.do(Publish(own(1)))
    first = kit.forwarded_to()
    assert len(first) == Params().d
    kit.do(Publish(own(2)))
    assert kit.forwarded_to() == first
    kit.wait(62)
    assert kit.router.sizes()["fanout_topics"] == 0


def test_a_fanout_becomes_the_mesh_and_advertises_until_then() -> None:
    kit = Kit(flood_publish=False).connect(*names(20))
    kit.do(Publish(own()))
    fanout = kit.forwarded_to()
    kit.beat()
    assert kit.told()
    kit.do(Subscribe(T))
    assert kit.mesh() == fanout


def test_fanouts_are_bounded() -> None:
    kit = Kit(flood_publish=False, fanout_topics=3)
    for number in range(10):
        each = message(number, origin=ME, topic=type(T)(f"topic{number}"))
        kit.do(Publish(each))
    assert kit.router.sizes()["fanout_topics"] == 3


def test_after_leaving_a_topic_its_messages_are_advertised_to_nobody() -> None:
    kit = settled(8)
    kit.accepted("p0", message())
    kit.do(Unsubscribe(T))
    kit.beat()
    assert kit.told() == {}
    assert verify(message())
