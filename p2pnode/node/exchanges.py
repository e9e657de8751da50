"""Exchanges of members: two nodes compare whom they know, and hand over what either lacks.

They do when they connect and now and then afterwards, so that a lost message is made good.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from random import Random

import trio

from p2pnode.core.membership.membership import Membership
from p2pnode.core.peerid import PeerId
from p2pnode.core.reconcile import FEW, Reconciliation, Snapshot, answer
from p2pnode.errors import InvalidMessage, Unavailable
from p2pnode.node.clocks import Clocks
from p2pnode.node.records import Records
from p2pnode.ports import Host
from p2pnode.wire.members import (
    MAX_EXCHANGE_BYTES,
    MAX_WANT,
    MEMBERS_PROTOCOL,
    EncodedNews,
    Exchange,
    decode_exchange,
    encode_exchange,
)
from p2pnode.wire.reconcile import decode_offer, decode_reply, encode_offer, encode_reply

log = logging.getLogger(__name__)

EXCHANGE_SECONDS = (1.0, 60.0)
"""Shortest and longest pause between two exchanges; doubled while nothing differs, shortest again after news."""

MAX_ROUNDS = 12
"""Of one exchange: more than two sets of a million need."""

ASK_PAUSES = (0.2, 1.0, 3.0)


class Exchanges:
    """Made, then served and run.

    Args:
        records: what is given.
        take: takes what came.
        clocks: hear the wall time of whoever answers.
        rng: for jitter and for choosing whom to ask.
    """

    def __init__(
        self,
        host: Host,
        machine: Membership,
        records: Records,
        take: Callable[[EncodedNews], Awaitable[object]],
        clocks: Clocks,
        wall_ns: Callable[[], int],
        rng: Random,
    ) -> None:
        self._host = host
        self._machine = machine
        self._records = records
        self._take = take
        self._clocks = clocks
        self._wall_ns = wall_ns
        self._rng = rng
        self._differs = trio.Event()
        self._to_ask: set[PeerId] = set()
        self._ask = trio.Event()
        self._items: tuple[int, Snapshot] | None = None

    def ask(self, peer: PeerId) -> None:
        """There is a new link with a peer, and the exchange is ours to start."""
        self._to_ask.add(peer)
        self._ask.set()

    def differs(self) -> None:
        """Something is new here: compare soon."""
        self._differs.set()

    def _set(self) -> Snapshot:
        if self._items is None or self._items[0] != self._machine.version:
            self._items = (self._machine.version, Snapshot(self._machine.items()))
        return self._items[1]

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """Serve one round of an exchange; nothing is kept between rounds.

        Raises:
            InvalidMessage: the request is none.
        """
        request = decode_exchange(body)
        self._clocks.heard(peer, request.now_ns, self._wall_ns())
        offer = decode_offer(request.ranges) if request.ranges else None
        await self._take(request.news)
        give = set(request.want)
        reply = Exchange()
        if offer is not None:
            found = answer(self._set(), offer, FEW)
            give |= _newer(found.give, found.want)
            reply = Exchange(encode_reply(found.reply))
        return encode_exchange(dataclasses.replace(reply, news=self._records.of(give), now_ns=self._wall_ns()))

    async def exchange_with(self, peer: PeerId) -> bool:
        """Compare with a connected peer, and hand over what either lacks; True when anything here changed meanwhile.

        What does not fit waits for the next exchange; whoever learned something starts it soon.

        Raises:
            Unavailable: it did not answer.
            InvalidMessage: it answered nonsense.
        """
        before = self._machine.version
        comparison = Reconciliation(self._set(), limits=FEW)
        given: set[bytes] = set()
        for _ in range(MAX_ROUNDS):
            offer = comparison.next_offer()
            give = _newer(comparison.give, comparison.want) - given
            given |= give
            if offer is None and not give:
                break
            request = Exchange(encode_offer(offer) if offer is not None else b"", self._records.of(give))
            reply = await self._ask_for(peer, request)
            if offer is not None:
                comparison.receive(decode_reply(reply.ranges))
            await self._take(reply.news)
        own = self._set()
        if want := [key for key, item in comparison.want.items() if (own.get(key) or b"") < item]:
            reply = await self._ask_for(peer, Exchange(want=tuple(want[:MAX_WANT])))
            await self._take(reply.news)
        return self._machine.version != before

    async def _ask_for(self, peer: PeerId, request: Exchange) -> Exchange:
        sent_ns = self._wall_ns()
        body = encode_exchange(dataclasses.replace(request, now_ns=sent_ns))
        reply = decode_exchange(await self._host.request(peer, MEMBERS_PROTOCOL, body, limit_bytes=MAX_EXCHANGE_BYTES))
        self._clocks.heard(peer, reply.now_ns, (sent_ns + self._wall_ns()) // 2)
        return reply

    async def ask_new_links(self) -> None:
        """Exchange with whom `ask` named, patiently, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._ask.wait()
                self._ask = trio.Event()
                for peer in tuple(self._to_ask):
                    self._to_ask.discard(peer)
                    nursery.start_soon(self._ask_patiently, peer)

    async def _ask_patiently(self, peer: PeerId) -> None:
        for pause in ASK_PAUSES:
            if await self.try_exchange(peer) is not None or peer not in self._host.links():
                return
            await trio.sleep(pause)

    async def compare_now_and_then(self) -> None:
        """Exchange with one linked member after the other, chosen at random, until cancelled."""
        shortest, longest = EXCHANGE_SECONDS
        pause = shortest
        while True:
            self._differs = trio.Event()
            with trio.move_on_after(pause * self._rng.uniform(0.75, 1.25)) as quiet:
                await self._differs.wait()
            if not quiet.cancelled_caught:
                pause = shortest
                await trio.sleep(pause * self._rng.uniform(0.75, 1.25))
            links = [peer for peer in self._host.links() if self._machine.get(peer) is not None]
            if not links:
                continue
            differed = await self.try_exchange(self._rng.choice(links))
            pause = shortest if differed else min(pause * 2, longest)

    async def tell_somebody(self) -> bool:
        """Compare with the linked members in turn, until one of them has all we have."""
        for peer in tuple(self._host.links()):
            if await self.try_exchange(peer) is not None:
                return True
        return False

    async def check_clocks(self, suspicious_seconds: float, patience_seconds: float) -> None:
        """Compare anew with the linked peers whose clocks seem further off than that: one may have been set right.

        Returns within `patience_seconds`, whoever answers.
        """
        doubtful = [peer for peer, offset in self._clocks.offsets().items() if abs(offset) > suspicious_seconds]
        with trio.move_on_after(patience_seconds):
            async with trio.open_nursery() as nursery:
                for peer in doubtful:
                    nursery.start_soon(self.try_exchange, peer)

    async def try_exchange(self, peer: PeerId) -> bool | None:
        """Whether anything differed; None when the peer could not be asked (a stock peer never can)."""
        try:
            return await self.exchange_with(peer)
        except Unavailable as error:
            log.debug("no member exchange", extra={"peer": peer, "reason": error.detail})
        except InvalidMessage as error:
            self._machine.refused[error.reason] += 1
            log.warning("a peer answered a member exchange with nonsense", extra={"peer": peer, "reason": str(error)})
        return None


def _newer(items: Mapping[bytes, bytes], others: Mapping[bytes, bytes]) -> set[bytes]:
    """Keys of those that are newer than the other side's: of a higher incarnation, or accused. So are items ordered."""
    return {key for key, item in items.items() if others.get(key, b"") < item}
