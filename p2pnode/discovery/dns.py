"""DNS as a source of peers: every address of a name, such as `tasks.SERVICE` in Docker Swarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import trio

from p2pnode.discovery.resolv_conf import DOCKER_DNS, RESOLV_CONF, Servers, read_resolv_conf, uses_docker_dns
from p2pnode.ports import Method, Place, Report, SourceReport, Trouble

# dnspython takes a tenth of a second to import: only a source that runs does.
if TYPE_CHECKING:
    from p2pnode.discovery.dns_lookup import AskSystem, Found
    from p2pnode.discovery.dns_query import Address

__all__ = ["DnsSource", "VirtualAddress", "tasks_behind", "uses_docker_dns"]

LEAST_SECONDS = 1.0
"""Shortest pause between two looks, whatever the TTL."""

SPREAD = 0.8
"""A pause is between this share of its length and all of it: a fleet that started at once does not ask at once."""

MISSES_BELIEVED = 3
"""So many looks in a row may say that the name is gone before its places are dropped."""

TASKS = "tasks."
"""Before a service's name, in Swarm's DNS: the addresses of its tasks instead of the virtual one."""

TASKS_SECONDS = 2.0
"""For the question whether an address is virtual."""

SHOWN = 3


@dataclass(frozen=True, slots=True)
class VirtualAddress:
    """A name that Swarm's DNS answers with the virtual address of a service.

    Args:
        name: the service's name as asked for.
        own: what it resolves to.
        tasks: the addresses of the tasks behind it.
    """

    name: str
    own: tuple[str, ...]
    tasks: tuple[str, ...]

    def trouble(self, port: int) -> Trouble:
        """What is wrong with joining by this name."""
        shown = ", ".join(self.tasks[:SHOWN]) + (", …" if len(self.tasks) > SHOWN else "")
        reached = f"a random one of its {len(self.tasks)} tasks" if len(self.tasks) > 1 else "its only task"
        return Trouble(
            "virtual-ip",
            f"{self.name} resolves to {', '.join(self.own)}, the virtual address of a Swarm service: "
            f"each connection reaches {reached} ({shown})",
            f"write dns:{TASKS}{self.name}:{port}, which names every task",
        )


class DnsSource:
    """Every A and AAAA record of a name, asked for again by its TTL.

    The TTL is believed between 1 s and `most_seconds` only: Docker's DNS says 600 s of answers that change as soon as a
    task starts or stops. When DNS knows no address, the system's own lookup is asked, as /etc/hosts and mDNS names are
    known there only. A server's failure keeps the last places; a name that is gone for more than three looks has none.

    Every look is reported, whether or not it brought news.

    Args:
        name: a DNS name; `_` is allowed, and a final `.` keeps the search domains out.
        port: where the nodes at its addresses listen.
        most_seconds: longest pause between two looks.
        rng: spreads the looks of a fleet.
        nameservers: IP addresses to ask instead of those in `resolv_conf`, without its search domains.
        optional: the name may well not exist; that is no trouble then.
        nameserver_port: where all of them listen.
        resolv_conf: read before every look.
        ask_system: the system's own lookup; None: the C library's.
    """

    def __init__(
        self,
        name: str,
        port: int,
        *,
        most_seconds: float = 10.0,
        rng: Random,
        nameservers: Sequence[str] | None = None,
        optional: bool = False,
        nameserver_port: int = 53,
        resolv_conf: Path = RESOLV_CONF,
        ask_system: AskSystem | None = None,
    ) -> None:
        self._name = name
        self._port = port
        self._most_seconds = most_seconds
        self._rng = rng
        self._whom = _Whom(nameservers, nameserver_port, resolv_conf)
        self._optional = optional
        self._ask_system = ask_system
        self._known: dict[int, tuple[Address, ...]] = {}
        self._missed = 0
        self._failed = 0

    @property
    def method(self) -> Method:
        return "dns"

    @property
    def subject(self) -> str:
        return self._name

    async def run(self, report: Report) -> None:
        from p2pnode.discovery.dns_lookup import look_up, system_resolver

        ask_system = self._ask_system or system_resolver()
        while True:
            began = trio.current_time()
            servers = await self._whom.servers()
            found = await look_up(self._name, servers, ask_system)
            troubles = self._take(found, servers)
            virtual = await _behind(self._name, found, servers)
            if virtual is not None:
                troubles.append(virtual.trouble(self._port))
            took = trio.current_time() - began
            report(SourceReport(self.method, self.subject, self._places(), tuple(troubles), took))
            await trio.sleep(self._pause(found))

    def _take(self, found: Found, servers: Servers) -> list[Trouble]:
        """Remember what is believed now; the troubles of this look."""
        from p2pnode.discovery.dns_query import Outcome

        if found.outcome is Outcome.FOUND:
            self._missed = self._failed = 0
            self._known |= found.families
            return [self._trouble(found, servers)] if found.evidence else []
        self._failed += 1
        if found.outcome is Outcome.FAILED:
            return [self._trouble(found, servers)]
        self._missed += 1
        if self._missed > MISSES_BELIEVED:
            self._known = {}
        return [] if self._optional else [self._trouble(found, servers)]

    def _trouble(self, found: Found, servers: Servers) -> Trouble:
        from p2pnode.discovery.dns_query import Outcome

        asked = " and ".join(servers.addresses) or "a DNS server"
        if found.outcome is Outcome.FOUND:
            what, fix = "does not give all its addresses", f"let TCP port 53 of {asked} through, besides UDP"
        elif found.outcome is Outcome.FAILED:
            what = "cannot be looked up"
            fix = f"see that {asked} answers on port 53, UDP and TCP; {servers.origin} names the servers"
            if DOCKER_DNS in servers.addresses:
                fix += "; Docker's fails so too for a service that does not exist, when no server outside answers"
        else:
            what = "has no address" if found.outcome is Outcome.NO_ADDRESS else "is no known name"
            fix = "correct the name, or start what it names"
            if self._name.startswith(TASKS):
                fix = (
                    "compare with `docker service ls`; the service must run, and share a network with this container, "
                    "which must be a task of the same Swarm or attached to an attachable network"
                )
        return Trouble("dns-name", f"dns:{self._name} {what}: {found.evidence}", fix)

    def _places(self) -> tuple[Place, ...]:
        from p2pnode.discovery.dns_lookup import MOST_ADDRESSES

        merged = dict.fromkeys(address for version in sorted(self._known) for address in self._known[version])
        return tuple(Place(f"/ip{each.version}/{each}/tcp/{self._port}") for each in merged)[:MOST_ADDRESSES]

    def _pause(self, found: Found) -> float:
        from p2pnode.discovery.dns_query import Outcome

        wanted = (
            found.ttl_seconds if found.outcome is Outcome.FOUND else LEAST_SECONDS * 2.0 ** min(self._failed - 1, 10)
        )
        spread = min(wanted, self._most_seconds) * self._rng.uniform(SPREAD, 1.0)
        return max(spread, min(LEAST_SECONDS, self._most_seconds))


@dataclass(frozen=True, slots=True)
class _Whom:
    """Servers given, or those of a resolv.conf at the time of asking."""

    given: Sequence[str] | None
    port: int
    resolv_conf: Path

    async def servers(self) -> Servers:
        if self.given is not None:
            return Servers(tuple(self.given), self.port, origin="the configuration")
        return await trio.to_thread.run_sync(read_resolv_conf, self.resolv_conf, self.port)


async def tasks_behind(
    name: str,
    *,
    nameservers: Sequence[str] | None = None,
    nameserver_port: int = 53,
    resolv_conf: Path = RESOLV_CONF,
) -> VirtualAddress | None:
    """Is `name` a Swarm service's, so that its address is a virtual one? For a bootstrap's /dns4/NAME.

    Takes six seconds at most, when no server answers; None then, as for any name that is no service's.
    """
    from p2pnode.discovery.dns_lookup import ask_dns

    servers = await _Whom(nameservers, nameserver_port, resolv_conf).servers()
    return await _behind(name, await ask_dns(name, servers), servers)


async def _behind(name: str, found: Found, servers: Servers) -> VirtualAddress | None:
    """A service has one virtual address in each family, and all are of the overlay network: private.

    So a public name, or one with many addresses, is not asked about.
    """
    from p2pnode.discovery.dns_lookup import ask_dns

    own = [address for version in sorted(found.families) for address in found.families[version]]
    several = any(len(addresses) > 1 for addresses in found.families.values())
    if name.startswith(TASKS) or not own or several or not all(address.is_private for address in own):
        return None
    with trio.move_on_after(TASKS_SECONDS):
        behind = await ask_dns(TASKS + name, servers)
        tasks = [address for version in sorted(behind.families) for address in behind.families[version]]
        if tasks and not set(own) & set(tasks) and all(address.is_private for address in tasks):
            return VirtualAddress(name, tuple(map(str, own)), tuple(map(str, tasks)))
    return None
