"""Which of several bridges publishes a message first: each its own share, and the next one when nobody did.

D. Thaler, C. V. Ravishankar, "A Name-Based Mapping Scheme for Rendezvous" (1996): everybody ranks the bridges by a
hash of message and bridge, so all agree without a word, and a bridge that goes away changes nothing for the shares of
others.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from p2pnode.core.message import MessageId
from p2pnode.core.peerid import PeerId


def rank(message_id: MessageId, own: PeerId, others: Iterable[PeerId]) -> int:
    """How many of the other bridges come before us: 0 for the first."""
    ours = _weight(message_id, own)
    return sum(_weight(message_id, each) > ours for each in others if each != own)


def _weight(message_id: MessageId, bridge: PeerId) -> bytes:
    return sha256(message_id + bridge.encode()).digest()
