"""`carriers`: which roads this node's own messages take, and how to change that while it runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.node import form_option
from p2pnode.cli.sidecar import connect, flags_before_subcommand, object_of, sidecar_options
from p2pnode.errors import Fault, InvalidRequest
from p2pnode.local.http import refusal

CARRIERS: Final = "/api/v1/carriers"
ROADS: Final = ("gossip", "nats", "http")
USES: Final = ("off", "fallback", "always")
ROLLBACKS: Final = ("nats", "http", "off")
HEADER: Final = ("ROAD", "USE", "CONFIGURED", "STATE", "MESSAGES", "WHY")

_CANARY: Final = "canary_percent"
_KEYS: Final = (*ROADS, "canary", "rollback")
_EXAMPLE: Final = "write KEY=VALUE, such as rollback=nats"


@click.group(invoke_without_command=True)
@form_option
@sidecar_options
@click.pass_context
def carriers(context: click.Context, form: str, api: str | None, api_token_file: str | None) -> int:
    """Which roads own messages take: gossip, NATS, HTTP. Without a subcommand: `show`."""
    if context.invoked_subcommand is None:
        return _show(form, api, api_token_file)
    flags_before_subcommand(context)
    return 0


@carriers.command()
@form_option
@sidecar_options
def show(form: str, api: str | None, api_token_file: str | None) -> int:
    """Each road: what is in force, what is configured, how it stands. Exit code 0: as wanted; 1: degraded."""
    return _show(form, api, api_token_file)


@carriers.command("set")
@click.argument("changes", metavar="KEY=VALUE...", nargs=-1, required=True)
@form_option
@sidecar_options
def set_carriers(changes: Sequence[str], form: str, api: str | None, api_token_file: str | None) -> int:
    """Change roads, at once and until this sidecar's next start; what is not named stays.

    \b
    gossip=USE  nats=USE  http=USE   USE: off, fallback or always
    canary=PERCENT                   share of councils that goes by gossip, 0 to 100
    rollback=ROAD                    nats or http: own messages take that road and no other; off: no rollback

    It changes the sidecar that is asked, and no other.
    """
    wanted = read_changes(changes)
    response = connect(api, api_token_file).request(
        "PATCH", CARRIERS, body=json.dumps(wanted).encode(), headers={"Content-Type": "application/json"}
    )
    if response.status != 200:
        raise refusal(response)
    _print(object_of(response.json(), "its roads"), form)
    output.note("this holds until the next start of this sidecar; to make it last: " + "; ".join(lasting(wanted)))
    return 0


def read_changes(words: Sequence[str]) -> dict[str, Any]:
    """What to send, of `KEY=VALUE` words.

    Raises:
        InvalidRequest: with a fault for each word that is wrong, which says what is right.
    """
    changes: dict[str, Any] = {}
    faults = []
    for word in words:
        key, equals, value = (part.strip() for part in word.partition("="))
        name = _CANARY if key == "canary" else key
        try:
            if not equals:
                raise ValueError(f"has no value: {_EXAMPLE}")
            read = _value(name, value)
            if name in changes:
                raise ValueError("is given twice")
            changes[name] = read
        except ValueError as error:
            faults.append(Fault(key or word, str(error)))
    if faults:
        raise InvalidRequest("the roads cannot be set like this; nothing was changed", faults)
    return changes


def _value(name: str, text: str) -> str | float | None:
    """Raises ValueError with what would be right."""
    if name in ROADS:
        return _one_of(text, USES)
    if name == "rollback":
        word = _one_of(text, ROLLBACKS)
        return None if word == "off" else word
    if name == _CANARY:
        try:
            percent = float(text.removesuffix("%"))
        except ValueError:
            percent = math.nan
        if not 0 <= percent <= 100:
            raise ValueError(f"{text!r} is no number from 0 to 100")
        return percent
    raise ValueError(f"there is no such key{_meant(name, (*_KEYS, _CANARY))}; there are {', '.join(_KEYS)}")


def _one_of(text: str, words: Sequence[str]) -> str:
    if text not in words:
        raise ValueError(f"must be one of {', '.join(words)}, not {text!r}{_meant(text, words)}")
    return text


def _meant(word: str, candidates: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word.lower(), candidates, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def lasting(changes: Mapping[str, Any]) -> list[str]:
    """How each change is made to outlive the process: the variable for its next start."""
    words = []
    for name, value in changes.items():
        variable = "P2PNODE_ROLLBACK" if name == "rollback" else f"P2PNODE_CARRIERS_{name.upper()}"
        if value is None:
            words.append(f"start it without {variable} and carriers.rollback")
        else:
            words.append(f"{variable}={value:g}" if isinstance(value, float) else f"{variable}={value}")
    return words


def _show(form: str, api: str | None, api_token_file: str | None) -> int:
    document = object_of(connect(api, api_token_file).get_json(CARRIERS), "its roads")
    _print(document, form)
    return 1 if document.get("degraded") else 0


def _print(document: Mapping[str, Any], form: str) -> None:
    if form == "json":
        output.print_json(document)
        return
    roads = {name: document.get(name) for name in ROADS}
    nats = roads["nats"]
    if isinstance(nats, Mapping) and not document.get("broker") and nats.get("use") == "off" and not nats.get("why"):
        roads["nats"] = {**nats, "why": "nats.url is not set"}
    output.print_table(
        HEADER,
        [
            [name, *(output.cell(road.get(key)) for key in ("use", "configured", "state", "messages", "why"))]
            for name, road in roads.items()
            if isinstance(road, Mapping)
        ],
    )
    click.echo()
    percent, old_road = document.get(_CANARY), document.get("old_road") or "no other road"
    share = f"{percent:g}" if isinstance(percent, (int, float)) else output.cell(percent)
    canary = f"{share} % of councils by gossip, the others by {old_road}"
    if document.get("rollback"):
        canary = f"{share} %, not in force during the rollback"
    fields: dict[str, Any] = {
        "rollback": document.get("rollback") or "off",
        "canary": canary,
        "waiting": document.get("waiting"),
        **broker_fields(document.get("broker")),
        "http listener": document.get("listen"),
        "changed live": document.get("changed_at") or "no",
    }
    output.print_fields(fields)


def broker_fields(broker: Any) -> dict[str, Any]:
    """How the connection to NATS stands, in words; a node without NATS says so."""
    if not isinstance(broker, Mapping):
        return {"nats": "not configured (nats.url)"}
    state = "connected" if broker.get("connected") else "not connected"
    streams = {True: ", JetStream", False: ", no JetStream"}.get(broker.get("jetstream"), "")  # type: ignore[arg-type]
    fields: dict[str, Any] = {"nats": f"{output.cell(broker.get('server'))}: {state}{streams}"}
    if broker.get("code"):
        fields["problem"] = f"{broker.get('problem')} ({broker.get('code')})"
        fields["fix"] = broker.get("fix")
    return fields
