"""Rules of what one client can do to the others: nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pnode.api.limits import ApiLimits
from tests.api.fake import FakeSidecar, get, read_all, read_until, serving, wait_until

MESSAGES = "/api/v1/topics/t/messages"

GARBAGE = [
    b"\x00" * 100,
    b"\xff\xfe\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 2,
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\xc3\xbc HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /" + b"x" * 100_000,
    b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    random.Random(1).randbytes(100_000),
]


async def send_on_and_on(stream: trio.SocketStream, data: bytes, *, seconds_between: float = 0.0) -> None:
    while True:
        await stream.send_all(data)
        await trio.sleep(seconds_between)


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_ends_its_connection_and_nothing_else(
    sidecar: FakeSidecar, tmp_path: Path, garbage: bytes
) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(idle_seconds=0.05)) as served:
        async with await served.connect() as stream:
            try:
                await stream.send_all(garbage)
            except trio.BrokenResourceError:
                pass  # refused before it was all sent
            answer = await read_all(stream)
            assert not answer or answer.startswith(b"HTTP/1.1 4")
        await wait_until(lambda: served.api.counters.connections == 0)
        assert served.api.counters.unexpected == 0
        assert (await served.client.get("/health")).status_code == 200


@pytest.mark.parametrize("head", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_head_that_does_not_arrive_in_time_ends_its_connection(
    sidecar: FakeSidecar, tmp_path: Path, head: bytes
) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(idle_seconds=0.05)) as served:
        async with await served.connect() as stream:
            await stream.send_all(head)
            await read_all(stream)


async def test_a_head_that_drips_does_not_outlast_its_time(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(idle_seconds=0.05)) as served:
        async with await served.connect() as stream:
            with pytest.raises(trio.BrokenResourceError):
                await send_on_and_on(stream, b"x", seconds_between=0.001)


async def test_a_body_that_does_not_arrive_in_time_is_a_408_document(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(body_seconds=0.05, drain_seconds=0.05)) as served:
        async with await served.connect() as stream:
            await stream.send_all(f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc".encode())
            answer = await read_all(stream)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"urn:p2pnode:problem:request-timeout" in answer
        await wait_until(lambda: served.api.counters.connections == 0)
    assert sidecar.publications == []


async def test_a_client_that_leaves_in_the_middle_of_its_body_publishes_nothing(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    async with serving(sidecar, tmp_path) as served:
        async with await served.connect() as stream:
            await stream.send_all(f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc".encode())
            await wait_until(lambda: served.api.counters.connections == 1)
        await wait_until(lambda: served.api.counters.connections == 0)
        assert served.api.counters.unexpected == 0
    assert sidecar.publications == []


async def test_an_endless_body_is_cut(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(drain_seconds=0.05)) as served:
        async with await served.connect() as stream:
            await stream.send_all(f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n".encode())
            with pytest.raises(trio.BrokenResourceError):
                await send_on_and_on(stream, b"x" * 65536)
        await wait_until(lambda: served.api.counters.connections == 0)


async def test_a_body_a_get_did_not_need_is_taken_and_the_connection_lives_on(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.request("GET", "/health", content=b"x" * 200_000)
        assert answer.status_code == 200
        assert (await served.client.get("/health")).status_code == 200


async def test_connections_beyond_the_limit_wait_and_are_then_served(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(connections=2)) as served:
        first, second, third = [await served.connect() for _ in range(3)]
        await third.send_all(get("/health"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert served.api.counters.connections == 2
        await second.aclose()
        assert (await read_until(third, b"}")).startswith(b"HTTP/1.1 200")
        await first.aclose()
        await third.aclose()


async def test_a_connection_carries_several_requests_and_is_free_once_closed(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(idle_seconds=1e6)) as served:
        async with await served.connect() as stream:
            for _ in range(3):
                await stream.send_all(get("/health"))
                await read_until(stream, b'"healthy"}')
            assert served.api.counters.connections == 1
        await wait_until(lambda: served.api.counters.connections == 0)


async def test_an_idle_connection_is_closed_after_an_answer(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path, ApiLimits(idle_seconds=0.05)) as served:
        async with await served.connect() as stream:
            await stream.send_all(get("/health"))
            assert b"200" in await read_all(stream)


async def test_pipelined_requests_are_answered_in_order(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        async with await served.connect() as stream:
            await stream.send_all(get("/health") + get("/ready") + get("/nowhere", "Connection: close"))
            answer = await read_all(stream)
            assert answer.index(b"healthy") < answer.index(b"delivering") < answer.index(b"not-found")


async def test_a_client_that_has_said_all_still_gets_its_answer(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        async with await served.connect() as stream:
            await stream.send_all(get("/health"))
            await stream.send_eof()
            assert (await read_all(stream)).startswith(b"HTTP/1.1 200")


async def test_http_1_0_is_answered_and_closed(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        async with await served.connect() as stream:
            await stream.send_all(b"GET /health HTTP/1.0\r\n\r\n")
            answer = await read_all(stream)
            assert answer.endswith(b'{"status":"healthy"}')
            assert b"chunked" not in answer


@pytest.mark.parametrize(
    "upgrade",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        (
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ),
    ],
)
async def test_an_upgrade_is_ignored(sidecar: FakeSidecar, tmp_path: Path, upgrade: tuple[str, ...]) -> None:
    async with serving(sidecar, tmp_path) as served:
        async with await served.connect() as stream:
            await stream.send_all(get("/health", *upgrade))
            assert (await read_until(stream, b"}")).startswith(b"HTTP/1.1 200")


async def test_a_client_that_waits_for_100_continue_gets_it(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        async with await served.connect() as stream:
            head = f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
            await stream.send_all(head.encode())
            assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            await stream.send_all(b"ok")
            assert (await read_until(stream, b"}")).startswith(b"HTTP/1.1 202")
    assert sidecar.publications[0].body == b"ok"


async def test_no_file_descriptor_left_to_accept_with_is_survived(
    sidecar: FakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = trio.SocketListener.accept
    failures = iter([OSError(24, "Too many open files"), OSError(5, "Input/output error")])

    async def failing(listener: trio.SocketListener) -> trio.SocketStream:
        for failure in failures:
            raise failure
        return await accept(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    async with serving(sidecar, tmp_path) as served:
        assert (await served.client.get("/health")).status_code == 200
        assert served.api.counters.unexpected == 1
