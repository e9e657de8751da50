"""Can others dial this node: the question to a neighbour, and what it saw and tried.

The messages are in `proto/p2pnode/v1/reach.proto`, the asking and the answering in `p2pnode.node.reach`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from p2pnode.errors import InvalidMessage
from p2pnode.wire.pb.p2pnode.v1 import reach_pb2

REACH_PROTOCOL = "/p2pnode/reach/1.0.0"
MAX_ASKED = 16
"""Addresses in a question, as many as a member record holds."""

MAX_TRIES = 16
MAX_ADDR = 256
"""Characters of one address."""

MAX_QUESTION_BYTES = 8 * 1024
MAX_ANSWER_BYTES = 8 * 1024

_ADDR = re.compile(r"/(?:(ip4|ip6)/([0-9a-fA-F:.]+)|(?:dns|dns4|dns6)/[A-Za-z0-9._-]+)/tcp/([1-9][0-9]{0,4})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Try:
    """
    Args:
        addr: `/ip4|ip6/ADDRESS/tcp/PORT`.
        reached: a handshake there proved the asker's peer id.
    """

    addr: str
    reached: bool


@dataclass(frozen=True, slots=True)
class ReachAnswer:
    """
    Args:
        observed: the far end of the connection as the neighbour sees it, `/ip4|ip6/ADDRESS/tcp/PORT`; empty when it
            does not know.
        tries: what it dialled, each address once; empty when it had no time for it or nothing to dial.
    """

    observed: str = ""
    tries: tuple[Try, ...] = ()


def place_of(addr: str) -> tuple[str, int]:
    """Host and port of a multiaddr: an IP address in its plain form, or empty for a DNS name.

    Raises:
        InvalidMessage: reason `addr`: it is not `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT`.
    """
    found = _ADDR.fullmatch(addr) if len(addr) <= MAX_ADDR else None
    try:
        if found is None or int(found[3]) > 65535:
            raise ValueError
        kind, host, port = found.groups()
        if kind is None:
            return "", int(port)
        ip = ipaddress.IPv4Address(host) if kind == "ip4" else ipaddress.IPv6Address(host)
        return str(ip), int(port)
    except ValueError:
        raise InvalidMessage("addr", f"{addr[:MAX_ADDR]!r} is no address that can be dialled") from None


def encode_question(addrs: Iterable[str]) -> bytes:
    """The first `MAX_ASKED` of the addresses that fit the protocol."""
    return reach_pb2.ReachQuestion(addrs=[addr for addr in addrs if is_place(addr)][:MAX_ASKED]).SerializeToString()


def decode_question(body: bytes) -> tuple[str, ...]:
    """The addresses that the asker announces, each once.

    Raises:
        InvalidMessage: reasons `oversize` (bytes or addresses), `protobuf`, `addr`.
    """
    if len(body) > MAX_QUESTION_BYTES:
        raise InvalidMessage("oversize", f"a reach question of {len(body)} bytes is over {MAX_QUESTION_BYTES}")
    message = reach_pb2.ReachQuestion()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no reach question: {error}") from error
    if len(message.addrs) > MAX_ASKED:
        raise InvalidMessage("oversize", f"a reach question names {len(message.addrs)} addresses, over {MAX_ASKED}")
    for addr in message.addrs:
        place_of(addr)
    return tuple(dict.fromkeys(message.addrs))


def encode_answer(answer: ReachAnswer) -> bytes:
    tries = [reach_pb2.ReachTry(addr=each.addr, reached=each.reached) for each in answer.tries]
    return reach_pb2.ReachAnswer(observed=answer.observed, tries=tries).SerializeToString()


def decode_answer(body: bytes) -> ReachAnswer:
    """What a neighbour saw and tried; its word, not proven.

    Raises:
        InvalidMessage: reasons `oversize` (bytes or tries), `protobuf`, `addr` (no IP address and TCP port, or twice).
    """
    if len(body) > MAX_ANSWER_BYTES:
        raise InvalidMessage("oversize", f"a reach answer of {len(body)} bytes is over {MAX_ANSWER_BYTES}")
    message = reach_pb2.ReachAnswer()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise InvalidMessage("protobuf", f"no reach answer: {error}") from error
    if len(message.tries) > MAX_TRIES:
        raise InvalidMessage("oversize", f"a reach answer names {len(message.tries)} tries, over {MAX_TRIES}")
    tries = tuple(Try(each.addr, each.reached) for each in message.tries)
    addrs = [each.addr for each in tries]
    for addr in filter(None, (message.observed, *addrs)):
        if not place_of(addr)[0]:
            raise InvalidMessage("addr", f"a reach answer names {addr!r}, which is no IP address")
    if len(set(addrs)) != len(addrs) or not all(addrs):
        raise InvalidMessage("addr", "a reach answer tells of one address twice, or of none")
    return ReachAnswer(message.observed, tries)


def is_place(addr: str) -> bool:
    """Does `place_of` know it?"""
    try:
        place_of(addr)
    except InvalidMessage:
        return False
    return True
