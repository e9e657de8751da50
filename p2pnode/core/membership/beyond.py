"""Who lives beyond a bridge: a Bloom filter in the bridge's record, and whose filter counts for us.

Two meshes that cannot reach each other know each other's members by bridges. A bridge names in its record who lives
beyond it, so that nobody on its own side probes, accuses or dials those. The bridge at the other end names our side in
the same way, and its record comes to us as well: a bridge that names us, or most of those we are linked with, speaks
to the others and is not heard here.

Sources: B. H. Bloom, "Space/Time Trade-offs in Hash Coding with Allowable Errors" (1970); A. Kirsch,
M. Mitzenmacher, "Less Hashing, Same Performance: Building a Better Bloom Filter" (2006): all positions of a member
from two hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from hashlib import sha256
from math import log

from p2pnode.core.membership.record import GONE, MAX_MEMBERS, Member, MemberRecord, Role
from p2pnode.core.peerid import PeerId

MAX_BEYOND_BYTES = 1536
"""Of a filter: 12 bits for each of 1,000 peers, and a record has room for it."""

LEAST_BYTES = 64
"""Of the bits: in fewer two hashes differ too seldom."""

BITS_PER_PEER = 20
"""While there is room: one stranger in 10,000 is named by chance."""

MAX_HASHES = 16
MAX_FILL = 0.6
"""Share of bits: a filter that is fuller names half of everybody, and counts as empty. One well made has half."""

SIZES_TRIED = 32

MAX_VOUCHERS = 64
"""Bridges whose filters are kept, the first ones; one that is gone makes room."""


class BeyondFilter:
    """A filter as it stands in a record: one byte, how many hashes, and then the bits. Any bytes are one, if a useless
    one: broken or too full, it names nobody."""

    def __init__(self, encoded: bytes) -> None:
        bits = encoded[1:] if is_filter(encoded) else b""
        is_too_full = int.from_bytes(bits, "big").bit_count() > MAX_FILL * 8 * len(bits)
        self._bits = b"" if is_too_full else bits
        self._hashes = encoded[0] if self._bits else 0

    def __bool__(self) -> bool:
        """May it name anybody?"""
        return bool(self._bits)

    def names(self, peer: PeerId) -> bool:
        """Does the peer live beyond? Always true of those that were put in; rarely of another."""
        return bool(self._bits) and _are_set(self._bits, _hashed(peer), self._hashes)

    @staticmethod
    def contains(encoded: bytes, peer: PeerId) -> bool:
        """The same of an encoded filter."""
        return BeyondFilter(encoded).names(peer)

    @staticmethod
    def make(peers: Iterable[PeerId], *, avoid: Iterable[PeerId] = ()) -> bytes:
        """A filter that names these: the same bytes for the same peers; empty for none.

        Of strangers up to 600 peers name 1 in 10,000 by chance, 1,000 name 1 in 300, 2,000 name 1 in 20.

        Args:
            avoid: those on this side: of some sizes of the filter the one is taken that names the fewest of them.
        """
        named = {peer: _hashed(peer) for peer in sorted(set(peers))}
        if not named:
            return b""
        kept_off = [_hashed(peer) for peer in sorted(set(avoid)) if peer not in named]
        wanted = max((BITS_PER_PEER * len(named) + 7) // 8, LEAST_BYTES)
        first = min(wanted, MAX_BEYOND_BYTES - SIZES_TRIED)
        best, fewest = b"", len(kept_off) + 1
        for size in range(first, first + SIZES_TRIED):
            bits, hashes = _fill(named.values(), size)
            hit = sum(_are_set(bits, each, hashes) for each in kept_off)
            if hit < fewest:
                best, fewest = bytes([hashes]) + bits, hit
            if not hit:
                break
        return best


def is_filter(encoded: bytes) -> bool:
    """May it stand in a record: empty, or of a size and a number of hashes that `BeyondFilter` reads?"""
    return not encoded or (2 <= len(encoded) <= MAX_BEYOND_BYTES and 1 <= encoded[0] <= MAX_HASHES)


def _fill(hashed: Collection[tuple[int, int]], size: int) -> tuple[bytes, int]:
    """`size` bytes with all of them set, and the number of hashes that suits their count."""
    hashes = min(max(round(8 * size / len(hashed) * log(2)), 1), 14)
    bits = bytearray(size)
    for first, step in hashed:
        for number in range(hashes):
            place = (first + number * step) % (8 * size)
            bits[place >> 3] |= 1 << (place & 7)
    return bytes(bits), hashes


def _are_set(bits: bytes, hashed: tuple[int, int], hashes: int) -> bool:
    first, step = hashed
    size = 8 * len(bits)
    for number in range(hashes):
        place = (first + number * step) % size
        if not bits[place >> 3] >> (place & 7) & 1:
            return False
    return True


def _hashed(peer: PeerId) -> tuple[int, int]:
    digest = sha256(peer.encode()).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big") | 1


class Vouchers:
    """The bridges that name anybody, and for whom they vouch.

    What was looked up is kept until a filter changes, so that asking for every member costs a table look-up each.

    Args:
        own: our peer id.
        members: everybody known; a bridge that is gone vouches for nobody.
        may_vouch: is this bridge believed?
    """

    def __init__(self, own: PeerId, members: Mapping[PeerId, Member], may_vouch: Callable[[PeerId], bool]) -> None:
        self._own = own
        self._members = members
        self._may_vouch = may_vouch
        self._encoded: dict[PeerId, bytes] = {}
        self._filters: dict[PeerId, BeyondFilter] = {}
        self._named_by: dict[PeerId, tuple[PeerId, ...]] = {}
        self._is_ours: dict[PeerId, bool] = {}

    def heard(self, record: MemberRecord) -> None:
        """A record was taken in; it is in the table by now."""
        peer = record.peer_id
        encoded = b"" if record.left or record.role != Role.BRIDGE else record.beyond
        if encoded == self._encoded.get(peer, b""):
            return
        self.forget(peer)
        if not encoded:
            return
        if len(self._encoded) >= MAX_VOUCHERS and peer != self._own:
            for gone in [each for each in self._encoded if not self._is_here(each)]:
                self.forget(gone)
            if len(self._encoded) >= MAX_VOUCHERS:
                return
        self._encoded[peer] = encoded
        self._filters[peer] = BeyondFilter(encoded)
        self._named_by.clear()
        self._is_ours.clear()

    def forget(self, peer: PeerId) -> None:
        """It names nobody any more."""
        if self._encoded.pop(peer, None) is not None:
            del self._filters[peer]
            self._named_by.clear()
            self._is_ours.clear()

    def links_changed(self) -> None:
        self._is_ours.clear()

    def vouch_for(self, peer: PeerId, links: Collection[PeerId]) -> bool:
        """Does the peer, to whom we have no link, live beyond a bridge of ours that is here?"""
        if not self._filters or peer in links or peer == self._own:
            return False
        named_by = self._named_by.get(peer)
        if named_by is None:
            if len(self._named_by) > 2 * MAX_MEMBERS:
                self._named_by.clear()
            named_by = tuple(bridge for bridge, each in self._filters.items() if bridge != peer and each.names(peer))
            self._named_by[peer] = named_by
        return any(
            self._is_on_our_side(bridge, links)
            and self._is_here(bridge)
            and self._may_vouch(bridge)
            and not self._disagree(bridge, peer, links)
            for bridge in named_by
        )

    def _disagree(self, bridge: PeerId, peer: PeerId, links: Collection[PeerId]) -> bool:
        """Does the peer, a bridge, name the other in turn, and might it be the one on our side? As long as that is open
        both are watched: else a dead bridge would live by the word of the one beyond, which nobody updates any more."""
        filter_ = self._filters.get(peer)
        return (
            bridge != self._own and filter_ is not None and filter_.names(bridge) and self._is_on_our_side(peer, links)
        )

    def _is_here(self, bridge: PeerId) -> bool:
        member = self._members.get(bridge)
        return member is not None and member.state not in GONE

    def _is_on_our_side(self, bridge: PeerId, links: Collection[PeerId]) -> bool:
        is_ours = self._is_ours.get(bridge)
        if is_ours is None:
            names = self._filters[bridge].names
            is_ours = bridge == self._own or (not names(self._own) and 2 * sum(map(names, links)) <= len(links))
            self._is_ours[bridge] = is_ours
        return is_ours
