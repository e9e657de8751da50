"""The asker's part of one exchange of `p2pnode.core.sync`: compare, and pull what is found on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from p2pnode.core.itemset import BlockSet
from p2pnode.core.reconcile import END, START, Offer, Reconciliation, Reply
from p2pnode.core.reconcile import Limits as ComparisonLimits
from p2pnode.core.sync import (
    COMPARISON,
    MAX_WANT,
    Conflict,
    Holdings,
    SyncAnswer,
    SyncRequest,
    Whole,
    Window,
    check_keys,
    conflicts_of,
    id_of_key,
    items_within,
    message_digest,
    narrow,
)
from p2pnode.errors import InvalidMessage


@dataclass(frozen=True, slots=True)
class Limits:
    """What one exchange may cost the asker.

    Args:
        rounds: offers.
        fruitless_rounds: offers in a row that find nothing; an honest answerer needs as many as the set has levels,
            some 6 for a million items.
        tell: items told to the answerer; it has enough to pull then, and asks by itself for the rest.
        pull_bytes: of messages.
        comparison: how offers are made.
    """

    rounds: int = 256
    fruitless_rounds: int = 16
    tell: int = 2048
    pull_bytes: int = 32 * 1024 * 1024
    comparison: ComparisonLimits = COMPARISON


class Asking:
    """The asker's part of one exchange: send each `next_request()`, give each answer to `receive`, and what that brings
    to `accept`, one after the other, until there is no request left.

    Args:
        holdings: of the topics to compare; may change meanwhile: what is compared stays as it is now.
        upper_ns: only what was published before it is compared.
        wishes: keys to pull without a comparison, with the digests that were offered; then nothing is compared.
        claim: asked right before a message is asked for, with key and digest: shall it be?
        key_of: the key of a message by its signed bytes; raises InvalidMessage for what is no message.

    Attributes:
        conflicts: found so far.
        told: how many items the answerer was told of that it lacks.
        pulled, pulled_bytes: messages that came.
        undelivered: messages that were offered, and then not given.
        rounds: offers made.
        unfinished: a limit ended the exchange, or left something out.
        busy: the answerer had no time, which ended the exchange.
    """

    def __init__(
        self,
        holdings: Holdings,
        *,
        upper_ns: int,
        claim: Callable[[bytes, bytes], bool],
        key_of: Callable[[bytes], bytes],
        wishes: Mapping[bytes, bytes] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._holdings = {} if wishes else dict(holdings)
        self._upper_ns = upper_ns
        self._claim = claim
        self._key_of = key_of
        self._limits = limits or Limits()
        self._windows = tuple(Window(topic, each.horizon_ns) for topic, each in sorted(self._holdings.items()))
        self._own = items_within(self._holdings, self._windows, upper_ns)
        self._comparison: Reconciliation | None = None if wishes else self._compare(differs=False)
        self._opening = True
        self._fruitless = 0
        self._pending = dict(wishes or {})
        self._asked: list[tuple[bytes, bytes]] = []
        self._expected: list[tuple[bytes, bytes]] = []
        self._sent: SyncRequest | None = None
        self.conflicts: list[Conflict] = []
        self.told = self.pulled = self.pulled_bytes = self.undelivered = self.rounds = 0
        self.unfinished = self.busy = False

    def next_request(self) -> SyncRequest | None:
        """What to send now; the same again until its answer is received. None at the end."""
        if self._sent is not None:
            return self._sent
        self._miss(len(self._expected))
        if self.busy:
            return None
        self._asked = self._batch()
        offer = self._offer()
        if offer is None and not self._asked:
            return None
        want = tuple(id_of_key(key) for key, _ in self._asked)
        if offer is None:
            self._sent = SyncRequest(want=want)
        else:
            self._sent = SyncRequest(self._windows, self._upper_ns, self._opening, offer, want)
        return self._sent

    def receive(self, answer: SyncAnswer) -> tuple[bytes, ...]:
        """Take in an answer; returns the messages that came with it, each to be given to `accept`.

        Raises:
            InvalidMessage: reasons `unasked` (an answer to what was not asked, more messages than were asked for),
                `no-progress` (neither of what was asked), `narrowed` (windows that are none, or were wider), `endless`
                (round after round nothing comes of it).
        """
        request, self._sent = self._sent, None
        if request is None:
            raise InvalidMessage("unasked", "an answer without a request")
        if answer.busy:
            self.busy = self.unfinished = True
            return ()
        if answer.handled > len(request.want) or len(answer.messages) > answer.handled:
            raise InvalidMessage("unasked", f"{len(answer.messages)} messages where {len(request.want)} were asked for")
        if request.want and not answer.handled:
            raise InvalidMessage("no-progress", "none of the messages asked for, nor word of them")
        if (request.offer is None) != (answer.reply is None and answer.whole is None):
            raise InvalidMessage("unasked" if request.offer is None else "no-progress", "an answer to another question")
        self._expected, later = self._asked[: answer.handled], self._asked[answer.handled :]
        self._pending = {**dict(later), **self._pending}
        if answer.whole is not None:
            self._narrow(request, answer, answer.whole)
        elif answer.reply is not None:
            self._learn(answer.reply)
        return answer.messages

    def accept(self, raw: bytes) -> bytes:
        """Check the next message of the last answer; returns its key.

        Raises:
            InvalidMessage: reasons `unasked` (not asked for, or out of order), `other-body` (not the message that was
                offered), and those of `key_of`.
        """
        key, digest = self._key_of(raw), message_digest(raw)
        wanted = id_of_key(key)
        at = next((at for at, (each, _) in enumerate(self._expected) if id_of_key(each) == wanted), None)
        if at is None:
            raise InvalidMessage("unasked", "a message that was not asked for")
        if self._expected[at] != (key, digest):
            raise InvalidMessage("other-body", "a message other than the one that was offered under its id")
        self._miss(at)
        del self._expected[0]
        self.pulled += 1
        self.pulled_bytes += len(raw)
        return key

    @property
    def shared(self) -> BlockSet | None:
        """Own items that the answerer has all of, at the end of a whole comparison that told it of none; else None."""
        compared = self.rounds > 0 and self._comparison is None
        return None if not compared or self.told or self.conflicts or self.unfinished or self.busy else self._own

    # -- inside ------------------------------------------------------------------------

    def _batch(self) -> list[tuple[bytes, bytes]]:
        """What to ask for now."""
        batch: list[tuple[bytes, bytes]] = []
        while self._pending and len(batch) < MAX_WANT:
            if self.pulled_bytes >= self._limits.pull_bytes:
                self.unfinished = True
                self._pending.clear()
                break
            key = next(iter(self._pending))
            digest = self._pending.pop(key)
            if self._claim(key, digest):
                batch.append((key, digest))
        return batch

    def _offer(self) -> Offer | None:
        comparison = self._comparison
        if comparison is None or self._pending:
            return None  # what is found is pulled before more is looked for, so little is kept
        over = self.rounds >= self._limits.rounds or self.told >= self._limits.tell
        if over or self.pulled_bytes >= self._limits.pull_bytes:
            self.unfinished = self.unfinished or not comparison.complete
            self._comparison = None
            return None
        offer = comparison.next_offer()
        if offer is None:
            self._comparison = None
            return None
        self.rounds += 1
        return offer

    def _learn(self, reply: Reply) -> None:
        comparison = self._comparison
        assert comparison is not None
        comparison.receive(reply)
        self._opening = False
        check_keys(comparison.want, self._windows, self._upper_ns)
        conflicts = list(conflicts_of(self._own, comparison.want))
        found = len(comparison.want) + len(comparison.give)
        self.conflicts += conflicts
        self.told += len(comparison.give) - len(conflicts)
        self._pending |= {key: digest for key, digest in comparison.want.items() if self._own.get(key) is None}
        comparison.want.clear()
        comparison.give.clear()
        self._fruitless = 0 if found else self._fruitless + 1
        if self._fruitless > self._limits.fruitless_rounds:
            raise InvalidMessage("endless", f"{self._fruitless} rounds, and nothing found")

    def _narrow(self, request: SyncRequest, answer: SyncAnswer, whole: Whole) -> None:
        windows = self._windows
        if not request.opening or not answer.narrowed:
            raise InvalidMessage("narrowed", "windows narrowed where that is not possible")
        if any(at >= len(windows) or 0 < floor <= windows[at].floor_ns for at, floor in answer.narrowed):
            raise InvalidMessage("narrowed", "a window narrowed that is none, or would be wider")
        self._windows = narrow(windows, answer.narrowed)
        self._own = items_within(self._holdings, self._windows, self._upper_ns)
        self._opening = False
        mine = self._own.fingerprint(START, END)
        same = Whole(mine.count, mine.digest) == whole
        self._comparison = None if same else self._compare(differs=True)

    def _compare(self, *, differs: bool) -> Reconciliation:
        limits = replace(self._limits.comparison, max_rounds=self._limits.rounds + 1)
        return Reconciliation(self._own, limits=limits, differs=differs)

    def _miss(self, count: int) -> None:
        self.undelivered += count
        del self._expected[:count]
