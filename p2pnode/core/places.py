"""Where somebody may be: the configured addresses and the found ones, and who answered at each.

A place is *met* when a member is known to live there: the peer that its address names, the one that answered there,
or one whose record holds the address. What is not met is dialled, so that two islands that can see each other's
places become one; what is met is dialled only while we are alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from p2pnode.core.membership.record import GONE, Member, MemberState
from p2pnode.core.peerid import PeerId

MAX_FOUND = 10_000
"""Found addresses that are kept; the sources bound theirs already."""

MAX_ANSWERERS = 8
"""Peers remembered of one address: more than one means that it leads to a different one each time."""


class Why(StrEnum):
    """Why somebody is dialled."""

    BOOTSTRAP = "bootstrap"
    FOUND = "found"
    SAVED = "saved"
    MEMBER = "member"
    HINT = "hint"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Target:
    """Somebody to dial, by the first address that answers.

    Args:
        peer: None when the address does not say who lives there.
        addrs: multiaddrs without `/p2p/…` of a known peer, or one whole configured or found address.
    """

    peer: PeerId | None
    addrs: tuple[str, ...]
    why: Why

    @property
    def key(self) -> str:
        """What attempts are counted by: the peer, or the address where it is what was configured or names nobody."""
        return self.addrs[0] if self.peer is None or self.why is Why.BOOTSTRAP else self.peer


@dataclass(slots=True)
class _Place:
    named: PeerId | None
    configured: bool
    answerers: list[PeerId]

    @property
    def peer(self) -> PeerId | None:
        """Who lives there, as far as we know."""
        return self.named or (self.answerers[-1] if self.answerers else None)


class Places:
    """Made once per node.

    Args:
        own: our peer id: a place where we answer ourselves is of use only while we are alone.
        configured: multiaddrs, with or without `/p2p/…`; they stay for ever.
        rng: the order in which found places are tried, or all nodes would begin with the same one.
        is_beyond: does this member live beyond a bridge? The addresses in its record are those of another network,
            and may be somebody else's here.
    """

    def __init__(
        self,
        own: PeerId,
        configured: Sequence[str],
        rng: Random,
        is_beyond: Callable[[PeerId], bool] = lambda peer: False,
    ) -> None:
        self._own = own
        self._rng = rng
        self._is_beyond = is_beyond
        self._places = {addr: _Place(peer_of(addr), True, []) for addr in configured}

    def found(self, addrs: Iterable[str]) -> None:
        """All that the sources find now; what they no longer do is forgotten."""
        known = self._places
        wanted = dict.fromkeys(addrs)
        new = [addr for addr in wanted if addr not in known]
        self._rng.shuffle(new)
        kept = {addr: place for addr, place in known.items() if place.configured or addr in wanted}
        for addr in new[: max(MAX_FOUND - len(kept), 0)]:
            kept[addr] = _Place(peer_of(addr), False, [])
        self._places = kept

    def answered(self, addr: str, peer: PeerId) -> None:
        """Who was reached at a whole address."""
        place = self._places.get(addr)
        if place is not None:
            place.answerers = [*(each for each in place.answerers if each != peer), peer][-MAX_ANSWERERS:]

    def answerers(self) -> Mapping[str, Sequence[PeerId]]:
        """Who answered at each address, the latest last."""
        return {addr: tuple(place.answerers) for addr, place in self._places.items() if place.answerers}

    def addrs_of(self, peer: PeerId) -> list[str]:
        """The places where a peer lives, as far as we know."""
        return [addr for addr, place in self._places.items() if place.peer == peer]

    def __contains__(self, addr: str) -> bool:
        return addr in self._places

    def unmet(self, links: Collection[PeerId], members: Mapping[PeerId, Member]) -> list[Target]:
        """Places to dial: those where no member is known to live; and all of them while we are alone.

        A place whose dweller is gone counts as met here: see `of_the_gone`. That of a member beyond a bridge does not,
        so that two meshes that can reach each other again become one.
        """
        alone = not links
        at_members = frozenset() if alone else self._addrs_of_the_living(members)
        wanted: list[Target] = []
        by_peer: dict[PeerId, list[str]] = {}
        for addr, place in self._places.items():
            peer = place.peer
            if peer is None:
                is_met = addr in at_members
            else:
                # Ourselves we may have met behind an address that leads to somebody else the next time.
                is_known = peer == self._own or (peer in members and not self._is_beyond(peer))
                is_met = place.named == self._own or peer in links or (not alone and is_known)
            if is_met:
                continue
            if place.configured:
                wanted.append(Target(place.named, (addr,), Why.BOOTSTRAP))
            elif place.named is None:
                wanted.append(Target(None, (addr,), Why.FOUND))
            else:
                by_peer.setdefault(place.named, []).append(without_peer(addr))
        return wanted + [Target(peer, tuple(addrs), Why.FOUND) for peer, addrs in by_peer.items()]

    def of_the_gone(self, links: Collection[PeerId], members: Mapping[PeerId, Member]) -> Iterator[Target]:
        """Places whose dweller died or left: started anew, it may be somebody else, who knows nobody."""
        for addr, place in self._places.items():
            peer = place.peer
            if peer is not None and peer not in links and peer in members and members[peer].state in GONE:
                yield Target(place.named, (without_peer(addr) if place.named else addr,), Why.DEAD)

    def _addrs_of_the_living(self, members: Mapping[PeerId, Member]) -> Set[str]:
        if all(place.peer is not None for place in self._places.values()):
            return frozenset()
        return {
            addr
            for peer, member in members.items()
            if member.state in (MemberState.ALIVE, MemberState.SUSPECT) and not self._is_beyond(peer)
            for addr in member.record.addrs
        }


def peer_of(addr: str) -> PeerId | None:
    """The peer id that a multiaddr ends in."""
    _, found, peer = addr.rpartition("/p2p/")
    return PeerId(peer) if found else None


def without_peer(addr: str) -> str:
    """A multiaddr without its `/p2p/…`."""
    return addr.rpartition("/p2p/")[0] or addr
