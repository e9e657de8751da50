"""The agent registry: live members, what their agents say of themselves, and their last BACKBEAT status claims.

What an agent says live (`update`) is part of its node's member record, so every member hears of it. It lasts as long as
the process: after a restart the record says again what the configuration says, status `online` and no team. What must
last belongs in the configuration; what is momentary the agent says again when it starts.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from p2pnode.config.checks import check_endpoint, check_text, check_word
from p2pnode.core.backbeat import BACKBEAT_TOPIC, StatusClaim, check_status_claim, claim_json
from p2pnode.core.council.council import Stamp
from p2pnode.core.membership.record import MAX_INCARNATION, Member, MemberRecord
from p2pnode.core.metadata import MAX_TIME_NS
from p2pnode.core.peerid import PeerId
from p2pnode.errors import Fault, InvalidMessage, InvalidRequest
from p2pnode.node.metrics import series
from p2pnode.ports import JsonObject
from p2pnode.wire.members import MAX_CAPABILITIES, MAX_TEXT, check_room
from p2pnode.wire.payload import format_time

STATUSES = ("online", "idle", "working", "draining")
"""What an agent may say of itself. `draining`: it finishes what it has and takes no new roles."""

MAX_CLAIMS = 10_000
"""Status claims kept; at the bound the one that was renewed longest ago goes."""

MAX_CLAIMS_OF_ONE = 64
"""Of those, of one origin: none can push out all the others."""

MAX_CLAIM_BYTES = 2048
"""Of one claim as it is kept; from a larger one the free members (`_FREE`) are left out."""

_FREE = ("metadata", "resources", "dependencies")


class Fleet(Protocol):
    """Who is there (`node.members.Members`)."""

    @property
    def own(self) -> MemberRecord: ...

    def get(self, peer: PeerId, /) -> Member | None: ...

    def alive(self) -> Sequence[Member]: ...

    def update_own(self, record: MemberRecord, /) -> None: ...


@dataclass(frozen=True, slots=True)
class _Kept:
    """A status claim.

    Args:
        number: the message's seqno: of one origin the higher is the later, whatever clocks say.
        at_ns: its signed time.
        text: the claim as JSON.
    """

    number: int
    at_ns: int
    text: bytes


class Agents:
    """
    Args:
        fleet: the membership.
        linked: peers that are connected now.
        sign: our key's signature of some bytes.

    Attributes:
        refused: status claims that changed nothing, by reason: `invalid`, `old`.
    """

    def __init__(
        self,
        fleet: Fleet,
        linked: Callable[[], Collection[PeerId]],
        sign: Callable[[bytes], bytes],
        wall_ns: Callable[[], int],
    ) -> None:
        self._fleet = fleet
        self._linked = linked
        self._sign = sign
        self._wall_ns = wall_ns
        self._claims: dict[tuple[PeerId, str], _Kept] = {}
        """In the order of renewal, the longest ago first."""
        self._of: dict[PeerId, dict[str, None]] = {}
        """Agent ids with a claim, by origin, in the same order."""
        self.refused: Counter[str] = Counter()

    # -- asked -------------------------------------------------------------------------

    def agent(self) -> JsonObject:
        """See `ports.Sidecar.agent`."""
        own = self._fleet.own
        return self._document(own, self._wall_ns())

    def agents(self, *, capability: str | None, model: str | None, status: str | None) -> list[JsonObject]:
        """See `ports.Sidecar.agents`. Capabilities are compared whatever their case, as for roles.

        A node is behind an agent when its role is `chorus`, or when it names an agent or a capability.
        """
        wanted = capability.casefold() if capability is not None else None
        linked, now = set(self._linked()), self._wall_ns()
        found = []
        for member in self._fleet.alive():
            record = member.record
            if not (record.role == "chorus" or record.agent_id or record.capabilities):
                continue
            if wanted is not None and wanted not in (each.casefold() for each in record.capabilities):
                continue
            if model not in (None, record.model) or status not in (None, record.status):
                continue
            is_here = record.peer_id == self._fleet.own.peer_id or record.peer_id in linked
            found.append(self._document(record, now if is_here else member.last_seen_ns))
        return sorted(found, key=lambda each: (each["name"], each["peer_id"]))

    def _document(self, record: MemberRecord, last_seen_ns: int) -> JsonObject:
        return {
            "agent_id": agent_id_of(record),
            "name": record.name,
            "status": record.status,
            "capabilities": list(record.capabilities),
            "model": record.model or None,
            "endpoint": record.endpoint or None,
            "cluster_id": record.cluster_id or None,
            "current_team": record.current_team or None,
            "tasks_completed": record.tasks_completed,
            "p2p_addr": next(filter(None, map(host_and_port, record.addrs)), None),
            "last_seen": format_time(last_seen_ns),
            "peer_id": record.peer_id,
            "backbeat": self._backbeat(record),
        }

    def _backbeat(self, record: MemberRecord) -> JsonObject | None:
        """The last status claim of a node's agent; of the node, when its record names no agent."""
        agent_id = record.agent_id or next(reversed(self._of.get(record.peer_id, {})), "")
        kept = self._claims.get((record.peer_id, agent_id))
        if kept is None:
            return None
        document: JsonObject = json.loads(kept.text)
        return {**document, "at": format_time(kept.at_ns) if kept.at_ns < MAX_TIME_NS else None}

    # -- our own agent -----------------------------------------------------------------

    async def update(self, changes: Mapping[str, object]) -> JsonObject:
        """See `ports.Sidecar.update_agent`. Null empties `model`, `endpoint` and `current_team`."""
        said, faults = _read_changes(changes)
        if faults:
            raise InvalidRequest("the agent cannot be changed like this", faults)
        own = self._fleet.own
        new = dataclasses.replace(own, **said)
        if new != own:
            try:
                check_room(new, self._sign)
                self._fleet.update_own(new)
            except InvalidMessage as error:
                grown = [name for name in said if name in _SIZED and getattr(new, name) != getattr(own, name)]
                raise InvalidRequest(
                    "the member record would be larger than other nodes accept",
                    [Fault(name, f"{error.detail}; shorten it") for name in grown or said],
                ) from error
        return self.agent()

    # -- what is stored ----------------------------------------------------------------

    def take(self, topic: str, document: Mapping[str, object], stamp: Stamp) -> None:
        """Keep what a stored document says, if it is a status claim. What is none is counted, and held against nobody.

        Args:
            stamp: its time is `MAX_TIME_NS` when the message bears none, as a stock peer's.
        """
        if topic != BACKBEAT_TOPIC:
            return
        claim = check_status_claim(document)
        if isinstance(claim, list):
            self.refused["invalid"] += 1
            return
        name = (stamp.peer, claim.agent_id)
        known = self._claims.get(name)
        if known is not None and known.number >= stamp.number:
            self.refused["old"] += 1
            return
        self._forget(*name)
        of = self._of.get(stamp.peer, {})
        if len(of) >= MAX_CLAIMS_OF_ONE:
            self._forget(stamp.peer, next(iter(of)))
        elif len(self._claims) >= MAX_CLAIMS:
            self._forget(*next(iter(self._claims)))
        self._claims[name] = _Kept(stamp.number, stamp.at_ns, _compact(claim))
        self._of.setdefault(stamp.peer, {})[claim.agent_id] = None

    def _forget(self, peer: PeerId, agent_id: str) -> None:
        if self._claims.pop((peer, agent_id), None) is not None:
            del self._of[peer][agent_id]
            if not self._of[peer]:
                del self._of[peer]

    def metrics(self) -> Mapping[str, float]:
        return dict(
            [
                series("p2pnode_backbeat_claims", len(self._claims)),
                *(series("p2pnode_backbeat_refused_total", n, reason=why) for why, n in self.refused.items()),
            ]
        )


def agent_id_of(record: MemberRecord) -> str:
    """The agent's id in WHOOSH and CHORUS; the node's name where none is configured."""
    return record.agent_id or record.name


def host_and_port(addr: str) -> str | None:
    """`10.0.0.1:9000` of a TCP multiaddr, an IPv6 address in brackets; None of any other."""
    match addr.split("/"):
        case ["", "ip4" | "dns" | "dns4" | "dns6", host, "tcp", port]:
            return f"{host}:{port}"
        case ["", "ip6", host, "tcp", port]:
            return f"[{host}]:{port}"
    return None


def _compact(claim: StatusClaim) -> bytes:
    document = claim_json(claim)
    text = json.dumps(document, separators=(",", ":")).encode()
    if len(text) > MAX_CLAIM_BYTES:
        document = {name: value for name, value in document.items() if name not in _FREE}
        text = json.dumps({**document, "truncated": True}, separators=(",", ":")).encode()
    return text


# -- changes ---------------------------------------------------------------------------


def _status(value: object) -> str:
    if value not in STATUSES:
        raise ValueError(f"must be one of {', '.join(STATUSES)}, not {value!r:.80}")
    return str(value)


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"must be a string or null, not {value!r:.80}")
    return check_text(value)


def _endpoint(value: object) -> str:
    return check_endpoint(_text(value))


def _capabilities(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"must be a list of strings, not {value!r:.80}")
    if len(value) > MAX_CAPABILITIES:
        raise ValueError(f"has {len(value)} capabilities; {MAX_CAPABILITIES} are the most")
    return tuple(dict.fromkeys(check_word(each) for each in value))


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INCARNATION:
        raise ValueError(f"must be a whole number from 0 to {MAX_INCARNATION}, not {value!r:.80}")
    return value


_READ: Mapping[str, Callable[[object], Any]] = {
    "status": _status,
    "capabilities": _capabilities,
    "model": _text,
    "endpoint": _endpoint,
    "current_team": _text,
    "tasks_completed": _count,
}
_SIZED = ("capabilities", "model", "endpoint", "current_team")


def _read_changes(changes: Mapping[str, object]) -> tuple[dict[str, Any], list[Fault]]:
    """What was said, by record field, and every fault."""
    said: dict[str, Any] = {}
    faults = []
    for name, value in changes.items():
        if (read := _READ.get(name)) is None:
            faults.append(Fault(name[:MAX_TEXT], f"cannot be changed; {', '.join(_READ)} can"))
            continue
        try:
            said[name] = read(value)
        except ValueError as error:
            faults.append(Fault(name, str(error)))
    return said, faults
