"""Reading requests: parts of the path, numbers, JSON bodies; each fault says what would be right."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

from starlette.requests import Request

from p2pnode.errors import Fault, InvalidRequest
from p2pnode.ports import JsonObject

MAX_LIMIT = 1000

_DECIMAL = re.compile(r"[0-9]{1,9}")


def path_segment(request: Request, name: str, faults: list[Fault] | None = None) -> str:
    """A part of the path, percent-decoded; without `faults` a bad one raises at once."""
    try:
        return unquote(request.path_params[name], errors="strict")
    except UnicodeDecodeError:
        fault = Fault(name, "its percent-encoded bytes are no UTF-8")
    if faults is None:
        raise InvalidRequest("the path is wrong", [fault])
    faults.append(fault)
    return ""


def read_limit(request: Request, default: int, faults: list[Fault]) -> int:
    """`?limit=`, from 1 to 1000."""
    text = request.query_params.get("limit", str(default))
    if _DECIMAL.fullmatch(text) and 1 <= int(text) <= MAX_LIMIT:
        return int(text)
    faults.append(Fault("limit", f"{text!r} is no number from 1 to {MAX_LIMIT}"))
    return default


async def read_object(request: Request, known: frozenset[str], example: str) -> JsonObject:
    """The body as a JSON object with none but `known` members.

    Raises:
        InvalidRequest: it is something else; `example` shows what would be right.
    """
    try:
        document = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the body is no JSON", [Fault("body", f"{error}; send {example}")]) from error
    if not isinstance(document, dict):
        raise InvalidRequest("the body is no JSON object", [Fault("body", f"send {example}")])
    faults = [Fault(str(name)[:80], f"is not known here; send {example}") for name in sorted(document.keys() - known)]
    if faults:
        raise InvalidRequest("the body is wrong", faults)
    return document


def read_text(document: JsonObject, name: str, faults: list[Fault], *, default: str | None = None) -> str:
    """A member that is text and not empty; `default` when it is absent, a fault when there is no default."""
    value = document.get(name, default)
    if isinstance(value, str) and (value or default is not None):
        return value
    faults.append(Fault(name, "is missing" if name not in document else "must be text, and not empty"))
    return ""
