"""Council counters under the names that WHOOSH's and CHORUS's operators chart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from p2pnode.node.metrics import series

MAX_LABELS = 100
"""Councils with series of their own; the one that was heard of longest ago makes room."""


class CouncilMetrics:
    """Broadcasts by council, and opportunities that this node took up."""

    def __init__(self) -> None:
        self._succeeded: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._recent: dict[str, None] = {}
        self._handled = 0

    def published(self, council_id: str) -> None:
        """A document about a council was handed to the mesh."""
        self._touch(council_id)
        self._succeeded[council_id] += 1

    def failed(self, council_id: str) -> None:
        """A document about a council could not be published."""
        self._touch(council_id)
        self._failed[council_id] += 1

    def handled(self) -> None:
        """An opportunity was read and evaluated."""
        self._handled += 1

    def metrics(self) -> Mapping[str, float]:
        """Counters by Prometheus name. Each council has both: a rate needs the zero."""
        rows = [("chorus_council_opportunity_handled_total", float(self._handled))]
        for council_id in self._recent:
            succeeded, failed = self._succeeded[council_id], self._failed[council_id]
            rows.append(series("whoosh_broadcast_success_total", succeeded, council_id=council_id))
            rows.append(series("whoosh_broadcast_error_total", failed, council_id=council_id))
        return dict(rows)

    def _touch(self, council_id: str) -> None:
        self._recent.pop(council_id, None)
        self._recent[council_id] = None
        while len(self._recent) > MAX_LABELS:
            oldest = next(iter(self._recent))
            del self._recent[oldest]
            self._succeeded.pop(oldest, None)
            self._failed.pop(oldest, None)
