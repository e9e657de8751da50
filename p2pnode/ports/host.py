"""The host: connections and request streams over libp2p, and what it reports of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from p2pnode.core.peerid import PeerId

Direction = Literal["inbound", "outbound"]


@dataclass(frozen=True, slots=True)
class Link:
    """One open connection.

    Args:
        peer: who is at the other end, proven by the handshake.
        direction: who dialled.
        addr: the remote address as a multiaddr without `/p2p/…`; empty when unknown.
    """

    peer: PeerId
    direction: Direction
    addr: str


class HostEvents(Protocol):
    """What the host reports; called on the event loop, must return at once and never raise."""

    def link_opened(self, link: Link) -> None: ...

    def link_closed(self, peer: PeerId, *, by_intent: bool) -> None:
        """The last connection to `peer` is gone.

        Args:
            by_intent: one of the two sides said that it closes; else something broke.
        """

    def link_silent(self, peer: PeerId) -> None:
        """The connection stands, but the peer answers no ping; said again for as long as it does not."""


class Host(Protocol):
    """Connections and request streams over libp2p."""

    @property
    def peer_id(self) -> PeerId: ...

    def addrs(self) -> tuple[str, ...]:
        """Where this node can be dialled: multiaddrs ending in `/p2p/<peer id>`."""

    def links(self) -> Mapping[PeerId, Link]: ...

    async def dial(self, addr: str) -> PeerId:
        """Connect to a multiaddr, with or without `/p2p/…`; returns who answered.

        An address without a peer id may lead to somebody there is a link with already: that link stays the only one.

        Raises:
            Unavailable: reason `dial`: nobody answers there; `dns`: the name does not resolve; `other-peer`: somebody
                else lives there than the address names; `network-key`: who answers is in another private network, or
                in none; `self`: it is this node.
        """

    async def hang_up(self, peer: PeerId) -> None:
        """Close every connection to `peer`; returns within two seconds whatever the peer does."""

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, limit_bytes: int) -> bytes:
        """Open a stream, send one length-prefixed body, return the one that comes back.

        Raises:
            Unavailable: no connection, no such protocol, or no answer in time.
            InvalidMessage: the answer is longer than `limit_bytes` or cut short.
        """

    def serve(self, protocol: str, answer: Callable[[PeerId, bytes], Awaitable[bytes]], *, limit_bytes: int) -> None:
        """Answer requests; `answer` raising InvalidMessage ends that stream only."""

    async def probe(self, peer: PeerId, addrs: Sequence[str], patience_seconds: float, *, fresh: bool = False) -> bool:
        """Does `peer` answer at one of `addrs` (multiaddrs without `/p2p/…`)? A handshake proves it; no link stays.

        Args:
            fresh: dial in any case; else a link that said something within the last second is proof enough.
        """

    def round_trip(self, peer: PeerId) -> float | None:
        """The newest measured round trip of a link, in seconds."""

    def counters(self) -> Mapping[tuple[str, str], int]:
        """How often each `(what, reason)` happened.

        `broken`: connections that ended by what the peer sent, or left dying. `refused`: connections that came in
        from another private network or none (`network-key`). `failed`: exceptions of our own that nobody expected,
        by where they came from.
        """

    def strangers(self) -> Mapping[str, int]:
        """How many connections from another private network, or from none, were refused, by IP address.

        At most 64 addresses, those heard of last, the latest at the end. Only who said something that shows it is
        counted: who hung up at once may be a health check.
        """

    async def ping(self, peer: PeerId) -> float:
        """Round trip over `/ipfs/ping/1.0.0`, in seconds.

        Raises:
            Unavailable: not connected, or no echo in time.
        """
