"""`agent` and `agents`: what this sidecar's agent says of itself, and the agents of the fleet."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.node import form_option
from p2pnode.cli.sidecar import connect, flags_before_subcommand, object_of, rows_of, sidecar_options
from p2pnode.local.http import quote, refusal

AGENT: Final = "/api/v1/agent"
STORE_SECONDS: Final = 30.0
FIELDS: Final = (
    "agent_id",
    "name",
    "status",
    "current_team",
    "tasks_completed",
    "capabilities",
    "model",
    "endpoint",
    "cluster_id",
    "p2p_addr",
    "last_seen",
    "peer_id",
    "backbeat",
)
TABLE: Final = ("name", "agent_id", "status", "current_team", "tasks_completed", "model", "last_seen", "capabilities")
WIDE: Final = (*FIELDS[1:2], *FIELDS[:1], *FIELDS[2:])
HEADERS: Final = {"current_team": "team", "tasks_completed": "done", "last_seen": "seen"}


@click.group(invoke_without_command=True)
@form_option
@sidecar_options
@click.pass_context
def agent(context: click.Context, form: str, api: str | None, api_token_file: str | None) -> int:
    """What all members are told of this sidecar's agent. Without a subcommand: `show`."""
    if context.invoked_subcommand is None:
        return _show(form, api, api_token_file)
    flags_before_subcommand(context)
    return 0


@agent.command()
@form_option
@sidecar_options
def show(form: str, api: str | None, api_token_file: str | None) -> int:
    """The agent's document."""
    return _show(form, api, api_token_file)


@agent.command("set")
@click.option("--status", metavar="STATUS", help="online, idle, working or draining.")
@click.option(
    "--capability",
    "capabilities",
    metavar="NAME",
    multiple=True,
    help="What it can do, in place of all before; repeatable. Once, and empty: nothing.",
)
@click.option("--model", metavar="NAME", help="The model it works with.")
@click.option("--endpoint", metavar="URL", help="Its own HTTP API, as others reach it.")
@click.option("--current-team", metavar="ID", help="The council it works in; empty: none.")
@click.option("--tasks-completed", type=click.IntRange(min=0), metavar="N", help="How many so far.")
@form_option
@sidecar_options
def set_agent(
    capabilities: Sequence[str], form: str, api: str | None, api_token_file: str | None, **members: Any
) -> int:
    """Change what is said of the agent, at once and at all members; what is not named stays."""
    changes = {name: value for name, value in members.items() if value is not None}
    if capabilities:
        changes["capabilities"] = [] if list(capabilities) == [""] else list(capabilities)
    if not changes:
        raise click.UsageError("say what to change: --status, --capability, --model, …")
    response = connect(api, api_token_file).request(
        "PATCH",
        AGENT,
        body=json.dumps(changes).encode(),
        headers={"Content-Type": "application/json"},
        timeout_seconds=STORE_SECONDS,
    )
    if response.status != 200:
        raise refusal(response)
    _print(object_of(response.json(), "the agent"), form)
    return 0


def _show(form: str, api: str | None, api_token_file: str | None) -> int:
    _print(object_of(connect(api, api_token_file).get_json(AGENT), "the agent"), form)
    return 0


def _print(document: Mapping[str, Any], form: str) -> None:
    if form == "json":
        output.print_json(document)
    else:
        output.print_fields({name: document.get(name) for name in FIELDS})


@click.command()
@click.option("--capability", metavar="NAME", help="Only those that can do this.")
@click.option("--model", metavar="NAME", help="Only those that work with this model.")
@click.option("--status", metavar="STATUS", help="Only those: online, idle, working or draining.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "wide", "json", "jsonl"]), default="table")
@sidecar_options
def agents(form: str, api: str | None, api_token_file: str | None, **filters: str | None) -> int:
    """The agents of the live members, by name."""
    wanted = "&".join(f"{name}={quote(value)}" for name, value in filters.items() if value is not None)
    path = f"/api/v1/agents?{wanted}" if wanted else "/api/v1/agents"
    rows = rows_of(connect(api, api_token_file).get_json(path), "agents")
    if form == "json":
        output.print_json(rows)
    elif form == "jsonl":
        for row in rows:
            output.print_json_line(row)
    else:
        columns, now = (TABLE if form == "table" else WIDE), time.time()
        output.print_table(
            [HEADERS.get(column, column).upper() for column in columns],
            [[_cell(row, column, now, form) for column in columns] for row in rows],
        )
    return 0


def _cell(row: Mapping[str, Any], column: str, now: float, form: str) -> str:
    value = row.get(column)
    if column == "last_seen" and form == "table":
        return output.ago(value, now)
    if column == "backbeat":
        return output.cell(value.get("state") if isinstance(value, Mapping) else value)
    return output.cell(value)
