"""A network namespace for a benchmark: its loopback counts every packet of the fleet, and nothing else.

TCP's own counters are of sockets that are open: what a connection cost that opened and closed in between, as a probe's
does, would be missed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_INSIDE = "BENCH_OWN_NETWORK"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What loopback carried so far: IP packets, their headers included in the bytes."""

    bytes: int
    packets: int

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(self.bytes - earlier.bytes, self.packets - earlier.packets)


def enter_own_network(module: str, arguments: Sequence[str]) -> bool:
    """Run the module again in a network of its own, in place of this process; False where that is not allowed.

    Args:
        module: as given to `python -m`.
    """
    if os.environ.pop(_INSIDE, None) is not None:
        return True
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    own = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*own, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        return False
    again = [sys.executable, "-m", module, *arguments]
    os.environ[_INSIDE] = "1"
    os.execvp(own[0], [*own, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *again])


def loopback_traffic() -> Traffic:
    """Of the namespace that this process is in; each packet counted once (proc(5), `/proc/net/dev`)."""
    with open("/proc/self/net/dev", encoding="ascii") as table:
        fields = next(line.split(":")[1].split() for line in table if line.strip().startswith("lo:"))
    return Traffic(int(fields[0]), int(fields[1]))
