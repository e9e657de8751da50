"""A durable event stream: sends what is stored in order of arrival, and again what is not acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

import trio

from p2pnode.core.message import MessageId, SignedMessage
from p2pnode.core.unacked import Unacked
from p2pnode.node.ledger import Account, Ledger
from p2pnode.node.stored import Archive
from p2pnode.node.trust import Trust
from p2pnode.ports import Entry, Followed, JsonObject
from p2pnode.wire.pubsub import decode_message

PAGE_MESSAGES = 16
"""Read at a time: 4 MiB of the largest messages."""

PAUSE_SECONDS = 1.0
"""When there is something to read, but its bytes are not there."""


class Stream:
    """One reader of a subscription, for as long as its connection stands.

    Nothing is read ahead but one page: while the client does not read, nobody asks for the next step.

    Args:
        account: the subscription.
        document: a message document.
        trust: what of it the agent gets.
        stopping: set when the node goes away.
        wall_ns: the wall clock, for expiry.
    """

    def __init__(
        self,
        account: Account,
        ledger: Ledger,
        archive: Archive,
        document: Callable[[Entry, SignedMessage], JsonObject],
        trust: Trust,
        *,
        stopping: trio.Event,
        wall_ns: Callable[[], int],
    ) -> None:
        self._account = account
        self._ledger = ledger
        self._archive = archive
        self._document = document
        self._trust = trust
        self._stopping = stopping
        self._wall_ns = wall_ns
        self._unacked = Unacked(account.cursor)
        self._entries: dict[int, Entry] = {}
        self._page: deque[tuple[Entry, SignedMessage]] = deque()
        self._paged = account.cursor
        self._lost = 0
        self._changed = trio.Event()
        self._ended = trio.Event()
        self._replaced = False

    @property
    def in_flight(self) -> int:
        return len(self._unacked)

    def pending_since_ns(self) -> int | None:
        """When the oldest message in flight came."""
        oldest = self._unacked.oldest()
        return None if oldest is None else self._entries[oldest].received_at_ns

    def find(self, message_id: MessageId) -> int | None:
        """The arrival of a message in flight."""
        return next((arrival for arrival, entry in self._entries.items() if entry.id == message_id), None)

    def end(self, *, replaced: bool) -> None:
        """No more of this stream: another one took its place, or the subscription is gone."""
        self._replaced = replaced
        self._ended.set()
        self._wake()

    def retry(self) -> None:
        """Look for dead letters to be sent again."""
        self._wake()

    def is_trying(self, arrival: int) -> bool:
        return arrival in self._unacked

    def close(self) -> None:
        """The connection is gone: dead letters that were not acknowledged wait for the next one."""
        letters = [arrival for arrival in self._unacked if arrival in self._account.letters]
        self._account.retries.extendleft(reversed(letters))

    def forget(self, arrival: int) -> None:
        """A message is not to be sent again: it was refused, or its dead letter dropped."""
        if self._unacked.drop(arrival):
            del self._entries[arrival]
        self._ledger.advance(self._account, self._unacked.cursor)
        self._wake()

    def ack(self, arrival: int) -> None:
        """Everything up to a message was handled."""
        for each in self._unacked.ack(arrival):
            self._ledger.delivered(self._account, self._entries.pop(each))
        if arrival > self._paged:
            self._page.clear()
            self._paged = arrival
        while self._page and self._page[0][0].arrival <= arrival:
            self._page.popleft()
        self._ledger.advance(self._account, self._unacked.cursor)
        self._wake()

    async def steps(self) -> AsyncGenerator[Followed, None]:
        """What the client is sent, until the stream is ended or the node stops."""
        while not self._ended.is_set():
            step = await self._next()
            if step is not None:
                yield step
            elif self._stopping.is_set():
                return
            elif not self._ended.is_set():
                await self._wait()
        if self._replaced:
            yield Followed(replaced=True)

    async def _next(self) -> Followed | None:
        """The next step; None when there is none now.

        Raises:
            EnvironmentFault: the store cannot be read; the client comes back.
        """
        while not self._ended.is_set():
            if self._lost:
                lost, self._lost = self._lost, 0
                return Followed(lost=lost)
            now = trio.current_time()
            if (arrival := self._unacked.due(now)) is not None:
                step = await self._again(arrival)
            elif not self._unacked.room:
                return None
            elif self._account.retries:
                step = await self._letter(self._account.retries.popleft())
            elif self._page:
                step = self._first(*self._page.popleft())
            elif not await self._read_page():
                return None
            else:
                continue
            if step is not None:
                return step
        return None

    async def _read_page(self) -> bool:
        """Read on; False when there is nothing."""
        topics, before = self._account.topics, self._paged
        page = await self._archive.page(topics, before, min(self._unacked.room, PAGE_MESSAGES))
        if not page and self._archive.count_beyond(topics, before):
            await trio.sleep(PAUSE_SECONDS)
        if not page or self._paged != before:
            return bool(page)
        self._paged = page[-1][0].arrival
        self._page.extend(page)
        self._lost += self._archive.lost_beyond(topics, before) - self._archive.lost_beyond(topics, self._paged)
        return True

    def _first(self, entry: Entry, message: SignedMessage) -> Followed | None:
        if entry.arrival in self._account.letters or entry.arrival in self._unacked:
            self._unacked.pass_over(entry.arrival)
            self._ledger.advance(self._account, self._unacked.cursor)
            return None
        expired = self._is_expired(entry)
        if expired or not self._trust.hands_over(message):
            self._account.results["expired" if expired else "untrusted"] += 1
            self._unacked.pass_over(entry.arrival)
            self._ledger.advance(self._account, self._unacked.cursor)
            return None
        self._unacked.send(entry.arrival, trio.current_time())
        self._entries[entry.arrival] = entry
        return Followed(document=self._document(entry, message))

    async def _letter(self, arrival: int) -> Followed | None:
        letter = self._account.letters.get(arrival)
        entry = self._archive.entry(letter.id) if letter is not None else None
        if entry is None or arrival in self._unacked:
            if entry is None:
                self._ledger.exhume(self._account, arrival)
            return None
        self._unacked.send(arrival, trio.current_time(), letter=True)
        self._entries[arrival] = entry
        return await self._from_store(entry)

    async def _again(self, arrival: int) -> Followed | None:
        self._account.results["retried"] += 1
        self._ledger.trouble(self._account, "not acknowledged in time; sent again")
        return await self._from_store(self._entries[arrival])

    async def _from_store(self, entry: Entry) -> Followed | None:
        """A message in flight, from the store; None when it is not to be sent any more."""
        expired = self._is_expired(entry)
        raw = None if expired else (await self._archive.bytes_of((entry.id,))).get(entry.id)
        if entry.arrival not in self._unacked:
            return None  # acknowledged while it was read
        message = decode_message(raw) if raw is not None else None
        if message is not None and self._trust.hands_over(message):
            return Followed(document=self._document(entry, message))
        why = "expired" if expired else "gone" if message is None else "untrusted"
        self._account.results[why] += 1
        self._ledger.exhume(self._account, entry.arrival)
        self.forget(entry.arrival)
        return Followed(lost=1) if why == "gone" else None

    def _is_expired(self, entry: Entry) -> bool:
        return 0 < entry.expires_at_ns <= self._wall_ns()

    async def _wait(self) -> None:
        """Until there may be a next step."""
        wait = self._unacked.wait(trio.current_time())
        with trio.move_on_after(float("inf") if wait is None else wait):
            async with trio.open_nursery() as nursery:

                async def until(what: Callable[[], Awaitable[None]]) -> None:
                    await what()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until, self._changed.wait)
                nursery.start_soon(until, self._stopping.wait)
                if self._unacked.room:
                    nursery.start_soon(until, lambda: self._archive.wait_beyond(self._account.topics, self._paged))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
