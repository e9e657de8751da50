"""Whose word reaches the agent: with `trust.orchestrators`, only theirs about which councils form and who decides.

Everything is stored and passed on all the same, and listed on demand: whoever forwarded it did nothing wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from p2pnode.core.council.documents import STATUS_TOPIC
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.message import SignedMessage
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.wire.payload import decode_payload, parse_json


class Trust:
    """
    Args:
        orchestrators: who is trusted to announce and to decide; empty: anyone.
        bridges: import keys of bridges, whose word counts as theirs on `bridged_topics`.

    Attributes:
        passed_over: how often a message was not handed to the agent; counted for each reader.
    """

    def __init__(
        self,
        orchestrators: Collection[PeerId] = (),
        bridges: Collection[PeerId] = (),
        bridged_topics: Collection[str] = (),
    ) -> None:
        self._orchestrators = frozenset(orchestrators)
        self._bridges = frozenset(bridges)
        self._bridged_topics = frozenset(bridged_topics)
        self.passed_over = 0

    def is_orchestrator(self, peer: PeerId, topic: str) -> bool:
        """Does a peer's word on a topic count as an orchestrator's?"""
        if not self._orchestrators or peer in self._orchestrators:
            return True
        return peer in self._bridges and topic in self._bridged_topics

    def is_trusted(self, message: SignedMessage) -> bool:
        """May the origin say this? Opportunities and decisions are an orchestrator's, all else is anybody's."""
        if not self._orchestrators or message.topic not in (OPPORTUNITY_TOPIC, STATUS_TOPIC):
            return True
        if self.is_orchestrator(peer_id_text(message.origin), message.topic):
            return True
        return message.topic == STATUS_TOPIC and not _is_decision(message.data)

    def hands_over(self, message: SignedMessage) -> bool:
        """`is_trusted`, asked before a message goes to the agent: refusals are counted."""
        if self.is_trusted(message):
            return True
        self.passed_over += 1
        return False

    def metrics(self) -> Mapping[str, float]:
        return {"p2pnode_deliveries_untrusted_total": float(self.passed_over)}


def _is_decision(data: bytes) -> bool:
    """Would some agent take it for one? It may read JSON out of an envelope, and `Term` as `term`, as Go does."""
    payload = decode_payload(data)
    document: object = payload.document
    if document is None:
        try:
            document = parse_json(payload.body)
        except ValueError:
            return False
    return isinstance(document, Mapping) and any(
        name.casefold() == "term" and value not in (None, 0) for name, value in document.items()
    )
