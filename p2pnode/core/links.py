"""Which connections a node wants: enough for its meshes, a few long ones at random, and not more than its bound.

A decision, not a loop: `LinkPlanner.plan` looks at what there is and says whom to dial and whose link to close; the
caller does it and tells how each dial ended. Long links at random keep a graph connected that would otherwise be a
star around the bootstraps: where each node chooses two others or more, the graph is connected with high probability
(T. Fenner, A. Frieze, "On the connectivity of random m-orientable graphs and digraphs", 1982).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from p2pnode.core.membership.record import Member, MemberState
from p2pnode.core.peerid import PeerId
from p2pnode.core.places import Places, Target, Why

MAX_ATTEMPTS = 4096
"""Addresses whose failures are remembered; above it those whose backoff is over are forgotten."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """
    Args:
        target: dial live members while there are fewer links than this.
        most: links above this are closed again, the least useful first, whoever dialled.
        own: dialled by us whatever others dialled, so that who sits at the rim gets long links too.
        first_backoff_seconds: after the first failure at an address; doubled with each further one.
        most_backoff_seconds: and no longer than this.
        at_once: dials under way.
        settle_seconds: for so long after we were alone we dial only our `own`: where a fleet starts at once the
            others dial too, and a third of all handshakes is saved.
        grace_seconds: no link is closed for being too many before it is that old: meshes form in it.
        away_seconds: who closed on us, or we on it, for being too many, is not dialled for so long unless we are alone.
        dead_every_seconds: one of the dead is tried so often, for the day the network heals; by each node less often
            in large fleets, see `dead_share_seconds`. While we are alone, three times as often.
        dead_share_seconds: times the live members, when that is longer: all of them together try ten a second.
        found_settle_seconds: for so long after we were alone found places are not dialled: who we met first tells us of
            most of them.
        closing_seconds: how long a link that is one too many may take to close before it is closed again.
    """

    target: int = 6
    most: int = 16
    own: int = 3
    first_backoff_seconds: float = 0.25
    most_backoff_seconds: float = 10.0
    at_once: int = 4
    settle_seconds: float = 2.0
    grace_seconds: float = 8.0
    away_seconds: float = 60.0
    dead_every_seconds: float = 3.0
    dead_share_seconds: float = 0.1
    found_settle_seconds: float = 0.5
    closing_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class LinkView:
    """One open link.

    Args:
        outbound: we dialled.
        since: monotonic time when it opened.
        meshes: topics in whose mesh the peer is.
    """

    outbound: bool
    since: float
    meshes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Args:
        dial: start now.
        close: too many; say goodbye and close.
        again_at: plan again then at the latest, even if nothing happens.
    """

    dial: tuple[Target, ...]
    close: tuple[PeerId, ...]
    again_at: float


@dataclass(slots=True)
class _Attempts:
    failures: int = 0
    not_before: float = 0.0


class LinkPlanner:
    """Remembers what was tried. Made once per node.

    Args:
        own: our peer id.
        bootstraps: configured multiaddrs, with or without `/p2p/…`.
        saved: peers of an earlier run and their addresses, tried before the bootstraps while we are alone.
        rng: whom, and the jitter of backoffs.
        avoid: is this one not to be dialled, because it lives beyond a bridge? Configured and found places are dialled
            all the same.
    """

    def __init__(
        self,
        own: PeerId,
        settings: LinkSettings,
        bootstraps: Sequence[str],
        saved: Mapping[PeerId, Sequence[str]],
        rng: Random,
        avoid: Callable[[PeerId], bool] = lambda peer: False,
    ) -> None:
        self._own = own
        self._settings = settings
        self._rng = rng
        self._avoid = avoid
        self.places = Places(own, bootstraps, rng, avoid)
        self._saved = {peer: tuple(addrs) for peer, addrs in saved.items() if peer != own}
        self._hints: dict[PeerId, tuple[str, ...]] = {}
        self._attempts: dict[str, _Attempts] = {}
        self._dialling: dict[str, Target] = {}
        self._away: dict[PeerId, float] = {}
        self._closing: dict[PeerId, float] = {}
        self._next_dead = 0.0
        self._next_found = 0.0
        self._settled_at = 0.0

    # -- what happened -----------------------------------------------------------------

    def hint(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Somebody says where a peer is (peer exchange, discovery). At most 64 are kept, the oldest go."""
        if peer != self._own and addrs:
            self._hints.pop(peer, None)
            self._hints[peer] = tuple(addrs)[:4]
            while len(self._hints) > 64:
                del self._hints[next(iter(self._hints))]

    def ended(self, target: Target, *, reached: bool, now: float, answered: PeerId | None = None) -> None:
        """A dial that `plan` asked for ended.

        Args:
            answered: who lives at an address that did not say so; known even where it was not reached: ourselves.
        """
        self._dialling.pop(target.key, None)
        if answered is not None and target.peer is None:
            self.places.answered(target.addrs[0], answered)
        if not reached:
            if target.why is not Why.DEAD:
                self._failed(target.key, now)
            if target.peer is not None and target.why is Why.HINT:
                self._hints.pop(target.peer, None)
        elif target.addrs[0] in self.places and target.peer is None:
            # An address whose dweller we do not know cannot be seen among the links: not again at once.
            self._attempts.setdefault(target.key, _Attempts()).not_before = now + self._settings.most_backoff_seconds

    def closed(self, peer: PeerId, *, by_intent: bool, lasted: float, now: float) -> None:
        """A link closed. One that broke young counts as a failed dial, or who hangs up at once is dialled in a loop."""
        self._closing.pop(peer, None)
        if by_intent:
            self._away[peer] = now + self._settings.away_seconds
        for key in (peer, *self.places.addrs_of(peer)):
            if lasted < self._settings.most_backoff_seconds:
                self._failed(key, now)
            else:
                self._attempts.pop(key, None)

    def _failed(self, key: str, now: float) -> None:
        attempts = self._attempts.setdefault(key, _Attempts())
        attempts.failures += 1
        attempts.not_before = now + self._backoff(attempts.failures)

    # -- the decision ------------------------------------------------------------------

    def plan(self, links: Mapping[PeerId, LinkView], members: Mapping[PeerId, Member], now: float) -> Plan:
        """Whom to dial and to close now."""
        self._away = {peer: until for peer, until in self._away.items() if until > now}
        dial = self._wanted(links, members, now)
        for target in dial:
            self._dialling[target.key] = target
        if len(self._attempts) > MAX_ATTEMPTS:
            self._attempts = {key: each for key, each in self._attempts.items() if each.not_before > now}
        self._closing = {peer: until for peer, until in self._closing.items() if until > now and peer in links}
        return Plan(tuple(dial), self._surplus(links, now), self._again_at(now))

    def _wanted(self, links: Mapping[PeerId, LinkView], members: Mapping[PeerId, Member], now: float) -> list[Target]:
        settings = self._settings
        alone = not links
        under_way = sum(1 for each in self._dialling.values() if each.why is not Why.DEAD)
        targets = self._places_to_dial(links, members, now)
        if alone:
            saved = [(peer, addrs) for peer, addrs in self._saved.items() if not self._avoid(peer)]
            targets += self._ready((Target(peer, addrs, Why.SAVED) for peer, addrs in saved), now)
        own = sum(1 for link in links.values() if link.outbound)
        if alone:
            self._settled_at = now + settings.settle_seconds
            self._next_found = now + settings.found_settle_seconds
        wanted = settings.target if now >= self._settled_at else 0
        missing = max(wanted - len(links), settings.own - own) - under_way
        if missing > 0:
            targets += self._members_to_dial(missing, links, members, now)
        # Each source gets its turn: many saved peers that are gone must not keep us from the bootstraps, nor those
        # from the members.
        turns: Counter[Why] = Counter()
        ranked = []
        for target in targets:
            turns[target.why] += 1
            ranked.append((turns[target.why] + self._failures(target), target))
        ranked.sort(key=lambda each: each[0])
        unique: dict[str, Target] = {}
        for _, target in ranked:
            unique.setdefault(target.key, target)
        return list(unique.values())[: max(settings.at_once - under_way, 0)] + self._one_of_the_dead(
            links, members, now
        )

    def _members_to_dial(
        self, missing: int, links: Mapping[PeerId, LinkView], members: Mapping[PeerId, Member], now: float
    ) -> list[Target]:
        """Some at random of those who live, and of those whom somebody hinted at."""
        alone = not links
        free = [
            peer
            for peer, member in members.items()
            if member.state is MemberState.ALIVE
            and member.record.addrs
            and self._is_free(peer, links, alone)
            and self._is_ready(peer, now)
        ]
        free += [
            peer
            for peer in self._hints
            if peer not in members and self._is_free(peer, links, alone) and self._is_ready(peer, now)
        ]
        return [
            Target(peer, members[peer].record.addrs, Why.MEMBER)
            if peer in members
            else Target(peer, self._hints[peer], Why.HINT)
            for peer in self._rng.sample(free, min(missing, len(free)))
        ]

    def _failures(self, target: Target) -> int:
        attempts = self._attempts.get(target.key)
        return attempts.failures if attempts is not None else 0

    def _places_to_dial(
        self, links: Mapping[PeerId, LinkView], members: Mapping[PeerId, Member], now: float
    ) -> list[Target]:
        """Those where nobody was ever met: the configured ones for ever. Of the found ones, once we are not alone any
        more, each is tried once, and then one at a time and rarely: there can be thousands without a node."""
        ready = self._ready(self.places.unmet(links, members), now)
        if not links:
            return ready
        configured = [target for target in ready if target.why is Why.BOOTSTRAP]
        found = [target for target in ready if target.why is Why.FOUND]
        if not found or now < self._next_found:
            return configured
        untried = [target for target in found if target.key not in self._attempts]
        if not untried:
            self._next_found = now + self._seldom(members) * self._rng.uniform(0.8, 1.2)
        return configured + (untried or self._rng.sample(found, 1))

    def _seldom(self, members: Mapping[PeerId, Member]) -> float:
        """The pause by which all nodes together try a bounded number of hopeless addresses a second."""
        alive = sum(1 for member in members.values() if member.state is MemberState.ALIVE)
        return max(self._settings.dead_every_seconds, alive * self._settings.dead_share_seconds)

    def _one_of_the_dead(
        self, links: Mapping[PeerId, LinkView], members: Mapping[PeerId, Member], now: float
    ) -> list[Target]:
        """Besides the other dials, one at a time (two while we are alone): a dead host answers late or never."""
        at_once = 1 if links else 2
        if now < self._next_dead or sum(1 for each in self._dialling.values() if each.why is Why.DEAD) >= at_once:
            return []
        dead = [
            Target(peer, member.record.addrs, Why.DEAD)
            for peer, member in members.items()
            if member.state is MemberState.DEAD and member.record.addrs and peer not in links and not self._avoid(peer)
        ]
        places = list(self.places.of_the_gone(links, members))
        pause = self._seldom(members) if links else self._settings.dead_every_seconds / 3
        self._next_dead = now + pause * self._rng.uniform(0.8, 1.2)
        if places and (not dead or self._rng.random() < 0.5):
            dead = places
        ready = [target for target in dead if target.key not in self._dialling]
        return self._rng.sample(ready, min(1, len(ready)))

    def _is_free(self, peer: PeerId, links: Mapping[PeerId, LinkView], alone: bool) -> bool:
        is_away = not alone and peer in self._away
        return peer != self._own and peer not in links and not is_away and not self._avoid(peer)

    def _ready(self, targets: Iterable[Target], now: float) -> list[Target]:
        return [target for target in targets if self._is_ready(target.key, now)]

    def _is_ready(self, key: str, now: float) -> bool:
        """Neither under way nor in a backoff."""
        attempts = self._attempts.get(key)
        return key not in self._dialling and (attempts is None or attempts.not_before <= now)

    def _surplus(self, links: Mapping[PeerId, LinkView], now: float) -> tuple[PeerId, ...]:
        """The least useful of too many: in the fewest meshes, rather inbound ones, the youngest first.

        A link that is in a mesh stays while there are young ones, which may turn out to be in none. Else a crowded
        bootstrap keeps those that it has just pruned, and may not graft again for a minute.
        """
        open_ = {peer: link for peer, link in links.items() if peer not in self._closing}
        surplus = len(open_) - self._settings.most
        if surplus <= 0:
            return ()
        old_enough = [peer for peer, link in open_.items() if now - link.since >= self._settings.grace_seconds]
        if len(old_enough) < len(open_):
            old_enough = [peer for peer in old_enough if not open_[peer].meshes]
        old_enough.sort(key=lambda peer: (open_[peer].meshes, open_[peer].outbound, -open_[peer].since))
        closing = tuple(old_enough[: min(surplus, max(4, surplus // 8))])
        for peer in closing:
            self._away[peer] = now + self._settings.away_seconds
            self._closing[peer] = now + self._settings.closing_seconds
        return closing

    def _again_at(self, now: float) -> float:
        backoffs = [each.not_before for each in self._attempts.values() if each.not_before > now]
        if self._next_found > now:
            backoffs.append(self._next_found)
        if not any(each.why is Why.DEAD for each in self._dialling.values()):
            backoffs.append(max(self._next_dead, now + 0.05))
        return min([now + 1.0, *backoffs])

    def _backoff(self, failures: int) -> float:
        settings = self._settings
        longest = min(settings.first_backoff_seconds * 2.0 ** min(failures - 1, 20), settings.most_backoff_seconds)
        return longest * self._rng.uniform(0.5, 1.0)
