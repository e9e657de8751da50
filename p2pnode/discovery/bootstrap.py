"""A file of places to join by, one multiaddr a line, read again when it changes."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

import trio

from p2pnode.config.addresses import check_dialable
from p2pnode.ports import Method, Place, Report, SourceReport, Trouble

LOOK_SECONDS = 1.0
"""Between two looks whether the file changed: one stat(2) each."""

MOST_BYTES = 1024 * 1024
MOST_LINES = 1000
"""Lines that are neither blank nor comment; those behind are not read."""

MOST_LINE_CHARACTERS = 512
"""Longer than any address: a DNS name has 253."""

MOST_TOLD = 20
"""Bad lines told one by one."""

SETTLED_NS = 2_000_000_000
"""A file changed within this time is read again: two changes within one tick of its clock look like one."""

CODE = "bootstrap-file"

_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at the file brought: nothing new when both are None."""

    stamp: _Stamp | None
    contents: tuple[tuple[Place, ...], tuple[Trouble, ...]] | None = None
    fault: Trouble | None = None


class BootstrapFile:
    """The addresses in a file; reported at the start, and whenever what it says or its state changes.

    A file that cannot be used is a trouble: its last places stay, and it is tried on. A bad line is a trouble by
    itself; the others count all the same. Symbolic links are followed at each look: orchestrators replace those.

    Args:
        path: `~` is the home directory; a relative one counts from the working directory of the start.
        look_seconds: pause between two looks.
    """

    def __init__(self, path: Path | str, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._path = Path(path)
        self._look_seconds = look_seconds
        self._places: tuple[Place, ...] = ()

    @property
    def method(self) -> Method:
        return "bootstrap"

    @property
    def subject(self) -> str:
        return f"file:{self._path}"

    async def run(self, report: Report) -> None:
        # An unreachable network file system holds the thread, not the loop, and no more than one.
        limiter = trio.CapacityLimiter(1)
        stamp: _Stamp | None = None
        troubles: tuple[Trouble, ...] = ()
        told: tuple[tuple[Place, ...], tuple[Trouble, ...]] | None = None
        while True:
            began = trio.current_time()
            # The stubs that libp2p brings are of an older trio.
            look = await trio.to_thread.run_sync(  # type: ignore[call-arg]
                _look, self._path, stamp, abandon_on_cancel=True, limiter=limiter
            )
            stamp = look.stamp
            if look.contents is not None:
                self._places, troubles = look.contents
            elif look.fault is not None:
                troubles = (look.fault,)
            if (self._places, troubles) != told:
                told = (self._places, troubles)
                took = trio.current_time() - began
                report(SourceReport(self.method, self.subject, self._places, troubles, took))
            await trio.sleep(self._look_seconds)


def _look(path: Path, before: _Stamp | None) -> _Look:
    """Read the file unless its stamp is still `before`."""
    try:
        path = path.expanduser()
        if before is not None and _stamp(path.stat()) == before:
            return _Look(before)
        # Not blocking: a pipe without a writer would hold the thread for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return _faulty(f"{path} is no regular file", "name a file with one multiaddr per line")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(MOST_BYTES + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return _faulty(
            f"{path} does not exist",
            "create it with one multiaddr per line, or correct network.bootstrap (--bootstrap)",
        )
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return _faulty(f"{path} cannot be read: {reason}", f"make it readable for user id {os.geteuid()}")
    if len(content) > MOST_BYTES:
        return _faulty(
            f"{path} has {status.st_size} bytes, more than the {MOST_BYTES} that are read",
            "keep some of its addresses: one live peer brings all the others",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return _faulty(f"{path} is no UTF-8: line {line}, byte {error.start} of the file", "save it as UTF-8")
    settled = time.time_ns() - status.st_mtime_ns > SETTLED_NS
    return _Look(_stamp(status) if settled else None, contents=parse_places(text, path))


def _faulty(problem: str, fix: str) -> _Look:
    return _Look(None, fault=Trouble(CODE, problem, fix))


def _stamp(status: os.stat_result) -> _Stamp:
    # ctime: a change of permissions, and one of contents under a kept mtime.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def parse_places(text: str, path: Path) -> tuple[tuple[Place, ...], tuple[Trouble, ...]]:
    """The addresses of a file's lines, each once and in order, and what is wrong with the others.

    Args:
        path: how troubles name the file.
    """
    addrs: dict[str, None] = {}
    wrong: list[tuple[int, str]] = []
    more: list[Trouble] = []
    entries = 0
    for number, whole in enumerate(text.split("\n"), start=1):
        line = whole.partition("#")[0].strip()
        if not line:
            continue
        entries += 1
        if entries > MOST_LINES:
            fix = "keep fewer: one live peer brings all the others"
            more.append(
                Trouble(CODE, f"{path} has more than {MOST_LINES} addresses: none is read from line {number}", fix)
            )
            break
        try:
            addrs[_checked(line)] = None
        except ValueError as error:
            wrong.append((number, str(error)))
    if len(wrong) > MOST_TOLD:
        rest = len(wrong) - MOST_TOLD
        more.append(Trouble(CODE, f"{path} has {rest} more bad lines, from line {wrong[MOST_TOLD][0]}", "correct them"))
    if not entries:
        more.append(Trouble(CODE, f"{path} holds no address", "write one multiaddr per line: /ip4/ADDRESS/tcp/PORT"))
    fix = "correct or remove the line; the others are used"
    bad = [Trouble(CODE, f"{path} line {number}: {why}", fix) for number, why in wrong[:MOST_TOLD]]
    return tuple(Place(addr) for addr in addrs), (*bad, *more)


def _checked(line: str) -> str:
    """Raises ValueError."""
    if len(line) > MOST_LINE_CHARACTERS:
        raise ValueError(f"has {len(line)} characters, more than any address; one multiaddr per line")
    if line.startswith(("dns:", "file:")):
        raise ValueError(f"{line!r} stands in network.bootstrap (--bootstrap), not in a file; here are multiaddrs only")
    return check_dialable(line)
