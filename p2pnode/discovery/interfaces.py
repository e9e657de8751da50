"""Network interfaces of this machine: which of them can multicast, and which hold an address."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import ifaddr

from p2pnode.discovery.mdns_records import IpAddress
from p2pnode.ports import Trouble

_SIOCGIFFLAGS = 0x8913  # netdevice(7)
_IFF_UP, _IFF_LOOPBACK, _IFF_MULTICAST = 0x1, 0x8, 0x1000

NO_MULTICAST = "no-multicast-interface"


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface.

    Args:
        name: as the operator names it (`eth0`).
        index: its number.
        flags: of netdevice(7).
        addrs: the IP addresses that it holds.
    """

    name: str
    index: int
    flags: int
    addrs: tuple[IpAddress, ...]

    @property
    def is_loopback(self) -> bool:
        return bool(self.flags & _IFF_LOOPBACK)

    def hindrance(self) -> str:
        """Why it cannot multicast, and what would help; empty when it can."""
        if not self.flags & _IFF_UP:
            return f"is down (ip link set {self.name} up)"
        if not self.flags & _IFF_MULTICAST:
            return f"has no MULTICAST flag (ip link set {self.name} multicast on, if its network can)"
        if not self.addrs:
            return "holds no IP address (give it one)"
        return ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The interfaces to multicast on.

    Args:
        interfaces: none when there is nothing to start on.
        troubles: why there are fewer than asked for.
    """

    interfaces: tuple[Interface, ...]
    troubles: tuple[Trouble, ...]


def list_interfaces() -> dict[str, Interface]:
    """By name, those without an address included.

    Raises:
        OSError: the kernel does not tell.
    """
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for adapter in ifaddr.get_adapters(include_unconfigured=True):
            ips = (ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in adapter.ips)
            try:
                request = struct.pack("16sH14s", adapter.name.encode()[:15], 0, b"")
                (flags,) = struct.unpack_from("H", fcntl.ioctl(probe, _SIOCGIFFLAGS, request), 16)
            except OSError:  # it went away since it was listed
                continue
            addrs = tuple(ipaddress.ip_address(ip.partition("%")[0]) for ip in ips)
            found[adapter.name] = Interface(adapter.name, adapter.index or 0, flags, addrs)
    return found


def choose(named: Sequence[str], announced: Collection[IpAddress], there: Mapping[str, Interface]) -> Choice:
    """Where multicast DNS is to run.

    Args:
        named: by the operator; empty: every interface that holds an address among `announced`, loopback excepted.
        there: what `list_interfaces` found.
    """
    able = {name: each for name, each in sorted(there.items()) if not each.is_loopback and not each.hindrance()}
    if not named:
        chosen = tuple(each for each in able.values() if set(each.addrs) & set(announced))
        return Choice(chosen, () if chosen else (_none_fits(announced, able, there),))
    missing = {
        name: there[name].hindrance() if name in there else "does not exist (ip link shows what does)"
        for name in dict.fromkeys(named)
    }
    chosen = tuple(there[name] for name, why in missing.items() if not why)
    faults = [f"{name} {why}" for name, why in missing.items() if why]
    if not faults:
        return Choice(chosen, ())
    problem = f"multicast DNS cannot use {len(faults)} of the interfaces in discovery.mdns_interfaces: " + "; ".join(
        faults
    )
    return Choice(chosen, (Trouble(NO_MULTICAST, problem, _name_one(able)),))


def _none_fits(
    announced: Collection[IpAddress], able: Mapping[str, Interface], there: Mapping[str, Interface]
) -> Trouble:
    told = ", ".join(sorted(map(str, announced))) or "no IP address"
    holders = [
        f"{each.name} {each.hindrance() or 'is the loopback'}"
        for each in there.values()
        if set(each.addrs) & set(announced)
    ]
    where = "; ".join(holders) or "no interface holds any of them"
    return Trouble(NO_MULTICAST, f"this node announces {told}, and for multicast DNS {where}", _name_one(able))


def _name_one(able: Iterable[str]) -> str:
    names = ", ".join(able)
    if names:
        return f"set discovery.mdns_interfaces to those wanted of {names}, or network.listen to an address on one"
    return "give this machine or container an interface that can multicast, or set discovery.mdns = off"
