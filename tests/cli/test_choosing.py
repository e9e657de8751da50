"""Which sidecar a command asks, and what it says when there is none, one, or several."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.documents import member, node
from tests.cli.running import Registry, Run
from tests.local.fake import FakeSidecar


@pytest.mark.parametrize("command", [["peers"], ["id"], ["status"], ["topics"], ["pub", "t", "x"], ["sub", "t"]])
def test_without_a_sidecar_the_exit_code_is_3_and_the_way_out_is_told(run: Run, command: list[str]) -> None:
    outcome = run(*command)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith("error: no sidecar of this user is running\n")
    assert "p2pnode run" in outcome.err
    assert "--api" in outcome.err


def test_the_only_sidecar_is_found(run: Run, sidecar: FakeSidecar, registry: Registry) -> None:
    sidecar.serves("/api/v1/node", node())
    registry("whoosh-1", "whoosh", sidecar.api)
    assert run("id").code == 0


def test_the_unix_socket_of_a_sidecar_is_preferred(run: Run, sidecar: FakeSidecar, registry: Registry) -> None:
    sidecar.serves("/api/v1/node", node())
    registry("whoosh-1", "whoosh", "tcp:127.0.0.1:1", sidecar.api)
    assert run("id").code == 0


def test_several_sidecars_are_listed_with_role_and_address(run: Run, registry: Registry) -> None:
    registry("whoosh-1", "whoosh", "unix:/run/b.sock")
    registry("chorus-1", "chorus", "unix:/run/a.sock")
    outcome = run("peers")
    assert outcome.code == 64
    assert outcome.err.splitlines() == [
        "error: 2 sidecars of this user are running; which one?",
        "  chorus-1  chorus  unix:/run/a.sock",
        "  whoosh-1  whoosh  unix:/run/b.sock",
        "  choose with --api, or once for this shell: export P2PNODE_API=unix:/run/a.sock",
    ]


def test_the_environment_names_the_sidecar_and_the_flag_wins(
    run: Run, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar.serves("/api/v1/peers", [member("a")])
    monkeypatch.setenv("P2PNODE_API", sidecar.api)
    assert run("peers").code == 0
    monkeypatch.setenv("P2PNODE_API", "unix:/nowhere")
    assert run("peers").code == 3
    assert run("peers", "--api", sidecar.api).code == 0


@pytest.mark.parametrize("api", ["nonsense", "unix:", "tcp:localhost", "tcp:localhost:99999", "http://x:1"])
def test_an_address_that_is_none_is_wrong_usage(run: Run, api: str) -> None:
    outcome = run("peers", "--api", api)
    assert outcome.code == 64
    assert outcome.err.startswith("error: ")


def test_a_sidecar_that_has_gone_is_no_sidecar(run: Run, tmp_path: Path) -> None:
    outcome = run("peers", "--api", f"unix:{tmp_path}/gone.sock")
    assert outcome.code == 3
    assert "gone.sock: No such file" in outcome.err


def test_the_token_is_read_from_its_file(run: Run, sidecar: FakeSidecar, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    sidecar.serves("/api/v1/peers", [])
    run("peers", "--api", sidecar.api, "--api-token-file", str(tmp_path / "token"))
    assert sidecar.requests[0].headers["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("content", [None, b"", b"two words", b"a\nb", b"\xff"])
def test_a_token_file_without_one_token_is_refused(
    run: Run, sidecar: FakeSidecar, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    outcome = run("peers", "--api", sidecar.api, "--api-token-file", str(tmp_path / "token"))
    assert outcome.code == 64
    assert "token file" in outcome.err
    assert sidecar.requests == []
