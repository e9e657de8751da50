"""What synchronisation remembers of messages it did not take: refused ones, and two bodies under one id."""

from __future__ import annotations

import logging
from collections import OrderedDict

from p2pnode.core.message import MessageId, format_message_id
from p2pnode.core.peerid import PeerId
from p2pnode.core.sync import Conflict, id_of_key, time_of_key
from p2pnode.errors import InvalidMessage

log = logging.getLogger(__name__)

REFUSED_SECONDS = 600.0
"""A message that was refused is not pulled again for so long."""

MAX_REFUSED = 4096
MAX_CONFLICTS = 1024
"""Of both: over it the oldest is forgotten, and may be pulled, or reported, once more."""


class Refused:
    """Messages, by id and digest, that a short while ago we did not want."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[MessageId, bytes], float] = OrderedDict()

    def add(self, message_id: MessageId, digest: bytes, now: float) -> None:
        self._until[message_id, digest] = now + REFUSED_SECONDS
        if len(self._until) > MAX_REFUSED:
            self._until.popitem(last=False)

    def has(self, message_id: MessageId, digest: bytes, now: float) -> bool:
        return now < self._until.get((message_id, digest), now)


class Conflicts:
    """Tells each pair of different messages under one id once."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[MessageId, bytes], None] = OrderedDict()

    def tell(self, peer: PeerId, conflict: Conflict) -> bool:
        """Log it, with both digests; False when it was told before."""
        message_id = id_of_key(conflict.key)
        if (message_id, conflict.theirs) in self._told:
            return False
        self._told[message_id, conflict.theirs] = None
        if len(self._told) > MAX_CONFLICTS:
            self._told.popitem(last=False)
        try:
            name = format_message_id(message_id)
        except InvalidMessage:
            name = message_id.hex()  # an id that a peer made up
        log.error(
            "two different messages under one id; each node keeps its own",
            extra={
                "id": name,
                "peer": peer,
                "digest": conflict.ours.hex(),
                "other_digest": conflict.theirs.hex(),
                "other_published_at_ns": time_of_key(conflict.key),
            },
        )
        return True
