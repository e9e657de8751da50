"""Council counters under upstream's names, with a bounded number of labels."""

from __future__ import annotations

from p2pnode.node.council_metrics import MAX_LABELS, CouncilMetrics


def test_broadcasts_are_counted_by_council_and_each_has_both_counters() -> None:
    metrics = CouncilMetrics()
    for _ in range(2):
        metrics.published("a")
    metrics.failed("b")
    metrics.handled()
    assert metrics.metrics() == {
        "chorus_council_opportunity_handled_total": 1,
        'whoosh_broadcast_success_total{council_id="a"}': 2,
        'whoosh_broadcast_error_total{council_id="a"}': 0,
        'whoosh_broadcast_success_total{council_id="b"}': 0,
        'whoosh_broadcast_error_total{council_id="b"}': 1,
    }


def test_before_anything_happened_the_unlabelled_counter_is_zero() -> None:
    assert CouncilMetrics().metrics() == {"chorus_council_opportunity_handled_total": 0}


def test_the_council_heard_of_longest_ago_loses_its_series() -> None:
    metrics = CouncilMetrics()
    metrics.published("first")
    metrics.published("second")
    for number in range(MAX_LABELS - 2):
        metrics.published(f"c{number}")
    metrics.failed("first")
    metrics.published("last")
    shown = metrics.metrics()
    assert len(shown) == 2 * MAX_LABELS + 1
    assert shown['whoosh_broadcast_success_total{council_id="first"}'] == 1
    assert 'whoosh_broadcast_success_total{council_id="second"}' not in shown
    metrics.published("second")
    assert metrics.metrics()['whoosh_broadcast_success_total{council_id="second"}'] == 1
