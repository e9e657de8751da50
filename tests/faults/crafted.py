"""What a hostile peer writes: RPCs, messages and records, each wrong in one way."""

from __future__ import annotations

from collections.abc import Sequence

from multiaddr.multiaddr import Multiaddr

from p2pnode.core.message import SignedMessage
from p2pnode.host.frames import encode_frame, encode_varint
from p2pnode.identity import Identity
from p2pnode.wire.pb.libp2p.v1 import peer_record_pb2
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import (
    RPC,
    ControlGraft,
    ControlIHave,
    ControlIWant,
    ControlMessage,
    ControlPrune,
    Message,
    PeerInfo,
)
from p2pnode.wire.peerrecord import DOMAIN, PAYLOAD_TYPE
from p2pnode.wire.pubsub import seal_message
from p2pnode.wire.rpc import MAX_RPC_BYTES

_PUBLIC_KEY_HEADER = b"\x08\x01\x12\x20"

# -- bytes that are no frame, and frames that are no RPC ------------------------------------------


def oversize_length() -> bytes:
    return encode_varint(1 << 40) + b"x" * 100


def endless_varint() -> bytes:
    return b"\xff" * 64


def garbage() -> bytes:
    return encode_frame(bytes(range(256)) * 8)


def nested_groups() -> bytes:
    """1 MiB of groups that begin inside each other and never end."""
    return encode_frame(b"\x7b" * MAX_RPC_BYTES)


def empty_messages() -> bytes:
    """1 MiB of RPC that is a protobuf: half a million messages of no bytes."""
    return encode_frame(b"\x12\x00" * (MAX_RPC_BYTES // 2))


def nested_controls() -> bytes:
    """1 MiB of RPC that is a protobuf: 260,000 empty IHAVE entries, each in a control of its own."""
    return encode_frame(b"\x1a\x02\x0a\x00" * (MAX_RPC_BYTES // 4))


# -- messages ----------------------------------------------------------------------------------------


def sealed(identity: Identity, topic: str, data: bytes, seqno: int) -> SignedMessage:
    return seal_message(origin=identity.peer_id_bytes, seqno=seqno, topic=topic, data=data, sign=identity.sign)


def publish(*messages: SignedMessage | Message) -> RPC:
    return RPC(publish=[m.raw if isinstance(m, SignedMessage) else m.SerializeToString() for m in messages])


def signed(identity: Identity, topic: str, data: bytes, seqno: int) -> RPC:
    return publish(sealed(identity, topic, data, seqno))


def unsigned(identity: Identity, topic: str, data: bytes, seqno: int) -> RPC:
    message = Message(data=data, seqno=seqno.to_bytes(8, "big"), topic=topic)
    setattr(message, "from", identity.peer_id_bytes)
    return publish(message)


def forgery(identity: Identity, topic: str, data: bytes, seqno: int) -> Message:
    """Signed well, then changed: the signature does not fit the data any more."""
    message = Message.FromString(sealed(identity, topic, data, seqno).raw)
    message.data = data + b"!"
    return message


def forged(identity: Identity, topic: str, data: bytes, seqno: int) -> RPC:
    return publish(forgery(identity, topic, data, seqno))


def signed_by_another(origin: Identity, signer: Identity, topic: str, seqno: int, *, with_key: bool) -> RPC:
    """In the name of `origin`, signed by `signer`; `with_key`: and with the signer's key in it."""
    key = public_key(signer) if with_key else b""
    message = seal_message(
        origin=origin.peer_id_bytes, seqno=seqno, topic=topic, data=b"in your name", sign=signer.sign, key=key
    )
    return publish(message)


def public_key(identity: Identity) -> bytes:
    return _PUBLIC_KEY_HEADER + identity.peer_id_bytes[-32:]


# -- control -----------------------------------------------------------------------------------------


def subscribe(*topics: str) -> RPC:
    return RPC(subscriptions=[RPC.SubOpts(subscribe=True, topic_id=topic) for topic in topics])


def graft(*topics: str) -> RPC:
    return RPC(control=ControlMessage(graft=[ControlGraft(topic_id=topic) for topic in topics]))


def prune(topic: str, peers: Sequence[PeerInfo] = (), backoff: int = 60) -> RPC:
    return RPC(control=ControlMessage(prune=[ControlPrune(topic_id=topic, peers=peers, backoff=backoff)]))


def ihave(topic: str, ids: Sequence[bytes]) -> RPC:
    return RPC(control=ControlMessage(ihave=[ControlIHave(topic_id=topic, message_ids=ids)]))


def iwant(ids: Sequence[bytes]) -> RPC:
    return RPC(control=ControlMessage(iwant=[ControlIWant(message_ids=ids)]))


# -- peer records ------------------------------------------------------------------------------------


def peer_record(peer: Identity, addr: str, *, signer: Identity | None = None) -> bytes:
    """A record that says `peer` is at `addr`, signed by `signer` (`peer` itself unless given)."""
    signer = signer or peer
    payload = peer_record_pb2.PeerRecord(
        peer_id=peer.peer_id_bytes,
        seq=1,
        addresses=[peer_record_pb2.PeerRecord.AddressInfo(multiaddr=Multiaddr(addr).to_bytes())],
    ).SerializeToString()
    covered = b"".join(encode_varint(len(part)) + part for part in (DOMAIN, PAYLOAD_TYPE, payload))
    return peer_record_pb2.Envelope(
        public_key=public_key(signer), payload_type=PAYLOAD_TYPE, payload=payload, signature=signer.sign(covered)
    ).SerializeToString()
