"""One question to one DNS server: UDP, then TCP when the answer is cut short (RFC 1035, 6891, 7766).

Nothing a server sends raises here: what cannot be used becomes a reply that says so.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from dataclasses import dataclass, replace

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import trio

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

TCP_SHARE = 0.75
"""Of a question's time, for TCP: what came by UDP still counts when TCP stays silent."""

EDNS_PAYLOAD_BYTES = 1232
"""Largest UDP answer asked for: fits any path unfragmented (DNS flag day 2020)."""

LOOPBACK_PAYLOAD_BYTES = 4096
"""The same for a server on loopback, such as Docker's: its answers are not compressed, so that 34 tasks with their
names take more than 1,232 bytes (moby, libnetwork/resolver.go)."""

INLINE_BYTES = 4096
"""Larger messages are parsed off the loop: the largest, of 4,000 addresses, takes a tenth of a second."""

MOST_GARBAGE = 100
"""Datagrams that are no answer, until the server is given up."""


class Outcome(enum.Enum):
    """What came of a question."""

    FOUND = "found"
    NO_ADDRESS = "no address"
    NO_NAME = "no such name"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Reply:
    """What one server says of one name and family.

    Args:
        outcome: FOUND when there is at least one address that can be dialled.
        addresses: those, in the order given.
        ttl_seconds: how long they hold, by the server's word.
        evidence: what the server said, or how it failed, with its address; empty when all is well.
    """

    outcome: Outcome
    addresses: tuple[Address, ...] = ()
    ttl_seconds: float = 0.0
    evidence: str = ""


class _Useless(Exception):
    """No usable message came; says why."""


async def query(name: dns.name.Name, rdtype: dns.rdatatype.RdataType, server: str, port: int, seconds: float) -> Reply:
    """Ask for the A or AAAA records of `name`.

    Args:
        name: absolute.
        server: an IP address.
        seconds: for all of it; a server that is silent until then has failed.
    """
    where = server if port == 53 else f"{server} port {port}"
    reply = Reply(Outcome.FAILED, evidence="gave no answer")
    with trio.move_on_after(seconds):
        try:
            reply = await _exchange(name, rdtype, server, port, seconds)
        except _Useless as useless:
            reply = Reply(Outcome.FAILED, evidence=str(useless))
    return replace(reply, evidence=f"{where} {reply.evidence}") if reply.evidence else reply


async def _exchange(
    name: dns.name.Name, rdtype: dns.rdatatype.RdataType, server: str, port: int, seconds: float
) -> Reply:
    payload = LOOPBACK_PAYLOAD_BYTES if ipaddress.ip_address(server).is_loopback else EDNS_PAYLOAD_BYTES
    question = dns.message.make_query(name, rdtype, use_edns=0, payload=payload)
    try:
        answer = await _over_udp(question, server, port)
        if answer.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS):
            question = dns.message.make_query(name, rdtype, use_edns=False)  # a server older than EDNS
            answer = await _over_udp(question, server, port)
    except dns.message.Truncated as cut:
        part = _part(cut)
        try:
            answer = await _over_tcp(question, server, port, seconds * TCP_SHARE)
        except _Useless as useless:
            return _without_the_rest(_read(question, part), str(useless))
    return _read(question, answer)


def _without_the_rest(reply: Reply, why: str) -> Reply:
    """The part of a long answer that came by UDP, when TCP fails."""
    if reply.outcome is not Outcome.FOUND:
        raise _Useless(f"cut its answer short, and over TCP it {why}")
    told = f"cut its answer short after {len(reply.addresses)} addresses, and over TCP it {why}"
    return replace(reply, evidence=told)


async def _over_udp(question: dns.message.Message, server: str, port: int) -> dns.message.Message:
    """The first datagram from `server` that answers the question; others are skipped.

    Raises:
        Truncated: it is cut short.
        _Useless: none came.
    """
    with trio.socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            # Connected, so that the kernel drops what others send, and tells when nothing listens there.
            await sock.connect((server, port))
            await sock.send(question.to_wire())
            for _ in range(MOST_GARBAGE):
                try:
                    answer = await _parsed(await sock.recv(65535))
                except dns.message.Truncated as cut:
                    if question.is_response(_part(cut)):
                        raise
                except (dns.exception.DNSException, ValueError):
                    continue
                else:
                    if question.is_response(answer):
                        return answer
        except OSError as error:
            raise _Useless(f"cannot be asked ({error.strerror or error})") from None
    raise _Useless(f"sent {MOST_GARBAGE} datagrams that are no answer")


async def _over_tcp(question: dns.message.Message, server: str, port: int, seconds: float) -> dns.message.Message:
    """The answer to a question that UDP was too small for.

    Raises:
        _Useless: none came.
    """
    wire = b""
    try:
        with trio.move_on_after(seconds):
            wire = await _wire_over_tcp(question.to_wire(), server, port)
        if not wire:
            raise _Useless("gave no answer")
        answer = await _parsed(wire)
    except (OSError, trio.BrokenResourceError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _Useless(f"cannot be asked ({reason})") from None
    except dns.message.Truncated:
        raise _Useless("cut its answer short again") from None
    except (dns.exception.DNSException, ValueError) as error:
        raise _Useless(f"sent what is no DNS message ({type(error).__name__})") from None
    if not question.is_response(answer):
        raise _Useless("answered another question")
    return answer


async def _wire_over_tcp(question: bytes, server: str, port: int) -> bytes:
    """One message each way, two bytes of length before it."""
    received = bytearray()
    async with await trio.open_tcp_stream(server, port) as stream:
        await stream.send_all(len(question).to_bytes(2, "big") + question)
        while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
            chunk = await stream.receive_some(65536)
            if not chunk:
                raise _Useless("hung up before its answer was complete")
            received += chunk
    return bytes(received[2 : 2 + int.from_bytes(received[:2], "big")])


def _part(cut: dns.message.Truncated) -> dns.message.Message:
    part: dns.message.Message = cut.kwargs["message"]
    return part


async def _parsed(wire: bytes) -> dns.message.Message:
    if len(wire) <= INLINE_BYTES:
        return dns.message.from_wire(wire, raise_on_truncation=True)
    return await trio.to_thread.run_sync(lambda: dns.message.from_wire(wire, raise_on_truncation=True))


def _read(question: dns.message.Message, answer: dns.message.Message) -> Reply:
    """What a message that answers `question` says.

    Raises:
        _Useless: it is an error, or makes no sense.
    """
    rcode = answer.rcode()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise _Useless(f"says {dns.rcode.to_text(rcode)}")
    if not isinstance(answer, dns.message.QueryMessage) or answer.question != question.question:
        raise _Useless("sent what is no answer to a query")
    try:
        chain = answer.resolve_chaining()
    except dns.message.ChainTooLong:
        raise _Useless("sent a chain of CNAMEs without an end") from None
    except dns.exception.DNSException as error:
        raise _Useless(f"contradicts itself ({type(error).__name__})") from None
    if rcode == dns.rcode.NXDOMAIN:
        return Reply(Outcome.NO_NAME, evidence="says NXDOMAIN")
    kind = dns.rdatatype.to_text(question.question[0].rdtype)
    if chain.answer is None:
        alias = f"an alias of {chain.canonical_name}, with " if chain.cnames else ""
        return Reply(Outcome.NO_ADDRESS, evidence=f"says {alias}no {kind} record")
    all_of_them = [ipaddress.ip_address(record.address) for record in chain.answer]
    usable = tuple(address for each in all_of_them if (address := dialable(each)) is not None)
    if not usable:
        return Reply(Outcome.NO_ADDRESS, evidence=f"says {all_of_them[0]}, which nobody can dial")
    return Reply(Outcome.FOUND, usable, float(chain.minimum_ttl))


def dialable(address: Address) -> Address | None:
    """The address to dial, an IPv4 one when it is mapped into IPv6; None when nobody can dial it.

    Loopback can be dialled; 0.0.0.0, multicast, reserved (broadcast) and IPv6 link-local without its zone cannot.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.is_link_local or address.scope_id:
            return None
    if address.is_unspecified or address.is_multicast or (address.version == 4 and address.is_reserved):
        return None
    return address
