"""The router at work between fake streams and a fake node: frames in, verdicts, frames out, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

import pytest
import trio

from p2pnode.core.gossipsub.events import Priority, Protocol
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.rpc import Prune, PxPeer, Rpc, Subscription
from p2pnode.core.message import Accept, Ignore, MessageId, Reject, SignedMessage, Topic, Verdict
from p2pnode.core.peerid import PeerId
from p2pnode.errors import InvalidMessage, TooBusy, Unavailable
from p2pnode.identity import Identity, verifier_for
from p2pnode.node.gossip import BUSY_FRAMES, RoutedGossip
from p2pnode.ports import Link
from p2pnode.wire.pb.libp2p.v1 import pubsub_pb2
from p2pnode.wire.pubsub import message_verify, seal_message
from p2pnode.wire.rpc import decode_rpc, encode_held, encode_rpc

SELF, ORIGIN, *NEIGHBOURS = (Identity(bytes([n]) * 32) for n in range(1, 7))
A, B, C, D = (each.peer_id for each in NEIGHBOURS)
TOPIC = "councils.claims"


def sealed(seqno: int, *, by: Identity = ORIGIN, topic: str = TOPIC, data: bytes = b"data") -> SignedMessage:
    return seal_message(origin=by.peer_id_bytes, seqno=seqno, topic=topic, data=data, sign=by.sign)


def rpc_of(*messages: SignedMessage) -> bytes:
    return encode_rpc(Rpc(publish=messages))


@dataclass(frozen=True)
class Sent:
    peers: tuple[PeerId, ...]
    body: bytes
    priority: Priority
    message_id: MessageId | None

    @property
    def rpc(self) -> Rpc:
        return decode_rpc(self.body).rpc


class FakeStreams:
    """`ports.Meshsub` that keeps what it is given; `backlog` says how much waits for whom.

    Attributes:
        later: calls that wait until more was read; None: they are made at once.
    """

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.hung_up: list[PeerId] = []
        self.backlog: dict[PeerId, int] = {}
        self.agents: dict[PeerId, str] = {}
        self.on_send: Callable[[Sent], None] = lambda sent: None
        self.later: list[Callable[[], None]] | None = None

    def send(self, peers: Iterable[PeerId], body: bytes, priority: Priority, message_id: MessageId | None) -> None:
        sent = Sent(tuple(peers), body, priority, message_id)
        self.sent.append(sent)
        self.on_send(sent)

    def soon(self, call: Callable[[], None]) -> None:
        if self.later is None:
            call()
        else:
            self.later.append(call)

    def hang_up(self, peer: PeerId) -> None:
        self.hung_up.append(peer)

    def waiting(self, peer: PeerId) -> int:
        return self.backlog.get(peer, 0)

    def peer_record(self, peer: PeerId) -> bytes | None:
        return None

    def agent_version(self, peer: PeerId) -> str | None:
        return self.agents.get(peer)

    def forwards(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.message_id is not None]


class FakeNode:
    """`ports.GossipEvents` with a verdict to give; None: it comes later."""

    def __init__(self) -> None:
        self.verdict: Verdict | None = Accept()
        self.fails = False
        self.judged: list[int] = []
        self.delivered: list[tuple[int, PeerId | None, bool]] = []
        self.kept: set[MessageId] = set()
        self.connects: list[tuple[PeerId, bytes | None, str]] = []
        self.told: list[tuple[PeerId, tuple[bytes, ...]]] = []
        self.repeats: list[tuple[PeerId, MessageId]] = []
        self.joins: list[tuple[PeerId, str]] = []
        self.on_deliver: Callable[[SignedMessage], None] = lambda message: None

    def judge(self, message: SignedMessage, source: PeerId | None) -> Verdict | None:
        self.judged.append(message.number)
        if self.fails:
            raise ZeroDivisionError
        return self.verdict

    def deliver(self, message: SignedMessage, source: PeerId | None, *, via: str = "gossip", restored: bool) -> None:
        self.delivered.append((message.number, source, restored))
        self.on_deliver(message)

    def holds(self, message_id: MessageId) -> bool:
        return message_id in self.kept

    def connect(self, peer: PeerId, record: bytes | None, why: str) -> None:
        self.connects.append((peer, record, why))

    def held(self, peer: PeerId, seqnos: Sequence[bytes]) -> None:
        self.told.append((peer, tuple(seqnos)))

    def repeated(self, peer: PeerId, message_id: MessageId) -> None:
        self.repeats.append((peer, message_id))

    def joined(self, peer: PeerId, topic: str) -> None:
        self.joins.append((peer, topic))


class Bench:
    """RoutedGossip in the topic, with three neighbours that take part in it."""

    def __init__(self, *, fixed_degree: bool = False) -> None:
        self.streams = FakeStreams()
        self.node = FakeNode()
        self.gossip = RoutedGossip(
            SELF.peer_id,
            self.streams,
            self.node,
            message_verify(verifier_for),
            Params(),
            Random(1),
            fixed_degree=fixed_degree,
        )

    def meet(self, *peers: PeerId, topic: str = TOPIC) -> None:
        for peer in peers:
            self.gossip.peer_ready(Link(peer, "outbound", "/ip4/10.0.0.1/tcp/9000"), Protocol.V1_1)
            self.gossip.frame(peer, encode_rpc(Rpc(subscriptions=(Subscription(Topic(topic), True),))))


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.gossip.subscribe(TOPIC)
    made.meet(A, B, C)
    made.streams.sent.clear()
    return made


# -- verdicts ----------------------------------------------------------------------------------------


async def test_an_accepted_message_is_delivered_once_and_forwarded_to_the_others_encoded_once(bench: Bench) -> None:
    message = sealed(1)
    for peer in (A, B, A):
        bench.gossip.frame(peer, rpc_of(message))
    assert bench.node.delivered == [(1, A, False)]
    [forward] = bench.streams.forwards()
    assert set(forward.peers) == {B, C}
    assert (forward.body, forward.priority, forward.message_id) == (rpc_of(message), Priority.FORWARD, message.id)
    assert bench.gossip.counters()["ignore", "duplicate"] == 2


async def test_a_neighbour_whose_copy_is_read_before_the_message_is_passed_on_is_spared_it(bench: Bench) -> None:
    bench.streams.later = []
    message = sealed(1)
    bench.gossip.frame(A, rpc_of(message))
    assert bench.streams.forwards() == []
    bench.gossip.frame(B, rpc_of(message))
    for call in bench.streams.later:
        call()
    [forward] = bench.streams.forwards()
    assert set(forward.peers) == {C}


async def test_what_waits_to_be_passed_on_is_sent_by_a_flush(bench: Bench) -> None:
    bench.streams.later = []
    bench.gossip.frame(A, rpc_of(sealed(1)))
    await bench.gossip.flush()
    [forward] = bench.streams.forwards()
    assert set(forward.peers) == {B, C}


@pytest.mark.parametrize(
    ("verdict", "counted", "delivered"),
    [
        (Accept(relay=False), ("accept", "kept"), True),
        (Ignore("expired"), ("ignore", "expired"), False),
        (Reject("member-record"), ("reject", "member-record"), False),
    ],
)
async def test_what_is_not_to_be_relayed_is_counted_and_not_forwarded(
    bench: Bench, verdict: Verdict, counted: tuple[str, str], delivered: bool
) -> None:
    bench.node.verdict = verdict
    bench.gossip.frame(A, rpc_of(sealed(1)))
    assert bench.gossip.counters()[counted] == 1
    assert bool(bench.node.delivered) is delivered
    assert bench.streams.forwards() == []
    score = bench.gossip.score(A)
    assert score is not None
    assert (score < 0) is isinstance(verdict, Reject)


async def test_a_validator_that_fails_is_an_ignored_message_and_nobodys_fault(bench: Bench) -> None:
    bench.node.fails = True
    bench.gossip.frame(A, rpc_of(sealed(1), sealed(2)))
    assert bench.gossip.counters()["ignore", "validator-failed"] == 2
    assert bench.gossip.score(A) == 0
    bench.node.fails = False
    bench.gossip.frame(A, rpc_of(sealed(3)))
    assert bench.node.delivered == [(3, A, False)]


async def test_a_late_answer_delivers_and_forwards_to_all_but_those_who_sent_it(bench: Bench) -> None:
    bench.node.verdict = None
    slow, message = sealed(1), sealed(2)
    bench.gossip.frame(A, rpc_of(slow))
    bench.gossip.frame(B, rpc_of(slow))
    bench.node.verdict = Accept()
    bench.gossip.frame(A, rpc_of(message))
    assert bench.node.delivered == [(2, A, False)]  # the slow one holds nobody up
    bench.gossip.answer(slow.id, Accept())
    assert bench.node.delivered[1:] == [(1, A, False)]
    assert bench.streams.forwards()[-1].peers == (C,)
    bench.gossip.answer(slow.id, Accept())
    assert bench.gossip.counters()["ignore", "late-verdict"] == 1
    assert len(bench.node.delivered) == 2


async def test_a_message_kept_already_is_not_judged_again(bench: Bench) -> None:
    message = sealed(1)
    bench.node.kept.add(message.id)
    bench.gossip.frame(A, rpc_of(message))
    assert bench.node.judged == []
    assert bench.gossip.counters()["ignore", "duplicate"] == 1


async def test_an_own_message_that_was_lost_comes_back_restored(bench: Bench) -> None:
    bench.gossip.frame(A, rpc_of(sealed(1, by=SELF)))
    assert bench.node.delivered == [(1, A, True)]


# -- frames ------------------------------------------------------------------------------------------


async def test_a_frame_that_is_no_rpc_is_refused_and_counted_when_the_stream_says_so(bench: Bench) -> None:
    with pytest.raises(InvalidMessage) as caught:
        bench.gossip.frame(A, b"\xff" * 20)
    bench.gossip.misbehaved(A, caught.value.reason)
    assert bench.gossip.counters()["rpc", "protobuf"] == 1


async def test_a_bad_message_beside_a_good_one_costs_its_sender_and_not_the_good_one(bench: Bench) -> None:
    unsigned = replace(sealed(1), raw=b"\x22\x01t")
    bench.gossip.frame(A, rpc_of(unsigned, sealed(2)))
    assert bench.node.delivered == [(2, A, False)]
    assert bench.gossip.counters()["reject", "from"] == 1


async def test_what_is_over_the_limits_of_an_rpc_is_counted(bench: Bench) -> None:
    many = Rpc(subscriptions=tuple(Subscription(Topic(f"t{n}"), True) for n in range(1100)))
    bench.gossip.frame(A, encode_rpc(many))
    assert bench.gossip.counters()["ignore", "control-excess"] == 100


async def test_frames_of_a_peer_that_left_are_counted_and_change_nothing(bench: Bench) -> None:
    bench.gossip.peer_gone(A)
    bench.gossip.frame(A, rpc_of(sealed(1)))
    assert bench.node.judged == []
    assert bench.gossip.counters()["control", "rpc-stranger"] == 1


# -- own messages ------------------------------------------------------------------------------------


async def test_an_own_message_goes_to_every_topic_peer_as_own(bench: Bench) -> None:
    message = sealed(1, by=SELF)
    await bench.gossip.publish(message)
    [sent] = bench.streams.forwards()
    assert (set(sent.peers), sent.priority, sent.body) == ({A, B, C}, Priority.OWN, rpc_of(message))
    assert bench.node.delivered == []


async def test_a_publish_from_inside_a_delivery_comes_after_the_message_it_answers(bench: Bench) -> None:
    question, answer, third = sealed(1), sealed(10, by=SELF), sealed(2)
    bench.node.on_deliver = lambda message: publish_now(bench, answer) if message.number == 1 else None
    bench.gossip.frame(A, rpc_of(question, third))
    assert [sent.message_id for sent in bench.streams.forwards()] == [question.id, third.id, answer.id]
    assert [number for number, _, _ in bench.node.delivered] == [1, 2]
    for message in (question, third):
        assert set(next(s for s in bench.streams.forwards() if s.message_id == message.id).peers) == {B, C}


def publish_now(bench: Bench, message: SignedMessage) -> None:
    """`publish` awaits nothing: run it to its end, as from a callback."""
    with pytest.raises(StopIteration):
        bench.gossip.publish(message).send(None)


async def test_a_queue_that_overflows_while_it_is_written_to_is_reported_and_offered_again(bench: Bench) -> None:
    message = sealed(1)

    def full(sent: Sent) -> None:
        if sent.message_id == message.id:
            bench.gossip.peer_refused(B, (message.id,))

    bench.streams.on_send = full
    bench.gossip.frame(A, rpc_of(message))
    counters = bench.gossip.counters()
    assert (counters["drop", "queue-full"], counters["control", "queue-full"]) == (1, 1)
    assert bench.gossip.sizes()["owed"] == 1
    assert bench.node.delivered == [(1, A, False)]


async def test_an_announcement_goes_to_the_chosen_ones_of_the_topic_however_large_it_is(bench: Bench) -> None:
    bench.meet(D, topic="hmmm.other")
    message = sealed(1, by=SELF, data=bytes(200_000))
    await bench.gossip.publish(message)
    bench.streams.sent.clear()
    bench.gossip.announce(message, [B, D])
    [sent] = bench.streams.sent
    assert (sent.peers, sent.body, sent.priority) == ((B,), rpc_of(message), Priority.OWN)
    assert sent.message_id == message.id


# -- held notices ------------------------------------------------------------------------------------


async def test_what_a_peer_says_it_holds_reaches_the_node_and_costs_it_nothing(bench: Bench) -> None:
    seqnos = tuple(number.to_bytes(8, "big") for number in (1, 2**64 - 1))
    bench.gossip.frame(A, encode_held([seqnos[0], b"short", seqnos[1]]))
    assert bench.node.told == [(A, seqnos)]
    assert bench.gossip.counters()["ignore", "held-malformed"] == 1
    assert bench.gossip.score(A) == 0
    assert bench.streams.sent == []


async def test_the_word_of_a_graylisted_peer_counts_for_nothing(bench: Bench) -> None:
    forged = [replace(sealed(n), raw=sealed(n).raw.replace(b"data", b"date")) for n in range(5)]
    bench.gossip.frame(A, rpc_of(*forged))
    bench.gossip.frame(A, encode_held([bytes(8)]))
    assert bench.node.told == []
    assert bench.gossip.counters()["ignore", "held-graylisted"] == 1


async def test_notices_go_out_last_and_in_pieces_that_the_other_side_takes(bench: Bench) -> None:
    seqnos = [number.to_bytes(8, "big") for number in range(2500)]
    bench.gossip.send_held(A, seqnos)
    decoded = [decode_rpc(sent.body) for sent in bench.streams.sent]
    assert [seqno for each in decoded for seqno in each.held] == seqnos
    assert sum(each.held_malformed for each in decoded) == 0
    assert {(sent.peers, sent.priority, sent.message_id) for sent in bench.streams.sent} == {
        ((A,), Priority.GOSSIP, None)
    }


async def test_an_origin_that_sends_again_what_is_kept_is_told_of_and_nobody_else_is(bench: Bench) -> None:
    message, other = sealed(1, by=NEIGHBOURS[0]), sealed(2)
    bench.gossip.frame(A, rpc_of(message))
    assert bench.node.repeats == []  # it was new
    bench.node.kept |= {message.id, other.id}
    bench.gossip.frame(B, rpc_of(message))
    bench.gossip.frame(A, rpc_of(other, message))
    assert bench.node.repeats == [(A, message.id)]


# -- admission ---------------------------------------------------------------------------------------


async def test_nothing_is_promised_for_a_topic_that_nobody_takes_part_in(bench: Bench) -> None:
    with pytest.raises(Unavailable) as caught:
        bench.gossip.admit("hmmm.nobody")
    assert caught.value.reason == "no-peers"


async def test_one_peer_that_does_not_read_silences_nobody(bench: Bench) -> None:
    bench.streams.backlog = {A: BUSY_FRAMES, B: BUSY_FRAMES * 10}
    bench.gossip.admit(TOPIC)


async def test_nothing_is_promised_while_every_mesh_peer_is_behind(bench: Bench) -> None:
    bench.streams.backlog = dict.fromkeys((A, B, C), BUSY_FRAMES)
    with pytest.raises(TooBusy) as caught:
        bench.gossip.admit(TOPIC)
    assert caught.value.reason == "peer-slow"
    bench.streams.backlog[C] -= 1
    bench.gossip.admit(TOPIC)


async def test_without_a_mesh_the_topics_peers_decide(bench: Bench) -> None:
    bench.meet(D, topic="hmmm.other")
    bench.gossip.admit("hmmm.other")
    bench.streams.backlog[D] = BUSY_FRAMES
    with pytest.raises(TooBusy):
        bench.gossip.admit("hmmm.other")


# -- peers and timers --------------------------------------------------------------------------------


async def test_a_peer_whose_stream_was_opened_again_hears_our_subscriptions_anew(bench: Bench) -> None:
    await bench.gossip.subscribe("hmmm.other")
    bench.streams.sent.clear()
    bench.gossip.peer_reopened(B)
    [sent] = bench.streams.sent
    assert (sent.peers, sent.priority) == ((B,), Priority.CONTROL)
    assert set(sent.rpc.subscriptions) == {Subscription(Topic(TOPIC), True), Subscription(Topic("hmmm.other"), True)}


async def test_what_a_peer_joins_after_its_first_words_is_told_once(bench: Bench) -> None:
    def subscribe(*topics: str, leave: bool = False) -> None:
        told = tuple(Subscription(Topic(topic), not leave) for topic in topics)
        bench.gossip.frame(A, encode_rpc(Rpc(subscriptions=told)))

    assert bench.node.joins == []
    subscribe(TOPIC, "chat", "chat")
    subscribe("chat")
    assert bench.node.joins == [(A, "chat")]
    subscribe("chat", leave=True)
    subscribe("chat")
    assert bench.node.joins == [(A, "chat")] * 2
    bench.gossip.peer_gone(A)
    bench.meet(A, topic="chat")
    assert len(bench.node.joins) == 2


async def test_a_peer_over_its_bound_of_topics_joins_no_more(bench: Bench) -> None:
    told = tuple(Subscription(Topic(f"t{number}"), True) for number in range(1100))
    bench.gossip.frame(A, encode_rpc(Rpc(subscriptions=told)))
    assert len(bench.node.joins) == len(bench.gossip.topic_peers("t0")) * (bench.gossip.sizes()["subscriptions"] - 3)


async def test_a_new_peer_hears_our_subscriptions_and_a_gone_one_is_in_no_topic(bench: Bench) -> None:
    bench.meet(D)
    assert Subscription(Topic(TOPIC), True) in bench.streams.sent[0].rpc.subscriptions
    assert D in bench.gossip.topic_peers(TOPIC)
    bench.gossip.peer_gone(D)
    assert D not in bench.gossip.topic_peers(TOPIC)
    assert D not in bench.gossip.mesh(TOPIC)


async def test_peers_exchanged_are_asked_of_the_node_with_their_records(bench: Bench) -> None:
    assert A in bench.gossip.mesh(TOPIC)
    bench.gossip.frame(A, encode_rpc(Rpc(prune=(Prune(Topic(TOPIC), (PxPeer(D, b"record"),), 60),))))
    assert bench.node.connects == [(D, b"record", "px")]


async def test_a_graylisted_peer_is_hung_up_on_at_the_next_heartbeat(
    bench: Bench, autojump_clock: trio.abc.Clock
) -> None:
    forged = [replace(sealed(n), raw=sealed(n).raw.replace(b"data", b"date")) for n in range(5)]
    bench.gossip.frame(A, rpc_of(*forged))
    assert bench.gossip.counters()["reject", "signature"] == 3
    with trio.move_on_after(5):
        await bench.gossip.run()
    assert bench.streams.hung_up == [A]


async def test_flush_returns_when_nothing_waits(bench: Bench, autojump_clock: trio.abc.Clock) -> None:
    bench.streams.backlog[A] = 3

    async def written() -> None:
        await trio.sleep(1)
        bench.streams.backlog.clear()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(written)
        assert bench.gossip.waiting() == 3
        await bench.gossip.flush()
    assert bench.gossip.waiting() == 0


@pytest.mark.parametrize(("fixed", "links"), [(False, 3), (True, 5)])
async def test_the_fleets_size_sets_the_mesh_unless_the_operator_did(fixed: bool, links: int) -> None:
    bench = Bench(fixed_degree=fixed)
    await bench.gossip.subscribe(TOPIC)
    bench.gossip.fleet_size(10)
    bench.meet(*(Identity(bytes([n]) * 32).peer_id for n in range(20, 28)))
    assert len(bench.gossip.mesh(TOPIC)) == links


# -- names of messages -------------------------------------------------------------------------------


def key_id(peer: Identity, number: int) -> bytes:
    """js-libp2p's default id: the origin's key as protobuf, then the number."""
    return peer.peer_id_bytes[2:] + number.to_bytes(8, "big")


def asked_for(body: bytes) -> list[bytes]:
    wire = pubsub_pb2.RPC.FromString(body)
    return [mid for entry in wire.control.iwant for mid in entry.message_ids]


def advert(mid: bytes) -> bytes:
    entry = pubsub_pb2.ControlIHave(topic_id=TOPIC, message_ids=[mid])
    return pubsub_pb2.RPC(control=pubsub_pb2.ControlMessage(ihave=[entry])).SerializeToString()


async def test_a_message_advertised_under_its_js_name_is_asked_for_under_that_name(bench: Bench) -> None:
    wanted = key_id(SELF, 7)
    bench.gossip.frame(A, advert(wanted))
    assert [asked_for(sent.body) for sent in bench.streams.sent] == [[wanted]]


async def test_a_peer_that_calls_itself_js_is_asked_in_its_own_form(bench: Bench) -> None:
    bench.streams.agents[B] = "js-libp2p/3.3.0"
    bench.gossip.frame(B, advert(SELF.peer_id_bytes + (7).to_bytes(8, "big")))
    assert [asked_for(sent.body) for sent in bench.streams.sent] == [[key_id(SELF, 7)]]


async def test_a_peer_that_says_nothing_of_itself_is_asked_by_peer_id_and_number(bench: Bench) -> None:
    wanted = SELF.peer_id_bytes + (7).to_bytes(8, "big")
    bench.gossip.frame(C, advert(wanted))
    assert [asked_for(sent.body) for sent in bench.streams.sent] == [[wanted]]
