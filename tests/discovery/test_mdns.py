"""Multicast DNS between processes, over real multicast in network namespaces of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from p2pnode.discovery.mdns import network_fingerprint
from p2pnode.discovery.mdns_records import MAX_ADDRS
from p2pnode.discovery.mdns_table import MAX_INSTANCES
from tests.discovery.lan import (
    DEADLINE_SECONDS,
    ROOT,
    Lan,
    Participant,
    Station,
    open_lan,
    open_participant,
    wait_until,
)
from tests.discovery.mdns_crafted import INSTANCES, peer_id, strings
from tests.e2e.cable import needs_cables

pytestmark = needs_cables

HOLD_PORT = """
import socket, sys
holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
holder.bind(("", 5353))
print("held", flush=True)
sys.stdin.read()
"""

LISTEN = """
import json, socket, sys
from zeroconf import DNSIncoming
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("224.0.0.251", 5353))
group = socket.inet_aton("224.0.0.251") + socket.inet_aton(sys.argv[1])
listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
print("listens", flush=True)
while True:
    message = DNSIncoming(listener.recv(9000))
    if not message.is_query():
        records = [
            [type(each).__name__, each.name, each.ttl, getattr(each, "port", 0), getattr(each, "server", ""),
             getattr(each, "text", b"").hex()]
            for each in message.answers()
        ]
        print(json.dumps(records), flush=True)
"""


@pytest.fixture
def lan() -> Iterator[Lan]:
    with open_lan() as network:
        yield network


def all_found(participants: Sequence[Participant]) -> bool:
    """Does each list exactly the addresses of the others?"""
    return all(set(each.places) == {other.addr for other in participants if other is not each} for each in participants)


def lists(node: Participant, other: Participant) -> bool:
    return other.addr in node.places


def lacks(node: Participant, other: Participant) -> bool:
    return other.addr not in node.places


def send(station: Station, kind: str) -> None:
    """Send crafted packets from a station."""
    station.run(sys.executable, "-m", "tests.discovery.mdns_crafted", kind, station.ip)


def test_five_nodes_find_each_other(lan: Lan) -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(open_participant(lan.plug_in(), peer_id(number))) for number in range(5)]
        wait_until("five find each other", lambda: all_found(nodes))
        found_at = max(next(told.at for told in node.reports if len(told.places) == 4) for node in nodes)
        lag = max(node.reports[-1].lag_seconds for node in nodes)
        print(
            f"\n{found_at - nodes[-1].started_at:.2f} s from the start of the last process; event loop late by at most "
            f"{lag * 1000:.0f} ms"
        )
        assert all(told.troubles == [] for node in nodes for told in node.reports)
        assert all(told.ignored == {} for node in nodes for told in node.reports)


def test_what_is_sent_is_as_the_specification_asks(lan: Lan) -> None:
    station = lan.plug_in()
    with subprocess.Popen(
        [*station.within, sys.executable, "-c", LISTEN, station.ip], cwd=ROOT, stdout=subprocess.PIPE
    ) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"listens\n"
        with open_participant(lan.plug_in(), peer_id(1), port=9123) as ours:
            hello = {kind: rest for kind, *rest in json.loads(listener.stdout.readline())}
            ours.stop()
        goodbye: dict[str, list[Any]] = hello
        while goodbye["DNSText"][1]:
            goodbye = {kind: rest for kind, *rest in json.loads(listener.stdout.readline())}
        listener.kill()
    name, ttl, _, _, text = hello["DNSText"]
    instance, _, service = name.partition(".")
    assert service == "_p2p._udp.local."
    assert len(instance) == 32
    assert bytes.fromhex(text) == strings(f"dnsaddr={ours.addr}".encode())
    assert hello["DNSPointer"][:2] == [service, ttl]
    assert hello["DNSService"][:4] == [name, ttl, 9123, f"{instance}.p2p.local."]
    assert hello["DNSAddress"][0] == f"{instance}.p2p.local."
    assert ttl == 120
    assert [goodbye[kind][1] for kind in ("DNSPointer", "DNSService", "DNSText")] == [0, 0, 0]


def test_a_goodbye_is_believed_at_once_and_silence_is_not(lan: Lan) -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(open_participant(lan.plug_in(), peer_id(number))) for number in range(3)]
        left, killed, stays = nodes
        wait_until("three find each other", lambda: all_found(nodes))
        killed.kill()
        asked_at = time.monotonic()
        left.stop()
        wait_until("the one that left is forgotten", lambda: left.addr not in stays.places)
        print(f"\nforgotten {stays.reports[-1].at - asked_at:.2f} s after it was told to stop")
        assert stays.places == [killed.addr]


def test_an_interface_that_was_not_chosen_stays_silent(lan: Lan) -> None:
    elsewhere = lan.beside()
    here = lan.plug_in()
    elsewhere.connect(here, "eth1", elsewhere.free_ip())
    before = here.sent("eth1")
    with (
        open_participant(here, peer_id(1), interfaces=["eth0"]) as ours,
        open_participant(lan.plug_in(), peer_id(2)) as near,
        open_participant(elsewhere.plug_in(), peer_id(3)) as far,
    ):
        wait_until("the two on the chosen one find each other", lambda: all_found([ours, near]))
        assert ours.reports[-1].subject == "eth0"
        ours.stop()
        assert here.sent("eth1") == before
        assert here.sent("eth0") > 0
        assert far.places == []


def test_a_machine_with_two_interfaces_finds_both_neighbourhoods(lan: Lan) -> None:
    elsewhere = lan.beside()
    here = lan.plug_in()
    elsewhere.connect(here, "eth1", elsewhere.free_ip())
    with (
        open_participant(here, peer_id(1), interfaces=["eth0", "eth1"]) as ours,
        open_participant(lan.plug_in(), peer_id(2)) as near,
        open_participant(elsewhere.plug_in(), peer_id(3)) as far,
    ):
        wait_until("both are found", lambda: set(ours.places) == {near.addr, far.addr})
        wait_until("both find it", lambda: near.places == far.places == [ours.addr])


def test_private_networks_do_not_see_each_other_nor_the_public_one(lan: Lan) -> None:
    networks = ["", network_fingerprint(b"a" * 32), network_fingerprint(b"b" * 32)]
    with ExitStack() as stack:
        groups = [
            [
                stack.enter_context(
                    open_participant(lan.plug_in(), peer_id(10 * number + each), fingerprint=fingerprint)
                )
                for each in range(2)
            ]
            for number, fingerprint in enumerate(networks)
        ]
        for group in groups:
            wait_until("members find each other", partial(all_found, group))
        for group in groups:
            others = {node.addr for other in groups if other is not group for node in other}
            assert not others & {place for node in group for told in node.reports for place in told.places}


def test_changed_addresses_replace_the_old_ones(lan: Lan) -> None:
    with (
        open_participant(lan.plug_in(), peer_id(1)) as moving,
        open_participant(lan.plug_in(), peer_id(2)) as other,
    ):
        wait_until("the first address is found", lambda: other.places == [moving.addr])
        moved = [f"/ip4/{moving.station.ip}/tcp/{port}/p2p/{moving.peer_id}" for port in (9001, 9002)]
        moving.announce(*moved)
        wait_until("the new ones are found, the old one is gone", lambda: other.places == moved)
        moving.announce(f"/ip4/127.0.0.1/tcp/9001/p2p/{moving.peer_id}")
        wait_until("what is not announced any more is gone", lambda: other.places == [])


def test_an_interface_that_cannot_multicast_is_named_and_used_once_it_can(lan: Lan) -> None:
    station = lan.plug_in()
    station.run("ip", "link", "set", "eth0", "multicast", "off")
    with (
        open_participant(station, peer_id(1), interfaces=["eth0", "nosuch0"]) as named,
        open_participant(lan.plug_in(), peer_id(2)) as other,
    ):
        wait_until("the trouble is told", lambda: named.reports)
        [[code, problem, fix]] = named.reports[0].troubles
        assert code == "no-multicast-interface"
        assert "eth0 has no MULTICAST flag (ip link set eth0 multicast on" in problem
        assert "nosuch0 does not exist" in problem
        assert "discovery.mdns" in fix
        station.run("ip", "link", "set", "eth0", "multicast", "on")
        wait_until("they find each other", lambda: all_found([named, other]))
        [[code, problem, _]] = named.reports[-1].troubles
        assert code == "no-multicast-interface"
        assert "nosuch0" in problem
        assert "eth0 has" not in problem


def test_a_node_without_a_fitting_interface_says_so_and_waits_for_one(lan: Lan) -> None:
    station = lan.plug_in()
    station.run("ip", "link", "set", "eth0", "down")
    with open_participant(station, peer_id(1)) as alone, open_participant(lan.plug_in(), peer_id(2)) as other:
        wait_until("the trouble is told", lambda: alone.reports)
        [[code, problem, _]] = alone.reports[0].troubles
        assert code == "no-multicast-interface"
        assert station.ip in problem
        assert "eth0 is down" in problem
        station.run("ip", "link", "set", "eth0", "up")
        wait_until("they find each other", lambda: all_found([alone, other]))
        assert alone.reports[-1].troubles == []


def test_an_interface_may_go_away_and_come_back(lan: Lan) -> None:
    station = lan.plug_in()
    with open_participant(station, peer_id(1)) as ours, open_participant(lan.plug_in(), peer_id(2)) as other:
        wait_until("they find each other", lambda: all_found([ours, other]))
        station.run("ip", "link", "del", "eth0")
        wait_until("the trouble is told", lambda: ours.reports[-1].codes == ["no-multicast-interface"])
        assert ours.places == [other.addr]  # found last, and still believed
        lan.connect(station, "eth0", station.ip)
        wait_until("the trouble is over", lambda: ours.reports[-1].codes == [])
        with open_participant(lan.plug_in(), peer_id(3)) as late:
            wait_until("they find each other again", lambda: all_found([ours, other, late]))


def test_a_port_that_another_program_keeps_for_itself_is_a_trouble_and_tried_again(lan: Lan) -> None:
    station = lan.plug_in()
    with subprocess.Popen(
        [*station.within, sys.executable, "-c", HOLD_PORT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with open_participant(station, peer_id(1)) as ours, open_participant(lan.plug_in(), peer_id(2)) as other:
            wait_until("the trouble is told", lambda: ours.reports and ours.reports[-1].codes == ["mdns-failed"])
            [[_, problem, fix]] = ours.reports[-1].troubles
            assert "Address already in use" in problem
            assert "5353" in fix
            holder.stdin.close()
            assert holder.wait(DEADLINE_SECONDS) == 0
            wait_until("they find each other", lambda: all_found([ours, other]))
            wait_until("the trouble is over", lambda: ours.reports[-1].codes == [])
            assert [told.codes for told in ours.reports].count([]) <= 3  # at the start, and since it works


def test_hostile_answers_are_counted_and_bounded_and_keep_nobody_from_being_found(lan: Lan) -> None:
    hostile = lan.plug_in()
    with open_participant(lan.plug_in(), peer_id(900_001)) as ours:
        with open_participant(lan.plug_in(), peer_id(900_004)) as first:
            wait_until("it listens", lambda: first.addr in ours.places)
        for kind, reason in (("garbage", "cut-short"), ("entries", "other-peer"), ("huge", "too-many")):
            send(hostile, kind)
            with open_participant(lan.plug_in(), peer_id(900_002)) as honest:
                wait_until(f"an honest one is found after {kind}", partial(lists, ours, honest))
                assert ours.reports[-1].ignored[reason]
                honest.stop()
                wait_until("and forgotten", partial(lacks, ours, honest))
        ignored = ours.reports[-1].ignored
        for reason in ("loopback", "link-local", "dns-name", "not-tcp", "ip", "port", "peer-id"):
            assert ignored[reason]
        many = [place for place in ours.places if place.endswith(peer_id(12))]
        assert len(many) == MAX_ADDRS
        assert not [place for place in ours.places if "127.0.0.1" in place or "fe80" in place]
        send(hostile, "flood")
        wait_until("the table is full", lambda: len(ours.places) >= MAX_INSTANCES)
        with open_participant(lan.plug_in(), peer_id(900_003)) as honest:
            wait_until("an honest one is found after the flood", lambda: honest.addr in ours.places)
            wait_until("and finds the flooded one", lambda: ours.addr in honest.places)
            assert len(ours.places) <= MAX_INSTANCES + 100  # those of "many" and "huge" have more than one address
            assert ours.reports[-1].ignored["too-many-instances"] <= INSTANCES
            print(f"\nevent loop late by at most {ours.reports[-1].lag_seconds * 1000:.0f} ms")


def test_nodes_with_ipv6_alone_find_each_other(lan: Lan) -> None:
    with ExitStack() as stack:
        nodes = []
        for number in (1, 2):
            station = lan.plug_in()
            station.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
            station.run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
            station.run("ip", "addr", "add", f"fd78::{number}/64", "dev", "eth0", "nodad")
            addr = f"/ip6/fd78::{number}/tcp/9000/p2p/{peer_id(number)}"
            nodes.append(stack.enter_context(open_participant(station, peer_id(number), addrs=[addr])))
        for node, other in ((nodes[0], 2), (nodes[1], 1)):
            there = f"/ip6/fd78::{other}/tcp/9000/p2p/{peer_id(other)}"
            wait_until("the other is found", partial(lists_only, node, there))


def lists_only(node: Participant, addr: str) -> bool:
    return node.places == [addr]
