"""Where things live on this machine: the runtime directory, the data directory, the registry of running sidecars."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from p2pnode.errors import EnvironmentFault

MAX_ENTRY_BYTES = 64 * 1024
"""A registry file is a few hundred bytes; a larger one is none of ours and is not read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One running sidecar of this user.

    Args:
        name: the node's name.
        pid: its process.
        role: `chorus`, `whoosh`, `bridge` or `bootstrap`.
        peer_id: in base58.
        api: where its local API listens, `unix:PATH` or `tcp:HOST:PORT`; in the order it was configured.
        start_ticks: when the process started (proc(5), `stat` field 22); tells a reused pid from the old process.
        pid_namespace: in which namespace `pid` counts; a container that shares this directory has another.
    """

    name: str
    pid: int
    role: str
    peer_id: str
    api: tuple[str, ...]
    start_ticks: int
    pid_namespace: str


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_STATE_HOME/p2pnode`, else `~/.local/state/p2pnode`.

    Raises:
        EnvironmentFault: this user has no home directory.
    """
    return _state_home(environ) / "p2pnode"


def runtime_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The directory for sockets and the registry, 0700, made when missing.

    `$XDG_RUNTIME_DIR/p2pnode`, else `/run/user/UID/p2pnode` where that parent is ours, else `/tmp/p2pnode-UID`.

    Raises:
        EnvironmentFault: it cannot be made, or others could replace what lies in it.
    """
    path = _runtime_path(environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        _refuse_unsafe(path)
    except OSError as error:
        raise EnvironmentFault(
            f"the runtime directory {path} cannot be used: {error.strerror}",
            hint="set XDG_RUNTIME_DIR to a directory that this user may write to",
        ) from error
    return path


@contextmanager
def register(
    name: str,
    pid: int,
    api_addresses: Sequence[str],
    role: str,
    peer_id: str,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Path]:
    """Make a running sidecar findable; the entry goes when the block ends.

    Yields:
        The entry's file, `<runtime directory>/<name>-<pid>.json`, 0600; it appears whole or not at all.

    Raises:
        EnvironmentFault: it cannot be written, or `pid` is no running process.
    """
    started = _start_ticks(pid)
    if started is None:
        raise EnvironmentFault(f"process {pid} cannot be registered: it is not running")
    entry = Entry(name, pid, role, peer_id, tuple(api_addresses), started, _pid_namespace())
    path = runtime_dir(environ) / f"{_file_name(name)}-{pid}.json"
    _write_whole(path, json.dumps(asdict(entry)).encode())
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def running_sidecars(environ: Mapping[str, str] = os.environ) -> list[Entry]:
    """The sidecars of this user that run now, by name and pid; entries of dead processes are removed.

    Files that are no entry, and entries written in another pid namespace, are left alone and not listed.

    Raises:
        EnvironmentFault: the runtime directory belongs to somebody else or others may write to it.
    """
    here = _pid_namespace()
    running = []
    for file in _entry_files(environ):
        entry = _read_entry(file)
        if entry is None or entry.pid_namespace != here:
            continue
        if _start_ticks(entry.pid) == entry.start_ticks:
            running.append(entry)
        else:
            with suppress(OSError):
                file.unlink()
    return sorted(running, key=lambda entry: (entry.name, entry.pid))


def dead_sidecars(environ: Mapping[str, str] = os.environ) -> list[Entry]:
    """The entries of sidecars that ended without removing theirs, by name and pid; they are left where they are.

    Raises:
        EnvironmentFault: as `running_sidecars`.
    """
    here = _pid_namespace()
    entries = [entry for file in _entry_files(environ) if (entry := _read_entry(file)) is not None]
    dead = [each for each in entries if each.pid_namespace == here and _start_ticks(each.pid) != each.start_ticks]
    return sorted(dead, key=lambda entry: (entry.name, entry.pid))


def dead_sockets(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """API sockets in the runtime directory at which nobody listens any more."""
    return [path for path in sorted(_runtime_path(environ).glob("*.sock")) if _refuses(path)]


def _refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _entry_files(environ: Mapping[str, str]) -> list[Path]:
    directory = _runtime_path(environ)
    try:
        _refuse_unsafe(directory)
        return sorted(directory.glob("*.json"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EnvironmentFault(f"the runtime directory {directory} cannot be read: {error.strerror}") from error


def _state_home(environ: Mapping[str, str]) -> Path:
    # The XDG base directory specification: a relative path in such a variable is to be ignored.
    given = environ.get("XDG_STATE_HOME", "")
    if given.startswith("/"):
        return Path(given)
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        try:
            home = str(Path.home())
        except RuntimeError as error:
            raise EnvironmentFault("this user has no home directory", hint="name one with --data-dir") from error
    return Path(home) / ".local" / "state"


def _runtime_path(environ: Mapping[str, str]) -> Path:
    given = environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/"):
        return Path(given) / "p2pnode"
    uid = os.getuid()
    parent = Path(f"/run/user/{uid}")
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return parent / "p2pnode"
    return Path(f"/tmp/p2pnode-{uid}")


def _refuse_unsafe(path: Path) -> None:
    # lstat: a symbolic link that somebody else laid in /tmp must not lead us into a directory of his choice.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise EnvironmentFault(f"the runtime directory {path} is no directory", hint=f"remove {path}")
    if found.st_uid != os.getuid():
        raise EnvironmentFault(
            f"the runtime directory {path} belongs to user {found.st_uid}, not to user {os.getuid()}",
            hint="set XDG_RUNTIME_DIR to a directory of this user",
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o022:
        raise EnvironmentFault(
            f"the runtime directory {path} has mode {mode:04o}: others may write to it", hint=f"chmod 0700 {path}"
        )


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100] or "p2pnode"


def _write_whole(path: Path, content: bytes) -> None:
    # The name does not end in .json, so no reader takes it for an entry; nobody else writes in this directory.
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be written: {error.strerror}") from error


def _read_entry(file: Path) -> Entry | None:
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(MAX_ENTRY_BYTES))
        api = tuple(found["api"])
        texts = (found["name"], found["role"], found["peer_id"], found["pid_namespace"], *api)
        numbers = (found["pid"], found["start_ticks"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        return None
    return Entry(texts[0], numbers[0], texts[1], texts[2], api, numbers[1], texts[3])


def _start_ticks(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None when it does not run (any more)."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second field is the program's name in parentheses, and may itself hold blanks and parentheses.
    fields = line[line.rindex(b")") + 1 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
