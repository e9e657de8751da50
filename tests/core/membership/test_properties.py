"""Any order of any inputs: no exception, no incarnation that falls, no state out of thin air, bounds, equal effects."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.membership.events import (
    Effect,
    HelpersEnded,
    Input,
    LinkClosed,
    LinkOpened,
    LinkSilent,
    News,
    Probe,
    ProbeEnded,
    Renew,
    StateChanged,
    Tick,
)
from p2pnode.core.membership.params import Params
from p2pnode.core.membership.record import MAX_ACCUSATIONS, MemberState
from tests.core.membership.kit import ALIVE, DEAD, LEFT, ME, SUSPECT, WALL_MS, Bench, accusation, peer, record
from tests.properties import many

PEERS = [ME, *(peer(number) for number in range(1, 7))]
BUSY = Params(probe_every_seconds=1.0, accusations_at_once=3, accuser_limit=4, keep_gone_seconds=30.0)
ALLOWED: set[tuple[MemberState | None, MemberState | None]] = {
    (None, ALIVE), (None, LEFT),
    (ALIVE, SUSPECT), (ALIVE, LEFT),
    (SUSPECT, ALIVE), (SUSPECT, DEAD), (SUSPECT, LEFT),
    (DEAD, ALIVE), (DEAD, LEFT), (DEAD, None),
    (LEFT, ALIVE), (LEFT, None),
}  # fmt: skip

who = st.sampled_from(PEERS)
incarnations = st.one_of(st.integers(WALL_MS - 3, WALL_MS + 3), st.integers(0, 2**64 - 1))
records = st.builds(record, who, incarnations, left=st.booleans(), started=st.integers(1, 9))
accusations = st.builds(
    accusation, who, who, incarnations, at_ms=st.integers(WALL_MS - 60_000, WALL_MS + 200_000).map(float)
)
news = st.builds(
    News,
    st.lists(records, max_size=4).map(tuple),
    st.lists(accusations, max_size=4).map(tuple),
    st.sampled_from(["gossip", "sync"]),
)
inputs = st.one_of(
    news,
    st.builds(LinkOpened, who),
    st.builds(LinkClosed, who, st.booleans()),
    st.builds(LinkSilent, who),
    st.builds(ProbeEnded, who, st.booleans()),
    st.builds(HelpersEnded, who, st.booleans()),
    st.builds(lambda left: Renew(record(ME, 7, left=left, started=5)), st.booleans()),
    st.just(Tick()),
)
steps = st.lists(st.tuples(inputs, st.sampled_from([0.0, 0.01, 0.3, 1.0, 3.0, 40.0])), max_size=60)


def known(bench: Bench) -> dict[str, int]:
    return {each: member.record.incarnation for each, member in bench.machine.members().items()}


def play(steps_: list[tuple[Input, float]], seed: int) -> tuple[Bench, list[list[Effect]]]:
    bench = Bench(PEERS[1:4], seed=seed, params=BUSY)
    effects = []
    for input_, pause in steps_:
        before = known(bench)
        now = bench.give(input_)
        effects.append(now)
        after = known(bench)
        assert all(after[each] >= incarnation for each, incarnation in before.items() if each in after)
        check(bench, now)
        if pause > 5:
            bench.sleep(pause)
        else:
            effects.append(bench.go(pause))
            check(bench, effects[-1])
    return bench, effects


def check(bench: Bench, effects: list[Effect]) -> None:
    machine = bench.machine
    members = machine.members()
    for each in effects:
        if isinstance(each, StateChanged):
            if each.peer == ME:
                assert (each.before, each.after) in {(ALIVE, LEFT), (LEFT, ALIVE)}, "we do not suspect ourselves"
            assert (each.before, each.after) in ALLOWED
        if isinstance(each, Probe):
            assert each.peer != ME
    for peer_, member in members.items():
        assert len(member.accusations) <= MAX_ACCUSATIONS
        assert peer_ not in member.accusations
        assert all(each.incarnation == member.record.incarnation for each in member.accusations.values())
        assert (member.state in (SUSPECT, DEAD)) == bool(member.accusations)
        assert (member.state is LEFT) == member.record.left
    assert members[ME].record == machine.own
    assert len(machine._ring) <= 2 * len(PEERS)
    assert machine._doubts.keys() <= {each for each, member in members.items() if member.state in (ALIVE, SUSPECT)}
    assert machine._suspects.keys() == {each for each, member in members.items() if member.state is SUSPECT}
    assert machine._rests.peers() <= set(PEERS)
    assert len(dict(machine.items())) == len(members)


@many
@given(steps, st.integers(0, 3))
def test_any_inputs_in_any_order_keep_the_rules(steps_: list[tuple[Input, float]], seed: int) -> None:
    play(steps_, seed)


@many
@given(steps, st.integers(0, 3))
def test_equal_seeds_give_equal_effects(steps_: list[tuple[Input, float]], seed: int) -> None:
    assert play(steps_, seed)[1] == play(steps_, seed)[1]


@many
@given(st.lists(st.one_of(records, accusations), max_size=30), st.randoms(use_true_random=False))
def test_two_nodes_that_exchange_all_they_have_agree(facts: list[object], rng: object) -> None:
    """Whatever each heard, in whatever order: after exchanges both ways their items are the same, except for what
    is told apart by a refusal."""
    one, other = Bench(PEERS[1:4], params=BUSY), Bench(PEERS[1:4], params=BUSY)
    split = len(facts) // 2
    for bench, heard in ((one, facts[:split]), (other, facts[split:])):
        for fact in heard:
            bench.gossip(fact)  # type: ignore[arg-type]
    for _ in range(3):
        for giver, taker in ((one, other), (other, one)):
            members = [each for each_peer, each in giver.machine.members().items() if each_peer != ME]
            taker.sync(*(each.record for each in members), *(a for each in members for a in each.accusations.values()))
    ours, theirs = (
        {each: dataclasses.astuple(member.record) for each, member in bench.machine.members().items() if each != ME}
        for bench in (one, other)
    )
    assert {each: fields[1] for each, fields in ours.items()} == {each: fields[1] for each, fields in theirs.items()}
