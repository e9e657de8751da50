"""What every test of the commands gets: a bare environment, a fake sidecar, a way to run a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from p2pnode.cli.main import main
from p2pnode.paths import register
from tests.cli.running import Outcome, Registry, Run
from tests.local.fake import Clock, FakeSidecar


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[FakeSidecar]:
    fake = FakeSidecar(tmp_path / "api.sock")
    with fake.serving():
        yield fake


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("P2PNODE_", "CHORUS_", "NATS_", "XDG_"))]:
        monkeypatch.delenv(name)
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run_command(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = main(arguments)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run_command


@pytest.fixture
def registry() -> Iterator[Registry]:
    """Enter sidecars into the runtime directory, all of them run by this process."""
    with ExitStack() as entries:

        def enter(name: str, role: str, *api: str) -> None:
            entries.enter_context(register(name, os.getpid(), api, role, f"12D3KooW{name}"))

        yield enter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Sequence[str] | None]]:
    """What `run_sidecar` was called with; it ends with the agent's exit code 7."""
    calls: list[tuple[Any, Sequence[str] | None]] = []

    def run_sidecar(settings: Any, agent_command: Sequence[str] | None) -> int:
        calls.append((settings, agent_command))
        return 7

    app = ModuleType("p2pnode.app")
    app.__dict__["run_sidecar"] = run_sidecar
    monkeypatch.setitem(sys.modules, "p2pnode.app", app)
    return calls
