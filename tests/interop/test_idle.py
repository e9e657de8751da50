"""Connections on which nobody says anything for minutes; for ten with IDLE_SECONDS=600 in the environment."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
import trio

from tests.interop.peers import KINDS, open_peer
from tests.interop.streams import ECHO, connect, echo, only_connection, open_echo_host
from tests.stacks import STACKS

IDLE_SECONDS = float(os.environ.get("IDLE_SECONDS", "180"))
"""Longer than every keepalive and patience of any of the peers."""


@pytest.mark.soak
async def test_idle_connections_last_with_every_peer_on_both_stacks_whoever_dialled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with AsyncExitStack() as opened:
        peers = [await opened.enter_async_context(open_peer(kind)) for kind in KINDS]
        hosts = [
            (await opened.enter_async_context(open_echo_host(stack)), we_dial)
            for stack in STACKS
            for we_dial in (True, False)
        ]
        pairs = []
        for peer in peers:
            await peer.serve_echo(ECHO)
            for host, we_dial in hosts:
                pairs.append((host, peer, await connect(host, peer, we_dial=we_dial)))
        ours = []
        for (dialling, _), (listening, _) in pairwise(hosts):
            await dialling.dial(listening.addrs()[0])
            ours.append((dialling, listening, only_connection(dialling, listening.peer_id)))
        await trio.sleep(IDLE_SECONDS)  # the time is what is tested
        for host, peer, connection in pairs:
            assert only_connection(host, peer.peer_id) is connection
            assert await echo(host, peer.peer_id, streams=1, size=1024) == 1
            assert await peer.echo(host.peer_id, ECHO, streams=1, size=1024) == 1
        for host, other, connection in ours:
            assert only_connection(host, other.peer_id) is connection
            assert await echo(host, other.peer_id, streams=1, size=1024) == 1
    with capsys.disabled():
        print(f"\n{len(pairs) + len(ours)} connections were idle for {IDLE_SECONDS:g} s")
