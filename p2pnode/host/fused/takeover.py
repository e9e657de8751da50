"""The seam to the library: where a finished handshake leaves socket, keys and counters.

The library dials, listens, negotiates and shakes hands; when both sides have agreed on yamux,
`FusingUpgrader` takes what its Noise session holds and hands it to a `FusedConnection`. All that
we rely on in py-libp2p 0.8.1 is in `take_over`; `tests/host/test_takeover.py` fails when it moves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import trio
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.abc import IMuxedConn, IRawConnection, ISecureConn
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from p2pnode.host.fused.noise import Opener, Sealer
from p2pnode.host.psk import NetworkConnection, Xor
from p2pnode.logs import Throttled

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Handshaken:
    """A connection after Noise and multistream.

    Args:
        stream: the socket, which nobody else reads or writes any more.
        seal: encrypts what we send.
        open: decrypts what comes.
        early: bytes that the library decrypted and nobody read.
        cloak: the ciphers of a private network, of reading and of writing, around all of it.
    """

    stream: trio.SocketStream
    seal: Sealer
    open: Opener
    early: bytes
    cloak: tuple[Xor, Xor] | None = None


class LibraryChanged(RuntimeError):
    """The library is built otherwise than this seam expects."""


def take_over(secured: ISecureConn) -> Handshaken:
    """What the library's Noise session holds.

    Raises:
        LibraryChanged: it is no Noise session over TCP as version 0.8.1 makes it.
    """
    try:
        return _take_over(secured)
    except AttributeError as error:
        raise _changed(f"{error}") from error


def _take_over(secured: ISecureConn) -> Handshaken:
    session = _a(secured, SecureSession, "session")
    transport = _a(session.conn, NoiseTransportReadWriter, "session.conn")
    raw = _a(transport.read_writer.read_write_closer, RawConnection, "below the Noise frames")
    cloak = None
    if isinstance(raw, NetworkConnection):
        cloak, raw = raw.ciphers(), _a(raw.inner, RawConnection, "below the network's cipher")
    tcp = _a(raw.stream, TrioTCPStream, "raw.stream")
    protocol: Any = transport.noise_state.noise_protocol
    early = session._drain(None)
    return Handshaken(
        _a(tcp.stream, trio.SocketStream, "tcp.stream"),
        Sealer(*_key(protocol.cipher_state_encrypt)),
        Opener(*_key(protocol.cipher_state_decrypt)),
        early,
        cloak,
    )


def _key(state: Any) -> tuple[ChaCha20Poly1305, int]:
    return _a(state.cipher.cipher, ChaCha20Poly1305, "cipher"), _a(state.n, int, "nonce")


def _a(value: object, kind: type[T], where: str) -> T:
    if not isinstance(value, kind):
        raise _changed(f"{where} is a {type(value).__name__}, expected {kind.__name__}")
    return value


def _changed(how: str) -> LibraryChanged:
    return LibraryChanged(f"py-libp2p: {how}; set transport.stack = library until p2pnode knows this version")


class FusingUpgrader(TransportUpgrader):
    """The library's upgrader, with our connection at the end of it.

    Args:
        inner: the one that the library made, with its security and muxer protocols.
        connect: makes a connection of a finished handshake, its peer, and whether we dialled.
        refused: called when the handshake of a connection that came in failed, or took too long.
    """

    def __init__(
        self,
        inner: TransportUpgrader,
        connect: Callable[[Handshaken, ID, bool], IMuxedConn],
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self.security_multistream = inner.security_multistream
        self.muxer_multistream = inner.muxer_multistream
        self._connect = connect
        self._refused = refused
        self._changes = Throttled(log)

    async def upgrade_security(
        self, raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None
    ) -> ISecureConn:
        """As the library's, counted."""
        with self._counted(is_initiator):
            return await super().upgrade_security(raw_conn, is_initiator, peer_id)

    @contextmanager
    def _counted(self, is_initiator: bool) -> Iterator[None]:
        try:
            yield
        except BaseException:  # being cancelled is how the library says that it took too long
            if not is_initiator:
                self._refused()
            raise

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Agree on yamux, then leave the library.

        Raises:
            MuxerUpgradeFailure: the peer does not speak yamux.
            LibraryChanged: see `take_over`.
        """
        with self._counted(conn.is_initiator):
            try:
                await self.muxer_multistream.select_transport(conn)
            except MultiselectError as error:
                raise MuxerUpgradeFailure("failed to negotiate the multiplexer protocol") from error
        try:
            handshaken = take_over(conn)
        except LibraryChanged as error:
            # The library drops whatever ends an inbound connection; this one would end them all unheard.
            self._changes.warning("no connection can be made", {"reason": str(error)})
            raise
        return self._connect(handshaken, peer_id, conn.is_initiator)
