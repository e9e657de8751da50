"""Which places are dialled: those where nobody is known to live, and all of them while we are alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.links import LinkPlanner, LinkSettings, LinkView
from p2pnode.core.membership.record import Member, MemberState
from p2pnode.core.peerid import PeerId
from p2pnode.core.places import MAX_ANSWERERS, Places, Target, Why
from tests.core.membership.kit import DEAD, ME, A, B, C, peer
from tests.core.membership.test_links import NO_LINKS, NOBODY, links, members
from tests.properties import many

SOMEWHERE, ELSEWHERE = "/ip4/10.1.0.1/tcp/9000", "/ip4/10.1.0.2/tcp/9000"


def at(who: PeerId, addr: str = SOMEWHERE) -> str:
    return f"{addr}/p2p/{who}"


def planner(found: Sequence[str], configured: Sequence[str] = ()) -> LinkPlanner:
    made = LinkPlanner(ME, LinkSettings(), configured, {}, Random(1))
    made.places.found(found)
    return made


def dialled(
    plan_: LinkPlanner, linked: Mapping[PeerId, LinkView], known: Mapping[PeerId, Member], now: float
) -> list[str]:
    """The addresses dialled at one moment for being places, not members; nobody answers."""
    targets = plan_.plan(linked, known, now).dial
    for target in targets:
        plan_.ended(target, reached=False, now=now)
    return [addr for target in targets if target.why is not Why.MEMBER for addr in target.addrs]


def test_found_places_are_dialled_while_we_are_alone() -> None:
    plan = planner([SOMEWHERE, at(B, ELSEWHERE)]).plan(NO_LINKS, NOBODY, 0.0)
    assert set(plan.dial) == {Target(None, (SOMEWHERE,), Why.FOUND), Target(B, (ELSEWHERE,), Why.FOUND)}


def test_all_addresses_found_for_one_peer_are_one_target() -> None:
    (target,) = planner([at(B), at(B, ELSEWHERE)]).plan(NO_LINKS, NOBODY, 0.0).dial
    assert (target.peer, set(target.addrs), target.key) == (B, {SOMEWHERE, ELSEWHERE}, B)


def test_a_place_that_a_living_member_announces_is_met() -> None:
    known = members([B])
    (addr,) = known[B].record.addrs
    assert dialled(planner([addr]), links([A]), {**known, **members([A])}, 10.0) == []
    assert dialled(planner([addr]), links([A]), {**members([B], DEAD), **members([A])}, 10.0) == [addr]


def test_an_address_that_a_member_beyond_a_bridge_announces_is_another_host_here() -> None:
    known = members([A, B])
    (addr,) = known[B].record.addrs
    del known[A]
    plan_ = LinkPlanner(ME, LinkSettings(), [addr], {}, Random(1), {B}.__contains__)
    assert dialled(plan_, links([A]), known, 10.0) == [addr]


def test_a_place_of_a_member_beyond_a_bridge_is_dialled_so_that_two_meshes_become_one() -> None:
    plan_ = LinkPlanner(ME, LinkSettings(), [at(B)], {}, Random(1), {B}.__contains__)
    assert dialled(plan_, links([A]), members([A, B]), 10.0) == [at(B)]
    assert dialled(planner([], [at(B)]), links([A]), members([A, B]), 10.0) == []


def test_who_was_found_and_is_no_member_is_dialled_though_we_have_links() -> None:
    """So two islands that both see a list become one."""
    assert dialled(planner([at(B)]), links([A]), members([A]), 10.0) == [SOMEWHERE]
    assert dialled(planner([at(B)]), links([A]), members([A, B]), 10.0) == []


def test_who_we_met_first_gets_time_to_tell_of_the_others() -> None:
    plan_ = planner([SOMEWHERE])
    plan_.plan(NO_LINKS, NOBODY, 10.0)
    plan_ = planner([SOMEWHERE, ELSEWHERE])
    for target in plan_.plan(NO_LINKS, NOBODY, 10.0).dial:
        plan_.ended(target, reached=True, now=10.1, answered=A if target.addrs == (SOMEWHERE,) else B)
    plan_.places.found([SOMEWHERE, ELSEWHERE, at(C, "/ip4/10.1.0.3/tcp/1")])
    assert dialled(plan_, links([A, B]), members([A, B]), 10.2) == []
    assert dialled(plan_, links([A, B]), members([A, B]), 10.6) == ["/ip4/10.1.0.3/tcp/1"]


def test_places_without_a_node_are_tried_once_and_then_rarely() -> None:
    hopeless = [f"/ip4/10.2.0.{number}/tcp/9000" for number in range(50)]
    plan_, now, times = planner(hopeless), 10.0, Counter[str]()
    while now < 40.0:
        times.update(dialled(plan_, links([A]), members([A]), now))
        now += 0.05
    assert set(times) == set(hopeless), "each is tried"
    assert times.total() <= 50 + 30 / (3.0 * 0.8) + 1, "and then one at a time"


def test_a_place_whose_dweller_died_is_tried_again_as_somebody_elses() -> None:
    plan_ = planner([SOMEWHERE])
    (target,) = plan_.plan(NO_LINKS, NOBODY, 0.0).dial
    plan_.ended(target, reached=True, now=0.0, answered=B)
    known = {**members([A]), **members([B], DEAD)}
    seen = [addr for now in range(100, 200) for addr in dialled(plan_, links([A]), known, float(now))]
    assert SOMEWHERE in seen


def test_where_we_answer_ourselves_is_dialled_only_while_we_are_alone() -> None:
    """Behind a virtual address somebody else may answer the next time."""
    plan_ = planner([SOMEWHERE])
    (target,) = plan_.plan(NO_LINKS, NOBODY, 0.0).dial
    plan_.ended(target, reached=False, now=0.0, answered=ME)
    assert dialled(plan_, links([A]), members([A]), 30.0) == []
    assert dialled(plan_, NO_LINKS, NOBODY, 60.0) == [SOMEWHERE]
    assert dialled(planner([at(ME)]), NO_LINKS, NOBODY, 60.0) == []


def test_what_is_no_longer_found_is_forgotten_and_what_is_configured_is_not() -> None:
    plan_ = planner([SOMEWHERE], configured=[ELSEWHERE])
    plan_.places.found([])
    assert dialled(plan_, NO_LINKS, NOBODY, 0.0) == [ELSEWHERE]


def test_nodes_try_found_places_in_orders_of_their_own() -> None:
    addrs = [f"/ip4/10.2.0.{number}/tcp/9000" for number in range(20)]
    firsts = set()
    for seed in range(20):
        places = Places(ME, (), Random(seed))
        places.found(addrs)
        firsts.add(places.unmet((), {})[0].addrs)
    assert len(firsts) > 5


def test_an_address_that_leads_to_many_is_known_by_its_latest_answers() -> None:
    places = Places(ME, [SOMEWHERE], Random(1))
    several = [peer(number) for number in range(50, 70)]
    for each in (*several, several[-2]):
        places.answered(SOMEWHERE, each)
    places.answered(ELSEWHERE, A)
    (there,) = places.answerers().values()
    assert len(there) == MAX_ANSWERERS
    assert there[-2:] == (several[-1], several[-2])


WHO = st.sampled_from([ME, A, B, C])
ADDR = st.sampled_from([SOMEWHERE, ELSEWHERE])
PLACE = st.builds(lambda addr, who: at(who, addr) if who else addr, ADDR, st.none() | WHO)


@many
@given(
    configured=st.lists(PLACE, max_size=3),
    found=st.lists(PLACE, max_size=4),
    answers=st.lists(st.tuples(PLACE, WHO), max_size=4),
    linked=st.sets(st.sampled_from([A, B, C])),
    states=st.dictionaries(st.sampled_from([A, B, C]), st.sampled_from(list(MemberState))),
)
def test_nobody_linked_nor_ourselves_by_name_is_ever_a_target(
    configured: list[str],
    found: list[str],
    answers: list[tuple[str, PeerId]],
    linked: set[PeerId],
    states: dict[PeerId, MemberState],
) -> None:
    places = Places(ME, configured, Random(1))
    places.found(found)
    for addr, who in answers:
        places.answered(addr, who)
    known = {who: members([who], state)[who] for who, state in states.items()}
    targets = [*places.unmet(linked, known), *places.of_the_gone(linked, known)]
    assert not {target.peer for target in targets} & {ME, *linked}
    keys = [target.key for target in places.unmet(linked, known)]
    assert len(keys) == len(set(keys))
