"""Server-sent events, cut into chunks at every place."""

from __future__ import annotations

import pytest

from p2pnode.local import sse
from p2pnode.local.sse import Event, MalformedStream, events

STREAM = (
    b": hello\n\nid: 1\ndata: one\n\nevent: lost\r\ndata: {\r\ndata:  2}\r\n\r\n"
    b"data:three\rid:3\r\rretry: 5\nnonsense\nid: 4\n\ndata: unfinished"
)
EVENTS = [Event("message", "1", "one"), Event("lost", "1", "{\n 2}"), Event("message", "3", "three")]


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_events_do_not_depend_on_how_the_stream_is_cut(size: int) -> None:
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert list(events(chunks)) == EVENTS


def test_an_id_with_nul_is_ignored() -> None:
    assert list(events([b"id: 1\ndata: a\n\nid: x\0y\ndata: b\n\n"]))[1].id == "1"


@pytest.mark.parametrize("chunk", [b"data: xxxxxxxxxx", b"data: xxxx\n"])
def test_an_event_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch, chunk: bytes) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 64)
    with pytest.raises(MalformedStream):
        list(events([chunk] * 10))
