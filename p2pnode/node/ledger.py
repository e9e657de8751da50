"""What each durable subscription has handled and what it gave up, written down in groups.

Delivery is at least once: what is not yet written when the process dies is delivered again.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import trio

from p2pnode.errors import EnvironmentFault
from p2pnode.ports import Advance, Bury, Change, DeadLetter, Entry, Exhume, Subscribe, Subscription, Unsubscribe

log = logging.getLogger(__name__)

WRITE_SECONDS = 0.1
WRITE_MESSAGES = 64
RETRY_SECONDS = 1.0

MAX_DEAD_LETTERS = 10_000
"""Of one subscription; at it the oldest is forgotten, and counted."""

MAX_UNWRITTEN = 1024
"""Dead letters not written yet; at it the webhook stands still until the disk takes them."""

Write = Callable[[Sequence[Change]], Awaitable[None]]
"""Returns when the changes are committed; raises EnvironmentFault, and none of them is."""


@dataclass(slots=True, eq=False)
class Account:
    """One subscription as it stands.

    Args:
        cursor: everything up to this arrival was handled.
        written: the cursor as the store has it.
        letters: its dead letters by arrival, the oldest first.
        retries: those of them that are to be tried again, and were not taken up yet.
        results: how often each thing happened: `delivered`, `retried` (a failed attempt, or sent again unacknowledged),
            `dropped` (refused for good), `dead` (given up), `nacked`, `expired`, `gone` (no longer stored),
            `untrusted` (see `node.trust`), `forgotten` (a dead letter too many).
        seconds: from stored to handled, the sum over `results["delivered"]`.
        last_error: what went wrong last, and when (wall time).
    """

    name: str
    topics: tuple[str, ...]
    cursor: int
    written: int
    letters: dict[int, DeadLetter] = field(default_factory=dict)
    retries: deque[int] = field(default_factory=deque)
    results: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    last_error: str = ""
    last_error_at_ns: int = 0


class Ledger:
    """The accounts, and the task that writes them: every 100 ms or 64 messages while something changes.

    Args:
        write: see `Write`.
        wall_ns: the wall clock.
    """

    def __init__(self, write: Write, wall_ns: Callable[[], int]) -> None:
        self._write = write
        self._wall_ns = wall_ns
        self.accounts: dict[str, Account] = {}
        self._unwritten: dict[tuple[str, int], Bury | Exhume] = {}
        self._turn = trio.Lock()
        self._dirty = trio.Event()
        self._many = trio.Event()
        self._written = trio.Event()
        self._since = 0
        self._failed = False

    def load(self, subscriptions: Iterable[Subscription], letters: Iterable[DeadLetter]) -> None:
        """Take over what the store holds."""
        for each in subscriptions:
            self.accounts[each.name] = Account(each.name, each.topics, each.cursor, each.cursor)
        for letter in letters:
            if (account := self.accounts.get(letter.subscription)) is not None:
                account.letters[letter.arrival] = letter

    async def subscribe(self, name: str, topics: tuple[str, ...], cursor: int) -> Account:
        """Create an account, or change the topics of one.

        Raises:
            EnvironmentFault: it could not be written; nothing changed.
        """
        async with self._turn:
            account = self.accounts.get(name)
            cursor = cursor if account is None else account.cursor
            await self._write([Subscribe(Subscription(name, topics, cursor))])
            if account is None:
                account = self.accounts[name] = Account(name, topics, cursor, cursor)
            account.topics = topics
            return account

    async def subscribe_at_last(self, name: str, topics: tuple[str, ...], cursor: int) -> Account:
        """As `subscribe`, tried until it could be written."""
        told = False
        while True:
            try:
                return await self.subscribe(name, topics, cursor)
            except EnvironmentFault as error:
                if not told:
                    log.error("a subscription cannot be written down", extra={"reason": error.detail})
                told = True
                await trio.sleep(RETRY_SECONDS)

    async def unsubscribe(self, account: Account) -> None:
        """Forget an account and its dead letters.

        Raises:
            EnvironmentFault: it could not be written; nothing changed.
        """
        async with self._turn:
            await self._write([Unsubscribe(account.name)])
            self.accounts.pop(account.name, None)
            self._unwritten = {key: change for key, change in self._unwritten.items() if key[0] != account.name}

    def advance(self, account: Account, cursor: int) -> None:
        """Everything up to `cursor` was handled; an earlier one changes nothing."""
        if cursor > account.cursor:
            account.cursor = cursor
            self._changed()

    def delivered(self, account: Account, entry: Entry) -> None:
        """The agent has a message."""
        account.results["delivered"] += 1
        account.seconds += max(self._wall_ns() - entry.received_at_ns, 0) / 1e9
        self.exhume(account, entry.arrival)

    def trouble(self, account: Account, error: str) -> None:
        account.last_error, account.last_error_at_ns = error, self._wall_ns()

    def bury(self, account: Account, entry: Entry, attempts: int, error: str) -> None:
        """A message is given up."""
        letter = DeadLetter(account.name, entry.arrival, entry.id, entry.topic, attempts, error, self._wall_ns())
        account.letters.pop(entry.arrival, None)
        account.letters[entry.arrival] = letter
        self._note(Bury(letter), account.name, entry.arrival)
        if len(account.letters) > MAX_DEAD_LETTERS:
            account.results["forgotten"] += 1
            self.exhume(account, next(iter(account.letters)))

    def exhume(self, account: Account, arrival: int) -> None:
        """A dead letter, if there is one, is none any more."""
        if account.letters.pop(arrival, None) is not None:
            if arrival in account.retries:
                account.retries.remove(arrival)
            self._note(Exhume(account.name, arrival), account.name, arrival)

    def _note(self, change: Bury | Exhume, name: str, arrival: int) -> None:
        if name in self.accounts:
            self._unwritten[name, arrival] = change
            self._changed()

    def _changed(self) -> None:
        self._since += 1
        self._dirty.set()
        if self._since >= WRITE_MESSAGES:
            self._many.set()

    async def room(self) -> None:
        """Return once few enough dead letters wait to be written."""
        while len(self._unwritten) >= MAX_UNWRITTEN:
            await self._written.wait()

    async def flush(self) -> None:
        """Write what changed.

        Raises:
            EnvironmentFault: it could not be written; it is tried again.
        """
        async with self._turn:
            self._dirty, self._many, self._since = trio.Event(), trio.Event(), 0
            letters, self._unwritten = self._unwritten, {}
            moved = {each: each.cursor for each in self.accounts.values() if each.cursor > each.written}
            if not letters and not moved:
                return
            done = False
            try:
                await self._write([*letters.values(), *(Advance(each.name, at) for each, at in moved.items())])
                done = True
            finally:
                if not done:
                    self._unwritten = {**letters, **self._unwritten}
                    self._dirty.set()
            for account, cursor in moved.items():
                account.written = cursor
            self._written.set()
            self._written = trio.Event()

    async def run(self) -> None:
        """Write now and then, until cancelled."""
        while True:
            await self._dirty.wait()
            with trio.move_on_after(WRITE_SECONDS):
                await self._many.wait()
            try:
                await self.flush()
            except EnvironmentFault as error:
                if not self._failed:
                    log.error(
                        "what was delivered cannot be written down: after a restart it is delivered again",
                        extra={"reason": error.detail, "fix": error.hint},
                    )
                self._failed = True
                await trio.sleep(RETRY_SECONDS)
            else:
                self._failed = False
