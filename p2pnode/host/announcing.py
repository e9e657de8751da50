"""What a node tells others of where it can be dialled."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable, Sequence

import trio

from p2pnode.core.peerid import PeerId
from p2pnode.host.addresses import is_wildcard, wildcard_to_interfaces

log = logging.getLogger(__name__)

KEEP_SECONDS = 1.0
"""So long a list is given again: it is asked for often, and each time the kernel would be asked for its interfaces."""


class Announced:
    """The addresses of one node.

    Args:
        announce: multiaddrs that an operator wrote; told as they are, and nothing else.
        networks: of this machine's own addresses only those in here are told, in this order; empty: all. An address
            that is listened on by itself was chosen by somebody, and is told in any case.
        listening: what is listened on now, wildcards included.
    """

    def __init__(
        self,
        peer_id: PeerId,
        announce: Sequence[str],
        networks: Sequence[str],
        listening: Callable[[], Sequence[str]],
    ) -> None:
        self._suffix = f"/p2p/{peer_id}"
        self._announce = tuple(addr if "/p2p/" in addr else addr + self._suffix for addr in announce)
        self._networks = [ipaddress.ip_network(text) for text in networks]
        self._listening = listening
        self._kept: tuple[float, tuple[str, ...]] | None = None
        self._warned = False

    def addrs(self) -> tuple[str, ...]:
        """Multiaddrs ending in `/p2p/<peer id>`; at most a second old."""
        if self._announce:
            return self._announce
        now = trio.current_time()
        if self._kept is None or now - self._kept[0] >= KEEP_SECONDS:
            self._kept = now, tuple(addr + self._suffix for addr in self._found())
        return self._kept[1]

    def _found(self) -> list[str]:
        listening = self._listening()
        found = wildcard_to_interfaces(listening)
        if not self._networks:
            return found
        own = wildcard_to_interfaces(filter(is_wildcard, listening))
        outside = {addr for addr in own if self._rank(addr) == len(self._networks)} - set(listening)
        if own and outside.issuperset(own):
            self._warn(own)
            return found
        return sorted((addr for addr in found if addr not in outside), key=self._rank)

    def _rank(self, addr: str) -> int:
        """The place of the first network that holds it; behind the last when none does."""
        ip = ipaddress.ip_address(addr.split("/")[2])
        return next((place for place, each in enumerate(self._networks) if ip in each), len(self._networks))

    def _warn(self, own: Iterable[str]) -> None:
        # A node that tells nobody where it is can be reached by nobody, and is a worse answer to a mistyped network
        # than one that tells too much.
        if not self._warned:
            self._warned = True
            log.warning(
                "no address of this machine is in network.announce_cidr: all of them are announced",
                extra={"announce_cidr": [str(each) for each in self._networks], "addresses": list(own)},
            )
