"""Messages and changes for tests of the store, and what a store that keeps its word would hold after them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from p2pnode import ports
from p2pnode.core.message import MessageId
from p2pnode.ports import Add, Bury, Contents, DeadLetter, Drop, Entry, Remember, Subscription

ROOT = Path(__file__).parents[2]


def message_id(number: int) -> MessageId:
    """Of one of 34 origins."""
    return MessageId(b"\x00\x24\x08\x01\x12\x20" + bytes([number % 34]) * 32 + number.to_bytes(8, "big"))


def body(number: int, size: int) -> bytes:
    """Always the same for a number, so that whoever reads it can tell whether it is whole."""
    return hashlib.shake_128(number.to_bytes(8, "big")).digest(size)


def entry(number: int, raw: bytes, *, arrival: int | None = None, topic: str = "councils.forming") -> Entry:
    digest = hashlib.sha256(raw).digest()[:16]
    at = 1_763_899_200_000_000_000 + number
    return Entry(message_id(number), topic, number if arrival is None else arrival, at, 0, at + 5, len(raw), digest)


def add(number: int, *, size: int = 1024, arrival: int | None = None, outbox: bool = False) -> Add:
    raw = body(number, size)
    made = entry(number, raw, arrival=arrival)
    return Add(replace(made, own=True, carrier="local") if outbox else made, raw, outbox)


def bury(subscription: str, number: int, *, attempts: int = 1, arrival: int | None = None) -> Bury:
    where = number if arrival is None else arrival
    return Bury(DeadLetter(subscription, where, message_id(number), "councils.forming", attempts, "500", 7))


def drop(*numbers: int) -> Drop:
    return Drop(tuple(map(message_id, numbers)))


class Model:
    """A store in dictionaries."""

    def __init__(self) -> None:
        self.messages: dict[MessageId, tuple[Entry, bytes]] = {}
        self.outbox: set[MessageId] = set()
        self.last_arrival = 0
        self.horizons: dict[str, int] = {}
        self.remembered: dict[str, Remember] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.letters: dict[tuple[str, int], DeadLetter] = {}

    def write(self, changes: Iterable[ports.Change]) -> None:
        for change in changes:
            self._apply(change)

    def _apply(self, change: ports.Change) -> None:
        match change:
            case ports.Add(entry, raw, outbox):
                self.last_arrival = max(self.last_arrival, entry.arrival)
                if entry.id not in self.messages:
                    self.messages[entry.id] = (entry, raw)
                    if outbox:
                        self.outbox.add(entry.id)
            case ports.Release(id, arrival, late):
                self.last_arrival = max(self.last_arrival, arrival)
                if id in self.messages and not self.messages[id][0].arrival:
                    entry, raw = self.messages[id]
                    self.messages[id] = (replace(entry, arrival=arrival, late=late), raw)
            case ports.Drop(ids):
                for id in ids:
                    self.messages.pop(id, None)
                    self.outbox.discard(id)
                self.letters = {key: letter for key, letter in self.letters.items() if letter.id not in ids}
            case ports.Horizon(topic, at_ns):
                self.horizons[topic] = at_ns
            case ports.OutboxDone(ids):
                self.outbox -= set(ids)
            case ports.Took(id, roads):
                if id in self.messages:
                    entry, raw = self.messages[id]
                    self.messages[id] = (replace(entry, roads=roads), raw)
            case ports.Remember(key):
                self.remembered.pop(key, None)
                self.remembered[key] = change
            case ports.Subscribe(subscription):
                self.subscriptions[subscription.name] = subscription
            case ports.Unsubscribe(name):
                self.subscriptions.pop(name, None)
                self.letters = {key: letter for key, letter in self.letters.items() if key[0] != name}
            case ports.Advance(name, cursor):
                if name in self.subscriptions:
                    self.subscriptions[name] = replace(self.subscriptions[name], cursor=cursor)
            case ports.Bury(letter):
                if letter.subscription in self.subscriptions and letter.id in self.messages:
                    self.letters[letter.subscription, letter.arrival] = letter
            case ports.Exhume(subscription, arrival):
                self.letters.pop((subscription, arrival), None)

    def holds(self, contents: Contents) -> None:
        """Assert that a store's contents are these."""
        entries = [entry for entry, _ in self.messages.values()]
        released = sorted((each for each in entries if each.arrival), key=lambda each: each.arrival)
        assert list(contents.entries[: len(released)]) == released
        held = contents.entries[len(released) :]
        assert {each.id: each for each in held} == {each.id: each for each in entries if not each.arrival}
        assert len(contents.outbox) == len(self.outbox)
        assert set(contents.outbox) == self.outbox
        assert contents.last_arrival == self.last_arrival
        assert contents.horizons == self.horizons
        assert list(contents.remembered) == list(self.remembered.values())
        assert {each.name: each for each in contents.subscriptions} == self.subscriptions
        assert {(each.subscription, each.arrival): each for each in contents.dead_letters} == self.letters


def left_in(directory: Path) -> Sequence[str]:
    return sorted(os.listdir(directory))
