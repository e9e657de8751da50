"""`peers`: who is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.sidecar import connect, rows_of, sidecar_options
from p2pnode.errors import Degraded, NoSidecar
from p2pnode.local.http import ANSWER_SECONDS

Member = Mapping[str, Any]

WAIT_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.2
WATCH_SECONDS: Final = 2.0
LEAST_WATCH_SECONDS: Final = 0.1

TABLE: Final = ("name", "role", "state", "status", "connected", "rtt_ms", "last_seen", "peer_id")
WIDE: Final = (
    "name",
    "role",
    "state",
    "status",
    "connected",
    "bridged",
    "rtt_ms",
    "score",
    "mesh",
    "source",
    "agent_id",
    "capabilities",
    "model",
    "endpoint",
    "carrier",
    "cluster_id",
    "tasks_completed",
    "version",
    "first_seen",
    "last_seen",
    "peer_id",
    "addrs",
)
HEADERS: Final = {"connected": "link", "rtt_ms": "rtt", "last_seen": "seen"}
"""What a column is called above the table, where not by its name in the document."""

SAME_NAME: Final = "* another live member has this name too: only the peer id tells them apart"


def _column(_context: click.Context, _option: click.Parameter, given: str | None) -> tuple[str, bool] | None:
    """A column by the name in the document or above the table, and whether it descends."""
    if given is None:
        return None
    descending = given.startswith("-")
    wanted = given.removeprefix("-").lower()
    for column in WIDE:
        if wanted in (column, HEADERS.get(column)):
            return column, descending
    raise click.BadParameter(f"{given!r} is no column; the columns are {', '.join(WIDE)}, or -COLUMN for descending")


@click.command()
@click.option("-o", "--output", "form", type=click.Choice(["table", "wide", "json", "jsonl"]), default="table")
@click.option("--state", type=click.Choice(["alive", "suspect", "dead", "left"]), multiple=True, help="Any of these.")
@click.option("--role", multiple=True, help="Any of these: chorus, whoosh, bridge, bootstrap.")
@click.option("--capability", multiple=True, help="Having all of these.")
@click.option(
    "--topic", multiple=True, help="In this node's mesh for one of these topics (`mesh --topic` asks the whole fleet)."
)
@click.option(
    "--sort",
    callback=_column,
    metavar="[-]COLUMN",
    help="By a column of `-o wide`, with - descending; unknown values last in both.",
)
@click.option(
    "--watch",
    type=click.FloatRange(min=LEAST_WATCH_SECONDS),
    is_flag=False,
    flag_value=WATCH_SECONDS,
    default=None,
    metavar="[SECONDS]",
    help=f"Ask again every SECONDS (default {WATCH_SECONDS:g}): redraws on a terminal, prints each time in a pipe; "
    "with `-o jsonl` a line for each change.",
)
@click.option("--wait", type=click.IntRange(min=1), metavar="N", help="Wait until at least N are alive; exit 1 if not.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="S",
    help=f"How long --wait waits, in seconds (default {WAIT_SECONDS:g}).",
)
@sidecar_options
def peers(
    form: str,
    state: Sequence[str],
    role: Sequence[str],
    capability: Sequence[str],
    topic: Sequence[str],
    sort: tuple[str, bool] | None,
    watch: float | None,
    wait: int | None,
    timeout: float | None,
    api: str | None,
    api_token_file: str | None,
) -> int:
    """Who is there, this node included: by role, name and peer id.

    A filter given several times takes members that meet any of its values (--capability: all of them); filters of
    different kinds narrow each other.
    """
    if timeout is not None and wait is None:
        raise click.UsageError("--timeout says how long --wait waits: give --wait too")
    if watch is not None and wait is not None:
        raise click.UsageError("--watch goes on until Ctrl-C, --wait ends by itself: give one of them")

    def wanted(member: Member) -> bool:
        return (
            (not state or member.get("state") in state)
            and (not role or member.get("role") in role)
            and set(capability) <= set(member.get("capabilities") or ())
            and (not topic or not set(topic).isdisjoint(member.get("mesh") or ()))
        )

    def ask(seconds: float) -> list[dict[str, Any]]:
        client = connect(api, api_token_file)
        return rows_of(client.get_json("/api/v1/peers", timeout_seconds=seconds), "peers")

    def chosen(known: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return in_order(filter(wanted, known), sort)

    if watch is not None:
        from p2pnode.cli.watch import Watch

        return Watch(lambda: ask(ANSWER_SECONDS), chosen, form, watch).run()
    if wait is None:
        known, enough = ask(ANSWER_SECONDS), True
    else:
        seconds = WAIT_SECONDS if timeout is None else timeout
        known, enough = _wait(ask, lambda members: _alive(filter(wanted, members)) >= wait, seconds)
    members = chosen(known)
    if form == "json":
        output.print_json(members)
    elif form == "jsonl":
        for member in members:
            output.print_json_line(member)
    else:
        output.print_table(*table(members, form))
        if known and not members:
            output.note(f"no match among the {len(known)} members known here")
        if shares_names(members):
            output.note(SAME_NAME)
    if not enough:
        raise Degraded(f"{_alive(members)} alive after {seconds:g} s, not {wait}")
    return 0


def _alive(members: Any) -> int:
    return sum(member.get("state") == "alive" for member in members)


def _wait(
    ask: Callable[[float], list[dict[str, Any]]], enough: Callable[[list[dict[str, Any]]], bool], seconds: float
) -> tuple[list[dict[str, Any]], bool]:
    """Ask until it is enough or the time is up; the last answer, and whether it was enough.

    A sidecar that does not answer yet is waited for like members that are not there yet.

    Raises:
        NoSidecar: none answered the last time either.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            members = ask(min(max(left, 1.0), ANSWER_SECONDS))
        except NoSidecar:
            if left <= 0:
                raise
        else:
            if enough(members):
                return members, True
            if left <= 0:
                return members, False
        time.sleep(max(min(POLL_SECONDS, deadline - time.monotonic()), 0.0))


def in_order(members: Any, sort: tuple[str, bool] | None) -> list[dict[str, Any]]:
    """By a column and whether it descends, members of equal value by role, name and peer id; unknown values last."""
    ordered = sorted(members, key=lambda member: [str(member.get(name) or "") for name in ("role", "name", "peer_id")])
    if sort is None:
        return ordered
    column, descending = sort
    known = [member for member in ordered if member.get(column) not in (None, "", [])]
    known.sort(key=lambda member: _value(member, column), reverse=descending)
    return known + [member for member in ordered if member.get(column) in (None, "", [])]


def _value(member: Member, column: str) -> tuple[bool, float, str]:
    """Numbers as numbers, and before texts."""
    value = member[column]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return False, float(value), ""
    return True, 0.0, _cell(member, column, 0.0, False) if column == "connected" else output.cell(value)


def table(members: Sequence[Member], form: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the form `table` or `wide`."""
    brief = form == "table"
    columns = TABLE if brief else WIDE
    now = time.time()
    header = [HEADERS.get(column, column).upper() for column in columns]
    return header, [[_cell(member, column, now, brief) for column in columns] for member in members]


def shares_names(members: Sequence[Member]) -> bool:
    return any(member.get("same_name") for member in members)


def _cell(member: Member, column: str, now: float, brief: bool) -> str:
    value = member.get(column)
    if column == "name" and member.get("same_name"):
        return f"{output.cell(value)}*"
    if column == "connected":
        if member.get("self"):
            return "self"
        return output.cell(member.get("direction") or value) if value else output.cell(value)
    if column == "rtt_ms" and isinstance(value, (int, float)):
        return output.milliseconds(value)
    if column == "last_seen" and brief:
        return output.ago(value, now)
    return output.cell(value)
