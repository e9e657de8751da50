"""Probes at work: those that the membership asks for, and those that other members ask for."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable

import trio

from p2pnode.core.membership.events import AskHelpers, HelpersEnded, Probe, ProbeEnded
from p2pnode.core.membership.membership import Membership
from p2pnode.core.peerid import PeerId, is_peer_id, peer_id_bytes, peer_id_text
from p2pnode.errors import InvalidMessage, Unavailable
from p2pnode.ports import Host
from p2pnode.wire.members import PROBE_PROTOCOL

log = logging.getLogger(__name__)

MAX_PROBES_FOR_OTHERS = 8
"""Under way at one time; above it the asker is told no."""

MAX_PROBES_FOR_ONE = 2
"""Of those, for one asker: none can keep all the others from being helped."""


class Prober:
    """Made, then served and run.

    Args:
        feed: takes what a probe showed.
        patience_seconds: with a member that is probed for another one.
    """

    def __init__(
        self,
        host: Host,
        machine: Membership,
        feed: Callable[[ProbeEnded | HelpersEnded], None],
        patience_seconds: float,
    ) -> None:
        self._host = host
        self._machine = machine
        self._feed = feed
        self._patience_seconds = patience_seconds
        self._to_probe: deque[Probe | AskHelpers] = deque()
        """At most one for each doubted member."""
        self._probes_wait = trio.Event()
        self._helping: Counter[PeerId] = Counter()

    def add(self, effect: Probe | AskHelpers) -> None:
        """To be carried out by `run`, which feeds what came of it."""
        self._to_probe.append(effect)
        self._probes_wait.set()

    async def run(self) -> None:
        """Carry out what was added, until cancelled."""
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

    async def probe_for_another(self, asker: PeerId, body: bytes) -> bytes:
        """Serve one probe for another member: of members only, at the addresses that we know.

        Who lives beyond a bridge is answered for by the bridge: an older version may ask for it.
        """
        member = self._machine.get(peer_id_text(body)) if is_peer_id(body) else None
        if (
            member is None
            or self._machine.get(asker) is None
            or self._helping.total() >= MAX_PROBES_FOR_OTHERS
            or self._helping[asker] >= MAX_PROBES_FOR_ONE
        ):
            return b"\x00"
        if member.record.peer_id == self._machine.own.peer_id or self._machine.is_beyond(member.record.peer_id):
            return b"\x01"
        self._helping[asker] += 1
        try:
            reached = await self._host.probe(member.record.peer_id, member.record.addrs, self._patience_seconds)
        finally:
            self._helping[asker] -= 1
            if not self._helping[asker]:
                del self._helping[asker]
        return b"\x01" if reached else b"\x00"
