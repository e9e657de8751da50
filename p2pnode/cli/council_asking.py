"""What the council commands ask a sidecar: by id or the beginning of one, once or for as long as a council changes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final

from p2pnode.cli.sidecar import object_of, rows_of
from p2pnode.errors import Degraded, Fault, InvalidRequest, NoSidecar, Unavailable
from p2pnode.local.http import Client, NotASidecar, Response, quote, refusal
from p2pnode.local.sse import MalformedStream, events

Council = Mapping[str, Any]

COUNCILS: Final = "/api/v1/councils"
STORE_SECONDS: Final = 30.0
"""A sidecar answers once its message is stored; a slow disk is no reason to say it twice."""
SILENCE_SECONDS: Final = 60.0
"""A sidecar sends a comment every 15 s: three missed, and nobody is there any more."""
FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 2.0
SHORT_CHARACTERS: Final = 8
"""Of a council id in a table, when that tells it apart."""
WHOLE_CHARACTERS: Final = 36
WHOLE_DIGITS: Final = 32
"""Of a UUID as text, hexadecimal."""
SHOWN_CANDIDATES: Final = 8


class OutOfTime(Exception):
    """The time that was given is up."""


def listed(client: Client, status: str | None = None) -> list[dict[str, Any]]:
    """The council documents, the newest first."""
    path = COUNCILS if status is None else f"{COUNCILS}?status={quote(status)}"
    return rows_of(client.get_json(path), "councils")


def find(client: Client, text: str) -> str:
    """The id of the council that `text` names: its id, or a beginning that no other has.

    Raises:
        Degraded: none is called so.
        InvalidRequest: several are.
    """
    digits = text.lower().replace("-", "")
    if len(digits) == WHOLE_DIGITS and digits.strip("0123456789abcdef") == "":
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    known = listed(client)
    meant = [council for council in known if digits and id_of(council).replace("-", "").startswith(digits)]
    if len(meant) == 1:
        return id_of(meant[0])
    if not meant:
        raise Degraded(
            f"no council known here has an id that begins with {text!r}",
            hint="`p2pnode council list` shows them" if known else "no council is known here at all",
        )
    faults = [Fault("ID", f"{id_of(each)} {each.get('project_name')}") for each in meant[:SHOWN_CANDIDATES]]
    rest = f"and {len(meant) - SHOWN_CANDIDATES} more; " if len(meant) > SHOWN_CANDIDATES else ""
    raise InvalidRequest(
        f"{text!r} begins the ids of {len(meant)} councils; which one?", faults, hint=f"{rest}give more of it"
    )


def id_of(council: Council) -> str:
    return str(council.get("council_id") or "")


def short_ids(councils: Sequence[Council]) -> dict[str, str]:
    """By id, a beginning that no other of these has."""
    ids = sorted({id_of(council) for council in councils})
    length = SHORT_CHARACTERS
    while length < WHOLE_CHARACTERS and len({each[:length] for each in ids}) < len(ids):
        length += 1
    return {each: each[:length] for each in ids}


def one(client: Client, council_id: str) -> dict[str, Any]:
    """One council document, with its claims."""
    return object_of(client.get_json(f"{COUNCILS}/{quote(council_id)}"), "the council")


def post(
    client: Client, path: str, document: Mapping[str, Any], *, idempotency_key: str | None = None
) -> dict[str, Any]:
    """Post a JSON object; what the sidecar answers once it is stored.

    Raises:
        P2PNodeError: it refused.
    """
    headers = {"Content-Type": "application/json"}
    if idempotency_key is not None:
        headers["Idempotency-Key"] = idempotency_key
    response = client.request(
        "POST", path, body=json.dumps(document).encode(), headers=headers, timeout_seconds=STORE_SECONDS
    )
    if not 200 <= response.status < 300:
        raise refusal(response)
    return object_of(response.json(), "the council")


def follow(
    client: Client,
    council_id: str | None,
    tell: Callable[[str], None],
    *,
    deadline: float | None = None,
) -> Generator[dict[str, Any]]:
    """Council documents as they change, beginning with those that are; a connection that breaks is made again.

    Args:
        council_id: None: of all councils.
        tell: called with what went wrong on the way, once for each interruption, and with "" when it goes on.
        deadline: on the monotonic clock; None: for ever.

    Raises:
        OutOfTime: the deadline passed.
        NoSidecar: none answers the first time; later ones are waited for.
        P2PNodeError: the sidecar refused.
    """
    path = f"{COUNCILS}/events" if council_id is None else f"{COUNCILS}/{quote(council_id)}/events"
    connected = troubled = False
    wait = FIRST_RETRY_SECONDS
    while True:
        try:
            for document in _connection(client, path, deadline):
                if document is not None:
                    wait = FIRST_RETRY_SECONDS
                    yield document
                elif troubled:
                    tell("")
                connected, troubled = True, False
            why = "the sidecar ended the stream"
        except NotASidecar:
            raise
        except (NoSidecar, Unavailable, Degraded) as error:
            # Degraded: a sidecar that started anew is still reading its store, and knows the council in a moment.
            if _is_over(deadline):
                raise OutOfTime from error
            if not connected:
                raise
            why = error.detail
        if not troubled:
            tell(why)
        troubled = True
        time.sleep(wait if deadline is None else min(wait, max(deadline - time.monotonic(), 0.0)))
        if _is_over(deadline):
            raise OutOfTime
        wait = min(wait * 2, LAST_RETRY_SECONDS)


def _connection(client: Client, path: str, deadline: float | None) -> Generator[dict[str, Any] | None]:
    """One connection's documents, after a None that says it stands."""
    headers = {"Accept": "text/event-stream"}
    with client.stream(path, headers=headers, deadline=deadline, silence_seconds=SILENCE_SECONDS) as stream:
        if stream.status != 200:
            raise refusal(Response(stream.status, stream.headers, b"".join(stream.chunks)))
        if not stream.headers.get("content-type", "").startswith("text/event-stream"):
            raise NotASidecar(f"what answers at {client.address} does not send events")
        yield None
        try:
            for event in events(stream.chunks):
                if event.kind == "council":
                    yield _document(event.data)
        except (MalformedStream, ValueError) as error:
            raise NotASidecar(f"what {client.address} sends is not understood: {error}") from error


def _document(data: str) -> dict[str, Any]:
    """Raises ValueError when it is no JSON object."""
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("an event that is no JSON object")
    return document


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
