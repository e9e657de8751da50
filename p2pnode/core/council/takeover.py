"""When another orchestrator decides for a council whose owner is gone.

An electorate is the base64 of four bytes for each member that was alive as the council was created: the beginning of
the SHA-256 of its peer id, sorted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection, Iterable
from typing import Literal

from p2pnode.core.council.documents import MAX_ELECTORATE_CHARACTERS
from p2pnode.core.peerid import PeerId

Policy = Literal["majority", "any", "off"]

FINGERPRINT_BYTES = 4
MAX_VOTERS = MAX_ELECTORATE_CHARACTERS * 3 // 4 // FINGERPRINT_BYTES
GRACE_SECONDS = 1.0
"""From the owner's death, as membership tells it, to the takeover by the first in line."""

TURN_SECONDS = 1.0
"""For each orchestrator that is further down the line: the higher peer id first, whose decision would win anyway."""


def electorate(members: Iterable[PeerId]) -> str:
    """Of those who are alive; of very many a sample, the same at every node that sees the same."""
    fingerprints = sorted({_fingerprint(each) for each in members})
    return base64.b64encode(b"".join(fingerprints[:MAX_VOTERS])).decode()


def size(text: str) -> int:
    """How many an electorate counts; 0 when it is none."""
    return len(_read(text))


def has_majority(text: str, alive: Collection[PeerId]) -> bool:
    """Are more than half of an electorate alive? Never of an empty one."""
    voters = _read(text)
    return 2 * len(voters & {_fingerprint(each) for each in alive}) > len(voters)


def delay(me: PeerId, orchestrators: Iterable[PeerId]) -> float:
    """Seconds to wait once the owner is gone, by place in the line of live orchestrators."""
    return GRACE_SECONDS + TURN_SECONDS * sum(each > me for each in set(orchestrators))


def _fingerprint(peer: PeerId) -> bytes:
    return hashlib.sha256(peer.encode()).digest()[:FINGERPRINT_BYTES]


def _read(text: str) -> frozenset[bytes]:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return frozenset()
    if len(raw) % FINGERPRINT_BYTES:
        return frozenset()
    return frozenset(raw[at : at + FINGERPRINT_BYTES] for at in range(0, len(raw), FINGERPRINT_BYTES))
