"""`keygen`, `config`, `version`."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.config import FLAGS
from p2pnode.config.checks import check_network_key
from tests.cli.running import Run


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


def test_keygen_prints_a_network_key_as_settings_and_stock_peers_read_it(run: Run) -> None:
    outcome = run("keygen", "--network")
    assert outcome.code == 0
    assert re.fullmatch(r"/key/swarm/psk/1\.0\.0/\n/base16/\n[0-9a-f]{64}\n", outcome.out)
    assert check_network_key(outcome.out) == outcome.out.split()[2]
    assert run("keygen", "--network").out != outcome.out


def test_keygen_writes_a_network_key_into_a_private_file_and_shows_it_nowhere(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "swarm.key"
    outcome = run("keygen", "--network", str(key))
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert len(check_network_key(key.read_text())) == 64
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    outcome = run("keygen", "--network", str(key))
    assert outcome.code == 64
    assert "never overwritten" in outcome.err
    assert list(tmp_path.glob(".*")) == []


def test_keygen_of_a_node_key_needs_a_file(run: Run) -> None:
    outcome = run("keygen")
    assert (outcome.code, outcome.out) == (64, "")
    assert "FILE" in outcome.err
    assert "--network" in outcome.err


def test_a_network_key_is_made_without_importing_libp2p_or_trio() -> None:
    code = (
        "import sys; from p2pnode.cli.main import main; main(['keygen', '--network']); "
        "print([name for name in ('libp2p', 'trio', 'pydantic', 'nacl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_names_the_program(run: Run) -> None:
    assert run("version").out.startswith("p2pnode ")


def test_config_check_reports_every_fault_at_once(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "p2pnode.toml"
    file.write_text('[node]\nrole = "king"\nshoe_size = 43\n')
    outcome = run("config", "check", "--config", str(file), "--listen", "nonsense")
    assert (outcome.code, outcome.out) == (64, "")
    for word in ("node.role", "shoe_size", "--listen"):
        assert any(word in line for line in outcome.err.splitlines()[1:])


def test_config_check_of_good_settings_is_good(run: Run, tmp_path: Path) -> None:
    outcome = run("config", "check", "--data-dir", str(tmp_path))
    assert (outcome.code, outcome.out, outcome.err) == (0, "the settings are good\n", "")


def test_config_show_tells_value_and_source(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PNODE_NODE_ROLE", "whoosh")
    arguments = ["config", "show", "--name", "n1", "--listen", "/ip4/0.0.0.0/tcp/1", "--listen", "/ip4/0.0.0.0/tcp/2"]
    rows = [line.split(maxsplit=1) for line in run(*arguments).out.splitlines()]
    assert rows[0][0] == "KEY"
    told = dict(rows)
    assert "whoosh" in told["node.role"]
    assert told["node.role"].endswith("env P2PNODE_NODE_ROLE")
    assert told["node.name"].endswith("flag --name")
    document = json.loads(run(*arguments, "-o", "json").out)
    assert document["settings"]["network"]["listen"] == ["/ip4/0.0.0.0/tcp/1", "/ip4/0.0.0.0/tcp/2"]
    assert document["sources"]["node.role"] == "env P2PNODE_NODE_ROLE"


def test_every_flag_of_the_settings_is_an_option_of_run(run: Run) -> None:
    options = {word.rstrip(",") for word in run("run", "--help").out.split() if word.startswith("--")}
    assert set(FLAGS) | {"--config"} <= options
