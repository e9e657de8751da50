"""Synchronisation of messages at work: with whom, when, and what becomes of what comes.

The exchange itself is in `p2pnode.core.sync` and `p2pnode.core.asking`, the order of neighbours in
`p2pnode.core.turns`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from random import Random

import trio

from p2pnode.core.asking import Asking, Limits
from p2pnode.core.itemset import BlockSet
from p2pnode.core.message import MessageId, format_message_id
from p2pnode.core.metadata import FUTURE_ALLOWANCE_SECONDS
from p2pnode.core.peerid import PeerId
from p2pnode.core.sync import (
    SETTLE_SECONDS,
    Compared,
    Conflict,
    SyncAnswer,
    SyncRequest,
    id_of_key,
    message_digest,
    topic_hash,
)
from p2pnode.core.turns import JOINED_SECONDS, KEPT_SECONDS, Outcome, Turns
from p2pnode.core.wishes import Wishes
from p2pnode.errors import EnvironmentFault, InvalidMessage, Unavailable
from p2pnode.node.sync_answers import Answers, Messages, holdings_of
from p2pnode.node.sync_memory import Conflicts, Refused
from p2pnode.ports import Host, Link
from p2pnode.wire.sync import (
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    SYNC_PROTOCOL,
    decode_answer,
    encode_request,
    message_key,
)

log = logging.getLogger(__name__)

GAP_NEIGHBOURS = 2
"""How many are asked about a gap, or a topic that is new here."""

JOINED_NEIGHBOURS = 3
"""How many, on average, ask a neighbour that joined a topic, of all that keep it and hear so."""

MAX_GAP_TOPICS = 64
"""Waiting to be asked about, of one neighbour; over it the next turn finds what is missing."""

EXCHANGE_SECONDS = 120.0
"""An exchange that takes longer is given up; what came is kept."""

ACCEPT_AT_ONCE = 16
"""Messages checked before others get a turn: some 3 ms."""

NO_ROOM = frozenset({"queue", "storage"})
"""Reasons of `take` that pass: the message is tried again for ROOM_SECONDS, and that is all the exchange brings."""

ROOM_SECONDS = 10.0
ROOM_LOOK_SECONDS = 0.05
UNHARMED = frozenset({"held"})
"""Reasons of `take` that mean that all is well: it came by another road meanwhile."""

BLAMED = frozenset({"signature"})
"""Reasons of `take` for which whoever gave the message pays; all others are our own clock, rules or disk."""

CUT_SHORT = "truncated"
"""The host's word for an answer that ended early: the peer went away, or has refused us."""

MAX_DOUBTS = 16
"""Messages of an exchange whose id is stored under another key, read from the store to see why."""

Take = Callable[[bytes, PeerId], str | None]
"""Verify, judge and store a pulled message, by its signed bytes; None, or why not. `signature` blames who gave it."""


@dataclass(slots=True)
class _Visit:
    """One exchange under way: what it asked for, and what is doubtful about it."""

    peer: PeerId
    asking: Asking
    claimed: set[MessageId] = field(default_factory=set)
    doubts: dict[bytes, bytes] = field(default_factory=dict)


class Sync:
    """Keeps what this node holds equal to what its neighbours hold.

    Args:
        take: see `Take`; must return at once.
        topic_peers: who is subscribed to a topic, as gossip knows it.
        shared: called after a comparison in which a peer lacked nothing, with the items that both have.
        misbehaved: called when a peer did what no honest one does, with a short fixed word.
        wall_ns: the wall clock.

    Attributes:
        counted: `("exchanges", outcome)`, `("rounds", "")`, `("bytes", "out" | "in")`, `("messages", "pulled" |
            "served")`, `("refused", why)`, `("conflicts", "")`, `("gaps", "")`, `("answers", "given" | "busy" |
            "refused")`; only ever rising.
    """

    def __init__(
        self,
        host: Host,
        messages: Messages,
        take: Take,
        *,
        topic_peers: Callable[[str], Collection[PeerId]],
        shared: Callable[[PeerId, BlockSet], None] = lambda peer, items: None,
        misbehaved: Callable[[PeerId, str], None],
        wall_ns: Callable[[], int],
        rng: Random,
        limits: Limits | None = None,
    ) -> None:
        self._host = host
        self._messages = messages
        self._take = take
        self._topic_peers = topic_peers
        self._shared = shared
        self._misbehaved = misbehaved
        self._wall_ns = wall_ns
        self._rng = rng
        self._limits = limits
        self._turns = Turns(rng, trio.current_time())
        self._wishes = Wishes()
        self._gaps: dict[PeerId, set[str]] = {}
        self._unmet: set[PeerId] = set()
        self._kept: set[str] = set()
        self._asked_for: set[MessageId] = set()
        self._refused = Refused()
        self._conflicts = Conflicts()
        self._wake = trio.Event()
        self.counted: Counter[tuple[str, str]] = Counter()
        self._answers = Answers(
            host, messages, compared=self._compared, served=self._served, blame=self._blame, counted=self.counted
        )

    @property
    def pause_seconds(self) -> float:
        """Between two turns: short while there were differences lately."""
        return self._turns.pause

    # -- inputs ------------------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        """There is a connection; whoever dialled asks."""
        dialled = link.direction == "outbound"
        self._turns.opened(link.peer, dialled=dialled, now=trio.current_time())
        if dialled:
            self._unmet.add(link.peer)
        self._wake.set()

    def link_closed(self, peer: PeerId) -> None:
        self._turns.closed(peer)
        self._unmet.discard(peer)
        self._wishes.forget(peer)
        self._gaps.pop(peer, None)
        self._answers.forget(peer)

    def gap(self, topic: str, origin: PeerId) -> None:
        """A message of this origin is missing: ask one or two neighbours at once, topic peers first."""
        self.counted["gaps", ""] += 1
        for peer in self._best_for(topic, origin):
            self._ask_about(topic, peer)

    def keeps(self, topic: str) -> None:
        """This node keeps a topic, to read it or because it published to it: when that is new, ask one or two
        neighbours at once for what was published before, topic peers first."""
        if topic not in self._kept:
            self._kept.add(topic)
            for peer in self._best_for(topic):
                self._ask_about(topic, peer, KEPT_SECONDS)

    def joined(self, topic: str, peer: PeerId) -> None:
        """A neighbour reads a topic from now on, and so it keeps it: when we have messages of it, compare within a
        second. It asks one or two by itself; where many hear it, a few of them by chance are enough beside those."""
        if not self._messages.items(topic) or not self._turns.may_ask(peer, trio.current_time()):
            return
        readers = len({*self._topic_peers(topic), peer})
        if self._rng.random() * readers < JOINED_NEIGHBOURS:
            self._ask_about(topic, peer, JOINED_SECONDS)

    def _best_for(self, topic: str, origin: PeerId | None = None) -> list[PeerId]:
        """Whom to ask about a topic, the origin of what is missing first."""
        now = trio.current_time()
        able = [peer for peer in self._host.links() if self._turns.may_ask(peer, now)]
        self._rng.shuffle(able)
        subscribed = self._topic_peers(topic)
        able.sort(key=lambda peer: (peer != origin, peer not in subscribed))
        return able[:GAP_NEIGHBOURS]

    def _ask_about(self, topic: str, peer: PeerId, within: tuple[float, float] = (0.0, 0.0)) -> None:
        topics = self._gaps.setdefault(peer, set())
        if len(topics) < MAX_GAP_TOPICS:
            topics.add(topic)
        self._hasten(peer, within)

    def news(self) -> None:
        """Messages were stored that did not come by sync: compare within ten seconds, whether they came everywhere."""
        self._turns.news(trio.current_time())
        self._wake.set()

    def _hasten(self, peer: PeerId, within: tuple[float, float] = (0.0, 0.0)) -> None:
        self._turns.hasten(peer, trio.current_time(), within)
        self._wake.set()

    # -- asking ------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve and ask, until cancelled."""
        self._kept.update(self._messages.topics())
        self._host.serve(SYNC_PROTOCOL, self._answers.answer, limit_bytes=MAX_REQUEST_BYTES)
        for link in self._host.links().values():
            self.link_opened(link)
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                while (peer := self._turns.next(trio.current_time())) is not None:
                    nursery.start_soon(self._visit, peer)
                with trio.move_on_at(self._turns.deadline()):
                    await self._wake.wait()

    async def _visit(self, peer: PeerId) -> None:
        """One exchange with a neighbour, whatever comes of it."""
        visit = self._prepare(peer)
        outcome: Outcome = "unreachable"
        try:
            with trio.move_on_after(EXCHANGE_SECONDS):
                outcome = await self._exchange(visit)
        except Unavailable as error:
            log.debug("no sync with a peer", extra={"peer": peer, "reason": error.detail})
        except InvalidMessage as error:
            if error.reason != CUT_SHORT:
                outcome = self._blame(peer, error)
        finally:
            self._asked_for -= visit.claimed
        self._turns.ended(peer, outcome, trio.current_time())
        if outcome == "undelivered" and self._turns.times_distrusted(peer) > 1:
            self._misbehaved(peer, "undelivered")  # once may be retention between offer and pull
        elif (items := visit.asking.shared) is not None:
            self._shared(peer, items)
        self.counted["exchanges", outcome] += 1
        self._wake.set()

    def _prepare(self, peer: PeerId) -> _Visit:
        """Pull what it is known to have; else look into gaps, up to now; else compare all but the latest.

        With whom we just connected all is compared, whatever gaps there are.
        """
        wishes, overfull = self._wishes.take(peer)
        gaps = set() if wishes else self._gaps.pop(peer, set())
        if wishes and (overfull or peer in self._gaps):
            self._turns.hasten(peer, trio.current_time())
        ahead = FUTURE_ALLOWANCE_SECONDS if gaps else -SETTLE_SECONDS
        holdings = holdings_of(self._messages)
        if gaps and peer not in self._unmet:
            wanted = set(map(topic_hash, gaps))
            holdings = {topic: holding for topic, holding in holdings.items() if topic in wanted}
        if not wishes:
            self._unmet.discard(peer)
        claimed: set[MessageId] = set()
        doubts: dict[bytes, bytes] = {}
        asking = Asking(
            holdings,
            upper_ns=max(0, self._wall_ns() + int(ahead * 1e9)),
            claim=lambda key, digest: self._claim(key, digest, claimed, doubts),
            key_of=message_key,
            wishes=wishes,
            limits=self._limits,
        )
        return _Visit(peer, asking, claimed, doubts)

    async def _exchange(self, visit: _Visit) -> Outcome:
        asking = visit.asking
        try:
            while (request := asking.next_request()) is not None:
                for raw in asking.receive(await self._request(visit.peer, request)):
                    key = asking.accept(raw)
                    if asking.pulled % ACCEPT_AT_ONCE == 0:
                        await trio.lowlevel.checkpoint()
                    if not await self._store(visit, key, raw):
                        return "busy"
        finally:
            self.counted["rounds", ""] += asking.rounds
            self._report(visit.peer, asking.conflicts)
        await self._look_into(visit)
        if asking.busy:
            return "busy"
        if asking.undelivered > asking.pulled:
            return "undelivered"
        if asking.pulled:
            return "unfinished" if asking.unfinished else "differed"
        return "same"

    async def _request(self, peer: PeerId, request: SyncRequest) -> SyncAnswer:
        body = encode_request(request)
        raw = await self._host.request(peer, SYNC_PROTOCOL, body, limit_bytes=MAX_ANSWER_BYTES)
        self.counted["bytes", "out"] += len(body)
        self.counted["bytes", "in"] += len(raw)
        return decode_answer(raw)

    def _claim(self, key: bytes, digest: bytes, claimed: set[MessageId], doubts: dict[bytes, bytes]) -> bool:
        """Shall this message be asked for?"""
        message_id = id_of_key(key)
        if message_id in claimed:
            return True
        if message_id in self._messages:
            if len(doubts) < MAX_DOUBTS:
                doubts[key] = digest
            return False
        if message_id in self._asked_for or self._refused.has(message_id, digest, trio.current_time()):
            return False
        self._asked_for.add(message_id)
        claimed.add(message_id)
        return True

    async def _store(self, visit: _Visit, key: bytes, raw: bytes) -> bool:
        """Hand a message over; False when there is no room for it.

        Raises:
            InvalidMessage: its signature is not its origin's.
        """
        refused = self._take(raw, visit.peer)
        with trio.move_on_after(ROOM_SECONDS):
            while refused in NO_ROOM:
                await trio.sleep(ROOM_LOOK_SECONDS)
                refused = self._take(raw, visit.peer)
        if refused is None:
            self.counted["messages", "pulled"] += 1
            return True
        if refused in BLAMED:
            raise InvalidMessage(refused, f"{format_message_id(id_of_key(key))} is not signed by its origin")
        self.counted["refused", refused] += 1
        if refused in NO_ROOM:
            return False
        if refused not in UNHARMED:
            self._refused.add(id_of_key(key), message_digest(raw), trio.current_time())
        return True

    def _blame(self, peer: PeerId, error: InvalidMessage) -> Outcome:
        self.counted["refused", error.reason] += 1
        log.warning("a peer broke the rules of sync", extra={"peer": peer, "reason": str(error)})
        self._misbehaved(peer, error.reason)
        return "lied"

    async def _look_into(self, visit: _Visit) -> None:
        """Ids that we hold, offered under keys that we do not: did they just come, or are they others?"""
        live = holdings_of(self._messages)
        doubts = {
            key: digest
            for key, digest in visit.doubts.items()
            if not any(holding.items.get(key) is not None for holding in live.values())
        }
        if not doubts:
            return
        try:
            bodies = await self._messages.bytes_of([id_of_key(key) for key in doubts])
        except EnvironmentFault as error:
            log.warning("stored messages cannot be read", extra={"reason": error.detail})
            return
        found = [
            Conflict(key, ours, digest)
            for key, digest in doubts.items()
            if (body := bodies.get(id_of_key(key))) is not None and (ours := message_digest(body)) != digest
        ]
        self._report(visit.peer, found)

    # -- answering ---------------------------------------------------------------------

    def _compared(self, peer: PeerId, compared: Compared) -> None:
        """A peer's offer was compared: what it shows that we lack is pulled soon."""
        self._report(peer, compared.conflicts)
        now = trio.current_time()
        lacking = {
            key: digest
            for key, digest in compared.lacking.items()
            if (message_id := id_of_key(key)) not in self._messages
            and message_id not in self._asked_for
            and not self._refused.has(message_id, digest, now)
        }
        if lacking:
            self._wishes.add(peer, lacking)
            self._hasten(peer)

    def _served(self) -> None:
        self._turns.differed(trio.current_time())
        self._wake.set()

    def _report(self, peer: PeerId, conflicts: Iterable[Conflict]) -> None:
        self.counted["conflicts", ""] += sum(self._conflicts.tell(peer, each) for each in conflicts)
