"""Which roads messages take: the canary share, the plan under every policy, and when another road is added."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pnode.core.message import MessageId
from p2pnode.core.routing import (
    AGAIN_SECONDS,
    AT_ONCE,
    CALM_SECONDS,
    MAX_RECENT,
    OTHERS,
    RECENT_SECONDS,
    ROADS,
    TROUBLE_SECONDS,
    Plan,
    Policy,
    Road,
    Routing,
    Send,
    Surroundings,
    Use,
    in_canary,
)
from tests.properties import many, some

USES: tuple[Use, ...] = ("off", "fallback", "always")
WELL = Surroundings(nats_up=True, bridge=True)
NO_NATS = Surroundings(nats_up=False, bridge=True)
LOST = Surroundings(nats_up=True, bridge=False, unreachable=2)
USUAL = Plan("always", "fallback", "fallback")
A_MOMENT = 0.25
EVERY_USE = list(product(USES, USES, USES))


def mid(number: int) -> MessageId:
    return MessageId(number.to_bytes(8, "big"))


def uuids(seed: int) -> list[str]:
    rng = Random(seed)
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(1000)]


def sends(routing: Routing, now: float, around: Surroundings = WELL) -> set[tuple[int, Road]]:
    """What is to be sent, each once."""
    found = routing.look(now, around)
    assert len(set(found)) == len(found)
    return {(int.from_bytes(each.id, "big"), each.road) for each in found}


# -- the canary share ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_ten_percent_of_a_thousand_councils_are_between_seven_and_thirteen(seed: int) -> None:
    chosen = sum(in_canary(each, 10) for each in uuids(seed))
    assert 70 <= chosen <= 130


def test_every_node_chooses_the_same_councils_however_their_id_is_written() -> None:
    one, other = (
        [Policy(canary_percent=30).plan(write(each)) for each in uuids(1)] for write in (str.upper, str.lower)
    )
    assert one == other


def test_the_choice_stays_the_same_between_versions() -> None:
    ids = [f"00000000-0000-4000-8000-{number:012d}" for number in range(13)]
    assert [number for number in range(1, 13) if in_canary(ids[number], 25)] == [1, 4, 5]


@given(st.text(max_size=40), st.floats(0, 100), st.floats(0, 100))
@many
def test_a_council_that_goes_by_gossip_stays_there_when_the_share_grows(name: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert in_canary(name, small) <= in_canary(name, large)


def test_no_council_is_in_a_share_of_nothing_and_every_council_in_the_whole() -> None:
    assert not any(in_canary(each, 0) for each in uuids(2))
    assert all(in_canary(each, 100) for each in uuids(2))


# -- plans -----------------------------------------------------------------------------

COUNCIL = "5a0bd3fc-9f5c-4e70-91b5-1d9f1a1c2b3d"


@pytest.mark.parametrize(("gossip", "nats", "http"), EVERY_USE)
@pytest.mark.parametrize("has_nats", [True, False])
def test_a_plan_keeps_to_what_is_configured_and_takes_one_road_at_least(
    gossip: Use, nats: Use, http: Use, has_nats: bool
) -> None:
    plan = Policy(gossip, nats, http, has_nats=has_nats).plan(None)
    configured: dict[Road, Use] = {"gossip": gossip, "nats": nats if has_nats else "off", "http": http}
    used = [road for road in ROADS if configured[road] != "off"]
    for road in ROADS:
        assert (plan.use(road) == "off") is (configured[road] == "off")
        if configured[road] == "always":
            assert plan.use(road) == "always"
    raised = [road for road in ROADS if plan.use(road) != configured[road]]
    if used and "always" not in configured.values():
        expected: Road = "nats" if configured["nats"] != "off" else "http" if configured["http"] != "off" else "gossip"
        assert raised == [expected], "a fallback of nothing is no fallback"
        assert plan.use(expected) == "always"
    else:
        assert raised == []


@pytest.mark.parametrize(("gossip", "nats", "http"), EVERY_USE)
@pytest.mark.parametrize("rollback", ["nats", "http"])
@pytest.mark.parametrize("council_id", [None, COUNCIL])
def test_a_rollback_leaves_one_road(gossip: Use, nats: Use, http: Use, rollback: str, council_id: str | None) -> None:
    policy = Policy(gossip, nats, http, 50, "nats" if rollback == "nats" else "http", has_nats=True)
    plan = policy.plan(council_id)
    assert {road: plan.use(road) for road in ROADS} == {
        "gossip": "off",
        "nats": "always" if rollback == "nats" else "off",
        "http": "always" if rollback == "http" else "off",
    }


def test_a_council_outside_the_canary_share_takes_the_old_road_alone() -> None:
    policy = Policy(canary_percent=0, has_nats=True)
    assert policy.plan(COUNCIL) == Plan("off", "always", "fallback")
    assert policy.plan(None) == USUAL, "what is about no council goes by gossip"
    assert replace(policy, canary_percent=100).plan(COUNCIL) == USUAL
    assert replace(policy, http="always").plan(COUNCIL) == Plan("off", "always", "always")


@pytest.mark.parametrize("policy", [Policy(canary_percent=0), Policy(canary_percent=0, nats="off", has_nats=True)])
def test_the_old_road_is_http_where_there_is_no_nats(policy: Policy) -> None:
    assert policy.old_road == "http"
    assert policy.plan(COUNCIL) == Plan("off", "off", "always")


# -- gossip and its fallback -----------------------------------------------------------


def test_what_neighbours_hold_in_time_takes_no_other_road() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 3, 10.0)
    assert not routing.is_settled(mid(1))
    assert sends(routing, 10.0) == set()
    routing.safe(mid(1))
    assert routing.is_settled(mid(1))
    assert routing.roads(mid(1)) == ("gossip",)
    assert sends(routing, 10.0 + 2 * TROUBLE_SECONDS) == set()
    assert routing.trouble == ""


def test_what_is_not_held_after_two_seconds_goes_by_nats_and_what_comes_next_at_once() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 3, 10.0)
    assert sends(routing, 10.0 + TROUBLE_SECONDS - 0.01) == set()
    assert sends(routing, 10.0 + TROUBLE_SECONDS) == {(1, "nats")}
    assert "not held" in routing.trouble
    routing.added(mid(2), USUAL, 3, 12.1)
    assert sends(routing, 12.1) == {(2, "nats")}
    routing.took(mid(1), "nats")
    assert routing.is_settled(mid(1)), "NATS has it"
    assert sends(routing, 12.2) == set(), "nothing is sent while an answer is awaited"


def test_without_neighbours_other_roads_are_taken_at_once() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 0, 10.0)
    assert sends(routing, 10.0) == {(1, "nats")}
    assert "subscribed" in routing.trouble


def test_http_carries_what_nats_cannot() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 0, 10.0)
    assert sends(routing, 10.0, NO_NATS) == {(1, "http")}
    routing.took(mid(1), "http")
    assert routing.is_settled(mid(1))
    assert routing.roads(mid(1)) == ("http",)
    assert sends(routing, 11.0, WELL) == set(), "it is where it should be"


def test_a_server_that_takes_nothing_leaves_it_to_http_after_two_attempts() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 0, 0.0)
    now, asked = 0.0, Counter[Road]()
    while not asked["http"]:
        for _, road in sends(routing, now):
            asked[road] += 1
            if road == "nats":
                routing.failed(mid(1), "nats", now)
        now += A_MOMENT
    assert asked["nats"] == 2
    assert now < 10


def test_what_nats_refuses_for_good_goes_by_http_and_is_not_offered_again() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 0, 0.0)
    assert sends(routing, 0.0) == {(1, "nats")}
    routing.refused(mid(1), "nats")
    assert sends(routing, 0.0) == {(1, "http")}
    routing.failed(mid(1), "http", 0.0)
    assert sends(routing, 1e6) == {(1, "http")}


def test_what_every_road_refuses_is_settled_only_where_gossip_does_not_look_after_it() -> None:
    routing = Routing(Policy())
    for number, plan in enumerate((Plan("off", "always", "off"), USUAL), 1):
        routing.added(mid(number), plan, 0, 0.0)
        routing.look(0.0, WELL)
        for road in OTHERS:
            routing.refused(mid(number), road)
    assert routing.is_settled(mid(1))
    assert not routing.is_settled(mid(2)), "neighbours may come"
    routing.safe(mid(2))
    assert routing.waiting() == 0


def test_the_trouble_is_over_a_while_after_the_last_thing_went_wrong() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 3, 0.0)
    routing.look(5.0, WELL)
    routing.safe(mid(1))
    for after, troubled in ((0.5, True), (CALM_SECONDS - 0.1, True), (CALM_SECONDS, False)):
        routing.look(5.0 + after, WELL)
        assert bool(routing.trouble) is troubled


def test_a_link_that_comes_and_goes_does_not_switch_roads_to_and_fro() -> None:
    routing = Routing(Policy())
    seen = set()
    for number in range(1, 40):  # every second message finds nobody
        now = float(number)
        routing.added(mid(number), USUAL, number % 2, now)
        routing.look(now, WELL)
        routing.safe(mid(number))
        if number > 1:
            seen.add(bool(routing.trouble))
    assert seen == {True}


def test_a_topic_that_nobody_else_reads_is_no_trouble_for_ever() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), Plan("always", "off", "off"), 0, 0.0)
    routing.look(RECENT_SECONDS - 1, WELL)
    assert routing.trouble
    routing.look(RECENT_SECONDS, WELL)
    routing.look(RECENT_SECONDS + CALM_SECONDS, WELL)
    assert routing.trouble == ""
    routing.added(mid(2), USUAL, 3, 100.0)
    assert sends(routing, 100.0) == set()
    assert not routing.is_settled(mid(1)), "it is still looked after"


def test_another_policy_holds_for_what_is_published_from_then_on() -> None:
    routing = Routing(Policy(has_nats=True))
    routing.added(mid(1), routing.policy.plan(None), 3, 0.0)
    routing.change(Policy(rollback="http"))
    routing.added(mid(2), routing.policy.plan(None), 3, 0.0)
    assert sends(routing, 0.1) == {(2, "http")}
    assert routing.plan_of(mid(1)) == USUAL
    assert sends(routing, TROUBLE_SECONDS) == {(1, "nats")}


def test_nats_helps_where_http_is_the_road_and_does_not_take_a_message_in_time() -> None:
    routing = Routing(Policy())
    for number in (1, 2, 3):
        routing.added(mid(number), Plan("off", "fallback", "always"), 3, 0.0)
    assert sends(routing, 0.0) == {(number, "http") for number in (1, 2, 3)}
    routing.took(mid(1), "http")
    routing.refused(mid(2), "http")
    routing.failed(mid(3), "http", 0.0)
    assert sends(routing, TROUBLE_SECONDS) == {(2, "nats"), (3, "nats"), (3, "http")}


def test_gossip_as_fallback_is_asked_when_nothing_else_took_it_in_time() -> None:
    routing = Routing(Policy())
    plan = Plan("fallback", "always", "off")
    for number in (1, 2):
        routing.added(mid(number), plan, 3, 0.0)
    assert sends(routing, 0.0) == {(1, "nats"), (2, "nats")}
    routing.took(mid(1), "nats")
    routing.failed(mid(2), "nats", 0.0)
    assert sends(routing, TROUBLE_SECONDS) == {(2, "nats"), (2, "gossip")}
    routing.took(mid(2), "gossip")
    assert not routing.is_settled(mid(2)), "NATS was to have it always"
    routing.took(mid(2), "nats")
    assert routing.waiting() == 0


# -- members that gossip does not reach ------------------------------------------------


def test_what_was_published_lately_is_told_to_members_that_turn_out_unreachable() -> None:
    routing = Routing(Policy())
    for number, at in ((1, 0.0), (2, 50.0)):
        routing.added(mid(number), USUAL, 3, at)
        routing.safe(mid(number))
    now = RECENT_SECONDS + 1
    assert sends(routing, now, Surroundings(nats_up=True, bridge=True, unreachable=1)) == set(), "a bridge tells them"
    assert sends(routing, now, LOST) == {(2, "nats")}, "the other is too old"
    routing.took(mid(2), "nats")
    assert sends(routing, now, LOST) == set()


def test_they_are_told_by_http_where_nats_is_down() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 3, 0.0)
    routing.safe(mid(1))
    assert sends(routing, 1.0, replace(LOST, nats_up=False)) == {(1, "http")}
    routing.failed(mid(1), "http", 1.0)
    assert routing.is_settled(mid(1))
    assert sends(routing, 1.0 + AGAIN_SECONDS[0], replace(LOST, nats_up=False)) == {(1, "http")}


def test_they_are_told_again_by_http_when_they_become_more() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 3, 0.0)
    routing.safe(mid(1))
    asked = []
    for now, unreachable in enumerate((1, 1, 2, 2, 1, 2, 3), 1):
        if sends(routing, float(now), Surroundings(unreachable=unreachable)):
            asked.append(now)
            routing.took(mid(1), "http")
    assert asked == [1, 3, 7]


def test_settled_messages_are_forgotten_when_they_are_old_or_too_many() -> None:
    routing = Routing(Policy())
    for number in range(MAX_RECENT + 100):
        routing.added(mid(number), USUAL, 3, 0.0)
        routing.safe(mid(number))
    routing.look(1.0, WELL)
    assert mid(99) not in routing
    assert mid(100) in routing
    routing.look(RECENT_SECONDS, WELL)
    assert not any(mid(number) in routing for number in range(MAX_RECENT + 100))


# -- pauses and turns ------------------------------------------------------------------


def test_a_road_that_fails_is_asked_again_after_longer_and_longer_pauses() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), Plan("off", "always", "off"), 0, 0.0)
    asked, now = list[float](), 0.0
    while len(asked) < 9:
        if sends(routing, now):
            asked.append(now)
            routing.failed(mid(1), "nats", now)
        now += 0.125
    pauses = [after - before for before, after in pairwise(asked)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_what_no_road_takes_does_not_stand_before_what_one_would() -> None:
    routing = Routing(Policy())
    for number in range(3 * AT_ONCE):
        routing.added(mid(number), Plan("always", "off", "off"), 0, 0.0)
    routing.added(mid(9999), USUAL, 0, 0.0)
    found = set().union(*(sends(routing, turn * A_MOMENT) for turn in range(5)))
    assert found == {(9999, "nats")}


def test_what_gossip_alone_can_carry_does_not_stand_before_anything_however_much_it_is() -> None:
    routing = Routing(Policy())
    only_gossip = 100 * AT_ONCE
    for number in range(only_gossip):
        routing.added(mid(number), Plan("always", "off", "off"), 0, 0.0)
    routing.added(mid(only_gossip), Plan("off", "always", "off"), 0, 0.0)
    assert sends(routing, 0.0) == {(only_gossip, "nats")}
    assert routing.waiting() == only_gossip + 1
    routing.safe(mid(1))
    routing.dropped(mid(2))
    assert routing.waiting() == only_gossip - 1
    assert [routing.is_settled(mid(number)) for number in (0, 1, 2)] == [False, True, True]


def test_a_road_that_has_enough_under_way_gets_no_more_and_the_others_do() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), Plan("off", "always", "always"), 0, 0.0)
    assert sends(routing, 0.0, replace(WELL, busy=frozenset({"nats"}))) == {(1, "http")}
    assert sends(routing, 0.0, WELL) == {(1, "nats")}


def test_http_is_not_asked_while_there_is_nobody_to_post_to() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 0, 0.0)
    assert sends(routing, 0.0, replace(NO_NATS, http_up=False)) == set()
    assert sends(routing, 0.0, NO_NATS) == {(1, "http")}


def test_a_dropped_message_is_forgotten_whatever_becomes_of_it() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 0, 0.0)
    routing.look(0.0, WELL)
    routing.dropped(mid(1))
    for say in (routing.took, routing.refused):
        say(mid(1), "nats")
    routing.failed(mid(1), "nats", 0.0)
    routing.safe(mid(1))
    assert mid(1) not in routing
    assert sends(routing, 100.0, LOST) == set()
    assert routing.roads(mid(1)) == ()


def test_a_message_that_is_added_twice_is_one() -> None:
    routing = Routing(Policy())
    routing.added(mid(1), USUAL, 3, 0.0)
    routing.safe(mid(1))
    routing.added(mid(1), USUAL, 0, 1.0)
    assert routing.is_settled(mid(1))
    assert routing.is_safe(mid(1))
    assert sends(routing, 1.0) == set()


# -- anything at all -------------------------------------------------------------------

policies = st.builds(
    Policy,
    gossip=st.sampled_from(USES),
    nats=st.sampled_from(USES),
    http=st.sampled_from(USES),
    canary_percent=st.sampled_from((0.0, 50.0, 100.0)),
    rollback=st.sampled_from(("", "", "", "nats", "http")),
    has_nats=st.booleans(),
)


class AnyTraffic(RuleBasedStateMachine):
    """Messages under changing policies; brokers, members and neighbours come and go; answers come late."""

    @initialize(policy=policies)
    def begin(self, policy: Policy) -> None:
        self.routing = Routing(policy)
        self.now = 0.0
        self.around = WELL
        self.under_way: list[Send] = []
        self.took: dict[MessageId, set[Road]] = {}
        self.asked_for: dict[MessageId, int] = {}
        self.told: dict[MessageId, int] = {}
        self.over: set[tuple[MessageId, Road]] = set()
        self.count = 0

    @rule(policy=policies)
    def change(self, policy: Policy) -> None:
        self.routing.change(policy)

    @rule(neighbours=st.integers(0, 2), council=st.one_of(st.none(), st.uuids().map(str)))
    def publish(self, neighbours: int, council: str | None) -> None:
        plan = self.routing.policy.plan(council)
        if "always" not in (plan.gossip, plan.nats, plan.http):
            return  # everything is off; `node.roads` takes gossip then
        self.count += 1
        self.routing.added(mid(self.count), plan, neighbours, self.now)
        self.took[mid(self.count)] = set()

    @rule(
        nats_up=st.booleans(),
        bridge=st.booleans(),
        unreachable=st.integers(0, 2),
        http_up=st.booleans(),
        busy=st.frozensets(st.sampled_from(ROADS)),
    )
    def turn(self, nats_up: bool, bridge: bool, unreachable: int, http_up: bool, busy: frozenset[Road]) -> None:
        self.around = Surroundings(nats_up, bridge, unreachable, http_up, busy)

    @rule(seconds=st.sampled_from((0.0, 0.25, 1.0, 2.0, 31.0, 70.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.look()

    def look(self) -> None:
        for send in self.routing.look(self.now, self.around):
            plan = self.routing.plan_of(send.id)
            assert plan is not None
            assert plan.use(send.road) != "off", "a road that is off is not taken"
            if send.road in self.took[send.id]:
                assert send.road == "http", "it has it already"
                assert self.routing.is_safe(send.id)
                assert self.told[send.id] < self.around.unreachable, "there is nobody more to tell"
            assert send not in self.under_way, "it was asked already"
            assert (send.id, send.road) not in self.over, "it said that it never will"
            assert send.road != "nats" or self.around.nats_up
            assert send.road != "http" or self.around.http_up
            assert send.road not in self.around.busy
            self.under_way.append(send)
            if send.road == "http":
                self.asked_for[send.id] = self.around.unreachable if self.routing.is_safe(send.id) else 0

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), how=st.sampled_from(("took", "failed", "refused")))
    def answer(self, data: st.DataObject, how: str) -> None:
        send = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        self.say(send, how)

    def say(self, send: Send, how: str) -> None:
        match how:
            case "took":
                self.routing.took(send.id, send.road)
                self.took.get(send.id, set()).add(send.road)
                if send.road == "http":
                    self.told[send.id] = self.asked_for[send.id]
            case "failed":
                self.routing.failed(send.id, send.road, self.now)
            case _:
                self.routing.refused(send.id, send.road)
                self.over.add((send.id, send.road))

    @precondition(lambda self: self.took)
    @rule(data=st.data(), dropped=st.booleans())
    def spread(self, data: st.DataObject, dropped: bool) -> None:
        message_id = data.draw(st.sampled_from(sorted(self.took)))
        if dropped:
            self.routing.dropped(message_id)
            del self.took[message_id]
            self.under_way = [each for each in self.under_way if each.id != message_id]
        elif (plan := self.routing.plan_of(message_id)) is not None and plan.gossip == "always":
            self.routing.safe(message_id)
            self.took[message_id].add("gossip")

    @invariant()
    def what_is_settled_is_somewhere(self) -> None:
        for message_id, took in self.took.items():
            plan = self.routing.plan_of(message_id)
            if plan is not None and self.routing.is_settled(message_id):
                done = took | {road for known, road in self.over if known == message_id}
                assert done & {road for road in ROADS if plan.use(road) != "off"}
                assert not any(plan.use(road) == "always" and road not in done for road in OTHERS)
                assert set(self.routing.roads(message_id)) == took

    def teardown(self) -> None:
        """Once the roads work, every message that one of them takes settles, and nothing is sent after that."""
        if not hasattr(self, "routing"):
            return
        self.around = WELL
        for _ in range(300):
            for send in self.under_way:
                self.say(send, "took")
            self.under_way.clear()
            self.now += 1.0
            self.look()
            if not self.under_way and not self.routing.waiting():
                break
        for message_id in self.took:
            if not self.routing.is_settled(message_id):
                plan = self.routing.plan_of(message_id)
                assert plan is not None
                others = [road for road in OTHERS if plan.use(road) != "off" and (message_id, road) not in self.over]
                assert plan.gossip == "always", "gossip looks after it for as long as it takes"
                assert others == [], "another road would have taken it"
        self.now += 2 * RECENT_SECONDS
        self.look()
        assert self.routing.waiting() == sum(not self.routing.is_settled(each) for each in self.took)
        assert len(self.routing._settled) == 0


AnyTraffic.TestCase.settings = some
TestAnyTraffic = AnyTraffic.TestCase
