"""Signed records and accusations: what of those that came is news, and those that another node lacks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence, Set
from random import Random

import trio

from p2pnode.core.membership.events import News
from p2pnode.core.membership.membership import Membership
from p2pnode.core.membership.record import Accusation, MemberRecord
from p2pnode.core.peerid import PeerId, is_peer_id, peer_id_text
from p2pnode.errors import InvalidMessage
from p2pnode.wire.members import MAX_EXCHANGE_BYTES, EncodedNews, RecordVerify, read_accusation, read_record

NEWS_IN_ANSWER_BYTES = MAX_EXCHANGE_BYTES // 2
VERIFY_AT_ONCE = 32
"""Signatures checked before others get a turn: about 3 ms."""


class Records:
    """What the membership knows, read from and written as signed bytes.

    Args:
        machine: judges what is worth checking, and counts what is refused.
        verify: `(peer id, key, signed bytes, signature) -> good?`
        rng: the order in which another node is given what it lacks.
    """

    def __init__(self, machine: Membership, verify: RecordVerify, rng: Random) -> None:
        self._machine = machine
        self._verify = verify
        self._rng = rng

    def verified(self, encoded: EncodedNews) -> tuple[News, News]:
        """What of it is news, checked; and what we hold just so, which need not be relayed by us any more.

        Raises:
            InvalidMessage: a record or accusation is none, or not signed by whom it names.
        """
        verify, machine = self._verify, self._machine
        held_records: list[MemberRecord] = []
        held_accusations: list[Accusation] = []

        def is_news(record: MemberRecord) -> bool:
            member = machine.get(record.peer_id)
            if member is not None and member.record.signed == record.signed:
                held_records.append(record)
                return False
            return machine.wants(record)

        records = [r for e in encoded.records if (r := read_record(e, verify, is_news)) is not None]
        known = {record.peer_id for record in records}

        def is_wanted(accusation: Accusation) -> bool:
            member = machine.get(accusation.accused)
            held = member.accusations.get(accusation.accuser) if member is not None else None
            if held is not None and held.signed == accusation.signed:
                held_accusations.append(accusation)
                return False
            return self._is_wanted(accusation, known)

        accusations = [a for e in encoded.accusations if (a := read_accusation(e, verify, is_wanted)) is not None]
        return (
            News(tuple(records), tuple(accusations), "gossip"),
            News(tuple(held_records), tuple(held_accusations), "gossip"),
        )

    def _is_wanted(self, accusation: Accusation, new: Set[PeerId]) -> bool:
        """Is it worth checking? What is about, or by, a member that is new in the same news is judged after that."""
        return bool({accusation.accused, accusation.accuser} & new) or self._machine.wants_accusation(accusation)

    async def read(self, news: EncodedNews, source: str) -> tuple[News, Mapping[PeerId, bytes]]:
        """What of it is news, checked a part at a time; one bad record costs only itself.

        Returns:
            That, and the records in it by owner, not all of them verified.
        """
        records: list[MemberRecord] = []
        told: dict[PeerId, bytes] = {}

        def is_news(record: MemberRecord) -> bool:
            told[record.peer_id] = record.signed
            return self._machine.wants(record)

        async for encoded in _in_turns(news.records):
            try:
                record = read_record(encoded, self._verify, is_news)
            except InvalidMessage as error:
                self._machine.refused[error.reason] += 1
            else:
                records += [record] if record is not None else []
        accusations: list[Accusation] = []
        known = {record.peer_id for record in records}
        async for encoded in _in_turns(news.accusations):
            try:
                accusation = read_accusation(encoded, self._verify, lambda each: self._is_wanted(each, known))
            except InvalidMessage as error:
                self._machine.refused[error.reason] += 1
            else:
                accusations += [accusation] if accusation is not None else []
        return News(tuple(records), tuple(accusations), source), told

    def of(self, keys: Iterable[bytes]) -> EncodedNews:
        """Records and accusations of members, as many as fit an answer; the next comparison finds the rest.

        In random order: what the other refuses each time must not keep the rest from it.
        """
        records: list[bytes] = []
        accusations: list[bytes] = []
        size = 0
        ordered = sorted(keys)
        self._rng.shuffle(ordered)
        for key in ordered:
            member = self._machine.get(peer_id_text(key)) if is_peer_id(key) else None
            if member is None:
                continue
            found = [each.signed for each in member.accusations.values()]
            size += len(member.record.signed) + sum(map(len, found))
            if size > NEWS_IN_ANSWER_BYTES:
                break
            records.append(member.record.signed)
            accusations += found
        return EncodedNews(tuple(records), tuple(accusations))


async def _in_turns(signed: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Each of them, with a turn for others now and then."""
    for number, each in enumerate(signed, 1):
        yield each
        if number % VERIFY_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
