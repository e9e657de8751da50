"""From NATS to the mesh: signed messages as they are, a plain client's signed with the import key.

What JetStream keeps is acknowledged once it is stored here, or refused for good. The core subscription beside it brings
what no stream keeps. It is not believed of the rest: a server passes on what its stream then refuses.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import trio

from p2pnode.core.message import SignedMessage
from p2pnode.core.metadata import FUTURE_ALLOWANCE_SECONDS
from p2pnode.core.peerid import PeerId
from p2pnode.core.subjects import Subjects
from p2pnode.core.sync import message_digest
from p2pnode.errors import EnvironmentFault, InvalidMessage, Unavailable
from p2pnode.logs import Throttled
from p2pnode.node.bridge.refusals import Refusals
from p2pnode.node.bridge.topics import Topics
from p2pnode.node.intake import FOR_GOOD, Intake
from p2pnode.ports.roads import Broker, NatsMessage
from p2pnode.wire.nats import decode_nats, import_plain, import_seqno
from p2pnode.wire.payload import decode_payload, format_time

log = logging.getLogger(__name__)

MAX_QUEUED = 1024
"""Messages of the core subscription that wait for a worker; what is more is dropped, and counted."""

WORKERS = 16
LOOK_SECONDS = 0.1
UNDECIDED_SECONDS = 10.0
"""How long a plain message waits to know whether a stream keeps it."""

RETRY_SECONDS = 1.0
MANY_TRIES = 10
LONG_SECONDS = 300.0
"""After so many tries, or so long, it is said loudly that a message cannot be taken. What is dated so far ahead that it
could not be taken by then is refused at once."""

TROUBLE_SECONDS = 120.0
"""A message that was not given again for so long is no trouble any more: it went to another bridge of the same durable,
or the stream dropped it."""

MAX_TROUBLED = 1024
"""Messages whose tries are counted; the oldest is forgotten, and counted anew."""


@dataclass(frozen=True, slots=True)
class ImportKey:
    """What signs the messages of plain NATS clients.

    Args:
        peer_id: of the key; `origin` is the same in bytes.
        sign: its signature of some bytes.
        is_shared: it was configured, so other bridges may have it too.
    """

    peer_id: PeerId
    origin: bytes
    sign: Callable[[bytes], bytes]
    is_shared: bool


@dataclass(slots=True)
class Tally:
    """What became of the messages under one root, as `Subjects.roots` lists them.

    Args:
        left: plain ones that another bridge imports.
        dropped: of the core subscription, which found no room or could not be stored.
    """

    signed: int = 0
    plain: int = 0
    duplicates: int = 0
    left: int = 0
    dropped: int = 0
    received: int = 0


@dataclass(slots=True)
class _Trouble:
    since: float
    tried_at: float
    tries: int = 0
    told_at: float = -math.inf


class Importer:
    """Made, told what to read, then run.

    Args:
        durable: the consumers' name, shared with other bridges; empty: they are this bridge's alone.
        imports_plain: do we sign for plain clients? Asked with: does JetStream keep the message.
        saw: told the fingerprint of each signed message that is on NATS.

    Attributes:
        tallies: by root.
        latency_seconds, latency_count: from a message's time at the server (or its signed time) to its storing here.
    """

    def __init__(
        self,
        broker: Broker,
        intake: Intake,
        subjects: Subjects,
        topics: Topics,
        key: ImportKey,
        durable: str,
        refusals: Refusals,
        *,
        imports_plain: Callable[[bool], bool],
        saw: Callable[[bytes], None],
        wall_ns: Callable[[], int],
        rng: Random,
    ) -> None:
        self._broker = broker
        self._intake = intake
        self._subjects = subjects
        self._topics = topics
        self._key = key
        self._refusals = refusals
        self._imports_plain = imports_plain
        self._saw = saw
        self._wall_ns = wall_ns
        self._rng = rng
        self._number = rng.getrandbits(22)
        self._troubled: OrderedDict[tuple[str, int], _Trouble] = OrderedDict()
        self._send, self._queue = trio.open_memory_channel[tuple[NatsMessage, bool | None]](MAX_QUEUED)
        self._failures = Throttled(log)
        self.tallies = {root: Tally() for root in subjects.roots()}
        self.latency_seconds = 0.0
        self.latency_count = 0
        self._durable = durable

    def read(self, own: str) -> None:
        """Say to the broker what to read there, before it runs.

        Args:
            own: a consumers' name that nobody else has, and this bridge itself had only with the store that it has now.
                Where the durable is shared, who came back reads under it what the others took, so as not to publish
                that again.
        """
        self._broker.watch(self._subjects.watched(), self._heard)
        if self._durable:
            self._broker.consume(own, self._subjects.roots(), self._note)
        self._broker.consume(self._durable or own, self._subjects.roots(), self._take)

    @property
    def troubled(self) -> int:
        """Messages that JetStream gives again and again because they cannot be stored."""
        now = trio.current_time()
        return sum(now - each.tried_at < TROUBLE_SECONDS for each in self._troubled.values())

    async def run(self) -> None:
        """Import what no stream keeps, until cancelled; what one keeps comes by the broker's own task."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)

    # -- what JetStream keeps ----------------------------------------------------------

    async def _take(self, raw: NatsMessage) -> None:
        """Returns once it is stored or refused for good.

        Raises:
            EnvironmentFault: not now; it is to be given again.
        """
        place = (raw.subject, raw.stream_seq)
        try:
            await self._import(raw)
        except EnvironmentFault as error:
            self._note_trouble(place, error)
            raise
        self._troubled.pop(place, None)

    async def _note(self, raw: NatsMessage) -> None:
        """NATS holds it; that is all."""
        self._notice(raw)

    def _note_trouble(self, place: tuple[str, int], error: EnvironmentFault) -> None:
        now = trio.current_time()
        trouble = self._troubled.setdefault(place, _Trouble(now, now))
        trouble.tries += 1
        trouble.tried_at = now
        if len(self._troubled) > MAX_TROUBLED:
            self._troubled.popitem(last=False)
        is_old = trouble.tries >= MANY_TRIES or now - trouble.since >= LONG_SECONDS
        if is_old and now - trouble.told_at >= LONG_SECONDS:
            trouble.told_at = now
            subject, seq = place
            log.error(
                "a message of NATS cannot be stored; it is tried again and again",
                extra={"subject": subject, "stream_seq": seq, "tries": trouble.tries, "reason": error.detail},
            )

    async def _import(self, raw: NatsMessage) -> None:
        """
        Raises:
            EnvironmentFault: not now.
        """
        root = self._root_of(raw.subject)
        if root is None:
            return  # nothing of ours: a stream may hold more than was asked for
        tally = self.tallies[root]
        tally.received += 1
        is_plain = False
        try:
            message = decode_nats(raw.headers, raw.body)
            if message is None:
                is_plain = True
                if not self._imports_plain(raw.stream_seq > 0):
                    tally.left += 1
                    return
                message = self._sign(raw)
            else:
                self._check(raw, message)
                self._saw(message_digest(message.raw))
        except InvalidMessage as error:
            self._refuse(raw, error.reason, error.detail)
            return
        if not await self._topics.ensure(message.topic):
            self._refuse(raw, "topics", f"there is no room for one more topic, {message.topic}")
            return
        why = await self._intake.take(message, "nats")
        if why is None:
            tally.plain += is_plain
            tally.signed += not is_plain
            self._note_latency(raw, message)
        elif why == "held":
            tally.duplicates += 1
        elif why in FOR_GOOD:
            self._refuse(raw, why, f"{why}: {_WHY.get(why, 'no node takes it')}")
        elif why == "future" and (time := self._far_ahead(message)):
            self._refuse(raw, why, f"it is dated {time}; the clock of its sender, or ours, is wrong")
        else:
            raise Unavailable(f"not stored: {why}", reason=why)

    def _far_ahead(self, message: SignedMessage) -> str:
        """The signed time of a message that will not be acceptable soon either; else empty."""
        metadata = decode_payload(message.data).metadata
        published_ns = metadata.published_at_ns if metadata is not None else 0
        patience = FUTURE_ALLOWANCE_SECONDS + LONG_SECONDS
        return format_time(published_ns) if published_ns > self._wall_ns() + patience * 1e9 else ""

    def _sign(self, raw: NatsMessage) -> SignedMessage:
        stamped_ns, seq = raw.stamped_ns, raw.stream_seq
        if not seq:
            self._number += 1
            stamped_ns, seq = self._wall_ns(), self._number
        return import_plain(
            raw.subject,
            raw.headers,
            raw.body,
            seqno=import_seqno(stamped_ns, seq),
            stamped_ns=stamped_ns,
            origin=self._key.origin,
            sign=self._key.sign,
            subjects=self._subjects,
        )

    def _check(self, raw: NatsMessage, message: SignedMessage) -> None:
        """Does the subject stand for the topic that was signed? What lies elsewhere was not published by a node.

        Raises:
            InvalidMessage: reason `topic`.
        """
        known = self._subjects.topic_of(raw.subject)
        if known is None or known[0] != message.topic:
            raise InvalidMessage("topic", f"a signed message of topic {message.topic} does not belong to this subject")

    def _refuse(self, raw: NatsMessage, reason: str, detail: str) -> None:
        root = self._root_of(raw.subject) or ""
        self._refusals.note("import", root, raw.subject, reason, detail)

    def _note_latency(self, raw: NatsMessage, message: SignedMessage) -> None:
        metadata = decode_payload(message.data).metadata
        since_ns = raw.stamped_ns or (metadata.published_at_ns if metadata is not None else 0)
        if since_ns:
            self.latency_seconds += max(self._wall_ns() - since_ns, 0) / 1e9
            self.latency_count += 1

    # -- the core subscription ---------------------------------------------------------

    def _heard(self, raw: NatsMessage) -> None:
        """Something was published just now: note what it is, and import it unless a stream keeps it."""
        root = self._root_of(raw.subject)
        if root is None:
            return
        is_kept = self._is_kept(root)
        if is_kept is False:
            self._notice(raw)  # a stream may refuse what its server passed on: of what one keeps, its consumer tells
        if is_kept:
            return
        try:
            self._send.send_nowait((raw, is_kept))
        except trio.WouldBlock:
            self.tallies[root].dropped += 1

    def _notice(self, raw: NatsMessage) -> None:
        try:
            message = decode_nats(raw.headers, raw.body)
            if message is not None:
                self._check(raw, message)
                self._saw(message_digest(message.raw))
        except InvalidMessage:
            return  # refused, counted and told of where it is imported

    async def _work(self) -> None:
        async for raw, is_kept in self._queue:
            root = self._root_of(raw.subject)
            if root is None or (is_kept is None and await self._will_be_kept(root)):
                continue
            try:
                await self._import_at_last(raw, root)
            except Exception:  # one message must not stop the others
                self._failures.exception("a message of NATS could not be imported")
                self._refuse(raw, "unexpected", "an error of our own; the log has it")

    async def _import_at_last(self, raw: NatsMessage, root: str) -> None:
        """Nobody gives it again: tried for as long as it is of use to gossip."""
        for _ in range(MANY_TRIES):
            try:
                await self._import(raw)
            except EnvironmentFault as error:
                self._failures.warning("a message of NATS cannot be stored, trying on", {"reason": error.detail})
                await trio.sleep(RETRY_SECONDS * self._rng.uniform(0.75, 1.25))
            else:
                return
        self.tallies[root].dropped += 1

    async def _will_be_kept(self, root: str) -> bool:
        """Wait until it is known whether a stream keeps it."""
        since = trio.current_time()
        while (known := self._is_kept(root)) is None:
            if trio.current_time() - since >= UNDECIDED_SECONDS:
                state = self._broker.state()
                return state.jetstream is None or (state.jetstream and state.code != "stream")
            await trio.sleep(LOOK_SECONDS)
        return known

    def _is_kept(self, root: str) -> bool | None:
        """Does a stream keep what is under a root, and its consumer give it to us? None: not known yet."""
        state = self._broker.state()
        if not state.connected or state.jetstream is None:
            return None
        if not state.jetstream:
            return False
        gave = any(
            each.subject == root and (each.caught_up or each.pending or each.unacknowledged)
            for each in self._broker.consumers()
        )
        return True if gave else None

    def _root_of(self, subject: str) -> str | None:
        return root_of(subject, tuple(self.tallies))


_WHY = {
    "signature": "it is not signed by the peer it names",
    "opportunity": "it is no council opportunity",
    "topic": "its topic is none that is imported",
    "members": "member records do not travel this way",
}


def root_of(subject: str, roots: Sequence[str]) -> str | None:
    """Which of the roots holds a subject; None: none of them."""
    for root in roots:
        if subject == root or (root.endswith(">") and subject.startswith(root[:-1])):
            return root
    return None
