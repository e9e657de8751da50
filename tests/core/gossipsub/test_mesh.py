"""Meshes: filling, grafting, pruning, backoff, peer exchange."""

from __future__ import annotations

from random import Random

import pytest

from p2pnode.core.gossipsub.events import (
    AppScore,
    Connect,
    Disconnect,
    FleetSize,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    Protocol,
    RpcReceived,
    SendRpc,
    Subscribe,
    Unsubscribe,
)
from p2pnode.core.gossipsub.mesh import median_score, survivors
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.peers import Peer
from p2pnode.core.gossipsub.rpc import Rpc, Subscription
from p2pnode.core.gossipsub.score import PeerStats
from p2pnode.core.message import Topic
from p2pnode.core.peerid import PeerId
from tests.core.gossipsub.kit import OTHER, Kit, T, message, names, px, raw_of


def peer(name: str, score: float = 0.0, *, outbound: bool = False) -> Peer:
    return Peer(PeerId(name), raw_of(name), Protocol.V1_2, outbound, False, PeerStats(value=score))


def test_a_new_peer_is_told_our_topics_at_once() -> None:
    kit = Kit().join(T, OTHER)
    kit.do(PeerConnected(PeerId("a"), raw_of("a"), Protocol.V1_2, False))
    assert [each.topic for each in kit.sent_to("a")[0].subscriptions] == [T, OTHER]


def test_a_mesh_is_filled_as_peers_come_and_not_beyond_d_lo() -> None:
    kit = Kit().join().connect(*names(20))
    assert len(kit.mesh()) == Params().d_lo


def test_subscribing_grafts_d_of_the_peers_that_are_there() -> None:
    kit = Kit().connect(*names(20)).join()
    assert len(kit.grafted()) == Params().d
    assert kit.mesh() == kit.grafted()


def test_a_lost_link_is_replaced_at_once() -> None:
    kit = Kit().connect(*names(20)).join()
    for lost in tuple(kit.mesh())[:2]:
        kit.do(PeerDisconnected(PeerId(lost)))
    assert len(kit.mesh()) == Params().d
    assert len(kit.grafted()) == 2


def test_a_peer_that_unsubscribes_leaves_the_mesh() -> None:
    kit = Kit().join().connect("a", "b")
    kit.do(RpcReceived(PeerId("a"), Rpc(subscriptions=(Subscription(T, False),))))
    assert kit.mesh() == {"b"}
    assert kit.router.topic_peers(T) == ("b",)


def test_whoever_grafts_takes_part() -> None:
    kit = Kit().join().connect("a", topics=())
    kit.graft("a")
    assert kit.mesh() == {"a"}
    assert kit.router.topic_peers(T) == ("a",)


def test_a_graft_for_a_topic_we_do_not_know_is_not_answered() -> None:
    kit = Kit().join().connect("a")
    assert kit.rpc("a", graft=(OTHER,)) == []


def test_a_full_mesh_refuses_inbound_grafts_with_peers_to_turn_to() -> None:
    kit = Kit().join().connect(*names(30)).graft(*names(13))
    assert len(kit.mesh()) == Params().d_hi
    prune = kit.pruned()["p12"]
    assert prune.backoff_seconds == 60
    assert len(prune.peers) == Params().prune_peers
    assert prune.peers[0].record == f"record of {prune.peers[0].peer}".encode()
    assert "p12" not in {each.peer for each in prune.peers}


def test_a_full_mesh_still_takes_a_peer_that_we_dialled() -> None:
    kit = Kit().join().connect(*names(12)).graft(*names(12)).connect("ours", outbound=True).graft("ours")
    assert "ours" in kit.mesh()
    kit.beat()
    assert len(kit.mesh()) == Params().d
    assert all(prune.peers for prune in kit.pruned().values())


def test_peers_with_a_negative_score_are_pruned_and_get_and_are_no_exchange() -> None:
    kit = Kit().join().connect(*names(5))
    kit.do(AppScore(PeerId("p0"), -1.0))
    kit.beat()
    assert "p0" not in kit.mesh()
    assert kit.pruned()["p0"].peers == ()
    kit.connect(*names(20, "q")).graft(*names(20, "q"))
    assert all(each.peer != "p0" for prune in kit.pruned().values() for each in prune.peers)


def test_a_negative_score_is_not_grafted_by_us_and_refused_when_it_grafts() -> None:
    kit = Kit().join().connect("a", topics=())
    kit.do(AppScore(PeerId("a"), -1.0))
    kit.rpc("a", subscribe=(T,))
    assert kit.grafted() == set()
    kit.graft("a")
    assert kit.mesh() == set()
    assert kit.pruned()["a"].peers == ()


def test_grafting_during_backoff_is_penalised_and_answered_by_prune() -> None:
    kit = Kit().join().connect("a")
    kit.rpc("a", prune=(px(),))
    for _ in range(3):
        kit.graft("a")
        assert kit.pruned()["a"].backoff_seconds == 60
    assert kit.score("a") == 0.0
    kit.graft("a")
    assert kit.score("a") == -10.0 * 2**2


def test_a_graft_late_in_the_backoff_is_penalised_once() -> None:
    kit = Kit().join().connect("a")
    kit.rpc("a", prune=(px(),))
    kit.wait(30)
    for _ in range(3):
        kit.graft("a")
    assert kit.count("control", "graft-backoff") == 3
    kit.beat()
    assert kit.score("a") == 0.0


def test_a_graft_spammer_is_graylisted_and_sent_away_once() -> None:
    kit = Kit().join().connect("a")
    kit.rpc("a", prune=(px(),))
    for _ in range(20):
        kit.graft("a")
    assert kit.router.graylisted(PeerId("a"))
    kit.beat()
    assert kit.some(Disconnect) == [Disconnect(PeerId("a"), "graylisted")]
    kit.beat()
    assert kit.some(Disconnect) == []


def test_a_spammer_cannot_shed_its_score_by_reconnecting() -> None:
    kit = Kit().join().connect("a")
    kit.rpc("a", prune=(px(),))
    for _ in range(20):
        kit.graft("a")
    kit.do(PeerDisconnected(PeerId("a")))
    assert kit.router.graylisted(PeerId("a"))
    kit.connect("a")
    assert kit.router.graylisted(PeerId("a"))
    assert kit.mesh() == set()


def test_we_wait_out_the_backoff_that_a_peer_asks_for_and_graft_again_then() -> None:
    kit = Kit().join().connect("a")
    kit.rpc("a", prune=(px(backoff=20),))
    kit.wait(19)
    assert kit.mesh() == set()
    kit.wait(4)
    assert kit.mesh() == {"a"}


def test_an_endless_backoff_ends_after_ten_minutes() -> None:
    kit = Kit().join().connect("a")
    kit.rpc("a", prune=(px(backoff=2**63),))
    kit.wait(603)
    assert kit.mesh() == {"a"}


def test_a_prune_is_made_up_for_at_once() -> None:
    kit = Kit().connect(*names(9)).join()
    gone = kit.router.mesh(T)[:2]
    for each in gone:
        kit.rpc(each, prune=(px(),))
    assert len(kit.mesh()) == Params().d
    assert not kit.mesh() & set(gone)


def test_leaving_a_topic_prunes_with_the_short_backoff_and_tells_everybody() -> None:
    kit = Kit().join().connect("a", "b", "c", topics=(T,))
    kit.do(Unsubscribe(T))
    assert {name: prune.backoff_seconds for name, prune in kit.pruned().items()} == dict.fromkeys("abc", 10)
    announced = [each for each in kit.some(SendRpc) if each.rpc.subscriptions]
    assert announced[0].rpc.subscriptions == (Subscription(T, False),)
    kit.do(Subscribe(T))
    assert kit.mesh() == set()
    kit.wait(13)
    assert kit.mesh() == {"a", "b", "c"}


def test_peers_given_with_a_prune_are_dialled_up_to_d_hi() -> None:
    kit = Kit().join().connect("hub")
    kit.rpc("hub", prune=(px(*names(30)),))
    dialled = kit.some(Connect)
    assert len(dialled) == Params().d_hi - 1
    assert all(each.record == each.peer.encode() and each.why == "px" for each in dialled)


def test_nobody_makes_us_dial_by_pruning_unasked() -> None:
    kit = Kit().join().connect(*names(20))
    outsider = next(each for each in names(20) if each not in kit.mesh())
    kit.rpc(outsider, prune=(px("x"),))
    assert kit.some(Connect) == []


def test_exchange_is_refused_below_the_threshold_and_never_names_us_or_whom_we_know() -> None:
    kit = Kit().join().connect("hub", "known")
    kit.rpc("hub", prune=(px("me", "known"),))
    assert kit.some(Connect) == []
    kit.do(AppScore(PeerId("known"), -1.0))
    kit.rpc("known", prune=(px("x"),))
    assert kit.some(Connect) == []
    assert kit.count("control", "px-refused") == 1


def test_dialling_on_hearsay_is_bounded_per_heartbeat() -> None:
    kit = Kit(px_connects=5).join().connect("a", "b")
    kit.rpc("a", prune=(px(*names(9)),))
    assert len(kit.some(Connect)) == 5
    kit.rpc("b", prune=(px(*names(9, "q")),))
    assert kit.some(Connect) == []


def test_an_oversubscribed_mesh_keeps_the_best_and_enough_that_we_dialled() -> None:
    params = Params()
    peers = [peer(f"p{n}", score=n) for n in range(18)] + [peer(f"o{n}", score=-1, outbound=True) for n in range(2)]
    for seed in range(20):
        kept = survivors(peers, params, Random(seed))
        assert len(kept) == len({each.id for each in kept}) == params.d
        assert {each.id for each in kept} >= {"p17", "p16", "p15", "p14", "o0", "o1"}


def test_the_places_beyond_the_best_are_drawn() -> None:
    peers = [peer(f"p{n}", score=n) for n in range(20)]
    drawn = {each.id for seed in range(50) for each in survivors(peers, Params(), Random(seed))[4:]}
    assert len(drawn) > 10


@pytest.mark.parametrize(("scores", "median"), [((1.0,), 1.0), ((3.0, 1.0, 2.0), 2.0), ((1.0, 2.0, 3.0, 4.0), 3.0)])
def test_the_median(scores: tuple[float, ...], median: float) -> None:
    assert median_score([peer(str(n), score) for n, score in enumerate(scores)]) == median


def test_an_underperforming_mesh_grafts_better_peers() -> None:
    kit = Kit().join().connect(*names(12))
    mesh = kit.mesh()
    better = next(each for each in names(12) if each not in mesh)
    for number in range(10):
        kit.accepted(better, message(number))
    kit.wait(61)
    assert better in kit.mesh()


def test_a_mesh_that_performs_is_left_alone() -> None:
    kit = Kit().join().connect(*names(12))
    mesh = kit.mesh()
    for number, each in enumerate([*sorted(mesh)] * 10):
        kit.accepted(each, message(number))
    kit.wait(61)
    assert kit.mesh() == mesh


def test_a_mesh_keeps_links_that_we_dialled() -> None:
    kit = Kit().connect(*names(20)).join().connect("x", "y", "z", outbound=True)
    kit.beat()
    assert len(kit.mesh() & {"x", "y", "z"}) == Params().d_out


def test_a_direct_peer_gets_every_message_outside_the_mesh_whatever_its_score() -> None:
    kit = Kit(direct=("d",)).join().connect("d", "a").graft("a")
    kit.do(AppScore(PeerId("d"), -1000.0))
    assert kit.mesh() == {"a"}
    kit.accepted("a", message())
    assert kit.forwarded_to() == {"d"}
    kit.accepted("d", message(2))
    assert kit.forwarded_to() == {"a"}
    kit.beat()
    assert kit.some(Disconnect) == []


def test_a_direct_peer_that_grafts_is_pruned() -> None:
    kit = Kit(direct=("d",)).join().connect("d")
    kit.graft("d")
    assert kit.mesh() == set()
    assert kit.pruned()["d"].peers == ()
    kit.connect("a")
    kit.accepted("a", message())
    assert kit.forwarded_to() == {"d"}


def test_a_missing_direct_peer_is_asked_for_until_it_is_there() -> None:
    kit = Kit(direct=("d", "e")).join()
    kit.beat()
    assert kit.some(Connect) == [Connect(PeerId("d"), None, "direct"), Connect(PeerId("e"), None, "direct")]
    kit.connect("d")
    kit.wait(28)
    kit.beat(5)
    assert {each.peer for each in kit.some(Connect)} == {"e"}


def test_the_mesh_degree_follows_the_fleet() -> None:
    kit = Kit().join()
    kit.do(FleetSize(34))
    kit.connect(*names(20))
    assert len(kit.mesh()) == 3
    kit.do(FleetSize(500))
    kit.beat()
    assert len(kit.mesh()) == 6


def test_a_peer_whose_queue_stays_full_leaves_the_mesh() -> None:
    kit = Kit().join().connect("a")
    for _ in range(4):
        kit.do(PeerRefused(PeerId("a")))
        kit.beat()
    assert kit.mesh() == {"a"}
    kit.beat()
    for _ in range(5):
        kit.do(PeerRefused(PeerId("a")))
        kit.beat()
    assert kit.mesh() == set()
    assert kit.score("a") >= 0


def test_ten_thousand_subscriptions_are_cut_off_and_counted() -> None:
    kit = Kit().join().connect("a", topics=())
    kit.rpc("a", subscribe=tuple(Topic(f"t{n}") for n in range(10_000)))
    assert kit.router.sizes()["subscriptions"] == 200
    assert kit.count("control", "subscription-excess") == 9_800


def test_peers_over_the_limit_are_sent_away() -> None:
    kit = Kit(max_peers=12).join().connect(*names(12))
    kit.do(PeerConnected(PeerId("x"), raw_of("x"), Protocol.V1_1, False))
    assert kit.some(Disconnect) == [Disconnect(PeerId("x"), "too-many-peers")]
    assert len(kit.router.peers()) == 12


def test_a_second_connection_changes_nothing() -> None:
    kit = Kit().join().connect("a")
    assert kit.do(PeerConnected(PeerId("a"), raw_of("a"), Protocol.V1_1, True)) == []
    assert kit.mesh() == {"a"}


def test_two_nodes_are_enough_for_a_mesh() -> None:
    kit = Kit().join().connect("a")
    assert kit.mesh() == {"a"}
    assert kit.grafted() == {"a"}


def test_a_heartbeat_that_comes_late_is_not_made_up_for() -> None:
    kit = Kit().join().connect("a")
    kit.now += 50
    kit.beat()
    assert kit.router.next_deadline() > kit.now
