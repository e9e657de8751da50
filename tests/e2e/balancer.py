"""A port that leads to one place after another, as a service's virtual address does: `balancer.py PORT…`.

Prints its own port on loopback, then forwards until it is killed.
"""

from __future__ import annotations

import itertools
import socket
import sys
from contextlib import suppress
from threading import Thread


def pump(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    for each in (one, other):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def main() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
    for port in itertools.cycle(map(int, sys.argv[1:])):
        one, _ = server.accept()
        other = socket.create_connection(("127.0.0.1", port))
        for pair in ((one, other), (other, one)):
            Thread(target=pump, args=pair, daemon=True).start()


if __name__ == "__main__":
    main()
