"""Who is there: our own record, what others say of themselves, and how the two spread.

A record spreads by gossip when it changes, and by an exchange when two nodes connect and
now and then afterwards, so that a lost message is made good.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import trio

from p2pnode.core.member import MemberRecord, MemberState, MemberTable
from p2pnode.core.message import Accept, Ignore, Reject, SignedMessage, Verdict
from p2pnode.core.peerid import PeerId
from p2pnode.errors import EnvironmentFault, InvalidMessage, Unavailable
from p2pnode.ports import Host, Link
from p2pnode.wire.members import (
    MAX_EXCHANGE_BYTES,
    MEMBERS_PROTOCOL,
    RecordVerify,
    decode_exchange,
    encode_exchange,
    read_record,
    sign_record,
)

log = logging.getLogger(__name__)

EXCHANGE_SECONDS = (1.0, 60.0)
"""Shortest and longest pause between two exchanges; doubled while nothing differs, shortest again after news."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the membership needs injected.

    Args:
        sign: our key's signature of some bytes.
        verify: `(peer id, key, signed bytes, signature) -> good?`
        wall_ns: the wall clock.
        rng: for jitter and for choosing whom to ask.
    """

    sign: Callable[[bytes], bytes]
    verify: RecordVerify
    wall_ns: Callable[[], int]
    rng: Random


class Members:
    """The table of members kept true by gossip and exchange.

    Args:
        own: our record without incarnation and signature.
        publish: hands a record's bytes to the members topic; raises Unavailable while nobody listens,
            EnvironmentFault when it cannot be numbered.
        changed: called when an alive member appears or changes; must return at once.
    """

    def __init__(
        self,
        host: Host,
        tools: Tools,
        own: MemberRecord,
        publish: Callable[[bytes], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self._host = host
        self._tools = tools
        self._publish = publish
        self._changed = changed
        self.table = MemberTable()
        self.refused: Counter[str] = Counter()
        self._announce = trio.Event()
        self._news = trio.Event()
        self._to_ask: set[PeerId] = set()
        self._ask = trio.Event()
        self.own = own
        self._write_own(own)

    def _write_own(self, record: MemberRecord) -> None:
        wall_ms = self._tools.wall_ns() // 1_000_000
        known = self.table.get(record.peer_id)
        incarnation = max(wall_ms, known.record.incarnation + 1 if known else 0)
        record = dataclasses.replace(record, incarnation=incarnation, signed=b"")
        self.own = dataclasses.replace(record, signed=sign_record(record, self._tools.sign))
        self.table.merge(self.own, "self", self._tools.wall_ns())

    def update_own(self, record: MemberRecord) -> None:
        """Say something new of ourselves."""
        self._write_own(record)
        self._announce.set()

    def say_goodbye(self) -> None:
        """Write our last record; the caller publishes it."""
        self._write_own(dataclasses.replace(self.own, left=True))

    def link_opened(self, link: Link) -> None:
        """The host has a link to a peer; whoever dialled starts the exchange."""
        self.table.heard_from(link.peer, self._tools.wall_ns())
        if link.direction == "outbound":
            self._to_ask.add(link.peer)
            self._ask.set()

    def judge(self, message: SignedMessage) -> Verdict:
        """Verdict on a message of the members topic; takes the record when it is news."""
        try:
            news = self._take(message.data, "gossip")
        except InvalidMessage as error:
            self.refused[error.reason] += 1
            return Reject("member-record")
        return Accept() if news else Ignore("old-record")

    def _take(self, encoded: bytes, source: str) -> bool:
        record = read_record(encoded, self._tools.verify, self.table.is_news)
        if record is None:
            return False
        if record.peer_id == self.own.peer_id:
            # Somebody has a newer record of ours, from before a restart with another clock: top it.
            self.table.merge(record, "self", self._tools.wall_ns())
            self.update_own(self.own)
            return False
        news = self.table.merge(record, source, self._tools.wall_ns())
        if news:
            if record.peer_id in self._host.links():
                self.table.heard_from(record.peer_id, self._tools.wall_ns())
            self._news.set()
            self._changed()
        return news

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """Serve one exchange.

        Raises:
            InvalidMessage: the request is none.
        """
        digest, records = decode_exchange(body)
        self._take_all(records)
        if digest == self.table.digest() or records:
            return encode_exchange(self.table.digest())
        return encode_exchange(self.table.digest(), self._signed())

    def _signed(self) -> list[bytes]:
        return [member.record.signed for member in self.table.all().values()]

    def _take_all(self, records: list[bytes]) -> int:
        news = 0
        for encoded in records:
            try:
                news += self._take(encoded, "sync")
            except InvalidMessage as error:
                self.refused[error.reason] += 1
        return news

    async def exchange_with(self, peer: PeerId) -> bool:
        """Compare tables with a connected peer; True when they differed.

        Raises:
            Unavailable: it did not answer.
            InvalidMessage: it answered nonsense.
        """
        mine = self.table.digest()
        reply = await self._host.request(peer, MEMBERS_PROTOCOL, encode_exchange(mine), limit_bytes=MAX_EXCHANGE_BYTES)
        theirs, records = decode_exchange(reply)
        if theirs == mine:
            return False
        self._take_all(records)
        if theirs != self.table.digest():
            await self._host.request(
                peer,
                MEMBERS_PROTOCOL,
                encode_exchange(self.table.digest(), self._signed()),
                limit_bytes=MAX_EXCHANGE_BYTES,
            )
        return True

    async def run(self) -> None:
        """Announce, ask, compare: until cancelled."""
        self._host.serve(MEMBERS_PROTOCOL, self.answer, limit_bytes=MAX_EXCHANGE_BYTES)
        self._announce.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce_changes)
            nursery.start_soon(self._ask_new_links)
            nursery.start_soon(self._compare_now_and_then)

    async def _announce_changes(self) -> None:
        while True:
            await self._announce.wait()
            self._announce = trio.Event()
            pause = 0.1
            while True:
                try:
                    await self._publish(self.own.signed)
                    break
                except EnvironmentFault as error:  # nobody listens yet, or no number could be stored
                    log.debug("own record not announced yet", extra={"reason": error.detail})
                    await trio.sleep(pause * self._tools.rng.uniform(0.5, 1.0))
                    pause = min(pause * 2, 5.0)

    async def _ask_new_links(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await self._ask.wait()
                self._ask = trio.Event()
                for peer in tuple(self._to_ask):
                    self._to_ask.discard(peer)
                    nursery.start_soon(self._ask_patiently, peer)

    async def _ask_patiently(self, peer: PeerId) -> None:
        for pause in (0.2, 1.0, 3.0):
            if await self._try_exchange(peer) is not None or peer not in self._host.links():
                return
            await trio.sleep(pause)

    async def _compare_now_and_then(self) -> None:
        shortest, longest = EXCHANGE_SECONDS
        pause = shortest
        while True:
            self._news = trio.Event()
            with trio.move_on_after(pause * self._tools.rng.uniform(0.75, 1.25)) as quiet:
                await self._news.wait()
            if not quiet.cancelled_caught:
                pause = shortest
                await trio.sleep(pause * self._tools.rng.uniform(0.75, 1.25))
            links = tuple(self._host.links())
            if not links:
                continue
            differed = await self._try_exchange(self._tools.rng.choice(links))
            pause = shortest if differed else min(pause * 2, longest)

    async def _try_exchange(self, peer: PeerId) -> bool | None:
        """Whether tables differed; None when the peer could not be asked (a stock peer never can)."""
        try:
            return await self.exchange_with(peer)
        except Unavailable as error:
            log.debug("no member exchange", extra={"peer": peer, "reason": error.detail})
        except InvalidMessage as error:
            self.refused[error.reason] += 1
            log.warning("a peer answered a member exchange with nonsense", extra={"peer": peer, "reason": str(error)})
        return None

    def mark_unreachable(self, peer: PeerId, *, gone: bool) -> None:
        """A link was lost (suspect), or dialling failed as well (dead, as far as this node can tell)."""
        self.table.mark(peer, MemberState.DEAD if gone else MemberState.SUSPECT)
