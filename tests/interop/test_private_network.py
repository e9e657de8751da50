"""Stock peers and our nodes with one network key meet; whoever has another key, or none, meets nobody."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from tests.interop.ours import ForeignSide, OurNode, OurSide, exchange, linked, open_node
from tests.interop.peers import INSTALLED, CommandFailed, ForeignPeer, Kind, open_peer, wait_until
from tests.stacks import Stack

KEY, OTHER_KEY = "3c" * 32, "c3" * 32
COUNT = 20

with_stock_peers = pytest.mark.parametrize("kind", INSTALLED)


@with_stock_peers
@pytest.mark.parametrize(("dials", "is_dialled"), [("fused", "library"), ("library", "fused")])
async def test_members_of_one_private_network_exchange_messages_whoever_dials(
    kind: Kind, dials: Stack, is_dialled: Stack, tmp_path: Path
) -> None:
    open_ours = partial(open_node, P2PNODE_NETWORK_KEY=KEY)
    async with (
        open_peer(kind, "--network-key", KEY) as peer,
        open_ours(tmp_path / "dials", "--bootstrap", peer.addrs[0], stack=dials) as dialling,
        open_ours(tmp_path / "dialled", stack=is_dialled) as dialled,
    ):
        await peer.dial(dialled.addr)
        for ours, direction in ((dialling, "outbound"), (dialled, "inbound")):
            await linked(peer, ours)
            assert (await ours.peers())[peer.peer_id]["direction"] == direction
        await exchange(OurSide(dialling), OurSide(dialled), ForeignSide(peer), count=COUNT)


@with_stock_peers
async def test_another_network_key_or_none_keeps_everybody_out(kind: Kind, tmp_path: Path) -> None:
    async with open_peer(kind, "--network-key", KEY) as private, open_peer(kind) as public:
        strangers = ("--bootstrap", private.addrs[0], "--bootstrap", public.addrs[0])
        async with (
            open_node(tmp_path / "other", *strangers, stack="fused", P2PNODE_NETWORK_KEY=OTHER_KEY) as other,
            open_node(tmp_path / "none", "--bootstrap", private.addrs[0], stack="library") as keyless,
        ):
            for peer, ours in ((private, other), (private, keyless), (public, other)):
                with pytest.raises(CommandFailed):
                    await peer.dial(ours.addr)
                await wait_until(partial(is_told, ours, peer), "our node says what to check")
            for peer in (private, public):
                assert await peer.peers() == frozenset()
            for ours in (other, keyless):
                assert await ours.peers() == {}


async def is_told(ours: OurNode, peer: ForeignPeer) -> bool:
    """Does the log of our node name the key beside the address of the peer that it could not join?"""
    assert ours.node.log is not None
    lines = (await trio.Path(ours.node.log).read_text()).splitlines()
    return any(peer.addrs[0] in line and "network.key" in line for line in lines)
