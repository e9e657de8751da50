"""Which sidecar a command asks: the one named, or the only one of this user."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from p2pnode.errors import CallerError, InvalidRequest, NoSidecar
from p2pnode.local.address import ApiListener, parse_api_address
from p2pnode.local.http import Client

if TYPE_CHECKING:
    from p2pnode.paths import Entry


def sidecar_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command `--api` and `--api-token-file`."""
    for option in (
        click.option(
            "--api-token-file",
            metavar="FILE",
            envvar="P2PNODE_API_TOKEN_FILE",
            help="Bearer token of a TCP listener. [env: P2PNODE_API_TOKEN_FILE]",
        ),
        click.option(
            "--api",
            metavar="ADDR",
            envvar="P2PNODE_API",
            help="The sidecar to ask: unix:PATH or tcp:HOST:PORT. [env: P2PNODE_API; default: the only one running]",
        ),
    ):
        command = option(command)
    return command


def flags_before_subcommand(context: click.Context) -> None:
    """Refuse flags that stand before a group's subcommand, where they would do nothing.

    Raises:
        click.UsageError: some were given.
    """
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if not given:
        return
    name = context.invoked_subcommand or ""
    command = context.command.get_command(context, name) if isinstance(context.command, click.Group) else None
    known = {flag for parameter in command.params for flag in parameter.opts} if command else set[str]()
    if foreign := [flag for flag in given if flag not in known]:
        raise click.UsageError(f"{name} does not know {', '.join(foreign)}", context)
    raise click.UsageError(f"write {', '.join(given)} after {name}", context)


def connect(api: str | None, token_file: str | None) -> Client:
    """The sidecar at `api`, else the only sidecar of this user. Nothing is sent yet.

    Raises:
        NoSidecar: none is running.
        InvalidRequest: several are, and none was named.
        CallerError: the address or the token file cannot be used.
    """
    address = parse_api_address(api) if api else _only_sidecar()
    return Client(address, _token(token_file) if token_file else "")


def _only_sidecar() -> ApiListener:
    from p2pnode.paths import running_sidecars

    entries = [entry for entry in running_sidecars() if entry.api]
    if not entries:
        raise NoSidecar(
            "no sidecar of this user is running",
            hint="start one with `p2pnode run`, or name one with --api ADDR (or P2PNODE_API)",
        )
    if len(entries) > 1:
        rows = [(entry.name, entry.role, _best(entry)) for entry in entries]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        listed = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        raise InvalidRequest(
            f"{len(entries)} sidecars of this user are running; which one?\n" + "\n".join(listed),
            hint=f"choose with --api, or once for this shell: export P2PNODE_API={_best(entries[0])}",
        )
    return parse_api_address(_best(entries[0]))


def _best(entry: Entry) -> str:
    """The Unix socket when there is one: it needs no token."""
    return next((address for address in entry.api if address.startswith("unix:")), entry.api[0])


def _token(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
        raise CallerError(f"the token file {path} cannot be read: {reason}") from error
    if not token or not token.isprintable() or " " in token:
        raise CallerError(f"the token file {path} does not hold one token on one line")
    return token


def rows_of(document: Any, name: str) -> list[dict[str, Any]]:
    """The list of objects a listing answers with.

    Raises:
        NoSidecar: it is something else, so whoever answered is no sidecar of this version.
    """
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise NoSidecar(f"the sidecar's list of {name} is not understood", hint="is it of the same version?")
    return document


def object_of(document: Any, name: str) -> dict[str, Any]:
    """The object a question is answered with; raises as `rows_of`."""
    if not isinstance(document, dict):
        raise NoSidecar(f"the sidecar's answer about {name} is not understood", hint="is it of the same version?")
    return document
