"""Two fleets of five in networks that cannot reach each other, and a NATS server between them that both reach."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.carriers.nats.server import binary
from tests.e2e.cable import LEFT, RIGHT, open_cable
from tests.e2e.harness import Node, command, environment, running_node, start_node, stop, wait_until
from tests.e2e.plain import PlainAgent, plain_agent

THREAD: Final = "hmmm.e2e"
TOPICS: Final = f"councils.forming,councils.claims,councils.status,{THREAD}"
SKILLS: Final = {"left": ("testing", "documentation", "operations"), "right": ("security", "design", "research")}
LEFT_BROKER, RIGHT_BROKER = (f"{addr.rpartition('.')[0]}.1" for addr in (LEFT, RIGHT))
_PORT: Final = 4222
_JSON: Final = {"Content-Type": "application/json"}


class Ear:
    """Counts the ids that the event stream of a topic gives at one node."""

    def __init__(self, node: Node, topic: str) -> None:
        self.name = node.name
        self.heard: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(node.api.removeprefix("unix:"))
        self._socket.sendall(f"GET /api/v1/topics/{topic}/events HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b"data:") and line.endswith(b"\n"):
                    self.heard[json.loads(line[5:])["id"]] += 1

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@dataclass
class TwoFleets:
    """
    Args:
        left, right: the nodes of a side, its bridge last; `left[0]` is the orchestrator.
        agent: a plain NATS client that hears each publication of THREAD.
    """

    left: list[Node]
    right: list[Node]
    agent: PlainAgent

    @property
    def nodes(self) -> list[Node]:
        return self.left + self.right

    @property
    def bridges(self) -> list[Node]:
        return [self.left[-1], self.right[-1]]


@contextmanager
def open_two_fleets(directory: Path) -> Iterator[TwoFleets]:
    """Every node answers; they may still be joining."""
    key = directory / "import.key"
    assert command("keygen", str(key), env=environment(directory / "run")).returncode == 0
    with open_cable() as cable, ExitStack() as running:
        cable.cut()
        running.enter_context(_broker(directory / "nats", cable.router))
        agent = running.enter_context(
            plain_agent(directory, f"nats://{LEFT_BROKER}:{_PORT}", THREAD, within=cable.router)
        )
        sides = {
            "left": running.enter_context(_side(directory, "left", LEFT, LEFT_BROKER, cable.left, key)),
            "right": running.enter_context(_side(directory, "right", RIGHT, RIGHT_BROKER, cable.right, key)),
        }
        fleets = TwoFleets(sides["left"], sides["right"], agent)
        for node in fleets.nodes:
            wait_until(f"{node.name} answers", node.answers)
        yield fleets


@contextmanager
def _side(directory: Path, side: str, addr: str, broker: str, within: Sequence[str], key: Path) -> Iterator[list[Node]]:
    """Four nodes and a bridge of one side: the first answers, the others are being started."""
    common = ["--listen", f"/ip4/{addr}/tcp/0", "--no-mdns"]
    env = environment(directory / "run", P2PNODE_GOSSIP_TOPICS=TOPICS)
    role = ["--role", "whoosh"] if side == "left" else []
    with running_node(directory, f"{side}-0", *common, *role, env=env, within=within) as first:
        joining = [*common, "--bootstrap", first.bootstrap]
        nodes = [first]
        try:
            for number, skill in enumerate(SKILLS[side], start=1):
                claiming = {"P2PNODE_AGENT_AUTO_CLAIM": "true", "P2PNODE_AGENT_CAPABILITIES": skill}
                nodes.append(
                    start_node(directory, f"{side}-{number}", *joining, env={**env, **claiming}, within=within)
                )
            bridging = {"NATS_URL": f"nats://{broker}:{_PORT}", "P2PNODE_BRIDGE_IMPORT_KEY_FILE": str(key)}
            nodes.append(
                start_node(
                    directory,
                    f"{side}-bridge",
                    *joining,
                    "--role",
                    "bridge",
                    env={**env, **bridging},
                    within=within,
                )
            )
            yield nodes
        finally:
            for node in nodes:
                assert node.process is not None
                node.process.terminate()
            for node in nodes:
                stop(node)


@contextmanager
def _broker(directory: Path, within: Sequence[str]) -> Iterator[None]:
    """A server on all addresses of a network of its own."""
    directory.mkdir()
    config = directory / "nats.conf"
    config.write_text(f'listen: "0.0.0.0:{_PORT}"\njetstream {{ store_dir: {json.dumps(str(directory / "store"))} }}\n')
    log = directory / "nats.log"
    with open(log, "wb") as output:
        process = subprocess.Popen([*within, binary("current"), "-c", str(config)], stdout=output, stderr=output)
    try:

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()
            return "Server is ready" in log.read_text()

        wait_until("the NATS server is ready", is_ready)
        yield
    finally:
        process.kill()
        process.wait()


def publish_from(nodes: Sequence[Node], count: int, topic: str = THREAD) -> dict[str, str]:
    """Publish so many messages, by all the nodes at once: the peer id of the origin by message id."""

    def publish(place: int) -> dict[str, str]:
        node = nodes[place]
        origin = node.get("/api/v1/node")["peer_id"]
        numbers = range(place, count, len(nodes))
        return {
            node.publish_accepted(topic, json.dumps({"n": n, "of": node.name}).encode(), _JSON): origin for n in numbers
        }

    with ThreadPoolExecutor(len(nodes)) as pool:
        return {each: origin for part in pool.map(publish, range(len(nodes))) for each, origin in part.items()}
