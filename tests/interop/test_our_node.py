"""Our node and one stock peer: js-libp2p and py-libp2p (meshsub 1.2), go-libp2p 0.24 and kubo 0.22 (1.1)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from tests.interop.ours import OPPORTUNITIES, ForeignSide, OurSide, exchange, linked, open_node, respects
from tests.interop.peers import KINDS, Kind, open_peer, wait_until
from tests.stacks import Stack, on_both_stacks_in_time

SAMPLE = Path(__file__).parents[1] / "samples" / "opportunity.json"
MESHSUB_1_2 = frozenset({("inbound", "/meshsub/1.2.0"), ("outbound", "/meshsub/1.2.0")})


@on_both_stacks_in_time
@pytest.mark.parametrize("kinds", [("js", "go"), ("kubo", "library")], ids="+".join)
async def test_200_signed_messages_each_way_arrive_once_whoever_dials(
    kinds: tuple[Kind, Kind], stack: Stack, tmp_path: Path
) -> None:
    async with trio.open_nursery() as nursery:  # four pairs side by side: the load takes ten seconds
        for kind in kinds:
            for we_dial in (True, False):
                nursery.start_soon(exchange_as_a_pair, kind, stack, we_dial, tmp_path / f"{kind}-{we_dial}")


async def exchange_as_a_pair(kind: Kind, stack: Stack, we_dial: bool, directory: Path) -> None:
    async with open_peer(kind) as peer:
        bootstrap = ["--bootstrap", peer.addrs[0]] if we_dial else []
        async with open_node(directory, *bootstrap, stack=stack) as ours:
            if not we_dial:
                await peer.dial(ours.addr)
            await linked(peer, ours)
            await exchange(OurSide(ours), ForeignSide(peer))
            link = (await ours.peers())[peer.peer_id]
            assert link["direction"] == ("outbound" if we_dial else "inbound")
            assert link["score"] >= 0
            assert await respects(peer, ours)


@on_both_stacks_in_time
async def test_js_and_our_node_agree_on_meshsub_1_2_whoever_dials(stack: Stack, tmp_path: Path) -> None:
    async with open_peer("js") as dialled, open_peer("js") as dialling:
        async with open_node(tmp_path, "--bootstrap", dialled.addrs[0], stack=stack) as ours:
            await dialling.dial(ours.addr)
            for js in (dialled, dialling):
                await linked(js, ours)
                assert await js.streams(ours.peer_id) == MESHSUB_1_2


@on_both_stacks_in_time
@pytest.mark.parametrize("kind", KINDS)
async def test_an_opportunity_is_plain_json_to_a_stock_peer_and_arrives_from_one(
    kind: Kind, stack: Stack, tmp_path: Path
) -> None:
    sample = json.loads(SAMPLE.read_text())
    async with open_peer(kind) as peer, open_node(tmp_path, stack=stack) as ours:
        await peer.subscribe(OPPORTUNITIES)
        await peer.dial(ours.addr)
        await linked(peer, ours)

        await ours.publish(OPPORTUNITIES, SAMPLE.read_bytes())
        [message] = await peer.wait_for_messages(1, where=lambda message: message.topic == OPPORTUNITIES)
        document = json.loads(message.data)
        metadata = document.pop("p2pnode")
        assert document == sample
        assert metadata["v"] == 1
        assert metadata["published_at"].endswith("Z")

        await peer.publish(OPPORTUNITIES, SAMPLE.read_bytes())

        async def both_kept() -> bool:
            return len(await ours.messages(OPPORTUNITIES)) == 2

        await wait_until(both_kept, "the opportunity is here")
        [theirs] = [each for each in await ours.messages(OPPORTUNITIES) if each["origin"] == peer.peer_id]
        assert theirs["payload"] == sample
        assert theirs["published_at"] is None
