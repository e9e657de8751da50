"""Where an API listens, as text: `unix:PATH` or `tcp:HOST:PORT`. Imports no I/O, so that commands stay quick."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass

from p2pnode.errors import Fault, InvalidRequest

MAX_SOCKET_PATH_BYTES = 107
"""unix(7): `sun_path` has 108 bytes, the last of them a NUL."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket.

    Args:
        path: where its file is; a relative path counts from the working directory.
    """

    path: str

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        return True

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port.

    Args:
        host: an IP address without brackets, or a name.
        port: 0 lets the system choose.
    """

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it, as far as the text tells: of names, only `localhost` counts."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def __str__(self) -> str:
        return f"tcp:{bracketed(self.host)}:{self.port}"


ApiListener = UnixAddress | TcpAddress


def bracketed(host: str) -> str:
    """An IPv6 address in brackets, as it stands before a port; anything else as it is."""
    return f"[{host}]" if ":" in host else host


def is_port(text: str) -> bool:
    """A decimal number from 0 to 65535, in ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535


def is_host_name(text: str) -> bool:
    """Letters, digits, `-`, `_` and `.`, as resolvers and Docker's service names have them, or an IPv4 address."""
    plain = text.replace("-", "").replace("_", "").replace(".", "")
    if len(text) > 253 or not text.isascii() or not plain.isalnum() or ".." in text or text[0] in "-.":
        return False
    # RFC 1123, 2.1: a name whose last label is a number would be an address, so 300.0.0.1 is neither.
    return not text.rpartition(".")[2].isdigit() or _is_ip4(text)


def parse_api_address(text: str, *, field: str = "--api") -> ApiListener:
    """Read `unix:PATH`, `tcp:HOST:PORT` or `tcp:[IPV6]:PORT`; a path may start with `~`.

    Args:
        text: the address as its writer gave it.
        field: what the fault is filed under: a flag, a variable or a configuration key.

    Raises:
        InvalidRequest: with one fault that says what to write instead.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "unix":
        return _unix(text, rest, field)
    if colon and scheme == "tcp":
        return _tcp(text, rest, field)
    raise _invalid(text, field, "write unix:PATH (unix:/run/p2pnode/api.sock) or tcp:HOST:PORT (tcp:127.0.0.1:8080)")


def _unix(text: str, path: str, field: str) -> UnixAddress:
    if not path:
        raise _invalid(text, field, "the path is missing: write unix:PATH, such as unix:/run/p2pnode/api.sock")
    if any(sign < " " or sign == "\x7f" for sign in path):
        raise _invalid(text, field, "a path cannot hold NUL or control characters; abstract sockets are not supported")
    if path.startswith("//") or path.endswith("/"):
        raise _invalid(text, field, "write the path of a file, no URL: unix:/run/p2pnode/api.sock")
    path = os.path.expanduser(path)
    if path.startswith("~"):
        raise _invalid(text, field, "there is no such user, or this one has no home directory: write the path in full")
    try:
        length = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise _invalid(text, field, "the file system has no such characters: write a path in ASCII") from None
    if length > MAX_SOCKET_PATH_BYTES:
        raise _invalid(text, field, f"a socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes, this one {length}")
    return UnixAddress(path)


def _tcp(text: str, rest: str, field: str) -> TcpAddress:
    host, colon, port = rest.rpartition(":")
    if not colon or not is_port(port):
        raise _invalid(text, field, "end it with a port from 0 to 65535: tcp:HOST:PORT, such as tcp:127.0.0.1:8080")
    if not host:
        raise _invalid(text, field, f"name a host: tcp:127.0.0.1:{port} for this machine, tcp:0.0.0.0:{port} for all")
    if host.startswith("[") and host.endswith("]"):
        try:
            return TcpAddress(str(ipaddress.IPv6Address(host[1:-1])), int(port))
        except ValueError:
            raise _invalid(text, field, f"{host} is no IPv6 address: write one such as tcp:[::1]:{port}") from None
    if ":" in host:
        raise _invalid(text, field, f"put an IPv6 address in brackets: tcp:[{host}]:{port}")
    if not is_host_name(host):
        raise _invalid(text, field, f"{host!r} is neither a host name nor an IP address: tcp:127.0.0.1:{port}")
    return TcpAddress(host, int(port))


def _is_ip4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _invalid(text: str, field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{text!r} is no API address", [Fault(field, problem)])
