"""Multiaddrs as text: taking off the peer id, resolving names, and what a wildcard stands for."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import ifaddr
import trio
from multiaddr.exceptions import Error as MultiaddrError
from multiaddr.multiaddr import Multiaddr

from p2pnode.core.peerid import PeerId, peer_id_bytes
from p2pnode.errors import InvalidMessage, InvalidRequest, Unavailable

_DIALABLE = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/\d+")


def split_peer(addr: str) -> tuple[str, PeerId | None]:
    """A dialable multiaddr as `(address, peer id)`; None when it does not say who lives there.

    Raises:
        InvalidRequest: no multiaddr, not TCP, or what follows `/p2p/` is no peer id.
    """
    try:
        parsed = str(Multiaddr(addr))
    except (MultiaddrError, ValueError) as error:
        raise InvalidRequest(f"{addr!r} is no multiaddr: {error}") from error
    where, names_peer, peer = parsed.partition("/p2p/")
    if _DIALABLE.fullmatch(where) is None or "/" in peer:
        raise InvalidRequest(f"{addr!r} cannot be dialled: only /ip4|ip6|dns|dns4|dns6/…/tcp/PORT[/p2p/<peer id>] can")
    if not names_peer:
        return where, None
    try:
        peer_id_bytes(peer)
    except InvalidMessage as error:
        raise InvalidRequest(f"{addr!r}: {error}") from error
    return where, PeerId(peer)


async def dialable(where: str) -> list[str]:
    """The addresses behind `split_peer`'s address: itself, or what its DNS name resolves to.

    Raises:
        Unavailable: the name does not resolve.
    """
    parts = where.split("/")
    kind, name, port = parts[1], parts[2], parts[4]
    if kind not in ("dns", "dns4", "dns6"):
        return [where]
    family = {"dns": 0, "dns4": trio.socket.AF_INET, "dns6": trio.socket.AF_INET6}[kind]
    try:
        found = await trio.socket.getaddrinfo(name, int(port), family, trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: what no DNS name can be
        reason = error.strerror if isinstance(error, OSError) else error
        raise Unavailable(f"{name} does not resolve: {reason}", reason="dns") from error
    addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [f"/{'ip6' if ':' in address else 'ip4'}/{address}/tcp/{port}" for address in addresses]


def wildcard_to_interfaces(listening: Iterable[str]) -> list[str]:
    """Listen addresses with 0.0.0.0 and :: replaced by this machine's own, loopback last.

    Advertising a wildcard tells others to dial themselves.
    """
    out: dict[str, None] = {}
    for addr in listening:
        parts = addr.split("/")
        if not is_wildcard(addr):
            out[addr] = None
            continue
        for address in _own_addresses(parts[1]):
            out["/".join([*parts[:2], address, *parts[3:]])] = None
    return list(out)


def is_wildcard(addr: str) -> bool:
    """Does a listen address stand for every address of its family?"""
    parts = addr.split("/")
    return parts[1] in ("ip4", "ip6") and ipaddress.ip_address(parts[2]).is_unspecified


def _own_addresses(kind: str) -> list[str]:
    own = [
        ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    ]
    usable = [ip for ip in own if ip.version == (4 if kind == "ip4" else 6) and not ip.is_link_local]
    return [str(ip) for ip in sorted(usable, key=lambda ip: (ip.is_loopback, str(ip)))]
