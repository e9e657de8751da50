"""Who is there and who is gone, as real processes tell it when others die, stand still, come late, or are cut off.

Each test prints how long it took. The deadlines are there to end a test that waits in vain: they are far above what is
promised, because these machines are shared; `bench/faults.py` measures against the promise.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.cable import LEFT, RIGHT, needs_cables, open_cable
from tests.e2e.harness import (
    DEADLINE_SECONDS,
    Fleet,
    Node,
    have_all,
    running_fleet,
    running_node,
    start_node,
    stop,
    wait_until,
)
from tests.e2e.test_fleet import kilobyte

TOPIC = "councils.claims"
STOP_SECONDS = 10.0
MOST_CONNECTIONS = 16
TWIN_WORDS = "another live process has this node's identity"

Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}; load average {os.getloadavg()[0]:.1f}")

    return say


def states(node: Node) -> dict[str, str]:
    """What a node says of everybody; empty while it does not answer."""
    return {peer["peer_id"]: peer["state"] for peer in node.get("/api/v1/peers")} if node.answers() else {}


def seconds_until(
    what: str, nodes: Sequence[Node], holds: Callable[[dict[str, str]], bool], since: float | None = None
) -> float:
    """Seconds, from now or from an earlier moment, until it held once at each of the nodes."""
    began = time.monotonic() if since is None else since
    waiting = list(nodes)

    def all_show_it() -> bool:
        waiting[:] = [node for node in waiting if not holds(states(node))]
        return not waiting

    wait_until(what, all_show_it)
    return time.monotonic() - began


def all_alive(count: int) -> Callable[[dict[str, str]], bool]:
    return lambda seen: list(seen.values()).count("alive") == count


def are(ids: set[str], state: str) -> Callable[[dict[str, str]], bool]:
    return lambda seen: all(seen.get(peer) == state for peer in ids)


def is_not_alive(peer_id: str) -> Callable[[dict[str, str]], bool]:
    return lambda seen: bool(seen) and seen.get(peer_id) != "alive"


def logged_of(fleet: Fleet, words: str, ids: set[str]) -> int:
    """How many log lines say `words` of one of these peers."""
    found = 0
    for node in fleet.nodes:
        for line in Path(node.document["data_dir"], "node.log").read_text().splitlines():
            if words in line:
                found += json.loads(line)["peer"] in ids
    return found


@contextmanager
def joined(directory: Path, *names: str) -> Iterator[list[Node]]:
    """Nodes with one bootstrap, the first; each sees all when the block begins."""
    with ExitStack() as running:
        nodes = [running.enter_context(running_node(directory, names[0]))]
        for name in names[1:]:
            nodes.append(running.enter_context(running_node(directory, name, "--bootstrap", nodes[0].bootstrap)))
        seconds_until("all see all", nodes, all_alive(len(nodes)))
        yield nodes


def kill_and_watch(fleet: Fleet, victims: Sequence[Node]) -> tuple[float, float]:
    """Seconds until no other shows any of them alive, and until all show all of them dead."""
    others = [node for node in fleet.nodes if node not in victims]
    ids = {victim.document["peer_id"] for victim in victims}
    began = time.monotonic()
    for victim in victims:
        os.kill(victim.document["pid"], signal.SIGKILL)
    not_alive = max(seconds_until("not alive", others, is_not_alive(peer), began) for peer in ids)
    dead = seconds_until("dead", others, are(ids, "dead"), began)
    living = {node.document["peer_id"] for node in others}
    seconds_until("all others alive", others, are(living, "alive"))
    assert logged_of(fleet, "a member is dead", living) == 0
    return not_alive, dead


def stop_and_watch(fleet: Fleet, victim: Node, seconds: float) -> tuple[float, float]:
    """Stop a process for so long: seconds until no other shows it alive; from its going on until all see all alive."""
    others = [node for node in fleet.nodes if node is not victim]
    began = time.monotonic()
    os.kill(victim.document["pid"], signal.SIGSTOP)
    try:
        not_alive = seconds_until("not alive", others, is_not_alive(victim.document["peer_id"]))
        time.sleep(max(began + seconds - time.monotonic(), 0))  # it stands still for so long
    finally:
        os.kill(victim.document["pid"], signal.SIGCONT)
    alive = seconds_until("alive again", fleet.nodes, all_alive(len(fleet.nodes)))
    living = {node.document["peer_id"] for node in others}
    assert logged_of(fleet, "a member is dead", living) == 0
    return not_alive, alive


@pytest.fixture
def twelve(tmp_path: Path) -> Iterator[Fleet]:
    with running_fleet(tmp_path, agents=11) as fleet:
        yield fleet


@pytest.fixture
def all_34(tmp_path: Path) -> Iterator[Fleet]:
    with running_fleet(tmp_path, agents=33) as fleet:
        yield fleet


def test_a_stopped_process_is_not_alive_and_alive_again_when_it_goes_on(twelve: Fleet, report: Report) -> None:
    not_alive, alive = stop_and_watch(twelve, twelve.by_role("chorus")[4], STOP_SECONDS)
    report(f"stopped: not alive after {not_alive:.1f} s (promised 8); alive again after {alive:.1f} s (3)")


def test_a_killed_process_is_dead_for_everybody_and_nobody_else_is(twelve: Fleet, report: Report) -> None:
    not_alive, dead = kill_and_watch(twelve, [twelve.by_role("chorus")[7]])
    report(f"killed: not alive after {not_alive:.1f} s (promised 2), dead after {dead:.1f} s (5)")


@pytest.mark.soak
def test_no_node_keeps_more_connections_than_its_bound(all_34: Fleet, report: Report) -> None:
    def links() -> list[int]:
        return [node.get("/api/v1/node")["links"] for node in all_34.nodes]

    began = time.monotonic()
    wait_until("all within the bound", lambda: max(links()) <= MOST_CONNECTIONS)
    report(f"at most {max(links())} links of a node, {time.monotonic() - began:.1f} s after all saw all")


@pytest.mark.soak
def test_twenty_of_34_killed_at_once_are_dead_for_the_other_14(all_34: Fleet, report: Report) -> None:
    not_alive, dead = kill_and_watch(all_34, all_34.nodes[7:27])
    report(f"20 of 34 killed: none alive after {not_alive:.1f} s, all dead after {dead:.1f} s (promised 15)")


@pytest.mark.soak
def test_a_process_stopped_for_thirty_seconds_comes_back_to_life(all_34: Fleet, report: Report) -> None:
    not_alive, alive = stop_and_watch(all_34, all_34.by_role("chorus")[9], 30)
    report(f"stopped for 30 s: not alive after {not_alive:.1f} s (promised 8); alive again after {alive:.1f} s (3)")


@pytest.mark.soak
def test_nobody_is_declared_dead_beside_four_busy_loops(all_34: Fleet, report: Report) -> None:
    with ExitStack() as loops:
        for _ in range(4):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            loops.callback(loop.wait)
            loops.callback(loop.kill)
        time.sleep(60)  # the load lasts so long
    everybody = {node.document["peer_id"] for node in all_34.nodes}
    suspected = logged_of(all_34, "a member is suspect", everybody)
    assert logged_of(all_34, "a member is dead", everybody) == 0
    seconds_until("all see all", all_34.nodes, all_alive(34))
    report(f"a minute beside four busy loops: suspected {suspected} times over all nodes, nobody declared dead")


@pytest.mark.soak
def test_nodes_that_start_long_before_their_bootstrap_join_once_it_is_there(tmp_path: Path, report: Report) -> None:
    with running_node(tmp_path, "hub") as hub:
        address = hub.bootstrap
    with ExitStack() as running:
        early = [running.enter_context(running_node(tmp_path, f"early-{n}", "--bootstrap", address)) for n in range(5)]
        for node in early:
            assert node.client.request("GET", "/ready").status == 503
        time.sleep(15)  # so long they try in vain: their pauses are at their longest
        hub = running.enter_context(running_node(tmp_path, "hub", "--listen", address.rpartition("/p2p/")[0]))
        joined_after = seconds_until("all see six", [hub, *early], all_alive(6))
    report(f"five nodes joined {joined_after:.1f} s after their bootstrap answered (promised 15)")


def test_without_any_bootstrap_the_fleet_goes_on_and_nodes_join_and_return(tmp_path: Path, report: Report) -> None:
    with joined(tmp_path, "hub", *(f"member-{n}" for n in range(5))) as (hub, *members), ExitStack() as running:
        hub_id = hub.get("/api/v1/node")["peer_id"]
        returning = members[-1]
        saved = tmp_path / returning.name / "peers.json"
        wait_until("the peers are saved", lambda: saved.exists() and len(json.loads(saved.read_text())["peers"]) == 5)
        stop(hub, signal.SIGKILL)
        dead = seconds_until("the bootstrap is dead", members, are({hub_id}, "dead"))
        have_all(members, TOPIC, {node.publish_accepted(TOPIC, kilobyte(n)) for n, node in enumerate(members)})

        new = running.enter_context(running_node(tmp_path, "new", "--bootstrap", members[2].bootstrap))
        came = seconds_until("a new node joins by any member", [new, *members], all_alive(6))

        stop(returning, signal.SIGKILL)
        others = [new, *members[:-1]]
        back = running.enter_context(running_node(tmp_path, returning.name))
        returned = seconds_until("a node returns without any bootstrap", [back, *others], all_alive(6))
        have_all([*others, back], TOPIC, {back.publish_accepted(TOPIC, kilobyte(9))})
    report(
        f"bootstrap dead after {dead:.1f} s; a new node in {came:.1f} s after it answered, "
        f"one with saved peers alone in {returned:.1f} s"
    )


@needs_cables
@pytest.mark.soak
@pytest.mark.parametrize("seconds", [pytest.param(15, id="15 s"), pytest.param(60, id="60 s")])
def test_two_halves_of_a_network_find_each_other_again_by_themselves(
    seconds: float, tmp_path: Path, report: Report
) -> None:
    with open_cable() as cable, ExitStack() as running:
        left: list[Node] = []
        right: list[Node] = []
        for number in range(10):
            side, within, addr = (left, cable.left, LEFT) if number % 2 == 0 else (right, cable.right, RIGHT)
            flags = ["--listen", f"/ip4/{addr}/tcp/0", *(["--bootstrap", left[0].bootstrap] if left else [])]
            side.append(running.enter_context(running_node(tmp_path, f"node-{number}", *flags, within=within)))
        seconds_until("ten see ten", left + right, all_alive(10))
        began = time.monotonic()
        cable.cut()
        apart = seconds_until("each half sees itself alone", left + right, all_alive(5))
        time.sleep(max(began + seconds - time.monotonic(), 0))  # the cut lasts so long
        cable.mend()
        healed = seconds_until("ten see ten again", left + right, all_alive(10))
        have_all(left + right, TOPIC, {node.publish_accepted(TOPIC, kilobyte(0)) for node in (left[-1], right[-1])})
    report(
        f"cut for {seconds:g} s: each half alone after {apart:.1f} s; "
        f"all ten see ten {healed:.1f} s after it was mended (promised 10)"
    )


def test_of_two_processes_with_one_key_the_newer_stops_and_says_why(tmp_path: Path, report: Report) -> None:
    with joined(tmp_path, "hub", "original", "other") as (hub, original, other):
        identity = original.get("/api/v1/node")["peer_id"]
        shutil.copytree(tmp_path / "original", tmp_path / "copy")
        began = time.monotonic()
        copy = start_node(tmp_path, "copy", "--bootstrap", hub.bootstrap)
        try:
            assert copy.process is not None
            assert copy.process.wait(DEADLINE_SECONDS) == 2
        finally:
            stop(copy)
        noticed = time.monotonic() - began
        assert copy.log is not None
        error = copy.log.read_text().splitlines()
        assert any(line.startswith("error: ") and TWIN_WORDS in line for line in error), error
        wait_until("the older one has it in its log", lambda: logged_lines(original, TWIN_WORDS) > 0)
        everybody = [hub, original, other]

        def is_the_older(node: Node) -> bool:
            shown = [(peer["name"], peer["state"]) for peer in node.get("/api/v1/peers") if peer["peer_id"] == identity]
            return shown == [("original", "alive")]

        wait_until("the older is shown everywhere", lambda: all(map(is_the_older, everybody)))
        shown = time.monotonic() - began
        assert not any(logged_lines(node, "a member is dead") for node in everybody)
    report(f"the newer twin ended {noticed:.1f} s after its start; after {shown:.1f} s all show the older one alive")


def test_two_members_with_one_name_both_stay_and_everybody_is_warned(tmp_path: Path) -> None:
    with joined(tmp_path, "hub", "other") as (hub, other), ExitStack() as running:
        for directory in ("one", "two"):
            running.enter_context(running_node(tmp_path, directory, "--name", "same", "--bootstrap", hub.bootstrap))

        def both_shown(node: Node) -> bool:
            shown = [peer for peer in node.get("/api/v1/peers") if peer["name"] == "same" and peer["state"] == "alive"]
            return len(shown) == 2 and all(peer["same_name"] for peer in shown)

        for node in (hub, other):
            wait_until(f"{node.name} shows both", partial(both_shown, node))
            assert node.log is not None
            assert "two members have the same name" in node.log.read_text()


def test_who_is_told_to_stop_is_shown_as_left(tmp_path: Path, report: Report) -> None:
    with joined(tmp_path, "hub", "one", "two", "three") as (hub, one, two, three):
        leaver = two.get("/api/v1/node")["peer_id"]
        assert two.process is not None
        began = time.monotonic()
        two.process.send_signal(signal.SIGTERM)
        left = seconds_until("left", [hub, one, three], are({leaver}, "left"), began)
        assert stop(two) == 0
        assert logged_lines(hub, "a member is suspect") == logged_lines(hub, "a member is dead") == 0
    report(f"SIGTERM: left everywhere after {left:.2f} s")


def logged_lines(node: Node, words: str) -> int:
    assert node.log is not None
    return sum(words in line for line in node.log.read_text().splitlines())
