"""The opportunity that `council create` posts: out of a file, of flags, or of both."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final

import click

from p2pnode.errors import CallerError, PayloadTooLarge

MAX_READ_BYTES: Final = 1024 * 1024
"""Four times the largest payload: it is the sidecar that refuses, this only bounds our memory."""
MAX_DEADLINE_SECONDS: Final = 366 * 86_400


def opportunity(path: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The document to post.

    Args:
        path: a file that holds a JSON object, `-` for standard input; None: there is none.
        given: members that were given by flags; they replace those of the file.

    Raises:
        CallerError: the file cannot be read, or is no JSON object.
        UsageError: there is neither a file nor a flag.
    """
    if path is None and not given:
        raise click.UsageError("say which council: --file FILE, or --project, --repository and --role")
    document = read(path) if path is not None else {}
    return {**document, **given}


def read(path: str) -> dict[str, Any]:
    """The JSON object in a file."""
    name = "standard input" if path == "-" else path
    try:
        if path == "-":
            data = _bounded(sys.stdin.buffer, name)
        else:
            with open(path, "rb") as file:
                data = _bounded(file, name)
    except OSError as error:
        raise CallerError(f"{name} cannot be read: {error.strerror}") from error
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CallerError(f"{name} holds no JSON: {error}", hint=_EXAMPLE) from error
    if not isinstance(document, dict):
        raise CallerError(f"{name} holds JSON, but no object", hint=_EXAMPLE)
    return document


_EXAMPLE: Final = (
    'the least that does: {"project_name": "P", "repository": "https://example.org/p", "core_roles": ["tpm"]}'
)


def _bounded(file: BinaryIO, name: str) -> bytes:
    data = file.read(MAX_READ_BYTES + 1)
    if len(data) > MAX_READ_BYTES:
        raise PayloadTooLarge(f"{name} holds more than {MAX_READ_BYTES} bytes; an opportunity is at most 256 KiB")
    return data


def role(_context: click.Context, option: click.Parameter, given: Sequence[str]) -> list[Any]:
    """`NAME` or `NAME:skill,skill`, each as the opportunity has it."""
    roles: list[Any] = []
    for text in given:
        name, colon, skills = text.partition(":")
        wanted = [skill.strip() for skill in skills.split(",")]
        if not name.strip() or (colon and not all(wanted)):
            raise click.BadParameter(
                f"{text!r} is not NAME or NAME:skill,skill, such as security-expert:review,go", param=option
            )
        # An object in any case: agents that are written in Go read no plain name.
        roles.append({"role_name": name, "required_skills": wanted} if colon else {"role_name": name})
    return roles


def pairs(_context: click.Context, option: click.Parameter, given: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE`, repeated, as an object."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", param=option)
        found[key] = value
    return found


def deadline(_context: click.Context, option: click.Parameter, seconds: float | None) -> str | None:
    """So many seconds from now, as the opportunity has it (RFC 3339)."""
    if seconds is None:
        return None
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_DEADLINE_SECONDS):
        raise click.BadParameter(
            f"{seconds:g} is not in the range of 0 to {MAX_DEADLINE_SECONDS} seconds", param=option
        )
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
