"""JSON as the API sends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from p2pnode.wire.json_text import encode, encode_message


class JsonChunks:
    """A response that makes each chunk when the one before has been sent, and none once the client is gone.

    Args:
        chunks: parts of one JSON text.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:

            async def stop_when_gone() -> None:
                await disconnected(receive)
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_gone)
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()


async def disconnected(receive: Receive) -> None:
    """Wait until the client has closed its side."""
    while (await receive())["type"] != "http.disconnect":
        pass


def json_response(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status, media_type="application/json")


def outside_json(document: Mapping[str, Any], status: int = 200, **headers: str) -> Response:
    """A document that others had a hand in: what has no JSON form is null and named in `unreadable`."""
    return Response(encode_message(document), status, headers=headers, media_type="application/json")
