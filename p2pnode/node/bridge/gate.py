"""When a bridge may publish: connected, and what the broker kept meanwhile was read first."""

from __future__ import annotations

from collections.abc import Collection

import trio

from p2pnode.ports.roads import Broker

STUCK_SECONDS = 30.0
"""How long after connecting, or after the last message was taken, nothing is published while a consumer is behind: what
it reads may be what waits here."""

LOOK_SECONDS = 0.05


class Gate:
    """Open while the broker can be published to, and what it kept when we came was read first.

    Args:
        subjects: what is consumed.

    Attributes:
        opened_at: monotonic time when it last opened.
    """

    def __init__(self, broker: Broker, subjects: Collection[str]) -> None:
        self._broker = broker
        self._subjects = frozenset(subjects)
        self._is_connected = False
        self._losses = 0
        self._taken = 0
        self._moved_at = 0.0
        self._wanted: dict[tuple[str, str], int] = {}
        """By consumer: when so many were taken for the first time, all that was there on connecting was."""
        self._is_open = False
        self.opened_at = 0.0

    async def wait(self) -> None:
        """Return once it is open."""
        while not self._look():  # noqa: ASYNC110  # a broker tells nobody that it is there again
            await trio.sleep(LOOK_SECONDS)

    def _look(self) -> bool:
        now = trio.current_time()
        state = self._broker.state()
        losses = self._broker.counters().get(("disconnected", ""), 0)
        if not state.connected or losses != self._losses:
            self._is_connected, self._is_open, self._losses = False, False, losses
        if not state.connected:
            return False
        if not self._is_connected:
            self._is_connected, self._moved_at = True, now
            self._wanted.clear()
        if not self._is_open and (self._is_caught_up(now) or now - self._moved_at > STUCK_SECONDS):
            self._is_open, self.opened_at = True, now
        return self._is_open

    def _is_caught_up(self, now: float) -> bool:
        uses_streams = self._broker.state().jetstream
        if not uses_streams:
            return uses_streams is False
        consumers = self._broker.consumers()
        if (taken := sum(each.taken for each in consumers)) != self._taken:
            self._taken, self._moved_at = taken, now
        behind = set()
        for each in consumers:
            key = (each.durable, each.subject)
            new = each.taken - each.redelivered  # what is given again comes first, and is not among what is pending
            if each.caught_up or each.pending:  # else nothing is known of it yet
                # All that was there on connecting is among these, whatever came since.
                enough = new + each.pending + each.unacknowledged
                self._wanted[key] = min(self._wanted.get(key, enough), enough)
            if key not in self._wanted or new < self._wanted[key]:
                behind.add(each.subject)
        return self._subjects <= {each.subject for each in consumers} - behind
