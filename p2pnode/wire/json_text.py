"""JSON as this node writes it for its agent: ASCII on one line, whatever a peer put into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def encode(value: Any) -> bytes:
    """One line of JSON in ASCII.

    ASCII, because a payload may hold a lone surrogate (`"\\ud800"` is JSON) that has no UTF-8 form.

    Raises:
        ValueError: a number without a JSON form (`1e999` is read as infinity).
        RecursionError: nested too deep.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def encode_message(document: Mapping[str, Any]) -> bytes:
    """One line of JSON for a message document, whatever a peer put into it.

    A member that has no JSON form is null and named in `unreadable`: one bad message must not keep the
    agent from all others.
    """
    try:
        return encode(document)
    except (ValueError, RecursionError):
        readable = {name: value for name, value in document.items() if _encodable(value)}
        unreadable = sorted(document.keys() - readable.keys())
        return encode({**dict.fromkeys(document), **readable, "unreadable": unreadable})


def _encodable(value: Any) -> bool:
    try:
        encode(value)
    except (ValueError, RecursionError):
        return False
    return True
