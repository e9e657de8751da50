"""The membership at work: its inputs from links, gossip and exchanges, its effects carried out.

A record spreads by gossip when it changes, and by an exchange when two nodes connect and now and then afterwards, so
that a lost message is made good.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass
from random import Random

import trio

from p2pnode.core.membership.events import (
    NATS,
    AskHelpers,
    Effect,
    Input,
    LinkClosed,
    LinkOpened,
    LinkSilent,
    News,
    OwnRecord,
    Probe,
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
from p2pnode.core.peerid import PeerId
from p2pnode.errors import EnvironmentFault, InvalidMessage
from p2pnode.node.clocks import Clocks
from p2pnode.node.exchanges import Exchanges
from p2pnode.node.news import NewsOutbox
from p2pnode.node.probing import Prober
from p2pnode.node.records import Records
from p2pnode.ports import Host, Link, SeqnoStore
from p2pnode.wire.members import (
    MAX_EXCHANGE_BYTES,
    MEMBERS_PROTOCOL,
    PROBE_PROTOCOL,
    EncodedNews,
    RecordVerify,
    decode_news,
    encode_news,
    sign_accusation,
    sign_record,
)

log = logging.getLogger(__name__)

STORE_AGAIN_SECONDS = 5.0

ROLL_BYTES = 64 * 1024
"""Of one part of a roll: NATS servers take 1 MiB at most by default, some less."""


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
        self._own_changed = trio.Event()
        self._own_changed.set()
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
        self._records = Records(self.machine, tools.verify, tools.rng)
        self._prober = Prober(host, self.machine, self._feed, self._params.probe_patience_seconds)
        self._clocks = Clocks(host.links)
        self.exchanges = Exchanges(
            host, self.machine, self._records, self._take, self._clocks, tools.wall_ns, tools.rng
        )

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
            self.exchanges.ask(link.peer)

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
            news, heard = self._records.verified(decode_news(message.data))
        except InvalidMessage as error:
            self.refused[error.reason] += 1
            return Reject("member-record")
        before = self.machine.version
        self._feed(News((*news.records, *heard.records), (*news.accusations, *heard.accusations), "gossip"))
        if self.machine.version != before:
            return Accept()
        # Signed well, and of no use all the same: a stranger to a full table, the accusation of a chatterer.
        return Ignore("unwelcome-record" if news.records or news.accusations else "old-record")

    # -- effects -----------------------------------------------------------------------

    def _feed(self, input_: Input) -> None:
        changed = False
        for effect in self.machine.handle(input_, trio.current_time(), self._tools.wall_ns()):
            self._carry_out(effect)
            changed = changed or isinstance(effect, StateChanged)
        self._fed.set()
        if changed:
            # Once for all of them: an exchange can bring thousands.
            self.exchanges.differs()
            self._changed()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Publish():
                self._outbox.add(effect)
            case Probe() | AskHelpers():
                self._prober.add(effect)
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
        self._host.serve(MEMBERS_PROTOCOL, self.exchanges.answer, limit_bytes=MAX_EXCHANGE_BYTES)
        self._host.serve(PROBE_PROTOCOL, self._prober.probe_for_another, limit_bytes=64)
        self._outbox.add(Publish((self.own,), ()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            nursery.start_soon(self._remember_incarnations)
            nursery.start_soon(self._outbox.run)
            nursery.start_soon(self._prober.run)
            nursery.start_soon(self.exchanges.ask_new_links)
            nursery.start_soon(self.exchanges.compare_now_and_then)

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

    # -- exchanges and rolls -----------------------------------------------------------

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
        found, told = await self._records.read(news, source)
        if found.records or found.accusations:
            self._feed(found)
        return told

    # -- signing -----------------------------------------------------------------------

    def _seal_record(self, record: MemberRecord) -> MemberRecord:
        return dataclasses.replace(record, signed=sign_record(record, self._tools.sign))

    def _seal_accusation(self, accusation: Accusation) -> Accusation:
        return dataclasses.replace(accusation, signed=sign_accusation(accusation, self._tools.sign))
