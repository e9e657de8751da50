"""A store in memory behind `ports.MessageStore`: what is written to it survives its node."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import trio

from p2pnode.core.message import MessageId
from p2pnode.errors import EnvironmentFault, StorageFull
from p2pnode.ports import (
    Add,
    Advance,
    Bury,
    Change,
    Contents,
    DeadLetter,
    Drop,
    Entry,
    Exhume,
    Horizon,
    OutboxDone,
    Release,
    Remember,
    Subscribe,
    Subscription,
    Took,
    Unsubscribe,
)

_numbers = itertools.count(1)


class MemoryStore:
    """
    Attributes:
        failing: raised by the next writes.
        full: no room for what adds; what drops is taken.
        writes: each with its changes and whether it was `full`.
        commit_seconds: how long a write takes.
    """

    def __init__(self) -> None:
        self.entries: dict[MessageId, Entry] = {}
        self.raws: dict[MessageId, bytes] = {}
        self.outbox: dict[MessageId, None] = {}
        self.horizons: dict[str, int] = {}
        self.remembered: dict[str, Remember] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.dead_letters: dict[tuple[str, int], DeadLetter] = {}
        self.last_arrival = 0
        self.number = next(_numbers)
        self.failing: EnvironmentFault | None = None
        self.full = False
        self.writes: list[tuple[tuple[Change, ...], bool]] = []
        self.commit_seconds = 0.001
        self.reads = 0

    async def load(self) -> Contents:
        await trio.lowlevel.checkpoint()
        entries = sorted(self.entries.values(), key=lambda entry: entry.arrival or 2**63)
        return Contents(
            tuple(entries),
            tuple(self.outbox),
            self.last_arrival,
            dict(self.horizons),
            tuple(self.remembered.values()),
            tuple(self.subscriptions.values()),
            tuple(self.dead_letters.values()),
            self.number,
        )

    async def write(self, changes: Sequence[Change], *, full: bool) -> None:
        await trio.sleep(self.commit_seconds)
        if self.failing is not None:
            raise self.failing
        if self.full and any(isinstance(change, Add) for change in changes):
            raise StorageFull("no space", hint="make some")
        self.writes.append((tuple(changes), full))
        for change in changes:
            self._apply(change)

    def _apply(self, change: Change) -> None:
        match change:
            case Add(entry, raw, outbox):
                if entry.id not in self.entries:
                    self.entries[entry.id], self.raws[entry.id] = entry, raw
                    self.last_arrival = max(self.last_arrival, entry.arrival)
                    if outbox:
                        self.outbox[entry.id] = None
            case Release(message_id, arrival, late):
                if message_id in self.entries:
                    self.entries[message_id] = replace(self.entries[message_id], arrival=arrival, late=late)
                    self.last_arrival = max(self.last_arrival, arrival)
            case Drop(ids):
                for each in ids:
                    self.entries.pop(each, None)
                    self.raws.pop(each, None)
                    self.outbox.pop(each, None)
            case Horizon(topic, at_ns):
                self.horizons[topic] = at_ns
            case OutboxDone(ids):
                for each in ids:
                    self.outbox.pop(each, None)
            case Took(message_id, roads):
                if message_id in self.entries:
                    self.entries[message_id] = replace(self.entries[message_id], roads=roads)
            case Remember(key):
                self.remembered[key] = change
            case Subscribe(subscription):
                self.subscriptions[subscription.name] = subscription
            case Unsubscribe(name):
                self.subscriptions.pop(name, None)
                self.dead_letters = {key: each for key, each in self.dead_letters.items() if key[0] != name}
            case Advance(name, cursor):
                self.subscriptions[name] = replace(self.subscriptions[name], cursor=cursor)
            case Bury(letter):
                self.dead_letters[letter.subscription, letter.arrival] = letter
            case Exhume(subscription, arrival):
                self.dead_letters.pop((subscription, arrival), None)

    async def read(self, ids: Sequence[MessageId]) -> Mapping[MessageId, bytes]:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        return {each: self.raws[each] for each in ids if each in self.raws}
