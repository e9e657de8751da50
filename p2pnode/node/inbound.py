"""What this node makes of a message that a peer brought: the verdict, and what is kept."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC, check_opportunity
from p2pnode.core.message import Accept, Ignore, SignedMessage, Verdict, Verify, format_message_id
from p2pnode.core.metadata import FUTURE_ALLOWANCE_SECONDS, RELAY_AGE_SECONDS, Payload
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.errors import InvalidMessage
from p2pnode.node.archive import Archive
from p2pnode.node.members import Members
from p2pnode.wire.members import MEMBERS_TOPIC
from p2pnode.wire.payload import decode_payload
from p2pnode.wire.pubsub import decode_message

log = logging.getLogger(__name__)

LOGGED_FAULTS = 5
"""A stranger's document can have thousands."""


class Inbound:
    """Judges by what is inside, keeps what is accepted.

    A message that only our clock or our rules dislike is ignored, never rejected: whoever
    forwarded it did nothing wrong (architecture, decision 5).
    """

    def __init__(self, archive: Archive, members: Members, verify: Verify, wall_ns: Callable[[], int]) -> None:
        self._archive = archive
        self._members = members
        self._verify = verify
        self._wall_ns = wall_ns
        self.received: Counter[str] = Counter()

    def judge(self, message: SignedMessage, source: PeerId | None) -> Verdict:
        if message.topic == MEMBERS_TOPIC:
            return self._members.judge(message)
        if message.id in self._archive:
            return Ignore("held")
        payload = decode_payload(message.data)
        verdict = self._judge_times(payload, source)
        if isinstance(verdict, Accept) and message.topic == OPPORTUNITY_TOPIC:
            checked = check_opportunity(payload.document or {})
            if isinstance(checked, list):
                log.warning(
                    "ignored a message that is no council opportunity",
                    extra={
                        "id": format_message_id(message.id),
                        "faults": [str(fault) for fault in checked[:LOGGED_FAULTS]],
                    },
                )
                return Ignore("opportunity")
        return verdict

    def _judge_times(self, payload: Payload, source: PeerId | None) -> Verdict:
        metadata = payload.metadata
        if metadata is None:
            # A stock peer's is gossiped where it arrives: without a signed time nobody could tell a repetition.
            return Accept(relay=source is not None)
        now = self._wall_ns()
        if metadata.published_at_ns - now > FUTURE_ALLOWANCE_SECONDS * 1e9:
            return Ignore("future")
        if metadata.expires_at_ns and metadata.expires_at_ns <= now:
            return Ignore("expired")
        return Accept(relay=now - metadata.published_at_ns < RELAY_AGE_SECONDS * 1e9)

    def take_synced(self, raw: bytes, is_subscribed: Callable[[str], bool]) -> str | None:
        """Check a message that a neighbour handed over, as if it had been gossiped, and store it; it is not passed on.

        Returns:
            Why it was not taken: a short fixed word, `held` when it is stored already; None when it was.
        """
        try:
            message = decode_message(raw)
        except InvalidMessage as error:
            return error.reason
        return self.take(message, is_subscribed, carrier="sync")

    def take(self, message: SignedMessage, is_subscribed: Callable[[str], bool], *, carrier: str) -> str | None:
        """Check a message that did not come by gossip, and store it; as `take_synced`."""
        if message.id in self._archive:
            return "held"
        if message.topic == MEMBERS_TOPIC or not is_subscribed(message.topic):
            return "topic"
        if not self._verify(message):
            return "signature"
        verdict = self.judge(message, None)
        if not isinstance(verdict, Accept):
            return verdict.why
        return self.deliver(message, carrier=carrier)

    def deliver(self, message: SignedMessage, *, carrier: str) -> str | None:
        """Have an accepted message stored; why it is not, as `Archive.take` says."""
        if message.topic == MEMBERS_TOPIC:
            return None
        if (why := self._archive.take(message, carrier=carrier)) is not None:
            return why
        self.received[message.topic] += 1
        if message.topic == OPPORTUNITY_TOPIC:
            document = decode_payload(message.data).document or {}
            log.info(
                "Received council opportunity",
                extra={
                    "council_id": document.get("council_id"),
                    "project": document.get("project_name"),
                    "origin": peer_id_text(message.origin),
                },
            )
        return None
