"""Owners and agents in virtual time: every message reaches every live node late and in any order, none is lost."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Collection, Iterable
from random import Random
from typing import Any

from p2pnode.core.council import claiming, takeover
from p2pnode.core.council.claims import Claimant
from p2pnode.core.council.council import Council, Stamp, holder_of
from p2pnode.core.council.deciding import Owner, Times, Verdict, as_update, number
from p2pnode.core.council.documents import CLAIMS_TOPIC, NEXT, STATUS_TOPIC, Claim, Seat, Status, to_json
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.council.table import Councils
from p2pnode.core.peerid import PeerId
from tests.core.council.kit import COUNCIL, START_NS, opportunity, peer

NOTICED_SECONDS = 1.0
"""After which the others know that a node is dead or out of reach, or that it is back."""

MAX_LATENCY_SECONDS = 0.03
Message = tuple[PeerId, int, int, str, dict[str, Any]]


class Node:
    """An agent behind its sidecar, an orchestrator, or both."""

    def __init__(self, fleet: Fleet, name: str, capabilities: Collection[str], *, orchestrates: bool) -> None:
        self.fleet, self.me, self.name = fleet, peer(name), name
        self.capabilities = list(capabilities)
        self.orchestrates = orchestrates
        self.alive = True
        self.mute = False
        self.claims_by_itself = not orchestrates
        self.seqno = 0
        self.inbox: list[Message] = []
        self.table = Councils(lambda who, _: who in fleet.orchestrators)
        self.owner = Owner()
        self.plan: float | None = None
        self.first_for = ""
        self.gone_since: float | None = None
        self.claimed = 0
        self.published = 0
        self._due = math.inf
        self.fences: dict[str, tuple[int, int]] = {}
        self.settled_at = 0.0

    # -- what an owner knows (`deciding.Fleet`) ---------------------------------------

    def is_gone(self, who: PeerId) -> bool:
        node = self.fleet.nodes.get(who)
        return node is not None and not self.fleet.sees(self, node)

    def accepts(self, who: PeerId) -> bool:
        return who in self.fleet.nodes

    # -- documents ---------------------------------------------------------------------

    @property
    def council(self) -> Council | None:
        return self.table.get(COUNCIL)

    def says(self, topic: str, document: dict[str, Any]) -> None:
        self.seqno += 1
        message = (self.me, self.seqno, self.fleet.wall_ns, topic, document)
        self.take(message)
        self.fleet.spread(self, message)

    def take(self, message: Message) -> None:
        if not self.alive:
            self.inbox.append(message)
            return
        who, seqno, at_ns, topic, document = message
        before = self.council.status if self.council is not None else Status.FORMING
        if (council := self.table.take(topic, document, Stamp(who, seqno, at_ns, self.fleet.now))) is not None:
            if not self.fleet.was_cut:
                assert council.status == before or council.status in NEXT[before], (before, council.status)
                for seat in council.seats():
                    assert (seat.term, seat.n) >= self.fences.get(seat.role_name, (0, 0)) or seat.is_open
                    if not seat.is_open:
                        self.fences[seat.role_name] = seat.term, seat.n
            self.look_at(self.fleet.now)

    def look_at(self, when: float) -> None:
        if when < self._due:
            self._due = when
            self.fleet.at(when, lambda: self._look(when))

    def _look(self, when: float) -> None:
        if self._due != when:
            return
        self._due = math.inf
        if not self.alive:
            return
        council = self.council
        if council is None or council.authority is None:
            return
        again = min(self._decide(council), self._answer(council), self._claim(council))
        if again < math.inf:
            self.look_at(max(again, self.fleet.now + 0.001))

    # -- deciding ----------------------------------------------------------------------

    def _times(self) -> Times:
        return Times(self.fleet.now, self.fleet.wall_ns)

    def _decide(self, council: Council) -> float:
        assert council.authority is not None
        if council.authority.peer != self.me:
            self.owner = Owner()
            return self._take_over(council)
        verdict = self.owner.decide(council, self, self._times())
        if verdict.changed:
            n = council.decision.update.n + 1 if council.decision is not None else 1
            self._publish(council, verdict, council.authority.term, n)
            after = self.owner.decide(council, self, self._times())
            assert not after.changed, (verdict, after)
            return after.look_again_at
        return verdict.look_again_at

    def _publish(self, council: Council, verdict: Verdict, term: int, n: int) -> None:
        members: dict[str, Any] = {"term": term, "n": n}
        if n == 1:
            assert council.opportunity is not None
            alive = [node.me for node in self.fleet.nodes.values() if self.fleet.sees(self, node)]
            members |= {"opportunity": to_json(council.opportunity)}
            members |= {"electorate": council.electorate or takeover.electorate(alive)}
        self.says(STATUS_TOPIC, to_json(as_update(council, verdict, number(verdict, term, n), **members)))
        self.published += 1

    def _take_over(self, council: Council) -> float:
        assert council.authority is not None
        if not self.orchestrates or council.has_ended:
            return math.inf
        if not self.is_gone(council.authority.peer):
            self.gone_since = None
            return math.inf
        self.gone_since = self.fleet.now if self.gone_since is None else self.gone_since
        line = [who for who in self.fleet.orchestrators if not self.is_gone(who)]
        when = max(self.gone_since, self.settled_at) + takeover.delay(self.me, line)
        if self.fleet.now < when:
            return when
        verdict = self.owner.decide(council, self, self._times())
        self._publish(council, verdict, council.authority.term + 1, 1)
        return self.fleet.now

    # -- the agent ---------------------------------------------------------------------

    def _answer(self, council: Council) -> float:
        for seat in council.seats():
            if seat.state == "assigned" and seat.peer_id == self.me and not self.mute and not council.has_ended:
                if council.is_released(seat) is None:
                    self._word("accept", seat)
        return math.inf

    def _word(self, kind: str, seat: Seat) -> None:
        claim = Claim.model_validate(
            {"kind": kind, "council_id": COUNCIL, "role_name": seat.role_name, "agent_id": self.name}
            | {"term": seat.term, "n": seat.n}
        )
        self.says(CLAIMS_TOPIC, to_json(claim))

    def _claim(self, council: Council) -> float:
        fits = claiming.fits(council, self.capabilities)
        if not self.claims_by_itself or council.has_ended or fits < claiming.MIN_FIT:
            self.plan = None
            return math.inf
        now = self.fleet.now
        if self.plan is None:
            there = [node for node in self.fleet.nodes.values() if not node.orchestrates and not self.is_gone(node.me)]
            turn = claiming.turn(council, self.rival, [node.rival for node in there], self.fleet.rng)
            assert turn is not None
            self.plan, self.first_for = now + turn.seconds, turn.role_name
        if now < self.plan:
            return self.plan
        seat = claiming.choose_role(
            council, Claimant(self.me, self.name), self.capabilities, 0, self.fleet.wall_ns,
            now=now, is_gone=self.is_gone, first_for=self.first_for,
        )  # fmt: skip
        if seat is not None:
            self.claim(seat.role_name)
        self.plan = now + claiming.AGAIN_SECONDS * (0.5 + self.fleet.rng.random())
        return self.plan

    @property
    def rival(self) -> claiming.Rival:
        return claiming.Rival(Claimant(self.me, self.name), tuple(self.capabilities), 0)

    def claim(self, role: str) -> None:
        self.claimed += 1
        document = {"council_id": COUNCIL, "role_name": role, "agent_id": self.name, "capabilities": self.capabilities}
        self.says(CLAIMS_TOPIC, document)

    def release(self, role: str) -> None:
        assert self.council is not None
        self._word("release", next(seat for seat in self.council.seats() if seat.role_name == role))

    def report(self, status: str, role: str = "") -> None:
        who = {"agent_id": self.name, "role_name": role} if role else {}
        self.says(STATUS_TOPIC, {"council_id": COUNCIL, "status": status, **who})

    @property
    def works_as(self) -> list[str]:
        """The roles that this agent may act for, as far as it knows; none until it has heard what it missed."""
        if self.council is None or not self.alive or self.fleet.now < self.settled_at:
            return []
        seats = [seat for seat in self.council.seats() if seat.state == "accepted" and holder_of(seat).peer == self.me]
        return [seat.role_name for seat in seats if self.council.is_released(seat) is None]


class Fleet:
    """
    Args:
        skills: of each agent; they are named `agent-0`, ...
        orchestrators: names; the first announces.
    """

    def __init__(
        self, seed: int, skills: Iterable[Collection[str]], orchestrators: Collection[str] = ("whoosh",)
    ) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.was_cut = False
        self.sides: dict[PeerId, int] = {}
        self.orchestrators = {peer(name) for name in orchestrators}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._withheld: list[tuple[Node, Node, Message]] = []
        made = [Node(self, name, [], orchestrates=True) for name in orchestrators]
        made += [Node(self, f"agent-{each}", has, orchestrates=False) for each, has in enumerate(skills)]
        self.nodes = {node.me: node for node in made}
        self._noticed = dict.fromkeys(self.nodes, True)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[peer(name)]

    @property
    def wall_ns(self) -> int:
        return START_NS + int(self.now * 1e9)

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), act))

    def run(self, seconds: float) -> None:
        """Let time pass; at every step no role is worked on by two."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, act = heapq.heappop(self._heap)
            act()
            if not self.was_cut:
                working = [role for node in self.nodes.values() for role in node.works_as]
                assert len(working) == len(set(working)), f"two agents act for one role: {sorted(working)}"
        self.now = end

    # -- the network -------------------------------------------------------------------

    def spread(self, origin: Node, message: Message) -> None:
        for node in self.nodes.values():
            if node is not origin:
                self._send(origin, node, message)

    def _send(self, origin: Node, node: Node, message: Message) -> None:
        if self._apart(origin, node):
            self._withheld.append((origin, node, message))
            return
        for _ in range(1 + (self.rng.random() < 0.1)):  # some come twice
            self.at(self.now + self.rng.random() * MAX_LATENCY_SECONDS, lambda: node.take(message))

    def _apart(self, one: Node, other: Node) -> bool:
        return self.sides.get(one.me, 0) != self.sides.get(other.me, 0)

    def sees(self, viewer: Node, node: Node) -> bool:
        return self._noticed[node.me] and not self._apart(viewer, node)

    def _notice(self) -> None:
        for node in self.nodes.values():
            self._noticed[node.me] = node.alive
            node.look_at(self.now)

    def kill(self, node: Node) -> None:
        node.alive = False
        self.at(self.now + NOTICED_SECONDS, self._notice)

    def restart(self, node: Node) -> None:
        """It comes back with what it stored, and hears what it missed."""
        node.alive, node.owner, node.plan, node.gone_since = True, Owner(), None, None
        missed, node.inbox = node.inbox, []
        for message in missed:
            self.at(self.now + self.rng.random(), lambda message=message: node.take(message))  # type: ignore[misc]
        node.settled_at = self.now + 1 + MAX_LATENCY_SECONDS
        self.at(self.now + NOTICED_SECONDS, self._notice)

    def cut(self, names: Iterable[str]) -> None:
        self.was_cut = True
        self.sides = dict.fromkeys(map(peer, names), 1)
        self._notice()

    def heal(self) -> None:
        self.sides = {}
        withheld, self._withheld = self._withheld, []
        for origin, node, message in withheld:
            self._send(origin, node, message)
        self._notice()

    # -- told --------------------------------------------------------------------------

    def announce(self, core: Iterable[object], **members: object) -> None:
        first = next(iter(self.nodes.values()))
        first.says(OPPORTUNITY_TOPIC, to_json(opportunity(core, **members)))

    @property
    def councils(self) -> list[Council]:
        return [node.council for node in self.nodes.values() if node.alive and node.council is not None]

    def status(self) -> Status:
        """Which every live node knows."""
        (status,) = {council.status for council in self.councils}
        return status

    def holders(self) -> dict[str, str]:
        """Who holds which role, as every live node knows."""
        found = {tuple((seat.role_name, seat.agent_id, seat.state) for seat in each.seats()) for each in self.councils}
        assert len(found) == 1, found
        return {role: agent for role, agent, _ in found.pop()}

    @property
    def claims(self) -> int:
        return sum(node.claimed for node in self.nodes.values())
