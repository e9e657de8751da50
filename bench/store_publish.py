"""Durable publish over the local API, beside the same against JetStream: each caller waits for its 202, or its PubAck.

All callers are in this process, the servers in processes of their own; each round starts them with an empty directory.
A caller of a sidecar has a keep-alive connection to its Unix socket; callers of JetStream share one connection, as in
an agent. Both keep the last 10,000 messages. Two floors beside them: `GET /health` over the same connections, which is
the sidecar's HTTP server with nothing behind it, and `disk`: append as many bytes to a file, `fdatasync`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from bench import jetstream
from bench.measure import cpu_seconds
from bench.sidecars import Sidecar, SidecarFailed, open_sidecar
from bench.writes import Figures, figures
from p2pnode.local.address import UnixAddress
from p2pnode.local.http import Client

SIZE = 1024
WARM_UP_SECONDS = 0.5
JOIN_SECONDS = 30.0
TOPIC = "hmmm.bench"
PLENTY = {
    "P2PNODE_GOSSIP_TOPICS": TOPIC,
    "P2PNODE_GOSSIP_PUBLISH_PER_SECOND": "100000",
    "P2PNODE_GOSSIP_PUBLISH_BURST": "1000000",
}
"""No limit of ours is to be met."""

SYSTEMS = ("p2pnode", "p2pnode, linked", "jetstream", "GET /health", "disk")
"""`linked`: with a neighbour on the same machine, which takes and stores all of it."""

DURABILITIES = {
    "p2pnode": ("full", "normal"),
    "p2pnode, linked": ("full", "normal"),
    "jetstream": ("always", "default"),
    "GET /health": ("-",),
    "disk": ("full",),
}


class RequestFailed(Exception):
    """A request was not answered as it should be."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked at once, and for how long."""

    callers: int
    seconds: float


class Caller:
    """One keep-alive connection to the local API; the sidecar ends it after 1,000 requests, and says so."""

    def __init__(self, socket: str, request: bytes, status: int) -> None:
        self._socket = socket
        self._request = request
        self._status = b"HTTP/1.1 %d " % status
        self._stream: trio.SocketStream | None = None

    async def ask(self) -> None:
        """Return once the request is answered.

        Raises:
            RequestFailed: with an answer of another status.
        """
        if self._stream is None:
            self._stream = await trio.open_unix_socket(self._socket)
        await self._stream.send_all(self._request)
        answer = b""
        while (head_end := answer.find(b"\r\n\r\n")) < 0 or len(answer) < head_end + 4 + _length(answer[:head_end]):
            data = await self._stream.receive_some()
            if not data:
                raise RequestFailed(f"the sidecar hung up after {answer!r}")
            answer += data
        if not answer.startswith(self._status):
            raise RequestFailed(answer.decode(errors="replace"))
        if b"\r\nconnection: close" in answer[:head_end].lower():
            await self.close()

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise RequestFailed(f"an answer without a length: {head!r}")


def _publishing() -> bytes:
    body = payload()
    return (
        f"POST /api/v1/topics/{TOPIC}/messages HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def payload() -> bytes:
    """A JSON object of SIZE bytes."""
    frame = '{"text": ""}'
    return f'{{"text": "{"x" * (SIZE - len(frame))}"}}'.encode()


def measure(system: str, durability: str, load: Load, where: Path) -> Figures:
    """One case, from an empty directory below `where`."""
    with tempfile.TemporaryDirectory(dir=where) as name:
        measured = _MEASURES[system](Path(name), durability, load)
    taken, lasted, cpu = measured
    return figures(system, load.callers, durability, taken, lasted, cpu)


Measured = tuple[Sequence[float], float, float]
"""What each publish took, how long all of it, the servers' CPU time: seconds."""


def _alone(directory: Path, durability: str, load: Load) -> Measured:
    with open_sidecar(directory / "a", {**PLENTY, "P2PNODE_MESSAGES_OWN_DURABILITY": durability}) as sidecar:
        return trio.run(_ask, sidecar, [sidecar.pid], load, _publishing(), 202)


def _linked(directory: Path, durability: str, load: Load) -> Measured:
    settings = {**PLENTY, "P2PNODE_MESSAGES_OWN_DURABILITY": durability}
    with ExitStack() as stack:
        neighbour = stack.enter_context(open_sidecar(directory / "b", settings))
        sidecar = stack.enter_context(open_sidecar(directory / "a", settings, bootstrap=[neighbour.addr]))
        _wait_for_mesh(sidecar)
        return trio.run(_ask, sidecar, [sidecar.pid, neighbour.pid], load, _publishing(), 202)


def _health(directory: Path, durability: str, load: Load) -> Measured:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with open_sidecar(directory / "a", PLENTY) as sidecar:
        return trio.run(_ask, sidecar, [sidecar.pid], load, request, 200)


def _wait_for_mesh(sidecar: Sidecar) -> None:
    client = Client(UnixAddress(sidecar.socket))
    deadline = time.monotonic() + JOIN_SECONDS
    while not any(each["topic"] == TOPIC and each["mesh"] for each in client.get_json("/api/v1/topics")):
        if time.monotonic() > deadline:
            raise SidecarFailed(f"no neighbour in the mesh of {TOPIC} within {JOIN_SECONDS:g} s")
        time.sleep(0.1)


async def _ask(sidecar: Sidecar, pids: Sequence[int], load: Load, request: bytes, status: int) -> Measured:
    callers = [Caller(sidecar.socket, request, status) for _ in range(load.callers)]
    taken: list[float] = []

    async def call(caller: Caller, end: float) -> None:
        while (begun := time.perf_counter()) < end:
            await caller.ask()
            taken.append(time.perf_counter() - begun)

    async def call_all(lasting: float) -> float:
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(call, caller, start + lasting)
        return time.perf_counter() - start

    await call_all(WARM_UP_SECONDS)
    taken.clear()
    cpu = sum(map(cpu_seconds, pids))
    lasted = await call_all(load.seconds)
    cpu = sum(map(cpu_seconds, pids)) - cpu
    for caller in callers:
        await caller.close()
    return taken, lasted, cpu


def _jetstream(directory: Path, durability: str, load: Load) -> Measured:
    with jetstream.open_server(directory, durability) as (pid, url):
        return asyncio.run(jetstream.publish(url, pid, load.callers, payload(), WARM_UP_SECONDS, load.seconds))


def _disk(directory: Path, durability: str, load: Load) -> Measured:
    body, taken = payload(), []
    file = os.open(directory / "file", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        start, cpu = time.perf_counter(), time.process_time()
        while (begun := time.perf_counter()) < start + load.seconds:
            os.write(file, body)
            os.fdatasync(file)
            taken.append(time.perf_counter() - begun)
        return taken, time.perf_counter() - start, time.process_time() - cpu
    finally:
        os.close(file)


_MEASURES: dict[str, Callable[[Path, str, Load], Measured]] = {
    "p2pnode": _alone,
    "p2pnode, linked": _linked,
    "jetstream": _jetstream,
    "GET /health": _health,
    "disk": _disk,
}


def cases(callers: Sequence[int]) -> list[tuple[str, str, int]]:
    """System, durability, callers; the disk has one caller."""
    return [
        (system, durability, count)
        for system in SYSTEMS
        for durability in DURABILITIES[system]
        for count in (callers if system != "disk" else (1,))
    ]
