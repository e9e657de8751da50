"""py-libp2p's GossipSub as a peer of the benchmark, hardened so that it survives the load.

Each override names the defect it covers (measured on py-libp2p 0.8.1): one malformed
RPC killed the host, queues of 32 dropped what had been accepted, the duplicate guard
muted publishers, a failing heartbeat ended the service.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio
from google.protobuf.message import DecodeError, EncodeError
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import PriorityQueue
from libp2p.tools.anyio_service import background_trio_service

from p2pnode.core.message import Accept, Ignore, Reject, SignedMessage, Verdict, Verify
from p2pnode.core.peerid import PeerId
from p2pnode.errors import InvalidMessage, TooBusy, Unavailable
from p2pnode.host.frames import FrameDecoder
from p2pnode.host.library import LIBRARY_ERRORS, LibraryHost, from_library_id
from p2pnode.ports import GossipEvents
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import RPC
from p2pnode.wire.pubsub import decode_message

log = logging.getLogger(__name__)

PROTOCOLS = [TProtocol("/meshsub/1.1.0"), TProtocol("/meshsub/1.0.0")]
MAX_RPC_BYTES = 1024 * 1024
MAX_MESSAGES_PER_RPC = 1000
SEEN_SECONDS = 600.0
MAX_SEEN = 500_000
READ_BYTES = 64 * 1024

QUEUE_MESSAGES = 8192
QUEUE_BYTES = 32 * 1024 * 1024
BUSY_MESSAGES = 256
"""Own publishes are refused while a mesh peer has this many messages unsent, far below the queue's bound."""


class SeenCache:
    """Ids seen in the last ten minutes, at most 500,000: beyond it the oldest goes first."""

    def __init__(self) -> None:
        self._ids: OrderedDict[bytes, float] = OrderedDict()

    def __contains__(self, message_id: bytes) -> bool:
        return message_id in self._ids

    def has(self, message_id: bytes) -> bool:
        """The library's name for `in`."""
        return message_id in self._ids

    def add(self, message_id: bytes) -> bool:
        now = trio.current_time()
        new = message_id not in self._ids
        self._ids[message_id] = now
        while self._ids:
            oldest, when = next(iter(self._ids.items()))
            if len(self._ids) <= MAX_SEEN and now - when <= SEEN_SECONDS:
                break
            del self._ids[oldest]
        return new


class _OutboundQueue(PriorityQueue):
    """One peer's unsent RPCs: at most 8,192 and 32 MiB. Full means the peer is too slow and is hung up on."""

    def __init__(self) -> None:
        super().__init__(QUEUE_MESSAGES)
        self.bytes = 0
        self.overflowed = False

    def push(self, rpc: rpc_pb2.RPC, priority: bool = False) -> bool:
        size = rpc.ByteSize()
        if self.bytes + size > QUEUE_BYTES or not super().push(rpc, priority):
            self.overflowed = True
            return False
        self.bytes += size
        return True

    def pop(self) -> rpc_pb2.RPC | None:
        rpc = super().pop()
        if rpc is not None:
            self.bytes -= rpc.ByteSize()
        return rpc


class _Router(GossipSub):
    """The library's router without its guards, and with a heartbeat that outlives its errors."""

    failures = 0

    async def heartbeat(self) -> None:
        # The library mutates its sets while it iterates over them with awaits in between.
        while True:
            try:
                await super().heartbeat()
            except (RuntimeError, KeyError, ValueError) as error:
                self.failures += 1
                log.debug("heartbeat failed, goes on", extra={"reason": repr(error)})
                await trio.sleep(self.heartbeat_interval)

    def _check_equivocation(self, msg: rpc_pb2.Message) -> bool:
        return True  # keeps whole messages, and seen has settled it before

    async def _do_px(self, px_peers: list[rpc_pb2.PeerInfo]) -> None:
        return  # dials inside the reader of that peer; who is dialled is the node's decision


class _Pubsub(Pubsub):
    """The library's pubsub with a reader that any bytes leave standing."""

    def __init__(self, gossip: LibraryGossip, host: LibraryHost, router: _Router) -> None:
        super().__init__(host.library, router, strict_signing=True, max_subscriptions_per_peer=200)
        self._gossip = gossip
        self._node_host = host
        self.seen_messages = SeenCache()  # type: ignore[assignment]  # the library's restarts a timer per look-up

    async def stream_handler(self, stream: INetStream) -> None:
        await self.continuously_read_stream(stream)

    async def continuously_read_stream(self, stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        decoder = FrameDecoder(MAX_RPC_BYTES)
        try:
            while True:
                data = await stream.read(READ_BYTES)
                if not data:
                    return
                for frame in decoder.feed(data):
                    await self._gossip.handle_rpc(peer, frame)
        except InvalidMessage as error:
            self._gossip.count("rpc", error.reason)
            log.warning(
                "a peer sent what is no pubsub RPC; its stream ends",
                extra={"peer": from_library_id(peer), "reason": str(error)},
            )
            await self._node_host.reset(stream)
        except LIBRARY_ERRORS:
            return  # the stream or its connection is gone; link_closed tells the rest

    async def _handle_new_peer(self, peer_id: ID) -> None:
        await super()._handle_new_peer(peer_id)
        queue = self.peer_queues.get(peer_id)
        if queue is not None and not isinstance(queue._queue, _OutboundQueue):
            # The library's queue holds 32 and drops silently.
            larger = _OutboundQueue()
            for waiting in (*queue._queue._priority, *queue._queue._non_priority):
                larger.push(waiting)
            queue._queue = larger


class LibraryGossip:
    """What the benchmark needs of `ports.Gossip`, on the library's router. Made by `open_gossip`."""

    def __init__(
        self, host: LibraryHost, events: GossipEvents, verify: Verify, *, degree: int, heartbeat_seconds: float
    ) -> None:
        self._host = host
        self._events = events
        self._verify = verify
        self._counters: dict[tuple[str, str], int] = {}
        self.router = _Router(
            PROTOCOLS,
            degree=degree,
            degree_low=max(degree - 1, 2),
            # Pruned leaves of a star stay alone: PRUNE carries no peers in this library. So nobody is pruned.
            degree_high=1000,
            heartbeat_interval=heartbeat_seconds,  # type: ignore[arg-type]  # sleeps it, so fractions are fine
            heartbeat_initial_delay=heartbeat_seconds / 10,
            time_to_live=60,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
            prune_back_off=5,
            do_px=False,
        )
        self.pubsub = _Pubsub(self, host, self.router)

    def count(self, verdict: str, why: str) -> None:
        self._counters[verdict, why] = self._counters.get((verdict, why), 0) + 1

    def counters(self) -> Mapping[tuple[str, str], int]:
        """How often each `(verdict, reason)` happened; `rpc` counts what was no RPC."""
        return self._counters

    async def handle_rpc(self, peer: ID, frame: bytes) -> None:
        """One RPC from a peer. Total: any bytes are handled, counted, or InvalidMessage.

        Raises:
            InvalidMessage: reason `protobuf` or `oversize`.
        """
        rpc = RPC()
        control = rpc_pb2.RPC()
        try:
            rpc.ParseFromString(frame)
            messages = list(rpc.publish)
            rpc.ClearField("publish")
            control.ParseFromString(rpc.SerializeToString())
        except (DecodeError, EncodeError) as error:
            raise InvalidMessage("protobuf", f"no pubsub RPC: {error}") from error
        if len(messages) > MAX_MESSAGES_PER_RPC:
            raise InvalidMessage("oversize", f"{len(messages)} messages in one RPC")
        source = from_library_id(peer)
        if len(control.subscriptions) > 1000:
            self.count("ignore", "subscriptions")
        else:
            for subscription in control.subscriptions:
                self.pubsub.handle_subscription(peer, subscription)
        for raw in messages:
            await self._receive(peer, source, raw)
        if control.HasField("control"):
            try:
                await self.router.handle_rpc(control, peer)
            except (RuntimeError, KeyError, ValueError, TypeError, DecodeError) as error:
                self.count("rpc", "control")
                log.debug("a control message failed in the library", extra={"reason": repr(error)})

    async def _receive(self, peer: ID, source: PeerId, raw: bytes) -> None:
        """Size, shape, seen, signature, mark, validator: no await between seen and mark."""
        try:
            message = decode_message(raw)
        except InvalidMessage as error:
            self.count("reject", error.reason)
            return
        if message.topic not in self.pubsub.topic_ids:
            self.count("ignore", "topic")
            return
        if self.pubsub.seen_messages.has(message.id):
            self.count("ignore", "seen")
            return
        if not self._verify(message):
            self.count("reject", "signature")
            return
        self.pubsub.seen_messages.add(message.id)
        verdict = self._judge(message, source)
        if not isinstance(verdict, Accept):
            self.count("reject" if isinstance(verdict, Reject) else "ignore", verdict.why)
            return
        self.count("accept", "relayed" if verdict.relay else "old")
        self._events.deliver(message, source, restored=False)
        if verdict.relay:
            await self.router.publish(peer, _to_library(message))
            await self._hang_up_on_overflow()

    def _judge(self, message: SignedMessage, source: PeerId) -> Verdict:
        try:
            verdict = self._events.judge(message, source)
        except Exception:
            # A validator's failure must not end the peer's reader, and says nothing about the peer.
            log.exception("a validator failed", extra={"topic": message.topic})
            return Ignore("validator-failed")
        # A verdict that comes later has no way into the library's router.
        return verdict if verdict is not None else Ignore("no-verdict")

    async def subscribe(self, topic: str) -> None:
        if topic in self.pubsub.topic_ids:
            return
        await self.pubsub.subscribe(topic)

    async def publish(self, message: SignedMessage) -> None:
        self.pubsub.seen_messages.add(message.id)
        await self.router.publish(self.pubsub.my_id, _to_library(message))
        await self._hang_up_on_overflow()

    async def flush(self) -> None:
        for pause in itertools.repeat(0.02):
            if not self.waiting():
                return
            await trio.sleep(pause)

    def waiting(self) -> int:
        return sum(len(queue) for queue in self.pubsub.peer_queues.values())

    def admit(self, topic: str) -> None:
        if not self.topic_peers(topic):
            raise Unavailable(
                f"no connected peer is subscribed to {topic}, so nobody could receive the message",
                reason="no-peers",
                retry_after_seconds=2.0,
                hint="`p2pnode peers` shows who is there; check the bootstrap addresses",
            )
        for peer_id in self.router.mesh.get(topic, ()):
            queue = self.pubsub.peer_queues.get(peer_id)
            if queue is not None and len(queue) >= BUSY_MESSAGES:
                raise TooBusy(
                    f"{len(queue)} messages wait for {from_library_id(peer_id)}; more cannot be promised",
                    reason="peer-slow",
                    retry_after_seconds=1.0,
                )

    async def _hang_up_on_overflow(self) -> None:
        for peer_id, queue in tuple(self.pubsub.peer_queues.items()):
            inner = queue._queue
            if isinstance(inner, _OutboundQueue) and inner.overflowed:
                inner.overflowed = False
                self.count("drop", "peer-full")
                peer = from_library_id(peer_id)
                log.warning("a peer does not read what it is sent; hanging up", extra={"peer": peer})
                await self._host.hang_up(peer)

    def topics(self) -> tuple[str, ...]:
        return tuple(sorted(self.pubsub.topic_ids))

    def topic_peers(self, topic: str) -> frozenset[PeerId]:
        subscribed = self.pubsub.peer_topics.get(topic, frozenset[ID]())
        return frozenset(from_library_id(peer) for peer in subscribed if peer in self.pubsub.peers)

    def mesh(self, topic: str) -> frozenset[PeerId]:
        return frozenset(from_library_id(peer) for peer in self.router.mesh.get(topic, frozenset[ID]()))

    def score(self, peer: PeerId) -> float | None:
        return None  # the library's scorer counts nothing by default


def _to_library(message: SignedMessage) -> rpc_pb2.Message:
    out = rpc_pb2.Message()
    out.ParseFromString(message.raw)
    return out


@asynccontextmanager
async def open_gossip(
    host: LibraryHost, events: GossipEvents, verify: Verify, *, degree: int, heartbeat_seconds: float
) -> AsyncIterator[LibraryGossip]:
    """The running router; ready when it yields.

    Args:
        events: who judges and takes messages.
        verify: checks an origin's signature.
        degree: D, the mesh peers wanted per topic.
        heartbeat_seconds: pause between two heartbeats.
    """
    gossip = LibraryGossip(host, events, verify, degree=degree, heartbeat_seconds=heartbeat_seconds)
    async with background_trio_service(gossip.pubsub), background_trio_service(gossip.router):
        await gossip.pubsub.wait_until_ready()
        # Streams that arrived before the service ran would have ended it: handlers are set only now.
        for protocol in PROTOCOLS:
            host.set_handler(protocol, gossip.pubsub.stream_handler)
        yield gossip


__all__ = ["LibraryGossip", "SeenCache", "open_gossip"]
