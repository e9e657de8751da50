"""Programs of the system that tests run: found, and installed where they are missing, on Debian and its kin.

`python -m tests.programs` installs what `make test` needs; it does nothing where every program is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Final

PACKAGES: Final = {"strace": "strace", "jq": "jq", "curl": "curl", "/usr/sbin/nats-server": "nats-server"}
"""Program to the package that holds it."""

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def program(name: str) -> str | None:
    """Where a program is; administrators' directories count, whatever PATH says."""
    return shutil.which(name) or shutil.which(name, path=_PATH)


def missing(packages: Mapping[str, str]) -> list[str]:
    return [name for name in packages if program(name) is None]


def install(packages: Iterable[str]) -> None:
    """Install packages; needs root.

    Raises:
        CalledProcessError: apt could not, after its lists were brought up to date as well.
    """
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *sorted(set(packages))]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run(command, env=environ, stdout=subprocess.DEVNULL).returncode:
        subprocess.run(["apt-get", "update", "-qq"], env=environ, check=True)
        subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=True)


def main(packages: Mapping[str, str] = PACKAGES) -> int:
    """Install what is missing; 1 when it cannot be had, told on standard error."""
    wanted = missing(packages)
    if not wanted:
        return 0
    names = ", ".join(sorted({packages[each] for each in wanted}))
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"missing: {', '.join(wanted)}; install {names}", file=sys.stderr)
        return 1
    try:
        install(packages[each] for each in wanted)
    except subprocess.CalledProcessError as error:
        print(f"apt-get failed with {error.returncode}; still missing: {', '.join(missing(packages))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
