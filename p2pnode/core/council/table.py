"""Every council that a node knows, fed with the documents of their topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

from p2pnode.core.council.council import Council, Stamp
from p2pnode.core.council.documents import CLAIMS_TOPIC, STATUS_TOPIC, Status, check_claim, check_status
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC, check_opportunity
from p2pnode.core.metadata import MAX_TIME_NS
from p2pnode.core.peerid import PeerId

MAX_COUNCILS = 2000
"""At the bound the oldest makes room of which only claims or reports are known, else of those that ended, else of
those that nobody brought from forming to anything for long. When there is none, a new one is not taken."""

LAPSED_NS = 24 * 3600 * 10**9
"""So long after its deadline a council that still forms makes room for a new one."""

TOPICS = (OPPORTUNITY_TOPIC, CLAIMS_TOPIC, STATUS_TOPIC)


class Councils:
    """
    Args:
        is_trusted: does an origin's word on a topic count as an orchestrator's?

    Attributes:
        refused: documents that changed nothing because of what they are, by reason: `opportunity`, `claim`, `status`
            (no such document), `untrusted`, `full`.
        dropped: how many councils made room for new ones.
    """

    def __init__(self, is_trusted: Callable[[PeerId, str], bool]) -> None:
        self._is_trusted = is_trusted
        self._councils: dict[str, Council] = {}
        self.refused: Counter[str] = Counter()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._councils)

    def __iter__(self) -> Iterator[Council]:
        """In order of their first document here."""
        return iter(self._councils.values())

    def get(self, council_id: str) -> Council | None:
        return self._councils.get(council_id)

    def is_full(self, now_ns: int = 0) -> bool:
        """Is there no room for one more? Without a time, none is made by what lapsed."""
        return len(self._councils) >= MAX_COUNCILS and self._victim(now_ns) is None

    def take(self, topic: str, document: Mapping[str, object], stamp: Stamp) -> Council | None:
        """The council that a document changed; None when it changed none, for whatever reason."""
        if topic == OPPORTUNITY_TOPIC:
            return self._take_opportunity(document, stamp)
        if topic == CLAIMS_TOPIC:
            return self._take_claim(document, stamp)
        if topic == STATUS_TOPIC:
            return self._take_status(document, stamp)
        return None

    def _take_opportunity(self, document: Mapping[str, object], stamp: Stamp) -> Council | None:
        opportunity = check_opportunity(document)
        if isinstance(opportunity, list):
            self.refused["opportunity"] += 1
            return None
        if not self._is_trusted(stamp.peer, OPPORTUNITY_TOPIC):
            self.refused["untrusted"] += 1
            return None
        council = self._council(str(opportunity.council_id), stamp.at_ns)
        return council if council is not None and council.take_opportunity(opportunity, stamp) else None

    def _take_claim(self, document: Mapping[str, object], stamp: Stamp) -> Council | None:
        claim = check_claim(document)
        if isinstance(claim, list):
            self.refused["claim"] += 1
            return None
        (claim.model_extra or {}).clear()  # of anybody, and kept: nothing that we do not know
        council = self._council(str(claim.council_id), stamp.at_ns)
        return council if council is not None and council.take_claim(claim, stamp) else None

    def _take_status(self, document: Mapping[str, object], stamp: Stamp) -> Council | None:
        update = check_status(document)
        if isinstance(update, list):
            self.refused["status"] += 1
            return None
        trusted = self._is_trusted(stamp.peer, STATUS_TOPIC)
        if update.is_decision and not trusted:
            self.refused["untrusted"] += 1
            return None
        (update.model_extra or {}).clear()
        council = self._council(str(update.council_id), stamp.at_ns)
        if council is None:
            return None
        if update.is_decision:
            changed = council.take_decision(update, stamp)
        else:
            changed = council.take_report(update, stamp, trusted=trusted)
        return council if changed else None

    def _council(self, council_id: str, at_ns: int) -> Council | None:
        """The council, made when it is new: a claim may come before the opportunity that it answers."""
        council = self._councils.get(council_id)
        if council is None:
            if len(self._councils) >= MAX_COUNCILS:
                if (victim := self._victim(at_ns)) is None:
                    self.refused["full"] += 1
                    return None
                del self._councils[victim.id]
                self.dropped += 1
            council = self._councils[council_id] = Council(council_id)
        return council

    def _victim(self, at_ns: int) -> Council | None:
        """Who makes room for a document of that signed time."""
        unknown = (each for each in self if each.authority is None)
        ended = (each for each in self if each.has_ended)
        lapsed = (
            each
            for each in self
            if each.status is Status.FORMING and 0 < each.deadline_ns < at_ns - LAPSED_NS and at_ns < MAX_TIME_NS
        )
        return next(chain(unknown, ended, lapsed), None)
