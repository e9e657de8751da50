"""Sidecars as processes for a benchmark: started by exec on loopback, ready when they are yielded, gone afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60.0
STOP_SECONDS = 10.0
OTHERS = ("P2PNODE_", "CHORUS_", "WHOOSH_", "NATS_", "DOCKER_")
"""What configures a sidecar; nothing of it is inherited."""


class SidecarFailed(Exception):
    """It ended before it was ready, or did not become ready in time."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A running one: its process, its API's Unix socket, where it listens."""

    pid: int
    socket: str
    addr: str


@contextmanager
def open_sidecar(
    data_dir: Path, settings: Mapping[str, str], *, bootstrap: Sequence[str] = (), module: str = "p2pnode"
) -> Iterator[Sidecar]:
    """`python -m p2pnode run` with its store in `data_dir` and `settings` as variables.

    Args:
        module: another program with the same command line.

    Raises:
        SidecarFailed: with the end of its log.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    # The path of a Unix socket is short; `data_dir` may be anywhere.
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        runtime = Path(name)
        command = [sys.executable, "-m", module, "run", "--discovery", "static", "--listen", "/ip4/127.0.0.1/tcp/0"]
        command += ["--data-dir", str(data_dir), "--api", f"unix:{runtime / 'api.sock'}", "--log-format", "json"]
        for addr in bootstrap:
            command += ["--bootstrap", addr]
        log = runtime / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**kept, **settings, "XDG_RUNTIME_DIR": name},
            )
        try:
            ready = _wait(process, log)
            yield Sidecar(process.pid, str(runtime / "api.sock"), ready["multiaddrs"][0])
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> dict[str, list[str]]:
    """Its log line `ready`."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_bytes().splitlines(keepends=True):
            if b'"ready"' in line and line.endswith(b"\n"):
                document: dict[str, list[str]] = json.loads(line)
                return document
        time.sleep(0.02)
    raise SidecarFailed(log.read_text(errors="replace")[-2000:])
