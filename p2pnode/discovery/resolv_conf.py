"""Which DNS servers to ask, and for which names: resolv.conf(5)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")

DOCKER_DNS = "127.0.0.11"
"""Docker's own DNS server, the same in every container with a network of Docker's."""

MOST_BYTES = 64 * 1024
MOST_SERVERS = 3
MOST_SEARCHED = 32
"""Servers and search domains that count: glibc's MAXNS, and what Kubernetes lets a pod have."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Whom to ask.

    Args:
        addresses: IP addresses, in the order to ask; empty when none is known.
        port: 53 everywhere but in tests.
        search: domains put behind a name that is not absolute.
        ndots: a name with at least so many dots is tried as it is before the search domains.
        origin: where this is from, for people.
    """

    addresses: tuple[str, ...]
    port: int = 53
    search: tuple[str, ...] = ()
    ndots: int = 1
    origin: str = str(RESOLV_CONF)


def read_resolv_conf(path: Path, port: int = 53) -> Servers:
    """What a resolv.conf says; no servers when it cannot be read. What makes no sense in it is passed over."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        text = ""
    return parse_resolv_conf(text, port, str(path))


def parse_resolv_conf(text: str, port: int = 53, origin: str = str(RESOLV_CONF)) -> Servers:
    addresses: dict[str, None] = {}
    search: tuple[str, ...] = ()
    ndots = 1
    for line in text.split("\n"):
        match line.split():
            case ["nameserver", address, *_] if _is_address(address):
                addresses[address] = None
            case ["search" | "domain", *domains]:
                search = tuple(domains[:MOST_SEARCHED])
            case ["options", *options]:
                for option in options:
                    key, _, value = option.partition(":")
                    if key == "ndots" and value.isascii() and value.isdigit():
                        ndots = min(int(value[:4]), 15)
    return Servers(tuple(addresses)[:MOST_SERVERS], port, search, ndots, origin)


def uses_docker_dns(resolv_conf: Path = RESOLV_CONF) -> bool:
    """Is this a container whose names Docker resolves? Only there can `tasks.SERVICE` exist."""
    return DOCKER_DNS in read_resolv_conf(resolv_conf).addresses


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
