"""Who is in whose mesh, on the wire: the question that goes round, and what each node tells of itself.

The messages are in `proto/p2pnode/v1/mesh.proto`, the collecting in `p2pnode.node.meshes`. Peer ids and topics stand
once in an answer, so that a link costs two bytes there and not forty: 1,000 nodes with 16 links need some 250 KB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from p2pnode.core.message import parse_topic
from p2pnode.core.peerid import PeerId, peer_id_bytes, peer_id_text
from p2pnode.errors import InvalidMessage
from p2pnode.wire.pb.p2pnode.v1 import mesh_pb2

MESH_PROTOCOL = "/p2pnode/mesh/1.0.0"
ID_BYTES = 16
MAX_QUESTION_BYTES = 64
MAX_ANSWER_BYTES = 1024 * 1024
MAX_PEERS = 4096
"""Told of or named in one answer: reading as many unknown peer ids takes 0.1 s."""

MAX_LINKS = 1024
"""Told by one node; it leaves out what is over it."""

MAX_TOPICS = 1024
MAX_MESHES = 65_536
"""Of one answer, over all nodes and topics."""

MAX_MESH_PEERS = 8192
"""Of one node, over all its topics."""

_PEER_COST = 48
_INDEX_COST = 3
"""Upper bounds in bytes: a table of 1 MiB has less than 2^21 places."""

_ENTRY_COST = 24


@dataclass(frozen=True, slots=True)
class MeshEntry:
    """What one node tells of itself.

    Args:
        links: the peers it is connected with, in order.
        topics: its mesh by subscribed topic, in order; an empty one is told too.
    """

    peer: PeerId
    links: tuple[PeerId, ...] = ()
    topics: Mapping[str, tuple[PeerId, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, peer: PeerId, links: Iterable[PeerId], topics: Mapping[str, Iterable[PeerId]]) -> MeshEntry:
        """In order, each peer once, and cut to what others take."""
        left = MAX_MESH_PEERS
        meshes: dict[str, tuple[PeerId, ...]] = {}
        for topic in sorted(topics)[:MAX_TOPICS]:
            meshes[topic] = tuple(sorted(set(topics[topic])))[:left]
            left -= len(meshes[topic])
        return cls(peer, tuple(sorted(set(links)))[:MAX_LINKS], meshes)


@dataclass(frozen=True, slots=True)
class MeshQuestion:
    """
    Args:
        id: of the collection, random bytes.
        patience_seconds: how long the sender waits for the answer.
    """

    id: bytes
    patience_seconds: float


def encode_question(question: MeshQuestion) -> bytes:
    patience = max(round(question.patience_seconds * 1000), 1)
    return mesh_pb2.MeshQuestion(id=question.id, patience_ms=patience).SerializeToString()


def decode_question(body: bytes) -> MeshQuestion:
    """Any patience is taken as told; how much of it is granted, the node decides.

    Raises:
        InvalidMessage: reasons `oversize`, `protobuf`, `id` (not 16 bytes), `patience` (none at all).
    """
    if len(body) > MAX_QUESTION_BYTES:
        raise InvalidMessage("oversize", f"a mesh question of {len(body)} bytes is over {MAX_QUESTION_BYTES}")
    message = mesh_pb2.MeshQuestion()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no mesh question: {error}") from error
    if len(message.id) != ID_BYTES:
        raise InvalidMessage("id", f"a mesh question with an id of {len(message.id)} bytes, not {ID_BYTES}")
    if not message.patience_ms:
        raise InvalidMessage("patience", "a mesh question that waits for no answer")
    return MeshQuestion(message.id, message.patience_ms / 1000)


def encode_answer(entries: Iterable[MeshEntry], limit_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """As many of `entries`, in their order, as `limit_bytes` surely hold; one that does not fit is left out."""
    answer = mesh_pb2.MeshAnswer()
    peers: dict[str, int] = {}
    topics: dict[str, int] = {}
    size = meshes = 0
    for entry in entries:
        meshes += len(entry.topics)
        named = {entry.peer, *entry.links, *(peer for mesh in entry.topics.values() for peer in mesh)} - peers.keys()
        cost = (
            _ENTRY_COST
            + _PEER_COST * len(named)
            + _INDEX_COST * (len(entry.links) + sum(map(len, entry.topics.values())))
            + sum(_ENTRY_COST + (0 if topic in topics else len(topic)) for topic in entry.topics)
        )
        if size + cost > limit_bytes or len(named) + len(peers) > MAX_PEERS or meshes > MAX_MESHES:
            meshes -= len(entry.topics)
            continue
        size += cost
        written = answer.entries.add(
            peer=_place(peers, entry.peer), links=[_place(peers, each) for each in entry.links]
        )
        for topic, mesh in entry.topics.items():
            written.meshes.add(topic=_place(topics, topic), peers=[_place(peers, each) for each in mesh])
    answer.peers.extend(peer_id_bytes(peer) for peer in peers)
    answer.topics.extend(topics)
    return answer.SerializeToString()


def _place(table: dict[str, int], name: str) -> int:
    return table.setdefault(name, len(table))


def decode_answer(body: bytes) -> tuple[MeshEntry, ...]:
    """The entries of an answer, none of them for the same node twice.

    Raises:
        InvalidMessage: reasons `oversize`, `protobuf`, `peer-id`, `topic` (no topic name, or told twice), `entries`
            (one node twice, or too much of something), `place` (a position behind the end of a table).
    """
    if len(body) > MAX_ANSWER_BYTES:
        raise InvalidMessage("oversize", f"a mesh answer of {len(body)} bytes is over {MAX_ANSWER_BYTES}")
    message = mesh_pb2.MeshAnswer()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no mesh answer: {error}") from error
    if max(len(message.entries), len(message.peers)) > MAX_PEERS:
        raise InvalidMessage("entries", f"a mesh answer names more than {MAX_PEERS} peers")
    if max(len(message.topics), sum(len(written.meshes) for written in message.entries)) > MAX_MESHES:
        raise InvalidMessage("entries", f"a mesh answer tells of more than {MAX_MESHES} meshes")
    peers = [peer_id_text(raw) for raw in message.peers]
    topics: list[str] = [parse_topic(name) for name in message.topics]
    entries: dict[PeerId, MeshEntry] = {}
    for written in message.entries:
        entry = _entry(written, peers, topics)
        if entry.peer in entries:
            raise InvalidMessage("entries", f"a mesh answer tells of {entry.peer} twice")
        entries[entry.peer] = entry
    return tuple(entries.values())


def _entry(written: mesh_pb2.MeshEntry, peers: list[PeerId], topics: list[str]) -> MeshEntry:
    if (
        len(written.links) > MAX_LINKS
        or len(written.meshes) > MAX_TOPICS
        or sum(len(mesh.peers) for mesh in written.meshes) > MAX_MESH_PEERS
    ):
        raise InvalidMessage("entries", "a node tells of more links, topics or mesh peers than the limit")
    try:
        told = {topics[mesh.topic]: [peers[place] for place in mesh.peers] for mesh in written.meshes}
        entry = MeshEntry.of(peers[written.peer], (peers[place] for place in written.links), told)
    except IndexError:
        raise InvalidMessage("place", "a mesh answer names a peer or topic that it does not list") from None
    if len(entry.topics) != len(written.meshes):
        raise InvalidMessage("topic", f"{entry.peer} tells of one topic twice")
    return entry
