"""What the pages about roads tell an operator to write is what the program takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2pnode.cli.carriers import read_changes
from p2pnode.config import load_settings

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / name).read_text() for name in ("migration.md", "bridge.md", "http-api.md")}
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
CHANGES = [words.split() for page in PAGES.values() for words in re.findall(r"carriers set ([a-z_]+=[^`#\n]+)", page)]
VARIABLES = re.findall(r"\b((?:P2PNODE|NATS)_[A-Z_]+)=([\w:/.-]+)", PAGES["migration.md"])
PEER = "12D3KooWRyeNvhzAKFYmjA6y5uBYfKKXcVGrNLMVoGLJ4Xq8eAcT"


@pytest.mark.parametrize("block", BLOCKS)
def test_each_toml_block_is_a_good_configuration(tmp_path: Path, block: str) -> None:
    file = tmp_path / "p2pnode.toml"
    file.write_text(block.replace("12D3KooW…", PEER))
    load_settings({"--role": "bridge"}, {}, file)


@pytest.mark.parametrize("words", CHANGES)
def test_each_live_change_is_understood(words: list[str]) -> None:
    assert read_changes(words)


@pytest.mark.parametrize(("name", "value"), VARIABLES)
def test_each_variable_is_known(name: str, value: str) -> None:
    loaded = load_settings({}, {"NATS_URL": "nats://127.0.0.1:4222", name: value}, None)
    assert f"env {name}" in loaded.sources.values()


def test_the_pages_were_searched_where_they_say_something() -> None:
    assert len(BLOCKS) >= 5
    assert len(CHANGES) >= 10
    assert len(VARIABLES) >= 5


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)", PAGES[name])
    assert links
    assert [link for link in links if not (DOCS / link).exists()] == []
