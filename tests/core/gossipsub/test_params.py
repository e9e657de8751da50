"""Parameters: checked against each other, all faults at once."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from p2pnode.core.gossipsub.params import SPEC, Params
from p2pnode.core.gossipsub.params_score import ScoreParams, TopicScore, decay_factor
from p2pnode.errors import InvalidConfig


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(InvalidConfig) as caught:
        Params(d=20, d_out=9, gossip_factor=1.5, seen_ids=1, heartbeat_seconds=-1.0)
    assert {fault.field for fault in caught.value.faults} >= {
        "gossip.d", "gossip.d_out", "gossip.gossip_factor", "gossip.seen_ids", "gossip.heartbeat_seconds",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"d_lo": 7}, "gossip.d"),
        ({"d_hi": 5}, "gossip.d"),
        ({"d_score": 7}, "gossip.d_score"),
        ({"d_out": 4}, "gossip.d_out"),
        ({"d_lo": 2, "d_out": 2}, "gossip.d_out"),
        ({"gossip_windows": 11}, "gossip.gossip_windows"),
        ({"seen_seconds": 5.0, "validation_seconds": 1.0}, "gossip.seen_seconds"),
        ({"validation_seconds": 300.0}, "gossip.validation_seconds"),
        ({"max_validations_per_peer": 1000}, "gossip.max_validations_per_peer"),
        ({"history_bytes": 1000}, "gossip.history_bytes"),
        ({"max_validation_bytes": 1000}, "gossip.max_validation_bytes"),
        ({"prune_peers": 3}, "gossip.prune_peers"),
        ({"graft_flood_seconds": 61.0}, "gossip.graft_flood_seconds"),
        ({"max_backoff_seconds": 30.0}, "gossip.max_backoff_seconds"),
        ({"iwant_followup_seconds": 11.0}, "gossip.iwant_followup_seconds"),
        ({"heartbeat_seconds": 0.7}, "gossip.score.decay_seconds"),
        ({"max_peers": 0}, "gossip.max_peers"),
        ({"fanout_seconds": float("nan")}, "gossip.fanout_seconds"),
    ],
)
def test_a_contradiction_names_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Params(**changes)
    assert field in {fault.field for fault in caught.value.faults}


@pytest.mark.parametrize(
    "changes",
    [
        {"gossip_threshold": 1.0},
        {"publish_threshold": -50.0},
        {"graylist_threshold": -200.0},
        {"accept_px_threshold": -1.0},
        {"behaviour_weight": 1.0},
        {"behaviour_decay": 1.0},
        {"app_weight": -1.0},
        {"colocation_threshold": 0},
    ],
)
def test_score_parameters_that_would_reward_attacks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        ScoreParams(**changes)


def test_a_penalty_with_a_positive_weight_is_refused() -> None:
    with pytest.raises(InvalidConfig):
        TopicScore(invalid_weight=5.0)


def test_the_degree_follows_the_fleet() -> None:
    small, large = Params().for_fleet(34), Params().for_fleet(51)
    assert (small.d, small.d_lo, small.d_hi) == (4, 3, 8)
    assert (large.d, large.d_lo, large.d_hi) == (6, 5, 12)


def test_a_bootstrap_node_without_mesh_keeps_none() -> None:
    without = Params(d=0, d_lo=0, d_hi=0, d_out=0, d_score=0)
    assert without.for_fleet(34) is without


def test_the_specification_is_a_valid_preset() -> None:
    assert (SPEC.d, SPEC.history_windows, SPEC.seen_seconds) == (6, 5, 120.0)


def test_every_parameter_is_explained() -> None:
    assert Params.__doc__ is not None
    assert [
        each.name for each in fields(Params) if each.name != "score" and f"{each.name}:" not in Params.__doc__
    ] == []


def test_decay_brings_one_to_zero_in_the_given_time() -> None:
    assert decay_factor(60) ** 60 == pytest.approx(0.01)
    assert decay_factor(60, every=2) ** 30 == pytest.approx(0.01)
