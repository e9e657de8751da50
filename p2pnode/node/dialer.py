"""The link plan carried out: dials, closes what is too much, and remembers for the next start who was there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import trio

from p2pnode.core.links import LinkPlanner, LinkSettings, LinkView
from p2pnode.core.membership.record import GONE, MemberState
from p2pnode.core.peerid import PeerId
from p2pnode.core.places import Target, Why, peer_of
from p2pnode.errors import EnvironmentFault, P2PNodeError, Unavailable
from p2pnode.node.members import Members
from p2pnode.ports import Host, KnownPeers, Link

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.02
"""Between two plans: what happens at once is planned once."""

TARGET_SECONDS = 20.0
"""For all addresses of one target: sixteen that swallow packets would hold one of the few dials for minutes."""

SAVE_SECONDS = 20.0
SAVED_PEERS = 64


@dataclass(frozen=True, slots=True)
class DialFailure:
    """Why nobody is reached at a place.

    Args:
        reason: a short fixed word, as `ports.Host.dial` gives them.
        error: what happened, without the address.
    """

    reason: str
    error: str


class Dialer:
    """Keeps the wanted links up: until cancelled, whatever is down.

    Args:
        bootstraps: configured multiaddrs.
        meshes: in how many meshes a peer is.
        known: peers of earlier runs; where those of this one are kept.
    """

    def __init__(
        self,
        host: Host,
        members: Members,
        settings: LinkSettings,
        bootstraps: Sequence[str],
        meshes: Callable[[], Mapping[PeerId, int]],
        known: KnownPeers,
        rng: Random,
    ) -> None:
        self._host = host
        self._members = members
        self._meshes = meshes
        self._known = known
        own = f"/p2p/{host.peer_id}"
        self.bootstraps = tuple(addr for addr in dict.fromkeys(bootstraps) if not addr.endswith(own))
        self._planner = LinkPlanner(host.peer_id, settings, self.bootstraps, known.load(), rng, members.is_beyond)
        self._since: dict[PeerId, float] = {}
        self._wake = trio.Event()
        self._failures: dict[str, DialFailure] = {}
        self.counted: Counter[tuple[str, str]] = Counter()
        """Dials of places by why and how they ended: `reached`, or the failure's reason."""

    @property
    def bootstrap_errors(self) -> Mapping[str, str]:
        """What is wrong with each bootstrap that nobody knows to live."""
        return {addr: why for addr in self.bootstraps if (why := self._error_of(addr))}

    def _error_of(self, addr: str) -> str:
        peer = self.lives_at(addr)
        if peer in self._host.links():
            return ""
        member = self._members.get(peer) if peer is not None else None
        if member is None:
            return failure.error if (failure := self._failures.get(addr)) is not None else ""
        return f"the member there is {member.state.value}" if member.state in GONE else ""

    def lives_at(self, addr: str) -> PeerId | None:
        """Who the address names, who answered there, or the live member that announces it: it is not dialled any more,
        so what its last dial said is out of date."""
        return peer_of(addr) or self.dweller(addr) or self._members.living_at(addr)

    @property
    def failures(self) -> Mapping[str, DialFailure]:
        """The latest failure at each configured or found address where nobody is known to live."""
        return {addr: why for addr, why in self._failures.items() if not self._is_met(addr)}

    def _is_met(self, addr: str) -> bool:
        peer = self.lives_at(addr)
        member = self._members.get(peer) if peer is not None else None
        return peer in self._host.links() or (member is not None and member.state not in GONE)

    def answerers(self) -> Mapping[str, Sequence[PeerId]]:
        """Who answered at each address that names nobody, the latest last."""
        return self._planner.places.answerers()

    def dweller(self, addr: str) -> PeerId | None:
        """Who answered last at an address that names nobody."""
        there = self.answerers().get(addr)
        return there[-1] if there else None

    def found(self, addrs: Iterable[str]) -> None:
        """All that discovery finds now."""
        self._planner.places.found(addrs)
        self._failures = {addr: why for addr, why in self._failures.items() if addr in self._planner.places}
        self.wake()

    def wake(self) -> None:
        """Something changed: links, or members."""
        self._wake.set()

    def hint(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Somebody says where a peer is; it may be dialled while links are wanted."""
        self._planner.hint(peer, addrs)
        self.wake()

    def link_opened(self, link: Link) -> None:
        self._since[link.peer] = trio.current_time()
        self.wake()

    def link_closed(self, peer: PeerId, *, by_intent: bool) -> None:
        now = trio.current_time()
        lasted = now - self._since.pop(peer, now)
        self._planner.closed(peer, by_intent=by_intent, lasted=lasted, now=now)
        self.wake()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._save_now_and_then)
            while True:
                self._wake = trio.Event()
                now = trio.current_time()
                plan = self._planner.plan(self._views(now), self._members.all(), now)
                for target in plan.dial:
                    nursery.start_soon(self._dial, target)
                for peer in plan.close:
                    log.info("closing a link that is one too many", extra={"peer": peer})
                    nursery.start_soon(self._host.hang_up, peer)
                with trio.move_on_at(plan.again_at):
                    await self._wake.wait()
                await trio.sleep(SETTLE_SECONDS)

    def _views(self, now: float) -> dict[PeerId, LinkView]:
        meshes = self._meshes()
        return {
            peer: LinkView(link.direction == "outbound", self._since.get(peer, now), meshes.get(peer, 0))
            for peer, link in self._host.links().items()
        }

    async def _dial(self, target: Target) -> None:
        reached: PeerId | None = None
        try:
            with trio.move_on_after(TARGET_SECONDS) as patience:
                reached = await self._dial_one_of(target)
            if patience.cancelled_caught:
                self._failed(target, target.addrs[0], "dial", f"no answer within {TARGET_SECONDS:g} s")
            if reached is None and target.peer in self._host.links():
                reached = target.peer  # it dialled us meanwhile
        finally:
            is_other = reached is not None and reached != self._host.peer_id
            self._planner.ended(target, reached=is_other, now=trio.current_time(), answered=reached)
            if is_other:
                self._reached(target)
            self.wake()

    async def _dial_one_of(self, target: Target) -> PeerId | None:
        """Who answered at the first address where anybody did; ourselves where we did."""
        for addr in target.addrs:
            try:
                return await self._host.dial(_whole(target, addr))
            except Unavailable as error:
                if error.reason == "self":
                    return self._host.peer_id
                self._failed(target, addr, error.reason, error.detail.removeprefix(f"{_whole(target, addr)}: "))
            except P2PNodeError as error:
                self._failed(target, addr, "refused", error.detail)
        return None

    def _reached(self, target: Target) -> None:
        self.counted[target.why.value, "reached"] += 1
        for addr in target.addrs:
            if self._failures.pop(_whole(target, addr), None) is not None and target.why is Why.BOOTSTRAP:
                log.info("bootstrap peer reached", extra={"addr": addr})

    def _failed(self, target: Target, addr: str, reason: str, error: str) -> None:
        whole = _whole(target, addr)
        self.counted[target.why.value, reason] += 1
        before = self._failures.get(whole)
        if whole in self._planner.places:
            self._failures[whole] = DialFailure(reason, error)
        extra = {"addr": whole, "reason": error}
        is_news = before is None or before.error != error
        if target.why is Why.BOOTSTRAP and is_news:
            log.warning("bootstrap peer not reached, trying on", extra=extra)
        elif target.why is Why.FOUND and is_news:
            log.info("found, but not reached; trying on", extra=extra)
        else:
            log.debug("not reached", extra=extra)

    async def _save_now_and_then(self) -> None:
        saved: Mapping[PeerId, tuple[str, ...]] = {}
        while True:
            await trio.sleep(SAVE_SECONDS if saved else SAVE_SECONDS / 10)
            present = self._to_save()
            if present and present != saved:
                try:
                    await self._known.save(present)
                    saved = present
                except EnvironmentFault as error:
                    log.warning("the known peers could not be saved", extra={"reason": error.detail})
                    await trio.sleep(SAVE_SECONDS)

    def _to_save(self) -> dict[PeerId, tuple[str, ...]]:
        """Live members on this side of all bridges with addresses, linked ones first."""
        links = self._host.links()
        alive = [
            member.record
            for peer, member in self._members.all().items()
            if member.state is MemberState.ALIVE
            and member.record.addrs
            and peer != self._host.peer_id
            and not self._members.is_beyond(peer)
        ]
        alive.sort(key=lambda record: (record.peer_id not in links, record.peer_id))
        return {record.peer_id: record.addrs for record in alive[:SAVED_PEERS]}


def _whole(target: Target, addr: str) -> str:
    """An address of a target as it is dialled."""
    return addr if target.peer is None or peer_of(addr) is not None else f"{addr}/p2p/{target.peer}"
