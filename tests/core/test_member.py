"""The table of members: newer incarnations win."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core import member as member_module
from p2pnode.core.member import MemberRecord, MemberState, MemberTable
from p2pnode.core.peerid import PeerId
from tests.properties import some

A, B = PeerId("peer-a"), PeerId("peer-b")


def record(peer: PeerId = A, incarnation: int = 1, *, name: str = "n", left: bool = False) -> MemberRecord:
    return MemberRecord(peer, incarnation, name, "chorus", "online", ("/ip4/10.0.0.1/tcp/9000",), left=left)


def state_of(table: MemberTable, peer: PeerId = A) -> MemberState:
    known = table.get(peer)
    assert known is not None
    return known.state


@pytest.mark.parametrize(("incarnation", "wins"), [(4, False), (5, False), (6, True)])
def test_only_a_newer_incarnation_replaces_a_record(incarnation: int, wins: bool) -> None:
    table = MemberTable()
    table.merge(record(incarnation=5, name="old"), "gossip", 1)
    candidate = record(incarnation=incarnation, name="new")
    assert table.is_news(candidate) is wins
    assert table.merge(candidate, "sync", 2) is wins
    known = table.get(A)
    assert known is not None
    assert known.record.name == ("new" if wins else "old")
    assert known.source == "gossip"
    assert (known.first_seen_ns, known.last_seen_ns) == (1, 2 if wins else 1)


@some
@given(st.permutations([(peer, incarnation) for peer in (A, B) for incarnation in range(1, 5)]))
def test_the_order_of_arrival_does_not_matter(arrivals: list[tuple[PeerId, int]]) -> None:
    table, sorted_table = MemberTable(), MemberTable()
    for peer, incarnation in arrivals:
        table.merge(record(peer, incarnation), "gossip", 1)
    for peer, incarnation in sorted(arrivals):
        sorted_table.merge(record(peer, incarnation), "gossip", 1)
    assert table.digest() == sorted_table.digest()
    assert {peer: known.record for peer, known in table.all().items()} == {A: record(A, 4), B: record(B, 4)}


def test_a_digest_tells_tables_apart() -> None:
    digests = set()
    for records in ([], [record(A, 1)], [record(A, 2)], [record(B, 1)], [record(A, 1), record(B, 1)]):
        table = MemberTable()
        for each in records:
            table.merge(each, "sync", 1)
        digests.add(table.digest())
    assert len(digests) == 5


def test_who_left_is_brought_back_only_by_its_own_newer_word() -> None:
    table = MemberTable()
    table.merge(record(incarnation=1), "gossip", 1)
    table.merge(record(incarnation=2, left=True), "gossip", 2)
    assert state_of(table) is MemberState.LEFT
    table.heard_from(A, 3)
    table.mark(A, MemberState.DEAD)
    table.merge(record(incarnation=1), "gossip", 4)
    assert state_of(table) is MemberState.LEFT
    table.merge(record(incarnation=3), "gossip", 5)
    assert state_of(table) is MemberState.ALIVE


@pytest.mark.parametrize("feared", [MemberState.SUSPECT, MemberState.DEAD])
def test_a_link_or_a_newer_record_revives_whom_we_feared_dead(feared: MemberState) -> None:
    def by_link(table: MemberTable) -> None:
        table.heard_from(A, 2)

    def by_record(table: MemberTable) -> None:
        table.merge(record(incarnation=2), "gossip", 2)

    for revive in (by_link, by_record):
        table = MemberTable()
        table.merge(record(), "gossip", 1)
        table.mark(A, feared)
        assert table.alive() == []
        revive(table)
        assert state_of(table) is MemberState.ALIVE


def test_strangers_are_neither_heard_nor_marked() -> None:
    table = MemberTable()
    table.heard_from(A, 1)
    table.mark(A, MemberState.DEAD)
    assert len(table) == 0


def test_a_full_table_refuses_the_new_and_still_takes_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_module, "MAX_MEMBERS", 1)
    table = MemberTable()
    assert table.merge(record(A, 1), "gossip", 1)
    assert not table.merge(record(B, 1), "gossip", 1)
    assert table.merge(record(A, 2), "gossip", 1)
    assert (len(table), table.refused) == (1, 1)


def test_a_record_is_a_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().name = "other"  # type: ignore[misc]
