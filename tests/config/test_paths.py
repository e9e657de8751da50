"""The runtime directory is ours alone, and the registry lists exactly the sidecars that run."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode import paths
from p2pnode.errors import EnvironmentFault
from p2pnode.paths import register, running_sidecars, runtime_dir


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "p2pnode"


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        yield process
        process.kill()


def test_the_runtime_directory_is_made_for_this_user_alone(env: dict[str, str], directory: Path) -> None:
    before = os.umask(0)
    try:
        assert runtime_dir(env) == directory
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert runtime_dir(env) == directory


def test_the_runtime_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    assert runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path / "a" / "b")}) == tmp_path / "a" / "b" / "p2pnode"


@pytest.mark.parametrize("given", [{}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "relative"}])
def test_without_xdg_the_user_run_directory_is_taken_and_else_tmp(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    uid = os.getuid()
    monkeypatch.setattr("p2pnode.paths.Path.is_dir", lambda self: str(self) == f"/run/user/{uid}")
    monkeypatch.setattr("p2pnode.paths.os.access", lambda path, mode: True)
    assert paths._runtime_path(given) == Path(f"/run/user/{uid}/p2pnode")
    monkeypatch.setattr("p2pnode.paths.Path.is_dir", lambda self: False)
    assert paths._runtime_path(given) == Path(f"/tmp/p2pnode-{uid}")


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_runtime_directory_that_others_may_write_to_is_refused(
    env: dict[str, str], directory: Path, mode: int
) -> None:
    directory.mkdir()
    directory.chmod(mode)
    for use in (runtime_dir, running_sidecars):
        with pytest.raises(EnvironmentFault, match=f"mode {mode:04o}") as caught:
            use(env)
        assert caught.value.hint == f"chmod 0700 {directory}"


def test_a_runtime_directory_of_another_user_is_refused(
    env: dict[str, str], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir(mode=0o700)
    owner = directory.stat().st_uid
    monkeypatch.setattr("p2pnode.paths.os.getuid", lambda: owner + 1)
    for use in (runtime_dir, running_sidecars):
        with pytest.raises(EnvironmentFault, match=f"belongs to user {owner}, not to user {owner + 1}"):
            use(env)


def test_a_symbolic_link_or_a_file_in_place_of_the_runtime_directory_is_refused(
    env: dict[str, str], directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentFault, match="is no directory"):
        runtime_dir(env)
    directory.unlink()
    directory.write_text("")
    with pytest.raises(EnvironmentFault, match="is no directory"):
        running_sidecars(env)


def test_a_runtime_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot be used: Not a directory"):
        runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path / "file" / "x")})


def test_without_a_runtime_directory_no_sidecar_runs_and_none_is_made(env: dict[str, str], directory: Path) -> None:
    assert running_sidecars(env) == []
    assert not directory.exists()


def test_a_registered_sidecar_is_found_until_it_leaves(env: dict[str, str], directory: Path) -> None:
    with register("alpha", os.getpid(), ["unix:/x", "tcp:127.0.0.1:1"], "whoosh", "12D3", environ=env) as file:
        assert file == directory / f"alpha-{os.getpid()}.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        (entry,) = running_sidecars(env)
        assert (entry.name, entry.pid, entry.role, entry.peer_id) == ("alpha", os.getpid(), "whoosh", "12D3")
        assert entry.api == ("unix:/x", "tcp:127.0.0.1:1")
    assert running_sidecars(env) == []
    assert list(directory.iterdir()) == []


def test_the_entry_goes_when_the_block_fails_and_when_it_is_gone_already(env: dict[str, str], directory: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), register("a", os.getpid(), [], "chorus", "p", environ=env):
        raise RuntimeError("boom")
    with register("a", os.getpid(), [], "chorus", "p", environ=env) as file:
        file.unlink()
    assert list(directory.iterdir()) == []


def test_sidecars_are_listed_by_name_then_pid(env: dict[str, str], other: subprocess.Popen[bytes]) -> None:
    low, high = sorted([os.getpid(), other.pid])
    with (
        register("b", low, [], "chorus", "p", environ=env),
        register("a", high, [], "chorus", "p", environ=env),
        register("a", low, [], "chorus", "p", environ=env),
    ):
        assert [(each.name, each.pid) for each in running_sidecars(env)] == [("a", low), ("a", high), ("b", low)]


def test_the_entry_of_a_killed_sidecar_is_removed(
    env: dict[str, str], directory: Path, other: subprocess.Popen[bytes]
) -> None:
    with register("gone", other.pid, [], "chorus", "p", environ=env) as file:
        assert len(running_sidecars(env)) == 1
        other.kill()
        # A zombie is dead too: its parent has not asked for its exit status yet.
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert running_sidecars(env) == []
        assert not file.exists()


def test_the_entry_of_a_reused_pid_is_removed(env: dict[str, str]) -> None:
    with register("old", os.getpid(), [], "chorus", "p", environ=env) as file:
        document = json.loads(file.read_text())
        document["start_ticks"] -= 1
        file.write_text(json.dumps(document))
        assert running_sidecars(env) == []
        assert not file.exists()


def test_a_process_whose_name_holds_blanks_and_parentheses_is_known_by_its_start(tmp_path: Path) -> None:
    program = tmp_path / "a) Z (b"
    program.symlink_to("/bin/sh")
    with subprocess.Popen([str(program), "-c", "read x"], stdin=subprocess.PIPE) as process:
        started = paths._start_ticks(process.pid)
        assert started is not None
        assert started >= (paths._start_ticks(os.getpid()) or 0)


def test_the_entry_of_another_pid_namespace_is_neither_listed_nor_removed(env: dict[str, str]) -> None:
    with register("container", os.getpid(), [], "chorus", "p", environ=env) as file:
        document = json.loads(file.read_text())
        document["pid_namespace"] = "pid:[1]"
        file.write_text(json.dumps(document))
        assert running_sidecars(env) == []
        assert file.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"\xff", b'{"name": "x"}', b'{"name":1,"pid":1,"role":"r","peer_id":"p","api":[]}'],
)
def test_a_file_that_is_no_entry_is_left_alone(env: dict[str, str], directory: Path, content: bytes) -> None:
    runtime_dir(env)
    (directory / "x.json").write_bytes(content)
    assert running_sidecars(env) == []
    assert (directory / "x.json").exists()


def test_an_entry_of_a_newer_version_with_more_in_it_is_read(env: dict[str, str]) -> None:
    with register("a", os.getpid(), [], "chorus", "p", environ=env) as file:
        file.write_text(json.dumps({**json.loads(file.read_text()), "later": 1}))
        assert [each.name for each in running_sidecars(env)] == ["a"]


@pytest.mark.parametrize("name", ["../../etc/x", ".hidden", "two words/slash", "ü" * 300, ""])
def test_no_name_leads_out_of_the_directory(env: dict[str, str], directory: Path, name: str) -> None:
    with register(name, os.getpid(), [], "chorus", "p", environ=env) as file:
        assert file.parent == directory
        assert [each.name for each in running_sidecars(env)] == [name]


def test_a_process_that_does_not_run_cannot_be_registered(env: dict[str, str]) -> None:
    with (
        pytest.raises(EnvironmentFault, match="is not running"),
        register("a", 2**22 + 1, [], "chorus", "p", environ=env),
    ):
        pass
