"""Which process holds a file lock or listens on a port, as far as this user may see it (proc(5)); Linux only."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

_LISTEN = "0A"
"""`TCP_LISTEN`, as /proc/net/tcp writes it."""


def listen_error(host: str, port: int) -> OSError | None:
    """Why nobody can listen there now; None when one can. Nothing is left behind.

    The socket is bound and never listens, and SO_REUSEADDR lets a process that starts meanwhile bind as well.
    """
    if port == 0:
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((host, port))
    except OSError as error:
        return error
    return None


def is_taken(error: OSError) -> bool:
    """Did `listen_error` meet somebody else?"""
    return error.errno == errno.EADDRINUSE


def listener_on(port: int) -> int | None:
    """The process that listens on a TCP port in this network namespace; None when it cannot be seen."""
    inodes = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    return _holder(inodes) if inodes else None


def _holder(targets: set[str]) -> int | None:
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if os.readlink(descriptor) in targets:
                        return int(process.name)
    return None


def lock_holder(file: Path) -> int | None:
    """The process that holds a flock(2) on a file; None when nobody does, or in a pid namespace that is not ours.

    Read from /proc/locks: to try the lock would keep a process that starts just then from getting it.
    """
    try:
        inode = str(file.stat().st_ino)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # `1: FLOCK  ADVISORY  WRITE 1234 08:01:131090 0 EOF`; who waits for a lock has `->` before the kind.
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode and int(fields[4]) > 0:
            return int(fields[4])
    return None


def state_of(pid: int) -> str:
    """What a process does just now, as `S (sleeping)`; empty when it cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("State:")), "")


def command_of(pid: int) -> str:
    """A process's command line, cut to 120 characters; empty when it cannot be read."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return line.replace(b"\0", b" ").decode("utf-8", "backslashreplace").strip()[:120]
