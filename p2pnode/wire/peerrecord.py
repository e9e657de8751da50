"""Signed peer records: who says to be where. libp2p RFC 0002 (envelope) and RFC 0003 (record)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from multiaddr.exceptions import Error as MultiaddrError
from multiaddr.multiaddr import Multiaddr

from p2pnode.core.peerid import PeerId, is_peer_id, peer_id_text
from p2pnode.errors import InvalidMessage
from p2pnode.wire.pb.libp2p.v1 import peer_record_pb2

DOMAIN = b"libp2p-peer-record"
PAYLOAD_TYPE = b"\x03\x01"
MAX_ADDRS = 32
MAX_RECORD_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer's own word on where it can be dialled.

    Args:
        addrs: the multiaddrs in it that TCP can dial, as text, without `/p2p/…`.
    """

    peer: PeerId
    seq: int
    addrs: tuple[str, ...]


def read_peer_record(envelope: bytes, verify: Callable[[bytes, bytes, bytes, bytes], bool]) -> PeerRecord:
    """Open a signed envelope.

    Args:
        verify: `(peer id, key, signed bytes, signature) -> good?`; must refuse a key that is not the peer's.

    Raises:
        InvalidMessage: reasons `oversize`, `protobuf`, `record`, `signature`.
    """
    if len(envelope) > MAX_RECORD_BYTES:
        raise InvalidMessage("oversize", f"a peer record of {len(envelope)} bytes")
    sealed, record = peer_record_pb2.Envelope(), peer_record_pb2.PeerRecord()
    try:
        sealed.ParseFromString(envelope)
        record.ParseFromString(sealed.payload)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no signed peer record: {error}") from error
    if sealed.payload_type != PAYLOAD_TYPE or not is_peer_id(record.peer_id) or len(record.addresses) > MAX_ADDRS:
        raise InvalidMessage("record", "no peer record, or one without a peer id, or with too many addresses")
    signed = b"".join(_counted(part) for part in (DOMAIN, sealed.payload_type, sealed.payload))
    if not verify(record.peer_id, sealed.public_key, signed, sealed.signature):
        raise InvalidMessage("signature", "the peer record is not signed by the peer it names")
    return PeerRecord(peer_id_text(record.peer_id), record.seq, tuple(_dialable(record)))


def _dialable(record: peer_record_pb2.PeerRecord) -> Iterator[str]:
    for entry in record.addresses:
        try:
            text = str(Multiaddr(entry.multiaddr))
        except (MultiaddrError, ValueError):
            continue  # a protocol we do not know is no fault
        where = text.partition("/p2p/")[0]
        parts = where.split("/")
        if len(parts) == 5 and parts[1] in ("ip4", "ip6", "dns", "dns4", "dns6") and parts[3] == "tcp":
            yield where


def _counted(part: bytes) -> bytes:
    size, length = len(part), bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes(length) + part
