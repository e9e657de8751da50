"""Asking the doctor of a real sidecar, until it says what is expected of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.harness import Node, command, environment, wait_until

QUIET = {"P2PNODE_DISCOVERY_MODE": "static"}
"""No source but what the test gives: nothing of this machine is looked at."""

Finding = dict[str, Any]


class Report:
    """What `p2pnode doctor -o json` said."""

    def __init__(self, exit_code: int, document: Mapping[str, Any]) -> None:
        assert exit_code == document["exit_code"]
        self.exit_code = exit_code
        self.document = document
        self.findings: list[Finding] = document["findings"]

    def get(self, code: str) -> Finding | None:
        return next((each for each in self.findings if each["code"] == code), None)

    @property
    def codes(self) -> set[str]:
        return {each["code"] for each in self.findings}

    def __repr__(self) -> str:
        return json.dumps(self.document, indent=1)


def env_of(tmp_path: Path, **extra: str) -> dict[str, str]:
    return environment(tmp_path / "run", **{**QUIET, **extra})


def ask(node: Node, *arguments: str) -> Report:
    env = environment(Path(node.api.removeprefix("unix:")).parent / "run", **QUIET)
    done = command("doctor", "-o", "json", "--api", node.api, *arguments, env=env)
    assert done.stdout, done.stderr.decode()
    return Report(done.returncode, json.loads(done.stdout))


def told(node: Node, code: str, severity: str, good: Callable[[Report], object] = lambda report: True) -> Finding:
    """The finding with this code and severity, as soon as the doctor has it."""
    last: list[Report] = []

    def found() -> Finding | None:
        last[:] = [ask(node)]
        finding = last[0].get(code)
        return finding if finding is not None and finding["severity"] == severity and good(last[0]) else None

    try:
        finding = wait_until(f"{node.name}: {severity} {code}", found)
    except AssertionError as error:
        raise AssertionError(f"{error}; the last report: {last}") from None
    assert finding["fix"]
    return finding


def is_well(node: Node) -> None:
    """Wait until nothing at all is found, by every check that there can be facts for."""
    last: list[Report] = []

    def well() -> bool:
        last[:] = [ask(node)]
        return not last[0].findings and last[0].exit_code == 0

    try:
        wait_until(f"{node.name} is well", well)
    except AssertionError as error:
        raise AssertionError(f"{error}; the last report: {last}") from None
