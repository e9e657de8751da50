"""The reference page says what the settings are."""

from __future__ import annotations

from pathlib import Path

from p2pnode.config import FLAGS, reference_tables
from p2pnode.config.layers import ALIASES, FALLBACKS, OTHER_VARIABLES
from p2pnode.config.settings import keys

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_holds_every_key_as_the_settings_have_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [line for line in reference_tables().splitlines() if line not in page.splitlines()]
    assert not missing, "put in docs/configuration.md what p2pnode.config.reference_tables() returns"


def test_the_page_holds_no_key_that_does_not_exist() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Keys\n")[2]
    assert table.strip() == reference_tables().strip()


def test_the_page_names_every_variable_and_flag() -> None:
    page = PAGE.read_text(encoding="utf-8")
    names = [*ALIASES, *(name for name, _, _ in FALLBACKS), *OTHER_VARIABLES, *FLAGS, *(key.variable for key in keys())]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_flag_and_alias_leads_to_a_key() -> None:
    dotted = {key.dotted for key in keys()}
    assert {*FLAGS.values(), *ALIASES.values(), *(key for _, key, _ in FALLBACKS)} <= dotted


def test_every_key_says_what_it_means() -> None:
    assert [key.dotted for key in keys() if not key.description.endswith(".")] == []


def test_a_key_that_counts_seconds_or_bytes_says_so_in_its_name() -> None:
    for key in keys():
        for unit in ("seconds", "bytes"):
            assert (key.unit == unit) == key.name.endswith(f"_{unit}"), key.dotted
