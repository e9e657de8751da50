"""What this node has to gossip about members: kept by name until somebody listens, and sent as it is true then."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from random import Random

import trio

from p2pnode.core.membership.events import Publish
from p2pnode.core.membership.membership import Membership
from p2pnode.core.peerid import PeerId
from p2pnode.errors import EnvironmentFault
from p2pnode.wire.members import EncodedNews, batches, encode_news

log = logging.getLogger(__name__)

PAUSES = (0.05, 1.0)
"""Shortest and longest, in seconds, after a message that could not be published; doubled each time."""

Name = tuple[PeerId, PeerId | None]
"""A member's record, or `(accused, accuser)`."""


class NewsOutbox:
    """Publishes records and accusations, the newest of each only.

    Holds names alone, and at each try drops those that name nothing in the table any more: so never more entries
    than the table has records and accusations, however long nobody listens.

    Args:
        publish: as `Members` has it.
        rng: jitter of the pauses.
    """

    def __init__(self, machine: Membership, publish: Callable[[bytes], Awaitable[None]], rng: Random) -> None:
        self._machine = machine
        self._publish = publish
        self._rng = rng
        self._waiting: dict[Name, None] = {}
        self._waits = trio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, news: Publish) -> None:
        for record in news.records:
            self._waiting[record.peer_id, None] = None
        for accusation in news.accusations:
            self._waiting[accusation.accused, accusation.accuser] = None
        self._waits.set()

    async def run(self) -> None:
        """Publish what waits, until cancelled."""
        shortest, longest = PAUSES
        pause = shortest
        while True:
            await self._waits.wait()
            # What comes within one turn of the loop goes out in one message.
            await trio.lowlevel.checkpoint()
            sending = self._next()
            if not sending:
                self._waits = trio.Event()
                continue
            try:
                await self._publish(encode_news(_encoded(sending)))
            except EnvironmentFault as error:  # nobody listens yet, or no number could be stored
                log.debug("news not published yet", extra={"reason": error.detail})
                await trio.sleep(pause * self._rng.uniform(0.5, 1.0))
                pause = min(pause * 2, longest)
            else:
                pause = shortest
                for name, signed in sending.items():
                    if self._signed(name) == signed:
                        self._waiting.pop(name, None)

    def _next(self) -> dict[Name, bytes]:
        """As much of what is still true as one message holds, records first."""
        true = {name: signed for name in self._waiting if (signed := self._signed(name)) is not None}
        self._waiting = dict.fromkeys(true)
        if not true:
            return {}
        ordered = sorted(true, key=lambda name: name[1] is not None)
        first = batches(_encoded({name: true[name] for name in ordered}))[0]
        return {name: true[name] for name in ordered[: len(first.records) + len(first.accusations)]}

    def _signed(self, name: Name) -> bytes | None:
        peer, accuser = name
        member = self._machine.get(peer)
        if member is None:
            return None
        if accuser is None:
            return member.record.signed
        accusation = member.accusations.get(accuser)
        return accusation.signed if accusation is not None else None


def _encoded(named: dict[Name, bytes]) -> EncodedNews:
    return EncodedNews(
        tuple(signed for (_, accuser), signed in named.items() if accuser is None),
        tuple(signed for (_, accuser), signed in named.items() if accuser is not None),
    )
