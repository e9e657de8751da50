"""Installs what a real Docker Swarm needs, on Debian and its kin: `python -m tests.swarm.install`.

Does nothing where every program is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from typing import Final

PACKAGES: Final = {
    "docker": "docker.io",
    "dockerd": "docker.io",
    "containerd": "containerd",
    "runc": "runc",
    "docker-init": "docker.io",
    "docker-compose": "docker-compose",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "ldconfig": "libc-bin",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
"""Program to the package that holds it."""

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def program(name: str) -> str | None:
    """Where a program is; administrators' directories count, whatever PATH says."""
    return shutil.which(name) or shutil.which(name, path=_PATH)


def missing() -> list[str]:
    return [name for name in PACKAGES if program(name) is None]


def install(names: Iterable[str]) -> None:
    """Install the packages of these programs; needs root.

    Raises:
        CalledProcessError: apt could not, after its lists were brought up to date as well.
    """
    packages = sorted({PACKAGES[name] for name in names})
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run(command, env=environ, stdout=subprocess.DEVNULL).returncode:
        subprocess.run(["apt-get", "update", "-qq"], env=environ, check=True)
        subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=True)


def main() -> int:
    wanted = missing()
    if not wanted:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"missing: {', '.join(wanted)}; install {', '.join(sorted({PACKAGES[each] for each in wanted}))}")
        return 1
    try:
        install(wanted)
    except subprocess.CalledProcessError as error:
        print(f"apt-get failed with {error.returncode}; still missing: {', '.join(missing())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
