"""Pubsub streams: one outbound stream per peer kept open, frames out without waiting, whole frames in.

Every connected peer gets one outbound stream, opened at once and reopened with backoff; a
stream that ends takes nothing with it but what was in it, which the router is told.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from random import Random

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol

from p2pnode.core.gossipsub.events import Priority, Protocol
from p2pnode.core.message import MessageId
from p2pnode.core.peerid import PeerId
from p2pnode.errors import InvalidMessage
from p2pnode.host.foreign import LIBRARY_ERRORS, from_library_id, to_library_id
from p2pnode.host.frames import encode_frame
from p2pnode.host.lanes import WRITE_SECONDS, Lane, lane_for, read_frames
from p2pnode.host.library import LibraryHost
from p2pnode.host.outbound import Frame, OutboundQueue
from p2pnode.logs import Throttled
from p2pnode.ports import Link, MeshsubEvents
from p2pnode.wire.rpc import MAX_RPC_BYTES

log = logging.getLogger(__name__)

PROTOCOLS = {"/meshsub/1.2.0": Protocol.V1_2, "/meshsub/1.1.0": Protocol.V1_1}
OPEN_SECONDS = 10.0
BROKEN_WRITES = 3
"""A peer in which so many streams in a row came to a halt is hung up on: the library gives a write up after 5 s
without window, and each new stream would bring a peer that never reads another window."""

FULL_SECONDS = 10.0
"""A peer whose queue overflowed again and again for this long is hung up on."""

REOPEN_BACKOFF_SECONDS = (0.2, 30.0)


class _Peer:
    """One connected peer's streams.

    Attributes:
        known: the router was told of it.
        lane: our stream to it, while there is one.
        lost: messages in earlier streams that it may not have read; the router is told when the next one is open.
        inbound: its stream to us; a second one replaces it, as go-libp2p-pubsub does.
    """

    def __init__(self, link: Link, scope: trio.CancelScope) -> None:
        self.link = link
        self.scope = scope
        self.queue = OutboundQueue()
        self.lane: Lane | None = None
        self.lost: tuple[MessageId, ...] = ()
        self.known = False
        self.opened_once = False
        self.inbound: INetStream | None = None
        self.full_since: tuple[float, int] | None = None
        self.broken_writes = 0

    def sent(self) -> int:
        """Bytes that its present stream took."""
        return self.lane.sent if self.lane is not None else 0


class Meshsub:
    """`ports.Meshsub` on py-libp2p's streams. Made by `open_meshsub`."""

    def __init__(self, host: LibraryHost, nursery: trio.Nursery, rng: Random) -> None:
        self._host = host
        self._nursery = nursery
        self._rng = rng
        self._peers: dict[PeerId, _Peer] = {}
        self._events: MeshsubEvents | None = None
        self._deaf = Throttled(log)
        self._garbage = Throttled(log)

    def report_to(self, events: MeshsubEvents) -> None:
        """Who hears from now on; until then nothing is accepted and nothing opened."""
        self._events = events
        for protocol in PROTOCOLS:
            self._host.set_handler(protocol, self._serve)
        for link in tuple(self._host.links().values()):
            self.link_opened(link)

    def link_opened(self, link: Link) -> None:
        if self._events is None or link.peer in self._peers:
            return
        scope = trio.CancelScope()
        self._peers[link.peer] = _Peer(link, scope)
        self._nursery.start_soon(self._keep_outbound, self._peers[link.peer])

    def link_silent(self, peer: PeerId) -> None:
        """Its queue says soon enough when it takes nothing."""

    def link_closed(self, peer: PeerId, *, by_intent: bool) -> None:
        gone = self._peers.pop(peer, None)
        if gone is not None:
            gone.scope.cancel()
            if gone.known and self._events is not None:
                self._events.peer_gone(peer)

    def send(self, peers: Iterable[PeerId], body: bytes, priority: Priority, message_id: MessageId | None) -> None:
        """Queue one RPC for each of `peers`; never waits. What is dropped for it is reported as `peer_refused`."""
        frame = Frame(encode_frame(body), message_id)
        for peer_id in peers:
            peer = self._peers.get(peer_id)
            if peer is None:
                continue
            taken, lost = peer.queue.push(frame, priority)
            if lost or not taken:
                self._overflowed(peer, lost)
            elif peer.lane is not None:
                peer.lane.wake()

    def _overflowed(self, peer: _Peer, lost: tuple[MessageId, ...]) -> None:
        now, sent = trio.current_time(), peer.sent()
        if peer.full_since is None or peer.full_since[1] != sent:
            peer.full_since = (now, sent)
        elif now - peer.full_since[0] > FULL_SECONDS:
            self._deaf.warning("a peer does not read what it is sent; hanging up", {"peer": peer.link.peer})
            peer.full_since = None
            self.hang_up(peer.link.peer)
        if self._events is not None:
            self._events.peer_refused(peer.link.peer, lost)

    def soon(self, call: Callable[[], None]) -> None:
        """Call back when all that came together has been read; what `call` sends leaves at its end."""
        self._host.outbox.soon(call)

    def hang_up(self, peer: PeerId) -> None:
        """Close all connections with a peer, without waiting for it."""
        self._nursery.start_soon(self._host.hang_up, peer)

    def waiting(self, peer: PeerId) -> int:
        """Frames queued for one peer."""
        known = self._peers.get(peer)
        return known.queue.frames if known else 0

    def queues(self) -> Mapping[PeerId, OutboundQueue]:
        return {peer_id: peer.queue for peer_id, peer in self._peers.items()}

    def peer_record(self, peer: PeerId) -> bytes | None:
        """The signed peer record that identify brought, as it came."""
        envelope = self._host.library.get_peerstore().get_peer_record(to_library_id(peer))
        return envelope.marshal_envelope() if envelope is not None else None

    def agent_version(self, peer: PeerId) -> str | None:
        """What the peer called its software in identify; None until it did."""
        return self._host.agent_version(peer)

    async def _keep_outbound(self, peer: _Peer) -> None:
        shortest, longest = REOPEN_BACKOFF_SECONDS
        pause = shortest
        with peer.scope:
            while True:
                stream = await self._open(peer)
                if stream is not None:
                    pause = shortest
                    try:
                        await self._write_until_it_ends(peer, stream)
                    finally:
                        await self._host.reset(stream)
                await trio.sleep(pause * self._rng.uniform(0.5, 1.0))
                pause = min(pause * 2, longest)

    async def _open(self, peer: _Peer) -> INetStream | None:
        try:
            with trio.fail_after(OPEN_SECONDS):
                stream = await self._host.library.new_stream(
                    to_library_id(peer.link.peer), [TProtocol(protocol) for protocol in PROTOCOLS]
                )
        except (trio.TooSlowError, *LIBRARY_ERRORS) as error:
            log.debug("no pubsub stream", extra={"peer": peer.link.peer, "reason": str(error)[:200]})
            return None
        assert self._events is not None
        if peer.opened_once:
            # What was in the old stream may be lost, our subscriptions with it.
            self._events.peer_reopened(peer.link.peer)
            if peer.lost:
                self._events.peer_refused(peer.link.peer, peer.lost)
                peer.lost = ()
        peer.opened_once = True
        self._introduce(peer, str(stream.get_protocol()))
        return stream

    def _introduce(self, peer: _Peer, protocol: str) -> None:
        """Tell the router, at the first stream in either direction."""
        if not peer.known and self._events is not None:
            peer.known = True
            self._events.peer_ready(peer.link, PROTOCOLS.get(protocol, Protocol.V1_1))

    async def _write_until_it_ends(self, peer: _Peer, stream: INetStream) -> None:
        """Write what is queued, all in one write, until the stream breaks or the peer does not read."""
        since = trio.current_time()
        peer.lane = lane_for(stream, peer.queue)
        try:
            await peer.lane.run()
        except trio.TooSlowError:
            self._deaf.warning(f"a peer took nothing for {WRITE_SECONDS:g} s; hanging up", {"peer": peer.link.peer})
            self.hang_up(peer.link.peer)
        except LIBRARY_ERRORS as error:
            log.debug("pubsub stream ended", extra={"peer": peer.link.peer, "reason": str(error)[:200]})
            self._broke(peer, trio.current_time() - since)
        finally:
            peer.lost = peer.lane.unread()
            peer.lane = None

    def _broke(self, peer: _Peer, lasted: float) -> None:
        """A write failed on a stream that lasted so many seconds."""
        peer.broken_writes = 1 if lasted >= WRITE_SECONDS else peer.broken_writes + 1
        if peer.broken_writes >= BROKEN_WRITES:
            self._deaf.warning("a peer takes nothing by any stream; hanging up", {"peer": peer.link.peer})
            peer.broken_writes = 0
            self.hang_up(peer.link.peer)

    async def _serve(self, stream: INetStream) -> None:
        peer_id = from_library_id(stream.muxed_conn.peer_id)
        link = self._host.links().get(peer_id)
        assert self._events is not None
        if link is None:
            await self._host.reset(stream)
            return
        self.link_opened(link)
        peer = self._peers[peer_id]
        previous, peer.inbound = peer.inbound, stream
        if previous is not None:
            self._nursery.start_soon(self._host.reset, previous)
        self._introduce(peer, str(stream.get_protocol()))
        events = self._events
        try:
            await read_frames(stream, MAX_RPC_BYTES, lambda frame: events.frame(peer_id, frame))
        except InvalidMessage as error:
            self._garbage.warning(
                "a peer sent what is no pubsub RPC; its stream ends", {"peer": peer_id, "reason": str(error)}
            )
            self._events.misbehaved(peer_id, error.reason)
            await self._host.reset(stream)
        except LIBRARY_ERRORS:
            return  # the stream or its connection is gone; link_closed tells the rest
        finally:
            if peer.inbound is stream:
                peer.inbound = None


@asynccontextmanager
async def open_meshsub(host: LibraryHost, rng: Random) -> AsyncIterator[Meshsub]:
    """The pubsub streams of a host; all of them end with the block."""
    async with trio.open_nursery() as nursery:
        yield Meshsub(host, nursery, rng)
        nursery.cancel_scope.cancel()
