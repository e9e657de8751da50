"""A virtual address's work in user space: `python -m tests.swarm.balancer ADDRESS PORT TASK…`.

Swarm balances with IPVS. Where the kernel has none, nobody answers at a service's virtual address; this does what IPVS
would: it holds the address and hands each connection to one of the tasks.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import trio


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Copy until the source ends; a broken connection ends both directions."""
    try:
        while chunk := await source.receive_some(65536):
            await sink.send_all(chunk)
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        scope.cancel()


async def balance(address: str, port: int, tasks: Sequence[str]) -> None:
    """Serve for ever."""

    async def handle(client: trio.SocketStream) -> None:
        try:
            server = await trio.open_tcp_stream(random.choice(tasks), port)
        except OSError:
            return
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(_pump, client, server, nursery.cancel_scope)
            nursery.start_soon(_pump, server, client, nursery.cancel_scope)

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, handle, port, host=address))
        print("ready", flush=True)


def main() -> None:
    address, port, *tasks = sys.argv[1:]
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "eth0"], check=True)
    trio.run(balance, address, int(port), tasks)


if __name__ == "__main__":
    main()
