"""`council watch`: a council as it forms, redrawn in place on a terminal, a line for each change in a pipe."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from p2pnode.cli import output
from p2pnode.cli.council_asking import OutOfTime, follow, id_of
from p2pnode.cli.council_view import (
    ENDED,
    REACHED,
    ROLE_HEADER,
    changes,
    fence,
    headline,
    role_rows,
    table,
)
from p2pnode.cli.screen import LOOK_SECONDS, can_redraw, draw, screen, terminal_size
from p2pnode.errors import Degraded
from p2pnode.local.http import Client

FIRST_SECONDS: Final = 2.0
"""How long a sidecar that knows no council yet is waited for before the terminal is drawn."""
TICK_SECONDS: Final = 1.0
"""How often a terminal is drawn anew because time goes on."""
READ_AHEAD: Final = 64
"""Documents read and not yet shown; above it the connection waits, and the sidecar keeps the newest only."""
REMEMBERED_LINES: Final = 200
REMEMBERED_COUNCILS: Final = 2000
"""As many as a sidecar keeps; above it the one that changed the longest ago is forgotten."""


@dataclass(frozen=True, slots=True)
class Goal:
    """When a watch ends by itself.

    Args:
        council_id: the one that is watched; None: all of them, for ever.
        until: `active`, or `ended`.
        seconds: how long it is waited for; None: for ever.
    """

    council_id: str | None
    until: str = "ended"
    seconds: float | None = None

    def is_settled(self, council: dict[str, Any]) -> bool:
        """Is it reached, or can it no longer be?"""
        status = council.get("status")
        return self.council_id is not None and (status in ENDED or (self.until == "active" and status in REACHED))

    def is_reached(self, council: dict[str, Any]) -> bool:
        """Raises Degraded when it can no longer be."""
        status = council.get("status")
        if self.council_id is None:
            return False
        if self.until == "active" and status in ENDED - REACHED:
            message = f": {council['message']}" if council.get("message") else ""
            raise Degraded(f"council {id_of(council)} is {status}{message}")
        return status in (REACHED if self.until == "active" else ENDED)

    def missed(self, council: dict[str, Any] | None) -> Degraded:
        """What to say when the time is up."""
        status = council.get("status") if council else "not known"
        missing = output.cell((council or {}).get("missing"))
        return Degraded(
            f"council {self.council_id} is {status} after {self.seconds:g} s, not {self.until}",
            hint=f"not accepted yet: {missing}" if status == "forming" and missing != output.UNKNOWN else "",
        )


def wait_until(client: Client, goal: Goal, tell: Callable[[str], None] = output.note) -> dict[str, Any]:
    """The council document once the goal is reached.

    Raises:
        Degraded: it is not in time, or can no longer be.
        P2PNodeError: as `follow`.
    """
    last = None
    try:
        for last in follow(client, goal.council_id, _in_words(tell), deadline=_deadline(goal)):
            if goal.is_reached(last):
                return last
    except OutOfTime:
        pass
    raise goal.missed(last) from None


def watch(client: Client, goal: Goal, form: str) -> int:
    """Show councils until the goal is reached; `form` is `table`, `json` or `jsonl`. Raises as `wait_until`."""
    if form == "table" and can_redraw():
        return _Screen(client, goal).run()
    known: dict[str, dict[str, Any]] = {}
    try:
        for council in follow(client, goal.council_id, _in_words(output.note), deadline=_deadline(goal)):
            before = known.get(id_of(council))
            _remember(known, council)
            _print(before, council, form, named=goal.council_id is None)
            sys.stdout.flush()
            if goal.is_reached(council):
                return 0
    except OutOfTime:
        pass
    raise goal.missed(known.get(goal.council_id or "")) from None


def _print(before: dict[str, Any] | None, council: dict[str, Any], form: str, *, named: bool) -> None:
    if form == "json":
        output.print_json(council)
    elif form == "jsonl":
        output.print_json_line(council)
    else:
        for line in _told(before, council, named=named):
            sys.stdout.write(f"{line}\n")


def _told(before: dict[str, Any] | None, council: dict[str, Any], *, named: bool) -> Iterator[str]:
    """The changes with the local time of day; `named`: and whose they are."""
    at = time.strftime("%H:%M:%S")
    whose = f"{output.clean(id_of(council)[:8])}  " if named else ""
    for change in changes(before, council):
        yield f"{at}  {whose}{change}"


def _remember(known: dict[str, dict[str, Any]], council: dict[str, Any]) -> None:
    """The latest last; bounded."""
    known.pop(id_of(council), None)
    known[id_of(council)] = council
    if len(known) > REMEMBERED_COUNCILS:
        del known[next(iter(known))]


def _deadline(goal: Goal) -> float | None:
    return None if goal.seconds is None else time.monotonic() + goal.seconds


def _in_words(tell: Callable[[str], None]) -> Callable[[str], None]:
    return lambda why: tell(f"{why}; reconnecting" if why else "reconnected")


@dataclass(frozen=True, slots=True)
class _Trouble:
    """The connection broke, or, with an empty text, it stands again."""

    text: str


class _Screen:
    """A terminal, fed by a thread that reads the stream: so time goes on and sizes change while nothing comes."""

    def __init__(self, client: Client, goal: Goal) -> None:
        self._client = client
        self._goal = goal
        self._news: queue.Queue[dict[str, Any] | _Trouble | Exception] = queue.Queue(READ_AHEAD)
        self._known: dict[str, dict[str, Any]] = {}
        self._lines: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self._trouble = ""

    def run(self) -> int:
        threading.Thread(target=self._read, daemon=True).start()
        with suppress(queue.Empty):  # before the terminal is touched: a refusal is an ordinary error
            self._take(self._news.get(timeout=FIRST_SECONDS))
        with screen():
            while True:
                size = terminal_size()
                draw(self._frame(size))
                if self._is_over():
                    return 0
                self._wait(size)

    def _wait(self, drawn: os.terminal_size) -> None:
        """Return when there is a reason to draw anew."""
        due = time.monotonic() + TICK_SECONDS
        while time.monotonic() < due and terminal_size() == drawn:
            try:
                self._take(self._news.get(timeout=LOOK_SECONDS))
            except queue.Empty:
                continue
            while not self._news.empty():
                self._take(self._news.get())
            return

    def _read(self) -> None:
        try:
            for council in follow(
                self._client,
                self._goal.council_id,
                lambda why: self._news.put(_Trouble(why)),
                deadline=_deadline(self._goal),
            ):
                self._news.put(council)
                if self._goal.is_settled(council):
                    return
        except Exception as error:  # the main thread raises it
            self._news.put(error)

    def _take(self, news: dict[str, Any] | _Trouble | Exception) -> None:
        if isinstance(news, OutOfTime):
            raise self._goal.missed(self._known.get(self._goal.council_id or ""))
        if isinstance(news, Exception):
            raise news
        if isinstance(news, _Trouble):
            self._trouble = news.text
            return
        before = self._known.get(id_of(news))
        _remember(self._known, news)
        self._lines.extend(_told(before, news, named=self._goal.council_id is None))

    def _is_over(self) -> bool:
        council = self._known.get(self._goal.council_id or "")
        return council is not None and self._goal.is_reached(council)

    def _frame(self, size: os.terminal_size) -> list[str]:
        """What fits a terminal of this size: the table first, the latest changes in what room is left."""
        now = time.time()
        councils = list(reversed(self._known.values()))
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        if self._goal.council_id is None:
            head = [f"{at}  {len(councils)} councils"]
            header, rows = table(councils)
        else:
            council = self._known.get(self._goal.council_id) or {"council_id": self._goal.council_id}
            owner = output.cell(council.get("owner_name") or council.get("owner"))
            head = [f"{at}  {headline(council, now)}"]
            head.append(f"{output.cell(id_of(council))}  decided by {owner}, decision {fence(council)}")
            if council.get("message"):
                head.append(output.clean(str(council["message"])))
            header, rows = list(ROLE_HEADER), role_rows(council)
        head = [line[: size.columns] for line in head]
        if self._trouble:
            head.append(output.paint(f"{output.clean(self._trouble)}; reconnecting"[: size.columns], "yellow"))
        first, *lines = output.table_lines(header, rows, width=size.columns)
        room = max(size.lines - len(head) - 2, 0)
        if len(lines) > room:
            hidden = len(lines) - max(room - 1, 0)
            lines = [*lines[: max(room - 1, 0)], f"… and {hidden} more: enlarge the terminal"[: size.columns]]
        room -= len(lines) + 1
        latest = [line[: size.columns] for line in list(self._lines)[-room:]] if room > 0 else []
        return [*head, "", first, *lines, *(["", *latest] if latest else [])][: size.lines]
