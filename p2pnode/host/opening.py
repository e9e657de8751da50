"""Opens the library's host: TCP, Noise only, yamux; and undoes what of its defaults we do not want.

What was measured about a default stands beside the line that undoes it.
"""

from __future__ import annotations

import errno
import functools
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import trio
from libp2p import new_host
from libp2p.abc import IMuxedConn, INetConn, INetStream, INetwork, INotifee, IPeerStore, IRawConnection
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host import basic_host
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.tcp.tcp import TCP
from multiaddr.exceptions import Error as MultiaddrError
from multiaddr.multiaddr import Multiaddr

from p2pnode.core.yamux import Budget
from p2pnode.errors import EnvironmentFault, InvalidRequest
from p2pnode.host.foreign import reason_of, stranger_in
from p2pnode.host.fused.connection import FusedConnection
from p2pnode.host.fused.outbox import Outbox
from p2pnode.host.fused.takeover import FusingUpgrader
from p2pnode.host.library import AGENT_KEY, LibraryHost, quiet_library_logs
from p2pnode.host.psk import HungUp
from p2pnode.host.strangers import Strangers
from p2pnode.identity import Identity

log = logging.getLogger(__name__)

MAX_AGENT_CHARACTERS = 128
Stack = Literal["fused", "library"]


class _Notifee(INotifee):
    """Tells LibraryHost; returns at once, because a slow notifee stalls new connections."""

    def __init__(self, host: LibraryHost) -> None:
        self._host = host

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._host.opened(conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._host.closed(conn)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...


class _NoAutoConnector(AutoConnector):
    """Dials nobody. The library's dials, up to the middle of its two watermarks, every peer that identify
    ever named, at addresses that the peer itself chose, and those that we hung up on too."""

    async def run_background_task(self, nursery: trio.Nursery) -> None: ...

    async def maybe_connect(self) -> None: ...

    def record_disconnect(self, peer_id: ID) -> None: ...


@asynccontextmanager
async def open_host(
    identity: Identity,
    listen: Sequence[str],
    *,
    announce: Sequence[str] = (),
    announce_cidr: Sequence[str] = (),
    stack: Stack = "fused",
    network_key: bytes = b"",
) -> AsyncIterator[LibraryHost]:
    """A listening host; when it yields, every address is bound.

    Args:
        stack: whose Noise frames and yamux carry the streams: `fused` is ours, `library` the library's.
        listen: multiaddrs `/ip4|ip6/…/tcp/PORT`, port 0 for any.
        announce: multiaddrs told to others instead of those listened on.
        announce_cidr: networks such as `10.0.1.0/24`: of what 0.0.0.0 and :: stand for, only the addresses in these are
            told to others, in this order. When none is in them, all are told, with a warning.
        network_key: 32 bytes that all members of a private network share; none: a public one.

    Raises:
        InvalidRequest: an address is no multiaddr that TCP can listen on.
        EnvironmentFault: an address cannot be bound.
    """
    quiet_library_logs()
    try:
        addrs = [Multiaddr(text) for text in listen]
    except (MultiaddrError, ValueError) as error:
        raise InvalidRequest(f"cannot listen: {error}") from error
    private = Ed25519PrivateKey.from_bytes(identity.seed)
    keys = KeyPair(private, private.get_public_key())
    _keep_agent_versions()
    library = new_host(
        key_pair=keys,
        # The defaults also offer secio and plaintext.
        sec_opt={NOISE: NoiseTransport(keys, new_x25519_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        transports=[TCP()],
        # How many connections there are, and to whom, is the node's decision: no auto-connect, no pruning.
        connection_config=ConnectionConfig(
            max_connections=100_000, min_connections=0, low_watermark=0, high_watermark=100_000
        ),
        disable_identify_address_discovery=True,
    )
    swarm = library.get_network()
    assert isinstance(swarm, Swarm)
    swarm.set_resource_manager(None)
    swarm.auto_connector = _NoAutoConnector(swarm)
    swarm.psk = network_key.hex()  # empty and not None: what `host.psk` checks it checks in public networks too
    swarm.retry_config = RetryConfig(max_retries=0)
    # A slot is taken by each inbound connection and never given back: after 250 of them none is accepted.
    swarm._inbound_limiter.total_tokens = math.inf
    outbox = Outbox()
    if stack == "fused":
        connect = functools.partial(FusedConnection, outbox=outbox, budget=Budget())
        swarm.upgrader = FusingUpgrader(swarm.upgrader, connect, outbox.refused)
    host = LibraryHost(identity, library, swarm, outbox, announce=announce, announce_cidr=announce_cidr)
    swarm.upgrade_inbound_raw_conn = functools.partial(  # type: ignore[method-assign]
        _serve_inbound, swarm.upgrade_inbound_raw_conn, host.refused
    )
    swarm.set_stream_handler(functools.partial(_negotiate, host, swarm.common_stream_handler))
    swarm.register_notifee(_Notifee(host))
    for addr in addrs:
        await _check_bindable(addr)
    async with library.run(addrs), trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        host.work_in(nursery)
        missing = [str(addr) for addr in addrs if str(addr) not in swarm.listeners]
        if missing:
            raise EnvironmentFault(
                f"cannot listen on {', '.join(missing)}", hint="choose another address or port with --listen"
            )
        try:
            yield host
        finally:
            host.cut_all()
            nursery.cancel_scope.cancel()


def _keep_agent_versions() -> None:
    """Make identify's answer to who the peer is survive: the library reads it and drops it.

    Which form of message ids a peer understands depends on it (`wire/rpc.py`).
    """
    host_module: Any = basic_host  # which imports the function by name, and exports nothing by it
    inner = host_module.update_peerstore_from_identify
    if inner.__module__ == __name__:
        return

    async def update(peerstore: IPeerStore, peer_id: ID, message: Identify) -> None:
        peerstore.put(peer_id, AGENT_KEY, message.agent_version[:MAX_AGENT_CHARACTERS])
        await inner(peerstore, peer_id, message)

    host_module.update_peerstore_from_identify = update


async def _serve_inbound(
    inner: Callable[[IRawConnection, Multiaddr], Awaitable[IMuxedConn]],
    refused: Strangers,
    raw: IRawConnection,
    addr: Multiaddr,
) -> IMuxedConn:
    """Count strangers; and return by an error when a fused connection has ended.

    The library's task of an inbound connection would wait for the end of the host, one for each that ever was.
    """
    remote = raw.get_remote_address()
    try:
        connection = await inner(raw, addr)
    except Exception as error:
        stranger = stranger_in(error)
        if stranger is not None and not isinstance(stranger, HungUp) and remote is not None:
            refused.came(remote[0])
        raise
    if isinstance(connection, FusedConnection):
        await connection.ended.wait()
        raise SwarmException("the connection has ended")
    return connection


async def _negotiate(host: LibraryHost, inner: Callable[[INetStream], Awaitable[None]], stream: INetStream) -> None:
    # The library lets some failures of a stream's negotiation through, which end the host.
    try:
        await inner(stream)
    except Exception as error:
        log.debug("inbound stream not negotiated", extra={"reason": reason_of(error)})
        await host.reset(stream)  # else it stays open, and counts


_BIND_HINTS = {
    errno.EADDRINUSE: "another process has this port: choose one with --listen /ip4/0.0.0.0/tcp/PORT (0 for any)",
    errno.EADDRNOTAVAIL: "the address is none of this machine's: see `ip address`, or --listen /ip4/0.0.0.0/tcp/PORT",
    errno.EACCES: "ports below 1024 need a privilege: choose a higher one with --listen",
}


async def _check_bindable(addr: Multiaddr) -> None:
    """Bind once and let go, because the library says only that listening failed, not why."""
    host = addr.value_for_protocol("ip4" if "/ip4/" in str(addr) else "ip6")
    port = int(addr.value_for_protocol("tcp") or 0)
    family = trio.socket.AF_INET if "/ip4/" in str(addr) else trio.socket.AF_INET6
    with trio.socket.socket(family, trio.socket.SOCK_STREAM) as probe:
        probe.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        try:
            await probe.bind((str(host), port))
            probe.listen(1)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot listen on {addr}: {error.strerror}",
                hint=_BIND_HINTS.get(error.errno or 0, "choose another address or port with --listen"),
            ) from error
