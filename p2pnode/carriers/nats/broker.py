"""The trio side: a `Broker` whose connection lives in an asyncio thread. nats-py is imported when `run` begins."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import trio

from p2pnode.carriers.nats.handing import CHECKPOINT_EVERY, Delivery, Inbox, Job, Reading, Watch
from p2pnode.carriers.nats.lanes import Lanes
from p2pnode.carriers.nats.settings import BrokerSettings
from p2pnode.carriers.nats.subjects import check_subject, counted, durable_name
from p2pnode.carriers.nats.thread import AsyncioThread
from p2pnode.errors import Fault, InvalidRequest, P2PNodeError, Unavailable
from p2pnode.logs import Throttled
from p2pnode.ports.roads import BrokerState, Consumed, NatsMessage

if TYPE_CHECKING:
    from p2pnode.carriers.nats.connection import Connection

_PUBLISH_SECONDS: Final = 5.0
_IN_FLIGHT: Final = 1024
_IN_FLIGHT_BYTES: Final = 32 * 1024 * 1024
_STOP_SECONDS: Final = 1.9
_AGAIN_SECONDS: Final = 1.0
_COUNTED: Final = 512

_HEADER_NAME: Final = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

log = logging.getLogger("p2pnode.carriers.nats")


class NatsBroker:
    """Implements `ports.Broker`. At most 1,024 publications are in flight; more wait their turn within their 5 s."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._watches: list[Watch] = []
        self._readings: list[Reading] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self._connection: Connection | None = None
        self._thread: AsyncioThread | None = None
        self._limit = trio.CapacityLimiter(_IN_FLIGHT)
        self._in_flight_bytes = 0
        self._inbox: Inbox | None = None
        self._waiting = trio.Event()
        self._deliveries: deque[tuple[Reading, Delivery]] = deque()
        self._finished: deque[Job] = deque()
        self._settled: deque[tuple[Delivery, float | None]] = deque()
        self._settling = False
        self._submitting = False
        self._lanes: dict[str, Lanes] = {}
        self._nursery: trio.Nursery | None = None
        self._failures = Throttled(log, lines=3)

    def state(self) -> BrokerState:
        return self._connection.state if self._connection is not None else BrokerState()

    def watch(self, subjects: Sequence[str], take: Callable[[NatsMessage], None]) -> None:
        self._watches.extend(Watch(subject, take) for subject in subjects)
        self._subscribe()

    def consume(self, durable: str, subjects: Sequence[str], take: Callable[[NatsMessage], Awaitable[None]]) -> None:
        self._readings.extend(Reading(subject, durable_name(durable, subject), take) for subject in subjects)
        self._subscribe()

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> bool:
        check_subject(subject)
        size = len(body) + _check_headers(headers)
        name = counted(subject)
        try:
            stored = await self._publish(Job(subject, body, headers), size)
        except P2PNodeError:
            self._count("publish-failed", name)
            raise
        self._count("out", name)
        return stored

    async def run(self) -> None:
        while True:
            await self._run_once()
            await trio.sleep(_AGAIN_SECONDS)

    def consumers(self) -> Sequence[Consumed]:
        found = []
        for each in self._readings:
            lanes = self._lanes.get(each.name)
            state = (each.pending, each.unacknowledged, each.redelivered, each.caught_up)
            found.append(Consumed(each.name, each.subject, *state, lanes.taken + lanes.failed if lanes else 0))
        return found

    def counters(self) -> Mapping[tuple[str, str], int]:
        counts = Counter(self._counts)
        if self._connection is not None:
            counts.update({(what, ""): count for what, count in self._connection.counts.copy().items()})
        if self._inbox is not None:
            counts.update({("dropped", subject): count for subject, count in self._inbox.dropped.copy().items()})
        for reading in self._readings:
            lanes = self._lanes.get(reading.name)
            if lanes is not None:
                counts[("in", reading.subject)] += lanes.taken
                counts[("take-failed", reading.subject)] += lanes.failed
        return counts

    def subscriptions(self) -> Mapping[str, int]:
        found: Counter[str] = Counter()
        if self.state().connected:
            found.update(each.subject for each in self._watches)
        found.update(each.subject for each in self._readings if each.open)
        return found

    # --- the thread ---

    async def _run_once(self) -> None:
        from p2pnode.carriers.nats.connection import Connection

        thread: AsyncioThread

        async def main() -> None:
            await connection.run()

        thread = AsyncioThread(main, "nats")
        inbox = Inbox(lambda: thread.call_trio_soon(self._look))
        if self._inbox is not None:
            inbox.dropped.update(self._inbox.dropped)
        connection = Connection(
            self._settings,
            inbox,
            lambda reading, delivery: self._delivered(thread, reading, delivery),
            lambda job: self._job_finished(thread, job),
            self._watches,
            self._readings,
        )
        if self._connection is not None:
            connection.counts.update(self._connection.counts)
        self._inbox, self._connection, self._thread = inbox, connection, thread
        thread.start()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._lanes = {name: lanes.renewed(nursery) for name, lanes in self._lanes.items()}
                nursery.start_soon(self._hand_over)
                await thread.ended()
                nursery.cancel_scope.cancel()
            if thread.crash is not None:
                log.error("NATS: the connection's loop ended; it begins again", exc_info=thread.crash)
        finally:
            self._nursery = None
            self._thread = None
            thread.call_soon(connection.stop)
            with trio.CancelScope(shield=True), trio.move_on_after(_STOP_SECONDS):
                await thread.ended()
                thread.join(0.1)
            connection.state = BrokerState(False, connection.state.server)
            self._fail_the_rest()

    def _subscribe(self) -> None:
        if self._thread is not None and self._connection is not None:
            self._thread.call_soon(self._connection.subscribe)

    # --- called by the asyncio thread ---

    def _delivered(self, thread: AsyncioThread, reading: Reading, delivery: Delivery) -> None:
        self._deliveries.append((reading, delivery))
        thread.call_trio_soon(self._look)

    def _job_finished(self, thread: AsyncioThread, job: Job) -> None:
        self._finished.append(job)
        thread.call_trio_soon(self._finish_jobs)

    # --- on the trio loop ---

    def _look(self) -> None:
        self._waiting.set()

    def _finish_jobs(self) -> None:
        while self._finished:
            self._finished.popleft().done.set()

    async def _hand_over(self) -> None:
        """Gives out what came, in portions, so that a flood leaves the loop to others."""
        while True:
            await self._waiting.wait()
            self._waiting = trio.Event()
            count = 0
            while self._give_one():
                count += 1
                if count % CHECKPOINT_EVERY == 0:
                    await trio.lowlevel.checkpoint()

    def _give_one(self) -> bool:
        if self._deliveries:
            reading, delivery = self._deliveries.popleft()
            lanes = self._lanes.get(reading.name)
            if lanes is None:
                assert self._nursery is not None
                lanes = self._lanes[reading.name] = Lanes(self._nursery, reading, self._settle)
            lanes.put(delivery)
            return True
        assert self._inbox is not None
        found = self._inbox.take()
        if found is None:
            return False
        watch, message = found
        self._counts[("in", watch.subject)] += 1
        try:
            watch.take(message)
        except Exception:  # nothing that a stranger publishes may end the process
            self._counts[("take-failed", watch.subject)] += 1
            self._failures.exception(f"a message of {watch.subject} from NATS could not be taken")
        return True

    def _settle(self, delivery: Delivery, again_in_seconds: float | None) -> None:
        self._settled.append((delivery, again_in_seconds))
        if not self._settling and self._thread is not None:
            self._settling = True
            self._thread.call_soon(self._settle_all)

    def _settle_all(self) -> None:
        """On the asyncio loop."""
        self._settling = False
        while self._settled:
            delivery, again_in_seconds = self._settled.popleft()
            delivery.settle(delivery, again_in_seconds)

    async def _publish(self, job: Job, size: int) -> bool:
        with trio.move_on_after(_PUBLISH_SECONDS):
            async with self._limit:
                return await self._await(job, size)
        raise Unavailable(
            f"NATS did not acknowledge a message to {job.subject} within {_PUBLISH_SECONDS:g} s; it may have arrived",
            reason="nats",
        )

    async def _await(self, job: Job, size: int) -> bool:
        connection, thread = self._connection, self._thread
        if connection is None or thread is None or not connection.state.connected:
            state = self.state()
            raise Unavailable(state.problem or "NATS is not connected", reason="nats", hint=state.fix)
        if size > connection.max_payload:
            problem = f"{size} B with its headers, and the server takes {connection.max_payload} B (max_payload)"
            raise InvalidRequest(f"a message to {job.subject} is too large for NATS", [Fault("body", problem)])
        if self._in_flight_bytes + size > _IN_FLIGHT_BYTES:
            raise Unavailable("too much waits to be acknowledged by NATS", reason="nats")
        self._in_flight_bytes += size
        try:
            connection.submit(job)
            if not self._submitting:
                self._submitting = True
                thread.call_soon(self._look_at_jobs, connection)
            await job.done.wait()
        finally:
            self._in_flight_bytes -= size
            job.abandoned = True
        if isinstance(job.outcome, P2PNodeError):
            raise job.outcome
        return bool(job.outcome)

    def _look_at_jobs(self, connection: Connection) -> None:
        """On the asyncio loop."""
        self._submitting = False
        connection.look()

    def _fail_the_rest(self) -> None:
        self._finish_jobs()
        self._deliveries.clear()
        self._settled.clear()
        self._settling = self._submitting = False

    def _count(self, what: str, subject: str) -> None:
        key = (what, subject)
        if key not in self._counts and len(self._counts) >= _COUNTED:
            key = (what, "other")
        self._counts[key] += 1


def _check_headers(headers: Mapping[str, str]) -> int:
    """Bytes of the headers on the wire.

    Raises:
        InvalidRequest: a name or value that NATS cannot carry.
    """
    size = len("NATS/1.0\r\n\r\n")
    faults = []
    for name, value in headers.items():
        if not name or not _HEADER_NAME.issuperset(name):
            faults.append(Fault(f"headers.{name!a}", "is no header name: letters, digits and - only"))
        try:
            size += len(name) + len(value.encode()) + len(": \r\n")
        except UnicodeEncodeError:
            faults.append(Fault(f"headers.{name!a}", "holds characters that UTF-8 cannot express"))
        if "\r" in value or "\n" in value:
            faults.append(Fault(f"headers.{name!a}", "holds a line break; a value is one line"))
    if faults:
        raise InvalidRequest("NATS cannot carry these headers", faults)
    return size if headers else 0
