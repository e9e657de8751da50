"""What is announced and what is believed of others' announcements, without a network."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.peerid import PeerId
from p2pnode.discovery.mdns import MdnsSource, network_fingerprint
from p2pnode.discovery.mdns_records import (
    MAX_ADDRS,
    MAX_STRINGS,
    encode_txt,
    parse_address,
    peer_name,
    read_txt,
    service_name,
)
from p2pnode.discovery.mdns_table import MAX_INSTANCES, MAX_TTL_SECONDS, Table
from p2pnode.errors import InvalidMessage
from p2pnode.ports import SourceReport
from tests.discovery.mdns_crafted import peer_id, strings
from tests.properties import many

OWN, PEER, OTHER = (PeerId(peer_id(number)) for number in (1, 2, 3))
IPS = st.ip_addresses().filter(
    lambda ip: (
        not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified)
        and getattr(ip, "ipv4_mapped", None) is None
    )
)


def at(port: int, peer: str = PEER, ip: str = "10.0.0.2") -> str:
    return f"/ip4/{ip}/tcp/{port}/p2p/{peer}"


def txt(*addrs: str) -> bytes:
    return strings(*(b"dnsaddr=" + addr.encode() for addr in addrs))


def heard(table: Table, name: str, *addrs: str, ttl: float = 120, replaces: bool = False, now: float = 0) -> None:
    table.hear(name, [txt(*addrs)], ttl_seconds=ttl, replaces=replaces, now=now)


@many
@given(st.lists(st.binary(max_size=2000), max_size=4))
def test_no_txt_record_is_too_strange_to_read(texts: list[bytes]) -> None:
    found = read_txt(texts)
    assert len(found.addrs) <= MAX_ADDRS
    assert sum(found.ignored.values()) <= len(texts) * (MAX_STRINGS + 1)


@many
@given(st.lists(st.binary(max_size=40), max_size=6), st.sampled_from([b"dnsaddr=", b"DNSADDR="]))
def test_no_entry_is_too_strange_to_read(entries: list[bytes], key: bytes) -> None:
    found = read_txt([strings(*(key + entry for entry in entries))])
    assert found.addrs == []
    assert sum(found.ignored.values()) == len(entries)


@many
@given(st.lists(st.tuples(IPS, st.integers(1, 65535)), max_size=MAX_ADDRS, unique=True))
def test_what_is_announced_is_read_back(told: list[tuple[object, int]]) -> None:
    addrs = [f"/ip{ip.version}/{ip}/tcp/{port}/p2p/{PEER}" for ip, port in told]  # type: ignore[attr-defined]
    found = read_txt([encode_txt(addrs)])
    assert [address.text for address in found.addrs] == addrs
    assert not found.ignored


def test_an_announcement_is_bounded_and_never_empty() -> None:
    assert encode_txt([]) == b"\0"
    assert len(read_txt([encode_txt(at(port) for port in range(1, 100))]).addrs) == MAX_ADDRS
    assert encode_txt(["/ip4/10.0.0.2/tcp/1/" + "x" * 300, at(1)]) == encode_txt([at(1)])


@pytest.mark.parametrize(
    ("addr", "reason"),
    [
        ("", "not-tcp"),
        ("/ip4/10.0.0.2/tcp/1", "not-tcp"),
        (f"/ip4/10.0.0.2/udp/1/quic-v1/p2p/{PEER}", "not-tcp"),
        (f"/ip4/10.0.0.2/tcp/1/ws/p2p/{PEER}", "not-tcp"),
        (f"/ip4/10.0.0.2/tcp/1/p2p/{OTHER}/p2p-circuit/p2p/{PEER}", "not-tcp"),
        (f"/ip6/fe80::1%eth0/tcp/1/p2p/{PEER}", "not-tcp"),
        (f" /ip4/10.0.0.2/tcp/1/p2p/{PEER}", "not-tcp"),
        (f"/dns4/example.org/tcp/1/p2p/{PEER}", "dns-name"),
        (f"/dnsaddr/example.org/p2p/{PEER}", "dns-name"),
        (f"/ip4/10.0.0.256/tcp/1/p2p/{PEER}", "ip"),
        (f"/ip4/::1/tcp/1/p2p/{PEER}", "ip"),
        (f"/ip4/10.0.0.2/tcp/0/p2p/{PEER}", "not-tcp"),
        (f"/ip4/10.0.0.2/tcp/65536/p2p/{PEER}", "port"),
        ("/ip4/10.0.0.2/tcp/1/p2p/12D3KooWnobody", "peer-id"),
        (at(1, ip="127.0.0.1"), "loopback"),
        (at(1, ip="0.0.0.0"), "ip"),
        (at(1, ip="224.0.0.251"), "ip"),
        (at(1, ip="255.255.255.255"), "ip"),
        (f"/ip6/::1/tcp/1/p2p/{PEER}", "loopback"),
        (f"/ip6/::ffff:127.0.0.1/tcp/1/p2p/{PEER}", "loopback"),
        (f"/ip6/fe80::1/tcp/1/p2p/{PEER}", "link-local"),
    ],
)
def test_an_address_that_cannot_be_dialled_is_counted_by_its_reason(addr: str, reason: str) -> None:
    found = read_txt([txt(addr, at(7))])
    assert [address.text for address in found.addrs] == [at(7)]
    assert found.ignored == {reason: 1}


def test_an_address_is_kept_in_its_plain_form() -> None:
    address = parse_address(f"/ip6/2001:DB8:0::7/tcp/4001/p2p/{PEER}")
    assert address.text == f"/ip6/2001:db8::7/tcp/4001/p2p/{PEER}"
    assert (str(address.ip), address.port, address.peer) == ("2001:db8::7", 4001, PEER)
    with pytest.raises(InvalidMessage):
        parse_address(address.text + "/")


def test_strings_of_other_programs_are_no_fault() -> None:
    assert not read_txt([strings(b"", b"version=1", b"dnsaddr", b"txtvers=1")]).ignored


def test_an_instance_is_one_peer() -> None:
    found = read_txt([txt(at(1), at(2, OTHER), at(3))])
    assert [address.text for address in found.addrs] == [at(1), at(3)]
    assert found.ignored == {"other-peer": 1}


def test_addresses_come_in_one_record_or_in_several() -> None:
    table = Table(OWN)
    table.hear("js", [txt(at(1)), txt(at(2))], ttl_seconds=120, replaces=False, now=0)
    heard(table, "go", at(3, OTHER), at(4, OTHER))
    assert table.addrs() == (at(1), at(2), at(3, OTHER), at(4, OTHER))


def test_this_node_is_no_place_under_any_name() -> None:
    table = Table(OWN)
    heard(table, "an earlier run", at(1, OWN))
    assert table.addrs() == ()


def test_a_goodbye_takes_its_addresses_back_and_no_others() -> None:
    table = Table(OWN)
    heard(table, "a", at(1), at(2))
    heard(table, "a", at(1), ttl=0)
    assert table.addrs() == (at(2),)
    heard(table, "b", at(3, OTHER))
    table.leave("a")
    assert table.addrs() == (at(3, OTHER),)
    heard(table, "b", at(3, OTHER), ttl=0)
    heard(table, "stranger", at(4), ttl=0)
    assert table.addrs() == ()
    assert len(table) == 0


def test_an_address_counts_for_as_long_as_it_says_but_not_for_ever() -> None:
    table = Table(OWN)
    heard(table, "a", at(1), ttl=120)
    heard(table, "b", at(2, OTHER), ttl=2**31)
    assert table.ends_at() == 120
    table.expire(119)
    assert len(table.addrs()) == 2
    table.expire(120)
    assert table.addrs() == (at(2, OTHER),)
    table.expire(MAX_TTL_SECONDS)
    assert table.addrs() == ()
    assert table.ends_at() is None


def test_what_replaces_spares_what_came_with_it() -> None:
    table = Table(OWN)
    heard(table, "a", at(1), now=0)
    heard(table, "a", at(2), replaces=True, now=10)
    heard(table, "a", at(3), replaces=True, now=10.5)
    assert table.addrs() == (at(2), at(3))


def test_another_peer_takes_an_instance_over_whole() -> None:
    table = Table(OWN)
    heard(table, "a", at(1))
    heard(table, "a", at(2, OTHER))
    assert table.addrs() == (at(1),)
    heard(table, "a", at(2, OTHER), replaces=True)
    assert table.addrs() == (at(2, OTHER),)


def test_the_newest_addresses_of_an_instance_stay() -> None:
    table = Table(OWN)
    for port in range(1, 50):
        heard(table, "a", at(port))
    assert set(table.addrs()) == {at(port) for port in range(50 - MAX_ADDRS, 50)}
    assert table.ignored["too-many"] == 49 - MAX_ADDRS


def test_who_was_not_heard_for_the_longest_time_gives_way() -> None:
    table = Table(OWN)
    for number in range(MAX_INSTANCES):
        heard(table, f"n{number}", at(1, peer_id(number + 10)))
    heard(table, "n0", at(1, peer_id(10)))
    heard(table, "late", at(9, OTHER))
    assert len(table) == MAX_INSTANCES
    assert at(9, OTHER) in table.addrs()
    assert at(1, peer_id(10)) in table.addrs()
    assert at(1, peer_id(11)) not in table.addrs()
    assert table.ignored["too-many-instances"] == 1


def test_what_is_about_to_end_is_asked_for_and_no_longer_known() -> None:
    table = Table(OWN)
    heard(table, "a", at(1), ttl=100, now=0)
    heard(table, "b", at(2, OTHER), ttl=1000, now=0)
    assert table.ask_at(0) == 80
    assert table.ask_at(80) == 85
    assert table.ask_at(95) == 800
    assert table.known(49, 10) == [("a", 51), ("b", 951)]
    assert table.known(51, 10) == [("b", 949)]
    assert table.known(0, 1) == [("a", 100)]


def test_names_follow_the_specification() -> None:
    name = peer_name(Random(1))
    assert len(name) == 32
    assert name.isascii()
    assert name.isalnum()
    assert name.islower()
    assert name != peer_name(Random(2))
    assert service_name() == "_p2p._udp.local."
    assert service_name("00ff") == "_p2p-00ff._udp.local."


@pytest.mark.parametrize("fingerprint", ["XY", "ab.local", "AB", "a" * 59, "0 1"])
def test_a_fingerprint_is_hexadecimal(fingerprint: str) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        MdnsSource(OWN, list, interfaces=(), fingerprint=fingerprint, rng=Random(1))


def test_a_network_fingerprint_names_the_key_and_does_not_tell_it() -> None:
    # The expected values were computed with another implementation of Salsa20.
    assert network_fingerprint(bytes.fromhex("3c" * 32)) == "7aea36752475683181ccc65613f8878e"
    assert network_fingerprint(bytes.fromhex("c3" * 32)) != network_fingerprint(bytes.fromhex("3c" * 32))
    assert service_name(network_fingerprint(bytes(32))).startswith("_p2p-")


def test_the_subject_names_the_interfaces() -> None:
    named = MdnsSource(OWN, list, interfaces=["eth1", "eth0", "eth1"], rng=Random(1))
    assert (named.method, named.subject) == ("mdns", "eth1, eth0")
    assert MdnsSource(OWN, list, interfaces=[], rng=Random(1)).subject == "interfaces of announced addresses"


def test_a_node_that_does_not_use_it_does_not_load_it() -> None:
    program = "import sys, p2pnode.app; print('zeroconf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout == "False\n"


async def test_whatever_the_thread_meets_becomes_a_trouble_and_the_source_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("p2pnode.discovery.mdns_worker.list_interfaces", broken)
    source = MdnsSource(OWN, lambda: [at(1, OWN)], interfaces=["eth9"], rng=Random(1))
    told, reports = trio.open_memory_channel[SourceReport](10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run, told.send_nowait)
        with trio.fail_after(60):
            report = await reports.receive()
        [trouble] = report.troubles
        assert trouble.code == "mdns-failed"
        assert "RuntimeError: no such thing" in trouble.problem
        assert "eth9" in trouble.problem
        assert "discovery.mdns" in trouble.fix
        nursery.cancel_scope.cancel()


async def test_a_source_that_waits_for_an_interface_ends_when_it_is_cancelled() -> None:
    source = MdnsSource(OWN, lambda: [at(1, OWN)], interfaces=["nosuch0"], rng=Random(1))
    told, reports = trio.open_memory_channel[SourceReport](10)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, told.send_nowait)
            report = await reports.receive()
            assert [trouble.code for trouble in report.troubles] == ["no-multicast-interface"]
            assert report.places == ()
            assert (report.method, report.subject) == ("mdns", "nosuch0")
            nursery.cancel_scope.cancel()
