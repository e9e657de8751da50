"""Installs the foreign peers from their lock files into a cache directory, once per content of those files.

The directory is `$P2PNODE_INTEROP_DIR`, by default `.interop` at the root of the repository. An installation is
stamped with a digest of its lock files and of the Python it was made with; a matching stamp means nothing to do.
Python peers need `venv`, and take `uv` if it stands next to the running interpreter; the js peer needs node and npm.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["js", "go", "kubo", "library"]
KINDS: tuple[Kind, ...] = get_args(Kind)
INSTALLED: tuple[Kind, ...] = ("js", "go", "kubo")
"""The others run in our own environment: `library` is the py-libp2p that p2pnode is built on."""

HERE = Path(__file__).resolve().parent
SOURCES: dict[Kind, Path] = {
    "js": HERE / "js",
    "go": HERE / "go024",
    "kubo": HERE / "kubo",
    "library": HERE / "library",
}
LOCKED: dict[Kind, tuple[str, ...]] = {
    "js": ("package.json", "package-lock.json", ".npmrc"),
    "go": ("requirements.txt",),
    "kubo": ("requirements.txt",),
}
STAMP = ".installed"


class InstallationFailed(Exception):
    """A package tool did not do its work; the text is its own account."""


def install(kind: Kind) -> bool:
    """Makes the peer runnable; true if there was something to do.

    Safe to call from several processes at once: the second waits for the first.

    Raises:
        InstallationFailed: a tool is missing or reported an error. What was there before is gone.
    """
    if kind not in INSTALLED:
        return False
    target, digest = _target(kind), _digest(kind)
    if _is_stamped(target, digest):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_suffix(".lock")):
        if _is_stamped(target, digest):
            return False
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        if kind == "js":
            _install_node_modules(target)
        else:
            _install_environment(target, SOURCES[kind] / "requirements.txt")
        (target / STAMP).write_text(digest)
    return True


def command(kind: Kind) -> list[str]:
    """The command line, without flags, that runs an installed peer."""
    target, source = _target(kind), SOURCES[kind]
    if kind == "js":
        return ["node", str(_placed_beside_modules(source / "peer.mjs", target))]
    python = str(target / "bin" / "python") if kind in INSTALLED else sys.executable
    return [python, str(source / "peer.py")]


def _target(kind: Kind) -> Path:
    return Path(os.environ.get("P2PNODE_INTEROP_DIR") or HERE.parent.parent / ".interop").resolve() / kind


def _digest(kind: Kind) -> str:
    digest = hashlib.sha256(f"{sys.version} {sys.base_prefix} {platform.machine()}".encode())
    for name in LOCKED[kind]:
        digest.update((SOURCES[kind] / name).read_bytes())
    return digest.hexdigest()


def _is_stamped(target: Path, digest: str) -> bool:
    try:
        return (target / STAMP).read_text() == digest
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install_environment(target: Path, requirements: Path) -> None:
    python, uv = str(target / "bin" / "python"), Path(sys.executable).with_name("uv")
    locked = ["--require-hashes", "--requirement", str(requirements)]
    if uv.exists():
        _run([str(uv), "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(target)])
        _run([str(uv), "pip", "install", "--quiet", "--compile-bytecode", "--python", python, *locked])
    else:
        _run([sys.executable, "-m", "venv", str(target)])
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *locked])


def _install_node_modules(target: Path) -> None:
    for name in LOCKED["js"]:
        shutil.copy(SOURCES["js"] / name, target)
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=target)


def _placed_beside_modules(script: Path, target: Path) -> Path:
    """A copy of the script next to `node_modules`, where Node looks for them; named by content, so never stale."""
    content = script.read_bytes()
    copy = target / f"{script.stem}-{hashlib.sha256(content).hexdigest()[:12]}{script.suffix}"
    if not copy.exists():
        draft = copy.with_suffix(f".{os.getpid()}")
        draft.write_bytes(content)
        draft.replace(copy)
    return copy


def _run(arguments: Sequence[str], cwd: Path | None = None) -> None:
    try:
        subprocess.run(
            arguments, cwd=cwd, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except FileNotFoundError as error:
        raise InstallationFailed(f"{arguments[0]} is needed and was not found") from error
    except subprocess.CalledProcessError as error:
        raise InstallationFailed(f"{' '.join(arguments)} failed:\n{error.stdout.decode(errors='replace')}") from error
