"""The settings: frozen values with units in their names, and what each is for.

Each key's metadata feed `docs/configuration.md`; a default's reason stands in its description.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints

from p2pnode.config.addresses import DEFAULT_PORT, check_announce, check_api_listener, check_bootstrap, check_listen
from p2pnode.config.checks import (
    Between,
    Check,
    check_allowed_host,
    check_carrier_listener,
    check_cidr,
    check_cluster,
    check_docker_host,
    check_endpoint,
    check_name,
    check_nats_url,
    check_network_key,
    check_path,
    check_path_or_none,
    check_peer_id,
    check_secret,
    check_service,
    check_subject_pair,
    check_switch,
    check_text,
    check_topic,
    check_url_path,
    check_webhook,
    check_word,
)
from p2pnode.core.message import MAX_MESSAGE_BYTES
from p2pnode.logs import LogFormat, LogLevel
from p2pnode.paths import default_data_dir

Role = Literal["chorus", "whoosh", "bridge", "bootstrap"]
Stack = Literal["fused", "library"]
DiscoveryMode = Literal["auto", "docker-swarm", "dns", "mdns", "static"]
Switch = Literal["auto", "on", "off"]
Durability = Literal["full", "normal"]
Takeover = Literal["majority", "any", "off"]
Use = Literal["off", "fallback", "always"]
Rollback = Literal["", "nats", "http"]


def _about(description: str, *, unit: str = "", shown: str = "", secret: bool = False) -> dict[str, str]:
    """A key's metadata; `shown` replaces its default in the reference, a secret's value is never shown."""
    return {"description": description, "unit": unit, "shown": shown, "secret": "yes" if secret else ""}


Name = Annotated[str, Check(check_name)]
Text = Annotated[str, Check(check_text)]
Word = Annotated[str, Check(check_word)]
Listen = Annotated[str, Check(check_listen)]
Announce = Annotated[str, Check(check_announce)]
Bootstrap = Annotated[str, Check(check_bootstrap)]
ApiListener = Annotated[str, Check(check_api_listener)]
TopicName = Annotated[str, Check(check_topic)]
NetworkKey = Annotated[str, Check(check_network_key)]
TrustedPeer = Annotated[str, Check(check_peer_id)]
AllowedHost = Annotated[str, Check(check_allowed_host)]
Cidr = Annotated[str, Check(check_cidr)]
Service = Annotated[str, Check(check_service)]
NatsUrl = Annotated[str, Check(check_nats_url)]
Secret = Annotated[str, Check(check_secret)]
Port = Annotated[int, Between(1, 65535)]
YesNo = Annotated[bool, Check(check_switch, before=True)]
FilePath = Annotated[Path, Check(check_path, before=True)]


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Who this node is and where it keeps what it knows."""

    name: Name = field(
        default="",
        metadata=_about(
            "What people see in `peers` and in logs. Empty: made from role and peer id.", shown="role and peer id"
        ),
    )
    role: Role = field(
        default="chorus",
        metadata=_about(
            "`chorus` (an agent; most nodes are), `whoosh` (an orchestrator), `bridge` (to NATS) or `bootstrap`."
        ),
    )
    data_dir: FilePath = field(
        default_factory=lambda: default_data_dir(os.environ),
        metadata=_about(
            "Identity key and stored state; one process at a time. Default by the XDG specification.",
            unit="path",
            shown="$XDG_STATE_HOME/p2pnode, else ~/.local/state/p2pnode",
        ),
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, on standard error."""

    level: LogLevel = field(
        default="info", metadata=_about("The least that is written: `debug`, `info`, `warning` or `error`.")
    )
    format: LogFormat = field(
        default="auto", metadata=_about("`json`, `text`, or `auto`: text on a terminal, JSON lines elsewhere.")
    )


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Whom this node connects to, and how others reach it."""

    listen: tuple[Listen, ...] = field(
        default=(f"/ip4/0.0.0.0/tcp/{DEFAULT_PORT}",),
        metadata=_about(
            "Multiaddrs to listen on: `/ip4|ip6/ADDRESS/tcp/PORT`; port 0 is any free one. 9000 is CHORUS's port."
        ),
    )
    announce: tuple[Announce, ...] = field(
        default=(),
        metadata=_about(
            "Multiaddrs told to others instead of those listened on: behind a published port or address translation."
        ),
    )
    announce_cidr: tuple[Cidr, ...] = field(
        default=(),
        metadata=_about(
            "Of this machine's addresses only those in these networks are told to others, in this order: a container "
            "has some that nobody outside can use. Empty: all of them."
        ),
    )
    bootstrap: tuple[Bootstrap, ...] = field(
        default=(),
        metadata=_about(
            "Where to join, dialled for ever: `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT`, best with `/p2p/PEER_ID`; "
            "`file:PATH`, a file with one such address per line, read again when it changes; `dns:NAME[:PORT]`, every "
            "address of that name, as `dns:tasks.SERVICE` in Docker Swarm. Empty: what `discovery` finds."
        ),
    )
    target_links: Annotated[int, Between(0, 1000)] = field(
        default=6,
        metadata=_about(
            "Connections a node opens by itself, so that the fleet is no star: 6 is the usual gossip mesh degree."
        ),
    )
    max_links: Annotated[int, Between(1, 10_000)] = field(
        default=16,
        metadata=_about(
            "Connections a node keeps: above it the least useful are closed with a goodbye. Bounds what one node costs "
            "however many members there are; twice the largest mesh of a small fleet."
        ),
    )
    dial_backoff_max_seconds: Annotated[float, Between(0.1, 3600)] = field(
        default=10.0,
        metadata=_about(
            "Longest pause between two attempts to reach a bootstrap peer: a restarted one is found within it.",
            unit="seconds",
        ),
    )
    key: NetworkKey = field(
        default="",
        repr=False,
        metadata=_about(
            "Key of a private network, a libp2p PSK: 64 hexadecimal digits or the text of a `swarm.key` file. Without "
            "it nobody gets as far as a handshake. Empty: a public network.",
            shown="none",
            secret=True,
        ),
    )
    key_file: Annotated[Path | None, Check(check_path_or_none, before=True)] = field(
        default=None,
        metadata=_about("File that holds `key`: a `swarm.key`.", unit="path", shown="none"),
    )


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """Where peers are looked for besides `network.bootstrap`."""

    mode: DiscoveryMode = field(
        default="auto",
        metadata=_about(
            "`auto`: every source that is there; `docker-swarm`, `dns`, `mdns`: that one; `static`: none of them. "
            "`network.bootstrap` is used in every mode."
        ),
    )
    mdns: Switch = field(
        default="auto",
        metadata=_about(
            "Multicast DNS. `auto`: by `mode`, where this node listens on an interface that can multicast; `on` and "
            "`off` say so whatever the mode."
        ),
    )
    mdns_interfaces: tuple[Word, ...] = field(
        default=(),
        metadata=_about(
            "Interfaces that multicast DNS uses, by name. Empty: those that are up, can multicast, and hold an address "
            "that this node announces.",
            shown="by announced address",
        ),
    )
    docker_host: Annotated[str, Check(check_docker_host)] = field(
        default="unix:///var/run/docker.sock",
        metadata=_about(
            "The Docker API: `unix:///PATH`, `tcp://HOST:PORT` or `http://HOST:PORT`. In mode `auto` it is used when "
            "the socket is there, or when this is set.",
            unit="URL",
        ),
    )
    docker_network: Text = field(
        default="",
        metadata=_about(
            "Name of the Docker network whose addresses count. Empty: the first of a task's networks that this node "
            "has an address in.",
            shown="the first one in reach",
        ),
    )
    services: tuple[Service, ...] = field(
        default=("CHORUS_chorus",),
        metadata=_about(
            "Docker Swarm services whose tasks are peers; also asked for as `tasks.SERVICE` in Swarm's DNS."
        ),
    )
    p2p_port: Port = field(
        default=DEFAULT_PORT, metadata=_about("Where the sidecars of those tasks listen for peers.", unit="port")
    )
    agent_port: Port = field(
        default=8080, metadata=_about("Where the agents of those tasks serve their HTTP API.", unit="port")
    )
    refresh_seconds: Annotated[float, Between(1, 3600)] = field(
        default=10.0,
        metadata=_about(
            "Pause between two looks at the Docker API, and the longest between two at DNS: a changed service is "
            "followed within it.",
            unit="seconds",
        ),
    )


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """What carries the streams of a connection."""

    stack: Stack = field(
        default="fused",
        metadata=_about(
            "`fused`: Noise and yamux frames in one pass, a fraction of the CPU. `library`: py-libp2p's own, to fall "
            "back on. Both speak the same protocols; nodes of both kinds work together."
        ),
    )


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """Whose word counts where a member's alone does not."""

    orchestrators: tuple[TrustedPeer, ...] = field(
        default=(),
        metadata=_about(
            "Peer ids whose opportunities, assignments and statuses count. Empty: anyone's, with a warning at start."
        ),
    )
    bridges: tuple[TrustedPeer, ...] = field(
        default=(),
        metadata=_about(
            "Peer ids of import keys (`p2pnode bridge status` shows them): what bridges signed for NATS clients that "
            "cannot sign. On `bridged_topics` it counts as an orchestrator's. Empty: nobody's does, where "
            "`orchestrators` names some."
        ),
    )
    bridged_topics: tuple[TopicName, ...] = field(
        default=("councils.forming",),
        metadata=_about(
            "Topics on which an import of `bridges` counts as an orchestrator's: opportunities, as an older WHOOSH "
            "publishes them. `councils.status` would let whoever reaches NATS end councils."
        ),
    )


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """How messages spread."""

    degree: Annotated[int, Between(0, 64)] = field(
        default=0, metadata=_about("Mesh peers for each topic. 0: by the size of the fleet.", shown="0 (by fleet size)")
    )
    heartbeat_seconds: Annotated[float, Between(0.1, 60)] = field(
        default=1.0,
        metadata=_about(
            "Pause between two rounds of mesh upkeep; 1 s is the GossipSub specification's.", unit="seconds"
        ),
    )
    topics: tuple[TopicName, ...] = field(
        default=("councils.forming", "councils.claims", "councils.status", "backbeat.status"),
        metadata=_about("Topics subscribed at start: those that every WHOOSH and CHORUS speaks on."),
    )
    publish_per_second: Annotated[float, Between(0.1, 100_000)] = field(
        default=20.0,
        metadata=_about(
            "Own messages admitted in the long run; faster gets 429. Every node pays for each, as each reaches all.",
            unit="messages per second",
        ),
    )
    publish_burst: Annotated[int, Between(1, 1_000_000)] = field(
        default=100, metadata=_about("Own messages admitted at once after a pause: 5 s of the rate.", unit="messages")
    )


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The local API that the agent and the commands talk to."""

    listen: tuple[ApiListener, ...] = field(
        default=(),
        metadata=_about(
            "`unix:PATH` or `tcp:HOST:PORT`, any number. Empty: one Unix socket, 0600, in the runtime directory.",
            shown="a Unix socket in the runtime directory",
        ),
    )
    token_file: Annotated[Path | None, Check(check_path_or_none, before=True)] = field(
        default=None,
        metadata=_about(
            "File with the bearer token that TCP callers must show. Needed by a TCP listener off loopback.",
            unit="path",
            shown="none",
        ),
    )
    allowed_hosts: tuple[AllowedHost, ...] = field(
        default=(),
        metadata=_about(
            "Host names accepted in the Host header besides loopback's: a web page elsewhere cannot use the API."
        ),
    )


@dataclass(frozen=True, slots=True)
class MessagesSettings:
    """What is stored, so that nothing is lost: for agents that read later, and for nodes that were away."""

    keep_count: Annotated[int, Between(1, 10_000_000)] = field(
        default=10_000, metadata=_about("Messages kept for each topic; the oldest go first.", unit="messages per topic")
    )
    keep_bytes: Annotated[int, Between(MAX_MESSAGE_BYTES, 1 << 40)] = field(
        default=64 * 1024 * 1024,
        metadata=_about(
            "Bytes kept for each topic: 64 MiB, some 240 of the largest messages. At least one of those must fit.",
            unit="bytes",
        ),
    )
    keep_seconds: Annotated[float, Between(60, 10 * 365 * 86400)] = field(
        default=7 * 86400.0,
        metadata=_about(
            "How long a message is kept after its signed time: a week, so that a node that was away over a long "
            "weekend misses nothing.",
            unit="seconds",
        ),
    )
    own_durability: Durability = field(
        default="full",
        metadata=_about(
            "Of own messages when 202 is answered. `full`: a power cut loses none; `normal`: it may take the last "
            "moments, a crash of the process nothing."
        ),
    )
    received_durability: Durability = field(
        default="normal",
        metadata=_about("Of received messages: what a power cut takes, synchronisation brings again."),
    )


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The agent: what others are told about it, and how it gets its messages."""

    id: Text = field(default="", metadata=_about("The agent's id in WHOOSH and CHORUS."))
    name: Text = field(default="", metadata=_about("The agent's name."))
    capabilities: tuple[Word, ...] = field(
        default=(), metadata=_about("What the agent can do; council roles are matched against it.")
    )
    model: Text = field(default="", metadata=_about("The model the agent works with."))
    endpoint: Annotated[str, Check(check_endpoint)] = field(
        default="", metadata=_about("The agent's own HTTP API, as others reach it: `http://HOST:PORT`.", unit="URL")
    )
    cluster_id: Annotated[str, Check(check_cluster)] = field(
        default="docker-unified-stack",
        metadata=_about("The cluster, as in `backbeat.status.<cluster>`; the default is upstream's."),
    )
    webhook: Annotated[str, Check(check_webhook)] = field(
        default="",
        metadata=_about(
            "Where each message is posted until the agent answers 2xx: `http://HOST:PORT/PATH`, or https. Empty: the "
            "agent reads an event stream, or nothing.",
            unit="URL",
            shown="none",
        ),
    )
    webhook_topics: tuple[TopicName, ...] = field(
        default=(),
        metadata=_about("Topics whose messages are posted. Empty: `gossip.topics`.", shown="`gossip.topics`"),
    )
    webhook_timeout_seconds: Annotated[float, Between(0.1, 3600)] = field(
        default=10.0,
        metadata=_about(
            "How long one attempt may take, from the connection to the end of the answer; 10 s is what CHORUS's own "
            "callers allow.",
            unit="seconds",
        ),
    )
    webhook_attempts: Annotated[int, Between(1, 1_000_000)] = field(
        default=1440,
        metadata=_about(
            "How often a message is tried before it becomes a dead letter. The pauses are 0.5 s doubling to 60 s: 1440 "
            "attempts take a day (23.9 h) at least, 20 take 13 minutes, 8 take one.",
            unit="attempts",
        ),
    )
    stop_grace_seconds: Annotated[float, Between(0, 3600)] = field(
        default=10.0,
        metadata=_about(
            "How long an agent run under `p2pnode run -- COMMAND` may take after SIGTERM; 10 s is Docker's own grace.",
            unit="seconds",
        ),
    )
    auto_claim: YesNo = field(
        default=False,
        metadata=_about(
            "`true`: the sidecar claims council roles that fit `capabilities`, for an agent that does not claim by "
            "itself. `false`: only the agent claims."
        ),
    )


@dataclass(frozen=True, slots=True)
class CouncilSettings:
    """How councils form, and live on when their owner is gone. `takeover` matters to role `whoosh` only."""

    takeover: Takeover = field(
        default="majority",
        metadata=_about(
            "When a council's owner is dead, another WHOOSH takes it over: `majority`, if it sees more than half of "
            "the members that were alive at its creation, so that at most one side of a cut does; `any`: whatever it "
            "sees; `off`: never."
        ),
    )
    formation_seconds: Annotated[float, Between(1, 7 * 86400)] = field(
        default=600.0,
        metadata=_about(
            "How long a council may take to form when its request names no `formation_deadline`: ten times what is "
            "promised for 34 agents. After it the council is expired.",
            unit="seconds",
        ),
    )


@dataclass(frozen=True, slots=True)
class CarriersSettings:
    """Which roads this node's own messages take. Others' messages are taken from every road that is not `off`."""

    gossip: Use = field(
        default="always",
        metadata=_about(
            "libp2p gossip: `always`, or `off`: own messages take the old roads. `fallback` is for a start of the "
            "migration: gossip only carries what NATS did not."
        ),
    )
    nats: Use = field(
        default="fallback",
        metadata=_about(
            "NATS, where `nats.url` is set: `fallback` (what is not held by two neighbours within 2 s, or when there "
            "is no neighbour), `always` or `off`."
        ),
    )
    http: Use = field(
        default="fallback",
        metadata=_about(
            "HTTP between sidecars (`carriers.listen`), and to agents that run none (`legacy.*`): `fallback` (to those "
            "that no other road reaches), `always` or `off`."
        ),
    )
    canary_percent: Annotated[float, Between(0, 100)] = field(
        default=100.0,
        metadata=_about(
            "Share of councils that goes by gossip, chosen by a hash of the council's id, so that every node chooses "
            "the same; the others take NATS, or HTTP where there is no NATS. Messages about no council are not "
            "concerned.",
            unit="percent",
        ),
    )
    rollback: Rollback = field(
        default="",
        metadata=_about(
            "`nats` or `http`: own messages take that road and no other, whatever the keys above say. Also "
            "P2PNODE_ROLLBACK, and live `p2pnode carriers set rollback=nats`.",
            shown="none",
        ),
    )
    listen: Annotated[str, Check(check_carrier_listener)] = field(
        default="",
        metadata=_about(
            "`HOST:PORT` where other sidecars may hand over signed messages by HTTP, when no other road is left. "
            "Empty: nowhere.",
            shown="none",
        ),
    )
    announce: Annotated[str, Check(check_endpoint)] = field(
        default="",
        metadata=_about(
            "URL told to others for `listen`. Empty: made of `listen`, or of the first announced address where that "
            "is on all interfaces.",
            unit="URL",
            shown="by `listen`",
        ),
    )


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """The NATS server: a road to fall back on, and what role `bridge` joins the fleet to."""

    url: tuple[NatsUrl, ...] = field(
        default=(),
        metadata=_about(
            "`nats://HOST:PORT` or `tls://HOST:PORT`, any number of one cluster. Empty: no NATS; for role `bridge` "
            "nats://backbeat-nats:4222, CHORUS's default.",
            unit="URL",
            shown="none",
        ),
    )
    user: Text = field(default="", metadata=_about("User name.", shown="none"))
    password: Secret = field(default="", repr=False, metadata=_about("Its password.", shown="none", secret=True))
    token: Secret = field(default="", repr=False, metadata=_about("A token instead.", shown="none", secret=True))
    creds_file: Annotated[Path | None, Check(check_path_or_none, before=True)] = field(
        default=None, metadata=_about("A `.creds` file: user JWT and key.", unit="path", shown="none")
    )
    nkey: Secret = field(
        default="",
        repr=False,
        metadata=_about("An nkey seed (`SU…`), or the path of a file that holds it.", shown="none", secret=True),
    )
    tls_ca_file: Annotated[Path | None, Check(check_path_or_none, before=True)] = field(
        default=None,
        metadata=_about("Certificates that the server's must descend from.", unit="path", shown="the system's"),
    )
    tls_cert_file: Annotated[Path | None, Check(check_path_or_none, before=True)] = field(
        default=None, metadata=_about("Our certificate, for servers that ask for one.", unit="path", shown="none")
    )
    tls_key_file: Annotated[Path | None, Check(check_path_or_none, before=True)] = field(
        default=None, metadata=_about("Its key.", unit="path", shown="none")
    )
    jetstream: Switch = field(
        default="auto",
        metadata=_about("`auto`: used when the server has it; `on`: degraded without it; `off`: core NATS alone."),
    )
    stream: Annotated[str, Check(check_cluster)] = field(
        default="P2PNODE",
        metadata=_about(
            "The stream that a bridge makes for subjects that no stream holds yet; files, kept as long "
            "as `messages.keep_seconds`."
        ),
    )
    subjects: tuple[Annotated[str, Check(check_subject_pair)], ...] = field(
        default=(),
        metadata=_about("More topics over NATS, each `TOPIC=SUBJECT`, both ways; without wildcards.", shown="none"),
    )


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """For role `bridge`."""

    import_key_file: Annotated[Path | None, Check(check_path_or_none, before=True)] = field(
        default=None,
        metadata=_about(
            "Key that signs what plain NATS clients publish. Bridges of one cluster share the file, so that they make "
            "the same message of the same publication (`p2pnode keygen FILE`).",
            unit="path",
            shown="import.key in `node.data_dir`, made at the first start",
        ),
    )
    durable: Annotated[str, Check(check_text)] = field(
        default="",
        metadata=_about(
            "Name of the JetStream consumers. Bridges of one fleet with the same name share the work; with a name of "
            "its own each reads everything. Empty: a name of its own.",
            shown="by peer id",
        ),
    )


@dataclass(frozen=True, slots=True)
class LegacySettings:
    """Agents that run no sidecar and no NATS: own opportunities are posted to them as JSON."""

    endpoints: tuple[Annotated[str, Check(check_endpoint)], ...] = field(
        default=(),
        metadata=_about(
            "Their HTTP APIs, besides those that the Swarm API names and that are no member's.",
            unit="URL",
            shown="none",
        ),
    )
    path: Annotated[str, Check(check_url_path)] = field(
        default="/api/v1/opportunities/council", metadata=_about("Where an opportunity is posted.")
    )
    health_port: Port = field(
        default=8081, metadata=_about("Where `GET /health` is asked first; CHORUS's.", unit="port")
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured; built by `load_settings`."""

    node: NodeSettings = field(default_factory=NodeSettings)
    log: LogSettings = field(default_factory=LogSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    transport: TransportSettings = field(default_factory=TransportSettings)
    trust: TrustSettings = field(default_factory=TrustSettings)
    gossip: GossipSettings = field(default_factory=GossipSettings)
    api: ApiSettings = field(default_factory=ApiSettings)
    messages: MessagesSettings = field(default_factory=MessagesSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    councils: CouncilSettings = field(default_factory=CouncilSettings)
    carriers: CarriersSettings = field(default_factory=CarriersSettings)
    nats: NatsSettings = field(default_factory=NatsSettings)
    bridge: BridgeSettings = field(default_factory=BridgeSettings)
    legacy: LegacySettings = field(default_factory=LegacySettings)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration.

    Args:
        section: its TOML table.
        name: its name there.
        description: what it means and why its default is what it is.
        unit: what its numbers count; empty when it has none.
        shown: the default in words; empty when the value speaks for itself.
        many: it is a list.
        secret: its value is never shown.
    """

    section: str
    name: str
    description: str
    unit: str
    shown: str
    many: bool
    secret: bool

    @property
    def dotted(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"P2PNODE_{self.section}_{self.name}".upper()


def keys() -> Iterator[Key]:
    """Every key, in the order of the reference."""
    for section, kind in get_type_hints(Settings).items():
        if not is_dataclass(kind):
            raise TypeError(f"section {section} is no dataclass")
        hints = get_type_hints(kind)
        for each in fields(kind):
            data = each.metadata
            many = Ellipsis in get_args(hints[each.name])
            yield Key(section, each.name, data["description"], data["unit"], data["shown"], many, bool(data["secret"]))
