"""`bench.chaos`: it sees a loss, its faults are those of the seed, and a minute of it loses nothing."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from bench.chaos import LONGEST_SECONDS, judge, plan
from tests.e2e.cable import needs_cables

ROOT = Path(__file__).resolve().parents[2]
HELD = {"a": {"x-1": 1, "x-2": 2}, "b": {"x-1": 1, "x-2": 2, "x-3": 3}}
HANDLED = {"a": ["x-1", "x-2", "x-1"], "b": ["x-3", "x-2", "x-1"]}


def test_all_held_and_handled_is_good() -> None:
    assert judge(["x-1", "x-2"], HELD, HANDLED).good


def test_a_message_that_one_node_does_not_hold_is_a_loss() -> None:
    verdict = judge(["x-1", "x-3"], HELD, {"b": HANDLED["b"]})
    assert verdict.lost == {"a": {"x-3"}}
    assert not verdict.good


def test_a_message_that_one_agent_never_handled_is_a_loss() -> None:
    verdict = judge(["x-1", "x-3"], {"b": HELD["b"]}, HANDLED)
    assert verdict.unhandled == {"a": {"x-3"}}
    assert not verdict.good


def test_two_messages_of_one_publish_are_found_wherever_they_lie() -> None:
    verdict = judge(["x-1"], {"a": {"x-1": 1}, "b": {"x-1": 1, "x-9": 1}}, {})
    assert verdict.doubled == [1]
    assert not verdict.good


def test_the_plan_is_that_of_the_seed_and_never_breaks_a_node_twice_at_once() -> None:
    faults = plan(7, 12, 300)
    assert faults == plan(7, 12, 300)
    assert faults != plan(8, 12, 300)
    assert {fault.kind for fault in faults} == set(LONGEST_SECONDS)
    for node in range(12):
        own = [fault for fault in faults if fault.node == node]
        assert all(before.until <= after.at for before, after in pairwise(own))
    assert all(fault.at < fault.until <= 300 for fault in faults)


@needs_cables
@pytest.mark.soak
def test_a_minute_of_chaos_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "bench.chaos", "--seconds", "60", "--dir", str(tmp_path / "chaos")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
