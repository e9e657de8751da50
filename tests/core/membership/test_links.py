"""Whom the link planner dials and whose link it closes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.links import LinkPlanner, LinkSettings, LinkView, Plan
from p2pnode.core.membership.record import Member, MemberState
from p2pnode.core.peerid import PeerId
from p2pnode.core.places import Target, Why
from tests.core.membership.kit import ALIVE, DEAD, LEFT, ME, SUSPECT, A, B, C, peer, record
from tests.properties import some

BOOT, BOOT2, NAMELESS = f"/ip4/10.9.9.9/tcp/1/p2p/{A}", f"/ip4/10.9.9.8/tcp/1/p2p/{A}", "/dns4/boot/tcp/1"
NOBODY: Mapping[PeerId, Member] = {}
NO_LINKS: Mapping[PeerId, LinkView] = {}


def planner(
    bootstraps: Sequence[str] = (),
    saved: Mapping[PeerId, Sequence[str]] | None = None,
    settings: LinkSettings | None = None,
) -> LinkPlanner:
    return LinkPlanner(ME, settings or LinkSettings(), bootstraps, saved or {}, Random(1))


def members(who: Sequence[PeerId], state: MemberState = ALIVE) -> dict[PeerId, Member]:
    return {each: Member(record(each), state, "gossip", 0, 0) for each in who}


def links(
    who: Sequence[PeerId], *, outbound: bool = True, since: float = 0.0, meshes: int = 0
) -> dict[PeerId, LinkView]:
    return {each: LinkView(outbound, since, meshes) for each in who}


def peers(number: int, start: int = 100) -> list[PeerId]:
    return [peer(each) for each in range(start, start + number)]


def why(plan: Plan) -> list[Why]:
    return [each.why for each in plan.dial]


def dial_times(plan_: LinkPlanner, members_: Mapping[PeerId, Member], until: float, takes: float = 0.0) -> list[float]:
    """Nobody answers: when each dial began."""
    now, times = 0.0, list[float]()
    while now < until:
        plan = plan_.plan(NO_LINKS, members_, now)
        for target in plan.dial:
            times.append(now)
            plan_.ended(target, reached=False, now=now + takes)
        now = now + 0.02 if plan.dial else max(now + 0.02, plan.again_at)
    return times


def test_a_bootstrap_that_is_down_is_dialled_for_ever_with_growing_jittered_pauses() -> None:
    pauses = [after - before for before, after in pairwise(dial_times(planner([BOOT]), NOBODY, 600))]
    assert pauses[0] < 0.3
    assert all(pause <= 10.0 + 1e-6 for pause in pauses)
    assert all(pause >= 5.0 - 1e-6 for pause in pauses[10:])
    assert len({round(pause, 3) for pause in pauses[10:]}) > 10, "the jitter is there"


def test_two_addresses_of_one_bootstrap_are_both_tried() -> None:
    plan = planner([BOOT, BOOT2]).plan(NO_LINKS, NOBODY, 0.0)
    assert {each.addrs for each in plan.dial} == {(BOOT,), (BOOT2,)}


def test_a_bootstrap_whose_peer_we_learned_is_not_dialled_while_it_is_linked() -> None:
    plan_ = planner([NAMELESS])
    (target,) = plan_.plan(NO_LINKS, NOBODY, 0.0).dial
    plan_.ended(target, reached=True, now=0.1, answered=A)
    for now in range(1, 100):
        assert plan_.plan(links([A]), members([A]), float(now)).dial == ()


def test_a_bootstrap_of_which_nobody_said_who_answered_is_not_dialled_in_a_loop() -> None:
    plan_ = planner([NAMELESS])
    dials = 0
    for step in range(5000):
        for target in plan_.plan(links([A]), members([A]), step * 0.02).dial:
            dials += 1
            plan_.ended(target, reached=True, now=step * 0.02)
    assert dials <= 100 / 10 + 1


def test_many_saved_peers_that_are_gone_do_not_keep_us_from_the_bootstraps_nor_from_members() -> None:
    plan_ = planner([BOOT], {each: ["/ip4/10.0.0.2/tcp/1"] for each in peers(64)})
    first = plan_.plan(NO_LINKS, members(peers(10, 300)), 0.0)
    assert {Why.BOOTSTRAP, Why.SAVED, Why.MEMBER} <= set(why(first))


def test_there_are_as_many_links_as_wanted_and_enough_of_our_own() -> None:
    fleet = members(peers(40))
    assert len(planner().plan(links(peers(3)), fleet, 0.0).dial) == 3
    assert len(planner().plan(links(peers(10), outbound=False), fleet, 0.0).dial) == 3
    assert planner().plan(links(peers(6)), fleet, 0.0).dial == ()


def test_only_the_living_with_addresses_are_dialled_and_nobody_twice() -> None:
    fleet = {**members([A]), **members([B], SUSPECT), **members([C], LEFT)}
    plan_ = planner()
    first = plan_.plan(NO_LINKS, fleet, 0.0)
    assert [(each.peer, each.why) for each in first.dial] == [(A, Why.MEMBER)]
    assert plan_.plan(NO_LINKS, fleet, 0.1).dial == ()


def test_a_peer_that_hangs_up_at_once_is_dialled_ever_more_rarely() -> None:
    plan_, fleet, dials, now = planner(), members([A]), 0, 0.0
    while now < 60:
        for target in plan_.plan(NO_LINKS, fleet, now).dial:
            dials += 1
            plan_.ended(target, reached=True, now=now)
            plan_.closed(A, by_intent=False, lasted=0.01, now=now)
        now += 0.02
    assert dials < 25


def test_a_long_link_that_broke_is_dialled_again_at_once() -> None:
    plan_, fleet = planner(), members([A])
    plan_.closed(A, by_intent=False, lasted=100.0, now=200.0)
    assert [each.peer for each in plan_.plan(NO_LINKS, fleet, 200.0).dial] == [A]


def test_who_closed_on_us_is_left_alone_unless_we_are() -> None:
    plan_, fleet = planner(), members([A, B])
    plan_.closed(A, by_intent=True, lasted=100.0, now=0.0)
    assert [each.peer for each in plan_.plan(links([B]), fleet, 1.0).dial] == []
    assert A in [each.peer for each in plan_.plan(NO_LINKS, fleet, 2.0).dial]
    plan_ = planner()
    plan_.closed(A, by_intent=True, lasted=100.0, now=0.0)
    assert [each.peer for each in plan_.plan(links([B]), fleet, 61.0).dial] == [A]


def test_links_above_the_most_are_closed_the_least_useful_first_and_once() -> None:
    plan_ = planner()
    useful, ours = links(peers(14), meshes=1, outbound=False), links(peers(3, 200))
    young = links(peers(2, 300), since=95.0)
    open_ = {**useful, **ours, **young, **links(peers(2, 400), outbound=False)}
    plan = plan_.plan(open_, NOBODY, 100.0)
    assert len(plan.close) == 4
    assert set(peers(2, 400)) < set(plan.close) < {*peers(2, 400), *peers(3, 200)}
    assert set(plan_.plan(open_, NOBODY, 100.02).close).isdisjoint(plan.close), "they are closing"
    assert set(plan.close) & set(plan_.plan(open_, NOBODY, 120.0).close), "they did not close"


def test_a_link_in_a_mesh_stays_while_young_ones_may_turn_out_to_be_in_none() -> None:
    meshed, young = links(peers(10), meshes=1, outbound=False), links(peers(12, 300), since=95.0, outbound=False)
    plan_ = planner()
    assert plan_.plan({**meshed, **young}, NOBODY, 100.0).close == ()
    assert set(plan_.plan({**meshed, **young}, NOBODY, 120.0).close) < set(young)
    assert len(planner().plan(links(peers(22), meshes=1), NOBODY, 120.0).close) == 4, "all are old and in a mesh"


def test_the_dead_are_tried_one_at_a_time_and_rarely_by_each_of_many() -> None:
    for alive, expected in ((10, 600 / 3), (200, 600 / 20)):
        plan_ = planner()
        fleet = {**members(peers(alive)), **members(peers(20, 2000), DEAD)}
        tried = 0
        for step in range(6000):
            now = step / 10
            dead = [each for each in plan_.plan(links(peers(6)), fleet, now).dial if each.why is Why.DEAD]
            assert len(dead) <= 1
            tried += len(dead)
            for target in dead:
                plan_.ended(target, reached=False, now=now)
        assert expected * 0.8 <= tried <= expected * 1.3


def test_dead_hosts_that_never_answer_take_no_place_of_a_living() -> None:
    plan_ = planner()
    gone = members(peers(30, 2000), DEAD)
    for step in range(300):
        plan_.plan(links([A]), {**members([A]), **gone}, step / 10)
    fleet = {**members([A, *peers(10)]), **gone}
    assert why(plan_.plan(links([A]), fleet, 31.0)).count(Why.MEMBER) == 4


def test_a_bootstrap_that_is_gone_is_tried_at_its_configured_address() -> None:
    plan_ = planner([BOOT])
    tried = set()
    for step in range(600):
        for target in plan_.plan(links([B]), {**members([A], DEAD), **members([B])}, float(step)).dial:
            tried.add((target.peer, target.addrs))
            plan_.ended(target, reached=False, now=float(step))
    assert (A, ("/ip4/10.9.9.9/tcp/1",)) in tried
    assert (A, record(A).addrs) in tried


@some
@given(
    st.lists(
        st.tuples(
            st.integers(0, 8),
            st.sampled_from(["open", "close", "break", "hint", "alive", "dead", "left"]),
            st.floats(0, 30),
        ),
        max_size=80,
    ),
    st.integers(0, 5),
)
def test_any_events_in_any_order_keep_the_bounds_and_equal_seeds_give_equal_plans(
    events: list[tuple[int, str, float]], seed: int
) -> None:
    def play() -> list[Plan]:
        settings = LinkSettings(target=2, most=4, own=1, grace_seconds=1.0)
        plan_ = LinkPlanner(ME, settings, [BOOT, NAMELESS], {peer(3): ["/ip4/10.0.0.3/tcp/1"]}, Random(seed))
        open_, fleet, under_way, plans, now = dict[PeerId, LinkView](), members([]), list[Target](), list[Plan](), 0.0
        for number, what, pause in events:
            who, now = peer(number + 1), now + pause
            match what:
                case "open":
                    open_[who] = LinkView(number % 2 == 0, now, number % 3)
                    for target in [each for each in under_way if each.peer in (who, None)]:
                        under_way.remove(target)
                        plan_.ended(target, reached=True, now=now, answered=who if number % 2 else None)
                case "close" | "break":
                    open_.pop(who, None)
                    plan_.closed(who, by_intent=what == "close", lasted=pause, now=now)
                    if under_way:
                        plan_.ended(under_way.pop(), reached=False, now=now)
                case "hint":
                    plan_.hint(who, ["/ip4/10.0.0.4/tcp/1"])
                case _:
                    fleet |= members([who], MemberState(what))
            plan = plan_.plan(open_, fleet, now)
            assert plan.again_at > now
            assert all(each.peer is None or each.peer not in open_ for each in plan.dial)
            assert all(each.peer != ME for each in plan.dial)
            assert set(plan.close) <= open_.keys()
            assert len(open_) - len(plan.close) >= min(settings.most, len(open_))
            under_way += plan.dial
            assert sum(each.why is not Why.DEAD for each in under_way) <= settings.at_once
            assert sum(each.why is Why.DEAD for each in under_way) <= 2
            plans.append(plan)
        return plans

    assert play() == play()


def test_who_lives_beyond_a_bridge_is_not_dialled_alive_dead_saved_or_hinted_at_but_where_it_is_configured() -> None:
    far = set(peers(6, 200))
    near = peers(2)
    plan_ = LinkPlanner(
        ME,
        LinkSettings(),
        [BOOT],
        {each: ["/ip4/10.0.0.3/tcp/1"] for each in peers(2, 200)},
        Random(1),
        {A, *far}.__contains__,
    )
    known = {**members([A, *peers(2, 202), *near]), **members([peer(204)], DEAD)}
    plan_.hint(peer(205), ["/ip4/10.0.0.4/tcp/1"])
    dialled: set[tuple[PeerId | None, str]] = set()
    for now in range(100):
        for target in plan_.plan(NO_LINKS if now < 50 else links([B]), known, float(now)).dial:
            dialled.add((target.peer, target.why.value))
            plan_.ended(target, reached=False, now=float(now))
    assert dialled == {(A, "bootstrap"), *((each, "member") for each in near)}
