"""Can others dial this node? Its neighbours try, and say where they see it and what answered.

Source of the idea and of its first rule: libp2p specs, autonat/autonat-v1.md. A node that dials what another asks for
can be used against third parties; so of the asked addresses only those are tried whose IP address is the one at which
the asker is seen. A new protocol and not AutoNAT itself, because that tells no reasons: here the answer names every
address that was tried, which is what an operator needs to see.

What bounds it:
- One question of each asker is answered at a time, and MAX_ANSWERING in all; what is over that is told where it is
  seen, and nothing is tried.
- At most MAX_TRIES addresses are dialled for a question, all at once, and the answer comes within ANSWER_SECONDS.
- A node asks at most ASKED_AT_ONCE neighbours, every AGAIN_SECONDS at most while it is not reachable.

What it does not give: a neighbour that lies may say that nobody answers, or that somebody does. It is shown to people;
nothing in the node decides by it.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import trio

from p2pnode.core.peerid import PeerId
from p2pnode.errors import InvalidMessage, Unavailable
from p2pnode.ports import Host, JsonObject
from p2pnode.wire.payload import format_time
from p2pnode.wire.reach import (
    MAX_ANSWER_BYTES,
    MAX_QUESTION_BYTES,
    MAX_TRIES,
    REACH_PROTOCOL,
    ReachAnswer,
    Try,
    decode_answer,
    decode_question,
    encode_answer,
    encode_question,
    is_place,
    place_of,
)

log = logging.getLogger(__name__)

State = Literal["unknown", "reachable", "unreachable"]

SETTLE_SECONDS = 2.0
"""After the first link and after a change of addresses: the neighbours must have got to know us first."""

LOOK_SECONDS = 1.0
CHECK_SECONDS = 300.0
AGAIN_SECONDS = 30.0
"""Between two questions while the node is not known to be reachable."""

ASKED_AT_ONCE = 3
PATIENCE_SECONDS = 8.0
ANSWER_SECONDS = 6.0
PROBE_SECONDS = 5.0
MAX_ANSWERING = 4


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one neighbour saw and tried."""

    neighbour: PeerId
    answer: ReachAnswer


class Reach:
    """Asks neighbours, and answers when it is asked; serves its protocol from the start.

    Args:
        is_member: is a linked peer one of our nodes? Only those are asked.
        name_of: what to call a neighbour; None when nobody knows.
        wall_ns: for the time of the evidence.

    Attributes:
        state: `reachable` when a neighbour reached one address; `unreachable` when more than half of those asked tried
            an address that we announce and none did; `unknown` until then, and when too few answered.
        refused: questions and answers that were none, by reason.
    """

    def __init__(
        self,
        host: Host,
        is_member: Callable[[PeerId], bool],
        name_of: Callable[[PeerId], str | None],
        *,
        wall_ns: Callable[[], int],
        rng: Random,
    ) -> None:
        self._host = host
        self._is_member = is_member
        self._name_of = name_of
        self._wall_ns = wall_ns
        self._rng = rng
        self._evidence: tuple[Evidence, ...] = ()
        self._at_ns: int | None = None
        self._addrs: tuple[str, ...] = ()
        self._due: float | None = None
        self._wake = trio.Event()
        self._answering: set[PeerId] = set()
        self.state: State = "unknown"
        self.refused: Counter[str] = Counter()
        host.serve(REACH_PROTOCOL, self.answer, limit_bytes=MAX_QUESTION_BYTES)

    # -- asking ------------------------------------------------------------------------

    def again(self) -> None:
        """Ask at once, as soon as there is a neighbour to ask."""
        self._due = trio.current_time()
        self._wake.set()

    async def run(self) -> None:
        """Ask when there is reason to, until cancelled."""
        while True:
            self._wake = trio.Event()
            await self._look()
            with trio.move_on_after(LOOK_SECONDS):
                await self._wake.wait()

    async def _look(self) -> None:
        """Our addresses are looked at, because nobody reports a change of them; links, so that nobody need do it."""
        neighbours = [peer for peer in self._host.links() if self._is_member(peer)]
        addrs = tuple(addr.partition("/p2p/")[0] for addr in self._host.addrs())
        now = trio.current_time()
        if addrs != self._addrs:
            if self._addrs:
                log.info("own addresses changed, asking anew whether others reach them", extra={"addrs": list(addrs)})
            self._addrs = addrs
            self._conclude("unknown", (), at_ns=None)
            self._due = now + SETTLE_SECONDS
        if not neighbours or not addrs:
            # The first one that comes is given the time to settle, unless somebody wants to know at once.
            self._due = None if self._due is None or self._due > now else self._due
            return
        if self._due is None:
            self._due = now + SETTLE_SECONDS
        if now >= self._due:
            self._due = None  # who calls `again` from here on means another question
            await self._ask(self._rng.sample(sorted(neighbours), min(ASKED_AT_ONCE, len(neighbours))))
            if self._due is None:
                pause = CHECK_SECONDS if self.state == "reachable" else AGAIN_SECONDS
                self._due = trio.current_time() + pause

    async def _ask(self, neighbours: Sequence[PeerId]) -> None:
        addrs = self._addrs
        question = encode_question(addrs)
        heard: list[Evidence] = []

        async def ask(neighbour: PeerId) -> None:
            try:
                body = await self._host.request(neighbour, REACH_PROTOCOL, question, limit_bytes=MAX_ANSWER_BYTES)
                heard.append(Evidence(neighbour, decode_answer(body)))
            except Unavailable as error:  # an older node, or a stock peer
                log.debug("no answer about our reach", extra={"peer": neighbour, "reason": error.detail})
            except InvalidMessage as error:
                self.refused[error.reason] += 1
                log.warning(
                    "a peer answered about reach with nonsense", extra={"peer": neighbour, "reason": str(error)}
                )

        with trio.move_on_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for neighbour in neighbours:
                    nursery.start_soon(ask, neighbour)
        # A neighbour that sees us at an address we do not announce (ours or a translator's, for what goes out) tried
        # that one: where somebody answers there it proves much, and where nobody does it proves nothing.
        tried = [each for each in heard if any(one.addr in addrs for one in each.answer.tries)]
        state: State = "unknown"
        if any(one.reached for each in heard for one in each.answer.tries):
            state = "reachable"
        elif len(tried) > len(neighbours) / 2:
            state = "unreachable"
        self._conclude(state, sorted(heard, key=lambda each: each.neighbour), at_ns=self._wall_ns())

    def _conclude(self, state: State, evidence: Sequence[Evidence], *, at_ns: int | None) -> None:
        before, self.state = self.state, state
        self._evidence, self._at_ns = tuple(evidence), at_ns
        if state == before:
            return
        if state == "unreachable":
            log.warning("no neighbour reaches this node at any of its addresses", extra=self.document())
        elif state == "reachable":
            log.info("neighbours reach this node", extra=self.document())

    def document(self) -> JsonObject:
        """`state`; `observed` (`addr`, `by`, `name`): where neighbours see this node; `tried` (`addr`, `reached`, `by`,
        `name`): what they dialled, ordered by neighbour; `at`: when, null before the first answer."""
        who = [({"by": each.neighbour, "name": self._name_of(each.neighbour)}, each.answer) for each in self._evidence]
        return {
            "state": self.state,
            "observed": [{"addr": answer.observed, **by} for by, answer in who if answer.observed],
            "tried": [{"addr": one.addr, "reached": one.reached, **by} for by, answer in who for one in answer.tries],
            "at": None if self._at_ns is None else format_time(self._at_ns),
        }

    # -- answering ---------------------------------------------------------------------

    async def answer(self, asker: PeerId, body: bytes) -> bytes:
        """Serve one question.

        Raises:
            InvalidMessage: it is none.
        """
        try:
            asked = decode_question(body)
        except InvalidMessage as error:
            self.refused[error.reason] += 1
            raise
        link = self._host.links().get(asker)
        if link is None or not is_place(link.addr):
            return encode_answer(ReachAnswer())
        if link.direction == "outbound":
            return encode_answer(ReachAnswer(link.addr, (Try(link.addr, reached=True),)))
        if asker in self._answering or len(self._answering) >= MAX_ANSWERING:
            return encode_answer(ReachAnswer(link.addr))
        self._answering.add(asker)
        try:
            return encode_answer(ReachAnswer(link.addr, await self._tries(asker, targets(link.addr, asked))))
        finally:
            self._answering.discard(asker)

    async def _tries(self, asker: PeerId, addrs: Sequence[str]) -> tuple[Try, ...]:
        reached: set[str] = set()

        async def dial(addr: str) -> None:
            if await self._host.probe(asker, [addr], PROBE_SECONDS, fresh=True):
                reached.add(addr)

        with trio.move_on_after(ANSWER_SECONDS):
            async with trio.open_nursery() as nursery:
                for addr in addrs:
                    nursery.start_soon(dial, addr)
        return tuple(Try(addr, addr in reached) for addr in addrs)


def targets(observed: str, asked: Sequence[str]) -> list[str]:
    """What may be dialled for an asker: its own addresses where it is seen, then where it is seen with its own ports.

    Args:
        observed: `/ip4|ip6/ADDRESS/tcp/PORT`, the asker's end of the link.
        asked: what it announces.
    """
    ip = ipaddress.ip_address(place_of(observed)[0])
    own_ip = str((isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped) or ip)
    places = [place_of(addr) for addr in asked]
    kind = "ip6" if ":" in own_ip else "ip4"
    ports = [port for host, port in places if host == own_ip] + [port for _, port in places]
    return [f"/{kind}/{own_ip}/tcp/{port}" for port in dict.fromkeys(ports)][:MAX_TRIES]
