"""Our node as the only link between stock peers of different kinds."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.interop.ours import ForeignSide, exchange, linked, open_node, respects
from tests.interop.peers import Kind, open_peer
from tests.stacks import Stack, on_both_stacks_in_time

CHAINS: tuple[tuple[Kind, Kind], ...] = (("js", "go"), ("kubo", "js"))


@on_both_stacks_in_time
async def test_200_messages_each_way_pass_through_our_node(stack: Stack, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:  # side by side: the load takes ten seconds
        for one, other in CHAINS:
            nursery.start_soon(exchange_through_us, one, other, stack, tmp_path / f"{one}-{other}")


async def exchange_through_us(one: Kind, other: Kind, stack: Stack, directory: Path) -> None:
    async with open_peer(one) as left, open_peer(other) as right:
        async with open_node(directory, "--bootstrap", left.addrs[0], stack=stack) as ours:
            await right.dial(ours.addr)
            for peer in (left, right):
                await linked(peer, ours)
            await exchange(ForeignSide(left), ForeignSide(right))
            for peer in (left, right):
                assert await peer.peers() == {ours.peer_id}
                assert await respects(peer, ours)
