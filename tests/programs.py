"""Programs of the system that tests run: found, and installed where they are missing, on Debian and its kin.

`python -m tests.programs` installs what `make test` needs; it does nothing where every program is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

PACKAGES: Final = {"strace": "strace", "jq": "jq", "curl": "curl"}
"""Program to the package that holds it."""

NATS_SERVER: Final = "/usr/sbin/nats-server"
"""As the package `nats-server` installs it. The package also starts it as a service, now and at each boot: where it is
missing only the program is taken, to `UNPACKED`."""

UNPACKED: Final = Path("/usr/local/lib/p2pnode-tests/nats-server")

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def program(name: str) -> str | None:
    """Where a program is; administrators' directories count, whatever PATH says."""
    return shutil.which(name) or shutil.which(name, path=_PATH)


def missing(packages: Mapping[str, str]) -> list[str]:
    return [name for name in packages if program(name) is None]


def debian_nats_server() -> str | None:
    """Debian's nats-server: installed, or unpacked by `unpack`."""
    return program(NATS_SERVER) or program(str(UNPACKED))


def install(packages: Iterable[str]) -> None:
    """Install packages; needs root.

    Raises:
        CalledProcessError: apt could not, after its lists were brought up to date as well.
    """
    _apt("install", "-y", "--no-install-recommends", *sorted(set(packages)))


def unpack(package: str, member: str, target: Path) -> None:
    """Write one file of a package, and run none of its scripts.

    Raises:
        CalledProcessError: see `install`.
    """
    with tempfile.TemporaryDirectory() as directory:
        _apt("download", "-o", "APT::Sandbox::User=root", package, cwd=directory)
        (archive,) = Path(directory).glob("*.deb")
        files = Path(directory, "files")
        subprocess.run(["dpkg-deb", "-x", archive, files], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(files / member.lstrip("/"), target)


def _apt(what: str, *arguments: str, cwd: str | None = None) -> None:
    command = ["apt-get", what, "-qq", *arguments]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, cwd=cwd).returncode:
        subprocess.run(["apt-get", "update", "-qq"], env=environ, check=True)
        subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=True, cwd=cwd)


def main(packages: Mapping[str, str] = PACKAGES, *, nats_server: bool = False) -> int:
    """Install what is missing; 1 when it cannot be had, told on standard error."""
    wanted = missing(packages)
    unpacks = nats_server and debian_nats_server() is None
    if not wanted and not unpacks:
        return 0
    names = ", ".join(sorted({packages[each] for each in wanted} | ({"nats-server"} if unpacks else set())))
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"programs are missing; install {names}", file=sys.stderr)
        return 1
    try:
        if wanted:
            install(packages[each] for each in wanted)
        if unpacks:
            unpack("nats-server", NATS_SERVER, UNPACKED)
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} failed with {error.returncode}; wanted: {names}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(nats_server=True))
