"""Meshsub: the pubsub streams that the gossip router writes to and hears from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from p2pnode.core.gossipsub.events import Priority
from p2pnode.core.gossipsub.events import Protocol as MeshsubVersion
from p2pnode.core.message import MessageId
from p2pnode.core.peerid import PeerId
from p2pnode.ports.host import Link


class MeshsubEvents(Protocol):
    """What the pubsub streams report; called on the event loop, must return at once."""

    def peer_ready(self, link: Link, protocol: MeshsubVersion) -> None:
        """A peer speaks meshsub: the first stream in either direction is open."""

    def peer_reopened(self, peer: PeerId) -> None:
        """Our stream to it broke and was opened again: it must hear our subscriptions anew."""

    def peer_gone(self, peer: PeerId) -> None:
        """The last connection with a peer that was ready is gone."""

    def peer_refused(self, peer: PeerId, lost: tuple[MessageId, ...]) -> None:
        """These messages were dropped for it by a full queue, or may have been lost in a stream that broke."""

    def frame(self, peer: PeerId, frame: bytes) -> None:
        """One whole frame from a peer.

        Raises:
            InvalidMessage: it is no RPC; the stream is reset and `misbehaved` called.
        """

    def misbehaved(self, peer: PeerId, why: str) -> None:
        """Its stream held what is no RPC."""


class Meshsub(Protocol):
    """Pubsub streams: one kept open to each peer, written to without waiting."""

    def send(self, peers: Iterable[PeerId], body: bytes, priority: Priority, message_id: MessageId | None) -> None:
        """Queue one RPC (without length prefix) for each of `peers`; strangers are left out."""

    def soon(self, call: Callable[[], None]) -> None:
        """Call back when all that came together has been read; what `call` sends leaves at its end."""

    def hang_up(self, peer: PeerId) -> None:
        """Close all connections with a peer, without waiting for it."""

    def waiting(self, peer: PeerId) -> int:
        """Frames queued for one peer."""

    def peer_record(self, peer: PeerId) -> bytes | None:
        """A connected peer's signed peer record, as it came."""

    def agent_version(self, peer: PeerId) -> str | None:
        """What a connected peer called its software in identify; None until it did."""
