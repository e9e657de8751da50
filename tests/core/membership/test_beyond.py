"""Who lives beyond a bridge is left alone as long as the bridge is here and says so; and the filter that says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.membership.beyond import MAX_BEYOND_BYTES, MAX_VOUCHERS, BeyondFilter, Vouchers, is_filter
from p2pnode.core.membership.events import LinkClosed, LinkOpened, LinkSilent, ProbeEnded, Renew
from p2pnode.core.membership.record import MAX_MEMBERS, Member, MemberRecord
from p2pnode.core.peerid import PeerId
from tests.core.membership.kit import (
    ALIVE,
    DEAD,
    ME,
    SUSPECT,
    WALL_MS,
    A,
    B,
    Bench,
    C,
    D,
    accusation,
    peer,
    probed,
    published,
    record,
)
from tests.properties import many

FAR, FAR2, FAR_BRIDGE = (peer(number) for number in range(50, 53))
BRIDGE = peer(40)


def peers(number: int, start: int = 1000) -> list[PeerId]:
    return [peer(each) for each in range(start, start + number)]


def bridge(who: PeerId, names: Iterable[PeerId], incarnation: int = WALL_MS, *, role: str = "bridge") -> MemberRecord:
    return dataclasses.replace(record(who, incarnation), role=role, beyond=BeyondFilter.make(names))


def bench(*members: PeerId, names: Iterable[PeerId] = (FAR, FAR2, FAR_BRIDGE)) -> Bench:
    """Members, and a bridge that names some of them."""
    made = Bench(members)
    made.gossip(bridge(BRIDGE, names))
    made.give(LinkOpened(A))
    made.said.clear()
    return made


# -- the filter ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 50, 600, 1000, 5000, MAX_MEMBERS])
def test_a_filter_names_all_that_were_put_in_and_fits_a_record(count: int) -> None:
    named = peers(count)
    encoded = BeyondFilter.make(named)
    filter_ = BeyondFilter(encoded)
    assert all(map(filter_.names, named))
    assert len(encoded) <= MAX_BEYOND_BYTES
    assert is_filter(encoded)


@pytest.mark.parametrize("count", [1, 5, 50, 200, 600, 1000])
def test_up_to_a_thousand_peers_less_than_one_stranger_in_a_hundred_is_named(count: int) -> None:
    filter_ = BeyondFilter(BeyondFilter.make(peers(count)))
    hits = sum(map(filter_.names, peers(20_000, start=100_000)))
    print(f"{count} peers: {hits / 20_000:.4%} of strangers")
    assert hits < 200


def test_the_same_peers_make_the_same_filter_in_any_order() -> None:
    assert BeyondFilter.make(peers(9)) == BeyondFilter.make([*reversed(peers(9)), peer(1000)])


def test_nobody_is_named_by_an_empty_filter() -> None:
    assert BeyondFilter.make(()) == b""
    assert not BeyondFilter(b"")
    assert not BeyondFilter.contains(b"", A)


def test_of_the_sizes_one_is_taken_that_names_nobody_of_this_side() -> None:
    named, here = peers(1400), peers(300, start=50_000)
    plain = BeyondFilter(BeyondFilter.make(named))
    careful = BeyondFilter(BeyondFilter.make(named, avoid=here))
    assert all(map(careful.names, named))
    assert sum(map(careful.names, here)) < sum(map(plain.names, here))


def test_a_filter_that_would_name_nearly_everybody_names_nobody() -> None:
    full = b"\x01" + b"\xff" * 100
    assert is_filter(full)
    assert not BeyondFilter.contains(full, A)
    assert not BeyondFilter.contains(b"\x01" + b"\xff" * 61 + b"\x00" * 39, A)
    assert BeyondFilter(b"\x01" + b"\xff" * 59 + b"\x00" * 41)


@many
@given(st.binary(max_size=2000))
def test_any_bytes_are_a_filter_that_names_few_or_none(encoded: bytes) -> None:
    filter_ = BeyondFilter(encoded)
    named = [filter_.names(each) for each in (A, B, C)]
    if not is_filter(encoded):
        assert not any(named)


@pytest.mark.parametrize("encoded", [b"\x07", b"\x00abc", b"\x11abc", b"\x07" + bytes(MAX_BEYOND_BYTES)])
def test_a_broken_filter_is_told_from_one(encoded: bytes) -> None:
    assert not is_filter(encoded)
    assert not BeyondFilter(encoded)


# -- who is beyond ---------------------------------------------------------------------


def test_whom_a_bridge_names_is_beyond_and_nobody_else() -> None:
    machine = bench(A, B, FAR).machine
    assert machine.is_beyond(FAR)
    assert not any(map(machine.is_beyond, (ME, A, B, BRIDGE)))


def test_only_a_bridge_is_believed() -> None:
    made = Bench((A, FAR))
    made.gossip(bridge(BRIDGE, [FAR], role="chorus"))
    assert not made.machine.is_beyond(FAR)


def test_a_bridge_that_may_not_vouch_is_not_believed() -> None:
    members = {BRIDGE: Member(bridge(BRIDGE, [FAR]), ALIVE, "gossip", 0, 0)}
    trusted: set[PeerId] = set()
    vouchers = Vouchers(ME, members, trusted.__contains__)
    vouchers.heard(members[BRIDGE].record)
    assert not vouchers.vouch_for(FAR, ())
    trusted.add(BRIDGE)
    assert vouchers.vouch_for(FAR, ())


def test_a_bridge_does_not_vouch_for_itself() -> None:
    assert not bench(A, names=[BRIDGE, FAR]).machine.is_beyond(BRIDGE)


def test_who_is_linked_is_not_beyond() -> None:
    made = bench(A, B, C, FAR)
    for each in (B, C, FAR):
        made.give(LinkOpened(each))
    assert not made.machine.is_beyond(FAR)
    made.give(LinkClosed(FAR, True))
    assert made.machine.is_beyond(FAR)


def test_the_bridge_at_the_other_end_which_names_us_is_not_heard() -> None:
    made = bench(A, B, FAR)
    made.gossip(bridge(FAR_BRIDGE, [ME, A, B, BRIDGE]))
    assert not made.machine.is_beyond(B)
    assert made.machine.is_beyond(FAR)


def test_the_bridge_at_the_other_end_is_told_by_our_neighbours_before_it_knows_us() -> None:
    made = bench(A, B, C, D, FAR)
    made.gossip(bridge(FAR_BRIDGE, [A, B, C, BRIDGE]))
    assert not made.machine.is_beyond(B)
    made.give(LinkOpened(D))
    made.give(LinkOpened(C))
    assert not made.machine.is_beyond(B), "it names two of three links"
    assert made.machine.is_beyond(FAR)


def test_of_two_bridges_that_name_each_other_neither_is_beyond_until_one_is_known_for_the_others() -> None:
    made = bench(A, FAR)
    made.gossip(bridge(FAR_BRIDGE, [BRIDGE]))
    assert not made.machine.is_beyond(BRIDGE)
    assert not made.machine.is_beyond(FAR_BRIDGE)
    assert made.machine.is_beyond(FAR)
    made.gossip(bridge(FAR_BRIDGE, [BRIDGE, A], WALL_MS + 1))
    assert not made.machine.is_beyond(BRIDGE)
    assert made.machine.is_beyond(FAR_BRIDGE)


def test_a_suspect_bridge_vouches_and_a_dead_one_does_not() -> None:
    made = bench(A, B, FAR)
    made.gossip(accusation(A, BRIDGE))
    assert made.state(BRIDGE) is SUSPECT
    assert made.machine.is_beyond(FAR)
    made.go(10)
    assert made.state(BRIDGE) is DEAD
    assert not made.machine.is_beyond(FAR)


def test_a_bridge_that_leaves_or_empties_its_filter_vouches_for_nobody() -> None:
    made = bench(A, FAR)
    made.gossip(record(BRIDGE, WALL_MS + 1, left=True))
    assert not made.machine.is_beyond(FAR)
    made.gossip(bridge(BRIDGE, [FAR], WALL_MS + 2))
    assert made.machine.is_beyond(FAR)
    made.gossip(bridge(BRIDGE, [], WALL_MS + 3))
    assert not made.machine.is_beyond(FAR)


def test_our_own_filter_counts_for_ourselves() -> None:
    made = Bench((A, FAR))
    made.give(Renew(bridge(ME, [FAR])))
    assert made.machine.is_beyond(FAR)
    assert not made.machine.is_beyond(A)


def test_the_filters_that_are_kept_are_bounded_and_the_gone_make_room() -> None:
    members: dict[PeerId, Member] = {}
    vouchers = Vouchers(ME, members, lambda each: True)

    def hear(number: int, names: PeerId) -> PeerId:
        said = bridge(peer(number), [names])
        members[said.peer_id] = Member(said, ALIVE, "gossip", 0, 0)
        vouchers.heard(said)
        return said.peer_id

    first = hear(2000, FAR)
    for number in range(1, MAX_VOUCHERS):
        hear(2000 + number, FAR)
    hear(3000, FAR2)
    assert not vouchers.vouch_for(FAR2, ())
    members[first].state = DEAD
    hear(3001, FAR2)
    assert vouchers.vouch_for(FAR2, ())


# -- what follows from it --------------------------------------------------------------


def test_who_is_beyond_is_not_probed_when_its_turn_comes() -> None:
    made = bench(A, B, FAR, FAR2)
    assert set(probed(made.go(120))) == {B, BRIDGE}


def test_a_bridge_that_goes_leaves_those_beyond_to_be_probed() -> None:
    made = bench(A, FAR)
    made.gossip(bridge(BRIDGE, [], WALL_MS + 1))
    assert FAR in probed(made.go(60))


def test_a_broken_link_with_one_beyond_is_looked_into_and_accuses_nobody() -> None:
    made = bench(A, B, C, FAR)
    for each in (B, C, FAR):
        made.give(LinkOpened(each))
    assert probed(made.give(LinkClosed(FAR, False))) == [FAR]
    assert published(made.give(ProbeEnded(FAR, False))) == ([], [])
    assert made.state(FAR) is ALIVE


def test_a_silence_reported_late_of_one_beyond_is_no_doubt() -> None:
    assert probed(bench(A, FAR).give(LinkSilent(FAR))) == []


def test_a_doubt_from_before_the_bridge_spoke_accuses_nobody() -> None:
    made = Bench((A, FAR))
    made.give(LinkOpened(A))
    while FAR not in probed(made.said):
        made.go(1)
    made.gossip(bridge(BRIDGE, [FAR]))
    made.said.clear()
    made.give(ProbeEnded(FAR, False))
    made.go(5)
    assert published(made.said)[1] == []


def test_what_others_say_against_one_beyond_counts() -> None:
    made = bench(A, FAR, FAR2)
    made.gossip(accusation(FAR2, FAR))
    made.go(10)
    assert made.state(FAR) is DEAD


# -- the roll --------------------------------------------------------------------------


def told(made: Bench, *beyond: PeerId) -> list[PeerId]:
    return [each.record.peer_id for each in made.machine.roll(set(beyond).__contains__)]


def test_a_roll_tells_of_all_on_this_side_the_living_before_the_dead() -> None:
    made = bench(A, B, FAR)
    made.gossip(accusation(B, A))
    made.go(10)
    assert set(told(made, FAR)) == {ME, A, B, BRIDGE}
    assert told(made, FAR)[-1] == A
    (dead,) = [each for each in made.machine.roll(lambda each: False) if each.record.peer_id == A]
    assert set(dead.accusations) == {B}


def test_a_roll_tells_of_one_beyond_whom_this_side_accuses_so_that_it_can_answer() -> None:
    made = bench(A, B, FAR, FAR2)
    made.gossip(accusation(FAR2, FAR))
    assert FAR not in told(made, FAR, FAR2), "the other side knows that"
    made.gossip(accusation(B, FAR))
    assert FAR in told(made, FAR, FAR2)


def test_who_is_about_to_be_forgotten_is_not_told_of() -> None:
    made = bench(A, B)
    made.gossip(record(A, WALL_MS + 1, left=True))
    made.go(60)
    assert A in told(made)
    made.sleep(23.9 * 3600)
    made.go(1)
    assert made.state(A) is not None
    assert A not in told(made)


def test_what_comes_through_a_bridge_is_gossiped_on_however_much_it_is() -> None:
    made = bench(A)
    crowd = [record(each) for each in peers(200)]
    made.gossip(*crowd, source="nats")
    assert {each.peer_id for each in published(made.go(1))[0]} == {each.peer_id for each in crowd}
