"""A simulated fleet in virtual time: production membership, link planner and set reconciliation on invented links.

The gossip of members news is not the router's but a flood over the planned links: each hop has its delay, its loss
and a check for copies, and forwards what the machine wants, as the router does with its verdict. One mesh per news
and thousands of nodes would take minutes otherwise; the router has its own simulation (`p2pnode.testing.network`).

    report = simulate_members(MembersScenario(nodes=200, happenings=(Happening(20, "kill"),)), seed=7)
    assert report.outcome("kill").settled < 5, report
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from p2pnode.core.links import LinkSettings
from p2pnode.core.membership.params import Params
from p2pnode.core.membership.record import GONE, MemberState
from p2pnode.testing.fleet import MembersFleet, SimNode, count_parts, start_known

POLL_SECONDS = 0.1

Kind = Literal["start", "leave", "kill", "vanish", "stop", "continue", "cut", "heal", "look"]


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that befalls the fleet.

    Args:
        kind: `start` a new node, `leave` with a goodbye, `kill` the process (its host refuses dials), `vanish` (its
            host answers nothing), `stop` and `continue` (SIGSTOP, SIGCONT), `cut` off a part and `heal`, or just
            `look` whether all know the truth.
        share: of the nodes that are up, drawn at random; 0: one node. The first node is spared.
    """

    at_seconds: float
    kind: Kind
    share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersScenario:
    """A simulated situation, as data.

    Args:
        nodes: started within `start_seconds`; all know the first one's address only.
        known: they know each other already, as after a long calm time.
        latency_ms: one way; each link draws its own within a factor of two.
        loss: share of gossip copies, handshake packets and exchanges that vanish.
        hidden: nodes that nobody can dial.
        idle_from_seconds: `idle_…` of the report is counted from here to the end.
        churn_per_minute: share of the nodes replaced, at random times from `churn_from_seconds` on.
    """

    nodes: int
    seconds: float
    happenings: tuple[Happening, ...] = ()
    known: bool = False
    start_seconds: float = 1.0
    latency_ms: float = 20.0
    loss: float = 0.0
    hidden: int = 0
    churn_per_minute: float = 0.0
    churn_from_seconds: float = 30.0
    idle_from_seconds: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What came of a happening, in seconds after it; None: not until the next one.

    Args:
        doubted: until nobody showed the victims as alive.
        settled: until everybody knew: of victims that they are gone, of all others that they are alive.
    """

    kind: Kind
    at_seconds: float
    doubted: float | None = None
    settled: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersReport:
    """What came of a run.

    Args:
        outcomes: one for each happening, and before them `look` for the start from cold.
        false_suspicions: incarnations that somebody suspected although the member was well and reachable.
        false_deaths: pairs of nodes of which one buried the other although it was well and reachable.
        links: fewest, mean and most links of a node at the end.
        parts: pieces into which the links fall; 1: connected.
        idle_messages, idle_bytes: per node and second from `idle_from_seconds` on.
        traffic: bytes and counts by kind, of the whole run.
    """

    seed: int
    outcomes: tuple[Outcome, ...]
    false_suspicions: int
    false_deaths: int
    links: tuple[int, float, int]
    parts: int
    idle_messages: float
    idle_bytes: float
    traffic: dict[str, int] = field(repr=False)

    def outcome(self, kind: Kind) -> Outcome:
        """The last one of a kind."""
        return [each for each in self.outcomes if each.kind == kind][-1]


class _Watch:
    """One outcome in the making."""

    def __init__(self, fleet: MembersFleet, outcome: Outcome, victims: Sequence[SimNode]) -> None:
        self._fleet = fleet
        self.outcome = outcome
        self._victims = victims
        self._last: SimNode | None = None

    def look(self) -> bool:
        """True when there is nothing more to wait for."""
        fleet, outcome = self._fleet, self.outcome
        waited = round(fleet.now - outcome.at_seconds, 3)
        if outcome.doubted is None and self._victims and self._all(self._doubts):
            outcome.doubted = waited
        if self._all(self._knows):
            outcome.settled = waited
        return outcome.settled is not None

    def _all(self, holds: Callable[[SimNode], bool]) -> bool:
        if self._last is not None and self._last.well and not holds(self._last):
            return False
        for node in self._fleet.nodes:
            if node.well and not holds(node):
                self._last = node
                return False
        return True

    def _others(self, node: SimNode) -> Iterable[SimNode]:
        return (each for each in self._victims if each is not node)

    def _doubts(self, node: SimNode) -> bool:
        fleet = self._fleet
        return all(
            node.state(each.id) is not MemberState.ALIVE for each in self._others(node) if not fleet.reach(node, each)
        )

    def _knows(self, node: SimNode) -> bool:
        fleet = self._fleet
        if not self._victims or self.outcome.kind in ("cut", "heal", "look"):
            return all(
                node.state(each.id) is MemberState.ALIVE if fleet.reach(node, each) else _gone(node.state(each.id))
                for each in fleet.nodes
            )
        return all(
            node.state(each.id) is MemberState.ALIVE if fleet.reach(node, each) else _gone(node.state(each.id))
            for each in self._others(node)
        )


def _gone(state: MemberState | None) -> bool:
    return state is None or state in GONE


class _Run:
    def __init__(self, scenario: MembersScenario, fleet: MembersFleet) -> None:
        self.scenario = scenario
        self.fleet = fleet
        self.outcomes: list[Outcome] = []
        self._watches: list[_Watch] = []
        self._idle: Counter[str] = Counter()

    def go(self) -> None:
        scenario, fleet = self.scenario, self.fleet
        if scenario.known:
            start_known(fleet, scenario.nodes)
        else:
            fleet.start()
            for _ in range(scenario.nodes - 1):
                fleet.at(fleet.rng.uniform(0, scenario.start_seconds), self._start)
        fleet.at(scenario.start_seconds, self._hide)
        if not scenario.known:
            self._watch("look", 0.0, ())
        for happening in scenario.happenings:
            fleet.at(happening.at_seconds, self._happen, happening)
        if scenario.churn_per_minute:
            step = 60 / (scenario.churn_per_minute * scenario.nodes)
            fleet.at(scenario.churn_from_seconds + step, self._replace, step)
        fleet.at(POLL_SECONDS, self._poll)
        fleet.at(scenario.idle_from_seconds, lambda: self._idle.update(fleet.traffic))
        fleet.run_until(scenario.seconds)

    def report(self, seed: int) -> MembersReport:
        fleet, scenario = self.fleet, self.scenario
        up = [node for node in fleet.nodes if node.up]
        counts = [len(node.links) for node in up]
        per = max(1, len(up)) * (scenario.seconds - scenario.idle_from_seconds)
        traffic = fleet.traffic - self._idle
        messages = traffic["copies"] + traffic["exchange messages"] + traffic["probes"]
        size = traffic["gossip bytes"] + traffic["exchange bytes"] + traffic["probe bytes"]
        return MembersReport(
            seed=seed,
            outcomes=tuple(self.outcomes),
            false_suspicions=len(fleet.false_suspicions),
            false_deaths=len(fleet.false_deaths),
            links=(min(counts), sum(counts) / len(counts), max(counts)),
            parts=count_parts(fleet),
            idle_messages=messages / per,
            idle_bytes=size / per,
            traffic=dict(fleet.traffic),
        )

    def _watch(self, kind: Kind, at: float, victims: Sequence[SimNode]) -> None:
        outcome = Outcome(kind, at)
        self.outcomes.append(outcome)
        self._watches = [_Watch(self.fleet, outcome, victims)]

    def _poll(self) -> None:
        started = len(self.fleet.nodes) >= self.scenario.nodes
        self._watches = [each for each in self._watches if not (started and each.look())]
        self.fleet.at(self.fleet.now + POLL_SECONDS, self._poll)

    def _happen(self, happening: Happening) -> None:
        fleet = self.fleet
        able = [node for node in fleet.nodes[1:] if node.up and (node.stopped == (happening.kind == "continue"))]
        number = max(1, round(happening.share * len(able))) if happening.kind not in ("look", "start", "heal") else 0
        victims = fleet.rng.sample(able, min(number, len(able))) if happening.kind != "continue" else able
        match happening.kind:
            case "start":
                victims = [fleet.start()]
            case "kill" | "vanish":
                for node in victims:
                    fleet.kill(node, refuses=happening.kind == "kill")
            case "leave":
                for node in victims:
                    fleet.leave(node)
            case "stop":
                for node in victims:
                    fleet.stop(node)
            case "continue":
                for node in victims:
                    fleet.resume(node)
            case "cut":
                fleet.partition(victims)
            case "heal":
                fleet.heal()
        self._watch(happening.kind, fleet.now, victims)

    def _start(self) -> None:
        self.fleet.start()

    def _hide(self) -> None:
        for node in self.fleet.nodes[1 : 1 + self.scenario.hidden]:
            node.hidden = True

    def _replace(self, step: float) -> None:
        fleet = self.fleet
        fleet.kill(fleet.rng.choice([node for node in fleet.nodes[1:] if node.up]))
        fleet.start()
        # It ends in time for the last happening, which looks at what came of it.
        last = max((each.at_seconds for each in self.scenario.happenings), default=self.scenario.seconds)
        if fleet.now + step < last:
            fleet.at(fleet.now + step, self._replace, step)


def simulate_members(
    scenario: MembersScenario, seed: int, params: Params | None = None, settings: LinkSettings | None = None
) -> MembersReport:
    """Run one scenario."""
    fleet = MembersFleet(
        seed, latency_seconds=scenario.latency_ms / 1000, loss=scenario.loss, params=params, settings=settings
    )
    run = _Run(scenario, fleet)
    run.go()
    return run.report(seed)
