"""The doctor's findings about joining: does anything say where peers are, and do they answer there?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from p2pnode.core.facts import BootstrapFacts, Facts, SourceFacts
from p2pnode.core.findings import Finding, Findings, Severity, count, some

NOT_HERE: Final = frozenset(
    {
        "no-multicast-interface",
        "mdns-nothing-to-announce",
        "docker-socket-missing",
        "docker-no-manager",
        "no-such-service",
    }
)
"""Troubles that mean that a source is not to be had on this machine: no fault where nobody asked for it and others do
its work. Mode `auto` tries what is there."""


def no_source(facts: Facts) -> Findings:
    itself = [each for each in facts.bootstraps if _is_itself(each, facts)]
    runs = any((each.method != "bootstrap" or each.troubles) and not _is_idle(each) for each in facts.sources)
    if not facts.alone or runs or facts.places > len(itself):
        return ()
    own = facts.addrs[0] if facts.addrs else ""
    why = [f"the bootstrap address {each.addr} leads to this node itself" for each in itself]
    for source in facts.sources:
        if not source.places:
            named = f"source {source.method} ({source.subject})"
            why.append(f"{named} cannot look" if source.troubles else f"{named} holds no address")
    return (
        Finding(
            "no-source",
            "failed",
            "no peer is connected, and nothing says where peers are",
            some(why or ["network.bootstrap is empty, and no discovery source is running"]),
            "name a peer with --bootstrap /ip4/ADDRESS/tcp/9000/p2p/PEER_ID; on one network --mdns; in Docker Swarm "
            "--bootstrap dns:tasks.SERVICE, or mount /var/run/docker.sock"
            + (f"; or let another node join this one: --bootstrap {own}" if own else ""),
        ),
    )


def _is_itself(bootstrap: BootstrapFacts, facts: Facts) -> bool:
    """Does a configured address lead to this node?"""
    return bootstrap.reason == "self" or (not bootstrap.error and set(bootstrap.answered_as) == {facts.name})


_BOOTSTRAP_FIXES: Final[Mapping[str, str]] = {
    "dns": "the name does not resolve from here: check its spelling and this container's network; a Swarm service "
    "resolves as dns:tasks.SERVICE",
    "other-peer": "another peer lives there now: take its peer id from `p2pnode id` on that machine, or drop "
    "/p2p/PEER_ID from the address",
}


def unreachable_bootstraps(facts: Facts) -> Findings | None:
    others = [each for each in facts.bootstraps if not _is_itself(each, facts)]
    if not others:
        return None
    down = [each for each in others if each.error and each.reason != "network-key"]
    if not down:
        return ()
    severity: Severity = "failed" if facts.alone else "degraded" if len(down) == len(others) else "note"
    fixes = [fix for reason, fix in _BOOTSTRAP_FIXES.items() if any(each.reason == reason for each in down)]
    if any(each.reason not in _BOOTSTRAP_FIXES for each in down):
        fixes.insert(0, "start the node there, correct the address, or open its port between the two machines")
    return (
        Finding(
            "bootstrap-unreachable",
            severity,
            f"{len(down)} of {count(len(others), 'bootstrap address', 'bootstrap addresses')} cannot be reached",
            some(f"{each.addr}: {each.error}" for each in down),
            "; ".join(fixes),
        ),
    )


def virtual_addresses(facts: Facts) -> Findings | None:
    if not facts.bootstraps:
        return None
    return tuple(_many_at(each) for each in facts.bootstraps if len(set(each.answered_as)) > 1)


def _many_at(bootstrap: BootstrapFacts) -> Finding:
    names = sorted(set(bootstrap.answered_as))
    return Finding(
        "virtual-ip",
        "degraded",
        f"{bootstrap.addr} is a virtual address: {len(names)} different live peers answered there",
        some(f"answered as {name}" for name in names),
        "such an address leads to one peer at random; name the tasks themselves: --bootstrap dns:tasks.SERVICE",
    )


def source_troubles(facts: Facts) -> Findings | None:
    if not facts.sources:
        return None
    return tuple(finding for source in facts.sources for finding in _troubles(source, facts))


def _is_idle(source: SourceFacts) -> bool:
    """It runs because of mode `auto` only, and does not find anything for trouble."""
    return bool(source.troubles) and not source.wanted and not source.places


def _troubles(source: SourceFacts, facts: Facts) -> Iterable[Finding]:
    severity: Severity = "failed" if facts.alone else "degraded" if source.wanted or not source.places else "note"
    where = f"source {source.method} ({source.subject}) knows {count(source.places, 'place')}"
    for trouble in source.troubles:
        if trouble.code in NOT_HERE and _is_idle(source) and not facts.alone:
            continue
        yield Finding(trouble.code, severity, trouble.problem, (where,), trouble.fix)


def network_key(facts: Facts) -> Findings | None:
    failed = [(each.addr, each.error) for each in facts.bootstraps if each.reason == "network-key"]
    failed += [(each.addr, each.error) for each in facts.dial_failures if each.reason == "network-key"]
    strangers = sorted(facts.strangers.items(), key=lambda item: (-item[1], item[0]))
    if not failed and not strangers:
        return ()
    severity: Severity = "failed" if facts.alone else "degraded" if failed else "note"
    knocked = [f"{count(number, 'connection')} from {addr} without our network key" for addr, number in strangers]
    return (
        Finding(
            "network-key",
            severity,
            "who answers, or knocks, is in another private network, or in none",
            some([*sorted(f"{addr}: {error}" for addr, error in failed), *knocked]),
            "give all nodes of the network the same network.key or network.key_file (`p2pnode config show` says where "
            "this one's comes from), and none to any node of a public one; who knocks and is none of yours is to be "
            "kept off by a firewall",
        ),
    )


def alone(facts: Facts) -> Finding:
    """Nothing above says why."""
    asked = [f"source {each.method} ({each.subject}) knows {count(each.places, 'place')}" for each in facts.sources]
    errors = [(each.source, each.error) for each in facts.dial_failures]
    if facts.starting:
        return Finding(
            "starting",
            "note",
            f"started {facts.uptime_seconds:.0f} s ago, and no peer is connected yet",
            some([*asked, *_grouped(errors)]),
            "ask again in a few seconds",
        )
    if errors:
        return Finding(
            "alone",
            "failed",
            f"no peer is connected: {count(facts.places, 'place')} known, and none of those tried answers",
            some([*asked, *_grouped(errors)]),
            "see whether the nodes there run (`p2pnode status` beside them) and listen at these addresses, and "
            "whether a firewall or another Docker network lies between",
        )
    return Finding(
        "alone",
        "failed",
        "no peer is connected, and no source knows of any"
        if not facts.places
        else f"no peer is connected: {count(facts.places, 'place')} known, and no dial failed so far",
        some(asked),
        "start the other nodes on this network or in this service; name one of them with --bootstrap "
        "/ip4/ADDRESS/tcp/9000/p2p/PEER_ID",
    )


def _grouped(errors: Sequence[tuple[str, str]]) -> list[str]:
    counts: dict[tuple[str, str], int] = {}
    for each in errors:
        counts[each] = counts.get(each, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [f"{count(number, 'place')} named by {source}: {error}" for (source, error), number in ordered]
