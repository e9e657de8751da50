"""When a bridge may publish: connected, and what the broker kept meanwhile was read first."""

from __future__ import annotations

from collections.abc import Collection

import trio

from p2pnode.ports.roads import Broker

CATCH_UP_SECONDS = 30.0
"""How long after connecting nothing is published while a consumer is behind: what it reads may be what waits here."""

LOOK_SECONDS = 0.05


class Gate:
    """Open while the broker can be published to, and what it keeps was read first.

    Args:
        subjects: what is consumed.

    Attributes:
        opened_at: monotonic time when it last opened.
    """

    def __init__(self, broker: Broker, subjects: Collection[str]) -> None:
        self._broker = broker
        self._subjects = frozenset(subjects)
        self._connected_at: float | None = None
        self._losses = 0
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
            self._connected_at, self._is_open, self._losses = None, False, losses
        if not state.connected:
            return False
        if self._connected_at is None:
            self._connected_at = now
        if not self._is_open and (self._is_caught_up() or now - self._connected_at > CATCH_UP_SECONDS):
            self._is_open, self.opened_at = True, now
        return self._is_open

    def _is_caught_up(self) -> bool:
        uses_streams = self._broker.state().jetstream
        if uses_streams:
            read = [each for each in self._broker.consumers() if each.caught_up and not each.unacknowledged]
            return self._subjects <= {each.subject for each in read}
        return uses_streams is False
