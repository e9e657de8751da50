"""All councils of a node: fed by topic, bounded, and deaf to who may not say what."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from p2pnode.core.council import table
from p2pnode.core.council.council import Stamp
from p2pnode.core.council.documents import CLAIMS_TOPIC, STATUS_TOPIC, Status
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.council.table import LAPSED_NS, Councils
from tests.core.council.kit import COUNCIL, OWNER, START_NS, held, peer


class Room:
    """A table, and documents of numbered councils told to it."""

    def __init__(self) -> None:
        self.table = Councils(lambda who, _: who == OWNER)
        self.seqno = 0

    def tell(self, topic: str, document: dict[str, Any], who: object = OWNER, at_ns: int = 0) -> bool:
        self.seqno += 1
        stamp = Stamp(OWNER if who == OWNER else peer(who), self.seqno, at_ns or START_NS + self.seqno)
        return self.table.take(topic, document, stamp) is not None

    def open(self, number: int, at_ns: int = 0, **members: object) -> bool:
        members = {"project_name": "p", "repository": "r", "core_roles": ["tpm"], **members}
        return self.tell(OPPORTUNITY_TOPIC, {"council_id": uuid(number), **members}, at_ns=at_ns)

    def claim(self, number: int, who: object = "a", **members: object) -> bool:
        return self.tell(
            CLAIMS_TOPIC, {"council_id": uuid(number), "role_name": "tpm", "agent_id": "a", **members}, who
        )

    def say(self, number: int, status: str, who: object = OWNER, **members: object) -> bool:
        return self.tell(STATUS_TOPIC, {"council_id": uuid(number), "status": status, **members}, who)

    def knows(self, number: int) -> bool:
        return self.table.get(uuid(number)) is not None


def uuid(number: int) -> str:
    return str(UUID(int=number))


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr(table, "MAX_COUNCILS", 3)
    return Room()


def test_documents_of_one_council_meet_in_it(room: Room) -> None:
    assert room.open(1)
    assert room.claim(1)
    assert room.say(1, "active", term=1, n=1, roles=[held("tpm", "a")])
    council = room.table.get(uuid(1))
    assert council is not None
    assert (council.status, [seat.agent_id for seat in council.seats()]) == (Status.ACTIVE, ["a"])
    assert len(room.table) == 1


def test_a_council_id_may_be_written_in_capitals(room: Room) -> None:
    room.tell(CLAIMS_TOPIC, {"council_id": COUNCIL.upper(), "role_name": "tpm", "agent_id": "a"}, "a")
    assert room.table.get(COUNCIL) is not None


def test_a_claim_may_come_before_its_opportunity(room: Room) -> None:
    assert room.claim(1)
    council = room.table.get(uuid(1))
    assert council is not None
    assert council.authority is None
    room.open(1)
    assert len(council.claims("tpm")) == 1
    assert council.authority is not None


@pytest.mark.parametrize(
    ("topic", "document", "reason"),
    [
        (OPPORTUNITY_TOPIC, {"council_id": "x"}, "opportunity"),
        (CLAIMS_TOPIC, {}, "claim"),
        (STATUS_TOPIC, {"council_id": COUNCIL}, "status"),
        (STATUS_TOPIC, {"council_id": COUNCIL, "status": "active", "term": 1, "roles": [held("x", "a")] * 2}, "status"),
    ],
)
def test_what_is_no_such_document_is_counted(room: Room, topic: str, document: dict[str, Any], reason: str) -> None:
    assert not room.tell(topic, document)
    assert room.table.refused == {reason: 1}
    assert len(room.table) == 0


def test_a_topic_of_others_is_left_alone(room: Room) -> None:
    assert not room.tell("backbeat.status", {"council_id": COUNCIL})
    assert not room.table.refused


def test_opportunities_and_decisions_of_others_are_counted_and_have_no_effect(room: Room) -> None:
    opportunity = {"council_id": uuid(1), "project_name": "p", "repository": "r", "core_roles": ["x"]}
    assert not room.tell(OPPORTUNITY_TOPIC, opportunity, "stranger")
    assert not room.say(1, "cancelled", "stranger", term=9, n=9)
    assert room.table.refused == {"untrusted": 2}
    assert len(room.table) == 0


def test_the_report_of_anybody_is_kept_and_marked(room: Room) -> None:
    room.open(1)
    assert room.say(1, "cancelled", "stranger")
    assert room.say(1, "cancelled", OWNER)
    council = room.table.get(uuid(1))
    assert council is not None
    assert {report.peer: report.trusted for report in council.reports.values()} == {
        peer("stranger"): False,
        OWNER: True,
    }
    assert council.status is Status.FORMING


def test_the_same_document_again_changes_nothing(room: Room) -> None:
    stamp = Stamp(OWNER, 1, START_NS)
    document = {"council_id": uuid(1), "project_name": "p", "repository": "r", "core_roles": ["x"]}
    assert room.table.take(OPPORTUNITY_TOPIC, document, stamp) is not None
    assert room.table.take(OPPORTUNITY_TOPIC, document, stamp) is None


def test_members_we_do_not_know_are_not_kept(room: Room) -> None:
    room.open(1)
    room.claim(1, invented="x" * 1000)
    council = room.table.get(uuid(1))
    assert council is not None
    assert not council.claims("tpm")[0].claim.model_extra


# -- bounds ----------------------------------------------------------------------------


def test_claims_for_councils_that_nobody_announced_make_room_first(room: Room) -> None:
    room.open(1)
    room.say(1, "completed", term=1, n=1)
    room.claim(2)
    room.open(3)
    assert not room.table.is_full()
    room.open(4)
    assert [room.knows(each) for each in (1, 2, 3, 4)] == [True, False, True, True]


def test_then_the_oldest_that_ended_makes_room(room: Room) -> None:
    for each in (1, 2, 3):
        room.open(each)
    room.say(3, "completed", term=1, n=1)
    room.say(2, "completed", term=1, n=1)
    room.open(4)
    assert [room.knows(each) for each in (1, 2, 3, 4)] == [True, False, True, True]


def test_when_all_go_on_a_new_council_is_refused_and_counted(room: Room) -> None:
    for each in (1, 2, 3):
        room.open(each)
    assert room.table.is_full()
    assert not room.open(4)
    assert not room.claim(5)
    assert room.table.refused == {"full": 2}
    assert room.claim(2), "those that are known are still told"


def test_a_council_that_nobody_ended_long_after_its_deadline_makes_room(room: Room) -> None:
    deadline_ns = 1_893_456_000 * 10**9
    for each in (1, 2, 3):
        room.open(each, formation_deadline="2030-01-01T00:00:00Z")
    assert not room.open(4, deadline_ns + LAPSED_NS)
    assert room.table.is_full(deadline_ns)
    assert room.open(4, deadline_ns + LAPSED_NS + 1)
    assert [room.knows(each) for each in (1, 2, 3, 4)] == [False, True, True, True]


def test_a_flood_of_claims_for_invented_councils_displaces_at_most_one_that_ended(room: Room) -> None:
    for each in (1, 2):
        room.open(each)
    room.open(3)
    room.say(3, "completed", term=1, n=1)
    for each in range(100, 200):
        room.claim(each)
    assert [room.knows(each) for each in (1, 2, 3)] == [True, True, False]
    assert len(room.table) == 3
