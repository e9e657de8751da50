"""Mesh questions and answers on the wire: bounded, read without trust, cut to what others take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.peerid import PeerId, peer_id_bytes, peer_id_text
from p2pnode.errors import InvalidMessage
from p2pnode.wire import meshes as wire
from p2pnode.wire.meshes import (
    MAX_ANSWER_BYTES,
    MAX_LINKS,
    MAX_MESH_PEERS,
    MAX_PEERS,
    MAX_TOPICS,
    MeshEntry,
    MeshQuestion,
    decode_answer,
    decode_question,
    encode_answer,
    encode_question,
)
from p2pnode.wire.pb.p2pnode.v1 import mesh_pb2
from tests.properties import many, some

ID = b"i" * 16


def peer(number: int) -> PeerId:
    return peer_id_text(b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big"))


peers = st.integers(0, 20).map(peer)
topics = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
entries = st.builds(
    MeshEntry.of, peers, st.lists(peers, max_size=8), st.dictionaries(topics, st.lists(peers, max_size=6), max_size=4)
)


def refused(body: bytes) -> str:
    with pytest.raises(InvalidMessage) as caught:
        decode_answer(body)
    return caught.value.reason


@some
@given(st.lists(entries, max_size=10, unique_by=lambda entry: entry.peer))
def test_an_answer_is_read_as_it_was_told(told: list[MeshEntry]) -> None:
    assert decode_answer(encode_answer(told)) == tuple(told)


@some
@given(st.floats(0.001, 100))
def test_a_question_is_read_as_it_was_asked(patience: float) -> None:
    question = decode_question(encode_question(MeshQuestion(ID, patience)))
    assert question.id == ID
    assert question.patience_seconds == pytest.approx(patience, abs=0.001)


@many
@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_refused_as_one(body: bytes) -> None:
    try:
        told = decode_answer(body)
    except InvalidMessage:
        return
    assert decode_answer(encode_answer(told)) == told


@many
@given(st.binary(max_size=80))
def test_any_bytes_are_a_question_or_refused_as_one(body: bytes) -> None:
    try:
        question = decode_question(body)
    except InvalidMessage:
        return
    assert len(question.id) == 16
    assert question.patience_seconds > 0


@many
@given(st.data())
def test_an_answer_changed_anywhere_is_refused_or_still_one(data: st.DataObject) -> None:
    body = bytearray(encode_answer([MeshEntry.of(peer(1), [peer(2)], {"t": [peer(2)], "u": []})]))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        told = decode_answer(bytes(body))
    except InvalidMessage:
        return
    assert decode_answer(encode_answer(told)) == told


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\x0a" * 65, "oversize"),
        (b"\xff", "protobuf"),
        (b"", "id"),
        (mesh_pb2.MeshQuestion(id=b"i" * 15, patience_ms=1).SerializeToString(), "id"),
        (mesh_pb2.MeshQuestion(id=b"i" * 17, patience_ms=1).SerializeToString(), "id"),
        (mesh_pb2.MeshQuestion(id=ID).SerializeToString(), "patience"),
    ],
)
def test_a_wrong_question_says_what_is_wrong(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_question(body)
    assert caught.value.reason == reason


def message(*written: mesh_pb2.MeshEntry, peers: int = 2, topics: tuple[str, ...] = ("t",)) -> bytes:
    listed = [peer_id_bytes(peer(number)) for number in range(peers)]
    return mesh_pb2.MeshAnswer(peers=listed, topics=topics, entries=written).SerializeToString()


def entry(**fields: object) -> mesh_pb2.MeshEntry:
    return mesh_pb2.MeshEntry(**fields)  # type: ignore[arg-type]


def test_a_wrong_answer_says_what_is_wrong() -> None:
    mesh = mesh_pb2.MeshOfTopic
    assert refused(b"x" * (MAX_ANSWER_BYTES + 1)) == "oversize"
    assert refused(b"\xff") == "protobuf"
    assert refused(mesh_pb2.MeshAnswer(peers=[b"x"]).SerializeToString()) == "peer-id"
    assert refused(message(topics=("no topic",))) == "topic"
    assert refused(message(entry(meshes=[mesh(topic=0), mesh(topic=0)]))) == "topic"
    assert refused(message(entry(peer=0), entry(peer=0))) == "entries"
    for outside in (entry(peer=2), entry(links=[2]), entry(meshes=[mesh(topic=1)]), entry(meshes=[mesh(peers=[2])])):
        assert refused(message(outside)) == "place"


def test_too_much_of_anything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = mesh_pb2.MeshOfTopic
    assert refused(message(entry(links=[0] * (MAX_LINKS + 1)))) == "entries"
    assert refused(message(entry(meshes=[mesh()] * (MAX_TOPICS + 1)))) == "entries"
    assert refused(message(entry(meshes=[mesh(peers=[0] * (MAX_MESH_PEERS + 1))]))) == "entries"
    assert refused(message(peers=MAX_PEERS + 1)) == "entries"
    assert refused(message(*[entry()] * (MAX_PEERS + 1))) == "entries"
    monkeypatch.setattr(wire, "MAX_MESHES", 3)
    assert refused(message(*(entry(peer=number, meshes=[mesh(), mesh(topic=1)]) for number in (0, 1)))) == "entries"


def test_what_a_node_tells_of_itself_is_cut_to_what_others_take() -> None:
    crowd = [peer(number) for number in range(MAX_LINKS + 10)]
    told = MeshEntry.of(peer(0), [*crowd, *crowd], {f"t{number}": crowd for number in range(MAX_TOPICS + 5)})
    assert len(told.links) == MAX_LINKS
    assert len(told.topics) == MAX_TOPICS
    assert sum(map(len, told.topics.values())) == MAX_MESH_PEERS
    assert decode_answer(encode_answer([told])) == (told,)


def test_what_does_not_fit_is_left_out_and_the_rest_is_told() -> None:
    small = [MeshEntry.of(peer(number), [peer(number + 1)], {"t": []}) for number in range(20)]
    large = MeshEntry.of(peer(500), [peer(number) for number in range(1000, 1100)], {})
    body = encode_answer([small[0], large, *small[1:]], limit_bytes=2500)
    assert len(body) <= 2500
    assert decode_answer(body) == tuple(small)


def test_an_answer_never_names_more_than_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_PEERS", 10)
    monkeypatch.setattr(wire, "MAX_MESHES", 6)
    told = [MeshEntry.of(peer(number), [peer(number + 1)], {"t": []}) for number in range(20)]
    assert decode_answer(encode_answer(told)) == tuple(told[:6])
    bare = [MeshEntry.of(peer(number), [], {}) for number in range(20)]
    assert decode_answer(encode_answer(bare)) == tuple(bare[:10])


def test_a_fleet_of_a_thousand_fits_a_quarter_of_the_limit() -> None:
    fleet = [peer(number) for number in range(1000)]
    told = [
        MeshEntry.of(
            one, fleet[number % 900 :][:16], {f"topic.{each}": fleet[number % 900 + each :][:10] for each in range(6)}
        )
        for number, one in enumerate(fleet)
    ]
    body = encode_answer(told)
    assert len(body) < MAX_ANSWER_BYTES / 4
    assert decode_answer(body) == tuple(told)
