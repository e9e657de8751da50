"""One membership under test, its clock, and the others as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from random import Random

from p2pnode.core.membership.events import Effect, Input, News, Probe, Publish, StateChanged, Tick, Twin
from p2pnode.core.membership.membership import Membership, Seals
from p2pnode.core.membership.params import Params
from p2pnode.core.membership.record import Accusation, MemberRecord, MemberState
from p2pnode.core.peerid import PeerId, peer_id_text

WALL_MS = 1_800_000_000_000
ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT


def peer(number: int) -> PeerId:
    return peer_id_text(b"\x12\x20" + number.to_bytes(32, "big"))


ME, A, B, C, D = (peer(number) for number in range(5))


def record(who: PeerId, incarnation: int = WALL_MS, *, left: bool = False, started: int = 1) -> MemberRecord:
    name = f"name-{who[-4:]}"
    addrs = ("/ip4/10.0.0.1/tcp/1",)
    return MemberRecord(
        who, incarnation, name, "chorus", "online", addrs, left=left, started_at_ns=started, signed=b"theirs"
    )


def accusation(by: PeerId, of: PeerId, incarnation: int = WALL_MS, *, at_ms: float = WALL_MS) -> Accusation:
    return Accusation(by, of, incarnation, round(at_ms * 10**6), b"theirs")


class Bench:
    """A machine with `members` known by gossip; `go` lets time pass, tick by tick.

    Attributes:
        said: all effects so far.
    """

    def __init__(
        self,
        members: Iterable[PeerId] = (),
        *,
        seed: int = 1,
        floor: int = 0,
        started: int = 5,
        params: Params | None = None,
        wall_ms: int = WALL_MS,
    ) -> None:
        self.now = 100.0
        self.wall = float(wall_ms)
        self.said: list[Effect] = []
        self.machine = Membership(
            record(ME, 0, started=started),
            Seals(
                lambda each: dataclasses.replace(each, signed=b"ours"),
                lambda each: dataclasses.replace(each, signed=b"ours"),
            ),
            Random(seed),
            floor=floor,
            now=self.now,
            wall_ns=wall_ms * 10**6,
            params=params,
        )
        known = tuple(record(each) for each in members)
        if known:
            self.give(News(known, (), "gossip"))
        self.said.clear()

    def give(self, input_: Input) -> list[Effect]:
        effects = self.machine.handle(input_, self.now, round(self.wall * 10**6))
        self.said += effects
        return effects

    def gossip(self, *news: MemberRecord | Accusation, source: str = "gossip") -> list[Effect]:
        records = tuple(each for each in news if isinstance(each, MemberRecord))
        return self.give(News(records, tuple(each for each in news if isinstance(each, Accusation)), source))

    def sync(self, *news: MemberRecord | Accusation) -> list[Effect]:
        return self.gossip(*news, source="sync")

    def go(self, seconds: float) -> list[Effect]:
        """Time passes, and every tick comes when it is due."""
        until, effects = self.now + seconds, list[Effect]()
        while (due := max(self.machine.next_deadline(), self.now)) <= until:
            self._pass(due - self.now)
            effects += self.give(Tick())
        self._pass(until - self.now)
        return effects

    def sleep(self, seconds: float) -> None:
        """Time passes, and no tick comes: stopped or starved."""
        self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds * 1000

    def state(self, who: PeerId) -> MemberState | None:
        member = self.machine.get(who)
        return member.state if member else None


def published(effects: Iterable[Effect]) -> tuple[list[MemberRecord], list[Accusation]]:
    said = [each for each in effects if isinstance(each, Publish)]
    return [r for each in said for r in each.records], [a for each in said for a in each.accusations]


def probed(effects: Iterable[Effect]) -> list[PeerId]:
    return [each.peer for each in effects if isinstance(each, Probe)]


def changes(effects: Iterable[Effect]) -> list[StateChanged]:
    return [each for each in effects if isinstance(each, StateChanged)]


def twins(effects: Iterable[Effect]) -> list[Twin]:
    return [each for each in effects if isinstance(each, Twin)]
