"""What the client asks a sidecar, what an answer means, and when to ask again; no I/O."""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import quote

from p2pnode.errors import (
    CallerError,
    Conflict,
    Fault,
    Forbidden,
    InvalidRequest,
    NoSidecar,
    NotFound,
    P2PNodeError,
    PayloadTooLarge,
    StorageFull,
    TooBusy,
    Unavailable,
)

TIMEOUT_SECONDS: Final = 30.0
ATTEMPT_SECONDS: Final = 10.0
"""How long one attempt may take: far above a slow disk; the next one has the same idempotency key."""
FIRST_RETRY_SECONDS: Final = 0.05
LAST_RETRY_SECONDS: Final = 2.0

_OWN_MEMBERS = frozenset({"type", "title", "status", "detail", "instance", "hint", "reason", "errors"})
"""Of a problem document (RFC 9457); the others are facts."""
_TRANSIENT = frozenset({408, 500, 502, 503, 504})
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2

Payload = dict[str, Any] | bytes | str


class NotASidecar(NoSidecar):
    """Something answers there, but not as a sidecar would."""


@dataclass(frozen=True, slots=True)
class Published:
    """A message that the sidecar stored.

    Args:
        id: the message id, `<peer id>-<seqno>`.
        seqno: its number at this node.
        duplicate: the idempotency key had been used before; id and seqno are the first one's.
    """

    id: str
    seqno: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to make; the answer is `Answer`, or a NoSidecar when there was none."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise NotASidecar("the answer is no JSON", hint="is this a p2pnode sidecar?") from None


Result = TypeVar("Result")

Steps = Generator[Ask | float, Answer | NoSidecar | None, Result]
"""Yields requests and pauses in seconds, and is sent the answers."""

Call = Steps[Answer]


class Patience:
    """How long to wait before the next attempt, and when to give up.

    Args:
        seconds: after which the last error is raised; None: never, only what the caller did wrong is.
    """

    def __init__(self, seconds: float | None) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self._pause = FIRST_RETRY_SECONDS

    def left(self, most: float) -> float:
        """Seconds that an attempt may take."""
        return most if self.deadline is None else min(max(self.deadline - time.monotonic(), 0.001), most)

    def progressed(self) -> None:
        """It works: from now on for ever, and the next pause is short again."""
        self.deadline, self._pause = None, FIRST_RETRY_SECONDS

    def pause_after(self, error: P2PNodeError) -> float:
        """Seconds; raises `error` when another attempt is no use, or would come after the deadline."""
        passes = isinstance(error, Unavailable | NoSidecar) and not isinstance(error, NotASidecar)
        if isinstance(error, CallerError) or (self.deadline is not None and not passes):
            raise error
        # Half of it by chance, so that many agents do not come back to a restarted sidecar at one moment.
        seconds = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(self._pause * 2, LAST_RETRY_SECONDS)
        if isinstance(error, Unavailable):
            seconds = max(seconds, error.retry_after_seconds)
        if self.deadline is not None and time.monotonic() + seconds >= self.deadline:
            raise error
        return seconds


def call(
    method: str,
    path: str,
    patience: Patience,
    *,
    headers: Mapping[bytes, bytes] | None = None,
    body: bytes | None = None,
    good: Sequence[int] = (200,),
) -> Call:
    while True:
        answer = yield Ask(method, path, headers or {}, body, patience.left(ATTEMPT_SECONDS))
        if isinstance(answer, Answer) and answer.status in good:
            return answer
        error = refusal(answer) if isinstance(answer, Answer) else answer
        assert error is not None
        yield patience.pause_after(error)


def refusal(answer: Answer) -> P2PNodeError:
    """The error an answer stands for, by who erred; RFC 9457 gives the words."""
    try:
        problem = json.loads(answer.body)
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    status = answer.status
    detail = str(problem.get("detail") or problem.get("title") or f"the sidecar answered {status}")
    hint = str(problem.get("hint") or "")
    if status in (429, *_TRANSIENT):
        kind = TooBusy if status == 429 else Unavailable
        after = answer.headers.get("retry-after", "")
        seconds = float(after) if after.isascii() and after.isdigit() and len(after) < 6 else 0.0
        return kind(detail, reason=str(problem.get("reason") or status), retry_after_seconds=seconds, hint=hint)
    if status == 507:
        return StorageFull(detail, hint=hint)
    if status == 401:
        return CallerError(detail, hint="give the sidecar's token, or its file in P2PNODE_API_TOKEN_FILE")
    if status == 403:
        return Forbidden(detail, hint=hint)
    if status == 404:
        return NotFound(detail, hint=hint)
    if status == 409:
        facts = {name: value for name, value in problem.items() if name not in _OWN_MEMBERS}
        return Conflict(detail, reason=str(problem.get("reason") or "conflict"), facts=facts, hint=hint)
    if status == 413:
        return PayloadTooLarge(detail, hint=hint)
    if not 400 <= status < 500:
        return NotASidecar(f"{detail}, which no sidecar would")
    listed = problem.get("errors")
    faults = [
        Fault(str(error.get("field") or "-"), str(error.get("problem") or "-"))
        for error in (listed if isinstance(listed, list) else [])
        if isinstance(error, dict)
    ]
    return InvalidRequest(detail, faults, hint=hint)


def publish(
    topic: str,
    payload: Payload,
    headers: Mapping[str, str],
    content_type: str | None,
    key: str | None,
    timeout: float,
) -> Steps[Published]:
    body, guessed = _encoded(payload)
    # One key for all attempts: an answer that was lost on the way makes no second message.
    fields = {"Content-Type": content_type or guessed, "Idempotency-Key": key or uuid.uuid4().hex}
    faults = [*_header_faults(fields, ascii_only=True), *_header_faults(headers)]
    if faults:
        raise InvalidRequest("the message cannot be published", faults)
    encoded = {name.encode(): value.encode() for name, value in fields.items()}
    encoded |= {f"P2P-{name}".encode(): value.encode("utf-8", "replace") for name, value in headers.items()}
    path = f"/api/v1/topics/{quote(topic, safe='')}/messages"
    document = (yield from call("POST", path, Patience(timeout), headers=encoded, body=body, good=(202,))).json()
    try:
        return Published(str(document["id"]), int(document["seqno"]), bool(document.get("duplicate")))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise NotASidecar("the sidecar's answer has no id and seqno", hint="is it of the same version?") from None


def send_json(
    method: str, path: str, content: Mapping[str, Any], timeout: float, *, key: str | None = None
) -> Steps[dict[str, Any]]:
    """Send a JSON object; the object that answers.

    Args:
        key: the idempotency key of all attempts; None: there is none.
    """
    fields = {"Content-Type": "application/json"} | ({} if key is None else {"Idempotency-Key": key})
    if faults := _header_faults(fields, ascii_only=True):
        raise InvalidRequest("the request cannot be sent", faults)
    try:
        body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest("the request cannot be sent", [Fault("body", str(error))]) from error
    headers = {name.encode(): value.encode() for name, value in fields.items()}
    answer = yield from call(method, path, Patience(timeout), headers=headers, body=body, good=(200, 202))
    return document(answer.json())


def checked(fields: Mapping[str, Any], known: type) -> dict[str, Any]:
    """Raises TypeError for a keyword that no request has: members unknown to the sidecar may be left alone there."""
    for name in fields:
        if name not in known.__annotations__:
            raise TypeError(f"{name!r} is none of the keywords: {', '.join(known.__annotations__)}")
    return dict(fields)


def _header_faults(fields: Mapping[str, str], *, ascii_only: bool = False) -> list[Fault]:
    return [
        Fault(name, f"{value!r} cannot be sent: an HTTP header has printable text without blanks around it")
        for name, value in fields.items()
        if not (_TOKEN.fullmatch(name) and value.isprintable() and value == value.strip())
        or (ascii_only and not value.isascii())
    ]


def _encoded(payload: Payload) -> tuple[bytes, str]:
    if isinstance(payload, bytes):
        return payload, "application/octet-stream"
    try:
        if isinstance(payload, str):
            return payload.encode(), "text/plain; charset=utf-8"
        # ASCII: a lone surrogate has a JSON escape and no UTF-8 form.
        return json.dumps(payload, allow_nan=False, separators=(",", ":")).encode(), "application/json"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest("the message cannot be published", [Fault("payload", str(error))]) from error


def query(path: str, timeout: float, good: Sequence[int] = (200,)) -> Steps[Any]:
    """The JSON at `path`."""
    return (yield from call("GET", path, Patience(timeout), good=good)).json()


def document(found: Any) -> dict[str, Any]:
    """Raises NotASidecar when it is no object."""
    if not isinstance(found, dict):
        raise NotASidecar("the sidecar's answer is no JSON object", hint="is it of the same version?")
    return found


def listing(found: Any) -> list[dict[str, Any]]:
    """Raises NotASidecar when it is no list of objects."""
    if not isinstance(found, list):
        raise NotASidecar("the sidecar's answer is no list", hint="is it of the same version?")
    return [document(each) for each in found]
