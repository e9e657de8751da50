"""Announces own messages until enough neighbours have stored them (`p2pnode.core.outbox` decides)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice

import trio

from p2pnode.core.message import MessageId
from p2pnode.core.outbox import Announcement, Outbox
from p2pnode.core.peerid import PeerId
from p2pnode.errors import EnvironmentFault, InvalidMessage
from p2pnode.logs import Throttled
from p2pnode.ports import Change, Entry, Gossip, OutboxDone
from p2pnode.wire.pubsub import decode_message

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""How often new neighbours are looked for, while something is not safe."""

WRITE_SECONDS = 0.1
MAX_WRITTEN = 4096
"""Ids of one change."""

RETRY_SECONDS = 5.0


def _nobody(_: Sequence[MessageId]) -> None:
    pass


class Announcer:
    """Keeps the outbox: made, then loaded, then run.

    Args:
        gossip: sends, and knows who is in which topic.
        origin: our peer id in bytes.
        is_keeper: is the peer one of our kind, which stores what it takes? Others make nothing safe.
        bytes_of: the signed bytes of those that are stored.
        write: `MessageStore.write`, without a full commit: what is lost of it is announced once more.
        wall_ns: the wall clock.
        on_safe: told what became safe.

    Attributes:
        announced: messages sent again, once for each time.
        safe: messages that became safe.
    """

    def __init__(
        self,
        gossip: Gossip,
        *,
        origin: bytes,
        is_keeper: Callable[[PeerId], bool],
        bytes_of: Callable[[Collection[MessageId]], Awaitable[Mapping[MessageId, bytes]]],
        write: Callable[[Sequence[Change]], Awaitable[None]],
        wall_ns: Callable[[], int],
        on_safe: Callable[[Sequence[MessageId]], None] = _nobody,
    ) -> None:
        self._on_safe = on_safe
        self._gossip = gossip
        self._origin = origin
        self._is_keeper = is_keeper
        self._bytes_of = bytes_of
        self._write = write
        self._wall_ns = wall_ns
        self._outbox = Outbox()
        self._done: deque[MessageId] = deque()
        self._some_done = trio.Event()
        self._some_unsafe = trio.Event()
        self._failures = Throttled(log)
        self.announced = 0
        self.safe = 0

    def load(self, entries: Iterable[Entry]) -> None:
        """What an earlier run left in the outbox, in the order in which it was published."""
        for entry in entries:
            self._add(entry, sent=False)

    def added(self, entry: Entry) -> None:
        """An own message was stored and is about to be published."""
        self._add(entry, sent=True)

    def _add(self, entry: Entry, *, sent: bool) -> None:
        now = trio.current_time()
        self._outbox.added(entry.id, entry.topic, entry.published_at_ns, now, self.keepers, sent=sent)
        self._some_unsafe.set()

    def held(self, peer: PeerId, seqnos: Sequence[bytes]) -> None:
        """A peer says that it stored own messages of ours, by seqno."""
        if self._is_keeper(peer):
            self.seen_at(peer, [MessageId(self._origin + seqno) for seqno in seqnos])

    def seen_at(self, peer: PeerId, message_ids: Iterable[MessageId]) -> None:
        """A finished synchronisation showed that the peer has these; ids that are not ours are passed over."""
        self._finish(self._outbox.seen_at(peer, message_ids, self.keepers))

    def unsafe(self) -> Collection[MessageId]:
        """Own messages that are not safe."""
        return tuple(self._outbox)

    def link_lost(self, peer: PeerId) -> None:
        self._outbox.link_lost(peer)

    def dropped(self, message_ids: Iterable[MessageId]) -> None:
        """These left the store."""
        self._outbox.dropped(message_ids)

    def metrics(self) -> Mapping[str, float]:
        """How many are not safe and how old the oldest of them is; what was sent again, and what became safe."""
        oldest_ns = self._outbox.oldest_ns()
        return {
            "p2pnode_outbox_messages": len(self._outbox),
            "p2pnode_outbox_oldest_seconds": max(self._wall_ns() - oldest_ns, 0) / 1e9 if oldest_ns else 0.0,
            "p2pnode_outbox_announced_total": self.announced,
            "p2pnode_outbox_safe_total": self.safe,
        }

    async def run(self) -> None:
        """Announce and write, until cancelled. What was not written by then is announced once more by the next run."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce_for_ever)
            nursery.start_soon(self._write_for_ever)

    async def _announce_for_ever(self) -> None:
        while True:
            if not self._outbox:
                self._some_unsafe = trio.Event()
                await self._some_unsafe.wait()
            now = trio.current_time()
            self._finish(self._outbox.look(now, self.keepers))
            due = self._outbox.to_announce(now, self._wall_ns(), self.keepers)
            if due:
                await self._announce(due)
            await trio.sleep(LOOK_SECONDS)

    async def _announce(self, due: Sequence[Announcement]) -> None:
        try:
            raws = await self._bytes_of([each.id for each in due])
        except EnvironmentFault as error:
            self._failures.warning("own messages cannot be read to be announced", {"reason": error.detail})
            return  # they are due again, later each time
        for each in due:
            if each.id not in self._outbox or each.id not in raws:
                continue  # safe or dropped meanwhile
            try:
                message = decode_message(raws[each.id])
            except InvalidMessage as error:  # the disk changed it; `store check` finds it
                self._failures.warning("a stored message is damaged", {"reason": error.detail})
                self._outbox.dropped((each.id,))
                continue
            self._gossip.announce(message, each.peers)
            self.announced += 1

    async def _write_for_ever(self) -> None:
        while True:
            await self._some_done.wait()
            await trio.sleep(WRITE_SECONDS)
            self._some_done = trio.Event()
            while self._done:
                some = tuple(islice(self._done, MAX_WRITTEN))
                try:
                    await self._write([OutboxDone(some)])
                except EnvironmentFault as error:
                    self._failures.warning("the outbox cannot be written", {"reason": error.detail})
                    await trio.sleep(RETRY_SECONDS)
                    continue
                for _ in some:
                    self._done.popleft()

    def _finish(self, safe: Sequence[MessageId]) -> None:
        if safe:
            self.safe += len(safe)
            self.done(safe)
            self._on_safe(safe)

    def done(self, message_ids: Sequence[MessageId]) -> None:
        """These are where they should be, by whatever road: the store may forget that they were not."""
        self._done.extend(message_ids)
        self._some_done.set()

    def keepers(self, topic: str) -> Collection[PeerId]:
        return [peer for peer in self._gossip.topic_peers(topic) if self._is_keeper(peer)]
