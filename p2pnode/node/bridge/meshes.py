"""Members over NATS: two meshes that cannot reach each other know each other's members by their bridges.

Each bridge tells who lives on its side (its roll): all of it at first, to each bridge that is new to it, and every
15 s; changes at once. A bridge that hears the roll of another that it cannot reach takes the records in, and names in
its own record who lives beyond it, so that nobody on its side probes, accuses or dials those. What another bridge of
the same mesh tells is known here anyway.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection

import trio

from p2pnode.core.membership.beyond import BeyondFilter
from p2pnode.core.membership.record import MemberState, Role
from p2pnode.core.peerid import PeerId, peer_id_bytes
from p2pnode.core.subjects import MEMBERS_SUBJECT
from p2pnode.errors import EnvironmentFault, InvalidMessage, InvalidRequest
from p2pnode.logs import Throttled
from p2pnode.node.bridge.other import OtherBridge
from p2pnode.node.bridge.refusals import Refusals
from p2pnode.node.bridge.rolls import MAX_ROLL_BYTES, Part, decode_part, encode_part, make_part
from p2pnode.node.members import ROLL_BYTES, Members
from p2pnode.ports import Host, JsonObject
from p2pnode.ports.roads import Broker, NatsMessage
from p2pnode.wire.members import EncodedNews, RecordVerify, batches, read_accusation, read_record

log = logging.getLogger(__name__)

ROLL_SECONDS = 15.0
FORGET_SECONDS = 45.0
"""Who was not heard of for so long vouches for nobody any more."""

PROBE_SECONDS = 30.0
PATIENCE_SECONDS = 2.0
PROBE_PAUSES = (0.0, 1.0)
"""Before each probe: one that fails by chance must not take our own mesh for another one."""

LOOK_SECONDS = 1.0
"""Between two looks at what changed, and between two changes of our own record."""

SETTLING_SECONDS = 3.0
"""After connecting, in which other bridges are believed to be there although they were not heard yet."""

MAX_SKEW_SECONDS = 300.0
"""Between the clocks of two bridges; what is dated otherwise is refused: for all we know, an old roll is repeated."""

MAX_BRIDGES = 32
MAX_STAMPS = 256
"""Of bridges that are not heard any more: what they said last, so that nobody says it for them again."""

MAX_QUEUED = 256

Collect = Callable[[], Awaitable[Collection[PeerId]]]


class BridgedMeshes:
    """Made, then run.

    Args:
        import_key: told to the others, so that not two of one mesh sign for the same plain client.
        collect: asks over libp2p who is in our own mesh; takes three seconds at most.
        sign, verify: our node's key, and anybody's.

    Attributes:
        sent, taken: parts of rolls.
        dropped: messages that found no room.
    """

    def __init__(
        self,
        broker: Broker,
        host: Host,
        members: Members,
        import_key: PeerId,
        refusals: Refusals,
        *,
        sign: Callable[[bytes], bytes],
        verify: RecordVerify,
        collect: Collect,
        wall_ns: Callable[[], int],
    ) -> None:
        self._collect = collect
        self._ours: dict[PeerId, float] = {}
        """Who was in our own mesh, and when: monotonic."""
        self._broker = broker
        self._host = host
        self._members = members
        self._import_key = import_key
        self._refusals = refusals
        self._sign = sign
        self._verify = verify
        self._wall_ns = wall_ns
        self._others: dict[PeerId, OtherBridge] = {}
        self._stamps: OrderedDict[PeerId, int] = OrderedDict()
        self._beyond: frozenset[PeerId] = frozenset()
        self._told_beyond: frozenset[PeerId] = frozenset()
        self._connected_at: float | None = None
        self._losses = -1
        self._full_at = float("-inf")
        self._told: frozenset[bytes] = frozenset()
        self._version = -1
        self._at_ns = 0
        self._greets = trio.Event()
        self._changed = trio.Event()
        self._send, self._queue = trio.open_memory_channel[NatsMessage](MAX_QUEUED)
        self._failures = Throttled(log)
        self.sent = 0
        self.taken = 0
        self.dropped = 0
        broker.watch((MEMBERS_SUBJECT,), self._heard)

    # -- reading -----------------------------------------------------------------------

    def beyond(self) -> Collection[PeerId]:
        """Who lives beyond bridges that we cannot reach."""
        return self._beyond

    def partners(self) -> list[PeerId]:
        """Other live bridges of this mesh, as long as NATS reaches them."""
        now = trio.current_time()
        is_new = self._connected_at is None or now - self._connected_at < SETTLING_SECONDS
        return [
            member.record.peer_id
            for member in self._members.alive()
            if member.record.role == Role.BRIDGE
            and member.record.peer_id != self._host.peer_id
            and not self._is_other_side(member.record.peer_id)
            and (is_new or self._is_heard(member.record.peer_id, now))
        ]

    def import_key_of(self, bridge: PeerId) -> PeerId | None:
        """What it signs with for plain clients; None while it was not heard."""
        other = self._others.get(bridge)
        return other.import_key if other is not None else None

    def document(self) -> list[JsonObject]:
        """`bridges` of `ports.Sidecar.bridge`."""
        now = trio.current_time()
        return [
            {
                "peer_id": other.peer,
                "name": member.record.name if (member := self._members.get(other.peer)) is not None else None,
                "beyond": other.is_linked is False,
                "import_key": other.import_key,
                "heard_seconds_ago": round(now - other.heard, 3),
            }
            for other in sorted(self._others.values(), key=lambda other: other.peer)
        ]

    def _is_heard(self, peer: PeerId, now: float) -> bool:
        other = self._others.get(peer)
        return other is not None and now - other.heard < FORGET_SECONDS

    def _is_other_side(self, peer: PeerId) -> bool:
        return peer in self._beyond or self._members.is_beyond(peer)

    # -- telling -----------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_for_ever)
            nursery.start_soon(self._hear_for_ever, nursery)
            nursery.start_soon(self._keep_for_ever, nursery)

    async def _tell_for_ever(self) -> None:
        while True:
            if self._look_at_broker():
                try:
                    await self._tell()
                except EnvironmentFault as error:
                    log.debug("the roll was not told yet", extra={"reason": error.detail})
                except InvalidRequest as error:
                    self._failures.warning("the roll cannot be told over NATS", {"reason": str(error)})
            with trio.move_on_after(LOOK_SECONDS):
                await self._greets.wait()
            await trio.sleep(0.1)  # several that greet at once get one roll

    def _look_at_broker(self) -> bool:
        """Is it connected? Whoever comes back is greeted anew."""
        is_connected = self._broker.state().connected
        losses = self._broker.counters().get(("disconnected", ""), 0)
        if not is_connected or losses != self._losses:
            self._connected_at, self._full_at, self._losses = None, float("-inf"), losses
        if is_connected and self._connected_at is None:
            self._connected_at = trio.current_time()
        return is_connected

    async def _tell(self) -> None:
        now = trio.current_time()
        is_full = self._greets.is_set() or now - self._full_at >= ROLL_SECONDS
        version = self._members.machine.version
        if not is_full and version == self._version:
            return
        parts = self._members.roll(self._is_other_side)
        told = frozenset(each for part in parts for each in (*part.records, *part.accusations))
        if not is_full:
            news = EncodedNews(
                tuple(each for part in parts for each in part.records if each not in self._told),
                tuple(each for part in parts for each in part.accusations if each not in self._told),
            )
            for part in batches(news, ROLL_BYTES):
                await self._publish(part, 0, 0)
        else:
            self._greets = trio.Event()
            for number, part in enumerate(parts, 1):
                await self._publish(part, number, len(parts))
            self._full_at = now
        self._told, self._version = told, version

    async def _publish(self, news: EncodedNews, number: int, total: int) -> None:
        self._at_ns = max(self._wall_ns(), self._at_ns + 1)
        part = make_part(self._host.peer_id, number, total, self._at_ns, self._import_key, news)
        await self._broker.publish(MEMBERS_SUBJECT, part.body, encode_part(part, self._sign))
        self.sent += 1

    # -- hearing -----------------------------------------------------------------------

    def _heard(self, raw: NatsMessage) -> None:
        try:
            self._send.send_nowait(raw)
        except trio.WouldBlock:
            self.dropped += 1

    async def _hear_for_ever(self, nursery: trio.Nursery) -> None:
        async for raw in self._queue:
            try:
                part = decode_part(raw.headers, raw.body, self._verify)
                if part.bridge != self._host.peer_id:
                    await self._take(part, nursery)
            except InvalidMessage as error:
                self._refuse(error)
            except Exception:  # one roll must not stop the bridge
                self._failures.exception("a roll of another bridge could not be taken")

    def _refuse(self, error: InvalidMessage) -> None:
        self._refusals.note("members", MEMBERS_SUBJECT, MEMBERS_SUBJECT, error.reason, error.detail)

    async def _take(self, part: Part, nursery: trio.Nursery) -> None:
        """
        Raises:
            InvalidMessage: reasons `stamp`, `bridges` (too many), `oversize`, or as the news are decoded.
        """
        now = trio.current_time()
        skew = (part.at_ns - self._wall_ns()) / 1e9
        if abs(skew) > MAX_SKEW_SECONDS:
            detail = f"the roll of {part.bridge} is dated {abs(skew):.0f} s {'ahead' if skew > 0 else 'ago'}"
            raise InvalidMessage("stamp", f"{detail}; set its clock or ours")
        other = self._others.get(part.bridge)
        if part.at_ns <= (other.at_ns if other is not None else self._stamps.get(part.bridge, 0)):
            return
        if other is None:
            if len(self._others) >= MAX_BRIDGES:
                raise InvalidMessage("bridges", f"{part.bridge} is one bridge over the bound of {MAX_BRIDGES}")
            other = self._others[part.bridge] = OtherBridge(part.bridge, part.import_key, now)
            log.info("another bridge was heard over NATS", extra={"peer": part.bridge})
            self._greets.set()
        other.heard, other.at_ns, other.import_key = now, part.at_ns, part.import_key
        if part.number == 1:
            other.size = 0
        other.size += len(part.body)
        if other.size > MAX_ROLL_BYTES:
            other.waiting.clear()
            raise InvalidMessage("oversize", f"the roll of {part.bridge} is over {MAX_ROLL_BYTES} bytes")
        other.addrs = self._addrs_of(part) or other.addrs
        if other.is_linked is None:
            other.waiting.append(part)
            self._start_judging(other, nursery)
        elif not other.is_linked:
            await self._learn(other, part)

    def _addrs_of(self, part: Part) -> tuple[str, ...]:
        """Where the bridge itself says that it lives, if it is among the records.

        Raises:
            InvalidMessage: a record is none.
        """
        origin = peer_id_bytes(part.bridge)
        for encoded in part.news().records:
            if origin not in encoded:
                continue
            record = read_record(encoded, self._verify, lambda each: each.peer_id == part.bridge)
            if record is not None:
                return record.addrs
        return ()

    async def _learn(self, other: OtherBridge, part: Part) -> None:
        """Take what a bridge that we cannot reach tells of its side.

        Raises:
            InvalidMessage: the news are none.
        """
        news = part.news()
        accused: set[PeerId] = set()
        for encoded in news.accusations:
            read_accusation(encoded, self._verify, lambda each: _put(each.accused, accused))
        held = await self._members.take_news(news)
        self.taken += 1
        # Who is accused there may be one of ours that they do not reach: the bridge cannot vouch for it.
        living = {peer for peer in held if peer not in accused or peer in other.living}
        other.gather(part, living)
        self._changed.set()

    # -- judging -----------------------------------------------------------------------

    def _start_judging(self, other: OtherBridge, nursery: trio.Nursery) -> None:
        if not other.judging:
            other.judging = True
            nursery.start_soon(self._judge, other)

    async def _judge(self, other: OtherBridge) -> None:
        """Can we reach it? Then its members are ours."""
        is_linked = False
        for pause in PROBE_PAUSES:
            await trio.sleep(pause)
            is_linked = other.peer in self._host.links() or (
                bool(other.addrs) and await self._host.probe(other.peer, other.addrs, PATIENCE_SECONDS, fresh=False)
            )
            if is_linked:
                break
        was, other.is_linked = other.is_linked, is_linked
        other.judged, other.judging = trio.current_time(), False
        if was != is_linked:
            log.info(
                "another bridge lives in this mesh" if is_linked else "another bridge lives beyond NATS",
                extra={"peer": other.peer, "addrs": list(other.addrs)},
            )
            if is_linked:
                other.forget()
            self._changed.set()
        waiting, other.waiting = other.waiting, []
        for part in waiting if not is_linked else ():
            try:
                await self._learn(other, part)
            except InvalidMessage as error:
                self._refuse(error)
            except Exception:  # one roll must not stop the bridge
                self._failures.exception("a roll of another bridge could not be taken")

    # -- our own record ----------------------------------------------------------------

    async def _keep_for_ever(self, nursery: trio.Nursery) -> None:
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._changed.wait()
            self._changed = trio.Event()
            now = trio.current_time()
            for other in list(self._others.values()):
                if now - other.heard >= FORGET_SECONDS and not other.judging:
                    log.warning("another bridge is not heard over NATS any more", extra={"peer": other.peer})
                    del self._others[other.peer]
                    self._stamps[other.peer] = other.at_ns
                    if len(self._stamps) > MAX_STAMPS:
                        self._stamps.popitem(last=False)
                elif now - other.judged >= PROBE_SECONDS or (not other.is_linked and other.peer in self._host.links()):
                    self._start_judging(other, nursery)
            if self._named() - self._beyond:
                await self._see_ours()
            self._say_beyond()
            await trio.sleep(LOOK_SECONDS)

    def _named(self) -> set[PeerId]:
        """Whom bridges that we cannot reach tell of, and who was not in our own mesh lately.

        A bridge that has just started tells of all it knows, our own side's members too.
        """
        now = trio.current_time()
        self._ours = {peer: at for peer, at in self._ours.items() if now - at < FORGET_SECONDS}
        named = {peer for other in self._others.values() if other.is_linked is False for peer in other.living}
        return named - {*self._host.links(), self._host.peer_id, *self._ours}

    async def _see_ours(self) -> None:
        try:
            there = await self._collect()
        except EnvironmentFault as error:
            log.debug("our own mesh did not answer", extra={"reason": error.detail})
            return
        self._ours.update(dict.fromkeys(there, trio.current_time()))

    def _say_beyond(self) -> None:
        self._beyond = frozenset(self._named())
        if self._beyond == self._told_beyond:
            return
        ours = [
            peer
            for peer, member in self._members.all().items()
            if member.state in (MemberState.ALIVE, MemberState.SUSPECT) and peer not in self._beyond
        ]
        encoded = BeyondFilter.make(self._beyond, avoid=ours)
        try:
            self._members.update_own(dataclasses.replace(self._members.own, beyond=encoded))
        except InvalidMessage as error:
            self._failures.warning("who lives beyond cannot be told: the record is full", {"reason": error.detail})
            return
        self._told_beyond = self._beyond


def _put(peer: PeerId, into: set[PeerId]) -> bool:
    """Note whom an accusation is about; whether it is signed is judged with the rest of the news."""
    into.add(peer)
    return False
