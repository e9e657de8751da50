"""What a bridge tells the other side: everybody who lives on this one, and whom of the others this one accuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from p2pnode.core.membership.record import GONE, Member
from p2pnode.core.peerid import PeerId

MARGIN_SECONDS = 600.0
"""Who is to be forgotten so soon is not told of any more: the others may be a little earlier."""


def roll_of(
    members: Iterable[Member], exclude: Callable[[PeerId], bool], wall_ns: int, keep_gone_seconds: float
) -> list[Member]:
    """Those to tell of, with their accusations: first who is not gone, so that accusers come before whom they accuse.

    A member of the other side that only this side accuses is told of too: it lives there, knows nothing of it while
    the bridge is away, and comes back to life here by answering.

    Args:
        exclude: does it live on the other side?
    """
    oldest = wall_ns - round((keep_gone_seconds - MARGIN_SECONDS) * 1e9)
    told = [
        member
        for member in members
        if not (member.state in GONE and member.gone_at_ns < oldest)
        and (not exclude(member.record.peer_id) or any(not exclude(accuser) for accuser in member.accusations))
    ]
    return sorted(told, key=lambda member: (member.state in GONE, member.record.peer_id))
