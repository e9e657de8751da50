"""`id`, `status`, `topics`: this node, its health, what it follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.sidecar import connect, object_of, rows_of, sidecar_options
from p2pnode.local.http import refusal

form_option = click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), default="table")

ID_FIELDS: Final = (
    "peer_id",
    "name",
    "role",
    "state",
    "status",
    "multiaddrs",
    "api",
    "agent_id",
    "capabilities",
    "model",
    "endpoint",
    "cluster_id",
    "tasks_completed",
    "version",
)
TOPIC_COLUMNS: Final = ("topic", "subscribed", "peers", "mesh", "messages", "received", "published")

_READINESS: Final[Mapping[int, tuple[str, int]]] = {200: ("delivering", 0), 206: ("degraded", 1), 503: ("not-ready", 2)}
"""What `/ready` answers with, in words, and as this command's exit code."""


@click.command("id")
@form_option
@sidecar_options
def show_id(form: str, api: str | None, api_token_file: str | None) -> int:
    """This node: who it is and where it can be reached."""
    node = object_of(connect(api, api_token_file).get_json("/api/v1/node"), "itself")
    if form == "json":
        output.print_json(node)
        return 0
    fields = {name: node.get(name) for name in ID_FIELDS}
    output.print_fields({**fields, "uptime": _uptime(node)})
    return 0


@click.command()
@form_option
@sidecar_options
def status(form: str, api: str | None, api_token_file: str | None) -> int:
    """Does delivery work? Exit code 0: yes; 1: degraded; 2: not ready; 3: no sidecar answers."""
    client = connect(api, api_token_file)
    ready = client.request("GET", "/ready")
    if ready.status not in _READINESS:
        raise refusal(ready)
    readiness, code = _READINESS[ready.status]
    told = object_of(ready.json(), "its health")
    node = object_of(client.get_json("/api/v1/node"), "itself")
    listed = told.get("reasons")
    reasons = [str(reason) for reason in listed] if isinstance(listed, list) else []
    who = {name: node.get(name) for name in ("name", "role", "peer_id", "version")}
    if form == "json":
        output.print_json(
            {"readiness": readiness, "reasons": reasons, **who, "uptime_seconds": node.get("uptime_seconds")}
        )
    else:
        output.print_fields({"health": readiness, "reasons": reasons, **who, "uptime": _uptime(node)})
    return code


@click.command()
@form_option
@sidecar_options
def topics(form: str, api: str | None, api_token_file: str | None) -> int:
    """The topics this node knows, with peers, mesh and counts."""
    rows = rows_of(connect(api, api_token_file).get_json("/api/v1/topics"), "topics")
    rows.sort(key=lambda row: str(row.get("topic")))
    if form == "json":
        output.print_json(rows)
        return 0
    header = [column.upper() for column in TOPIC_COLUMNS]
    output.print_table(header, [[_count(row.get(column)) for column in TOPIC_COLUMNS] for row in rows])
    return 0


def _count(value: Any) -> str:
    """A list of peers as their number: unlike elsewhere, an empty one is a known 0."""
    return str(len(value)) if isinstance(value, list) else output.cell(value)


def _uptime(node: Mapping[str, Any]) -> str | None:
    seconds = node.get("uptime_seconds")
    return output.duration(seconds) if isinstance(seconds, (int, float)) else None
