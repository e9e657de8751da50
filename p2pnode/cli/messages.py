"""`messages`: what is stored of a topic, in order of arrival here."""

from __future__ import annotations

from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.sidecar import connect, rows_of, sidecar_options
from p2pnode.cli.sub import payload_text
from p2pnode.local.http import quote

SHOWN_CHARACTERS: Final = 60
"""Of a payload, in a table."""

LIST_SECONDS: Final = 30.0
"""1,000 of the largest messages take a while."""


@click.command()
@click.argument("topic")
@click.option("--after", metavar="ID", help="Those that came after this message. [default: from the oldest]")
@click.option("--limit", type=click.IntRange(1, 1000), metavar="N", default=100, show_default=True, help="At most N.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "jsonl"]), default="table")
@sidecar_options
def messages(topic: str, after: str | None, limit: int, form: str, api: str | None, api_token_file: str | None) -> int:
    """The messages of TOPIC that this sidecar keeps."""
    path = f"/api/v1/topics/{quote(topic)}/messages?limit={limit}"
    if after is not None:
        path += f"&after={quote(after)}"
    rows = rows_of(connect(api, api_token_file).get_json(path, timeout_seconds=LIST_SECONDS), "messages")
    if form == "json":
        output.print_json(rows)
    elif form == "jsonl":
        for row in rows:
            output.print_json_line(row)
    else:
        header = ["ID", "RECEIVED", "ORIGIN", "CARRIER", "LATE", "PAYLOAD"]
        output.print_table(header, [_cells(row) for row in rows])
        if len(rows) == limit:
            output.note(f"there may be more: --after {rows[-1].get('id')}")
    return 0


def _cells(row: dict[str, Any]) -> list[str]:
    text = payload_text(row)
    return [
        output.cell(row.get("id")),
        output.cell(row.get("received_at")),
        output.cell(row.get("origin_name") or row.get("origin")),
        output.cell(row.get("carrier")),
        output.cell(row.get("late")),
        text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…",
    ]
