"""The node as its local API sees it: health, followers, documents, leaving."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from p2pnode.errors import InvalidRequest, TooBusy, Unavailable
from p2pnode.identity import Identity
from p2pnode.node import archive as archive_module
from p2pnode.node.documents import peer_order
from p2pnode.ports import Followed
from p2pnode.wire.members import MAX_ADDRS
from p2pnode.wire.payload import format_time
from tests.node.fakes import FakeHost, Running, open_fleet, open_pair, until

NOBODY = Identity(b"n" * 32)
NOWHERE = f"/ip4/10.7.7.7/tcp/9000/p2p/{NOBODY.peer_id}"
TOPIC = "hmmm.thread"


async def publish(running: Running, number: int, topic: str = TOPIC) -> str:
    body = json.dumps({"n": number}).encode()
    published = await running.node.publish(
        topic, body, content_type="application/json", headers={}, idempotency_key=None
    )
    return published.id


def payload(step: Followed) -> int:
    value = step.document["payload"]["n"]
    assert isinstance(value, int)
    return value


async def take(running: Running, start: str, count: int, topic: str = TOPIC) -> list[int]:
    got: list[int] = []
    async with running.node.follow(topic, start=start) as steps:
        async for step in steps:
            assert not step.lost
            got.append(payload(step))
            if len(got) == count:
                break
    return got


# -- health ---------------------------------------------------------------------------


async def test_a_node_alone_is_not_ready_and_says_why(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        alone, seeking = fleet.add(), fleet.add(bootstrap=[NOWHERE])
        fleet.start(alone, seeking)
        await trio.sleep(5)
        health = alone.node.health()
        assert health.readiness == "not-ready"
        assert "no source of peers is configured" in health.reasons[0]
        health = seeking.node.health()
        assert health.readiness == "not-ready"
        assert health.reasons[1] == f"bootstrap {NOWHERE}: nobody answers"


async def test_a_linked_node_delivers_and_one_bootstrap_of_two_is_enough(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        second = fleet.add(bootstrap=[first.addr, NOWHERE, NOWHERE])
        fleet.start(first, second)
        await trio.sleep(5)
        assert first.node.health().readiness == second.node.health().readiness == "delivering"


async def test_a_bootstrap_that_lives_without_a_link_with_us_is_no_reason_to_worry(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        second = fleet.add()
        third = fleet.add(bootstrap=[first.addr, second.addr])
        fleet.network.split(third.peer_id, first.peer_id)
        fleet.start(first, second, third)
        await until(lambda: third.node.health().readiness == "delivering")
        assert third.node.node()["bootstrap"][0]["error"] == "nobody answers"
        await second.host.dial(first.addr)
        await until(lambda: third.node.node()["bootstrap"][0]["error"] is None, seconds=30)
        await trio.sleep(60)
        assert third.node.node()["bootstrap"] == [{"addr": each.addr, "error": None} for each in (first, second)]


async def test_a_node_that_lost_all_its_bootstraps_is_degraded(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        second = fleet.add(bootstrap=[first.addr, first.addr, NOWHERE])
        third = fleet.add(bootstrap=[first.addr])
        fleet.start(first, second, third)
        await until(lambda: third.peer_id in second.host.links())
        fleet.stop(first)
        await until(lambda: second.node.health().readiness == "degraded", seconds=30)
        assert second.node.health().reasons == (
            f"bootstrap {first.addr}: the member there is dead",
            f"bootstrap {NOWHERE}: nobody answers",
        )


async def test_a_topic_without_listeners_degrades(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add(topics=("councils.forming", "councils.claims"))
        second = fleet.add(bootstrap=[first.addr])
        fleet.start(first, second)
        await trio.sleep(5)
        assert first.node.health().reasons == ("no connected peer is subscribed to councils.claims",)
        assert second.node.health().readiness == "delivering"


# -- followers ------------------------------------------------------------------------


async def test_a_follower_starts_where_it_says(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        for each in (a, b):
            await each.gossip.subscribe(TOPIC)
        ids = [await publish(a, number) for number in range(4)]
        for running in (a, b):
            assert await take(running, "start", 4) == [0, 1, 2, 3]
            assert await take(running, ids[1], 2) == [2, 3]
        async with trio.open_nursery() as nursery:

            async def from_now() -> None:
                assert await take(b, "now", 2) == [4, 5]

            nursery.start_soon(from_now)
            await trio.testing.wait_all_tasks_blocked()
            for number in (4, 5):
                await publish(a, number)


async def test_following_subscribes(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        assert TOPIC not in b.gossip.topics()
        async with b.node.follow(TOPIC, start="now") as steps:
            assert b.node.metrics()["p2pnode_followers"] == 1
            await publish(a, 1)
            assert payload(await anext(steps)) == 1
        assert b.node.metrics()["p2pnode_followers"] == 0


async def test_who_follows_a_topic_later_gets_what_is_stored(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await publish(a, 0)
        await trio.sleep(1800)  # too old for gossip, and the nodes compare rarely
        since = trio.current_time()
        async with b.node.follow(TOPIC, start="start") as steps:
            assert payload(await anext(steps)) == 0
        assert trio.current_time() - since < 1


async def test_who_publishes_to_a_topic_for_the_first_time_gets_what_others_published_to_it(
    autojump_clock: MockClock,
) -> None:
    async with open_pair() as (a, b):
        await publish(a, 0)
        await trio.sleep(1800)
        await publish(b, 1)
        await trio.sleep(1)
        assert [document["payload"]["n"] for document in await b.node.messages(TOPIC, after=None, limit=9)] == [1, 0]


async def test_who_has_messages_of_a_topic_offers_them_to_a_neighbour_that_joins_it(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await publish(a, 0)
        await trio.sleep(1800)
        before = a.host.network.requests.copy()
        await b.gossip.subscribe(TOPIC)
        await trio.sleep(1)
        asked = a.host.network.requests[len(before) :]
        assert any(each.by == a.peer_id for each in asked)


async def test_a_slow_follower_is_told_exactly_what_it_missed(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        a = fleet.add(keep_count=5)
        b = fleet.add(bootstrap=[a.addr], topics=(TOPIC,))
        fleet.start(a, b)
        await until(lambda: bool(a.gossip.topic_peers(TOPIC)))
        async with a.node.follow(TOPIC, start="start") as steps:
            await publish(a, 0)
            assert payload(await anext(steps)) == 0
            for number in range(1, 20):
                await publish(a, number)
            seen: list[int] = []
            lost = 0
            while len(seen) + lost < 19:
                step = await anext(steps)
                lost += step.lost
                if not step.lost:
                    seen.append(payload(step))
        assert (lost, seen) == (14, [15, 16, 17, 18, 19])


@pytest.mark.parametrize("waiting", [True, False])
async def test_followers_end_when_the_node_stops(autojump_clock: MockClock, waiting: bool) -> None:
    async with open_pair() as (a, b):
        await b.gossip.subscribe(TOPIC)
        ended = []

        async def follow() -> None:
            async with a.node.follow(TOPIC, start="start") as steps:
                ended.append([payload(step) async for step in steps])

        async with trio.open_nursery() as nursery:
            if not waiting:
                await a.node.drain()
            nursery.start_soon(follow)
            if waiting:
                await trio.testing.wait_all_tasks_blocked(0.01)
                await publish(a, 1)
                await trio.testing.wait_all_tasks_blocked(0.01)
                await a.node.drain()
        assert ended == [[1] if waiting else []]


@pytest.mark.parametrize(
    ("topic", "after", "field"),
    [
        ("two words", None, "topic"),
        ("", None, "topic"),
        (TOPIC, "nonsense", "after"),
        (TOPIC, f"{NOBODY.peer_id}-5", "after"),
        (TOPIC, f"{NOBODY.peer_id}-{'9' * 5000}", "after"),
    ],
)
async def test_a_bad_topic_or_place_is_named(
    autojump_clock: MockClock, topic: str, after: str | None, field: str
) -> None:
    async with open_fleet() as fleet:
        node = fleet.add().node
        with pytest.raises(InvalidRequest) as caught:
            await node.messages(topic, after=after, limit=10)
        assert [fault.field for fault in caught.value.faults] == [field]
        with pytest.raises(InvalidRequest) as caught:
            async with node.follow(topic, start=after or "start"):
                raise AssertionError("entered")
        assert [fault.field for fault in caught.value.faults] == [field]


async def test_an_id_of_another_topic_is_no_place_in_this_one(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await b.gossip.subscribe(TOPIC)
        message_id = await publish(a, 1)
        with pytest.raises(InvalidRequest, match=r"not kept here in hmmm\.other"):
            await a.node.messages("hmmm.other", after=message_id, limit=1)


async def test_topics_followed_are_bounded(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_fleet() as fleet:
        node = fleet.add().node
        monkeypatch.setattr(archive_module, "MAX_TOPICS", 1)
        async with node.follow(TOPIC, start="now"), node.follow(TOPIC, start="now"):
            with pytest.raises(TooBusy):
                async with node.follow("hmmm.other", start="now"):
                    raise AssertionError("entered")
            assert "hmmm.other" not in node.gossip.topics()


async def test_messages_are_read_page_by_page(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await b.gossip.subscribe(TOPIC)
        for number in range(7):
            await publish(a, number)
        await until(lambda: not b.node._archive.queued)
        after, pages = None, []
        while page := await b.node.messages(TOPIC, after=after, limit=3):
            pages.append([document["payload"]["n"] for document in page])
            after = page[-1]["id"]
        assert pages == [[0, 1, 2], [3, 4, 5], [6]]


# -- documents ------------------------------------------------------------------------


async def test_peers_keep_their_order_and_strangers_stand_last(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add(role="whoosh")
        others = [fleet.add(bootstrap=[first.addr]) for _ in range(9)]
        stranger = FakeHost(fleet.network, NOBODY.peer_id, "/ip4/10.8.0.1/tcp/1")
        fleet.start(first, *others)
        await stranger.dial(first.addr)
        await until(lambda: [peer["name"] is None for peer in first.node.peers()].count(False) == 10)
        orders = []
        for _ in range(5):
            peers = first.node.peers()
            assert peers == sorted(peers, key=peer_order)
            orders.append([peer["peer_id"] for peer in peers])
            await trio.sleep(20)
        assert all(order == orders[0] for order in orders)
        last = first.node.peers()[-1]
        assert (last["peer_id"], last["name"], last["connected"], last["source"]) == (
            NOBODY.peer_id,
            None,
            True,
            "inbound",
        )
        assert [peer["self"] for peer in first.node.peers()].count(True) == 1
        assert all(peer.keys() == last.keys() for peer in first.node.peers())
        assert json.dumps(first.node.peers(), allow_nan=False)


async def test_a_node_tells_how_it_is_reached_and_how_long_it_runs(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await trio.sleep(60)
        document = b.node.node()
        assert document["multiaddrs"] == [b.addr]
        assert document["api"] == ["unix:/run/p2pnode/api.sock"]
        assert document["health"] == {"status": "delivering", "reasons": []}
        assert document["uptime_seconds"] >= 60
        assert document["members"] == {"alive": 2}
        assert document["bootstrap"] == [{"addr": a.addr, "error": None}]
        assert b.node.bootstrap_peers() == [b.addr, a.addr]
        assert json.dumps(document, allow_nan=False)


async def test_topics_are_counted(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        for each in (a, b):
            await each.gossip.subscribe(TOPIC)
        for number in range(3):
            await publish(a, number)
        await until(lambda: not b.node._archive.queued)
        for running, received, published in ((a, 0, 3), (b, 3, 0)):
            document = next(each for each in running.node.topics() if each["topic"] == TOPIC)
            assert (document["messages"], document["received"], document["published"]) == (3, received, published)
            assert (document["peers"], len(document["mesh"])) == (1, 1)
            assert [each["topic"] for each in running.node.topics()] == ["councils.forming", TOPIC, "p2pnode.members"]
            running.host.counted.update({("broken", "flood"): 3, ("failed", "handler"): 0})
            metrics = running.node.metrics()
            assert metrics[f'p2pnode_messages_received_total{{topic="{TOPIC}"}}'] == received
            assert metrics["p2pnode_links"] == 1
            assert metrics['p2pnode_connections_broken_total{reason="flood"}'] == 3
            assert metrics['p2pnode_host_failures_total{where="handler"}'] == 0
            assert metrics['p2pnode_members{state="alive"}'] == 2


async def test_round_trips_are_measured_while_a_link_stands(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):

        def rtt() -> object:
            return next(peer["rtt_ms"] for peer in a.node.peers() if not peer["self"])

        await until(lambda: rtt() == 2.0, seconds=1)
        a.host.network.kill(b.peer_id)
        assert rtt() is None


@pytest.mark.slow
async def test_a_member_is_seen_while_its_link_stands_and_was_last_seen_when_it_went(
    autojump_clock: MockClock,
) -> None:
    def last_seen(running: Running) -> object:
        return next(peer["last_seen"] for peer in running.node.peers() if not peer["self"])

    async with open_pair() as (a, b):
        await trio.sleep(3600)
        assert last_seen(a) == format_time(a.wall())
        went = a.wall()
        a.host.network.kill(b.peer_id)
        await trio.sleep(3600)
        assert last_seen(a) == format_time(went)


async def test_more_addresses_than_a_record_takes_stop_no_start(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple(f"/ip4/10.3.0.{number}/tcp/9000/p2p/{NOBODY.peer_id}" for number in range(40))
    monkeypatch.setattr(FakeHost, "addrs", lambda host: many)
    async with open_fleet() as fleet:
        assert len(fleet.add().node.members.own.addrs) == MAX_ADDRS


# -- leaving --------------------------------------------------------------------------


async def test_who_leaves_says_goodbye(autojump_clock: MockClock) -> None:
    async with open_pair() as (a, b):
        await b.node.drain()
        left = a.node.members.get(b.peer_id)
        assert left is not None
        assert left.state == "left"
        assert b.node.health().readiness == "not-ready"
        a.host.network.kill(b.peer_id)
        await trio.sleep(60)
        assert left.state == "left"


async def test_leaving_takes_two_seconds_at_most_whatever_hangs(autojump_clock: MockClock) -> None:
    async with open_pair() as (_, b):
        b.gossip.gate = trio.Event()
        before = trio.current_time()
        await b.node.drain()
        assert trio.current_time() - before <= 2.0 + 1e-6


@pytest.mark.parametrize("trouble", ["alone", "disk"])
async def test_leaving_works_when_no_goodbye_can_be_said(autojump_clock: MockClock, trouble: str) -> None:
    async with open_pair() as (a, b):
        if trouble == "alone":
            a.host.network.kill(a.peer_id)
        else:
            await trio.sleep(60)
            b.seqnos.broken = True
        await b.node.drain()
        assert b.node.health().reasons == ("the sidecar is stopping",)


async def test_before_gossip_is_there_a_node_says_it_is_starting(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node = fleet.add().node
        node._gossip = node._publisher = None
        assert node.health().reasons == ("the sidecar is starting",)
        with pytest.raises(Unavailable, match="starting"):
            await node.publish(TOPIC, b"", content_type="", headers={}, idempotency_key=None)
        assert node.node()["mesh"] == []
        assert node.metrics()["p2pnode_links"] == 0
