"""`council`: create one, look at it, claim and release its roles, say where it stands."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from p2pnode.cli import council_creating as creating
from p2pnode.cli import council_view as view
from p2pnode.cli import output
from p2pnode.cli.council_asking import COUNCILS, find, id_of, listed, one, post
from p2pnode.cli.council_claiming import await_decision
from p2pnode.cli.council_watch import Goal, wait_until, watch
from p2pnode.cli.node import form_option
from p2pnode.cli.sidecar import connect, sidecar_options
from p2pnode.local.http import quote

STATUSES: Final = ("forming", "active", "completed", "failed", "expired", "cancelled")
DECISION_SECONDS: Final = 5.0
"""A role is decided within a second; an owner that is gone is replaced within a few."""

council_argument = click.argument("council_id", metavar="ID")
role_argument = click.argument("role_name", metavar="ROLE")
agent_option = click.option("--agent-id", metavar="ID", help="Another agent than the sidecar's own.")
message_option = click.option("--message", metavar="TEXT", help="Why, for people.")


@click.group()
def council() -> None:
    """Councils: an opportunity, claims for its roles, and who holds which.

    ID is a council's id or a beginning of it that no other has. Exit code 1: not found, not in time, or refused
    because of what is so already (a role that somebody holds, a council that has ended).
    """


@council.command()
@click.option("--file", "path", metavar="FILE", help="The opportunity as JSON; `-` is standard input.")
@click.option("--project", "project_name", metavar="NAME", help="What the council is for.")
@click.option("--repository", metavar="URL", help="Where the project's work is.")
@click.option("--brief", "project_brief", metavar="TEXT", help="What there is to do.")
@click.option(
    "--role",
    "core_roles",
    metavar="NAME[:skill,skill]",
    multiple=True,
    callback=creating.role,
    help="A core role, and what its holder must be able to do; repeatable.",
)
@click.option(
    "--optional-role",
    "optional_roles",
    metavar="NAME[:skill,skill]",
    multiple=True,
    callback=creating.role,
    help="A role that the council can do without; repeatable.",
)
@click.option(
    "--deadline",
    "formation_deadline",
    type=float,
    metavar="SECONDS",
    callback=creating.deadline,
    help="From now on; then it expires unless it is active. [default: the sidecar's councils.formation_seconds]",
)
@click.option("--ucxl", "ucxl_address", metavar="ADDRESS", help="ucxl://agent:role@project:task/temporal/path")
@click.option(
    "--metadata", metavar="KEY=VALUE", multiple=True, callback=creating.pairs, help="Goes with it; repeatable."
)
@click.option("--id", "council_id", metavar="UUID", help="Its id. [default: a new one]")
@click.option("--idempotency-key", metavar="KEY", help="The same key again makes no second council.")
@click.option(
    "--wait", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Until it is active; exit 1 if not."
)
@form_option
@sidecar_options
def create(
    path: str | None,
    idempotency_key: str | None,
    wait: float | None,
    form: str,
    api: str | None,
    api_token_file: str | None,
    **members: Any,
) -> int:
    """Announce a council and print its id; this sidecar decides who gets its roles.

    Flags replace members of --file. Only a trusted orchestrator's councils count.
    """
    given = {name: value for name, value in members.items() if value not in (None, [], {})}
    document = creating.opportunity(path, given)
    client = connect(api, api_token_file)
    made = post(client, COUNCILS, document, idempotency_key=idempotency_key)
    if form == "table":
        sys.stdout.write(f"{output.clean(id_of(made))}\n")
        sys.stdout.flush()
    if wait is not None:
        made = wait_until(client, Goal(id_of(made), "active", wait))
    if form == "json":
        output.print_json(made)
    return 0


@council.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only those.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "jsonl"]), default="table")
@sidecar_options
def list_councils(status: str | None, form: str, api: str | None, api_token_file: str | None) -> int:
    """The councils this sidecar knows, the newest first."""
    councils = listed(connect(api, api_token_file), status)
    if form == "json":
        output.print_json(councils)
    elif form == "jsonl":
        for each in councils:
            output.print_json_line(each)
    else:
        output.print_table(*view.table(councils))
    return 0


@council.command()
@council_argument
@click.option("--claims", "with_claims", is_flag=True, help="Who claims what, who would get it first.")
@form_option
@sidecar_options
def show(council_id: str, with_claims: bool, form: str, api: str | None, api_token_file: str | None) -> int:
    """One council: its roles, who holds them under which fencing number, how many claim them.

    A role of this sidecar's own agent bears a `*`.
    """
    client = connect(api, api_token_file)
    found = one(client, find(client, council_id))
    if form == "json":
        output.print_json(found)
        return 0
    output.print_fields(view.fields(found))
    _section(view.ROLE_HEADER, view.role_rows(found))
    if with_claims:
        _section(view.CLAIM_HEADER, view.claim_rows(found))
    if found.get("reports"):
        _section(view.REPORT_HEADER, view.report_rows(found))
    return 0


def _section(header: Sequence[str], rows: list[list[str]]) -> None:
    sys.stdout.write("\n")
    output.print_table(header, rows)


@council.command()
@council_argument
@role_argument
@agent_option
@click.option("--agent-name", metavar="NAME", help="What people call it.")
@click.option(
    "--capability", "capabilities", metavar="NAME", multiple=True, help="Instead of the agent's own; repeatable."
)
@click.option("--confidence", type=click.FloatRange(0, 1), metavar="0..1", help="Shown to people; decides nothing.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="S",
    default=DECISION_SECONDS,
    show_default=True,
    help="Until somebody has the role; 0: only claim it.",
)
@form_option
@sidecar_options
def claim(
    council_id: str,
    role_name: str,
    capabilities: Sequence[str],
    wait: float,
    form: str,
    api: str | None,
    api_token_file: str | None,
    **members: Any,
) -> int:
    """Claim a role for the agent of this sidecar. Exit code 0: it is ours; 1: somebody else's, or not decided yet."""
    client = connect(api, api_token_file)
    found = find(client, council_id)
    document = {"role_name": role_name, **{name: value for name, value in members.items() if value is not None}}
    if capabilities:
        document["capabilities"] = list(capabilities)
    made = post(client, _path(found, "claims"), document)
    if not wait:
        _print_made(made, form)
        return 0
    held = await_decision(client, found, made, wait)
    if form == "json":
        output.print_json(held)
    else:
        sys.stdout.write(f"{output.cell(held.get('role_name'))}: {view.holder(held)}\n")
    return 0


@council.command()
@council_argument
@role_argument
@agent_option
@click.option("--reason", metavar="TEXT", help="Why, for people.")
@form_option
@sidecar_options
def release(
    council_id: str, role_name: str, form: str, api: str | None, api_token_file: str | None, **members: Any
) -> int:
    """Give a role back, or take back the claim for it; print the message id."""
    document = {"role_name": role_name, **{name: value for name, value in members.items() if value is not None}}
    return _say(council_id, "release", document, form, api, api_token_file)


_FENCE: Final = re.compile(r"([1-9][0-9]{0,15})\.([1-9][0-9]{0,15})")


def _fence(_context: click.Context, _option: click.Parameter, given: str | None) -> dict[str, int]:
    if given is None:
        return {}
    match = _FENCE.fullmatch(given)
    if match is None:
        raise click.BadParameter(f"{given!r} is not TERM.N, such as 1.3; `council show` has it for each role")
    return {"term": int(match[1]), "n": int(match[2])}


@council.command("status")
@council_argument
@click.argument("status", metavar="STATUS", type=click.Choice(STATUSES))
@message_option
@click.option("--role", "role_name", metavar="ROLE", help="The role that the agent speaks for.")
@agent_option
@click.option("--fence", metavar="TERM.N", callback=_fence, help="Refuse it unless the role is held under this number.")
@form_option
@sidecar_options
def report(
    council_id: str, fence: dict[str, int], form: str, api: str | None, api_token_file: str | None, **members: Any
) -> int:
    """Say where a council stands; print the message id.

    STATUS of an orchestrator (completed, failed, cancelled) ends it. Who holds a role reports on it: when all core
    roles report completed, the council is.
    """
    document = {**{name: value for name, value in members.items() if value is not None}, **fence}
    return _say(council_id, "status", document, form, api, api_token_file)


@council.command()
@council_argument
@message_option
@form_option
@sidecar_options
def cancel(council_id: str, message: str | None, form: str, api: str | None, api_token_file: str | None) -> int:
    """End a council for good: short for `council status ID cancelled`."""
    document = {"status": "cancelled"} if message is None else {"status": "cancelled", "message": message}
    return _say(council_id, "status", document, form, api, api_token_file)


@council.command("watch")
@click.argument("council_id", metavar="[ID]", required=False)
@click.option(
    "--until", type=click.Choice(["active", "ended"]), help="When to end by itself. [default: ended, with ID]"
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="How long it may take, in seconds; exit 1 when it takes longer. [default: for ever]",
)
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "jsonl"]), default="table")
@sidecar_options
def watch_council(
    council_id: str | None,
    until: str | None,
    timeout: float | None,
    form: str,
    api: str | None,
    api_token_file: str | None,
) -> int:
    """A council as it forms, role by role; without ID all councils, until Ctrl-C.

    On a terminal it is redrawn in place; in a pipe each change is a line. With json and jsonl: the whole document at
    each change. Exit code 0: the council is where --until says, else 1.
    """
    if council_id is None and (until is not None or timeout is not None):
        raise click.UsageError("--until and --timeout are about one council: give its ID")
    client = connect(api, api_token_file)
    found = None if council_id is None else find(client, council_id)
    return watch(client, Goal(found, until or "ended", timeout), form)


def _say(
    council_id: str, what: str, document: dict[str, Any], form: str, api: str | None, api_token_file: str | None
) -> int:
    client = connect(api, api_token_file)
    _print_made(post(client, _path(find(client, council_id), what), document), form)
    return 0


def _print_made(made: dict[str, Any], form: str) -> None:
    if form == "json":
        output.print_json(made)
    else:
        sys.stdout.write(f"{output.clean(str(made.get('id')))}\n")


def _path(council_id: str, what: str) -> str:
    return f"{COUNCILS}/{quote(council_id)}/{what}"
