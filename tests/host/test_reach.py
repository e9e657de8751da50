"""Reach over real sockets: a node that announces a port where nobody listens is told so."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio

from p2pnode.host.library import LibraryHost
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity
from p2pnode.node.reach import Reach
from tests.stacks import Stack, on_both_stacks

DEADLINE_SECONDS = 40.0


@asynccontextmanager
async def opened(stack: Stack, *, announce: Sequence[str] = ()) -> AsyncIterator[tuple[LibraryHost, Reach]]:
    async with (
        open_host(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"], announce=announce, stack=stack) as host,
        trio.open_nursery() as nursery,
    ):
        reach = Reach(host, lambda peer: True, lambda peer: None, wall_ns=time.time_ns, rng=Random(1))
        nursery.start_soon(reach.run)
        with trio.fail_after(DEADLINE_SECONDS):
            yield host, reach
        nursery.cancel_scope.cancel()


async def until(reach: Reach, state: str) -> None:
    while reach.state != state:  # noqa: ASYNC110  # what others do on real sockets
        await trio.sleep(0.01)


@on_both_stacks
@pytest.mark.parametrize("tells", ["its own port", "a closed port"])
async def test_neighbours_tell_a_node_whether_its_announced_port_answers(stack: Stack, tells: str) -> None:
    with trio.socket.socket() as closed:
        await closed.bind(("127.0.0.1", 0))  # bound and not listened on: nobody else gets it
        nowhere = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}"
        announce = [nowhere] if tells == "a closed port" else []
        async with opened(stack, announce=announce) as (us, reach), opened(stack) as (neighbour, theirs):
            await us.dial(neighbour.addrs()[0])
            await until(reach, "unreachable" if announce else "reachable")
            document = reach.document()
            [tried] = document["tried"]
            assert tried["addr"] == us.addrs()[0].partition("/p2p/")[0]
            assert tried["reached"] is not bool(announce)
            assert tried["by"] == neighbour.peer_id
            [observed] = document["observed"]
            assert observed["addr"].startswith("/ip4/127.0.0.1/tcp/")
            # We dialled the neighbour: it is reachable, without having been dialled again.
            await until(theirs, "reachable")
            assert list(us.links()) == [neighbour.peer_id]
            assert await us.ping(neighbour.peer_id) >= 0
