"""Tells direct neighbours which of their own messages are stored here, so that they need not announce them again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import trio

from p2pnode.core.message import SEQNO_BYTES, MessageId
from p2pnode.core.metadata import RELAY_AGE_SECONDS
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.ports import Entry
from p2pnode.wire.members import MEMBERS_TOPIC

BATCH_SECONDS = 0.1
MAX_WAITING = 16_384
"""Of one peer: more than comes in a tenth of a second. What is more is dropped, and asked for by a repeat."""


class HeldNotices:
    """Collects what was committed, and sends it by origin. A notice may be lost: who misses it sends its message again.

    Args:
        send: one batch to a peer: `Gossip.send_held`.
        is_told: is it a linked peer of our kind? Others do not know what a notice is.
        is_stored: is a message committed?

    Attributes:
        sent: notices that went out.
        dropped: notices that found no room.
    """

    def __init__(
        self,
        send: Callable[[PeerId, Sequence[bytes]], None],
        *,
        is_told: Callable[[PeerId], bool],
        is_stored: Callable[[MessageId], bool],
    ) -> None:
        self._send = send
        self._is_told = is_told
        self._is_stored = is_stored
        self._waiting: dict[PeerId, dict[MessageId, None]] = {}
        self._some = trio.Event()
        self.sent = 0
        self.dropped = 0

    def stored(self, entries: Iterable[Entry]) -> None:
        """These were committed. Only fresh ones are told of: a late joiner would send one for each old message."""
        for entry in entries:
            age_ns = entry.received_at_ns - entry.published_at_ns
            if entry.published_at_ns and not entry.own and age_ns < RELAY_AGE_SECONDS * 1e9:
                if entry.topic != MEMBERS_TOPIC:
                    self._add(peer_id_text(entry.id[:-SEQNO_BYTES]), entry.id)

    def repeated(self, peer: PeerId, message_id: MessageId) -> None:
        """The peer sent its own message again that is stored here, or about to be."""
        self._add(peer, message_id)

    def _add(self, peer: PeerId, message_id: MessageId) -> None:
        if not self._is_told(peer):
            return
        waiting = self._waiting.setdefault(peer, {})
        if len(waiting) >= MAX_WAITING and message_id not in waiting:
            self.dropped += 1
            return
        waiting[message_id] = None
        self._some.set()

    async def run(self) -> None:
        """Send each batch BATCH_SECONDS after its first notice came, until cancelled."""
        while True:
            await self._some.wait()
            await trio.sleep(BATCH_SECONDS)
            self._some = trio.Event()
            waiting, self._waiting = self._waiting, {}
            for peer, message_ids in waiting.items():
                # What is only about to be stored is told of when it is.
                seqnos = [each[-SEQNO_BYTES:] for each in message_ids if self._is_stored(each)]
                if seqnos and self._is_told(peer):
                    self._send(peer, seqnos)
                    self.sent += len(seqnos)
