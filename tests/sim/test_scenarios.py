"""The scenarios of scenarios.toml, each held to its rule, with the production router in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.core.gossipsub.params import Params
from p2pnode.testing import Network, Report, Scenario, load_scenarios, simulate

SCENARIOS = load_scenarios(Path(__file__).with_name("scenarios.toml"))
SEEDS = {"test": (1, 2), "soak": (1,)}
REPLAY = "replay: simulate(<scenario {scenario.name!r}>, seed={report.seed})\n{report}"


def cases(run: str) -> list[tuple[Scenario, int]]:
    return [(scenario, seed) for scenario in SCENARIOS if scenario.run == run for seed in SEEDS[run]]


def hold(scenario: Scenario, seed: int, capsys: pytest.CaptureFixture[str]) -> Report:
    """Run, print what came of it, and check what every scenario must keep."""
    report = simulate(scenario, seed)
    replay = REPLAY.format(scenario=scenario, report=report)
    with capsys.disabled():
        print(f"\n  {scenario.name}: missed {report.missed} of {report.due}; seed {seed}; {report}")
    params = Params().for_fleet(scenario.fleet or scenario.nodes)
    assert report.due > 0, replay
    assert report.missed_share <= scenario.missed_share, f"{scenario.rule}\n{replay}"
    assert report.mesh[0] >= 1, f"a node is alone\n{replay}"
    assert report.mesh[1] >= params.d_lo, f"the meshes are thin\n{replay}"
    assert report.mesh[2] <= params.d_hi + params.d_out, f"a mesh is overfull\n{replay}"
    if not scenario.hostile:
        assert "reject signature" not in report.counters, replay
        assert report.counters.get("control graylisted", 0) == 0, f"honest peers turned on each other\n{replay}"
    return report


@pytest.mark.parametrize(("scenario", "seed"), cases("test"), ids=lambda each: getattr(each, "name", str(each)))
def test_scenario(scenario: Scenario, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    hold(scenario, seed, capsys)


@pytest.mark.soak
@pytest.mark.parametrize(("scenario", "seed"), cases("soak"), ids=lambda each: getattr(each, "name", str(each)))
def test_large_scenario(scenario: Scenario, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    hold(scenario, seed, capsys)


def test_a_seed_replays_a_run() -> None:
    scenario = Scenario(name="replayed", nodes=30, loss=0.05, churn_per_minute=0.5, duration_seconds=15)
    assert simulate(scenario, 5) == simulate(scenario, 5)
    assert simulate(scenario, 5) != simulate(scenario, 6)


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8])
def test_a_handful_of_nodes_is_one_network(nodes: int) -> None:
    report = simulate(Scenario(name="few", nodes=nodes, duration_seconds=15), 1)
    assert report.missed == 0, report
    assert report.mesh[0] >= min(nodes - 1, 3), report


def test_a_pair_on_a_slow_and_lossy_link_still_gets_everything() -> None:
    """Each message lost on the only link is offered again by nobody but its own repeat: the loss shows."""
    report = simulate(Scenario(name="pair", nodes=2, loss=0.1, publish_per_second=5, duration_seconds=30), 1)
    assert 0 < report.missed_share < 0.2, report


def test_a_narrow_uplink_delays_and_loses_nothing() -> None:
    wide = Scenario(name="wide", nodes=40, duration_seconds=15, message_bytes=20_000)
    narrow = Scenario(name="narrow", nodes=40, duration_seconds=15, message_bytes=20_000, uplink_bytes=2_000_000)
    fast, slow = simulate(wide, 1), simulate(narrow, 1)
    assert slow.missed == fast.missed == 0
    assert slow.delay_p50 > fast.delay_p50 * 1.2


def test_large_messages_save_duplicates_by_idontwant() -> None:
    """The notice leaves before the verdict, the copy after it: slow verdicts are where it overtakes."""
    large = Scenario(name="large", nodes=60, duration_seconds=15, message_bytes=40_000, judge_ms=40)
    with_ = simulate(large, 1, Params())
    without = simulate(large, 1, Params(idontwant_bytes=300_000))
    assert with_.missed == without.missed == 0
    assert with_.duplicates < without.duplicates * 0.9


def test_a_spammer_is_graylisted_by_its_neighbours() -> None:
    report = simulate(
        Scenario(name="spam", nodes=60, hostile=0.2, hostile_kind="graft-spammer", duration_seconds=30), 1
    )
    assert report.counters["control graylisted"] > 0
    assert report.counters["control graft-backoff"] > 0


def test_a_forger_loses_its_place_in_every_mesh() -> None:
    report = simulate(Scenario(name="forge", nodes=60, hostile=0.2, hostile_kind="forger", duration_seconds=30), 1)
    assert report.missed == 0
    assert report.counters["reject signature"] > 0
    assert report.counters["prune score"] > 0


def test_a_cut_keeps_messages_on_their_side_and_its_end_brings_the_sides_together() -> None:
    network = Network(1, Params())
    nodes = [network.add() for _ in range(20)]
    for number, node in enumerate(nodes):
        for step in (1, 2, 3, 5):
            node.wanted[nodes[(number + step) % 20].id] = None
    network.run_until(10)
    network.partition(lambda node: nodes.index(node) % 2)
    network.run_until(30)
    during = network.publish(nodes[0], 100)
    network.run_until(40)
    assert [during in node.got for node in nodes] == [True, False] * 10
    network.heal()
    network.run_until(60)
    after = network.publish(nodes[0], 100)
    network.run_until(62)
    assert all(after in node.got for node in nodes)
