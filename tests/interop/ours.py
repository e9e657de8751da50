"""Our node beside foreign peers: run, linked, loaded at a steady rate, and read as its agent reads it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, Protocol

import trio

from tests.e2e.harness import Node, environment, start_node, stop
from tests.interop.peers import ForeignPeer, wait_until
from tests.stacks import Stack

OPPORTUNITIES = "councils.forming"
TOPIC = "hmmm.interop"
COUNT = 200
RATE_PER_SECOND = 20
PATIENCE_SECONDS = 180.0
FAREWELL = -1


class OurNode:
    """A sidecar, its blocking API called from threads. Made by `open_node`."""

    def __init__(self, node: Node, document: dict[str, Any]) -> None:
        self.node = node
        self.peer_id = str(document["peer_id"])
        self.addr = str(document["multiaddrs"][0])

    async def publish(self, topic: str, body: bytes) -> str:
        """The message's id, once the sidecar took it."""
        headers = {"Content-Type": "application/json"}
        return await trio.to_thread.run_sync(self.node.publish_accepted, topic, body, headers)

    async def messages(self, topic: str) -> list[dict[str, Any]]:
        return await trio.to_thread.run_sync(self.node.messages, topic)

    async def mesh(self, topic: str) -> frozenset[str]:
        topics = await trio.to_thread.run_sync(self.node.get, "/api/v1/topics")
        return frozenset(peer for each in topics if each["topic"] == topic for peer in each["mesh"])

    async def peers(self) -> dict[str, dict[str, Any]]:
        """Documents of the others by peer id."""
        peers = await trio.to_thread.run_sync(self.node.get, "/api/v1/peers")
        return {each["peer_id"]: each for each in peers if not each["self"]}

    async def control(self, reason: str) -> float:
        """What the router counted under a word."""
        return await self._metric(f'p2pnode_gossip_inbound_total{{reason="{reason}"')

    async def container(self, name: str) -> float:
        """How many entries a container of the router has now."""
        return await self._metric(f'p2pnode_router_entries{{container="{name}"')

    async def _metric(self, series: str) -> float:
        return await trio.to_thread.run_sync(self.node.metric, series)


@asynccontextmanager
async def open_node(directory: Path, *flags: str, stack: Stack, **env: str) -> AsyncIterator[OurNode]:
    """A sidecar on loopback that takes part in `TOPIC` and `OPPORTUNITIES` unless `env` says otherwise, for as long as
    the block lasts."""
    node = _start(directory, flags, {"P2PNODE_TRANSPORT_STACK": stack, **env})
    try:

        async def answers() -> bool:
            assert node.process is not None
            assert node.log is not None
            assert node.process.poll() is None, f"our node ended: {node.log.read_text()}"
            return bool(await trio.to_thread.run_sync(node.answers))

        await wait_until(answers, "our node answers", PATIENCE_SECONDS)
        yield OurNode(node, await trio.to_thread.run_sync(node.get, "/api/v1/node"))
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(stop, node)


def _start(directory: Path, flags: Sequence[str], env: Mapping[str, str]) -> Node:
    directory.mkdir(exist_ok=True)
    topics = f"{TOPIC},{OPPORTUNITIES}"
    settings = {"P2PNODE_GOSSIP_TOPICS": topics, **env}
    return start_node(directory, "ours", *flags, env=environment(directory / "run", **settings))


class Heard:
    """A message as an application got it: its id `author-seqno`, and the JSON that it carried."""

    def __init__(self, author: str, seqno: int, document: dict[str, Any]) -> None:
        self.author = author
        self.id = f"{author}-{seqno}"
        self.number = document.get("number")
        self.text = str(document.get("text"))


class Side(Protocol):
    """One who speaks and listens on `TOPIC`: our node, or a foreign peer."""

    @property
    def name(self) -> str: ...

    @property
    def peer_id(self) -> str: ...

    async def publish(self, document: dict[str, Any]) -> str | None:
        """The message's id, where the side tells it."""

    async def heard(self) -> list[Heard]:
        """All messages of others so far."""


class OurSide:
    """Our node, as its agent sees it."""

    name = "ours"

    def __init__(self, ours: OurNode) -> None:
        self.ours = ours
        self.peer_id = ours.peer_id

    async def publish(self, document: dict[str, Any]) -> str | None:
        return await self.ours.publish(TOPIC, json.dumps(document).encode())

    async def heard(self) -> list[Heard]:
        messages = await self.ours.messages(TOPIC)
        assert len({message["id"] for message in messages}) == len(messages)
        others = [message for message in messages if message["origin"] != self.peer_id]
        return [Heard(message["origin"], int(message["seqno"]), message["payload"]) for message in others]


class ForeignSide:
    """A foreign peer, as its application sees it."""

    def __init__(self, peer: ForeignPeer) -> None:
        self.peer = peer
        self.name = peer.kind
        self.peer_id = peer.peer_id

    async def publish(self, document: dict[str, Any]) -> str | None:
        await self.peer.publish(TOPIC, json.dumps(document).encode())
        return None

    async def heard(self) -> list[Heard]:
        return [
            Heard(message.author, message.seqno, json.loads(message.data))
            for message in self.peer.messages
            if message.topic == TOPIC
        ]


async def linked(peer: ForeignPeer, ours: OurNode) -> None:
    """Wait until each heard a probe of the other: go and kubo do not show their mesh."""

    async def subscribed() -> bool:
        return ours.peer_id in await peer.topic_peers(TOPIC)

    await peer.subscribe(TOPIC)
    await wait_until(subscribed, f"{peer.kind} knows our subscription", PATIENCE_SECONDS)
    sides: tuple[Side, Side] = (OurSide(ours), ForeignSide(peer))
    for author, reader in permutations(sides):
        await wait_until(partial(_is_heard, author, reader), f"{reader.name} hears {author.name}", PATIENCE_SECONDS)


async def _is_heard(author: Side, reader: Side) -> bool:
    await author.publish({"text": "probe"})
    return any(heard.author == author.peer_id for heard in await reader.heard())


async def respects(peer: ForeignPeer, ours: OurNode) -> bool:
    """Is our node still in the peer's mesh? One that found fault with us prunes us; go and kubo do not tell."""
    mesh = await peer.mesh(TOPIC)
    return mesh is None or ours.peer_id in mesh


async def exchange(*sides: Side, count: int = COUNT, text: str = "") -> None:
    """All publish at once, 20 messages a second each; every one hears all others exactly.

    A last message of each is waited for, so that what was doubled on the way had its time to come.
    """
    ids: dict[str, list[str | None]] = {side.peer_id: [] for side in sides}
    async with trio.open_nursery() as nursery:
        for side in sides:
            nursery.start_soon(_publish_paced, side, count, text, ids[side.peer_id])
    for last in ([], [FAREWELL]):
        for author in sides if last else ():
            ids[author.peer_id].append(await author.publish({"number": FAREWELL, "text": text}))
        for author, reader in permutations(sides, 2):
            await _hears(reader, author, [*last, *range(count)])
    for author, reader in permutations(sides, 2):
        heard = await _heard_from(reader, author)
        assert {each.text for each in heard} == {text}
        assert len({each.id for each in heard}) == count + 1
        if None not in ids[author.peer_id]:
            assert {each.id for each in heard} == set(ids[author.peer_id])


async def _publish_paced(side: Side, count: int, text: str, ids: list[str | None]) -> None:
    start = trio.current_time()
    for number in range(count):
        await trio.sleep_until(start + number / RATE_PER_SECOND)  # the rate is part of what is tested
        ids.append(await side.publish({"number": number, "text": text}))


async def _hears(reader: Side, author: Side, numbers: Sequence[int]) -> None:
    async def complete() -> bool:
        return len(await _heard_from(reader, author)) >= len(numbers)

    what = f"{reader.name} hears {len(numbers)} messages of {author.name}"
    try:
        await wait_until(complete, what, PATIENCE_SECONDS)
    except TimeoutError:
        missing = set(numbers) - {each.number for each in await _heard_from(reader, author)}
        raise AssertionError(f"{what}: {len(missing)} are missing: {sorted(missing)[:5]}") from None
    assert sorted(each.number or 0 for each in await _heard_from(reader, author)) == list(numbers)


async def _heard_from(reader: Side, author: Side) -> list[Heard]:
    """The numbered messages, not the probes, that one has of another, and of the other alone."""
    return [each for each in await reader.heard() if each.author == author.peer_id and each.number is not None]
