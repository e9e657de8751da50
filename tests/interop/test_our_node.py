"""Our node and one stock peer with default options: js-libp2p (meshsub 1.2), go-libp2p 0.24 and kubo 0.22 (1.1)."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.interop.ours import OPPORTUNITIES, ForeignSide, OurSide, exchange, linked, open_node, respects
from tests.interop.peers import KINDS, Kind, open_peer, wait_until

SAMPLE = Path(__file__).parents[1] / "samples" / "opportunity.json"
MESHSUB_1_2 = frozenset({("inbound", "/meshsub/1.2.0"), ("outbound", "/meshsub/1.2.0")})


@pytest.mark.parametrize("kind", KINDS)
async def test_200_signed_messages_each_way_arrive_once_whoever_dials(kind: Kind, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:  # two pairs side by side: the load takes ten seconds
        nursery.start_soon(partial(exchange_as_a_pair, kind, tmp_path / "we-dial", we_dial=True))
        nursery.start_soon(partial(exchange_as_a_pair, kind, tmp_path / "they-dial", we_dial=False))


async def exchange_as_a_pair(kind: Kind, directory: Path, *, we_dial: bool) -> None:
    async with open_peer(kind) as peer:
        bootstrap = ["--bootstrap", peer.addrs[0]] if we_dial else []
        async with open_node(directory, *bootstrap) as ours:
            if not we_dial:
                await peer.dial(ours.addr)
            await linked(peer, ours)
            await exchange(OurSide(ours), ForeignSide(peer))
            link = (await ours.peers())[peer.peer_id]
            assert link["direction"] == ("outbound" if we_dial else "inbound")
            assert link["score"] >= 0
            assert await respects(peer, ours)


async def test_js_and_our_node_agree_on_meshsub_1_2_whoever_dials(tmp_path: Path) -> None:
    async with open_peer("js") as dialled, open_peer("js") as dialling:
        async with open_node(tmp_path, "--bootstrap", dialled.addrs[0]) as ours:
            await dialling.dial(ours.addr)
            for js in (dialled, dialling):
                await linked(js, ours)
                assert await js.streams(ours.peer_id) == MESHSUB_1_2


@pytest.mark.parametrize("kind", KINDS)
async def test_an_opportunity_is_plain_json_to_a_stock_peer_and_arrives_from_one(kind: Kind, tmp_path: Path) -> None:
    sample = json.loads(SAMPLE.read_text())
    async with open_peer(kind) as peer, open_node(tmp_path) as ours:
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
