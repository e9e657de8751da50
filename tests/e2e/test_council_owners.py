"""Councils whose owner dies, comes back, or is cut off: resumed, taken over, and given up to the higher term.

Sidecars claim for their agents. Each test prints its seed, what it counted, and how long it took.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from p2pnode.identity import create_key_file
from tests.e2e.cable import LEFT, RIGHT, needs_cables, open_cable
from tests.e2e.council_fleet import (
    COUNCILS,
    CouncilFleet,
    Document,
    Place,
    holders,
    is_formed,
    open_council_fleet,
    role,
)

PLAIN = Path(__file__).parents[1] / "samples" / "create-council.json"
SKILLS = ("task_coordination", "general_development", "testing", "documentation")
ROLES = (
    {"role_name": "tpm", "required_skills": ["task_coordination"]},
    {"role_name": "senior-software-architect", "required_skills": ["general_development"]},
    {"role_name": "qa-engineer", "required_skills": ["testing"]},
)

Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}; load average {os.getloadavg()[0]:.1f}")

    return say


@contextmanager
def claiming_by_themselves(directory: Path) -> Iterator[CouncilFleet]:
    """Two orchestrators, and four agents with two skills each: every skill is had by two."""
    claiming = {"P2PNODE_AGENT_AUTO_CLAIM": "true"}
    agents = [
        Place(f"agent-{number}", {**claiming, "P2PNODE_AGENT_CAPABILITIES": f"{SKILLS[number]},{SKILLS[number - 1]}"})
        for number in range(4)
    ]
    with open_council_fleet(directory, [agents[0], Place("whoosh-1"), Place("whoosh-2"), *agents[1:]]) as fleet:
        yield fleet
        assert not fleet.watch.faults()


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CouncilFleet]:
    with claiming_by_themselves(tmp_path_factory.mktemp("eager")) as fleet:
        yield fleet


def test_the_plain_request_by_curl_gives_a_formed_council(eager: CouncilFleet, report: Report) -> None:
    began = time.monotonic()
    status, made = eager.curl("whoosh-1", COUNCILS, f"@{PLAIN}")
    assert status == 202, made
    asked = json.loads(PLAIN.read_text())
    shown = eager.everywhere("it is active", made["council_id"], is_formed)
    report(f"the plain request: active at {len(eager.names)} nodes after {time.monotonic() - began:.2f} s")
    assert (shown["project_name"], shown["repository"]) == (asked["project_name"], asked["repository"])
    assert list(holders(shown)) == asked["core_roles"]


# -- an orchestrator that dies ---------------------------------------------------------------


def assert_hands(fleet: CouncilFleet, council_id: str) -> int:
    """No role changed hands twice, at no node and over all; how many did once."""
    changed = 0
    for where, passed in fleet.watch.hands(council_id).items():
        assert len(passed) <= 2, (where, passed)
    known: dict[str, dict[tuple[int, int], str]] = {}
    for _, document in fleet.watch.shown(council_id):
        for name, (peer, _agent, term, n) in holders(document).items():
            known.setdefault(name, {})[(term, n)] = peer
    for name, given in known.items():
        order = [given[fence] for fence in sorted(given)]
        changes = sum(one != other for one, other in pairwise(order))
        assert changes <= 1, (name, given)
        changed += changes
    return changed


def is_assigned(fleet: CouncilFleet, council_id: str) -> bool:
    return any(holders(document) for _, document in fleet.watch.shown(council_id))


def kill_and_restart(fleet: CouncilFleet, rounds: int, seed: int, latest: float = 0.15) -> str:
    """Killed up to `latest` seconds after 202: the first assignments come after 0.2 to 0.5 s."""
    rng, before, terms, changed, slowest = Random(seed), 0, [], 0, 0.0
    for _ in range(rounds):
        council_id = fleet.create("whoosh-1", *ROLES)
        time.sleep(rng.uniform(0.0, latest))  # when the blow falls is the point of the test
        fleet.kill("whoosh-1")
        before += not is_assigned(fleet, council_id)
        fleet.start("whoosh-1")
        restarted = time.monotonic()
        shown = fleet.everywhere("it is active after the restart", council_id, is_formed)
        slowest = max(slowest, time.monotonic() - restarted)
        terms.append(shown["term"])
        changed += assert_hands(fleet, council_id)
    return (
        f"seed {seed}: {rounds} kills, {before} before any assignment; active everywhere at most {slowest:.1f} s after "
        f"the restart, under terms {terms}; {changed} roles changed hands"
    )


def kill_and_leave(fleet: CouncilFleet, rounds: int, seed: int, latest: float = 0.1, *, in_turn: bool = True) -> str:
    """Killed up to `latest` seconds after the other orchestrator heard of the council. `in_turn`: who took over is the
    next to be killed, and its heir has just started: that one takes nothing over for 10 s."""
    rng, before, changed, slowest, yielding = Random(seed), 0, 0, 0.0, 0.0
    owner, other = "whoosh-1", "whoosh-2"
    for _ in range(rounds):
        council_id = fleet.create(owner, *ROLES)
        fleet.watch.wait("the other orchestrator knows of it", [other], council_id, bool)
        time.sleep(rng.uniform(0.0, latest))
        fleet.kill(owner)
        killed = time.monotonic()
        before += not is_assigned(fleet, council_id)

        def is_taken_over(document: Document, heir: str = fleet.peer_ids[other]) -> bool:
            return is_formed(document) and (document["term"], document["owner"]) == (2, heir)

        live = [name for name in fleet.names if name != owner]
        fleet.watch.wait("it is active under the other", live, council_id, is_taken_over)
        slowest = max(slowest, time.monotonic() - killed)
        fleet.start(owner)
        restarted = time.monotonic()
        fleet.everywhere("who returns yields", council_id, is_taken_over)
        yielding = max(yielding, time.monotonic() - restarted)
        fleet.wait_for_states([other], [owner], "alive")
        changed += assert_hands(fleet, council_id)
        if in_turn:
            owner, other = other, owner
    return (
        f"seed {seed}: {rounds} kills, {before} before any assignment; active under the other at most {slowest:.1f} s "
        f"after the kill; the first yields at most {yielding:.1f} s after its start; {changed} roles changed hands"
    )


def test_councils_of_an_orchestrator_killed_before_it_assigned_become_active_after_its_restart(
    eager: CouncilFleet, report: Report
) -> None:
    report(kill_and_restart(eager, 2, seed=1))


def test_another_orchestrator_takes_councils_over_and_who_returns_yields(eager: CouncilFleet, report: Report) -> None:
    report(kill_and_leave(eager, 2, seed=2, in_turn=False))


@pytest.mark.soak
def test_ten_kills_with_a_restart_and_ten_without(tmp_path: Path, report: Report) -> None:
    with claiming_by_themselves(tmp_path) as fleet:
        report(kill_and_restart(fleet, 10, seed=3))
        report(kill_and_leave(fleet, 10, seed=4))


@pytest.mark.soak
def test_kills_around_the_assignments_and_acceptances(tmp_path: Path, report: Report) -> None:
    with claiming_by_themselves(tmp_path) as fleet:
        report(kill_and_restart(fleet, 10, seed=5, latest=0.8))
        report(kill_and_leave(fleet, 10, seed=6, latest=0.8))


def test_a_role_whose_agent_dies_is_filled_again_and_who_lost_it_acts_no_more(
    eager: CouncilFleet, report: Report
) -> None:
    council_id = eager.create("whoosh-1", {"role_name": "architect", "required_skills": ["general_development"]})
    old = role(eager.everywhere("it is active", council_id, is_formed), "architect")
    lost = eager.name_of(old["peer_id"])
    eager.kill(lost)
    killed = time.monotonic()

    def is_refilled(document: Document) -> bool:
        return is_formed(document) and bool(role(document, "architect")["peer_id"] != old["peer_id"])

    live = [name for name in eager.names if name != lost]
    new = role(eager.watch.wait("it is filled again", live, council_id, is_refilled)["whoosh-1"], "architect")
    took = time.monotonic() - killed
    eager.start(lost)
    eager.everywhere("all agree with who was away", council_id, is_refilled)
    assert (new["term"], new["n"]) > (old["term"], old["n"])
    stale = eager.report(lost, council_id, "completed", role_name="architect", term=old["term"], n=old["n"])
    assert (stale.status, stale.json()["reason"]) == (409, "stale")
    assert eager.watch.hands(council_id)[("whoosh-1", "architect")] == [old["peer_id"], new["peer_id"]]
    report(f"killed, and its role held by another at {len(live)} nodes {took:.1f} s later")


# -- a fleet cut in two ------------------------------------------------------------------------


@needs_cables
def test_a_fleet_cut_in_two_has_one_holder_per_role_after_healing(tmp_path: Path, report: Report) -> None:
    """Left a minority: one orchestrator that takes over whatever it sees, and one that wants a majority and would be
    first in line. Right the majority. Each side takes over what the other began, and the same role is given on both."""
    names = ("whoosh-first", "whoosh-second")
    keys = {name: create_key_file(tmp_path / name / "identity.key").peer_id for name in names}
    content, first = sorted(keys, key=keys.__getitem__)
    policies = {content: "any", first: "majority", "whoosh-right": "majority"}
    left, right = (content, first), ("whoosh-right", "agent-1", "agent-2")
    with open_cable() as cable:
        places = []
        for ip, within, side in ((LEFT, cable.left, left), (RIGHT, cable.right, right)):
            for number, name in enumerate(side):
                flags = ["--listen", f"/ip4/{ip}/tcp/{9000 + number}"]
                for known in (LEFT, RIGHT):
                    if (known, number) != (ip, 0):
                        flags += ["--bootstrap", f"/ip4/{known}/tcp/9000"]
                settings = {"P2PNODE_COUNCILS_TAKEOVER": policies.get(name, "majority")}
                places.append(Place(name, settings, tuple(flags), tuple(within)))
        with open_council_fleet(tmp_path, places) as fleet:
            began_left, began_right = fleet.create(content, "tpm", "writer"), fleet.create("whoosh-right", "tpm")
            fleet.given(first, began_left, "tpm")
            fleet.everywhere("the council is known", began_right, bool)
            cable.cut()
            cut = time.monotonic()
            heirs = {began_left: "whoosh-right", began_right: content}
            for council_id, side in ((began_left, right), (began_right, left)):
                heir = fleet.peer_ids[heirs[council_id]]

                def is_taken_over(document: Document, heir: str = heir) -> bool:
                    return (document["term"], document["owner"]) == (2, heir)

                fleet.watch.wait("the other side takes it over", side, council_id, is_taken_over)
            taken = time.monotonic() - cut
            for council_id, name, side in (
                *((began_left, first, left), (began_left, "agent-1", right)),
                *((began_right, first, left), (began_right, "agent-2", right)),
            ):
                disputed = "writer" if council_id == began_left else "tpm"
                answer = fleet.claim(name, council_id, disputed)
                assert answer.status == 202, answer

                def is_held(document: Document, peer: str = fleet.peer_ids[name], disputed: str = disputed) -> bool:
                    seat = role(document, disputed)
                    return (seat["peer_id"], seat["state"]) == (peer, "accepted")

                fleet.watch.wait(f"{name} holds {disputed} on its side", side, council_id, is_held)
            told = len(fleet.watch.told)
            cable.mend()
            mended = time.monotonic()
            took = 0.0
            for council_id, disputed, winner in (
                (began_left, "writer", "agent-1"),
                (began_right, "tpm", first),
            ):

                def is_settled(
                    document: Document,
                    owner: str = fleet.peer_ids[heirs[council_id]],
                    disputed: str = disputed,
                    winner: str = fleet.peer_ids[winner],
                ) -> bool:
                    held = role(document, disputed)["peer_id"]
                    return (document["owner"], document["term"], held) == (owner, 2, winner)

                fleet.watch.wait("the higher term's holder is everybody's", fleet.names, council_id, is_settled)
                took = time.monotonic() - mended
                at_loser = {first: "agent-2", "agent-1": first}[winner]
                assert any(
                    name == at_loser and document["council_id"] == council_id and disputed not in document["mine"]
                    for name, document in fleet.watch.told[told:]
                ), "who lost the role was not told"
            for council_id in heirs:
                fleet.everywhere("it is active", council_id, is_formed)
            assert not fleet.watch.faults()
            report(f"cut in two: both taken over after {taken:.1f} s; one holder per role {took:.1f} s after healing")
