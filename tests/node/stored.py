"""An archive and a store in memory, for what reads from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import trio

from p2pnode.core.message import MessageId, SignedMessage
from p2pnode.core.metadata import Metadata
from p2pnode.core.peerid import peer_id_bytes
from p2pnode.errors import EnvironmentFault
from p2pnode.ports import Advance, Bury, Change, DeadLetter, Entry, Exhume, Subscribe, Subscription, Unsubscribe
from p2pnode.wire.payload import encode_json_payload
from p2pnode.wire.pubsub import decode_message, seal_message

PEERS = (
    "12D3KooWSoC9Jm8FQ8bxFFVQHgZZ7x5vyVbDHyTxFeGCGKXc1Wvo",
    "12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS",
)
WALL_NS = 1_763_899_200_000_000_000


def origin(number: int) -> bytes:
    """The peer id, in bytes, of one of many origins."""
    return peer_id_bytes(PEERS[0])[:-4] + number.to_bytes(4, "big")


def signed(of: int, number: int, topic: str = "t", size: int = 0) -> SignedMessage:
    """Message `number` of origin `of`, with a signature that nobody checks here."""
    document: dict[str, object] = {"of": of, "number": number, "filling": "x" * size}
    data = encode_json_payload(json.dumps(document).encode(), document, Metadata(published_at_ns=WALL_NS))
    return seal_message(origin=origin(of), seqno=number, topic=topic, data=data, sign=lambda _: b"s" * 64)


class MemoryArchive:
    """`node.stored.Archive`; `broken` is a disk that cannot be read."""

    def __init__(self) -> None:
        self.entries: dict[MessageId, Entry] = {}
        self.raws: dict[MessageId, bytes] = {}
        self.broken = False
        self.pages = 0
        self.largest_page = 0
        self.lost: list[tuple[str, int]] = []
        self._last = 0
        self._arrived = trio.Event()

    @property
    def last_arrival(self) -> int:
        return self._last

    def add(self, message: SignedMessage, *, expires_at_ns: int = 0, late: bool = False) -> Entry:
        self._last += 1
        entry = Entry(
            message.id,
            message.topic,
            self._last,
            WALL_NS,
            expires_at_ns,
            WALL_NS,
            len(message.raw),
            b"",
            late=late,
        )
        self.entries[message.id] = entry
        self.raws[message.id] = message.raw
        self._arrived.set()
        self._arrived = trio.Event()
        return entry

    def hold_back(self, message: SignedMessage) -> None:
        """Stored, and not released."""
        self.entries[message.id] = replace(self.add(message), arrival=0)

    def drop(self, message_id: MessageId) -> None:
        entry = self.entries.pop(message_id)
        del self.raws[message_id]
        self.lost.append((entry.topic, entry.arrival))

    def entry(self, message_id: MessageId, /) -> Entry | None:
        return self.entries.get(message_id)

    def page_of(self, topic: str) -> list[Entry]:
        """All that was released of a topic, in order."""
        return self._beyond((topic,), 0)

    def _beyond(self, topics: Collection[str], arrival: int) -> list[Entry]:
        return [each for each in self.entries.values() if each.topic in topics and each.arrival > arrival]

    async def page(self, topics: Collection[str], after: int, limit: int, /) -> Sequence[tuple[Entry, SignedMessage]]:
        await trio.lowlevel.checkpoint()
        self._check()
        self.pages += 1
        self.largest_page = max(self.largest_page, limit)
        found = islice(self._beyond(topics, after), limit)
        return [(each, decode_message(self.raws[each.id])) for each in found if each.id in self.raws]

    async def bytes_of(self, ids: Collection[MessageId], /) -> Mapping[MessageId, bytes]:
        await trio.lowlevel.checkpoint()
        self._check()
        return {each: self.raws[each] for each in ids if each in self.raws}

    async def wait_beyond(self, topics: Collection[str], arrival: int, /) -> None:
        while not self._beyond(topics, arrival):
            await self._arrived.wait()

    def count_beyond(self, topics: Collection[str], arrival: int, /) -> int:
        return len(self._beyond(topics, arrival))

    def lost_beyond(self, topics: Collection[str], arrival: int, /) -> int:
        return sum(topic in topics and at > arrival for topic, at in self.lost)

    def _check(self) -> None:
        if self.broken:
            raise EnvironmentFault("cannot read messages.db: Input/output error")


class MemoryStore:
    """What was written of subscriptions; `broken` is a full disk."""

    def __init__(self) -> None:
        self.subscriptions: dict[str, Subscription] = {}
        self.letters: dict[tuple[str, int], DeadLetter] = {}
        self.writes: list[Sequence[Change]] = []
        self.broken = False
        self._wrote = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a write brings about."""
        while not condition():
            await self._wrote.wait()

    async def write(self, changes: Sequence[Change], /) -> None:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise EnvironmentFault("cannot write messages.db: No space left on device")
        self.writes.append(changes)
        for change in changes:
            self._apply(change)
        self._wrote.set()
        self._wrote = trio.Event()

    def _apply(self, change: Change) -> None:
        if isinstance(change, Subscribe):
            self.subscriptions[change.subscription.name] = change.subscription
        elif isinstance(change, Unsubscribe):
            self.subscriptions.pop(change.name, None)
            self.letters = {key: letter for key, letter in self.letters.items() if key[0] != change.name}
        elif isinstance(change, Advance):
            if (known := self.subscriptions.get(change.name)) is not None:
                self.subscriptions[change.name] = replace(known, cursor=change.cursor)
        elif isinstance(change, Bury):
            self.letters[change.letter.subscription, change.letter.arrival] = change.letter
        elif isinstance(change, Exhume):
            self.letters.pop((change.subscription, change.arrival), None)
        else:
            raise AssertionError(f"deliveries do not write {change}")
