"""What both sides of the HTTP road agree on: the route, the media type and the proof of the network key.

`POST /p2pnode/v1/messages` with the message's raw bytes. Answered with 200 `{"stored": true}`, or 200
`{"stored": false, "held": true}` where it was there before, or a problem document (RFC 9457) whose member `reason`
is a fixed word.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

MESSAGES_PATH: Final = "/p2pnode/v1/messages"
HEALTH_PATH: Final = "/health"
MESSAGE_TYPE: Final = "application/x-libp2p-pubsub-message"
PROBLEM_TYPE: Final = "application/problem+json"

_SCHEME: Final = "P2PNode-MAC"
_LABEL: Final = b"p2pnode http carrier v1"


def carrier_key(network_key: bytes) -> bytes:
    """32 bytes for the proofs of one private network; the network key itself encrypts its connections (`host.psk`)."""
    return hmac.digest(network_key, _LABEL, hashlib.sha256)


def authorization(key: bytes, body: bytes) -> str:
    """The `Authorization` header under which `body` comes from a member of the private network.

    Whoever sends the same bytes again gets them answered as held, so nothing in it has to be new each time.
    """
    return f"{_SCHEME} {hmac.new(key, body, hashlib.sha256).hexdigest()}"


def is_authorization(header: str) -> bool:
    """Has it the form of a proof? Tells strangers apart before their body is read."""
    scheme, _, proof = header.partition(" ")
    return scheme.lower() == _SCHEME.lower() and len(proof.strip()) == 2 * hashlib.sha256().digest_size


def is_authorized(header: str, key: bytes, body: bytes) -> bool:
    """Does the header prove that the sender of `body` has the key? Compared in constant time."""
    proof = header.partition(" ")[2].strip().lower()
    expected = authorization(key, body).partition(" ")[2]
    return is_authorization(header) and hmac.compare_digest(proof.encode(), expected.encode())
