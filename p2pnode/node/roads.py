"""The other roads at work: NATS and HTTP carry what gossip does not spread (`p2pnode.core.routing` decides)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.message import MessageId, SignedMessage, format_message_id
from p2pnode.core.routing import ROADS, Plan, Policy, Road, Routing, Send, Surroundings, Use
from p2pnode.core.subjects import Subjects
from p2pnode.errors import CallerError, EnvironmentFault, Fault, InvalidMessage, InvalidRequest, Unavailable
from p2pnode.logs import Throttled
from p2pnode.node.archive import Archive
from p2pnode.node.intake import Intake
from p2pnode.node.posting import Poster
from p2pnode.ports import Entry, JsonObject
from p2pnode.ports.roads import Broker, BrokerState, NatsMessage
from p2pnode.wire.nats import decode_nats, encode_nats
from p2pnode.wire.payload import decode_payload, format_time
from p2pnode.wire.pubsub import decode_message

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
GATHER_SECONDS = 0.01
"""Between two looks at least: each goes over all that waits, and an agent can publish hundreds a second."""

AT_ONCE = 64
"""Messages on their way to NATS at the same time."""

MAX_WAITING = 10_000
"""Messages from NATS that wait to be looked at; above it they are left to synchronisation."""

USES: Final = ("off", "fallback", "always")


@dataclass(frozen=True, slots=True)
class Tools:
    """
    Args:
        neighbours: live ones in a topic that keep what they take.
        bridge: is a live bridge among the members, beside this node?
        unreachable: members that gossip does not reach and that did not leave: how many.
        announce: gossips an own message to its topic.
        done: these own messages are where they should be; forgets them in the store's outbox.
        open_topic: makes this node keep a topic; False when it keeps too many.
        listen: where HTTP is taken from others; None: nowhere.
        reads: take messages from NATS here; False for a bridge, which reads them all by itself.
    """

    neighbours: Callable[[str], Collection[object]]
    bridge: Callable[[], bool]
    unreachable: Callable[[], int]
    announce: Callable[[SignedMessage], None]
    done: Callable[[Sequence[MessageId]], None]
    wall_ns: Callable[[], int]
    listen: Callable[[], str | None]
    reads: bool = True


class Roads:
    """Made, then loaded, then run.

    Args:
        policy: as configured.
        broker: None without NATS.
        poster: HTTP.
    """

    def __init__(
        self,
        policy: Policy,
        archive: Archive,
        subjects: Subjects,
        intake: Intake,
        broker: Broker | None,
        poster: Poster | None,
        tools: Tools,
    ) -> None:
        self._configured = policy
        self._routing = Routing(policy)
        self._archive = archive
        self._subjects = subjects
        self._intake = intake
        self._broker = broker
        self._poster = poster
        self._tools = tools
        self._plans: dict[MessageId, Plan] = {}
        self._wake = trio.Event()
        self._changed_at_ns = 0
        self._changed = trio.Event()
        self._incoming: trio.MemorySendChannel[NatsMessage]
        self._incoming, self._to_take = trio.open_memory_channel[NatsMessage](MAX_WAITING)
        self._failures = Throttled(log)
        self.took: Counter[Road] = Counter()
        self.counted: Counter[tuple[str, str]] = Counter()
        """`(what, reason)`: `failed` and `refused` by road; `in` by what became of it."""

    @property
    def policy(self) -> Policy:
        return self._routing.policy

    # -- own messages ------------------------------------------------------------------

    def plan(self, topic: str, document: Mapping[str, object] | None) -> Plan:
        """Which roads a new message takes."""
        council_id = document.get("council_id") if document is not None and topic.startswith("councils.") else None
        plan = self.policy.plan(council_id if isinstance(council_id, str) else None)
        if self._poster is None:
            plan = replace(plan, http="off")
        if not self._subjects.carries(topic):
            plan = replace(plan, nats="off")
        if "always" not in (plan.gossip, plan.nats, plan.http):
            # What no other road can carry goes by gossip, whatever the rollback says: it must go somehow.
            plan = replace(plan, http="always") if plan.http != "off" else replace(plan, gossip="always")
        return plan

    def begin(self, message_id: MessageId, plan: Plan) -> None:
        """An own message is about to be stored."""
        self._plans[message_id] = plan

    def is_gossiped(self, message_id: MessageId) -> bool:
        """Does an own message go by gossip at once, as far as this node says so?"""
        plan = self._plans.get(message_id) or self._routing.plan_of(message_id)
        return plan is None or plan.gossip == "always"

    def stored(self, message_id: MessageId, topic: str) -> None:
        """It was; from now on it is looked after."""
        plan = self._plans.pop(message_id, None)
        if plan is not None:
            self._routing.added(message_id, plan, len(self._tools.neighbours(topic)), trio.current_time())
            self._wake.set()

    def not_stored(self, message_id: MessageId) -> None:
        self._plans.pop(message_id, None)

    def load(self, entries: Sequence[Entry], raws: Mapping[MessageId, bytes]) -> None:
        """What an earlier run left undone. Before the outbox of gossip is loaded, which asks `is_gossiped`."""
        for entry in entries:
            try:
                message = decode_message(raws[entry.id])
            except (KeyError, InvalidMessage):
                continue
            plan = self.plan(entry.topic, decode_payload(message.data).document)
            self._plans[entry.id] = plan
            self._routing.added(entry.id, plan, 1, trio.current_time())
            for road in entry.roads:
                if road != "gossip":
                    self._routing.took(entry.id, road)

    def loaded(self) -> None:
        """The outbox has asked. What was settled already, only not written as such, leaves it."""
        for each in tuple(self._plans):
            self._finish(each)
        self._plans.clear()

    def safe(self, message_ids: Sequence[MessageId]) -> None:
        """Enough neighbours hold these."""
        for each in message_ids:
            self._routing.safe(each)
            self._mark(each, "gossip")
            self.took["gossip"] += 1

    def dropped(self, message_ids: Sequence[MessageId]) -> None:
        for each in message_ids:
            self._routing.dropped(each)

    def members_changed(self) -> None:
        self._wake.set()

    def _mark(self, message_id: MessageId, road: Road) -> None:
        entry = self._archive.entry(message_id)
        if entry is not None and road not in entry.roads:
            self._archive.mark(message_id, tuple(each for each in ROADS if each in (*entry.roads, road)))
            if road != "gossip":  # which took it once neighbours hold it
                self.took[road] += 1

    # -- running -----------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._broker is not None:
                nursery.start_soon(self._use_broker, self._broker)
            await self._look_for_ever(nursery)

    async def _look_for_ever(self, nursery: trio.Nursery) -> None:
        limit = trio.CapacityLimiter(AT_ONCE)
        while True:
            self._wake = trio.Event()
            around = self._surroundings()
            for send in self._routing.look(trio.current_time(), around):
                nursery.start_soon(self._send, send, around, limit)
            is_calm = not (self._routing.waiting() or self._routing.trouble or around.unreachable)
            if is_calm:
                await self._wake.wait()
            else:
                with trio.move_on_after(LOOK_SECONDS):
                    await self._wake.wait()
            await trio.sleep(GATHER_SECONDS)

    def _surroundings(self) -> Surroundings:
        return Surroundings(self._state().connected, self._tools.bridge(), self._tools.unreachable())

    def _state(self) -> BrokerState:
        return self._broker.state() if self._broker is not None else BrokerState()

    async def _send(self, send: Send, around: Surroundings, limit: trio.CapacityLimiter) -> None:
        try:
            async with limit:
                message = await self._message(send.id)
                if message is None:
                    self._routing.dropped(send.id)
                    return
                await self._hand_over(send, message, around)
        except Unavailable as error:
            self.counted["failed", send.road] += 1
            self._failures.warning("a road takes no messages", {"road": send.road, "reason": error.detail})
            self._routing.failed(send.id, send.road, trio.current_time())
        except EnvironmentFault as error:
            self._failures.warning("own messages cannot be read to be sent", {"reason": error.detail})
            self._routing.failed(send.id, send.road, trio.current_time())
        except (CallerError, InvalidMessage) as error:
            self.counted["refused", send.road] += 1
            log.error(
                "a message cannot take a road",
                extra={"id": format_message_id(send.id), "road": send.road, "reason": error.detail},
            )
            self._routing.refused(send.id, send.road)
            self._finish(send.id)
        else:
            self._routing.took(send.id, send.road)
            self._mark(send.id, send.road)
            self._finish(send.id)

    def _finish(self, message_id: MessageId) -> None:
        """What gossip does not carry is done with when another road took it."""
        if self._routing.is_settled(message_id) and not self.is_gossiped(message_id):
            self._tools.done((message_id,))

    async def _message(self, message_id: MessageId) -> SignedMessage | None:
        raws = await self._archive.bytes_of((message_id,))
        return decode_message(raws[message_id]) if message_id in raws else None

    async def _hand_over(self, send: Send, message: SignedMessage, around: Surroundings) -> None:
        match send.road:
            case "gossip":
                self._tools.announce(message)
            case "nats":
                assert self._broker is not None
                outgoing = encode_nats(message, self._subjects)
                if outgoing is None:
                    raise InvalidMessage("subject", f"the topic {message.topic} has no NATS subject")
                await self._broker.publish(outgoing.subject, outgoing.body, outgoing.headers)
            case "http":
                assert self._poster is not None
                use = self.plan(message.topic, decode_payload(message.data).document).http
                if message.topic == OPPORTUNITY_TOPIC and (use == "always" or not (around.nats_up or around.bridge)):
                    self._poster.tell_legacy(message)
                await self._poster.post(
                    message, everybody=use == "always", spread=not self._routing.is_safe(message.id)
                )

    # -- others' messages --------------------------------------------------------------

    async def _use_broker(self, broker: Broker) -> None:
        if self._tools.reads:
            broker.watch(self._subjects.watched(), self._take_nats)
        while self._tools.reads and self.policy.nats == "off" and self.policy.rollback != "nats":
            await self._changed.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.run)
            async for message in self._to_take:
                await self._take_in(message)

    def _take_nats(self, message: NatsMessage) -> None:
        if self.policy.nats == "off" and self.policy.rollback != "nats":
            return
        try:
            self._incoming.send_nowait(message)
        except trio.WouldBlock:
            self.counted["in", "dropped"] += 1

    async def _take_in(self, incoming: NatsMessage) -> None:
        try:
            message = decode_nats(incoming.headers, incoming.body)
            if message is None:  # a plain client's: a bridge signs and imports it
                self.counted["in", "plain"] += 1
                return
            why = await self._intake.take(message, "nats")
        except InvalidMessage as error:
            self.counted["in", error.reason] += 1
            self._failures.warning(
                "ignored what came by NATS", {"subject": incoming.subject, "reason": error.reason, "what": error.detail}
            )
        except EnvironmentFault as error:
            self.counted["in", "storage"] += 1
            self._failures.warning("what came by NATS cannot be stored", {"reason": error.detail})
        else:
            self.counted["in", why or "taken"] += 1

    # -- what the API shows ------------------------------------------------------------

    def has_other_road(self) -> bool:
        """Can own messages go out and others' come in although no peer is connected?"""
        usable = self.policy.rollback == "nats" or (self.policy.nats != "off" and not self.policy.rollback)
        return usable and self._state().connected

    def reasons(self) -> list[str]:
        """Why the roads do less than configured, with what to do; empty when all is well."""
        found = []
        if self._routing.trouble and not self.policy.rollback:
            helps = [each.upper() for each in ("nats", "http") if self._use(each) != "off" and self._is_up(each)]
            what = f"messages go by {' and '.join(helps)} too" if helps else "no other road is there to help"
            found.append(f"gossip is in trouble ({self._routing.trouble}): {what}")
        state = self._state()
        if self._broker is not None and self._use("nats") != "off" and state.code:
            found.append(f"{state.problem}; {state.fix}" if state.fix else state.problem)
        return found

    def _use(self, road: Road) -> Use:
        return self.policy.plan(None).use(road)

    def _is_up(self, road: Road) -> bool:
        if road == "nats":
            return self._state().connected
        return road == "gossip" or (self._poster is not None and self._poster.has_targets())

    def document(self) -> JsonObject:
        """`ports.Sidecar.carriers`."""
        policy, state = self.policy, self._state()
        return {
            **{road: self._road_document(road) for road in ROADS},
            "rollback": policy.rollback or None,
            "canary_percent": policy.canary_percent,
            "old_road": policy.old_road,
            "degraded": bool(self.reasons()),
            "broker": broker_document(state) if self._broker is not None else None,
            "waiting": self._routing.waiting(),
            "changed_at": format_time(self._changed_at_ns) if self._changed_at_ns else None,
            "listen": self._tools.listen(),
        }

    def _road_document(self, road: Road) -> JsonObject:
        use, why = self._use(road), ""
        state = "off" if use == "off" else "ready"
        if use != "off" and not self._is_up(road):
            broker = self._state()
            nobody = "nobody tells where it takes messages by HTTP"
            state, why = "down", (broker.problem or "not connected yet") if road == "nats" else nobody
        elif use == "fallback" and self._routing.trouble:
            state, why = "active", f"gossip is in trouble: {self._routing.trouble}"
        configured = {"gossip": self._configured.gossip, "nats": self._configured.nats, "http": self._configured.http}
        return {
            "use": use,
            "configured": configured[road],
            "state": state,
            "why": why,
            "messages": self.took[road],
        }

    def set(self, changes: Mapping[str, object]) -> JsonObject:
        """`ports.Sidecar.set_carriers`.

        Raises:
            InvalidRequest: what is wrong, field by field.
        """
        faults: list[Fault] = []
        wanted: dict[str, Any] = {}
        for name, value in changes.items():
            if name in ROADS:
                if value not in USES:
                    faults.append(Fault(name, f"must be one of {', '.join(USES)}, not {value!r:.60}"))
                wanted[name] = value
            elif name == "canary_percent":
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
                    faults.append(Fault(name, f"must be a number from 0 to 100, not {value!r:.60}"))
                else:
                    wanted[name] = float(value)
            elif name == "rollback":
                if value not in (None, "", "nats", "http"):
                    faults.append(Fault(name, f"must be nats, http or null, not {value!r:.60}"))
                wanted[name] = value or ""
            else:
                faults.append(
                    Fault(name, f"there is no such field; there are {', '.join(ROADS)}, canary_percent, rollback")
                )
        if not changes:
            faults.append(Fault("body", "names nothing to change"))
        if not faults:
            faults = self._contradictions(replace(self.policy, **wanted))
        if faults:
            raise InvalidRequest("the carriers were not changed", faults)
        before, after = self.policy, replace(self.policy, **wanted)
        self._routing.change(after)
        self._changed_at_ns = self._tools.wall_ns()
        self._changed.set()
        self._changed = trio.Event()
        self._wake.set()
        log.warning("carriers changed", extra={"from": _words(before), "to": _words(after)})
        return self.document()

    def _contradictions(self, policy: Policy) -> list[Fault]:
        faults = []
        no_server = "there is no NATS server to use: set nats.url (NATS_URL) and start the sidecar again"
        if policy.rollback == "nats" and self._broker is None:
            faults.append(Fault("rollback", no_server))
        if policy.nats == "always" and self._broker is None:
            faults.append(Fault("nats", no_server))
        if policy.rollback == "http" and self._poster is None:
            faults.append(Fault("rollback", "HTTP is not available in this sidecar"))
        if not policy.rollback and {policy.gossip, policy.http} == {"off"}:
            if policy.nats == "off" or self._broker is None:
                faults.append(Fault("gossip", "no road would be left; leave one on"))
        return faults

    def metrics(self) -> Mapping[str, float]:
        poster = self._poster.metrics() if self._poster is not None else {}
        return {
            **{f'p2pnode_road_messages_total{{road="{road}"}}': float(self.took[road]) for road in ROADS},
            **{
                f'p2pnode_road_{what}_total{{{"reason" if what == "in" else "road"}="{which}"}}': float(count)
                for (what, which), count in self.counted.items()
            },
            "p2pnode_road_waiting": float(self._routing.waiting()),
            "p2pnode_road_trouble": float(bool(self._routing.trouble)),
            "p2pnode_canary_percent": self.policy.canary_percent,
            "p2pnode_rollback": float(bool(self.policy.rollback)),
            **poster,
        }


def broker_document(state: BrokerState) -> JsonObject:
    return {
        "connected": state.connected,
        "server": state.server,
        "jetstream": state.jetstream,
        "code": state.code,
        "problem": state.problem,
        "fix": state.fix,
    }


def _words(policy: Policy) -> str:
    roads = " ".join(f"{road}={getattr(policy, road)}" for road in ROADS)
    return f"{roads} canary={policy.canary_percent:g} rollback={policy.rollback or 'off'}"
