"""An agent's message from its body to the mesh: check, number, sign, keep, send."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from p2pnode.core.backbeat import BACKBEAT_TOPIC, check_status_claim
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC, CouncilOpportunity, check_opportunity, repeated_roles
from p2pnode.core.message import (
    JSON_TOPICS,
    MAX_PAYLOAD_BYTES,
    SEQNO_BYTES,
    SignedMessage,
    Topic,
    format_message_id,
    parse_topic,
)
from p2pnode.core.metadata import MAX_HEADERS, MAX_HEADERS_BYTES, Metadata
from p2pnode.errors import (
    EnvironmentFault,
    Fault,
    InvalidMessage,
    InvalidRequest,
    PayloadTooLarge,
    TooBusy,
    Unavailable,
)
from p2pnode.node.archive import MAX_TOPICS, Archive
from p2pnode.node.roads import Roads
from p2pnode.node.seqno import SeqnoSource
from p2pnode.node.storing import Storing
from p2pnode.ports import Gossip, Published, Remember
from p2pnode.wire.payload import MEMBER, encode_envelope, encode_json_payload, parse_json_object
from p2pnode.wire.pubsub import seal_message

log = logging.getLogger(__name__)

MAX_KEY_CHARACTERS = 256
RESERVED_PREFIX = "p2pnode."
_KINDS = {OPPORTUNITY_TOPIC: "council opportunity", BACKBEAT_TOPIC: "BACKBEAT status claim"}


class TokenBucket:
    """Own messages admitted: `rate` a second, `burst` at once."""

    def __init__(self, rate_per_second: float, burst: int) -> None:
        self._rate = rate_per_second
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at: float | None = None

    def take(self, now: float) -> float:
        """0 when one was taken, else the seconds until there is one."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens > 1.0 - 1e-9:  # a wait of exactly what was told may fall short by a rounding error
            self._tokens = max(self._tokens - 1.0, 0.0)
            return 0.0
        return (1.0 - self._tokens) / self._rate


@dataclass(frozen=True, slots=True)
class Signer:
    """Our peer id in bytes, and our key's signature of some bytes."""

    origin: bytes
    sign: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class _Draft:
    topic: Topic
    body: bytes
    content_type: str
    headers: Mapping[str, str]
    document: Mapping[str, object] | None
    opportunity: CouncilOpportunity | None


class Publisher:
    """Takes messages from the agent: what it accepts is kept and handed to the mesh, what it cannot promise refused."""

    def __init__(
        self,
        gossip: Gossip,
        archive: Archive,
        seqnos: SeqnoSource,
        signer: Signer,
        bucket: TokenBucket,
        wall_ns: Callable[[], int],
        roads: Roads,
    ) -> None:
        self._roads = roads
        self._gossip = gossip
        self._archive = archive
        self._seqnos = seqnos
        self._signer = signer
        self._bucket = bucket
        self._wall_ns = wall_ns
        self._turn = trio.StrictFIFOLock()
        self._last_sent = trio.Event()  # of the message before: the next one waits for it
        self._last_sent.set()
        self._asked: dict[str, tuple[bytes, Published, Storing]] = {}
        """Idempotency keys of messages that are on their way to the disk."""
        self.draining = False
        self.published: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        content_type: str,
        headers: Mapping[str, str],
        idempotency_key: str | None,
        metered: bool = True,
    ) -> Published:
        """See `ports.Sidecar.publish`.

        Args:
            metered: counts against the agent's rate; False for what the node says by itself.
        """
        try:
            draft = _check(topic, body, content_type, headers, idempotency_key, self._wall_ns())
        except (InvalidRequest, PayloadTooLarge):
            self.refused["invalid"] += 1
            raise
        digest = _digest(topic, body, content_type, headers)
        async with self._turn:
            if idempotency_key is not None and (known := self._known(idempotency_key, digest)) is not None:
                first, storing = known
                message = None
            else:
                message, first, storing = await self._begin(draft, idempotency_key, digest, metered)
                before, self._last_sent = self._last_sent, trio.Event()
                sent = self._last_sent
        try:
            if storing is not None:
                with trio.CancelScope(shield=True):  # what is stored is sent, even if whoever asked has gone
                    if message is not None:
                        await before.wait()  # many are stored at once; out of order, others would look for a gap
                    await storing.wait()
                    if message is not None:
                        if self._roads.is_gossiped(message.id):
                            await self._gossip.publish(message)
                        self._roads.stored(message.id, message.topic)
        except EnvironmentFault:
            if message is not None:
                self.refused["storage"] += 1
                self._roads.not_stored(message.id)
            raise
        finally:
            if message is not None:
                sent.set()
                if idempotency_key is not None:
                    self._asked.pop(idempotency_key, None)
        if message is None:
            return Published(first.id, first.seqno, duplicate=True)
        self._tell(draft, first.id)
        return first

    def _known(self, key: str, digest: bytes) -> tuple[Published, Storing | None] | None:
        """The message that was published under an idempotency key; `Storing` while it is on its way to the disk.

        Raises:
            InvalidRequest: the key stands for another message.
        """
        found: tuple[Published, Storing | None]
        if key in self._asked:
            before, published, storing = self._asked[key]
            found = published, storing
        elif (remembered := self._archive.remembered.get(key)) is not None:
            before = remembered.digest
            number = int.from_bytes(remembered.id[-SEQNO_BYTES:], "big")
            found = Published(format_message_id(remembered.id), str(number)), None
        else:
            return None
        if before != digest:
            raise InvalidRequest(
                "the idempotency key was used for another message",
                [Fault("Idempotency-Key", "use a new key for a new message")],
            )
        return found

    async def _begin(
        self, draft: _Draft, key: str | None, digest: bytes, metered: bool
    ) -> tuple[SignedMessage, Published, Storing]:
        """Number, sign, and have it stored; our turn in the order of the topic ends here, not at the disk."""
        self._admit(draft.topic, metered)
        now = self._wall_ns()  # before the number, which must not be lower
        seqno = await self._seqnos.take()
        self._reach(draft.topic)  # once more: storing the ceiling takes its time
        metadata = Metadata(
            published_at_ns=now,
            expires_at_ns=draft.opportunity.expires_at_ns if draft.opportunity else 0,
            prev=self._archive.previous(draft.topic),
            headers=draft.headers,
        )
        if draft.document is not None:
            data = encode_json_payload(draft.body, draft.document, metadata)
        else:
            data = encode_envelope(draft.body, draft.content_type, metadata)
        message = seal_message(
            origin=self._signer.origin, seqno=seqno, topic=draft.topic, data=data, sign=self._signer.sign
        )
        remember = Remember(key, digest, message.id, now) if key is not None else None
        plan = self._roads.plan(draft.topic, draft.document)
        is_heard = plan.gossip == "always" and bool(self._gossip.topic_peers(draft.topic))
        storing = self._archive.begin(message, remember, ("gossip",) if is_heard else ())
        self._roads.begin(message.id, plan)
        published = Published(format_message_id(message.id), str(seqno))
        if key is not None:
            self._asked[key] = (digest, published, storing)
        return message, published, storing

    def _tell(self, draft: _Draft, message_id: str) -> None:
        self.published[draft.topic] += 1
        if draft.opportunity is not None:
            log.info(
                "Published council opportunity",
                extra={
                    "council_id": str(draft.opportunity.council_id),
                    "project": draft.opportunity.project_name,
                    "subject": draft.topic,
                    "id": message_id,
                },
            )

    def _admit(self, topic: str, metered: bool) -> None:
        self._reach(topic)
        if metered and (wait := self._bucket.take(trio.current_time())):
            self.refused["rate"] += 1
            raise TooBusy(
                "more messages than this node may publish (gossip.publish_per_second and gossip.publish_burst)",
                reason="rate",
                retry_after_seconds=wait,
            )

    def _reach(self, topic: str) -> None:
        try:
            if self.draining:
                raise Unavailable("this sidecar is stopping and takes no more messages", reason="stopping")
            try:
                self._gossip.admit(topic)
            except TooBusy:
                raise
            except Unavailable as error:
                if error.reason != "no-peers":  # it waits in the outbox for the first one that comes
                    raise
            if not self._archive.open(topic):
                raise TooBusy(f"this sidecar keeps {MAX_TOPICS} topics and takes no other", reason="topics")
        except Unavailable as error:
            self.refused[error.reason] += 1
            raise


def _check(
    topic: str, body: bytes, content_type: str, headers: Mapping[str, str], key: str | None, now_ns: int
) -> _Draft:
    """A draft of what may be published.

    Raises:
        PayloadTooLarge: over the limit.
        InvalidRequest: with every fault found.
    """
    if len(body) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(
            f"a payload of {len(body)} bytes is over the limit of {MAX_PAYLOAD_BYTES}",
            hint="publish a reference to it instead, or split it",
        )
    faults: list[Fault] = []
    name = Topic(topic)
    try:
        name = parse_topic(topic)
    except InvalidMessage as error:
        faults.append(Fault("topic", error.detail))
    if topic.startswith(RESERVED_PREFIX):
        faults.append(Fault("topic", f"names starting with {RESERVED_PREFIX} are p2pnode's own; choose another"))
    if key is not None and not 0 < len(key) <= MAX_KEY_CHARACTERS:
        faults.append(Fault("Idempotency-Key", f"must have 1 to {MAX_KEY_CHARACTERS} characters"))
    # As JSON writes them, since that is what must fit; 6 bytes around each are allowed for.
    size = len(json.dumps(dict(headers), ensure_ascii=False).encode()) - 6 * len(headers)
    if len(headers) > MAX_HEADERS or size > MAX_HEADERS_BYTES:
        faults.append(Fault("headers", f"at most {MAX_HEADERS} headers of {MAX_HEADERS_BYTES} bytes in all"))
    if len(content_type) > 256:
        faults.append(Fault("Content-Type", "must have at most 256 characters"))
    must_be_json = topic.startswith(JSON_TOPICS)
    document: Mapping[str, object] | None = None
    opportunity: CouncilOpportunity | None = None
    media_type = content_type.partition(";")[0].strip().lower()
    if must_be_json or media_type == "application/json" or media_type.endswith("+json"):
        try:
            document = parse_json_object(body)
        except ValueError as error:
            if must_be_json or not str(error).startswith("not a JSON object"):
                faults.append(Fault("body", f"{error}; a JSON object is needed"))
    if document is not None:
        if MEMBER in document:
            faults.append(Fault(MEMBER, "this member name is reserved for p2pnode's metadata; rename it"))
        if topic == OPPORTUNITY_TOPIC:
            checked = check_opportunity(document)
            if isinstance(checked, list):
                faults.extend(checked)
            else:
                opportunity = checked
                faults.extend(repeated_roles(checked))
                if opportunity.expires_at_ns and opportunity.expires_at_ns <= now_ns:
                    faults.append(Fault("formation_deadline", "lies in the past; nobody would act on it"))
        elif topic == BACKBEAT_TOPIC and isinstance(checked_claim := check_status_claim(document), list):
            faults.extend(checked_claim)
    if faults:
        what = _KINDS.get(topic, "message")
        raise InvalidRequest(f"the {what} cannot be published", faults)
    return _Draft(name, body, content_type, dict(headers), document, opportunity)


def _digest(topic: str, body: bytes, content_type: str, headers: Mapping[str, str]) -> bytes:
    """What must be the same when an idempotency key comes again."""
    parts = (topic.encode(), body, content_type.encode(), json.dumps(sorted(headers.items())).encode())
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.digest()
