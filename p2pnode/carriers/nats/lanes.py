"""Messages of one durable consumer on the trio loop: in order for each subject, side by side over subjects."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from p2pnode.carriers.nats.handing import (
    ALONE_SECONDS,
    CHECKPOINT_EVERY,
    HELD_ATTEMPTS,
    HOLD_AT_MOST_SECONDS,
    HOLD_SECONDS,
    Delivery,
    Reading,
)
from p2pnode.logs import Throttled

_HELD: Final = 512

log = logging.getLogger(__name__)


class Lanes:
    """Gives messages to `take`, and tells what became of each.

    A message whose `take` failed is given again after a second, and those of its subject that came meanwhile after it;
    the consumer asks for nothing new in that time. One that failed five times is given again after 30 s, and holds up
    nobody any more. What waits is bounded by what the consumer lets be unacknowledged.

    Args:
        settle: tells the asyncio loop; seconds until it is to be given again, None: acknowledge.
    """

    def __init__(
        self, nursery: trio.Nursery, reading: Reading, settle: Callable[[Delivery, float | None], None]
    ) -> None:
        self._nursery = nursery
        self._reading = reading
        self._settle = settle
        self._lanes: dict[str, deque[Delivery]] = {}
        self._held: dict[str, tuple[int, float]] = {}
        self._log = Throttled(log, lines=3)
        self.taken = 0
        self.failed = 0

    def renewed(self, nursery: trio.Nursery) -> Lanes:
        """The same, empty, for another run; its counts go on."""
        lanes = Lanes(nursery, self._reading, self._settle)
        lanes.taken, lanes.failed = self.taken, self.failed
        return lanes

    def put(self, delivery: Delivery) -> None:
        subject = delivery.message.subject
        if self._holds(delivery):
            self._settle(delivery, HOLD_SECONDS)
            return
        lane = self._lanes.get(subject)
        if lane is not None:
            lane.append(delivery)
            return
        lane = self._lanes[subject] = deque((delivery,))
        self._nursery.start_soon(partial(self._run, subject, lane))

    async def _run(self, subject: str, lane: deque[Delivery]) -> None:
        count = 0
        while lane:
            delivery = lane.popleft()
            if delivery.stale:
                continue
            try:
                await self._reading.take(delivery.message)
            except Exception:  # whatever it is, the message is not lost: it is counted, logged and given again
                self._fail(delivery, lane)
            else:
                self.taken += 1
                self._settle(delivery, None)
            count += 1
            if count % CHECKPOINT_EVERY == 0:
                await trio.lowlevel.checkpoint()
        del self._lanes[subject]

    def _fail(self, delivery: Delivery, lane: deque[Delivery]) -> None:
        self.failed += 1
        self._log.exception(f"a message of {self._reading.subject} from NATS could not be taken; it is given again")
        if delivery.attempts >= HELD_ATTEMPTS:
            self._settle(delivery, ALONE_SECONDS)
            return
        message = delivery.message
        now = trio.current_time()
        if len(self._held) >= _HELD:
            self._held = {subject: held for subject, held in self._held.items() if held[1] > now}
        self._held[message.subject] = (message.stream_seq, now + HOLD_AT_MOST_SECONDS)
        for each in (delivery, *lane):
            self._settle(each, HOLD_SECONDS)
        lane.clear()

    def _holds(self, delivery: Delivery) -> bool:
        """Is a message before this one still to come again?"""
        message = delivery.message
        stream_seq, until = self._held.get(message.subject, (0, 0.0))
        if message.stream_seq > stream_seq and trio.current_time() < until:
            return True
        if message.stream_seq >= stream_seq:
            self._held.pop(message.subject, None)
        return False
