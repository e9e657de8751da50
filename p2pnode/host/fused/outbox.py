"""What all fused connections of a host share: a flush at the end of each pass, and a keeper that looks after silence.

A pass is whatever runs without waiting: a reader digesting what came. What it queues, on
whichever connection, leaves at its end; what is queued outside a pass leaves at the flusher's
next turn. Time is counted in the keeper's looks, so a process that was stopped or starved
itself does not blame its peers for the time it missed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from p2pnode.core.yamux import GoAwayCode
from p2pnode.errors import InvalidMessage
from p2pnode.logs import Throttled

if TYPE_CHECKING:
    from p2pnode.host.fused.connection import FusedConnection

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PING_AFTER_LOOKS = 3
"""A link that was silent for so long is pinged by who dialled it, and a look later by the other if that was in vain.

Were both as quick, they would ping by turns: an idle link would carry half as much again.
"""

SILENT_AFTER_LOOKS = 5
"""A link whose ping is unanswered for so long is reported as silent, at each look from then on."""

MEASURE_EVERY_LOOKS = 30
"""A link's round trip is measured so often, however busy it is."""

DEAD_AFTER_LOOKS = 11
"""A link that stayed silent for so long, its ping included, is closed: within 12 s of its death."""

FULL_LOOKS = 10
"""A socket that took nothing for so long is closed."""


class Outbox:
    """Shared by the connections of one host. `run` must be running.

    Attributes:
        connections: the open ones.
        on_silent: called for each link that does not answer; must return at once.
        failures: readers and writers of ours that raised what they should not.
        broken_by: connections closed for what the peer sent, by the reason of the error; and those that it
            left dying: `silent`, `full`, `cut`, or in the `handshake`.
    """

    def __init__(self) -> None:
        self.connections: set[FusedConnection] = set()
        self.on_silent: Callable[[FusedConnection], None] = lambda connection: None
        self._looks = 0
        self.failures = 0
        self.broken_by: Counter[str] = Counter()
        self._marked: dict[FusedConnection, None] = {}
        self._held = False
        self._calls: list[Callable[[], None]] = []
        self._wake = trio.Event()
        self._breaches = Throttled(log)
        self._failures = Throttled(log)

    def mark(self, connection: FusedConnection) -> None:
        """It has something to send."""
        self._marked[connection] = None
        if not self._held:
            self._wake.set()

    def hold(self) -> None:
        """A pass begins: marks wait for `release`."""
        self._held = True

    def release(self) -> None:
        """A pass ends: send what it queued."""
        self._held = True
        try:
            while self._marked:
                marked, self._marked = self._marked, {}
                for connection in marked:
                    connection.flush()
        finally:
            self._held = False

    def soon(self, call: Callable[[], None]) -> None:
        """Call back at the flusher's next turn, when all that came together has been read; what `call` queues leaves at
        its end. The caller bounds how often."""
        self._calls.append(call)
        self._wake.set()

    def broken(self, connection: FusedConnection, error: InvalidMessage) -> None:
        """A peer sent what its connection cannot survive: count it, say so, close."""
        self.broken_by[error.reason] += 1
        self._breaches.warning(
            "a peer broke the protocol; its connection is closed",
            {"peer": str(connection.peer_id), "reason": error.reason, "detail": error.detail},
        )
        connection.abort(f"{error.reason}: {error.detail}", GoAwayCode.PROTOCOL_ERROR)

    def ended(self, connection: FusedConnection, reason: str, detail: str) -> None:
        """A connection died, or must be given up; nobody broke a rule, so it is counted and not warned of."""
        self.broken_by[reason] += 1
        connection.abort(detail)

    def refused(self) -> None:
        """A connection that came in ended before it was one."""
        self.broken_by["handshake"] += 1

    def failed(self, what: str) -> None:
        """An exception of ours is being handled that nobody expected."""
        self.failures += 1
        self._failures.exception(what)

    async def run(self) -> None:
        """Flush what is queued outside of passes, and look after silent links, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                self.hold()
                calls, self._calls = self._calls, []
                try:
                    for call in calls:
                        self._call(call)
                finally:
                    self.release()

    def _call(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            # As in a reader: it must not end the flusher of all connections.
            self.failed("what was to be done before a flush failed")

    async def _keep(self) -> None:
        while True:
            await trio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Ping who was silent, close who stayed so or takes nothing."""
        self._looks += 1
        measure = self._looks % MEASURE_EVERY_LOOKS == 0
        for connection in tuple(self.connections):
            connection.silent_looks += 1
            connection.full_looks += connection.is_full
            if connection.silent_looks >= DEAD_AFTER_LOOKS:
                self.ended(
                    connection, "silent", f"silent for {DEAD_AFTER_LOOKS * LOOK_SECONDS:g} s, and no answer to a ping"
                )
            elif connection.full_looks >= FULL_LOOKS:
                self.ended(connection, "full", f"its socket took nothing for {FULL_LOOKS * LOOK_SECONDS:g} s")
            elif connection.silent_looks >= SILENT_AFTER_LOOKS:
                self.on_silent(connection)
            elif connection.silent_looks == _ping_after(connection) or connection.round_trip is None or measure:
                connection.ping()


def _ping_after(connection: FusedConnection) -> int:
    return PING_AFTER_LOOKS if connection.is_initiator else PING_AFTER_LOOKS + 1
