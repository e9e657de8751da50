"""The score of each peer, P1 to P7 (gossipsub-v1.1, "Peer Scoring").

A score is computed at the heartbeat and at each penalty, and read as a plain attribute
in between. Rewards therefore count from the next heartbeat on, penalties at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from p2pnode.core.gossipsub.params_score import DECAY_TO_ZERO, ScoreParams, TopicScore
from p2pnode.core.message import Topic
from p2pnode.core.peerid import PeerId


@dataclass(slots=True, eq=False)
class TopicStats:
    """Counters of one peer in one topic.

    Args:
        grafted_at: monotonic seconds; None when it is not in our mesh.
        mesh_seconds: time in the mesh as of the last decay.
        active: in the mesh long enough for P3.
    """

    grafted_at: float | None = None
    mesh_seconds: float = 0.0
    active: bool = False
    first_deliveries: float = 0.0
    mesh_deliveries: float = 0.0
    mesh_failure: float = 0.0
    invalid: float = 0.0


@dataclass(slots=True, eq=False)
class PeerStats:
    """Everything that one peer's score is made of; outlives its connection when it is bad.

    Args:
        value: the score as last computed.
        ip: the address counted for P6; None when exempt or unknown.
        left_at: when it disconnected, monotonic seconds.
    """

    value: float = 0.0
    topics: dict[Topic, TopicStats] = field(default_factory=dict)
    behaviour: float = 0.0
    app: float = 0.0
    ip: str | None = None
    left_at: float = 0.0


def topic_score(stats: TopicStats, params: TopicScore) -> float:
    """P1 to P4 of one topic, weighted ("The Score Function")."""
    score = stats.first_deliveries * params.first_deliveries_weight
    if stats.grafted_at is not None:
        quanta = stats.mesh_seconds // params.time_in_mesh_quantum_seconds
        score += min(quanta, params.time_in_mesh_cap) * params.time_in_mesh_weight
    score += deficit(stats, params) ** 2 * params.mesh_deliveries_weight
    score += stats.mesh_failure * params.mesh_failure_weight
    score += stats.invalid**2 * params.invalid_weight
    return score * params.weight


def deficit(stats: TopicStats, params: TopicScore) -> float:
    """How far P3 is below its threshold; 0 before it is active."""
    return max(0.0, params.mesh_deliveries_threshold - stats.mesh_deliveries) if stats.active else 0.0


def colocation(peers_on_address: int, params: ScoreParams) -> float:
    """P6: the square of the surplus over the threshold."""
    return float(max(0, peers_on_address - params.colocation_threshold) ** 2)


def behaviour(counter: float, params: ScoreParams) -> float:
    """P7: the square of the excess over the threshold."""
    return max(0.0, counter - params.behaviour_threshold) ** 2


def counted_address(ip: str | None) -> str | None:
    """The address as P6 counts it: None when unknown, or private, loopback or link-local.

    IPv6 counts by /64, which is what one customer gets.
    """
    if ip is None:
        return None
    try:
        address = ip_address(ip.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    if not address.is_global:
        return None
    return str(address) if address.version == 4 else address.exploded[:19]


class Scores:
    """Stats of connected peers, and of bad ones that left.

    Args:
        params: weights, decays, bounds.
    """

    __slots__ = ("_addresses", "_connected", "_params", "_retained")

    def __init__(self, params: ScoreParams) -> None:
        self._params = params
        self._connected: dict[PeerId, PeerStats] = {}
        self._retained: dict[PeerId, PeerStats] = {}
        self._addresses: dict[str, dict[PeerId, PeerStats]] = {}

    @property
    def retained(self) -> int:
        return len(self._retained)

    def connect(self, peer: PeerId, ip: str | None, now: float) -> PeerStats:
        """Begin with what is remembered of the peer, decayed for the time it was away."""
        stats = self._retained.pop(peer, None)
        if stats is None:
            stats = PeerStats()
        elif now - stats.left_at >= self._params.retain_seconds:
            stats = PeerStats()
        else:
            self._decay(stats, int((now - stats.left_at) / self._params.decay_seconds), now)
        self._connected[peer] = stats
        stats.ip = counted_address(ip)
        if stats.ip is not None:
            self._addresses.setdefault(stats.ip, {})[peer] = stats
            self._recount(stats.ip)
        self.compute(stats)
        return stats

    def disconnect(self, peer: PeerId, now: float) -> None:
        """Forget the peer's merits; keep its penalties for `retain_seconds`."""
        stats = self._connected.pop(peer)
        if stats.ip is not None:
            sharing = self._addresses[stats.ip]
            del sharing[peer]
            if sharing:
                self._recount(stats.ip)
            else:
                del self._addresses[stats.ip]
        stats.ip = None
        for topic, each in list(stats.topics.items()):
            self._leave_mesh(each, topic)
            each.first_deliveries = each.mesh_deliveries = 0.0
            if not (each.invalid or each.mesh_failure):
                del stats.topics[topic]
        stats.app = 0.0
        if not (stats.topics or stats.behaviour):
            return
        self.compute(stats)
        stats.left_at = now
        if len(self._retained) >= self._params.retained:
            del self._retained[next(iter(self._retained))]
        self._retained[peer] = stats

    def of(self, peer: PeerId) -> float:
        """The score of a connected or remembered peer; 0 for a stranger."""
        stats = self._connected.get(peer) or self._retained.get(peer)
        return stats.value if stats else 0.0

    def first_delivery(self, stats: PeerStats, topic: Topic) -> None:
        """P2, and P3 for a mesh peer: the first copy of an accepted message."""
        params = self._params.of(topic)
        mine = stats.topics.get(topic)
        if mine is None:
            mine = stats.topics[topic] = TopicStats()
        mine.first_deliveries = min(mine.first_deliveries + 1, params.first_deliveries_cap)
        if mine.grafted_at is not None:
            mine.mesh_deliveries = min(mine.mesh_deliveries + 1, params.mesh_deliveries_cap)

    def near_first_delivery(self, stats: PeerStats, topic: Topic, seconds_after: float) -> None:
        """P3: another copy, `seconds_after` the verdict (0 or less: before it)."""
        params = self._params.of(topic)
        mine = stats.topics.get(topic)
        if mine is not None and mine.grafted_at is not None and seconds_after <= params.mesh_deliveries_window_seconds:
            mine.mesh_deliveries = min(mine.mesh_deliveries + 1, params.mesh_deliveries_cap)

    def invalid(self, stats: PeerStats, topic: Topic) -> None:
        """P4: a message that every node would reject."""
        stats.topics.setdefault(topic, TopicStats()).invalid += 1
        self.compute(stats)

    def penalise(self, stats: PeerStats, times: float = 1) -> None:
        """P7."""
        stats.behaviour += times
        self.compute(stats)

    def set_app_score(self, stats: PeerStats, score: float) -> None:
        """P5."""
        stats.app = score
        self.compute(stats)

    def grafted(self, stats: PeerStats, topic: Topic, now: float) -> None:
        mine = stats.topics.setdefault(topic, TopicStats())
        mine.grafted_at = now
        mine.mesh_seconds = 0.0
        mine.active = False

    def pruned(self, stats: PeerStats, topic: Topic) -> None:
        mine = stats.topics.get(topic)
        if mine is not None:
            self._leave_mesh(mine, topic)
            self.compute(stats)

    def refresh(self, now: float) -> None:
        """Decay and recompute; once per `decay_seconds`."""
        for stats in self._connected.values():
            if stats.topics or stats.behaviour:
                self._decay(stats, 1, now)
                self.compute(stats)
        gone = [peer for peer, stats in self._retained.items() if now - stats.left_at >= self._params.retain_seconds]
        for peer in gone:
            del self._retained[peer]

    def compute(self, stats: PeerStats) -> None:
        """Set `value` from the counters ("The Score Function")."""
        params = self._params
        score = min(sum(topic_score(each, params.of(topic)) for topic, each in stats.topics.items()), params.topic_cap)
        score += stats.app * params.app_weight
        if stats.ip is not None:
            score += colocation(len(self._addresses.get(stats.ip, ())), params) * params.colocation_weight
        stats.value = score + behaviour(stats.behaviour, params) * params.behaviour_weight

    def _leave_mesh(self, mine: TopicStats, topic: Topic) -> None:
        mine.mesh_failure += deficit(mine, self._params.of(topic)) ** 2
        mine.grafted_at = None
        mine.active = False

    def _recount(self, address: str) -> None:
        for stats in self._addresses[address].values():
            self.compute(stats)

    def _decay(self, stats: PeerStats, times: int, now: float) -> None:
        for topic, each in list(stats.topics.items()):
            params = self._params.of(topic)
            each.first_deliveries = _decayed(each.first_deliveries, params.first_deliveries_decay, times)
            each.mesh_deliveries = _decayed(each.mesh_deliveries, params.mesh_deliveries_decay, times)
            each.mesh_failure = _decayed(each.mesh_failure, params.mesh_failure_decay, times)
            each.invalid = _decayed(each.invalid, params.invalid_decay, times)
            if each.grafted_at is not None:
                each.mesh_seconds = now - each.grafted_at
                each.active = each.mesh_seconds > params.mesh_deliveries_activation_seconds
            elif not (each.first_deliveries or each.mesh_deliveries or each.mesh_failure or each.invalid):
                del stats.topics[topic]
        stats.behaviour = _decayed(stats.behaviour, self._params.behaviour_decay, times)


def _decayed(counter: float, factor: float, times: int) -> float:
    if not counter:
        return 0.0
    counter *= factor if times == 1 else factor**times
    return counter if counter >= DECAY_TO_ZERO else 0.0
