"""A small DNS server on loopback, UDP and TCP, whose answers a test scripts."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio

Script = Callable[[dns.message.Message, bool], Sequence[bytes] | None]
"""`(question, over TCP) -> datagrams to send, or what to write before hanging up`; None: silence."""


@dataclass
class DnsServer:
    """Args:
    port: UDP and TCP, on every loopback address.
    script: how it answers; may be replaced at any time.
    asked: name, type and carrier of every question so far.
    """

    port: int
    script: Script
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    _news: trio.Event = field(default_factory=trio.Event)

    def answer(self, wire: bytes, *, over_tcp: bool) -> Sequence[bytes] | None:
        question = dns.message.from_wire(wire)
        first = question.question[0]
        carrier = "tcp" if over_tcp else "udp"
        self.asked.append((first.name.to_text(), dns.rdatatype.to_text(first.rdtype), carrier))
        self._news.set()
        self._news = trio.Event()
        return self.script(question, over_tcp)

    async def until_asked(self, times: int) -> None:
        while len(self.asked) < times:
            await self._news.wait()


@asynccontextmanager
async def open_dns_server(script: Script) -> AsyncIterator[DnsServer]:
    udp, tcp = await _two_sockets()
    server = DnsServer(udp.getsockname()[1], script)
    with udp, tcp:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_udp, server, udp)
            nursery.start_soon(trio.serve_listeners, _tcp_handler(server), [trio.SocketListener(tcp)])
            yield server
            nursery.cancel_scope.cancel()


async def _two_sockets() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    for _ in range(20):
        tcp = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        await tcp.bind(("127.0.0.1", 0))
        tcp.listen(16)
        udp = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            await udp.bind(("127.0.0.1", tcp.getsockname()[1]))
        except OSError:
            tcp.close()
            udp.close()
            continue
        return udp, tcp
    raise AssertionError("no port is free for both UDP and TCP")


async def _serve_udp(server: DnsServer, udp: trio.socket.SocketType) -> None:
    while True:
        wire, where = await udp.recvfrom(65535)
        for datagram in server.answer(wire, over_tcp=False) or ():
            try:
                await udp.sendto(datagram, where)
            except ConnectionRefusedError:
                break  # an earlier asker has gone


def _tcp_handler(server: DnsServer) -> Callable[[trio.SocketStream], object]:
    async def handle(stream: trio.SocketStream) -> None:
        try:
            wire = bytearray()
            while len(wire) < 2 or len(wire) < 2 + int.from_bytes(wire[:2], "big"):
                chunk = await stream.receive_some()
                if not chunk:
                    return
                wire += chunk
            written = server.answer(bytes(wire[2:]), over_tcp=True)
            if written is None:
                await trio.sleep_forever()
            for piece in written or ():
                await stream.send_all(piece)
        except trio.BrokenResourceError:
            return
        finally:
            await trio.aclose_forcefully(stream)

    return handle


def zone(
    records: Mapping[str, Iterable[str]], *, ttl: int = 60, rcodes: Mapping[str, str] | None = None, edns: bool = True
) -> Script:
    """A well-behaved server: addresses by name without its final dot, NXDOMAIN for others.

    Args:
        rcodes: names that get an error instead, as `SERVFAIL`.
        edns: False: a server that knows no EDNS, and answers FORMERR to it.
    """
    known = {
        (name, version): dns.rrset.from_text_list(f"{name}.", ttl, "IN", kind, fitting)
        for name, addresses in records.items()
        for version, kind in ((4, "A"), (6, "AAAA"))
        if (fitting := [address for address in addresses if (":" in address) == (version == 6)])
    }

    def script(question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
        if question.edns >= 0 and not edns:
            bare = dns.message.make_response(question)
            bare.use_edns(False)
            bare.set_rcode(dns.rcode.FORMERR)
            return wire_of(bare, question, over_tcp)
        answer = dns.message.make_response(question)
        first = question.question[0]
        name = first.name.to_text(omit_final_dot=True)
        if rcodes is not None and name in rcodes:
            answer.set_rcode(dns.rcode.from_text(rcodes[name]))
        elif name not in records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif (fitting := known.get((name, 6 if first.rdtype == dns.rdatatype.AAAA else 4))) is not None:
            answer.answer.append(fitting)
        return wire_of(answer, question, over_tcp)

    return script


def wire_of(answer: dns.message.Message, question: dns.message.Message, over_tcp: bool) -> Sequence[bytes]:
    """One message as it goes out: cut to what the asker takes over UDP, with its length before it over TCP."""
    if over_tcp:
        wire = answer.to_wire(max_size=65535)
        return [len(wire).to_bytes(2, "big") + wire]
    most = max(512, question.payload) if question.edns >= 0 else 512
    wire = answer.to_wire(max_size=65535)
    return [wire] if len(wire) <= most else [cut_to(answer, most)]


def cut_to(answer: dns.message.Message, most: int) -> bytes:
    """As Docker's DNS cuts: whole records, as many A records as fit, and the TC flag."""
    whole = answer.answer[0]
    fitting = (most - 100) // 16
    records = [record.to_text() for record in list(whole)[:fitting]]
    answer.answer = [dns.rrset.from_text_list(whole.name, whole.ttl, "IN", whole.rdtype, records)]
    answer.flags |= dns.flags.TC
    return answer.to_wire(max_size=65535)
