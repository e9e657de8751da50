"""Settings for people and programs: the rows and the document of `config show`, the tables of the reference."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from p2pnode.config.layers import ALIASES, FALLBACKS, FLAGS, Loaded
from p2pnode.config.settings import Key, Settings, keys

Value = str | int | float | list[str]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `config show`.

    Args:
        key: dotted.
        value: as TOML writes it.
        source: `default`, `file PATH`, `env NAME` or `flag --x`.
    """

    key: str
    value: str
    source: str


def render_settings(loaded: Loaded) -> list[Row]:
    """Every key with its value and where it came from, in the order of the reference."""
    return [Row(key.dotted, _toml(_value(loaded.settings, key)), loaded.sources[key.dotted]) for key in keys()]


def settings_document(loaded: Loaded) -> dict[str, dict[str, Value]]:
    """The settings as nested tables of plain values: what a TOML file with all of them would hold."""
    document: dict[str, dict[str, Value]] = {}
    for key in keys():
        document.setdefault(key.section, {})[key.name] = _value(loaded.settings, key)
    return document


def reference_tables() -> str:
    """The tables of `docs/configuration.md`, one for each section, in Markdown."""
    defaults = Settings()
    lines: list[str] = []
    section = ""
    for key in keys():
        if key.section != section:
            section = key.section
            lines += ["", f"### [{section}]", "", getattr(defaults, section).__doc__, ""]
            lines += ["| key | default | unit | environment | flag | meaning |", "|---|---|---|---|---|---|"]
        default = key.shown or f"`{_toml(_value(defaults, key))}`"
        variables = [key.variable, *_also(key)]
        flags = [flag for flag, dotted in FLAGS.items() if dotted == key.dotted]
        cells = (f"`{key.name}`", default, key.unit, _code(variables), _code(flags), key.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines[1:]) + "\n"


def _also(key: Key) -> list[str]:
    aliases = [name for name, dotted in ALIASES.items() if dotted == key.dotted]
    return aliases + [name for name, dotted, _ in FALLBACKS if dotted == key.dotted]


def _code(names: list[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _value(settings: Settings, key: Key) -> Value:
    value = getattr(getattr(settings, key.section), key.name)
    if key.secret:
        return "(set, not shown)" if value else ""
    if isinstance(value, tuple):
        return list(value)
    if value is None:
        return ""
    if isinstance(value, Path):
        return str(value)
    plain: str | int | float = value
    return plain


def _toml(value: Value) -> str:
    # JSON's strings, numbers and lists of strings are TOML's too; only DEL needs an escape there.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
