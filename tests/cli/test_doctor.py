"""`doctor`: what the sidecar says of itself, and what can be told when none answers."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from p2pnode.cli.offline import CODES
from p2pnode.paths import dead_sidecars
from tests.cli.running import Registry, Run, p2pnode
from tests.cli.test_process import on_a_terminal
from tests.local.fake import FakeSidecar, problem

FINDING = {
    "code": "disk-full",
    "severity": "failed",
    "title": "nothing can be written",
    "evidence": ["writing in /data failed: No space left on device", "/data: 0 of 10 bytes free"],
    "fix": "free space there",
}
NOTE = {**FINDING, "code": "dead-members", "severity": "note", "title": "many are dead", "evidence": ["a"]}


def diagnosis(status: str, *findings: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": status,
        "exit_code": 0,
        "summary": "chorus-1: 33 live members, 8 links",
        "findings": list(findings),
        "checked": ["links", "disk"],
        "at": "2026-11-23T12:00:00Z",
    }


HEALTHY = diagnosis("healthy")


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `run` would use here: a directory of its own, and a port that is free."""
    directory = tmp_path / "data"
    directory.mkdir()
    monkeypatch.setenv("P2PNODE_NODE_DATA_DIR", str(directory))
    monkeypatch.setenv("P2PNODE_NETWORK_LISTEN", "/ip4/127.0.0.1/tcp/0")
    return directory


def offline(run: Run, *arguments: str) -> dict[str, dict[str, Any]]:
    """Findings of a doctor that found nobody to ask, by code."""
    outcome = run("doctor", "-o", "json", *arguments)
    assert outcome.code == 3, outcome
    document = json.loads(outcome.out)
    assert (document["status"], document["exit_code"]) == ("unknown", 3)
    findings = {finding["code"]: finding for finding in document["findings"]}
    assert findings.keys() <= set(CODES)
    assert len(findings) == len(document["findings"])
    return findings


# -- a sidecar answers -----------------------------------------------------------------


def test_a_healthy_node_takes_two_lines(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/doctor", HEALTHY)
    outcome = run("doctor", "--api", sidecar.api)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == "healthy: chorus-1: 33 live members, 8 links\nchecked, and good: links, disk\n"


@pytest.mark.parametrize(("status", "code"), [("healthy", 0), ("degraded", 1), ("failed", 2)])
def test_the_exit_code_is_that_of_the_status_in_every_form(
    run: Run, sidecar: FakeSidecar, status: str, code: int
) -> None:
    told = diagnosis(status, NOTE)
    sidecar.serves("/api/v1/doctor", told)
    assert run("doctor", "--api", sidecar.api).code == code
    outcome = run("doctor", "--api", sidecar.api, "-o", "json")
    assert (outcome.code, json.loads(outcome.out)) == (code, told)


def test_a_finding_has_its_title_its_evidence_and_its_fix(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/doctor", diagnosis("failed", FINDING, NOTE))
    assert run("doctor", "--api", sidecar.api).out.splitlines() == [
        "failed: chorus-1: 33 live members, 8 links",
        "",
        "failed disk-full: nothing can be written",
        "  writing in /data failed: No space left on device",
        "  /data: 0 of 10 bytes free",
        "  fix: free space there",
        "",
        "note dead-members: many are dead",
        "  a",
        "  fix: free space there",
        "",
        "checked: links, disk",
    ]


def test_on_a_terminal_it_is_coloured_and_nobody_s_name_can_act_on_it(sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/doctor", diagnosis("failed", {**FINDING, "evidence": ["\x1b[2Jchorus"]}))
    text = on_a_terminal("doctor", "--api", sidecar.api)
    assert "\x1b[31mfailed\x1b[0m" in text
    assert "\\x1b[2Jchorus" in text
    assert "\x1b[2J" not in text


@pytest.mark.parametrize("answer", [[], {"status": "fine"}, {"status": None}])
def test_an_answer_that_is_none_is_no_health(run: Run, sidecar: FakeSidecar, data_dir: Path, answer: Any) -> None:
    sidecar.serves("/api/v1/doctor", answer)
    assert run("doctor", "--api", sidecar.api).code == 3


def test_a_sidecar_of_an_older_version_is_named_as_such_and_does_not_hang(
    run: Run, sidecar: FakeSidecar, registry: Registry, data_dir: Path
) -> None:
    registry("old", "chorus", sidecar.api)
    findings = offline(run)
    assert findings.keys() == {"no-sidecar"}
    assert "older version" in findings["no-sidecar"]["fix"]


def test_a_refusal_is_told_as_one(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", "/api/v1/doctor", problem(401, "a bearer token is needed"))
    assert run("doctor", "--api", sidecar.api).code == 64
    sidecar.on("GET", "/api/v1/doctor", problem(500, "broken"))
    assert run("doctor", "--api", sidecar.api).code == 2


def test_asking_imports_nothing_heavy(sidecar: FakeSidecar, registry: Registry) -> None:
    sidecar.serves("/api/v1/doctor", HEALTHY)
    registry("one", "chorus", sidecar.api)
    script = (
        "import sys\n"
        "from p2pnode.cli.main import main\n"
        "assert main(['doctor']) == 0\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert {"trio", "libp2p", "pydantic", "asyncio", "cryptography"}.isdisjoint(done.stderr.split())


# -- nobody answers --------------------------------------------------------------------


def test_without_a_sidecar_and_with_all_well_only_that_is_said(run: Run, data_dir: Path) -> None:
    findings = offline(run)
    assert findings.keys() == {"no-sidecar"}
    assert "p2pnode run" in findings["no-sidecar"]["fix"]
    text = run("doctor")
    assert text.code == 3
    assert text.out.startswith("unknown: no sidecar answers\n\nfailed no-sidecar: ")
    assert text.out.endswith("checked: registered sidecars, configuration, data directory, disk, listen ports\n")
    assert list(data_dir.iterdir()) == []


def test_an_address_where_nobody_answers_is_named(run: Run, data_dir: Path, tmp_path: Path) -> None:
    findings = offline(run, "--api", f"unix:{tmp_path}/nobody.sock")
    assert findings.keys() == {"no-sidecar"}
    assert f"{tmp_path}/nobody.sock" in findings["no-sidecar"]["title"]


@pytest.fixture
def killed() -> str:
    """A process that registered, served a socket, and was killed; its API address."""
    path = f"{os.environ['XDG_RUNTIME_DIR']}/p2pnode/late.sock"
    script = (
        "import os, signal, socket\n"
        "from p2pnode.paths import register, runtime_dir\n"
        "runtime_dir()\n"
        "server = socket.socket(socket.AF_UNIX)\n"
        f"server.bind({path!r})\n"
        "server.listen()\n"
        f"with register('late', os.getpid(), ['unix:{path}'], 'chorus', '12D3KooWlate'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=30)
    assert done.returncode == -signal.SIGKILL
    return f"unix:{path}"


def test_a_sidecar_that_was_killed_is_told_by_what_it_left(run: Run, data_dir: Path, killed: str) -> None:
    assert [entry.name for entry in dead_sidecars()] == ["late"]
    finding = offline(run)["sidecar-died"]
    assert "'late'" in finding["title"]
    assert "12D3KooWlate" in finding["evidence"][0]
    again = offline(run, "--api", killed)["sidecar-died"]
    assert killed.removeprefix("unix:") in again["title"], "its entry is gone, its socket is not"
    assert "sidecar-died" not in offline(run, "--api", "unix:/tmp/another.sock")


def test_a_live_socket_is_no_leftover(run: Run, data_dir: Path, killed: str) -> None:
    assert "sidecar-died" in offline(run)
    path = Path(killed.removeprefix("unix:"))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert "sidecar-died" not in offline(run)
    assert "sidecar-died" in offline(run)


def test_a_sidecar_that_runs_and_does_not_answer_is_told_with_its_process(
    run: Run, data_dir: Path, registry: Registry, tmp_path: Path
) -> None:
    api = f"unix:{tmp_path}/gone.sock"
    registry("stuck", "chorus", api)
    for arguments in ([], ["--api", api]):
        finding = offline(run, *arguments)["sidecar-hangs"]
        assert "'stuck'" in finding["title"]
        assert finding["evidence"][0].startswith(f"pid {os.getpid()}, R (running): ")
        assert finding["evidence"][1] == f"API {api}: the socket's file is gone"


def test_a_configuration_that_cannot_be_used_is_told_fault_by_fault(run: Run, data_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[network]\nlisten = ["nonsense"]\nnope = 1\n')
    findings = offline(run, "--config", str(file))
    assert findings.keys() == {"no-sidecar", "configuration"}
    evidence = "\n".join(findings["configuration"]["evidence"])
    assert "network.nope" in evidence
    assert str(file) in evidence


def test_the_configuration_may_come_from_the_environment(
    run: Run, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PNODE_CONFIG", str(tmp_path / "missing.toml"))
    assert "configuration" in offline(run)


def test_a_data_directory_that_is_a_file_cannot_be_used(run: Run, data_dir: Path) -> None:
    data_dir.rmdir()
    data_dir.write_text("")
    assert f"{data_dir} is no directory" in offline(run)["data-dir"]["evidence"][0]
    elsewhere = data_dir.parent / "elsewhere" / "data"
    assert offline(run, "--data-dir", str(elsewhere)).keys() == {"no-sidecar"}
    assert not elsewhere.parent.exists(), "it looks, and makes nothing"


def test_a_data_directory_that_this_user_may_not_write_is_told_with_the_user() -> None:
    # As root everything may be written, so the process becomes somebody else, and looks where others may go.
    script = (
        "import os, sys; from pathlib import Path\n"
        "import p2pnode.node.disk; from p2pnode.cli.offline import _data_dir\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for finding in _data_dir(Path(sys.argv[1]), None): print(finding.code, *finding.evidence)\n"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o555)
        for path, what in ((directory, "write there"), (f"{directory}/new/data", f"make it in {directory}")):
            done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=30)
            assert done.stdout.startswith("data-dir "), done
            assert f"this user may not {what} (user " in done.stdout


def test_a_full_or_read_only_disk_is_told_with_the_error(run: Run, data_dir: Path) -> None:
    finding = offline(run, "--data-dir", "/proc")["disk-full"]
    assert finding["evidence"][0].startswith("writing in /proc failed: ")


def test_a_data_directory_that_a_stranger_holds_is_told_with_its_process(run: Run, data_dir: Path) -> None:
    with (data_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finding = offline(run)["data-dir-in-use"]
        assert finding["evidence"][0].startswith(f"pid {os.getpid()}, R (running): ")
    assert "data-dir-in-use" not in offline(run)


def test_a_port_that_somebody_else_listens_on_is_told_with_its_process(
    run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("P2PNODE_NETWORK_LISTEN", f"/ip4/127.0.0.1/tcp/{port}")
        finding = offline(run)["port-taken"]
        assert str(port) in finding["title"]
        assert finding["evidence"][0].startswith(f"pid {os.getpid()}, R (running): ")
        registry("stuck", "chorus", "unix:/tmp/nobody.sock")
        assert offline(run).keys() == {"no-sidecar", "sidecar-hangs"}, "its own port is no strange one"
    assert "port-taken" not in offline(run)


def test_an_address_of_another_machine_is_told(run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PNODE_NETWORK_LISTEN", "/ip4/192.0.2.1/tcp/9000")
    assert "192.0.2.1" in offline(run)["listen-address"]["title"]


def test_several_sidecars_are_listed_to_choose_from(run: Run, registry: Registry) -> None:
    registry("one", "chorus", "unix:/tmp/one.sock")
    registry("two", "chorus", "unix:/tmp/two.sock")
    outcome = run("doctor")
    assert outcome.code == 64
    assert "one.sock" in outcome.err


def test_it_is_a_command_of_its_own_process(data_dir: Path) -> None:
    done = p2pnode("doctor")
    assert done.returncode == 3
    assert "no-sidecar" in done.stdout
