"""Messages that come by another road than libp2p: the same checks, the same store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from p2pnode.core.message import SignedMessage
from p2pnode.node.archive import Archive
from p2pnode.node.inbound import Inbound
from p2pnode.ports import Gossip
from p2pnode.wire.members import MEMBERS_TOPIC

FOR_GOOD = frozenset({"signature", "opportunity", "expired", "horizon", "topic"})
"""Why a message is not taken and never will be; for any other reason it may be tried again."""


class Intake(Protocol):
    """Takes what NATS or HTTP brought (architecture, "One council opportunity", step 8)."""

    async def take(self, message: SignedMessage, carrier: Literal["nats", "http"]) -> str | None:
        """Check it as if it had been gossiped, pass it on while it is young, and return when it is stored.

        Returns:
            None when it was stored now; `held` when it was stored already; else why it was not taken: a fixed word,
            see FOR_GOOD.

        Raises:
            EnvironmentFault: it cannot be stored.
        """


class RoadIntake:
    """`Intake` of a node.

    Args:
        is_shared: does this node take messages of a topic?
    """

    def __init__(
        self, archive: Archive, inbound: Inbound, gossip: Callable[[], Gossip], is_shared: Callable[[str], bool]
    ) -> None:
        self._archive = archive
        self._inbound = inbound
        self._gossip = gossip
        self._is_shared = is_shared

    async def take(self, message: SignedMessage, carrier: Literal["nats", "http"]) -> str | None:
        """See `Intake.take`."""
        if message.id in self._archive:
            return "held" if await self._archive.written(message.id) else "storage"
        if message.topic == MEMBERS_TOPIC:
            return "topic"
        self._gossip().inject(message, carrier)
        if message.id not in self._archive:
            # The router knows it as seen, or refused it: say why, and store what only failed to be stored before.
            why = self._inbound.take(message, self._is_shared, carrier=carrier)
            if why is not None:
                return why
        if await self._archive.written(message.id):
            return None
        if self._archive.fault is not None:
            raise self._archive.fault
        return "storage"
