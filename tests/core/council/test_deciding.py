"""What an owner decides, case by case."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from p2pnode.core.council.council import Council, Stamp
from p2pnode.core.council.deciding import ACCEPT_SECONDS, SECOND_ROLE_SECONDS, WINDOW_SECONDS, Times
from p2pnode.core.council.documents import MAX_MESSAGE, MAX_UCXL, Status
from p2pnode.core.council.opportunity import CouncilOpportunity, check_opportunity
from tests.core.council.kit import COUNCIL, OWNER, START_NS, Desk, Known, opportunity, peer

SOON = WINDOW_SECONDS + 0.001


def active(*agents: str, known: Known | None = None) -> Desk:
    """A council of roles named as their holders."""
    desk = Desk(agents, known)
    for each in agents:
        desk.says(each, each)
    desk.decide(SOON)
    for each in agents:
        desk.accepts(each, each)
    assert desk.decide().status is Status.ACTIVE
    return desk


def deadline(seconds: int) -> str:
    return datetime.fromtimestamp(START_NS // 10**9 + seconds, UTC).isoformat()


def test_without_claims_there_is_nothing_to_publish_and_nothing_to_wait_for() -> None:
    verdict = Desk().decide()
    assert (verdict.changed, verdict.look_again_at) == (False, math.inf)


def test_a_better_claim_within_the_window_gets_the_role() -> None:
    desk = Desk()
    desk.says("quick")
    waiting = desk.decide(WINDOW_SECONDS / 2)
    assert (waiting.changed, waiting.look_again_at) == (False, WINDOW_SECONDS)
    desk.says("good", capabilities=["tpm"])
    assert desk.decide(WINDOW_SECONDS).changed
    assert desk.holder() == "good"
    assert (desk.seat().term, desk.seat().n, desk.seat().state) == (1, 1, "assigned")


def test_a_role_that_is_given_stays_given_when_a_better_claim_comes() -> None:
    desk = active("tpm")
    desk.says("other", "tpm", capabilities=["tpm"])
    assert not desk.decide(60).changed
    assert desk.holder() == "tpm"


def test_the_council_is_active_when_every_core_role_is_accepted() -> None:
    desk = Desk(["x", "y"], optional_roles=["z"])
    desk.says("a", "x")
    desk.says("b", "y")
    assert desk.decide(SOON).status is Status.FORMING
    desk.accepts("a", "x")
    assert desk.decide().status is Status.FORMING
    desk.accepts("b", "y")
    assert desk.decide().status is Status.ACTIVE
    assert not desk.decide(1000).changed


def test_an_agent_gets_a_second_role_only_when_nobody_else_wants_it_for_a_while() -> None:
    desk = Desk(["x", "y"])
    desk.says("a", "x")
    desk.says("a", "y")
    desk.decide()
    verdict = desk.decide(SOON)
    assert (desk.holder("x"), desk.holder("y")) == ("a", "")
    assert verdict.look_again_at == SECOND_ROLE_SECONDS
    desk.decide(SECOND_ROLE_SECONDS)
    assert desk.holder("y") == "a"


def test_a_role_that_falls_vacant_goes_to_the_free_claim_before_the_older_one_of_who_sits() -> None:
    desk = active("x", "y")
    desk.says("x", "y")
    desk.now += 60
    desk.releases("y", "y")
    assert desk.decide().look_again_at == desk.now + SECOND_ROLE_SECONDS
    desk.says("free", "y")
    desk.decide(SOON)
    assert desk.holder("y") == "free"


def test_an_old_claim_of_who_sits_takes_no_window_from_the_others() -> None:
    desk = active("x", "y")
    desk.says("x", "y")
    desk.now += 1
    desk.releases("y", "y")
    desk.decide()
    desk.says("quick", "y")
    assert not desk.decide(WINDOW_SECONDS / 2).changed
    desk.says("good", "y", capabilities=["y"])
    desk.decide(WINDOW_SECONDS)
    assert desk.holder("y") == "good"


def test_a_dead_holder_is_replaced_at_once_by_a_claim_that_stands() -> None:
    desk = active("x")
    desk.says("spare", "x")
    assert not desk.decide(5).changed
    desk.known.gone.add(peer("x"))
    verdict = desk.decide(5)
    assert verdict.message == "x is open again: x is gone"
    assert (desk.holder("x"), desk.status) == ("spare", Status.ACTIVE)


def test_a_holder_that_comes_back_before_the_role_is_filled_gets_it_again_under_a_new_number() -> None:
    desk = active("x")
    before = desk.seat("x").n
    desk.known.gone.add(peer("x"))
    desk.decide(1)
    assert desk.seat("x").is_open
    desk.known.gone.clear()
    desk.decide(1)
    assert desk.holder("x") == "x"
    assert desk.seat("x").n > before


def test_the_dead_get_nothing() -> None:
    desk = Desk(known=Known(gone={peer("a")}))
    desk.says("a")
    assert not desk.decide(100).changed


def test_a_released_role_is_open_again_and_says_why() -> None:
    desk = active("x")
    desk.releases("x", "x", reason="tired")
    verdict = desk.decide(1)
    assert verdict.message == "x is open again: x released it (tired)"
    assert desk.seat("x").is_open
    assert not desk.decide(1000).changed, "who released it does not want it"


def test_who_releases_and_claims_again_at_once_gets_a_new_assignment() -> None:
    desk = active("x")
    before = desk.seat("x").n
    desk.releases("x", "x")
    desk.says("x", "x")
    assert desk.decide(SOON).changed
    assert (desk.holder("x"), desk.seat("x").state) == ("x", "assigned")
    assert desk.seat("x").n > before


def test_a_role_that_is_not_accepted_goes_to_somebody_else() -> None:
    desk = Desk()
    desk.says("mute", capabilities=["tpm"])
    desk.says("other")
    assert desk.decide(SOON).changed
    assert desk.decide(1).look_again_at == pytest.approx(desk.now + ACCEPT_SECONDS)
    verdict = desk.decide(ACCEPT_SECONDS)
    assert verdict.message == "tpm is open again: mute did not accept it"
    assert desk.holder() == "other"


def test_who_did_not_accept_is_asked_again_later_and_less_and_less_often() -> None:
    desk = Desk()
    desk.says("mute")
    given = []
    verdict = desk.decide(SOON)
    while desk.now < 1000:
        if verdict.changed and not desk.seat().is_open:
            given.append(desk.now)
        assert verdict.changed or verdict.look_again_at > desk.now
        verdict = desk.decide(0 if verdict.changed else min(verdict.look_again_at - desk.now, 1000.0))
    gaps = [later - earlier for earlier, later in pairwise(given)]
    assert len(given) > 3
    assert gaps == sorted(gaps)
    desk.says("mute")
    desk.decide(SOON)
    desk.accepts("mute")
    assert desk.decide().status is Status.ACTIVE


def test_who_did_not_accept_comes_after_all_others() -> None:
    desk = Desk()
    desk.says("mute", capabilities=["tpm"])
    desk.decide(SOON)
    desk.decide()
    desk.decide(ACCEPT_SECONDS)
    assert desk.seat().is_open
    desk.now += 1000
    desk.says("other")
    desk.decide(SOON)
    assert desk.holder() == "other"


def test_deciding_twice_before_it_could_be_published_passes_over_once() -> None:
    desk = Desk()
    desk.says("mute")
    desk.decide(SOON)
    desk.decide()
    desk.now += ACCEPT_SECONDS + 1
    for _ in range(5):
        desk.owner.decide(desk.council, desk.known, Times(desk.now, START_NS))
    assert [each.times for each in desk.owner.passed_over.values()] == [1]


def test_a_stranger_waits_for_our_own_nodes_and_needs_no_acceptance() -> None:
    desk = Desk(["x", "y"], Known(strangers=[peer("s"), peer("t")]))
    desk.says("s", "x", capabilities=["x"])
    desk.says("t", "y", capabilities=["y"])
    desk.says("ours", "x")
    desk.decide(SOON)
    assert (desk.holder("x"), desk.holder("y")) == ("ours", "")
    desk.accepts("ours", "x")
    desk.decide(SECOND_ROLE_SECONDS)
    assert (desk.holder("y"), desk.seat("y").state, desk.status) == ("t", "accepted", Status.ACTIVE)


def test_a_claim_on_a_role_that_is_not_there_has_no_effect() -> None:
    desk = Desk()
    desk.says("a", "nothing")
    assert not desk.decide(100).changed


def test_claims_that_came_before_the_opportunity_count() -> None:
    desk = Desk()
    desk.council = Council(COUNCIL)
    desk.says("early")
    assert not desk.decide(1).changed
    desk.council.take_opportunity(opportunity(), Stamp(OWNER, 1, START_NS))
    desk.decide(SOON)
    assert desk.holder() == "early"


def test_a_missed_deadline_says_what_was_missing() -> None:
    desk = Desk(["x", "y", "z"], optional_roles=["o"], formation_deadline=deadline(30))
    desk.says("a", "x")
    desk.says("b", "y")
    desk.decide(SOON)
    desk.accepts("a", "x")
    waiting = desk.decide(1)
    assert waiting.look_again_at <= 30
    desk.accepts("b", "y")
    assert desk.decide(28).status is Status.FORMING
    verdict = desk.decide(1)
    assert (verdict.status, verdict.message) == (Status.EXPIRED, "not filled by the deadline: z")
    assert not desk.decide(1000).changed


def test_an_active_council_does_not_expire_when_a_role_falls_vacant() -> None:
    desk = Desk(["x"], formation_deadline=deadline(30))
    desk.says("a", "x")
    desk.decide(SOON)
    desk.accepts("a", "x")
    desk.decide()
    desk.releases("a", "x")
    assert desk.decide(100).status is Status.ACTIVE


def test_a_deadline_that_has_passed_already_expires_at_once() -> None:
    assert Desk(formation_deadline="2020-01-01T00:00:00Z").decide().status is Status.EXPIRED


@pytest.mark.parametrize("status", ["failed", "expired", "cancelled"])
def test_an_orchestrators_word_ends_a_forming_council(status: str) -> None:
    desk = Desk()
    desk.reports(peer("boss"), status, trusted=True, message="enough")
    verdict = desk.decide()
    assert (desk.status, verdict.message) == (Status(status), "enough")


@pytest.mark.parametrize(("status", "stays"), [("completed", Status.FORMING), ("active", Status.FORMING)])
def test_what_cannot_follow_is_not_done(status: str, stays: Status) -> None:
    desk = Desk()
    desk.reports(peer("boss"), status, trusted=True)
    assert not desk.decide().changed
    assert desk.status is stays


def test_an_active_council_does_not_expire_on_request() -> None:
    desk = active("x")
    desk.reports(peer("boss"), "expired", trusted=True)
    assert not desk.decide().changed


def test_others_cannot_end_a_council() -> None:
    desk = active("x", "y")
    desk.reports(peer("stranger"), "cancelled")
    desk.reports(peer("x"), "failed", agent_id="x", role_name="x")
    desk.reports(peer("stranger"), "completed", agent_id="y", role_name="y")
    assert not desk.decide().changed


def test_a_council_is_completed_when_all_who_hold_core_roles_say_so() -> None:
    desk = active("x", "y")
    desk.reports(peer("x"), "completed", agent_id="x", role_name="x")
    assert desk.decide().status is Status.ACTIVE
    desk.reports(peer("y"), "completed", agent_id="y", role_name="y")
    assert desk.decide().status is Status.COMPLETED
    desk.reports(peer("boss"), "cancelled", trusted=True)
    assert not desk.decide().changed


def test_a_council_with_much_to_say_can_still_be_published() -> None:
    roles = [f"{each:02}" + "r" * 250 for each in range(64)]
    checked = check_opportunity(
        {"council_id": COUNCIL, "project_name": "p" * 256, "repository": "r", "core_roles": roles}
        | {"ucxl_address": "ucxl://a:b@c:d/*^/" + "x" * MAX_UCXL}
    )
    assert isinstance(checked, CouncilOpportunity)
    desk = Desk(roles, formation_deadline=deadline(1), ucxl_address=checked.ucxl_address)
    assert desk.decide(2).changed
    assert desk.council.decision is not None
    assert len(desk.council.decision.update.message) == MAX_MESSAGE
    assert desk.council.decision.update.ucxl_address == ""
