"""`peers --watch`: the list again and again, in place on a terminal, one after the other in a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from p2pnode.cli import output
from p2pnode.cli.peers import SAME_NAME, shares_names, table
from p2pnode.cli.screen import LOOK_SECONDS, can_redraw, draw, screen, terminal_size
from p2pnode.errors import NoSidecar, Unavailable

Members = list[dict[str, Any]]

STATES: Final = ("alive", "suspect", "dead", "left")
RESTLESS: Final = frozenset({"rtt_ms", "score", "last_seen"})
"""Fields that differ at every look; what differs in nothing else has not changed."""


class Watch:
    """Shows the members until it is interrupted; a sidecar that goes away is waited for.

    Args:
        ask: every member known to the sidecar.
        chosen: those of them to show, in order.
        form: `table`, `wide`, `json` or `jsonl`.
        every: seconds between two questions.
    """

    def __init__(self, ask: Callable[[], Members], chosen: Callable[[Members], Members], form: str, every: float):
        self._ask = ask
        self._chosen = chosen
        self._form = form
        self._every = every

    def run(self) -> NoReturn:
        """Raises NoSidecar or P2PNodeError when the first question fails, KeyboardInterrupt at Ctrl-C."""
        known = self._ask()
        if self._form == "jsonl":
            self._print_changes(known)
        elif self._form == "json" or not can_redraw():
            self._print_snapshots(known)
        else:
            self._redraw(known)

    def _redraw(self, known: Members) -> NoReturn:
        trouble, answered_at = "", time.time()
        with screen():
            while True:
                due = time.monotonic() + self._every
                drawn: os.terminal_size | None = None
                while (left := due - time.monotonic()) > 0:
                    size = terminal_size()
                    if size != drawn:
                        draw(self._lines(known, answered_at, trouble, size))
                        drawn = size
                    time.sleep(min(left, LOOK_SECONDS))
                try:
                    known = self._ask()
                except (NoSidecar, Unavailable) as error:
                    trouble = error.detail.partition("\n")[0]
                else:
                    trouble, answered_at = "", time.time()

    def _lines(self, known: Members, answered_at: float, trouble: str, size: os.terminal_size) -> list[str]:
        """What fits a terminal of this size."""
        shown = self._chosen(known)
        head = [summary(shown, known, answered_at)]
        if trouble:
            age = output.duration(time.time() - answered_at)
            head.append(output.paint(f"{output.clean(trouble)}; this is {age} old"[: size.columns], "yellow"))
        head.append("")
        foot = ["", SAME_NAME] if shares_names(shown) else []
        header, *rows = output.table_lines(*table(shown, self._form), width=size.columns)
        room = max(size.lines - len(head) - 1 - len(foot), 0)
        if len(rows) > room:
            hidden = len(rows) - max(room - 1, 0)
            rows = [*rows[: max(room - 1, 0)], f"… and {hidden} more: filter, or enlarge the terminal"[: size.columns]]
        lines = [head[0][: size.columns], *head[1:], header, *rows, *(line[: size.columns] for line in foot)]
        return lines[: size.lines]

    def _print_snapshots(self, known: Members) -> NoReturn:
        first = True
        for members in self._answers(known):
            shown = self._chosen(members)
            if self._form == "json":
                output.print_json(shown)
            else:
                sys.stdout.write(f"{'' if first else chr(10)}{summary(shown, members, time.time())}\n")
                output.print_table(*table(shown, self._form))
                if shares_names(shown):
                    sys.stdout.write(f"{SAME_NAME}\n")
            sys.stdout.flush()
            first = False
        raise AssertionError("unreachable")

    def _print_changes(self, known: Members) -> NoReturn:
        before: dict[str, dict[str, Any]] | None = None
        for members in self._answers(known):
            now = {str(member.get("peer_id")): member for member in self._chosen(members)}
            newest = {str(member.get("peer_id")): member for member in members}
            for change in changes(before, now, newest):
                output.print_json_line(change)
            sys.stdout.flush()
            before = now
        raise AssertionError("unreachable")

    def _answers(self, known: Members) -> Iterator[Members]:
        """Each answer when it is due, without end; what is wrong meanwhile is told once."""
        trouble = False
        yield known
        while True:
            time.sleep(self._every)
            try:
                known = self._ask()
            except (NoSidecar, Unavailable) as error:
                if not trouble:
                    output.note(f"{error.detail}; asking on")
                trouble = True
            else:
                if trouble:
                    output.note("the sidecar answers again")
                trouble = False
                yield known


def summary(shown: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]], at: float) -> str:
    """`2026-11-23 12:00:00  34 members: 33 alive, 1 dead`: local time, then counts by state of what is shown."""
    counts = Counter(str(member.get("state")) for member in shown)
    states = [f"{counts[state]} {state}" for state in STATES if counts[state]] or ["none alive"]
    number = str(len(known)) if len(shown) == len(known) else f"{len(shown)} of {len(known)}"
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}  {number} members: {', '.join(states)}"


def changes(
    before: Mapping[str, Mapping[str, Any]] | None,
    now: Mapping[str, Mapping[str, Any]],
    newest: Mapping[str, Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Member documents with `change`, `changed` and `at`, for whom something other than RESTLESS fields differs.

    Args:
        before: who was shown the last time, by peer id; None: this is the first time.
        now: who is shown now.
        newest: everybody known now; one who no longer passes the filters is told as it is there.

    `change` is `known` (the first time), `appeared`, `changed` (which fields, `changed` says) or `gone`.
    """
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for peer, member in now.items():
        old = None if before is None else before.get(peer)
        if old is None:
            yield {**member, "change": "known" if before is None else "appeared", "changed": [], "at": at}
            continue
        fields = sorted(name for name in {*member, *old} - RESTLESS if member.get(name) != old.get(name))
        if fields:
            yield {**member, "change": "changed", "changed": fields, "at": at}
    for peer, old in (before or {}).items():
        if peer not in now:
            member = newest.get(peer, old)
            fields = sorted(name for name in {*member, *old} - RESTLESS if member.get(name) != old.get(name))
            yield {**member, "change": "gone", "changed": fields, "at": at}
