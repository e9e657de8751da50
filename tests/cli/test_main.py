"""The entry: help, wrong usage, exit codes."""

from __future__ import annotations

import pytest

from p2pnode.cli.main import COMMANDS
from p2pnode.errors import Degraded, Fault, InvalidConfig, NoSidecar, P2PNodeError
from tests.cli.running import Run, p2pnode


def test_help_lists_every_command_in_order(run: Run) -> None:
    outcome = run("--help")
    listed = [line.split()[0] for line in outcome.out.partition("Commands:\n")[2].splitlines() if line[2:3] != " "]
    assert (outcome.code, listed) == (0, list(COMMANDS))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(run: Run, name: str) -> None:
    outcome = run(name, "-h")
    assert outcome.code == 0
    assert outcome.out.startswith(f"Usage: p2pnode {name}")


@pytest.mark.parametrize("arguments", [[], ["config"]])
def test_a_missing_command_shows_the_help_and_exits_64(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (64, "")
    assert "Usage: p2pnode" in outcome.err


@pytest.mark.parametrize("arguments", [["perrs"], ["--nope"], ["config", "chek"], ["pub"], ["fleet", "--agents", "-1"]])
def test_wrong_usage_exits_64_and_points_to_the_help(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (64, "")
    assert outcome.err.startswith("error: ")
    assert "--help`" in outcome.err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (P2PNodeError("broken", hint="mend it"), 2, "error: broken\n  mend it\n"),
        (NoSidecar("nobody"), 3, "error: nobody\n"),
        (Degraded("late"), 1, "error: late\n"),
        (
            InvalidConfig("wrong", [Fault("a", "b"), Fault("c", "d")], hint="e"),
            64,
            "error: wrong\n  a: b\n  c: d\n  e\n",
        ),
    ],
)
def test_an_error_says_what_and_what_to_do(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: P2PNodeError, code: int, text: str
) -> None:
    def fail() -> list[object]:
        raise error

    monkeypatch.setattr("p2pnode.paths.running_sidecars", fail)
    outcome = run("peers")
    assert (outcome.code, outcome.out, outcome.err) == (code, "", text)


def test_ctrl_c_exits_130_in_silence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2pnode.paths.running_sidecars", interrupt)
    outcome = run("peers")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")


def test_the_module_is_the_command() -> None:
    done = p2pnode("version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "p2pnode")
