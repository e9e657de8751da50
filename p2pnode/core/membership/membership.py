"""Who is there and who is gone, as a state machine: SWIM's suspicion over gossip, with links as its eyes.

Sources: A. Das, I. Gupta, A. Motivala, "SWIM" (2002): suspicion, incarnations, refutation, indirect probes;
A. Dadgar, J. Phillips, J. Currey, "Lifeguard" (2018): who is slow itself is slow to accuse, more accusers shorten
a suspicion. What differs: a member's neighbours watch it by their links, so probing is left for members that
nobody may be watching; and every claim is signed, so that whoever joins later can check it.

- Each member signs its own record. The newer incarnation wins; nothing else changes a record.
- Only who lost its link to a member and could not reach it again, or whose probe and helpers' probes failed, accuses
  it: once per incarnation. An accused member is *suspect*, and *dead* when nothing refuted that in time.
- An accused member that lives says so with a new incarnation.
- Who lives beyond a bridge is the other side's to watch: as long as a bridge vouches for it, it is neither probed nor
  accused here (see `beyond`).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from random import Random

from p2pnode.core.membership.admission import Admission
from p2pnode.core.membership.beyond import Vouchers
from p2pnode.core.membership.events import (
    NATS,
    AskHelpers,
    Effect,
    HelpersEnded,
    Input,
    LinkClosed,
    LinkOpened,
    LinkSilent,
    News,
    OwnRecord,
    Probe,
    ProbeEnded,
    Publish,
    Renew,
    StateChanged,
    Tick,
    Twin,
)
from p2pnode.core.membership.limits import Limits
from p2pnode.core.membership.params import Params
from p2pnode.core.membership.record import (
    GONE,
    MAX_ACCUSATIONS,
    Accusation,
    Member,
    MemberRecord,
    MemberState,
)
from p2pnode.core.membership.relay import Relay
from p2pnode.core.membership.rests import Rests
from p2pnode.core.membership.ring import Ring
from p2pnode.core.membership.roll import roll_of
from p2pnode.core.membership.table import Table
from p2pnode.core.peerid import PeerId

LOOK_SECONDS = 1.0
"""The longest pause between two ticks: a longer one means that this process was stopped or starved."""

STALE_ACCUSATION_NS = 10 * 10**9
"""A stranger to us that stands accused for longer is dead: whoever knew it has waited already."""

FORGET_EVERY_SECONDS = 60.0

BURY_SECONDS = 0.1
"""The shortest time between two burials."""

_LINK_BROKE = "its link broke"
_LINK_SILENT = "its link is silent"
_RING = "it was its turn"


@dataclass(frozen=True, slots=True)
class Seals:
    """Signing, injected.

    Args:
        record: the same record with its `signed` bytes.
        accusation: likewise.
    """

    record: Callable[[MemberRecord], MemberRecord]
    accusation: Callable[[Accusation], Accusation]


@dataclass(slots=True)
class _Doubt:
    """A member that did not answer once. `again_at`: when it is probed once more."""

    why: str
    tries_left: int
    again_at: float | None = None


class Membership:
    """All members that one node knows, itself included.

    Args:
        own: what we say of ourselves; incarnation and signature are made here.
        seals: sign with our key.
        floor: the highest incarnation that an earlier run may have used.
        rng: every random choice.
        now: monotonic seconds. `wall_ns`, here and below, is nanoseconds since 1970.
        may_vouch: is this member of role `bridge` believed when it says who lives beyond it?
    """

    def __init__(
        self,
        own: MemberRecord,
        seals: Seals,
        rng: Random,
        *,
        floor: int,
        now: float,
        wall_ns: int,
        params: Params | None = None,
        table: Table | None = None,
        may_vouch: Callable[[PeerId], bool] = lambda bridge: True,
    ) -> None:
        self._params = params or Params()
        self._seals = seals
        self._rng = rng
        self._floor = floor
        self._table = table if table is not None else Table()
        self._members = self._table.members
        self._admission = Admission(self._table, self._params)
        self._linked: set[PeerId] = set()
        self._vouchers = Vouchers(own.peer_id, self._members, may_vouch)
        self._doubts: dict[PeerId, _Doubt] = {}
        self._suspects: dict[PeerId, None] = {}
        self._bury_at = float("inf")
        self._rests = Rests(self._params.refuted_seconds)
        self._ring = Ring(self._members, rng)
        self._relay = Relay(self._params, rng)
        self._limits = Limits(self._params, now)
        self._last_look = now
        self._starved_until = now
        self._next_probe = now + self._params.probe_every_seconds * rng.uniform(0.5, 1.0)
        self._next_forget = now + FORGET_EVERY_SECONDS
        self._to_top: MemberRecord | None = None
        self._top_at = now
        self._now, self._wall = now, wall_ns
        self._effects: list[Effect] = []
        self.refused = self._admission.refused
        self.own = own
        self._write_own(own)
        self._effects.clear()

    # -- reading -----------------------------------------------------------------------

    def members(self) -> Mapping[PeerId, Member]:
        return self._members

    def get(self, peer: PeerId) -> Member | None:
        return self._members.get(peer)

    def shares_name(self, peer: PeerId) -> bool:
        """Does another member that is not gone have the same name?"""
        return self._table.shares_name(peer)

    def is_beyond(self, peer: PeerId) -> bool:
        """Does a bridge that is here say that it lives beyond, and have we no link with it?"""
        return self._vouchers.vouch_for(peer, self._linked)

    def roll(self, exclude: Callable[[PeerId], bool]) -> list[Member]:
        """Whom a bridge tells the other side of, `exclude` being those who live there: see `roll_of`."""
        return roll_of(self._members.values(), exclude, self._wall, self._params.keep_gone_seconds)

    @property
    def version(self) -> int:
        """Another one after each change of `items`."""
        return self._table.version

    def wants(self, record: MemberRecord) -> bool:
        """Is it worth checking its signature? Counts it when it is not."""
        return self._admission.wants(record, self.own, self._wall)

    def wants_accusation(self, accusation: Accusation) -> bool:
        """Is it worth checking its signature? Counts it when it is not, except when it is merely known."""
        return self._admission.wants_accusation(accusation, self._wall)

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """What two nodes compare: `(peer id, incarnation and whether it stands accused)`."""
        return self._table.items()

    # -- the machine -------------------------------------------------------------------

    def handle(self, input_: Input, now: float, wall_ns: int) -> list[Effect]:
        """Take one input and say what to do, in order."""
        self._now, self._wall = max(now, self._now), wall_ns
        self._notice_a_pause()
        match input_:
            case News(records, accusations, source):
                self._on_news(records, accusations, source)
            case LinkOpened(peer):
                self._linked.add(peer)
                self._vouchers.links_changed()
                self._doubts.pop(peer, None)
                self._saw(peer)
            case LinkClosed(peer, by_intent):
                self._linked.discard(peer)
                self._vouchers.links_changed()
                self._saw(peer)
                if not by_intent:
                    self._doubt(peer, _LINK_BROKE)
            case LinkSilent(peer):
                self._doubt(peer, _LINK_SILENT)
            case ProbeEnded(peer, reached):
                self._on_probe(peer, reached)
            case HelpersEnded(peer, reached):
                self._on_helpers(peer, reached)
            case Renew(record):
                self._write_own(record)
            case Tick():
                self._on_tick()
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float:
        """When a `Tick` is due: at the latest a second after the last. Earlier after some inputs, so ask after each."""
        due = [self._last_look + LOOK_SECONDS, self._next_probe, self._relay.due, self._bury_at]
        due += [doubt.again_at for doubt in self._doubts.values() if doubt.again_at is not None]
        if self._to_top is not None:
            due.append(self._top_at)
        return min(due)

    # -- records -----------------------------------------------------------------------

    def _on_news(self, records: Sequence[MemberRecord], accusations: Sequence[Accusation], source: str) -> None:
        known = len(self._members)
        against: dict[tuple[PeerId, int], list[Accusation]] = defaultdict(list)
        for accusation in accusations:
            against[accusation.accused, accusation.incarnation].append(accusation)
        accusers = {record.peer_id for record in records}
        taken: list[MemberRecord] = []
        strangers: set[PeerId] = set()
        for record in records:
            if source == "gossip":
                self._relay.heard(record)
            if not self.wants(record):
                continue
            if record.peer_id == self.own.peer_id:
                self._on_own(record)
                continue
            if record.peer_id not in self._members:
                if not self._admission.is_welcome(
                    against.get((record.peer_id, record.incarnation)), accusers, self._wall
                ):
                    continue
                strangers.add(record.peer_id)
            self._take(record, source)
            taken.append(record)
        # Through a bridge come those whom nobody else here can know.
        relays = source == NATS or len(strangers) <= max(self._params.relay_strangers, known // 8)
        quiet = set() if relays else strangers
        if source != "gossip":
            for record in taken:
                if record.peer_id not in quiet:
                    self._relay.add(record, self._now)
        for accusation in accusations:
            self._on_accusation(accusation, source, quiet, accusation.accused in strangers)

    def _on_accusation(self, accusation: Accusation, source: str, quiet: set[PeerId], new_to_us: bool) -> None:
        if source == "gossip":
            self._relay.heard(accusation)
        # Of who is new to us we take the whole past at once, whoever accused it.
        if self.wants_accusation(accusation) and (new_to_us or self._is_heard(accusation.accuser)):
            self._accept(accusation, new_to_us)
            if source != "gossip" and accusation.accused not in quiet:
                self._relay.add(accusation, self._now)

    def _take(self, record: MemberRecord, source: str) -> None:
        state = MemberState.LEFT if record.left else MemberState.ALIVE
        peer = record.peer_id
        member = self._members.get(peer)
        if member is None:
            evicted = self._table.add(record, state, source, self._wall)
            if evicted is not None:
                self._vouchers.forget(evicted.record.peer_id)
                self._effects.append(StateChanged(evicted.record.peer_id, evicted.state, None, "its place was needed"))
            member = self._members[peer]
            self._ring.add(peer)
            self._effects.append(StateChanged(peer, None, state, source))
        else:
            if member.accusations or record.left:
                # Only who answers an accusation proves that it lives now; any other record may be older than the doubt.
                self._doubts.pop(peer, None)
            if member.accusations and record.started_at_ns == member.record.started_at_ns:
                self._rests.refuted(peer, self._now)
            self._suspects.pop(peer, None)
            self._table.replace(member, record, self._wall)
            self._set_state(member, state, "it said goodbye" if record.left else "it says that it lives")
        if record.left:
            member.gone_at_ns = min(self._wall, record.incarnation * 10**6)
        self._vouchers.heard(record)

    # -- our own record ----------------------------------------------------------------

    def _write_own(self, record: MemberRecord, incarnation: int = 0) -> None:
        incarnation = incarnation or max(self._wall // 10**6, self._floor + 1)
        self._floor = incarnation
        self.own = self._seals.record(dataclasses.replace(record, incarnation=incarnation, signed=b""))
        self._take(self.own, "self")
        self._effects.append(OwnRecord(self.own))
        self._effects.append(Publish((self.own,), ()))

    def _on_own(self, record: MemberRecord) -> None:
        """A record with our own identity that we did not write: of an earlier run, or of a twin.

        It is topped, by a step that follows from the record: see `_step`. A record that is one such step above ours
        was written by who read ours, which no earlier run of this node can have done, whatever its clock said.
        """
        own = self.own
        answers_us = record.incarnation == own.incarnation + _step(own)
        is_clone = record.started_at_ns == own.started_at_ns
        if answers_us or is_clone:
            self._effects.append(Twin(record, yield_to_it=record.started_at_ns < own.started_at_ns))
        self._floor = max(self._floor, record.incarnation)
        if self._to_top is None or self._to_top.incarnation < record.incarnation:
            self._to_top = record
        if self._top_at <= self._now:
            self._top()

    def _top(self) -> None:
        record, self._to_top = self._to_top, None
        if record is not None and record.incarnation >= self.own.incarnation:
            self._top_at = self._now + self._params.top_seconds
            self._write_own(self.own, record.incarnation + _step(record))

    # -- suspicion ---------------------------------------------------------------------

    def _accept(self, accusation: Accusation, new_to_us: bool = False) -> None:
        if accusation.accused == self.own.peer_id:
            if not self.own.left:
                self._write_own(self.own)
            return
        member = self._members[accusation.accused]
        self._table.accuse(member, accusation)
        if member.state is MemberState.SUSPECT:
            self._bury_at = min(self._bury_at, self._dead_at(member))
        if member.state is MemberState.DEAD:
            member.gone_at_ns = min(member.gone_at_ns, accusation.at_ns)
        if member.state is not MemberState.ALIVE:
            return
        member.suspected_at = self._now
        self._suspects[accusation.accused] = None
        self._bury_at = min(self._bury_at, self._dead_at(member))
        self._limits.accused(self._now)
        if self._limits.is_alarm(self._now):
            self._next_probe = min(self._next_probe, self._now + self._params.alarm_probe_seconds)
        self._set_state(member, MemberState.SUSPECT, f"accused by {accusation.accuser}")
        if new_to_us and self._wall - accusation.at_ns > STALE_ACCUSATION_NS:
            self._bury(member)

    def _is_heard(self, accuser: PeerId) -> bool:
        heard = self._limits.hears(accuser, self._now)
        self.refused["accuser-limit"] += not heard
        return heard

    def _dead_at(self, member: Member) -> float:
        seconds = self._params.suspicion_seconds[min(len(member.accusations), MAX_ACCUSATIONS) - 1]
        return member.suspected_at + seconds * (2 if self._is_starved() else 1)

    def _bury_the_dead(self) -> None:
        """Those whose time is over. All suspects are looked at, so not for each of many by itself."""
        for peer in [peer for peer in self._suspects if self._dead_at(self._members[peer]) <= self._now]:
            self._bury(self._members[peer])
        due = [self._dead_at(self._members[peer]) for peer in self._suspects]
        if due and self._is_starved():
            due.append(self._starved_until)
        self._bury_at = max(min(due, default=float("inf")), self._now + BURY_SECONDS)

    def _bury(self, member: Member) -> None:
        self._suspects.pop(member.record.peer_id, None)
        self._doubts.pop(member.record.peer_id, None)
        self._table.bury(member)
        member.gone_at_ns = min([self._wall, *(each.at_ns for each in member.accusations.values())])
        self._set_state(member, MemberState.DEAD, f"nothing refuted {len(member.accusations)} accusation(s)")

    def _set_state(self, member: Member, state: MemberState, why: str) -> None:
        before, member.state = member.state, state
        if before is not state:
            self._effects.append(StateChanged(member.record.peer_id, before, state, why))

    def _saw(self, peer: PeerId) -> None:
        member = self._members.get(peer)
        if member is not None:
            member.last_seen_ns = self._wall

    # -- doubts ------------------------------------------------------------------------

    def _doubt(self, peer: PeerId, why: str) -> None:
        member = self._members.get(peer)
        if (
            member is None
            or peer == self.own.peer_id
            or self.own.left
            or peer in self._doubts
            or self.own.peer_id in member.accusations
            or member.state in GONE
            or (why != _LINK_BROKE and (self._rests.is_resting(peer, self._now) or self.is_beyond(peer)))
        ):
            return
        self._doubts[peer] = _Doubt(why, tries_left=1 if self._is_starved() else 0)
        self._probe(member)

    def _probe(self, member: Member) -> None:
        patience = self._params.probe_patience_seconds * (2 if self._is_starved() else 1)
        self._effects.append(Probe(member.record.peer_id, member.record.addrs, patience))

    def _on_probe(self, peer: PeerId, reached: bool) -> None:
        doubt = self._doubts.get(peer)
        if reached:
            self._saw(peer)
            self._doubts.pop(peer, None)
        elif doubt is not None and doubt.tries_left:
            doubt.tries_left -= 1
            doubt.again_at = self._now + LOOK_SECONDS
        elif doubt is not None:
            helpers = self._helpers(peer) if doubt.why == _RING else ()
            if helpers:
                patience = 2 * self._params.probe_patience_seconds
                self._effects.append(AskHelpers(peer, helpers, patience))
            else:
                self._accuse(peer)

    def _on_helpers(self, peer: PeerId, reached: bool) -> None:
        if reached:
            self._saw(peer)
            self._doubts.pop(peer, None)
        elif peer in self._doubts:
            self._accuse(peer)

    def _helpers(self, peer: PeerId) -> tuple[PeerId, ...]:
        """Linked live members that may reach it."""
        able = sorted(
            other
            for other in self._linked
            if other != peer and other in self._members and self._members[other].state is MemberState.ALIVE
        )
        return tuple(self._rng.sample(able, min(self._params.helpers, len(able))))

    def _accuse(self, peer: PeerId) -> None:
        self._doubts.pop(peer, None)
        member = self._members.get(peer)
        if member is None or member.state in GONE or self.own.left or self.is_beyond(peer) or not self._may_accuse():
            return
        accusation = self._seals.accusation(Accusation(self.own.peer_id, peer, member.record.incarnation, self._wall))
        if self._admission.why_not(accusation, self._wall) is None:
            self._accept(accusation)
            self._effects.append(Publish((), (accusation,)))

    def _may_accuse(self) -> bool:
        may = self._limits.may_accuse(self._now)
        self.refused["own-accusation-limit"] += not may
        return may

    def _is_starved(self) -> bool:
        return self._now < self._starved_until

    # -- time --------------------------------------------------------------------------

    def _notice_a_pause(self) -> None:
        """Whatever input comes first after we were stopped: what we held against others may be our own fault."""
        late = self._now - self._last_look - LOOK_SECONDS
        if late <= self._params.starved_seconds:
            return
        self._last_look = self._now
        self._starved_until = self._now + self._params.starved_memory_seconds
        for peer in self._suspects:
            # What refuted it meanwhile may still be in our sockets.
            member = self._members[peer]
            member.suspected_at = min(member.suspected_at + late, self._now)
        for doubt in self._doubts.values():
            doubt.tries_left = max(doubt.tries_left, 1)

    def _on_tick(self) -> None:
        self._last_look = self._now
        if self._bury_at <= self._now:
            self._bury_the_dead()
        for peer, doubt in list(self._doubts.items()):
            if doubt.again_at is not None and doubt.again_at <= self._now:
                doubt.again_at = None
                self._probe(self._members[peer])
        if self._next_probe <= self._now:
            self._probe_next()
        if self._to_top is not None and self._top_at <= self._now:
            self._top()
        if self._relay.due <= self._now and (relayed := self._relay.take(self._members)) is not None:
            self._effects.append(relayed)
        if self._next_forget <= self._now:
            self._next_forget = self._now + FORGET_EVERY_SECONDS
            self._forget()

    def _probe_next(self) -> None:
        params = self._params
        pause = params.alarm_probe_seconds if self._limits.is_alarm(self._now) else params.probe_every_seconds
        self._next_probe = self._now + pause * self._rng.uniform(0.8, 1.2)
        peer = self._ring.next(self._is_worth_probing)
        if peer is not None:
            self._doubt(peer, _RING)

    def _is_worth_probing(self, peer: PeerId) -> bool:
        """A link is watched already; a suspect's fate is decided without us, and what is beyond a bridge by others."""
        member = self._members.get(peer)
        return (
            member is not None
            and member.state is MemberState.ALIVE
            and bool(member.record.addrs)
            and peer != self.own.peer_id
            and peer not in self._linked
            and peer not in self._doubts
            and not self._rests.is_resting(peer, self._now)
            and not self.is_beyond(peer)
        )

    def _forget(self) -> None:
        for peer, member in list(self._members.items()):
            if (
                member.state in GONE
                and peer != self.own.peer_id
                and self._admission.is_expired(member.gone_at_ns, self._wall)
            ):
                self._table.remove(peer)
                self._vouchers.forget(peer)
                self._effects.append(StateChanged(peer, member.state, None, "gone for a day"))
        self._rests.forget(self._now)
        self._limits.forget(self._now)


def _step(record: MemberRecord) -> int:
    """By how much a record is topped: 1 to 65,536, so that an answer to it is told from chance."""
    return 1 + int.from_bytes(sha256(b"%d %d" % (record.incarnation, record.started_at_ns)).digest()[:2], "big")
