"""The key of a private network: taken in the forms people have it in, and never shown."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pnode.app import _network_key
from p2pnode.config import Loaded, render_settings, settings_document
from p2pnode.errors import EnvironmentFault, InvalidConfig

Load = Callable[..., Loaded]
Faults = Callable[..., dict[str, str]]

KEY = bytes(range(100, 132))
SWARM_KEY = "/key/swarm/psk/1.0.0/"
FORMS = [
    KEY.hex(),
    KEY.hex().upper(),
    f"{SWARM_KEY}\n/base16/\n{KEY.hex()}",
    f"{SWARM_KEY}\n/base16/\n{KEY.hex()}\n",
    f"{SWARM_KEY}\r\n/base16/\r\n{KEY.hex()}\r\n",
    f"{SWARM_KEY}\n/base64/\n{base64.b64encode(KEY).decode()}\n",
]
WRONG = [
    KEY.hex()[:-2],
    KEY.hex() + "00",
    KEY.hex()[:-1] + "x",
    " ",
    SWARM_KEY,
    f"{SWARM_KEY}\n/base16/\n",
    f"{SWARM_KEY}\n/base58/\n{KEY.hex()}",
    f"{SWARM_KEY}\n/base64/\n{KEY.hex()}",
    f"/key/swarm/psk/2.0.0/\n/base16/\n{KEY.hex()}",
    f"{SWARM_KEY}\n/base16/\n{KEY.hex()}\n{KEY.hex()}",
]


@pytest.mark.parametrize("text", FORMS)
def test_hexadecimal_digits_and_the_text_of_a_swarm_key_are_the_same_key(load: Load, tmp_path: Path, text: str) -> None:
    assert load(env={"P2PNODE_NETWORK_KEY": text}).settings.network.key == KEY.hex()
    file = tmp_path / "swarm.key"
    file.write_bytes(text.encode())
    assert _network_key(load(env={"P2PNODE_NETWORK_KEY_FILE": str(file)}).settings) == KEY


def test_without_a_key_the_network_is_public(load: Load) -> None:
    assert _network_key(load().settings) == b""


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_key_is_refused_and_not_repeated(
    load: Load, faults: Faults, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = faults(env={"P2PNODE_NETWORK_KEY": text})
    assert list(found) == ["network.key (env P2PNODE_NETWORK_KEY)"]
    file = tmp_path / "swarm.key"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidConfig) as caught:
        _network_key(load(env={"P2PNODE_NETWORK_KEY_FILE": str(file)}).settings)
    assert [fault.field for fault in caught.value.faults] == ["network.key_file"]
    shown = f"{found} {caught.value} {caplog.text}"
    assert not [word for word in text.split() if len(word) > 24 and word in shown]


@pytest.mark.parametrize("content", ["", "\n", "  \n"])
def test_an_empty_key_file_does_not_mean_a_public_network(load: Load, tmp_path: Path, content: str) -> None:
    file = tmp_path / "swarm.key"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidConfig, match=r"network\.key_file"):
        _network_key(load(env={"P2PNODE_NETWORK_KEY_FILE": str(file)}).settings)


@pytest.mark.parametrize("kind", ["missing", "directory", "not text"])
def test_a_key_file_that_cannot_be_read_stops_the_start(load: Load, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "swarm.key"
    if kind == "directory":
        file.mkdir()
    elif kind == "not text":
        file.write_bytes(b"\xff\xfe" + KEY)
    with pytest.raises(EnvironmentFault, match="cannot read the network key file"):
        _network_key(load(env={"P2PNODE_NETWORK_KEY_FILE": str(file)}).settings)


@pytest.mark.parametrize("written", ["1234567890", '["0b0b"]', "{ hex = 1234567890 }", "true"])
def test_a_key_of_the_wrong_type_is_not_repeated_either(faults: Faults, written: str) -> None:
    (problem,) = faults(f"[network]\nkey = {written}").values()
    assert "1234567890" not in problem
    assert "0b0b" not in problem


def test_a_key_is_shown_nowhere(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(env={"P2PNODE_NETWORK_KEY": KEY.hex()})
    rows = {row.key: row.value for row in render_settings(loaded)}
    assert rows["network.key"] == '"(set, not shown)"'
    assert settings_document(loaded)["network"]["key"] == "(set, not shown)"
    assert settings_document(load())["network"]["key"] == ""
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("p2pnode").info("settings %r", loaded.settings)
    assert KEY.hex() not in f"{rows} {settings_document(loaded)} {loaded.settings!r} {caplog.text}"
