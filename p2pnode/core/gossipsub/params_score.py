"""Parameters of the peer score: weights, decays and thresholds.

Specification: gossipsub-v1.1, "Peer Scoring". It names no defaults; the reasons here
are ours. One unit is one message delivered first. A peer loses its place in meshes
below 0; penalties are for what no honest node does, so they are steep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from p2pnode.core.message import Topic
from p2pnode.errors import Fault, InvalidConfig

DECAY_TO_ZERO = 0.01
"""A counter below this is 0 (gossipsub-v1.1 "Parameter Decay")."""


def decay_factor(seconds: float, every: float = 1.0) -> float:
    """The factor that, applied once per `every` seconds, brings 1 down to `DECAY_TO_ZERO` in `seconds`."""
    return float(DECAY_TO_ZERO ** (every / seconds))


def _check(owner: object, prefix: str) -> list[Fault]:
    """Faults of the rules that go by a field's name: weights, decays, times, caps."""
    bad = []
    for each in fields(owner):  # type: ignore[arg-type]
        value = getattr(owner, each.name)
        if not isinstance(value, (int, float)):
            continue
        problem = ""
        if not math.isfinite(value):
            problem = "must be a finite number"
        elif each.name.endswith("_decay") and not 0 < value < 1:
            problem = f"must be between 0 and 1, not {value}"
        elif each.name in _REWARDS and value < 0:
            problem = f"is a reward: it must not be negative, as {value} is"
        elif each.name in _PENALTIES and value > 0:
            problem = f"is a penalty: it must not be positive, as {value} is"
        elif each.name.endswith(("_seconds", "_quantum_seconds")) and value <= 0:
            problem = f"must be above 0 seconds, not {value}"
        elif each.name.endswith("_cap") and value < 0:
            problem = f"must not be negative, as {value} is"
        if problem:
            bad.append(Fault(f"{prefix}.{each.name}", problem))
    return bad


_REWARDS = frozenset({"weight", "time_in_mesh_weight", "first_deliveries_weight", "app_weight"})
_PENALTIES = frozenset(
    {"mesh_deliveries_weight", "mesh_failure_weight", "invalid_weight", "colocation_weight", "behaviour_weight"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicScore:
    """P1 to P4 for one topic.

    Args:
        weight: of this topic in the sum.
        time_in_mesh_*: P1. At most 1 after ten minutes: it breaks ties, and a silent mesh peer never
            outweighs a peer that delivers.
        first_deliveries_*: P2. At most 20 per topic, forgotten in half an hour, since our topics are sparse.
        mesh_deliveries_*: P3. Weight 0: on a sparse topic a quiet peer is no bad peer. Works when given a weight.
        mesh_failure_*: P3b. Weight 0 for the same reason.
        invalid_*: P4. One bad signature costs the place in the mesh, three the ear (graylist); forgotten in
            an hour. Honest nodes verify before they forward, so it never meets them.
    """

    weight: float = 1.0
    time_in_mesh_weight: float = 0.1
    time_in_mesh_quantum_seconds: float = 60.0
    time_in_mesh_cap: float = 10.0
    first_deliveries_weight: float = 1.0
    first_deliveries_decay: float = decay_factor(1800)
    first_deliveries_cap: float = 20.0
    mesh_deliveries_weight: float = 0.0
    mesh_deliveries_decay: float = decay_factor(600)
    mesh_deliveries_cap: float = 20.0
    mesh_deliveries_threshold: float = 1.0
    mesh_deliveries_window_seconds: float = 0.01
    mesh_deliveries_activation_seconds: float = 60.0
    mesh_failure_weight: float = 0.0
    mesh_failure_decay: float = decay_factor(600)
    invalid_weight: float = -50.0
    invalid_decay: float = decay_factor(3600)

    def __post_init__(self) -> None:
        """Raises: InvalidConfig: with every contradiction found."""
        bad = _check(self, "gossip.score.topic")
        if self.mesh_deliveries_cap < self.mesh_deliveries_threshold:
            bad.append(Fault("gossip.score.topic.mesh_deliveries_cap", "must not be below the threshold"))
        if self.mesh_deliveries_weight < 0 and self.mesh_deliveries_threshold <= 0:
            bad.append(Fault("gossip.score.topic.mesh_deliveries_threshold", "must be above 0 when P3 has a weight"))
        if bad:
            raise InvalidConfig("score parameters that cannot work", bad)

    @property
    def counts_mesh_deliveries(self) -> bool:
        """False: P3 and P3b cannot matter, so nobody needs to count for them."""
        return self.mesh_deliveries_weight < 0 or self.mesh_failure_weight < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreParams:
    """P5 to P7, the topics, and the thresholds.

    Args:
        topic: for every topic without parameters of its own.
        topics: exceptions, by topic.
        topic_cap: the most that all topics together can earn: no store of goodwill to spend on an attack.
        app_weight: P5, of what the node itself thinks of a peer (`AppScore`).
        colocation_*: P6. Peers on one public address beyond 10 (a household or a small cluster behind NAT).
            Private, loopback and link-local addresses are exempt: a fleet lives on one of those.
        behaviour_*: P7, over 6: a lost frame breaks a promise now and then, an attacker does it each second.
            Forgotten in ten minutes.
        decay_seconds: how often counters decay.
        retain_seconds: how long a penalty outlives its connection.
        retained: disconnected peers remembered; at the bound the oldest is forgotten.
        gossip_threshold: below it no IHAVE and IWANT either way.
        publish_threshold: below it no own messages to the peer.
        graylist_threshold: below it nothing is heard, and the peer is sent away.
        accept_px_threshold: peers are taken on hearsay from this score on. 0: a hub that prunes a newcomer is
            a stranger too, and without its hint the newcomer stays alone; it only adds connections, `px_connects`
            bounds them, and records are checked where they are opened. Js has 10 and needs a trusted bootstrapper.
        opportunistic_threshold: a mesh whose median is below it looks for better peers.
    """

    topic: TopicScore = field(default_factory=TopicScore)
    topics: Mapping[Topic, TopicScore] = field(default_factory=lambda: MappingProxyType({}))
    topic_cap: float = 40.0
    app_weight: float = 1.0
    colocation_weight: float = -10.0
    colocation_threshold: int = 10
    behaviour_weight: float = -10.0
    behaviour_threshold: float = 6.0
    behaviour_decay: float = decay_factor(600)
    decay_seconds: float = 1.0
    retain_seconds: float = 3600.0
    retained: int = 1_024
    gossip_threshold: float = -100.0
    publish_threshold: float = -200.0
    graylist_threshold: float = -400.0
    accept_px_threshold: float = 0.0
    opportunistic_threshold: float = 2.0

    def __post_init__(self) -> None:
        """Raises: InvalidConfig: with every contradiction found."""
        bad = _check(self, "gossip.score")
        rules = (
            (self.gossip_threshold < 0, "gossip_threshold", "must be below 0"),
            (self.publish_threshold <= self.gossip_threshold, "publish_threshold", "must not exceed gossip_threshold"),
            (self.graylist_threshold < self.publish_threshold, "graylist_threshold", "must be below publish_threshold"),
            (self.accept_px_threshold >= 0, "accept_px_threshold", "must not be negative"),
            (self.opportunistic_threshold >= 0, "opportunistic_threshold", "must not be negative"),
            (self.colocation_threshold >= 1, "colocation_threshold", "must be at least 1"),
            (self.behaviour_threshold >= 0, "behaviour_threshold", "must not be negative"),
            (self.retained >= 1, "retained", "must be at least 1"),
        )
        bad += [Fault(f"gossip.score.{name}", problem) for ok, name, problem in rules if not ok]
        if bad:
            raise InvalidConfig("score parameters that cannot work", bad)

    def of(self, topic: Topic) -> TopicScore:
        """The parameters of one topic."""
        return self.topics.get(topic, self.topic)
