"""Installs what a real Docker Swarm needs, on Debian and its kin: `python -m tests.swarm.install`.

Does nothing where every program is there.
"""

from __future__ import annotations

import sys
from typing import Final

from tests.programs import main

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

if __name__ == "__main__":
    sys.exit(main(PACKAGES))
