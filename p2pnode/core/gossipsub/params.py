"""Every number the router follows, in one validated record.

Specification: libp2p specs, `pubsub/gossipsub/gossipsub-v1.0.md` ("Parameters"),
`gossipsub-v1.1.md` ("Overview of New Parameters") and `gossipsub-v1.2.md` ("Parameters").
`Params()` holds our defaults, `SPEC` the specification's (go-libp2p-pubsub's where the
specification gives none); a field that differs says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Self

from p2pnode.core.gossipsub.params_score import ScoreParams
from p2pnode.core.message import MAX_MESSAGE_BYTES
from p2pnode.errors import Fault, InvalidConfig

SMALL_FLEET = 50
"""Up to this many nodes a mesh of 4 delivers as surely as one of 6, for a third less CPU
(`facts/transport.md`, table of D and CPU per delivery; `tests/sim` repeats it with loss)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Parameters of the router; seconds are seconds, bytes are bytes.

    Args:
        d: mesh links wanted per topic. Spec 6. Ours 6, and 4 for small fleets (`for_fleet`):
            each link beyond need is one more duplicate, about 0.1 ms of CPU.
        d_lo: fewer links than this are topped up to `d`. Spec 4 (v1.0) or 5 (go). Ours 5; small fleets 3.
        d_hi: more links than this are cut to `d`; at it, only outbound peers may still graft. Spec 12;
            small fleets 8.
        d_score: links kept for their score when cutting; the rest is drawn. Spec 4 for `d` = 6; small fleets 3.
        d_out: links we dialled ourselves, kept against takeover. Spec 2 for `d` = 6; small fleets 1.
        d_lazy: at least this many non-mesh peers hear what we have. Spec 6; small fleets 4.
        gossip_factor: share of the non-mesh peers that hear it. Spec 0.25.
        heartbeat_seconds: spec 1.
        history_windows: heartbeats for which a message can be asked for. Spec 5. Ours 10: on a busy machine
            a neighbour's IWANT may come seconds late; `history_bytes` bounds the cost.
        gossip_windows: heartbeats for which a message is advertised. Spec 3.
        history_bytes: message bytes kept to answer IWANT; over it the oldest go first. Ours only: 16 MiB.
        fanout_seconds: how long peers of a topic that we only publish to are remembered. Spec 60.
        fanout_topics: such topics at once; over it the longest unused goes. Ours only: 64.
        prune_backoff_seconds: spec 60.
        unsubscribe_backoff_seconds: spec 10.
        backoff_slack_seconds: how much longer we wait ourselves before grafting again. Spec "some slack": 1.
        max_backoff_seconds: the longest backoff we let a peer impose. Ours only: 600, so that nobody is
            shut out of a mesh for good by one number.
        graft_flood_seconds: a GRAFT this soon after a PRUNE is penalised twice. Go 10.
        prune_peers: peers given with a PRUNE; spec: more than `d_hi`. Go 16.
        px_connects: peers dialled on hearsay per heartbeat. Ours only: 16.
        flood_publish: send own messages to every topic peer above the publish threshold. Spec true.
        flood_publish_bytes: bigger own messages go to the mesh only. Ours only: 32 KiB, since 32 copies
            of 256 KiB at once would hold up everything behind them.
        opportunistic_seconds: spec 60.
        opportunistic_peers: spec 2.
        direct_connect_seconds: how often missing direct peers are asked for. Spec 300. Ours 30: there are
            few of them and `host` has its own backoff.
        seen_seconds: spec 120. Ours 300: the store remembers longer, but not ids that were ignored.
        seen_ids: ids remembered. At the bound the oldest is forgotten early, and a late copy of it is
            caught by the store when it was accepted, and judged again when it was not. Ours only: 65,536
            (about 20 MB).
        max_ihave_rpcs: RPCs with IHAVE heard per peer and heartbeat. Go 10.
        max_ihave_ids: ids per IHAVE sent, and ids asked of one peer per heartbeat. Go 5,000. Ours 1,000:
            ten windows at 100 messages/s.
        max_asks_per_id: peers asked for one id within one heartbeat. Go: all that advertise. Ours 3: the others
            would only send duplicates.
        iwant_followup_seconds: a promise not kept by then is broken (P7). Spec 3.
        max_promises: open questions remembered; over it we ask without holding the peer to it. Ours: 4,096.
        gossip_retransmissions: times one id is sent to one peer on IWANT. Go 3.
        max_iwant_ids: ids answered per peer and heartbeat. Ours only: 1,000.
        max_iwant_bytes: bytes answered per peer and heartbeat. Ours only: 4 MiB.
        idontwant_bytes: from this size of payload on mesh peers hear IDONTWANT. Go 1 KiB. Ours 8 KiB: below,
            the notice wakes the peer as expensively as the duplicate that it saves.
        idontwant_heartbeats: how long a peer's IDONTWANT counts. Go 3.
        max_idontwant_ids: ids heard per peer and heartbeat. Go 1,000 messages of 10. Ours 512 ids.
        max_unwanted: such notices remembered altogether; over it further ones are not heeded. Ours: 16,384.
        max_validations: messages that may wait for a verdict. Over it a message is ignored and its id not
            remembered, so another copy may come later. Ours: 512.
        max_validations_per_peer: likewise for the messages of one peer. Ours: 128.
        max_validation_bytes: likewise for their bytes together. Ours: 16 MiB.
        validation_seconds: a verdict that takes longer is given up as if it were over the limit.
        max_peers: connected peers; one more is sent away. Ours 1,500: the hub of a star of 1,000 has them all
            until they found each other; `host` bounds connections by its own means.
        max_topics: topics we take part in.
        max_peer_topics: subscriptions remembered per peer; the excess is ignored.
        max_backoffs: backoffs remembered; at the bound the oldest goes.
        max_owed: ids owed to one peer after its queue overflowed; the oldest goes first.
        slow_heartbeats: heartbeats in a row with an overflowing queue after which a peer leaves our meshes.
    """

    d: int = 6
    d_lo: int = 5
    d_hi: int = 12
    d_score: int = 4
    d_out: int = 2
    d_lazy: int = 6
    gossip_factor: float = 0.25
    heartbeat_seconds: float = 1.0
    history_windows: int = 10
    gossip_windows: int = 3
    history_bytes: int = 16 * 1024 * 1024
    fanout_seconds: float = 60.0
    fanout_topics: int = 64
    prune_backoff_seconds: float = 60.0
    unsubscribe_backoff_seconds: float = 10.0
    backoff_slack_seconds: float = 1.0
    max_backoff_seconds: float = 600.0
    graft_flood_seconds: float = 10.0
    prune_peers: int = 16
    px_connects: int = 16
    flood_publish: bool = True
    flood_publish_bytes: int = 32 * 1024
    opportunistic_seconds: float = 60.0
    opportunistic_peers: int = 2
    direct_connect_seconds: float = 30.0
    seen_seconds: float = 300.0
    seen_ids: int = 65_536
    max_ihave_rpcs: int = 10
    max_ihave_ids: int = 1_000
    max_asks_per_id: int = 3
    iwant_followup_seconds: float = 3.0
    max_promises: int = 4_096
    gossip_retransmissions: int = 3
    max_iwant_ids: int = 1_000
    max_iwant_bytes: int = 4 * 1024 * 1024
    idontwant_bytes: int = 8 * 1024
    idontwant_heartbeats: int = 3
    max_idontwant_ids: int = 512
    max_unwanted: int = 16_384
    max_validations: int = 512
    max_validations_per_peer: int = 128
    max_validation_bytes: int = 16 * 1024 * 1024
    validation_seconds: float = 30.0
    max_peers: int = 1_500
    max_topics: int = 256
    max_peer_topics: int = 200
    max_backoffs: int = 4_096
    max_owed: int = 256
    slow_heartbeats: int = 5
    score: ScoreParams = field(default_factory=ScoreParams)

    def __post_init__(self) -> None:
        """Raises: InvalidConfig: with every contradiction found."""
        faults = list(self._faults())
        if faults:
            raise InvalidConfig("gossip parameters that cannot work", faults)

    def _faults(self) -> list[Fault]:
        bad: list[Fault] = []

        def need(ok: bool, name: str, problem: str) -> None:
            if not ok:
                bad.append(Fault(f"gossip.{name}", problem))

        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or each.name == "score":
                continue
            if not math.isfinite(value):
                need(False, each.name, "must be a finite number")
            elif each.name not in _MAY_BE_ZERO:
                need(value > 0, each.name, f"must be above 0, not {value}")
            else:
                need(value >= 0, each.name, f"must not be negative, as {value} is")
        need(self.d_lo <= self.d <= self.d_hi, "d", f"needs d_lo <= d <= d_hi, not {self.d_lo}, {self.d}, {self.d_hi}")
        need(self.d_score <= self.d, "d_score", f"must not exceed d = {self.d}")
        need(
            self.d_out == 0 or (self.d_out < self.d_lo and self.d_out <= self.d / 2),
            "d_out",
            f"must be below d_lo = {self.d_lo} and at most d / 2 = {self.d / 2:g}",
        )
        need(self.gossip_factor <= 1, "gossip_factor", "is a share: at most 1")
        need(self.gossip_windows <= self.history_windows, "gossip_windows", "must not exceed history_windows")
        need(
            self.history_windows * self.heartbeat_seconds <= self.seen_seconds,
            "seen_seconds",
            "must outlast history_windows, or what we still serve would look new to us",
        )
        need(
            self.validation_seconds < self.seen_seconds,
            "validation_seconds",
            "must be below seen_seconds, or a message is judged twice",
        )
        need(self.max_validations < self.seen_ids, "seen_ids", "must exceed max_validations")
        need(self.max_validations_per_peer <= self.max_validations, "max_validations_per_peer", "exceeds the whole")
        need(self.max_validation_bytes >= MAX_MESSAGE_BYTES, "max_validation_bytes", "must hold the largest message")
        need(self.history_bytes >= MAX_MESSAGE_BYTES, "history_bytes", "must hold the largest message")
        need(self.max_iwant_bytes >= MAX_MESSAGE_BYTES, "max_iwant_bytes", "must hold the largest message")
        need(self.prune_peers >= self.d_hi, "prune_peers", f"must be at least d_hi = {self.d_hi} to fill a mesh")
        need(self.d_hi <= self.max_peers, "max_peers", f"must be at least d_hi = {self.d_hi}")
        need(
            self.graft_flood_seconds <= self.prune_backoff_seconds,
            "graft_flood_seconds",
            "must not exceed prune_backoff_seconds",
        )
        need(
            max(self.prune_backoff_seconds, self.unsubscribe_backoff_seconds) <= self.max_backoff_seconds,
            "max_backoff_seconds",
            "must not be below our own backoffs",
        )
        need(
            self.iwant_followup_seconds <= self.history_windows * self.heartbeat_seconds,
            "iwant_followup_seconds",
            "must not exceed the time that a message can be asked for",
        )
        need(
            math.isclose(self.score.decay_seconds % self.heartbeat_seconds, 0, abs_tol=1e-9)
            if self.heartbeat_seconds > 0 and math.isfinite(self.heartbeat_seconds)
            else True,
            "score.decay_seconds",
            "must be a multiple of heartbeat_seconds, which drives the decay",
        )
        return bad

    def for_fleet(self, members: int) -> Self:
        """The same parameters with the mesh degree that suits a fleet of `members` nodes, us included.

        A node without a mesh (`d` = 0) stays without one.
        """
        if self.d == 0:
            return self
        small = members <= SMALL_FLEET
        if self.d == (4 if small else 6) and min(self.max_peers, self.prune_peers) >= 12:
            return self  # each member that joins asks, and making and checking a new value costs 0.3 ms
        room, given = max(self.max_peers, 12), max(self.prune_peers, 12)
        if small:
            return replace(self, d=4, d_lo=3, d_hi=8, d_score=3, d_out=1, d_lazy=4, max_peers=room, prune_peers=given)
        return replace(self, d=6, d_lo=5, d_hi=12, d_score=4, d_out=2, d_lazy=6, max_peers=room, prune_peers=given)


_MAY_BE_ZERO = frozenset(
    {"d", "d_lo", "d_hi", "d_out", "d_score", "d_lazy", "gossip_factor", "prune_peers", "px_connects",
     "backoff_slack_seconds", "opportunistic_peers", "flood_publish_bytes", "max_owed"}
)  # fmt: skip
"""A bootstrap node runs with a mesh of 0 (gossipsub-v1.1, "Recommendations for Network Operators")."""

SPEC = Params(
    history_windows=5,
    direct_connect_seconds=300.0,
    seen_seconds=120.0,
    max_ihave_ids=5_000,
    idontwant_bytes=1_024,
    flood_publish_bytes=MAX_MESSAGE_BYTES,
)
"""The specification's defaults, for comparisons; bounds that it does not know stay ours."""
