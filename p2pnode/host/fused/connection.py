"""One connection: a reader that decrypts, demultiplexes and answers in one pass; a writer for when the socket is full.

Nothing waits in between: whoever wants to send queues bytes, and at the end of each pass all
that is queued leaves in one write. Only when the kernel takes no more does the connection's
writer wait for it. So a cancelled task can leave no half frame behind, and closing waits for nobody.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import IMuxedConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from multiaddr.multiaddr import Multiaddr

from p2pnode.core import yamux
from p2pnode.errors import InvalidMessage, Unavailable
from p2pnode.host.fused.outbox import Outbox
from p2pnode.host.fused.stream import FusedStream
from p2pnode.host.fused.takeover import Handshaken
from p2pnode.host.psk import Xor

log = logging.getLogger(__name__)

READ_BYTES = 128 * 1024
WRITE_BYTES = 256 * 1024
"""What is encrypted for one write; so much stays in memory for a socket that is full, whatever was queued."""

CLOSED_BY_PEER = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT, errno.ENOTCONN})


class FusedConnection(IMuxedConn):
    """The library's view of a connection, and the work of it.

    Args:
        handshaken: socket and keys.
        peer_id: who is at the other end.
        is_initiator: we dialled.
        outbox: shared by all connections of a host; writes at the end of each pass.
        budget: shared too; what may lie unread in all.

    Attributes:
        closed_for: why it was closed; None while it is open.
        ended: set when it is closed.
        on_close: the library's hook, called once when the connection ended.
        silent_looks: looks of the keeper since something came.
        full_looks: looks that found the socket full since it last took something.
        by_intent: one of the two sides said that it closes.
        round_trip: of the last ping, in seconds; None before the first.
    """

    def __init__(  # the library's own signature ends after peer_id, but only its muxers are made by it
        self, handshaken: Handshaken, peer_id: ID, is_initiator: bool, *, outbox: Outbox, budget: yamux.Budget
    ) -> None:
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self.on_close: Callable[[], Awaitable[None]] | None = None
        self.negotiated_muxer_protocol = "/yamux/1.0.0"
        self.closed_for: str | None = None
        self.ended = trio.Event()
        self.silent_looks = 0
        self.full_looks = 0
        self.by_intent = False
        self.round_trip: float | None = None
        self._pinged: tuple[int, float] | None = None
        self._is_initiator = is_initiator
        self._socket = handshaken.stream.socket
        self._fd = self._socket.fileno()
        self._remote: tuple[str, int] = self._socket.getpeername()[:2]
        self._seal: Xor = handshaken.seal.seal
        self._open: Xor = handshaken.open.feed
        if handshaken.cloak is not None:
            self._seal, self._open = _cloaked(handshaken.cloak, self._seal, self._open)
        self._opener = handshaken.open
        self._early = handshaken.early
        self._session = yamux.Session(initiator=is_initiator, budget=budget)
        self._outbox = outbox
        self._streams: dict[yamux.Stream, FusedStream] = {}
        self._opened: deque[FusedStream] = deque()
        self._opened_event = trio.Event()
        self._unsent = b""
        self._full = trio.Event()

    # -- what the library calls --------------------------------------------------------

    @property
    def is_initiator(self) -> bool:
        return self._is_initiator

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_full(self) -> bool:
        """Bytes wait for the kernel to take them."""
        return bool(self._unsent)

    @property
    def is_closed(self) -> bool:
        return self.closed_for is not None

    async def start(self) -> None:
        """Read and write until the connection ends, however it ends; nothing is raised."""
        async with trio.open_nursery() as nursery:
            self._outbox.connections.add(self)
            try:
                self.event_started.set()
                nursery.start_soon(self._write_when_possible)
                await self._read()
            finally:
                self._outbox.connections.discard(self)
                self.abort("the host stops")
                nursery.cancel_scope.cancel()
        if self.on_close is not None:
            await self.on_close()

    async def open_stream(self) -> FusedStream:
        if self.closed_for is not None:
            raise MuxedConnUnavailable(self.closed_for)
        try:
            state = self._session.open()
        except Unavailable as error:
            raise MuxedConnUnavailable(error.detail) from error
        self._outbox.mark(self)
        return self._made(state)

    async def accept_stream(self) -> FusedStream:
        while not self._opened:
            if self.closed_for is not None:
                raise MuxedConnUnavailable(self.closed_for)
            self._opened_event = trio.Event()
            await self._opened_event.wait()
        return self._opened.popleft()

    async def close(self) -> None:
        """Close at once, whatever the peer does."""
        self.abort("closed by us", yamux.GoAwayCode.NORMAL)

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._remote

    def get_transport_addresses(self) -> list[Multiaddr]:
        host, port = self._remote
        return [Multiaddr(f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}")]

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT

    # -- what its streams call ---------------------------------------------------------

    def write(self, state: yamux.Stream, data: bytes) -> None:
        self._session.write(state, data)
        self._outbox.mark(self)

    def consumed(self, state: yamux.Stream, size: int) -> None:
        self._session.consumed(state, size)
        if self._session.pending():
            self._outbox.mark(self)

    def finish(self, state: yamux.Stream) -> None:
        self._session.finish(state)
        self._forget_if_gone(state)
        self._outbox.mark(self)

    def reset(self, state: yamux.Stream) -> None:
        self._session.reset(state)
        self._streams.pop(state, None)
        self._outbox.mark(self)

    # -- life and death ----------------------------------------------------------------

    def ping(self) -> None:
        """Make a silent peer say something, and measure how long it takes."""
        self._pinged = (self._session.ping(), trio.current_time())
        self._outbox.mark(self)

    def abort(self, reason: str, code: yamux.GoAwayCode | None = None) -> None:
        """Close the socket now; whoever waits in a stream or for one hears why.

        Args:
            reason: for logs and errors.
            code: told to the peer, if the socket takes it at once.
        """
        if self.closed_for is not None:
            return
        self.closed_for = reason
        self.by_intent = self.by_intent or code is yamux.GoAwayCode.NORMAL
        self.ended.set()
        log.debug("a connection ends", extra={"peer": str(self.peer_id), "reason": reason})
        if code is not None and not self._unsent:
            self._session.go_away(code)
            self._last_words()
        self._session.close()
        self._unsent = b""
        for stream in tuple(self._streams.values()):
            stream.was_reset(reason)
        self._streams.clear()
        self._opened.clear()
        self._opened_event.set()
        self._full.set()
        self._socket.close()  # wakes the reader and the writer with ClosedResourceError

    def _last_words(self) -> None:
        try:
            os.write(self._fd, self._seal(self._session.take(0)))
        except OSError:
            pass  # full or gone: the peer learns it from the socket

    async def _read(self) -> None:
        session, opener, open_, fd = self._session, self._opener, self._open, self._fd
        data = b""
        try:
            if self._early:
                self._pass(self._early)
            while self.closed_for is None:
                await trio.lowlevel.wait_readable(fd)
                if self.is_closed:
                    return  # since it was woken: the descriptor may be another socket's by now
                try:
                    data = os.read(fd, READ_BYTES)
                except BlockingIOError:
                    continue
                if not data:
                    if opener.cut or session.cut:
                        self._outbox.ended(self, "cut", "the peer closed the connection within a frame")
                    else:
                        self.abort("the peer closed the connection")
                    return
                self.silent_looks = 0
                self._pass(open_(data))
        except trio.ClosedResourceError:
            self.abort("closed by us")
        except InvalidMessage as error:
            self._outbox.broken(self, error)
        except OSError as error:
            self.abort(self._os_reason(error))
        except Exception:
            # The library ends the whole host for whatever leaves `start`.
            self._outbox.failed("a connection's reader failed; only its connection ends")
            self.abort("its reader failed", yamux.GoAwayCode.INTERNAL_ERROR)

    def _pass(self, plain: bytes) -> None:
        """Digest what came, and send what it brought about."""
        outbox = self._outbox
        outbox.hold()
        try:
            for event in self._session.receive(plain, trio.current_time()):
                if type(event) is yamux.Data:
                    stream = self._streams.get(event.stream)
                    if stream is not None:
                        self._came(stream, event.data)
                else:
                    self._event(event)
            if self._session.pending():
                outbox.mark(self)
        finally:
            outbox.release()

    def _came(self, stream: FusedStream, data: bytes) -> None:
        try:
            stream.came(data)
        except Exception:
            # Whatever goes wrong above us ends one stream, not the reader of all of them.
            self._outbox.failed("a stream's reader failed; only its stream ends")
            stream.abort("its reader failed")

    def _event(self, event: yamux.Event) -> None:
        match event:
            case yamux.Opened(state):
                if self.closed_for is None:
                    self._session.accept(state)
                    self._opened.append(self._made(state))
                    self._opened_event.set()
            case yamux.Finished(state):
                if (stream := self._streams.get(state)) is not None:
                    stream.finished()
                self._forget_if_gone(state)
            case yamux.WasReset(state, reason):
                if (stream := self._streams.pop(state, None)) is not None:
                    stream.was_reset(reason or "reset by the peer")
            case yamux.Pong(number):
                if self._pinged is not None and self._pinged[0] == number:
                    self.round_trip = trio.current_time() - self._pinged[1]
                    self._pinged = None
            case yamux.GoneAway(code):
                self.by_intent = code == yamux.GoAwayCode.NORMAL
                log.debug("a peer goes away", extra={"peer": str(self.peer_id), "code": code})

    def _made(self, state: yamux.Stream) -> FusedStream:
        stream = self._streams[state] = FusedStream(self, state)
        return stream

    def _forget_if_gone(self, state: yamux.Stream) -> None:
        if state.gone:
            self._streams.pop(state, None)

    # -- writing -----------------------------------------------------------------------

    def flush(self) -> None:
        """Send what is queued, as far as the kernel takes it now; the writer sees to the rest."""
        if self.closed_for is not None or self._unsent:
            return
        try:
            while plain := self._session.take(WRITE_BYTES):
                self._unsent = self._seal(plain)
                if not self._send():
                    self._full.set()
                    return
                self._tell_drained()
        except OSError as error:
            self.abort(self._os_reason(error))

    def _tell_drained(self) -> None:
        for state in self._session.drained():
            if (stream := self._streams.get(state)) is not None:
                self._drained(stream)
            self._forget_if_gone(state)

    def _drained(self, stream: FusedStream) -> None:
        try:
            stream.drained()
        except Exception:
            # It may run within the pass of another connection, which has no part in it.
            self._outbox.failed("a stream's writer failed; only its stream ends")
            stream.abort("its writer failed")

    def _send(self) -> bool:
        """Whether all of it left."""
        data = self._unsent
        while data:
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                self._unsent = data
                return False
            self.full_looks = 0
            data = data[sent:]
        self._unsent = b""
        return True

    async def _write_when_possible(self) -> None:
        try:
            while self.closed_for is None:
                await self._full.wait()
                while self._unsent:
                    await trio.lowlevel.wait_writable(self._fd)
                    self._send()
                self._full = trio.Event()
                self._tell_drained()
                self.flush()
        except trio.ClosedResourceError:
            return
        except OSError as error:
            self.abort(self._os_reason(error))

    def _os_reason(self, error: OSError) -> str:
        if error.errno in CLOSED_BY_PEER:
            return f"the connection broke: {error.strerror}"
        return f"socket: {error.strerror or error}"


def _cloaked(cloak: tuple[Xor, Xor], seal: Xor, open_: Xor) -> tuple[Xor, Xor]:
    reading, writing = cloak
    return (lambda plain: writing(seal(plain))), (lambda data: open_(reading(data)))
