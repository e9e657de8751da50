"""What this node stores, as it knows it: every message's entry in memory, the bytes in the store.

One task writes. What came since its last transaction goes into the next one, in order of arrival, and readers see it
once that is committed: so a reader that saw an arrival has seen all before it.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import merge
from itertools import islice

import trio

from p2pnode.core.itemset import BlockSet
from p2pnode.core.message import SEQNO_BYTES, MessageId, SignedMessage, format_message_id
from p2pnode.core.ordering import Ordering, Released
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.core.routing import Road
from p2pnode.errors import EnvironmentFault, InvalidMessage, StorageFull, TooBusy
from p2pnode.node.shelf import Shelf
from p2pnode.node.storing import (
    SHIPPED,
    Adding,
    Durability,
    Marking,
    Recent,
    Releasing,
    Retention,
    Step,
    Storing,
    is_own,
)
from p2pnode.ports import Change, Contents, Drop, Entry, Horizon, MessageStore, Remember
from p2pnode.wire.payload import decode_payload
from p2pnode.wire.pubsub import decode_message

log = logging.getLogger(__name__)

MAX_TOPICS = 1000
MAX_QUEUED_BYTES = 32 * 1024 * 1024
"""Waiting to be written. Above it received messages are not taken, and come by synchronisation; own ones get 429."""

SWEEP_SECONDS = 30.0
RETRY_SECONDS = 1.0
DIGEST_BYTES = 16
IDEMPOTENCY_KEYS = 10_000
"""Remembered; the oldest goes first."""


class Archive:
    """Made, then loaded, then run.

    Args:
        origin: our own peer id in bytes.
        wall_ns: the wall clock.
        gap: called when an earlier message of an origin is missing, with topic and origin; must return at once.

    Attributes:
        on_stored: called with what was committed, received and own, as it was written.
        on_dropped: called with what is no longer stored.
        refused: received messages that were not taken, by reason.
        dropped: stored messages that were dropped, by reason: `age`, `count`, `bytes`, `expired`.
        fault: why the last transaction failed; None when it did not.
        remembered: idempotency keys, the oldest first.
    """

    def __init__(
        self,
        store: MessageStore,
        retention: Retention,
        origin: bytes,
        *,
        durability: Durability = SHIPPED,
        wall_ns: Callable[[], int],
        gap: Callable[[str, PeerId], None],
    ) -> None:
        self._store = store
        self._retention = retention
        self._origin = origin
        self._durability = durability
        self._wall_ns = wall_ns
        self._gap = gap
        self._entries: dict[MessageId, Entry] = {}
        self._coming: dict[MessageId, Entry] = {}
        self._shelves: dict[str, Shelf] = {}
        self._recent = Recent()
        self._ordering = Ordering()
        self._last_arrival = 0
        self._committed_arrival = 0
        self._own_stored: dict[str, int] = {}
        self._own_begun: dict[str, int] = {}
        self._steps: list[Step] = []
        self._drops: list[Change] = []
        self._queued_bytes = 0
        self._wake = trio.Event()
        self._arrived = trio.Event()
        self._written = trio.Event()
        self._retry_at = 0.0
        self._held_back = trio.Event()
        self.on_stored: list[Callable[[Sequence[Entry]], None]] = []
        self.on_dropped: list[Callable[[Sequence[MessageId]], None]] = []
        self.refused: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.fault: EnvironmentFault | None = None
        self.remembered: OrderedDict[str, Remember] = OrderedDict()

    async def load(self) -> Contents:
        """Take over what is stored; what is left to the others is returned.

        Raises:
            EnvironmentFault: it cannot be read.
        """
        contents = await self._store.load()
        self._last_arrival = self._committed_arrival = contents.last_arrival
        for topic, at_ns in contents.horizons.items():
            self._shelves[topic] = Shelf(topic, at_ns)
        held_back = []
        for entry in contents.entries:
            self._entries[entry.id] = entry
            self._shelves.setdefault(entry.topic, Shelf(entry.topic)).put(entry)
            self._note_own(entry)
            if entry.arrival:
                self._ordering.released_before(entry.topic, *_origin_and_number(entry.id), entry.prev)
            else:
                held_back.append(entry)
        for each in contents.remembered:
            self.remembered[each.key] = each
        for entry in sorted(held_back, key=lambda entry: _origin_and_number(entry.id)):
            self._release(self._order(entry))
        return contents

    # -- reading -----------------------------------------------------------------------

    def __contains__(self, message_id: MessageId) -> bool:
        """Is it stored, or on its way to be?"""
        return message_id in self._entries or message_id in self._coming

    def entry(self, message_id: MessageId) -> Entry | None:
        """A stored message."""
        return self._entries.get(message_id)

    def topics(self) -> Sequence[str]:
        return tuple(self._shelves)

    def shelf(self, topic: str) -> Shelf:
        """A topic's; an empty one when nothing of it is stored."""
        return self._shelves.get(topic) or Shelf(topic)

    def items(self, topic: str) -> BlockSet:
        """What synchronisation compares."""
        return self.shelf(topic).items

    def horizon(self, topic: str) -> int:
        """Signed time (ns) below which nothing is stored any more."""
        return self.shelf(topic).horizon

    @property
    def last_arrival(self) -> int:
        """Of what readers can see."""
        return self._committed_arrival

    @property
    def total_bytes(self) -> int:
        """Of all stored messages."""
        return sum(shelf.bytes for shelf in self._shelves.values())

    @property
    def queued(self) -> int:
        """Messages that wait to be written."""
        return len(self._coming)

    def previous(self, topic: str) -> int:
        """The number of the own message that the next one follows, stored or on its way; 0 when there is none."""
        return self._own_begun.get(topic, 0)

    def _note_own(self, entry: Entry) -> None:
        if entry.own:
            _, number = _origin_and_number(entry.id)
            for numbers in (self._own_stored, self._own_begun):
                numbers[entry.topic] = max(numbers.get(entry.topic, 0), number)

    async def bytes_of(self, ids: Collection[MessageId]) -> Mapping[MessageId, bytes]:
        """The signed bytes of those that are stored.

        Raises:
            EnvironmentFault: they cannot be read.
        """
        found = {each: raw for each in ids if (raw := self._recent.get(each)) is not None}
        absent = [each for each in ids if each not in found and each in self._entries]
        return {**found, **(await self._store.read(absent))} if absent else found

    async def page(self, topics: Collection[str], after: int, limit: int) -> Sequence[tuple[Entry, SignedMessage]]:
        """What was released after an arrival, in order."""
        shelves = [self._shelves[topic] for topic in dict.fromkeys(topics) if topic in self._shelves]
        found: list[tuple[Entry, SignedMessage]] = []
        # What was damaged on the disk or dropped meanwhile must not stand in the way of what follows.
        while len(found) < limit:
            picked = list(islice(merge(*(shelf.after(after) for shelf in shelves)), limit - len(found)))
            if not picked:
                break
            after = picked[-1][0]
            ids = [each for _, each in picked]
            raws = await self.bytes_of(ids)
            for each in ids:
                entry, raw = self._entries.get(each), raws.get(each)
                if entry is None or raw is None:
                    continue
                try:
                    found.append((entry, decode_message(raw)))
                except InvalidMessage as error:
                    log.error(
                        "a stored message is damaged; see `p2pnode store check`",
                        extra={"id": format_message_id(each), "reason": error.detail},
                    )
        return found

    def count_beyond(self, topics: Collection[str], arrival: int) -> int:
        """How many messages of the topics readers can see after an arrival."""
        return sum(self.shelf(topic).count_after(arrival) for topic in topics)

    def lost_beyond(self, topics: Collection[str], arrival: int) -> int:
        """How many with a later arrival were dropped for room, as far as that is remembered."""
        return sum(self.shelf(topic).lost_after(arrival) for topic in topics)

    async def wait_beyond(self, topics: Collection[str], arrival: int) -> None:
        """Return once one of the topics has something after an arrival."""
        while not any(True for topic in topics for _ in islice(self.shelf(topic).after(arrival), 1)):
            await self._arrived.wait()

    # -- writing -----------------------------------------------------------------------

    def open(self, topic: str) -> bool:
        """Make room for a topic; False at the bound."""
        if topic not in self._shelves:
            if len(self._shelves) >= MAX_TOPICS:
                return False
            self._shelves[topic] = Shelf(topic)
        return True

    def begin(self, message: SignedMessage, remember: Remember | None, roads: tuple[Road, ...] = ()) -> Storing:
        """Have an own message stored; the result tells when a power cut cannot lose it any more. Order is kept.

        Args:
            roads: those that it takes at once.

        Raises:
            TooBusy: too much waits to be written already.
        """
        if self._queued_bytes + len(message.raw) > MAX_QUEUED_BYTES:
            raise TooBusy("the disk does not keep up with what is to be stored", reason="disk")
        entry = self._entry_of(message, carrier="local")
        self.open(entry.topic)
        self._last_arrival += 1
        self._ordering.released_before(entry.topic, message.origin, message.number, entry.prev)
        entry = replace(entry, arrival=self._last_arrival, roads=roads)
        step = Adding(entry, message.raw, remember, Storing())
        self._queue(step)
        self._own_begun[entry.topic] = message.number
        assert step.storing is not None
        return step.storing

    def take(self, message: SignedMessage, *, carrier: str) -> str | None:
        """Store a received and accepted message, soon; a short word when not: `held` when it is there already, `queue`
        when the disk does not keep up, `storage` when it
        failed just now, `topics`, `expired`, `horizon`."""
        if message.id in self:
            return "held"
        entry = self._entry_of(message, carrier=carrier)
        why = self._why_not(entry)
        if why:
            self.refused[why] += 1
            return why
        released = self._order(entry)
        if not any(each.id == entry.id for each in released):
            self._queue(Adding(entry, message.raw))
        self._release(released, Adding(entry, message.raw))
        return None

    def mark(self, message_id: MessageId, roads: tuple[Road, ...]) -> None:
        """Remember which roads took a stored own message."""
        entry = self._entries.get(message_id)
        if entry is not None and entry.roads != roads:
            self._entries[message_id] = replace(entry, roads=roads)
            self._queue(Marking(message_id, roads))

    async def written(self, message_id: MessageId) -> bool:
        """Wait while a message is on its way to the disk; is it there?"""
        while message_id in self._coming:
            await self._written.wait()
        return message_id in self._entries

    def _why_not(self, entry: Entry) -> str:
        now = self._wall_ns()
        if self.fault is not None and trio.current_time() < self._retry_at:
            return "storage"
        if self._queued_bytes + entry.size > MAX_QUEUED_BYTES:
            return "queue"
        if not self.open(entry.topic):
            return "topics"
        if entry.expires_at_ns and entry.expires_at_ns <= now:
            return "expired"
        if entry.published_at_ns and entry.published_at_ns < self._shelves[entry.topic].horizon:
            return "horizon"
        return ""

    def _entry_of(self, message: SignedMessage, *, carrier: str) -> Entry:
        metadata = decode_payload(message.data).metadata
        return Entry(
            message.id,
            message.topic,
            0,
            metadata.published_at_ns if metadata else 0,
            metadata.expires_at_ns if metadata else 0,
            self._wall_ns(),
            len(message.raw),
            hashlib.sha256(message.raw).digest()[:DIGEST_BYTES],
            metadata.prev if metadata else 0,
            carrier,
            own=message.origin == self._origin,
        )

    def _queue(self, step: Step) -> None:
        self._steps.append(step)
        if isinstance(step, Adding):
            self._coming[step.entry.id] = step.entry
            self._queued_bytes += step.entry.size
        self._wake.set()

    def _order(self, entry: Entry) -> Sequence[Released]:
        """What may be released now that a message came, itself among it unless it waits."""
        origin, number = _origin_and_number(entry.id)
        decision = self._ordering.offer(
            entry.id,
            entry.topic,
            origin,
            number,
            entry.prev,
            self.__contains__,
            trio.current_time(),
            floor=self.shelf(entry.topic).horizon,  # seqnos are wall nanoseconds too (architecture, decision 1)
        )
        if decision.gap is not None:
            self._gap(entry.topic, peer_id_text(origin))
        if decision.released != (Released(entry.id, late=False),):
            self._held_back.set()
        return decision.released

    def _release(self, released: Sequence[Released], new: Adding | None = None) -> None:
        """Give arrivals, in order; `new` is one among them that is still to be stored."""
        for each in released:
            self._last_arrival += 1
            if new is not None and each.id == new.entry.id:
                new.entry = replace(new.entry, arrival=self._last_arrival, late=each.late)
                self._queue(new)
            else:
                self._queue(Releasing(each.id, self._last_arrival, each.late))

    async def run(self) -> None:
        """Write, release what waited long enough, drop what is too old: until cancelled, and then write the rest."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_order)
            nursery.start_soon(self._sweep_now_and_then)
            await self._write_for_ever()

    async def close(self) -> None:
        """Write what still waits; called once `run` has ended."""
        if self._steps or self._drops:
            await self._write_batch()

    async def _write_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._steps or self._drops:
                with trio.CancelScope(shield=True):
                    failed = await self._write_batch()
                if failed:
                    self._retry_at = trio.current_time() + RETRY_SECONDS
                    await trio.sleep(RETRY_SECONDS)

    async def _write_batch(self) -> bool:
        """One transaction with all that waits; did it fail?"""
        steps, self._steps = self._steps, []
        drops, self._drops = self._drops, []
        changes = [change for step in steps for change in step.changes()]
        full = any(self._is_full(step) for step in steps)
        try:
            await self._store.write([*changes, *drops], full=full)
        except EnvironmentFault as error:
            if isinstance(error, StorageFull) and drops and await self._forget(drops):
                drops = []
            self._failed(steps, drops, error)
            return True
        else:
            self.fault = None
            self._committed(steps)
            return False
        finally:
            self._written.set()
            self._written = trio.Event()

    async def _forget(self, drops: Sequence[Change]) -> bool:
        """By themselves, drops have a reserve of the store's: they are what makes room."""
        try:
            await self._store.write(drops, full=False)
        except EnvironmentFault:
            return False
        return True

    def _is_full(self, step: Step) -> bool:
        if not isinstance(step, Adding):
            return False
        # What NATS or HTTP brought is taken from them once it is here, and nobody else may have it.
        is_ours = step.storing is not None or step.entry.carrier in ("nats", "http")
        return self._durability.own if is_ours else self._durability.received

    def _failed(self, steps: Sequence[Step], drops: Sequence[Change], error: EnvironmentFault) -> None:
        """Whoever waits is told; what was received is forgotten, and comes again by synchronisation.

        Own messages that came meanwhile fail too: each names one before it that is not stored.
        """
        if self.fault is None:
            log.error("messages cannot be stored", extra={"reason": error.detail, "fix": error.hint})
        self.fault = error
        self._drops = [*drops, *self._drops]
        newer = self._steps
        self._steps = [step for step in steps if not isinstance(step, Adding) and step.id in self._entries]
        self._steps += [step for step in newer if not is_own(step)]  # after the older ones: arrivals go up
        self._own_begun = dict(self._own_stored)
        for step in (*(each for each in steps if isinstance(each, Adding)), *filter(is_own, newer)):
            del self._coming[step.entry.id]
            self._queued_bytes -= step.entry.size
            if step.storing is not None:
                step.storing.end(error)
            else:
                self.refused["storage"] += 1

    def _committed(self, steps: Sequence[Step]) -> None:
        stored: list[Entry] = []
        for step in steps:
            if isinstance(step, Adding):
                entry = step.entry
                del self._coming[entry.id]
                self._queued_bytes -= entry.size
                self._entries[entry.id] = entry
                self._shelves[entry.topic].put(entry)
                self._recent.put(entry.id, step.raw)
                self._note_own(entry)
                if step.remember is not None:
                    self._remember(step.remember)
                stored.append(entry)
                if step.storing is not None:
                    step.storing.end()
            elif isinstance(step, Releasing) and (held_back := self._entries.get(step.id)) is not None:
                entry = self._entries[step.id] = replace(held_back, arrival=step.arrival, late=step.late)
                self._shelves[entry.topic].release(entry)
            else:
                continue
            self._committed_arrival = max(self._committed_arrival, entry.arrival)
        for topic in {entry.topic for entry in stored}:
            self._make_room(self._shelves[topic])
        self._arrived.set()
        self._arrived = trio.Event()
        for listener in self.on_stored:
            listener(stored)

    def _remember(self, remember: Remember) -> None:
        self.remembered[remember.key] = remember
        while len(self.remembered) > IDEMPOTENCY_KEYS:
            self.remembered.popitem(last=False)

    async def _keep_order(self) -> None:
        """Release what waited long enough for an earlier one."""
        while True:
            await self._held_back.wait()
            self._held_back = trio.Event()
            while (deadline := self._ordering.next_deadline()) < math.inf:
                await trio.sleep_until(deadline)
                self._release(self._ordering.due(trio.current_time()))

    # -- retention ---------------------------------------------------------------------

    async def _sweep_now_and_then(self) -> None:
        while True:
            self.sweep()
            await trio.sleep(SWEEP_SECONDS)

    def sweep(self) -> None:
        """Drop what is too old or expired."""
        now = self._wall_ns()
        oldest_ns = now - int(self._retention.seconds * 1e9)
        expired = [each for each in self._entries.values() if each.expires_at_ns and each.expires_at_ns <= now]
        self._drop(expired, "expired")
        for shelf in self._shelves.values():
            while aged := [entry for entry in self._oldest_of(shelf) if _time_of(entry) < oldest_ns]:
                self._drop(aged, "age")
            if oldest_ns > shelf.horizon and self._retention.seconds > 0:
                # By time alone: all nodes that keep as long agree, so it need not be written.
                shelf.horizon = max(shelf.horizon, oldest_ns)

    def _make_room(self, shelf: Shelf) -> None:
        while len(shelf) > self._retention.count:
            surplus = len(shelf) - self._retention.count
            self._drop(list(islice(self._oldest_of(shelf), surplus)), "count")
        while shelf.bytes > self._retention.bytes and len(shelf) > 1:
            self._drop(list(islice(self._oldest_of(shelf), 1)), "bytes")

    def _oldest_of(self, shelf: Shelf) -> Iterator[Entry]:
        return (self._entries[each] for each in shelf.oldest())

    def _drop(self, entries: Sequence[Entry], why: str) -> None:
        """Forget stored messages; by count or bytes, the horizon moves above them."""
        if not entries:
            return
        ids = tuple(entry.id for entry in entries)
        self._drops.append(Drop(ids))
        for listener in self.on_dropped:
            listener(ids)
        horizons: dict[str, int] = {}
        for entry in entries:
            del self._entries[entry.id]
            self._recent.drop(entry.id)
            shelf = self._shelves[entry.topic]
            shelf.drop(entry, is_loss=why in ("count", "bytes"))
            if why in ("count", "bytes") and entry.published_at_ns >= shelf.horizon:
                shelf.horizon = horizons[entry.topic] = entry.published_at_ns + 1
        self._drops += [Horizon(topic, at_ns) for topic, at_ns in horizons.items()]
        self.dropped[why] += len(entries)
        self._wake.set()


def _time_of(entry: Entry) -> int:
    """Signed time, else that of arrival here."""
    return entry.published_at_ns or entry.received_at_ns


def _origin_and_number(message_id: MessageId) -> tuple[bytes, int]:
    return message_id[:-SEQNO_BYTES], int.from_bytes(message_id[-SEQNO_BYTES:], "big")
