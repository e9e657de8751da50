"""Councils at one node: it reads what is stored, decides what it owns, claims and accepts for its agent."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import trio

from p2pnode.core.council import claiming, takeover
from p2pnode.core.council.claims import Claimant
from p2pnode.core.council.council import Authority, Council, Stamp, holder_of
from p2pnode.core.council.deciding import Owner, Times, Verdict, as_update, number
from p2pnode.core.council.documents import CLAIMS_TOPIC, MAX_TERM, STATUS_TOPIC, Claim, Seat, Status, to_json
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.council.table import TOPICS, Councils
from p2pnode.core.membership.record import GONE, Member, MemberRecord
from p2pnode.core.message import SignedMessage
from p2pnode.core.metadata import MAX_TIME_NS
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.errors import CallerError, EnvironmentFault
from p2pnode.node.council_documents import council_document, decision_json
from p2pnode.node.council_metrics import CouncilMetrics
from p2pnode.node.trust import Trust
from p2pnode.node.watching import Watchers
from p2pnode.ports import Entry, JsonObject, Published
from p2pnode.wire.payload import decode_payload, format_time

log = logging.getLogger(__name__)

READ_BATCH = 100
RETRY_SECONDS = 1.0
REFUSED_SECONDS = 60.0
"""Until a document is tried again that the publisher refuses for what it is, such as one that is too large."""

SETTLE_SECONDS = 1.5
"""After a start nothing is decided of councils that were there before: somebody else may have taken them over."""

STRANGER_SECONDS = 5.0
"""How much longer an owner must be away whom the membership does not even know."""

CATCH_UP_SECONDS = 10.0
"""After a start no council is taken over: of what is heard first the decisions may still be missing."""

REASSERT_SECONDS = 2.0
"""Pause between two decisions that only say again who decides."""

LEAST_PAUSE_SECONDS = 0.005

DRAINING = "draining"
LOCAL = "local"


class Stored(Protocol):
    """What is stored, by arrival (`node.archive.Archive`)."""

    async def page(self, topics: Sequence[str], after: int, limit: int, /) -> Sequence[tuple[Entry, SignedMessage]]: ...

    async def wait_beyond(self, topics: Sequence[str], arrival: int, /) -> None: ...


class Fleet(Protocol):
    """Who is there (`node.members.Members`)."""

    @property
    def own(self) -> MemberRecord: ...

    def get(self, peer: PeerId, /) -> Member | None: ...

    def all(self) -> Mapping[PeerId, Member]: ...

    def alive(self) -> Sequence[Member]: ...


@dataclass(frozen=True, slots=True)
class CouncilSettings:
    """
    Args:
        takeover: when this node decides for councils whose owner is gone.
        formation_seconds: the deadline of a council that names none.
        auto_claim: claim roles for an agent that only has capabilities.
        orchestrators: whose opportunities and decisions count; empty: anyone's.
        bridges: import keys whose word counts as theirs on `bridged_topics`.
    """

    takeover: takeover.Policy = "majority"
    formation_seconds: float = 600.0
    auto_claim: bool = False
    orchestrators: frozenset[PeerId] = frozenset()
    bridges: frozenset[PeerId] = frozenset()
    bridged_topics: frozenset[str] = frozenset()

    def trust(self) -> Trust:
        return Trust(self.orchestrators, self.bridges, self.bridged_topics)


Say = Callable[[str, bytes], Awaitable[Published]]
"""Publish a JSON object, by topic and body."""

Listener = Callable[[str, Mapping[str, object], Stamp], None]


@dataclass(frozen=True, slots=True)
class Tools:
    """
    Args:
        me: our peer id.
        say: publishes what this node says by itself.
        metrics: counted under the names that operators chart.
        listeners: called with every stored document of `topics`, in order of arrival.
        topics: read besides those of councils.
        stopping: set when the node goes away.
    """

    me: PeerId
    say: Say
    wall_ns: Callable[[], int]
    rng: Random
    stopping: trio.Event
    metrics: CouncilMetrics
    listeners: Sequence[Listener] = ()
    topics: Sequence[str] = ()


@dataclass(slots=True)
class _Duty:
    """What this node has to do about one council, beside what the documents say.

    Args:
        owner: our judgement, while we decide.
        gone_since: since when its owner is gone, monotonic.
        plan: when our agent claims, monotonic.
        first_for: the role that it stands first in line for.
        asserted: when we last decided, monotonic.
        not_before: nothing is decided earlier, monotonic.
        contested: somebody of a lower authority decides too.
        was_ours: we decided when it was looked at last.
    """

    owner: Owner = field(default_factory=Owner)
    gone_since: float | None = None
    plan: float | None = None
    first_for: str = ""
    asserted: float = -math.inf
    not_before: float = -math.inf
    contested: bool = False
    was_ours: bool = False


class CouncilKeeper:
    """Made, then run. Reads from the beginning of what is stored; `loaded` is set when it has caught up.

    Attributes:
        counted: what this node did, by word: `decisions`, `takeovers`, `yielded`, `claims`, `acceptances`, `refused`
            (assignments that nobody here asked for), `failed` (could not be published).
    """

    def __init__(self, stored: Stored, fleet: Fleet, settings: CouncilSettings, tools: Tools) -> None:
        self._stored = stored
        self._fleet = fleet
        self.settings = settings
        self._tools = tools
        self._trust = settings.trust()
        self.table = Councils(self._trust.is_orchestrator)
        self.watchers = Watchers(self.document, tools.stopping)
        self.loaded = trio.Event()
        self.counted: Counter[str] = Counter()
        self._topics = (*TOPICS, *tools.topics)
        self._arrival = 0
        self._caught_up_at = math.inf
        self._reading = trio.Lock()
        self._duties: dict[str, _Duty] = {}
        self._due: dict[str, float] = {}
        self._wake = trio.Event()
        self._held: dict[str, list[Claimant]] = {}
        """Who holds roles, by council that goes on."""
        self._holders: Counter[Claimant] = Counter()
        """How many of those each holds."""
        self._dropped = 0

    # -- asked -------------------------------------------------------------------------

    @property
    def me(self) -> PeerId:
        return self._tools.me

    def is_trusted(self, peer: PeerId) -> bool:
        """Does a node's word count as an orchestrator's?"""
        return self._trust.is_orchestrator(peer, STATUS_TOPIC)

    def is_gone(self, peer: PeerId) -> bool:
        member = self._fleet.get(peer)
        return member is not None and member.state in GONE

    def accepts(self, peer: PeerId) -> bool:
        return self._fleet.get(peer) is not None

    def name_of(self, peer: PeerId) -> str | None:
        member = self._fleet.get(peer)
        return member.record.name if member is not None else None

    def document(self, council_id: str) -> JsonObject | None:
        council = self.table.get(council_id)
        if council is None or council.authority is None:
            return None
        return council_document(council, self._tools.me, self.name_of, self._tools.wall_ns())

    def running_roles(self, agent_id: str) -> int:
        """How many roles our agent holds, over all councils that go on."""
        self._forget_dropped()
        return self._holders[Claimant(self._tools.me, agent_id)]

    # -- told --------------------------------------------------------------------------

    def members_changed(self) -> None:
        """Somebody came or went: look again at what is still going on."""
        now = trio.current_time()
        for council in self.table:
            if not council.has_ended:
                self._look_at(council.id, now)

    def _look_at(self, council_id: str, at: float) -> None:
        if at < self._due.get(council_id, math.inf):
            self._due[council_id] = at
            if len(self._due) > 2 * len(self.table) + 100:
                self._due = {each: when for each, when in self._due.items() if self.table.get(each) is not None}
            self._wake.set()

    # -- running -----------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        await self._read_patiently()
        settled = trio.current_time() + SETTLE_SECONDS
        for council in self.table:
            self._duties[council.id] = _Duty(not_before=settled)
        self._caught_up_at = trio.current_time() + CATCH_UP_SECONDS
        self.loaded.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._act)
            while True:
                before = self._arrival
                await self._stored.wait_beyond(self._topics, before)
                await self._read_patiently()
                if self._arrival == before:  # what came last is damaged on the disk: it never can be read
                    await trio.sleep(RETRY_SECONDS)

    async def _read_patiently(self) -> None:
        while True:
            try:
                await self.catch_up()
            except EnvironmentFault as error:
                log.error("stored councils cannot be read", extra={"reason": error.detail})
                await trio.sleep(RETRY_SECONDS)
            else:
                return

    async def catch_up(self) -> None:
        """Read what is stored and was not read yet.

        Raises:
            EnvironmentFault: it cannot be read.
        """
        async with self._reading:
            while batch := await self._stored.page(self._topics, self._arrival, READ_BATCH):
                for entry, message in batch:
                    self._arrival = entry.arrival
                    self._take(entry, message)
                await trio.lowlevel.checkpoint()

    def _take(self, entry: Entry, message: SignedMessage) -> None:
        document = decode_payload(message.data).document
        if document is None:
            return
        # Without a signed time it stands behind all that have one, at every node.
        at_ns = entry.published_at_ns or MAX_TIME_NS
        stamp = Stamp(peer_id_text(message.origin), message.number, at_ns, trio.current_time())
        for listener in self._tools.listeners:
            listener(entry.topic, document, stamp)
        council = self.table.take(entry.topic, document, stamp)
        if entry.topic == STATUS_TOPIC:
            self._note_status(document, stamp, changed=council is not None)
        if council is not None and council.authority is not None:
            if entry.topic == OPPORTUNITY_TOPIC:
                self._note_opportunity(council.id, stamp, is_new=entry.carrier == LOCAL)
            self._note_held(council)
            self.watchers.changed(council.id)
            self._look_at(council.id, trio.current_time())

    def _note_opportunity(self, council_id: str, stamp: Stamp, *, is_new: bool) -> None:
        if stamp.peer == self._tools.me and is_new:
            self._tools.metrics.published(council_id)
        elif stamp.peer == self._tools.me:  # lost here and back from others, who may hold our decisions too
            self._duty(council_id).not_before = stamp.seen_at + SETTLE_SECONDS
        self._tools.metrics.handled()

    def _note_held(self, council: Council) -> None:
        seats = () if council.has_ended else council.seats()
        self._hold(council.id, [holder_of(seat) for seat in seats if not seat.is_open])
        self._forget_dropped()

    def _hold(self, council_id: str, held: list[Claimant]) -> None:
        before = self._held.get(council_id, [])
        if held == before:
            return
        if held:
            self._held[council_id] = held
        else:
            del self._held[council_id]
        self._holders.update(held)
        self._holders.subtract(before)
        for each in before:
            if not self._holders[each]:
                del self._holders[each]

    def _forget_dropped(self) -> None:
        """Councils that the table no longer knows go on nowhere."""
        if self.table.dropped != self._dropped:
            self._dropped = self.table.dropped
            for council_id in [each for each in self._held if self.table.get(each) is None]:
                self._hold(council_id, [])

    def _note_status(self, document: Mapping[str, object], stamp: Stamp, *, changed: bool) -> None:
        if stamp.peer == self._tools.me:
            return
        council_id = str(document.get("council_id"))
        if changed and self.loaded.is_set():
            log.info(
                "Received council status update",
                extra={"council_id": council_id, "status": document.get("status"), "origin": stamp.peer},
            )
        council = self.table.get(council_id)
        term = document.get("term")
        if council is None or council.authority is None or not isinstance(term, int) or not term:
            return
        is_ours = council.authority.peer == self._tools.me
        if is_ours and Authority(term, stamp.peer) < council.authority and self.is_trusted(stamp.peer):
            self._duty(council.id).contested = True
            self._look_at(council.id, trio.current_time())

    def _duty(self, council_id: str) -> _Duty:
        duty = self._duties.get(council_id)
        if duty is None:
            duty = self._duties[council_id] = _Duty()
            if len(self._duties) > 2 * len(self.table) + 100:
                self._duties = {each.id: self._duties[each.id] for each in self.table if each.id in self._duties}
                self._duties.setdefault(council_id, duty)
        return duty

    async def _act(self) -> None:
        while True:
            self._wake = trio.Event()
            now = trio.current_time()
            for council_id in [each for each, at in self._due.items() if at <= now]:
                del self._due[council_id]
                council = self.table.get(council_id)
                if council is not None and council.authority is not None:
                    await self._attend(council)
                    await trio.lowlevel.checkpoint()  # of many councils few have anything to publish
            with trio.move_on_at(min(self._due.values(), default=math.inf)):
                await self._wake.wait()

    async def _attend(self, council: Council) -> None:
        """Do what is ours to do about one council, and note when to look again."""
        duty = self._duty(council.id)
        try:
            again = await self._decide(council, duty)
            again = min(again, await self._answer_assignments(council))
            again = min(again, await self._claim(council, duty))
        except EnvironmentFault as error:
            self.counted["failed"] += 1
            log.warning("could not speak about a council", extra={"council_id": council.id, "reason": error.detail})
            again = trio.current_time() + RETRY_SECONDS
        except CallerError as error:
            self.counted["failed"] += 1
            log.error("cannot speak about a council", extra={"council_id": council.id, "reason": str(error)})
            again = trio.current_time() + REFUSED_SECONDS
        if again < math.inf:
            self._look_at(council.id, max(again, trio.current_time() + LEAST_PAUSE_SECONDS))

    async def _say(self, topic: str, document: Mapping[str, Any]) -> None:
        """Publish, and know it ourselves."""
        try:
            await self._tools.say(topic, json.dumps(document, ensure_ascii=False).encode())
        except (EnvironmentFault, CallerError):
            self._tools.metrics.failed(str(document["council_id"]))
            raise
        self._tools.metrics.published(str(document["council_id"]))
        await self._read_patiently()  # before it is known, the next decision would get its number

    # -- deciding ----------------------------------------------------------------------

    async def _decide(self, council: Council, duty: _Duty) -> float:
        authority, now = council.authority, trio.current_time()
        assert authority is not None
        if authority.peer != self._tools.me:
            if duty.was_ours:
                self.counted["yielded"] += 1
                log.warning(
                    "yielded a council to a higher term",
                    extra={"council_id": council.id, "term": authority.term, "owner": authority.peer},
                )
            duty.was_ours, duty.owner = False, Owner()
            return await self._take_over(council, duty, authority)
        if now < duty.not_before:
            return duty.not_before
        duty.was_ours = True
        verdict = duty.owner.decide(council, self, Times(now, self._tools.wall_ns()))
        if verdict.changed:
            opens = council.decision is None
            n = council.decision.update.n + 1 if council.decision is not None else 1
            await self._publish(council, duty, verdict, authority.term, n, opens=opens)
        elif duty.contested and council.decision is not None:
            if now < duty.asserted + REASSERT_SECONDS:
                return duty.asserted + REASSERT_SECONDS
            again = Verdict(council.status, council.decision.update.message, tuple(council.seats()), True, math.inf)
            await self._publish(council, duty, again, authority.term, council.decision.update.n + 1, opens=False)
        return verdict.look_again_at

    async def _publish(
        self, council: Council, duty: _Duty, verdict: Verdict, term: int, n: int, *, opens: bool
    ) -> None:
        members: dict[str, Any] = {
            "term": term,
            "n": n,
            "by": self._fleet.own.name,
            "at": format_time(self._tools.wall_ns()),
        }
        if opens:
            if council.opportunity is not None:
                members["opportunity"] = to_json(council.opportunity)
            alive = [member.record.peer_id for member in self._fleet.alive()]
            members["electorate"] = council.electorate or takeover.electorate(alive)
        update = as_update(council, verdict, number(verdict, term, n), **members)
        before = council.status
        document = decision_json(update)
        try:
            await self._say(STATUS_TOPIC, document)
        except CallerError:  # too large or nested too deeply with it
            if document.pop("opportunity", None) is None:
                raise
            await self._say(STATUS_TOPIC, document)
        self.counted["decisions"] += 1
        duty.asserted, duty.contested = trio.current_time(), False
        log.info(
            "Published council status update",
            extra={
                "council_id": council.id,
                "status": update.status.value,
                "was": before.value,
                "term": term,
                "n": n,
                "open": [seat.role_name for seat in update.roles if seat.is_open],
                "note": update.message,
            },
        )

    async def _take_over(self, council: Council, duty: _Duty, authority: Authority) -> float:
        """Decide for an owner that is gone, when it is our turn; when to look again."""
        now, policy = trio.current_time(), self.settings.takeover
        if (
            council.has_ended
            or policy == "off"
            or self._fleet.own.role != "whoosh"
            or not self.is_trusted(self._tools.me)
        ):
            return math.inf
        member = self._fleet.get(authority.peer)
        if member is not None and member.state not in GONE:
            duty.gone_since = None
            return math.inf
        if duty.gone_since is None:
            duty.gone_since = now
        alive = [each.record for each in self._fleet.alive()]
        line = [each.peer_id for each in alive if each.role == "whoosh" and self.is_trusted(each.peer_id)]
        patience = takeover.delay(self._tools.me, line) + (STRANGER_SECONDS if member is None else 0.0)
        if now < (turn := max(duty.gone_since + patience, self._caught_up_at)):
            return turn
        if authority.term >= MAX_TERM:
            return math.inf
        if policy == "majority" and not takeover.has_majority(
            council.electorate or self._known_electorate(), [each.peer_id for each in alive]
        ):
            return math.inf  # until somebody comes
        log.warning(
            "taking over a council whose owner is gone",
            extra={"council_id": council.id, "owner": authority.peer, "term": authority.term + 1},
        )
        verdict = duty.owner.decide(council, self, Times(now, self._tools.wall_ns()))
        await self._publish(council, duty, verdict, authority.term + 1, 1, opens=True)
        self.counted["takeovers"] += 1
        duty.gone_since, duty.was_ours = None, True
        return verdict.look_again_at

    def _known_electorate(self) -> str:
        """For a council whose first decision nobody saw: everybody known who did not leave."""
        return takeover.electorate(
            member.record.peer_id for member in self._fleet.all().values() if not member.record.left
        )

    # -- for our agent -----------------------------------------------------------------

    async def _answer_assignments(self, council: Council) -> float:
        """Accept what was given to our agent, or give back what it never asked for."""
        if council.has_ended:
            return math.inf
        for seat in council.seats():
            if seat.is_open or seat.peer_id != self._tools.me or seat.state == "accepted":
                continue
            if council.is_released(seat) is not None:
                continue
            wanted = any(each.claimant == holder_of(seat) for each in council.claims(seat.role_name))
            drains = self._fleet.own.status == DRAINING
            if wanted and not drains:
                await self._speak(council, seat, Claim(kind="accept", **_about(council, seat)))
                self.counted["acceptances"] += 1
                log.info(
                    "accepted a council role",
                    extra={"council_id": council.id, "role": seat.role_name, "term": seat.term, "n": seat.n},
                )
            else:
                reason = "the agent is draining" if drains else "the agent did not claim it"
                await self._speak(council, seat, Claim(kind="release", reason=reason, **_about(council, seat)))
                self.counted["refused"] += 1
        return math.inf

    async def _speak(self, council: Council, seat: Seat, claim: Claim) -> None:
        await self._say(CLAIMS_TOPIC, {**to_json(claim), "term": seat.term, "n": seat.n})

    async def _claim(self, council: Council, duty: _Duty) -> float:
        """Claim a role for an agent that only has capabilities; when to look again."""
        own, now = self._fleet.own, trio.current_time()
        if not self.settings.auto_claim or council.has_ended or own.status == DRAINING:
            return math.inf
        if council.status is Status.FORMING and 0 < council.deadline_ns <= self._tools.wall_ns():
            return math.inf
        if claiming.fits(council, own.capabilities) < claiming.MIN_FIT:
            duty.plan = None
            return math.inf
        agent_id = own.agent_id or own.name
        running = self.running_roles(agent_id)
        if duty.plan is None:
            rival = claiming.Rival(Claimant(self._tools.me, agent_id), own.capabilities, running)
            turn = claiming.turn(council, rival, self._rivals(), self._tools.rng)
            duty.first_for = turn.role_name if turn is not None else ""
            duty.plan = now + (turn.seconds if turn is not None else claiming.AGAIN_SECONDS)
        if now < duty.plan:
            return duty.plan
        wall_ns = self._tools.wall_ns()
        me = Claimant(self._tools.me, agent_id)
        seat = claiming.choose_role(
            council,
            me,
            own.capabilities,
            running,
            wall_ns,
            now=now,
            is_gone=self.is_gone,
            first_for=duty.first_for,
        )
        if seat is not None:
            claim = Claim.model_validate(
                {
                    "council_id": council.id,
                    "role_name": seat.role_name,
                    "agent_id": agent_id,
                    "agent_name": own.name,
                    "capabilities": list(own.capabilities),
                    "claimed_at": format_time(wall_ns),
                    "running_roles": running,
                }
            )
            await self._say(CLAIMS_TOPIC, to_json(claim))
            self.counted["claims"] += 1
        duty.plan = trio.current_time() + claiming.AGAIN_SECONDS * (0.5 + self._tools.rng.random())
        return duty.plan

    def _rivals(self) -> list[claiming.Rival]:
        running: Counter[PeerId] = Counter()
        for claimant, count in self._holders.items():
            running[claimant.peer] += count
        return [
            claiming.Rival(
                Claimant(record.peer_id, record.agent_id or record.name), record.capabilities, running[record.peer_id]
            )
            for record in (member.record for member in self._fleet.alive())
            if record.role == "chorus"
        ]

    def metrics(self) -> Mapping[str, float]:
        by_status = Counter(council.status for council in self.table if council.authority is not None)
        return {
            **{f'p2pnode_councils{{status="{status.value}"}}': float(by_status[status]) for status in Status},
            **{f'p2pnode_council_acts_total{{what="{what}"}}': float(count) for what, count in self.counted.items()},
            **{
                f'p2pnode_council_documents_refused_total{{reason="{why}"}}': float(count)
                for why, count in self.table.refused.items()
            },
            "p2pnode_council_watchers": float(len(self.watchers)),
        }


def _about(council: Council, seat: Seat) -> dict[str, Any]:
    return {
        "council_id": council.id,
        "role_name": seat.role_name,
        "agent_id": seat.agent_id,
        "agent_name": seat.agent_name,
        "term": seat.term,
        "n": seat.n,
    }
