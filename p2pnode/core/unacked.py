"""What a durable event stream has sent and the agent has not acknowledged: sent again when that takes too long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ACK_SECONDS = 30.0
LAST_ACK_SECONDS = 300.0
MAX_UNACKED = 256


def ack_seconds(sent: int) -> float:
    """How long to wait for the acknowledgement of what was sent so often: 30 s doubling to 5 minutes."""
    return min(ACK_SECONDS * 2.0 ** min(sent - 1, 8), LAST_ACK_SECONDS)


@dataclass(slots=True)
class _Sent:
    """
    Args:
        again_at: when it is sent again.
        sent: how often it was.
        place: number of its first sending on this stream.
        letter: a dead letter that is tried again. It is remembered as such, so the cursor need not wait for it; and
            its low arrival says nothing about when the agent got it: an acknowledgement covers it only if it was sent
            before the acknowledged message.
    """

    again_at: float
    sent: int
    place: int
    letter: bool


class Unacked:
    """The messages in flight on one stream, by arrival: at most `most`.

    Args:
        cursor: everything up to this arrival was handled.
    """

    def __init__(self, cursor: int, *, most: int = MAX_UNACKED) -> None:
        self._most = most
        self._cursor = cursor
        self._read = cursor
        self._sent: dict[int, _Sent] = {}
        self._places = 0

    @property
    def cursor(self) -> int:
        """Everything up to this arrival was handled."""
        return self._cursor

    @property
    def read(self) -> int:
        """The highest arrival that was sent or passed over."""
        return self._read

    @property
    def room(self) -> int:
        return max(self._most - len(self._sent), 0)

    def __len__(self) -> int:
        return len(self._sent)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sent)

    def __contains__(self, arrival: int) -> bool:
        return arrival in self._sent

    def oldest(self) -> int | None:
        """The lowest arrival in flight; dead letters do not count."""
        return min((arrival for arrival, sent in self._sent.items() if not sent.letter), default=None)

    def send(self, arrival: int, now: float, *, letter: bool = False) -> None:
        """A message goes out for the first time on this stream; `letter`: a dead letter that is tried again."""
        assert arrival not in self._sent
        assert self.room
        self._places += 1
        self._sent[arrival] = _Sent(now + ack_seconds(1), 1, self._places, letter)
        if not letter:
            self._read = max(self._read, arrival)

    def due(self, now: float) -> int | None:
        """A message that goes out again now, the lowest arrival first; None when none is due."""
        arrival = min((each for each, sent in self._sent.items() if sent.again_at <= now), default=None)
        if arrival is not None:
            sent = self._sent[arrival]
            sent.sent += 1
            sent.again_at = now + ack_seconds(sent.sent)
        return arrival

    def wait(self, now: float) -> float | None:
        """Seconds until `due` returns something; None when nothing is in flight."""
        soonest = min((sent.again_at for sent in self._sent.values()), default=None)
        return None if soonest is None else max(soonest - now, 0.0)

    def ack(self, arrival: int) -> list[int]:
        """Everything up to a message was handled: what that took out of flight, in order."""
        acked = self._sent.get(arrival)
        done = sorted(each for each, sent in self._sent.items() if _covers(arrival, acked, each, sent))
        for each in done:
            del self._sent[each]
        if acked is None or not acked.letter:
            self._read = max(self._read, arrival)
        self._settle()
        return done

    def drop(self, arrival: int) -> bool:
        """Take one message out of flight alone; False when it is not in flight."""
        found = self._sent.pop(arrival, None) is not None
        self._settle()
        return found

    def pass_over(self, arrival: int) -> None:
        """Nothing up to here is left to be sent."""
        self._read = max(self._read, arrival)
        self._settle()

    def _settle(self) -> None:
        oldest = self.oldest()
        self._cursor = max(self._cursor, self._read if oldest is None else min(oldest - 1, self._read))


def _covers(arrival: int, acked: _Sent | None, other: int, sent: _Sent) -> bool:
    """Does the acknowledgement of one message cover another in flight?"""
    if other == arrival:
        return True
    if acked is not None and (acked.letter or sent.letter):
        return sent.place < acked.place
    return not sent.letter and other < arrival
