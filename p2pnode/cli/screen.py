"""A terminal that is drawn in place: from the top, line by line, and given back as it was."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

from p2pnode.cli import output

LOOK_SECONDS: Final = 0.2
"""How soon a terminal of another size is drawn anew."""
ASSUMED_SIZE: Final = os.terminal_size((80, 24))
"""Of a terminal that does not tell."""

_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"
_ENTER: Final = "\x1b[?25l\x1b[?7l"
"""No cursor, and what is too wide does not wrap."""
_LEAVE: Final = "\x1b[?7h\x1b[?25h\n"


def can_redraw() -> bool:
    """Is standard output a terminal that understands where to put text?"""
    return output.for_people() and os.environ.get("TERM") != "dumb"


def draw(lines: Sequence[str]) -> None:
    """Put these lines on the terminal, in place of what stood there."""
    sys.stdout.write(_HOME + "\n".join(line + _CLEAR_LINE for line in lines) + _CLEAR_BELOW)
    sys.stdout.flush()


def terminal_size() -> os.terminal_size:
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return ASSUMED_SIZE
    return size if size.columns and size.lines else ASSUMED_SIZE


@contextmanager
def screen() -> Iterator[None]:
    """The terminal as drawing needs it, and at the end as it was, however it ends."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        sys.stdout.write(_ENTER)
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, before)
