"""`keygen`, `config`, `version`."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.cli.fake import Run


def test_keygen_writes_a_private_file_and_prints_the_peer_id(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    outcome = run("keygen", str(key))
    assert outcome.code == 0
    assert outcome.out.startswith("12D3KooW")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_keygen_never_overwrites(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    key.write_text("precious")
    outcome = run("keygen", str(key))
    assert outcome.code == 64
    assert "never overwritten" in outcome.err
    assert key.read_text() == "precious"


def test_version_names_the_program(run: Run) -> None:
    assert run("version").out.startswith("p2pnode ")
