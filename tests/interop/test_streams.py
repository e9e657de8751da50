"""Streams between our host and stock peers, on both stacks: much on a few of them, little on many at a time."""

from __future__ import annotations

import time

import pytest

from tests.interop.peers import KINDS, Kind, open_peer
from tests.interop.streams import ECHO, connect, echo, only_connection, open_echo_host
from tests.stacks import Stack, on_both_stacks

LOADS = {"3 x 8 MiB": (3, 8 * 1024 * 1024), "100 x 1 KiB": (100, 1024)}
"""Streams that are open at the same time, and what is said on each."""


@on_both_stacks
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("we_dial", [True, False], ids=["we-dial", "they-dial"])
async def test_what_is_echoed_comes_back_equal_whoever_opens_the_streams(
    kind: Kind, stack: Stack, we_dial: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = []
    async with open_peer(kind) as peer, open_echo_host(stack) as host:
        await peer.serve_echo(ECHO)
        connection = await connect(host, peer, we_dial=we_dial)
        for load, (streams, size) in LOADS.items():
            start = time.monotonic()
            assert await echo(host, peer.peer_id, streams=streams, size=size) == streams
            between = time.monotonic()
            assert await peer.echo(host.peer_id, ECHO, streams=streams, size=size) == streams
            figures.append(f"{load} opened by us {between - start:.2f} s, by it {time.monotonic() - between:.2f} s")
        assert only_connection(host, peer.peer_id) is connection
    with capsys.disabled():
        print(f"\n{stack} and {kind}: {'; '.join(figures)}")
