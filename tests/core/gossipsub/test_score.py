"""The score's arithmetic, P1 to P7 (gossipsub-v1.1, "The Score Function")."""

from __future__ import annotations

import pytest

from p2pnode.core.gossipsub.params_score import ScoreParams, TopicScore
from p2pnode.core.gossipsub.score import (
    PeerStats,
    Scores,
    TopicStats,
    behaviour,
    colocation,
    counted_address,
    deficit,
    topic_score,
)
from p2pnode.core.peerid import PeerId
from tests.core.gossipsub.kit import OTHER, T

WEIGHTED = TopicScore(
    weight=0.5,
    time_in_mesh_weight=2.0,
    time_in_mesh_quantum_seconds=10.0,
    time_in_mesh_cap=3.0,
    first_deliveries_weight=1.0,
    mesh_deliveries_weight=-1.0,
    mesh_deliveries_threshold=4.0,
    mesh_failure_weight=-2.0,
    invalid_weight=-10.0,
)
A, B = PeerId("a"), PeerId("b")


@pytest.mark.parametrize(
    ("stats", "score"),
    [
        (TopicStats(), 0.0),
        (TopicStats(grafted_at=0.0, mesh_seconds=9.9), 0.0),
        (TopicStats(grafted_at=0.0, mesh_seconds=25.0), 2 * 2 * 0.5),
        (TopicStats(grafted_at=0.0, mesh_seconds=999.0), 3 * 2 * 0.5),
        (TopicStats(grafted_at=None, mesh_seconds=999.0), 0.0),
        (TopicStats(first_deliveries=7.0), 7 * 0.5),
        (TopicStats(mesh_deliveries=1.0, active=False), 0.0),
        (TopicStats(mesh_deliveries=1.0, active=True), -9 * 0.5),
        (TopicStats(mesh_deliveries=5.0, active=True), 0.0),
        (TopicStats(mesh_failure=3.0), -6 * 0.5),
        (TopicStats(invalid=2.0), -40 * 0.5),
        (TopicStats(first_deliveries=4.0, invalid=1.0), (4 - 10) * 0.5),
    ],
)
def test_a_topic_adds_up(stats: TopicStats, score: float) -> None:
    assert topic_score(stats, WEIGHTED) == pytest.approx(score)


@pytest.mark.parametrize(("delivered", "active", "missing"), [(1, True, 3), (4, True, 0), (9, True, 0), (0, False, 0)])
def test_the_deficit_counts_only_when_active(delivered: float, active: bool, missing: float) -> None:
    assert deficit(TopicStats(mesh_deliveries=delivered, active=active), WEIGHTED) == missing


@pytest.mark.parametrize(("peers", "p6"), [(1, 0), (10, 0), (11, 1), (13, 9)])
def test_colocation_is_the_square_of_the_surplus(peers: int, p6: float) -> None:
    assert colocation(peers, ScoreParams()) == p6


@pytest.mark.parametrize(("counter", "p7"), [(0, 0), (6, 0), (7, 1), (10, 16)])
def test_behaviour_is_the_square_of_the_excess(counter: float, p7: float) -> None:
    assert behaviour(counter, ScoreParams()) == p7


@pytest.mark.parametrize(
    ("ip", "counted"),
    [
        ("8.8.8.8", "8.8.8.8"),
        ("127.0.0.1", None),
        ("10.1.2.3", None),
        ("192.168.0.9", None),
        ("172.20.0.5", None),
        ("169.254.1.1", None),
        ("100.64.0.1", None),
        ("::1", None),
        ("fe80::1%eth0", None),
        ("fd00::1", None),
        ("::ffff:8.8.8.8", "8.8.8.8"),
        ("::ffff:10.0.0.1", None),
        ("2606:4700:1:2:3:4:5:6", "2606:4700:0001:0002"),
        ("not an address", None),
        (None, None),
    ],
)
def test_private_addresses_are_exempt_from_colocation(ip: str | None, counted: str | None) -> None:
    assert counted_address(ip) == counted


def make(**topic: float) -> Scores:
    return Scores(ScoreParams(topic=TopicScore(**topic)))


def test_first_deliveries_are_capped() -> None:
    scores = make(first_deliveries_cap=3.0)
    stats = scores.connect(A, None, 0.0)
    for _ in range(10):
        scores.first_delivery(stats, T)
    assert stats.topics[T].first_deliveries == 3.0


def test_all_topics_together_are_capped_but_penalties_are_not() -> None:
    scores = Scores(ScoreParams(topic_cap=5.0))
    stats = scores.connect(A, None, 0.0)
    for _ in range(20):
        scores.first_delivery(stats, T)
        scores.first_delivery(stats, OTHER)
    scores.compute(stats)
    assert stats.value == 5.0
    for _ in range(3):
        scores.invalid(stats, T)
    assert stats.value == pytest.approx(40 - 9 * 50)


def test_near_first_deliveries_count_for_mesh_peers_within_the_window() -> None:
    scores = make(mesh_deliveries_window_seconds=0.01)
    stats = scores.connect(A, None, 0.0)
    scores.near_first_delivery(stats, T, 0.0)
    assert not stats.topics
    scores.grafted(stats, T, 0.0)
    scores.near_first_delivery(stats, T, 0.005)
    scores.near_first_delivery(stats, T, 0.5)
    assert stats.topics[T].mesh_deliveries == 1.0


def test_mesh_delivery_deficit_counts_after_activation_and_sticks_after_prune() -> None:
    scores = make(
        mesh_deliveries_weight=-1.0,
        mesh_deliveries_threshold=2.0,
        mesh_deliveries_activation_seconds=5.0,
        mesh_failure_weight=-1.0,
    )
    stats = scores.connect(A, None, 0.0)
    scores.grafted(stats, T, 0.0)
    scores.refresh(5.0)
    assert stats.value == 0.0
    scores.refresh(6.0)
    assert stats.value == -4.0
    scores.pruned(stats, T)
    assert stats.topics[T].mesh_failure == 4.0
    assert stats.value == -4.0


def test_a_topic_without_its_own_parameters_takes_the_default_ones() -> None:
    params = ScoreParams(topic=TopicScore(weight=1.0), topics={OTHER: TopicScore(weight=0.0)})
    scores = Scores(params)
    stats = scores.connect(A, None, 0.0)
    scores.invalid(stats, OTHER)
    assert stats.value == 0.0
    scores.invalid(stats, T)
    assert stats.value == -50.0


def test_counters_decay_to_zero_and_are_dropped() -> None:
    scores = make(invalid_decay=0.1)
    stats = scores.connect(A, None, 0.0)
    scores.invalid(stats, T)
    scores.penalise(stats, 8)
    assert stats.value == -50 - 10 * 2**2
    scores.refresh(1.0)
    assert stats.topics[T].invalid == pytest.approx(0.1)
    for second in range(2, 1000):
        scores.refresh(second)
    assert stats.topics == {}
    assert stats.value == 0.0


def test_the_application_has_its_say() -> None:
    scores = make()
    stats = scores.connect(A, None, 0.0)
    scores.set_app_score(stats, -12.5)
    assert scores.of(A) == -12.5


def test_peers_on_one_public_address_pay_and_are_relieved_when_some_leave() -> None:
    scores = Scores(ScoreParams(colocation_threshold=2))
    all_ = [scores.connect(PeerId(f"p{n}"), "8.8.8.8", 0.0) for n in range(4)]
    assert [stats.value for stats in all_] == [-40.0] * 4
    scores.disconnect(PeerId("p0"), 1.0)
    assert all_[1].value == -10.0
    scores.disconnect(PeerId("p1"), 1.0)
    assert all_[2].value == 0.0


def test_penalties_outlive_a_reconnect_and_merits_do_not() -> None:
    scores = make()
    bad, good = scores.connect(A, None, 0.0), scores.connect(B, None, 0.0)
    scores.invalid(bad, T)
    scores.first_delivery(bad, T)
    scores.first_delivery(good, T)
    scores.disconnect(A, 10.0)
    scores.disconnect(B, 10.0)
    assert scores.retained == 1
    assert scores.of(A) == -50.0
    again = scores.connect(A, None, 11.0)
    assert -50.0 < again.value < -49.0
    assert again.topics[T].first_deliveries == 0.0
    assert scores.connect(B, None, 11.0).value == 0.0


def test_a_behaviour_counter_below_its_threshold_is_remembered_too() -> None:
    scores = make()
    scores.penalise(scores.connect(A, None, 0.0), 5)
    scores.disconnect(A, 0.0)
    stats = scores.connect(A, None, 1.0)
    scores.penalise(stats, 3)
    assert stats.value < 0


def test_what_is_retained_decays_while_away_and_ends() -> None:
    scores = Scores(ScoreParams(retain_seconds=7200.0))
    scores.invalid(scores.connect(A, None, 0.0), T)
    scores.disconnect(A, 0.0)
    assert scores.connect(A, None, 3700.0).value == 0.0
    scores = Scores(ScoreParams(retain_seconds=60.0))
    scores.invalid(scores.connect(A, None, 0.0), T)
    scores.disconnect(A, 0.0)
    scores.refresh(60.0)
    assert scores.retained == 0


def test_retained_scores_are_bounded() -> None:
    scores = Scores(ScoreParams(retained=3))
    for n in range(10):
        peer = PeerId(f"p{n}")
        scores.invalid(scores.connect(peer, None, 0.0), T)
        scores.disconnect(peer, 0.0)
    assert scores.retained == 3
    assert scores.of(PeerId("p9")) == -50.0
    assert scores.of(PeerId("p0")) == 0.0


def test_a_strangers_score_is_zero() -> None:
    assert make().of(A) == 0.0
    assert PeerStats().value == 0.0
