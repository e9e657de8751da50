"""What a sidecar costs until it is ready: `p2pnode run` by exec, again and again, one after the other.

python -m bench.start --runs 15
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import p2pnode
from bench.measure import cpu_seconds, proportional_bytes, resident_bytes
from bench.systems import say

STOP_SECONDS = 10.0
_LIST_MODULES = (
    "import sys; from p2pnode.cli import run; import p2pnode.config.layers, p2pnode.app; print(len(sys.modules))"
)


class StartFailed(Exception):
    """A sidecar ended before it was ready."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start.

    Args:
        seconds: from before the fork until the sidecar's line `ready` was read: its API answers, its port is bound.
        cpu_seconds: of its own, until then.
        rss_mib: and the next, `settle` seconds later.
        pss_mib: what it would share with other processes counts in parts.
    """

    seconds: float
    cpu_seconds: float
    rss_mib: float
    pss_mib: float


def _start(directory: Path, settle: float) -> Start:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("P2PNODE_")}
    begin = time.monotonic()
    with _sidecar(directory, environ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if _is_ready(line):
                break
        else:
            raise StartFailed(b"".join(lines[-20:]).decode(errors="replace"))
        seconds, cpu = time.monotonic() - begin, cpu_seconds(process.pid)
        time.sleep(settle)
        return Start(seconds, cpu, resident_bytes(process.pid) / 2**20, proportional_bytes(process.pid) / 2**20)


@contextmanager
def _sidecar(directory: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    arguments = ["--name", "start", "--data-dir", str(directory / "data"), "--api", f"unix:{directory / 'api.sock'}"]
    arguments += ["--listen", "/ip4/127.0.0.1/tcp/0", "--log-format", "json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pnode", "run", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**environ, "XDG_RUNTIME_DIR": str(directory)},
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _is_ready(line: bytes) -> bool:
    try:
        document = json.loads(line)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("message") == "ready"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.start", description="Start and memory of one sidecar.")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--settle", type=float, default=1.0, help="seconds from ready to the measuring of memory")
    parser.add_argument("--json", type=Path, help="write the figures of each run there")
    options = parser.parse_args(arguments)
    # Dependencies are compiled when they are installed; an editable p2pnode is not.
    compileall.compile_dir(str(Path(p2pnode.__file__).parent), quiet=1)
    starts = []
    try:
        for number in range(options.runs + 1):
            with tempfile.TemporaryDirectory(prefix="bench-start-") as name:
                start = _start(Path(name), options.settle)
            if number:
                starts.append(start)
                say(f"{number}: ready after {start.seconds:.2f} s, RSS {start.rss_mib:.1f} MiB")
    except StartFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    modules = int(subprocess.run([sys.executable, "-c", _LIST_MODULES], check=True, capture_output=True).stdout)
    if options.json is not None:
        figures = {"modules": modules, "starts": [asdict(start) for start in starts]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    load = os.getloadavg()
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" load average {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}\n"
        f"{len(starts)} starts by exec, warm; {modules} modules imported"
    )
    rows = (
        ("exec to ready, s", [start.seconds for start in starts]),
        ("CPU until ready, s", [start.cpu_seconds for start in starts]),
        ("RSS, MiB", [start.rss_mib for start in starts]),
        ("PSS, MiB", [start.pss_mib for start in starts]),
    )
    for what, values in rows:
        print(f"{what:20} median {median(values):7.2f}  max {max(values):7.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
