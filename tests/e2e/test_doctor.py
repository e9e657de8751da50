"""`p2pnode doctor` beside real sidecars: each finding provoked by what it is about, and none in a healthy fleet."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from p2pnode.cli.offline import CODES as OFFLINE_CODES
from tests.e2e.cable import needs_cables
from tests.e2e.doctor import Report, ask, env_of, is_well, told
from tests.e2e.harness import Node, command, environment, running_node, start_node, stop, wait_until

NOWHERE = "/ip4/127.0.0.1/tcp/1"
"""Nobody listens there: only root could."""


def in_namespace(script: str, *flags: str) -> tuple[str, ...]:
    """Goes before a command that is to run in namespaces of its own, after a script."""
    return ("unshare", "--map-root-user", *flags, "sh", "-c", f'{script} && exec "$@"', "sh")


# -- health ----------------------------------------------------------------------------


def test_a_healthy_fleet_has_no_finding_and_every_check_is_made(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    with running_node(tmp_path, "a", env=env) as a, ExitStack() as others:
        b, _ = (others.enter_context(running_node(tmp_path, n, "--bootstrap", a.bootstrap, env=env)) for n in "bc")
        for node in (a, b):
            is_well(node)

        def checks(node: Node) -> set[str]:
            return set(ask(node).document["checked"])

        asked = {"links", "network key", "reachability", "clock", "identity", "topics", "members", "disk"}
        for node, also in ((a, set[str]()), (b, {"bootstrap addresses", "virtual addresses"})):
            wait_until("all is checked", lambda node=node, also=also: asked | also <= checks(node))  # type: ignore[misc]
        text = command("doctor", "--api", b.api, env=env)
        assert text.returncode == 0
        assert text.stdout.decode().startswith("healthy: b: 3 live members, ")
        assert "reachable at /ip4/127.0.0.1/tcp/" in text.stdout.decode()


def test_mode_auto_where_nothing_but_a_bootstrap_is_to_be_had_is_healthy(tmp_path: Path) -> None:
    env = environment(tmp_path / "run", P2PNODE_DISCOVERY_MODE="auto")
    with (
        running_node(tmp_path, "a", env=env) as a,
        running_node(tmp_path, "b", "--bootstrap", a.bootstrap, env=env) as b,
    ):
        assert a.get("/api/v1/discovery")["sources"], "it tried"
        for node in (a, b):
            is_well(node)


# -- alone -----------------------------------------------------------------------------


def test_no_source(tmp_path: Path) -> None:
    with running_node(tmp_path, "a", env=env_of(tmp_path)) as a:
        finding = told(a, "no-source", "failed")
        assert a.bootstrap in finding["fix"]
        assert ask(a).exit_code == 2


def test_no_source_where_the_only_bootstrap_is_the_node_itself(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"/ip4/127.0.0.1/tcp/{free.getsockname()[1]}"
    with running_node(tmp_path, "a", "--listen", place, "--bootstrap", place, env=env_of(tmp_path)) as a:
        finding = told(a, "no-source", "failed")
        assert place in finding["evidence"][0]
        assert "itself" in finding["evidence"][0]


def test_bootstrap_unreachable_weighs_by_what_else_there_is(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    with running_node(tmp_path, "a", env=env) as a:
        with running_node(tmp_path, "alone", "--bootstrap", NOWHERE, env=env) as alone:
            finding = told(alone, "bootstrap-unreachable", "failed")
            assert finding["evidence"][0].startswith(f"{NOWHERE}: ")
            assert ask(alone).exit_code == 2
        both = ("--bootstrap", a.bootstrap, "--bootstrap", NOWHERE)
        with running_node(tmp_path, "linked", *both, env=env) as linked:
            told(linked, "bootstrap-unreachable", "note", lambda report: report.exit_code == 0)
        with (
            running_node(tmp_path, "hub", "--bootstrap", NOWHERE, env=env) as hub,
            running_node(tmp_path, "spoke", "--bootstrap", hub.bootstrap, env=env),
        ):
            told(hub, "bootstrap-unreachable", "degraded", lambda report: report.exit_code == 1)


def test_a_bootstrap_where_another_peer_lives_now(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    with (
        running_node(tmp_path, "a", env=env) as a,
        running_node(tmp_path, "b", env=env) as b,
    ):
        wrong = a.bootstrap.partition("/p2p/")[0] + "/p2p/" + b.bootstrap.partition("/p2p/")[2]
        with running_node(tmp_path, "c", "--bootstrap", wrong, env=env) as c:
            finding = told(c, "bootstrap-unreachable", "failed")
            assert "another peer lives there" in finding["fix"]


def test_network_key_is_told_on_both_sides(tmp_path: Path) -> None:
    keys = [command("keygen", "--network", env=env_of(tmp_path)).stdout.decode().split()[2] for _ in range(2)]
    with running_node(tmp_path, "a", env=env_of(tmp_path, P2PNODE_NETWORK_KEY=keys[0])) as a:
        for name, extra in (("other", {"P2PNODE_NETWORK_KEY": keys[1]}), ("none", {})):
            with running_node(tmp_path, name, "--bootstrap", a.bootstrap, env=env_of(tmp_path, **extra)) as stranger:
                finding = told(stranger, "network-key", "failed")
                assert a.bootstrap in finding["evidence"][0]
                knocked = told(a, "network-key", "failed")  # it is alone as well
                assert any(line.endswith("from 127.0.0.1 without our network key") for line in knocked["evidence"])


def test_alone_with_a_source_that_works_and_starting_before(tmp_path: Path) -> None:
    peers = tmp_path / "peers"
    peers.write_text("/ip4/127.0.0.1/tcp/1\n/ip4/127.0.0.1/tcp/2\n")
    with running_node(tmp_path, "a", "--bootstrap", f"file:{peers}", env=env_of(tmp_path)) as a:
        young = ask(a)
        assert young.codes in ({"starting"}, {"alone"})
        finding = told(a, "alone", "failed")
        assert finding["evidence"][0].endswith("knows 2 places")
        assert "2 places" in finding["title"]
        assert finding["evidence"][1].startswith("2 places named by bootstrap: ")


# -- sources ---------------------------------------------------------------------------


def test_bootstrap_file(tmp_path: Path) -> None:
    peers = tmp_path / "peers"
    with running_node(tmp_path, "a", "--bootstrap", f"file:{peers}", env=env_of(tmp_path)) as a:
        assert str(peers) in told(a, "bootstrap-file", "failed")["title"]


@needs_cables
def test_dns_name(tmp_path: Path) -> None:
    alone = in_namespace("ip link set lo up", "--net")
    flags = ("--bootstrap", "dns:tasks.nobody.invalid:9000")
    with running_node(tmp_path, "a", *flags, env=env_of(tmp_path), within=alone) as a:
        assert "tasks.nobody.invalid" in told(a, "dns-name", "failed")["title"]


def test_docker_socket_missing(tmp_path: Path) -> None:
    env = env_of(tmp_path, P2PNODE_DISCOVERY_MODE="docker-swarm", DOCKER_HOST=f"unix://{tmp_path}/docker.sock")
    with running_node(tmp_path, "a", env=env) as a:
        assert f"{tmp_path}/docker.sock" in told(a, "docker-socket-missing", "failed")["title"]
        with running_node(tmp_path, "b", "--bootstrap", a.bootstrap, env=env_of(tmp_path)):
            told(a, "docker-socket-missing", "degraded", lambda report: report.exit_code == 1)


@needs_cables
def test_docker_socket_forbidden(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    env = env_of(tmp_path, P2PNODE_DISCOVERY_MODE="docker-swarm", DOCKER_HOST=f"unix://{path}")
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()
        path.chmod(0)
        # In a user namespace root is the owner of its files and nothing more.
        with running_node(tmp_path, "a", env=env, within=("unshare", "--user")) as a:
            assert str(path) in told(a, "docker-socket-forbidden", "failed")["title"]


def test_docker_answer(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    env = env_of(tmp_path, P2PNODE_DISCOVERY_MODE="docker-swarm", DOCKER_HOST=f"unix://{path}")
    with running_node(tmp_path, "liar", "--api", f"unix:{path}", env=env_of(tmp_path)):
        with running_node(tmp_path, "a", env=env) as a:
            assert str(path) in told(a, "docker-answer", "failed")["title"]


def test_no_multicast_interface(tmp_path: Path) -> None:
    with running_node(tmp_path, "a", "--mdns", env=env_of(tmp_path)) as a:
        assert told(a, "no-multicast-interface", "failed")["evidence"][0].startswith("source mdns ")
        with running_node(tmp_path, "b", "--bootstrap", a.bootstrap, env=env_of(tmp_path)):
            told(a, "no-multicast-interface", "degraded", lambda report: report.exit_code == 1)


# -- others, as seen from here ---------------------------------------------------------


def test_not_reachable(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    with (
        running_node(tmp_path, "a", env=env) as a,
        running_node(tmp_path, "b", "--bootstrap", a.bootstrap, "--announce", NOWHERE, env=env) as b,
    ):
        finding = told(b, "not-reachable", "degraded", lambda report: report.exit_code == 1)
        assert finding["evidence"][0].startswith(f"a tried {NOWHERE}: ")
        assert "it sees this node at /ip4/127.0.0.1" in finding["evidence"][0]


def test_clock_of_a_pair_and_of_one_among_many(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    wrong = (sys.executable, str(Path(__file__).with_name("wrong_clock.py")), "3600")
    with running_node(tmp_path, "a", env=env) as a, ExitStack() as others:
        join = ("--bootstrap", a.bootstrap)
        late = others.enter_context(running_node(tmp_path, "late", *join, env=env, within=wrong))
        for node, name, how in ((a, "late", "ahead of"), (late, "a", "behind")):
            finding = told(node, "clock", "degraded", lambda report: report.exit_code == 1)
            assert "either may be wrong" in finding["title"]
            (line,) = finding["evidence"]
            words = line.split()
            assert words[3] == name
            assert how in line
            assert abs(float(words[5]) - 3600) < 30
        for name in ("b", "c"):
            others.enter_context(running_node(tmp_path, name, *join, env=env))
        finding = told(a, "clock", "note", lambda report: report.exit_code == 0)
        assert finding["title"].startswith("the clocks of late differ")
        told(late, "clock", "degraded", lambda report: "most of its neighbours" in str(report))


def test_twin(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    with (
        running_node(tmp_path, "a", env=env) as a,
        running_node(tmp_path, "b", "--bootstrap", a.bootstrap, env=env) as b,
    ):
        wait_until("they are linked", lambda: b.get("/api/v1/node")["links"] == 1)
        shutil.copytree(tmp_path / "b", tmp_path / "copy", ignore=shutil.ignore_patterns("lock", "*.new"))
        copy = start_node(tmp_path, "copy", "--bootstrap", a.bootstrap, env=env)
        assert copy.process is not None
        try:
            finding = told(b, "twin", "degraded", lambda report: report.exit_code == 1)
            assert "'copy' at /ip4/127.0.0.1/tcp/" in finding["evidence"][0]
            assert copy.process.wait(90) != 0, "the younger one stops"
        finally:
            stop(copy)


def test_no_topic_peers(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    lonely = env_of(tmp_path, P2PNODE_GOSSIP_TOPICS="councils.forming,hmmm.lonely")
    with (
        running_node(tmp_path, "a", env=env) as a,
        running_node(tmp_path, "b", "--bootstrap", a.bootstrap, env=lonely) as b,
    ):
        finding = told(b, "no-topic-peers", "degraded", lambda report: report.exit_code == 1)
        assert finding["evidence"] == ["hmmm.lonely: none of 1 connected peer"]


def test_dead_members(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    with running_node(tmp_path, "a", env=env) as a, ExitStack() as others:
        join = ("--bootstrap", a.bootstrap)
        others.enter_context(running_node(tmp_path, "b", *join, env=env))
        killed = [others.enter_context(running_node(tmp_path, name, *join, env=env)) for name in ("c", "d")]
        wait_until("all are there", lambda: a.get("/api/v1/node")["members"] == {"alive": 4})
        for node in killed:
            stop(node, signal.SIGKILL)
        finding = told(a, "dead-members", "note", lambda report: report.exit_code == 0)
        wait_until("both are told", lambda: (ask(a).get("dead-members") or finding)["evidence"] == ["c", "d"])


@contextmanager
def balanced(*nodes: Node) -> Iterator[str]:
    """The multiaddr of a port behind which each of the nodes answers in turn."""
    ports = [node.bootstrap.split("/")[4] for node in nodes]
    program = [sys.executable, str(Path(__file__).with_name("balancer.py")), *ports]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"/ip4/127.0.0.1/tcp/{process.stdout.readline().strip()}"
        finally:
            process.kill()


def test_virtual_ip_by_its_answers(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    with ExitStack() as running:
        fleet = {name: running.enter_context(running_node(tmp_path, name, env=env)) for name in "ab"}
        address = running.enter_context(balanced(*fleet.values()))
        node = running.enter_context(running_node(tmp_path, "c", "--bootstrap", address, env=env))

        def linked() -> set[str]:
            return {str(peer["name"]) for peer in node.get("/api/v1/peers") if peer["connected"]} & fleet.keys()

        # While it has a link, nobody looks behind an address where somebody lives: let that one hang.
        first = wait_until("it is linked", linked)
        (hung,) = (fleet[name].process for name in first)
        assert hung is not None
        hung.send_signal(signal.SIGSTOP)
        try:
            wait_until("it found the other one", lambda: linked() - first)
        finally:
            hung.send_signal(signal.SIGCONT)
        finding = told(node, "virtual-ip", "degraded", lambda report: report.exit_code == 1)
        assert address in finding["title"]
        assert finding["evidence"] == ["answered as a", "answered as b"]


# -- this machine ----------------------------------------------------------------------


@needs_cables
def test_disk_full_scarce_then_full_then_read_only(tmp_path: Path) -> None:
    data = tmp_path / "a"
    data.mkdir()
    small = in_namespace(f"mount -t tmpfs -o size=1m,mode=700 none {data}", "--mount")
    with running_node(tmp_path, "a", env=env_of(tmp_path), within=small) as a:
        assert a.process is not None
        scarce = told(a, "disk-full", "degraded")
        assert scarce["evidence"][0].startswith(f"{data}: ")
        assert "of 1048576 bytes free" in scarce["evidence"][0]
        inside = Path(f"/proc/{a.process.pid}/root{data}")
        filler = inside / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(b"\0" * (2 << 20))
        full = told(a, "disk-full", "failed", lambda report: report.exit_code == 2)
        assert full["evidence"][0] == f"writing in {data} failed: No space left on device"
        filler.unlink()
        told(a, "disk-full", "degraded")
        # A second mount over the first one: that cannot change while a file is open there for writing.
        inside_it = ("nsenter", "--target", str(a.process.pid), "--user", "--mount", "--preserve-credentials")
        over = f"mount --bind {data} {data} && mount -o remount,bind,ro {data}"
        subprocess.run([*inside_it, "sh", "-c", over], check=True)
        read_only = told(a, "disk-full", "failed")
        assert read_only["evidence"][0] == f"writing in {data} failed: Read-only file system"


# -- nobody answers --------------------------------------------------------------------


def test_a_killed_sidecar_and_a_stopped_one_are_told_without_one(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"/ip4/127.0.0.1/tcp/{free.getsockname()[1]}"
    node = start_node(tmp_path, "a", "--listen", place, env=env)
    assert node.process is not None

    def offline(**extra: str) -> Report:
        done = command("doctor", "-o", "json", "--data-dir", str(tmp_path / "a"), env={**env, **extra})
        report = Report(done.returncode, json.loads(done.stdout))
        assert report.exit_code == 3
        assert report.codes <= set(OFFLINE_CODES)
        return report

    try:
        wait_until("it answers", node.answers)
        node.process.send_signal(signal.SIGSTOP)
        hangs = offline(P2PNODE_NETWORK_LISTEN=place)
        assert hangs.codes == {"no-sidecar", "sidecar-hangs"}
        finding = hangs.get("sidecar-hangs")
        assert finding is not None
        assert f"pid {node.process.pid}, T (stopped): " in finding["evidence"][0]
        node.process.send_signal(signal.SIGCONT)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        held = offline(XDG_RUNTIME_DIR=str(elsewhere), P2PNODE_NETWORK_LISTEN=place)
        assert held.codes == {"no-sidecar", "data-dir-in-use"}
    finally:
        stop(node, signal.SIGKILL)
    died = offline(P2PNODE_NETWORK_LISTEN=place)
    assert died.codes == {"no-sidecar", "sidecar-died"}
    with socket.create_server(("127.0.0.1", int(place.rpartition("/")[2]))):
        taken = offline(P2PNODE_NETWORK_LISTEN=place).get("port-taken")
        assert taken is not None
        assert f"pid {os.getpid()}, " in taken["evidence"][0]
