"""Opens the sockets the API listens on, and removes what a dead sidecar left behind.

A Unix socket has mode 0600 from its first moment: on Linux the mode of an unbound socket is the
mode its file is created with (`unix_bind` in `net/unix/af_unix.c`), so there is no gap to slip through.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio

from p2pnode.errors import EnvironmentFault
from p2pnode.local.address import MAX_SOCKET_PATH_BYTES, ApiListener, TcpAddress, UnixAddress

BACKLOG = 128
"""Connections the system holds for us while all our slots are taken."""

_LOCK_SECONDS = 2.0
_LOCK_RETRY_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Listener:
    """One bound and listening socket.

    Args:
        address: where it really listens: a port that was 0 is the one the system chose.
        listener: trio's side of it.
        ip: the bound IP address, None for a Unix socket.
    """

    address: ApiListener
    listener: trio.SocketListener
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP address with its name resolved, not bound yet."""

    address: TcpAddress
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address

    @property
    def is_loopback(self) -> bool:
        return self.ip.is_loopback


async def resolve(address: TcpAddress) -> Endpoint:
    """Find the IP address to bind: of several the first IPv4 one, so that `localhost` is one socket with one port.

    Raises:
        EnvironmentFault: the name has no address here.
    """
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise EnvironmentFault(
            f"{address}: the host name has no address here ({error})",
            hint="write an IP address, such as tcp:127.0.0.1:8080, or correct the name",
        ) from None
    ips = [ipaddress.ip_address(str(entry[4][0])) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)]
    if not ips:
        raise EnvironmentFault(f"{address}: the host name has no IP address here", hint="write an IP address")
    return Endpoint(address, min(ips, key=lambda ip: ip.version))


@asynccontextmanager
async def open_tcp(endpoint: Endpoint) -> AsyncIterator[Listener]:
    """Listen on a TCP port.

    Raises:
        EnvironmentFault: in use, not allowed, or no address of this machine.
    """
    address = endpoint.address
    family = socket.AF_INET if endpoint.ip.version == 4 else socket.AF_INET6
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _tcp_fault(address, error) from None
    with sock:
        try:
            # Without it a restart waits a minute for old connections; it does not let two listeners share a port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((str(endpoint.ip), address.port))
            sock.listen(BACKLOG)
        except OSError as error:
            raise _tcp_fault(address, error) from None
        bound = TcpAddress(address.host, sock.getsockname()[1])
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        try:
            yield Listener(bound, listener, endpoint.ip)
        finally:
            listener.socket.close()


def _tcp_fault(address: TcpAddress, error: OSError) -> EnvironmentFault:
    hints = {
        errno.EADDRINUSE: "another program listens there: stop it, or choose another port (0 takes a free one)",
        errno.EACCES: "ports below 1024 need a privilege: choose a higher one",
        errno.EADDRNOTAVAIL: "that is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all of them",
    }
    hint = hints.get(error.errno or 0, "choose another address")
    return EnvironmentFault(f"{address}: cannot listen there ({error.strerror or error})", hint=hint)


@asynccontextmanager
async def open_unix(address: UnixAddress) -> AsyncIterator[Listener]:
    """Listen on a Unix socket with mode 0600; its file is gone afterwards, if it is still ours.

    Raises:
        EnvironmentFault: the path is too long, taken or not writable, or another sidecar answers there.
    """
    path = address.path
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise EnvironmentFault(
            f"{address}: the path has {length} bytes, the system allows a socket {MAX_SOCKET_PATH_BYTES}",
            hint="choose a shorter one, such as unix:/tmp/p2pnode.sock, or a relative path",
        )
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise _unix_fault(address, error) from None
    with sock:
        async with _directory_lock(address):
            try:
                _remove_stale(address)
                os.fchmod(sock.fileno(), 0o600)
                sock.bind(path)
                sock.listen(BACKLOG)
                ours = _identity(path)
            except OSError as error:
                raise _unix_fault(address, error) from None
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        try:
            yield Listener(address, listener, None)
        finally:
            # Before closing: while the socket is open its inode number cannot be given to another file.
            _unlink_if(path, ours)
            listener.socket.close()


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _unlink_if(path: str, ours: tuple[int, int]) -> None:
    try:
        if _identity(path) == ours:
            os.unlink(path)
    except OSError:
        return  # gone already, or its directory is: nothing of ours is left


def _remove_stale(address: UnixAddress) -> None:
    """Unlink a socket nobody listens on.

    Raises:
        EnvironmentFault: something else is there, or somebody answers.
        OSError: it could not be looked at or removed.
    """
    path = address.path
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise EnvironmentFault(
            f"{address}: there is a file that is no socket", hint="remove it, or choose another path for the API"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody is there, and busy
    raise EnvironmentFault(
        f"{address}: another sidecar answers there", hint="stop it, or give this one another --api address"
    )


@asynccontextmanager
async def _directory_lock(address: UnixAddress) -> AsyncIterator[None]:
    """Keep two sidecars that start at once from each removing the other's socket as stale.

    A lock on the directory leaves no file behind; where the file system has no locks we go without.

    Raises:
        EnvironmentFault: the directory cannot be opened, or somebody holds its lock for 2 s.
    """
    directory = os.path.dirname(address.path) or "."
    with _opened(directory, address) as fd:
        deadline = trio.current_time() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if trio.current_time() > deadline:
                    raise EnvironmentFault(
                        f"{address}: another program keeps {directory!r} locked",
                        hint="see who with `fuser`, or choose another directory",
                    ) from None
                await trio.sleep(_LOCK_RETRY_SECONDS)
            except OSError:
                break
        yield  # closing the descriptor unlocks


@contextmanager
def _opened(directory: str, address: UnixAddress) -> Iterator[int]:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unix_fault(address, error) from None
    try:
        yield fd
    finally:
        os.close(fd)


def _unix_fault(address: UnixAddress, error: OSError) -> EnvironmentFault:
    directory = os.path.dirname(address.path) or "."
    hints = {
        errno.ENOENT: f"create the directory {directory!r} first, for this user only (mode 0700)",
        errno.ENOTDIR: f"{directory!r} is no directory: choose another path",
        errno.EACCES: f"give this user the right to write in {directory!r}, or choose another path",
        errno.EPERM: f"give this user the right to write in {directory!r}, or choose another path",
        errno.EROFS: f"{directory!r} is read-only: choose another path, such as one under /run or /tmp",
        errno.EADDRINUSE: "something else was created there meanwhile: try again, or choose another path",
        errno.EPROTOTYPE: "another program's socket is there: choose another path",
    }
    hint = hints.get(error.errno or 0, "choose another path")
    return EnvironmentFault(f"{address}: cannot listen there ({error.strerror or error})", hint=hint)
