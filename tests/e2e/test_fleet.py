"""The fleet an operator starts: 34 real processes that join by one address and lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.harness import (
    P2PNODE,
    Fleet,
    Node,
    command,
    environment,
    have_all,
    running_fleet,
    running_node,
    wait_until,
)
from tests.stacks import STACKS, Stack, on_both_stacks_in_time

TOPIC = "councils.claims"
SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet"), agents=33) as fleet:
        yield fleet


def kilobyte(number: int) -> bytes:
    document = {"number": number, "filler": ""}
    document["filler"] = "x" * (1024 - len(json.dumps(document)))
    return json.dumps(document).encode()


def has_links(node: Node, count: int) -> bool:
    return int(node.get("/api/v1/node")["links"]) >= count


def sees(node: Node, count: int) -> bool:
    document = node.answers()
    return document is not None and document["members"].get("alive") == count


def test_every_node_lists_34_members_in_the_same_order_at_every_call(fleet: Fleet) -> None:
    node = fleet.nodes[17]
    env = environment(fleet.directory / "run", P2PNODE_API=node.api)
    calls = [command("peers", "-o", "json", env=env) for _ in range(10)]
    assert {call.returncode for call in calls} == {0}
    orders = {tuple(member["peer_id"] for member in json.loads(call.stdout)) for call in calls}
    assert len(orders) == 1
    assert set(orders.pop()) == {entry.document["peer_id"] for entry in fleet.nodes}


def test_no_node_depends_on_the_bootstrap_alone(fleet: Fleet) -> None:
    for node in fleet.nodes:
        wait_until(f"{node.name} has four links", partial(has_links, node, 4))


def test_mesh_tells_of_every_node_and_draws_each_edge_once(fleet: Fleet) -> None:
    env = environment(fleet.directory / "run", P2PNODE_API=fleet.nodes[5].api)
    ids = {entry.document["peer_id"] for entry in fleet.nodes}

    def told_and_drawn() -> bool | None:
        """Meshes change at every heartbeat, so the two calls may see different ones."""
        document = json.loads(command("mesh", "-o", "json", env=env).stdout)
        drawing = command("mesh", "--topic", TOPIC, "-o", "dot", env=env).stdout.decode()
        mesh = {node["peer_id"]: set(node["topics"][TOPIC]) for node in document["nodes"]}
        edges = {frozenset((one, other)) for one, others in mesh.items() for other in others}
        complete = set(mesh) == ids and not document["missing"] and all(mesh.values())
        return (complete and drawing.count(" -- ") == len(edges)) or None

    wait_until("the whole fleet is told of and drawn", told_and_drawn)


def test_ping_reaches_members_with_and_without_a_link(fleet: Fleet) -> None:
    asked = fleet.nodes[9]
    env = environment(fleet.directory / "run", P2PNODE_API=asked.api)
    links: dict[bool, list[str]] = {True: [], False: []}
    for member in asked.get("/api/v1/peers"):
        if not member["self"]:
            links[member["connected"]].append(member["name"])
    for linked in (True, False):
        shown = command("ping", links[linked][0], "--count", "2", "-o", "json", env=env)
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["lost"] == 0


def test_an_opportunity_published_at_whoosh_is_printed_by_sub_at_three_agents(fleet: Fleet) -> None:
    whoosh, agents = fleet.by_role("whoosh")[0], fleet.by_role("chorus")[::11]
    followers = [
        subprocess.Popen(
            [*P2PNODE, "sub", "councils.forming", "--count", "1", "--from", "start", "--timeout", "60", "-o", "jsonl"],
            stdout=subprocess.PIPE,
            env=environment(fleet.directory / "run", P2PNODE_API=agent.api),
        )
        for agent in agents
    ]
    published = command(
        "pub",
        "councils.forming",
        "--file",
        str(SAMPLES / "opportunity.json"),
        env=environment(fleet.directory / "run", P2PNODE_API=whoosh.api),
    )
    assert published.returncode == 0, published.stderr
    message_id = published.stdout.decode().strip()
    for follower in followers:
        output, _ = follower.communicate(timeout=90)
        document = json.loads(output)
        assert document["id"] == message_id
        assert document["origin"] == whoosh.document["peer_id"]
        assert document["origin_name"] == whoosh.name
        assert document["carrier"] == "gossip"
        assert document["payload"] == json.loads((SAMPLES / "opportunity.json").read_text())
        assert message_id.endswith(f"-{document['seqno']}")


@pytest.mark.soak
def test_forty_messages_at_two_a_second_reach_all_33_agents(fleet: Fleet) -> None:
    whoosh = fleet.by_role("whoosh")[0]
    start, ids = time.monotonic(), set()
    for number in range(40):
        ids.add(whoosh.publish_accepted(TOPIC, kilobyte(number)))
        pause = start + (number + 1) / 2 - time.monotonic()
        time.sleep(max(pause, 0))  # the rate is part of what is promised
    assert len(ids) == 40
    have_all(fleet.by_role("chorus"), TOPIC, ids)


def test_what_is_accepted_of_a_burst_is_delivered_and_the_rest_is_refused_with_a_reason(fleet: Fleet) -> None:
    publisher = fleet.by_role("chorus")[5]
    ids: set[str] = set()
    refusals: list[tuple[int, str]] = []
    for number in range(150):
        response = publisher.publish(TOPIC, kilobyte(number))
        if response.status == 202:
            ids.add(response.json()["id"])
        else:
            refusals.append((response.status, response.json()["detail"]))
            assert "retry-after" in response.headers
    assert {status for status, _ in refusals} <= {429, 503}
    assert all(detail for _, detail in refusals)
    assert ids
    have_all([node for node in fleet.nodes if node is not publisher], TOPIC, ids, 180)


def test_a_killed_agent_that_comes_back_gets_the_next_twenty(fleet: Fleet) -> None:
    victim = fleet.by_role("chorus")[12]
    os.kill(victim.document["pid"], signal.SIGKILL)
    wait_until(f"{victim.name} is gone", lambda: victim.answers() is None)
    restarted = subprocess.Popen(
        victim.document["argv"], stderr=subprocess.DEVNULL, env=environment(fleet.directory / "run")
    )
    try:
        wait_until(
            f"{victim.name} is meshed again",
            lambda: victim.answers() and any(t["topic"] == TOPIC and t["mesh"] for t in victim.get("/api/v1/topics")),
        )
        assert victim.get("/api/v1/node")["peer_id"] == victim.document["peer_id"]
        sender = fleet.by_role("whoosh")[0]
        have_all([victim], TOPIC, {sender.publish_accepted(TOPIC, kilobyte(n)) for n in range(20)})
        sender = fleet.by_role("chorus")[3]
        ids = {victim.publish_accepted(TOPIC, kilobyte(n)) for n in range(5)}
        have_all([sender], TOPIC, ids)
    finally:
        restarted.kill()
        restarted.wait()


def test_the_fleet_goes_on_without_its_bootstrap_node(fleet: Fleet) -> None:
    bootstrap = next(node for node in fleet.nodes if node.document["bootstrap"])
    os.kill(bootstrap.document["pid"], signal.SIGKILL)
    wait_until("the bootstrap is gone", lambda: bootstrap.answers() is None)
    living = [node for node in fleet.nodes if node.answers()]
    assert len(living) >= 32
    ids = {living[n % len(living)].publish_accepted(TOPIC, kilobyte(n)) for n in range(20)}
    have_all(living, TOPIC, ids)


@on_both_stacks_in_time
def test_a_small_fleet_delivers_all_to_all_on_either_stack(stack: Stack, tmp_path: Path) -> None:
    with running_fleet(tmp_path, agents=8, P2PNODE_TRANSPORT_STACK=stack) as fleet:
        ids = {node.publish_accepted(TOPIC, kilobyte(n)) for n in range(10) for node in fleet.nodes}
        assert len(ids) == 90
        have_all(fleet.nodes, TOPIC, ids)


@pytest.mark.soak
def test_nodes_of_both_stacks_are_one_fleet(tmp_path: Path) -> None:
    with ExitStack() as running:
        nodes: list[Node] = []
        for number in range(8):
            bootstrap = ("--bootstrap", nodes[0].bootstrap) if nodes else ()
            env = environment(tmp_path / "run", P2PNODE_TRANSPORT_STACK=STACKS[number % len(STACKS)])
            nodes.append(running.enter_context(running_node(tmp_path, f"mixed-{number}", *bootstrap, env=env)))
        for node in nodes:
            wait_until(f"{node.name} sees all", partial(sees, node, len(nodes)))
            wait_until(f"{node.name} has four links", partial(has_links, node, 4))
        ids = {node.publish_accepted(TOPIC, kilobyte(n)) for n in range(10) for node in nodes}
        have_all(nodes, TOPIC, ids)
