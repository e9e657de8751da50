"""What a node knows about its own condition, as plain values: what the doctor judges.

All of it was gathered before; nothing here is looked up, so that every finding can be provoked by facts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class SourceTrouble:
    """Why a source finds less than it should; `ports.Trouble` says what each member is."""

    code: str
    problem: str
    fix: str


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """One running source of places.

    Args:
        method: `bootstrap`, `mdns`, `docker` or `dns`.
        subject: what it looks at.
        wanted: the operator asked for it by name; it is not there merely because of mode `auto`.
        places: how many it knows now.
    """

    method: str
    subject: str
    wanted: bool = False
    places: int = 0
    troubles: tuple[SourceTrouble, ...] = ()


@dataclass(frozen=True, slots=True)
class BootstrapFacts:
    """One configured address.

    Args:
        addr: the multiaddr as configured.
        error: why nobody was reached there last time; empty when somebody was, or it was not tried yet.
        reason: the code of that error, as `Host.dial` gives it.
        answered_as: names of the different live peers that answered there.
    """

    addr: str
    error: str = ""
    reason: str = ""
    answered_as: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DialFailure:
    """The newest failure at one address that is no configured one.

    Args:
        addr: the multiaddr.
        reason: as `Host.dial` gives it.
        error: the same in words.
        source: who named the address: a method, or `members`.
    """

    addr: str
    reason: str
    error: str
    source: str


@dataclass(frozen=True, slots=True)
class DialBack:
    """A neighbour that dialled our announced addresses.

    Args:
        by: its name.
        addrs: what it tried.
        observed: the address it sees us at; empty when it did not say.
        error: why nobody answered; empty when somebody did.
    """

    by: str
    addrs: tuple[str, ...]
    observed: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Reachability:
    """Can others dial us?

    Args:
        state: `unknown` until a neighbour tried.
        addrs: announced addresses at which somebody was answered.
    """

    state: Literal["unknown", "reachable", "unreachable"] = "unknown"
    addrs: tuple[str, ...] = ()
    tried: tuple[DialBack, ...] = ()


@dataclass(frozen=True, slots=True)
class TwinFacts:
    """Another live process with our identity.

    Args:
        addrs: where it says it is.
        seen_at: wall time when we last heard of it, RFC 3339.
        seconds_ago: the same from now.
    """

    name: str
    addrs: tuple[str, ...]
    seen_at: str
    seconds_ago: float


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system under the data directory.

    Args:
        path: the directory.
        free_bytes: that this user may still write.
        total_bytes: its size.
        error: why the last write failed; empty when it worked.
    """

    path: str
    free_bytes: int
    total_bytes: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """The connection to NATS, of a node that is to use it; each member as `ports.roads.BrokerState` says."""

    server: str = ""
    connected: bool = False
    code: str = ""
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class RoadFacts:
    """One road.

    Args:
        use: in force: `off`, `fallback` or `always`.
        up: it can carry messages now.
        why: why it is not up.
    """

    use: str = "off"
    up: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class RoadsFacts:
    """The roads of own messages.

    Args:
        roads: by name: `gossip`, `nats`, `http`.
        rollback: the one that is forced; empty: none is.
        waiting: own messages that are not where they should be.
        broker: None where NATS is not used.
        plain: messages of plain NATS clients that came by, which only a bridge can sign.
        bridged: a bridge of this mesh is alive.
        carried: another road brings own messages out and others' in although no peer is connected.
    """

    roads: Mapping[str, RoadFacts] = field(default_factory=dict)
    rollback: str = ""
    waiting: int = 0
    broker: BrokerFacts | None = None
    plain: int = 0
    bridged: bool = False
    carried: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a bridge passed over for good.

    Args:
        seconds_ago: when.
    """

    subject: str
    reason: str
    detail: str
    seconds_ago: float


@dataclass(frozen=True, slots=True)
class BridgeFacts:
    """A bridge's own condition.

    Args:
        import_key: peer id of the key that signs for plain NATS clients.
        other_keys: that of each other bridge that is heard, by the bridge's name.
        trusted: imports count here: no orchestrators are named, or the import key is among the trusted.
        lag_seconds: age of the oldest message that waits for NATS.
        waiting: how many wait.
        troubled: messages of NATS that cannot be stored here, and come again.
        refused: the newest first.
    """

    import_key: str
    other_keys: Mapping[str, str] = field(default_factory=dict)
    trusted: bool = True
    lag_seconds: float = 0.0
    waiting: int = 0
    troubled: int = 0
    refused: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the doctor looks at.

    Args:
        name, role, peer_id: who we are.
        addrs: where we say that we can be dialled, multiaddrs with `/p2p/…`.
        uptime_seconds: since the start.
        links: how many peers are connected.
        members: names by state (`alive`, `suspect`, `dead`, `left`), our own among them.
        sources: all that run beside the configured addresses.
        bootstraps: the configured addresses, without `file:` and `dns:`.
        dial_failures: of all other addresses.
        clock_offsets: seconds that a neighbour's wall clock is ahead of ours, by its name.
        twin: None when none was seen.
        topics: connected peers that are subscribed to each topic of ours.
        disk: None when it was not looked at.
        strangers: connections without our network key, by IP address.
        roads: None while that is not known.
        bridge: None of a node that is no bridge.
    """

    name: str
    role: str
    peer_id: str
    addrs: tuple[str, ...]
    uptime_seconds: float
    links: int
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: tuple[SourceFacts, ...] = ()
    bootstraps: tuple[BootstrapFacts, ...] = ()
    dial_failures: tuple[DialFailure, ...] = ()
    reachability: Reachability = Reachability()
    clock_offsets: Mapping[str, float] = field(default_factory=dict)
    twin: TwinFacts | None = None
    topics: Mapping[str, int] = field(default_factory=dict)
    disk: Disk | None = None
    strangers: Mapping[str, int] = field(default_factory=dict)
    roads: RoadsFacts | None = None
    bridge: BridgeFacts | None = None

    @property
    def places(self) -> int:
        """How many somebody named: sources, or the configuration."""
        return sum(source.places for source in self.sources) + len(self.bootstraps)

    @property
    def alone(self) -> bool:
        """No peer is connected."""
        return self.links == 0

    @property
    def starting(self) -> bool:
        """So young that what is missing may just be on its way."""
        return self.uptime_seconds < STARTING_SECONDS


STARTING_SECONDS = 10.0
"""The first dials, DNS answers and mDNS rounds take seconds; a node that is alone after this stays so."""
