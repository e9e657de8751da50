"""Sidecars with two networks between them: one for libp2p, which can be cut, and one for NATS and HTTP."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.carriers.nats.server import binary
from tests.discovery.lan import Lan, Station, open_lan
from tests.e2e.harness import Node, environment, start_node, stop, wait_until

P2P_PORT = 9000
HTTP_PORT = 9100
NATS_PORT = 4222


class Broker:
    """A nats-server with JetStream in a station."""

    def __init__(self, station: Station, directory: Path) -> None:
        self.url = f"nats://{station.ip}:{NATS_PORT}"
        self._station, self._directory = station, directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it listens."""
        self._directory.mkdir(exist_ok=True)
        where = ("-a", self._station.ip, "-p", str(NATS_PORT), "-js", "-sd", str(self._directory))
        with open(self._directory / "nats.log", "ab") as log:
            command = [*self._station.within, binary("current"), *where]
            process = self._process = subprocess.Popen(command, stdout=log, stderr=log)

        def listens() -> bool:
            assert process.poll() is None, (self._directory / "nats.log").read_text()
            return bool(self._station.run("ss", "-tlnH", f"sport = :{NATS_PORT}").strip())

        wait_until("nats-server listens", listens)

    def kill(self) -> None:
        """`kill -9`."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


class RoadSite:
    """Made by `open_road_site`.

    Attributes:
        nodes: in the order in which they were started.
    """

    def __init__(self, directory: Path, lan: Lan) -> None:
        self._directory = directory
        self._lan, self._second = lan, lan.beside()
        self._ips: dict[str, str] = {}
        self.broker = Broker(self._second.plug_in(), directory / "nats")
        self.nodes: list[Node] = []

    def start(self, name: str, *flags: str, carrier: bool = False) -> Node:
        """One that knows the broker; it joins by the first node. Returns when it answers."""
        station = self._lan.plug_in()
        ip = self._second.free_ip()
        self._second.connect(station, "eth1", ip)
        self._ips[name] = station.ip
        flags = (*flags, "--listen", f"/ip4/{station.ip}/tcp/{P2P_PORT}", "--no-mdns", "--discovery", "static")
        if self.nodes:
            flags += ("--bootstrap", self.nodes[0].bootstrap)
        if carrier:
            flags += ("--carrier", f"{ip}:{HTTP_PORT}")
        env = environment(self._directory / "run", NATS_URL=self.broker.url)
        node = start_node(self._directory, name, *flags, env=env, within=station.within)
        self.nodes.append(node)
        wait_until(f"{name} answers", node.answers)
        return node

    def cut(self, nodes: Sequence[Node]) -> None:
        """No libp2p to and from these any more; nobody is told."""
        for node in nodes:
            self._lan.pass_on(self._ips[node.name], False)

    def mend(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self._lan.pass_on(self._ips[node.name], True)


@contextmanager
def open_road_site(directory: Path) -> Iterator[RoadSite]:
    """The broker runs; nodes and broker are gone when the block ends."""
    with open_lan() as lan, ExitStack() as ending:
        site = RoadSite(directory, lan)
        ending.callback(site.broker.kill)
        site.broker.start()
        try:
            yield site
        finally:
            for node in site.nodes:
                ending.callback(stop, node)
                assert node.process is not None
                node.process.terminate()
