"""What the parts of the router share: tables, the clock of this input, and the effects so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from p2pnode.core.gossipsub.backoff import Backoffs
from p2pnode.core.gossipsub.events import Effect, Priority, SendRpc
from p2pnode.core.gossipsub.mcache import MessageCache
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.peers import Peer, Peers
from p2pnode.core.gossipsub.promises import Promises
from p2pnode.core.gossipsub.rpc import IHave, Prune, Rpc, Subscription
from p2pnode.core.gossipsub.score import Scores
from p2pnode.core.gossipsub.seen import SeenCache
from p2pnode.core.gossipsub.unwanted import Unwanted
from p2pnode.core.message import MessageId, Topic
from p2pnode.core.peerid import PeerId

Held = Callable[[MessageId], bool]
Records = Callable[[PeerId], bytes | None]
Count = tuple[str, str]

_WORDS_PER_KIND = 64


class Draft:
    """Control for one peer, gathered while one input is handled and sent as one RPC."""

    __slots__ = ("graft", "ihave", "iwant", "prune", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions: list[Subscription] = []
        self.ihave: list[IHave] = []
        self.iwant: list[MessageId] = []
        self.graft: list[Topic] = []
        self.prune: list[Prune] = []

    def seal(self, peer: PeerId) -> SendRpc:
        """IHAVE alone may wait behind messages; all else may not."""
        urgent = self.subscriptions or self.iwant or self.graft or self.prune
        rpc = Rpc(
            subscriptions=tuple(self.subscriptions),
            ihave=tuple(self.ihave),
            iwant=tuple(self.iwant),
            graft=tuple(self.graft),
            prune=tuple(self.prune),
        )
        return SendRpc((peer,), rpc, Priority.CONTROL if urgent else Priority.GOSSIP)


class Mesh:
    """Our links in one topic that we take part in.

    Attributes:
        peers: the mesh.
        eager: who gets each message at once: the mesh, and direct peers in the topic.
    """

    __slots__ = ("eager", "peers", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.peers: dict[PeerId, Peer] = {}
        self.eager: dict[PeerId, Peer] = {}


class State:
    """One router's state; each part changes it through the tables' own methods.

    Args:
        local: our peer id as text; `raw`: as bytes.
        held: is a message with this id in the store?
        records: the signed peer record of a peer, where we have one.
    """

    __slots__ = (
        "_words",
        "backoffs",
        "counters",
        "direct",
        "drafts",
        "held",
        "local",
        "mcache",
        "meshes",
        "now",
        "out",
        "params",
        "peers",
        "promises",
        "px_left",
        "raw",
        "records",
        "rng",
        "scores",
        "seen",
        "unwanted",
    )

    def __init__(
        self,
        local: PeerId,
        raw: bytes,
        params: Params,
        rng: Random,
        held: Held,
        records: Records,
        direct: frozenset[PeerId],
        now: float,
    ) -> None:
        self.local = local
        self.raw = raw
        self.params = params
        self.rng = rng
        self.held = held
        self.records = records
        self.direct = direct
        self.now = now
        self.out: list[Effect] = []
        self.drafts: dict[PeerId, Draft] = {}
        self.counters: Counter[Count] = Counter()
        self._words: dict[str, set[str]] = {}
        self.peers = Peers()
        self.meshes: dict[Topic, Mesh] = {}
        self.px_left = params.px_connects
        self.seen = SeenCache(params.seen_seconds, params.seen_ids)
        self.mcache = MessageCache(params.history_windows, params.gossip_windows, params.history_bytes)
        self.backoffs = Backoffs(params.backoff_slack_seconds, params.max_backoff_seconds, params.max_backoffs)
        self.promises = Promises(params.iwant_followup_seconds, params.heartbeat_seconds, params.max_promises)
        self.unwanted = Unwanted(params.idontwant_heartbeats, params.max_unwanted)
        self.scores = Scores(params.score)

    def count(self, kind: str, word: str) -> None:
        """Count a word that came from outside this package: at most 64 different ones, the rest as `other`."""
        words = self._words.setdefault(kind, set())
        if word not in words:
            if len(words) >= _WORDS_PER_KIND:
                word = "other"
            words.add(word)
        self.counters[kind, word] += 1

    def draft(self, peer: PeerId) -> Draft:
        """Where control for `peer` is gathered."""
        draft = self.drafts.get(peer)
        if draft is None:
            draft = self.drafts[peer] = Draft()
        return draft

    def flush(self) -> None:
        """Turn what was gathered into effects, after those that are there."""
        drafts, self.drafts = self.drafts, {}
        connected = self.peers.by_id
        self.out.extend(draft.seal(peer) for peer, draft in drafts.items() if peer in connected)
