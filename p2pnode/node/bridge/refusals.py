"""What a bridge passed over for good: counted, logged, and the last ones listed with what is wrong."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

from p2pnode.logs import Throttled
from p2pnode.ports import JsonObject
from p2pnode.wire.payload import format_time

log = logging.getLogger(__name__)

Way = Literal["export", "import", "members"]

MAX_LISTED = 20
_MAX_SUBJECT = 200
_MAX_DETAIL = 500
_PLAIN_ENDS = frozenset({"expired", "horizon"})
"""Too late is not wrong: counted only."""


class Refusals:
    """
    Attributes:
        counted: by way, subject (or topic) as metrics name it, and reason, all of a fixed set of words.
    """

    def __init__(self, wall_ns: Callable[[], int]) -> None:
        self._wall_ns = wall_ns
        self._last: deque[JsonObject] = deque(maxlen=MAX_LISTED)
        self._log = Throttled(log)
        self.counted: Counter[tuple[Way, str, str]] = Counter()

    def note(self, way: Way, label: str, subject: str, reason: str, detail: str) -> None:
        """
        Args:
            label: the subject, or of an export the topic, as metrics name it.
            subject: where it was, or was to be, published.
            reason: a short fixed word.
            detail: what is wrong.
        """
        self.counted[way, label, reason] += 1
        if reason in _PLAIN_ENDS:
            return
        subject, detail = subject[:_MAX_SUBJECT], detail[:_MAX_DETAIL]
        self._last.appendleft(
            {"subject": subject, "reason": reason, "detail": detail, "at": format_time(self._wall_ns())}
        )
        words = {"export": "not published to NATS", "import": "not imported from NATS", "members": "a roll was refused"}
        self._log.warning(words[way], {"subject": subject, "reason": reason, "detail": detail})

    def last(self) -> list[JsonObject]:
        """The newest first."""
        return list(self._last)

    def of(self, way: Way, label: str) -> int:
        return sum(count for (of, at, _), count in self.counted.items() if (of, at) == (way, label))
