"""A roll on the wire: who lives on a bridge's side, in signed parts, on the subject `p2pnode.members`."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from p2pnode.core.peerid import PeerId, peer_id_bytes
from p2pnode.errors import InvalidMessage
from p2pnode.wire.members import EncodedNews, RecordVerify, decode_news, encode_news

BRIDGE, ROLL, AT, IMPORT_KEY, SIGNATURE = "P2P-Bridge", "P2P-Roll", "P2P-At", "P2P-Import-Key", "P2P-Signature"
SIGNING_PREFIX = b"p2pnode-roll:"
MAX_ROLL_BYTES = 2 * 1024 * 1024
MAX_PARTS = 256

_KIND = re.compile(r"full ([1-9][0-9]{0,3})/([1-9][0-9]{0,3})|news", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Part:
    """One message of a bridge about its mesh.

    Args:
        bridge: who says so, and signed it.
        number, total: of a whole roll, from 1; both 0: news, to be added to the last roll.
        at_ns: the bridge's wall time; rises with each part.
        import_key: what it signs with for plain clients.
        body: the encoded news.
    """

    bridge: PeerId
    number: int
    total: int
    at_ns: int
    import_key: PeerId
    body: bytes

    @property
    def kind(self) -> str:
        return f"full {self.number}/{self.total}" if self.total else "news"

    def news(self) -> EncodedNews:
        """
        Raises:
            InvalidMessage: as `wire.members.decode_news`.
        """
        return decode_news(self.body)


def make_part(bridge: PeerId, number: int, total: int, at_ns: int, import_key: PeerId, news: EncodedNews) -> Part:
    return Part(bridge, number, total, at_ns, import_key, encode_news(news))


def encode_part(part: Part, sign: Callable[[bytes], bytes]) -> Mapping[str, str]:
    """The headers that go with the body; `sign` is the bridge's own key."""
    return {
        BRIDGE: part.bridge,
        ROLL: part.kind,
        AT: str(part.at_ns),
        IMPORT_KEY: part.import_key,
        SIGNATURE: base64.b64encode(sign(_signed(part))).decode("ascii"),
    }


def decode_part(headers: Mapping[str, str], body: bytes, verify: RecordVerify) -> Part:
    """Check and take apart.

    Raises:
        InvalidMessage: reasons `headers` (naming the one that is wrong), `signature`, `oversize`, `peer-id`.
    """
    if len(body) > MAX_ROLL_BYTES:
        raise InvalidMessage("oversize", f"a part of a roll of {len(body)} bytes")
    bridge, import_key = PeerId(headers.get(BRIDGE, "")), PeerId(headers.get(IMPORT_KEY, ""))
    origin = peer_id_bytes(bridge)
    peer_id_bytes(import_key)
    kind, at = _KIND.fullmatch(headers.get(ROLL, "")), headers.get(AT, "")
    if kind is None:
        raise InvalidMessage("headers", f"{ROLL} is {headers.get(ROLL, '')[:40]!r} instead of `news` or `full 1/1`")
    if not _NUMBER.fullmatch(at):
        raise InvalidMessage("headers", f"{AT} is {at[:40]!r} instead of nanoseconds since 1970")
    number, total = (int(text) if text else 0 for text in kind.groups())
    if number > total or total > MAX_PARTS:
        raise InvalidMessage("headers", f"{ROLL} is {kind[0]!r}; at most {MAX_PARTS} parts, counted from 1")
    try:
        signature = binascii.a2b_base64(headers.get(SIGNATURE, ""), strict_mode=True)
    except ValueError as error:
        raise InvalidMessage("headers", f"{SIGNATURE} is no base64: {error}") from error
    part = Part(bridge, number, total, int(at), import_key, body)
    if not verify(origin, b"", _signed(part), signature):
        raise InvalidMessage("signature", f"the roll is not signed by {bridge}")
    return part


def _signed(part: Part) -> bytes:
    fields = (part.bridge, part.kind, str(part.at_ns), part.import_key)
    return SIGNING_PREFIX + "\n".join(fields).encode() + b"\n" + part.body
