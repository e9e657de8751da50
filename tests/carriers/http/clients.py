"""Clients of the carrier that write bytes of their own choice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import trio

from p2pnode.carriers.http.protocol import MESSAGE_TYPE, MESSAGES_PATH


@dataclass(frozen=True)
class Got:
    """An answer; names of headers are lower case."""

    status: int
    headers: dict[str, str]
    document: dict[str, Any]


def request(
    body: bytes = b"", *, method: str = "POST", path: str = MESSAGES_PATH, without: str = "", **headers: str
) -> bytes:
    """A well-formed request, but for what the arguments make of it."""
    named = {"Host": "x", "Content-Type": MESSAGE_TYPE, "Content-Length": str(len(body))}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    named.pop(without, None)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


async def connect(address: str, source: str | None = None) -> trio.SocketStream:
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host.strip("[]"), int(port), local_address=source)


async def rest(stream: trio.SocketStream) -> bytes:
    """What still comes, up to the end or a reset."""
    data = b""
    try:
        while part := await stream.receive_some(65536):
            data += part
    except trio.BrokenResourceError:
        pass
    return data


def parse(data: bytes) -> Got:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert int(headers["content-length"]) == len(body)
    return Got(int(first.split()[1]), headers, json.loads(body) if body else {})


async def ask(address: str, data: bytes, source: str | None = None) -> Got:
    """Send these bytes, and read what is answered."""
    async with await connect(address, source) as stream:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            pass
        return parse(await rest(stream))
