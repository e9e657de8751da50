"""Addresses an operator may write: multiaddrs to listen on, to announce and to dial, and local API listeners.

Each check returns the address in its plain form or raises ValueError with what would be right.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

MAX_SOCKET_PATH_BYTES = 107
"""unix(7): `sun_path` is 108 bytes, the last of them a NUL."""

_IP = ("ip4", "ip6")
_DIALABLE = ("ip4", "ip6", "dns", "dns4", "dns6")


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """Where a local API listens.

    Args:
        kind: `unix` (then `path` counts) or `tcp` (then `host` and `port` do).
        path: the socket's file.
        host: a name or an IP address, without brackets.
        port: 0 means any free one.
    """

    kind: Literal["unix", "tcp"]
    path: Path = Path()
    host: str = ""
    port: int = 0

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        if self.kind == "unix" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


def parse_api_address(text: str) -> ApiAddress:
    """Read `unix:PATH`, `tcp:HOST:PORT` or `tcp:[IPv6]:PORT`.

    Raises:
        ValueError: with what is wrong and what would be right.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in ("unix", "tcp"):
        raise ValueError(f"{text!r} must be written unix:PATH or tcp:HOST:PORT")
    if kind == "unix":
        if not rest or not rest.isprintable():
            raise ValueError(f"{text!r} lacks a usable path; write unix:/run/p2pnode/api.sock")
        path = Path(rest).expanduser()
        if len(bytes(path)) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"a socket path has at most {MAX_SOCKET_PATH_BYTES} bytes, this one {len(bytes(path))}")
        return ApiAddress("unix", path=path)
    host, colon, port = rest.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r} lacks the port; write tcp:HOST:PORT")
    if not _is_port(port):
        raise ValueError(f"{text!r}: the port must be a number from 0 to 65535")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not host:
        raise ValueError(f"{text!r} lacks the host; write tcp:127.0.0.1:{port}, or tcp:0.0.0.0:{port} for all")
    if bracketed or ":" in host:
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError:
            raise ValueError(f"{text!r}: {host!r} is no IPv6 address") from None
        if not bracketed:
            raise ValueError(f"{text!r}: write the IPv6 address in brackets, tcp:[{host}]:{port}")
    elif not is_host_name(host):
        raise ValueError(f"{text!r}: {host!r} is neither a host name nor an IP address")
    return ApiAddress("tcp", host=host, port=int(port))


def check_api_listener(text: str) -> str:
    return str(parse_api_address(text))


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
    """A multiaddr to dial: `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT[/p2p/PEER_ID]`."""
    for form in ("file:", "dns:"):
        if text.startswith(form):
            raise ValueError(
                f"{text!r}: the form {form}… is not supported yet in this version; "
                "write a multiaddr such as /dns4/HOST/tcp/9000"
            )
    return _joined(_dialable(text))


def is_host_name(text: str) -> bool:
    """Letters, digits, `-`, `_` and `.`, as resolvers and Docker's service names have them."""
    plain = text.replace("-", "").replace("_", "").replace(".", "")
    if len(text) > 253 or not text.isascii() or not plain.isalnum() or ".." in text or text[0] in "-.":
        return False
    return not text.rpartition(".")[2].isdigit() or _is_ip4(text)


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
            "with or without /p2p/PEER_ID behind it"
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
        if name in ("tcp", "udp") and not _is_port(value):
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
            "give the service a network alias without one"
        )
    if "CID" in reason or "p2p" in reason:
        return "what follows /p2p/ is no peer id; one starts with 12D3KooW, or with Qm"
    return reason.removeprefix(f"Invalid MultiAddr {text!r}: ")


def _joined(parts: list[tuple[str, str]]) -> str:
    return "".join(f"/{name}/{value}" for name, value in parts)


def _is_ip4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535
