"""Whom this node dials: its bootstraps for ever, and a few members at random so that the fleet is no star."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import trio

from p2pnode.core.member import MemberState
from p2pnode.core.peerid import PeerId
from p2pnode.errors import P2PNodeError
from p2pnode.node.members import Members
from p2pnode.ports import Host

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.25
OWN_DIALS_WANTED = 3
"""Members dialled besides the bootstraps, even when others have dialled us already."""

STEADY_SECONDS = 10.0
"""A link that held this long makes up for all failures before it."""

CONCURRENT_DIALS = 3
MAX_HINTS = 64
MAX_HINT_ADDRS = 4
WAKE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DialSettings:
    """
    Args:
        bootstrap: multiaddrs with `/p2p/…`.
        target_links: dial members while there are fewer links than this.
        max_links: never dial beyond this many links.
        backoff_max_seconds: longest pause between two attempts at one address.
    """

    bootstrap: Sequence[str]
    target_links: int
    max_links: int
    backoff_max_seconds: float


class Dialer:
    """Keeps the wanted links up: until cancelled, whatever is down."""

    def __init__(self, host: Host, members: Members, settings: DialSettings, rng: Random) -> None:
        self._host = host
        self._members = members
        self._settings = settings
        self._rng = rng
        self._wake = trio.Event()
        self._closed: dict[PeerId, trio.Event] = {}
        self._attempts: dict[PeerId, tuple[int, float]] = {}
        self._dialling: set[PeerId] = set()
        self._hints: dict[PeerId, tuple[str, ...]] = {}
        own = f"/p2p/{host.peer_id}"
        self.bootstraps = tuple(addr for addr in dict.fromkeys(settings.bootstrap) if not addr.endswith(own))
        self.bootstrap_errors: dict[str, str] = {}
        self.bootstrap_ids = frozenset(PeerId(addr.rpartition("/p2p/")[2]) for addr in settings.bootstrap)

    def wake(self) -> None:
        """Something changed: links, or members."""
        self._wake.set()

    def hint(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Somebody says where a peer is; it is dialled once, while links are wanted. At most 64 hints wait.

        A hub that prunes 25 leaves gives each of them 16 peers: taking all of it would make a clique.
        """
        links = self._host.links()
        wanted = len(links) + len(self._hints) + len(self._dialling) < self._settings.target_links
        if wanted and addrs and peer != self._host.peer_id and peer not in links and len(self._hints) < MAX_HINTS:
            self._hints[peer] = tuple(addrs)[:MAX_HINT_ADDRS]
            self.wake()

    def link_closed(self, peer: PeerId) -> None:
        if (event := self._closed.pop(peer, None)) is not None:  # an Event has no truth value
            event.set()
        self._members.mark_unreachable(peer, gone=False)
        self._attempts.pop(peer, None)
        self.wake()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for addr in self.bootstraps:
                nursery.start_soon(self._keep_bootstrap, addr)
            nursery.start_soon(self._keep_links, nursery)

    async def _keep_bootstrap(self, addr: str) -> None:
        failures = 0
        while True:
            try:
                peer = await self._host.dial(addr)
            except P2PNodeError as error:
                failures += 1
                if self.bootstrap_errors.get(addr) != error.detail:
                    log.warning("bootstrap peer not reached, trying on", extra={"addr": addr, "reason": error.detail})
                self.bootstrap_errors[addr] = error.detail
                await trio.sleep(self._backoff(failures))
                continue
            if self.bootstrap_errors.pop(addr, None) is not None:
                log.info("bootstrap peer reached", extra={"addr": addr})
            since = trio.current_time()
            await self._until_closed(peer)
            # A link that does not hold is a failure, or a peer that hangs up at once is dialled without pause.
            failures = 1 if trio.current_time() - since >= STEADY_SECONDS else failures + 1
            self.bootstrap_errors[addr] = "the connection was lost"
            await trio.sleep(self._backoff(failures))

    async def _until_closed(self, peer: PeerId) -> None:
        if peer in self._host.links():
            await self._closed.setdefault(peer, trio.Event()).wait()

    def _backoff(self, failures: int) -> float:
        longest = min(FIRST_BACKOFF_SECONDS * 2 ** min(failures, 20), self._settings.backoff_max_seconds)
        return float(longest * self._rng.uniform(0.5, 1.0))

    async def _keep_links(self, nursery: trio.Nursery) -> None:
        while True:
            self._wake = trio.Event()
            while self._hints and self._room() > 0:
                peer, addrs = self._hints.popitem()
                if peer not in self._dialling and peer not in self._host.links():
                    self._dialling.add(peer)
                    nursery.start_soon(self._dial_hint, peer, addrs)
            for peer in self._wanted():
                self._dialling.add(peer)
                nursery.start_soon(self._dial_member, peer)
            with trio.move_on_after(WAKE_SECONDS):
                await self._wake.wait()

    def _room(self) -> int:
        """Dials that may start now."""
        links = len(self._host.links())
        return min(CONCURRENT_DIALS, self._settings.max_links - links) - len(self._dialling)

    async def _dial_hint(self, peer: PeerId, addrs: Sequence[str]) -> None:
        try:
            await self._try_addrs(peer, addrs)
        finally:
            self._dialling.discard(peer)
            self.wake()

    def _wanted(self) -> list[PeerId]:
        """Members to dial now: suspects first, for they may be back; then at random; one of the dead at a time."""
        links = self._host.links()
        now = trio.current_time()
        ready = [
            member
            for peer, member in self._members.table.all().items()
            if peer not in links
            and peer not in self._dialling
            and peer != self._host.peer_id
            and member.record.addrs
            and member.state is not MemberState.LEFT
            and self._attempts.get(peer, (0, 0.0))[1] <= now
        ]
        suspects = [m.record.peer_id for m in ready if m.state is MemberState.SUSPECT]
        others = [m.record.peer_id for m in ready if m.state is MemberState.ALIVE]
        dead = [m.record.peer_id for m in ready if m.state is MemberState.DEAD]
        if any(m and m.state is MemberState.DEAD for m in map(self._members.table.get, self._dialling)):
            dead = []
        own = sum(1 for peer, link in links.items() if link.direction == "outbound" and peer not in self.bootstrap_ids)
        missing = max(self._settings.target_links - len(links), OWN_DIALS_WANTED - own) - len(self._dialling)
        wanted = self._rng.sample(others, min(len(others), max(missing, 0)))
        return (suspects + wanted + self._rng.sample(dead, min(len(dead), 1)))[: max(self._room(), 0)]

    async def _dial_member(self, peer: PeerId) -> None:
        try:
            member = self._members.table.get(peer)
            reached = member is not None and await self._try_addrs(peer, member.record.addrs)
            reached = reached or peer in self._host.links()  # it dialled us meanwhile
            failures = 0 if reached else self._attempts.get(peer, (0, 0.0))[0] + 1
            self._attempts[peer] = (failures, trio.current_time() + (self._backoff(failures) if failures else 0.0))
            if failures >= 2:
                self._members.mark_unreachable(peer, gone=True)
        finally:
            self._dialling.discard(peer)
            self.wake()

    async def _try_addrs(self, peer: PeerId, addrs: Sequence[str]) -> bool:
        for addr in addrs:
            try:
                await self._host.dial(f"{addr}/p2p/{peer}")
            except P2PNodeError as error:
                log.debug("member not reached", extra={"peer": peer, "addr": addr, "reason": error.detail})
            else:
                return True
        return False
