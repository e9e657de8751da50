"""The answering side of synchronisation: bounded work for whoever asks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from p2pnode.core.itemset import BlockSet
from p2pnode.core.message import MessageId
from p2pnode.core.peerid import PeerId
from p2pnode.core.sync import (
    MAX_MESSAGES_BYTES,
    Compared,
    Holding,
    SyncAnswer,
    SyncRequest,
    compare,
    topic_hash,
)
from p2pnode.errors import EnvironmentFault, InvalidMessage
from p2pnode.ports import Host
from p2pnode.wire.sync import decode_request, encode_answer

log = logging.getLogger(__name__)

MAX_ANSWERS = 4
"""Under way at one time, of which one for each peer: they hold 1 MiB of messages each."""

ALLOWANCE_BYTES = (64 * 1024 * 1024, 8 * 1024 * 1024)
"""What a peer may have answered at once, and by the second after that."""

ANSWER_COST_BYTES = 512 * 1024
RANGE_COST_BYTES = 4 * 1024
"""What an answer, and each range of the offer, counts beside its bytes: 1,000 ranges of 100,000 items took 30 ms, and
150 the first time."""

READ_AT_ONCE = 256
"""Messages read from the store in one go at most, and fewer while they are large."""


class Messages(Protocol):
    """The stored messages, as synchronisation needs them."""

    def __contains__(self, message_id: MessageId, /) -> bool:
        """Is it stored, or on its way to be?"""

    def topics(self) -> Sequence[str]:
        """What this node keeps."""

    def items(self, topic: str) -> BlockSet:
        """Stored messages with a signed time that did not expire: `item_key` and `message_digest`."""

    def horizon(self, topic: str) -> int:
        """Signed time (ns) below which nothing is stored, or taken, any more."""

    async def bytes_of(self, ids: Collection[MessageId]) -> Mapping[MessageId, bytes]:
        """The signed bytes of those that are stored.

        Raises:
            EnvironmentFault: they cannot be read.
        """


def holdings_of(messages: Messages) -> dict[bytes, Holding]:
    """All topics as they are compared."""
    return {topic_hash(topic): Holding(messages.items(topic), messages.horizon(topic)) for topic in messages.topics()}


@dataclass(slots=True)
class _Allowance:
    """How many bytes of answers a peer may have, and whether one is under way."""

    left: float
    at: float
    answering: bool = False

    def is_free(self, now: float) -> bool:
        burst, per_second = ALLOWANCE_BYTES
        self.left = min(burst, self.left + (now - self.at) * per_second)
        self.at = now
        return self.left > 0 and not self.answering


class Answers:
    """Serves requests of linked peers; one allowance for each is all that stays between them.

    Args:
        compared: called with what an offer showed.
        served: called when a peer got messages.
        blame: called when a request was none.
        counted: shared with `Sync`.
    """

    def __init__(
        self,
        host: Host,
        messages: Messages,
        *,
        compared: Callable[[PeerId, Compared], None],
        served: Callable[[], None],
        blame: Callable[[PeerId, InvalidMessage], object],
        counted: Counter[tuple[str, str]],
    ) -> None:
        self._host = host
        self._messages = messages
        self._compared = compared
        self._served = served
        self._blame = blame
        self._counted = counted
        self._allowances: dict[PeerId, _Allowance] = {}

    def forget(self, peer: PeerId) -> None:
        """The link is gone."""
        self._allowances.pop(peer, None)

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """Serve one request.

        Raises:
            InvalidMessage: it is none.
        """
        now = trio.current_time()
        allowance = self._allowances.setdefault(peer, _Allowance(ALLOWANCE_BYTES[0], now))
        if not allowance.is_free(now) or sum(each.answering for each in self._allowances.values()) >= MAX_ANSWERS:
            self._counted["answers", "busy"] += 1
            return encode_answer(SyncAnswer(busy=True))
        allowance.answering = True
        try:
            request = decode_request(body)
            allowance.left -= RANGE_COST_BYTES * len(request.offer.ranges if request.offer else ())
            reply = encode_answer(await self._answer(peer, request))
        except InvalidMessage as error:
            self._counted["answers", "refused"] += 1
            self._blame(peer, error)
            raise
        finally:
            allowance.answering = False
            allowance.left -= ANSWER_COST_BYTES
            if peer not in self._host.links():
                self.forget(peer)
        allowance.left -= len(reply)
        self._counted["answers", "given"] += 1
        self._counted["bytes", "in"] += len(body)
        self._counted["bytes", "out"] += len(reply)
        return reply

    async def _answer(self, peer: PeerId, request: SyncRequest) -> SyncAnswer:
        answer = SyncAnswer()
        if request.offer is not None:
            compared = compare(holdings_of(self._messages), request)
            self._compared(peer, compared)
            answer = compared.answer
        if not request.want:
            return answer
        messages, handled = await self._read(request.want)
        if not handled:
            return SyncAnswer(busy=True)
        if messages:
            self._counted["messages", "served"] += len(messages)
            self._served()
        return replace(answer, messages=messages, handled=handled)

    async def _read(self, wanted: Sequence[MessageId]) -> tuple[tuple[bytes, ...], int]:
        """As many of the messages as one answer takes, and how many ids that deals with; 0: the disk is in the way."""
        found: list[bytes] = []
        size = handled = 0
        at_once = 4
        while handled < len(wanted):
            ids = wanted[handled : handled + at_once]
            try:
                bodies = await self._messages.bytes_of(ids)
            except EnvironmentFault as error:
                log.warning("stored messages cannot be read", extra={"reason": error.detail})
                break
            for each in ids:
                body = bodies.get(each)
                if body is not None:
                    if size + len(body) > MAX_MESSAGES_BYTES:
                        return tuple(found), handled
                    found.append(body)
                    size += len(body)
                handled += 1
            mean = size // len(found) + 1 if found else 1
            at_once = max(1, min(READ_AT_ONCE, (MAX_MESSAGES_BYTES - size) // mean))
        return tuple(found), handled
