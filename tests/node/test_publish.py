"""What the agent may publish, what it is told when it may not, and that a refusal leaves no trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from p2pnode.core.backbeat import BACKBEAT_TOPIC
from p2pnode.core.message import MAX_PAYLOAD_BYTES
from p2pnode.errors import EnvironmentFault, InvalidRequest, PayloadTooLarge, StorageFull, TooBusy, Unavailable
from p2pnode.node import archive as archive_module
from p2pnode.node.publish import TokenBucket
from p2pnode.ports import JsonObject, Published
from p2pnode.wire.payload import decode_payload
from tests.core.council.test_opportunity import OPPORTUNITY
from tests.core.test_backbeat import CLAIM
from tests.node.fakes import Running, open_fleet, open_pair, until

EXAMPLES = Path(__file__).parents[1] / "samples"
FORMING = "councils.forming"


async def publish(
    running: Running,
    body: bytes = b'{"n":1}',
    topic: str = "hmmm.thread",
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
    key: str | None = None,
) -> Published:
    return await running.node.publish(
        topic, body, content_type=content_type, headers=headers or {}, idempotency_key=key
    )


async def listen(*nodes: Running, topic: str = "hmmm.thread") -> None:
    for running in nodes:
        await running.gossip.subscribe(topic)


async def kept(running: Running, topic: str = "hmmm.thread") -> list[JsonObject]:
    """What is stored, once all that came is written."""
    await until(lambda: not running.node._archive.queued)
    return await running.node.messages(topic, after=None, limit=1000)


def prevs(running: Running, topic: str = "hmmm.thread") -> list[tuple[int, int]]:
    """`(seqno, prev)` of what was sent."""
    out = []
    for message in running.gossip.sent:
        if message.topic == topic:
            metadata = decode_payload(message.data).metadata
            assert metadata is not None
            out.append((message.number, metadata.prev))
    return out


def faults(caught: pytest.ExceptionInfo[InvalidRequest]) -> list[str]:
    return [fault.field for fault in caught.value.faults]


async def test_a_published_message_is_kept_here_and_reaches_the_other(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        published = await publish(a, headers={"Council-ID": "5"})
        for running, carrier, roads in ((a, "local", ["gossip"]), (b, "gossip", ["gossip"])):
            (document,) = await kept(running)
            assert document["id"] == published.id
            assert document["seqno"] == published.seqno == published.id.rpartition("-")[2]
            assert document["origin"] == a.peer_id
            assert document["origin_name"] == "node-001"
            assert (document["carrier"], document["roads"]) == (carrier, roads)
            assert document["payload"] == {"n": 1}
            assert document["headers"] == {"Council-ID": "5"}
            assert document["content_type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "content_type", "payload", "encoding"),
    [
        (b"\x00\xff", "application/octet-stream", "AP8=", "base64"),
        (b"text", "text/plain", "dGV4dA==", "base64"),
        (b"[1, 2.5]", "application/json", [1, 2.5], None),
        (b'{"a": 1}', "text/plain", "eyJhIjogMX0=", "base64"),
        (b' {"a": "\\ud800"} ', "application/json; charset=utf-8", {"a": "\ud800"}, None),
        (b"", "", "", "base64"),
    ],
)
async def test_any_payload_arrives_as_it_was(
    autojump_clock: MockClock, body: bytes, content_type: str, payload: object, encoding: str | None
) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        await publish(a, body, content_type=content_type)
        for running in (a, b):
            (document,) = await kept(running)
            assert document["payload"] == payload
            assert document.get("encoding") == encoding
            assert json.dumps(document, allow_nan=False)


async def test_the_sample_opportunity_is_published_with_its_deadline(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        body = (EXAMPLES / "opportunity.json").read_bytes()
        await publish(a, body, FORMING, content_type="")
        (document,) = await kept(b, FORMING)
        assert document["payload"] == json.loads(body)
        assert document["expires_at"] == "2030-01-01T00:00:00.000000000Z"
        assert a.gossip.sent[-1].data.startswith(body.rstrip()[:-1].rstrip())


async def test_an_opportunity_behind_any_white_space_reaches_the_other(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await publish(a, b"\n" * 500 + json.dumps(OPPORTUNITY).encode() + b"\n" * 500, FORMING)
        assert len(await kept(b, FORMING)) == 1


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"project_name": ""}, ["project_name"]),
        ({"core_roles": [], "repository": 1}, ["repository", "core_roles"]),
        ({"formation_deadline": "2020-01-01T00:00:00Z"}, ["formation_deadline"]),
        ({"formation_deadline": "0001-01-01T00:00:00+23:59"}, ["formation_deadline"]),
        ({"p2pnode": {}}, ["p2pnode"]),
        ({"p2pnode": 1, "council_id": None}, ["p2pnode", "council_id"]),
    ],
)
async def test_a_bad_opportunity_is_refused_by_field(
    autojump_clock: MockClock, change: dict[str, Any], fields: list[str]
) -> None:
    async with open_pair() as (a, b):
        sent = len(a.gossip.sent)
        with pytest.raises(InvalidRequest, match="council opportunity cannot be published") as caught:
            await publish(a, json.dumps({**OPPORTUNITY, **change}).encode(), FORMING)
        assert faults(caught) == fields
        assert (await kept(a, FORMING), await kept(b, FORMING), len(a.gossip.sent)) == ([], [], sent)


async def test_a_bad_status_claim_is_refused_by_field_and_a_good_one_is_published(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b, topic=BACKBEAT_TOPIC)
        for wrong, fields in (
            ({"state": "asleep", "beat_index": "1"}, ["beat_index", "state"]),
            ({"p2pnode": 1, "notes": "x" * 257}, ["p2pnode", "notes"]),
        ):
            with pytest.raises(InvalidRequest, match="BACKBEAT status claim cannot be published") as caught:
                await publish(a, json.dumps({**CLAIM, **wrong}).encode(), BACKBEAT_TOPIC)
            assert faults(caught) == fields
        await publish(a, json.dumps(CLAIM).encode(), BACKBEAT_TOPIC)
        (document,) = await kept(b, BACKBEAT_TOPIC)
        assert document["payload"] == CLAIM


async def test_every_fault_of_a_request_is_told_at_once(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, _):
        with pytest.raises(InvalidRequest) as caught:
            await publish(
                a,
                b"[]",
                "councils.forming now",
                content_type="c" * 257,
                headers={"h": "v" * 8193},
                key="k" * 257,
            )
        assert faults(caught) == ["topic", "Idempotency-Key", "headers", "Content-Type", "body"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"topic": "p2pnode.members"}, "topic"),
        ({"topic": "two words"}, "topic"),
        ({"topic": ""}, "topic"),
        ({"key": ""}, "Idempotency-Key"),
        ({"headers": {str(number): "" for number in range(65)}}, "headers"),
        ({"headers": {"h": '"' * 4096}}, "headers"),
        ({"headers": {"h": "ü" * 4097}}, "headers"),
        ({"body": b"{"}, "body"),
        ({"body": b'{"a":NaN}'}, "body"),
        ({"body": b'{"a":1e400}'}, "body"),
        ({"body": b'{"a":"\xff"}'}, "body"),
        ({"body": b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"}, "body"),
        ({"body": b"7", "topic": "councils.claims"}, "body"),
        ({"body": b"text", "topic": "backbeat.status", "content_type": "text/plain"}, "body"),
        ({"body": b'{"p2pnod\\u0065":1}'}, "p2pnode"),
    ],
)
async def test_what_cannot_be_published_is_named(
    autojump_clock: MockClock, arguments: dict[str, Any], field: str
) -> None:
    async with open_pair() as (a, _):
        with pytest.raises(InvalidRequest) as caught:
            await publish(a, **arguments)
        assert faults(caught) == [field]
        assert a.node.publisher.refused == {"invalid": 1}


@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream"])
async def test_a_payload_and_headers_at_their_limits_fit_a_message(
    autojump_clock: MockClock, content_type: str
) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        body = b'{"a":"' + b"x" * (MAX_PAYLOAD_BYTES - 8) + b'"}'
        headers = {f"{number:02d}": '"' * 61 for number in range(64)}
        await publish(a, body, content_type=content_type, headers=headers)
        assert (await kept(b))[0]["headers"] == headers
        with pytest.raises(PayloadTooLarge, match="262145"):
            await publish(a, body + b" ", content_type=content_type)


async def test_the_same_key_and_body_publish_once(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        first = await publish(a, key="k")
        again = await publish(a, key="k")
        assert (again.id, again.seqno, first.duplicate, again.duplicate) == (first.id, first.seqno, False, True)
        assert len(await kept(a)) == len(await kept(b)) == 1
        assert not (await publish(a, key="other")).duplicate


@pytest.mark.parametrize(
    "other",
    [{"body": b"{}"}, {"topic": "hmmm.other"}, {"content_type": "text/plain"}, {"headers": {"h": "1"}}],
)
async def test_a_key_for_another_message_is_refused(autojump_clock: MockClock, other: dict[str, Any]) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        await listen(a, b, topic="hmmm.other")
        await publish(a, key="k")
        with pytest.raises(InvalidRequest) as caught:
            await publish(a, key="k", **other)
        assert faults(caught) == ["Idempotency-Key"]
        assert len(await kept(b)) == 1


async def test_callers_at_the_same_time_with_one_key_publish_once(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        a.gossip.gate = trio.Event()
        results: list[Published] = []

        async def call() -> None:
            results.append(await publish(a, key="k"))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked(0.01)
            a.gossip.gate.set()
        assert sorted(result.duplicate for result in results) == [False, True, True, True, True]
        assert len({result.id for result in results}) == 1
        assert len(await kept(b)) == 1


async def test_callers_at_the_same_time_with_one_key_all_wait_for_the_disk(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        a.store.commit_seconds = 5.0
        before = trio.current_time()
        results: list[tuple[Published, float]] = []

        async def call() -> None:
            results.append((await publish(a, key="k"), trio.current_time()))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(call)
        assert sorted(result.duplicate for result, _ in results) == [False, True, True, True, True]
        assert len({result.id for result, _ in results}) == 1
        assert all(at - before >= 5.0 for _, at in results)
        assert len(await kept(a)) == len(await kept(b)) == 1


async def test_a_key_is_remembered_over_a_restart(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        alone = fleet.add()
        fleet.start(alone)
        await trio.testing.wait_all_tasks_blocked(0.01)
        alone.gossip.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(publish, alone, key="k"))
            await until(lambda: bool(alone.store.entries))
            fleet.stop(alone)  # it is stored, and nobody was answered
            alone.gossip.gate.set()
        again = fleet.restart(alone)
        fleet.start(again)
        await trio.testing.wait_all_tasks_blocked(0.01)
        published = await publish(again, key="k")
        assert published.duplicate
        assert [document["id"] for document in await kept(again)] == [published.id]
        assert published.id.endswith(f"-{published.seqno}")
        with pytest.raises(InvalidRequest, match="used for another message"):
            await publish(again, b"{}", key="k")


async def test_a_refused_message_does_not_use_up_its_key(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        a.gossip.busy = True
        with pytest.raises(TooBusy):
            await publish(a, key="k")
        a.gossip.busy = False
        assert not (await publish(a, key="k")).duplicate


async def test_a_message_for_nobody_is_stored_and_delivered_when_somebody_comes(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        alone = fleet.add()
        fleet.start(alone)
        await trio.testing.wait_all_tasks_blocked(0.01)
        published = [await publish(alone, json.dumps({"n": number}).encode()) for number in range(3)]
        assert [document["id"] for document in await kept(alone)] == [each.id for each in published]
        assert set(alone.store.outbox) == set(alone.store.entries)
        later = fleet.add(bootstrap=[alone.addr], topics=("hmmm.thread",))
        fleet.start(later)
        await until(lambda: len(later.store.entries) == 3)
        documents = await kept(later)
        assert [document["payload"]["n"] for document in documents] == [0, 1, 2]
        assert not any(document["late"] for document in documents)
        await until(lambda: not alone.store.outbox)


async def test_a_message_for_nobody_is_delivered_after_a_restart_too(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        alone = fleet.add()
        fleet.start(alone)
        await trio.testing.wait_all_tasks_blocked(0.01)
        published = await publish(alone)
        fleet.stop(alone)
        await trio.sleep(3600)  # older than gossip takes
        again = fleet.restart(alone)
        later = fleet.add(bootstrap=[again.addr], topics=("hmmm.thread",))
        fleet.start(again, later)
        await until(lambda: bool(later.store.entries))
        assert [document["id"] for document in await kept(later)] == [published.id]
        await until(lambda: not again.store.outbox)


async def test_a_slow_peer_means_later(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        a.gossip.busy = True
        with pytest.raises(TooBusy) as caught:
            await publish(a)
        assert caught.value.reason == "peer-slow"
        assert await kept(a) == []


async def test_the_rate_is_kept_and_the_wait_is_told(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        a, b = fleet.add(publish_per_second=2.0, publish_burst=3), fleet.add(topics=("hmmm.thread",))
        fleet.start(a, b)
        await b.host.dial(a.addr)
        await until(lambda: bool(a.gossip.topic_peers("hmmm.thread")))
        for _ in range(3):
            await publish(a)
        for _ in range(3):
            with pytest.raises(TooBusy) as caught:
                await publish(a)
            assert caught.value.reason == "rate"
            assert 0 < caught.value.retry_after_seconds <= 0.5
            await trio.sleep(caught.value.retry_after_seconds)
            await publish(a)
        assert len(await kept(a)) == 6


@pytest.mark.parametrize("rate", [0.1, 1 / 3, 0.7, 3.3, 1000.0])
def test_whoever_waits_as_long_as_told_is_admitted(rate: float) -> None:
    bucket, now = TokenBucket(rate, 1), 1000.1
    assert bucket.take(now) == 0
    for _ in range(200):
        wait = bucket.take(now)
        assert wait > 0
        now += wait
        assert bucket.take(now) == 0


async def test_each_message_names_the_one_before_whatever_was_refused_between(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        await listen(a, b, topic="hmmm.other")

        async def call(number: int) -> None:
            topic = "hmmm.other" if number % 3 == 0 else "hmmm.thread"
            body = b"{" if number % 4 == 0 else json.dumps({"n": number}).encode()
            try:
                await publish(a, body, topic)
            except InvalidRequest:
                assert number % 4 == 0

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(call, number)
        for topic, count in (("hmmm.thread", 20), ("hmmm.other", 10)):
            chain = prevs(a, topic)
            assert len(chain) == count
            assert [prev for _, prev in chain] == [0, *(seqno for seqno, _ in chain[:-1])]
            assert [each["seqno"] for each in await kept(b, topic)] == [str(seqno) for seqno, _ in chain]


async def test_the_chain_goes_on_over_a_restart(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        a, b = fleet.add(), fleet.add(topics=("hmmm.thread", "hmmm.other"))
        fleet.start(a, b)
        await a.host.dial(b.addr)
        for topic in ("hmmm.thread", "hmmm.other", "hmmm.thread"):
            await publish(a, topic=topic)
        fleet.stop(a)
        again = fleet.restart(a, bootstrap=[b.addr])
        fleet.start(again)
        await until(lambda: bool(again.gossip.topic_peers("hmmm.thread")))
        for topic in ("hmmm.thread", "hmmm.other"):
            before, after = prevs(a, topic), await publish(again, topic=topic)
            assert prevs(again, topic) == [(int(after.seqno), before[-1][0])]
            assert [each["id"] for each in await kept(b, topic)][-1] == after.id


async def test_without_a_number_nothing_is_published_and_no_chain_breaks(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        await publish(a)
        await trio.sleep(60)
        a.seqnos.broken = True
        for _ in range(2):
            with pytest.raises(EnvironmentFault, match="No space left"):
                await publish(a, key="k")
        assert len(await kept(a)) == len(await kept(b)) == 1
        a.seqnos.broken = False
        assert not (await publish(a, key="k")).duplicate
        (first, _), (_, prev) = prevs(a)
        assert prev == first


async def test_a_full_disk_publishes_nothing_and_breaks_no_chain(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        stored = [await publish(a)]
        a.store.failing = StorageFull("cannot write messages.db: No space left on device")
        full = 0

        async def call(number: int) -> None:
            nonlocal full
            await trio.sleep(number * 0.0003)  # before, during and after the writes, which take 1 ms
            if number == 20:
                a.store.failing = None
            with suppress(StorageFull):
                stored.append(await publish(a, json.dumps({"n": number}).encode(), key=str(number)))
                return
            full += 1

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(call, number)
        assert full > 0
        assert full == a.node.publisher.refused["storage"]
        stored.append(await publish(a, key="0"))
        assert not stored[-1].duplicate, "who was told that the disk is full may ask again"
        numbers = [int(each.seqno) for each in stored]
        assert prevs(a) == [*zip(numbers, [0, *numbers[:-1]], strict=True)]
        for running in (a, b):
            assert [each["seqno"] for each in await kept(running)] == [each.seqno for each in stored]


async def test_a_peer_lost_while_the_ceiling_is_stored_gets_the_message_when_it_is_back(
    autojump_clock: MockClock,
) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        await trio.sleep(60)
        a.seqnos.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, a)
            await trio.testing.wait_all_tasks_blocked()
            b.gossip._topics.discard("hmmm.thread")
            a.seqnos.gate.set()
        assert (len(await kept(a)), len(await kept(b))) == (1, 0)
        await listen(b)
        await until(lambda: bool(b.store.entries))
        assert len(await kept(b)) == 1


async def test_what_is_stored_is_sent_even_if_the_caller_went_during_the_write(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        a.store.commit_seconds = 1.0
        with trio.move_on_after(0.5) as gone:
            await publish(a)
            await trio.lowlevel.checkpoint()
        assert gone.cancelled_caught
        assert len(await kept(a)) == len(await kept(b)) == 1


async def test_what_is_kept_is_sent_even_if_the_caller_has_gone(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        a.gossip.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(publish, a, key="k"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
            a.gossip.gate.set()
        assert (await publish(a, key="k")).duplicate
        assert len(await kept(a)) == len(await kept(b)) == 1


async def test_a_stopping_node_takes_no_more(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        await a.node.drain()
        with pytest.raises(Unavailable) as caught:
            await publish(a)
        assert caught.value.reason == "stopping"


async def test_topics_are_bounded(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_pair() as (a, b):
        await listen(a, b)
        monkeypatch.setattr(archive_module, "MAX_TOPICS", 0)
        with pytest.raises(TooBusy) as caught:
            await publish(a)
        assert caught.value.reason == "topics"
