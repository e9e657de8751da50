"""Stock peers and our node on one local network find each other by multicast DNS, with no address told to anybody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.discovery.lan import Lan, Station, open_lan, open_participant
from tests.discovery.mdns_crafted import peer_id
from tests.e2e.cable import needs_cables
from tests.e2e.harness import environment, start_node, stop
from tests.interop.ours import TOPIC, OurNode, linked
from tests.interop.peers import ForeignPeer, Kind, open_peer, wait_until

pytestmark = needs_cables

KINDS: tuple[Kind, ...] = ("js", "kubo")


@pytest.fixture
def lan() -> Iterator[Lan]:
    with open_lan() as network:
        yield network


@asynccontextmanager
async def open_ours(directory: Path, station: Station, flag: str = "--mdns") -> AsyncIterator[OurNode]:
    """`p2pnode run --mdns` in a station, or with another flag."""
    node = start_node(
        directory,
        "ours",
        "--listen",
        f"/ip4/{station.ip}/tcp/9000",
        flag,
        within=station.within,
        env=environment(directory / "run", P2PNODE_GOSSIP_TOPICS=TOPIC),
    )
    try:

        async def answers() -> bool:
            return bool(await trio.to_thread.run_sync(node.answers))

        await wait_until(answers, "our node answers")
        yield OurNode(node, await trio.to_thread.run_sync(node.get, "/api/v1/node"))
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(stop, node)


async def is_connected(ours: OurNode, peer: ForeignPeer, direction: str) -> bool:
    found = (await ours.peers()).get(peer.peer_id)
    return found is not None and found["connected"] and found["direction"] == direction


async def knows(peer: ForeignPeer, ours: OurNode) -> bool:
    return ours.addr in await peer.discovered()


@pytest.mark.parametrize("kind", KINDS)
async def test_our_node_finds_a_stock_peer_that_was_there_before(kind: Kind, lan: Lan, tmp_path: Path) -> None:
    here, there = lan.plug_in(), lan.plug_in()
    async with open_peer(kind, "--mdns", there.ip, within=there.within) as peer, open_ours(tmp_path, here) as ours:
        await linked(peer, ours)


@pytest.mark.parametrize("kind", KINDS)
async def test_our_node_finds_a_stock_peer_that_comes_later(kind: Kind, lan: Lan, tmp_path: Path) -> None:
    here, there = lan.plug_in(), lan.plug_in()
    async with open_ours(tmp_path, here) as ours, open_peer(kind, "--mdns", there.ip, within=there.within) as peer:
        await linked(peer, ours)


async def test_a_js_peer_finds_our_address(lan: Lan, tmp_path: Path) -> None:
    here, before, later = (lan.plug_in() for _ in range(3))
    async with (
        open_peer("js", "--mdns", before.ip, within=before.within) as first,
        open_ours(tmp_path, here) as ours,
        open_peer("js", "--mdns", later.ip, within=later.within) as second,
    ):
        for peer in (first, second):
            await wait_until(partial(knows, peer, ours), "the js peer knows our address")


async def test_a_kubo_peer_finds_our_node_and_connects(lan: Lan, tmp_path: Path) -> None:
    here, there = lan.plug_in(), lan.plug_in()
    async with open_ours(tmp_path, here, "--no-mdns") as ours:
        # Announced by another process, which dials nobody: our node itself would be faster than kubo.
        with open_participant(here, ours.peer_id, addrs=[ours.addr]):
            async with open_peer("kubo", "--mdns", there.ip, within=there.within) as kubo:
                await wait_until(partial(is_connected, ours, kubo, "inbound"), "kubo dialled our node")


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_stock_peer_announces_is_a_place_as_it_stands(kind: Kind, lan: Lan) -> None:
    here, there = lan.plug_in(), lan.plug_in()
    with open_participant(here, peer_id(1)) as ours:
        async with open_peer(kind, "--mdns", there.ip, within=there.within) as peer:

            async def lists_it() -> bool:
                return set(ours.places) == set(peer.addrs)

            await wait_until(lists_it, "its addresses are listed")
            assert ours.reports[-1].ignored == {}
