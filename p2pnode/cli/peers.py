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

TABLE: Final = ("name", "role", "state", "status", "connected", "rtt_ms", "last_seen", "peer_id")
WIDE: Final = (
    "name",
    "role",
    "state",
    "status",
    "connected",
    "rtt_ms",
    "score",
    "mesh",
    "source",
    "agent_id",
    "capabilities",
    "model",
    "endpoint",
    "cluster_id",
    "tasks_completed",
    "version",
    "first_seen",
    "last_seen",
    "peer_id",
    "addrs",
)


@click.command()
@click.option("-o", "--output", "form", type=click.Choice(["table", "wide", "json", "jsonl"]), default="table")
@click.option("--state", type=click.Choice(["alive", "suspect", "dead", "left"]), multiple=True, help="Any of these.")
@click.option("--role", multiple=True, help="Any of these: chorus, whoosh, bridge, bootstrap.")
@click.option("--capability", multiple=True, help="Having all of these.")
@click.option("--topic", multiple=True, help="In this node's mesh for one of these topics.")
@click.option(
    "--sort", type=click.Choice(WIDE), metavar="COLUMN", help="By a column of `-o wide`; unknown values last."
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
    sort: str | None,
    wait: int | None,
    timeout: float | None,
    api: str | None,
    api_token_file: str | None,
) -> int:
    """Who is there, this node included: by role, name and peer id."""
    if timeout is not None and wait is None:
        raise click.UsageError("--timeout says how long --wait waits: give --wait too")

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

    if wait is None:
        known, enough = ask(ANSWER_SECONDS), True
    else:
        seconds = WAIT_SECONDS if timeout is None else timeout
        known, enough = _wait(ask, lambda members: _alive(filter(wanted, members)) >= wait, seconds)
    members = sorted(filter(wanted, known), key=_by(sort))
    if form == "json":
        output.print_json(members)
    elif form == "jsonl":
        for member in members:
            output.print_json_line(member)
    else:
        _print(members, TABLE if form == "table" else WIDE)
        if known and not members:
            output.note(f"no match among the {len(known)} members known here")
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


def _by(column: str | None) -> Callable[[Member], tuple[Any, ...]]:
    """A total order: the column first (numbers as numbers, unknown last), then role, name and peer id."""

    def key(member: Member) -> tuple[Any, ...]:
        rest = tuple(str(member.get(name) or "") for name in ("role", "name", "peer_id"))
        if column is None:
            return rest
        value = member.get(column)
        if value is None or value in ("", []):
            return (2, 0.0, "", *rest)
        if isinstance(value, (int, float)):
            return (0, float(value), "", *rest)
        return (1, 0.0, output.cell(value), *rest)

    return key


def _print(members: Sequence[Member], columns: Sequence[str]) -> None:
    brief = columns is TABLE
    now = time.time()
    header = [_HEADERS.get(column, column).upper() for column in columns]
    output.print_table(header, [[_cell(member, column, now, brief) for column in columns] for member in members])


_HEADERS: Final = {"connected": "link", "rtt_ms": "rtt", "last_seen": "seen"}


def _cell(member: Member, column: str, now: float, brief: bool) -> str:
    value = member.get(column)
    if column == "connected":
        if member.get("self"):
            return "self"
        return output.cell(member.get("direction") or value) if value else output.cell(value)
    if column == "rtt_ms" and isinstance(value, (int, float)):
        return f"{value:.1f}ms"
    if column == "last_seen" and brief:
        return output.ago(value, now)
    return output.cell(value)
