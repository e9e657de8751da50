"""A fleet of 34 under load, with a stopped node, and a publisher that restarts: nothing accepted is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.e2e.harness import Fleet, Node, environment, have_all, running_fleet, wait_until
from tests.e2e.test_fleet import kilobyte

TOPIC = "councils.claims"
SEED = 20261123


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("load"), agents=33) as fleet:
        yield fleet


def publish_at(rate: float, count: int, senders: list[Node]) -> tuple[set[str], dict[int, int]]:
    """Publish from random nodes at a rate; the ids taken, and how many were refused with which status."""
    rng = random.Random(SEED)
    ids: set[str] = set()
    refused: dict[int, int] = {}
    start = time.monotonic()
    for number in range(count):
        response = rng.choice(senders).publish(TOPIC, kilobyte(number))
        if response.status == 202:
            ids.add(response.json()["id"])
        else:
            assert response.json()["detail"]
            refused[response.status] = refused.get(response.status, 0) + 1
        time.sleep(max(start + (number + 1) / rate - time.monotonic(), 0))  # the rate is what is tested
    return ids, refused


def test_two_hundred_messages_at_ten_a_second_from_random_nodes_reach_all_34(fleet: Fleet) -> None:
    ids, refused = publish_at(10, 200, fleet.nodes)
    assert not refused
    assert len(ids) == 200
    have_all(fleet.nodes, TOPIC, ids)


@pytest.mark.soak
def test_at_fifty_a_second_each_message_is_delivered_or_refused(fleet: Fleet) -> None:
    ids, refused = publish_at(50, 500, fleet.nodes)
    assert set(refused) <= {429, 503}
    assert len(ids) + sum(refused.values()) == 500
    have_all(fleet.nodes, TOPIC, ids, 180)


@pytest.mark.soak
def test_a_stopped_node_costs_the_others_nothing_and_catches_up(fleet: Fleet) -> None:
    stopped = fleet.by_role("chorus")[9]
    others = [node for node in fleet.nodes if node is not stopped]
    os.kill(stopped.document["pid"], signal.SIGSTOP)
    try:
        ids, refused = publish_at(5, 150, others)
        assert not refused
        have_all(others, TOPIC, ids)
    finally:
        os.kill(stopped.document["pid"], signal.SIGCONT)
    wait_until("the stopped node answers again", stopped.answers)
    have_all([stopped], TOPIC, {others[0].publish_accepted(TOPIC, kilobyte(n)) for n in range(10)})


def in_the_mesh(node: Node) -> bool:
    return bool(node.answers()) and any(t["topic"] == TOPIC and t["mesh"] for t in node.get("/api/v1/topics"))


@pytest.mark.soak
def test_a_publisher_restarted_with_its_key_after_a_thousand_messages_is_heard(fleet: Fleet) -> None:
    publisher = fleet.by_role("chorus")[20]
    others = [node for node in fleet.nodes if node is not publisher]
    before = {publisher.publish_accepted(TOPIC, json.dumps({"n": n}).encode()) for n in range(1000)}
    assert len(before) == 1000
    os.kill(publisher.document["pid"], signal.SIGKILL)
    wait_until("the publisher is gone", lambda: publisher.answers() is None)
    restarted = subprocess.Popen(
        publisher.document["argv"], stderr=subprocess.DEVNULL, env=environment(fleet.directory / "run")
    )
    try:
        wait_until("the publisher is meshed again", partial(in_the_mesh, publisher))
        after = {publisher.publish_accepted(TOPIC, json.dumps({"n": n}).encode()) for n in range(100)}
        assert not after & before
        have_all(others, TOPIC, after)
    finally:
        restarted.kill()
        restarted.wait()
