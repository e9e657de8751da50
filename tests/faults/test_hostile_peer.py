"""Whatever a peer writes to a node's streams, the node stays up, counts it, and goes on delivering."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from p2pnode.core.metadata import Metadata
from p2pnode.identity import Identity
from p2pnode.wire.members import MEMBERS_PROTOCOL, MEMBERS_TOPIC
from p2pnode.wire.payload import encode_json_payload
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import RPC
from tests.faults import crafted
from tests.faults.duel import OPPORTUNITIES, TOPIC, Duel
from tests.faults.hostile import eventually, hostile_peer

SECOND = 1_000_000_000
SOMEBODY = Identity(b"somebody".ljust(32))


@pytest.mark.parametrize(
    ("data", "verdict", "reason"),
    [
        (crafted.garbage(), "rpc", "protobuf"),
        (crafted.endless_varint(), "rpc", "varint"),
        (crafted.oversize_length(), "rpc", "oversize"),
        (crafted.nested_groups(), "rpc", "protobuf"),
        (crafted.empty_messages(), "rpc", "oversize"),
        (crafted.nested_controls(), "ignore", "control-excess"),
    ],
    ids=["garbage", "varint", "oversize", "1-MiB-of-groups", "1-MiB-of-messages", "1-MiB-of-controls"],
)
async def test_bytes_that_are_no_rpc_are_counted_and_end_a_stream_at_most(
    duel: Duel, data: bytes, verdict: str, reason: str
) -> None:
    before = duel.counted(verdict, reason)
    async with hostile_peer(duel.address) as peer:
        await peer.write(data)
        await duel.until_counted(verdict, reason, before)
        duel.assert_unharmed()
        assert peer.connected


@pytest.mark.parametrize(
    ("craft", "verdict", "reason"),
    [
        (lambda me: crafted.unsigned(me, TOPIC, b"{}", 1), "reject", "unsigned"),
        (lambda me: RPC(publish=[b"\xff\xff\xff"]), "reject", "protobuf"),
        (lambda me: crafted.forged(me, TOPIC, b"forged", 2), "reject", "signature"),
        (lambda me: crafted.signed_by_another(SOMEBODY, me, TOPIC, 3, with_key=False), "reject", "signature"),
        (lambda me: crafted.signed_by_another(SOMEBODY, me, TOPIC, 4, with_key=True), "reject", "signature"),
        (lambda me: crafted.signed(me, MEMBERS_TOPIC, b"no record", 5), "reject", "member-record"),
    ],
    ids=["unsigned", "no-message", "forged", "wrong-key", "key-is-not-from", "member-record"],
)
async def test_a_message_that_every_node_rejects_costs_whoever_sends_it(
    duel: Duel, craft: Callable[[Identity], RPC], verdict: str, reason: str
) -> None:
    before = duel.counted(verdict, reason)
    async with hostile_peer(duel.address) as peer:
        for _ in range(8):
            await peer.send(craft(peer.identity))
        await duel.until_counted(verdict, reason, before)

        def punished() -> bool:
            score = peer.score_at(duel.victim)
            return score is None or score < 0

        await eventually("its score is below zero, or it was sent away", punished)
        duel.assert_unharmed()
    assert not [m for m in duel.victim.messages(TOPIC) if m["origin"] in (peer.identity.peer_id, SOMEBODY.peer_id)]


async def test_three_forged_signatures_cost_a_peer_the_ear_of_the_node_and_its_connection(duel: Duel) -> None:
    signatures, ignored = duel.counted("reject", "signature"), duel.counted("ignore", "graylisted")
    async with hostile_peer(duel.address) as peer:
        me = peer.identity
        await peer.send(crafted.publish(*(crafted.forgery(me, TOPIC, b"forged", seqno) for seqno in range(500))))
        await eventually("it is sent away", lambda: duel.counted("control", "graylisted") and not peer.connected)
        # The same RPC held 497 more, for which no signature was checked.
        assert duel.counted("reject", "signature") == signatures + 3
        # It is remembered: what it says after coming back is not heard, even when it is true.
        await peer.send(crafted.signed(me, TOPIC, b"I have changed", 1000))
        await duel.until_counted("ignore", "graylisted", ignored)
        duel.assert_unharmed()
        assert f"{me.peer_id}-1000" not in duel.victim.ids(TOPIC)


async def test_a_second_body_under_a_known_id_changes_nothing(duel: Duel) -> None:
    twice, forged = duel.counted("ignore", "equivocation"), duel.counted("reject", "signature")
    async with hostile_peer(duel.address) as peer:
        me = peer.identity
        first = f"{me.peer_id}-7"
        await peer.send(crafted.signed(me, TOPIC, b"first body", 7))
        await eventually("the first body is kept", lambda: first in duel.victim.ids(TOPIC))
        await peer.send(crafted.signed(me, TOPIC, b"second body", 7))
        await duel.until_counted("ignore", "equivocation", twice)
        await peer.send(crafted.forged(me, TOPIC, b"third body", 7))
        await duel.until_counted("reject", "signature", forged)
        duel.assert_unharmed()
    for node in (duel.victim, duel.neighbour):
        kept = [document for document in node.messages(TOPIC) if document["id"] == first]
        assert [document["payload"] for document in kept] == ["Zmlyc3QgYm9keQ=="]


async def test_strange_payloads_are_kept_and_do_no_harm(duel: Duel) -> None:
    payloads = [
        b'{"a":' + b"[" * 100_000,
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b'{"lone surrogate": "\\ud800"}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"n": 1e999}',
        b'{"p2pnode": {"v": 1, "published_at": {}, "headers": {"a": 1}}}',
        b'{"p2pnode": {"v": 1, "published_at": "9999-12-31T23:59:59Z", "expires_at": "0000-00-00"}}',
        b"\x09\xff\x21\x70\x32\x70\x6e\x6e\x31" + b"\xff" * 50,
        b"",
    ]
    async with hostile_peer(duel.address) as peer:
        messages = [crafted.sealed(peer.identity, TOPIC, data, n) for n, data in enumerate(payloads, 1)]
        await peer.send(*map(crafted.publish, messages))
        last = f"{peer.identity.peer_id}-{len(payloads)}"
        await eventually("the last one is kept", lambda: last in duel.victim.ids(TOPIC))
        assert peer.score_at(duel.victim) is not None
        duel.assert_unharmed()


async def test_messages_of_a_topic_never_subscribed_are_ignored_and_cost_nobody_anything(duel: Duel) -> None:
    before = duel.counted("ignore", "unsubscribed")
    async with hostile_peer(duel.address) as peer:
        me = peer.identity
        await peer.send(*(crafted.signed(me, f"no.such.topic{n}", b"x" * 1000, n) for n in range(200)))
        await duel.until_counted("ignore", "unsubscribed", before, 200)
        assert peer.score_at(duel.victim) == 0
        duel.assert_unharmed()


async def test_whoever_forwards_what_only_our_clock_or_settings_dislike_keeps_its_score(duel: Duel) -> None:
    now = time.time_ns()
    dislikes = ("future", "expired", "opportunity")
    before = {why: duel.counted("ignore", why) for why in dislikes}

    def dated(published_at_ns: int, expires_at_ns: int = 0) -> bytes:
        return encode_json_payload(b'{"a":1}', {"a": 1}, Metadata(published_at_ns, expires_at_ns))

    async with hostile_peer(duel.address) as peer:
        for n in range(20):
            await peer.send(
                crafted.signed(SOMEBODY, TOPIC, dated(now + 600 * SECOND), 100 + n),
                crafted.signed(SOMEBODY, TOPIC, dated(now, now - SECOND), 200 + n),
                crafted.signed(SOMEBODY, OPPORTUNITIES, json.dumps({"project_name": ""}).encode(), 300 + n),
            )
        for why in dislikes:
            await duel.until_counted("ignore", why, before[why], 20)
        score = peer.score_at(duel.victim)
        assert score is not None
        assert score >= 0
        # And it is heard as ever.
        await peer.send(crafted.signed(SOMEBODY, TOPIC, dated(now), 400))
        await eventually("a good one is kept", lambda: f"{SOMEBODY.peer_id}-400" in duel.victim.ids(TOPIC))
        duel.assert_unharmed()


async def test_garbage_on_the_member_protocol_ends_its_stream_only(duel: Duel) -> None:
    async with hostile_peer(duel.address) as peer:
        for data in (b"\x00" * 1000, crafted.garbage(), crafted.endless_varint(), crafted.oversize_length()):
            await peer.write_to(MEMBERS_PROTOCOL, data)
        duel.assert_unharmed()
        assert peer.connected
