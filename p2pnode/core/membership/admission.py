"""What of others' records and accusations is worth taking: asked before a signature is checked, and after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set

from p2pnode.core.membership.params import Params
from p2pnode.core.membership.record import MAX_ACCUSATIONS, MAX_INCARNATION, Accusation, MemberRecord, MemberState
from p2pnode.core.membership.table import Table
from p2pnode.core.peerid import PeerId

FUTURE_NS = 120 * 10**9
"""How far ahead an accuser's clock may be (architecture, "Time and randomness")."""


class Admission:
    """Judges by the table and the wall clock alone.

    Attributes:
        refused: what changed nothing, by reason.
    """

    def __init__(self, table: Table, params: Params) -> None:
        self._table = table
        self._members = table.members
        self._params = params
        self.refused: Counter[str] = Counter()

    def wants(self, record: MemberRecord, own: MemberRecord, wall_ns: int) -> bool:
        """Is it worth checking its signature? Counts it when it is not."""
        known = self._members.get(record.peer_id)
        if record.incarnation > MAX_INCARNATION:
            self.refused["incarnation"] += 1
            return False
        if known is not None and record.incarnation <= known.record.incarnation:
            # With our identity, the same incarnation and another start it is no copy of ours: see `Membership._on_own`.
            twin = record.peer_id == own.peer_id and record.started_at_ns != own.started_at_ns
            if twin and record.incarnation == own.incarnation:
                return True
            self.refused["old-record"] += record.incarnation < known.record.incarnation
            return False
        if known is None and (self._table.is_full() if record.left else not self._table.has_room()):
            self.refused["table-full"] += 1
            return False
        if record.left and self.is_expired(record.incarnation * 10**6, wall_ns):
            self.refused["expired"] += 1
            return False
        return True

    def is_expired(self, at_ns: int, wall_ns: int) -> bool:
        """Is it so long ago that everybody forgets whoever is gone since then?"""
        return wall_ns - at_ns > self._params.keep_gone_seconds * 1e9

    def wants_accusation(self, accusation: Accusation, wall_ns: int) -> bool:
        """Is it worth checking its signature? Counts it when it is not, except when it is merely known."""
        why = self.why_not(accusation, wall_ns)
        if why:
            self.refused[why] += 1
        return why is None

    def why_not(self, accusation: Accusation, wall_ns: int) -> str | None:
        """The reason, empty for what is known already, None when it is wanted."""
        accused = self._members.get(accusation.accused)
        if accused is None or accusation.incarnation > accused.record.incarnation:
            return "unknown-accused"
        if accusation.accuser not in self._members or accusation.accuser == accusation.accused:
            return "unknown-accuser"
        if accusation.incarnation < accused.record.incarnation or accused.state is MemberState.LEFT:
            return "old-accusation"
        if accusation.at_ns > wall_ns + FUTURE_NS:
            return "future-accusation"
        if self.is_expired(accusation.at_ns, wall_ns):
            return "expired"
        if accusation.accuser in accused.accusations or len(accused.accusations) >= MAX_ACCUSATIONS:
            return ""
        return None

    def is_welcome(self, accused_by: Sequence[Accusation] | None, accusers: Set[PeerId], wall_ns: int) -> bool:
        """May a stranger come in? One that stands accused only with an accusation that counts.

        Else who was forgotten here after a day would come back to life by a node that forgets it a moment later.

        Args:
            accused_by: what the same news hold against it.
            accusers: whose records the same news bring.
        """
        if not accused_by:
            return True
        if self._table.is_full():
            self.refused["table-full"] += 1
            return False
        for each in accused_by:
            if not self.is_expired(each.at_ns, wall_ns) and (each.accuser in self._members or each.accuser in accusers):
                return True
        self.refused["expired"] += 1
        return False
