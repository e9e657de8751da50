"""A local network with a fleet on it, and what its nodes can find each other by."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from tests.discovery.lan import ROOT, Station, open_lan
from tests.discovery.scripted_http import Answer, serving_unix
from tests.e2e.harness import Node, environment, start_node, stop, wait_until

PORT = 9000

_ANSWERS = ROOT / "tests" / "discovery" / "docker_answers"
_DEADLINE_SECONDS = 30.0


@dataclass
class Site:
    """A local network with a station for each node. Made by `open_site`.

    Args:
        server: one station more, for what is no node.
        stations: of the nodes, in order.
    """

    directory: Path
    server: Station
    stations: tuple[Station, ...]
    nodes: list[Node] = field(default_factory=list)

    @property
    def ips(self) -> tuple[str, ...]:
        return tuple(station.ip for station in self.stations)

    @property
    def addrs(self) -> tuple[str, ...]:
        """Where the nodes listen, as multiaddrs without a peer id."""
        return tuple(f"/ip4/{ip}/tcp/{PORT}" for ip in self.ips)

    def start(self, *flags: str, resolv_conf: Path | None = None, **extra: str) -> None:
        """Start a node at each station, all with the same flags and `extra` variables, and wait for none."""
        mount: tuple[str, ...] = ()
        if resolv_conf is not None:
            shell = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
            mount = ("unshare", "--mount", "sh", "-c", shell, str(resolv_conf))
        env = environment(self.directory / "run", **extra)
        for number, (station, addr) in enumerate(zip(self.stations, self.addrs, strict=True), start=1):
            within = (*station.within, *mount)
            node = start_node(self.directory, f"n{number}", *flags, "--listen", addr, env=env, within=within)
            self.nodes.append(node)

    def links(self) -> dict[frozenset[str], set[str]]:
        """The pairs of nodes with a link, and which of the two tell of it; all by IP address."""
        ips = {str(node.get("/api/v1/node")["peer_id"]): ip for node, ip in zip(self.nodes, self.ips, strict=True)}
        told: dict[frozenset[str], set[str]] = {}
        for node, ip in zip(self.nodes, self.ips, strict=True):
            for peer in node.get("/api/v1/peers"):
                if peer["direction"]:
                    told.setdefault(frozenset((ip, ips[peer["peer_id"]])), set()).add(ip)
        return told

    def connections(self) -> Counter[frozenset[str]]:
        """How many established TCP connections each pair of nodes has, as the accepting ends see it; by IP address."""
        counted: Counter[frozenset[str]] = Counter()
        for station in self.stations:
            listing = station.run("ss", "-tnH", "state", "established", f"sport = :{PORT}")
            for line in listing.splitlines():
                _, _, local, remote = line.split()[:4]
                counted[frozenset((local.rpartition(":")[0], remote.rpartition(":")[0]))] += 1
        return counted


@contextmanager
def open_site(directory: Path, count: int) -> Iterator[Site]:
    """The nodes that were started there are stopped when the block ends."""
    with open_lan() as lan:
        site = Site(directory, lan.plug_in(), tuple(lan.plug_in() for _ in range(count)))
        try:
            yield site
        finally:
            with ExitStack() as stopping:
                for node in site.nodes:
                    stopping.callback(stop, node)
                for node in site.nodes:
                    assert node.process is not None
                    node.process.terminate()


@contextmanager
def serving_dns(site: Site, name: str) -> Iterator[Path]:
    """A DNS server for which `name` has the addresses of all nodes.

    Yields:
        A `resolv.conf` that names it.
    """
    resolv_conf = site.directory / "resolv.conf"
    resolv_conf.write_text(f"nameserver {site.server.ip}\n")
    records = json.dumps({name: site.ips})
    command = [*site.server.within, sys.executable, "-m", "tests.e2e.dns_runner", site.server.ip, records]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"listening\n"
            yield resolv_conf
        finally:
            server.kill()


@contextmanager
def serving_docker(site: Site) -> Iterator[str]:
    """A Swarm manager whose service `CHORUS_chorus` has a running task at each node's address.

    Yields:
        Its `DOCKER_HOST`.
    """
    path = site.directory / "docker.sock"
    answers: Mapping[str, object] = {
        "version": _recorded("version"),
        "services": _recorded("services"),
        "tasks": _tasks(site.ips),
    }
    is_over = trio.Event()
    tokens: list[trio.lowlevel.TrioToken] = []

    def script(target: str) -> Answer:
        document = answers[urlsplit(target).path.rpartition("/")[2]]
        return Answer(json.dumps(document).encode(), headers={"Content-Type": "application/json"})

    async def serve() -> None:
        async with serving_unix(path, script):
            tokens.append(trio.lowlevel.current_trio_token())
            await is_over.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    wait_until("the Docker API is served", lambda: tokens, _DEADLINE_SECONDS)
    try:
        yield f"unix://{path}"
    finally:
        tokens[0].run_sync_soon(is_over.set)
        thread.join(_DEADLINE_SECONDS)


def _recorded(name: str) -> Any:
    return json.loads((_ANSWERS / f"{name}.json").read_text())


def _tasks(ips: Sequence[str]) -> list[Any]:
    """Recorded tasks, moved to other addresses, in one network."""
    tasks = copy.deepcopy(_recorded("tasks_fleet_of_34")[: len(ips)])
    for task, ip in zip(tasks, ips, strict=True):
        task["NetworksAttachments"] = task["NetworksAttachments"][:1]
        task["NetworksAttachments"][0]["Addresses"] = [f"{ip}/24"]
    return list(tasks)
