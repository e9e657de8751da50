"""The systems under comparison: how their processes start, and how a fleet of them is joined."""

from __future__ import annotations

import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.processes import BenchPeer, PeerFailed, ask_all, execute, fork, stop_all
from tests.interop.installation import command, install

SYSTEMS = ("ours", "unfused", "library", "stock", "js", "kubo")
FORKED = frozenset({"ours", "unfused", "library", "stock"})
"""Python systems, forked from a parent that has imported everything."""

PEERS = Path(__file__).resolve().parent / "peers"
TOPIC = "bench"
BATCH = 4
"""Processes with an interpreter of their own that start at once."""

JOIN_SECONDS = 120.0
LOST_SUBSCRIPTION_SECONDS = 20.0
"""After this long one topic peer and a mesh are enough: py-libp2p loses a subscription now and then, for good."""

SETTLE_SECONDS = {"kubo": 15.0}
SETTLE_SECONDS_OTHERS = 4.0
"""From the first complete look at all meshes to the load: some heartbeats, so that they have their size; kubo's
DHT is busy for longer, and would pass for idle CPU."""


def prepare(systems: Sequence[str]) -> None:
    """Install and import what the systems need, before anything is measured."""
    for kind in ("js", "kubo"):
        if kind in systems:
            install(kind)
    if FORKED.intersection(systems):
        import bench.peers.python_node  # noqa: F401

        # Collected once here, and never copied by a child's collector.
        gc.collect()
        gc.freeze()


@contextmanager
def open_fleet(system: str, nodes: int, links: Sequence[tuple[int, int]]) -> Iterator[list[BenchPeer]]:
    """All processes of one system, joined as `links` say, with settled meshes in `TOPIC`.

    Raises:
        PeerFailed: a process ended, or they did not join in time.
    """
    peers: list[BenchPeer] = []
    with tempfile.TemporaryDirectory(prefix=f"bench-{system}-") as name:
        directory = Path(name)
        try:
            _start(system, nodes, links, directory, peers)
            _join(peers, links)
            ask_all(peers, {"cmd": "subscribe", "topic": TOPIC})
            _wait_for_meshes(peers, links)
            time.sleep(SETTLE_SECONDS.get(system, SETTLE_SECONDS_OTHERS))
            yield peers
        finally:
            stop_all(peers)


def _start(system: str, nodes: int, links: Sequence[tuple[int, int]], directory: Path, peers: list[BenchPeer]) -> None:
    if system in FORKED:
        from bench.peers.python_node import run

        for index in range(nodes):
            peers.append(fork(lambda: run(system, nodes), directory / f"{index}.log"))
        for peer in peers:
            peer.ready()
        return
    programs = _js_programs(nodes, directory) if system == "js" else _kubo_programs(nodes, links)
    for first in range(0, nodes, BATCH):
        batch = [
            execute(program, directory / f"{index}.log")
            for index, program in enumerate(programs[first : first + BATCH], first)
        ]
        peers += batch
        for peer in batch:
            peer.ready()


def _js_programs(nodes: int, directory: Path) -> list[list[str]]:
    program, script = command("js")
    # Node looks for modules beside the script.
    shutil.copy(PEERS / "js_bench.mjs", directory)
    (directory / "node_modules").symlink_to(Path(script).parent / "node_modules")
    return [[program, str(directory / "js_bench.mjs")]] * nodes


def _kubo_programs(nodes: int, links: Sequence[tuple[int, int]]) -> list[list[str]]:
    """Each node gets an address of its own and those of its neighbours, the only ones it may speak with."""
    program, _ = command("kubo")
    addresses = [f"127.0.{1 + node // 200}.{1 + node % 200}" for node in range(nodes)]
    neighbours = [
        [addresses[other] for link in links if node in link for other in link if other != node] for node in range(nodes)
    ]
    return [
        [program, str(PEERS / "kubo_bench.py"), address, *others]
        for address, others in zip(addresses, neighbours, strict=True)
    ]


def _join(peers: Sequence[BenchPeer], links: Sequence[tuple[int, int]]) -> None:
    """Every node dials its links one by one, all nodes at the same time."""
    waiting = [[peers[other].addr for one, other in links if one == node] for node in range(len(peers))]
    while any(waiting):
        dialling = [(peer, addrs.pop()) for peer, addrs in zip(peers, waiting, strict=True) if addrs]
        for peer, addr in dialling:
            peer.send({"cmd": "dial", "addr": addr})
        for peer, _ in dialling:
            peer.receive()


def _wait_for_meshes(peers: Sequence[BenchPeer], links: Sequence[tuple[int, int]]) -> None:
    wanted = [sum(node in link for link in links) for node in range(len(peers))]
    started = time.monotonic()
    while True:
        states = ask_all(peers, {"cmd": "state"})
        missing = sum(max(want - state["topic_peers"], 0) for state, want in zip(states, wanted, strict=True))
        meshed = all(state["topic_peers"] and state["mesh"] != 0 for state in states)
        waited = time.monotonic() - started
        if meshed and (not missing or waited > LOST_SUBSCRIPTION_SECONDS):
            if missing:
                say(f"{missing} of {sum(wanted)} subscriptions did not arrive in {waited:.0f} s; going on without")
            return
        if waited > JOIN_SECONDS:
            raise PeerFailed(f"not joined within {JOIN_SECONDS:g} s: {states}")
        time.sleep(0.5)


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)
