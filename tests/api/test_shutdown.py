"""Rules of leaving: the block ends soon, whatever clients do. Stall limits are off, so only the shutdown can end it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from p2pnode.api.limits import ApiLimits
from p2pnode.api.server import open_api
from p2pnode.local.address import UnixAddress
from p2pnode.ports import Followed
from tests.api.fake import DEADLINE_SECONDS, FakeSidecar, get, message, read_all, read_until, wait_until

PATIENT = ApiLimits(
    stall_seconds=1e6, idle_seconds=1e6, body_seconds=1e6, drain_seconds=1e6, keepalive_seconds=1e6, grace_seconds=0.1
)
"""Nothing but the shutdown ends a connection."""

UNHURRIED = ApiLimits(idle_seconds=1e6, grace_seconds=1e6)
"""Clients that behave need none of the grace, so waiting for it would hang."""

MESSAGES = "/api/v1/topics/t/messages"
EVENTS = "/api/v1/topics/t/events"


def exists(address: UnixAddress) -> bool:
    return Path(address.path).exists()


async def open_with(sidecar: FakeSidecar, path: Path, limits: ApiLimits, sends: list[bytes]) -> list[bytes]:
    """Open the API, send each of `sends` on a connection of its own, wait until all is still, leave; what came back."""
    address = UnixAddress(str(path / "api.sock"))
    streams: list[trio.SocketStream] = []
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_api(sidecar, [address], limits=limits) as api:
            for data in sends:
                streams.append(await trio.open_unix_socket(address.path))
                await streams[-1].send_all(data)
            await wait_until(lambda: api.counters.connections == len(sends))
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert api.counters.connections == 0
        assert api.counters.unexpected == 0
        answers = []
        for stream in streams:
            answers.append(await read_all(stream))
            await stream.aclose()
    return answers


async def test_idle_connections_and_half_heads_end_at_once(sidecar: FakeSidecar, tmp_path: Path) -> None:
    answers = await open_with(sidecar, tmp_path, UNHURRIED, [b"", b"GET / HT", get("/health")])
    assert answers[:2] == [b"", b""]
    assert answers[2].endswith(b'{"status":"healthy"}')


async def test_event_streams_end_at_once_and_whole(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.push(Followed(message(1)))
    (answer,) = await open_with(sidecar, tmp_path, UNHURRIED, [get(EVENTS)])
    assert b"id: origin-1\n" in answer
    assert answer.endswith(b"\r\n0\r\n\r\n")
    assert sidecar.following == 0


async def test_a_reader_that_never_reads_does_not_hold_the_shutdown(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.endless = Followed(message(1, "x" * 65536))
    await open_with(sidecar, tmp_path, PATIENT, [get(EVENTS)])
    assert sidecar.taken > 0
    assert sidecar.following == 0


async def test_a_list_nobody_reads_does_not_hold_the_shutdown(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.kept = [message(number, "x" * 65536) for number in range(1000)]
    await open_with(sidecar, tmp_path, PATIENT, [get(f"{MESSAGES}?limit=1000"), get(f"{MESSAGES}?limit=32")])


async def test_half_a_body_and_a_refused_one_do_not_hold_the_shutdown(sidecar: FakeSidecar, tmp_path: Path) -> None:
    head = f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: ".encode()
    answers = await open_with(sidecar, tmp_path, PATIENT, [head + b"10\r\n\r\nabc", head + b"999999999\r\n\r\nabc"])
    assert answers[0] == b""
    assert answers[1].startswith(b"HTTP/1.1 413")


async def test_pipelined_requests_behind_a_stream_do_not_hold_the_shutdown(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    await open_with(sidecar, tmp_path, PATIENT, [get(EVENTS) + get("/health") * 100])


async def test_a_publication_under_way_is_finished_within_the_grace(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.gate = gate = trio.Event()
    address = UnixAddress(str(tmp_path / "api.sock"))
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            async with open_api(sidecar, [address], limits=UNHURRIED):
                stream = await trio.open_unix_socket(address.path)
                await stream.send_all(f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx".encode())
                await wait_until(lambda: len(sidecar.publications) == 1)

                async def open_gate_once_nobody_is_let_in() -> None:
                    await wait_until(lambda: not exists(address))
                    gate.set()

                nursery.start_soon(open_gate_once_nobody_is_let_in)
            async with stream:
                assert (await read_all(stream)).startswith(b"HTTP/1.1 202")


async def test_a_publication_that_never_ends_is_cut_after_the_grace(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.gate = trio.Event()
    request = f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx".encode()
    assert await open_with(sidecar, tmp_path, PATIENT, [request]) == [b""]


async def test_nobody_is_accepted_afterwards(sidecar: FakeSidecar, tmp_path: Path) -> None:
    await open_with(sidecar, tmp_path, PATIENT, [])
    with pytest.raises(OSError, match="No such file"):
        await trio.open_unix_socket(str(tmp_path / "api.sock"))


async def test_cancelling_the_block_leaves_as_well(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.endless = Followed(message(1, "x" * 65536))
    address = UnixAddress(str(tmp_path / "api.sock"))
    with trio.fail_after(DEADLINE_SECONDS):
        with trio.CancelScope() as scope:
            async with open_api(sidecar, [address], limits=PATIENT):
                stream = await trio.open_unix_socket(address.path)
                await stream.send_all(get(EVENTS))
                await read_until(stream, b"retry")
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        await stream.aclose()
    assert not exists(address)
    assert sidecar.following == 0
