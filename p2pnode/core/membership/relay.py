"""What came by an exchange and is gossiped on, so that it gets to everybody at once."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from p2pnode.core.membership.events import Publish
from p2pnode.core.membership.params import Params
from p2pnode.core.membership.record import Accusation, Member, MemberRecord
from p2pnode.core.peerid import PeerId


class Relay:
    """Waits a moment, in which gossip may bring the same; then all that is left goes out in one message.

    Holds names of records and accusations, not more than the table has, for less than a second.

    Attributes:
        due: monotonic time when it goes out; infinite while nothing waits.
    """

    def __init__(self, params: Params, rng: Random) -> None:
        self._params = params
        self._rng = rng
        self._waiting: dict[tuple[PeerId, int, PeerId | None], None] = {}
        self.due = float("inf")

    def add(self, news: MemberRecord | Accusation, now: float) -> None:
        if not self._waiting:
            self.due = now + self._rng.uniform(*self._params.relay_seconds)
        self._waiting[_key(news)] = None

    def heard(self, news: MemberRecord | Accusation) -> None:
        """Gossip brought it."""
        self._waiting.pop(_key(news), None)

    def take(self, members: Mapping[PeerId, Member]) -> Publish | None:
        """What is still true of what waits."""
        records: list[MemberRecord] = []
        accusations: list[Accusation] = []
        for peer, incarnation, accuser in self._waiting:
            member = members.get(peer)
            if member is None or member.record.incarnation != incarnation:
                continue
            if accuser is None:
                records.append(member.record)
            elif accuser in member.accusations:
                accusations.append(member.accusations[accuser])
        self._waiting.clear()
        self.due = float("inf")
        return Publish(tuple(records), tuple(accusations)) if records or accusations else None


def _key(news: MemberRecord | Accusation) -> tuple[PeerId, int, PeerId | None]:
    if isinstance(news, MemberRecord):
        return news.peer_id, news.incarnation, None
    return news.accused, news.incarnation, news.accuser
