"""Real sidecars for end-to-end tests: processes, sockets, files; gone when the block ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from p2pnode.errors import NoSidecar
from p2pnode.local.address import parse_api_address
from p2pnode.local.http import Client, Response

T = TypeVar("T")
P2PNODE = (sys.executable, "-m", "p2pnode")
DEADLINE_SECONDS = 90.0


def wait_until(what: str, found: Callable[[], T | None], seconds: float = DEADLINE_SECONDS) -> T:
    """The first true answer of `found`, asked again and again until the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        answer = found()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def environment(runtime: Path, **extra: str) -> dict[str, str]:
    """The environment without anything that configures p2pnode, and a runtime directory of its own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("P2PNODE_", "CHORUS_", "WHOOSH_", "NATS_")) and name != "DOCKER_HOST"
    }
    runtime.mkdir(mode=0o700, exist_ok=True)
    return {**kept, "XDG_RUNTIME_DIR": str(runtime), **extra}


@dataclass
class Node:
    """A sidecar to talk to; `process` is None for those that a fleet started."""

    name: str
    api: str
    document: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    @property
    def client(self) -> Client:
        return Client(parse_api_address(self.api))

    def get(self, path: str) -> Any:
        return self.client.get_json(path, timeout_seconds=20)

    def answers(self) -> Any:
        try:
            return self.get("/api/v1/node")
        except NoSidecar:
            return None

    def publish(self, topic: str, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
        return self.client.request(
            "POST", f"/api/v1/topics/{topic}/messages", body=body, headers=headers, timeout_seconds=20
        )

    def publish_accepted(self, topic: str, body: bytes, headers: Mapping[str, str] | None = None) -> str:
        """The id of a message the sidecar took; refusals are tried again until the deadline."""

        def attempt() -> str | None:
            response = self.publish(topic, body, headers)
            if response.status in (429, 503):
                return None
            assert response.status == 202, response
            return str(response.json()["id"])

        return wait_until(f"{self.name} accepts a message", attempt)

    def ids(self, topic: str) -> set[str]:
        return {document["id"] for document in self.messages(topic)}

    def messages(self, topic: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        path = f"/api/v1/topics/{topic}/messages?limit=1000"
        while batch := self.get(path + (f"&after={found[-1]['id']}" if found else "")):
            found += batch
        return found

    def metric(self, name: str) -> float:
        """The sum over all series of a metric; 0 when there is none."""
        text = self.client.request("GET", "/metrics", timeout_seconds=20).body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    @property
    def bootstrap(self) -> str:
        return str(self.get("/api/v1/node")["multiaddrs"][0])


def have_all(nodes: Sequence[Node], topic: str, ids: set[str], seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until every node keeps every id."""
    for node in nodes:

        def complete(node: Node = node) -> bool:
            return ids <= node.ids(topic)

        try:
            wait_until(f"{node.name} has {len(ids)} messages", complete, seconds)
        except AssertionError:
            missing = ids - node.ids(topic)
            raise AssertionError(f"{node.name} misses {len(missing)} of {len(ids)}: {sorted(missing)[:3]}") from None


@dataclass
class Fleet:
    directory: Path
    process: subprocess.Popen[bytes]
    nodes: list[Node]

    def by_role(self, role: str) -> list[Node]:
        return [node for node in self.nodes if node.document["role"] == role]


@contextmanager
def running_fleet(directory: Path, agents: int, orchestrators: int = 1, **extra: str) -> Iterator[Fleet]:
    """`p2pnode fleet` as an operator starts it, with `extra` variables."""
    command = [*P2PNODE, "fleet", "--agents", str(agents), "--orchestrators", str(orchestrators)]
    output = directory / "fleet.out"
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [*command, "--dir", str(directory)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(directory / "run", **extra),
        )
    try:

        def ready() -> dict[str, Any] | None:
            assert process.poll() is None, f"the fleet ended: {output.read_text()}"
            path = directory / "fleet.json"
            document = json.loads(path.read_text()) if path.exists() else {"ready": False}
            return document if document["ready"] else None

        document = wait_until("the fleet is complete", ready, 180)
        nodes = [Node(entry["name"], entry["api"], entry) for entry in document["nodes"]]
        yield Fleet(directory, process, nodes)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running_node(
    directory: Path,
    name: str,
    *flags: str,
    agent: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> Iterator[Node]:
    """One `p2pnode run` on loopback, answering when the block begins."""
    node = start_node(directory, name, *flags, agent=agent, env=env, within=within)
    try:
        wait_until(f"{name} answers", node.answers)
        yield node
    finally:
        stop(node)


def start_node(
    directory: Path,
    name: str,
    *flags: str,
    agent: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> Node:
    """Start a node without waiting for it; `within` is a command that runs another one, in a namespace say."""
    api = f"unix:{directory / f'{name}.sock'}"
    command = [*within, *P2PNODE, "run", "--name", name, "--data-dir", str(directory / name), "--api", api]
    if "--listen" not in flags:
        command += ["--listen", "/ip4/127.0.0.1/tcp/0"]
    log = directory / f"{name}.log"
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [*command, *flags, *(["--", *agent] if agent else [])],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env or environment(directory / "run"),
        )
    return Node(name, api, process=process, log=log)


def stop(node: Node, number: signal.Signals = signal.SIGTERM, seconds: float = 30) -> int:
    """Send a signal and wait for the end; the exit status."""
    process = node.process
    assert process is not None
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def command(
    *arguments: str, env: Mapping[str, str], stdin: bytes = b"", seconds: float = 60
) -> subprocess.CompletedProcess[bytes]:
    """Run a p2pnode command to its end."""
    return subprocess.run([*P2PNODE, *arguments], input=stdin, capture_output=True, env=dict(env), timeout=seconds)
