"""A real Swarm, started from docker/stack.yaml: one WHOOSH, eight CHORUS, an overlay network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.swarm.harness import PRIVATE, STACK, Swarm, open_swarm, wait_until

pytestmark = pytest.mark.soak

NAME: Final = "CHORUS"
AGENTS: Final = 8
PORT: Final = 9000

Json = dict[str, Any]


@pytest.fixture(scope="module")
def swarm() -> Iterator[Swarm]:
    with open_swarm() as swarm:
        swarm.build_image()
        yield swarm


@contextmanager
def stack(
    swarm: Swarm, *files: Path, agents: int = AGENTS, variables: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The stack as it is shipped, and what `files` and `variables` change of it; yields WHOOSH's container."""
    usual = {
        "CHORUS_REPLICAS": str(agents),
        "DOCKER_SOCKET": str(swarm.socket),
        "DOCKER_GID": str(swarm.socket.stat().st_gid),
    }
    swarm.deploy(NAME, STACK, *files, environ=usual | dict(variables or {}))
    try:
        swarm.wait_for_tasks(f"{NAME}_chorus", agents)
        swarm.wait_for_tasks(f"{NAME}_whoosh", 1)
        yield swarm.container(f"{NAME}_whoosh")
    finally:
        swarm.remove(NAME)


@contextmanager
def only_whoosh_looks(swarm: Swarm, directory: Path, *, mode: str, peers: str) -> Iterator[str]:
    """The stack without a bootstrap node and with agents that look for nobody and wait to be found."""
    services = {
        "bootstrap": {"deploy": {"replicas": 0}},
        "chorus": {"environment": {"WHOOSH_DISCOVERY_MODE": "static"}},
    }
    file = directory / "override.yaml"
    file.write_text(json.dumps({"version": "3.8", "services": services}), "utf-8")
    variables = {"WHOOSH_DISCOVERY_MODE": mode, "WHOOSH_BOOTSTRAP_PEERS": peers, "CHORUS_BOOTSTRAP_PEERS": ""}
    with stack(swarm, file, variables=variables) as whoosh:
        yield whoosh


def agents_alive(swarm: Swarm, container: str) -> list[Json]:
    peers = swarm.ask(container, "peers") or []
    return [peer for peer in peers if peer["role"] == "chorus" and peer["state"] == "alive"]


def followed(
    swarm: Swarm, container: str, what: str, is_so: Callable[[list[Json]], bool], since: float | None = None
) -> list[Json]:
    """Wait until WHOOSH's list is so; print how long that took, and how long the youngest agent had been up by then."""
    began = time.monotonic() if since is None else since

    def look() -> list[Json] | None:
        alive = agents_alive(swarm, container)
        return alive if is_so(alive) else None

    found = wait_until(f"the list of peers: {what}", look, pause_seconds=1.0)
    took = time.monotonic() - began
    containers = swarm.docker("ps", "-q", "--filter", f"name={NAME}_chorus").split()
    up = [node["uptime_seconds"] for each in containers if (node := swarm.ask(each, "id"))]
    print(f"{what}: {took:.1f} s; the youngest agent is up for {min(up, default=0):.1f} s")
    return found


def addresses(swarm: Swarm) -> set[str]:
    """Where the agents' tasks listen."""
    tasks = swarm.tasks(f"{NAME}_chorus")
    return {f"/ip4/{task['NetworksAttachments'][0]['Addresses'][0].partition('/')[0]}/tcp/{PORT}" for task in tasks}


def found_by(swarm: Swarm, container: str, method: str, expected: set[str]) -> Json:
    """WHOOSH's only source, once it has found what is expected and has no trouble."""

    def look() -> Json | None:
        (source,) = swarm.discovery(container)["sources"]
        is_so = {place["addr"] for place in source["places"]} == expected and not source["troubles"]
        return source if source["method"] == method and is_so else None

    return wait_until(f"{method} finds {sorted(expected)}", look)


def finding(swarm: Swarm, container: str, code: str) -> Json | None:
    """What the doctor says of one trouble."""
    document = swarm.ask(container, "doctor") or {"findings": []}
    return next((each for each in document["findings"] if each["code"] == code), None)


def test_the_socket_alone_finds_every_agent(swarm: Swarm, tmp_path: Path) -> None:
    with only_whoosh_looks(swarm, tmp_path, mode="docker-swarm", peers="") as whoosh:
        found = followed(swarm, whoosh, "8 of 8 by the socket", lambda alive: len(alive) == AGENTS)
        assert {addr for peer in found for addr in peer["addrs"]} == addresses(swarm)
        source = found_by(swarm, whoosh, "docker", addresses(swarm))
        assert {place["name"] for place in source["places"]} == {f"CHORUS-Task-{slot + 1}" for slot in range(AGENTS)}


def test_the_dns_of_tasks_alone_finds_every_agent(swarm: Swarm, tmp_path: Path) -> None:
    with only_whoosh_looks(swarm, tmp_path, mode="static", peers=f"dns:tasks.CHORUS_chorus:{PORT}") as whoosh:
        found = followed(swarm, whoosh, "8 of 8 by DNS", lambda alive: len(alive) == AGENTS)
        assert {addr for peer in found for addr in peer["addrs"]} == addresses(swarm)
        found_by(swarm, whoosh, "dns", addresses(swarm))
        assert finding(swarm, whoosh, "virtual-ip") is None


def test_the_virtual_address_alone_finds_too_few_and_the_doctor_says_why(swarm: Swarm, tmp_path: Path) -> None:
    with (
        only_whoosh_looks(swarm, tmp_path, mode="static", peers=f"dns:CHORUS_chorus:{PORT}") as whoosh,
        swarm.balanced(f"{NAME}_chorus", PORT) as address,
    ):
        followed(swarm, whoosh, "the first by the virtual address", lambda alive: len(alive) > 0)
        told = wait_until("the doctor finds it", lambda: finding(swarm, whoosh, "virtual-ip"))
        found = agents_alive(swarm, whoosh)
        print(f"{len(found)} of {AGENTS} by the virtual address; {told['title']}; {told['fix']}")
        assert 0 < len(found) < AGENTS
        (source,) = swarm.discovery(whoosh)["sources"]
        assert [place["addr"] for place in source["places"]] == [f"/ip4/{address}/tcp/{PORT}"]
        assert address in told["title"]
        assert f"dns:tasks.CHORUS_chorus:{PORT}" in told["fix"]


def test_the_list_of_peers_follows_the_service(swarm: Swarm) -> None:
    service = f"{NAME}_chorus"
    with stack(swarm) as whoosh:
        followed(swarm, whoosh, "8 of 8 as shipped", lambda alive: len(alive) == AGENTS)

        began = time.monotonic()
        swarm.docker("service", "scale", "--detach", f"{service}=12")
        followed(swarm, whoosh, "scaled to 12", lambda alive: len(alive) == 12, began)
        began = time.monotonic()
        swarm.docker("service", "scale", "--detach", f"{service}=8")
        followed(swarm, whoosh, "scaled back to 8", lambda alive: len(alive) == AGENTS, began)
        swarm.wait_for_tasks(service, AGENTS)

        before = {peer["peer_id"]: peer["addrs"] for peer in agents_alive(swarm, whoosh)}
        began = time.monotonic()
        swarm.docker("kill", swarm.container(service))
        followed(swarm, whoosh, "killed, and out of the list", lambda alive: len(alive) < AGENTS, began)
        found = followed(swarm, whoosh, "killed, and replaced", lambda alive: len(alive) == AGENTS, began)
        # The new task has the old one's volume, so it is the same node at another address.
        after = {peer["peer_id"]: peer["addrs"] for peer in found}
        assert after.keys() == before.keys()
        swarm.wait_for_tasks(service, AGENTS)
        assert {addr for addrs in after.values() for addr in addrs} == addresses(swarm)


def test_a_rolling_update_keeps_every_identity(swarm: Swarm) -> None:
    service = f"{NAME}_chorus"
    with stack(swarm, agents=3) as whoosh:
        before = followed(swarm, whoosh, "3 of 3", lambda alive: len(alive) == 3)
        began = time.monotonic()
        old = {task["ID"] for task in swarm.tasks(service)}
        swarm.docker("service", "update", "--force", "--detach", service)
        wait_until("all tasks are new", lambda: not old & {task["ID"] for task in swarm.wait_for_tasks(service, 3)})
        after = followed(swarm, whoosh, "updated", lambda alive: len(alive) == 3, began)
        assert {peer["peer_id"] for peer in after} == {peer["peer_id"] for peer in before}
        assert {peer["incarnation"] for peer in after}.isdisjoint(peer["incarnation"] for peer in before)


def test_a_secret_makes_the_network_private(swarm: Swarm, tmp_path: Path) -> None:
    key = tmp_path / "swarm.key"
    key.write_text("/key/swarm/psk/1.0.0/\n/base16/\n" + "5a" * 32 + "\n", "utf-8")
    swarm.docker("secret", "create", "p2pnode_network_key", str(key))
    with stack(swarm, PRIVATE, agents=2) as whoosh:
        followed(swarm, whoosh, "2 of 2 with a key", lambda alive: len(alive) == 2)
        shown = swarm.run_in(whoosh, "p2pnode", "config", "show").stdout
        assert "/run/secrets/network.key" in shown
        assert "5a5a" not in shown


def test_the_stack_is_accepted_as_written(swarm: Swarm) -> None:
    # An image that is not there: the services are made, and nothing of them starts.
    swarm.deploy("plain", STACK, environ={"P2PNODE_IMAGE": "p2pnode:not-built", "OVERLAY_SUBNET": "10.91.0.0/24"})
    try:
        made = {each["Spec"]["Name"]: each["Spec"] for each in swarm.get("/services")}
        assert made.keys() == {"plain_bootstrap", "plain_whoosh", "plain_chorus"}
        assert made["plain_chorus"]["Mode"]["Replicated"]["Replicas"] == 34
        assert all(each["EndpointSpec"]["Mode"] == "vip" for each in made.values())
    finally:
        swarm.docker("stack", "rm", "plain")
