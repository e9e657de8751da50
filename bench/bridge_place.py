"""Where `bench.bridge` happens: a mesh of sidecars with an agent each, its bridges, and the broker between."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from p2pnode.errors import P2PNodeError
from tests.carriers.nats.server import NatsServer
from tests.e2e.harness import Node, command, environment, start_node, stop, wait_until

OUT: Final = "hmmm.bench-out"
"""From the sidecars to NATS; the subject has the same name."""
IN: Final = "hmmm.bench-in"
SIDECARS: Final = 4
BRIDGES: Final = 3
BROKER: Final = -1
"""As a victim; others are numbers of bridges."""
START_SECONDS: Final = 180.0


@dataclass
class Agent:
    """Reads both topics at one sidecar as they come: the numbers, and the nanoseconds since their publishing."""

    node: Node
    numbers: dict[str, list[int]] = field(default_factory=lambda: {OUT: [], IN: []})
    latency_ns: dict[str, list[int]] = field(default_factory=lambda: {OUT: [], IN: []})
    _sockets: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for topic in (OUT, IN):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sockets.append(sock)
            sock.connect(self.node.api.removeprefix("unix:"))
            sock.sendall(f"GET /api/v1/topics/{topic}/events?from=start HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            thread = threading.Thread(target=self._read, args=(sock, topic), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Once the sidecar is gone: that ends the stream."""
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _read(self, sock: socket.socket, topic: str) -> None:
        with suppress(ConnectionError), sock.makefile("rb") as lines:
            for line in lines:
                now = time.monotonic_ns()
                if line.startswith(b"data:"):
                    payload = json.loads(line.removeprefix(b"data:")).get("payload")
                    if payload:
                        self.numbers[topic].append(payload["number"])
                        self.latency_ns[topic].append(now - payload["at_ns"])


class Place:
    """The mesh, its bridges and the broker; everything ends with the block."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = NatsServer(directory / "nats")
        self.sidecars: list[Node] = []
        self.bridges: list[Node] = []
        self.agents: list[Agent] = []
        self._env: dict[str, str] = {}
        self._bridge_env: dict[str, str] = {}

    def start(self) -> None:
        self.server.start()
        key = self.directory / "import.key"
        self._env = environment(
            self.directory / "run",
            P2PNODE_GOSSIP_TOPICS=f"{OUT},{IN}",
            P2PNODE_GOSSIP_PUBLISH_PER_SECOND="1000",
            P2PNODE_GOSSIP_PUBLISH_BURST="1000",
            P2PNODE_LOG_FORMAT="json",
        )
        made = command("keygen", str(key), env=self._env)
        assert made.returncode == 0, made.stderr.decode()
        self._bridge_env = {**self._env, "NATS_URL": self.server.url, "P2PNODE_BRIDGE_IMPORT_KEY_FILE": str(key)}
        for number in range(SIDECARS):
            self.sidecars.append(self._start(f"sidecar-{number}", self._env))
            wait_until("a sidecar answers", self.sidecars[-1].answers, START_SECONDS)
        self.bridges = [self._start_bridge(number) for number in range(BRIDGES)]
        for bridge in self.bridges:
            wait_until(f"{bridge.name} works", lambda bridge=bridge: works(bridge), START_SECONDS)  # type: ignore[misc]
        for node in (*self.sidecars, *self.bridges):
            wait_until(f"{node.name} has a mesh", lambda node=node: meshed(node), START_SECONDS)  # type: ignore[misc]
        self.agents = [Agent(node) for node in self.sidecars]
        for agent in self.agents:
            agent.start()

    def _start(self, name: str, env: Mapping[str, str], *flags: str) -> Node:
        join = ("--bootstrap", self.sidecars[0].bootstrap) if self.sidecars else ()
        return start_node(self.directory, name, "--discovery", "static", *join, *flags, env=env)

    def _start_bridge(self, number: int) -> Node:
        return self._start(f"bridge-{number}", self._bridge_env, "--role", "bridge")

    def kill(self, victim: int) -> None:
        if victim == BROKER:
            self.server.kill()
        else:
            stop(self.bridges[victim], signal.SIGKILL)

    def restart(self, victim: int) -> None:
        if victim == BROKER:
            self.server.start()
        else:
            self.bridges[victim] = self._start_bridge(victim)

    def end(self) -> None:
        for node in (*self.bridges, *self.sidecars):
            stop(node, signal.SIGKILL)
        self.server.kill()
        for agent in self.agents:
            agent.stop()

    def nodes(self) -> list[Node]:
        return [*self.sidecars, *self.bridges]


@contextmanager
def open_place(directory: Path) -> Iterator[Place]:
    place = Place(directory)
    try:
        place.start()
        yield place
    finally:
        place.end()


def works(bridge: Node) -> bool:
    """It answers, is connected, and reads every subject."""
    if not bridge.answers():
        return False
    document = bridge.get("/api/v1/bridge")
    return bool(document["broker"]["connected"] and document["imports"])


def meshed(node: Node) -> bool:
    meshes = {each["topic"]: each["mesh"] for each in node.get("/api/v1/topics")}
    return bool(meshes.get(OUT) and meshes.get(IN))


def held(node: Node, topic: str) -> list[int] | None:
    """The numbers that a node stores, each as often as it does; None: it does not answer now."""
    try:
        return [int(each["payload"]["number"]) for each in node.messages(topic)]
    except P2PNodeError:
        return None
