"""Where an API listens, as text: `unix:PATH` or `tcp:HOST:PORT`. Imports no I/O, so that commands stay quick."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from p2pnode.errors import Fault, InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_DECIMAL = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket.

    Args:
        path: where its file is; a relative path counts from the working directory.
    """

    path: str

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

    def __str__(self) -> str:
        return f"tcp:{bracketed(self.host)}:{self.port}"


ApiListener = UnixAddress | TcpAddress


def bracketed(host: str) -> str:
    """An IPv6 address in brackets, as it stands before a port; anything else as it is."""
    return f"[{host}]" if ":" in host else host


def parse_api_address(text: str, *, field: str = "--api") -> ApiListener:
    """Read `unix:PATH`, `tcp:HOST:PORT` or `tcp:[IPV6]:PORT`.

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
    if "\0" in path:
        raise _invalid(text, field, "a path cannot hold a NUL byte; abstract sockets are not supported")
    if path.startswith("//") or path.endswith("/"):
        raise _invalid(text, field, "write the path of a file, no URL: unix:/run/p2pnode/api.sock")
    return UnixAddress(path)


def _tcp(text: str, rest: str, field: str) -> TcpAddress:
    host, colon, port = rest.rpartition(":")
    if not colon or not _DECIMAL.fullmatch(port) or int(port) > 65535:
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
    if not _NAME.fullmatch(host):
        raise _invalid(text, field, f"{host!r} is neither a host name nor an IP address: tcp:127.0.0.1:{port}")
    return TcpAddress(host, int(port))


def _invalid(text: str, field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{text!r} is no API address", [Fault(field, problem)])
