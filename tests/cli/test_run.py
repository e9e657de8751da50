"""`run`, `fleet`, `demo`: what they hand over, and to whom. Nothing is started here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.cli.running import Run


@pytest.fixture
def fleets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def run_fleet(agents: int, orchestrators: int, directory: Path | None, on_event: Callable[[str], None]) -> int:
        calls.append(("fleet", agents, orchestrators, directory))
        on_event("every node sees every node")
        return 0

    def run_demo(agents: int, orchestrators: int, directory: Path | None) -> int:
        calls.append(("demo", agents, orchestrators, directory))
        return 2

    for name, functions in (("fleet", {"run_fleet": run_fleet}), ("demo", {"run_demo": run_demo})):
        module = ModuleType(f"p2pnode.{name}")
        module.__dict__.update(functions)
        monkeypatch.setitem(sys.modules, f"p2pnode.{name}", module)
    return calls


def test_what_follows_the_dashes_is_the_agents_untouched(run: Run, started: list[Any], tmp_path: Path) -> None:
    outcome = run("run", "--data-dir", str(tmp_path), "--", "sh", "-c", "exit 7", "--", "--name", "x")
    assert (outcome.code, outcome.err) == (7, "")
    assert started[0][1] == ["sh", "-c", "exit 7", "--", "--name", "x"]


def test_without_dashes_there_is_no_agent(run: Run, started: list[Any], tmp_path: Path) -> None:
    run("run", "--data-dir", str(tmp_path))
    assert started[0][1] is None


@pytest.mark.parametrize("arguments", [["sh", "-c", "true"], ["--"], ["agent"], ["--role"], ["--mdsn"]])
def test_an_agent_without_dashes_and_dashes_without_an_agent_are_wrong_usage(
    run: Run, started: list[Any], arguments: list[str]
) -> None:
    outcome = run("run", *arguments)
    assert outcome.code == 64
    assert outcome.err.startswith("error: ")
    assert started == []


def test_fleet_and_demo_have_33_agents_and_one_orchestrator(run: Run, fleets: list[Any]) -> None:
    outcome = run("fleet")
    assert (outcome.code, outcome.out) == (0, "every node sees every node\n")
    assert run("demo").code == 2
    assert fleets == [("fleet", 33, 1, None), ("demo", 33, 1, None)]


def test_fleet_takes_its_size_and_directory(run: Run, fleets: list[Any], tmp_path: Path) -> None:
    run("fleet", "--agents", "3", "--orchestrators", "2", "--dir", str(tmp_path))
    run("demo", "--agents", "3", "--orchestrators", "2", "--dir", str(tmp_path))
    assert fleets == [("fleet", 3, 2, tmp_path), ("demo", 3, 2, tmp_path)]
