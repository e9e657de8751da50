"""Our connection between two real hosts on loopback: nothing lost, nobody held up, and it ends when it must."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamClosed, StreamEOF, StreamReset
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamClosed, MuxedStreamReset
from trio.testing import wait_all_tasks_blocked

from p2pnode.core import yamux
from p2pnode.core.peerid import PeerId
from p2pnode.host.fused.connection import FusedConnection
from p2pnode.host.fused.outbox import DEAD_AFTER_LOOKS, FULL_LOOKS, PING_AFTER_LOOKS
from p2pnode.host.fused.stream import WRITE_AHEAD_BYTES, FusedStream
from p2pnode.host.library import LibraryHost, to_library_id
from p2pnode.host.opening import Stack, open_host
from p2pnode.identity import Identity
from p2pnode.ports import Link
from tests.host.raw import ACK, DATA, PING, RST, SYN, WINDOW, RawPeer, data_frame, frame, proxy_to, raw_peer

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
ECHO, HOLD = "/test/echo", "/test/hold"
MIB = 1024 * 1024
DEADLINE_SECONDS = 60.0
STACKS: list[tuple[Stack, Stack]] = [("fused", "fused"), ("fused", "library"), ("library", "fused")]


class Watch:
    """Hears of links, as a node does."""

    def __init__(self) -> None:
        self.closed: list[PeerId] = []

    def link_opened(self, link: Link) -> None: ...

    def link_closed(self, peer: PeerId, *, by_intent: bool) -> None:
        self.closed.append(peer)

    def link_silent(self, peer: PeerId) -> None: ...


class Pair:
    """`dialler` has dialled `listener`, which serves an echo, and streams that it reads when told."""

    def __init__(self, dialler: LibraryHost, listener: LibraryHost) -> None:
        self.dialler = dialler
        self.listener = listener
        self.held: list[INetStream] = []
        self.watch = Watch()

    async def open(self, protocol: str) -> INetStream:
        return await self.dialler.library.new_stream(to_library_id(self.listener.peer_id), [TProtocol(protocol)])

    async def open_held(self) -> tuple[INetStream, INetStream]:
        """Both ends of a stream."""
        stream = await self.open(HOLD)
        await until(lambda: bool(self.held))
        return stream, self.held.pop()

    async def echoed(self, data: bytes) -> bytes:
        """What comes back of it."""
        stream = await self.open(ECHO)
        got = bytearray()

        async def write() -> None:
            for start in range(0, len(data), 300_000):
                await stream.write(data[start : start + 300_000])
            await stream.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while len(got) < len(data):
                got += await stream.read(65_536)
        return bytes(got)


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        while not holds():  # noqa: ASYNC110  # what others do on real sockets
            await trio.sleep(0.005)


async def echo(stream: INetStream) -> None:
    try:
        while True:
            await stream.write(await stream.read(65_536))
    except StreamEOF:
        await stream.close()


@asynccontextmanager
async def linked(dials: Stack = "fused", listens: Stack = "fused") -> AsyncIterator[Pair]:
    async with (
        open_host(Identity.generate(), LOOPBACK, stack=listens) as listener,
        open_host(Identity.generate(), [], stack=dials) as dialler,
    ):
        pair = Pair(dialler, listener)

        async def hold(stream: INetStream) -> None:
            pair.held.append(stream)
            await trio.sleep_forever()

        listener.set_handler(ECHO, echo)
        listener.set_handler(HOLD, hold)
        dialler.report_to(pair.watch)
        with trio.fail_after(DEADLINE_SECONDS):
            await dialler.dial(listener.addrs()[0])
            yield pair


def connection_of(host: LibraryHost) -> FusedConnection:
    """The only one of a host."""
    (connection,) = host.swarm.get_connections()
    assert isinstance(connection.muxed_conn, FusedConnection)
    return connection.muxed_conn


def muxed(stream: INetStream) -> FusedStream:
    inner = getattr(stream, "muxed_stream", None)
    assert isinstance(inner, FusedStream)
    return inner


def rss_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) / 1024


# -- what is written arrives ----------------------------------------------------------------------


@pytest.mark.parametrize(("dials", "listens"), STACKS)
async def test_three_times_8_mib_come_back_as_they_were(dials: Stack, listens: Stack) -> None:
    sent = [os.urandom(8 * MIB) for _ in range(3)]
    got: dict[int, bytes] = {}
    async with linked(dials, listens) as pair:

        async def one(number: int) -> None:
            got[number] = await pair.echoed(sent[number])

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(one, number)
        print(f"\n{dials} to {listens}: 3 x 8 MiB echoed in {trio.current_time() - start:.2f} s")
    assert all(got[number] == sent[number] for number in range(3))


@pytest.mark.parametrize(("dials", "listens"), STACKS)
async def test_a_hundred_streams_at_once_each_get_their_own(dials: Stack, listens: Stack) -> None:
    sent = [os.urandom(20_000) for _ in range(100)]
    got: dict[int, bytes] = {}
    async with linked(dials, listens) as pair:

        async def one(number: int) -> None:
            got[number] = await pair.echoed(sent[number])

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)
    assert all(got[number] == sent[number] for number in range(100))


@pytest.mark.parametrize("listens", ["fused", "library"])
async def test_a_cancelled_write_leaves_no_half_frame(listens: Stack) -> None:
    data = os.urandom(2 * MIB)
    async with linked("fused", listens) as pair:
        stream, other = await pair.open_held()
        scope = trio.CancelScope()

        async def write() -> None:
            with scope:
                await stream.write(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while not muxed(stream).state.waiting:  # caught in the act
                await trio.lowlevel.checkpoint()
            scope.cancel()
        assert scope.cancelled_caught
        # The connection works as ever, and what was queued arrives whole.
        assert await pair.echoed(b"meanwhile") == b"meanwhile"
        assert muxed(stream).write_nowait(b"the end")
        got = bytearray()
        while len(got) < len(data) + 7:
            got += await other.read(65_536)
        assert got == data + b"the end"


@pytest.mark.parametrize(("dials", "listens"), STACKS)
async def test_an_end_closed_for_writing_still_reads(dials: Stack, listens: Stack) -> None:
    async with linked(dials, listens) as pair:
        stream, other = await pair.open_held()
        await stream.write(b"question")
        await stream.close_write() if dials == "library" else await stream.close()  # type: ignore[attr-defined]
        assert await other.read(8) == b"question"
        with pytest.raises(StreamEOF):
            await other.read(1)
        await other.write(b"answer")
        assert await stream.read(6) == b"answer"


@pytest.mark.parametrize(("dials", "listens"), STACKS)
async def test_a_reset_reaches_the_other_side(dials: Stack, listens: Stack) -> None:
    async with linked(dials, listens) as pair:
        stream, other = await pair.open_held()
        await stream.reset()
        # The library's own streams report a reset as an end.
        with pytest.raises(StreamReset if listens == "fused" else (StreamReset, StreamEOF)):
            await other.read(1)
        with pytest.raises((StreamReset, StreamClosed)):
            await other.write(b"too late")
        assert await pair.echoed(b"another stream") == b"another stream"


# -- who does not read ----------------------------------------------------------------------------


async def test_a_slow_reader_bounds_its_writer_and_holds_up_no_other_stream() -> None:
    async with linked() as pair:
        stream, other = await pair.open_held()
        before, most = rss_mib(), 0
        sent = bytearray()

        async def write_on() -> None:
            while True:
                data = os.urandom(WRITE_AHEAD_BYTES)
                sent.extend(data)
                await stream.write(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on)
            await until(lambda: muxed(stream).state.send_window == 0)
            echoed = os.urandom(4 * MIB)
            assert await pair.echoed(echoed) == echoed
            most = muxed(stream).state.waiting
            # One window lies with the reader, and one write waits.
            assert most <= 2 * WRITE_AHEAD_BYTES
            assert muxed(other).state.unread <= yamux.INITIAL_WINDOW_BYTES
            got = bytearray()
            while len(got) < MIB:
                got += await other.read(1000)
            nursery.cancel_scope.cancel()
        assert got == sent[: len(got)]
        print(f"\na slow reader's writer holds {most / 1024:.0f} KiB; the process grew by {rss_mib() - before:.1f} MiB")


@asynccontextmanager
async def full_link() -> AsyncIterator[tuple[LibraryHost, RawPeer, FusedConnection]]:
    """A host that has written more to a peer than the peer's kernel takes; the peer reads nothing."""
    async with open_host(Identity.generate(), LOOPBACK) as host:
        with trio.fail_after(DEADLINE_SECONDS):
            async with raw_peer(host.addrs()[0]) as peer:
                await until(lambda: peer.peer_id in host.links())
                connection = connection_of(host)
                await fill(connection)
                yield host, peer, connection


async def fill(connection: FusedConnection) -> None:
    for _ in range(yamux.Limits().max_unacknowledged // 2):
        stream = await connection.open_stream()
        assert stream.write_nowait(bytes(yamux.INITIAL_WINDOW_BYTES))
        await wait_all_tasks_blocked()
        if connection.is_full:
            return
    raise AssertionError("the kernel took everything")


async def test_hanging_up_on_a_peer_that_never_reads_waits_for_nobody() -> None:
    async with full_link() as (host, peer, connection):
        watch = Watch()
        host.report_to(watch)
        start = trio.current_time()
        await host.hang_up(peer.peer_id)
        print(f"\nhung up on a peer that never reads in {trio.current_time() - start:.3f} s")
        await until(lambda: watch.closed == [peer.peer_id])
        assert connection.is_closed
        assert not host.links()
        assert not host.swarm.get_connections()


STOPPED_PEER = """
import sys, trio
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity

async def main():
    async with open_host(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"]) as host:
        print(host.addrs()[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""


def start_peer() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", STOPPED_PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def test_hanging_up_on_a_stopped_process_waits_for_nobody() -> None:
    process = start_peer()
    try:
        assert process.stdout is not None
        addr = (await trio.to_thread.run_sync(process.stdout.readline)).decode().strip()
        async with open_host(Identity.generate(), []) as host:
            watch = Watch()
            host.report_to(watch)
            with trio.fail_after(DEADLINE_SECONDS):
                peer = await host.dial(addr)
                process.send_signal(signal.SIGSTOP)
                await fill(connection_of(host))
                start = trio.current_time()
                await host.hang_up(peer)
                print(f"\nhung up on a stopped process in {trio.current_time() - start:.3f} s")
                await until(lambda: watch.closed == [peer])
    finally:
        process.kill()
        process.communicate()


async def test_whoever_waits_in_a_stream_hears_why_the_connection_ended() -> None:
    async with linked() as pair:
        stream, _ = await pair.open_held()
        heard: list[str] = []

        async def read() -> None:
            try:
                await muxed(stream).read(1)
            except MuxedStreamReset as error:
                heard.append(str(error))

        async def write() -> None:
            try:
                await muxed(stream).write(bytes(MIB))
            except MuxedStreamReset as error:
                heard.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(write)
            await until(lambda: muxed(stream).state.send_window == 0)
            await pair.dialler.hang_up(pair.listener.peer_id)
        assert heard == ["closed by us"] * 2
        with pytest.raises(MuxedConnUnavailable, match="closed by us"):
            await muxed(stream).muxed_conn.open_stream()


# -- who says nothing -----------------------------------------------------------------------------


async def test_a_silent_peer_that_lives_is_pinged_and_stays() -> None:
    async with linked() as pair:
        connection = connection_of(pair.dialler)
        for _ in range(3 * DEAD_AFTER_LOOKS // PING_AFTER_LOOKS):
            while connection.silent_looks < PING_AFTER_LOOKS:
                pair.dialler.outbox.look()
            await until(lambda: connection.silent_looks == 0)
        assert not connection.is_closed
        assert await pair.echoed(b"still here") == b"still here"


async def test_a_peer_that_vanished_is_closed_on_both_sides() -> None:
    async with open_host(Identity.generate(), LOOPBACK) as listener, open_host(Identity.generate(), []) as dialler:
        with trio.fail_after(DEADLINE_SECONDS):
            async with proxy_to(listener.addrs()[0]) as (proxy, addr):
                await dialler.dial(addr)
                await until(lambda: bool(listener.links()))
                proxy.blackhole()
                for host in (dialler, listener):
                    connection = connection_of(host)
                    while not connection.is_closed:
                        host.outbox.look()
                    assert connection.silent_looks == DEAD_AFTER_LOOKS
                    assert host.outbox.broken_by["silent"] == 1
                    await until(lambda host=host: not host.links())  # type: ignore[misc]


async def test_a_peer_that_speaks_and_reads_nothing_is_closed() -> None:
    async with full_link() as (host, peer, connection):
        looks = 0
        while not connection.is_closed:
            host.outbox.look()
            looks += 1
            # It asks now and then, so silence is not what ends it.
            await peer.send(frame(PING, SYN, 0, looks))
            await until(lambda: connection.is_closed or connection.silent_looks == 0)
        assert looks <= FULL_LOOKS
        assert host.outbox.broken_by == {"full": 1}
        await until(lambda: not host.links())


# -- what goes wrong above and below --------------------------------------------------------------


async def test_an_exception_in_a_streams_reader_ends_that_stream_only() -> None:
    async with linked() as pair:
        stream, other = await pair.open_held()

        def fail(data: bytes) -> None:
            raise ZeroDivisionError

        muxed(other).feed(fail)
        await stream.write(b"x")
        with pytest.raises(StreamReset):
            await stream.read(1)
        assert pair.listener.outbox.failures == 1
        assert pair.listener.counters()["failed", "stream"] == 1
        assert await pair.echoed(b"another stream") == b"another stream"


async def test_what_is_to_be_done_soon_is_done_once_and_its_failure_ends_nothing() -> None:
    async with linked() as pair:
        done: list[str] = []

        def fail() -> None:
            done.append("failed")
            raise ZeroDivisionError

        pair.dialler.outbox.soon(fail)
        pair.dialler.outbox.soon(lambda: done.append("next"))
        assert done == []
        assert await pair.echoed(b"afterwards") == b"afterwards"
        assert await pair.echoed(b"once more") == b"once more"
        assert done == ["failed", "next"]
        assert pair.dialler.outbox.failures == 1


async def test_an_exception_in_a_streams_writer_ends_that_stream_only() -> None:
    async with linked() as pair:
        stream, other = await pair.open_held()

        def fail() -> None:
            raise ZeroDivisionError

        muxed(stream).on_drained = fail
        await stream.write(b"x")
        await until(lambda: muxed(other).reset_by is not None)
        with pytest.raises(StreamReset):
            await other.read(1)
        assert pair.dialler.outbox.failures == 1
        assert await pair.echoed(b"another stream") == b"another stream"


async def test_an_exception_in_the_reader_ends_that_connection_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked() as pair, open_host(Identity.generate(), []) as third:
        await third.dial(pair.listener.addrs()[0])
        await until(lambda: len(pair.listener.links()) == 2)
        (broken,) = pair.listener.swarm.get_connections(to_library_id(pair.dialler.peer_id))
        assert isinstance(broken.muxed_conn, FusedConnection)

        def fail(data: bytes, now: float) -> list[yamux.Event]:
            raise ZeroDivisionError

        monkeypatch.setattr(broken.muxed_conn._session, "receive", fail)
        connection_of(pair.dialler).ping()
        await until(lambda: pair.watch.closed == [pair.listener.peer_id])
        await until(lambda: list(pair.listener.links()) == [third.peer_id])
        assert pair.listener.outbox.failures == 1
        assert await third.ping(pair.listener.peer_id) > 0


async def test_more_streams_than_the_peer_acknowledges_is_an_error_with_a_name() -> None:
    async with open_host(Identity.generate(), LOOPBACK) as host, raw_peer(host.addrs()[0]) as peer:
        await until(lambda: peer.peer_id in host.links())
        connection = connection_of(host)
        limit = yamux.Limits().max_unacknowledged
        for _ in range(limit - connection._session._unacknowledged):
            await connection.open_stream()
        with pytest.raises(MuxedConnUnavailable, match=rf"yet to acknowledge {limit} streams"):
            await connection.open_stream()
        # It acknowledges one, and there is place for one again.
        await peer.send(frame(WINDOW, ACK, 2, 0))
        await until(lambda: connection._session._unacknowledged < limit)
        await connection.open_stream()


async def test_write_nowait_says_whether_it_can_still_be_written() -> None:
    async with linked() as pair:
        stream, other = await pair.open_held()
        assert muxed(stream).write_nowait(b"x")
        await stream.close()
        assert not muxed(stream).write_nowait(b"x")
        with pytest.raises(MuxedStreamClosed):
            await muxed(stream).write(b"x")
        # The other end may go on; until it is reset.
        assert muxed(other).write_nowait(b"x")
        await stream.reset()
        await muxed(other).ended()
        await until(lambda: muxed(other).reset_by is not None)
        assert not muxed(other).write_nowait(b"x")


async def test_a_stream_that_was_reset_in_the_same_read_takes_nothing_and_harms_nobody() -> None:
    """Data that is answered by a stream which the peer reset right behind it."""
    async with open_host(Identity.generate(), LOOPBACK) as host, raw_peer(host.addrs()[0]) as peer:
        await until(lambda: peer.peer_id in host.links())
        connection = connection_of(host)
        asks, answers = await connection.open_stream(), await connection.open_stream()
        verdicts: list[bool] = []
        asks.feed(lambda data: verdicts.append(answers.write_nowait(b"answer")))
        acknowledged = [frame(WINDOW, ACK, stream.state.id, 0) for stream in (asks, answers)]
        await peer.send(*acknowledged, data_frame(asks.state.id, b"?"), frame(WINDOW, RST, answers.state.id, 0))
        await until(lambda: answers.reset_by is not None)
        assert verdicts == [False]
        assert host.outbox.failures == 0
        assert asks.reset_by is None


async def test_streams_whose_negotiation_failed_leave_nothing_open() -> None:
    """Each is one of the 256 that a peer may have open."""
    async with open_host(Identity.generate(), LOOPBACK) as host, raw_peer(host.addrs()[0]) as peer:
        await until(lambda: peer.peer_id in host.links())
        connection = connection_of(host)
        session = connection._session
        inbound = session._inbound
        for number, garbage in enumerate((b"\x03\xff\xff\n", b"\x05none\n", b"\xff" * 20, b"\x01\n", b"")):
            stream = 2 * number + 1
            await peer.send(frame(WINDOW, SYN, stream, 0))
            await peer.send(data_frame(stream, garbage, 4))
        with trio.fail_after(DEADLINE_SECONDS):
            while session._highest_remote < stream or session._inbound > inbound:
                await peer.read_some()


async def test_a_connection_that_breaks_while_it_is_made_known_is_forgotten() -> None:
    async with open_host(Identity.generate(), LOOPBACK) as host:
        watch = Watch()
        host.report_to(watch)
        for _ in range(20):
            async with raw_peer(host.addrs()[0]) as peer:
                await peer.send(frame(9, 0, 0, 0))
                await peer.closed()
        await until(lambda: host.outbox.broken_by["type"] == 20)
        await until(lambda: not host.links() and not host.swarm.get_connections() and not host.outbox.connections)


async def test_a_connection_that_came_in_and_ended_leaves_no_task_behind() -> None:
    async with open_host(Identity.generate(), LOOPBACK) as host:
        await wait_all_tasks_blocked()  # those of the host itself are there
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(20):
            async with raw_peer(host.addrs()[0]):
                pass
        await until(lambda: not host.swarm.get_connections() and not host.outbox.connections)
        await until(lambda: trio.lowlevel.current_statistics().tasks_living <= before)


async def test_many_that_break_the_protocol_write_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    async with open_host(Identity.generate(), LOOPBACK) as host:
        for _ in range(30):
            async with raw_peer(host.addrs()[0]) as peer:
                await peer.send(frame(DATA, 0, 0, 0))
                await peer.closed()
        assert host.counters()["broken", "stream-zero"] == 30
    lines = [record for record in caplog.records if "broke the protocol" in record.message]
    assert len(lines) == 10


async def test_a_connection_that_the_kernel_gave_up_says_what_the_kernel_said() -> None:
    async with linked() as pair:
        connection = connection_of(pair.dialler)
        assert connection._os_reason(OSError(errno.ECONNRESET, "Connection reset by peer")).startswith("the connection")
        assert connection._os_reason(OSError(errno.EIO, "Input/output error")) == "socket: Input/output error"
