"""`bridge`: a sidecar of role bridge in the foreground; `bridge status`: how far behind NATS it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.carriers import broker_fields
from p2pnode.cli.node import form_option
from p2pnode.cli.run import TakesAgent, agent_command, start
from p2pnode.cli.settings import roleless_options
from p2pnode.cli.sidecar import connect, flags_before_subcommand, object_of, sidecar_options

LAGGING_SECONDS: Final = 10.0
"""A message waits a moment for its turn among several bridges (2 s each) and for the server's answer; not this long."""

EXPORTS: Final = ("topic", "subject", "pending", "published", "skipped", "refused", "failed")
IMPORTS: Final = (
    "subject",
    "pending",
    "unacknowledged",
    "redelivered",
    "signed",
    "plain",
    "duplicates",
    "refused",
    "durable",
)
REFUSED: Final = ("at", "subject", "reason", "detail")

_IMPORTING: Final[Mapping[str, str]] = {
    "all": "signed messages, and what plain NATS clients publish",
    "signed": "signed messages only: another bridge imports what plain NATS clients publish",
}


class _Bridge(TakesAgent, click.Group):
    """Runs a sidecar, or a subcommand."""


@click.group(
    cls=_Bridge,
    invoke_without_command=True,
    options_metavar="[OPTIONS] [-- COMMAND...]",
    subcommand_metavar="| status [...]",
)
@roleless_options
@click.pass_context
def bridge(context: click.Context, /, **flags: Any) -> int:
    """A bridge in the foreground: libp2p gossip on one side, NATS on the other. It is `run --role bridge`.

    The NATS server is named by NATS_URL or nats.url in the settings [default: nats://backbeat-nats:4222]; NATS_USER,
    NATS_PASSWORD, NATS_TOKEN, NATS_CREDS and NATS_NKEY say who we are there. `p2pnode bridge status` asks a bridge
    that runs how it stands.
    """
    if context.invoked_subcommand is None:
        return start(context, {**flags, "role": "bridge"})
    flags_before_subcommand(context)
    if agent_command(context) is not None:
        raise click.UsageError(f"{context.invoked_subcommand} runs no agent: nothing goes after `--`", context)
    return 0


@bridge.command()
@click.option(
    "--max-lag",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=LAGGING_SECONDS,
    show_default=True,
    help="From which age of the oldest waiting message the exit code is 1.",
)
@form_option
@sidecar_options
def status(max_lag: float, form: str, api: str | None, api_token_file: str | None) -> int:
    """What a bridge exports and imports, and its lag.

    Exit code 0: good; 1: not connected, lagging, another bridge with another import key, or this sidecar is no bridge;
    3: no sidecar answers.
    """
    document = object_of(connect(api, api_token_file).get_json("/api/v1/bridge"), "its bridge")
    if form == "json":
        output.print_json(document)
    else:
        _print(document)
    return 1 if troubled(document, max_lag) else 0


def troubled(document: Mapping[str, Any], max_lag: float) -> bool:
    """Is it cut off from NATS, does NATS work less well than wanted, does something wait too long, do keys differ?"""
    broker, lag = document.get("broker"), document.get("lag_seconds")
    if not isinstance(broker, Mapping) or not broker.get("connected") or broker.get("code"):
        return True
    return (isinstance(lag, (int, float)) and lag > max_lag) or bool(_strangers(document))


def _strangers(document: Mapping[str, Any]) -> list[str]:
    """Other bridges that sign for plain clients with another key: names, or peer ids."""
    ours = document.get("import_key")
    return [
        str(each.get("name") or each.get("peer_id"))
        for each in _rows(document.get("bridges"))
        if each.get("import_key") not in (None, ours)
    ]


def _print(document: Mapping[str, Any]) -> None:
    lag, beyond, importing = (document.get(name) for name in ("lag_seconds", "beyond", "importing"))
    owner = "shared: bridge.import_key_file" if document.get("shared_key") else "this bridge's own"
    fields = broker_fields(document.get("broker"))
    if "problem" not in fields and (strangers := _strangers(document)):
        verb = "signs" if len(strangers) == 1 else "sign"
        fields["problem"] = f"{', '.join(strangers)} {verb} for plain NATS clients with another key (import-keys)"
        fields["fix"] = "give all bridges at one server the same bridge.import_key_file"
    output.print_fields(
        {
            **fields,
            "lag": _lag(lag),
            "import key": f"{output.cell(document.get('import_key'))} ({owner})",
            "imports": _IMPORTING.get(str(importing), importing),
            "members beyond": len(beyond) if isinstance(beyond, list) else beyond,
        }
    )
    _table("exports", EXPORTS, document.get("exports"))
    _table("imports", IMPORTS, document.get("imports"))
    bridges = [{**each, "heard": _ago(each.get("heard_seconds_ago"))} for each in _rows(document.get("bridges"))]
    _table("other bridges", ("name", "beyond", "heard", "peer_id", "import_key"), bridges)
    _table("refused last", REFUSED, document.get("last_refused"))


def _lag(seconds: Any) -> Any:
    if not isinstance(seconds, (int, float)):
        return seconds
    return f"{seconds:.1f}s" if seconds < 60 else output.duration(seconds)


def _table(title: str, columns: Sequence[str], listed: Any) -> None:
    """A titled table; nothing when it would be empty."""
    if rows := _rows(listed):
        click.echo(f"\n{title}")
        header = [column.upper().replace("_", "-") for column in columns]
        output.print_table(header, [[output.cell(row.get(column)) for column in columns] for row in rows])


def _rows(listed: Any) -> list[Mapping[str, Any]]:
    return [row for row in listed if isinstance(row, Mapping)] if isinstance(listed, list) else []


def _ago(seconds: Any) -> Any:
    return f"{output.duration(seconds)} ago" if isinstance(seconds, (int, float)) else seconds
