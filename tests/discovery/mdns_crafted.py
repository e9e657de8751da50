"""Multicast DNS messages made by hand, and a program that sends some which no peer of good will would.

Run in a station as `python -m tests.discovery.mdns_crafted KIND ADDRESS`, ADDRESS being the station's; see `KINDS`.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

import base58

GROUP = ("224.0.0.251", 5353)
SERVICE = "_p2p._udp.local"
PTR, TXT = 12, 16
INSTANCES = 10_000
PAUSE_SECONDS = 0.005
BURST = 20


def peer_id(number: int) -> str:
    """A valid peer id of an Ed25519 key that nobody has."""
    return base58.b58encode(b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big")).decode()


def name(text: str) -> bytes:
    """A domain name in wire form (RFC 1035, section 3.1)."""
    labels = (part.encode() for part in text.split("."))
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def strings(*entries: bytes) -> bytes:
    """The data of a TXT record."""
    return b"".join(bytes((len(entry),)) + entry for entry in entries)


def record(owner: str, kind: int, data: bytes, ttl: int = 120) -> bytes:
    """One resource record (RFC 1035, section 4.1.3)."""
    return name(owner) + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def response(*answers: bytes) -> bytes:
    """A response with these answers."""
    return struct.pack("!6H", 0, 0x8400, 0, len(answers), 0, 0) + b"".join(answers)


def instance(label: str, *entries: bytes, ttl: int = 120) -> bytes:
    """What a js peer says of itself: the instance, and a TXT record for each address."""
    owner = f"{label}.{SERVICE}"
    return response(
        record(SERVICE, PTR, name(owner), ttl), *(record(owner, TXT, strings(entry), ttl) for entry in entries)
    )


def entry(address: str, peer: int) -> bytes:
    return f"dnsaddr={address}/p2p/{peer_id(peer)}".encode()


def garbage(own: str) -> Iterator[bytes]:
    """Records that hold no address, and messages that are none."""
    rng = random.Random(1)
    yield from (rng.randbytes(rng.randrange(1, 600)) for _ in range(200))
    yield from (response(record(f"g{n}.{SERVICE}", TXT, rng.randbytes(rng.randrange(400)))) for n in range(200))
    good = instance("good", entry(f"/ip4/{own}/tcp/1", 1))
    yield from (good[:end] for end in range(len(good)))
    loop = struct.pack("!6H", 0, 0x8400, 0, 1, 0, 0) + b"\xc0\x0c" + struct.pack("!HHIH", TXT, 1, 120, 0)
    yield loop  # a name that points at itself


def entries(own: str) -> Iterator[bytes]:
    """Addresses that nobody can or should dial, each of an instance of its own; and one good one."""
    bad = (
        b"dnsaddr=",
        b"dnsaddr=/ip4/10.78.0.9/tcp/1",
        b"dnsaddr=\xff\xfe/ip4/10.78.0.9",
        entry("/ip4/127.0.0.1/tcp/1", 2),
        entry("/ip6/::ffff:127.0.0.1/tcp/1", 2),
        entry("/ip6/fe80::1/tcp/1", 3),
        entry("/dns4/example.org/tcp/1", 4),
        entry("/ip4/0.0.0.0/tcp/1", 5),
        entry("/ip4/224.0.0.251/tcp/1", 6),
        entry("/ip4/10.78.0.9/tcp/0", 7),
        entry("/ip4/10.78.0.9/tcp/70000", 8),
        entry("/ip4/10.78.0.9/udp/1/quic-v1", 9),
        b"dnsaddr=/ip4/10.78.0.9/tcp/1/p2p/12D3KooWnobody",
    )
    yield from (instance(f"bad{number}", each) for number, each in enumerate(bad))
    yield instance("mixed", entry(f"/ip4/{own}/tcp/1", 10), entry(f"/ip4/{own}/tcp/2", 11))
    yield instance("many", *(entry(f"/ip4/{own}/tcp/{port}", 12) for port in range(1, 61)))
    yield instance("tooth.with.dots", entry(f"/ip4/{own}/tcp/3", 13))


def flood(own: str) -> Iterator[bytes]:
    """More instances than anybody has, each good by itself, to be believed for ever."""
    return (instance(f"flood{n}", entry(f"/ip4/{own}/tcp/1", 100 + n), ttl=2**31 - 1) for n in range(INSTANCES))


def huge(own: str) -> Iterator[bytes]:
    """Records as large as a datagram can be."""
    many = [entry(f"/ip4/{own}/tcp/{port}", 20) for port in range(1, 700)]
    yield response(record(f"huge.{SERVICE}", TXT, strings(*many)[:60_000]))
    yield response(record(f"large.{SERVICE}", TXT, strings(*many[:80])))
    yield response(*(record(f"copy{n}.{SERVICE}", TXT, strings(many[0])) for n in range(60)))


KINDS: dict[str, Callable[[str], Iterator[bytes]]] = {
    "garbage": garbage,
    "entries": entries,
    "flood": flood,
    "huge": huge,
}


def main(kind: str, own: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
        sender.bind(("", 5353))
        for number, packet in enumerate(KINDS[kind](own)):
            sender.sendto(packet, GROUP)
            if number % BURST == 0:  # no faster than a receiver's buffer takes them
                time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
