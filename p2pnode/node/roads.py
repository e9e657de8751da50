"""The other roads at work: NATS and HTTP carry what gossip does not spread (`p2pnode.core.routing` decides)."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import trio

from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.message import MessageId, SignedMessage, format_message_id
from p2pnode.core.routing import ROADS, Plan, Policy, Road, Routing, Send, Surroundings
from p2pnode.core.subjects import Subjects
from p2pnode.errors import CallerError, EnvironmentFault, InvalidMessage, Unavailable
from p2pnode.logs import Throttled
from p2pnode.node.archive import Archive
from p2pnode.node.intake import Intake
from p2pnode.node.posting import Poster
from p2pnode.ports import Entry
from p2pnode.ports.roads import Broker, NatsMessage
from p2pnode.wire.nats import decode_nats, encode_nats
from p2pnode.wire.payload import decode_payload
from p2pnode.wire.pubsub import decode_message

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
GATHER_SECONDS = 0.01
"""Between two looks at least: each goes over all that waits, and an agent can publish hundreds a second."""

AT_ONCE: Mapping[Road, int] = {"gossip": 64, "nats": 64, "http": 16}
"""Messages on their way by each road at the same time; one by HTTP may be a request to each member."""

MAX_UNDER_WAY = 1000
"""Messages handed to a road that has not answered, those that wait for their turn among them; then it gets no more
until there are fewer. One look may go beyond it by what it finds."""

MAX_WAITING = 10_000
"""Messages from NATS that wait to be looked at; above it they are left to synchronisation."""

IN_AT_ONCE = 256
"""Messages from NATS that wait for the disk at the same time; one transaction takes many."""

LOADED_AT_ONCE = 100
TARGETS_SECONDS = 1.0
"""How long it counts whether there was anybody to post to: to find out takes a look at all members."""


@dataclass(frozen=True, slots=True)
class Tools:
    """
    Args:
        neighbours: live ones in a topic that keep what they take.
        bridge: is a live bridge among the members, beside this node?
        unreachable: members that gossip does not reach and that did not leave: how many.
        announce: gossips an own message to its topic.
        done: these own messages are where they should be; forgets them in the store's outbox.
        reads: take messages from NATS here; False for a bridge, which reads them all by itself.
    """

    neighbours: Callable[[str], Collection[object]]
    bridge: Callable[[], bool]
    unreachable: Callable[[], int]
    announce: Callable[[SignedMessage], None]
    done: Callable[[Sequence[MessageId]], None]
    reads: bool = True


class Roads:
    """Made, then loaded, then run.

    Args:
        policy: as configured.
        broker: None without NATS.
        poster: HTTP; None: nothing is posted.

    Attributes:
        took: own messages, by road.
        counted: `(what, reason)`: `failed` and `refused` by road; `in` by what became of it.
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
        self._routing = Routing(policy)
        self._archive = archive
        self._subjects = subjects
        self._intake = intake
        self._broker = broker
        self._poster = poster
        self._tools = tools
        self._plans: dict[MessageId, Plan] = {}
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._under_way: Counter[Road] = Counter()
        self._has_targets = False
        self._targets_counted_at = -math.inf
        self._incoming: trio.MemorySendChannel[NatsMessage]
        self._incoming, self._to_take = trio.open_memory_channel[NatsMessage](MAX_WAITING)
        self._failures = Throttled(log)
        self.took: Counter[Road] = Counter()
        self.counted: Counter[tuple[str, str]] = Counter()

    @property
    def policy(self) -> Policy:
        """What is in force."""
        return self._routing.policy

    @property
    def trouble(self) -> str:
        """Why gossip does not do by itself; empty when it does."""
        return self._routing.trouble

    def waiting(self) -> int:
        """Own messages that are not where they should be."""
        return self._routing.waiting()

    def change(self, policy: Policy) -> None:
        """Another policy, for what is published from now on."""
        self._routing.change(policy)
        self._changed.set()
        self._changed = trio.Event()
        self._wake.set()

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

    async def load(self, entries: Sequence[Entry]) -> None:
        """What an earlier run left undone. Before the outbox of gossip is loaded, which asks `is_gossiped`.

        Raises:
            EnvironmentFault: it cannot be read.
        """
        left = iter(entries)
        while some := list(islice(left, LOADED_AT_ONCE)):
            raws = await self._archive.bytes_of([entry.id for entry in some])
            for entry in some:
                if entry.id in raws:
                    self._load(entry, raws[entry.id])

    def _load(self, entry: Entry, raw: bytes) -> None:
        try:
            message = decode_message(raw)
        except InvalidMessage:
            return
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
        limits = {road: trio.CapacityLimiter(most) for road, most in AT_ONCE.items()}
        while True:
            self._wake = trio.Event()
            around = self._surroundings()
            for send in self._routing.look(trio.current_time(), around):
                self._under_way[send.road] += 1
                nursery.start_soon(self._send, send, around, limits[send.road])
            is_calm = not (self._routing.waiting() or self._routing.trouble or around.unreachable)
            if is_calm:
                await self._wake.wait()
            else:
                with trio.move_on_after(LOOK_SECONDS):
                    await self._wake.wait()
            await trio.sleep(GATHER_SECONDS)

    def _surroundings(self) -> Surroundings:
        busy = frozenset(road for road in ROADS if self._under_way[road] >= MAX_UNDER_WAY)
        nats_up = self._broker is not None and self._broker.state().connected
        return Surroundings(nats_up, self._tools.bridge(), self._tools.unreachable(), self._http_up(), busy)

    def _http_up(self) -> bool:
        if self._poster is None:
            return False
        now = trio.current_time()
        if now - self._targets_counted_at >= TARGETS_SECONDS:
            self._targets_counted_at, self._has_targets = now, self._poster.has_targets()
        return self._has_targets

    async def _send(self, send: Send, around: Surroundings, limit: trio.CapacityLimiter) -> None:
        try:
            async with limit:
                message, plan = await self._message(send.id), self._routing.plan_of(send.id)
                if message is None or plan is None:
                    self._routing.dropped(send.id)
                    return
                await self._hand_over(message, send.road, plan, around)
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
        finally:
            self._under_way[send.road] -= 1

    def _finish(self, message_id: MessageId) -> None:
        """What gossip does not carry is done with when another road took it."""
        if self._routing.is_settled(message_id) and not self.is_gossiped(message_id):
            self._tools.done((message_id,))

    async def _message(self, message_id: MessageId) -> SignedMessage | None:
        raws = await self._archive.bytes_of((message_id,))
        return decode_message(raws[message_id]) if message_id in raws else None

    async def _hand_over(self, message: SignedMessage, road: Road, plan: Plan, around: Surroundings) -> None:
        match road:
            case "gossip":
                if not self._tools.neighbours(message.topic):
                    raise Unavailable(f"no connected peer is subscribed to {message.topic}", reason="no-peers")
                self._tools.announce(message)
            case "nats":
                assert self._broker is not None
                outgoing = encode_nats(message, self._subjects)
                if outgoing is None:
                    raise InvalidMessage("subject", f"the topic {message.topic} has no NATS subject")
                await self._broker.publish(outgoing.subject, outgoing.body, outgoing.headers)
            case "http":
                assert self._poster is not None
                everybody = plan.http == "always"
                if message.topic == OPPORTUNITY_TOPIC and (everybody or not (around.nats_up or around.bridge)):
                    self._poster.tell_legacy(message)
                await self._poster.post(message, everybody=everybody, spread=not self._routing.is_safe(message.id))

    # -- others' messages --------------------------------------------------------------

    async def _use_broker(self, broker: Broker) -> None:
        if self._tools.reads:
            broker.watch(self._subjects.watched(), self._take_nats)
        while self._tools.reads and self.policy.nats == "off" and self.policy.rollback != "nats":
            await self._changed.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.run)
            room = trio.Semaphore(IN_AT_ONCE)
            async for message in self._to_take:
                await room.acquire()
                nursery.start_soon(self._take_in, message, room)
                # It runs up to the disk before the next one is started: order is kept.
                await trio.lowlevel.checkpoint()

    def _take_nats(self, message: NatsMessage) -> None:
        if self.policy.nats == "off" and self.policy.rollback != "nats":
            return
        try:
            self._incoming.send_nowait(message)
        except trio.WouldBlock:
            self.counted["in", "dropped"] += 1
            self._failures.warning(
                "more comes by NATS than can be stored; the rest is left to synchronisation",
                {"subject": message.subject, "waiting": MAX_WAITING},
            )

    async def _take_in(self, incoming: NatsMessage, room: trio.Semaphore) -> None:
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
        finally:
            room.release()
