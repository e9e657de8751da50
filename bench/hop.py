"""One hop: what a 1 KiB message costs its sender and its receiver, by part and by stack; see `bench/README.md`.

python -m bench.hop
python -m bench.hop --rate 200 --messages 1000 --size 200
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from statistics import median
from timeit import Timer

import trio
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.custom_types import TProtocol

from bench.peers.python_node import Receipts, open_routed
from p2pnode.core import yamux
from p2pnode.core.gossipsub.events import PeerConnected, Protocol, RpcReceived, Subscribe
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.router import Router
from p2pnode.core.gossipsub.rpc import Rpc, Subscription
from p2pnode.core.message import SignedMessage, Topic
from p2pnode.host.frames import FrameDecoder, encode_frame
from p2pnode.host.fused.noise import Opener, Sealer
from p2pnode.host.fused.stream import FusedStream
from p2pnode.host.lanes import ThriftyReader
from p2pnode.host.library import LibraryHost, to_library_id
from p2pnode.host.opening import Stack, open_host
from p2pnode.identity import Identity, verifier_for
from p2pnode.wire.pubsub import message_verify, seal_message
from p2pnode.wire.rpc import decode_rpc, encode_publish

PROTOCOL = "/bench/hop/1.0.0"
TOPIC = "bench"
SETTLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU microseconds per message, of one side each."""

    sender: float
    receiver: float


# -- the parts, each in a warm loop --------------------------------------------------------


def parts(size: int) -> list[tuple[str, str, float]]:
    """(side, part, µs per message), measured in this process, caches warm: the floor of what the parts cost."""
    identity, other = Identity.generate(), Identity.generate()
    key = ChaCha20Poly1305(os.urandom(32))
    data = os.urandom(size)
    seqno = iter(range(1, 1 << 40))

    def sealed() -> SignedMessage:
        return seal_message(
            origin=identity.peer_id_bytes, seqno=next(seqno), topic=TOPIC, data=data, sign=identity.sign
        )

    message = sealed()
    frame = encode_frame(encode_publish(message))
    verify = message_verify(verifier_for)
    sealer, opener = Sealer(key, 0), _Replayed(key, 0)
    sending, receiving = yamux.Session(initiator=True), yamux.Session(initiator=False)
    stream = sending.open()
    receiving.receive(sending.take(0), 0.0)
    decoder = FrameDecoder(1 << 20)
    plain = yamux.HEADER.pack(0, 0, 0, stream.id, len(frame)) + frame
    sealed_plain = sealer.seal(plain)

    def take() -> None:
        sending.write(stream, frame)
        sending.take(1 << 18)
        stream.send_window = yamux.INITIAL_WINDOW_BYTES
        sending.drained()

    def receive() -> None:
        for event in receiving.receive(plain, 0.0):
            if isinstance(event, yamux.Data):
                receiving.consumed(event.stream, len(frame))
        receiving.take(1 << 18)

    router = _router(other, [identity, *(Identity.generate() for _ in range(4))])
    fresh = [RpcReceived(identity.peer_id, Rpc(publish=(sealed(),))) for _ in range(20_000)]
    known = fresh[0]
    router.handle(known, 0.0)
    body = encode_publish(message)
    return [
        ("send", "sign", _us(sealed)),
        ("send", "RPC and frame", _us(lambda: encode_frame(encode_publish(message)))),
        ("send", "yamux", _us(take)),
        ("send", "Noise", _us(lambda: sealer.seal(plain))),
        ("receive", "Noise", _us(lambda: opener.feed(sealed_plain))),
        ("receive", "yamux", _us(receive)),
        ("receive", "frame", _us(lambda: decoder.feed(frame))),
        ("receive", "RPC", _us(lambda: decode_rpc(body))),
        ("receive", "verify", _us(lambda: verify(message))),
        ("receive", "router, new message", _us_each(router, fresh[1:])),
        ("receive", "router, duplicate", _us(lambda: router.handle(known, 0.0))),
    ]


class _Replayed(Opener):
    """Opens the first message again and again."""

    __slots__ = ()

    def feed(self, data: bytes) -> bytes:
        self._nonce = 0
        return super().feed(data)


def _router(local: Identity, peers: Sequence[Identity]) -> Router:
    """A subscribed router with peers in its mesh; its signature check costs nothing here."""
    rng = Random(1)
    router = Router(
        local.peer_id,
        local.peer_id_bytes,
        Params(),
        rng,
        lambda message: True,
        held=lambda message_id: False,
        records=lambda peer: None,
        now=0.0,
    )
    router.handle(Subscribe(Topic(TOPIC)), 0.0)
    for peer in peers:
        router.handle(PeerConnected(peer.peer_id, peer.peer_id_bytes, Protocol.V1_1, True, None), 0.0)
        subscribed = Rpc(subscriptions=(Subscription(Topic(TOPIC), True),), graft=(Topic(TOPIC),))
        router.handle(RpcReceived(peer.peer_id, subscribed), 0.0)
    return router


def _us(call: Callable[[], object]) -> float:
    timer = Timer(call)
    count, _ = timer.autorange()
    return min(timer.repeat(5, max(count // 4, 1))) / max(count // 4, 1) * 1e6


def _us_each(router: Router, inputs: Sequence[RpcReceived]) -> float:
    started = time.process_time()
    for each in inputs:
        router.handle(each, 0.0)
    return (time.process_time() - started) / len(inputs) * 1e6


# -- the whole hop, between two processes ----------------------------------------------------

Send = Callable[[bytes], Awaitable[None]]


async def _plain_socket(
    nothing: Stack, addr: str | None, announce: Callable[[str], None], stack: AsyncExitStack
) -> Send | None:
    """The floor: trio's own stream on a bare TCP connection."""
    if addr is None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        announce(str(listeners[0].socket.getsockname()[1]))

        async def swallow(stream: trio.SocketStream) -> None:
            async for _ in stream:
                pass

        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(trio.serve_listeners, swallow, listeners)
        return None
    client = await trio.open_tcp_stream("127.0.0.1", int(addr))
    return client.send_all


async def _stream(kind: Stack, addr: str | None, announce: Callable[[str], None], stack: AsyncExitStack) -> Send | None:
    """A libp2p stream: Noise and yamux, nothing above."""
    host = await stack.enter_async_context(open_host(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"], stack=kind))
    if addr is None:
        host.set_handler(PROTOCOL, _swallow)
        announce(host.addrs()[0])
        return None
    peer = await host.dial(addr)
    stream = await host.library.new_stream(to_library_id(peer), [TProtocol(PROTOCOL)])
    muxed = getattr(stream, "muxed_stream", None)
    if not isinstance(muxed, FusedStream):
        return stream.write

    async def write(data: bytes) -> None:
        muxed.write_nowait(data)

    return write


async def _swallow(stream: object) -> None:
    muxed = getattr(stream, "muxed_stream", None)
    if isinstance(muxed, FusedStream):
        muxed.feed(lambda data: None)
        await muxed.ended()
        return
    reader = ThriftyReader(stream)  # type: ignore[arg-type]
    while await reader.read(65_536):
        pass


async def _gossip(kind: Stack, addr: str | None, announce: Callable[[str], None], stack: AsyncExitStack) -> Send | None:
    """All of it: signed, framed, routed, verified, delivered."""
    identity = Identity.generate()
    host: LibraryHost = await stack.enter_async_context(open_host(identity, ["/ip4/127.0.0.1/tcp/0"], stack=kind))
    opened = await stack.enter_async_context(open_routed(identity, host, Receipts(), 2))
    await opened.gossip.subscribe(TOPIC)
    if addr is None:
        announce(host.addrs()[0])
        return None
    await host.dial(addr)
    while not opened.gossip.mesh(TOPIC):  # noqa: ASYNC110 - the router has no event for it
        await trio.sleep(0.05)

    async def publish(data: bytes) -> None:
        await opened.publish(TOPIC, data)

    return publish


_LAYERS: tuple[tuple[str, Callable[..., Awaitable[Send | None]], Stack], ...] = (
    ("bare TCP on trio", _plain_socket, "fused"),
    ("stream, fused", _stream, "fused"),
    ("stream, library", _stream, "library"),
    ("gossip, fused", _gossip, "fused"),
    ("gossip, library", _gossip, "library"),
)


def hop(opener: Callable[..., Awaitable[Send | None]], kind: Stack, options: argparse.Namespace) -> Cost:
    """CPU per message of a sender and a receiver, each a process, less what they cost when nothing is sent."""
    to_sender, from_sender = os.pipe(), os.pipe()
    receiver = os.fork()
    if receiver == 0:
        _child(_receive, opener, kind, to_sender[1], None, options)
    with open(to_sender[0], "rb", buffering=0, closefd=False) as line:
        addr = line.read(4096).decode()
    sender = os.fork()
    if sender == 0:
        _child(_send, opener, kind, from_sender[1], addr, options)
    with open(from_sender[0], "rb", buffering=0, closefd=False) as line:
        json.loads(line.read(4096))  # connected, and settled
        idle = _cpu(receiver)
        json.loads(line.read(4096))
        idle = _cpu(receiver) - idle
        before = _cpu(receiver)
        report = json.loads(line.read(4096))
        received = _cpu(receiver) - before
    for pid in (sender, receiver):
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    for end in (*to_sender, *from_sender):
        os.close(end)
    n = options.messages
    return Cost(report["cpu_us"] / n, max(received - idle, 0.0) * 1e6 / n)


def _cpu(pid: int) -> float:
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def _child(
    role: Callable[..., Awaitable[None]],
    opener: Callable[..., Awaitable[Send | None]],
    kind: Stack,
    pipe: int,
    addr: str | None,
    options: argparse.Namespace,
) -> None:
    try:
        trio.run(role, opener, kind, pipe, addr, options)
    finally:
        os._exit(1)


async def _receive(opener: Callable[..., Awaitable[None]], kind: Stack, pipe: int, addr: None, options: object) -> None:
    async with AsyncExitStack() as stack:
        await opener(kind, None, lambda text: os.write(pipe, text.encode()), stack)
        await trio.sleep_forever()


async def _send(
    opener: Callable[..., Awaitable[Send]], kind: Stack, pipe: int, addr: str, options: argparse.Namespace
) -> None:
    async with AsyncExitStack() as stack:
        send = await opener(kind, addr, lambda text: None, stack)
        await trio.sleep(SETTLE_SECONDS)
        os.write(pipe, b"{}\n")

        async def nothing(data: bytes) -> None:
            pass

        idle = await _paced(nothing, options)
        os.write(pipe, b"{}\n")
        loaded = await _paced(send, options)
        await trio.sleep(0.2)
        os.write(pipe, json.dumps({"cpu_us": (loaded - idle) * 1e6}).encode() + b"\n")
        await trio.sleep_forever()


async def _paced(send: Send, options: argparse.Namespace) -> float:
    """CPU seconds of this process for all messages, one each 1/rate seconds."""
    payloads = [Random(number).randbytes(options.size) for number in range(16)]
    started, due = time.process_time(), trio.current_time()
    for number in range(options.messages):
        await send(payloads[number % 16])
        due += 1 / options.rate
        await trio.sleep_until(due)
    return time.process_time() - started


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2000, help="in each measurement (2000)")
    parser.add_argument("--rate", type=float, default=400.0, help="messages per second: each wakes its receiver (400)")
    parser.add_argument("--size", type=int, default=1024, help="bytes of payload (1024)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved; medians are printed (3)")
    options = parser.parse_args(arguments)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    print("\nparts, warm, µs per message")
    for side, part, cost in parts(options.size):
        print(f"  {side:8} {part:22} {cost:7.1f}")
    gc.collect()
    gc.freeze()
    found: dict[str, list[Cost]] = {name: [] for name, _, _ in _LAYERS}
    for _ in range(options.rounds):
        for name, opener, kind in _LAYERS:
            found[name].append(hop(opener, kind, options))
    print(f"\nwhole hops at {options.rate:g}/s, µs of CPU per message: median of {options.rounds} rounds")
    print(f"  {'':20} {'sender':>8} {'receiver':>9} {'both':>8}")
    for name, costs in found.items():
        sender, receiver = median(c.sender for c in costs), median(c.receiver for c in costs)
        print(f"  {name:20} {sender:8.0f} {receiver:9.0f} {sender + receiver:8.0f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
