"""The webhook: hands stored messages to the agent by HTTP until it says that it has them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import trio

from p2pnode.core.delivery import Courier
from p2pnode.core.message import SEQNO_BYTES, SignedMessage, format_message_id
from p2pnode.errors import EnvironmentFault, P2PNodeError
from p2pnode.logs import Throttled
from p2pnode.node.agent_http import Failed, Outcome, Post, Refused, Taken
from p2pnode.node.ledger import Account, Ledger
from p2pnode.node.stored import Archive
from p2pnode.node.trust import Trust
from p2pnode.ports import Entry, JsonObject
from p2pnode.wire.json_text import encode_message
from p2pnode.wire.pubsub import decode_message

log = logging.getLogger(__name__)

PAGE_MESSAGES = 16
"""Read at a time: 4 MiB of the largest messages."""

HELD_BYTES = 1024 * 1024
"""Of messages read but not sent yet; others are read again when their turn comes."""

PAUSE_SECONDS = 1.0
"""After a failure to read."""


@dataclass(slots=True)
class _Held:
    entry: Entry
    message: SignedMessage | None


class Webhook:
    """One task reads, one sends; what they share is the courier.

    Args:
        account: the subscription.
        document: a message document.
        trust: what of it the agent gets.
        attempts: after so many a message becomes a dead letter.
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
        attempts: int,
        wall_ns: Callable[[], int],
        rng: Random,
    ) -> None:
        self._account = account
        self._ledger = ledger
        self._archive = archive
        self._document = document
        self._trust = trust
        self._wall_ns = wall_ns
        self._courier = Courier(account.cursor, attempts=attempts, rng=rng)
        self._held: dict[int, _Held] = {}
        self._held_bytes = 0
        self._changed = trio.Event()
        self._refusals = Throttled(log)
        self._failures = Throttled(log)

    @property
    def in_flight(self) -> int:
        return self._courier.in_flight

    @property
    def held(self) -> int:
        """Messages taken from the archive and not handled."""
        return len(self._courier)

    @property
    def state(self) -> str:
        return "waiting" if self._courier.failing else "delivering"

    def retry_in(self) -> float | None:
        """Seconds to the next attempt while the agent takes nothing and none is running."""
        return self._courier.wait(trio.current_time()) if self._courier.failing else None

    def pending_since_ns(self) -> int | None:
        """When the oldest message that is not handled came; None when none was taken from the archive."""
        oldest = self._courier.oldest()
        return None if oldest is None else self._held[oldest].entry.received_at_ns

    def retry(self) -> None:
        """Look for dead letters to be tried again."""
        self._wake()

    def is_trying(self, arrival: int) -> bool:
        return arrival in self._courier

    def forget(self, arrival: int) -> bool:
        """A dead letter is not to be tried again after all; False when it is on its way to the agent."""
        if arrival not in self._courier:
            return True
        if not self._courier.forget(arrival):
            return False
        self._release(arrival)
        return True

    async def run(self, post: Post) -> None:
        """Deliver until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_for_ever)
            await self._send_for_ever(post)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- from the archive --------------------------------------------------------------

    async def _read_for_ever(self) -> None:
        while True:
            try:
                if self._take_letter():
                    continue
                if not self._courier.room:
                    await self._changed.wait()
                elif not await self._read_page():
                    await self._wait_for_more()
            except P2PNodeError as error:
                self._ledger.trouble(self._account, f"the store cannot be read: {error.detail}")
                self._failures.warning("stored messages cannot be read for the agent", {"reason": error.detail})
                await trio.sleep(PAUSE_SECONDS)

    def _take_letter(self) -> bool:
        """Take one dead letter to be tried again, if there is one and room for it."""
        if not self._account.retries or not self._courier.room:
            return False
        arrival = self._account.retries.popleft()
        letter = self._account.letters.get(arrival)
        entry = self._archive.entry(letter.id) if letter is not None else None
        if entry is None:
            self._ledger.exhume(self._account, arrival)
        elif arrival not in self._courier:
            self._offer(entry, None, letter=True)
        return True

    async def _read_page(self) -> bool:
        """Take some of what came after the last one taken; False when there is nothing."""
        courier = self._courier
        page = await self._archive.page(self._account.topics, courier.read, min(courier.room, PAGE_MESSAGES))
        for entry, message in page:
            if entry.arrival in self._account.letters:
                courier.pass_over(entry.arrival)
            elif entry.arrival > courier.read and entry.arrival not in courier:
                self._offer(entry, message)
        self._ledger.advance(self._account, courier.cursor)
        if not page and self._archive.count_beyond(self._account.topics, courier.read):
            await trio.sleep(PAUSE_SECONDS)  # the bytes of what is there are not
        return bool(page)

    def _offer(self, entry: Entry, message: SignedMessage | None, *, letter: bool = False) -> None:
        if message is not None and self._held_bytes + entry.size > HELD_BYTES:
            message = None
        self._held[entry.arrival] = _Held(entry, message)
        self._held_bytes += entry.size if message is not None else 0
        self._courier.offer(entry.arrival, entry.id[:-SEQNO_BYTES], letter=letter)
        self._wake()

    async def _wait_for_more(self) -> None:
        async with trio.open_nursery() as nursery:

            async def arrival() -> None:
                await self._archive.wait_beyond(self._account.topics, self._courier.read)
                nursery.cancel_scope.cancel()

            nursery.start_soon(arrival)
            while not self._account.retries:
                await self._changed.wait()
            nursery.cancel_scope.cancel()

    # -- to the agent ------------------------------------------------------------------

    async def _send_for_ever(self, post: Post) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                now = trio.current_time()
                while (arrival := self._courier.next(now)) is not None:
                    nursery.start_soon(self._deliver, arrival, post)
                wait = self._courier.wait(now)
                with trio.CancelScope(deadline=float("inf") if wait is None else now + wait):
                    await self._changed.wait()

    async def _deliver(self, arrival: int, post: Post) -> None:
        held = self._held[arrival]
        try:
            if 0 < held.entry.expires_at_ns <= self._wall_ns():
                return self._skip(held.entry, "expired")
            message = held.message or await self._read(held.entry)
            if message is None:
                return self._skip(held.entry, "gone")
            if not self._trust.hands_over(message):
                return self._skip(held.entry, "untrusted")
            outcome = await post(encode_message(self._document(held.entry, message)), self._headers(held.entry))
        except EnvironmentFault as error:
            outcome = Failed(f"the store cannot be read: {error.detail}", down=True)
        except Exception as error:  # a bug of ours: the others must go on, and this one is tried again
            self._failures.exception("a message could not be handed to the agent")
            outcome = Failed(f"{type(error).__name__} in the sidecar itself", down=False)
        if isinstance(outcome, Refused):
            await self._ledger.room()
        self._settle(held.entry, outcome)

    async def _read(self, entry: Entry) -> SignedMessage | None:
        raw = (await self._archive.bytes_of((entry.id,))).get(entry.id)
        return decode_message(raw) if raw is not None else None

    def _headers(self, entry: Entry) -> dict[str, str]:
        return {
            "Content-Type": "application/json",
            "P2PNode-Message-Id": format_message_id(entry.id),
            "P2PNode-Topic": entry.topic,
            "P2PNode-Attempt": str(self._courier.attempt(entry.arrival)),
        }

    def _skip(self, entry: Entry, why: str) -> None:
        self._account.results[why] += 1
        self._courier.handled(entry.arrival, answered=False)
        self._ledger.exhume(self._account, entry.arrival)
        self._after(entry)

    def _settle(self, entry: Entry, outcome: Outcome) -> None:
        """Book what came of an attempt."""
        attempts = self._courier.attempt(entry.arrival)
        if isinstance(outcome, Taken):
            self._ledger.delivered(self._account, entry)
            self._courier.handled(entry.arrival, answered=True)
            return self._after(entry)
        self._ledger.trouble(self._account, outcome.error)
        if isinstance(outcome, Refused):
            self._bury(entry, attempts, outcome.error, "dropped")
            self._courier.handled(entry.arrival, answered=True)
            return self._after(entry)
        self._account.results["retried"] += 1
        was_failing = self._courier.failing
        given_up = self._courier.failed(
            entry.arrival, trio.current_time(), down=outcome.down, retry_after=outcome.retry_after
        )
        if self._courier.failing and not was_failing:
            self._failures.warning("the agent does not take messages; trying on", {"reason": outcome.error})
        if given_up:
            self._bury(entry, attempts, outcome.error, "dead")
            self._after(entry)
        else:
            self._wake()

    def _bury(self, entry: Entry, attempts: int, error: str, result: str) -> None:
        self._account.results[result] += 1
        self._ledger.bury(self._account, entry, attempts, error)
        self._refusals.warning(
            "a message was not taken by the agent and is a dead letter now",
            {"id": format_message_id(entry.id), "topic": entry.topic, "attempts": attempts, "reason": error},
        )

    def _after(self, entry: Entry) -> None:
        self._release(entry.arrival)
        self._ledger.advance(self._account, self._courier.cursor)

    def _release(self, arrival: int) -> None:
        held = self._held.pop(arrival)
        self._held_bytes -= held.entry.size if held.message is not None else 0
        self._wake()
