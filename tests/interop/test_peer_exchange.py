"""Signed peer records in a PRUNE lead to connections, from a js hub to our node and from our node to js."""

from __future__ import annotations

from pathlib import Path

from tests.interop.ours import TOPIC, OurNode, open_node
from tests.interop.peers import ForeignPeer, open_peer, wait_until
from tests.stacks import Stack, on_both_stacks


@on_both_stacks
async def test_our_node_dials_peers_that_a_full_js_hub_gives_it(stack: Stack, tmp_path: Path) -> None:
    async with open_peer("js", "--do-px", "--d", "1") as hub, open_peer("js") as one, open_peer("js") as other:
        leaves = {leaf.peer_id: leaf for leaf in (one, other)}
        await hub.subscribe(TOPIC)
        for leaf in leaves.values():
            await leaf.subscribe(TOPIC)
            await leaf.dial(hub.addrs[0])

        async def full() -> bool:
            return await hub.mesh(TOPIC) == leaves.keys()

        await wait_until(full, "the hub has as many mesh links as it takes")
        async with open_node(tmp_path, "--bootstrap", hub.addrs[0], stack=stack) as ours:
            leaf = leaves[await a_new_outbound_link(ours, hub)]

            async def meshed() -> bool:
                return ours.peer_id in (await leaf.mesh(TOPIC) or ())

            await wait_until(meshed, "the leaf takes our node into its mesh")
            assert leaf.peer_id in await ours.mesh(TOPIC)
            assert await ours.control("px-connect") >= 1
            # Nobody here has a member record, so nothing but the hub's PRUNE can have named the leaf.
            assert all(peer["name"] is None for peer in (await ours.peers()).values())


async def a_new_outbound_link(ours: OurNode, hub: ForeignPeer) -> str:
    """Wait until our node has dialled somebody besides the hub; who it is."""
    found: list[str] = []

    async def dialled() -> bool:
        links = await ours.peers()
        found[:] = [peer for peer, link in links.items() if link["direction"] == "outbound" and peer != hub.peer_id]
        return bool(found)

    await wait_until(dialled, "our node dials a peer from the exchange")
    return found[0]


@on_both_stacks
async def test_js_dials_peers_that_our_full_node_gives_it(stack: Stack, tmp_path: Path) -> None:
    async with open_node(tmp_path, stack=stack, P2PNODE_GOSSIP_DEGREE="1") as ours:
        async with open_peer("js") as one, open_peer("js") as other:
            leaves = {leaf.peer_id for leaf in (one, other)}
            for leaf in (one, other):
                await leaf.subscribe(TOPIC)
                await leaf.dial(ours.addr)

            async def full() -> bool:
                return await ours.mesh(TOPIC) == leaves

            await wait_until(full, "our node has as many mesh links as it takes")
            async with open_peer("js", "--accept-px-threshold", "0") as newcomer:
                await newcomer.subscribe(TOPIC)
                await newcomer.dial(ours.addr)

                async def knows_a_leaf() -> bool:
                    return bool(leaves & await newcomer.peers())

                await wait_until(knows_a_leaf, "the newcomer dials a peer from the exchange")
