"""How many accusations are made, heard, and taken for an alarm."""

from __future__ import annotations

from collections import deque

from p2pnode.core.membership.params import Params
from p2pnode.core.peerid import PeerId


class Limits:
    """Counts accusations; remembers one entry for each accuser of the last `accuser_seconds`."""

    def __init__(self, params: Params, now: float) -> None:
        self._params = params
        self._allowance = float(params.accusations_at_once)
        self._allowance_at = now
        self._heard: dict[PeerId, tuple[float, int]] = {}
        self._accused_at: deque[float] = deque(maxlen=params.alarm_members)

    def may_accuse(self, now: float) -> bool:
        """May we make one more? Counts it."""
        refill = (now - self._allowance_at) * self._params.accusations_per_second
        self._allowance = min(self._allowance + refill, float(self._params.accusations_at_once))
        self._allowance_at = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def hears(self, accuser: PeerId, now: float) -> bool:
        """Is one more of this accuser heard? Counts it: each may cost the accused a refutation."""
        since, count = self._heard.get(accuser, (now, 0))
        if now - since > self._params.accuser_seconds:
            since, count = now, 0
        if count >= self._params.accuser_limit:
            return False
        self._heard[accuser] = (since, count + 1)
        return True

    def accused(self, now: float) -> None:
        """A member that was alive stands accused."""
        self._accused_at.append(now)

    def is_alarm(self, now: float) -> bool:
        """Were several members accused lately?"""
        recent = [at for at in self._accused_at if now - at < self._params.alarm_seconds]
        return len(recent) >= self._params.alarm_members

    def forget(self, now: float) -> None:
        patience = self._params.accuser_seconds
        self._heard = {accuser: entry for accuser, entry in self._heard.items() if now - entry[0] <= patience}
