"""Messages of 100 KiB in a triangle with two js peers, where each of us tells the others IDONTWANT."""

from __future__ import annotations

from pathlib import Path

from tests.interop.ours import ForeignSide, OurSide, exchange, linked, open_node
from tests.interop.peers import open_peer, wait_until
from tests.stacks import Stack, on_both_stacks

TEXT = "x" * 100 * 1024
COUNT = 20


@on_both_stacks
async def test_large_messages_arrive_once_with_idontwant_in_both_directions(stack: Stack, tmp_path: Path) -> None:
    async with open_peer("js") as one, open_peer("js") as other:
        async with open_node(tmp_path, "--bootstrap", one.addrs[0], stack=stack) as ours:
            for dialled in (one.addrs[0], ours.addr):
                await other.dial(dialled)
            for js in (one, other):
                await linked(js, ours)
            await exchange(OurSide(ours), ForeignSide(one), ForeignSide(other), count=COUNT, text=TEXT)
            assert await ours.control("idontwant-sent") > 0

            async def refused_by_js() -> bool:
                await ForeignSide(one).publish({"text": TEXT})
                return await ours.container("unwanted") > 0

            await wait_until(refused_by_js, "js tells us which message it has already")
