"""What a node tells others of where it is: of its own addresses those in the wanted networks, and never none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from ipaddress import ip_address

import ifaddr
import pytest
from trio.testing import MockClock

from p2pnode.host.announcing import KEEP_SECONDS, Announced
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity

PEER = Identity(b"p" * 32).peer_id
WILDCARD = "/ip4/0.0.0.0/tcp/9000"
OWN = ["127.0.0.1", "10.0.1.7", "172.18.0.4", "10.0.0.9", "fd00::7", "::1"]


class Machine:
    """Has these addresses, and counts how often it is asked."""

    def __init__(self, *ips: str) -> None:
        self.ips = ips
        self.asked = 0

    def adapters(self) -> Iterator[ifaddr.Adapter]:
        self.asked += 1
        for number, text in enumerate(self.ips):
            ip = ip_address(text)
            held = ifaddr.IP(text, 24, "eth") if ip.version == 4 else ifaddr.IP((text, 0, 0), 64, "eth")
            yield ifaddr.Adapter(f"eth{number}", f"eth{number}", [held])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(*OWN)
    monkeypatch.setattr(ifaddr, "get_adapters", made.adapters)
    return made


def told(*networks: str, listening: tuple[str, ...] = (WILDCARD,), announce: tuple[str, ...] = ()) -> list[str]:
    """What is announced, without the peer id."""
    addrs = Announced(PEER, announce, networks, lambda: listening).addrs()
    assert all(addr.endswith(f"/p2p/{PEER}") for addr in addrs)
    return [addr.removesuffix(f"/p2p/{PEER}") for addr in addrs]


def at(*ips: str, port: int = 9000) -> list[str]:
    return [f"/ip{ip_address(ip).version}/{ip}/tcp/{port}" for ip in ips]


async def test_without_networks_all_are_told_and_loopback_last(machine: Machine) -> None:
    assert told() == at("10.0.0.9", "10.0.1.7", "172.18.0.4", "127.0.0.1")


@pytest.mark.parametrize(
    ("networks", "ips"),
    [
        (["10.0.1.0/24"], ["10.0.1.7"]),
        (["172.16.0.0/12", "10.0.0.0/8"], ["172.18.0.4", "10.0.0.9", "10.0.1.7"]),
        (["10.0.1.0/24", "10.0.0.0/8"], ["10.0.1.7", "10.0.0.9"]),
        (["fd00::/8", "10.0.1.7/32"], ["fd00::7", "10.0.1.7"]),
        (["192.168.0.0/16", "127.0.0.0/8"], ["127.0.0.1"]),
    ],
)
async def test_only_addresses_in_the_networks_are_told_in_the_networks_order(
    machine: Machine, networks: list[str], ips: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert told(*networks, listening=(WILDCARD, "/ip6/::/tcp/9000")) == at(*ips)
    assert not caplog.records


async def test_an_address_that_is_listened_on_by_itself_was_meant(machine: Machine) -> None:
    listening = (WILDCARD, "/ip4/172.18.0.4/tcp/9000", "/ip4/127.0.0.1/tcp/9001")
    assert told("10.0.1.0/24", listening=listening) == [
        *at("10.0.1.7", "172.18.0.4"),
        *at("127.0.0.1", port=9001),
    ]
    assert told("10.0.1.0/24", listening=("/ip4/172.18.0.4/tcp/1",)) == at("172.18.0.4", port=1)


async def test_what_an_operator_wrote_is_told_as_it_is(machine: Machine) -> None:
    assert told("10.0.1.0/24", announce=("/dns4/here/tcp/1", f"/ip4/9.9.9.9/tcp/2/p2p/{PEER}")) == [
        "/dns4/here/tcp/1",
        "/ip4/9.9.9.9/tcp/2",
    ]
    assert machine.asked == 0


async def test_when_no_address_matches_all_are_told_with_one_warning_that_names_them(
    machine: Machine, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    announced = Announced(PEER, (), ["192.168.0.0/16"], lambda: [WILDCARD])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert len(announced.addrs()) == 4
            autojump_clock.jump(2 * KEEP_SECONDS)
    [record] = caplog.records
    assert "network.announce_cidr" in record.getMessage()
    assert vars(record)["announce_cidr"] == ["192.168.0.0/16"]
    assert vars(record)["addresses"] == at("10.0.0.9", "10.0.1.7", "172.18.0.4", "127.0.0.1")


async def test_interfaces_are_asked_for_once_a_second(machine: Machine, autojump_clock: MockClock) -> None:
    announced = Announced(PEER, (), (), lambda: [WILDCARD])
    before = announced.addrs()
    machine.ips = ("10.0.0.10",)
    for _ in range(100):
        assert announced.addrs() == before
    assert machine.asked == 1
    autojump_clock.jump(KEEP_SECONDS)
    assert announced.addrs() == (f"/ip4/10.0.0.10/tcp/9000/p2p/{PEER}",)


async def test_a_host_tells_only_what_is_in_its_networks() -> None:
    async with open_host(
        Identity(b"p" * 32), ["/ip4/0.0.0.0/tcp/0", "/ip4/127.0.0.1/tcp/0"], announce_cidr=["127.0.0.0/8"]
    ) as host:
        addrs = host.addrs()
        assert len(addrs) == 2
        assert all(addr.startswith("/ip4/127.0.0.1/tcp/") for addr in addrs)
