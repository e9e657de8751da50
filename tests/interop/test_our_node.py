"""Our node among stock peers with default options: js-libp2p (meshsub 1.2), go-libp2p 0.24 and kubo 0.22 (1.1)."""

from __future__ import annotations

import base64
import json
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.e2e.harness import Node, have_all, running_node
from tests.e2e.harness import wait_until as wait_blocking
from tests.interop.peers import KINDS, ForeignPeer, Kind, open_peer, wait_until

SAMPLE = Path(__file__).parents[1] / "samples" / "opportunity.json"
TOPIC = "councils.forming"
FREE_TOPIC = "hmmm.interop"
COUNT = 50


async def linked(peer: ForeignPeer, node: Node, *, we_dial: bool) -> None:
    """Both subscribed, and each heard a probe of the other: go and kubo do not show their mesh."""
    for topic in (TOPIC, FREE_TOPIC):
        await peer.subscribe(topic)
    if not we_dial:
        await peer.dial(node.bootstrap)
    await wait_until(partial(hears_us, peer, node), f"{peer.kind} hears our node")
    await wait_until(partial(is_heard, peer, node), f"our node hears {peer.kind}")


async def hears_us(peer: ForeignPeer, node: Node) -> bool:
    await trio.to_thread.run_sync(node.publish, FREE_TOPIC, b"probe")
    return any(b"probe" in message.data for message in peer.messages)


async def is_heard(peer: ForeignPeer, node: Node) -> bool:
    await peer.publish(FREE_TOPIC, b"probe")
    messages = await trio.to_thread.run_sync(node.messages, FREE_TOPIC)
    return any(message["origin"] == peer.peer_id for message in messages)


def node_env(directory: Path) -> dict[str, str]:
    from tests.e2e.harness import environment

    return environment(directory / "run", P2PNODE_GOSSIP_TOPICS=f"{TOPIC},{FREE_TOPIC}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("we_dial", [True, False], ids=["we-dial", "they-dial"])
async def test_a_stock_peer_and_our_node_exchange_every_message(kind: Kind, we_dial: bool, tmp_path: Path) -> None:
    async with open_peer(kind) as peer:
        flags = ["--bootstrap", peer.addrs[0]] if we_dial else []
        with running_node(tmp_path, "ours", *flags, env=node_env(tmp_path)) as node:
            await linked(peer, node, we_dial=we_dial)
            ours = {
                await trio.to_thread.run_sync(node.publish_accepted, FREE_TOPIC, f"ours {n}".encode())
                for n in range(COUNT)
            }
            for n in range(COUNT):
                await peer.publish(FREE_TOPIC, f"theirs {n}".encode())
            me = node.get("/api/v1/node")["peer_id"]
            await peer.wait_for_messages(COUNT, where=lambda message: b"ours " in message.data)
            got = [message for message in peer.messages if b"ours " in message.data]
            assert {message.author for message in got} == {me}
            assert {f"{me}-{message.seqno}" for message in got} == ours
            assert len(got) == COUNT

            def theirs() -> list[bytes]:
                kept = [m for m in node.messages(FREE_TOPIC) if m["origin"] == peer.peer_id]
                bodies = [base64.b64decode(m["payload"]) for m in kept]
                return [body for body in bodies if body.startswith(b"theirs ")]

            await trio.to_thread.run_sync(
                lambda: wait_blocking("theirs are all here", lambda: len(theirs()) >= COUNT or None)
            )
            assert sorted(theirs()) == sorted(f"theirs {n}".encode() for n in range(COUNT))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stock_peer_reads_an_opportunity_as_plain_json(kind: Kind, tmp_path: Path) -> None:
    sample = json.loads(SAMPLE.read_text())
    async with open_peer(kind) as peer:
        with running_node(tmp_path, "ours", env=node_env(tmp_path)) as node:
            await linked(peer, node, we_dial=False)
            await trio.to_thread.run_sync(node.publish_accepted, TOPIC, SAMPLE.read_bytes())
            await peer.wait_for_messages(1, where=lambda message: message.topic == TOPIC)
            (message,) = [message for message in peer.messages if message.topic == TOPIC]
            document = json.loads(message.data)
            metadata = document.pop("p2pnode")
            assert document == sample
            assert metadata["v"] == 1
            assert metadata["published_at"].endswith("Z")


@pytest.mark.parametrize("kind", KINDS)
async def test_an_opportunity_of_a_stock_peer_reaches_our_agent(kind: Kind, tmp_path: Path) -> None:
    async with open_peer(kind) as peer:
        with running_node(tmp_path, "ours", env=node_env(tmp_path)) as node:
            await linked(peer, node, we_dial=False)
            await peer.publish(TOPIC, SAMPLE.read_bytes())
            await trio.to_thread.run_sync(
                lambda: wait_blocking("the opportunity is here", lambda: node.messages(TOPIC) or None)
            )
            (document,) = node.messages(TOPIC)
            assert document["payload"] == json.loads(SAMPLE.read_text())
            assert document["origin"] == peer.peer_id
            assert document["published_at"] is None
            have_all([node], TOPIC, {document["id"]})
