"""The foreign peers themselves, without a p2pnode: what they cannot do among each other we need not be tested for."""

from functools import partial
from itertools import combinations

import pytest

from tests.interop.peers import (
    INSTALLED,
    KINDS,
    CommandFailed,
    ForeignPeer,
    Kind,
    Message,
    PeerFailed,
    open_peer,
    wait_until,
)

TOPIC = "interop/foreign"
COUNT = 20
PROBE = b"probe"
NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS"


def payloads(author: ForeignPeer) -> list[bytes]:
    """Binary, with zero bytes, different for every author."""
    return [b"\x00\xff" + author.kind.encode() + bytes([number]) for number in range(COUNT)]


async def linked(dialler: ForeignPeer, listener: ForeignPeer) -> None:
    """Connects the two, both subscribed, and returns once each hears the other.

    go does not flood and does not show its mesh: what it publishes before its first GRAFT is lost. A probe that
    arrives is the one sign of a link that every kind gives.
    """
    for peer in (dialler, listener):
        await peer.subscribe(TOPIC)
    await dialler.dial(listener.addrs[0])
    for author, reader in ((dialler, listener), (listener, dialler)):
        await wait_until(partial(knows, author, reader), f"{author.kind} meshes with {reader.kind}")
        await wait_until(partial(is_heard, author, reader), f"{reader.kind} hears {author.kind}")


async def is_heard(author: ForeignPeer, reader: ForeignPeer) -> bool:
    await author.publish(TOPIC, PROBE)
    return any(message.author == author.peer_id for message in reader.messages)


def is_no_probe(message: Message) -> bool:
    return message.data != PROBE


async def knows(peer: ForeignPeer, other: ForeignPeer) -> bool:
    mesh = await peer.mesh(TOPIC)
    return other.peer_id in await peer.topic_peers(TOPIC) and (mesh is None or other.peer_id in mesh)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_peer_listens_on_loopback_only_and_reports_its_cost(kind: Kind) -> None:
    async with open_peer(kind) as peer:
        assert [addr.rsplit("/tcp/")[0] for addr in peer.addrs] == ["/ip4/127.0.0.1"]
        assert peer.addrs[0].endswith(f"/p2p/{peer.peer_id}")
        stats = await peer.stats()
        assert stats.rss_bytes > 1 << 20
        assert stats.cpu_seconds > 0
        assert await peer.peers() == frozenset()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failed_command_leaves_the_peer_usable(kind: Kind) -> None:
    async with open_peer(kind) as peer:
        with pytest.raises(CommandFailed, match="dial"):
            await peer.dial(NOBODY)
        assert await peer.topic_peers(TOPIC) == frozenset()


@pytest.mark.parametrize("flag", ["--no-such-flag"])
@pytest.mark.parametrize("kind", ["js", "go"])
async def test_a_peer_that_cannot_start_says_why(kind: Kind, flag: str) -> None:
    with pytest.raises(PeerFailed, match=flag):
        async with open_peer(kind, flag):
            pass


@pytest.mark.parametrize(
    ("dialling", "listening"), [*combinations(INSTALLED, 2), *combinations(reversed(INSTALLED), 2)]
)
async def test_every_pair_exchanges_signed_messages_both_ways(dialling: Kind, listening: Kind) -> None:
    async with open_peer(dialling) as dialler, open_peer(listening) as listener:
        await linked(dialler, listener)
        for author in (dialler, listener):
            for data in payloads(author):
                await author.publish(TOPIC, data)
        for reader, author in ((dialler, listener), (listener, dialler)):
            messages = await reader.wait_for_messages(COUNT, where=is_no_probe)
            assert sorted(message.data for message in messages) == sorted(payloads(author))
            assert {message.author for message in messages} == {author.peer_id}
            assert {message.topic for message in messages} == {TOPIC}
            assert {message.via for message in messages} <= {author.peer_id, None}
            assert len({message.seqno for message in messages}) == COUNT


# js cannot shake hands with a peer whose identity is an ECDSA key.
@pytest.mark.parametrize(("key_type", "reading"), [("rsa", "js"), ("secp256k1", "js"), ("ecdsa", "kubo")])
async def test_messages_signed_with_every_key_type_arrive(key_type: str, reading: Kind) -> None:
    async with open_peer("go", "--key-type", key_type) as go, open_peer(reading) as reader:
        await linked(go, reader)
        await go.publish(TOPIC, b"signed")
        [message] = await reader.wait_for_messages(1, where=is_no_probe)
        assert (message.author, message.data) == (go.peer_id, b"signed")


async def test_the_mesh_of_a_js_peer_is_visible() -> None:
    async with open_peer("js", "--d", "3", "--do-px") as js, open_peer("go") as go:
        await linked(go, js)
        assert await js.mesh(TOPIC) == frozenset({go.peer_id})
        assert await go.mesh(TOPIC) is None
