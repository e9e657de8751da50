"""The way of a message: the order of checks, verdicts, who gets it, who pays."""

from __future__ import annotations

import pytest

from p2pnode.core.gossipsub.events import (
    Deliver,
    Forward,
    Held,
    Inject,
    PeerDisconnected,
    PeerMisbehaved,
    Priority,
    Unsubscribe,
    Validate,
)
from p2pnode.core.gossipsub.params_score import ScoreParams, TopicScore
from p2pnode.core.message import Accept, Ignore, Reject
from p2pnode.core.peerid import PeerId
from tests.core.gossipsub.kit import ME, OTHER, STRANGER, Kit, T, forged, message, names, px, raw_of


def meshed(*peers: str, **changes: object) -> Kit:
    kit = Kit(**changes).join().connect(*peers)  # type: ignore[arg-type]
    kit.graft(*peers)
    assert kit.mesh() == set(peers)
    return kit


def test_an_accepted_message_is_forwarded_before_it_is_delivered() -> None:
    kit = meshed("a", "b", "c")
    assert kit.rpc("a", message()) == [Validate(message(), PeerId("a"), "gossip")]
    forward, deliver = kit.verdict(message())
    assert isinstance(forward, Forward)
    assert forward == Forward(message(), forward.peers, Priority.FORWARD)
    assert set(forward.peers) == {"b", "c"}
    assert deliver == Deliver(message(), PeerId("a"), "gossip", False)
    assert kit.count("accept", "relayed") == 1


def test_a_second_copy_is_neither_judged_nor_delivered_again() -> None:
    kit = meshed("a", "b")
    kit.accepted("a", message())
    assert kit.rpc("b", message()) == []
    assert kit.count("ignore", "duplicate") == 1


def test_a_copy_that_comes_during_validation_waits_and_is_not_sent_back() -> None:
    kit = meshed("a", "b", "c")
    kit.rpc("a", message())
    assert kit.rpc("b", message()) == []
    kit.verdict(message())
    assert kit.forwarded_to() == {"c"}
    assert len(kit.some(Deliver)) == 1


def test_a_message_never_goes_to_its_origin() -> None:
    kit = meshed("a", "b", "c")
    kit.accepted("a", message(origin=raw_of("c")))
    assert kit.forwarded_to() == {"b"}


def test_a_topic_we_never_subscribed_to_is_ignored_before_any_work() -> None:
    kit = meshed("a")
    assert kit.rpc("a", message(topic=OTHER, signature=b"bad")) == []
    assert kit.count("ignore", "unsubscribed") == 1
    assert kit.score("a") >= 0


def test_a_forgery_costs_its_forwarder_and_does_not_suppress_the_honest_message() -> None:
    kit = meshed("a", "b")
    assert kit.rpc("a", forged()) == []
    assert kit.score("a") == -50.0
    assert kit.count("reject", "signature") == 1
    kit.rpc("b", message())
    assert kit.some(Validate)


def test_a_forger_is_graylisted_and_heard_no_more() -> None:
    kit = meshed("a", "b")
    for number in range(3):
        kit.rpc("a", forged(number))
    assert kit.router.graylisted(PeerId("a"))
    assert kit.rpc("a", message(9)) == []
    assert kit.count("ignore", "graylisted") == 1


def test_one_rpc_full_of_forgeries_does_not_buy_a_check_for_each() -> None:
    kit = meshed("a")
    kit.rpc("a", *(forged(number) for number in range(100)))
    assert kit.count("reject", "signature") == 3


def test_a_replayed_id_with_another_body_is_ignored_and_its_forwarder_keeps_its_score() -> None:
    kit = meshed("a", "b")
    kit.accepted("a", message(1, data=b"one"))
    assert kit.rpc("b", message(1, data=b"two")) == []
    assert kit.count("ignore", "equivocation") == 1
    assert kit.score("b") == 0.0


def test_a_replayed_id_with_a_forged_body_is_rejected() -> None:
    kit = meshed("a", "b")
    kit.accepted("a", message(1))
    kit.rpc("b", forged(1))
    assert kit.count("reject", "signature") == 1
    assert kit.score("b") == -50.0


def test_a_forgery_under_an_id_that_waits_for_its_verdict_is_rejected_too() -> None:
    kit = meshed("a", "b")
    kit.rpc("a", message(1))
    kit.rpc("b", forged(1))
    assert kit.score("b") == -50.0
    kit.verdict(message(1))
    assert kit.some(Deliver)


def test_what_only_we_dislike_is_ignored_remembered_and_costs_nobody() -> None:
    kit = meshed("a", "b")
    for number in range(50):
        kit.rpc("a", message(number))
        kit.rpc("b", message(number))
        assert kit.verdict(message(number), Ignore("future")) == []
        assert kit.rpc("b", message(number)) == []
    assert kit.count("ignore", "future") == 50
    kit.beat()
    assert kit.score("a") >= 0
    assert kit.score("b") >= 0


def test_a_rejected_message_costs_everybody_who_sent_it() -> None:
    kit = meshed("a", "b", "c")
    kit.rpc("a", message())
    kit.rpc("b", message())
    assert kit.verdict(message(), Reject("payload")) == []
    kit.rpc("c", message())
    assert [kit.score(each) for each in ("a", "b", "c")] == [-50.0] * 3
    assert kit.count("reject", "payload") == 1
    assert kit.count("reject", "repeated") == 1


def test_a_message_past_the_gossip_age_is_delivered_and_goes_no_further() -> None:
    kit = meshed("a", "b")
    kit.rpc("a", message())
    assert kit.verdict(message(), Accept(relay=False)) == [Deliver(message(), PeerId("a"), "gossip", False)]
    assert kit.rpc("b", iwant=(message().id,)) == []
    kit.connect("z")
    kit.beat()
    assert kit.told() == {}


def test_what_the_store_holds_is_seen() -> None:
    kit = meshed("a")
    kit.held.add(message().id)
    assert kit.rpc("a", message()) == []
    assert kit.count("ignore", "duplicate") == 1


def test_what_came_by_another_road_and_was_stored_is_seen() -> None:
    kit = meshed("a")
    kit.do(Held((message().id,)))
    assert kit.rpc("a", message()) == []


def test_a_message_by_another_road_goes_through_the_same_checks_and_into_the_mesh() -> None:
    kit = meshed("a", "b")
    assert kit.do(Inject(message(), "nats")) == [Validate(message(), None, "nats")]
    kit.verdict(message())
    assert kit.forwarded_to() == {"a", "b"}
    assert kit.some(Deliver) == [Deliver(message(), None, "nats", False)]
    assert kit.do(Inject(forged(2), "nats")) == []


def test_an_own_message_that_comes_back_known_is_a_duplicate() -> None:
    kit = meshed("a", "b")
    own = message(origin=ME)
    kit.held.add(own.id)
    assert kit.rpc("a", own) == []
    assert kit.score("a") >= 0


def test_an_own_message_that_a_lost_store_does_not_know_is_restored_and_forwarded() -> None:
    kit = meshed("a", "b")
    own = message(origin=ME)
    kit.accepted("a", own)
    assert kit.some(Deliver) == [Deliver(own, PeerId("a"), "gossip", True)]
    assert kit.forwarded_to() == {"b"}
    assert kit.score("a") >= 0


def test_over_the_limit_a_message_is_ignored_and_another_copy_may_come() -> None:
    kit = meshed("a", "b", max_validations=3, max_validations_per_peer=2)
    kit.rpc("a", message(1), message(2), message(3))
    assert len(kit.some(Validate)) == 2
    kit.rpc("b", message(4), message(5))
    assert len(kit.some(Validate)) == 1
    assert kit.count("ignore", "busy") == 2
    kit.verdict(message(1))
    kit.rpc("b", message(3))
    assert len(kit.some(Validate)) == 1


def test_waiting_messages_are_bounded_in_bytes() -> None:
    kit = meshed("a", max_validation_bytes=300_000)
    kit.rpc("a", message(1, data=b"x" * 200_000), message(2, data=b"y" * 200_000))
    assert len(kit.some(Validate)) == 1
    assert kit.router.sizes()["validating_bytes"] < 300_000


def test_a_verdict_that_never_comes_is_given_up_and_another_copy_may_come() -> None:
    kit = meshed("a", "b", validation_seconds=5.0)
    kit.rpc("a", message())
    kit.wait(6.5)
    assert kit.count("ignore", "verdict-timeout") == 1
    assert kit.verdict(message()) == []
    assert kit.count("ignore", "late-verdict") == 1
    kit.rpc("b", message())
    assert kit.some(Validate)


def test_a_verdict_after_the_source_left_still_delivers() -> None:
    kit = meshed("a", "b")
    kit.rpc("a", message())
    kit.do(PeerDisconnected(PeerId("a")))
    kit.verdict(message())
    assert kit.some(Deliver)
    assert kit.router.sizes()["validating"] == 0


def test_a_verdict_after_we_left_the_topic_is_delivered_but_not_forwarded() -> None:
    kit = meshed("a", "b")
    kit.rpc("a", message())
    kit.do(Unsubscribe(T))
    kit.verdict(message())
    assert kit.forwarded_to() == set()
    assert kit.some(Deliver)


def test_the_first_to_deliver_earns_and_the_others_do_not() -> None:
    kit = meshed("a", "b")
    for number in range(5):
        kit.rpc("a", message(number))
        kit.rpc("b", message(number))
        kit.verdict(message(number))
    kit.beat()
    assert kit.score("a") == pytest.approx(5, rel=0.02)
    assert kit.score("b") == 0.0


def test_copies_during_validation_count_as_mesh_deliveries_where_those_have_a_weight() -> None:
    weighted = TopicScore(
        mesh_deliveries_weight=-1.0, mesh_deliveries_threshold=0.5, mesh_deliveries_activation_seconds=0.5
    )
    score = ScoreParams(topic=weighted)
    kit = meshed("a", "b", "c", score=score)
    kit.rpc("a", message())
    kit.rpc("b", message())
    kit.verdict(message())
    kit.beat(3)
    assert kit.mesh() == {"a", "b"}


def test_a_stranger_is_not_heard() -> None:
    kit = meshed("a")
    assert kit.rpc("nobody", message()) == []
    assert kit.count("control", "rpc-stranger") == 1


def test_bytes_that_the_decoder_refused_cost_by_topic_or_as_behaviour() -> None:
    kit = meshed("a", "b")
    kit.do(PeerMisbehaved(PeerId("a"), "unsigned", T))
    assert kit.score("a") == -50.0
    for _ in range(20):
        kit.do(PeerMisbehaved(PeerId("b"), "protobuf"))
    assert kit.router.graylisted(PeerId("b"))
    assert kit.count("reject", "protobuf") == 20


def test_counters_stay_bounded_whatever_words_come() -> None:
    kit = meshed("a")
    for number in range(500):
        kit.do(PeerMisbehaved(PeerId("nobody"), f"word{number}"))
    assert kit.router.sizes()["counters"] < 100
    assert kit.count("reject", "other") > 400


def test_seen_ids_outlast_the_message_cache() -> None:
    kit = meshed("a", "b")
    kit.accepted("a", message())
    kit.wait(299)
    assert kit.rpc("b", message()) == []
    kit.wait(3)
    kit.rpc("b", message())
    assert kit.some(Validate)


def test_prune_and_messages_may_share_an_rpc() -> None:
    kit = meshed("a", "b")
    kit.rpc("a", message(), prune=(px(),))
    assert kit.some(Validate)
    assert kit.mesh() == {"b"}


@pytest.mark.parametrize("count", [40])
def test_the_origin_is_skipped_by_bytes_whatever_its_text_id(count: int) -> None:
    kit = Kit().join().connect(*names(count))
    kit.accepted("p0", message(origin=raw_of("p1")))
    assert "p1" not in kit.forwarded_to()
    assert STRANGER != raw_of("p1")
