"""What the doctor can tell when no sidecar answers: leftovers, configuration, data directory, ports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from p2pnode.core.doctor import disk_findings
from p2pnode.core.findings import Finding, order
from p2pnode.errors import InvalidRequest, NoSidecar, P2PNodeError
from p2pnode.local.address import UnixAddress, parse_api_address
from p2pnode.local.holders import command_of, is_taken, listen_error, listener_on, lock_holder, state_of
from p2pnode.local.http import NotASidecar
from p2pnode.paths import Entry

if TYPE_CHECKING:
    from p2pnode.config import Settings

CODES: Final = (
    "no-sidecar",
    "sidecar-died",
    "sidecar-hangs",
    "configuration",
    "data-dir",
    "data-dir-in-use",
    "disk-full",
    "port-taken",
    "listen-address",
)
"""Every code given here."""

CHECKED: Final = ("registered sidecars", "configuration", "data directory", "disk", "listen ports")


@dataclass(frozen=True, slots=True)
class Registered:
    """What the runtime directory held before anybody was asked: asking removes the entries of the dead."""

    dead: Sequence[Entry] = ()
    running: Sequence[Entry] = ()
    dead_sockets: Sequence[Path] = ()


def registered() -> Registered:
    """The entries of this user's sidecars; none when they cannot be read: whoever asks next says why."""
    from p2pnode import paths

    try:
        return Registered(paths.dead_sidecars(), paths.running_sidecars(), paths.dead_sockets())
    except P2PNodeError:
        return Registered()


def examine(
    error: NoSidecar, found: Registered, api: str | None, load: Callable[[], Settings]
) -> tuple[list[Finding], list[str]]:
    """Findings, the worst first, and the names of what was checked.

    Args:
        error: why no sidecar could be asked.
        found: what was registered.
        api: the address that was named; None: the only sidecar was looked for.
        load: resolves the settings that `run` would use here.
    """
    address = str(parse_api_address(api)) if api else ""
    findings = [_no_sidecar(error), *_died(found, address)]
    named = [entry for entry in found.running if not address or address in entry.api]
    findings += [_hangs(entry) for entry in named if not isinstance(error, NotASidecar)]
    try:
        settings = load()
    except InvalidRequest as wrong:
        findings.append(_misconfigured(wrong))
        return sorted(findings, key=order), list(CHECKED[:2])
    pids = {entry.pid for entry in named}
    held = lock_holder(settings.node.data_dir / "lock")
    findings += _data_dir(settings.node.data_dir, held if held not in pids else None)
    own = pids | ({held} if held is not None else set())
    findings += [each for text in settings.network.listen for each in _port(text, own)]
    return sorted(dict.fromkeys(findings), key=order), list(CHECKED)


def _no_sidecar(error: NoSidecar) -> Finding:
    return Finding("no-sidecar", "failed", error.detail, (), error.hint or "see below, or start it with `p2pnode run`")


def _died(found: Registered, address: str) -> Iterable[Finding]:
    entries = [entry for entry in found.dead if not address or address in entry.api]
    for entry in entries:
        api = ", ".join(entry.api) or "none"
        seen = f"pid {entry.pid}, role {entry.role}, peer id {entry.peer_id}, API {api}"
        yield _ended(f"the sidecar {entry.name!r}", seen)
    told = {api for entry in entries for api in entry.api}
    for path in found.dead_sockets:
        if f"unix:{path}" not in told and address in ("", f"unix:{path}"):
            yield _ended(f"the sidecar that served {path}", "its socket is still there, and nobody listens at it")


def _ended(who: str, seen: str) -> Finding:
    return Finding(
        "sidecar-died",
        "failed",
        f"{who} ended without removing what it left: it was killed, or it crashed",
        (seen,),
        "its log says why, and `dmesg` whether the system killed it for memory; start it again: what it left is in "
        "nobody's way",
    )


def _hangs(entry: Entry) -> Finding:
    return Finding(
        "sidecar-hangs",
        "failed",
        f"the sidecar {entry.name!r} runs, but its API does not answer",
        tuple(_process(entry.pid)) + tuple(f"API {api}{_socket_problem(api)}" for api in entry.api),
        f"look at its log; T is stopped: `kill -CONT {entry.pid}`; D waits for a disk; else end it (`kill "
        f"{entry.pid}`, then `kill -9`), start it again, and report it",
    )


def _socket_problem(api: str) -> str:
    address = parse_api_address(api)
    gone = isinstance(address, UnixAddress) and not os.path.exists(address.path)
    return ": the socket's file is gone" if gone else ""


def _process(pid: int) -> Iterable[str]:
    state = state_of(pid)
    yield f"pid {pid}{f', {state}' if state else ''}: {command_of(pid) or 'its command cannot be read'}"


def _misconfigured(error: InvalidRequest) -> Finding:
    return Finding(
        "configuration",
        "failed",
        "the configuration cannot be used, so no sidecar starts with it",
        tuple(str(fault) for fault in error.faults) or (error.detail,),
        "mend these; `p2pnode config check` tells whether all is well",
    )


def _data_dir(path: Path, held: int | None) -> Iterable[Finding]:
    from p2pnode.node.disk import look_at_disk

    if held is not None:
        yield Finding(
            "data-dir-in-use",
            "degraded",
            f"a process that was not found among the sidecars of this user holds the data directory {path}",
            tuple(_process(held)),
            "ask that one with --api ADDR: it may run for another user or with another XDG_RUNTIME_DIR; for a second "
            "sidecar choose another --data-dir",
        )
    there = next(each for each in (path, *path.parents, Path("/")) if os.path.exists(each))
    may_write = os.access(there, os.W_OK | os.X_OK) or os.statvfs(there).f_flag & os.ST_RDONLY
    if not os.path.isdir(there):
        yield _unusable(path, f"{there} is no directory")
    elif not may_write:
        what = "write there" if there == path else f"make it in {there}"
        yield _unusable(path, f"this user may not {what}")
    else:
        yield from disk_findings(look_at_disk(there))


def _unusable(path: Path, why: str) -> Finding:
    return Finding(
        "data-dir",
        "failed",
        f"the data directory {path} cannot be used",
        (f"{why} (user {os.getuid()})",),
        "choose one that this user can write with --data-dir, or give it to this user",
    )


def _port(multiaddr: str, own: set[int]) -> Iterable[Finding]:
    from p2pnode.config.addresses import port_of

    host, port = port_of(multiaddr)
    error = listen_error(host, port)
    if error is None:
        return
    if not is_taken(error):
        yield Finding(
            "listen-address",
            "failed",
            f"nobody can listen at {multiaddr} on this machine",
            (error.strerror or str(error),),
            "choose an address of this machine, and a port above 1023, with --listen",
        )
        return
    holder = listener_on(port)
    if holder not in own:
        yield Finding(
            "port-taken",
            "failed",
            f"another process listens on port {port}, which {multiaddr} needs",
            tuple(_process(holder)) if holder is not None else ("it belongs to another user, or to a container",),
            "stop it, or choose another port with --listen (others must then dial that one)",
        )


def document(findings: Sequence[Finding], checked: Sequence[str], at: str) -> Mapping[str, object]:
    """As `GET /api/v1/doctor` answers, of a node that nobody could ask."""
    from dataclasses import asdict

    return {
        "status": "unknown",
        "exit_code": NoSidecar.exit_code,
        "summary": "no sidecar answers",
        "findings": [{**asdict(each), "evidence": list(each.evidence)} for each in findings],
        "checked": list(checked),
        "at": at,
    }
