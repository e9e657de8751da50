"""Gossip that loses a fifth of what it sends, and sync that makes it good: every message reaches every node."""

from __future__ import annotations

import pytest

from p2pnode.core.gossipsub.params import Params
from p2pnode.testing.syncing import SyncReport, simulate_syncing


def hold(report: SyncReport, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n  {report}")
    replay = f"replay: simulate_syncing({report.nodes}, seed={report.seed}, …)\n{report}"
    assert report.complete_seconds is not None, f"some message is not everywhere\n{replay}"
    assert report.quiet_bytes < 2048, f"it does not become quiet\n{replay}"


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_two_hundred_nodes_hold_every_message_though_gossip_loses_a_fifth(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(simulate_syncing(200, seed), capsys)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1])
def test_a_thousand_nodes_hold_every_message_though_gossip_loses_a_fifth(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(simulate_syncing(1000, seed, messages=60), capsys)


def test_sync_alone_spreads_what_gossip_never_delivers(capsys: pytest.CaptureFixture[str]) -> None:
    report = simulate_syncing(40, 3, gossip_loss=0.999, messages=40, seconds=600, params=Params().for_fleet(40))
    hold(report, capsys)
    assert report.gossiped < 0.5


def test_a_seed_replays_a_run() -> None:
    assert simulate_syncing(20, 5, messages=10) == simulate_syncing(20, 5, messages=10)
    assert simulate_syncing(20, 5, messages=10) != simulate_syncing(20, 6, messages=10)
