"""Reach: neighbours dial what a node announces, nothing else, and what they find decides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pnode.core.peerid import PeerId
from p2pnode.errors import InvalidMessage, Unavailable
from p2pnode.identity import Identity
from p2pnode.node.reach import (
    AGAIN_SECONDS,
    ANSWER_SECONDS,
    ASKED_AT_ONCE,
    CHECK_SECONDS,
    LOOK_SECONDS,
    MAX_ANSWERING,
    PATIENCE_SECONDS,
    SETTLE_SECONDS,
    Reach,
    targets,
)
from p2pnode.ports import Link
from p2pnode.wire.reach import (
    MAX_ANSWER_BYTES,
    MAX_ASKED,
    MAX_TRIES,
    REACH_PROTOCOL,
    ReachAnswer,
    Try,
    decode_answer,
    encode_answer,
    encode_question,
)
from tests.node.fakes import FakeHost, Network, Wall, until
from tests.properties import many

NOWHERE = "/ip4/10.0.0.1/tcp/9999"


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


class Crowd:
    """One asker at 10.0.0.1 and its neighbours, which it dials.

    Args:
        old: so many of the neighbours do not speak the protocol.
    """

    def __init__(self, neighbours: int, *, old: int = 0, announced: Sequence[str] | None = None) -> None:
        self.network = Network()
        self.asker = self.host(1)
        self.asker.announced = announced if announced is not None else (self.asker.addr,)
        self.neighbours = [self.host(number) for number in range(2, neighbours + 2)]
        self.strangers: set[PeerId] = set()
        self.answering = [self.reach_of(host) for host in self.neighbours[old:]]
        self.reach = self.reach_of(self.asker)

    def host(self, number: int) -> FakeHost:
        return FakeHost(self.network, Identity(number.to_bytes(32, "big")).peer_id, f"/ip4/10.0.0.{number}/tcp/9000")

    def reach_of(self, host: FakeHost) -> Reach:
        return Reach(
            host,
            lambda peer: peer not in self.strangers,
            lambda peer: f"node-{peer[-4:]}",
            wall_ns=Wall(),
            rng=Random(3),
        )

    async def dial_all(self) -> None:
        for each in self.neighbours:
            await self.asker.dial(each.addr)

    @property
    def asked(self) -> list[PeerId]:
        return [request.to for request in self.network.requests if request.by == self.asker.peer_id]

    async def ask(self, host: FakeHost, *addrs: str) -> ReachAnswer:
        """One question to the first neighbour."""
        body = await host.request(
            self.neighbours[0].peer_id, REACH_PROTOCOL, encode_question(addrs), limit_bytes=MAX_ANSWER_BYTES
        )
        return decode_answer(body)


# -- what is concluded ----------------------------------------------------------------------------


async def test_one_address_that_answers_makes_a_node_reachable(clock: MockClock, nursery: trio.Nursery) -> None:
    crowd = Crowd(3, announced=["/ip4/10.0.0.1/tcp/9000", NOWHERE])
    nursery.start_soon(crowd.reach.run)
    await crowd.dial_all()
    await until(lambda: crowd.reach.state == "reachable")
    document = crowd.reach.document()
    assert document["state"] == "reachable"
    assert document["at"].startswith("2025-11-23T12:00:0")
    assert {each["by"] for each in document["observed"]} == {host.peer_id for host in crowd.neighbours}
    assert {each["addr"] for each in document["observed"]} == {crowd.asker.addr}
    assert {(each["addr"], each["reached"]) for each in document["tried"]} == {
        (crowd.asker.addr, True),
        (NOWHERE, False),
    }
    assert all(each["name"] == f"node-{each['by'][-4:]}" for each in document["observed"] + document["tried"])
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("neighbours", "old", "state"),
    [
        *((3, 0, "unreachable"), (3, 1, "unreachable"), (3, 2, "unknown"), (3, 3, "unknown")),
        *((2, 0, "unreachable"), (2, 1, "unknown"), (1, 0, "unreachable"), (1, 1, "unknown")),
    ],
)
async def test_more_than_half_of_those_asked_decide_that_nobody_answers(
    clock: MockClock, nursery: trio.Nursery, neighbours: int, old: int, state: str
) -> None:
    crowd = Crowd(neighbours, old=old, announced=[NOWHERE])
    nursery.start_soon(crowd.reach.run)
    await crowd.dial_all()
    await until(lambda: crowd.reach.document()["at"] is not None)
    document = crowd.reach.document()
    assert document["state"] == state
    assert [each["addr"] for each in document["tried"]] == [NOWHERE] * (neighbours - old)
    assert not any(each["reached"] for each in document["tried"])
    nursery.cancel_scope.cancel()


async def test_who_was_dialled_by_a_neighbour_is_reachable_without_a_probe(
    clock: MockClock, nursery: trio.Nursery
) -> None:
    crowd = Crowd(1, announced=[NOWHERE])
    nursery.start_soon(crowd.reach.run)
    await crowd.neighbours[0].dial(crowd.asker.addr)
    await until(lambda: crowd.reach.state == "reachable")
    assert [(each["addr"], each["reached"]) for each in crowd.reach.document()["tried"]] == [(crowd.asker.addr, True)]
    assert not crowd.network.probes
    nursery.cancel_scope.cancel()


async def test_a_published_port_is_found_behind_the_address_that_others_see(
    clock: MockClock, nursery: trio.Nursery
) -> None:
    crowd = Crowd(1, announced=["/ip4/172.18.0.5/tcp/9000"])
    nursery.start_soon(crowd.reach.run)
    await crowd.dial_all()
    await until(lambda: crowd.reach.state == "reachable")
    assert [each["addr"] for each in crowd.reach.document()["tried"]] == ["/ip4/10.0.0.1/tcp/9000"]
    nursery.cancel_scope.cancel()


async def test_an_address_that_was_never_announced_proves_nothing_when_nobody_answers_there(
    clock: MockClock, nursery: trio.Nursery
) -> None:
    """What goes out may leave by another address than the announced one, at which nobody listens."""
    crowd = Crowd(3, announced=["/ip4/10.0.0.200/tcp/9999"])
    nursery.start_soon(crowd.reach.run)
    await crowd.dial_all()
    await until(lambda: crowd.reach.document()["at"] is not None)
    document = crowd.reach.document()
    assert {(each["addr"], each["reached"]) for each in document["tried"]} == {(NOWHERE, False)}
    assert document["state"] == "unknown"
    nursery.cancel_scope.cancel()


async def test_nobody_is_asked_who_is_no_member(clock: MockClock, nursery: trio.Nursery) -> None:
    crowd = Crowd(2)
    crowd.strangers = {crowd.neighbours[0].peer_id}
    nursery.start_soon(crowd.reach.run)
    await crowd.dial_all()
    await until(lambda: crowd.reach.state == "reachable")
    assert crowd.asked == [crowd.neighbours[1].peer_id]
    nursery.cancel_scope.cancel()


async def test_nonsense_from_a_neighbour_is_counted_and_is_no_answer(clock: MockClock, nursery: trio.Nursery) -> None:
    async def lie(peer: PeerId, body: bytes) -> bytes:
        return b"\xff"

    async def hang(peer: PeerId, body: bytes) -> bytes:
        await trio.sleep_forever()

    crowd = Crowd(3, announced=[NOWHERE])
    for host, answer in zip(crowd.neighbours, (lie, hang), strict=False):
        host.serve(REACH_PROTOCOL, answer, limit_bytes=100_000)
    nursery.start_soon(crowd.reach.run)
    await crowd.dial_all()
    await until(lambda: crowd.reach.document()["at"] is not None)
    assert crowd.reach.state == "unknown"
    assert crowd.reach.refused == {"protobuf": 1}
    nursery.cancel_scope.cancel()


# -- when is asked --------------------------------------------------------------------------------


def asked_at(crowd: Crowd) -> list[float]:
    """When questions were answered, those of one round once."""
    return sorted({round(request.at) for request in crowd.network.requests if request.by == crowd.asker.peer_id})


@pytest.mark.parametrize(("announced", "pause"), [(None, CHECK_SECONDS), ([NOWHERE], AGAIN_SECONDS)])
async def test_three_are_asked_after_the_first_link_and_again_and_again(
    clock: MockClock, nursery: trio.Nursery, announced: Sequence[str] | None, pause: float
) -> None:
    crowd = Crowd(8, announced=announced)
    nursery.start_soon(crowd.reach.run)
    await trio.sleep(100)
    assert not crowd.asked
    await crowd.dial_all()
    await trio.sleep(SETTLE_SECONDS + 2 * LOOK_SECONDS + 1)
    assert len(set(crowd.asked)) == len(crowd.asked) == ASKED_AT_ONCE
    await trio.sleep(3 * pause)
    times = asked_at(crowd)
    assert all(pause <= later - earlier <= pause + 2 * LOOK_SECONDS for earlier, later in pairwise(times))
    assert 3 <= len(times) <= 4
    assert len(set(crowd.asked)) > ASKED_AT_ONCE, "others are asked the next time"
    nursery.cancel_scope.cancel()


async def test_a_changed_address_voids_what_was_concluded_and_is_asked_about(
    clock: MockClock, nursery: trio.Nursery
) -> None:
    crowd = Crowd(3)
    nursery.start_soon(crowd.reach.run)
    await crowd.dial_all()
    await until(lambda: crowd.reach.state == "reachable")
    crowd.asker.announced = [NOWHERE]
    await until(lambda: crowd.reach.state == "unknown", 2 * LOOK_SECONDS)
    assert crowd.reach.document() == {"state": "unknown", "observed": [], "tried": [], "at": None}
    await until(lambda: crowd.reach.state == "unreachable", SETTLE_SECONDS + 2 * LOOK_SECONDS)
    crowd.asker.announced = [crowd.asker.addr]
    await until(lambda: crowd.reach.state == "reachable", SETTLE_SECONDS + 3 * LOOK_SECONDS)
    nursery.cancel_scope.cancel()


async def test_whoever_wants_to_know_at_once_is_told_at_once(clock: MockClock, nursery: trio.Nursery) -> None:
    crowd = Crowd(1)
    nursery.start_soon(crowd.reach.run)
    await crowd.dial_all()
    await until(lambda: crowd.reach.state == "reachable")
    before = len(crowd.asked)
    crowd.reach.again()
    await until(lambda: len(crowd.asked) == before + 1, 0.5)
    nursery.cancel_scope.cancel()


# -- what is answered -----------------------------------------------------------------------------


async def test_only_the_address_where_the_asker_is_seen_is_ever_dialled(clock: MockClock) -> None:
    crowd = Crowd(1)
    await crowd.dial_all()
    victim = "/ip4/10.9.9.9/tcp/25"
    answer = await crowd.ask(crowd.asker, victim, "/dns4/victim.example.org/tcp/80", crowd.asker.addr)
    assert answer == ReachAnswer(
        crowd.asker.addr,
        (
            Try(crowd.asker.addr, reached=True),
            Try("/ip4/10.0.0.1/tcp/25", reached=False),
            Try("/ip4/10.0.0.1/tcp/80", reached=False),
        ),
    )
    assert all(dial.addr.startswith("/ip4/10.0.0.1/tcp/") for dial in crowd.network.probes)


places = st.builds(
    lambda ip, port: f"/ip{ip.version}/{ip}/tcp/{port}", st.ip_addresses(), st.integers(1, 65535)
) | st.just("/dns/boot/tcp/9000")


@many
@given(st.sampled_from(["/ip4/10.0.0.1/tcp/5", "/ip6/fd00::1/tcp/5"]), st.lists(places, max_size=MAX_ASKED))
def test_whatever_is_asked_for_no_third_party_is_dialled(observed: str, asked: list[str]) -> None:
    dialled = targets(observed, asked)
    assert all(addr.split("/")[2] == observed.split("/")[2] for addr in dialled)
    assert {addr.split("/")[4] for addr in dialled} == {addr.split("/")[4] for addr in asked}
    assert len(set(dialled)) == len(dialled) <= MAX_TRIES


def test_an_ipv4_address_seen_through_an_ipv6_socket_is_the_same_address() -> None:
    assert targets("/ip6/::ffff:10.0.0.1/tcp/5", ["/ip4/10.0.0.1/tcp/9000"]) == ["/ip4/10.0.0.1/tcp/9000"]


async def test_an_answer_comes_in_time_whatever_does_not(clock: MockClock) -> None:
    crowd = Crowd(1)
    await crowd.dial_all()
    crowd.network.probe_seconds = 60.0
    start = trio.current_time()
    answer = await crowd.ask(crowd.asker, crowd.asker.addr, NOWHERE)
    assert trio.current_time() - start <= ANSWER_SECONDS + 0.1 < PATIENCE_SECONDS
    assert [each.reached for each in answer.tries] == [False, False]


async def test_one_question_of_each_asker_and_four_in_all_are_answered_with_probes(
    clock: MockClock, nursery: trio.Nursery
) -> None:
    crowd = Crowd(1)
    crowd.network.probe_seconds = 4.0
    askers = [crowd.asker, *(crowd.host(number) for number in range(100, 105))]
    answers: list[ReachAnswer] = []

    async def ask(host: FakeHost) -> None:
        answers.append(await crowd.ask(host, host.addr))

    async with trio.open_nursery() as asking:
        for host in askers:
            await host.dial(crowd.neighbours[0].addr)
        for host in (askers[0], *askers):
            asking.start_soon(ask, host)
    assert len(answers) == 7
    assert sum(bool(answer.tries) for answer in answers) == MAX_ANSWERING
    assert all(answer.observed for answer in answers)
    assert len(crowd.network.probes) == MAX_ANSWERING
    answers.clear()
    await ask(askers[5])
    assert answers[0].tries, "there is place again"
    nursery.cancel_scope.cancel()


async def test_a_wrong_question_ends_its_stream_and_is_counted(clock: MockClock) -> None:
    crowd = Crowd(1)
    await crowd.dial_all()
    for body in (b"\xff", b"\x0a\x01x", bytes(7000)):
        with pytest.raises(Unavailable):
            await crowd.asker.request(crowd.neighbours[0].peer_id, REACH_PROTOCOL, body, limit_bytes=100)
    assert crowd.answering[0].refused == {"protobuf": 2, "addr": 1}
    with pytest.raises(InvalidMessage):
        await crowd.answering[0].answer(crowd.asker.peer_id, b"\xff")
    assert (await crowd.ask(crowd.asker, crowd.asker.addr)).tries


@pytest.mark.parametrize("addr", ["", "/ip6/fe80::1%eth0/tcp/1", "/unix/x"])
async def test_who_is_seen_nowhere_is_told_nothing(clock: MockClock, addr: str) -> None:
    crowd = Crowd(1)
    crowd.neighbours[0].gain(Link(crowd.asker.peer_id, "inbound", addr))
    told = await crowd.answering[0].answer(crowd.asker.peer_id, encode_question([NOWHERE]))
    assert told == encode_answer(ReachAnswer())
    stranger = Identity(b"x" * 32).peer_id
    assert await crowd.answering[0].answer(stranger, encode_question([NOWHERE])) == encode_answer(ReachAnswer())
