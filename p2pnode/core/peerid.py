"""Peer ids as bytes (a multihash of the public key) and as people write them (base58)."""

from __future__ import annotations

from functools import lru_cache
from typing import NewType

import base58

from p2pnode.errors import InvalidMessage

PeerId = NewType("PeerId", str)
"""A peer id in base58 (`12D3KooW…`), the legacy text form of libp2p specs, peer-ids/peer-ids.md."""

_IDENTITY = 0x00
_SHA2_256 = 0x12
_MAX_TEXT = 64


@lru_cache(maxsize=8192)
def peer_id_text(raw: bytes) -> PeerId:
    """Base58 of a peer id's bytes.

    Raises:
        InvalidMessage: reason `peer-id`; the bytes are no identity or sha2-256 multihash.
    """
    if not is_peer_id(raw):
        raise InvalidMessage("peer-id", f"{raw[:48].hex()} is no peer id")
    return PeerId(base58.b58encode(raw).decode("ascii"))


@lru_cache(maxsize=8192)
def peer_id_bytes(text: str) -> bytes:
    """The bytes of a base58 peer id.

    Raises:
        InvalidMessage: reason `peer-id`.
    """
    try:
        # The library overlooks white space behind; decoding takes the square of the length.
        raw: bytes = base58.b58decode(text) if len(text) <= _MAX_TEXT and text == text.strip() else b""
    except ValueError:
        raw = b""
    if not is_peer_id(raw):
        raise InvalidMessage("peer-id", f"{text[:80]!r} is no peer id; one looks like 12D3KooW…")
    return raw


def is_peer_id(raw: bytes) -> bool:
    """True for an identity multihash of at most 42 bytes or a sha2-256 multihash (peer-ids.md, "Peer Ids")."""
    if len(raw) < 3 or len(raw) != raw[1] + 2:
        return False
    return (raw[0] == _IDENTITY and raw[1] <= 42) or (raw[0] == _SHA2_256 and raw[1] == 32)
