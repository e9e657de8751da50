"""What a peer says of itself in multicast DNS: names and TXT records.

Source: libp2p specifications, discovery/mdns.md. A TXT record is a sequence of strings, each a length byte and up to
255 bytes (RFC 1035, section 3.3.14); a peer's holds one `dnsaddr=<multiaddr>/p2p/<peer id>` for each address.
"""

from __future__ import annotations

import ipaddress
import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from p2pnode.core.peerid import PeerId, peer_id_bytes
from p2pnode.errors import InvalidMessage

PEER_NAME_LETTERS = 32
"""Length of a peer name: the specification's least."""

MAX_STRING_BYTES = 255
MAX_ADDRS = 16
"""Addresses kept of one instance, and told of ourselves: the TXT record stays within two Ethernet frames."""

MAX_STRINGS = 4 * MAX_ADDRS
"""Strings looked at in one record: stock peers list every transport they have, most of which we do not speak."""

_KEY = b"dnsaddr="
_ADDR = re.compile(r"/(ip4|ip6)/([0-9A-Fa-f.:]{2,45})/tcp/([1-9][0-9]{0,4})/p2p/([1-9A-HJ-NP-Za-km-z]{3,64})")
_NAME = re.compile(r"/(dns|dns4|dns6|dnsaddr)/")
_FINGERPRINT = re.compile(r"[0-9a-f]{2,58}")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def service_name(fingerprint: str = "") -> str:
    """`_p2p._udp.local.`, or a private network's `_p2p-<fingerprint>._udp.local.`.

    Raises:
        ValueError: the fingerprint is no lower-case hexadecimal text, or longer than a DNS label has room for.
    """
    if fingerprint and _FINGERPRINT.fullmatch(fingerprint) is None:
        raise ValueError(f"{fingerprint!r} is no fingerprint: 2 to 58 lower-case hexadecimal digits are")
    return f"_p2p-{fingerprint}._udp.local." if fingerprint else "_p2p._udp.local."


def peer_name(rng: random.Random) -> str:
    """A random name for this run: it tells instances apart and says nothing of the peer."""
    return "".join(rng.choices(string.ascii_lowercase + string.digits, k=PEER_NAME_LETTERS))


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a TXT record that can be dialled.

    Args:
        text: `/ip4|ip6/ADDRESS/tcp/PORT/p2p/PEER_ID`, in its plain form.
        ip: ADDRESS.
        port: PORT.
        peer: PEER_ID.
    """

    text: str
    ip: IpAddress
    port: int
    peer: PeerId


def parse_address(text: str) -> Address:
    """An address of this version: an IP address, TCP, and who lives there.

    Raises:
        InvalidMessage: reason `dns-name`, `not-tcp` (no multiaddr, another transport, or no peer id), `ip`, `port`
            or `peer-id`.
    """
    match = _ADDR.fullmatch(text)
    if match is None:
        reason = "dns-name" if _NAME.match(text) else "not-tcp"
        raise InvalidMessage(reason, f"{text[:120]!r} is not /ip4|ip6/ADDRESS/tcp/PORT/p2p/PEER_ID")
    kind, address, port, peer = match.groups()
    try:
        ip = (ipaddress.IPv4Address if kind == "ip4" else ipaddress.IPv6Address)(address)
    except ValueError as error:
        raise InvalidMessage("ip", str(error)) from None
    if int(port) > 65535:
        raise InvalidMessage("port", f"{port} is no port")
    peer_id_bytes(peer)
    return Address(f"/{kind}/{ip}/tcp/{port}/p2p/{peer}", ip, int(port), PeerId(peer))


def check_elsewhere(ip: IpAddress) -> None:
    """Can an address that another machine tells be dialled from here?

    Raises:
        InvalidMessage: reason `loopback`, `link-local` (IPv6; without its zone it names no interface) or `ip`.
    """
    plain = (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip
    if plain.is_loopback:
        raise InvalidMessage("loopback", f"{ip} is this machine")
    if plain.version == 6 and plain.is_link_local:
        raise InvalidMessage("link-local", f"{ip} names no interface")
    if plain.is_unspecified or plain.is_multicast or plain.is_reserved or plain == ipaddress.IPv4Address(2**32 - 1):
        raise InvalidMessage("ip", f"{ip} is no one's address")


def encode_txt(addrs: Iterable[str]) -> bytes:
    """The TXT record of these addresses: the first MAX_ADDRS that fit into a string; one empty string for none."""
    entries = (_KEY + addr.encode() for addr in addrs)
    fitting = [entry for entry in entries if len(entry) <= MAX_STRING_BYTES]
    return b"".join(bytes((len(entry),)) + entry for entry in fitting[:MAX_ADDRS]) or b"\0"


@dataclass(slots=True)
class Described:
    """What TXT records say.

    Args:
        addrs: of one peer: the first one named.
        ignored: entries passed over, by reason. Strings that are no `dnsaddr=` belong to others and do not count.
    """

    addrs: list[Address] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def read_txt(texts: Iterable[bytes], peer: PeerId | None = None) -> Described:
    """The addresses in the TXT records of one instance; whatever the bytes are, never an exception.

    Args:
        peer: whose addresses they must be; None: whoever the first one names.
    """
    found = Described()
    for text in texts:
        for number, entry in enumerate(_strings(text)):
            if number == MAX_STRINGS:
                found.ignored["too-many"] += 1
                break
            if entry is None:
                found.ignored["cut-short"] += 1
            elif entry[: len(_KEY)].lower() == _KEY:
                try:
                    address = parse_address(entry[len(_KEY) :].decode("ascii", "replace"))
                    check_elsewhere(address.ip)
                except InvalidMessage as error:
                    found.ignored[error.reason] += 1
                    continue
                peer = peer or address.peer
                if address.peer != peer:
                    found.ignored["other-peer"] += 1
                elif len(found.addrs) == MAX_ADDRS:
                    found.ignored["too-many"] += 1
                else:
                    found.addrs.append(address)
    return found


def _strings(text: bytes) -> Iterator[bytes | None]:
    """The strings of a TXT record; None for a last one that is shorter than it says."""
    start = 0
    while start < len(text):
        end = start + 1 + text[start]
        if end > len(text):
            yield None
            return
        yield text[start + 1 : end]
        start = end
