"""Earlier builds and this one in one fleet and on one data directory: nothing is lost.

The earlier builds are in `tests/builds`: a process imports the package from there, the rest from where this one does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2pnode.client import Client
from p2pnode.errors import NoSidecar
from p2pnode.local import sse
from tests.e2e.harness import (
    DEADLINE_SECONDS,
    Node,
    command,
    environment,
    have_all,
    running_node,
    start_node,
    stop,
    wait_until,
)

BUILDS = Path(__file__).parents[1] / "builds"
BEFORE_STORE = "before-store"
FIRST_STORE = "first-store"
THIS = "this"

TOPIC = "hmmm.versions"
EVENTS = f"/api/v1/topics/{TOPIC}/events"
EACH = 15
SAME_EVERYWHERE = (
    "id",
    "topic",
    "origin",
    "origin_name",
    "seqno",
    "published_at",
    "content_type",
    "headers",
    "payload",
)
SETTINGS = {
    "P2PNODE_GOSSIP_TOPICS": TOPIC,
    "P2PNODE_GOSSIP_PUBLISH_PER_SECOND": "10000",
    "P2PNODE_GOSSIP_PUBLISH_BURST": "10000",
}

Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}; load average {os.getloadavg()[0]:.1f}")

    return say


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path / "run", **SETTINGS)


def of_build(env: Mapping[str, str], build: str) -> dict[str, str]:
    """The environment in which `python -m p2pnode` is that build, wherever it is started."""
    if build == THIS:
        return dict(env)
    return {**env, "PYTHONPATH": str(BUILDS / f"{build}.zip"), "PYTHONSAFEPATH": "1"}


@dataclass
class Member:
    """A node that may be stopped and started again, as the same build or another one."""

    directory: Path
    env: Mapping[str, str]
    name: str
    build: str
    bootstraps: Sequence[str] = ()
    listen: str = "/ip4/127.0.0.1/tcp/0"
    sent: list[str] = field(default_factory=list)
    _node: Node | None = None

    @property
    def node(self) -> Node:
        assert self._node is not None
        return self._node

    @property
    def stores(self) -> bool:
        return self.build != BEFORE_STORE

    def start(self) -> None:
        flags = ["--listen", self.listen, *(flag for addr in self.bootstraps for flag in ("--bootstrap", addr))]
        self._node = start_node(self.directory, self.name, *flags, env=of_build(self.env, self.build))

    def started(self) -> None:
        document = wait_until(f"{self.name} answers", self.node.answers)
        assert document["name"] == self.name
        self.listen = document["multiaddrs"][0].partition("/p2p/")[0]
        # What it left behind tells which build it was: the first one kept nothing.
        assert (self.directory / self.name / "messages.db").exists() == self.stores

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._node is not None:
            stop(self._node, number)

    def upgrade(self) -> None:
        self.stop()
        self.build = THIS
        self.start()
        self.started()

    def publish(self, count: int) -> set[str]:
        ids = [self.node.publish_accepted(TOPIC, f"{self.name} {number}".encode()) for number in range(count)]
        self.sent += ids
        return set(ids)


@contextmanager
def open_fleet(directory: Path, env: Mapping[str, str], builds: Sequence[str]) -> Iterator[list[Member]]:
    """A node of each of these builds; the first two are everybody's bootstraps, and all see all."""
    with ExitStack() as stack:
        members: list[Member] = []
        bootstraps: list[str] = []
        for number, build in enumerate(builds):
            members.append(Member(directory, env, f"{number}-{build}", build, tuple(bootstraps)))
            stack.callback(members[-1].stop)
            members[-1].start()
            if number < 2:
                members[-1].started()
                bootstraps.append(members[-1].node.bootstrap)
        for member in members:
            member.started()
        together(members)
        yield members


def together(members: Sequence[Member]) -> None:
    """Wait until all see all alive, and each has somebody in the topic's mesh."""
    names = {member.name for member in members}
    for member in members:
        node = member.node

        def complete(node: Node = node) -> bool:
            alive = {peer["name"] for peer in node.get("/api/v1/peers") if peer["state"] == "alive"}
            topics = node.get("/api/v1/topics")
            return names <= alive and any(topic["topic"] == TOPIC and topic["mesh"] for topic in topics)

        wait_until(f"{member.name} sees all and is in the mesh", complete)


def all_publish(members: Sequence[Member], count: int) -> set[str]:
    """All at the same time; ids of what was accepted, which is everything."""
    ids: set[str] = set()
    threads = [threading.Thread(target=lambda member=member: ids.update(member.publish(count))) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == count * len(members)
    return ids


def streamed(node: Node, wanted: set[str]) -> Counter[str]:
    """How often each id came on an event stream from the start, up to the last of those wanted."""
    found: Counter[str] = Counter()
    deadline = time.monotonic() + DEADLINE_SECONDS
    try:
        with node.client.stream(f"{EVENTS}?from=start", deadline=deadline) as stream:
            for event in sse.events(stream.chunks):
                if event.kind == "message":
                    found[event.id] += 1
                if wanted <= found.keys():
                    break
    except NoSidecar as error:
        missing = sorted(wanted - found.keys())
        raise AssertionError(f"{node.name}: {len(missing)} of {len(wanted)} not streamed: {missing[:3]}") from error
    return found


def common(node: Node) -> dict[str, dict[str, Any]]:
    """Of each message what all nodes must say alike, by id."""
    return {document["id"]: {name: document.get(name) for name in SAME_EVERYWHERE} for document in node.messages(TOPIC)}


@pytest.mark.parametrize("build", [BEFORE_STORE, FIRST_STORE])
def test_an_earlier_build_is_run_from_its_archive_and_nothing_of_this_tree(env: dict[str, str], build: str) -> None:
    script = (
        "import json, sys, p2pnode.app, p2pnode.cli.main;"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'p2pnode']))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=of_build(env, build), capture_output=True, check=True)
    files = json.loads(done.stdout)
    assert len(files) > 50
    assert all(file.startswith(str(BUILDS / f"{build}.zip")) for file in files)
    assert (f"{BUILDS / build}.zip/p2pnode/store/schema.py" in files) == (build != BEFORE_STORE)


def test_three_builds_in_one_fleet_lose_nothing_while_the_newest_are_stopped_and_killed(
    tmp_path: Path, env: dict[str, str], report: Report
) -> None:
    builds = (BEFORE_STORE, FIRST_STORE, BEFORE_STORE, FIRST_STORE, THIS, THIS)
    with open_fleet(tmp_path, env, builds) as members:
        restarted, killed = others = members[4:]
        stay = members[:4]
        nodes = [member.node for member in members]
        everywhere = all_publish(members, EACH)
        have_all(nodes, TOPIC, everywhere)
        for node in nodes:
            assert streamed(node, everywhere) == dict.fromkeys(everywhere, 1)

        # What a node without a store did not get before the kill may be too old for gossip after it: stores have it.
        last_words = restarted.publish(1) | killed.publish(1)
        killed.stop(signal.SIGKILL)
        restarted.stop()
        everywhere |= all_publish(stay, EACH)
        have_all([member.node for member in stay], TOPIC, everywhere)
        began = time.monotonic()
        for member in others:
            member.start()
        for member in others:
            member.started()
        have_all([member.node for member in members if member.stores], TOPIC, everywhere | last_words)
        took = time.monotonic() - began

        together(members)
        everywhere |= all_publish(members, EACH)
        ids = everywhere | last_words
        for member in members:
            node = member.node
            have_all([node], TOPIC, ids if member.stores else everywhere)
            assert streamed(node, ids if member.stores else everywhere).keys() <= ids
            if member.stores:
                assert Counter(document["id"] for document in node.messages(TOPIC)) == dict.fromkeys(ids, 1)
        said = common(members[-1].node)
        for member in members:
            there = common(member.node)
            assert there == {each: said[each] for each in there}
        report(
            f"two nodes each of three builds, {len(ids)} messages: nothing lost; one stopped and one killed are "
            f"complete {took:.1f} s after their start"
        )


@pytest.mark.parametrize(("holder", "other"), [(FIRST_STORE, THIS), (THIS, FIRST_STORE)])
def test_what_only_a_store_still_has_goes_to_the_other_build_by_synchronisation(
    tmp_path: Path, env: dict[str, str], holder: str, other: str
) -> None:
    """A restart forgets what gossip could still bring, and what is safe is not announced again."""
    with open_fleet(tmp_path, env, (holder, other)) as members:
        ids = all_publish(members, EACH)
        for member in members:
            have_all([member.node], TOPIC, ids)
            wait_until(f"{member.name} knows all its own safe", lambda node=member.node: not outbox(node))  # type: ignore[misc]
            member.stop()
        members[0].start()
        members[0].started()
        late = Member(tmp_path, env, "late", other, (members[0].node.bootstrap,))
        try:
            late.start()
            late.started()
            have_all([late.node], TOPIC, ids)
            assert {document["carrier"] for document in late.node.messages(TOPIC)} == {"sync"}
        finally:
            late.stop()


def test_a_fleet_is_upgraded_node_by_node_and_nothing_is_lost(tmp_path: Path, env: dict[str, str]) -> None:
    with open_fleet(tmp_path, env, (BEFORE_STORE, BEFORE_STORE, FIRST_STORE)) as members:
        peer_ids = [member.node.get("/api/v1/node")["peer_id"] for member in members]
        ids = all_publish(members, EACH)
        have_all([member.node for member in members], TOPIC, ids)
        for member in members:
            others = [each for each in members if each is not member]
            member.stop()
            ids |= all_publish(others, EACH)
            member.upgrade()
            together(members)
            ids |= all_publish(members, EACH)
            have_all([each.node for each in members if each.stores], TOPIC, ids)
        assert [member.node.get("/api/v1/node")["peer_id"] for member in members] == peer_ids
        for member in members:
            node = member.node
            assert Counter(document["id"] for document in node.messages(TOPIC)) == dict.fromkeys(ids, 1)
            seqnos = [int(each.rpartition("-")[2]) for each in member.sent]
            assert seqnos == sorted(set(seqnos)), "a restart used sequence numbers again"
            wait_until(f"{member.name} knows all its own safe", lambda node=node: not outbox(node))  # type: ignore[misc]


def outbox(node: Node) -> int:
    """Own messages that are not known to be stored elsewhere."""
    return int(node.metric("p2pnode_outbox_messages"))


def contents(node: Node) -> dict[str, Any]:
    """What the data directory says, as the API shows it; older builds know no roads."""
    messages = node.messages(TOPIC)
    for each in messages:
        each.pop("roads", None)
    return {
        "messages": messages,
        "outbox": outbox(node),
        "subscriptions": {each["name"]: each["pending"] for each in node.get("/api/v1/subscriptions")},
        "failed": [(each["id"], each["error"]) for each in node.get("/api/v1/deliveries/failed")],
    }


def publish_alone(node: Node, keys: Sequence[str]) -> list[str]:
    """One message for each idempotency key, which is its payload too; their ids."""
    with Client(node.api) as client:
        return [client.publish(TOPIC, key, idempotency_key=key).id for key in keys]


def handle(node: Node, acknowledged: int) -> None:
    """A subscription whose agent handled so many, gave up the next one and has not seen the rest."""
    with Client(node.api) as client, client.subscribe(TOPIC, name="worker", start="start") as messages:
        for number, message in enumerate(messages):
            if number == acknowledged:
                message.nack("no such council")
                break
            message.ack()


def assert_sound(directory: Path, env: Mapping[str, str]) -> None:
    checked = command("store", "check", "--data-dir", str(directory), env=env)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_data_directory_of_the_first_store_is_taken_over_whole_and_given_back(
    tmp_path: Path, env: dict[str, str]
) -> None:
    """Alone, so that every message stays in the outbox; there and back again, and then to a neighbour."""
    first = of_build(env, FIRST_STORE)
    with running_node(tmp_path, "node", env=first) as node:
        peer_id = node.get("/api/v1/node")["peer_id"]
        ids = publish_alone(node, keys := [f"first {number}" for number in range(20)])
        handle(node, 5)
        kept = contents(node)
        assert [document["id"] for document in kept["messages"]] == ids
        assert kept["outbox"] == len(ids)
        assert [each for each, _ in kept["failed"]] == [ids[5]]
    assert_sound(tmp_path / "node", env)

    for build in (THIS, FIRST_STORE):
        with running_node(tmp_path, "node", env=of_build(env, build)) as node:
            assert node.get("/api/v1/node")["peer_id"] == peer_id
            assert contents(node) == kept
            assert publish_alone(node, keys) == ids, "an idempotency key was forgotten"
            more = [f"{build} {number}" for number in range(20)]
            keys += more
            ids += publish_alone(node, more)
            kept = contents(node)
            assert [document["id"] for document in kept["messages"]] == ids
            assert kept["outbox"] == len(ids)
        assert_sound(tmp_path / "node", env)
        assert_sound(tmp_path / "node", first)

    with running_node(tmp_path, "node", env=env) as node:
        assert contents(node) == kept
        with running_node(tmp_path, "neighbour", "--bootstrap", node.bootstrap, env=first) as neighbour:
            have_all([neighbour], TOPIC, set(ids))
            wait_until("all is safe at the neighbour", lambda: not outbox(node))
