"""Each source of peers by itself brings a fleet together, and all of them at once bring nobody twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cable import needs_cables
from tests.e2e.harness import Node, command, environment, wait_until
from tests.e2e.sources import Site, open_site, serving_dns, serving_docker

COUNT = 12
NAME = "fleet.test"
SETTLED_LOOKS = 4
"""Looks at the connections, half a second apart, that must agree."""

pytestmark = needs_cables


def is_whole(node: Node) -> bool:
    assert node.process is not None
    assert node.log is not None
    assert node.process.poll() is None, f"{node.name} ended: {node.log.read_text()}"
    if node.answers() is None:
        return False
    return len([peer for peer in node.get("/api/v1/peers") if peer["state"] == "alive"]) == COUNT


def all_see_all(site: Site) -> float:
    """Waits for it; the seconds from the call."""
    began = time.monotonic()
    for node in site.nodes:
        wait_until(f"{node.name} sees {COUNT} alive members", partial(is_whole, node))
    return time.monotonic() - began


def found_by(node: Node) -> dict[str, str]:
    """The source of each other member, by the address where it listens."""
    return {
        peer["addrs"][0].partition("/p2p/")[0]: peer["source"]
        for peer in node.get("/api/v1/peers")
        if not peer.get("self")
    }


def names_the_source(node: Node, method: str, addrs: Collection[str]) -> bool:
    """Of the members at `addrs`, and of no others, this node says that `method` found them."""
    sources = found_by(node)
    return {addr for addr, source in sources.items() if source == method} == set(addrs) & sources.keys()


@contextmanager
def bootstrap(site: Site) -> Iterator[Collection[str]]:
    site.start("--discovery", "static", "--bootstrap", site.addrs[0])
    yield site.addrs[:1]


@contextmanager
def file(site: Site) -> Iterator[Collection[str]]:
    path = site.directory / "peers.txt"
    site.start("--discovery", "static", "--bootstrap", f"file:{path}")
    for node in site.nodes:
        wait_until(f"{node.name} misses its file", partial(has_trouble, node, "bootstrap-file"))
    path.write_text("".join(f"{addr}\n" for addr in site.addrs[:3]))
    yield site.addrs[:3]


@contextmanager
def dns(site: Site) -> Iterator[Collection[str]]:
    with serving_dns(site, NAME) as resolv_conf:
        site.start("--discovery", "static", "--bootstrap", f"dns:{NAME}:9000", resolv_conf=resolv_conf)
        yield site.addrs


@contextmanager
def docker(site: Site) -> Iterator[Collection[str]]:
    with serving_docker(site) as host:
        site.start("--discovery", "docker-swarm", DOCKER_HOST=host)
        yield site.addrs


@contextmanager
def mdns(site: Site) -> Iterator[Collection[str]]:
    site.start("--discovery", "mdns")
    yield site.addrs


def has_trouble(node: Node, code: str) -> bool:
    return node.answers() is not None and code in {
        trouble["code"] for source in node.get("/api/v1/discovery")["sources"] for trouble in source["troubles"]
    }


@pytest.mark.parametrize(
    ("source", "method"),
    [
        pytest.param(bootstrap, "bootstrap", id="bootstrap", marks=pytest.mark.soak),
        pytest.param(file, "bootstrap", id="file"),
        pytest.param(dns, "dns", id="dns", marks=pytest.mark.soak),
        pytest.param(docker, "docker", id="docker", marks=pytest.mark.soak),
        pytest.param(mdns, "mdns", id="mdns", marks=pytest.mark.soak),
    ],
)
def test_every_source_alone_brings_a_fleet_together(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: Callable[[Site], AbstractContextManager[Collection[str]]],
    method: str,
) -> None:
    with open_site(tmp_path, COUNT) as site, source(site) as found:
        took = all_see_all(site)
        for node in site.nodes:
            assert {each["method"] for each in node.get("/api/v1/discovery")["sources"]} == {method}
            wait_until(f"{node.name} says who was found by {method}", partial(names_the_source, node, method, found))
    with capsys.disabled():
        print(f"\n{COUNT} nodes by {source.__name__} alone: all saw all after {took:.1f} s")


def test_all_sources_together_make_no_link_twice_and_no_trouble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_site(tmp_path, COUNT) as site:
        path = tmp_path / "peers.txt"
        path.write_text("".join(f"{addr}\n" for addr in site.addrs[:3]))
        flags = [f"--bootstrap={each}" for each in (site.addrs[0], f"file:{path}", f"dns:{NAME}:9000")]
        with serving_dns(site, NAME) as resolv_conf, serving_docker(site) as host:
            site.start("--discovery", "auto", *flags, resolv_conf=resolv_conf, DOCKER_HOST=host)
            took = all_see_all(site)
            methods = {"bootstrap", "dns", "docker", "mdns"}
            for node in site.nodes:
                wait_until(f"{node.name} hears from every source", partial(every_source_works, node, methods))
            wait_until("one connection for each link, and no other", partial(is_settled, site))
            for node in site.nodes:
                gets_healthy(node)
            doctor = ("doctor", "-o", "json", "--api", site.nodes[-1].api)
            assert command(*doctor, env=environment(tmp_path / "run")).returncode == 0
    with capsys.disabled():
        print(f"\n{COUNT} nodes by all sources together: all saw all after {took:.1f} s")


def every_source_works(node: Node, methods: Collection[str]) -> bool:
    sources = node.get("/api/v1/discovery")["sources"]
    return {each["method"] for each in sources} == methods and all(
        each["state"] == "working" and each["places"] for each in sources
    )


def is_settled(site: Site) -> bool:
    """Exactly one connection for each pair that both ends call linked, at several looks in a row.

    One look could meet the handshake by which somebody tries whether an address is reachable.
    """
    for _ in range(SETTLED_LOOKS):
        connections, links = site.connections(), site.links()
        if set(connections.values()) != {1} or links != {pair: set(pair) for pair in connections}:
            return False
        time.sleep(0.5)
    return True


def gets_healthy(node: Node) -> None:
    """Waits for a doctor without findings; what it said last stands in the error."""
    said: dict[str, Any] = {}

    def is_healthy() -> bool:
        said.update(node.get("/api/v1/doctor"))
        return said["status"] == "healthy" and not said["findings"]

    try:
        wait_until(f"{node.name} is healthy", is_healthy)
    except AssertionError as error:
        raise AssertionError(f"{error}: {json.dumps(said)}") from None
