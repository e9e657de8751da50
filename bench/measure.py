"""What the kernel knows of a process: CPU time, resident memory, its TCP connections and the bytes on them."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time

_PIDFD_GETFD = 438
_CPUCLOCK_SCHED = 2
_TCP_INFO_BYTES_ACKED = 120
"""Offset of `tcpi_bytes_acked` in `struct tcp_info` (linux/tcp.h): unsigned, 64 bits."""

_TCP_ESTABLISHED = "01"


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, to the nanosecond: `clock_getcpuclockid(3)`.

    Raises:
        OSError: there is no such process.
    """
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) / 1e9


def machine_cpu_seconds() -> float:
    """Time that all cores together were busy since boot, in the kernel's ticks (proc(5), `/proc/stat`)."""
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _, _, irq, soft, *_ = map(int, stat.readline().split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """RSS; pages that a forked process shares with its siblings count in full."""
    return _proportional(pid, "Rss:")


def proportional_bytes(pid: int) -> int:
    """PSS: a page that n processes share counts as 1/n."""
    return _proportional(pid, "Pss:")


def _proportional(pid: int, field: str) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith(field))


def tcp_bytes_sent(pid: int) -> int | None:
    """Bytes that peers acknowledged on the TCP connections that a process has open now, encryption and all.

    Asked of a duplicate of each socket, so the process takes no notice. None: the kernel does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        total = 0
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
            except FileNotFoundError:
                continue  # closed meanwhile
            descriptor = libc.syscall(_PIDFD_GETFD, pidfd, int(name), 0)
            if descriptor < 0:
                return None
            total += _acknowledged(descriptor)
        return total
    finally:
        os.close(pidfd)


def _acknowledged(descriptor: int) -> int:
    """Of one socket, which is closed here; 0 for what is no TCP connection."""
    with socket.socket(fileno=descriptor) as duplicate:
        if duplicate.family not in (socket.AF_INET, socket.AF_INET6) or duplicate.type != socket.SOCK_STREAM:
            return 0
        info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        sent: int = struct.unpack_from("=Q", info, _TCP_INFO_BYTES_ACKED)[0]
        return sent


def tcp_connections(pid: int) -> int:
    """TCP connections that a process has open, by the kernel's table (proc(5), `/proc/net/tcp`), IPv4 and IPv6."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue  # closed meanwhile
    count = 0
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
        count += sum(row[3] == _TCP_ESTABLISHED and f"socket:[{row[9]}]" in inodes for row in rows)
    return count
