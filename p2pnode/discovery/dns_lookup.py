"""All addresses of a name: search domains, several servers, both families, then the system's own resolver."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import dns.exception
import dns.name
import dns.rdatatype
import trio

from p2pnode.discovery.dns_query import Address, Outcome, Reply, dialable, query
from p2pnode.discovery.resolv_conf import Servers

DNS_SECONDS = 3.5
SYSTEM_SECONDS = 1.5
"""Together 5 s: what a look takes at most when nobody answers."""

ATTEMPT_SECONDS = 1.2
"""For one server: three can be tried in `DNS_SECONDS`, or one three times."""

GRACE_SECONDS = 1.0
"""For the second family once the first gave addresses: some servers never answer AAAA."""

MOST_ADDRESSES = 10_000

_TYPES = {4: dns.rdatatype.A, 6: dns.rdatatype.AAAA}

AskSystem = Callable[[str], Awaitable["Found"]]


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a name.

    Args:
        outcome: FOUND when either family has addresses.
        families: addresses by IP version, sorted; a version that nobody gave a word on is missing.
        ttl_seconds: how long they hold, by the server's word.
        evidence: who said or failed what; with FOUND: what is missing all the same.
    """

    outcome: Outcome
    families: dict[int, tuple[Address, ...]] = field(default_factory=dict)
    ttl_seconds: float = 0.0
    evidence: str = ""


async def look_up(name: str, servers: Servers, ask_system: AskSystem | None) -> Found:
    """Ask DNS, and `ask_system` when DNS has no address; within `DNS_SECONDS` and `SYSTEM_SECONDS`."""
    found = await ask_dns(name, servers)
    if found.outcome is Outcome.FOUND or ask_system is None:
        return found
    other = Found(Outcome.FAILED, evidence=f"the system's own lookup takes longer than {SYSTEM_SECONDS:.1f} s")
    with trio.move_on_after(SYSTEM_SECONDS):
        other = await ask_system(name)
    if other.outcome is Outcome.FOUND:
        return other
    return Found(found.outcome, evidence=f"{found.evidence}; {other.evidence}")


async def ask_dns(name: str, servers: Servers) -> Found:
    """Ask the servers for each name that `name` may stand for, until one has addresses."""
    if not servers.addresses:
        return Found(Outcome.FAILED, evidence=f"{servers.origin} names no server")
    deadline = trio.current_time() + DNS_SECONDS
    line = list(servers.addresses)
    told: list[Found] = []
    for candidate in candidates(name, servers):
        answer = await _ask_in_turn(candidate, line, servers.port, deadline)
        if answer.outcome is Outcome.FOUND:
            return answer
        told.append(answer)
    return _worst(told)


def _worst(told: list[Found]) -> Found:
    """Failure before no address before no name: what was not answered may exist."""
    for outcome in (Outcome.FAILED, Outcome.NO_ADDRESS):
        for each in told:
            if each.outcome is outcome:
                return each
    return told[0] if told else Found(Outcome.NO_NAME, evidence="the name is longer than DNS allows")


def candidates(name: str, servers: Servers) -> list[dns.name.Name]:
    """The absolute names to try, as resolv.conf(5) has it: itself before or after the search list."""
    try:
        plain = dns.name.from_text(name, None)
        if plain.is_absolute():
            return [plain]
        itself = plain.concatenate(dns.name.root)
    except dns.exception.DNSException:
        return []
    searched = []
    for suffix in servers.search:
        try:
            searched.append(plain.concatenate(dns.name.from_text(suffix)))
        except dns.exception.DNSException:
            continue
    return [itself, *searched] if len(plain) > servers.ndots else [*searched, itself]


async def _ask_in_turn(name: dns.name.Name, line: list[str], port: int, deadline: float) -> Found:
    """The first word of a server that did not fail. Who fails goes to the end of `line`, which names all servers.

    Who is silent is asked again until `deadline`, since datagrams get lost; who fails at once is not.
    """
    evidence: dict[str, None] = {}
    asked = 0
    began = trio.current_time()
    while (now := trio.current_time()) < deadline:
        if asked >= len(line) and now - began < ATTEMPT_SECONDS:
            break
        answer = await _ask_both(name, line[0], port, min(ATTEMPT_SECONDS, deadline - now))
        if answer.outcome is not Outcome.FAILED:
            return answer
        line.append(line.pop(0))
        evidence[answer.evidence] = None
        asked += 1
    return Found(Outcome.FAILED, evidence="; ".join(evidence) or f"no time was left to ask for {name}")


async def _ask_both(name: dns.name.Name, server: str, port: int, seconds: float) -> Found:
    """A and AAAA at once. With addresses of one family, the other gets `GRACE_SECONDS` more."""
    replies: dict[int, Reply] = {}

    async def ask(version: int) -> None:
        reply = await query(name, _TYPES[version], server, port, seconds)
        replies[version] = reply
        if reply.outcome is Outcome.FOUND:
            nursery.cancel_scope.deadline = trio.current_time() + GRACE_SECONDS

    async with trio.open_nursery() as nursery:
        for version in _TYPES:
            nursery.start_soon(ask, version)
    return _merged(replies)


def _merged(replies: dict[int, Reply]) -> Found:
    in_order = sorted(replies.items())
    good = [reply for _, reply in in_order if reply.outcome is Outcome.FOUND]
    if good:
        families = {version: ordered(reply.addresses) for version, reply in in_order if reply.outcome != Outcome.FAILED}
        return Found(Outcome.FOUND, families, min(reply.ttl_seconds for reply in good), _joined(good))
    # One family's "no record" proves that the name exists, whatever the other says.
    outcome = next(
        each
        for each in (Outcome.FAILED, Outcome.NO_ADDRESS, Outcome.NO_NAME)
        if any(reply.outcome is each for _, reply in in_order)
    )
    return Found(outcome, evidence=_joined([reply for _, reply in in_order if reply.outcome is outcome]))


def _joined(replies: list[Reply]) -> str:
    return "; ".join(dict.fromkeys(reply.evidence for reply in replies if reply.evidence))


def ordered(addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    """Each once, by number; the first `MOST_ADDRESSES`."""
    return tuple(sorted(set(addresses), key=int)[:MOST_ADDRESSES])


def system_resolver() -> AskSystem:
    """The system's own lookup: /etc/hosts, mDNS names and what else nsswitch.conf(5) names.

    It runs in a thread that cannot be stopped; the next lookup waits for it, so that there is one at most.
    """
    limiter = trio.CapacityLimiter(1)

    async def ask_system(name: str) -> Found:
        try:
            # The stubs that libp2p brings are of an older trio.
            rows = await trio.to_thread.run_sync(  # type: ignore[call-arg]
                lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM), abandon_on_cancel=True, limiter=limiter
            )
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            return Found(Outcome.NO_NAME, evidence=f"nor does the system's own lookup know it ({reason})")
        known = [dialable(ipaddress.ip_address(str(row[4][0]))) for row in rows]
        usable = tuple(address for address in known if address is not None)
        if not usable:
            return Found(Outcome.NO_ADDRESS, evidence="the system's own lookup gives no address that can be dialled")
        families = {v: ordered(tuple(each for each in usable if each.version == v)) for v in _TYPES}
        return Found(Outcome.FOUND, families, float("inf"))

    return ask_system
