"""JSON as the API sends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from p2pnode.ports import JsonObject


def encode(value: Any) -> bytes:
    """One line of JSON in ASCII.

    ASCII, because a payload may hold a lone surrogate (`"\\ud800"` is JSON) that has no UTF-8 form.

    Raises:
        ValueError: a number without a JSON form (`1e999` is read as infinity).
        RecursionError: nested too deep.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def encode_message(document: JsonObject) -> bytes:
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


class JsonChunks:
    """A response that makes each chunk when the one before has been sent, and none once the client is gone.

    Args:
        chunks: parts of one JSON text.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:

            async def stop_when_gone() -> None:
                await disconnected(receive)
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_gone)
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()


async def disconnected(receive: Receive) -> None:
    """Wait until the client has closed its side."""
    while (await receive())["type"] != "http.disconnect":
        pass


def json_response(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status, media_type="application/json")
