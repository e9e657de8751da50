"""`pub`: publish one message."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import BinaryIO, Final

import click

from p2pnode.cli import output
from p2pnode.cli.sidecar import connect, object_of, sidecar_options
from p2pnode.errors import CallerError, PayloadTooLarge
from p2pnode.local.http import quote, refusal

MAX_READ_BYTES: Final = 16 * 1024 * 1024
"""Far above any payload a sidecar takes (256 KiB): it is the sidecar that refuses, this only bounds our memory."""
HEADER_PREFIX: Final = "P2P-"
"""What marks a request header as one of the message's own."""
STORE_SECONDS: Final = 30.0
"""A sidecar answers once the message is stored; a slow disk is no reason to publish twice."""


@click.command()
@click.argument("topic")
@click.argument("payload", required=False)
@click.option("--file", "path", metavar="FILE", help="Publish what FILE holds; `-` is standard input.")
@click.option("--content-type", metavar="TYPE", help="Default: guessed (JSON object, UTF-8 text, anything else).")
@click.option("--header", "headers", metavar="KEY=VALUE", multiple=True, help="Goes with the message; repeatable.")
@click.option("--idempotency-key", metavar="KEY", help="The same key again publishes nothing and gives the first id.")
@sidecar_options
def pub(
    topic: str,
    payload: str | None,
    path: str | None,
    content_type: str | None,
    headers: Sequence[str],
    idempotency_key: str | None,
    api: str | None,
    api_token_file: str | None,
) -> int:
    """Publish PAYLOAD, or --file, or standard input to TOPIC; print the message id once it is stored."""
    if payload is not None and path is not None:
        raise click.UsageError("give the payload as an argument or with --file, not both")
    fields = {}
    for header in headers:
        key, equals, value = header.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{header!r} is not KEY=VALUE", param_hint="--header")
        fields[f"{HEADER_PREFIX}{key}"] = value
    client = connect(api, api_token_file)
    body = payload.encode("utf-8", "surrogateescape") if payload is not None else _read(path)
    fields["Content-Type"] = content_type or guess_content_type(body)
    if idempotency_key is not None:
        fields["Idempotency-Key"] = idempotency_key
    for name, value in fields.items():
        if not _fits_a_header(name, value):
            raise CallerError(
                f"{name}: {value!r} cannot be sent as a header",
                hint="a key has letters, digits and dashes, a value no control characters and no blanks around it",
            )
    response = client.request(
        "POST", f"/api/v1/topics/{quote(topic)}/messages", body=body, headers=fields, timeout_seconds=STORE_SECONDS
    )
    if not 200 <= response.status < 300:
        raise refusal(response)
    sys.stdout.write(output.clean(str(object_of(response.json(), "the message").get("id"))) + "\n")
    return 0


def guess_content_type(body: bytes) -> str:
    """`application/json` for a JSON object, `text/plain` for other UTF-8 text, else `application/octet-stream`."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    try:
        return "application/json" if isinstance(json.loads(text), dict) else "text/plain"
    except (ValueError, RecursionError):
        return "text/plain"


def _fits_a_header(name: str, value: str) -> bool:
    """RFC 9110, 5.1 and 5.5: a token, and printable text not framed by blanks; UTF-8 only in the message's own."""
    return (
        all(sign.isascii() and (sign.isalnum() or sign in "!#$%&'*+-.^_`|~") for sign in name)
        and (value.isascii() or name.startswith(HEADER_PREFIX))
        and value.isprintable()
        and value == value.strip()
    )


def _read(path: str | None) -> bytes:
    if path is None or path == "-":
        if path is None and sys.stdin.isatty():
            output.note("reading the payload from the terminal; end it with Ctrl-D")
        return _bounded(sys.stdin.buffer, "standard input")
    try:
        with open(path, "rb") as file:
            return _bounded(file, path)
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}") from error


def _bounded(file: BinaryIO, name: str) -> bytes:
    data = file.read(MAX_READ_BYTES + 1)
    if len(data) > MAX_READ_BYTES:
        raise PayloadTooLarge(f"{name} holds more than {MAX_READ_BYTES} bytes; a payload is at most 256 KiB")
    return data
