"""`deliveries`: what waits for the agent, what was given up, and what is to become of that."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.node import form_option
from p2pnode.cli.sidecar import connect, flags_before_subcommand, object_of, rows_of, sidecar_options
from p2pnode.errors import CallerError
from p2pnode.local.http import quote, refusal

LISTED: Final = 1000
"""As many failed deliveries as the sidecar lists at a time."""


@click.group(invoke_without_command=True)
@form_option
@sidecar_options
@click.pass_context
def deliveries(context: click.Context, form: str, api: str | None, api_token_file: str | None) -> int:
    """What waits for the agent, and what was given up. Without a subcommand: `pending`."""
    if context.invoked_subcommand is None:
        return show_pending(form, api, api_token_file)
    flags_before_subcommand(context)
    return 0


@deliveries.command()
@form_option
@sidecar_options
def pending(form: str, api: str | None, api_token_file: str | None) -> int:
    """By subscription: how much waits, since when, and what went wrong last. Exit code 1 when a webhook is stuck."""
    return show_pending(form, api, api_token_file)


def show_pending(form: str, api: str | None, api_token_file: str | None) -> int:
    """Print what waits; 1 when the agent of a webhook does not take messages."""
    rows = rows_of(connect(api, api_token_file).get_json("/api/v1/deliveries"), "deliveries")
    if form == "json":
        output.print_json(rows)
    else:
        header = [
            "SUBSCRIPTION",
            "STATE",
            "PENDING",
            "OLDEST",
            "IN-FLIGHT",
            "FAILED",
            "DELIVERED",
            "NEXT",
            "LAST-ERROR",
        ]
        output.print_table(header, [_pending_cells(row) for row in rows])
    return 1 if any(row.get("state") == "waiting" for row in rows) else 0


def _pending_cells(row: dict[str, Any]) -> list[str]:
    return [
        output.cell(row.get("subscription")),
        output.cell(row.get("state")),
        output.cell(row.get("pending")),
        _duration(row.get("oldest_pending_seconds")),
        output.cell(row.get("in_flight")),
        output.cell(row.get("failed")),
        output.cell(row.get("delivered")),
        _duration(row.get("retry_in_seconds")),
        output.cell(row.get("last_error")),
    ]


def _duration(seconds: Any) -> str:
    return output.duration(seconds) if isinstance(seconds, (int, float)) else output.UNKNOWN


subscription_option = click.option("--subscription", metavar="NAME", help="Only this one. [default: all]")


@deliveries.command()
@subscription_option
@form_option
@sidecar_options
def failed(subscription: str | None, form: str, api: str | None, api_token_file: str | None) -> int:
    """What was given up, the oldest first: at most 1,000 at a time."""
    path = f"/api/v1/deliveries/failed?limit={LISTED}"
    if subscription is not None:
        path += f"&subscription={quote(subscription)}"
    rows = rows_of(connect(api, api_token_file).get_json(path), "failed deliveries")
    if form == "json":
        output.print_json(rows)
        return 0
    columns = ("subscription", "id", "topic", "attempts", "at", "retrying", "error")
    output.print_table(
        [column.upper() for column in columns], [[output.cell(row.get(column)) for column in columns] for row in rows]
    )
    if len(rows) == LISTED:
        output.note(f"the oldest {LISTED} are listed; retry or drop some to see more")
    return 0


@deliveries.command()
@click.argument("message_id", metavar="ID", required=False)
@click.option("--all", "every", is_flag=True, help="All that were given up.")
@subscription_option
@sidecar_options
def retry(
    message_id: str | None, every: bool, subscription: str | None, api: str | None, api_token_file: str | None
) -> int:
    """Try a failed delivery again, or --all of them."""
    return _settle("retry", "retried", message_id, every, subscription, api, api_token_file)


@deliveries.command()
@click.argument("message_id", metavar="ID", required=False)
@click.option("--all", "every", is_flag=True, help="All that were given up.")
@subscription_option
@sidecar_options
def drop(
    message_id: str | None, every: bool, subscription: str | None, api: str | None, api_token_file: str | None
) -> int:
    """Forget a failed delivery, or --all of them. The messages themselves stay stored."""
    return _settle("drop", "dropped", message_id, every, subscription, api, api_token_file)


def _settle(
    what: str,
    done: str,
    message_id: str | None,
    every: bool,
    subscription: str | None,
    api: str | None,
    api_token_file: str | None,
) -> int:
    if (message_id is None) is not every:
        raise CallerError(
            "which delivery is meant?", hint=f"`p2pnode deliveries {what} ID`, or --all; `deliveries failed` lists them"
        )
    chosen: dict[str, Any] = {"all": True} if every else {"id": message_id}
    if subscription is not None:
        chosen["subscription"] = subscription
    response = connect(api, api_token_file).request(
        "POST",
        f"/api/v1/deliveries/{what}",
        body=json.dumps(chosen).encode(),
        headers={"Content-Type": "application/json"},
    )
    if response.status != 200:
        raise refusal(response)
    click.echo(f"{done}: {output.cell(object_of(response.json(), 'deliveries').get(done))}")
    return 0
