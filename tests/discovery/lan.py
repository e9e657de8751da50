"""A local network on this machine: one switch, and a network namespace for each of those plugged into it.

Needs no privilege but that of making user namespaces; `needs_cables` says whether that is there. Files and unix
sockets are as ever: a test speaks with its processes through pipes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO

DEADLINE_SECONDS = 60.0
ROOT = Path(__file__).resolve().parents[2]
RUNNER = (sys.executable, "-m", "tests.discovery.mdns_runner")
_SWITCH = "switch0"


@dataclass(frozen=True)
class Station:
    """A machine of the network.

    Args:
        within: goes before the command of a process that is to run there.
        ip: its address on the switch, on `eth0`.
    """

    pid: int
    within: tuple[str, ...]
    ip: str

    def run(self, *command: str) -> str:
        """A command to its end, there; what it printed."""
        return _run(*self.within, *command)

    def sent(self, interface: str) -> int:
        """Packets that left by an interface so far."""
        (link,) = json.loads(self.run("ip", "-json", "-statistics", "link", "show", "dev", interface))
        return int(link["stats64"]["tx"]["packets"])


class Lan:
    """Made by `open_lan`.

    Args:
        owner: goes before a command that may make namespaces; empty: anybody may make the first one.
        number: tells its addresses from those of the others.
    """

    def __init__(self, holders: ExitStack, owner: Sequence[str] = (), number: int = 0) -> None:
        self._holders = holders
        self._number = number
        self._switch = _hold(holders, *owner, "unshare", *([] if owner else ["--map-root-user"]), "--net")
        self._within = _inside(self._switch)
        self._count = 0
        self._ports: dict[str, str] = {}
        _run(*self._within, "ip", "link", "add", _SWITCH, "type", "bridge", "mcast_snooping", "0")
        _run(*self._within, "ip", "link", "set", _SWITCH, "up")

    def beside(self) -> Lan:
        """Another network; a station of one can be connected to the other too."""
        return Lan(self._holders, self._within, self._number + 1)

    def plug_in(self) -> Station:
        """One more station, with `lo` and `eth0` up and a default route, as DHCP would give it."""
        pid = _hold(self._holders, *self._within, "unshare", "--net")
        station = Station(pid, _inside(pid), self.free_ip())
        station.run("ip", "link", "set", "lo", "up")
        self.connect(station, "eth0", station.ip)
        station.run("ip", "route", "add", "default", "dev", "eth0")
        return station

    def free_ip(self) -> str:
        """The address of the next station."""
        return f"10.78.{self._number}.{self._count + 1}"

    def connect(self, station: Station, name: str, ip: str) -> None:
        """Give a station an interface on this switch; without IPv6, so that it says nothing by itself."""
        self._count += 1
        port = self._ports[ip] = f"port{self._count}"
        peer = ("peer", "name", port, "netns", str(self._switch))
        station.run("ip", "link", "add", name, "type", "veth", *peer)
        station.run("sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        station.run("ip", "addr", "add", f"{ip}/24", "dev", name)
        _run(*self._within, "ip", "link", "set", port, "master", _SWITCH, "up")
        station.run("ip", "link", "set", name, "up")

    def pass_on(self, ip: str, passes: bool) -> None:
        """Have the switch pass packets from and to an address on, or drop them all without a word."""
        plugged = ("master", _SWITCH) if passes else ("nomaster",)
        _run(*self._within, "ip", "link", "set", self._ports[ip], *plugged)


@contextmanager
def open_lan() -> Iterator[Lan]:
    with ExitStack() as holders:
        yield Lan(holders)


@dataclass
class Told:
    """One report of a source, as its runner printed it.

    Args:
        at: when it came, monotonic seconds.
        places: multiaddrs.
        troubles: code, problem and fix.
    """

    at: float
    places: list[str]
    troubles: list[list[str]]
    subject: str
    ignored: dict[str, int]
    lag_seconds: float

    @property
    def codes(self) -> list[str]:
        return [code for code, _, _ in self.troubles]


@dataclass
class Participant:
    """A process that runs `MdnsSource` in a station. Made by `open_participant`."""

    station: Station
    peer_id: str
    addr: str
    process: subprocess.Popen[bytes]
    started_at: float
    reports: list[Told] = field(default_factory=list)

    @property
    def places(self) -> list[str]:
        return self.reports[-1].places if self.reports else []

    def announce(self, *addrs: str) -> None:
        """Its announced addresses are these from now on."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"addrs": addrs}).encode() + b"\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """Ask it to end, as a cancelled source ends; and wait."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(DEADLINE_SECONDS) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def read(self, pipe: IO[bytes]) -> None:
        """Take its reports until it ends."""
        for line in pipe:
            self.reports.append(Told(at=time.monotonic(), **json.loads(line)))


@contextmanager
def open_participant(
    station: Station,
    peer_id: str,
    *,
    port: int = 9000,
    interfaces: Sequence[str] = (),
    fingerprint: str = "",
    addrs: Sequence[str] | None = None,
) -> Iterator[Participant]:
    """Runs a source that announces `/ip4/<the station's>/tcp/<port>`, or `addrs`, until the block ends."""
    addr = f"/ip4/{station.ip}/tcp/{port}/p2p/{peer_id}"
    options = {
        "peer_id": peer_id,
        "addrs": [addr] if addrs is None else list(addrs),
        "interfaces": list(interfaces),
        "fingerprint": fingerprint,
    }
    process = subprocess.Popen(
        [*station.within, *RUNNER, json.dumps(options)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    participant = Participant(station, peer_id, addr, process, time.monotonic())
    reader = Thread(target=participant.read, args=(process.stdout,))
    reader.start()
    try:
        yield participant
    finally:
        if process.poll() is None:
            process.stdin.close()
            try:
                process.wait(DEADLINE_SECONDS)
            finally:
                participant.kill()
        reader.join()
        process.stdin.close()
        process.stdout.close()


def wait_until(what: str, found: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    """Returns once `found` says something true."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def _hold(holders: ExitStack, *command: str) -> int:
    """Start what keeps a namespace; its process id."""
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


def _inside(pid: int) -> tuple[str, ...]:
    return ("nsenter", "--target", str(pid), "--user", "--net", "--preserve-credentials")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode(errors='replace')}"
    return done.stdout.decode()
