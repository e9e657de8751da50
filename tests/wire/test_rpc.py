"""The pubsub RPC on the wire: any bytes are an RPC or refused, nothing grows past its limit, nothing good is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.pubsub.pb import rpc_pb2

from p2pnode.core.gossipsub.rpc import IHave, Prune, PxPeer, Rpc, Subscription
from p2pnode.core.message import MAX_MESSAGE_BYTES, MessageId, SignedMessage, Topic
from p2pnode.errors import InvalidMessage
from p2pnode.identity import Identity
from p2pnode.wire import rpc as limits
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import RPC, Message
from p2pnode.wire.pubsub import seal_message
from p2pnode.wire.rpc import Decoded, Refused, RpcDecoder, decode_rpc, encode_held, encode_publish, encode_rpc
from tests.properties import many, some

ALICE = Identity(b"a" * 32)
PEERS = [Identity(bytes([n]) * 32).peer_id for n in range(1, 9)]


def sealed(data: bytes = b"data", seqno: int = 1, topic: str = "t") -> SignedMessage:
    return seal_message(origin=ALICE.peer_id_bytes, seqno=seqno, topic=topic, data=data, sign=ALICE.sign)


MESSAGES = [sealed(bytes([n]) * n * 50, n) for n in range(8)]

topics = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).map(Topic)
ids = st.binary(min_size=1, max_size=limits.MAX_ID_BYTES).map(MessageId)
rpcs = st.builds(
    Rpc,
    subscriptions=st.lists(st.builds(Subscription, topics, st.booleans()), max_size=5).map(tuple),
    publish=st.lists(st.sampled_from(MESSAGES), max_size=4).map(tuple),
    ihave=st.lists(st.builds(IHave, topics, st.lists(ids, min_size=1, max_size=5).map(tuple)), max_size=4).map(tuple),
    iwant=st.lists(ids, max_size=5).map(tuple),
    graft=st.lists(topics, max_size=5).map(tuple),
    prune=st.lists(
        st.builds(
            Prune,
            topics,
            st.lists(st.builds(PxPeer, st.sampled_from(PEERS), st.binary(max_size=50)), max_size=4).map(tuple),
            st.integers(0, limits.MAX_BACKOFF_SECONDS),
        ),
        max_size=3,
    ).map(tuple),
    idontwant=st.lists(ids, max_size=5).map(tuple),
)


def within_limits(decoded: Decoded) -> None:
    rpc = decoded.rpc
    assert len(rpc.publish) + len(decoded.refused) <= limits.MAX_MESSAGES
    assert len(rpc.subscriptions) <= limits.MAX_SUBSCRIPTIONS
    for entries in (rpc.ihave, rpc.graft, rpc.prune):
        assert len(entries) <= limits.MAX_CONTROL_ENTRIES
    assert sum(len(entry.ids) for entry in rpc.ihave) + len(rpc.iwant) + len(rpc.idontwant) <= limits.MAX_IDS
    assert all(len(entry.peers) <= limits.MAX_PX_PEERS for entry in rpc.prune)
    assert sum(len(entry.peers) for entry in rpc.prune) <= limits.MAX_PX_PEERS_IN_ALL
    assert all(entry.backoff_seconds <= limits.MAX_BACKOFF_SECONDS for entry in rpc.prune)


# -- total -------------------------------------------------------------------------------------------


@many
@given(frame=st.binary(max_size=400))
def test_any_bytes_are_an_rpc_or_refused(frame: bytes) -> None:
    try:
        decoded = decode_rpc(frame)
    except InvalidMessage as error:
        assert error.reason in ("oversize", "protobuf")  # noqa: PT017
        return
    within_limits(decoded)


@many
@given(rpc=rpcs, cut=st.data())
def test_an_rpc_changed_anywhere_is_an_rpc_or_refused(rpc: Rpc, cut: st.DataObject) -> None:
    raw = bytearray(encode_rpc(rpc) or b"\x00")
    raw[cut.draw(st.integers(0, len(raw) - 1))] ^= cut.draw(st.integers(1, 255))
    try:
        within_limits(decode_rpc(bytes(raw[: cut.draw(st.integers(0, len(raw)))])))
    except InvalidMessage as error:
        assert error.reason in ("oversize", "protobuf")  # noqa: PT017


@pytest.mark.parametrize("filler", [b"\x7b", b"\x0b", b"\x12\x00", b"\x1a\x02\x0a\x00", b"\x0a\x00", b"\x1a", b"\xff"])
def test_a_megabyte_of_nested_or_empty_fields_is_an_rpc_or_refused(filler: bytes) -> None:
    try:
        within_limits(decode_rpc(filler * (limits.MAX_RPC_BYTES // len(filler))))
    except InvalidMessage as error:
        assert error.reason in ("oversize", "protobuf")  # noqa: PT017


# -- round trips -------------------------------------------------------------------------------------


@many
@given(rpc=rpcs)
def test_an_rpc_is_read_as_it_was_written(rpc: Rpc) -> None:
    assert decode_rpc(encode_rpc(rpc)) == Decoded(rpc)


@some
@given(rpc=rpcs)
def test_the_library_reads_what_we_write(rpc: Rpc) -> None:
    theirs = rpc_pb2.RPC.FromString(encode_rpc(rpc))
    assert [(entry.topicid, entry.subscribe) for entry in theirs.subscriptions] == [
        (entry.topic, entry.subscribe) for entry in rpc.subscriptions
    ]
    assert [message.data for message in theirs.publish] == [message.data for message in rpc.publish]
    assert [entry.topicID for entry in theirs.control.graft] == list(rpc.graft)
    assert [(entry.topicID, entry.backoff) for entry in theirs.control.prune] == [
        (entry.topic, entry.backoff_seconds) for entry in rpc.prune
    ]


@some
@given(data=st.binary(max_size=400) | st.integers(0, MAX_MESSAGE_BYTES - 4096).map(bytes))
def test_a_publish_alone_is_the_rpc_of_that_message(data: bytes) -> None:
    message = sealed(data)
    assert encode_publish(message) == encode_rpc(Rpc(publish=(message,)))


def test_copies_of_a_frame_are_read_once_as_long_as_few_others_come_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMEMBERED_FRAMES", 2)
    decoder = RpcDecoder()
    frames = [encode_publish(sealed(seqno=number)) for number in (1, 2, 3)]
    first = decoder.decode(frames[0])
    assert first == decode_rpc(frames[0])
    assert decoder.decode(bytes(bytearray(frames[0]))) is first
    assert [decoder.decode(frame).rpc.publish[0].number for frame in frames[1:]] == [2, 3]
    again = decoder.decode(frames[0])
    assert again == first
    assert again is not first


def test_large_frames_and_bad_ones_are_read_anew_each_time() -> None:
    decoder = RpcDecoder()
    large = encode_publish(sealed(bytes(limits.REMEMBERED_BYTES)))
    assert decoder.decode(large) == decoder.decode(large)
    assert decoder.decode(large) is not decoder.decode(large)
    for _ in range(2):
        with pytest.raises(InvalidMessage):
            decoder.decode(b"\xff")


def test_a_message_keeps_the_bytes_its_origin_wrote() -> None:
    raw = sealed().raw + b"\x7a\x03new"
    [message] = decode_rpc(RPC(publish=[raw]).SerializeToString()).rpc.publish
    assert message.raw == raw


# -- limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("subscriptions", limits.MAX_SUBSCRIPTIONS),
        ("graft", limits.MAX_CONTROL_ENTRIES),
        ("prune", limits.MAX_CONTROL_ENTRIES),
    ],
)
def test_entries_over_the_limit_are_left_out_and_counted(name: str, limit: int) -> None:
    frame = RPC()
    entries = getattr(frame if name == "subscriptions" else frame.control, name)
    for _ in range(limit + 7):
        entries.add(topic_id="t")
    decoded = decode_rpc(frame.SerializeToString())
    assert len(getattr(decoded.rpc, name)) == limit
    assert decoded.excess == 7


def test_ids_over_the_limit_are_left_out_and_counted_over_all_entries_together() -> None:
    frame = RPC()
    frame.control.ihave.add(topic_id="t", message_ids=[b"i"] * 3000)
    frame.control.iwant.add(message_ids=[b"w"] * 1500)
    frame.control.iwant.add(message_ids=[b"w"] * 1000)
    frame.control.idontwant.add(message_ids=[b"d"] * 10)
    decoded = decode_rpc(frame.SerializeToString())
    assert (len(decoded.rpc.ihave[0].ids), len(decoded.rpc.iwant), decoded.rpc.idontwant) == (3000, 2000, ())
    assert decoded.excess == 510


def test_exchanged_peers_over_the_limit_of_an_entry_or_of_all_are_left_out_and_counted() -> None:
    frame = RPC()
    for _ in range(6):
        entry = frame.control.prune.add(topic_id="t")
        for _ in range(limits.MAX_PX_PEERS + 5):
            entry.peers.add(peer_id=ALICE.peer_id_bytes)
    decoded = decode_rpc(frame.SerializeToString())
    assert [len(entry.peers) for entry in decoded.rpc.prune] == [limits.MAX_PX_PEERS] * 4 + [0, 0]
    assert decoded.excess == 6 * (limits.MAX_PX_PEERS + 5) - limits.MAX_PX_PEERS_IN_ALL


def test_what_names_no_topic_no_peer_or_no_message_is_left_out() -> None:
    frame = RPC()
    for topic in ("", "t" * 201, "good"):
        frame.subscriptions.add(topic_id=topic, subscribe=True)
        frame.control.graft.add(topic_id=topic)
        frame.control.prune.add(topic_id=topic, backoff=2**64 - 1)
        frame.control.ihave.add(topic_id=topic, message_ids=[b"", b"x" * (limits.MAX_ID_BYTES + 1), b"id"])
    peers = frame.control.prune[2].peers
    peers.add(peer_id=b"no peer")
    peers.add(peer_id=ALICE.peer_id_bytes, signed_peer_record=b"r" * (limits.MAX_RECORD_BYTES + 1))
    peers.add(peer_id=ALICE.peer_id_bytes, signed_peer_record=b"record")
    good = Topic("good")
    assert decode_rpc(frame.SerializeToString()).rpc == Rpc(
        subscriptions=(Subscription(good, True),),
        ihave=(IHave(good, (MessageId(b"id"),)),),
        graft=(good,),
        prune=(Prune(good, (PxPeer(ALICE.peer_id, b"record"),), limits.MAX_BACKOFF_SECONDS),),
    )


def test_an_rpc_over_its_size_or_with_too_many_messages_is_refused_as_a_whole() -> None:
    for frame in (bytes(limits.MAX_RPC_BYTES + 1), RPC(publish=[b""] * (limits.MAX_MESSAGES + 1)).SerializeToString()):
        with pytest.raises(InvalidMessage) as caught:
            decode_rpc(frame)
        assert caught.value.reason == "oversize"


# -- held notices ------------------------------------------------------------------------------------


@some
@given(seqnos=st.lists(st.binary(min_size=8, max_size=8), max_size=limits.MAX_HELD))
def test_notices_are_read_as_they_were_written_and_the_library_passes_over_them(seqnos: list[bytes]) -> None:
    body = encode_held(seqnos)
    assert decode_rpc(body) == Decoded(Rpc(), held=tuple(seqnos))
    theirs = rpc_pb2.RPC.FromString(body)
    assert not theirs.ListFields()


@some
@given(entries=st.lists(st.binary(max_size=12)), rpc=rpcs)
def test_notices_beside_anything_else_change_nothing_of_it_and_what_is_no_seqno_is_counted(
    entries: list[bytes], rpc: Rpc
) -> None:
    decoded = decode_rpc(encode_rpc(rpc) + encode_held(entries))
    good = tuple(entry for entry in entries if len(entry) == 8)
    assert decoded == Decoded(rpc, held=good, held_malformed=len(entries) - len(good))


def test_notices_over_the_limit_are_left_out_and_counted() -> None:
    decoded = decode_rpc(encode_held([bytes(8)] * (limits.MAX_HELD + 7)))
    assert (len(decoded.held), decoded.held_malformed, decoded.excess) == (limits.MAX_HELD, 7, 0)


def test_a_megabyte_of_notices_is_an_rpc() -> None:
    decoded = decode_rpc((encode_held([b""]) * limits.MAX_RPC_BYTES)[: limits.MAX_RPC_BYTES // 5 * 5])
    assert decoded.held == ()
    assert decoded.held_malformed > 200_000


# -- good and bad together ---------------------------------------------------------------------------


@some
@given(bad=st.lists(st.sampled_from([b"", b"\xff", sealed().raw[:-3], Message(topic="t").SerializeToString()])))
def test_bad_messages_in_an_rpc_do_not_lose_the_good_ones(bad: list[bytes]) -> None:
    mixed = [raw for pair in zip(bad, [sealed(b"", n).raw for n in range(len(bad))], strict=True) for raw in pair]
    decoded = decode_rpc(RPC(publish=[*mixed, sealed(b"", 99).raw]).SerializeToString())
    assert [message.number for message in decoded.rpc.publish] == [*range(len(bad)), 99]
    assert len(decoded.refused) == len(bad)


def test_a_refused_message_says_why_and_of_which_topic() -> None:
    unsigned = Message.FromString(sealed(topic="councils.forming").raw)
    unsigned.ClearField("signature")
    decoded = decode_rpc(RPC(publish=[unsigned.SerializeToString(), b"\xff"]).SerializeToString())
    assert decoded.refused == (Refused("unsigned", Topic("councils.forming")), Refused("protobuf", None))
