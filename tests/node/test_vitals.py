"""The node's knowledge as facts: names for peer ids, a disk that is really written, a thread that may hang."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path

import pytest
import trio

from p2pnode.core.doctor import diagnose
from p2pnode.core.facts import Disk, Reachability
from p2pnode.core.membership.record import Member, MemberRecord, MemberState
from p2pnode.core.peerid import PeerId
from p2pnode.node.disk import look_at_disk
from p2pnode.node.vitals import DiskCheck, doctor_document, facts_of, names_of, source_facts, twin_facts
from p2pnode.ports import Place, SourceReport, Trouble
from tests.node.fakes import START_NS

ME, ALICE, BOB, CAROL = (PeerId(f"12D3KooW{name}") for name in ("memememe", "alicealice", "bobbob", "carolcarol"))


def record_of(peer: PeerId, name: str) -> MemberRecord:
    return MemberRecord(peer, 1, name, "chorus", "online", ("/ip4/10.0.0.1/tcp/9000",))


def member(peer: PeerId, name: str, state: MemberState = MemberState.ALIVE) -> Member:
    return Member(record_of(peer, name), state, "gossip", START_NS, START_NS)


MEMBERS = {
    ME: member(ME, "me"),
    ALICE: member(ALICE, "twice"),
    BOB: member(BOB, "twice"),
    CAROL: member(CAROL, "carol", MemberState.DEAD),
}


# -- the disk --------------------------------------------------------------------------


def test_a_good_disk_is_told_as_the_system_tells_it_and_nothing_is_left_there(tmp_path: Path) -> None:
    disk = look_at_disk(tmp_path)
    assert (disk.path, disk.error) == (str(tmp_path), "")
    assert 0 < disk.free_bytes <= disk.total_bytes
    assert disk.total_bytes == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_or_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    assert look_at_disk(tmp_path / "missing").error == "No such file or directory"
    # /proc takes no files, whoever asks.
    assert look_at_disk(Path("/proc")).error


async def test_a_disk_is_looked_at_beside_the_event_loop(tmp_path: Path) -> None:
    looked_in: list[threading.Thread] = []

    def look(directory: Path) -> Disk:
        looked_in.append(threading.current_thread())
        return Disk(str(directory), 1, 2)

    assert await DiskCheck(tmp_path, look).run() == Disk(str(tmp_path), 1, 2)
    assert looked_in[0] is not threading.current_thread()


async def test_a_disk_that_hangs_holds_up_nobody_and_takes_one_thread(tmp_path: Path) -> None:
    released = threading.Event()
    looks: list[Path] = []

    def hang(directory: Path) -> Disk:
        looks.append(directory)
        released.wait(60)
        return Disk(str(directory), 1, 2)

    check = DiskCheck(tmp_path, hang, patience_seconds=0.05)
    try:
        for _ in range(3):
            with trio.fail_after(30):
                disk = await check.run()
            assert disk.error == "it took no block within 0.05 s"
        assert looks == [tmp_path]
    finally:
        released.set()


# -- the facts -------------------------------------------------------------------------


def test_each_member_has_a_name_of_its_own() -> None:
    names = names_of({**MEMBERS, PeerId("12D3KooWnameless"): member(PeerId("12D3KooWnameless"), "")})
    assert names[ME] == "me"
    assert names[ALICE] == "twice (…ealice)"
    assert len(set(names.values())) == 5
    assert names[PeerId("12D3KooWnameless")] == "(…meless)"


def test_facts_name_members_and_count_places() -> None:
    report = SourceReport("docker", "unix:///d", (Place("/ip4/10.0.0.2/tcp/9000"),), (Trouble("c", "p", "f"),))
    facts = facts_of(
        MEMBERS[ME].record,
        ["/ip4/10.0.0.1/tcp/9000/p2p/me"],
        MEMBERS,
        2,
        uptime_seconds=60,
        sources=[source_facts(report, wanted=True)],
        clock_offsets={ALICE: 1.0, BOB: 2.0, PeerId("12D3KooWunknown"): 3.0},
    )
    assert facts.members == {"alive": ("me", "twice (…bobbob)", "twice (…ealice)"), "dead": ("carol",)}
    assert facts.clock_offsets == {"twice (…ealice)": 1.0, "twice (…bobbob)": 2.0, "…nknown": 3.0}
    (source,) = facts.sources
    assert (source.method, source.subject, source.wanted, source.places) == ("docker", "unix:///d", True, 1)
    assert [dataclasses.astuple(each) for each in source.troubles] == [("c", "p", "f")]
    assert facts.reachability == Reachability()


def test_a_twin_is_told_with_when_it_was_heard_of() -> None:
    twin = twin_facts(MEMBERS[CAROL].record, seen_ns=START_NS, now_ns=START_NS + 5 * 10**9)
    assert (twin.name, twin.seconds_ago) == ("carol", 5.0)
    assert twin.seen_at.startswith("2025-11-23T12:00:00")
    assert twin_facts(MEMBERS[CAROL].record, seen_ns=START_NS, now_ns=0).seconds_ago == 0


@pytest.mark.parametrize(("links", "status", "exit_code"), [(3, "healthy", 0), (0, "failed", 2)])
def test_the_document_is_the_diagnosis(links: int, status: str, exit_code: int) -> None:
    facts = facts_of(MEMBERS[ME].record, [], {ME: MEMBERS[ME]}, links, uptime_seconds=60)
    document = doctor_document(facts, START_NS)
    diagnosis = diagnose(facts)
    assert (document["status"], document["exit_code"]) == (status, exit_code)
    assert [each["code"] for each in document["findings"]] == [each.code for each in diagnosis.findings]
    assert all(each.keys() == {"code", "severity", "title", "evidence", "fix"} for each in document["findings"])
    assert document["checked"] == list(diagnosis.checked)
    assert document["at"].startswith("2025-11-23T12:00:00")
    assert document["summary"].startswith("me: 1 live member")
