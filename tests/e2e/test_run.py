"""`p2pnode run`: the agent under it, signals, and errors that say what to do."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from tests.e2e.harness import Node, command, environment, running_node, start_node, stop, wait_until

LOOPBACK = ("--listen", "/ip4/127.0.0.1/tcp/0")


def test_the_agent_gets_the_api_and_its_exit_status_becomes_the_sidecars(tmp_path: Path) -> None:
    script = 'curl -s --unix-socket "${P2PNODE_API#unix:}" http://localhost/health > answer; exit 7'
    node = start_node(tmp_path, "parent", agent=("sh", "-c", f"cd {tmp_path}; {script}"))
    assert node.process is not None
    assert node.process.wait(60) == 7
    assert json.loads((tmp_path / "answer").read_text()) == {"status": "healthy"}


def test_sigterm_reaches_the_agent_first_and_the_sidecar_leaves_after_it(tmp_path: Path) -> None:
    # When the agent is told, the sidecar must still serve it.
    script = (
        "trap 'curl -s -o answer --unix-socket \"${P2PNODE_API#unix:}\" http://localhost/health; exit 3' TERM;"
        "touch started; while :; do sleep 0.1; done"
    )
    node = start_node(tmp_path, "parent", agent=("sh", "-c", f"cd {tmp_path}; {script}"))
    wait_until("the agent runs", lambda: (tmp_path / "started").exists())
    assert stop(node, signal.SIGTERM) == 3
    assert json.loads((tmp_path / "answer").read_text()) == {"status": "healthy"}


def test_an_agent_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    env = environment(tmp_path / "run", P2PNODE_AGENT_STOP_GRACE_SECONDS="0.5")
    script = f"trap '' TERM; touch {tmp_path}/started; while :; do sleep 0.1; done"
    node = start_node(tmp_path, "parent", agent=("sh", "-c", script), env=env)
    wait_until("the agent runs", lambda: (tmp_path / "started").exists())
    assert stop(node, signal.SIGTERM) == 128 + signal.SIGKILL


def test_other_signals_are_passed_on(tmp_path: Path) -> None:
    script = f"trap 'exit 5' USR1; touch {tmp_path}/started; while :; do sleep 0.1; done"
    node = start_node(tmp_path, "parent", agent=("sh", "-c", script))
    wait_until("the agent runs", lambda: (tmp_path / "started").exists())
    assert stop(node, signal.SIGUSR1) == 5


def test_an_agent_that_does_not_exist_ends_with_127(tmp_path: Path) -> None:
    node = start_node(tmp_path, "parent", agent=("no-such-agent-program",))
    assert node.process is not None
    assert node.process.wait(60) == 127


def test_sigterm_ends_a_sidecar_with_0_and_its_neighbour_sees_it_leave(tmp_path: Path) -> None:
    with running_node(tmp_path, "stays") as stays:
        goes = start_node(tmp_path, "goes", "--bootstrap", stays.bootstrap)
        peer_id = wait_until("goes answers", goes.answers)["peer_id"]

        def state(expected: str) -> bool:
            return any(p["peer_id"] == peer_id and p["state"] == expected for p in stays.get("/api/v1/peers"))

        wait_until("it is seen", lambda: state("alive"))
        wait_until("it has a mesh", lambda: any(topic["mesh"] for topic in goes.get("/api/v1/topics")))
        assert stop(goes, signal.SIGTERM) == 0
        wait_until("it left", lambda: state("left"))
        assert not (tmp_path / "goes.sock").exists()


def test_a_restart_keeps_the_identity_and_the_files_are_private(tmp_path: Path) -> None:
    with running_node(tmp_path, "node") as node:
        first = node.get("/api/v1/node")["peer_id"]
        assert stat.S_IMODE((tmp_path / "node" / "identity.key").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "node.sock").stat().st_mode) == 0o600
    with running_node(tmp_path, "node") as node:
        assert node.get("/api/v1/node")["peer_id"] == first


def refused(tmp_path: Path, *arguments: str, **extra: str) -> tuple[int, str]:
    result = command(*arguments, env=environment(tmp_path / "run", **extra))
    return result.returncode, result.stderr.decode()


def test_a_bad_multiaddr_is_named(tmp_path: Path) -> None:
    code, error = refused(tmp_path, "run", "--data-dir", str(tmp_path / "d"), "--bootstrap", "10.0.0.1:9000")
    assert code == 64
    assert "--bootstrap" in error
    assert "10.0.0.1:9000" in error


def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listen = f"/ip4/127.0.0.1/tcp/{port}"
        code, error = refused(tmp_path, "run", "--data-dir", str(tmp_path / "d"), "--listen", listen)
    assert code == 2
    assert listen in error
    assert "in use" in error
    assert "--listen" in error


def test_an_address_of_another_machine_is_not_blamed_on_another_process(tmp_path: Path) -> None:
    listen = "/ip4/192.0.2.1/tcp/0"  # TEST-NET-1, nobody's; binding sends nothing
    code, error = refused(tmp_path, "run", "--data-dir", str(tmp_path / "d"), "--listen", listen)
    assert code == 2
    assert listen in error
    assert "none of this machine's" in error
    assert "another process" not in error


def test_a_data_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, error = refused(tmp_path, "run", "--data-dir", str(tmp_path / "file" / "d"), *LOOPBACK)
    assert code == 2
    assert str(tmp_path / "file" / "d") in error
    assert "--data-dir" in error


def test_a_data_directory_in_use_is_named_with_its_holder(tmp_path: Path) -> None:
    with running_node(tmp_path, "first") as node:
        assert node.process is not None
        code, error = refused(tmp_path, "run", "--data-dir", str(tmp_path / "first"), *LOOPBACK)
        assert code == 2
        assert str(tmp_path / "first") in error
        assert f"pid {node.process.pid}" in error


def test_a_key_file_open_to_others_is_refused_with_the_fix(tmp_path: Path) -> None:
    key = tmp_path / "d" / "identity.key"
    assert refused(tmp_path, "keygen", str(key))[0] == 0
    key.chmod(0o644)
    code, error = refused(tmp_path, "run", "--data-dir", str(tmp_path / "d"), *LOOPBACK)
    assert code == 2
    assert "0644" in error
    assert f"chmod 600 {key}" in error


def test_unknown_keys_are_all_named_with_what_was_meant(tmp_path: Path) -> None:
    config = tmp_path / "p2pnode.toml"
    config.write_text('[network]\nlisten_on = ["/ip4/0.0.0.0/tcp/1"]\n[gosip]\ndegree = 4\n')
    code, error = refused(tmp_path, "run", "--config", str(config), P2PNODE_NODE_ROEL="chorus")
    assert code == 64
    for name in ("listen_on", "gosip", "P2PNODE_NODE_ROEL", str(config)):
        assert name in error


def test_without_a_sidecar_the_exit_code_is_3(tmp_path: Path) -> None:
    code, error = refused(tmp_path, "peers")
    assert code == 3
    assert "p2pnode run" in error


def test_with_two_sidecars_the_error_lists_them_and_says_how_to_choose(tmp_path: Path) -> None:
    with running_node(tmp_path, "one"), running_node(tmp_path, "two"):
        code, error = refused(tmp_path, "peers")
    assert code == 64
    for word in ("one", "two", "--api", str(tmp_path / "one.sock"), str(tmp_path / "two.sock")):
        assert word in error


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (("pub", "a topic with spaces", "x"), b"", ("topic", "a topic with spaces")),
        (
            ("pub", "councils.forming"),
            json.dumps({"council_id": "5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e11", "repository": "r"}).encode(),
            ("project_name", "core_roles", "missing"),
        ),
        (("pub", "hmmm.large"), b"x" * (256 * 1024 + 1), ("262144",)),
        (("pub", "councils.forming", "not json"), b"", ("body", "JSON")),
    ],
)
def test_a_wrong_publish_names_every_fault(
    tmp_path_factory: pytest.TempPathFactory, arguments: tuple[str, ...], stdin: bytes, words: tuple[str, ...]
) -> None:
    directory = tmp_path_factory.mktemp("pub")
    with running_node(directory, "only"):
        result = command(*arguments, env=environment(directory / "run"), stdin=stdin)
    assert result.returncode == 64
    for word in words:
        assert word in result.stderr.decode()


def test_the_api_off_loopback_without_a_token_is_refused(tmp_path: Path) -> None:
    code, error = refused(tmp_path, "run", "--data-dir", str(tmp_path / "d"), *LOOPBACK, "--api", "tcp:0.0.0.0:0")
    assert code == 64
    assert "token" in error


def test_a_message_published_to_nobody_survives_a_kill_and_reaches_who_comes_later(tmp_path: Path) -> None:
    env = environment(tmp_path / "run")

    def publish(node: Node) -> str:
        done = command("pub", "--api", node.api, "--idempotency-key", "k1", "hmmm.later", "hello", env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().split()[0]

    with running_node(tmp_path, "a", env=env) as alone:
        message_id = publish(alone)
        stop(alone, signal.SIGKILL)
    with (
        running_node(tmp_path, "a", env=env) as again,
        running_node(tmp_path, "b", "--bootstrap", again.bootstrap, env=env) as later,
    ):
        flags = ("--from", "start", "--count", "1", "-o", "jsonl")
        got = command("sub", "--api", later.api, *flags, "hmmm.later", env=env)
        assert got.returncode == 0, got.stderr
        assert json.loads(got.stdout)["id"] == message_id
        assert publish(again) == message_id
        assert [each["id"] for each in later.messages("hmmm.later")] == [message_id]
        wait_until("it is safe at the other", lambda: again.metric("p2pnode_outbox_messages") == 0)


def test_status_of_a_lonely_node_is_2_and_of_a_pair_0(tmp_path: Path) -> None:
    with running_node(tmp_path, "one") as one:
        env = environment(tmp_path / "run", P2PNODE_API=one.api)
        assert command("status", env=env).returncode == 2
        with running_node(tmp_path, "two", "--bootstrap", one.bootstrap):
            wait_until("it delivers", lambda: command("status", env=env).returncode == 0)


def test_a_killed_sidecar_is_not_listed_any_more(tmp_path: Path) -> None:
    node = start_node(tmp_path, "gone")
    wait_until("it answers", node.answers)
    assert node.process is not None
    os.kill(node.process.pid, signal.SIGKILL)
    node.process.wait()
    assert refused(tmp_path, "peers")[0] == 3
