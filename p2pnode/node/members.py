"""The membership at work: its inputs from links, gossip and exchanges, its effects carried out.

A record spreads by gossip when it changes, and by an exchange when two nodes connect and now and then afterwards, so
that a lost message is made good.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from random import Random

import trio

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
from p2pnode.core.membership.membership import Membership, Seals
from p2pnode.core.membership.params import Params
from p2pnode.core.membership.record import GONE, Accusation, Member, MemberRecord, MemberState
from p2pnode.core.message import Accept, Ignore, Reject, SignedMessage, Verdict
from p2pnode.core.peerid import PeerId, is_peer_id, peer_id_bytes, peer_id_text
from p2pnode.core.reconcile import FEW, Reconciliation, Snapshot, answer
from p2pnode.errors import EnvironmentFault, InvalidMessage, Unavailable
from p2pnode.node.clocks import Clocks
from p2pnode.node.news import NewsOutbox
from p2pnode.ports import Host, Link, SeqnoStore
from p2pnode.wire.members import (
    MAX_EXCHANGE_BYTES,
    MAX_WANT,
    MEMBERS_PROTOCOL,
    PROBE_PROTOCOL,
    EncodedNews,
    Exchange,
    RecordVerify,
    decode_exchange,
    decode_news,
    encode_exchange,
    encode_news,
    read_accusation,
    read_record,
    sign_accusation,
    sign_record,
)
from p2pnode.wire.reconcile import decode_offer, decode_reply, encode_offer, encode_reply

log = logging.getLogger(__name__)

EXCHANGE_SECONDS = (1.0, 60.0)
"""Shortest and longest pause between two exchanges; doubled while nothing differs, shortest again after news."""

MAX_ROUNDS = 12
"""Of one exchange: more than two sets of a million need."""

NEWS_IN_ANSWER_BYTES = MAX_EXCHANGE_BYTES // 2
VERIFY_AT_ONCE = 32
"""Signatures checked before others get a turn: about 3 ms."""

STORE_AGAIN_SECONDS = 5.0
ASK_PAUSES = (0.2, 1.0, 3.0)
MAX_PROBES_FOR_OTHERS = 8
"""Under way at one time; above it the asker is told no."""

ROLL_BYTES = 64 * 1024
"""Of one part of a roll: NATS servers take 1 MiB at most by default, some less."""

MAX_PROBES_FOR_ONE = 2
"""Of those, for one asker: none can keep all the others from being helped."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the membership needs injected.

    Args:
        sign: our key's signature of some bytes.
        verify: `(peer id, key, signed bytes, signature) -> good?`
        wall_ns: the wall clock.
        rng: for jitter and for choosing whom to ask.
        incarnations: the highest incarnation used, over restarts.
    """

    sign: Callable[[bytes], bytes]
    verify: RecordVerify
    wall_ns: Callable[[], int]
    rng: Random
    incarnations: SeqnoStore


class Members:
    """Everybody this node knows, kept true.

    Args:
        own: our record without incarnation and signature.
        publish: hands news to the members topic; raises Unavailable while nobody listens, EnvironmentFault when it
            cannot be numbered.
        changed: called when members appeared or changed their states; must return at once.
        twin: called when another live process has our identity and is the older one.
        may_vouch: is this member of role `bridge` believed when it says who lives beyond it?
    """

    def __init__(
        self,
        host: Host,
        tools: Tools,
        own: MemberRecord,
        publish: Callable[[bytes], Awaitable[None]],
        changed: Callable[[], None],
        twin: Callable[[MemberRecord], None],
        params: Params | None = None,
        may_vouch: Callable[[PeerId], bool] = lambda bridge: True,
    ) -> None:
        self._host = host
        self._tools = tools
        self._params = params or Params()
        self._changed = changed
        self._twin = twin
        self._fed = trio.Event()
        self._differs = trio.Event()
        self._to_ask: set[PeerId] = set()
        self._ask = trio.Event()
        self._own_changed = trio.Event()
        self._own_changed.set()
        self._to_probe: deque[Probe | AskHelpers] = deque()
        """At most one for each doubted member."""
        self._probes_wait = trio.Event()
        self._helping: Counter[PeerId] = Counter()
        self._items: tuple[int, Snapshot] | None = None
        self.counted: Counter[str] = Counter()
        self.twin_met: tuple[MemberRecord, int] | None = None
        """The latest record of another live process with our identity, and the wall time when it came."""
        self.machine = Membership(
            own,
            Seals(self._seal_record, self._seal_accusation),
            tools.rng,
            floor=tools.incarnations.load(),
            now=trio.current_time(),
            wall_ns=tools.wall_ns(),
            params=self._params,
            may_vouch=may_vouch,
        )
        self._outbox = NewsOutbox(self.machine, publish, tools.rng)
        self._clocks = Clocks(host.links)

    # -- reading -----------------------------------------------------------------------

    @property
    def own(self) -> MemberRecord:
        return self.machine.own

    @property
    def refused(self) -> Counter[str]:
        """Records, accusations and exchanges that changed nothing, by reason."""
        return self.machine.refused

    def get(self, peer: PeerId) -> Member | None:
        return self.machine.get(peer)

    def all(self) -> Mapping[PeerId, Member]:
        return self.machine.members()

    def is_beyond(self, peer: PeerId) -> bool:
        """Does it live beyond a bridge that is here, and have we no link with it? It is not to be dialled."""
        return self.machine.is_beyond(peer)

    def living_at(self, addr: str) -> PeerId | None:
        """Which live member on this side of all bridges announces this address, a multiaddr without `/p2p/…`."""
        for peer, member in self.machine.members().items():
            is_alive = member.state in (MemberState.ALIVE, MemberState.SUSPECT)
            if is_alive and addr in member.record.addrs and not self.is_beyond(peer):
                return peer
        return None

    def alive(self) -> list[Member]:
        return [member for member in self.machine.members().values() if member.state is MemberState.ALIVE]

    def clock_offsets(self) -> Mapping[PeerId, float]:
        """Seconds by which the wall clock of each linked peer that told its own is ahead of ours."""
        return self._clocks.offsets()

    # -- inputs ------------------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        """The host has a link to a peer; whoever dialled starts the exchange."""
        self._feed(LinkOpened(link.peer))
        if link.direction == "outbound":
            self._to_ask.add(link.peer)
            self._ask.set()

    def link_closed(self, peer: PeerId, *, by_intent: bool) -> None:
        self._clocks.forget(peer)
        self._feed(LinkClosed(peer, by_intent))

    def link_silent(self, peer: PeerId) -> None:
        self._feed(LinkSilent(peer))

    def update_own(self, record: MemberRecord) -> None:
        """Say something new of ourselves.

        Raises:
            InvalidMessage: the record is over a limit of others; nothing changed.
        """
        self._feed(Renew(record))

    def goodbye(self) -> bytes:
        """Write our last record; the caller publishes it, because the tasks here may be gone."""
        self.machine.handle(Renew(dataclasses.replace(self.own, left=True)), trio.current_time(), self._tools.wall_ns())
        self._own_changed.set()
        return encode_news(EncodedNews((self.own.signed,)))

    def judge(self, message: SignedMessage) -> Verdict:
        """Verdict on a message of the members topic; takes what is news in it."""
        try:
            news, heard = self._verified(decode_news(message.data))
        except InvalidMessage as error:
            self.refused[error.reason] += 1
            return Reject("member-record")
        before = self.machine.version
        self._feed(News((*news.records, *heard.records), (*news.accusations, *heard.accusations), "gossip"))
        if self.machine.version != before:
            return Accept()
        # Signed well, and of no use all the same: a stranger to a full table, the accusation of a chatterer.
        return Ignore("unwelcome-record" if news.records or news.accusations else "old-record")

    def _verified(self, encoded: EncodedNews) -> tuple[News, News]:
        """What of it is news, checked; and what we hold just so, which need not be relayed by us any more.

        Raises:
            InvalidMessage: a record or accusation is none, or not signed by whom it names.
        """
        verify, machine = self._tools.verify, self.machine
        held_records: list[MemberRecord] = []
        held_accusations: list[Accusation] = []

        def is_news(record: MemberRecord) -> bool:
            member = machine.get(record.peer_id)
            if member is not None and member.record.signed == record.signed:
                held_records.append(record)
                return False
            return machine.wants(record)

        records = [r for e in encoded.records if (r := read_record(e, verify, is_news)) is not None]
        known = {record.peer_id for record in records}

        def is_wanted(accusation: Accusation) -> bool:
            member = machine.get(accusation.accused)
            held = member.accusations.get(accusation.accuser) if member is not None else None
            if held is not None and held.signed == accusation.signed:
                held_accusations.append(accusation)
                return False
            return self._is_wanted(accusation, known)

        accusations = [a for e in encoded.accusations if (a := read_accusation(e, verify, is_wanted)) is not None]
        return (
            News(tuple(records), tuple(accusations), "gossip"),
            News(tuple(held_records), tuple(held_accusations), "gossip"),
        )

    def _is_wanted(self, accusation: Accusation, new: Set[PeerId]) -> bool:
        """Is it worth checking? What is about, or by, a member that is new in the same news is judged after that."""
        return bool({accusation.accused, accusation.accuser} & new) or self.machine.wants_accusation(accusation)

    # -- effects -----------------------------------------------------------------------

    def _feed(self, input_: Input) -> None:
        changed = False
        for effect in self.machine.handle(input_, trio.current_time(), self._tools.wall_ns()):
            self._carry_out(effect)
            changed = changed or isinstance(effect, StateChanged)
        self._fed.set()
        if changed:
            # Once for all of them: an exchange can bring thousands.
            self._differs.set()
            self._changed()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Publish():
                self._outbox.add(effect)
            case Probe() | AskHelpers():
                self._to_probe.append(effect)
                self._probes_wait.set()
            case StateChanged(peer, before, after, why):
                self._tell(peer, before, after, why)
            case OwnRecord():
                self._own_changed.set()
            case Twin(record, yield_to_it):
                self._meet_twin(record, yield_to_it)

    def _tell(self, peer: PeerId, before: MemberState | None, after: MemberState | None, why: str) -> None:
        self.counted[after or "forgotten"] += 1
        member = self.machine.get(peer)
        extra = {"peer": peer, "node_name": member.record.name if member else "", "reason": why}
        if after is MemberState.DEAD or after is MemberState.SUSPECT:
            log.warning(f"a member is {after.value}", extra=extra)
        else:
            log.info(f"a member is {after.value if after else 'forgotten'}", extra=extra)
        if before is None and member is not None and self.machine.shares_name(peer):
            log.warning("two members have the same name; both stay, told apart by peer id", extra=extra)

    def _meet_twin(self, record: MemberRecord, yield_to_it: bool) -> None:
        log.error(
            "another live process has this node's identity",
            extra={"addrs": list(record.addrs), "node_name": record.name, "it_is_older": yield_to_it},
        )
        self.counted["twin"] += 1
        self.twin_met = (record, self._tools.wall_ns())
        if yield_to_it:
            self._twin(record)

    # -- tasks -------------------------------------------------------------------------

    async def run(self) -> None:
        """Announce, watch, ask, compare: until cancelled."""
        self._host.serve(MEMBERS_PROTOCOL, self.answer, limit_bytes=MAX_EXCHANGE_BYTES)
        self._host.serve(PROBE_PROTOCOL, self._probe_for_another, limit_bytes=64)
        self._outbox.add(Publish((self.own,), ()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            nursery.start_soon(self._remember_incarnations)
            nursery.start_soon(self._outbox.run)
            nursery.start_soon(self._carry_out_probes)
            nursery.start_soon(self._ask_new_links)
            nursery.start_soon(self._compare_now_and_then)

    async def _tick(self) -> None:
        while True:
            self._fed = trio.Event()  # an input may make the next deadline an earlier one
            due = self.machine.next_deadline()
            with trio.move_on_at(due):
                await self._fed.wait()
            if trio.current_time() >= due:
                self._feed(Tick())

    async def _remember_incarnations(self) -> None:
        while True:
            await self._own_changed.wait()
            self._own_changed = trio.Event()
            try:
                await self._tools.incarnations.reserve(self.own.incarnation)
            except EnvironmentFault as error:
                log.warning("the incarnation could not be stored, trying on", extra={"reason": error.detail})
                self._own_changed.set()
                await trio.sleep(STORE_AGAIN_SECONDS)

    async def _carry_out_probes(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await self._probes_wait.wait()
                self._probes_wait = trio.Event()
                while self._to_probe:
                    effect = self._to_probe.popleft()
                    if isinstance(effect, Probe):
                        nursery.start_soon(self._probe, effect)
                    else:
                        nursery.start_soon(self._ask_helpers, effect)

    async def _probe(self, effect: Probe) -> None:
        reached = await self._host.probe(effect.peer, effect.addrs, effect.patience_seconds)
        self._feed(ProbeEnded(effect.peer, reached))

    async def _ask_helpers(self, effect: AskHelpers) -> None:
        answers: list[bool] = []

        async def ask(helper: PeerId) -> None:
            try:
                said = await self._host.request(helper, PROBE_PROTOCOL, peer_id_bytes(effect.peer), limit_bytes=8)
                answers.append(said == b"\x01")
            except (Unavailable, InvalidMessage) as error:
                log.debug("a helper did not answer", extra={"peer": helper, "reason": str(error)})
            if any(answers):
                nursery.cancel_scope.cancel()

        with trio.move_on_after(effect.patience_seconds):
            async with trio.open_nursery() as nursery:
                for helper in effect.helpers:
                    nursery.start_soon(ask, helper)
        self._feed(HelpersEnded(effect.peer, any(answers)))

    async def _probe_for_another(self, asker: PeerId, body: bytes) -> bytes:
        """Serve one probe for another member: of members only, at the addresses that we know.

        Who lives beyond a bridge is answered for by the bridge: an older version may ask for it.
        """
        member = self.machine.get(peer_id_text(body)) if is_peer_id(body) else None
        if (
            member is None
            or self.machine.get(asker) is None
            or self._helping.total() >= MAX_PROBES_FOR_OTHERS
            or self._helping[asker] >= MAX_PROBES_FOR_ONE
        ):
            return b"\x00"
        if member.record.peer_id == self.own.peer_id or self.is_beyond(member.record.peer_id):
            return b"\x01"
        self._helping[asker] += 1
        try:
            reached = await self._host.probe(
                member.record.peer_id, member.record.addrs, self._params.probe_patience_seconds
            )
        finally:
            self._helping[asker] -= 1
            if not self._helping[asker]:
                del self._helping[asker]
        return b"\x01" if reached else b"\x00"

    # -- exchanges ---------------------------------------------------------------------

    def _set(self) -> Snapshot:
        if self._items is None or self._items[0] != self.machine.version:
            self._items = (self.machine.version, Snapshot(self.machine.items()))
        return self._items[1]

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """Serve one round of an exchange; nothing is kept between rounds.

        Raises:
            InvalidMessage: the request is none.
        """
        request = decode_exchange(body)
        self._clocks.heard(peer, request.now_ns, self._tools.wall_ns())
        offer = decode_offer(request.ranges) if request.ranges else None
        await self._take(request.news)
        give = set(request.want)
        reply = Exchange()
        if offer is not None:
            found = answer(self._set(), offer, FEW)
            give |= _newer(found.give, found.want)
            reply = Exchange(encode_reply(found.reply))
        return encode_exchange(dataclasses.replace(reply, news=self._news_of(give), now_ns=self._tools.wall_ns()))

    async def exchange_with(self, peer: PeerId) -> bool:
        """Compare with a connected peer, and hand over what either lacks; True when anything here changed meanwhile.

        What does not fit waits for the next exchange; whoever learned something starts it soon.

        Raises:
            Unavailable: it did not answer.
            InvalidMessage: it answered nonsense.
        """
        before = self.machine.version
        comparison = Reconciliation(self._set(), limits=FEW)
        given: set[bytes] = set()
        for _ in range(MAX_ROUNDS):
            offer = comparison.next_offer()
            give = _newer(comparison.give, comparison.want) - given
            given |= give
            if offer is None and not give:
                break
            request = Exchange(encode_offer(offer) if offer is not None else b"", self._news_of(give))
            reply = await self._ask_for(peer, request)
            if offer is not None:
                comparison.receive(decode_reply(reply.ranges))
            await self._take(reply.news)
        own = self._set()
        if want := [key for key, item in comparison.want.items() if (own.get(key) or b"") < item]:
            reply = await self._ask_for(peer, Exchange(want=tuple(want[:MAX_WANT])))
            await self._take(reply.news)
        return self.machine.version != before

    async def _ask_for(self, peer: PeerId, request: Exchange) -> Exchange:
        sent_ns = self._tools.wall_ns()
        body = encode_exchange(dataclasses.replace(request, now_ns=sent_ns))
        reply = decode_exchange(await self._host.request(peer, MEMBERS_PROTOCOL, body, limit_bytes=MAX_EXCHANGE_BYTES))
        self._clocks.heard(peer, reply.now_ns, (sent_ns + self._tools.wall_ns()) // 2)
        return reply

    def _news_of(self, keys: Iterable[bytes]) -> EncodedNews:
        """Records and accusations of members, as many as fit an answer; the next comparison finds the rest.

        In random order: what the other refuses each time must not keep the rest from it.
        """
        records: list[bytes] = []
        accusations: list[bytes] = []
        size = 0
        ordered = sorted(keys)
        self._tools.rng.shuffle(ordered)
        for key in ordered:
            member = self.machine.get(peer_id_text(key)) if is_peer_id(key) else None
            if member is None:
                continue
            found = [each.signed for each in member.accusations.values()]
            size += len(member.record.signed) + sum(map(len, found))
            if size > NEWS_IN_ANSWER_BYTES:
                break
            records.append(member.record.signed)
            accusations += found
        return EncodedNews(tuple(records), tuple(accusations))

    async def take_news(self, encoded: EncodedNews, source: str = NATS) -> Set[PeerId]:
        """Take what another road brought, a part at a time, and gossip it on; one bad record costs only itself.

        Returns:
            The others in it whose records we now hold just so, and who are not gone here: none of whom we know better.
        """
        told = await self._take(encoded, source)
        held = [member for peer in told if (member := self.machine.get(peer)) is not None]
        return {
            member.record.peer_id
            for member in held
            if member.record.signed == told[member.record.peer_id]
            and member.state not in GONE
            and member.record.peer_id != self.own.peer_id
        }

    def roll(self, exclude: Callable[[PeerId], bool]) -> list[EncodedNews]:
        """All that a bridge tells the other side, in parts of at most `ROLL_BYTES`: see `core.membership.roll`.

        A member and what is held against it are in one part.

        Args:
            exclude: does it live on the other side?
        """
        parts: list[EncodedNews] = []
        records: list[bytes] = []
        accusations: list[bytes] = []
        size = 0
        for member in self.machine.roll(exclude):
            against = [each.signed for each in member.accusations.values()]
            adds = sum(len(each) + 8 for each in (member.record.signed, *against))
            if size and size + adds > ROLL_BYTES:
                parts.append(EncodedNews(tuple(records), tuple(accusations)))
                records, accusations, size = [], [], 0
            records.append(member.record.signed)
            accusations += against
            size += adds
        return [*parts, EncodedNews(tuple(records), tuple(accusations))] if records else parts

    async def _take(self, news: EncodedNews, source: str = "sync") -> Mapping[PeerId, bytes]:
        """Take what an exchange brought, a part at a time; one bad record costs only itself.

        Returns the records in it by owner, not all of them verified.
        """
        records: list[MemberRecord] = []
        told: dict[PeerId, bytes] = {}

        def is_news(record: MemberRecord) -> bool:
            told[record.peer_id] = record.signed
            return self.machine.wants(record)

        async for encoded in _in_turns(news.records):
            try:
                record = read_record(encoded, self._tools.verify, is_news)
            except InvalidMessage as error:
                self.refused[error.reason] += 1
            else:
                records += [record] if record is not None else []
        accusations: list[Accusation] = []
        known = {record.peer_id for record in records}
        async for encoded in _in_turns(news.accusations):
            try:
                accusation = read_accusation(encoded, self._tools.verify, lambda each: self._is_wanted(each, known))
            except InvalidMessage as error:
                self.refused[error.reason] += 1
            else:
                accusations += [accusation] if accusation is not None else []
        if records or accusations:
            self._feed(News(tuple(records), tuple(accusations), source))
        return told

    async def _ask_new_links(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await self._ask.wait()
                self._ask = trio.Event()
                for peer in tuple(self._to_ask):
                    self._to_ask.discard(peer)
                    nursery.start_soon(self._ask_patiently, peer)

    async def _ask_patiently(self, peer: PeerId) -> None:
        for pause in ASK_PAUSES:
            if await self._try_exchange(peer) is not None or peer not in self._host.links():
                return
            await trio.sleep(pause)

    async def _compare_now_and_then(self) -> None:
        shortest, longest = EXCHANGE_SECONDS
        pause = shortest
        while True:
            self._differs = trio.Event()
            with trio.move_on_after(pause * self._tools.rng.uniform(0.75, 1.25)) as quiet:
                await self._differs.wait()
            if not quiet.cancelled_caught:
                pause = shortest
                await trio.sleep(pause * self._tools.rng.uniform(0.75, 1.25))
            links = [peer for peer in self._host.links() if self.machine.get(peer) is not None]
            if not links:
                continue
            differed = await self._try_exchange(self._tools.rng.choice(links))
            pause = shortest if differed else min(pause * 2, longest)

    async def tell_somebody(self) -> bool:
        """Compare with the linked members in turn, until one of them has all we have."""
        for peer in tuple(self._host.links()):
            if await self._try_exchange(peer) is not None:
                return True
        return False

    async def check_clocks(self, suspicious_seconds: float, patience_seconds: float) -> None:
        """Compare anew with the linked peers whose clocks seem further off than that: one may have been set right.

        Returns within `patience_seconds`, whoever answers.
        """
        doubtful = [peer for peer, offset in self.clock_offsets().items() if abs(offset) > suspicious_seconds]
        with trio.move_on_after(patience_seconds):
            async with trio.open_nursery() as nursery:
                for peer in doubtful:
                    nursery.start_soon(self._try_exchange, peer)

    async def _try_exchange(self, peer: PeerId) -> bool | None:
        """Whether anything differed; None when the peer could not be asked (a stock peer never can)."""
        try:
            return await self.exchange_with(peer)
        except Unavailable as error:
            log.debug("no member exchange", extra={"peer": peer, "reason": error.detail})
        except InvalidMessage as error:
            self.refused[error.reason] += 1
            log.warning("a peer answered a member exchange with nonsense", extra={"peer": peer, "reason": str(error)})
        return None

    # -- signing -----------------------------------------------------------------------

    def _seal_record(self, record: MemberRecord) -> MemberRecord:
        return dataclasses.replace(record, signed=sign_record(record, self._tools.sign))

    def _seal_accusation(self, accusation: Accusation) -> Accusation:
        return dataclasses.replace(accusation, signed=sign_accusation(accusation, self._tools.sign))


def _newer(items: Mapping[bytes, bytes], others: Mapping[bytes, bytes]) -> set[bytes]:
    """Keys of those that are newer than the other side's: of a higher incarnation, or accused. So are items ordered."""
    return {key for key, item in items.items() if others.get(key, b"") < item}


async def _in_turns(signed: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Each of them, with a turn for others now and then."""
    for number, each in enumerate(signed, 1):
        yield each
        if number % VERIFY_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
