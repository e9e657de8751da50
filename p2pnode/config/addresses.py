"""Addresses an operator may write: multiaddrs to listen on, to announce and to dial, and local API listeners.

Each check returns the address in its plain form or raises ValueError with what would be right.
"""

from __future__ import annotations

import ipaddress
from itertools import pairwise

from p2pnode.errors import InvalidRequest
from p2pnode.local.address import is_port, parse_api_address

_IP = ("ip4", "ip6")
_DIALABLE = ("ip4", "ip6", "dns", "dns4", "dns6")

DEFAULT_PORT = 9000
"""Where CHORUS listens today (facts/domain.md)."""


def check_api_listener(text: str) -> str:
    """`unix:PATH`, `tcp:HOST:PORT` or `tcp:[IPv6]:PORT`."""
    try:
        return str(parse_api_address(text))
    except InvalidRequest as error:
        raise ValueError("; ".join(f"{text!r}: {fault.problem}" for fault in error.faults)) from None


def check_listen(text: str) -> str:
    """A multiaddr to listen on: `/ip4|ip6/ADDRESS/tcp/PORT`, port 0 for any free one."""
    parts = _parts(text)
    if [name for name, _ in parts] not in [[ip, "tcp"] for ip in _IP]:
        raise ValueError(
            f"{text!r}: this version listens on /ip4/ADDRESS/tcp/PORT and /ip6/ADDRESS/tcp/PORT only; "
            "write /ip4/0.0.0.0/tcp/9000 for every IPv4 interface"
        )
    return _joined(parts)


def check_announce(text: str) -> str:
    """A multiaddr that others dial: `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT`, without a peer id."""
    parts = _dialable(text)
    if parts[-1][0] == "p2p":
        raise ValueError(f"{text!r}: leave /p2p/… off, the node adds its own peer id")
    return _joined(parts)


def check_bootstrap(text: str) -> str:
    """A place to join by: a multiaddr, `file:PATH` or `dns:NAME[:PORT]`."""
    if text.startswith("file:"):
        if not text.removeprefix("file:").strip() or "\0" in text:
            raise ValueError(f"{text!r}: after file: comes the path of a file with one multiaddr per line")
        return text
    if text.startswith("dns:"):
        name, port = dns_name_and_port(text, DEFAULT_PORT)
        return f"dns:{name}:{port}"
    return check_dialable(text)


def check_dialable(text: str) -> str:
    """A multiaddr to dial: `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT`, with or without `/p2p/PEER_ID`."""
    return _joined(_dialable(text))


def dns_name_and_port(text: str, default_port: int) -> tuple[str, int]:
    """Name and port of `dns:NAME[:PORT]`.

    Raises:
        ValueError: the name is none, or the port.
    """
    name, colon, port = text.removeprefix("dns:").partition(":")
    labels = name.rstrip(".").split(".")
    if len(name) > 253 or not all(_is_label(label) for label in labels):
        raise ValueError(f"{text!r}: after dns: comes a DNS name, such as dns:tasks.CHORUS_chorus:9000")
    if colon and not (is_port(port) and int(port)):
        raise ValueError(f"{text!r}: the port must be a number from 1 to 65535, not {port!r}")
    return name, int(port) if port else default_port


def _is_label(text: str) -> bool:
    plain = text.replace("-", "").replace("_", "")  # Docker names services STACK_SERVICE
    return 0 < len(text) <= 63 and plain.isalnum() and text.isascii()


def port_of(multiaddr: str) -> tuple[str, int]:
    """Host and port of a checked multiaddr."""
    parts = multiaddr.split("/")
    return parts[2], int(parts[4])


def _dialable(text: str) -> list[tuple[str, str]]:
    parts = _parts(text)
    names = [name for name, _ in parts]
    if names[1:] not in (["tcp"], ["tcp", "p2p"]) or names[0] not in _DIALABLE:
        raise ValueError(
            f"{text!r}: this version dials TCP only; write /ip4/ADDRESS/tcp/PORT or /dns4/HOST/tcp/PORT, "
            "then /p2p/PEER_ID"
        )
    if names[0] in _IP and ipaddress.ip_address(parts[0][1]).is_unspecified:
        raise ValueError(f"{text!r}: nobody can dial {parts[0][1]}; write the address that others reach")
    if parts[1][1] == "0":
        raise ValueError(f"{text!r}: nobody can dial port 0; write the port that is listened on")
    return parts


def _parts(text: str) -> list[tuple[str, str]]:
    """Protocol names and values, checked by the multiaddr library, peer ids included."""
    from multiaddr.exceptions import Error as MultiaddrError
    from multiaddr.multiaddr import Multiaddr

    if not text.startswith("/"):
        raise ValueError(f"{text!r} is no multiaddr: it must start with '/', as /ip4/127.0.0.1/tcp/9000 does")
    # The library strips blanks and reads other scripts' digits and `1_0` as numbers.
    fields = text.strip("/").split("/")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} is no multiaddr: only plain ASCII without blanks is")
    for name, value in pairwise(fields):
        if name in ("tcp", "udp") and not is_port(value):
            raise ValueError(f"{text!r}: the port must be a number from 0 to 65535, not {value!r}")
    try:
        return [(protocol.name, str(value)) for protocol, value in Multiaddr(text).items()]
    except (MultiaddrError, ValueError) as error:
        raise ValueError(f"{text!r} is no multiaddr: {_reason(error, text)}") from None


def _reason(error: Exception, text: str) -> str:
    """The library's reason without the address before it and the parentheses behind it."""
    reason = str(error).split(" (string: ")[0].split(" (protocol: ")[0].split(" (binary: ")[0]
    if "underscore" in reason or "U+005F" in reason:
        return (
            "a DNS name in a multiaddr holds no '_' (Docker names services STACK_SERVICE); "
            "write dns:NAME:PORT instead, or give the service a network alias without one"
        )
    if "CID" in reason or "p2p" in reason:
        return "what follows /p2p/ is no peer id; one starts with 12D3KooW, or with Qm"
    return reason.removeprefix(f"Invalid MultiAddr {text!r}: ")


def _joined(parts: list[tuple[str, str]]) -> str:
    return "".join(f"/{name}/{value}" for name, value in parts)
