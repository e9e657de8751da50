"""Stock peers that are sent our extension of the pubsub RPC, held notices, pass over it and go on as before."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import permutations
from random import Random
from typing import Any

import pytest
import trio

from p2pnode.core.gossipsub.params import Params
from p2pnode.core.message import Accept, MessageId, SignedMessage, Verdict
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.host.library import LibraryHost
from p2pnode.host.meshsub import open_meshsub
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity, verifier_for
from p2pnode.node.gossip import RoutedGossip
from p2pnode.wire.pubsub import message_verify, seal_message
from p2pnode.wire.rpc import MAX_HELD
from tests.interop.ours import COUNT, PATIENCE_SECONDS, TOPIC, ForeignSide, Heard, Side, exchange
from tests.interop.peers import Kind, open_peer, wait_until


class Telling:
    """A `Side` without the node above the router: before each of its messages it sends held notices to everybody."""

    name = "ours"

    def __init__(self, identity: Identity, host: LibraryHost) -> None:
        self.peer_id = identity.peer_id
        self.host = host
        self.gossip: RoutedGossip
        self.notices = 0
        self._identity = identity
        self._seqno = time.time_ns()
        self._heard: list[Heard] = []

    async def publish(self, document: dict[str, Any]) -> str | None:
        self._seqno += 1
        for peer in self.gossip.topic_peers(TOPIC):
            self._tell(peer)
        message = seal_message(
            origin=self._identity.peer_id_bytes,
            seqno=self._seqno,
            topic=TOPIC,
            data=json.dumps(document).encode(),
            sign=self._identity.sign,
        )
        await self.gossip.publish(message)
        return f"{self.peer_id}-{self._seqno}"

    def _tell(self, peer: PeerId) -> None:
        """One notice; now and then as many as an RPC may have."""
        self.notices += 1
        self.gossip.send_held(peer, [os.urandom(8) for _ in range(1 if self.notices % 50 else MAX_HELD)])

    async def heard(self) -> list[Heard]:
        return list(self._heard)

    # -- ports.GossipEvents

    def judge(self, message: SignedMessage, source: PeerId | None) -> Verdict:
        return Accept()

    def deliver(self, message: SignedMessage, source: PeerId | None, *, via: str = "gossip", restored: bool) -> None:
        self._heard.append(Heard(peer_id_text(message.origin), message.number, json.loads(message.data)))

    def holds(self, message_id: MessageId) -> bool:
        return False

    def connect(self, peer: PeerId, record: bytes | None, why: str) -> None:
        raise AssertionError("nobody prunes us with other peers to turn to")

    def held(self, peer: PeerId, seqnos: Sequence[bytes]) -> None:
        raise AssertionError("a stock peer knows no held notices")

    def repeated(self, peer: PeerId, message_id: MessageId) -> None:
        raise AssertionError("nothing is kept here")

    def joined(self, peer: PeerId, topic: str) -> None:
        """Who reads what is of no interest here."""


@asynccontextmanager
async def open_telling() -> AsyncIterator[Telling]:
    identity = Identity.generate()
    async with (
        open_host(identity, ["/ip4/127.0.0.1/tcp/0"]) as host,
        open_meshsub(host, Random(os.urandom(16))) as streams,
        trio.open_nursery() as nursery,
    ):
        telling = Telling(identity, host)
        verify = message_verify(verifier_for)
        telling.gossip = RoutedGossip(
            identity.peer_id, streams, telling, verify, Params(), Random(os.urandom(16)), fixed_degree=True
        )
        streams.report_to(telling.gossip)
        host.report_to(streams)
        nursery.start_soon(telling.gossip.run)
        await telling.gossip.subscribe(TOPIC)
        yield telling
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kinds", [("js", "go"), ("kubo", "library")], ids="+".join)
async def test_200_messages_each_way_arrive_once_between_held_notices(kinds: tuple[Kind, Kind]) -> None:
    async with trio.open_nursery() as nursery:  # side by side: the load takes ten seconds
        for kind in kinds:
            nursery.start_soon(exchange_between_notices, kind)


async def exchange_between_notices(kind: Kind) -> None:
    async with open_peer(kind) as peer, open_telling() as ours:
        await peer.subscribe(TOPIC)
        await ours.host.dial(peer.addrs[0])
        sides: tuple[Side, Side] = (ours, ForeignSide(peer))
        for author, reader in permutations(sides):
            await meet(author, reader)
        await exchange(*sides)
        assert ours.notices >= COUNT
        mesh = await peer.mesh(TOPIC)
        assert mesh is None or ours.peer_id in mesh
        assert await peer.peers() == {ours.peer_id}
        assert (ours.gossip.score(PeerId(peer.peer_id)) or 0.0) >= 0


async def meet(author: Side, reader: Side) -> None:
    async def is_heard() -> bool:
        await author.publish({"text": "probe"})
        return any(heard.author == author.peer_id for heard in await reader.heard())

    await wait_until(is_heard, f"{reader.name} hears {author.name}", PATIENCE_SECONDS)
