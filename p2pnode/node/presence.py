"""What a node says of itself: its record by gossip, its addresses, and what it does when it meets its twin."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import trio

from p2pnode.core.membership.record import MemberRecord
from p2pnode.node.members import Members
from p2pnode.node.seqno import SeqnoSource
from p2pnode.node.settings import Keys
from p2pnode.ports import Gossip, Host
from p2pnode.wire.members import MAX_ADDRS, MEMBERS_TOPIC
from p2pnode.wire.pubsub import seal_message

log = logging.getLogger(__name__)

OWN_ADDRS_SECONDS = 5.0
TWIN_SECONDS = 5.0
"""How long a twin that must stop tries to tell: its neighbour may have just closed its link as one too many."""


class Presence:
    """Made before the members, which publish by it.

    Args:
        members: asked for only once the node runs.
        gossip: raises Unavailable while the node starts.
    """

    def __init__(
        self,
        host: Host,
        members: Callable[[], Members],
        gossip: Callable[[], Gossip],
        seqnos: SeqnoSource,
        keys: Keys,
    ) -> None:
        self._host = host
        self._members = members
        self._gossip = gossip
        self._seqnos = seqnos
        self._keys = keys
        self._record_turn = trio.StrictFIFOLock()
        self._twin_seen = trio.Event()
        self.twin: MemberRecord | None = None
        self.twin_met = trio.Event()
        """An older live process has our identity, and was told of us if it could be: this one must stop."""

    def addrs(self) -> tuple[str, ...]:
        """Our addresses as our record gives them."""
        # A machine can have more addresses than a record takes; loopback stands last.
        return tuple(addr.rpartition("/p2p/")[0] for addr in self._host.addrs())[:MAX_ADDRS]

    async def publish(self, signed: bytes) -> None:
        """Hand news to the members topic.

        Raises:
            Unavailable: nobody listens, or the node is starting.
            TooBusy: every peer's queue is too full.
            EnvironmentFault: the message cannot be numbered.
        """
        async with self._record_turn:
            gossip = self._gossip()
            gossip.admit(MEMBERS_TOPIC)
            message = seal_message(
                origin=self._keys.origin,
                seqno=await self._seqnos.take(),
                topic=MEMBERS_TOPIC,
                data=signed,
                sign=self._keys.sign,
            )
            await gossip.publish(message)

    async def follow_addrs(self) -> None:
        """Tell others when this machine's addresses change: an interface that came up late, another network."""
        members = self._members()
        while True:
            await trio.sleep(OWN_ADDRS_SECONDS)
            addrs = self.addrs()
            if addrs and set(addrs) != set(members.own.addrs):
                log.info("own addresses changed", extra={"addrs": list(addrs)})
                members.update_own(replace(members.own, addrs=addrs))

    def meet_twin(self, record: MemberRecord) -> None:
        """Another live process has our identity and is the older one."""
        self.twin = record
        self._twin_seen.set()

    async def answer_twin(self) -> None:
        """Before this one stops: by the answer to its record alone the older one learns that it has a twin."""
        await self._twin_seen.wait()
        assert self.twin is not None
        members = self._members()
        with trio.move_on_after(TWIN_SECONDS):
            while True:
                await trio.sleep(0.1)
                has_answered = members.own.incarnation > self.twin.incarnation
                if has_answered and await members.exchanges.tell_somebody():
                    break
        self.twin_met.set()
