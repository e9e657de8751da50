"""Which interfaces multicast DNS uses, and what it announces there."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from p2pnode.discovery.interfaces import NO_MULTICAST, Interface, choose, list_interfaces
from p2pnode.discovery.mdns_worker import ECHO_SECONDS, check_echo, make_plan
from p2pnode.errors import Unavailable
from tests.discovery.mdns_crafted import peer_id

UP, LOOPBACK, MULTICAST = 0x1, 0x8, 0x1000
PEER = peer_id(1)


def interface(name: str, *addrs: str, flags: int = UP | MULTICAST, index: int = 2) -> Interface:
    return Interface(name, index, flags, tuple(ip_address(addr) for addr in addrs))


LO = interface("lo", "127.0.0.1", "::1", flags=UP | LOOPBACK | MULTICAST, index=1)
ETH0 = interface("eth0", "10.0.0.2", "fe80::2", "2001:db8::2", index=2)
ETH1 = interface("eth1", "10.1.0.2", index=3)
DOCKER0 = interface("docker0", "172.17.0.1", index=4)
THERE = {each.name: each for each in (LO, ETH0, ETH1, DOCKER0)}


def at(ip: str) -> str:
    return f"/ip{ip_address(ip).version}/{ip}/tcp/9000/p2p/{PEER}"


def test_interfaces_of_announced_addresses_are_used() -> None:
    plan = make_plan([at("10.0.0.2"), at("127.0.0.1")], (), THERE)
    assert plan.names == ("eth0",)
    assert plan.sockets == ("10.0.0.2",)
    assert [address.text for address in plan.announced] == [at("10.0.0.2")]
    assert plan.troubles == ()


def test_addresses_of_interfaces_that_were_not_chosen_are_not_told() -> None:
    plan = make_plan([at("172.17.0.1"), at("192.0.2.7"), at("10.0.0.2")], ["eth0"], THERE)
    assert [address.text for address in plan.announced] == [at("10.0.0.2"), at("192.0.2.7")]


def test_addresses_elsewhere_are_told_where_there_are_no_others() -> None:
    plan = make_plan([at("10.1.0.2")], ["eth0"], THERE)
    assert [address.text for address in plan.announced] == [at("10.1.0.2")]


def test_ipv6_is_used_where_it_is_announced_or_all_there_is() -> None:
    assert make_plan([at("10.0.0.2"), at("2001:db8::2")], (), THERE).sockets == ("10.0.0.2", 2)
    assert make_plan([at("2001:db8::2")], (), THERE).sockets == (2,)
    assert make_plan([], ["eth0"], THERE).sockets == ("10.0.0.2", 2)


def test_a_node_on_loopback_only_listens_and_says_so() -> None:
    plan = make_plan([at("127.0.0.1")], ["eth0"], THERE)
    assert plan.sockets
    assert plan.announced == ()
    [trouble] = plan.troubles
    assert trouble.code == "mdns-nothing-to-announce"
    assert at("127.0.0.1") in trouble.problem
    assert "network.listen" in trouble.fix


@pytest.mark.parametrize("announced", [[], ["127.0.0.1"], ["192.0.2.7"], ["fe80::2"]])
def test_no_interface_is_chosen_for_addresses_that_none_of_them_can_offer(announced: list[str]) -> None:
    choice = choose((), {ip_address(each) for each in announced}, THERE)
    assert choice.interfaces == (() if announced != ["fe80::2"] else (ETH0,))
    for trouble in choice.troubles:
        assert trouble.code == NO_MULTICAST
        assert "eth0" in trouble.fix
        assert all(each in trouble.problem for each in announced)


def test_each_unusable_interface_is_named_with_why_and_what_helps() -> None:
    there = {
        **THERE,
        "down0": interface("down0", "10.2.0.2", flags=MULTICAST),
        "tun0": interface("tun0", "10.3.0.2", flags=UP),
        "bare0": interface("bare0"),
    }
    choice = choose(["eth1", "down0", "tun0", "bare0", "nosuch0"], set(), there)
    assert [each.name for each in choice.interfaces] == ["eth1"]
    [trouble] = choice.troubles
    assert trouble.code == NO_MULTICAST
    for part in (
        "down0 is down (ip link set down0 up)",
        "tun0 has no MULTICAST flag",
        "bare0 holds no IP address",
        "nosuch0 does not exist",
    ):
        assert part in trouble.problem
    assert "docker0, eth0, eth1" in trouble.fix


def test_a_machine_that_cannot_multicast_is_told_to_do_without() -> None:
    [trouble] = choose((), set(), {"lo": LO}).troubles
    assert "discovery.mdns = off" in trouble.fix


def test_the_loopback_of_this_machine_is_listed() -> None:
    loopbacks = [each for each in list_interfaces().values() if each.is_loopback]
    assert [each.name for each in loopbacks] == ["lo"]
    assert ip_address("127.0.0.1") in loopbacks[0].addrs


def test_an_announcement_that_does_not_come_back_is_a_failure() -> None:
    check_echo(None, 0, 0, ECHO_SECONDS, ["eth0"])
    check_echo(100, 0, 0, 150, ["eth0"])
    check_echo(100, 0, 299, 300, ["eth0"])  # this machine slept, and has just asked
    for echoed_at, now in ((None, ECHO_SECONDS + 1), (100.0, 300.0)):
        with pytest.raises(Unavailable, match="eth0") as caught:
            check_echo(echoed_at, 0, 0, now, ["eth0"])
        assert "5353" in caught.value.hint
