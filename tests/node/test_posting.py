"""Whom messages are posted to over HTTP: sidecars that gossip does not reach, and agents that run none."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.membership.record import Member, MemberRecord, MemberState
from p2pnode.core.message import SignedMessage, format_message_id
from p2pnode.core.metadata import Metadata
from p2pnode.core.peerid import PeerId
from p2pnode.errors import InvalidRequest, TooBusy, Unavailable
from p2pnode.identity import Identity
from p2pnode.node import posting
from p2pnode.node.posting import (
    ENOUGH,
    GONE_SECONDS,
    LEGACY_ATTEMPTS,
    PAUSES,
    SPREAD,
    Poster,
    Tools,
    lost,
)
from p2pnode.ports import FoundAgent, Place
from p2pnode.ports.roads import LegacyAgent, Target
from p2pnode.wire.payload import encode_json_payload, format_time
from p2pnode.wire.pubsub import seal_message
from tests.core.council.test_opportunity import OPPORTUNITY
from tests.node.fakes import START_NS, until

ME = Identity(b"m" * 32)
ALIVE, SUSPECT, DEAD, LEFT = MemberState


def opportunity(number: int) -> SignedMessage:
    data = encode_json_payload(json.dumps(OPPORTUNITY).encode(), OPPORTUNITY, Metadata(START_NS))
    return seal_message(origin=ME.peer_id_bytes, seqno=number, topic="councils.forming", data=data, sign=ME.sign)


def member(number: int, state: MemberState = ALIVE, **of_record: str | bool) -> Member:
    record = MemberRecord(
        PeerId(f"peer-{number}"), 1, f"n{number}", "chorus", "online", (f"/ip4/10.0.0.{number}/tcp/9000",)
    )
    record = replace(record, **{"carrier": f"http://10.0.0.{number}:9080", **of_record})  # type: ignore[arg-type]
    gone_at_ns = START_NS if state in (DEAD, LEFT) else 0
    return Member(record, state, "gossip", START_NS, START_NS, gone_at_ns=gone_at_ns)


def place(number: int) -> Place:
    """A task of the Swarm API at 10.0.0.<number>."""
    found = FoundAgent(
        f"{number:012d}", f"CHORUS-Task-{number}", f"http://10.0.0.{number}:8080", f"10.0.0.{number}:9000", "c"
    )
    return Place(f"/ip4/10.0.0.{number}/tcp/9000", found)


class Town:
    """`ports.roads.Post`, and those it posts to.

    Attributes:
        answers: what a URL or endpoint says instead of yes.
        asked, took: by URL or endpoint.
    """

    def __init__(self, *members: Member, endpoints: tuple[str, ...] = (), places: tuple[Place, ...] = ()) -> None:
        self.members = list(members)
        self.answers: dict[str, Exception] = {}
        self.asked: Counter[str] = Counter()
        self.took: Counter[str] = Counter()
        self.told: list[tuple[str, bytes, Mapping[str, str]]] = []
        self.at: list[tuple[float, str]] = []
        self.now_ns = START_NS
        self.poster = Poster(
            self, Tools(ME.peer_id, lambda: self.members, lambda: places, endpoints, lambda: self.now_ns, Random(1))
        )

    async def _ask(self, where: str) -> None:
        self.asked[where] += 1
        self.at.append((trio.current_time(), where))
        await trio.sleep(0.01)
        if where in self.answers:
            raise self.answers[where]
        self.took[where] += 1

    async def hand_over(self, target: Target, message: SignedMessage) -> None:
        await self._ask(target.url)

    async def tell(self, agent: LegacyAgent, body: bytes, headers: Mapping[str, str]) -> None:
        await self._ask(agent.endpoint)
        self.told.append((agent.endpoint, body, headers))


def url(number: int) -> str:
    return f"http://10.0.0.{number}:9080"


DOWN = Unavailable("nobody answers", reason="http")
NEVER = InvalidRequest("the topic is not taken here")

# -- sidecars --------------------------------------------------------------------------


async def test_members_that_gossip_does_not_reach_get_it_and_nobody_else(autojump_clock: MockClock) -> None:
    town = Town(member(1), member(2, SUSPECT), member(3, DEAD), member(4, LEFT, left=True), member(5, DEAD, carrier=""))
    await town.poster.post(opportunity(1), everybody=False, spread=False)
    assert town.took == {url(2): 1, url(3): 1}


async def test_everybody_is_all_that_did_not_leave_and_take_messages_by_http(autojump_clock: MockClock) -> None:
    own = Member(replace(member(9).record, peer_id=ME.peer_id), ALIVE, "self", START_NS, START_NS)
    town = Town(member(1), member(2, SUSPECT), member(4, LEFT, left=True), member(5, carrier=""), own)
    await town.poster.post(opportunity(1), everybody=True, spread=True)
    assert town.took == {url(1): 1, url(2): 1}


async def test_a_few_that_pass_it_on_are_enough_to_spread_it(autojump_clock: MockClock) -> None:
    town = Town(*(member(number) for number in range(1, 21)))
    await town.poster.post(opportunity(1), everybody=False, spread=True)
    assert town.took.total() == SPREAD
    await town.poster.post(opportunity(2), everybody=False, spread=True)
    assert len(town.took) > SPREAD, "not always the same"


@pytest.mark.parametrize("everybody", [True, False])
async def test_with_nobody_to_post_to_it_is_not_taken(everybody: bool, autojump_clock: MockClock) -> None:
    town = Town()
    assert not town.poster.has_targets()
    with pytest.raises(Unavailable):
        await town.poster.post(opportunity(1), everybody=everybody, spread=True)


@pytest.mark.parametrize(("everybody", "spread"), [(True, True), (False, True), (False, False)])
async def test_who_took_it_is_not_asked_again_when_it_comes_again_for_the_others(
    everybody: bool, spread: bool, autojump_clock: MockClock
) -> None:
    town = Town(member(1, SUSPECT), member(2, ALIVE if everybody else SUSPECT))
    town.answers[url(2)] = DOWN
    message = opportunity(1)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await town.poster.post(message, everybody=everybody, spread=spread)
        await trio.sleep(PAUSES[1])
    town.answers.clear()
    await town.poster.post(message, everybody=everybody, spread=spread)
    assert town.asked == {url(1): 1, url(2): 3}


async def test_a_sidecar_that_does_not_answer_is_spared_for_longer_each_time(autojump_clock: MockClock) -> None:
    town = Town(member(1, SUSPECT))
    town.answers[url(1)] = DOWN
    for number in range(1200):
        with pytest.raises(Unavailable):
            await town.poster.post(opportunity(number), everybody=False, spread=False)
        await trio.sleep(0.1)
    pauses = [round(after[0] - before[0]) for before, after in pairwise(town.at)]
    assert pauses[:5] == [1, 2, 4, 8, 16]
    assert set(pauses[5:]) == {30}
    town.answers.clear()
    await trio.sleep(PAUSES[1])
    for number in range(2000, 2010):
        await town.poster.post(opportunity(number), everybody=False, spread=False)
    assert town.took == {url(1): 10}


async def test_a_sidecar_is_not_spared_because_our_own_queue_was_full(autojump_clock: MockClock) -> None:
    town = Town(member(1, SUSPECT))
    town.answers[url(1)] = TooBusy("1024 requests by HTTP are waiting already", reason="http-busy")
    with pytest.raises(Unavailable):
        await town.poster.post(opportunity(1), everybody=False, spread=False)
    town.answers.clear()
    await town.poster.post(opportunity(2), everybody=False, spread=False)
    assert town.took == {url(1): 1}


async def test_a_sidecar_counts_as_there_until_it_fails_and_again_when_it_took_something(
    autojump_clock: MockClock,
) -> None:
    town = Town(member(1, SUSPECT), member(2, carrier=""))
    assert town.poster.has_sidecars()
    town.answers[url(1)] = DOWN
    with pytest.raises(Unavailable):
        await town.poster.post(opportunity(1), everybody=False, spread=False)
    assert not town.poster.has_sidecars()
    assert town.poster.has_targets()
    await trio.sleep(PAUSES[1])
    assert not town.poster.has_sidecars(), "nobody knows better"
    town.answers.clear()
    await town.poster.post(opportunity(2), everybody=False, spread=False)
    assert town.poster.has_sidecars()


def test_agents_without_a_sidecar_are_somebody_to_post_to_and_no_sidecars() -> None:
    for town in (Town(endpoints=("http://a:1",)), Town(places=(place(5),))):
        assert town.poster.has_targets()
        assert not town.poster.has_sidecars()
    assert not Town(member(5, carrier=""), places=(place(5),)).poster.has_targets(), "a member's task"


async def test_why_nobody_took_it_is_said(autojump_clock: MockClock) -> None:
    town = Town(member(1), member(2))
    town.answers[url(1)] = DOWN
    with pytest.raises(Unavailable, match="1 sidecars did not take it"):
        await town.poster.post(opportunity(1), everybody=True, spread=True)
    with pytest.raises(Unavailable, match="no other sidecar took it"):
        await Town().poster.post(opportunity(1), everybody=True, spread=True)


async def test_a_sidecar_that_refuses_a_message_is_not_asked_again_and_does_not_count_as_one_that_took_it(
    autojump_clock: MockClock,
) -> None:
    town = Town(*(member(number) for number in range(1, ENOUGH + 3)))
    refusing = [url(number) for number in range(1, ENOUGH + 1)]
    town.answers.update(dict.fromkeys(refusing, NEVER))
    message = opportunity(1)
    for _ in range(10):
        try:
            await town.poster.post(message, everybody=False, spread=True)
        except Unavailable:
            continue
        break
    assert town.took.total() >= ENOUGH
    assert all(town.asked[each] <= 1 for each in refusing)


@pytest.mark.parametrize("everybody", [True, False])
async def test_what_all_refuse_is_not_taken(everybody: bool, autojump_clock: MockClock) -> None:
    town = Town(member(1), member(2))
    town.answers.update({url(1): NEVER, url(2): NEVER})
    for _ in range(3):
        with pytest.raises(Unavailable):
            await town.poster.post(opportunity(1), everybody=everybody, spread=True)
    assert town.asked == {url(1): 1, url(2): 1}


async def test_a_dead_member_is_tried_for_an_hour(autojump_clock: MockClock) -> None:
    dead = member(1, DEAD)
    for seconds, tried in ((GONE_SECONDS - 1, [dead]), (GONE_SECONDS + 1, [])):
        assert list(lost([dead], ME.peer_id, START_NS + int(seconds * 1e9))) == tried


async def test_what_is_remembered_of_messages_and_of_urls_is_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "REMEMBERED", 10)
    town = Town(member(1, SUSPECT))
    for number in range(50):
        town.members = [member(1, SUSPECT, carrier=f"http://10.0.0.1:{number + 1}")]
        town.answers[f"http://10.0.0.1:{number + 1}"] = DOWN
        with pytest.raises(Unavailable):
            await town.poster.post(opportunity(number), everybody=False, spread=False)
    assert len(town.poster._given) == len(town.poster._spared) == 10


# -- agents without a sidecar ----------------------------------------------------------


def endpoints(town: Town) -> list[str]:
    return [each.endpoint for each in town.poster.legacy_agents()]


def test_an_agent_whose_sidecar_is_a_member_is_none_without_one() -> None:
    everywhere = tuple(place(number) for number in range(1, 6))
    configured = ("http://10.0.0.3:8080", "http://10.0.0.7:8080", "http://old.example:8080")
    town = Town(
        member(1),  # by its address
        Member(replace(member(50).record, agent_id=f"{2:012d}"), ALIVE, "gossip", START_NS, START_NS),
        Member(replace(member(51).record, endpoint="http://10.0.0.3:8080"), SUSPECT, "gossip", START_NS, START_NS),
        member(4, LEFT, left=True),
        endpoints=configured,
        places=(*everywhere, Place("/ip4/10.0.0.6/tcp/9000")),
    )
    assert endpoints(town) == [
        "http://10.0.0.4:8080",
        "http://10.0.0.5:8080",
        "http://10.0.0.7:8080",
        "http://old.example:8080",
    ]
    assert [each.name for each in town.poster.legacy_agents()][:2] == ["CHORUS-Task-4", "CHORUS-Task-5"]


@pytest.mark.parametrize(
    ("said", "configured"),
    [
        ("http://agent-3:8080", "http://agent-3:8080/"),
        ("http://agent-3:8080/", "http://agent-3:8080"),
        ("http://agent-3", "http://Agent-3:80/"),
        ("HTTPS://agent-3:443/api", "https://agent-3/api/"),
    ],
)
def test_an_agent_whose_sidecar_is_a_member_is_known_however_its_url_is_written(said: str, configured: str) -> None:
    town = Town(member(1, endpoint=said), endpoints=(configured, "http://agent-4:8080/"))
    assert endpoints(town) == ["http://agent-4:8080/"]


def test_one_agent_written_twice_is_told_once_and_others_by_their_own_words() -> None:
    assert endpoints(Town(endpoints=("http://a:80/", "http://a"))) == ["http://a:80/"]
    apart = ("http://a:1", "http://a:2", "https://a:1", "http://a:1/x", "http://b:1")
    assert sorted(endpoints(Town(endpoints=apart))) == sorted(apart)


@pytest.mark.parametrize("endpoint", ["", "nonsense", "http://[", "http://a:99999", "http://a:x", "://", "\x00"])
def test_whatever_a_member_says_of_its_endpoint_does_no_harm(endpoint: str) -> None:
    assert endpoints(Town(member(1, endpoint=endpoint), endpoints=("http://a:1",))) == ["http://a:1"]


async def run_until(town: Town, condition: Callable[[], bool]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(town.poster.run)
        await until(condition)
        nursery.cancel_scope.cancel()


async def test_an_opportunity_is_told_once_with_what_the_agent_knows_it_by(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    town = Town(endpoints=("http://10.0.0.7:8080",), places=(place(5),))
    message = opportunity(1)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            town.poster.tell_legacy(message)
        await run_until(town, lambda: len(town.told) == 2)
    assert town.asked == {"http://10.0.0.7:8080": 1, "http://10.0.0.5:8080": 1}
    _, body, headers = town.told[0]
    assert json.loads(body) == OPPORTUNITY, "nothing of ours is in it"
    assert headers == {
        "Content-Type": "application/json",
        "X-Message-ID": format_message_id(message.id),
        "Published-At": format_time(START_NS),
    }
    [line] = [record for record in caplog.records if record.message == "falling back to HTTP"]
    assert line.__dict__["agents"] == 2
    assert line.__dict__["council_id"] == OPPORTUNITY["council_id"]


async def test_an_agent_that_does_not_answer_is_asked_again_and_then_given_up(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    town = Town(endpoints=("http://a:1", "http://b:1", "http://c:1"))
    town.answers |= {"http://a:1": DOWN, "http://b:1": NEVER}
    town.poster.tell_legacy(opportunity(1))
    await run_until(town, lambda: town.poster.counted["legacy", "failed"] == 2)
    assert town.asked == {"http://a:1": LEGACY_ATTEMPTS, "http://b:1": 1, "http://c:1": 1}
    given_up = [record for record in caplog.records if "did not get" in record.message]
    assert {record.__dict__["endpoint"] for record in given_up} == {"http://a:1", "http://b:1"}
    assert town.poster.metrics()['p2pnode_http_posts_total{to="legacy",result="taken"}'] == 1


async def test_opportunities_that_nobody_can_be_told_of_in_time_are_dropped_and_counted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "MAX_LEGACY_WAITING", 10)
    town = Town(endpoints=("http://a:1",))
    for number in range(15):
        town.poster.tell_legacy(opportunity(number))
    assert town.poster.counted["legacy", "dropped"] == 5
    await run_until(town, lambda: town.took.total() == 10)


async def test_no_more_than_so_many_are_told_at_the_same_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "MAX_TELLING", 4)
    town = Town(endpoints=("http://a:1", "http://b:1", "http://c:1"))
    for number in range(10):
        town.poster.tell_legacy(opportunity(number))
    await run_until(town, lambda: town.took.total() == 30)
    assert max(sum(begun <= at < begun + 0.01 for begun, _ in town.at) for at, _ in town.at) == 4
