"""What a fleet knows of itself, and how soon: production membership and link planner in virtual time."""

from __future__ import annotations

import pytest

from p2pnode.testing.membership import Happening, MembersReport, MembersScenario, simulate_members

SEEDS = (1, 2)
FLEETS = [(34, 1), (200, 1)]
"""Nodes and seed; the large one once, for its time."""


def run(scenario: MembersScenario, seed: int) -> MembersReport:
    """Run, and check what every fleet must keep."""
    report = simulate_members(scenario, seed)
    replay = f"replay: simulate_members({scenario!r}, seed={seed})\n{report}"
    assert report.parts == 1, replay
    assert report.false_deaths == 0, replay
    # One more than 16 while it is too young to be closed.
    assert report.links[2] <= 20 or scenario.seconds < 30, replay
    return report


def within(seconds: float | None, limit: float, report: MembersReport) -> None:
    assert seconds is not None, f"never; seed {report.seed}: {report}"
    assert seconds <= limit, f"{seconds:.1f} s, not {limit:g} s; seed {report.seed}: {report}"


@pytest.mark.parametrize(("nodes", "seed"), [(2, 1), (5, 1), *FLEETS])
def test_all_know_all_who_join_by_one_bootstrap(nodes: int, seed: int) -> None:
    report = run(MembersScenario(nodes=nodes, seconds=40, idle_from_seconds=30), seed)
    within(report.outcome("look").settled, 5, report)
    assert report.false_suspicions == 0, report
    assert report.links[0] >= min(nodes - 1, 6), report
    # A star would give one of them a link with each.
    assert report.links[2] <= 16, report


@pytest.mark.parametrize(("nodes", "seed"), FLEETS)
def test_a_new_member_is_known_to_all_at_once(nodes: int, seed: int) -> None:
    report = run(MembersScenario(nodes=nodes, known=True, seconds=15, happenings=(Happening(10, "start"),)), seed)
    within(report.outcome("start").settled, 2, report)


@pytest.mark.parametrize(("nodes", "seed"), [(2, 1), *FLEETS])
def test_a_killed_process_is_doubted_within_two_seconds_and_dead_within_five(nodes: int, seed: int) -> None:
    report = run(MembersScenario(nodes=nodes, known=True, seconds=30, happenings=(Happening(20, "kill"),)), seed)
    within(report.outcome("kill").doubted, 2, report)
    within(report.outcome("kill").settled, 5, report)
    assert report.false_suspicions == 0, report


@pytest.mark.parametrize(("nodes", "seed"), FLEETS)
def test_a_host_without_power_is_dead_within_twelve_seconds(nodes: int, seed: int) -> None:
    report = run(MembersScenario(nodes=nodes, known=True, seconds=40, happenings=(Happening(20, "vanish"),)), seed)
    within(report.outcome("vanish").settled, 12, report)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_goodbye_is_no_suspicion(seed: int) -> None:
    report = run(MembersScenario(nodes=34, known=True, seconds=40, happenings=(Happening(20, "leave", 0.2),)), seed)
    within(report.outcome("leave").settled, 2, report)
    assert report.false_suspicions == 0, report


@pytest.mark.parametrize(("nodes", "seed"), FLEETS)
def test_when_most_die_at_once_the_rest_knows_all_the_dead_within_fifteen_seconds(nodes: int, seed: int) -> None:
    """Some of them lost every neighbour that could have noticed."""
    report = run(MembersScenario(nodes=nodes, known=True, seconds=40, happenings=(Happening(20, "kill", 0.6),)), seed)
    within(report.outcome("kill").settled, 15, report)
    assert report.false_suspicions == 0, report


@pytest.mark.parametrize(("nodes", "seed"), FLEETS)
def test_a_stopped_process_is_doubted_within_eight_seconds_and_back_within_three(nodes: int, seed: int) -> None:
    happenings = (Happening(20, "stop"), Happening(50, "continue"))
    report = run(MembersScenario(nodes=nodes, known=True, seconds=60, happenings=happenings), seed)
    within(report.outcome("stop").doubted, 8, report)
    within(report.outcome("continue").settled, 3, report)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("nodes", "share"), [(2, 0.0), (34, 0.0), (50, 0.5)])
def test_a_cut_of_a_minute_is_healed_within_ten_seconds(nodes: int, share: float, seed: int) -> None:
    happenings = (Happening(20, "cut", share), Happening(80, "heal"))
    report = run(MembersScenario(nodes=nodes, known=True, seconds=115, happenings=happenings), seed)
    within(report.outcome("cut").settled, 40, report)
    within(report.outcome("heal").settled, 10, report)


def test_lossy_links_kill_nobody_in_ten_minutes() -> None:
    report = run(MembersScenario(nodes=60, known=True, seconds=600, loss=0.05), 1)
    assert report.false_suspicions <= 5, report


@pytest.mark.parametrize("seed", SEEDS)
def test_while_some_come_and_go_nobody_else_is_doubted(seed: int) -> None:
    scenario = MembersScenario(
        nodes=40, seconds=100, churn_per_minute=0.2, churn_from_seconds=20, happenings=(Happening(80, "look"),)
    )
    report = run(scenario, seed)
    within(report.outcome("look").settled, 8, report)
    assert report.false_suspicions == 0, report


@pytest.mark.parametrize("seed", SEEDS)
def test_a_member_that_nobody_can_dial_is_seldom_doubted_and_never_dead(seed: int) -> None:
    report = run(MembersScenario(nodes=34, known=True, seconds=600, hidden=1), seed)
    assert report.false_suspicions <= 9, report


def test_idle_costs_do_not_grow_with_the_fleet() -> None:
    small, large = (
        run(MembersScenario(nodes=nodes, known=True, seconds=150, idle_from_seconds=90), 1) for nodes in (34, 200)
    )
    for report in (small, large):
        assert report.idle_messages < 0.5, report
        assert report.idle_bytes < 400, report


def test_a_seed_replays_a_run() -> None:
    scenario = MembersScenario(nodes=20, seconds=40, loss=0.05, happenings=(Happening(20, "kill", 0.3),))
    assert simulate_members(scenario, 5) == simulate_members(scenario, 5)
    assert simulate_members(scenario, 5) != simulate_members(scenario, 6)


@pytest.mark.soak
def test_lossy_links_kill_nobody_of_200_in_ten_minutes() -> None:
    report = run(MembersScenario(nodes=200, known=True, seconds=600, loss=0.05), 1)
    assert report.false_suspicions <= 7, report


@pytest.mark.soak
def test_a_thousand_from_cold() -> None:
    report = run(MembersScenario(nodes=1000, seconds=60, start_seconds=10, idle_from_seconds=45), 1)
    within(report.outcome("look").settled, 20, report)
    assert report.false_suspicions == 0, report
    assert report.idle_bytes < 400, report


@pytest.mark.soak
def test_a_thousand_lose_most_at_once() -> None:
    report = run(MembersScenario(nodes=1000, known=True, seconds=50, happenings=(Happening(20, "kill", 0.6),)), 1)
    within(report.outcome("kill").settled, 20, report)
