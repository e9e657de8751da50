"""Two network namespaces with a router between them that can stop forwarding: a link that dies without a word.

Needs no privilege but that of making user namespaces. Loopback and files are as ever, so a test speaks with both
sides over unix sockets; only `LEFT` and `RIGHT` lie in networks of their own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

LEFT, RIGHT = "10.77.1.2", "10.77.2.2"
_ROUTER_LEFT, _ROUTER_RIGHT = "10.77.1.1", "10.77.2.1"
_FORWARDING = "/proc/sys/net/ipv4/ip_forward"


class Cable:
    """Made by `open_cable`; `left` and `right` go before the command of a process that is to run there."""

    def __init__(self, left: int, router: int, right: int) -> None:
        self.left, self.router, self.right = (_inside(pid) for pid in (left, router, right))
        self._plug(self.left, "left0", LEFT, router, "left1", _ROUTER_LEFT)
        self._plug(self.right, "right0", RIGHT, router, "right1", _ROUTER_RIGHT)
        self._forward("1")

    def cut(self) -> None:
        """From now on packets vanish, in both directions; no interface goes down, and nobody is told."""
        self._forward("0")

    def mend(self) -> None:
        """Packets go through again."""
        self._forward("1")

    def _forward(self, value: str) -> None:
        _run(*self.router, "sh", "-c", f"echo {value} > {_FORWARDING}")

    def _plug(self, side: Sequence[str], name: str, addr: str, router: int, router_name: str, gateway: str) -> None:
        _run(*side, "ip", "link", "add", name, "type", "veth", "peer", "name", router_name, "netns", str(router))
        for where, interface, own in ((side, name, addr), (self.router, router_name, gateway)):
            _run(*where, "ip", "addr", "add", f"{own}/24", "dev", interface)
            _run(*where, "ip", "link", "set", interface, "up")
            _run(*where, "ip", "link", "set", "lo", "up")
        _run(*side, "ip", "route", "add", "default", "via", gateway)


def can_open_cables() -> bool:
    """May this user make namespaces here, and are the tools for it installed?"""
    try:
        subprocess.run(["ip", "-V"], check=True, capture_output=True)
        subprocess.run(["unshare", "--map-root-user", "--net", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


needs_cables = pytest.mark.skipif(
    not os.environ.get("CI") and not can_open_cables(), reason="needs ip, and network namespaces of one's own"
)
"""In CI nothing is skipped: what is missing there fails."""


@contextmanager
def open_cable() -> Iterator[Cable]:
    with ExitStack() as holders:

        def hold(*command: str) -> int:
            process = subprocess.Popen(
                [*command, "sh", "-c", "echo held; read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            holders.callback(process.wait)
            holders.callback(process.kill)
            assert process.stdin is not None
            assert process.stdout is not None
            holders.enter_context(process.stdin)
            holders.enter_context(process.stdout)
            assert process.stdout.readline() == b"held\n"
            return process.pid

        left = hold("unshare", "--map-root-user", "--net")
        router, right = (hold(*_inside(left), "unshare", "--net") for _ in range(2))
        yield Cable(left, router, right)


def _inside(pid: int) -> tuple[str, ...]:
    return ("nsenter", "--target", str(pid), "--user", "--net", "--preserve-credentials")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()}"
