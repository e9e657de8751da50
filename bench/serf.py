"""Serf's agents, to measure beside ours: from Debian's package, started on loopback, asked over their RPC.

The package is only unpacked, into `.interop/serf`: installing it would start a service. The RPC is msgpack over TCP
(serf, "RPC Protocol"), of which `stats` needs maps and strings alone.
"""

from __future__ import annotations

import platform
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedRWPair
from pathlib import Path
from typing import Any

PROFILES = ("lan", "local")
CACHE = Path(__file__).resolve().parents[1] / ".interop" / "serf"
ANSWER_SECONDS = 10.0
START_SECONDS = 60.0
POLL_SECONDS = 0.02


class NoSerf(Exception):
    """It is not installed here and could not be; or an agent did not do as it should."""


def find_serf() -> str:
    """The program, unpacked if need be.

    Raises:
        NoSerf: why not.
    """
    unpacked = CACHE / "usr" / "bin" / "serf"
    if (found := shutil.which("serf")) is not None:
        return found
    if unpacked.exists():
        return str(unpacked)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoSerf(f"no `serf` in PATH, and no Debian to get it from ({platform.platform()})")
    CACHE.mkdir(parents=True, exist_ok=True)
    fetched = subprocess.run(["apt-get", "download", "serf"], cwd=CACHE, capture_output=True, text=True)
    packages = sorted(CACHE.glob("serf_*.deb"))
    if fetched.returncode or not packages:
        raise NoSerf(f"apt-get download serf: {(fetched.stderr or fetched.stdout).strip()[-300:]}")
    subprocess.run(["dpkg-deb", "-x", str(packages[-1]), str(CACHE)], check=True, capture_output=True)
    return str(unpacked)


class Agent:
    """One `serf agent`, and the connection to its RPC once it is there."""

    def __init__(self, program: str, name: str, profile: str, port: int, rpc: int, join: int | None, log: Path) -> None:
        self.name = name
        self._rpc = rpc
        self._log = log
        self._stream: BufferedRWPair | None = None
        self._sequence = 0
        command = [program, "agent", f"-node={name}", f"-bind=127.0.0.1:{port}", f"-rpc-addr=127.0.0.1:{rpc}"]
        command += [f"-profile={profile}", "-log-level=warn"]
        if join is not None:
            command.append(f"-join=127.0.0.1:{join}")
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_ready(self) -> bool:
        """Does it take commands?

        Raises:
            NoSerf: it ended.
        """
        if self._stream is not None:
            return True
        if self.process.poll() is not None:
            raise NoSerf(f"{self.name} ended: {self._log.read_text(errors='replace')[-500:]}")
        try:
            with socket.create_connection(("127.0.0.1", self._rpc), ANSWER_SECONDS) as connection:
                self._stream = connection.makefile("rwb")
        except ConnectionRefusedError:
            return False
        self._ask("handshake", _text("Version") + b"\x01")
        return True

    def alive(self) -> int:
        """How many members it takes for alive, itself included."""
        self._ask("stats", None)
        assert self._stream is not None
        serf = _read(self._stream)["serf"]
        return int(serf["members"]) - int(serf["failed"]) - int(serf["left"])

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self.process.kill()
        self.process.wait()

    def _ask(self, command: str, body: bytes | None) -> None:
        assert self._stream is not None
        self._sequence = (self._sequence + 1) % 128
        header = b"\x82" + _text("Command") + _text(command) + _text("Seq") + bytes([self._sequence])
        self._stream.write(header if body is None else header + b"\x81" + body)
        self._stream.flush()
        if error := _read(self._stream)["Error"]:
            raise NoSerf(f"{self.name}: {error}")


@contextmanager
def open_agents(program: str, profile: str, nodes: int, directory: Path, at_once: int) -> Iterator[list[Agent]]:
    """Agents that take commands, joined by the first; gone when the block ends.

    Args:
        at_once: how many start before the next are waited for.
    """
    ports = _free_ports(2 * nodes)
    with ExitStack() as running:
        agents: list[Agent] = []
        while len(agents) < nodes:
            first = len(agents)
            for index in range(first, min(first + (at_once if first else 1), nodes)):
                join = ports[0] if index else None
                log = directory / f"serf-{index:02d}.log"
                agent = Agent(program, f"n{index:02d}", profile, ports[2 * index], ports[2 * index + 1], join, log)
                running.callback(agent.close)
                agents.append(agent)
            _wait_until_ready(agents[first:])
        yield agents


def wait_until_complete(agents: Sequence[Agent], seconds: float) -> None:
    """Until each lists all.

    Raises:
        NoSerf: not in time.
    """
    deadline = time.monotonic() + seconds
    waiting = list(agents)
    while waiting:
        if (count := waiting[-1].alive()) >= len(agents):
            waiting.pop()
        elif time.monotonic() > deadline:
            raise NoSerf(f"{waiting[-1].name} lists {count} of {len(agents)} alive after {seconds:g} s")
        else:
            time.sleep(POLL_SECONDS)


def _wait_until_ready(agents: Sequence[Agent]) -> None:
    deadline = time.monotonic() + START_SECONDS
    for agent in agents:
        while not agent.is_ready():
            if time.monotonic() > deadline:
                raise NoSerf(f"{agent.name} takes no commands after {START_SECONDS:g} s")
            time.sleep(POLL_SECONDS)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has, for TCP; taken by others meanwhile, the agent ends and says so."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in sockets]


def _text(text: str) -> bytes:
    return bytes([0xA0 | len(text)]) + text.encode()


def _read(stream: BufferedRWPair) -> Any:
    """One msgpack value of those that Serf answers with: maps, texts, unsigned numbers, nil, booleans."""
    (kind,) = _take(stream, 1)
    if kind < 0x80:
        return kind
    if kind < 0x90:
        return {_read(stream): _read(stream) for _ in range(kind & 0x0F)}
    if 0xA0 <= kind < 0xC0:
        return _take(stream, kind & 0x1F).decode()
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind]
    if kind in (0xD9, 0xDA, 0xDB):
        return _take(stream, _number(stream, 1 << (kind - 0xD9))).decode()
    if 0xCC <= kind <= 0xCF:
        return _number(stream, 1 << (kind - 0xCC))
    if kind in (0xDE, 0xDF):
        return {_read(stream): _read(stream) for _ in range(_number(stream, 2 << (kind - 0xDE)))}
    raise NoSerf(f"an answer holds msgpack type {kind:#x}")


def _number(stream: BufferedRWPair, size: int) -> int:
    value: int = struct.unpack(">" + {1: "B", 2: "H", 4: "I", 8: "Q"}[size], _take(stream, size))[0]
    return value


def _take(stream: BufferedRWPair, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise NoSerf("the connection to an agent ended")
    return data
