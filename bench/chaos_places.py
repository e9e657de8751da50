"""Where `bench.chaos` happens: stations on one switch, each with a node and its agent, and what is found of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.chaos_agent import SUBSCRIPTION
from p2pnode.errors import P2PNodeError
from p2pnode.local import http
from p2pnode.local.address import parse_api_address
from tests.discovery.lan import Lan, Station

TOPIC: Final = "hmmm.chaos"
PORT: Final = 9000
WEBHOOK: Final = "webhook"
"""The name of the sidecar's own subscription."""
WEBHOOK_PORT: Final = 8080
BOOTSTRAPS: Final = 3
START_SECONDS: Final = 180.0


class Switch(Lan):
    """A network whose cables can be pulled out at the switch; who is cut off is not told."""

    def cut(self, port: int) -> None:
        self._set(port, "down")

    def mend(self, port: int) -> None:
        self._set(port, "up")

    def _set(self, port: int, state: str) -> None:
        subprocess.run([*self._within, "ip", "link", "set", f"port{port}", state], check=True, capture_output=True)


@dataclass
class Place:
    """One station: a node and its agent, their files, and what was found of them."""

    name: str
    port: int
    station: Station
    directory: Path
    bootstrap: Sequence[str]
    webhook: bool
    node: subprocess.Popen[bytes] | None = None
    agent: subprocess.Popen[bytes] | None = None
    held: dict[str, int] = field(default_factory=dict)
    last_id: str = ""

    @property
    def api(self) -> str:
        return f"unix:{self.directory / self.name}.sock"

    @property
    def notes(self) -> Path:
        return self.directory / f"{self.name}.ids"

    def start_node(self) -> None:
        command = [sys.executable, "-m", "p2pnode", "run", "--name", self.name, "--no-mdns", "--api", self.api]
        command += ["--data-dir", str(self.directory / self.name), "--listen", f"/ip4/{self.station.ip}/tcp/{PORT}"]
        for addr in self.bootstrap:
            command += ["--bootstrap", addr]
        settings = {
            "P2PNODE_GOSSIP_TOPICS": TOPIC,
            "P2PNODE_GOSSIP_PUBLISH_PER_SECOND": "1000",
            "P2PNODE_GOSSIP_PUBLISH_BURST": "1000",
            "P2PNODE_LOG_FORMAT": "json",
            "XDG_RUNTIME_DIR": str(self.directory / "run"),
        }
        if self.webhook:
            settings["P2PNODE_AGENT_WEBHOOK"] = f"http://127.0.0.1:{WEBHOOK_PORT}/messages"
        self.node = self._start(command, "log", settings)

    def start_agent(self) -> None:
        what = ["webhook", str(WEBHOOK_PORT)] if self.webhook else ["stream", self.api]
        command = [sys.executable, "-m", "bench.chaos_agent", *what, TOPIC, str(self.notes)]
        self.agent = self._start(command, "agent.log", {})

    def _start(self, command: Sequence[str], log: str, settings: dict[str, str]) -> subprocess.Popen[bytes]:
        ours = ("P2PNODE_", "CHORUS_", "WHOOSH_", "NATS_", "DOCKER_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        with open(self.directory / f"{self.name}.{log}", "ab") as file:
            return subprocess.Popen(
                [*self.station.within, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=kept | settings,
            )

    def end(self) -> None:
        for process in (self.node, self.agent):
            if process is not None:
                process.kill()
                process.wait()

    def read_held(self) -> None:
        """Take what it stores beyond what was read before."""
        path = f"/api/v1/topics/{TOPIC}/messages?limit=1000"
        while page := self.get(path + (f"&after={self.last_id}" if self.last_id else "")):
            for document in page:
                self.held[document["id"]] = int(document["payload"]["number"])
            self.last_id = page[-1]["id"]

    def get(self, path: str) -> Any:
        return http.Client(parse_api_address(self.api)).get_json(path, timeout_seconds=20)

    def holds(self, wanted: Collection[str]) -> bool:
        self.read_held()
        return set(wanted) <= self.held.keys()

    def has_handled(self, wanted: Collection[str]) -> bool:
        """Its agent has them all, and nothing waits for an acknowledgement."""
        return set(wanted) <= set(self.handled()) and self.pending() == 0

    def answers(self) -> bool:
        """It does, and what it holds was read to the end; raises as `get`."""
        self.read_held()
        return True

    def pending(self) -> int:
        """Messages that its agent has not acknowledged."""
        name = WEBHOOK if self.webhook else SUBSCRIPTION
        return sum(each["pending"] for each in self.get("/api/v1/subscriptions") if each["name"] == name)

    def handled(self) -> list[str]:
        """The ids its agent wrote down, each as often as it did."""
        return self.notes.read_text().split() if self.notes.exists() else []


@contextmanager
def open_places(directory: Path, count: int) -> Iterator[tuple[Switch, list[Place]]]:
    """Nodes that all see each other, with their agents."""
    with ExitStack() as stack:
        switch = Switch(stack)
        stations = [switch.plug_in() for _ in range(count)]
        places = []
        for number, station in enumerate(stations):
            others = [f"/ip4/{each.ip}/tcp/{PORT}" for each in stations[:BOOTSTRAPS] if each is not station]
            places.append(Place(f"node-{number}", number + 1, station, directory, others, number % 2 == 0))
        for place in places:
            stack.callback(place.end)
            place.start_agent()
            place.start_node()
        everybody = {place.name for place in places}
        deadline = time.monotonic() + START_SECONDS
        for place in places:

            def complete(place: Place = place) -> bool:
                alive = {peer["name"] for peer in place.get("/api/v1/peers") if peer["state"] == "alive"}
                return alive >= everybody

            if not eventually(complete, deadline):
                tail = (directory / f"{place.name}.log").read_text(errors="replace")[-2000:]
                raise SystemExit(f"{place.name} did not see all others within {START_SECONDS:g} s\n{tail}")
        yield switch, places


def eventually(holds: Callable[[], bool], deadline: float) -> bool:
    """False when it did not until the deadline; a sidecar that does not answer counts as no."""
    while True:
        try:
            if holds():
                return True
        except P2PNodeError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
