"""Sources at work: what they find is dialled and told, and one that fails keeps nobody from the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.membership.record import MemberRecord
from p2pnode.core.peerid import PeerId
from p2pnode.identity import Identity
from p2pnode.node.finder import RESTART_SECONDS, Chosen, Finder
from p2pnode.ports import FoundAgent, Method, Place, Report, SourceReport, Trouble
from tests.node.fakes import open_fleet, until

HERE, THERE = "/ip4/10.1.0.1/tcp/9000", "/ip4/10.1.0.2/tcp/9000"
ANNA, BELA = PeerId(Identity(b"a" * 32).peer_id), PeerId(Identity(b"b" * 32).peer_id)
AGENT = FoundAgent("abcdefghijkl", "CHORUS-Task-1", "http://10.1.0.1:8080", "10.1.0.1:9000", "docker-unified-stack")


class Scripted:
    """`ports.Source`: says what it is told to."""

    def __init__(self, method: Method = "dns", subject: str = "tasks.chorus", *said: SourceReport) -> None:
        self.method: Method = method
        self.subject = subject
        self.said = said
        self.runs = 0
        self.report: Report | None = None

    async def run(self, report: Report) -> None:
        self.runs += 1
        self.report = report
        for each in self.said:
            report(each)
        await trio.sleep_forever()


class Failing(Scripted):
    async def run(self, report: Report) -> None:
        await super_run_once(self, report)
        raise ValueError("a bug")


async def super_run_once(source: Scripted, report: Report) -> None:
    source.runs += 1
    for each in source.said:
        report(each)
    await trio.sleep(1.0)


def says(*addrs: str, method: Method = "dns", subject: str = "tasks.chorus", took: float | None = None) -> SourceReport:
    return SourceReport(method, subject, tuple(map(Place, addrs)), took_seconds=took)


def record(peer: PeerId, *addrs: str) -> MemberRecord:
    return MemberRecord(peer, 1, "x", "chorus", "online", addrs)


def finder(*sources: Scripted, configured: Sequence[str] = ()) -> tuple[Finder, list[set[str]]]:
    found: list[set[str]] = []

    def note(addrs: Iterable[str]) -> None:
        found.append(set(addrs))

    return Finder(configured, [Chosen(source, True) for source in sources], note), found


def test_all_that_all_sources_find_is_handed_over_when_it_changes() -> None:
    made, found = finder(Scripted(), Scripted("docker", "unix:///x"))
    made.report(says(HERE))
    made.report(says(HERE))
    made.report(says(THERE, method="docker", subject="unix:///x"))
    made.report(says())
    assert found == [{HERE}, {HERE, THERE}, {THERE}]


def test_looks_and_finds_are_counted_by_method() -> None:
    made, _ = finder(Scripted())
    made.report(says(HERE, took=0.5))
    made.report(says(HERE, THERE, took=0.25))
    made.report(says(THERE, method="mdns", subject="eth0"))
    assert (made.counted, made.looks, made.look_seconds) == ({"dns": 2, "mdns": 1}, {"dns": 2}, {"dns": 0.75})


def test_whoever_a_source_named_or_located_is_known_by_that_source() -> None:
    made, _ = finder(Scripted(), configured=[f"{HERE}/p2p/{ANNA}"])
    made.report(says(THERE))
    made.note([record(ANNA), record(BELA, "/ip4/10.9.9.9/tcp/1", THERE)], {})
    assert (made.source_of(ANNA), made.source_of(BELA)) == ("bootstrap", "dns")
    made.report(says())
    assert made.source_of(BELA) == "dns", "it stays who found it"
    assert made.source_of(PeerId("nobody")) is None


def test_who_answered_at_a_found_address_is_known_by_its_source() -> None:
    made, _ = finder(Scripted("docker", "unix:///x"))
    made.report(says(HERE, method="docker", subject="unix:///x"))
    made.note([record(ANNA, "/ip4/172.18.0.3/tcp/9000")], {HERE: [ANNA], THERE: [BELA]})
    assert (made.source_of(ANNA), made.source_of(BELA)) == ("docker", None)


def test_the_document_shows_places_agents_and_troubles() -> None:
    made, _ = finder(Scripted("docker", "unix:///x"))
    trouble = Trouble("no-tasks", "CHORUS_chorus has no running task", "start it")
    made.report(SourceReport("docker", "unix:///x", (Place(HERE, AGENT),), (trouble,)))
    document = made.document("auto", lambda addr: ("unreached", "connection refused"))
    assert document == {
        "mode": "auto",
        "sources": [
            {
                "method": "docker",
                "subject": "unix:///x",
                "wanted": True,
                "state": "failing",
                "places": [
                    {
                        "addr": HERE,
                        "peer_id": None,
                        "name": "CHORUS-Task-1",
                        "agent_id": "abcdefghijkl",
                        "endpoint": "http://10.1.0.1:8080",
                        "state": "unreached",
                        "error": "connection refused",
                    }
                ],
                "troubles": [{"code": "no-tasks", "problem": trouble.problem, "fix": "start it"}],
            }
        ],
    }


async def test_a_source_that_fails_starts_anew_and_keeps_nobody_from_the_others(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    failing, fine = Failing("dns", "tasks.chorus", says(HERE)), Scripted("mdns", "eth0")
    made, found = finder(failing, fine)
    with trio.move_on_after(3 * (1.0 + RESTART_SECONDS)):
        await made.run()
    assert failing.runs >= 3
    assert fine.runs == 1
    assert found == [{HERE}], "what it found stays"
    (told,) = [trouble for report in made.reports() for trouble in report.troubles]
    assert (told.code, "ValueError" in told.problem) == ("source-failed", True)
    assert "a bug" in caplog.text


async def test_two_nodes_meet_by_what_a_source_finds(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add(role="whoosh")
        where = first.addr.rpartition("/p2p/")[0]
        second = fleet.add(sources=[Scripted("docker", "unix:///x", says(where, method="docker", subject="unix:///x"))])
        fleet.start(first, second)
        await until(lambda: len(first.node.peers()) == len(second.node.peers()) == 2)
        sources = {peer["peer_id"]: peer["source"] for peer in second.node.peers()}
        assert sources[first.host.peer_id] == "docker"
        (place,) = second.node.discovery()["sources"][0]["places"]
        assert (place["addr"], place["state"]) == (where, "linked")
        metrics = second.node.metrics()
        assert metrics['whoosh_agent_discovery_total{method="docker"}'] == 1
        assert metrics['p2pnode_dials_total{why="found",result="reached"}'] == 1


async def test_islands_that_see_the_same_list_become_one(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        islands = [[fleet.add() for _ in range(4)] for _ in range(3)]
        everybody = [node for island in islands for node in island]
        places = [node.addr.rpartition("/p2p/")[0] for node in everybody]
        for island in islands:
            fleet.start(*(fleet.add(bootstrap=[island[0].addr]) for _ in range(2)))
        watcher = fleet.add(sources=[Scripted("dns", "tasks.chorus", says(*places))])
        fleet.start(*everybody, watcher)
        await until(lambda: len(watcher.node.peers()) == len(everybody) + 6 + 1)
        await until(lambda: all(len(node.node.peers()) == len(everybody) + 6 + 1 for node in everybody))
