"""Server-sent events out of a stream of bytes, as the HTML standard (9.2.6) reads them; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""A payload of 256 KiB, every byte of it a six-byte JSON escape, and its metadata come to less than 2 MiB."""


class MalformedStream(Exception):
    """An event longer than any we would ever be sent."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Args:
        kind: `message` unless the stream said otherwise.
        id: the last id the stream gave, on this event or an earlier one; empty when none.
        data: the data lines, joined by newlines.
    """

    kind: str
    id: str
    data: str


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends (`\\n`, `\\r\\n` or `\\r`); an unfinished last line is dropped, as the standard says.

    Raises:
        MalformedStream: a line of more than `MAX_EVENT_BYTES`.
    """
    pending: list[bytes] = []
    size = 0
    after_cr = False
    for chunk in chunks:
        if after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            after_cr = False
        if b"\n" not in chunk and b"\r" not in chunk:
            pending.append(chunk)
            size += len(chunk)
            if size > MAX_EVENT_BYTES:
                raise MalformedStream(f"a line of more than {MAX_EVENT_BYTES} bytes")
            continue
        after_cr = chunk.endswith(b"\r")
        *whole, rest = (b"".join(pending) + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        pending, size = [rest], len(rest)
        yield from whole


def events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events of a stream; comments (keep-alives) yield nothing.

    Raises:
        MalformedStream: an event of more than `MAX_EVENT_BYTES`.
    """
    kind, last_id, data, size = "", "", list[str](), 0
    for line in lines(chunks):
        if not line:
            if data:
                yield Event(kind or "message", last_id, "\n".join(data))
            kind, data, size = "", [], 0
            continue
        size += len(line)
        if size > MAX_EVENT_BYTES:
            raise MalformedStream(f"an event of more than {MAX_EVENT_BYTES} bytes")
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            last_id = value
