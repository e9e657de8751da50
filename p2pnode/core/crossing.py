"""The doctor's findings about the other roads: is NATS there, does a road carry, and does the bridge keep up?"""

from __future__ import annotations

from typing import Final

from p2pnode.core.facts import Facts, Refusal, RoadsFacts
from p2pnode.core.findings import Finding, Findings, count, few, some

LAG_SECONDS: Final = 30.0
"""Of several bridges each gives the others their turn for 2 s; after a start 30 s may go by before exports begin."""

REFUSED_SECONDS: Final = 3600.0
"""What was refused longer ago is no news."""

ROLL_CLOCK_SECONDS: Final = 60.0
"""A bridge tells who lives beyond it every 15 s: a clock that was wrong a minute ago and is not now was set."""

_TROUBLES: Final = (
    "unreachable",
    "authorization",
    "credentials",
    "credentials-expired",
    "plaintext",
    "tls",
    "url",
    "jetstream-off",
    "jetstream-full",
    "stream",
)
BROKER_CODES: Final = tuple(f"nats-{code}" for code in _TROUBLES)
"""One for each code of `ports.roads.BrokerState`."""


def no_road(facts: Facts) -> Findings | None:
    """Own messages may take no road that is up. That gossip alone has no neighbour is told by the checks of joining."""
    roads = facts.roads
    if roads is None or "gossip" not in roads.roads:
        return None
    on = {name: road for name, road in roads.roads.items() if road.use != "off"}
    if "gossip" in on or any(road.up for road in on.values()):
        return ()
    forced = f"carriers.rollback is {roads.rollback}" if roads.rollback else "gossip is off"
    evidence = [
        f"{name}: {'off' if road.use == 'off' else road.why or 'down'}" for name, road in sorted(roads.roads.items())
    ]
    if roads.waiting:
        evidence.append(f"{count(roads.waiting, 'message')} of this node {'waits' if roads.waiting == 1 else 'wait'}")
    return (
        Finding(
            "no-road",
            "note" if facts.starting else "failed",
            f"own messages can take no road: {forced}, and what is left does not carry",
            some(evidence),
            _way_out(roads),
        ),
    )


def _way_out(roads: RoadsFacts) -> str:
    back = "rollback=off" if roads.rollback else "gossip=always"
    ways = [f"`p2pnode carriers set {back}` lets gossip carry them"]
    if roads.rollback != "nats":
        ways.append("HTTP needs other sidecars that run with --carrier HOST:PORT, or legacy.endpoints")
    if roads.rollback != "http":
        ways.append("NATS needs a server that can be reached (nats.url)")
    return "; ".join(ways)


def broker_trouble(facts: Facts) -> Findings | None:
    """NATS is to be used, and is not there or works less well than wanted."""
    broker = facts.roads.broker if facts.roads is not None else None
    if broker is None:
        return None
    evidence = [f"{broker.server or 'nats.url'}: {'connected' if broker.connected else 'not connected'}"]
    if facts.bridge is not None and facts.bridge.waiting:
        waiting, lag = count(facts.bridge.waiting, "message"), facts.bridge.lag_seconds
        evidence.append(f"{waiting} for NATS on this bridge's disk, the oldest for {lag:.0f} s")
    if broker.code:
        code = broker.code if broker.code in _TROUBLES else "unreachable"
        return (Finding(f"nats-{code}", "degraded", broker.problem, tuple(evidence), broker.fix or _LOOK),)
    if broker.connected or facts.starting:
        return ()
    title = f"there is no connection to {broker.server or 'a NATS server'} yet"
    return (Finding("nats-unreachable", "degraded", title, tuple(evidence), _LOOK),)


_LOOK: Final = "see whether the server runs, and whether nats.url names it; the log says what was tried"


def no_bridge(facts: Facts) -> Findings | None:
    roads = facts.roads
    if roads is None or roads.broker is None or not roads.broker.connected:
        return None
    if facts.bridge is not None or roads.bridged or roads.plain <= 0:
        return ()
    return (
        Finding(
            "no-bridge",
            "degraded",
            "plain NATS clients publish, and no bridge of this mesh takes it in",
            (f"{count(roads.plain, 'unsigned message')} came by NATS since the start; no live member is a bridge",),
            "start `p2pnode bridge` with this nats.url and a bootstrap address of this mesh: it signs what such "
            "clients publish, and reads what JetStream kept meanwhile",
        ),
    )


def bridge_lag(facts: Facts) -> Findings | None:
    bridge = facts.bridge
    if bridge is None or not _is_good(facts):
        return None
    if bridge.lag_seconds < LAG_SECONDS:
        return ()
    return (
        Finding(
            "bridge-lag",
            "degraded",
            f"a message waits for NATS since {bridge.lag_seconds:.0f} s, although the server is connected",
            (f"{count(bridge.waiting, 'message')} to be published",),
            "see the exports of `p2pnode bridge status` (`failed` is tried again) and the log, and whether the server "
            "keeps up; several bridges share the work",
        ),
    )


def _is_good(facts: Facts) -> bool:
    """Else the trouble with NATS is what delays a bridge."""
    broker = facts.roads.broker if facts.roads is not None else None
    return broker is not None and broker.connected and not broker.code


def unstored(facts: Facts) -> Findings | None:
    bridge = facts.bridge
    if bridge is None:
        return None
    if bridge.troubled <= 0:
        return ()
    return (
        Finding(
            "bridge-import",
            "degraded",
            f"{count(bridge.troubled, 'message')} of NATS cannot be stored here; JetStream gives each again",
            (f"{bridge.troubled} tried and not stored",),
            "the log line `a message of NATS cannot be stored` says why: free space under the data directory, or set "
            "the clock that is wrong",
        ),
    )


def import_keys(facts: Facts) -> Findings | None:
    """Bridges with different keys make two messages of each publication of a plain client."""
    bridge = facts.bridge
    if bridge is None or not bridge.other_keys:
        return None
    others = sorted((name, key) for name, key in bridge.other_keys.items() if key != bridge.import_key)
    if not others:
        return ()
    return (
        Finding(
            "import-keys",
            "degraded",
            f"{', '.join(few([name for name, _ in others]))} at this NATS server "
            f"{'signs' if len(others) == 1 else 'sign'} for plain clients with another import key than this bridge",
            some([f"{facts.name}: {bridge.import_key}", *(f"{name}: {key}" for name, key in others)]),
            "give all bridges at one server the same file, bridge.import_key_file, and start them again: else agents "
            "can get what a plain client publishes twice, under two ids",
        ),
    )


def untrusted_key(facts: Facts) -> Findings | None:
    bridge = facts.bridge
    if bridge is None:
        return None
    if bridge.trusted:
        return ()
    return (
        Finding(
            "import-key-untrusted",
            "note",
            "councils that plain NATS clients announce count nowhere: trust.orchestrators names others, and "
            "trust.bridges does not hold the import key",
            (f"the import key: {bridge.import_key}",),
            "if an orchestrator without a sidecar announces over NATS, put this key into trust.bridges of every node; "
            "else leave it so",
        ),
    )


def bridge_clock(facts: Facts) -> Findings | None:
    bridge = facts.bridge
    if bridge is None:
        return None
    wrong = [each for each in bridge.refused if _is_clock(each) and each.seconds_ago <= ROLL_CLOCK_SECONDS]
    if not wrong:
        return ()
    return (
        Finding(
            "bridge-clock",
            "degraded",
            "another bridge's clock differs from this one's by minutes, so that it is not heard",
            some(each.detail for each in wrong),
            "set the clocks by NTP: `timedatectl set-ntp true`, or install chrony; `chronyc tracking` shows the error",
        ),
    )


def refused(facts: Facts) -> Findings | None:
    bridge = facts.bridge
    if bridge is None:
        return None
    last = [each for each in bridge.refused if not _is_clock(each) and each.seconds_ago <= REFUSED_SECONDS]
    if not last:
        return ()
    return (
        Finding(
            "bridge-refused",
            "note",
            "messages were refused within the last hour, and do not cross",
            some(f"{each.subject}: {each.reason}: {each.detail}" for each in last),
            "correct them where they are published; `p2pnode bridge status` counts them by subject",
        ),
    )


def _is_clock(refusal: Refusal) -> bool:
    return refusal.reason == "stamp"
