"""Rules of event streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import pytest
import trio
import trio.testing

from p2pnode.api.limits import ApiLimits
from p2pnode.ports import Followed
from tests.api.fake import FakeSidecar, Served, get, message, read_until, serving, wait_until

EVENTS = "/api/v1/topics/t/events"


class Events:
    """Reads the events of one stream, comments left out."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self._text = ""

    async def ask(self, url: str, headers: dict[str, str]) -> h11.Response:
        request = h11.Request(method="GET", target=url, headers=[("Host", "localhost"), *headers.items()])
        await self._stream.send_all((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        response = await self._event()
        assert isinstance(response, h11.Response)
        return response

    async def next(self) -> dict[str, str]:
        """The next event's fields; EOFError at a clean end, h11.RemoteProtocolError at a cut."""
        while True:
            block, found, rest = self._text.partition("\n\n")
            if not found:
                event = await self._event()
                if isinstance(event, h11.EndOfMessage):
                    raise EOFError
                assert isinstance(event, h11.Data)
                self._text += bytes(event.data).decode()
                continue
            self._text = rest
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            if "data" in fields:
                return fields

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            try:
                self._http.receive_data(await self._stream.receive_some())
            except trio.BrokenResourceError:
                self._http.receive_data(b"")
        return event


@asynccontextmanager
async def following(served: Served, url: str = EVENTS, **headers: str) -> AsyncIterator[Events]:
    async with await served.connect() as stream:
        events = Events(stream)
        response = await events.ask(url, headers)
        assert response.status_code == 200
        assert (b"content-type", b"text/event-stream; charset=utf-8") in response.headers
        assert (b"cache-control", b"no-store") in response.headers
        yield events


async def test_a_message_is_one_event_with_its_id(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served, following(served) as events:
        document = message(1, {"text": "two\nlines\u2028", "name": "Zoë"})
        sidecar.push(Followed(document))
        event = await events.next()
        assert (event["id"], event["event"], json.loads(event["data"])) == ("origin-1", "message", document)


async def test_lost_messages_are_told_by_number_and_keep_the_last_id(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served, following(served) as events:
        sidecar.push(Followed(lost=12), Followed(message(20)))
        assert await events.next() == {"event": "lost", "data": '{"lost":12}'}
        assert (await events.next())["id"] == "origin-20"


@pytest.mark.parametrize(
    ("query", "last", "start"),
    [
        ("", None, "now"),
        ("?from=start", None, "start"),
        ("?from=now", None, "now"),
        ("?from=origin-3", None, "origin-3"),
        ("?from=start", "origin-9", "origin-9"),
        ("?from=start", "", "start"),
    ],
)
async def test_last_event_id_wins_over_from_and_now_is_the_default(
    sidecar: FakeSidecar, tmp_path: Path, query: str, last: str | None, start: str
) -> None:
    headers = {} if last is None else {"Last-Event-ID": last}
    async with serving(sidecar, tmp_path) as served, following(served, EVENTS + query, **headers):
        assert sidecar.follows == [("t", start)]


async def test_a_quiet_stream_carries_comments(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(keepalive_seconds=0.01)) as served:
        async with await served.connect() as stream:
            await stream.send_all(get(EVENTS))
            await read_until(stream, b": \n\n\r\n4\r\n: \n\n")


async def test_a_reader_that_leaves_is_noticed(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        async with following(served):
            assert (sidecar.following, served.api.counters.event_streams) == (1, 1)
        await wait_until(lambda: sidecar.following == 0)
        await wait_until(lambda: served.api.counters.connections == 0)
        assert served.api.counters.event_streams == 0
        assert served.api.counters.unexpected == 0


async def test_the_stream_ends_when_the_node_ends_it(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served, following(served) as events:
        sidecar.ended = True
        sidecar.push(Followed(message(1)))
        assert (await events.next())["id"] == "origin-1"
        with pytest.raises(EOFError):
            await events.next()


async def test_an_error_in_the_middle_cuts_the_stream_and_is_counted(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        async with following(served) as events:
            sidecar.error = ZeroDivisionError()
            sidecar.wake()
            with pytest.raises(h11.RemoteProtocolError):
                await events.next()
        assert served.api.counters.unexpected == 1
        assert (await served.client.get("/health")).status_code == 200


async def test_followers_beyond_the_limit_are_told_to_wait(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(event_streams=1)) as served:
        async with following(served):
            answer = await served.client.get(EVENTS)
            assert answer.status_code == 429
            assert answer.json()["reason"] == "event-streams"
            assert answer.headers["Retry-After"] == "1"
        await wait_until(lambda: served.api.counters.event_streams == 0)
        async with following(served):
            pass


async def test_a_reader_that_stops_reading_holds_back_only_itself(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.endless = Followed(message(1, "x" * 65536))
    async with serving(sidecar, tmp_path) as served:
        async with await served.connect() as stream:
            await stream.send_all(get(EVENTS))
            await wait_until(lambda: sidecar.taken > 0)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert sidecar.taken < 100
            assert (await served.client.get("/health")).status_code == 200


async def test_a_reader_that_never_reads_again_is_cut(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.endless = Followed(message(1, "x" * 65536))
    async with serving(sidecar, tmp_path, ApiLimits(stall_seconds=0.05)) as served:
        async with await served.connect() as stream:
            await stream.send_all(get(EVENTS))
            await wait_until(lambda: sidecar.taken > 0)
            await wait_until(lambda: sidecar.following == 0)
            await wait_until(lambda: served.api.counters.connections == 0)
        assert served.api.counters.unexpected == 0
