"""Commands as tests run them: in this process, or each as its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]
"""Runs a command in this process: its arguments in, what came of it out."""

Registry = Callable[..., None]
"""Enters a sidecar among the running ones: name, role, API addresses."""


def p2pnode(*arguments: str, env: Mapping[str, str] | None = None, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as its own process."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=30, env={**os.environ, **(env or {})}, **how
    )


def command(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-W", "error", "-m", "p2pnode", *arguments]
