"""One event stream: what to ask for, and which of the events that come are new; no I/O."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlencode

from p2pnode.client.asking import Answer, Call, NotASidecar, Patience, call, refusal
from p2pnode.errors import CallerError, InvalidRequest, P2PNodeError, Unavailable
from p2pnode.local.sse import MAX_EVENT_BYTES, Event, MalformedStream, events

logger = logging.getLogger(__name__)

REMEMBERED_IDS: Final = 10_000
"""Messages of a subscription that are not given out again in this process, the latest ones."""

_END_OF_EVENT = re.compile(rb"\r?\n\r?\n|\r\r")

Acknowledged = TypeVar("Acknowledged", covariant=True)


@dataclass(frozen=True, slots=True)
class Message(Generic[Acknowledged]):
    """A received message.

    Args:
        id: the message id; one message has one id wherever it arrives.
        topic: its topic.
        origin: peer id of the node that signed it.
        origin_name: that node's name; empty when it is not known.
        payload: a dict (or another JSON value) when it is JSON, else bytes.
        content_type: what the publisher called it.
        headers: the message's own.
        published_at: signed time, RFC 3339 with nanoseconds; None without one.
        late: it comes after a message of the same origin that followed it.
        document: all that the sidecar says of it.
    """

    id: str
    topic: str
    origin: str
    origin_name: str
    payload: Any
    content_type: str
    headers: Mapping[str, str]
    published_at: str | None
    late: bool
    document: Mapping[str, Any] = field(repr=False)
    _ack: Callable[[str], Acknowledged] = field(repr=False, compare=False)
    _nack: Callable[[str, str], Acknowledged] = field(repr=False, compare=False)

    def ack(self) -> Acknowledged:
        """Everything up to this message was handled. Waits while the sidecar is away; to be awaited in `AsyncClient`.

        Raises:
            CallerError: the subscription has no name, or the sidecar refused.
        """
        return self._ack(self.id)

    def nack(self, reason: str) -> Acknowledged:
        """Give this message up: it becomes a dead letter (`p2pnode deliveries`), and nothing waits for it any more.

        Raises as `ack`.
        """
        return self._nack(self.id, reason)


class Feed(ABC):
    """One event stream, and how it goes on after it broke.

    Args:
        what: is followed, for the log.
        timeout: seconds for the first connection to come about.
    """

    def __init__(self, what: str, timeout: float) -> None:
        self.what = what
        self.patience = Patience(timeout)
        self._pending = bytearray()
        self._searched = 0
        self._told = False

    @abstractmethod
    def path(self) -> str:
        """Where to read on; what was left of an event in the stream before is forgotten."""

    @abstractmethod
    def feed(self, chunk: bytes) -> tuple[list[dict[str, Any]], list[Call]]:
        """New documents, and what the sidecar is to be told.

        Raises:
            NoSidecar: what comes is no event stream.
            CallerError: another reader took over.
        """

    def headers(self) -> dict[bytes, bytes]:
        return {b"Accept": b"text/event-stream"}

    def refused(self, answer: Answer) -> P2PNodeError:
        """The error of an answer that is no event stream."""
        return NotASidecar("what answers does not send events") if answer.status == 200 else refusal(answer)

    def opened(self) -> None:
        """The stream stands: from now on it is waited for, for ever, when it breaks."""
        self.patience.deadline = None

    def broke(self, error: P2PNodeError) -> float:
        """Seconds until the next attempt; raises `error` when there is to be none."""
        pause = self.patience.pause_after(error)
        logger.log(logging.DEBUG if self._told else logging.WARNING, "%s: %s; reconnecting", self.what, error.detail)
        self._told = True
        return pause

    def _forget_pending(self) -> None:
        self._pending.clear()
        self._searched = 0

    def _whole(self, chunk: bytes) -> bytes:
        """The bytes up to the end of the last event that is complete; none when there is no such."""
        self._pending += chunk
        if len(self._pending) - len(chunk) > MAX_EVENT_BYTES:
            raise NotASidecar(f"an event of more than {MAX_EVENT_BYTES} bytes")
        end = 0
        for match in _END_OF_EVENT.finditer(self._pending, self._searched):
            end = match.end()
        self._searched = max(len(self._pending) - end - 3, 0)
        whole = bytes(self._pending[:end])
        del self._pending[:end]
        return whole

    def _progressed(self) -> None:
        self.patience.progressed()
        self._told = False


class Following(Feed):
    """One subscription: what to ask for next, and which of the events that come are new messages."""

    def __init__(self, topic: str, name: str | None, start: str, timeout: float) -> None:
        super().__init__(topic, timeout)
        self.topic, self.name, self.start = topic, name, start
        self._last_id = ""
        # By id: has it been acknowledged?
        self._given: dict[str, bool] = {}

    def path(self) -> str:
        self._forget_pending()
        asked = {"subscription": self.name} if self.name else {}
        if self.name or not self._last_id:
            asked["from"] = self.start
        return f"/api/v1/topics/{quote(self.topic, safe='')}/events?{urlencode(asked)}"

    def headers(self) -> dict[bytes, bytes]:
        headers = super().headers()
        if self._last_id and not self.name:
            headers[b"Last-Event-ID"] = self._last_id.encode()
        return headers

    def refused(self, answer: Answer) -> P2PNodeError:
        error = super().refused(answer)
        if self._last_id and not self.name and isinstance(error, InvalidRequest):
            # It no longer has the message we stopped at: from the oldest it has, without those given already.
            self._last_id, self.start = "", "start"
            return Unavailable(error.detail, retry_after_seconds=0)
        return error

    def feed(self, chunk: bytes) -> tuple[list[dict[str, Any]], list[Call]]:
        """Documents of new messages, and acknowledgements of those that came again although they had one."""
        new, again = list[dict[str, Any]](), list[str]()
        before = self._last_id
        whole = self._whole(chunk)
        try:
            for event in events([whole]):
                self._take(event, new, again)
        except (MalformedStream, CallerError) as error:
            # What came with it was not given out: it has to come again.
            self._last_id = before
            for document in new:
                self._given.pop(document["id"], None)
            raise (NotASidecar(str(error)) if isinstance(error, MalformedStream) else error) from None
        return new, [self.acknowledge(message_id) for message_id in again]

    def _take(self, event: Event, new: list[dict[str, Any]], again: list[str]) -> None:
        self._progressed()
        if event.kind == "replaced":
            raise CallerError(
                f"another reader took over subscription {self.name}",
                hint="one reader at a time: give each a name of its own, or end one",
            )
        if event.kind == "lost":
            logger.warning("messages on %s were dropped before they were read: %s", self.topic, event.data[:200])
        if event.kind != "message":
            return
        try:
            document = json.loads(event.data)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or not isinstance(document.get("id"), str):
            logger.warning("an event on %s is no message and is skipped: %.200s", self.topic, event.data)
            return
        self._last_id = event.id or document["id"]
        if document["id"] not in self._given:
            new.append(document)
            self._given[document["id"]] = False
            if len(self._given) > REMEMBERED_IDS:
                del self._given[next(iter(self._given))]
        elif self._given[document["id"]]:
            again.append(document["id"])

    def message(
        self,
        document: dict[str, Any],
        ack: Callable[[str], Acknowledged],
        nack: Callable[[str, str], Acknowledged],
    ) -> Message[Acknowledged]:
        """The message of a document."""
        payload = document.get("payload")
        if document.get("encoding") == "base64":
            try:
                payload = base64.b64decode(str(payload), validate=True)
            except binascii.Error:
                logger.warning("the payload of %s is no base64 and is left as it is", document["id"])
        headers = document.get("headers")
        return Message(
            id=document["id"],
            topic=str(document.get("topic") or self.topic),
            origin=str(document.get("origin") or ""),
            origin_name=str(document.get("origin_name") or ""),
            payload=payload,
            content_type=str(document.get("content_type") or ""),
            headers=headers if isinstance(headers, dict) else {},
            published_at=document.get("published_at"),
            late=bool(document.get("late")),
            document=document,
            _ack=ack,
            _nack=nack,
        )

    def acknowledge(self, message_id: str) -> Call:
        """Tells the sidecar that everything up to this message was handled; asks until it takes it."""
        answer = yield from self._tell("ack", {"id": message_id})
        if message_id in self._given:
            self._given[message_id] = True
        return answer

    def refuse(self, message_id: str, reason: str) -> Call:
        """Gives one message up; should an operator have it tried again, it is given out again."""
        answer = yield from self._tell("nack", {"id": message_id, "reason": reason})
        self._given.pop(message_id, None)
        return answer

    def _tell(self, verb: str, what: Mapping[str, str]) -> Call:
        if not self.name:
            raise CallerError("only a subscription with a name keeps its place", hint="subscribe(topic, name=…)")
        return call(
            "POST",
            f"/api/v1/subscriptions/{quote(self.name, safe='')}/{verb}",
            Patience(None),
            headers={b"Content-Type": b"application/json"},
            body=json.dumps(what).encode(),
            # 422: it fell out of what the sidecar keeps before it was acknowledged; the next one covers it.
            good=(200, 202, 204, 422),
        )
