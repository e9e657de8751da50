"""The doctor: each finding comes from its facts and from no others, and any facts give a diagnosis."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2pnode
from p2pnode.cli.offline import CODES as OFFLINE_CODES
from p2pnode.core.crossing import BROKER_CODES
from p2pnode.core.doctor import CHECKS, CODES, LEAST_FREE_BYTES, TWIN_SECONDS, diagnose, summary
from p2pnode.core.facts import (
    STARTING_SECONDS,
    BootstrapFacts,
    BridgeFacts,
    BrokerFacts,
    DialBack,
    DialFailure,
    Disk,
    Facts,
    Reachability,
    Refusal,
    RoadFacts,
    RoadsFacts,
    SourceFacts,
    SourceTrouble,
    TwinFacts,
)
from p2pnode.core.findings import EXIT_CODES, MOST_EVIDENCE, Finding, order
from p2pnode.core.joining import NOT_HERE
from tests.properties import many

PACKAGE = Path(p2pnode.__file__).parent
PAGE = PACKAGE.parent / "docs" / "doctor.md"

ONE, TWO = "/ip4/10.0.0.1/tcp/9000", "/ip4/10.0.0.2/tcp/9000"
HEALTHY = Facts(
    name="me",
    role="chorus",
    peer_id="12D3KooWme",
    addrs=("/ip4/10.0.0.9/tcp/9000/p2p/12D3KooWme",),
    uptime_seconds=3600.0,
    links=8,
    members={"alive": tuple(f"chorus-{n}" for n in range(33)), "left": ("chorus-33",)},
    sources=(
        SourceFacts("docker", "unix:///var/run/docker.sock", places=33),
        SourceFacts("mdns", "eth0", places=0),
    ),
    bootstraps=(BootstrapFacts(ONE, answered_as=("chorus-1",)), BootstrapFacts(TWO)),
    reachability=Reachability("reachable", ("/ip4/10.0.0.9/tcp/9000",)),
    clock_offsets={"chorus-1": 0.2, "chorus-2": -1.5, "chorus-3": 0.0},
    topics={"councils.forming": 5, "backbeat.status": 5},
    disk=Disk("/data", 50 << 30, 100 << 30),
    roads=RoadsFacts(
        {"gossip": RoadFacts("always", True), "nats": RoadFacts("fallback", True), "http": RoadFacts("off")},
        broker=BrokerFacts("nats://backbeat-nats:4222", True),
        bridged=True,
    ),
    bridge=BridgeFacts("12D3KooWimport", {"bridge-2": "12D3KooWimport"}),
)
ALONE = dataclasses.replace(
    HEALTHY,
    links=0,
    members={"alive": ("me",)},
    reachability=Reachability(),
    clock_offsets={},
    topics={"councils.forming": 0},
    sources=(SourceFacts("mdns", "eth0", places=0),),
    bootstraps=(),
    roads=None,
    bridge=None,
)
NOTHING = dataclasses.replace(ALONE, sources=())


def facts(base: Facts = HEALTHY, **change: Any) -> Facts:
    return dataclasses.replace(base, **change)


def found(what: Facts) -> dict[str, Finding]:
    """Findings by code; none comes twice where this is used."""
    findings = diagnose(what).findings
    assert len({finding.code for finding in findings}) == len(findings)
    return {finding.code: finding for finding in findings}


def only(what: Facts) -> Finding:
    (finding,) = diagnose(what).findings
    return finding


def down(addr: str, reason: str = "dial", error: str = "connection refused") -> BootstrapFacts:
    return BootstrapFacts(addr, error, reason)


def test_a_healthy_node_has_no_finding_and_every_check_was_made() -> None:
    diagnosis = diagnose(HEALTHY)
    assert (diagnosis.status, diagnosis.findings) == ("healthy", ())
    assert diagnosis.checked == ("links", *(check.name for check in CHECKS))
    assert summary(HEALTHY) == (
        "me: 33 live members, 8 links, reachable at /ip4/10.0.0.9/tcp/9000, 3 sources checked, "
        "connected to nats://backbeat-nats:4222"
    )


def test_what_there_are_no_facts_for_is_not_called_checked() -> None:
    checked = diagnose(facts(reachability=Reachability(), clock_offsets={}, disk=None)).checked
    assert {"reachability", "clock", "disk"}.isdisjoint(checked)
    assert "discovery sources" in checked


# -- where peers are -------------------------------------------------------------------


def test_alone_without_a_source_names_every_way_to_join() -> None:
    finding = only(NOTHING)
    assert (finding.code, finding.severity) == ("no-source", "failed")
    for way in ("--bootstrap /ip4/", "--mdns", "dns:tasks.SERVICE", "docker.sock", NOTHING.addrs[0]):
        assert way in finding.fix


def test_a_node_that_others_dial_needs_no_source() -> None:
    assert diagnose(facts(sources=(), bootstraps=())).findings == ()


def test_a_bootstrap_address_that_is_this_node_itself_is_no_source() -> None:
    itself = BootstrapFacts(ONE, "is this node itself", "self")
    for each in (itself, BootstrapFacts(ONE, answered_as=(NOTHING.name,))):
        finding = only(facts(NOTHING, bootstraps=(each,)))
        assert (finding.code, finding.severity) == ("no-source", "failed")
        assert finding.evidence == (f"the bootstrap address {ONE} leads to this node itself",)
        assert diagnose(facts(bootstraps=(each,))).status == "healthy"


def test_an_empty_bootstrap_file_is_no_source() -> None:
    finding = only(facts(NOTHING, sources=(SourceFacts("bootstrap", "/etc/peers", wanted=True),)))
    assert (finding.code, finding.evidence) == ("no-source", ("source bootstrap (/etc/peers) holds no address",))


@pytest.mark.parametrize(
    ("links", "bootstraps", "severity"),
    [
        (0, (down(ONE),), "failed"),
        (0, (down(ONE), BootstrapFacts(TWO)), "failed"),
        (3, (down(ONE), down(TWO)), "degraded"),
        (3, (down(ONE),), "degraded"),
        (3, (down(ONE), BootstrapFacts(TWO)), "note"),
        (3, (down(ONE), BootstrapFacts(TWO, "is this node itself", "self")), "degraded"),
    ],
)
def test_an_unreachable_bootstrap_weighs_by_what_else_there_is(
    links: int, bootstraps: tuple[BootstrapFacts, ...], severity: str
) -> None:
    finding = only(facts(HEALTHY if links else ALONE, links=links, bootstraps=bootstraps))
    assert (finding.code, finding.severity) == ("bootstrap-unreachable", severity)
    assert f"{ONE}: connection refused" in finding.evidence
    assert len(finding.evidence) == sum(each.reason == "dial" for each in bootstraps)


@pytest.mark.parametrize(
    ("reason", "words"), [("dial", "open its port"), ("dns", "does not resolve"), ("other-peer", "p2pnode id")]
)
def test_the_fix_of_an_unreachable_bootstrap_is_that_of_its_reason(reason: str, words: str) -> None:
    fixes = [only(facts(bootstraps=(down(ONE, each),))).fix for each in ("dial", "dns", "other-peer")]
    assert words in only(facts(bootstraps=(down(ONE, reason),))).fix
    assert sum(words in fix for fix in fixes) == 1


def test_an_address_that_answers_as_several_peers_is_a_virtual_one() -> None:
    finding = only(facts(bootstraps=(BootstrapFacts(ONE, answered_as=("b", "a", "b")), BootstrapFacts(TWO))))
    assert (finding.code, finding.severity) == ("virtual-ip", "degraded")
    assert ONE in finding.title
    assert finding.evidence == ("answered as a", "answered as b")
    assert "dns:tasks." in finding.fix


TROUBLE = SourceTrouble("docker-socket-forbidden", "/var/run/docker.sock: permission denied", "add the group")


@pytest.mark.parametrize(
    ("links", "wanted", "places", "severity"),
    [
        (0, False, 3, "failed"),
        (0, True, 0, "failed"),
        (4, True, 3, "degraded"),
        (4, False, 0, "degraded"),
        (4, False, 3, "note"),
    ],
)
def test_a_source_s_trouble_is_passed_through_and_weighs_by_what_it_keeps_from_us(
    links: int, wanted: bool, places: int, severity: str
) -> None:
    source = SourceFacts("docker", "unix:///var/run/docker.sock", wanted, places, (TROUBLE,))
    finding = only(facts(HEALTHY if links else ALONE, links=links, sources=(source,)))
    assert (finding.code, finding.severity) == (TROUBLE.code, severity)
    assert (finding.title, finding.fix) == (TROUBLE.problem, TROUBLE.fix)
    assert "unix:///var/run/docker.sock" in finding.evidence[0]
    assert str(places) in finding.evidence[0]


def test_each_trouble_of_each_source_is_told() -> None:
    other = SourceTrouble("virtual-ip", "svc resolves to the service's own address", "use tasks.svc")
    sources = (SourceFacts("docker", "d", troubles=(TROUBLE, other)), SourceFacts("dns", "svc", troubles=(other,)))
    assert sorted(finding.code for finding in diagnose(facts(sources=sources)).findings) == [
        "docker-socket-forbidden",
        "virtual-ip",
        "virtual-ip",
    ]


def idle(code: str, **change: Any) -> SourceFacts:
    """A source of mode `auto` that finds nothing for trouble."""
    return dataclasses.replace(SourceFacts("mdns", "eth0", troubles=(SourceTrouble(code, "why", "fix"),)), **change)


@pytest.mark.parametrize("code", sorted(NOT_HERE))
def test_a_source_that_is_not_to_be_had_here_is_no_finding_unless_asked_for_or_missed(code: str) -> None:
    assert diagnose(facts(sources=(idle(code),))).findings == ()
    assert only(facts(sources=(idle(code, wanted=True),))).severity == "degraded"
    assert only(facts(sources=(idle(code, places=2),))).severity == "note"
    assert found(facts(NOTHING, sources=(idle(code),))).keys() == {code, "no-source"}


def test_alone_with_a_source_that_cannot_look_and_was_not_asked_for_is_without_source() -> None:
    finding = found(facts(NOTHING, sources=(idle("docker-answer"),)))["no-source"]
    assert finding.evidence == ("source mdns (eth0) cannot look",)
    assert "no-source" not in found(facts(NOTHING, sources=(idle("docker-answer", wanted=True),)))


@pytest.mark.parametrize(("links", "severity"), [(0, "failed"), (2, "degraded")])
def test_a_dial_into_another_private_network_names_the_address(links: int, severity: str) -> None:
    failure = DialFailure(ONE, "network-key", "another network key lives there", "docker")
    base = HEALTHY if links else ALONE
    finding = only(facts(base, links=links, dial_failures=(failure,)))
    assert (finding.code, finding.severity) == ("network-key", severity)
    assert finding.evidence == (f"{ONE}: another network key lives there",)
    bootstrap = only(facts(base, links=links, bootstraps=(down(TWO, "network-key", "another key"),)))
    assert (bootstrap.code, bootstrap.severity, bootstrap.evidence) == (
        "network-key",
        severity,
        (f"{TWO}: another key",),
    )
    assert "network.key" in bootstrap.fix


@pytest.mark.parametrize(("links", "severity"), [(0, "failed"), (2, "note")])
def test_strangers_are_counted_by_address_the_most_frequent_first(links: int, severity: str) -> None:
    finding = only(facts(HEALTHY if links else ALONE, links=links, strangers={"10.0.0.7": 1, "10.0.0.8": 40}))
    assert (finding.code, finding.severity) == ("network-key", severity)
    assert [line.split()[0] for line in finding.evidence] == ["40", "1"]
    assert "10.0.0.8" in finding.evidence[0]


def test_alone_with_sources_that_work_shows_the_errors_grouped() -> None:
    refused = [DialFailure(f"/ip4/10.0.0.{n}/tcp/9000", "dial", "connection refused", "docker") for n in range(5)]
    late = DialFailure(ONE, "dial", "no answer within 10 s", "mdns")
    sources = (SourceFacts("docker", "d", places=5), SourceFacts("mdns", "eth0", places=1))
    finding = only(facts(ALONE, sources=sources, dial_failures=(late, *refused)))
    assert (finding.code, finding.severity) == ("alone", "failed")
    assert "6 places known" in finding.title
    assert finding.evidence[2:] == (
        "5 places named by docker: connection refused",
        "1 place named by mdns: no answer within 10 s",
    )


def test_alone_where_no_source_knows_of_anybody_says_so() -> None:
    finding = only(ALONE)
    assert (finding.code, finding.severity) == ("alone", "failed")
    assert finding.evidence == ("source mdns (eth0) knows 0 places",)
    assert "no source knows of any" in finding.title


def test_alone_is_not_said_where_something_else_explains_it() -> None:
    for change in (
        {"bootstraps": (down(ONE),)},
        {"sources": (SourceFacts("docker", "d", wanted=True, troubles=(TROUBLE,)),)},
        {"strangers": {"10.0.0.7": 1}},
    ):
        assert "alone" not in found(facts(ALONE, **change)), change
    full = found(facts(ALONE, disk=Disk("/data", 0, 10, "No space left on device")))
    assert full.keys() == {"alone", "disk-full"}, "a full disk keeps nobody away"


def test_in_the_first_seconds_a_node_is_starting_and_later_alone() -> None:
    young = diagnose(facts(ALONE, uptime_seconds=STARTING_SECONDS - 0.1))
    assert [(each.code, each.severity) for each in young.findings] == [("starting", "note")]
    assert young.status == "healthy"
    assert only(facts(ALONE, uptime_seconds=STARTING_SECONDS)).code == "alone"
    assert found(facts(NOTHING, uptime_seconds=1)).keys() == {"no-source"}, "which no waiting mends"


# -- others, as seen from here ---------------------------------------------------------


def test_a_node_that_nobody_reaches_says_who_tried_what_and_where_it_is_seen() -> None:
    tried = (DialBack("chorus-2", (ONE, TWO), "/ip4/192.0.2.7", "timed out"), DialBack("chorus-1", (ONE,)))
    finding = only(facts(reachability=Reachability("unreachable", (), tried)))
    assert (finding.code, finding.severity) == ("not-reachable", "degraded")
    assert finding.evidence == (
        f"chorus-1 tried {ONE}: no answer",
        f"chorus-2 tried {ONE}, {TWO}: timed out; it sees this node at /ip4/192.0.2.7",
    )
    for way in ("--announce", "network.announce_cidr", "open the port"):
        assert way in finding.fix


@pytest.mark.parametrize(
    ("offsets", "severity", "words"),
    [
        ({"a": 3600.0}, "degraded", "either may be wrong"),
        ({"a": 3600.0, "b": 3601.0}, "degraded", "most of its neighbours"),
        ({"a": -90.0, "b": -91.0, "c": 0.0}, "degraded", "most of its neighbours"),
        ({"a": 3600.0, "b": -3600.0}, "degraded", "most of its neighbours"),
        ({"a": 3600.0, "b": 0.5}, "note", "of a differ"),
        ({"a": -3600.0, "b": 0.5}, "note", "of a differ"),
        ({"a": -61.0, "b": 0.5, "c": 59.0}, "note", "of a differ"),
    ],
)
def test_a_wrong_clock_is_ours_or_a_neighbour_s(offsets: dict[str, float], severity: str, words: str) -> None:
    finding = only(facts(clock_offsets=offsets))
    assert (finding.code, finding.severity) == ("clock", severity)
    assert words in finding.title
    assert "chrony" in finding.fix
    told = {line.split()[3]: float(line.split()[5]) for line in finding.evidence}
    wrong = {name: abs(offset) for name, offset in offsets.items() if severity == "degraded" or abs(offset) > 60}
    assert told == wrong
    behind = {line.split()[3] for line in finding.evidence if "behind" in line}
    assert behind == {name for name in wrong if offsets[name] < 0}


def test_clocks_that_nearly_agree_are_good() -> None:
    assert diagnose(facts(clock_offsets={"a": 60.0, "b": -60.0})).status == "healthy"


def test_a_twin_is_named_with_where_and_when_and_fades_once_it_is_silent() -> None:
    twin = TwinFacts("me-too", (ONE,), "2026-11-23T12:00:00Z", 5.0)
    finding = only(facts(twin=twin))
    assert (finding.code, finding.severity) == ("twin", "degraded")
    assert all(part in finding.evidence[0] for part in ("me-too", ONE, "2026-11-23T12:00:00Z"))
    assert "--data-dir" in finding.fix
    assert only(facts(twin=dataclasses.replace(twin, seconds_ago=TWIN_SECONDS + 1))).severity == "note"


def test_a_topic_without_peers_is_named_with_how_many_there_are() -> None:
    finding = only(facts(topics={"councils.forming": 3, "hmmm.x": 0, "a.b": 0}))
    assert (finding.code, finding.severity) == ("no-topic-peers", "degraded")
    assert finding.evidence == ("a.b: none of 8 connected peers", "hmmm.x: none of 8 connected peers")
    young = only(facts(topics={"hmmm.x": 0}, uptime_seconds=1))
    assert (young.code, young.severity) == ("no-topic-peers", "note")


@pytest.mark.parametrize(("dead", "noted"), [(1, False), (2, True), (8, True)])
def test_many_dead_members_are_named(dead: int, noted: bool) -> None:
    names = tuple(f"chorus-{n}" for n in range(dead))
    members = {"alive": ("a", "b"), "suspect": ("c",), "dead": names, "left": ("d", "e", "f")}
    findings = found(facts(members=members))
    assert findings.keys() == ({"dead-members"} if noted else set())
    if noted:
        assert findings["dead-members"].evidence == names
        assert findings["dead-members"].severity == "note"


def test_a_third_of_the_members_dead_is_not_yet_many() -> None:
    assert diagnose(facts(members={"alive": ("a", "b"), "dead": ("c",)})).findings == ()


# -- this machine ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disk", "severity"),
    [
        (Disk("/data", LEAST_FREE_BYTES - 1, 1 << 30), "degraded"),
        (Disk("/data", 9 << 30, 1000 << 30), "degraded"),
        (Disk("/data", 50 << 30, 100 << 30, "Read-only file system"), "failed"),
        (Disk("/data", 0, 1 << 30, "No space left on device"), "failed"),
        (Disk("/data", 0, 0), "degraded"),
    ],
)
def test_a_disk_without_room_is_told_with_path_and_bytes(disk: Disk, severity: str) -> None:
    finding = only(facts(disk=disk))
    assert (finding.code, finding.severity) == ("disk-full", severity)
    assert f"{disk.free_bytes} of {disk.total_bytes} bytes" in finding.evidence[-1]
    assert "/data" in finding.evidence[0]
    assert disk.error in finding.evidence[0]


def test_a_disk_with_room_is_good_however_small_or_large() -> None:
    for disk in (Disk("/data", LEAST_FREE_BYTES, 1 << 30), Disk("/data", 10 << 30, 1000 << 30)):
        assert diagnose(facts(disk=disk)).status == "healthy"


# -- any facts -------------------------------------------------------------------------

words = st.text(max_size=8)
lists = st.lists(words, max_size=4).map(tuple)
numbers = st.floats(allow_nan=True, allow_infinity=True)
reasons = st.sampled_from(["", "dial", "dns", "other-peer", "network-key", "self", "?"])
troubles = st.builds(SourceTrouble, words, words, words)
roads = st.dictionaries(
    st.sampled_from(["gossip", "nats", "http"]),
    st.builds(RoadFacts, st.sampled_from(["off", "fallback", "always"]), st.booleans(), words),
)
codes = words | st.sampled_from([code.removeprefix("nats-") for code in BROKER_CODES])
brokers = st.none() | st.builds(BrokerFacts, words, st.booleans(), codes, words, words)
any_facts = st.builds(
    Facts,
    name=words,
    role=words,
    peer_id=words,
    addrs=lists,
    uptime_seconds=numbers,
    links=st.integers(-1, 40),
    members=st.dictionaries(st.sampled_from(["alive", "suspect", "dead", "left", "?"]), lists),
    sources=st.lists(
        st.builds(
            SourceFacts, words, words, st.booleans(), st.integers(0, 9), st.lists(troubles, max_size=3).map(tuple)
        ),
        max_size=4,
    ).map(tuple),
    bootstraps=st.lists(st.builds(BootstrapFacts, words, words, reasons, lists), max_size=4).map(tuple),
    dial_failures=st.lists(st.builds(DialFailure, words, reasons, words, words), max_size=40).map(tuple),
    reachability=st.builds(
        Reachability,
        st.sampled_from(["unknown", "reachable", "unreachable"]),
        lists,
        st.lists(st.builds(DialBack, words, lists, words, words), max_size=3).map(tuple),
    ),
    clock_offsets=st.dictionaries(words, numbers, max_size=5),
    twin=st.none() | st.builds(TwinFacts, words, lists, words, numbers),
    topics=st.dictionaries(words, st.integers(-1, 3), max_size=4),
    disk=st.none() | st.builds(Disk, words, st.integers(-1, 2**63), st.integers(-1, 2**63), words),
    strangers=st.dictionaries(words, st.integers(0, 2**40), max_size=40),
    roads=st.none()
    | st.builds(RoadsFacts, roads, words, st.integers(-1, 9), brokers, st.integers(-1, 9), carried=st.booleans()),
    bridge=st.none()
    | st.builds(
        BridgeFacts,
        words,
        st.dictionaries(words, words, max_size=5),
        st.booleans(),
        numbers,
        st.integers(-1, 9),
        st.integers(-1, 9),
        st.lists(st.builds(Refusal, words, words | st.just("stamp"), words, numbers), max_size=20).map(tuple),
    ),
)


@many
@given(any_facts)
def test_any_facts_give_a_diagnosis_whose_status_and_order_are_those_of_its_findings(what: Facts) -> None:
    diagnosis = diagnose(what)
    severities = [finding.severity for finding in diagnosis.findings]
    assert severities == sorted(severities, key=["failed", "degraded", "note"].index)
    expected = "failed" if "failed" in severities else "degraded" if "degraded" in severities else "healthy"
    assert diagnosis.status == expected
    assert diagnosis.status in EXIT_CODES
    assert list(diagnosis.findings) == sorted(set(diagnosis.findings), key=order)
    assert diagnose(what) == diagnosis
    passed_through = {trouble.code for source in what.sources for trouble in source.troubles}
    assert {finding.code for finding in diagnosis.findings} <= {*CODES, *passed_through}
    assert all(len(finding.evidence) <= MOST_EVIDENCE for finding in diagnosis.findings)
    assert summary(what)


@many
@given(any_facts)
def test_a_node_with_no_link_never_passes_for_healthy_after_its_start(what: Facts) -> None:
    alone = dataclasses.replace(what, links=0, uptime_seconds=STARTING_SECONDS)
    carried = what.roads is not None and what.roads.carried
    assert diagnose(alone).status in ({"failed", "degraded"} if carried else {"failed"})


@many
@given(any_facts, st.randoms(use_true_random=False))
def test_the_order_of_the_facts_is_not_that_of_the_findings(what: Facts, rng: Any) -> None:
    sources = list(what.sources)
    rng.shuffle(sources)
    codes = [(each.severity, each.code, each.title) for each in diagnose(what).findings]
    assert [
        (each.severity, each.code, each.title)
        for each in diagnose(dataclasses.replace(what, sources=tuple(sources))).findings
    ] == codes


# -- the page --------------------------------------------------------------------------


def trouble_codes() -> set[str]:
    """The codes that sources report: the first argument of every `Trouble(…)`, and the reasons of the Docker API's
    errors, which become codes."""
    trees = {file.name: ast.parse(file.read_text()) for file in sorted((PACKAGE / "discovery").glob("*.py"))}
    trees["finder.py"] = ast.parse((PACKAGE / "node" / "finder.py").read_text())
    named: dict[str, str] = {}
    for tree in trees.values():
        for each in tree.body:
            if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
                if isinstance(each.value, ast.Constant) and isinstance(each.value.value, str):
                    named[each.targets[0].id] = each.value.value
    codes = set()
    for file, tree in trees.items():
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            if call.func.id == "Trouble":
                given = [*call.args[:1], *(each.value for each in call.keywords if each.arg == "code")]
            elif call.func.id == "Unavailable" and file == "docker_api.py":
                given = [each.value for each in call.keywords if each.arg == "reason"]
            else:
                continue
            for part in (each for node in given for each in ast.walk(node)):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    codes.add(part.value)
                elif isinstance(part, ast.Name) and part.id in named:
                    codes.add(named[part.id])
    return codes


def test_the_codes_of_the_sources_are_found() -> None:
    """The test below would be empty if this failed."""
    told = {"no-multicast-interface", "docker-socket-missing", "docker-socket-forbidden", "docker-answer", "dns-name"}
    assert told | {"bootstrap-file", "virtual-ip", "no-network-in-reach", "no-such-network"} <= trouble_codes()


def test_every_code_has_its_section_in_the_page() -> None:
    headings = re.findall(r"^### (.+)$", PAGE.read_text(), re.MULTILINE)
    sections = {code for heading in headings for code in re.findall(r"`([a-z-]+)`", heading)}
    own = {*CODES, *OFFLINE_CODES}
    assert own <= sections, f"missing: {sorted(own - sections)}"
    assert trouble_codes() <= sections, f"missing: {sorted(trouble_codes() - sections)}"
