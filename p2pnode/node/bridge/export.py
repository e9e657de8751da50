"""From the mesh to NATS: everything stored of a mapped topic that did not come from there, once the broker has it.

The node's own message store is the spool. A durable cursor over arrivals says how far everything is done; it moves when
the broker acknowledged, so a bridge that dies repeats a moment of work, which the broker knows by `Nats-Msg-Id`, and
leaves nothing out.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import trio

from p2pnode.core.council.documents import STATUS_TOPIC
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.message import SEQNO_BYTES, SignedMessage
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.core.subjects import Subjects
from p2pnode.errors import EnvironmentFault, InvalidMessage, InvalidRequest, Unavailable
from p2pnode.logs import Throttled
from p2pnode.node.archive import Archive
from p2pnode.node.bridge.due import RETRY_SECONDS, Due, Row, topic_label
from p2pnode.node.bridge.gate import Gate
from p2pnode.node.bridge.refusals import Refusals
from p2pnode.node.bridge.seen import Seen
from p2pnode.node.bridge.turns import rank
from p2pnode.ports import Advance, Change, Entry, Subscribe, Subscription
from p2pnode.ports.roads import Broker
from p2pnode.wire.nats import encode_nats
from p2pnode.wire.payload import decode_payload
from p2pnode.wire.pubsub import decode_message

log = logging.getLogger(__name__)

CURSOR = ":bridge"
"""The name of our subscription in the store; no agent can choose it, so it clashes with none."""

WINDOW = 64
"""Messages being published at a time."""

MAX_WAITING = 16_384
"""Read ahead, without their bytes: they wait for their turn or for the broker. At the bound reading pauses. More than
the store keeps of a topic by default, so that one topic that NATS does not take does not hold up the others."""

PAGE = 256
TURN_SECONDS = 2.0
"""Between the bridge whose share a message is and the next one, which publishes it when nobody did."""

WRITE_SECONDS = 0.02

Write = Callable[[Sequence[Change]], Awaitable[None]]
"""Returns when the changes are committed; raises EnvironmentFault, and none of them is."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What the export must know of others.

    Args:
        own: our peer id.
        partners: other live bridges of this mesh that NATS reaches.
        is_beyond: does this peer live beyond a bridge? What it says comes from NATS sooner or later.
    """

    own: PeerId
    partners: Callable[[], Collection[PeerId]]
    is_beyond: Callable[[PeerId], bool]


class Exporter:
    """Made, loaded, then run.

    Args:
        write: see `Write`; without a full commit: what is lost of it is published once more.
        seen: what NATS holds; shared with the importer, which calls `saw`.

    Attributes:
        published, failed: by topic; failed attempts are repeated.
        skipped: by topic and reason: `imported`, `seen`, `expired`.
    """

    def __init__(
        self,
        broker: Broker,
        archive: Archive,
        subjects: Subjects,
        neighbours: Neighbours,
        seen: Seen,
        refusals: Refusals,
        write: Write,
        *,
        wall_ns: Callable[[], int],
        rng: Random,
    ) -> None:
        self._broker = broker
        self._archive = archive
        self._subjects = subjects
        self._neighbours = neighbours
        self._seen = seen
        self._refusals = refusals
        self._write = write
        self._wall_ns = wall_ns
        self._rng = rng
        self._topics = _Carried(archive, subjects)
        self._position = 0
        self._written = -1
        self._is_written_down = False
        self._rows: OrderedDict[int, Row] = OrderedDict()
        self._by_digest: dict[bytes, int] = {}
        self._waiting: Counter[str] = Counter()
        self._added = trio.Event()
        self._moved = trio.Event()
        self._room = trio.Event()
        self._gate = Gate(broker, subjects.roots())
        self._due = Due(self._rows, self._due_at, rng)
        self._failures = Throttled(log)
        self._not_taken = Throttled(log, lines=2)
        self.published: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.skipped: Counter[tuple[str, str]] = Counter()

    def load(self, subscriptions: Iterable[Subscription]) -> None:
        """Take up where an earlier run stopped; a first one begins with all that is stored and has not expired."""
        for each in subscriptions:
            if each.name == CURSOR:
                self._position = self._written = each.cursor
                self._is_written_down = True

    @property
    def cursor(self) -> int:
        """Everything up to this arrival is done."""
        return next(iter(self._rows)) - 1 if self._rows else self._position

    @property
    def in_flight(self) -> int:
        return sum(row.is_under_way for row in self._rows.values())

    def lag_seconds(self) -> float:
        """Age, since it was stored here, of the oldest message that waits for NATS."""
        oldest = next(iter(self._rows.values()), None)
        return max(trio.current_time() - oldest.since, 0.0) if oldest is not None else 0.0

    def trouble(self) -> str:
        """Why NATS took no message of a topic lately; empty when all is well."""
        return self._due.trouble()

    def pending(self) -> Mapping[str, int]:
        """Messages that wait, by topic as `topic_label` names it."""
        found = Counter(self._waiting)
        for topic in self._topics:
            found[topic_label(topic)] += self._archive.count_beyond((topic,), self._position)
        return found

    def lost(self) -> int:
        """How many were dropped by retention before they were read, as far as that is remembered."""
        return self._archive.lost_beyond(tuple(self._topics), self._position)

    def saw(self, digest: bytes) -> None:
        """NATS holds a message with these signed bytes."""
        self._seen.note(digest)
        arrival = self._by_digest.get(digest)
        row = self._rows.get(arrival) if arrival is not None else None
        if row is not None and not row.is_under_way:
            self._skip(row, "seen")

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_for_ever)
            nursery.start_soon(self._publish_for_ever)
            nursery.start_soon(self._write_for_ever)

    # -- reading -----------------------------------------------------------------------

    async def _read_for_ever(self) -> None:
        while True:
            while len(self._rows) >= MAX_WAITING:
                self._room = trio.Event()
                await self._room.wait()
            await self._archive.wait_beyond(self._topics, self._position)
            last = self._archive.last_arrival
            try:
                page = await self._archive.page(tuple(self._topics), self._position, PAGE)
            except EnvironmentFault as error:
                self._failures.warning("messages for NATS cannot be read", {"reason": error.detail})
                await trio.sleep(RETRY_SECONDS)
                continue
            partners = self._neighbours.partners()
            for entry, message in page:
                self._position = entry.arrival
                self._consider(entry, message, partners)
            if not page:  # what is there is damaged
                self._position = max(self._position, last)
            self._moved.set()

    def _consider(self, entry: Entry, message: SignedMessage, partners: Collection[PeerId]) -> None:
        label = topic_label(entry.topic)
        if (why := self._why_not(entry, message)) is not None:
            self.skipped[label, why] += 1
            return
        # Who lives beyond a bridge is heard of from NATS, and only then by gossip: a turn to see it there.
        turns = rank(entry.id, self._neighbours.own, partners)
        turns += self._neighbours.is_beyond(peer_id_text(entry.id[:-SEQNO_BYTES]))
        age = max(self._wall_ns() - entry.received_at_ns, 0) / 1e9
        row = Row(entry, trio.current_time() - age, turns)
        self._rows[entry.arrival] = row
        self._by_digest[entry.digest] = entry.arrival
        self._waiting[label] += 1
        self._due.push(row)
        self._added.set()

    def _due_at(self, row: Row) -> float:
        return max(row.since, self._gate.opened_at) + row.rank * TURN_SECONDS

    def _why_not(self, entry: Entry, message: SignedMessage) -> str | None:
        metadata = decode_payload(message.data).metadata
        if entry.carrier == "nats" or (metadata is not None and metadata.via):
            return "imported"
        if entry.digest in self._seen:
            return "seen"
        return "expired" if self._is_expired(entry) else None

    def _is_expired(self, entry: Entry) -> bool:
        return 0 < entry.expires_at_ns <= self._wall_ns()

    # -- publishing --------------------------------------------------------------------

    async def _publish_for_ever(self) -> None:
        slots = trio.Semaphore(WINDOW)
        async with trio.open_nursery() as nursery:
            while True:
                await slots.acquire()
                row = await self._next()
                row.is_under_way = True
                nursery.start_soon(self._publish_at_last, row, slots)

    async def _next(self) -> Row:
        """The next one whose turn it is."""
        while True:
            await self._gate.wait()
            self._added = trio.Event()
            due = self._due.pop()
            if isinstance(due, Row):
                return due
            with trio.move_on_at(due):
                await self._added.wait()

    async def _publish_at_last(self, row: Row, slots: trio.Semaphore) -> None:
        try:
            if (reason := await self._publish(row)) is None:
                self._due.unpark(row)
            else:
                row.is_under_way = False
                self._due.park(row, reason)
            self._added.set()
        finally:
            slots.release()

    async def _publish(self, row: Row) -> str | None:
        """One attempt; why it is to be repeated, None when it is done."""
        entry, label = row.entry, topic_label(row.entry.topic)
        if entry.digest in self._seen or self._is_expired(entry):
            self._skip(row, "seen" if entry.digest in self._seen else "expired")
            return None
        try:
            raw = (await self._archive.bytes_of((entry.id,))).get(entry.id)
            if raw is None:
                raise InvalidMessage("gone", "it was dropped here before NATS took it; see messages.keep_*")
            message = decode_message(raw)
            out = encode_nats(message, self._subjects)
            if out is None:
                raise InvalidMessage("topic", f"{entry.topic} is not carried over NATS")
            await self._broker.publish(out.subject, out.body, out.headers)
        except InvalidMessage as error:
            self._refuse(row, error.reason, error.detail)
        except InvalidRequest as error:
            self._refuse(row, "broker", str(error).replace("\n", ";"))
        except Unavailable as error:
            self.failed[label] += 1
            told = {"topic": entry.topic, "reason": error.detail, "fix": error.hint}
            self._not_taken.warning("NATS did not take a message, trying on", told)
            return error.detail
        except EnvironmentFault as error:
            self._failures.warning("a message for NATS cannot be read", {"reason": error.detail})
            return error.detail
        except Exception:  # a message must not hold up all others
            self._failures.exception("a message could not be published to NATS")
            self._refuse(row, "unexpected", "an error of our own; the log has it")
        else:
            self._seen.note(entry.digest)
            self.published[label] += 1
            _tell(message, out.subject)
            self._finish(row)
        return None

    def _refuse(self, row: Row, reason: str, detail: str) -> None:
        self._refusals.note("export", topic_label(row.entry.topic), row.entry.topic, reason, detail)
        self._finish(row)

    def _skip(self, row: Row, why: str) -> None:
        self.skipped[topic_label(row.entry.topic), why] += 1
        self._finish(row)

    def _finish(self, row: Row) -> None:
        del self._rows[row.entry.arrival]
        self._by_digest.pop(row.entry.digest, None)
        self._waiting[topic_label(row.entry.topic)] -= 1
        self._room.set()
        self._moved.set()

    # -- the cursor --------------------------------------------------------------------

    async def _write_for_ever(self) -> None:
        while True:
            await self._moved.wait()
            self._moved = trio.Event()
            cursor = self.cursor
            if cursor <= self._written:
                continue
            change: Change = Advance(CURSOR, cursor)
            if not self._is_written_down:
                change = Subscribe(Subscription(CURSOR, self._subjects.topics(), cursor))
            try:
                await self._write([change])
            except EnvironmentFault as error:
                self._failures.warning(
                    "what NATS has cannot be written down: after a restart it is published again",
                    {"reason": error.detail},
                )
                self._moved.set()
                await trio.sleep(RETRY_SECONDS)
            else:
                self._written = cursor
                self._is_written_down = True
                await trio.sleep(WRITE_SECONDS)


class _Carried(Collection[str]):
    """Topics of which something is stored and that have a subject, as they are now."""

    def __init__(self, archive: Archive, subjects: Subjects) -> None:
        self._archive = archive
        self._subjects = subjects

    def __iter__(self) -> Iterator[str]:
        return (topic for topic in self._archive.topics() if self._subjects.carries(topic))

    def __contains__(self, topic: object) -> bool:
        return any(topic == each for each in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _tell(message: SignedMessage, subject: str) -> None:
    """The lines that operators of WHOOSH look for."""
    what = {OPPORTUNITY_TOPIC: "opportunity", STATUS_TOPIC: "status update"}.get(message.topic)
    document = decode_payload(message.data).document
    if what is not None and document is not None:
        told = {"council_id": document.get("council_id"), "project": document.get("project_name"), "subject": subject}
        log.info(f"Published council {what}", extra={name: value for name, value in told.items() if value})
