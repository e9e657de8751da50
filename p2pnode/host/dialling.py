"""Dialling: who answers is learnt in the handshake, and what would be a second link ends before it is one.

The steps are those of the library's own `Swarm.dial_addr`: connect, enter the private network, Noise, yamux, make
known. They stand here because it wants to know who will answer before it connects, waits 250 ms and more between
addresses, and blocks a peer for 60 s that it did not reach; when to try whom is our decision.

A connection becomes a link of either side only after yamux was agreed on, and who dialled speaks first in that. So
the dialler decides by itself: it looks for another link between Noise and yamux, and hangs up when there is one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager

import trio
from libp2p.abc import ISecureConn
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from multiaddr.multiaddr import Multiaddr

from p2pnode.core.peerid import PeerId
from p2pnode.errors import P2PNodeError, Unavailable
from p2pnode.host.addresses import dialable, split_peer
from p2pnode.host.foreign import LIBRARY_ERRORS, causes_of, from_library_id, reason_of, stranger_in, to_library_id
from p2pnode.host.psk import HungUp, enter

log = logging.getLogger(__name__)

DIAL_TIMEOUT_SECONDS = 10.0

_TELLING = ("network-key", "other-peer", "dial", "self")
"""Of the failures at the addresses of one name the most telling is told."""

_WHO_ANSWERED = re.compile(r"remote_peer_id_from_pubkey=(\w+)")


class Dialling:
    """The dials of one host.

    Args:
        own: this node.
        linked: who there is a link with.
    """

    def __init__(self, own: PeerId, swarm: Swarm, linked: Container[PeerId]) -> None:
        self._own = own
        self._swarm = swarm
        self._linked = linked
        self._dialled = _Turns()
        self._joining = _Turns()

    async def dial(self, addr: str) -> PeerId:
        """As `ports.Host.dial`.

        Raises:
            InvalidRequest: `addr` cannot be dialled.
            Unavailable: see there.
        """
        where, wanted = split_peer(addr)
        if wanted == self._own:
            raise Unavailable(f"{addr} is this node itself", reason="self")
        if wanted is not None and wanted in self._linked:
            return wanted
        try:
            with trio.fail_after(DIAL_TIMEOUT_SECONDS):
                if wanted is None:
                    return await self._dial_one_of(await dialable(where), None)
                async with self._dialled.of(wanted):
                    return wanted if wanted in self._linked else await self._dial_one_of(await dialable(where), wanted)
        except trio.TooSlowError as error:
            silence = f"no answer within {DIAL_TIMEOUT_SECONDS:g} s"
            if self._swarm.psk:
                silence += "; a peer with another network key may be silent too (compare network.key of both)"
            raise Unavailable(f"{addr}: {silence}", reason="dial") from error
        except Unavailable as error:
            raise Unavailable(f"{addr}: {error.detail}", reason=error.reason) from error

    async def _dial_one_of(self, addrs: Sequence[str], wanted: PeerId | None) -> PeerId:
        """Address by address, until somebody answers."""
        failures: list[Unavailable] = []
        for addr in addrs:
            try:
                return await self._dial_one(addr, wanted)
            except Unavailable as error:
                failures.append(error)
        raise min(failures, key=lambda failure: _TELLING.index(failure.reason))

    async def _dial_one(self, addr: str, wanted: PeerId | None) -> PeerId:
        async with self._secured(addr, wanted) as (secured, raw):
            peer = from_library_id(secured.get_remote_peer())
            if peer == self._own:
                raise Unavailable("this node itself answers there", reason="self")
            async with self._joining.of(peer):
                if peer not in self._linked:
                    await self._join(secured)
                    return peer
            await raw.close()
            log.debug("not a second link", extra={"peer": peer, "addr": addr})
        return peer

    async def _join(self, secured: ISecureConn) -> None:
        """Agree on yamux; then it is a connection like any other."""
        try:
            muxed = await self._swarm.upgrader.upgrade_connection(secured, secured.get_remote_peer())
            await self._swarm.add_conn(muxed, direction="outbound")
        except Exception as error:
            raise Unavailable(reason_of(error), reason="dial") from error

    @asynccontextmanager
    async def _secured(self, addr: str, wanted: PeerId | None) -> AsyncIterator[tuple[ISecureConn, RawConnection]]:
        """Connect, and let the other prove who it is; the socket is closed when the block fails.

        Raises:
            Unavailable: reasons `dial`, `network-key`, `other-peer`.
        """
        raw: RawConnection | None = None
        try:
            try:
                raw = await self._connected(Multiaddr(addr))
                # Not by `upgrade_security`, which demands to know who it will be; Noise does not.
                secure = self._swarm.upgrader.security_multistream.secure_outbound
                expected: ID | None = to_library_id(wanted) if wanted is not None else None
                secured = await secure(enter(raw, self._swarm.psk or ""), expected)  # type: ignore[arg-type]
            except Exception as error:
                # What answers there may be anybody, and the library checks little of what it hears in a handshake:
                # an `InvalidTag`, say, is none of its own errors, and would end the node.
                raise self._unavailable(error, wanted) from error
            yield secured, raw
        except BaseException:
            if raw is not None:
                with trio.CancelScope(shield=True):
                    await raw.close()
            raise

    async def _connected(self, addr: Multiaddr) -> RawConnection:
        transport = self._swarm.transport_manager.transport_for_dialing(addr)
        if transport is None:
            raise Unavailable(f"nothing dials {addr}", reason="dial")
        raw = await transport.dial(addr)
        assert isinstance(raw, RawConnection)
        return raw

    def _unavailable(self, error: Exception, wanted: PeerId | None) -> Unavailable:
        stranger = stranger_in(error)
        if stranger is not None:
            # In a public network a port behind which nobody listens, say a published one of Docker's, hangs up too.
            is_unclear = isinstance(stranger, HungUp) and not self._swarm.psk
            return Unavailable(str(stranger), reason="dial" if is_unclear else "network-key")
        if any(isinstance(each, PeerIDMismatchesPubkey) for each in causes_of(error)):
            found = _WHO_ANSWERED.search(" ".join(str(each) for each in causes_of(error)))
            who = found[1] if found else "somebody else"
            return Unavailable(f"the address names {wanted}, but {who} answers there", reason="other-peer")
        return Unavailable(reason_of(error), reason="dial")

    async def probe(self, peer: PeerId, addrs: Sequence[str], patience_seconds: float) -> bool:
        """Does `peer` prove at one of `addrs` that it is there? All are tried at once; no link comes of it."""
        reached = False

        async def try_one(addr: str) -> None:
            nonlocal reached
            try:
                for where in await dialable(split_peer(addr)[0]):
                    if await self._answers(peer, where):
                        reached = True
                        nursery.cancel_scope.cancel()
            except P2PNodeError as error:
                log.debug("not reached by a probe", extra={"peer": peer, "addr": addr, "reason": error.detail})

        with trio.move_on_after(patience_seconds):
            async with trio.open_nursery() as nursery:
                for addr in addrs:
                    nursery.start_soon(try_one, addr)
        return reached

    async def _answers(self, peer: PeerId, where: str) -> bool:
        try:
            async with self._secured(where, peer) as (_, raw):
                with trio.CancelScope(shield=True):
                    await raw.close()
        except (Unavailable, *LIBRARY_ERRORS) as error:
            log.debug("not reached by a probe", extra={"peer": peer, "addr": where, "reason": reason_of(error)})
            return False
        return True


class _Turns:
    """One after the other for each peer; holds no more locks than are waited for or held."""

    def __init__(self) -> None:
        self._locks: dict[PeerId, tuple[trio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, peer: PeerId) -> AsyncIterator[None]:
        lock, users = self._locks.get(peer, (trio.Lock(), 0))
        self._locks[peer] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(peer)
            if users > 1:
                self._locks[peer] = lock, users - 1
