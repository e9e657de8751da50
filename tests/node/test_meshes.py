"""Rules of the mesh collection: every node that can be reached answers once, whatever others do."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from random import Random
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.membership.record import Member, MemberRecord, MemberState
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.errors import InvalidMessage, Unavailable
from p2pnode.node.meshes import (
    COLLECTIONS_PER_SECOND,
    FRESH_SECONDS,
    MAX_PATIENCE_SECONDS,
    MAX_REMEMBERED,
    REMEMBER_SECONDS,
    Meshes,
)
from p2pnode.ports import Host, Link
from p2pnode.wire.meshes import (
    MAX_ANSWER_BYTES,
    MESH_PROTOCOL,
    MeshEntry,
    MeshQuestion,
    decode_answer,
    decode_question,
    encode_answer,
    encode_question,
)

TOPIC = "councils.forming"
LATENCY_SECONDS = 0.002

Answer = Callable[[PeerId, bytes], Awaitable[bytes]]


def peer(number: int) -> PeerId:
    return peer_id_text(b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big"))


class FakeHost:
    """`ports.Host` as far as the collection needs it: links, and requests that take a little time."""

    def __init__(self, fleet: Fleet, peer_id: PeerId) -> None:
        self._fleet = fleet
        self._peer_id = peer_id
        self.linked: dict[PeerId, Link] = {}
        self.served: dict[str, Answer] = {}

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def links(self) -> Mapping[PeerId, Link]:
        return self.linked

    def serve(self, protocol: str, answer: Answer, *, limit_bytes: int) -> None:
        self.served[protocol] = answer

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, limit_bytes: int) -> bytes:
        assert peer in self.linked
        self._fleet.asked.append((self._peer_id, peer, body))
        await trio.sleep(self._fleet.rng.uniform(0.5, 1.5) * LATENCY_SECONDS)
        try:
            answer = await self._fleet.answer_of(peer, protocol)(self._peer_id, body)
        except InvalidMessage as error:
            raise Unavailable("the stream was reset") from error
        await trio.sleep(self._fleet.rng.uniform(0.5, 1.5) * LATENCY_SECONDS)
        if len(answer) > limit_bytes:
            raise InvalidMessage("oversize")
        return answer


class Fleet:
    """Nodes 0 to n-1 with links and a mesh of their first three links each; node 0 asks."""

    def __init__(self, size: int, links: Iterable[tuple[int, int]]) -> None:
        self.rng = Random(7)
        self.asked: list[tuple[PeerId, PeerId, bytes]] = []
        self.told: Counter[PeerId] = Counter()
        self.instead: dict[PeerId, Answer] = {}
        self.beyond: set[PeerId] = set()
        self.members = {peer(number): member(number) for number in range(size)}
        self.hosts = {one: FakeHost(self, one) for one in self.members}
        for one, other in links:
            self.link(peer(one), peer(other))
        ids = (number.to_bytes(16, "big") for number in itertools.count())
        self.meshes = {
            one: Meshes(
                cast(Host, host),
                self.topics_of(host),
                lambda: self.members,
                is_beyond=self.beyond.__contains__,
                new_id=lambda: next(ids),
            )
            for one, host in self.hosts.items()
        }
        self.asker = self.meshes[peer(0)]

    def link(self, one: PeerId, other: PeerId) -> None:
        self.hosts[one].linked[other] = Link(other, "outbound", "")
        if other in self.hosts:
            self.hosts[other].linked[one] = Link(one, "inbound", "")

    def topics_of(self, host: FakeHost) -> Callable[[], Mapping[str, Iterable[PeerId]]]:
        return lambda: {TOPIC: sorted(host.linked)[:3], "empty": []}

    def answer_of(self, to: PeerId, protocol: str) -> Answer:
        if to in self.instead:
            return self.instead[to]
        if to not in self.hosts:
            raise Unavailable("no such protocol")
        answer = self.hosts[to].served[protocol]

        async def counted(by: PeerId, body: bytes) -> bytes:
            encoded = await answer(by, body)
            if decode_answer(encoded):
                self.told[to] += 1
            return encoded

        return counted

    def hang(self, *numbers: int) -> None:
        for number in numbers:
            self.instead[peer(number)] = never


async def never(_peer: PeerId, _body: bytes) -> bytes:
    await trio.sleep_forever()


def member(number: int, state: MemberState = MemberState.ALIVE) -> Member:
    role = "whoosh" if number == 1 else "chorus"
    return Member(MemberRecord(peer(number), 1, f"n{number:02}", role, "online", ()), state, "gossip", 0, 0)


def random_links(size: int, degree: int = 6, seed: int = 1) -> set[tuple[int, int]]:
    """A ring, so that everybody is reached, and random links across."""
    rng = Random(seed)
    links = {(number, (number + 1) % size) for number in range(size)}
    while len(links) < size * degree // 2:
        one, other = rng.sample(range(size), 2)
        links.add((min(one, other), max(one, other)))
    return links


def everybody(size: int) -> set[PeerId]:
    return {peer(number) for number in range(size)}


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@pytest.mark.parametrize("seed", range(5))
async def test_every_node_answers_exactly_once(clock: MockClock, seed: int) -> None:
    fleet = Fleet(34, random_links(34, seed=seed))
    entries = await fleet.asker.collect()
    assert entries == {
        one: MeshEntry.of(one, host.linked, fleet.topics_of(host)()) for one, host in fleet.hosts.items()
    }
    assert fleet.told == Counter({one: 1 for one in everybody(34) - {peer(0)}})
    assert trio.current_time() < 1.0


@pytest.mark.parametrize(
    "links",
    [
        [(number, number + 1) for number in range(9)],
        [(0, number) for number in range(1, 10)],
        [(one, other) for one in range(10) for other in range(one)],
        [(number, (number + 1) % 10) for number in range(10)],
    ],
    ids=["line", "star", "complete", "ring"],
)
async def test_the_shape_of_the_graph_does_not_matter(clock: MockClock, links: list[tuple[int, int]]) -> None:
    fleet = Fleet(10, links)
    assert set(await fleet.asker.collect()) == everybody(10)
    assert set(fleet.told.values()) == {1}
    assert len(fleet.asked) <= 2 * len(links)


@pytest.mark.parametrize("hung", [[1], [1, 5, 9], [20, 21, 22, 23]])
async def test_a_node_that_hangs_costs_only_itself(clock: MockClock, hung: list[int]) -> None:
    fleet = Fleet(34, random_links(34))
    fleet.hang(*hung)
    document = await fleet.asker.document()
    assert {node["peer_id"] for node in document["nodes"]} == everybody(34) - {peer(number) for number in hung}
    assert {node["name"] for node in document["missing"]} == {f"n{number:02}" for number in hung}
    assert trio.current_time() == pytest.approx(MAX_PATIENCE_SECONDS, abs=0.01)


async def test_each_node_waits_less_than_the_one_that_asked_it(clock: MockClock) -> None:
    fleet = Fleet(8, [(number, number + 1) for number in range(7)])
    fleet.hang(7)
    assert set(await fleet.asker.collect()) == everybody(7)
    patience = [decode_question(body).patience_seconds for _, _, body in fleet.asked]
    assert patience[0] == MAX_PATIENCE_SECONDS
    assert patience == sorted(patience, reverse=True)
    assert len(set(patience)) == len(patience)


async def test_who_does_not_know_the_protocol_or_answers_nonsense_costs_only_itself(clock: MockClock) -> None:
    fleet = Fleet(6, random_links(6, 4))
    del fleet.hosts[peer(3)]

    async def nonsense(_peer: PeerId, _body: bytes) -> bytes:
        return b"\xff"

    fleet.instead[peer(4)] = nonsense
    assert set(await fleet.asker.collect()) == everybody(6) - {peer(3), peer(4)}
    assert sum(each.refused["protobuf"] for each in fleet.meshes.values()) > 0


async def test_only_members_ask_are_asked_and_are_told_of(clock: MockClock) -> None:
    fleet = Fleet(4, [(0, 1), (1, 2), (2, 3)])
    fleet.link(peer(0), peer(99))
    fleet.link(peer(1), peer(98))

    async def invents(_peer: PeerId, _body: bytes) -> bytes:
        return encode_answer([MeshEntry(peer(2)), MeshEntry(peer(55)), MeshEntry(peer(3))])

    fleet.instead[peer(2)] = invents
    entries = await fleet.asker.collect()
    assert set(entries) == everybody(4)
    assert peer(99) in entries[peer(0)].links
    assert {to for _, to, _ in fleet.asked} == {peer(1), peer(2)}
    assert fleet.meshes[peer(1)].refused == Counter(stranger=1)
    with pytest.raises(InvalidMessage) as caught:
        await fleet.asker.answer(peer(99), encode_question(MeshQuestion(b"q" * 16, 1.0)))
    assert caught.value.reason == "stranger"
    assert fleet.asker.refused == Counter(stranger=1)


async def test_what_a_neighbour_tells_of_itself_stands_and_nobody_tells_us_of_ourselves(clock: MockClock) -> None:
    fleet = Fleet(3, [(0, 1), (0, 2)])
    truth = MeshEntry.of(peer(2), [peer(0)], {"true": []})
    lies = [MeshEntry.of(peer(number), [], {"lie": []}) for number in range(3)]

    def says(after: float, *entries: MeshEntry) -> Answer:
        async def answer(_peer: PeerId, _body: bytes) -> bytes:
            await trio.sleep(after)
            return encode_answer(entries)

        return answer

    for liar_first in (True, False):
        fleet.instead[peer(1)] = says(0.0 if liar_first else 0.5, *lies)
        fleet.instead[peer(2)] = says(0.5 if liar_first else 0.0, truth)
        entries = await fleet.asker.collect()
        assert entries[peer(2)] == truth
        assert "lie" not in entries[peer(0)].topics
        await trio.sleep(1.0)


async def test_an_id_seen_before_is_answered_without_entries(clock: MockClock) -> None:
    fleet = Fleet(3, [(0, 1), (0, 2)])
    question = encode_question(MeshQuestion(b"q" * 16, 1.0))
    assert len(decode_answer(await fleet.asker.answer(peer(1), question))) == 2
    assert decode_answer(await fleet.asker.answer(peer(1), question)) == ()
    assert decode_answer(await fleet.asker.answer(peer(2), question)) == ()
    await trio.sleep(REMEMBER_SECONDS + 1)
    assert len(decode_answer(await fleet.asker.answer(peer(1), question))) == 2


async def test_remembered_ids_are_bounded_and_the_oldest_goes(clock: MockClock) -> None:
    fleet = Fleet(2, [(0, 1)])

    async def ask(number: int) -> int:
        question = MeshQuestion(number.to_bytes(16, "little"), 1.0)
        return len(decode_answer(await fleet.asker.answer(peer(1), encode_question(question))))

    for number in range(MAX_REMEMBERED + 1):
        assert await ask(number) == 1
    assert await ask(1) == 0
    assert await ask(MAX_REMEMBERED) == 0
    assert await ask(0) == 1


async def test_more_than_two_collections_a_second_are_not_passed_on(clock: MockClock) -> None:
    fleet = Fleet(3, [(0, 1), (0, 2)])

    async def ask(number: int) -> int:
        question = MeshQuestion(number.to_bytes(16, "big"), 1.0)
        return len(decode_answer(await fleet.asker.answer(peer(1), encode_question(question))))

    assert [await ask(number) for number in range(4)] == [2] * COLLECTIONS_PER_SECOND + [1, 1]
    await trio.sleep(1.0)
    assert [await ask(number) for number in range(10, 14)] == [2] * COLLECTIONS_PER_SECOND + [1, 1]


async def test_no_patience_and_too_much_patience_are_granted_within_bounds(clock: MockClock) -> None:
    fleet = Fleet(3, [(0, 1), (0, 2)])
    fleet.hang(2)
    for number, (asked, waited) in enumerate([(0.01, 0.0), (1000.0, 2.4)]):
        start = trio.current_time()
        body = encode_question(MeshQuestion(number.to_bytes(16, "big"), asked))
        assert [entry.peer for entry in decode_answer(await fleet.asker.answer(peer(1), body))] == [peer(0)]
        assert trio.current_time() - start == pytest.approx(waited)


async def test_a_question_that_is_none_is_counted_and_refused(clock: MockClock) -> None:
    fleet = Fleet(2, [(0, 1)])
    with pytest.raises(InvalidMessage):
        await fleet.asker.answer(peer(1), b"\xff")
    assert fleet.asker.refused == Counter(protobuf=1)


async def test_askers_at_the_same_time_share_one_collection(clock: MockClock) -> None:
    fleet = Fleet(4, [(0, 1), (1, 2), (2, 3)])
    seen: list[Mapping[PeerId, MeshEntry]] = []

    async def ask() -> None:
        seen.append(await fleet.asker.collect())

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert len(fleet.asked) == 3
    assert all(entries is seen[0] for entries in seen)
    await trio.sleep(FRESH_SECONDS + 0.01)
    await ask()
    assert len(fleet.asked) == 6


async def test_an_asker_that_leaves_does_not_take_the_answer_from_others(clock: MockClock) -> None:
    fleet = Fleet(3, [(0, 1), (1, 2)])
    with trio.move_on_after(LATENCY_SECONDS) as left:
        await fleet.asker.collect()
    assert left.cancelled_caught
    assert set(await fleet.asker.collect()) == everybody(3)


async def test_two_nodes_ask_at_the_same_time_and_both_get_all(clock: MockClock) -> None:
    fleet = Fleet(34, random_links(34))
    found: list[set[PeerId]] = []

    async def ask(number: int) -> None:
        found.append(set(await fleet.meshes[peer(number)].collect()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 0)
        nursery.start_soon(ask, 17)
    assert found == [everybody(34)] * 2


async def test_the_document_is_ordered_as_peers_and_lists_live_members_that_did_not_answer(clock: MockClock) -> None:
    fleet = Fleet(7, [(0, 1), (0, 2)])
    fleet.members[peer(3)] = member(3, MemberState.SUSPECT)
    fleet.members[peer(4)] = member(4, MemberState.DEAD)
    fleet.members[peer(5)] = member(5, MemberState.LEFT)
    fleet.members[peer(2)] = member(2, MemberState.DEAD)
    assert await fleet.asker.document() == {
        "nodes": [
            {
                "peer_id": peer(0),
                "name": "n00",
                "role": "chorus",
                "links": sorted([peer(1), peer(2)]),
                "topics": {TOPIC: sorted([peer(1), peer(2)]), "empty": []},
            },
            {
                "peer_id": peer(2),
                "name": "n02",
                "role": "chorus",
                "links": [peer(0)],
                "topics": {TOPIC: [peer(0)], "empty": []},
            },
            {
                "peer_id": peer(1),
                "name": "n01",
                "role": "whoosh",
                "links": [peer(0)],
                "topics": {TOPIC: [peer(0)], "empty": []},
            },
        ],
        "missing": [{"peer_id": peer(3), "name": "n03"}, {"peer_id": peer(6), "name": "n06"}],
    }


async def test_a_node_alone_tells_of_itself(clock: MockClock) -> None:
    document = await Fleet(1, []).asker.document()
    assert [node["name"] for node in document["nodes"]] == ["n00"]
    assert document["missing"] == []


async def test_who_lives_beyond_a_bridge_is_not_missed(clock: MockClock) -> None:
    fleet = Fleet(4, [(0, 1)])
    fleet.beyond.add(peer(2))
    assert (await fleet.asker.document())["missing"] == [{"peer_id": peer(3), "name": "n03"}]


async def test_the_protocol_is_served_from_the_start() -> None:
    fleet = Fleet(1, [])
    assert set(fleet.hosts[peer(0)].served) == {MESH_PROTOCOL}


async def test_an_answer_over_the_limit_costs_only_its_link(clock: MockClock) -> None:
    fleet = Fleet(3, [(0, 1), (0, 2)])

    async def floods(_peer: PeerId, _body: bytes) -> bytes:
        return b"x" * (MAX_ANSWER_BYTES + 1)

    fleet.instead[peer(1)] = floods
    assert set(await fleet.asker.collect()) == {peer(0), peer(2)}
    assert fleet.asker.refused == Counter(oversize=1)
