"""The pubsub RPC on the wire: bounded, total decoding, and encoding once for many peers.

libp2p specs, pubsub/README.md ("The RPC"), gossipsub-v1.0, -v1.1 and -v1.2 (protobuf sections).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from google.protobuf.message import DecodeError

from p2pnode.core.gossipsub.rpc import IHave, Prune, PxPeer, Rpc, Subscription
from p2pnode.core.message import MAX_PEER_ID_BYTES, MAX_TOPIC_BYTES, SEQNO_BYTES, MessageId, SignedMessage, Topic
from p2pnode.core.peerid import is_peer_id, peer_id_bytes, peer_id_text
from p2pnode.errors import InvalidMessage
from p2pnode.wire.pb.libp2p.v1 import pubsub_pb2
from p2pnode.wire.pubsub import decode_message

Entry = TypeVar("Entry")

MAX_RPC_BYTES = 1024 * 1024
"""go-libp2p-pubsub's limit; its and js-libp2p's peers send no larger frames."""

MAX_MESSAGES = 1_000
MAX_SUBSCRIPTIONS = 1_000
MAX_CONTROL_ENTRIES = 1_000
MAX_IDS = 5_000
"""Ids in all IHAVE, IWANT and IDONTWANT entries of one RPC together."""

MAX_ID_BYTES = MAX_PEER_ID_BYTES + SEQNO_BYTES
MAX_PX_PEERS = 64
MAX_PX_PEERS_IN_ALL = 256
"""Of one RPC: base58 of a peer id takes 25 microseconds, so 1 MiB of peers stopped a node for half a second."""

MAX_HELD = 1_024
REMEMBERED_FRAMES = 128
REMEMBERED_BYTES = 8 * 1024
"""Of larger messages copies are rare: from there on receivers say IDONTWANT (`core.gossipsub.params`)."""

MAX_RECORD_BYTES = 16 * 1024
MAX_BACKOFF_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Refused:
    """A message in an RPC that is none.

    Args:
        reason: as of InvalidMessage.
        topic: None when not even that was readable.
    """

    reason: str
    topic: Topic | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """An RPC, and what in it was refused; whoever sent it answers for that.

    Args:
        excess: control entries, subscriptions, ids or exchanged peers beyond the limits, left out.
        key_ids: it names messages as js-libp2p does by default, by key and number (`encode_rpc`).
        held: seqnos (8 bytes) of the receiver's own messages that the sender has stored: our extension.
        held_malformed: entries of `held` that are no seqno, or too many, left out.
    """

    rpc: Rpc
    refused: tuple[Refused, ...] = ()
    excess: int = 0
    key_ids: bool = False
    held: tuple[bytes, ...] = ()
    held_malformed: int = 0


def decode_rpc(frame: bytes) -> Decoded:
    """Take an RPC apart.

    Raises:
        InvalidMessage: reasons `oversize` and `protobuf`; nothing in it can be used.
    """
    if len(frame) > MAX_RPC_BYTES:
        raise InvalidMessage("oversize", f"an RPC of {len(frame)} bytes is over the limit of {MAX_RPC_BYTES}")
    wire = pubsub_pb2.RPC()
    try:
        wire.ParseFromString(frame)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no pubsub RPC: {error}") from error
    if len(wire.publish) > MAX_MESSAGES:
        raise InvalidMessage("oversize", f"{len(wire.publish)} messages in one RPC; the limit is {MAX_MESSAGES}")
    messages: list[SignedMessage] = []
    refused: list[Refused] = []
    for raw in wire.publish:
        try:
            messages.append(decode_message(raw))
        except InvalidMessage as error:
            refused.append(Refused(error.reason, _topic_of(raw)))
    held: tuple[bytes, ...] = ()
    malformed = 0
    if notices := wire.p2pnode_held:
        held = tuple(seqno for seqno in notices[:MAX_HELD] if len(seqno) == SEQNO_BYTES)
        malformed = len(notices) - len(held)
    if not wire.subscriptions and not wire.HasField("control"):
        return Decoded(Rpc(publish=tuple(messages)), tuple(refused), held=held, held_malformed=malformed)
    taken = _Control(wire)
    rpc = taken.rpc(tuple(messages))
    return Decoded(rpc, tuple(refused), taken.excess, taken.key_ids, held, malformed)


class RpcDecoder:
    """`decode_rpc` for one node: copies of a message come within moments from several peers, byte for byte the same, so
    the latest small frames with messages are remembered, at most REMEMBERED_FRAMES of REMEMBERED_BYTES."""

    def __init__(self) -> None:
        self._known: dict[bytes, Decoded] = {}

    def decode(self, frame: bytes) -> Decoded:
        """As `decode_rpc`; the same value for the same bytes.

        Raises:
            InvalidMessage: as `decode_rpc`.
        """
        known = self._known.get(frame)
        if known is not None:
            return known
        decoded = decode_rpc(frame)
        if decoded.rpc.publish and len(frame) <= REMEMBERED_BYTES:
            if len(self._known) >= REMEMBERED_FRAMES:
                del self._known[next(iter(self._known))]
            self._known[frame] = decoded
        return decoded


class _Control:
    """Subscriptions and control of one RPC, within the limits."""

    def __init__(self, wire: pubsub_pb2.RPC) -> None:
        self._wire = wire
        self._ids_left = MAX_IDS
        self._px_left = MAX_PX_PEERS_IN_ALL
        self.key_ids = False
        self.excess = max(len(wire.subscriptions) - MAX_SUBSCRIPTIONS, 0)

    def rpc(self, messages: tuple[SignedMessage, ...]) -> Rpc:
        wire, control = self._wire, self._wire.control
        return Rpc(
            subscriptions=tuple(
                Subscription(Topic(entry.topic_id), entry.subscribe)
                for entry in wire.subscriptions[:MAX_SUBSCRIPTIONS]
                if _is_topic(entry.topic_id)
            ),
            publish=messages,
            ihave=tuple(
                IHave(Topic(entry.topic_id), ids)
                for entry in self._entries(control.ihave)
                if _is_topic(entry.topic_id) and (ids := self._ids(entry.message_ids))
            ),
            iwant=tuple(mid for entry in self._entries(control.iwant) for mid in self._ids(entry.message_ids)),
            graft=tuple(Topic(entry.topic_id) for entry in self._entries(control.graft) if _is_topic(entry.topic_id)),
            prune=tuple(self._prune(entry) for entry in self._entries(control.prune) if _is_topic(entry.topic_id)),
            idontwant=tuple(mid for entry in self._entries(control.idontwant) for mid in self._ids(entry.message_ids)),
        )

    def _entries(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        self.excess += max(len(entries) - MAX_CONTROL_ENTRIES, 0)
        return entries[:MAX_CONTROL_ENTRIES]

    def _ids(self, ids: Sequence[bytes]) -> tuple[MessageId, ...]:
        some = [mid for mid in ids[: self._ids_left] if 0 < len(mid) <= MAX_ID_BYTES]
        self.key_ids = self.key_ids or any(_is_key_id(mid) for mid in some)
        taken = tuple(_from_key_id(mid) if _is_key_id(mid) else MessageId(mid) for mid in some)
        self.excess += max(len(ids) - self._ids_left, 0)
        self._ids_left = max(self._ids_left - len(ids), 0)
        return taken

    def _prune(self, entry: pubsub_pb2.ControlPrune) -> Prune:
        some = entry.peers[: min(MAX_PX_PEERS, self._px_left)]
        self.excess += len(entry.peers) - len(some)
        self._px_left -= len(some)
        peers = tuple(
            PxPeer(peer_id_text(peer.peer_id), peer.signed_peer_record)
            for peer in some
            if is_peer_id(peer.peer_id) and len(peer.signed_peer_record) <= MAX_RECORD_BYTES
        )
        return Prune(Topic(entry.topic_id), peers, min(entry.backoff, MAX_BACKOFF_SECONDS))


def _is_key_id(mid: bytes) -> bool:
    """js-libp2p's default id: the origin's key as protobuf (32 or 33 bytes of it), not its peer id, then the number."""
    length = len(mid) - SEQNO_BYTES - 4
    return length in (32, 33) and mid[0] == 0x08 and mid[2] == 0x12 and mid[3] == length


def _from_key_id(mid: bytes) -> MessageId:
    """A key this short is its own peer id, as an identity multihash (peer-ids specification)."""
    return MessageId(bytes((0, len(mid) - SEQNO_BYTES)) + mid)


def _to_key_id(mid: MessageId) -> bytes | None:
    """None for an origin whose peer id does not hold its key (RSA)."""
    return mid[2:] if mid[0] == 0 else None


def _is_topic(name: str) -> bool:
    """Any name a stock peer may use, as long as it is not absurdly long."""
    return 0 < len(name) <= MAX_TOPIC_BYTES


def _topic_of(raw: bytes) -> Topic | None:
    message = pubsub_pb2.Message()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        return None
    return Topic(message.topic) if _is_topic(message.topic) else None


def encode_rpc(rpc: Rpc, *, key_ids: bool = False) -> bytes:
    """The bytes of an RPC, without its length prefix.

    Args:
        key_ids: name messages as js-libp2p does by default; what has no such name is left out.
    """
    if key_ids:
        rpc = replace(
            rpc,
            ihave=tuple(IHave(e.topic, ids) for e in rpc.ihave if (ids := _key_ids(e.ids))),
            iwant=_key_ids(rpc.iwant),
            idontwant=_key_ids(rpc.idontwant),
        )
    wire = pubsub_pb2.RPC(
        subscriptions=[
            pubsub_pb2.RPC.SubOpts(subscribe=entry.subscribe, topic_id=entry.topic) for entry in rpc.subscriptions
        ],
        publish=[message.raw for message in rpc.publish],
    )
    if rpc.ihave or rpc.iwant or rpc.graft or rpc.prune or rpc.idontwant:
        wire.control.CopyFrom(
            pubsub_pb2.ControlMessage(
                ihave=[pubsub_pb2.ControlIHave(topic_id=entry.topic, message_ids=entry.ids) for entry in rpc.ihave],
                iwant=[pubsub_pb2.ControlIWant(message_ids=rpc.iwant)] if rpc.iwant else [],
                graft=[pubsub_pb2.ControlGraft(topic_id=topic) for topic in rpc.graft],
                prune=[_encode_prune(entry) for entry in rpc.prune],
                idontwant=[pubsub_pb2.ControlIDontWant(message_ids=rpc.idontwant)] if rpc.idontwant else [],
            )
        )
    return wire.SerializeToString()


def _key_ids(ids: Sequence[MessageId]) -> tuple[MessageId, ...]:
    return tuple(MessageId(key_id) for mid in ids if (key_id := _to_key_id(mid)) is not None)


def _encode_prune(entry: Prune) -> pubsub_pb2.ControlPrune:
    peers = [
        pubsub_pb2.PeerInfo(peer_id=peer_id_bytes(peer.peer), signed_peer_record=peer.record) for peer in entry.peers
    ]
    return pubsub_pb2.ControlPrune(topic_id=entry.topic, peers=peers, backoff=entry.backoff_seconds)


def encode_publish(message: SignedMessage) -> bytes:
    """The bytes of an RPC that carries one message: its own bytes behind a tag and a length."""
    size, length = len(message.raw), bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"\x12" + length + message.raw


def encode_held(seqnos: Sequence[bytes]) -> bytes:
    """The bytes of an RPC that tells a peer which of its own messages are stored here: at most MAX_HELD."""
    return pubsub_pb2.RPC(p2pnode_held=seqnos).SerializeToString()
