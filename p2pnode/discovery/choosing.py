"""Which sources a node uses, by its settings and by what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from random import Random

import ifaddr

from p2pnode.config.addresses import DEFAULT_PORT, dns_name_and_port
from p2pnode.config.settings import Settings
from p2pnode.discovery.bootstrap import BootstrapFile
from p2pnode.discovery.dns import DnsSource, uses_docker_dns
from p2pnode.discovery.docker import DockerSource
from p2pnode.discovery.mdns import MdnsSource
from p2pnode.discovery.resolv_conf import RESOLV_CONF
from p2pnode.ports import Source


def plain_addresses(bootstrap: Sequence[str]) -> tuple[str, ...]:
    """Those of `network.bootstrap` that are multiaddrs."""
    return tuple(each for each in bootstrap if not each.startswith(("file:", "dns:")))


def choose_sources(
    settings: Settings,
    *,
    docker_is_configured: bool,
    peer_id: str,
    addrs: Callable[[], Sequence[str]],
    fingerprint: str,
    rng: Random,
    resolv_conf: Path = RESOLV_CONF,
) -> Iterator[tuple[Source, bool]]:
    """Sources beside the plain addresses, and whether the operator asked for each.

    Args:
        docker_is_configured: `discovery.docker_host` is no default.
        addrs: our announced multiaddrs, ending in `/p2p/<peer id>`; they may change.
        fingerprint: of the private network's key, in hexadecimal; empty in a public one.
    """
    discovery = settings.discovery
    names: dict[str, None] = {}
    for each in settings.network.bootstrap:
        if each.startswith("file:"):
            yield BootstrapFile(Path(each.removeprefix("file:")).expanduser()), True
        elif each.startswith("dns:"):
            name, port = dns_name_and_port(each, DEFAULT_PORT)
            names[name] = None
            yield DnsSource(name, port, most_seconds=discovery.refresh_seconds, rng=rng), True
    mode = discovery.mode
    if discovery.mdns == "on" or (discovery.mdns == "auto" and mode in ("auto", "mdns")):
        wanted = discovery.mdns == "on" or mode == "mdns" or bool(discovery.mdns_interfaces)
        yield MdnsSource(peer_id, addrs, interfaces=discovery.mdns_interfaces, fingerprint=fingerprint, rng=rng), wanted
    docker_is_wanted = mode == "docker-swarm" or (mode == "auto" and docker_is_configured)
    if docker_is_wanted or (mode == "auto" and _is_there(discovery.docker_host)):
        docker = DockerSource(
            discovery.docker_host,
            discovery.services,
            network=discovery.docker_network,
            p2p_port=discovery.p2p_port,
            agent_port=discovery.agent_port,
            cluster_id=settings.agent.cluster_id,
            refresh_seconds=discovery.refresh_seconds,
            own_networks=own_networks,
        )
        yield docker, docker_is_wanted
    if mode == "dns" or (mode == "auto" and uses_docker_dns(resolv_conf)):
        for service in discovery.services:
            if (name := f"tasks.{service}") not in names:
                optional = mode == "auto"
                seconds = discovery.refresh_seconds
                yield (
                    DnsSource(name, discovery.p2p_port, most_seconds=seconds, rng=rng, optional=optional),
                    not optional,
                )


def own_networks() -> list[IPv4Network | IPv6Network]:
    """The networks that this machine has an address in, loopback and link-local ones left out."""
    found: dict[IPv4Network | IPv6Network, None] = {}
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            text = each.ip if isinstance(each.ip, str) else each.ip[0]
            network = ip_network(f"{text}/{each.network_prefix}", strict=False)
            if not (network.is_loopback or network.is_link_local):
                found[network] = None
    return list(found)


def _is_there(docker_host: str) -> bool:
    return docker_host.startswith("unix://") and Path(docker_host.removeprefix("unix://")).exists()
