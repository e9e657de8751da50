"""Why a node is alone or degraded, and what to do: a table of checks, each a pure function of the facts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from p2pnode.core.crossing import (
    BROKER_CODES,
    bridge_clock,
    bridge_lag,
    broker_trouble,
    import_keys,
    no_bridge,
    no_road,
    refused,
    unstored,
    untrusted_key,
)
from p2pnode.core.facts import Disk, Facts
from p2pnode.core.findings import Finding, Findings, Status, count, few, order, some, status_of
from p2pnode.core.joining import (
    alone,
    network_key,
    no_source,
    source_troubles,
    unreachable_bootstraps,
    virtual_addresses,
)

CLOCK_SECONDS: Final = 60.0
"""Half of what receivers forgive: a message dated two minutes ahead is ignored."""

LEAST_FREE_BYTES: Final = 64 * 1024 * 1024
LEAST_FREE_SHARE: Final = 0.01
TWIN_SECONDS: Final = 600.0
"""A twin not heard of for this long has most likely stopped, as the younger of two does by itself."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """
    Args:
        status: that of the worst finding; notes do no harm.
        findings: the worst first, then by code and title.
        checked: names of the checks that there were facts for.
    """

    status: Status
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table.

    Args:
        name: what is looked at.
        codes: those that it gives by itself.
        find: None: there are no facts to judge by.
        explains: what it finds may be why a node is alone.
    """

    name: str
    codes: tuple[str, ...]
    find: Callable[[Facts], Findings | None]
    explains: bool = False


def diagnose(facts: Facts) -> Diagnosis:
    """Judge the facts. Total: any facts give a diagnosis."""
    found: set[Finding] = set()
    checked: list[str] = ["links"]
    explained = False
    eased = _eased if facts.roads is not None and facts.roads.carried else _as_it_is
    for check in CHECKS:
        findings = check.find(facts)
        if findings is None:
            continue
        checked.append(check.name)
        found.update(map(eased, findings) if check.explains else findings)
        explained = explained or (check.explains and any(each.severity == "failed" for each in findings))
    if facts.alone and not explained:
        found.add(eased(alone(facts)))
    ordered = tuple(sorted(found, key=order))
    return Diagnosis(status_of(ordered), ordered, tuple(checked))


def _eased(finding: Finding) -> Finding:
    """Another road carries the messages of a node that is alone."""
    return replace(finding, severity="degraded") if finding.severity == "failed" else finding


def _as_it_is(finding: Finding) -> Finding:
    return finding


def summary(facts: Facts) -> str:
    """One line: who this is and what there is of good."""
    known = sum(len(facts.members.get(state, ())) for state in ("alive", "suspect"))
    parts = [f"{facts.name}: {count(known, 'live member')}, {count(facts.links, 'link')}"]
    if facts.reachability.state == "reachable":
        parts.append(f"reachable at {', '.join(facts.reachability.addrs) or 'an announced address'}")
    if facts.sources or facts.bootstraps:
        parts.append(f"{count(len(facts.sources) + bool(facts.bootstraps), 'source')} checked")
    if facts.roads is not None and facts.roads.broker is not None and facts.roads.broker.connected:
        parts.append(f"connected to {facts.roads.broker.server or 'NATS'}")
    return ", ".join(parts)


# -- others, as seen from here ---------------------------------------------------------


def _reachability(facts: Facts) -> Findings | None:
    if facts.reachability.state == "unknown":
        return None
    if facts.reachability.state == "reachable":
        return ()
    tried = [
        f"{each.by} tried {', '.join(each.addrs) or 'nothing'}: {each.error or 'no answer'}"
        + (f"; it sees this node at {each.observed}" if each.observed else "")
        for each in facts.reachability.tried
    ]
    return (
        Finding(
            "not-reachable",
            "degraded",
            "no neighbour can dial this node at the addresses it announces, so nobody can join by it",
            some(sorted(tried)),
            "announce an address that others reach (--announce /ip4/ADDRESS/tcp/PORT), choose among those of this "
            "machine with network.announce_cidr, or open the port for incoming connections",
        ),
    )


def _clock(facts: Facts) -> Findings | None:
    offsets = {name: offset for name, offset in facts.clock_offsets.items() if math.isfinite(offset)}
    if not offsets:
        return None
    in_order = sorted(offsets.values())
    low, high = in_order[(len(in_order) - 1) // 2], in_order[len(in_order) // 2]  # both medians
    ours = min(abs(low), abs(high)) > CLOCK_SECONDS
    shown = {name: each for name, each in offsets.items() if ours or abs(each) > CLOCK_SECONDS}
    if not shown:
        return ()
    ordered = sorted(shown.items(), key=lambda item: (-abs(item[1]), item[0]))
    evidence = some(f"the clock of {name} is {_ahead(offset)} this one" for name, offset in ordered)
    fix = "set the clocks by NTP: `timedatectl set-ntp true`, or install chrony; `chronyc tracking` shows the error"
    if not ours:
        title = f"the clocks of {', '.join(few(sorted(shown)))} differ from this one, and most others agree with it"
        return (Finding("clock", "note", title, evidence, f"there, {fix}"),)
    if len(offsets) == 1:
        title = "the clock of this node and that of its only neighbour differ; either may be wrong"
        return (Finding("clock", "degraded", title, evidence, f"on both, {fix}"),)
    title = "the clock of this node differs from most of its neighbours'"
    return (Finding("clock", "degraded", title, evidence, fix),)


def _ahead(offset: float) -> str:
    return f"{abs(offset):.1f} s {'ahead of' if offset >= 0 else 'behind'}"


def _twin(facts: Facts) -> Findings:
    twin = facts.twin
    if twin is None:
        return ()
    return (
        Finding(
            "twin",
            "degraded" if twin.seconds_ago <= TWIN_SECONDS else "note",
            "another live process has this node's identity; the younger of the two stops",
            (f"{twin.name!r} at {', '.join(few(twin.addrs)) or 'an unknown address'}, heard of at {twin.seen_at}",),
            "give each node a data directory of its own (--data-dir): a copied one, or a copied image, holds the same "
            "key; remove `identity.key` from the copy",
        ),
    )


def _topics(facts: Facts) -> Findings | None:
    if not facts.topics or facts.alone:
        return None
    without = sorted(topic for topic, peers in facts.topics.items() if peers <= 0)
    if not without:
        return ()
    peers = count(facts.links, "connected peer")
    return (
        Finding(
            "no-topic-peers",
            "note" if facts.starting else "degraded",
            f"no connected peer is subscribed to {count(len(without), 'topic')} of this node",
            some(f"{topic}: none of {peers}" for topic in without),
            "see whether the names are spelled alike on all nodes (gossip.topics; `p2pnode topics` there); connect to "
            "a node that has the topic with --bootstrap",
        ),
    )


def _dead_members(facts: Facts) -> Findings | None:
    counted = {state: len(facts.members.get(state, ())) for state in ("alive", "suspect", "dead")}
    total = sum(counted.values())
    if not total:
        return None
    if counted["dead"] * 3 <= total:
        return ()
    return (
        Finding(
            "dead-members",
            "note",
            f"{counted['dead']} of {count(total, 'member')} are dead",
            some(sorted(facts.members["dead"])),
            "see whether these were stopped for good: they are forgotten after a day; else look for what they share: "
            "a machine, a switch, a network",
        ),
    )


# -- this machine ----------------------------------------------------------------------


def _disk(facts: Facts) -> Findings | None:
    return None if facts.disk is None else disk_findings(facts.disk)


def disk_findings(disk: Disk) -> Findings:
    """`disk-full`: little is free under the data directory, or nothing can be written there."""
    share = disk.free_bytes / disk.total_bytes if disk.total_bytes > 0 else 1.0
    scarce = disk.free_bytes < LEAST_FREE_BYTES or share < LEAST_FREE_SHARE
    if not disk.error and not scarce:
        return ()
    evidence = [f"{disk.path}: {disk.free_bytes} of {disk.total_bytes} bytes free ({share:.1%})"]
    if disk.error:
        evidence.insert(0, f"writing in {disk.path} failed: {disk.error}")
    title = "nothing can be written in the data directory" if disk.error else "the disk is nearly full"
    return (
        Finding(
            "disk-full",
            "failed" if disk.error else "degraded",
            title,
            tuple(evidence),
            "free space there, or move --data-dir to another disk; a file system that is mounted read-only must be "
            "mounted for writing",
        ),
    )


CHECKS: Final[tuple[Check, ...]] = (
    Check("sources configured", ("no-source",), no_source, explains=True),
    Check("bootstrap addresses", ("bootstrap-unreachable",), unreachable_bootstraps, explains=True),
    Check("virtual addresses", ("virtual-ip",), virtual_addresses),
    Check("discovery sources", (), source_troubles, explains=True),
    Check("network key", ("network-key",), network_key, explains=True),
    Check("reachability", ("not-reachable",), _reachability),
    Check("clock", ("clock",), _clock),
    Check("identity", ("twin",), _twin),
    Check("topics", ("no-topic-peers",), _topics),
    Check("members", ("dead-members",), _dead_members),
    Check("roads", ("no-road",), no_road),
    Check("NATS", BROKER_CODES, broker_trouble),
    Check("plain NATS clients", ("no-bridge",), no_bridge),
    Check("bridge lag", ("bridge-lag",), bridge_lag),
    Check("bridge imports", ("bridge-import",), unstored),
    Check("import keys", ("import-keys",), import_keys),
    Check("import key", ("import-key-untrusted",), untrusted_key),
    Check("bridge clock", ("bridge-clock",), bridge_clock),
    Check("bridge refusals", ("bridge-refused",), refused),
    Check("disk", ("disk-full",), _disk),
)
"""All checks. What a source reports of itself is passed through with its own codes."""

CODES: Final = (*(code for check in CHECKS for code in check.codes), "alone", "starting")
"""Every code given here, besides those of the sources."""
