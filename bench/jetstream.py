"""The same publish against nats-server: JetStream, file storage, one connection, each caller waits for its PubAck.

`always` syncs the file before each PubAck, as `full` does; `default` leaves that to the system for up to two minutes,
and a server that is killed loses nothing, as with `normal`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nats
from nats.js.api import RetentionPolicy, StorageType

from bench.measure import cpu_seconds

START_SECONDS = 30.0
STOP_SECONDS = 10.0
STREAM = "BENCH"
SUBJECT = "bench.publish"
KEPT = 10_000
"""Messages: as many as a sidecar keeps of a topic by default."""


class ServerFailed(Exception):
    """nats-server ended, or did not listen in time."""


@contextmanager
def open_server(directory: Path, durability: str) -> Iterator[tuple[int, str]]:
    """nats-server with its files in `directory`: its pid and URL.

    Args:
        durability: `always` or `default`.

    Raises:
        ServerFailed: with the end of its log.
    """
    sync = "sync_interval: always" if durability == "always" else ""
    config, log, ports = directory / "nats.conf", directory / "nats.log", directory / "ports"
    ports.mkdir()
    config.write_text(
        f'listen: "127.0.0.1:-1"\nports_file_dir: "{ports}"\nlog_file: "{log}"\n'
        f'jetstream {{ store_dir: "{directory / "jetstream"}"\n {sync} }}\n'
    )
    process = subprocess.Popen([str(Path(sys.executable).with_name("nats-server")), "-c", str(config)])
    try:
        yield process.pid, _wait(process, ports, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], ports: Path, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for file in ports.iterdir():
            try:
                url: str = json.loads(file.read_text())["nats"][0]
            except ValueError:
                continue  # being written
            return url
        time.sleep(0.02)
    raise ServerFailed(log.read_text(errors="replace")[-2000:] if log.exists() else "nats-server wrote no log")


async def publish(
    url: str, pid: int, callers: int, body: bytes, warm_up: float, seconds: float
) -> tuple[list[float], float, float]:
    """What each publish took, how long all of it, and the server's CPU time meanwhile: seconds.

    Args:
        warm_up: seconds of publishing before, which do not count.
    """
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        await stream.add_stream(
            name=STREAM,
            subjects=[SUBJECT],
            storage=StorageType.FILE,
            retention=RetentionPolicy.LIMITS,
            max_msgs=KEPT,
        )
        taken: list[float] = []

        async def call(end: float) -> None:
            while (begun := time.perf_counter()) < end:
                await stream.publish(SUBJECT, body)
                taken.append(time.perf_counter() - begun)

        async def call_all(lasting: float) -> float:
            start = time.perf_counter()
            await asyncio.gather(*(call(start + lasting) for _ in range(callers)))
            return time.perf_counter() - start

        await call_all(warm_up)
        taken.clear()
        cpu = cpu_seconds(pid)
        lasted = await call_all(seconds)
        return taken, lasted, cpu_seconds(pid) - cpu
    finally:
        await client.close()
