"""The other roads under real processes: fallback when links are cut, HTTP when NATS is dead too, rollback, canary."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from p2pnode.core.routing import in_canary
from tests.carriers.nats.server import NatsServer
from tests.e2e.cable import needs_cables
from tests.e2e.harness import Node, command, environment, have_all, running_node, start_node, stop, wait_until
from tests.e2e.road_kit import FORMING, legacy_agent, opportunity, reading, writing
from tests.e2e.road_site import RoadSite, open_road_site

PHASE_MESSAGES = 8

Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}; load average {os.getloadavg()[0]:.1f}")

    return say


def alive(node: Node) -> int:
    document = node.answers()
    return int(document["members"].get("alive", 0)) if document else 0


def wait_for_fleet(nodes: Sequence[Node]) -> None:
    for node in nodes:
        wait_until(f"{node.name} sees all", lambda node=node: alive(node) == len(nodes))  # type: ignore[misc]


def wait_for_nats(nodes: Sequence[Node]) -> None:
    for node in nodes:

        def connected(node: Node = node) -> bool:
            return bool(node.get("/api/v1/carriers")["broker"]["connected"])

        wait_until(f"{node.name} is connected to NATS", connected)


def set_carriers(node: Node, *changes: str) -> None:
    """By the command, as an operator does."""
    assert node.log is not None
    env = environment(node.log.parent / "run", P2PNODE_API=node.api)
    done = command("carriers", "set", *changes, env=env)
    assert done.returncode == 0, done.stderr.decode()


def assert_once_everywhere(nodes: Sequence[Node], ids: set[str]) -> None:
    """Every node keeps each of them, and none twice."""
    have_all(nodes, FORMING, ids)
    for node in nodes:
        kept = Counter(document["id"] for document in node.messages(FORMING))
        assert set(kept.values()) == {1}, node.name
        assert set(kept) == ids, node.name


def roads_of(node: Node) -> dict[str, list[str]]:
    return {document["id"]: document["roads"] for document in node.messages(FORMING)}


@contextmanager
def three_nodes(directory: Path) -> Iterator[tuple[list[Node], dict[str, str], ExitStack]]:
    """On loopback, beside a NATS server; with their environment, and a stack to stop more of them."""
    with NatsServer(directory / "nats").start() as server, ExitStack() as stack:
        env = environment(directory / "run", NATS_URL=server.url)
        nodes: list[Node] = []
        for name in ("a", "b", "c"):
            join = ("--bootstrap", nodes[0].bootstrap) if nodes else ()
            nodes.append(stack.enter_context(running_node(directory, name, "--no-mdns", *join, env=env)))
        wait_for_fleet(nodes)
        wait_for_nats(nodes)
        yield nodes, env, stack


def test_rollback_at_a_restart_and_live_loses_and_doubles_nothing(tmp_path: Path, report: Report) -> None:
    phase = "gossip"
    with three_nodes(tmp_path) as (nodes, env, stack):
        a, b, c = nodes
        join = ("--bootstrap", a.bootstrap)
        with reading(a, c) as readers, writing(lambda: phase, a, b) as writers:
            wait_until(
                f"both published enough: {phase}",
                lambda: all(len(writer.ids.get(phase, ())) >= PHASE_MESSAGES for writer in writers),
            )
            phase = "restart"
            stop(b)
            rolled = start_node(tmp_path, "b", "--no-mdns", *join, env={**env, "P2PNODE_ROLLBACK": "nats"})
            stack.callback(stop, rolled)
            wait_until("b answers", rolled.answers)
            phase = "b rolled back"
            wait_until(
                f"both published enough: {phase}",
                lambda: all(len(writer.ids.get(phase, ())) >= PHASE_MESSAGES for writer in writers),
            )
            phase = "changing"
            for node in nodes:
                set_carriers(node, "rollback=nats")
            phase = "nats"
            wait_until(
                f"both published enough: {phase}",
                lambda: all(len(writer.ids.get(phase, ())) >= PHASE_MESSAGES for writer in writers),
            )
            phase = "changing"
            for node in nodes:
                set_carriers(node, "rollback=off")
            phase = "gossip again"
            wait_until(
                f"both published enough: {phase}",
                lambda: all(len(writer.ids.get(phase, ())) >= PHASE_MESSAGES for writer in writers),
            )
            for writer in writers:
                writer.stop()
                assert not writer.faults
            ids = writers[0].all() | writers[1].all()
            assert_once_everywhere(nodes, ids)
            for name, reader in readers.items():
                wait_until(f"the agent at {name} has all", lambda reader=reader: ids <= set(reader.given))  # type: ignore[misc]
                assert not reader.twice()
        for node, writer, went_by_nats in ((a, writers[0], {"nats"}), (b, writers[1], {"nats", "b rolled back"})):
            roads = roads_of(node)
            for name, published in writer.ids.items():
                took = Counter(tuple(roads[each]) for each in published)
                report(f"{node.name}, {name or 'between phases'}: {dict(took)}")
                if name in went_by_nats:
                    assert set(took) == {("nats",)}
            for name in ("gossip", "gossip again"):
                assert all("gossip" in roads[each] for each in writer.ids[name])
        report(f"at c they came by {Counter(each['carrier'] for each in c.messages(FORMING))}")


def ready(node: Node) -> tuple[int, list[str]]:
    response = node.client.request("GET", "/ready", timeout_seconds=20)
    return response.status, list(response.json()["reasons"])


def is_degraded(node: Node) -> bool:
    """By /ready and by its roads."""
    return ready(node)[0] == 206 and bool(node.get("/api/v1/carriers")["degraded"])


def is_well(node: Node) -> bool:
    return ready(node)[0] == 200 and not node.get("/api/v1/carriers")["degraded"]


def asked(node: Node, *arguments: str) -> tuple[int, str]:
    """Exit status and output of a command at a node."""
    assert node.log is not None
    done = command(*arguments, env=environment(node.log.parent / "run", P2PNODE_API=node.api))
    return done.returncode, done.stdout.decode() + done.stderr.decode()


def start_six(site: RoadSite, *, bridge: bool, carrier: bool = False) -> list[Node]:
    """Six sidecars that all see all, connected to NATS, and perhaps a bridge; without the bridge."""
    nodes = [site.start(f"n{number}", carrier=carrier) for number in range(1, 7)]
    if bridge:
        reader = site.start("bridge", "--role", "bridge")
        wait_until("the bridge reads", lambda: reader.get("/api/v1/bridge")["imports"])
    wait_for_fleet(site.nodes)
    wait_for_nats(nodes)
    return nodes


def test_councils_in_the_canary_go_by_gossip_and_the_others_by_nats_at_every_node(tmp_path: Path) -> None:
    candidates = [str(uuid.UUID(int=number)) for number in range(1000)]
    inside = [each for each in candidates if in_canary(each, 10)][:5]
    outside = [each for each in candidates if not in_canary(each, 10)][:15]
    with three_nodes(tmp_path) as (nodes, _, _):
        a, b, _ = nodes
        for node in nodes:
            set_carriers(node, "canary=10")
        council_of: dict[str, str] = {}
        for council in (*inside, *outside):
            for node in (a, b):
                body = json.dumps(opportunity(council)).encode()
                council_of[node.publish_accepted(FORMING, body)] = council
        assert_once_everywhere(nodes, set(council_of))
        for node in (a, b):

            def took() -> dict[str, set[tuple[str, ...]]]:
                found: dict[str, set[tuple[str, ...]]] = {}
                for document in node.messages(FORMING):  # noqa: B023
                    if document["carrier"] == "local":
                        found.setdefault(council_of[document["id"]], set()).add(tuple(document["roads"]))
                return found if all(() not in roads for roads in found.values()) else {}

            roads = wait_until(f"{node.name} knows which roads took its messages", took)
            assert {council for council, found in roads.items() if found == {("nats",)}} == set(outside)
            assert {council for council, found in roads.items() if all("gossip" in each for each in found)} == set(
                inside
            )


def test_an_agent_without_a_sidecar_gets_an_opportunity_once_by_http(tmp_path: Path) -> None:
    with legacy_agent() as legacy, legacy_agent() as members, ExitStack() as stack:
        endpoints = f"{legacy.url},{members.url}"
        settings = {"P2PNODE_LEGACY_ENDPOINTS": endpoints, "P2PNODE_LEGACY_HEALTH_PORT": str(legacy.health_port)}
        env = environment(tmp_path / "run", **settings)
        a = stack.enter_context(running_node(tmp_path, "a", "--no-mdns", env=env))
        own = environment(tmp_path / "run", P2PNODE_AGENT_ENDPOINT=members.url)
        b = stack.enter_context(running_node(tmp_path, "b", "--no-mdns", "--bootstrap", a.bootstrap, env=own))
        wait_for_fleet((a, b))
        stop(b, signal.SIGKILL)  # gossip has nobody to go to, and nobody said goodbye
        document = opportunity()
        published = a.publish_accepted(FORMING, json.dumps(document).encode())
        wait_until("the agent has it", lambda: legacy.posts)
        second = a.publish_accepted(FORMING, json.dumps(opportunity()).encode())
        wait_until("the agent has another", lambda: len(legacy.posts) > 1)
        assert [headers["X-Message-ID"] for headers, _ in legacy.posts] == [published, second]
        told = legacy.posts[0][1]
        assert {name: told[name] for name in document} == document
        assert legacy.asked >= 1
        assert not members.posts
        assert a.log is not None
        assert "falling back to HTTP" in a.log.read_text()


@needs_cables
@pytest.mark.parametrize(
    "bridge",
    [pytest.param(True, id="with a bridge", marks=pytest.mark.soak), pytest.param(False, id="without a bridge")],
)
def test_agents_whose_links_are_cut_keep_everything_by_nats(tmp_path: Path, report: Report, bridge: bool) -> None:
    phase = "whole"
    with open_road_site(tmp_path) as site:
        nodes = start_six(site, bridge=bridge)
        first, lonely = nodes[0], nodes[3:]
        with reading(first, *lonely) as readers, writing(lambda: phase, first, lonely[0], rate=4) as writers:
            wait_until("some were published", lambda: len(writers[0].all()) >= 4)
            phase = "cut"
            site.cut(lonely)
            cut = time.monotonic()
            for node in lonely:
                wait_until(f"{node.name} is not quite ready", lambda node=node: ready(node)[0] == 206)  # type: ignore[misc]
            noticed = time.monotonic() - cut
            extra = {node.publish_accepted(FORMING, json.dumps(opportunity()).encode()) for node in nodes}
            so_far = extra | writers[0].all() | writers[1].all()
            have_all(nodes, FORMING, so_far)
            caught_up = time.monotonic() - cut
            for node in lonely:
                wait_until(f"{node.name} is degraded", lambda node=node: is_degraded(node))  # type: ignore[misc]
                status, reasons = ready(node)
                assert (status, bool(reasons)) == (206, True)
                for arguments in (("status",), ("carriers",)):
                    code, text = asked(node, *arguments)
                    assert code == 1, text
            phase = "mended"
            site.mend(lonely)
            mended = time.monotonic()
            for node in nodes:
                wait_until(f"{node.name} is well again", lambda node=node: is_well(node))  # type: ignore[misc]
            well = time.monotonic() - mended
            for writer in writers:
                writer.stop()
                assert not writer.faults
            ids = extra | writers[0].all() | writers[1].all()
            assert_once_everywhere(site.nodes, ids)
            for name, reader in readers.items():
                wait_until(f"the agent at {name} has all", lambda reader=reader: ids <= set(reader.given))  # type: ignore[misc]
                assert not reader.twice()
        came = {node.name: dict(Counter(each["carrier"] for each in node.messages(FORMING))) for node in nodes}
        report(
            f"cut noticed after {noticed:.1f} s, all held everything after {caught_up:.1f} s, "
            f"well again {well:.1f} s after the links; {len(ids)} messages, which came by {came}"
        )


@needs_cables
def test_agents_whose_links_are_cut_are_reached_by_http_when_nats_is_dead_too(tmp_path: Path, report: Report) -> None:
    with open_road_site(tmp_path) as site:
        nodes = [site.start(f"n{number}", carrier=True) for number in range(1, 5)]
        wait_for_fleet(nodes)
        first, lonely = nodes[0], nodes[2:]
        with reading(first, *lonely) as readers:
            site.broker.kill()
            site.cut(lonely)
            cut = time.monotonic()
            ids = {
                node.publish_accepted(FORMING, json.dumps(opportunity()).encode())
                for node in (first, *lonely)
                for _ in range(5)
            }
            have_all(nodes, FORMING, ids)
            report(f"links cut and NATS dead: all held everything after {time.monotonic() - cut:.1f} s")
            later = {node.publish_accepted(FORMING, json.dumps(opportunity()).encode()) for node in (first, *lonely)}
            have_all(nodes, FORMING, later)
            for node in lonely:
                came = {each["id"]: each["carrier"] for each in node.messages(FORMING)}
                assert {came[each] for each in later} == {"local", "http"}
            wait_until("n1 knows that they are gone", lambda: alive(first) == 2)
            for node in lonely:
                wait_until(f"{node.name} has no link", lambda node=node: "messages go over HTTP" in str(ready(node)))  # type: ignore[misc]
                assert ready(node)[0] == 206
            later |= {first.publish_accepted(FORMING, json.dumps(opportunity()).encode())}
            have_all(nodes, FORMING, later)
            site.mend(lonely)
            assert_once_everywhere(nodes, ids | later)
            for name, reader in readers.items():
                wait_until(f"the agent at {name} has all", lambda reader=reader: ids | later <= set(reader.given))  # type: ignore[misc]
                assert not reader.twice()
