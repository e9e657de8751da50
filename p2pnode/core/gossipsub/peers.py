"""What the router knows of each connected peer, and who takes part in which topic."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnode.core.gossipsub.events import Protocol
from p2pnode.core.gossipsub.score import PeerStats
from p2pnode.core.message import MessageId, Topic
from p2pnode.core.peerid import PeerId

_NOBODY: dict[PeerId, Peer] = {}


@dataclass(slots=True, eq=False)
class Peer:
    """One connected peer.

    Args:
        topics: what it subscribed to; a dict as an ordered set, so that a seed replays.
        fresh: topics it joined since the last heartbeat, whose recent ids it has not been told.
        owed: ids its queue dropped.
        validating: its messages that wait for a verdict.
        ihave_rpcs, ihave_ids, iwant_ids, iwant_bytes, idontwant_ids: used of this heartbeat's allowance.
        refused: its queue overflowed since the last heartbeat; `slow`: heartbeats in a row.
        sent_away: a Disconnect was asked for.
    """

    id: PeerId
    raw: bytes
    protocol: Protocol
    outbound: bool
    direct: bool
    stats: PeerStats
    topics: dict[Topic, None] = field(default_factory=dict)
    fresh: dict[Topic, None] = field(default_factory=dict)
    owed: dict[MessageId, None] = field(default_factory=dict)
    validating: int = 0
    ihave_rpcs: int = 0
    ihave_ids: int = 0
    iwant_ids: int = 0
    iwant_bytes: int = 0
    idontwant_ids: int = 0
    refused: bool = False
    slow: int = 0
    sent_away: bool = False

    def new_heartbeat(self) -> None:
        """Give back the allowances."""
        self.ihave_rpcs = self.ihave_ids = self.iwant_ids = self.iwant_bytes = self.idontwant_ids = 0
        self.slow = self.slow + 1 if self.refused else 0
        self.refused = False


class Peers:
    """Connected peers by text id, by bytes, and by topic."""

    __slots__ = ("_by_topic", "by_id", "by_raw")

    def __init__(self) -> None:
        self.by_id: dict[PeerId, Peer] = {}
        self.by_raw: dict[bytes, Peer] = {}
        self._by_topic: dict[Topic, dict[PeerId, Peer]] = {}

    def __len__(self) -> int:
        return len(self.by_id)

    def topics(self) -> tuple[Topic, ...]:
        """Those that anybody takes part in."""
        return tuple(topic for topic, peers in self._by_topic.items() if peers)

    def add(self, peer: Peer) -> None:
        self.by_id[peer.id] = peer
        self.by_raw[peer.raw] = peer

    def remove(self, peer: Peer) -> None:
        del self.by_id[peer.id]
        if self.by_raw.get(peer.raw) is peer:
            del self.by_raw[peer.raw]
        for topic in list(peer.topics):
            self.unsubscribe(peer, topic)

    def subscribe(self, peer: Peer, topic: Topic) -> None:
        peer.topics[topic] = None
        self._by_topic.setdefault(topic, {})[peer.id] = peer

    def unsubscribe(self, peer: Peer, topic: Topic) -> None:
        peer.topics.pop(topic, None)
        peer.fresh.pop(topic, None)
        subscribers = self._by_topic.get(topic)
        if subscribers is not None:
            subscribers.pop(peer.id, None)
            if not subscribers:
                del self._by_topic[topic]

    def of(self, topic: Topic) -> dict[PeerId, Peer]:
        """Who takes part in the topic, in order of joining."""
        return self._by_topic.get(topic, _NOBODY)

    @property
    def subscriptions(self) -> int:
        return sum(len(each) for each in self._by_topic.values())
