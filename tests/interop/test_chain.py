"""Our node as the only link between stock peers of different kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.ours import ForeignSide, exchange, linked, open_node, respects
from tests.interop.peers import Kind, open_peer


@pytest.mark.parametrize(("one", "other"), [("js", "go"), ("kubo", "js")])
async def test_200_messages_each_way_pass_through_our_node(one: Kind, other: Kind, tmp_path: Path) -> None:
    async with open_peer(one) as left, open_peer(other) as right:
        async with open_node(tmp_path, "--bootstrap", left.addrs[0]) as ours:
            await right.dial(ours.addr)
            for peer in (left, right):
                await linked(peer, ours)
            await exchange(ForeignSide(left), ForeignSide(right))
            for peer in (left, right):
                assert await peer.peers() == {ours.peer_id}
                assert await respects(peer, ours)
