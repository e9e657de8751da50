"""DNS as a source: all addresses of a name, whatever its server does."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from random import Random

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.discovery import dns_lookup
from p2pnode.discovery.dns import DnsSource, tasks_behind, uses_docker_dns
from p2pnode.discovery.dns_lookup import Found, candidates, system_resolver
from p2pnode.discovery.dns_query import Address, Outcome, query
from p2pnode.discovery.resolv_conf import Servers, parse_resolv_conf
from tests.discovery.dns_server import DnsServer, Script, open_dns_server, wire_of, zone
from tests.discovery.reports import addrs, codes, running
from tests.properties import many, some

NAME = "tasks.CHORUS_chorus"
QUICK = 0.02
"""Longest pause between two looks, in seconds, where a test needs several."""


async def knows_nothing(name: str) -> Found:
    """A system's own lookup on a machine whose /etc/hosts is empty."""
    return Found(Outcome.NO_NAME, evidence="nor does the system's own lookup know it (Name or service not known)")


def source(server: DnsServer, name: str = NAME, **more: object) -> DnsSource:
    given_or_default: dict[str, object] = {
        "nameservers": ["127.0.0.1"],
        "nameserver_port": server.port,
        "most_seconds": QUICK,
        "rng": Random(1),
        "ask_system": knows_nothing,
        **more,
    }
    return DnsSource(name, 9000, **given_or_default)  # type: ignore[arg-type]


def task_addresses(count: int) -> list[str]:
    first = ipaddress.IPv4Address("10.0.1.3")
    return [str(first + each) for each in range(count)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed sooner than in earnest."""
    monkeypatch.setattr(dns_lookup, "DNS_SECONDS", 0.5)
    monkeypatch.setattr(dns_lookup, "ATTEMPT_SECONDS", 0.2)
    monkeypatch.setattr(dns_lookup, "GRACE_SECONDS", 0.1)


async def test_every_address_of_both_families_is_a_place_in_a_stable_order() -> None:
    records = {NAME: ["10.0.1.12", "10.0.1.3", "fd00::5", "10.0.1.4", "fd00::2"]}
    async with open_dns_server(zone(records)) as server, running(source(server)) as reports:
        report = await reports.first()
    assert addrs(report) == [
        "/ip4/10.0.1.3/tcp/9000",
        "/ip4/10.0.1.4/tcp/9000",
        "/ip4/10.0.1.12/tcp/9000",
        "/ip6/fd00::2/tcp/9000",
        "/ip6/fd00::5/tcp/9000",
    ]
    assert (report.method, report.subject, report.troubles) == ("dns", NAME, ())
    assert report.took_seconds is not None
    assert set(server.asked[:2]) == {(f"{NAME}.", "A", "udp"), (f"{NAME}.", "AAAA", "udp")}


@pytest.mark.parametrize("edns", [True, False], ids=["edns", "server-without-edns"])
async def test_more_addresses_than_a_datagram_holds_come_over_tcp(edns: bool) -> None:
    wanted = task_addresses(400)
    async with open_dns_server(zone({NAME: wanted}, edns=edns)) as server, running(source(server)) as reports:
        report = await reports.first()
    assert addrs(report) == [f"/ip4/{each}/tcp/9000" for each in wanted]
    assert report.troubles == ()
    assert (f"{NAME}.", "A", "tcp") in server.asked


async def test_34_addresses_need_no_tcp_where_the_server_knows_edns() -> None:
    async with open_dns_server(zone({NAME: task_addresses(34)})) as server, running(source(server)) as reports:
        report = await reports.first()
    assert len(report.places) == 34
    assert "tcp" not in {carrier for _, _, carrier in server.asked}


async def test_4000_addresses_are_all_taken() -> None:
    async with open_dns_server(zone({NAME: task_addresses(4000)})) as server, running(source(server)) as reports:
        report = await reports.until(lambda report: bool(report.places))
    assert len(report.places) == 4000


async def test_the_addresses_are_bounded() -> None:
    first = ipaddress.IPv4Address("10.0.0.1")

    async def too_many(name: str) -> Found:
        addresses: tuple[Address, ...] = tuple(first + each for each in range(10_001))
        return Found(Outcome.FOUND, {4: dns_lookup.ordered(addresses), 6: (ipaddress.ip_address("::1"),)})

    async with open_dns_server(zone({})) as server, running(source(server, ask_system=too_many)) as reports:
        report = await reports.first()
    assert len(report.places) == 10_000


async def test_a_long_ttl_is_not_believed() -> None:
    async with open_dns_server(zone({NAME: ["10.0.1.3"]}, ttl=600)) as server, running(source(server)) as reports:
        await reports.first()
        server.script = zone({NAME: ["10.0.1.9"]}, ttl=600)
        await reports.until(lambda report: addrs(report) == ["/ip4/10.0.1.9/tcp/9000"])


@pytest.mark.parametrize(
    ("ttl", "most", "least_pause", "most_pause"),
    [
        (0, 10.0, 1.0, 1.0),
        (5, 10.0, 4.0, 5.0),
        (600, 10.0, 8.0, 10.0),
        (600, 0.5, 0.5, 0.5),
        (1 << 30, 10.0, 8.0, 10.0),
    ],
)
async def test_the_pause_follows_the_ttl_within_its_bounds(
    ttl: int, most: float, least_pause: float, most_pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    slept = trio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        slept.set()
        await trio.sleep_forever()

    async with open_dns_server(zone({NAME: ["10.0.1.3"]}, ttl=ttl)) as server:
        monkeypatch.setattr("p2pnode.discovery.dns.trio.sleep", sleep)
        async with running(source(server, most_seconds=most)):
            with trio.fail_after(60):
                await slept.wait()
    assert least_pause <= pauses[0] <= most_pause


async def test_a_name_that_does_not_exist_is_a_trouble_that_says_who_said_so() -> None:
    async with open_dns_server(zone({})) as server, running(source(server)) as reports:
        report = await reports.first()
    assert report.places == ()
    assert codes(report) == ["dns-name"]
    trouble = report.troubles[0]
    assert f"dns:{NAME} is no known name: 127.0.0.1 port {server.port} says NXDOMAIN" in trouble.problem
    assert "the system's own lookup" in trouble.problem
    assert "docker service ls" in trouble.fix


async def test_a_name_without_addresses_is_a_trouble() -> None:
    async with open_dns_server(zone({"chorus": []})) as server, running(source(server, "chorus")) as reports:
        report = await reports.first()
    assert codes(report) == ["dns-name"]
    assert "has no address" in report.troubles[0].problem


async def test_an_optional_name_that_does_not_exist_is_no_trouble_but_a_failing_server_is() -> None:
    async with open_dns_server(zone({})) as server, running(source(server, optional=True)) as reports:
        assert (await reports.first()).troubles == ()
        server.script = zone({}, rcodes={NAME: "SERVFAIL"})
        report = await reports.until(lambda report: bool(report.troubles))
        assert "SERVFAIL" in report.troubles[0].problem
        server.script = zone({NAME: ["10.0.1.3"]})
        report = await reports.until(lambda report: bool(report.places))
        assert report.troubles == ()


async def test_the_last_places_stay_while_the_server_fails() -> None:
    async with open_dns_server(zone({NAME: ["10.0.1.3"]})) as server, running(source(server)) as reports:
        good = await reports.first()
        server.script = zone({}, rcodes={NAME: "SERVFAIL"})
        await reports.until(lambda report: bool(report.troubles))
        for _ in range(6):
            report = await reports.next()
            assert report.places == good.places
            assert codes(report) == ["dns-name"]
        server.script = zone({NAME: ["10.0.1.4"]})
        report = await reports.until(lambda report: not report.troubles)
        assert addrs(report) == ["/ip4/10.0.1.4/tcp/9000"]


@pytest.mark.parametrize("optional", [False, True])
async def test_a_name_gone_for_more_than_three_looks_has_no_places(optional: bool) -> None:
    script = zone({NAME: ["10.0.1.3"]})
    async with open_dns_server(script) as server, running(source(server, optional=optional)) as reports:
        await reports.first()
        told = len(reports.all)
        server.script = zone({})
        await reports.until(lambda report: not report.places)
    # A look may have been under way when the name went.
    kept = [report for report in reports.all[told:] if report.places]
    assert 3 <= len(kept) <= 4
    assert sum(bool(report.troubles) for report in reports.all) == (0 if optional else 4)


async def test_a_family_whose_server_fails_keeps_its_addresses() -> None:
    good, bad = zone({NAME: ["10.0.1.4", "fd00::9"]}), zone({}, rcodes={NAME: "SERVFAIL"})

    def fails_for_a(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes] | None:
        script = bad if question.question[0].rdtype == dns.rdatatype.A else good
        return script(question, over_tcp)

    script = zone({NAME: ["10.0.1.3", "fd00::2"]})
    async with open_dns_server(script) as server, running(source(server)) as reports:
        await reports.first()
        server.script = fails_for_a
        await reports.until(lambda report: addrs(report) == ["/ip4/10.0.1.3/tcp/9000", "/ip6/fd00::9/tcp/9000"])


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_never_answers_aaaa_hides_no_ipv4_address() -> None:
    good = zone({NAME: ["10.0.1.3"]})

    def script(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes] | None:
        return None if question.question[0].rdtype == dns.rdatatype.AAAA else good(question, over_tcp)

    async with open_dns_server(script) as server, running(source(server)) as reports:
        report = await reports.first()
    assert addrs(report) == ["/ip4/10.0.1.3/tcp/9000"]
    assert report.troubles == ()


async def test_what_dns_does_not_know_the_system_may() -> None:
    async def hosts(name: str) -> Found:
        assert name == "printer.local"
        return Found(Outcome.FOUND, {4: (ipaddress.ip_address("192.168.1.7"),), 6: ()}, float("inf"))

    async with (
        open_dns_server(zone({})) as server,
        running(source(server, "printer.local", ask_system=hosts)) as reports,
    ):
        report = await reports.first()
    assert addrs(report) == ["/ip4/192.168.1.7/tcp/9000"]
    assert report.troubles == ()


async def test_the_system_knows_localhost() -> None:
    found = await system_resolver()("localhost")
    assert found.outcome is Outcome.FOUND
    assert all(address.is_loopback for addresses in found.families.values() for address in addresses)


async def test_a_system_lookup_that_hangs_ends_with_the_look(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    monkeypatch.setattr(dns_lookup, "SYSTEM_SECONDS", 0.1)

    async def hangs(name: str) -> Found:
        await trio.sleep_forever()
        raise AssertionError

    async with open_dns_server(zone({})) as server, running(source(server, ask_system=hangs)) as reports:
        report = await reports.first()
    assert "takes longer than" in report.troubles[0].problem


async def test_system_lookups_that_cannot_be_stopped_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()
    calls: list[str] = []

    def stuck(name: str, *_: object, **__: object) -> list[object]:
        calls.append(name)
        release.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    ask_system = system_resolver()
    try:
        for _ in range(3):
            with trio.move_on_after(0.05):
                await ask_system("somewhere")
    finally:
        release.set()
    assert calls == ["somewhere"]


@pytest.mark.parametrize("useless", ["0.0.0.0", "224.0.0.251", "255.255.255.255", "::", "ff02::1", "fe80::1"])
async def test_addresses_nobody_can_dial_are_left_out(useless: str) -> None:
    async with open_dns_server(zone({NAME: [useless, "127.0.0.5", "::1"]})) as server:
        async with running(source(server)) as reports:
            report = await reports.first()
            assert addrs(report) == ["/ip4/127.0.0.5/tcp/9000", "/ip6/::1/tcp/9000"]
    async with open_dns_server(zone({NAME: [useless]})) as server, running(source(server)) as reports:
        report = await reports.first()
    assert report.places == ()
    assert f"{useless}, which nobody can dial" in report.troubles[0].problem


async def test_an_ipv4_address_mapped_into_ipv6_is_the_ipv4_address() -> None:
    async with open_dns_server(zone({NAME: ["10.0.1.3", "::ffff:10.0.1.3"]})) as server:
        async with running(source(server)) as reports:
            assert addrs(await reports.first()) == ["/ip4/10.0.1.3/tcp/9000"]


# Which server and which name


async def test_the_next_server_is_asked_when_one_is_not_there() -> None:
    async with open_dns_server(zone({NAME: ["10.0.1.3"]})) as server:
        async with running(source(server, nameservers=["127.0.0.2", "127.0.0.1"])) as reports:
            report = await reports.first()
    assert addrs(report) == ["/ip4/10.0.1.3/tcp/9000"]
    assert report.troubles == ()


async def test_every_server_that_failed_is_named_with_its_failure() -> None:
    async with open_dns_server(zone({}, rcodes={NAME: "REFUSED"})) as server:
        async with running(source(server, nameservers=["127.0.0.2", "127.0.0.1"])) as reports:
            report = await reports.first()
    assert f"127.0.0.2 port {server.port} cannot be asked (Connection refused)" in report.troubles[0].problem
    assert f"127.0.0.1 port {server.port} says REFUSED" in report.troubles[0].problem


async def test_the_servers_and_search_domains_are_those_of_resolv_conf(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("search ns.svc.cluster.test cluster.test\nnameserver 127.0.0.1\noptions ndots:5\n")
    records = {"chorus.cluster.test": ["10.0.1.3"]}
    async with open_dns_server(zone(records)) as server:
        async with running(source(server, "chorus", nameservers=None, resolv_conf=conf)) as reports:
            assert addrs(await reports.first()) == ["/ip4/10.0.1.3/tcp/9000"]
        names = list(dict.fromkeys(name for name, _, _ in server.asked))
        assert names[:2] == ["chorus.ns.svc.cluster.test.", "chorus.cluster.test."]
        async with running(source(server, "chorus.", nameservers=None, resolv_conf=conf)) as reports:
            assert codes(await reports.first()) == ["dns-name"]


async def test_without_a_server_in_resolv_conf_the_trouble_says_so(tmp_path: Path) -> None:
    missing = tmp_path / "resolv.conf"
    async with open_dns_server(zone({})) as server:
        async with running(source(server, nameservers=None, resolv_conf=missing)) as reports:
            report = await reports.first()
    assert f"{missing} names no server" in report.troubles[0].problem


def test_a_name_with_enough_dots_is_tried_as_it_is_first() -> None:
    servers = Servers((), search=("a.test", "b.test"), ndots=1)
    assert [str(each) for each in candidates("x.y", servers)] == ["x.y.", "x.y.a.test.", "x.y.b.test."]
    assert [str(each) for each in candidates("x", servers)] == ["x.a.test.", "x.b.test.", "x."]
    assert [str(each) for each in candidates("x.", servers)] == ["x."]
    assert [str(each) for each in candidates("x", Servers((), search=("a.test",), ndots=0))] == ["x.", "x.a.test."]
    too_long = ".".join(["x" * 60] * 4)
    assert [str(each) for each in candidates(too_long, Servers((), search=("a.test" * 10,)))] == [f"{too_long}."]
    assert candidates("x" * 64, servers) == []


@given(st.text(alphabet=st.sampled_from("nameserv 127.0.0.1\n#:;\tsearch options ndots:9é"), max_size=200))
@many
def test_any_resolv_conf_gives_servers_that_can_be_asked(text: str) -> None:
    servers = parse_resolv_conf(text)
    assert len(servers.addresses) <= 3
    for each in servers.addresses:
        ipaddress.ip_address(each)
    candidates("chorus", servers)


@pytest.mark.parametrize(
    ("text", "docker"),
    [
        ("nameserver 127.0.0.11\noptions ndots:0\n", True),
        ("search lan\nnameserver\t127.0.0.11", True),
        ("# nameserver 127.0.0.11\nnameserver 192.0.2.1\n", False),
        ("nameserver 127.0.0.1\n", False),
        ("", False),
    ],
)
def test_docker_dns_is_known_by_its_address(text: str, docker: bool, tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text(text)
    assert uses_docker_dns(conf) is docker


def test_without_resolv_conf_it_is_not_docker_dns(tmp_path: Path) -> None:
    assert not uses_docker_dns(tmp_path / "none")


# Servers that are hostile or broken


def silent(question: dns.message.Message, over_tcp: bool) -> None:
    return None


def garbage(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    return [b"\xff" * 40, b"", b"\0"]


def garbage_flood(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    return [b"\xff" * 40] * 300


def wrong_id(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    wire = bytearray(zone({NAME: ["10.0.1.3"]})(question, over_tcp)[0])  # type: ignore[index]
    wire[0] ^= 0xFF
    return [bytes(wire)]


def own_question(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    return [question.to_wire()]


def answer_to_another_question(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    other = dns.message.make_query("elsewhere.", question.question[0].rdtype, id=question.id)
    return zone({"elsewhere": ["10.9.9.9"]})(other, over_tcp) or ()


def address_of_another_name(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    answer = dns.message.make_response(question)
    answer.answer.append(dns.rrset.from_text("elsewhere.", 60, "IN", "A", "10.9.9.9"))
    return wire_of(answer, question, over_tcp)


def cname_loop(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    answer = dns.message.make_response(question)
    own = question.question[0].name
    answer.answer.append(dns.rrset.from_text(own, 60, "IN", "CNAME", "loop.test."))
    answer.answer.append(dns.rrset.from_text("loop.test.", 60, "IN", "CNAME", own.to_text()))
    return wire_of(answer, question, over_tcp)


def alias_of_nothing(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    answer = dns.message.make_response(question)
    answer.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", "CNAME", "nothing.test."))
    return wire_of(answer, question, over_tcp)


def nxdomain_with_an_address(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    answer = dns.message.make_response(question)
    answer.set_rcode(dns.rcode.NXDOMAIN)
    answer.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", "A", "10.9.9.9"))
    return wire_of(answer, question, over_tcp)


def half_a_message(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    wire = zone({NAME: ["10.0.1.3"]})(question, over_tcp) or (b"",)
    return [wire[0][:-5]]


def _cut(question: dns.message.Message) -> Sequence[bytes]:
    answer = dns.message.make_response(question)
    answer.flags |= dns.flags.TC
    return [answer.to_wire()]


def cut_then_silent(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes] | None:
    return None if over_tcp else _cut(question)


def cut_then_hangs_up(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    return [b"\xff"] if over_tcp else _cut(question)


def cut_then_garbage(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    return [b"\0\x20" + b"\x11" * 32] if over_tcp else _cut(question)


def cut_for_ever(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    wire = _cut(question)[0]
    return [len(wire).to_bytes(2, "big") + wire] if over_tcp else [wire]


def cut_then_another_question(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    return answer_to_another_question(question, True) if over_tcp else _cut(question)


HOSTILE: dict[Script, str] = {
    silent: "gave no answer",
    garbage: "gave no answer",
    garbage_flood: "datagrams that are no answer",
    wrong_id: "gave no answer",
    own_question: "gave no answer",
    answer_to_another_question: "gave no answer",
    address_of_another_name: "no A record",
    cname_loop: "CNAMEs without an end",
    alias_of_nothing: "an alias of nothing.test.",
    nxdomain_with_an_address: "contradicts itself",
    half_a_message: "gave no answer",
    cut_then_silent: "over TCP it gave no answer",
    cut_then_hangs_up: "over TCP it hung up",
    cut_then_garbage: "over TCP it sent what is no DNS message",
    cut_for_ever: "over TCP it cut its answer short again",
    cut_then_another_question: "over TCP it answered another question",
}


@pytest.mark.parametrize("script", HOSTILE, ids=lambda script: script.__name__)
@pytest.mark.usefixtures("impatient")
async def test_a_bad_server_is_a_trouble_and_the_source_goes_on(script: Script) -> None:
    async with open_dns_server(zone({NAME: ["10.0.1.3"]})) as server, running(source(server)) as reports:
        good = await reports.first()
        server.script = script
        report = await reports.until(lambda report: bool(report.troubles))
        assert report.places == good.places
        assert codes(report) == ["dns-name"]
        assert HOSTILE[script] in report.troubles[0].problem
        assert "127.0.0.1" in report.troubles[0].problem
        assert report.troubles[0].fix
        server.script = zone({NAME: ["10.0.1.4"]})
        await reports.until(lambda report: addrs(report) == ["/ip4/10.0.1.4/tcp/9000"] and not report.troubles)


async def test_a_server_that_stays_silent_holds_a_look_for_a_bounded_time() -> None:
    async with open_dns_server(silent) as server, running(source(server)) as reports:
        report = await reports.first()
        print(f"a look at a silent server took {report.took_seconds:.2f} s")
    assert report.troubles[0].problem.count("gave no answer") == 1
    assert len(server.asked) >= 4


@pytest.mark.parametrize("over", [(), None], ids=["hangs-up", "silent"])
async def test_what_fits_of_a_long_answer_counts_when_tcp_fails(over: Sequence[bytes] | None) -> None:
    good = zone({NAME: task_addresses(400)})

    def udp_only(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes] | None:
        return over if over_tcp else good(question, over_tcp)

    async with open_dns_server(udp_only) as server, running(source(server)) as reports:
        report = await reports.first()
    assert 30 < len(report.places) < 400
    assert codes(report) == ["dns-name"]
    assert "does not give all its addresses" in report.troubles[0].problem
    assert "TCP port 53" in report.troubles[0].fix


@given(st.binary(max_size=80), st.integers(0, 70), st.booleans())
@some
async def test_whatever_bytes_an_answer_holds_a_question_ends_in_a_reply(noise: bytes, at: int, over: bool) -> None:
    good = zone({NAME: ["10.0.1.3", "10.0.1.4"]})

    def spoilt(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
        if over and not over_tcp:
            return _cut(question)
        wire = (good(question, over_tcp) or (b"",))[0]
        bad = wire[:at] + noise + wire[at + len(noise) :]
        return [bad] if over_tcp else [bad, wire]

    async with open_dns_server(spoilt) as server:
        with trio.fail_after(60):
            reply = await query(dns.name.from_text(NAME), dns.rdatatype.A, "127.0.0.1", server.port, 5.0)
    assert (reply.outcome is Outcome.FOUND) == bool(reply.addresses)
    assert reply.addresses or "127.0.0.1" in reply.evidence


# The virtual address of a Swarm service


async def test_a_service_name_is_told_to_be_a_virtual_address() -> None:
    records = {"chorus": ["10.0.1.2"], "tasks.chorus": task_addresses(8)}
    async with open_dns_server(zone(records)) as server, running(source(server, "chorus")) as reports:
        report = await reports.first()
    assert addrs(report) == ["/ip4/10.0.1.2/tcp/9000"]
    assert codes(report) == ["virtual-ip"]
    assert report.troubles[0].problem == (
        "chorus resolves to 10.0.1.2, the virtual address of a Swarm service: "
        "each connection reaches a random one of its 8 tasks (10.0.1.3, 10.0.1.4, 10.0.1.5, …)"
    )
    assert report.troubles[0].fix == "write dns:tasks.chorus:9000, which names every task"


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("tasks.chorus", {"tasks.chorus": ["10.0.1.3"], "tasks.tasks.chorus": ["10.0.1.4"]}),
        ("chorus", {"chorus": ["10.0.1.3"], "tasks.chorus": ["10.0.1.3"]}),
        ("chorus", {"chorus": ["10.0.1.3", "10.0.1.4"], "tasks.chorus": ["10.0.1.3", "10.0.1.5"]}),
        ("chorus", {"chorus": ["10.0.1.3"]}),
        ("node.test", {"node.test": ["1.1.1.1"], "tasks.node.test": ["1.1.1.2"]}),
        ("node.test", {"node.test": ["10.0.1.3"], "tasks.node.test": ["1.1.1.2"]}),
    ],
    ids=["asked-for-tasks", "dns-round-robin", "several", "no-service", "public", "wildcard-of-a-provider"],
)
async def test_other_names_are_not(name: str, records: dict[str, list[str]]) -> None:
    async with open_dns_server(zone(records)) as server, running(source(server, name)) as reports:
        report = await reports.first()
        behind = await tasks_behind(name, nameservers=["127.0.0.1"], nameserver_port=server.port)
    assert report.troubles == ()
    assert report.places
    assert behind is None


async def test_anyone_can_ask_whether_a_name_is_a_virtual_address(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\n")
    records = {"chorus": ["10.0.1.2"], "tasks.chorus": ["10.0.1.7"]}
    async with open_dns_server(zone(records)) as server:
        behind = await tasks_behind("chorus", resolv_conf=conf, nameserver_port=server.port)
        assert behind is not None
        assert (behind.own, behind.tasks) == (("10.0.1.2",), ("10.0.1.7",))
        assert behind.trouble(9000).problem.endswith("reaches its only task (10.0.1.7)")
        assert await tasks_behind("none", resolv_conf=conf, nameserver_port=server.port) is None


async def test_a_server_that_fails_for_tasks_does_not_spoil_the_name() -> None:
    records = {"chorus": ["10.0.1.2"]}
    script = zone(records, rcodes={"tasks.chorus": "SERVFAIL"})
    async with open_dns_server(script) as server, running(source(server, "chorus")) as reports:
        report = await reports.first()
    assert (addrs(report), report.troubles) == (["/ip4/10.0.1.2/tcp/9000"], ())
