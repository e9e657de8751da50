"""Contradictions: settings that are good alone and wrong together."""

from __future__ import annotations

from collections.abc import Iterator

from p2pnode.config.addresses import port_of
from p2pnode.config.settings import Settings
from p2pnode.core.subjects import Subjects
from p2pnode.errors import InvalidMessage
from p2pnode.local.address import UnixAddress, parse_api_address

Contradiction = tuple[tuple[str, ...], str]
"""The keys involved, the one to blame first, and the problem."""


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """Every contradiction in `settings`."""
    network, gossip, api = settings.network, settings.gossip, settings.api
    if network.target_links > network.max_links:
        yield (
            ("network.target_links", "network.max_links"),
            f"{network.target_links} is more than network.max_links ({network.max_links}); lower it or raise that one",
        )
    if gossip.degree > network.max_links:
        yield (
            ("gossip.degree", "network.max_links"),
            f"a mesh of {gossip.degree} needs as many connections, but network.max_links is {network.max_links}",
        )
    if network.key and network.key_file is not None:
        yield ("network.key", "network.key_file"), "both are set; keep one of them"
    if network.announce and network.announce_cidr:
        yield (
            ("network.announce_cidr", "network.announce"),
            "network.announce names the addresses already; keep one of them",
        )
    if settings.discovery.mode == "mdns" and settings.discovery.mdns == "off":
        yield ("discovery.mdns", "discovery.mode"), "is off, but discovery.mode is mdns; drop one of them"
    if settings.agent.webhook_topics and not settings.agent.webhook:
        yield ("agent.webhook_topics", "agent.webhook"), "is set, but no agent.webhook to post them to; set that too"
    for key, listeners in (("network.listen", network.listen), ("api.listen", api.listen)):
        # Port 0 is a new free port each time, so the same text twice is no clash.
        twice = {each for each in listeners if listeners.count(each) > 1 and not each.endswith(("/0", ":0"))}
        if twice:
            yield (key,), f"{', '.join(sorted(twice))} is listed twice; a port can be listened on once"
    yield from _listener_contradictions(settings)
    yield from _road_contradictions(settings)
    yield from _nats_contradictions(settings)
    try:
        Subjects(settings.agent.cluster_id, settings.nats.subjects)
    except InvalidMessage as error:
        yield ("nats.subjects", "agent.cluster_id"), error.detail


def _road_contradictions(settings: Settings) -> Iterator[Contradiction]:
    """A bridge has a NATS server in any case: it has a default."""
    carriers = settings.carriers
    if settings.nats.url or settings.node.role == "bridge":
        has_nats = carriers.nats != "off"
    else:
        has_nats = False
        for key, value in (("carriers.rollback", carriers.rollback), ("carriers.nats", carriers.nats)):
            if value in ("nats", "always"):
                yield (key, "nats.url", "node.role"), f"{value} needs a server: set nats.url (NATS_URL)"
    if not carriers.rollback and {carriers.gossip, carriers.http} == {"off"} and not has_nats:
        yield (
            ("carriers.gossip", "carriers.nats", "carriers.http", "nats.url", "node.role"),
            "is off, and so is every other road (carriers.nats needs nats.url); leave one on",
        )


def _nats_contradictions(settings: Settings) -> Iterator[Contradiction]:
    nats = settings.nats
    if nats.password and not nats.user:
        yield ("nats.password", "nats.user"), "is set without nats.user (NATS_USER), so nobody would be logged in"
    if nats.tls_key_file is not None and nats.tls_cert_file is None:
        yield (
            ("nats.tls_key_file", "nats.tls_cert_file"),
            "is set without nats.tls_cert_file: a key is shown with its certificate",
        )


def _listener_contradictions(settings: Settings) -> Iterator[Contradiction]:
    taken = [port_of(each) for each in settings.network.listen]
    for text in settings.api.listen:
        address = parse_api_address(text)
        if isinstance(address, UnixAddress):
            continue
        if not address.loopback and settings.api.token_file is None:
            yield (
                ("api.listen", "api.token_file"),
                f"{text} can be reached from other machines; "
                f"set api.token_file, or listen on tcp:127.0.0.1:{address.port}",
            )
        for host, port in taken:
            if port == address.port != 0 and _overlap(host, address.host):
                yield (
                    ("api.listen", "network.listen"),
                    f"{text} is taken by network.listen ({host}, port {port}); choose another port",
                )


def _overlap(host: str, other: str) -> bool:
    """One socket on each, same port, cannot be: IPv6 sockets are opened for IPv6 only, so families do not meet."""
    other = "127.0.0.1" if other == "localhost" else other
    return (":" in host) == (":" in other) and (host == other or bool({host, other} & {"0.0.0.0", "::"}))
