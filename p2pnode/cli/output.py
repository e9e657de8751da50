"""What commands print: aligned and coloured for people, plain in a pipe, JSON for programs.

Names and payloads come from other nodes, so whatever goes to a terminal is stripped of control characters.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TextIO

UNKNOWN: Final = "-"
"""What stands for a value nobody knows: never 0, never empty (cells stay countable for awk)."""

_CODES: Final[Mapping[str, str]] = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}
_MEANING: Final[Mapping[str, str]] = {
    "alive": "green",
    "delivering": "green",
    "active": "green",
    "accepted": "green",
    "forming": "yellow",
    "assigned": "yellow",
    "expired": "red",
    "failed": "red",
    "suspect": "yellow",
    "degraded": "yellow",
    "dead": "red",
    "not-ready": "red",
    "empty mesh": "red",
    "left": "dim",
    UNKNOWN: "dim",
}
_C1_ESCAPES: Final[Mapping[int, str]] = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def for_people(stream: TextIO | None = None) -> bool:
    """Is somebody reading this on a terminal?"""
    return (stream or sys.stdout).isatty()


def coloured(stream: TextIO | None = None) -> bool:
    """On a terminal that has colours, unless NO_COLOR (no-color.org) is set to anything."""
    return for_people(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, *, stream: TextIO | None = None) -> str:
    """`text` in a style of `_CODES` where colours are wanted; an empty style leaves it alone."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if style and coloured(stream) else text


def clean(text: str) -> str:
    """`text` on one line, with everything a terminal could act on as a visible escape."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def cell(value: Any) -> str:
    """A JSON value as one cell of a table."""
    if value is None or value in ("", [], {}):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list):
        return ",".join(cell(item) for item in value)
    if isinstance(value, dict):
        return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    return clean(str(value))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns two blanks apart, no blanks at the end of a line; a known state gets its colour."""
    sys.stdout.write("".join(f"{line}\n" for line in table_lines(header, rows)))


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """The lines of `print_table`, the header first, cut to `width` characters where that is given."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    colours = coloured()
    out = []
    for number, row in enumerate([header, *rows]):
        padded = [text.ljust(cell_width) for text, cell_width in zip(row, widths, strict=True)]
        padded[-1] = row[-1]
        styles = ["bold" if number == 0 else _MEANING.get(text, "") for text in row]
        if width is not None:
            padded = _cut(padded, width)
        if colours:
            padded = [paint(text, style) for text, style in zip(padded, styles, strict=False)]
        out.append("  ".join(padded).rstrip())
    return out


def _cut(cells: Sequence[str], width: int) -> list[str]:
    """As many cells as fit `width` with their blanks; the last of them ends in `…` when it is cut."""
    out = []
    left = width
    for text in cells:
        if left <= 0:
            break
        text = text if len(text.rstrip()) <= left else text[: left - 1] + "…"
        out.append(text)
        left -= len(text) + 2
    return out


def print_fields(fields: Mapping[str, Any]) -> None:
    """One `name  value` line per field; a list takes a line for each item."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        items = value if isinstance(value, list) and value else [value]
        for number, item in enumerate(items):
            label = (name if number == 0 else "").ljust(width)
            text = cell(item)
            sys.stdout.write(f"{paint(label, 'bold')}  {paint(text, _MEANING.get(text, ''))}\n")


def print_json(document: Any) -> None:
    """Indented, in UTF-8; still JSON, and harmless on a terminal."""
    print_json_text(json.dumps(document, indent=2, ensure_ascii=False))


def print_json_line(document: Any) -> None:
    """One line."""
    print_json_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")))


def print_json_text(text: str) -> None:
    """JSON text as it is; the control characters JSON itself allows are escaped."""
    sys.stdout.write(text.translate(_C1_ESCAPES) + "\n")


def note(text: str) -> None:
    """Say something on stderr that is no error."""
    sys.stderr.write(clean(text) + "\n")
    sys.stderr.flush()


def complain(detail: str, *lines: str) -> None:
    """`error: …` on stderr, then one indented line each for faults and hint."""
    first, *rest = "\n".join([detail, *lines]).splitlines() or [""]
    sys.stderr.write(f"{paint('error:', 'red', stream=sys.stderr)} {clean(first)}\n")
    sys.stderr.write("".join(f"  {clean(line.strip())}\n" for line in rest))
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Two units at most: `4s`, `3m12s`, `2h05m`, `9d04h`; a time ahead of us counts as now."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02}h"


def milliseconds(value: float) -> str:
    """A measured time, never shown as 0: `0.04ms`, `1.2ms`, `30.0ms`."""
    if value >= 1:
        return f"{value:.1f}ms"
    return f"{value:.2f}ms" if value >= 0.005 else "<0.01ms"


def ago(timestamp: Any, now: float) -> str:
    """How long before `now` (wall clock, in seconds) an RFC 3339 time was."""
    seconds = epoch_seconds(timestamp)
    return cell(timestamp) if seconds is None else duration(now - seconds)


def epoch_seconds(timestamp: Any) -> float | None:
    """An RFC 3339 time as seconds since 1970; None when it is none. Digits beyond microseconds are cut off."""
    if not isinstance(timestamp, str):
        return None
    whole, dot, rest = timestamp.partition(".")
    if dot:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        timestamp = f"{whole}.{rest[:digits][:6].ljust(6, '0')}{rest[digits:]}"
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return None if moment.tzinfo is None else moment.timestamp()
