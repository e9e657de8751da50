"""One durable pull consumer over one connection: requests, what arrives, and acknowledgements that are confirmed.

What the server says of a request comes as an inline status without an acknowledgement subject; every message has one.
So a publisher's `Status` header means nothing here.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from nats.aio.msg import Msg

from p2pnode.carriers.nats.client import INLINE_STATUS, Answers, NatsClient, status_of
from p2pnode.carriers.nats.handing import HOLD_SECONDS, Delivery, Reading
from p2pnode.carriers.nats.streams import ACK_WAIT_SECONDS, API, Streams
from p2pnode.logs import Throttled
from p2pnode.ports.roads import NatsMessage

_BATCH: Final = 256
_OUTSTANDING: Final = 512
"""Messages that were given and not acknowledged, at most; half of what the consumer allows for all its readers."""

_OUTSTANDING_BYTES: Final = 16 * 1024 * 1024
_REQUEST_SECONDS: Final = 5.0
_OVERDUE_SECONDS: Final = 2.0
_CONFIRM_SECONDS: Final = 5.0
_PROGRESS_SECONDS: Final = ACK_WAIT_SECONDS / 3
"""A message still worked on is reported this often, or three times in the server's wait where that is shorter."""

_FIRST_SECONDS: Final = 0.25
"""How long the server holds a request until it once had nothing to give."""

_BUSY_SECONDS: Final = 0.2
_ENDED: Final = ("Consumer Deleted", "Consumer is push based")
_DONE: Final = ("Batch Completed", "MaxBytes")
"""Texts of status 409 (nats-server, `consumer.go`): the consumer is gone; the request is served. With the others the
same request may succeed in a moment."""

_ACK: Final = b"+ACK"
_PROGRESS: Final = b"+WPI"

log = logging.getLogger(__name__)


class Pulling:
    """Reads for `reading` until its connection is gone or `run` raises.

    Args:
        deliver: hands a message to trio.
        opened: called when stream and consumer are there.
    """

    def __init__(
        self,
        client: NatsClient,
        answers: Answers,
        streams: Streams,
        reading: Reading,
        deliver: Callable[[Reading, Delivery], None],
        opened: Callable[[], None],
    ) -> None:
        self._client = client
        self._answers = answers
        self._streams = streams
        self._reading = reading
        self._deliver = deliver
        self._opened = opened
        self._progress_seconds = _PROGRESS_SECONDS
        self._loop = asyncio.get_running_loop()
        self._outstanding: set[Delivery] = set()
        self._bytes = 0
        self._settled: deque[tuple[Delivery, float | None]] = deque()
        self._confirming: dict[Delivery, str] = {}
        self._to_settle = asyncio.Event()
        self._room = asyncio.Event()
        self._answered = asyncio.Event()
        self._requests = 0
        self._request = ""
        self._status = 0
        self._said = ""
        self._wanted = 0
        self._given = 0
        self._not_before = 0.0
        self._log = Throttled(log, lines=2)

    async def run(self) -> None:
        """Make what is missing, and pull until the consumer is gone.

        Raises:
            ApiFault, TimeoutError, Trouble: stream or consumer cannot be had.
            NatsError, OSError: the connection is gone.
        """
        reading = self._reading
        stream = await self._streams.ensure(reading.subject)
        info = await self._streams.consumer(stream, reading.name, reading.subject)
        self._look(int(info.get("num_pending") or 0))
        wait_seconds = float((info.get("config") or {}).get("ack_wait") or 0) / 1e9
        self._progress_seconds = min(_PROGRESS_SECONDS, wait_seconds / 3) if wait_seconds else _PROGRESS_SECONDS
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(f"{inbox}.*", cb=self._arrived, pending_bytes_limit=0)
        settling = asyncio.create_task(self._settle_for_ever())
        reading.open = True
        self._opened()
        try:
            await self._pull(f"{API}.CONSUMER.MSG.NEXT.{stream}.{reading.name}", inbox)
        finally:
            reading.open = False
            settling.cancel()
            if self._client.is_connected:
                # Before anything is given back: our own request, which still stands, would get it.
                await subscription.unsubscribe()
            await self._give_back()

    async def tidy(self) -> None:
        """Report what is still worked on, and give up on confirmations that do not come; called every second."""
        now = self._loop.time()
        for delivery in list(self._outstanding):
            age = now - delivery.touched
            if delivery in self._confirming:
                if age > _CONFIRM_SECONDS:
                    self._drop(delivery)
            elif not delivery.settled and age > self._progress_seconds:
                delivery.touched = now
                await self._client.publish(delivery.reply, _PROGRESS)

    async def _pull(self, subject: str, inbox: str) -> None:
        max_bytes = max(_OUTSTANDING_BYTES // 2, 2 * self._client.max_payload)
        while True:
            await self._until_room()
            self._wanted, self._given = min(_BATCH, _OUTSTANDING - len(self._outstanding)), 0
            self._status, self._said = 0, ""
            self._answered.clear()
            # What others left unacknowledged counts as given: only a request that ends unserved says that all was read.
            expires = _REQUEST_SECONDS if self._reading.caught_up else _FIRST_SECONDS
            request = {"batch": self._wanted, "expires": int(expires * 1e9), "max_bytes": max_bytes}
            self._requests += 1
            self._request = f"{inbox}.{self._requests:x}"
            await self._client.publish(subject, json.dumps(request).encode(), reply=self._request)
            try:
                async with asyncio.timeout(_REQUEST_SECONDS + _OVERDUE_SECONDS):
                    await self._answered.wait()
            except TimeoutError:
                return  # the consumer or JetStream went away without a word
            if self._status in (404, 408):
                if not self._given:
                    self._look(0)
                self._reading.caught_up |= self._reading.pending == 0
            elif self._status == 409 and not any(each in self._said for each in _ENDED):
                if not any(each in self._said for each in _DONE):
                    self._not_before = max(self._not_before, self._loop.time() + _BUSY_SECONDS)
            elif self._status:
                return

    async def _until_room(self) -> None:
        while len(self._outstanding) > _OUTSTANDING - _BATCH or self._bytes > _OUTSTANDING_BYTES:
            self._room.clear()
            await self._room.wait()
        await asyncio.sleep(max(0.0, self._not_before - self._loop.time()))

    async def _arrived(self, message: Msg) -> None:
        if not message.reply.startswith("$JS.ACK."):
            status, said = status_of(message)
            if message.subject == self._request and status != 100:
                self._status, self._said = status, said
                self._answered.set()
            return
        place = _place(message.reply)
        if place is None:
            self._log.warning("a message without a place in a stream", {"subject": message.subject})
            return
        attempts, stream_seq, stamped_ns, pending = place
        headers = {name: value for name, value in (message.headers or {}).items() if name != INLINE_STATUS}
        delivery = Delivery(
            NatsMessage(message.subject, headers, message.data, stream_seq, stamped_ns),
            message.reply,
            attempts,
            self._settle,
            self._loop.time(),
        )
        self._outstanding.add(delivery)
        self._bytes += len(message.data)
        self._given += 1
        self._reading.redelivered += attempts > 1
        self._look(pending)
        self._deliver(self._reading, delivery)
        if self._given >= self._wanted:
            self._answered.set()

    def _settle(self, delivery: Delivery, again_in_seconds: float | None) -> None:
        if delivery.stale or delivery.settled:
            return
        delivery.settled = True
        self._settled.append((delivery, again_in_seconds))
        self._to_settle.set()

    async def _settle_for_ever(self) -> None:
        while True:
            await self._to_settle.wait()
            self._to_settle.clear()
            while self._settled:
                delivery, again_in_seconds = self._settled.popleft()
                if again_in_seconds is None:
                    await self._acknowledge(delivery)
                else:
                    await self._refuse(delivery, again_in_seconds)

    async def _acknowledge(self, delivery: Delivery) -> None:
        """With an answer: without one nobody knows whether it arrived."""
        reply = self._answers.expect(partial(self._confirmed, delivery))
        self._confirming[delivery] = reply
        delivery.touched = self._loop.time()
        await self._client.publish(delivery.reply, _ACK, reply=reply)

    async def _refuse(self, delivery: Delivery, again_in_seconds: float) -> None:
        self._drop(delivery)
        if again_in_seconds <= HOLD_SECONDS:
            # Redeliveries come before what is newer: whoever pulls no sooner than that gets them in order.
            self._not_before = max(self._not_before, self._loop.time() + again_in_seconds + 0.2)
        await self._client.publish(delivery.reply, _nak(again_in_seconds))

    def _confirmed(self, delivery: Delivery, _answer: Msg) -> None:
        self._drop(delivery)

    def _drop(self, delivery: Delivery) -> None:
        reply = self._confirming.pop(delivery, "")
        if reply:
            self._answers.forget(reply)
        if delivery in self._outstanding:
            self._outstanding.discard(delivery)
            self._bytes -= len(delivery.message.body)
            self._room.set()
        self._reading.unacknowledged = len(self._outstanding)

    def _look(self, pending: int) -> None:
        self._reading.pending = pending
        self._reading.unacknowledged = len(self._outstanding)

    async def _give_back(self) -> None:
        """What is not finished is for whoever reads next, at once when the server still hears us."""
        unfinished = [each for each in self._outstanding if each not in self._confirming]
        for delivery in list(self._outstanding):
            delivery.stale = True
            self._drop(delivery)
        if self._client.is_connected:
            for delivery in unfinished:
                await self._client.publish(delivery.reply, _nak(0))


def _nak(again_in_seconds: float) -> bytes:
    return b"-NAK " + json.dumps({"delay": int(again_in_seconds * 1e9)}).encode() if again_in_seconds else b"-NAK"


def _place(reply: str) -> tuple[int, int, int, int] | None:
    """Attempts, stream sequence, time in ns and pending of `$JS.ACK.…`, in its old form or in that with a domain."""
    tokens = reply.split(".")
    first = 4 if len(tokens) == 9 else 6
    if len(tokens) != 9 and len(tokens) < 11:
        return None
    try:
        attempts, stream_seq, _, stamped_ns, pending = (int(each) for each in tokens[first : first + 5])
    except ValueError:
        return None
    return attempts, stream_seq, stamped_ns, pending
