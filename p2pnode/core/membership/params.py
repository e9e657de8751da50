"""The times and bounds of the failure detector, with their reasons."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Params:
    """
    Args:
        suspicion_seconds: from the first accusation to death, with one, two and three accusers. The accused hears
            of it by gossip in well under a second and needs one message to refute: the shortest leaves room for a
            machine with four times as much to do as it can.
        probe_every_seconds: each node probes one member that it has no link with (SWIM's protocol period).
        alarm_probe_seconds: the same while several members were accused lately: when many die at once, some
            have lost every neighbour that could have noticed.
        alarm_members: accused within `alarm_seconds` to raise the alarm.
        probe_patience_seconds: how long a probe may take. A handshake on an overloaded machine takes some 100 ms.
        helpers: how many others must fail too before a failed probe becomes an accusation (SWIM's k).
        accusations_at_once: that we make; refilled by `accusations_per_second`.
        accuser_limit: accusations of one accuser that are heard per `accuser_seconds`: each costs every node a message.
        refuted_seconds: who refuted is not doubted again for so long, unless a link with it breaks; doubled when it
            refutes again soon, up to the second. A member that nobody can dial, but that lives, would be accused
            without end by everybody whose turn it is.
        relay_seconds: what came by sync is gossiped after a random time in this range, unless gossip brought it first.
        relay_strangers: more strangers than this, and than an eighth of those known, in one exchange mean that we are
            the news, not they: they are not gossiped, or each newcomer would send everybody the whole table.
        top_seconds: at most one record of a twin or an earlier run is topped in this time.
        starved_seconds: a tick this late means that we, not they, were stopped or starved (Lifeguard, "Local Health
            Awareness"); suspicions and probes get more time, and doubts a second probe.
        starved_memory_seconds: for so long after.
        keep_gone_seconds: dead and left members are shown and remembered for a day.
    """

    suspicion_seconds: tuple[float, float, float] = (4.0, 3.0, 2.5)
    probe_every_seconds: float = 5.0
    alarm_probe_seconds: float = 0.5
    alarm_members: int = 2
    alarm_seconds: float = 10.0
    probe_patience_seconds: float = 1.5
    helpers: int = 3
    accusations_at_once: int = 40
    accusations_per_second: float = 2.0
    accuser_limit: int = 100
    accuser_seconds: float = 60.0
    refuted_seconds: tuple[float, float] = (30.0, 600.0)
    relay_seconds: tuple[float, float] = (0.05, 0.25)
    relay_strangers: int = 16
    top_seconds: float = 1.0
    starved_seconds: float = 0.75
    starved_memory_seconds: float = 10.0
    keep_gone_seconds: float = 24 * 3600.0
