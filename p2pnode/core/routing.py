"""Which roads an own message takes, and when one more is added (architecture, "One council opportunity", step 8).

- Each road is `off`, `fallback` or `always`. A rollback overrides all: that road is taken and no other. A council
  outside the canary share takes the old road instead of gossip, with all that is said about it.
- What is to go by gossip is in trouble when there is no neighbour in its topic, or when TROUBLE_SECONDS after it was
  stored not min(2, live neighbours) hold it. Then NATS carries it too, and what is published from then on at once;
  and HTTP, where NATS cannot.
- The trouble is over when nothing has been wrong for CALM_SECONDS: a link that comes and goes does not switch roads to
  and fro. One message is a trouble for RECENT_SECONDS at most: a topic that nobody else reads says nothing of gossip.
- Members that gossip does not reach (suspect or dead, not left) are a trouble of their own, as long as no bridge is
  there to tell them: what was published lately goes to NATS too, or to them by HTTP, and again when they become more.
- A message is done with a road once the road took it: NATS acknowledged it, another sidecar stored it.

Nothing here is certain by itself: receivers know a message by its id, so each may come by several roads and is
delivered once; synchronisation over libp2p goes on whatever the roads are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from typing import Literal

from p2pnode.core.message import MessageId

Road = Literal["gossip", "nats", "http"]
Use = Literal["off", "fallback", "always"]
ROADS: tuple[Road, ...] = ("gossip", "nats", "http")
OTHERS: tuple[Road, ...] = ("nats", "http")

TROUBLE_SECONDS = 2.0
CALM_SECONDS = 3.0
RECENT_SECONDS = 60.0
"""How far back a message is told to members that turn out to be unreachable: longer than a dead link goes unnoticed.

A message that gossip has not spread for so long tells nothing of gossip any more."""

MAX_RECENT = 2000
"""Settled messages that are remembered for that."""

AT_ONCE = 500
"""Messages that wait for a road are looked at this many at a time, in turn."""

AGAIN_SECONDS = (1.0, 30.0)
"""Shortest and longest pause before a road that failed is tried again with the same message."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is configured.

    Args:
        canary_percent: share of councils that goes by gossip.
        rollback: the one road that is left; empty: none is chosen.
        has_nats: there is a server to use.
    """

    gossip: Use = "always"
    nats: Use = "fallback"
    http: Use = "fallback"
    canary_percent: float = 100.0
    rollback: Literal["", "nats", "http"] = ""
    has_nats: bool = False

    @property
    def old_road(self) -> Literal["nats", "http"]:
        """What councils outside the canary share take."""
        return "nats" if self.has_nats and self.nats != "off" else "http"

    def plan(self, council_id: str | None) -> Plan:
        """What holds for messages about one council; None: about none. One road at least is `always`, if any is on."""
        if self.rollback:
            return Plan("off", nats=_only(self.rollback == "nats"), http=_only(self.rollback == "http"))
        nats: Use = self.nats if self.has_nats else "off"
        if council_id is None or in_canary(council_id, self.canary_percent):
            return _with_one_at_least(Plan(self.gossip, nats, self.http))
        if self.old_road == "nats":
            return Plan("off", "always", self.http)
        return Plan("off", "off", "always")


@dataclass(frozen=True, slots=True)
class Plan:
    """Use of each road for one message."""

    gossip: Use
    nats: Use
    http: Use

    def use(self, road: Road) -> Use:
        return {"gossip": self.gossip, "nats": self.nats, "http": self.http}[road]


def _only(chosen: bool) -> Use:
    return "always" if chosen else "off"


def _with_one_at_least(plan: Plan) -> Plan:
    """A fallback of nothing is no fallback: the first that is on is taken."""
    if "always" in (plan.gossip, plan.nats, plan.http):
        return plan
    if plan.nats != "off":
        return replace(plan, nats="always")
    if plan.http != "off":
        return replace(plan, http="always")
    return replace(plan, gossip="always" if plan.gossip != "off" else "off")


def in_canary(council_id: str, percent: float) -> bool:
    """Does a council go by gossip? By its id alone, so that every node says the same."""
    point = int.from_bytes(sha256(council_id.lower().encode()).digest()[:8], "big")
    return point < percent / 100 * (1 << 64)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """How things stand now.

    Args:
        nats_up: the broker can be published to.
        bridge: a live bridge is among the members.
        unreachable: members that gossip does not reach, and that did not leave.
        http_up: there is somebody to post to.
        busy: roads that have enough under way and are to be left alone for now.
    """

    nats_up: bool = False
    bridge: bool = False
    unreachable: int = 0
    http_up: bool = True
    busy: frozenset[Road] = frozenset()


@dataclass(frozen=True, slots=True)
class Send:
    """Hand a message to a road; say `took` or `failed` afterwards."""

    id: MessageId
    road: Road


@dataclass(slots=True)
class _Row:
    """An own message that may still need another road.

    Args:
        alone: nobody was there to gossip it to.
        safe: enough neighbours hold it.
        under_way: roads that were asked and have not answered.
        retry: when a road may be asked again, and how long it is spared after the next failure.
        asked_for, told: for how many unreachable members HTTP was asked last, and took it last.
    """

    id: MessageId
    plan: Plan
    added: float
    alone: bool
    safe: bool = False
    took: set[Road] = field(default_factory=set)
    under_way: set[Road] = field(default_factory=set)
    retry: dict[Road, tuple[float, float]] = field(default_factory=dict)
    asked_for: int = 0
    told: int = 0

    def is_free(self, road: Road, now: float, unreachable: int) -> bool:
        if road in self.took:
            is_for_more = self.safe and unreachable > self.told
            if not (road == "http" and self.plan.http == "fallback" and is_for_more):
                return False
        return road not in self.under_way and self.retry.get(road, _AT_ONCE)[0] <= now

    def is_done(self, road: Road) -> bool:
        """It took it, or refused it for good."""
        return road in self.took or self.retry.get(road, _AT_ONCE)[0] == math.inf

    def is_settled(self) -> bool:
        """Nothing more is to be done about it, unless members turn out to be unreachable."""
        if self.under_way:
            return False
        if not all(self.is_done(road) for road in OTHERS if self.plan.use(road) == "always"):
            return False
        used = [road for road in ROADS if self.plan.use(road) != "off"]
        return self.safe or bool(self.took - {"gossip"}) or all(self.is_done(road) for road in used)


_AT_ONCE = (0.0, AGAIN_SECONDS[0])


class Routing:
    """See the module. Times are monotonic seconds.

    Attributes:
        trouble: why other roads than gossip are used for what goes by gossip; empty when they are not.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.trouble = ""
        self._troubled_at = -math.inf
        self._unsafe: OrderedDict[MessageId, float] = OrderedDict()
        """What gossip has not spread lately: when it was added, the oldest first."""
        self._open: OrderedDict[MessageId, _Row] = OrderedDict()
        self._gossip_only: dict[MessageId, _Row] = {}
        """Not settled, and no other road is on for them: nothing but `safe` ends them, however many there are."""
        self._settled: OrderedDict[MessageId, _Row] = OrderedDict()

    def __contains__(self, message_id: MessageId) -> bool:
        return self._row(message_id) is not None

    def change(self, policy: Policy) -> None:
        """Another policy, for what is published from now on."""
        self.policy = policy

    def added(self, message_id: MessageId, plan: Plan, neighbours: int, now: float) -> None:
        """An own message was stored. `neighbours`: live ones in its topic that would keep it."""
        if message_id in self:
            return
        row = _Row(message_id, plan, now, alone=not neighbours)
        if plan.gossip == "always" and plan.nats == plan.http == "off":
            self._gossip_only[message_id] = row
        else:
            self._open[message_id] = row
        if plan.gossip == "always":
            self._unsafe[message_id] = now
            if not neighbours:
                self._note("no connected peer is subscribed to its topic", now)

    def safe(self, message_id: MessageId) -> None:
        """Enough neighbours hold it."""
        self._unsafe.pop(message_id, None)
        if (row := self._row(message_id)) is not None:
            row.safe = True
            row.took.add("gossip")
            self._file(row)

    def dropped(self, message_id: MessageId) -> None:
        """It left the store."""
        for each in (self._unsafe, self._open, self._gossip_only, self._settled):
            each.pop(message_id, None)

    def took(self, message_id: MessageId, road: Road) -> None:
        """A road took it."""
        if (row := self._row(message_id)) is not None:
            row.under_way.discard(road)
            row.took.add(road)
            if road == "http":
                row.told = row.asked_for
            self._file(row)

    def failed(self, message_id: MessageId, road: Road, now: float) -> None:
        """A road could not take it now."""
        if (row := self._row(message_id)) is not None:
            row.under_way.discard(road)
            pause = row.retry.get(road, _AT_ONCE)[1]
            row.retry[road] = (now + pause, min(2 * pause, AGAIN_SECONDS[1]))
            self._file(row)

    def refused(self, message_id: MessageId, road: Road) -> None:
        """A road can never take it."""
        if (row := self._row(message_id)) is not None:
            row.under_way.discard(road)
            row.retry[road] = (math.inf, math.inf)
            self._file(row)

    def is_settled(self, message_id: MessageId) -> bool:
        """Is it where it should be?"""
        return message_id not in self._open and message_id not in self._gossip_only

    def is_safe(self, message_id: MessageId) -> bool:
        """Has gossip spread it?"""
        row = self._row(message_id)
        return row is not None and row.safe

    def plan_of(self, message_id: MessageId) -> Plan | None:
        """What was planned for a message that is still looked after."""
        row = self._row(message_id)
        return row.plan if row is not None else None

    def waiting(self) -> int:
        """Own messages that are not where they should be."""
        return len(self._open) + len(self._gossip_only)

    def roads(self, message_id: MessageId) -> tuple[Road, ...]:
        """Those that took it."""
        row = self._row(message_id)
        return tuple(road for road in ROADS if row is not None and road in row.took)

    def look(self, now: float, around: Surroundings) -> list[Send]:
        """What to send by which road now; to be asked a few times a second."""
        self._look_for_trouble(now)
        while self._settled:
            row = next(iter(self._settled.values()))
            if now - row.added < RECENT_SECONDS and len(self._settled) <= MAX_RECENT:
                break
            del self._settled[row.id]
        rows = list(islice(self._open.values(), AT_ONCE))
        if len(self._open) > AT_ONCE:
            for row in rows:  # what no road takes must not stand before what one would
                self._open.move_to_end(row.id)
        if around.unreachable and not around.bridge:
            rows += self._settled.values()
        sends = [(row, send) for row in rows for send in self._sends(row, now, around)]
        for row, send in sends:
            row.under_way.add(send.road)
            if send.road == "http":
                row.asked_for = around.unreachable if row.safe else 0  # until then a few get it, to pass it on
        return [send for _, send in sends]

    # -- decisions ---------------------------------------------------------------------

    def _row(self, message_id: MessageId) -> _Row | None:
        return self._open.get(message_id) or self._gossip_only.get(message_id) or self._settled.get(message_id)

    def _file(self, row: _Row) -> None:
        if row.is_settled() and (self._open.pop(row.id, None) or self._gossip_only.pop(row.id, None)) is not None:
            self._settled[row.id] = row

    def _look_for_trouble(self, now: float) -> None:
        while self._unsafe and now - next(iter(self._unsafe.values())) >= RECENT_SECONDS:
            self._unsafe.popitem(last=False)
        oldest = next(iter(self._unsafe.values()), now)
        if now - oldest >= TROUBLE_SECONDS:
            self._note(f"a message was not held by its neighbours within {TROUBLE_SECONDS:g} s", now)
        elif self.trouble and now - self._troubled_at >= CALM_SECONDS:
            self.trouble = ""

    def _note(self, why: str, now: float) -> None:
        self.trouble = self.trouble or why
        self._troubled_at = now

    def _sends(self, row: _Row, now: float, around: Surroundings) -> Iterator[Send]:
        wanted: tuple[tuple[Road, bool], ...] = (
            ("nats", around.nats_up and self._wants_nats(row, now, around)),
            ("http", around.http_up and self._wants_http(row, now, around)),
            ("gossip", row.plan.gossip == "fallback" and not row.took and now - row.added >= TROUBLE_SECONDS),
        )
        for road, is_wanted in wanted:
            if is_wanted and road not in around.busy and row.is_free(road, now, around.unreachable):
                yield Send(row.id, road)

    def _wants_nats(self, row: _Row, now: float, around: Surroundings) -> bool:
        if row.plan.nats != "fallback":
            return row.plan.nats == "always"
        if row.plan.gossip != "always":  # then HTTP is
            return "http" not in row.took and now - row.added >= TROUBLE_SECONDS
        return self._needs_help(row, now, around)

    def _wants_http(self, row: _Row, now: float, around: Surroundings) -> bool:
        """Where NATS carries it, or will in a moment, HTTP need not."""
        if row.plan.http != "fallback":
            return row.plan.http == "always"
        if "nats" in row.took:
            return False
        if row.plan.nats != "off" and around.nats_up and row.retry.get("nats", _AT_ONCE)[1] <= 2 * AGAIN_SECONDS[0]:
            return False
        if row.plan.nats == "always" and row.plan.gossip != "always":
            return now - row.added >= TROUBLE_SECONDS
        return self._needs_help(row, now, around)

    def _needs_help(self, row: _Row, now: float, around: Surroundings) -> bool:
        """Is gossip alone not enough for it?"""
        if row.plan.gossip != "always":
            return False
        if not row.safe and (row.alone or self.trouble or now - row.added >= TROUBLE_SECONDS):
            return True
        return around.unreachable > 0 and not around.bridge and now - row.added < RECENT_SECONDS
