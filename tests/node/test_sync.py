"""Synchronisation at work, in virtual time: who is asked, what comes, and what becomes of those that lie."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.asking import Limits
from p2pnode.core.message import MessageId
from p2pnode.core.peerid import PeerId
from p2pnode.core.reconcile import END, START, Fingerprint, Listing, Reply
from p2pnode.core.sync import SyncAnswer, SyncRequest, message_digest
from p2pnode.core.turns import LIED_SECONDS
from p2pnode.errors import InvalidMessage, Unavailable
from p2pnode.node import sync_answers
from p2pnode.wire.pubsub import decode_message
from p2pnode.wire.sync import (
    MAX_ANSWER_BYTES,
    SYNC_PROTOCOL,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from tests.node.fakes import until
from tests.node.sync_fleet import TOPIC, SyncFleet, SyncNode


@asynccontextmanager
async def running(fleet: SyncFleet, *nodes: SyncNode) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for node in nodes or fleet.nodes:
            nursery.start_soon(node.sync.run)
        await trio.testing.wait_all_tasks_blocked()
        yield nursery
        nursery.cancel_scope.cancel()


def message_id(raw: bytes) -> MessageId:
    return decode_message(raw).id


# -- what it is for --------------------------------------------------------------------


async def test_two_that_connect_hold_the_same_soon(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(), fleet.add()
    for _ in range(30):
        fleet.spread(one.seal(), [one, other])
        fleet.spread(one.seal(), [one])
        fleet.spread(other.seal(), [other])
    async with running(fleet):
        await one.dial(other)
        await until(fleet.same, 3)
        assert len(one.archive) == 90
        assert not one.blamed
        assert not other.blamed
        assert one.sync.counted["messages", "pulled"] == one.sync.counted["messages", "served"] == 30
        # The answerer pulled what it learned that it lacks; it did not compare once more.
        assert other.sync.counted["rounds", ""] == 0


async def test_with_nothing_to_do_exchanges_are_small_and_become_rare(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = [f"topic-{number}" for number in range(5)]
    fleet = SyncFleet()
    one, other = fleet.add(topics), fleet.add(topics)
    for topic in topics * 4:
        fleet.spread(one.seal(topic=topic), [one, other])
    async with running(fleet):
        await one.dial(other)
        await trio.sleep(300)
        before = len(fleet.network.requests)
        await trio.sleep(1200)
        rare = fleet.network.requests[before:]
    sizes = [each.sent + each.got for each in fleet.network.requests]
    with capsys.disabled():
        print(f"\n  nothing to do, 5 topics: {max(sizes)} bytes an exchange, {len(rare)} in 20 minutes of two nodes")
    assert max(sizes) < 300
    assert len(rare) <= 2 * 1200 / 45 + 2
    assert one.sync.pause_seconds == other.sync.pause_seconds == 60


@pytest.mark.slow
async def test_halves_that_were_cut_hold_all_of_both_after_healing(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        fleet = SyncFleet(seed)
        nodes = [fleet.add() for _ in range(12)]
        halves = nodes[:6], nodes[6:]
        for half in halves:
            for _ in range(200):
                fleet.spread(fleet.rng.choice(half).seal(age=fleet.rng.uniform(10, 3600)), half)
        async with running(fleet):
            for half in halves:
                for node in half:
                    await node.dial(half[0]) if node is not half[0] else None
                    other = fleet.rng.choice(half)
                    await node.dial(other) if other is not node else None
            await trio.sleep(300)
            assert not fleet.same()
            before, since = fleet.sync_bytes(), trio.current_time()
            for _ in range(2):
                await fleet.rng.choice(halves[0]).dial(fleet.rng.choice(halves[1]))
            await until(fleet.same, 300)
            took = trio.current_time() - since
        with capsys.disabled():
            each = (fleet.sync_bytes() - before) / 12 / 1024
            print(f"\n  seed {seed}: 12 nodes, 2 x 200 messages: same after {took:.1f} s, {each:.0f} KiB a node")
        assert all(len(node.archive) == 400 for node in nodes), f"seed {seed}"
        assert not any(node.blamed for node in nodes), f"seed {seed}"


async def test_a_late_joiner_gets_what_is_still_kept_and_no_more_traffic_after(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, other, late = fleet.add(), fleet.add(), fleet.add()
    for number in range(1500):
        fleet.spread(one.seal(age=1600 - number), [one, other])
    keep = fleet.wall_ns() - int(1000.5 * 1e9)
    one.archive.drop_below(TOPIC, keep)
    other.archive.drop_below(TOPIC, keep - 300 * 10**9)
    async with running(fleet):
        await other.dial(one)
        await late.dial(one)
        await until(lambda: len(late.archive) == len(one.archive) == 900, 10)
        await late.dial(other)
        await until(lambda: len(late.archive) == 1200, 120)
        assert len(one.archive) == 900  # below its horizon it pulls nothing
        await trio.sleep(600)
        quiet = [each.sent + each.got for each in fleet.network.requests if each.at > trio.current_time() - 300]
        assert max(quiet) < 200
        assert sum(late.archive.taken.values()) == 1200  # each once


async def test_what_was_published_within_three_seconds_is_left_to_gossip(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(), fleet.add()
    async with running(fleet):
        await one.dial(other)
        await trio.sleep(1)
        young = other.seal(age=0)
        fleet.spread(young, [other])
        await trio.sleep(2.5)
        assert message_id(young) not in one.archive
        await until(fleet.same, 200)


async def test_topics_that_only_one_of_both_keeps_are_not_exchanged(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(["shared", "mine"]), fleet.add(["shared", "yours"])
    for topic, node in (("shared", one), ("shared", other), ("mine", one), ("yours", other)):
        fleet.spread(node.seal(topic=topic), [node])
    async with running(fleet):
        await one.dial(other)
        await trio.sleep(60)
    assert len(one.archive) == len(other.archive) == 3
    assert not one.blamed + other.blamed


async def test_a_message_that_gossip_lost_last_is_found_soon_after_others_came(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(), fleet.add()
    async with running(fleet):
        await one.dial(other)
        await trio.sleep(600)
        fleet.spread(other.seal(age=0), [other])
        other.sync.news()
        await until(fleet.same, 15)


# -- gaps ------------------------------------------------------------------------------


async def test_a_gap_is_asked_about_at_once_and_up_to_now(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(), fleet.add()
    async with running(fleet):
        await one.dial(other)
        await trio.sleep(400)
        missing = other.seal(age=0)
        fleet.spread(missing, [other])
        since = trio.current_time()
        one.sync.gap(TOPIC, other.peer_id)
        await until(lambda: message_id(missing) in one.archive, 2)
        assert trio.current_time() - since < 0.5


async def test_two_neighbours_are_asked_about_a_gap_those_of_the_topic_first(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, *others = [fleet.add([TOPIC, "chat"]) for _ in range(7)]
    async with running(fleet):
        for other in others:
            await one.dial(other)
        await trio.sleep(400)
        one.topic_peers = {others[2].peer_id, others[5].peer_id}
        before = len(fleet.network.requests)
        one.sync.gap(TOPIC, PeerId("somebody far away"))
        await trio.sleep(0.1)
        asked = {each.to for each in fleet.network.requests[before:] if each.by == one.peer_id}
    assert asked == one.topic_peers


async def test_gaps_without_neighbours_and_of_unknown_topics_do_nothing(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(), fleet.add()
    async with running(fleet):
        one.sync.gap(TOPIC, other.peer_id)
        await one.dial(other)
        for number in range(200):
            one.sync.gap(f"topic-{number}", other.peer_id)
        await trio.sleep(5)
    assert one.sync.counted["exchanges", "same"] > 0
    assert not other.blamed


# -- topics that become shared ---------------------------------------------------------


async def test_who_begins_to_keep_a_topic_gets_at_once_what_is_old_of_it(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, *others = fleet.add(["chat"]), fleet.add(), fleet.add()
    fleet.spread(others[0].seal(age=3600), others)
    async with running(fleet):
        for other in others:
            await one.dial(other)
        await trio.sleep(400)
        assert one.sync.pause_seconds == 60
        since = trio.current_time()
        one.archive.keep(TOPIC)
        one.sync.keeps(TOPIC)
        await until(lambda: len(one.archive) == 1, 2)
        assert trio.current_time() - since < 1
        await trio.sleep(400)
        since = trio.current_time()
        one.sync.keeps(TOPIC)
        await trio.sleep(1)
        assert not [each for each in fleet.network.requests if each.at > since]  # it is no news any more


async def test_a_neighbour_that_joins_a_topic_is_told_at_once_what_only_we_have(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    newcomer, *others = [fleet.add(["chat"]) for _ in range(6)]
    last = fleet.add()
    fleet.spread(last.seal(age=3600), [last])
    async with running(fleet):
        for other in others:
            await newcomer.dial(other)
        await last.dial(newcomer)
        await trio.sleep(400)
        # An older build: it begins to keep the topic and asks nobody.
        newcomer.archive.keep(TOPIC)
        last.topic_peers = {newcomer.peer_id}
        since = trio.current_time()
        for each in (last, *others):
            each.sync.joined(TOPIC, newcomer.peer_id)
        await until(lambda: len(newcomer.archive) == 1, 3)
        assert trio.current_time() - since < 1.5
        by = {each.by for each in fleet.network.requests if each.at >= since}
        assert by == {last.peer_id, newcomer.peer_id}  # who has nothing of it asks nothing


async def test_of_many_that_hear_of_a_newcomer_a_few_ask_it(autojump_clock: MockClock) -> None:
    asked = []
    for seed in range(10):
        fleet = SyncFleet(seed)
        newcomer, *others = [fleet.add() for _ in range(25)]
        fleet.spread(others[0].seal(age=3600), fleet.nodes)
        async with running(fleet):
            for other in others:
                await newcomer.dial(other)
            await trio.sleep(400)
            before = len(fleet.network.requests)
            for other in others:
                other.topic_peers = {each.peer_id for each in fleet.nodes if each is not other}
                other.sync.joined(TOPIC, newcomer.peer_id)
            await trio.sleep(1.2)
            asked.append(sum(each.to == newcomer.peer_id for each in fleet.network.requests[before:]))
    assert 0 < sum(asked) / len(asked) < 8


async def test_a_topic_that_comes_right_after_the_connection_does_not_narrow_the_first_comparison(
    autojump_clock: MockClock,
) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(["chat"]), fleet.add(["chat", TOPIC])
    fleet.spread(other.seal(topic="chat"), [other])
    fleet.spread(other.seal(), [other])
    async with running(fleet):
        await one.dial(other)
        one.archive.keep(TOPIC)
        one.sync.keeps(TOPIC)
        await until(fleet.same, 1)


# -- two bodies under one id -----------------------------------------------------------


async def test_two_bodies_under_one_id_are_told_once_by_each_and_kept(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(), fleet.add()
    bodies = one.seal(seqno=7), one.seal(seqno=7)
    later = one.seal(seqno=8), one.seal(seqno=8, age=99)
    for node, raws in ((one, (bodies[0], later[0])), (other, (bodies[1], later[1]))):
        for raw in raws:
            node.archive.put(raw)
    with caplog.at_level(logging.ERROR, "p2pnode.node.sync_memory"):
        async with running(fleet):
            await one.dial(other)
            await trio.sleep(600)
    assert one.sync.counted["conflicts", ""] == other.sync.counted["conflicts", ""] == 2
    assert not one.archive.taken
    assert not other.archive.taken
    assert not one.blamed + other.blamed
    assert one.sync.pause_seconds > 30  # it differs for ever, and is no reason to ask more often
    told = [(record.digest, record.other_digest) for record in caplog.records]  # type: ignore[attr-defined]
    pair = message_digest(bodies[0]).hex(), message_digest(bodies[1]).hex()
    assert {pair, pair[::-1]} <= set(told)
    assert len(told) == 4


# -- what is not taken -----------------------------------------------------------------


async def test_what_our_own_rules_refuse_costs_the_peer_nothing_and_is_not_pulled_again(
    autojump_clock: MockClock,
) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(), fleet.add()
    raws = [other.seal() for _ in range(3)]
    for raw in raws:
        fleet.spread(raw, [other])
    one.archive.refusing[message_id(raws[1])] = "expired"
    async with running(fleet):
        await one.dial(other)
        await trio.sleep(300)
    assert len(one.archive) == 2
    assert one.archive.taken[message_id(raws[1]), "expired"] == 1
    assert one.sync.counted["refused", "expired"] == 1
    assert not one.blamed


@pytest.mark.parametrize("reason", ["queue", "storage"])
async def test_a_full_store_makes_sync_wait_and_nothing_is_lost(autojump_clock: MockClock, reason: str) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(), fleet.add()
    for _ in range(50):
        fleet.spread(other.seal(), [other])
    one.archive.room, one.archive.full = 20, reason
    async with running(fleet):
        await one.dial(other)
        await trio.sleep(30)
        assert len(one.archive) == 20
        one.archive.room = None
        await until(fleet.same, 60)
    assert one.sync.counted["exchanges", "busy"] > 0
    assert not one.blamed


# -- hostile peers ---------------------------------------------------------------------

Answer = Callable[[PeerId, bytes], Awaitable[bytes]]


async def face(
    lie: Callable[[SyncRequest, SyncAnswer], SyncAnswer | bytes], seconds: float = 30, limits: Limits | None = None
) -> tuple[SyncFleet, SyncNode, SyncNode]:
    """A node asks one that answers as it should, but for `lie`; the liar holds 200 messages, every fourth is shared."""
    fleet = SyncFleet()
    honest, liar = fleet.add(limits=limits), fleet.add()
    for number in range(200):
        fleet.spread(liar.seal(), [honest, liar] if number % 4 == 0 else [liar])

    async def answer(peer: PeerId, body: bytes) -> bytes:
        truth = await liar.sync._answers.answer(peer, body)
        told = lie(decode_request(body), decode_answer(truth))
        return told if isinstance(told, bytes) else encode_answer(told)

    async with running(fleet):
        await fleet.rewire(liar, answer)
        await honest.dial(liar)
        await trio.sleep(seconds)
    return fleet, honest, liar


def asked_by(fleet: SyncFleet, node: SyncNode) -> int:
    return sum(each.by == node.peer_id for each in fleet.network.requests)


def other_bodies(_request: SyncRequest, truth: SyncAnswer) -> SyncAnswer:
    return replace(truth, messages=tuple(each[:-1] + bytes([each[-1] ^ 1]) for each in truth.messages))


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda _request, _truth: b"\xff\xff", "protobuf"),
        (lambda _request, _truth: bytes(MAX_ANSWER_BYTES + 1), "oversize"),
        (lambda _request, truth: replace(truth, reply=Reply(lacking=(bytes(60),))), "unasked"),
        (lambda _request, truth: replace(truth, reply=Reply(answered_below=b"\0")), "unasked"),
        (lambda _request, truth: replace(truth, messages=(*truth.messages, b"more")), "unasked"),
        (lambda _request, truth: replace(truth, messages=tuple(reversed(truth.messages))), "unasked"),
        (lambda _request, truth: replace(truth, messages=(b"\xff",) * len(truth.messages)), "protobuf"),
        (other_bodies, "other-body"),
    ],
    ids=["garbage", "huge", "unasked-key", "crumbs", "more", "shuffled", "no-message", "other-body"],
)
async def test_a_peer_that_breaks_the_rules_is_reported_and_left_alone(
    autojump_clock: MockClock, lie: Callable[[SyncRequest, SyncAnswer], SyncAnswer | bytes], reason: str
) -> None:
    fleet, honest, liar = await face(lie)
    assert honest.blamed[0][0] == liar.peer_id
    if reason != "unasked":
        assert honest.blamed[0][1] == reason
    assert len(honest.blamed) == 1, "it is asked no more"
    assert honest.sync.counted["exchanges", "lied"] == 1
    assert asked_by(fleet, honest) < 12
    assert all(outcome == "" for _, outcome in honest.archive.taken)


async def test_a_badly_signed_message_costs_whoever_gave_it(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    honest, liar = fleet.add(), fleet.add()
    forged = liar.seal().replace(liar.identity.peer_id_bytes, honest.identity.peer_id_bytes)
    liar.archive.put(forged)
    async with running(fleet):
        await honest.dial(liar)
        await trio.sleep(30)
    assert honest.blamed == [(liar.peer_id, "signature")]
    assert honest.sync.counted["refused", "signature"] == 1
    assert len(honest.archive) == 0


async def test_who_offers_and_does_not_deliver_is_reported_the_second_time_and_asked_ever_less(
    autojump_clock: MockClock,
) -> None:
    fleet, honest, liar = await face(lambda _request, truth: replace(truth, messages=()), seconds=1800)
    assert honest.sync.counted["exchanges", "undelivered"] > 1
    assert set(honest.blamed) == {(liar.peer_id, "undelivered")}
    assert len(honest.blamed) == honest.sync.counted["exchanges", "undelivered"] - 1
    assert honest.sync.counted["exchanges", "undelivered"] < 12
    assert asked_by(fleet, honest) < 150


async def test_a_message_dropped_between_offer_and_pull_is_no_crime(autojump_clock: MockClock) -> None:
    drops = [3, 1]

    def drop(_request: SyncRequest, truth: SyncAnswer) -> SyncAnswer:
        count = drops.pop() if drops and truth.messages else 0
        return replace(truth, messages=truth.messages[count:])

    _, honest, _ = await face(drop)
    assert not drops
    assert len(honest.archive) == 200
    assert not honest.blamed


async def test_endless_rounds_end(autojump_clock: MockClock) -> None:
    def lie(request: SyncRequest, truth: SyncAnswer) -> SyncAnswer:
        if request.offer is None or not request.offer.ranges:
            return truth
        first = request.offer.ranges[0]
        same = Fingerprint(first.lower, first.upper, 5, bytes(16))
        return SyncAnswer(reply=Reply((same,) if isinstance(first, Fingerprint) else (), answered_below=first.upper))

    fleet, honest, liar = await face(lie)
    assert honest.blamed == [(liar.peer_id, "endless")]
    assert asked_by(fleet, honest) <= Limits().fruitless_rounds + 1


async def test_invented_items_bring_nothing_but_distrust(autojump_clock: MockClock) -> None:
    """Thousands of ids that nobody ever published, in answer after answer."""
    counter = iter(range(10**9))

    def lie(request: SyncRequest, truth: SyncAnswer) -> SyncAnswer:
        if request.offer is None or not request.offer.ranges:
            return truth
        window = request.windows[0]
        made_up = tuple(
            (window.topic + (request.upper_ns - 1).to_bytes(8, "big") + next(counter).to_bytes(46, "big"), bytes(16))
            for _ in range(500)
        )
        return replace(truth, reply=Reply((Listing(START, END, made_up),)))

    fleet, honest, _ = await face(lie, seconds=LIED_SECONDS[0] / 2)
    assert honest.sync.counted["exchanges", "undelivered"] + honest.sync.counted["exchanges", "lied"] >= 1
    assert len(honest.sync._asked_for) == 0
    assert len(honest.sync._wishes) == 0
    assert asked_by(fleet, honest) < 300


async def test_requests_that_are_none_are_refused_and_reported(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    honest, liar = fleet.add(), fleet.add()
    async with running(fleet, honest):
        await liar.dial(honest)
        for body in (b"", b"\xff\xff", bytes(1000)):
            with pytest.raises(Unavailable):
                await liar.host.request(honest.peer_id, SYNC_PROTOCOL, body, limit_bytes=1 << 20)
    assert [peer for peer, _ in honest.blamed] == [liar.peer_id] * 3
    assert honest.sync.counted["answers", "refused"] == 3


async def test_who_asks_without_end_gets_its_allowance_and_is_told_to_wait(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    honest, greedy = fleet.add(), fleet.add()
    raws = [honest.seal(size=200_000) for _ in range(5)]
    for raw in raws:
        fleet.spread(raw, [honest])
    body = encode_request(SyncRequest(want=tuple(map(message_id, raws))))
    given = busy = 0
    async with running(fleet, honest):
        await greedy.dial(honest)
        since = trio.current_time()
        while trio.current_time() - since < 5:
            raw = await greedy.host.request(honest.peer_id, SYNC_PROTOCOL, body, limit_bytes=MAX_ANSWER_BYTES)
            if decode_answer(raw).busy:
                busy += 1
                await trio.sleep(0.01)
            given += len(raw)
    burst, per_second = sync_answers.ALLOWANCE_BYTES
    assert busy > 0
    assert given < burst + 5 * per_second + MAX_ANSWER_BYTES


async def test_no_more_answers_than_the_bound_are_under_way_and_one_for_each_peer(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    honest, *askers = [fleet.add() for _ in range(8)]
    raw = honest.seal()
    fleet.spread(raw, [honest])
    gate = trio.Event()
    read = honest.archive.bytes_of

    async def slow(ids: object) -> object:
        await gate.wait()
        return await read(ids)  # type: ignore[arg-type]

    honest.archive.bytes_of = slow  # type: ignore[method-assign, assignment]
    body = encode_request(SyncRequest(want=(message_id(raw),)))
    answers: list[SyncAnswer] = []

    async def ask(asker: SyncNode) -> None:
        answer = await asker.host.request(honest.peer_id, SYNC_PROTOCOL, body, limit_bytes=MAX_ANSWER_BYTES)
        answers.append(decode_answer(answer))

    async with running(fleet, honest) as nursery:
        for asker in askers:
            await asker.dial(honest)
        for asker in (askers[0], *askers):
            nursery.start_soon(ask, asker)
        await until(lambda: len(answers) == 4, 1)
        assert all(answer.busy for answer in answers)
        gate.set()
        await until(lambda: len(answers) == 8, 1)
    assert [answer.messages for answer in answers[4:]] == [(raw,)] * sync_answers.MAX_ANSWERS


async def test_an_answer_holds_a_mebibyte_at_most_and_the_rest_comes_by_the_next(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(), fleet.add()
    for _ in range(20):
        fleet.spread(other.seal(size=250_000), [other])
    async with running(fleet):
        await one.dial(other)
        await until(fleet.same, 10)
    assert max(each.got for each in fleet.network.requests) < MAX_ANSWER_BYTES
    assert sum(one.archive.taken.values()) == 20


# -- links -----------------------------------------------------------------------------


async def test_stock_peers_that_do_not_speak_it_are_asked_ever_less(autojump_clock: MockClock) -> None:
    fleet = SyncFleet()
    one, stock = fleet.add(), fleet.add()
    async with running(fleet, one):
        await one.dial(stock)
        await trio.sleep(3600)
    assert 1 < one.sync.counted["exchanges", "unreachable"] < 25
    assert not one.blamed


async def test_a_link_that_breaks_in_the_middle_is_nobodys_fault(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = SyncFleet()
    one, other = fleet.add(), fleet.add()
    for _ in range(2000):
        fleet.spread(other.seal(), [other])
    request, calls = one.host.request, iter(range(100))

    async def breaks(peer: PeerId, protocol: str, body: bytes, *, limit_bytes: int) -> bytes:
        if next(calls) == 3:
            fleet.network.cut(one.peer_id, other.peer_id)
            raise InvalidMessage("truncated", "the stream ended within a frame")
        return await request(peer, protocol, body, limit_bytes=limit_bytes)

    monkeypatch.setattr(one.host, "request", breaks)
    async with running(fleet):
        await one.dial(other)
        await trio.sleep(30)
        assert 0 < len(one.archive) < 2000
        await one.dial(other)
        await until(fleet.same, 10)
    assert sum(one.archive.taken.values()) == 2000
    assert not one.blamed + other.blamed


async def test_two_sources_do_not_bring_the_same_message_twice(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = SyncFleet()
    late, *others = [fleet.add() for _ in range(4)]
    request = late.host.request

    async def slow(peer: PeerId, protocol: str, body: bytes, *, limit_bytes: int) -> bytes:
        await trio.sleep(1)
        return await request(peer, protocol, body, limit_bytes=limit_bytes)

    monkeypatch.setattr(late.host, "request", slow)
    for _ in range(3000):
        fleet.spread(others[0].seal(), others)
    async with running(fleet):
        for other in others:
            await late.dial(other)
        await until(fleet.same, 60)
    assert sum(late.archive.taken.values()) == 3000
