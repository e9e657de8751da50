"""What a sidecar costs when nothing happens: real `p2pnode run` processes, started by exec, joined by one bootstrap.

python -m bench.idle --nodes 34 --seconds 60
python -m bench.idle --serf none                # without Serf's agents, which follow ours

Where namespaces are allowed all of it runs in a network of its own, and the bytes and packets on its loopback are
counted: no other process speaks there, and sidecars are asked nothing meanwhile.
"""

from __future__ import annotations

import argparse
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
from typing import Any

from bench.measure import cpu_seconds, proportional_bytes, resident_bytes
from bench.network import enter_own_network, loopback_traffic
from bench.serf import PROFILES, NoSerf, find_serf, open_agents, wait_until_complete
from bench.systems import say
from p2pnode.errors import P2PNodeError
from p2pnode.local.address import parse_api_address
from p2pnode.local.http import Client

BATCH = 4
"""Sidecars that start at once: each needs half a second of CPU to import what it needs."""

START_SECONDS = 60.0
JOIN_SECONDS = 180.0
SETTLE_SECONDS = 30.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.2


class StartFailed(Exception):
    """A sidecar ended, did not answer, or did not find the others."""


class _Sidecar:
    def __init__(self, name: str, directory: Path, bootstrap: Sequence[str]) -> None:
        data_dir, socket = directory / name, directory / f"{name}.sock"
        arguments = ["--name", name, "--role", "chorus", "--data-dir", str(data_dir), "--api", f"unix:{socket}"]
        arguments += ["--listen", "/ip4/127.0.0.1/tcp/0", "--log-format", "json"]
        for addr in bootstrap:
            arguments += ["--bootstrap", addr]
        self._log = directory / f"{name}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "p2pnode", "run", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={key: value for key, value in os.environ.items() if not key.startswith("P2PNODE_")},
            )
        self._client = Client(parse_api_address(f"unix:{socket}"))

    def document(self) -> dict[str, Any] | None:
        """The node document; None while it does not answer.

        Raises:
            StartFailed: the process ended.
        """
        if self.process.poll() is not None:
            raise StartFailed(self._log.read_text(errors="replace")[-2000:])
        try:
            document: dict[str, Any] = self._client.get_json("/api/v1/node")
        except P2PNodeError:
            return None
        return document

    def wait_until_ready(self) -> dict[str, Any]:
        deadline = time.monotonic() + START_SECONDS
        while (document := self.document()) is None:
            if time.monotonic() > deadline:
                raise StartFailed(f"no answer within {START_SECONDS:g} s: {self._log.read_text(errors='replace')}")
            time.sleep(POLL_SECONDS)
        return document


@contextmanager
def _open_sidecars(nodes: int) -> Iterator[list[_Sidecar]]:
    sidecars: list[_Sidecar] = []
    with tempfile.TemporaryDirectory(prefix="bench-idle-") as name:
        directory = Path(name)
        try:
            sidecars.append(_Sidecar("n00", directory, []))
            bootstrap = sidecars[0].wait_until_ready()["multiaddrs"][:1]
            for first in range(1, nodes, BATCH):
                batch = [
                    _Sidecar(f"n{index:02d}", directory, bootstrap) for index in range(first, min(first + BATCH, nodes))
                ]
                sidecars += batch
                for sidecar in batch:
                    sidecar.wait_until_ready()
            _wait_until_complete(sidecars)
            yield sidecars
        finally:
            for sidecar in sidecars:
                sidecar.process.terminate()
            deadline = time.monotonic() + STOP_SECONDS
            for sidecar in sidecars:
                try:
                    sidecar.process.wait(max(deadline - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    sidecar.process.kill()
                    sidecar.process.wait()


def _wait_until_complete(sidecars: Sequence[_Sidecar]) -> None:
    deadline = time.monotonic() + JOIN_SECONDS
    waiting = list(sidecars)
    while waiting:
        document = waiting[-1].document()
        if document is not None and document["members"].get("alive", 0) >= len(sidecars):
            waiting.pop()
            continue
        if time.monotonic() > deadline:
            seen = document["members"] if document else "no answer"
            raise StartFailed(f"not all see all {len(sidecars)} within {JOIN_SECONDS:g} s; one sees {seen}")
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Idle:
    """What each process cost, the bootstrap first.

    Args:
        seconds: measured.
        cpu_percent: of a core.
        bytes: per node and second, with IP headers; None where they could not be counted. Sent; each is received once.
        packets: likewise.
    """

    seconds: float
    cpu_percent: list[float]
    rss_mib: list[float]
    pss_mib: list[float]
    bytes: float | None
    packets: float | None


def measured(pids: Sequence[int], settle: float, seconds: float, *, own_network: bool) -> Idle:
    time.sleep(settle)
    before, carried, started = [cpu_seconds(pid) for pid in pids], loopback_traffic(), time.monotonic()
    time.sleep(seconds)
    after, passed = [cpu_seconds(pid) for pid in pids], time.monotonic() - started
    traffic = loopback_traffic() - carried
    return Idle(
        passed,
        [100 * (late - early) / passed for early, late in zip(before, after, strict=True)],
        [resident_bytes(pid) / 2**20 for pid in pids],
        [proportional_bytes(pid) / 2**20 for pid in pids],
        traffic.bytes / passed / len(pids) if own_network else None,
        traffic.packets / passed / len(pids) if own_network else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=34)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS, help="seconds from complete to measured")
    parser.add_argument("--serf", default="lan", help="profiles of Serf to run after it, or `none` (lan)")
    parser.add_argument("--json", type=Path, help="write the figures of each node there")
    options = parser.parse_args(arguments)
    profiles = [] if options.serf == "none" else options.serf.split(",")
    if unknown := set(profiles) - set(PROFILES):
        parser.error(f"Serf has no profile {', '.join(sorted(unknown))}")
    program = ""
    if profiles:
        try:
            program = find_serf()
        except NoSerf as error:
            say(f"without Serf: {error}")
            profiles = []
    own_network = enter_own_network("bench.idle", sys.argv[1:] if arguments is None else arguments)
    if not own_network:
        say("no network namespaces here: bytes and packets are not counted")
    found: dict[str, Idle] = {}
    try:
        with _open_sidecars(options.nodes) as sidecars:
            say(f"{options.nodes} sidecars see {options.nodes}; settling for {options.settle:g} s")
            pids = [sidecar.process.pid for sidecar in sidecars]
            found["sidecars"] = measured(pids, options.settle, options.seconds, own_network=own_network)
        for profile in profiles:
            with (
                tempfile.TemporaryDirectory(prefix="bench-idle-") as name,
                open_agents(program, profile, options.nodes, Path(name), at_once=options.nodes) as agents,
            ):
                wait_until_complete(agents, JOIN_SECONDS)
                say(f"{options.nodes} agents of Serf, {profile} profile, see {options.nodes}; settling")
                pids = [agent.pid for agent in agents]
                found[f"Serf agents, {profile} profile"] = measured(
                    pids, options.settle, options.seconds, own_network=own_network
                )
    except (StartFailed, NoSerf) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        figures = {name: asdict(idle) for name, idle in found.items()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    load = os.getloadavg()
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" load average {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}"
    )
    for name, idle in found.items():
        _print(name, idle)
    return 0


def _print(name: str, idle: Idle) -> None:
    cpu, rss, pss = idle.cpu_percent, idle.rss_mib, idle.pss_mib
    print(
        f"{len(cpu)} {name}, idle for {idle.seconds:.0f} s\n"
        f"CPU  % of a core per node  median {median(cpu):6.2f}  max {max(cpu):6.2f}  bootstrap {cpu[0]:6.2f}\n"
        f"RSS  MiB per node          median {median(rss):6.1f}  max {max(rss):6.1f}\n"
        f"PSS  MiB per node          median {median(pss):6.1f}  max {max(pss):6.1f}"
    )
    if idle.bytes is not None:
        print(f"sent per node and second     {idle.bytes:.0f} bytes  {idle.packets:.2f} packets")


if __name__ == "__main__":
    sys.exit(main())
