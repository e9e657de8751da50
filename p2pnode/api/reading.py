"""Reading requests: parts of the path, queries, headers, JSON bodies; each fault says what would be right."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn
from urllib.parse import unquote

from starlette.requests import Request

from p2pnode.errors import Fault, InvalidRequest
from p2pnode.ports import JsonObject

MAX_LIMIT = 1000
MAX_IDEMPOTENCY_KEY_CHARS = 255
MAX_DEPTH = 64
"""Of arrays and objects in each other, in a body: what is let in here can be written again further in."""

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


def read_filter(request: Request, name: str, faults: list[Fault]) -> str | None:
    """A text to choose by, from the query; None when it is absent."""
    text: str | None = request.query_params.get(name)
    if text == "":
        faults.append(Fault(name, "is empty: give one, or leave it out to have all"))
    return text


def read_idempotency_key(request: Request, faults: list[Fault]) -> str | None:
    key: str | None = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_CHARS:
        problem = f"has {len(key)} characters; 1 to {MAX_IDEMPOTENCY_KEY_CHARS} are right"
        faults.append(Fault("Idempotency-Key", problem))
    return key


async def read_any_object(request: Request, example: str) -> JsonObject:
    """The body as a JSON object that can be written again in UTF-8, whatever its members are.

    Raises:
        InvalidRequest: it is something else; `example` shows what would be right.
    """
    document = await _read_json_object(request, example)
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        problem = f"{half} is half of a surrogate pair and no character; send {example}"
        raise InvalidRequest("the body holds what is no text", [Fault("body", problem)]) from error
    return document


async def _read_json_object(request: Request, example: str) -> JsonObject:
    try:
        document = json.loads(await request.body(), parse_constant=_no_constant, parse_float=_finite)
        if _is_deeper(document, MAX_DEPTH):
            raise ValueError(f"arrays and objects more than {MAX_DEPTH} deep")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the body is no JSON", [Fault("body", f"{error}; send {example}")]) from error
    if not isinstance(document, dict):
        raise InvalidRequest("the body is no JSON object", [Fault("body", f"send {example}")])
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is beyond what a double holds")
    return number


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(inner, dict | list) for inner in level)


async def read_object(request: Request, known: frozenset[str], example: str) -> JsonObject:
    """The body as a JSON object with none but `known` members.

    Raises:
        InvalidRequest: it is something else; `example` shows what would be right.
    """
    document = await _read_json_object(request, example)
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
