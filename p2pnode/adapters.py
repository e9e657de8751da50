"""The other roads of a node, made from its settings: NATS, HTTP, and a bridge's key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import p2pnode.host  # noqa: F401  before whatever makes protobuf messages: it leaves half of that library out
from p2pnode.config import Settings
from p2pnode.core.routing import Policy
from p2pnode.errors import EnvironmentFault, Fault, InvalidConfig
from p2pnode.identity import Identity, create_key_file, load_key_file
from p2pnode.node.bridge import ImportKey
from p2pnode.node.intake import FOR_GOOD
from p2pnode.node.settings import OtherRoads
from p2pnode.node.sidecar import Node
from p2pnode.ports.roads import Broker, Post

DEFAULT_SERVER = "nats://backbeat-nats:4222"
"""Where CHORUS and WHOOSH look for NATS when nobody says otherwise."""

IMPORT_KEY_NAME = "import.key"


def policy_of(settings: Settings) -> Policy:
    carriers = settings.carriers
    return Policy(carriers.gossip, carriers.nats, carriers.http, carriers.canary_percent, carriers.rollback)


def other_roads(settings: Settings, data_dir: Path, name: str, network_key: bytes) -> OtherRoads:
    """NATS where a server is configured, HTTP unless it is off; a bridge has both ends of NATS.

    Raises:
        InvalidConfig: NATS is wanted and no server is named; the import key cannot be used.
    """
    is_bridge = settings.node.role == "bridge"
    servers = settings.nats.url or ((DEFAULT_SERVER,) if is_bridge else ())
    faults = []
    if not servers and settings.carriers.rollback == "nats":
        faults.append(Fault("carriers.rollback", "nats needs a server: set nats.url (NATS_URL)"))
    if not servers and settings.carriers.nats == "always":
        faults.append(Fault("carriers.nats", "always needs a server: set nats.url (NATS_URL)"))
    if faults:
        raise InvalidConfig("the carriers cannot be used as configured:", faults)
    return OtherRoads(
        broker=_broker(settings, servers, name) if servers else None,
        post=_post(settings, network_key),
        importing=_import_key(settings, data_dir) if is_bridge else None,
        durable=settings.bridge.durable,
    )


def _broker(settings: Settings, servers: tuple[str, ...], name: str) -> Broker:
    from p2pnode.carriers.nats import BrokerSettings, NatsBroker

    nats, role = settings.nats, settings.node.role
    names = {"whoosh": "WHOOSH Council Publisher", "chorus": f"CHORUS Agent {settings.agent.id or name}"}
    return NatsBroker(
        BrokerSettings(
            servers=servers,
            name=names.get(role, f"p2pnode {role} {name}"),
            user=nats.user,
            password=nats.password,
            token=nats.token,
            creds_file=nats.creds_file,
            nkey=nats.nkey,
            tls_ca_file=nats.tls_ca_file,
            tls_cert_file=nats.tls_cert_file,
            tls_key_file=nats.tls_key_file,
            jetstream=nats.jetstream,
            stream=nats.stream,
            max_age_seconds=settings.messages.keep_seconds,
        )
    )


def _post(settings: Settings, network_key: bytes) -> Post | None:
    if settings.carriers.http == "off" and settings.carriers.rollback != "http":
        return None
    from p2pnode.carriers.http.post import HttpPost

    legacy = settings.legacy
    return HttpPost(network_key=network_key, legacy_path=legacy.path, health_port=legacy.health_port)


def _import_key(settings: Settings, data_dir: Path) -> ImportKey:
    configured = settings.bridge.import_key_file
    path = configured or data_dir / IMPORT_KEY_NAME
    try:
        identity: Identity = load_key_file(path)
    except FileNotFoundError:
        if configured is not None:
            raise InvalidConfig(
                "the import key cannot be used",
                [Fault("bridge.import_key_file", f"{path} does not exist; `p2pnode keygen {path}` makes one to share")],
            ) from None
        identity = create_key_file(path)
    return ImportKey(identity.peer_id, identity.peer_id_bytes, identity.sign, is_shared=configured is not None)


@asynccontextmanager
async def http_carrier(settings: Settings, node: Node, network_key: bytes) -> AsyncIterator[None]:
    """Take messages by HTTP, where that is configured, and say so to the members.

    Raises:
        EnvironmentFault: the address cannot be used.
    """
    listen = settings.carriers.listen
    if not listen:
        yield
        return
    from p2pnode.carriers.http.server import open_carrier

    async with open_carrier(
        listen, lambda message: node.intake.take(message, "http"), for_good=FOR_GOOD, network_key=network_key
    ) as carrier:
        bound = carrier.addresses[0]
        node.carries_http(bound, settings.carriers.announce or _announced(bound, node), carrier.counters.metrics)
        yield


def _announced(bound: str, node: Node) -> str:
    """The URL for others: the address bound to, or the first announced one when that is any."""
    url = urlsplit(f"http://{bound}")
    if url.hostname not in ("0.0.0.0", "::"):
        return f"http://{bound}"
    for addr in node.members.own.addrs:
        _, kind, host, *_ = addr.split("/")
        if kind in ("ip4", "ip6"):
            return f"http://[{host}]:{url.port}" if kind == "ip6" else f"http://{host}:{url.port}"
    raise EnvironmentFault(
        f"nobody could be told where {bound} is: no address of this node is known",
        hint="set carriers.announce to http://HOST:PORT as others reach it",
    )
