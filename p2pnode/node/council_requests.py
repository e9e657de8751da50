"""What the agent asks about councils: create one, claim a role, give it back, say how it goes."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import trio

from p2pnode.core.council.claims import Claimant
from p2pnode.core.council.council import Council, open_seats
from p2pnode.core.council.documents import (
    CLAIMS_TOPIC,
    ENDED,
    NEXT,
    STATUS_TOPIC,
    Claim,
    Seat,
    Status,
    StatusUpdate,
    check_claim,
    check_status,
    to_json,
)
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC, CouncilOpportunity, check_opportunity
from p2pnode.core.message import MAX_PAYLOAD_BYTES
from p2pnode.errors import Conflict, Fault, Forbidden, InvalidRequest, NotFound, TooBusy
from p2pnode.node.council_documents import claims_of, council_document, decision_json
from p2pnode.node.councils import CouncilKeeper
from p2pnode.ports import JsonObject, Published
from p2pnode.wire.payload import format_time

Publish = Callable[[str, bytes], Awaitable[Published]]
"""Publish a JSON object for the agent, by topic and body; raises as `ports.Sidecar.publish`."""

CLAIM_FIELDS = ("role_name", "agent_id", "agent_name", "capabilities", "confidence", "claimed_at")
RELEASE_FIELDS = ("role_name", "agent_id", "reason")
STATUS_FIELDS = ("status", "message", "role_name", "agent_id", "term", "n")

SEAT_BYTES = 700
"""Of a decision, for who holds a role: names of 256 characters, peer id and fencing number."""

_FROM_KEYS = uuid.UUID("6d1c3f0e-4f43-5a0e-9b0a-2f7a3c1d9e55")
"""Council ids made of idempotency keys live in this namespace (RFC 9562, version 5)."""


class CouncilRequests:
    """
    Args:
        keeper: what is known of councils.
        publish: for the agent.
        me: this node's peer id; `role` its role.
    """

    def __init__(
        self,
        keeper: CouncilKeeper,
        publish: Publish,
        me: str,
        role: str,
        own: Callable[[], Any],
        wall_ns: Callable[[], int],
    ) -> None:
        self._keeper = keeper
        self._publish = publish
        self._me = me
        self._role = role
        self._own = own
        self._wall_ns = wall_ns
        self._turn = trio.StrictFIFOLock()

    # -- reading -----------------------------------------------------------------------

    def councils(self, status: str | None) -> list[JsonObject]:
        """See `ports.Sidecar.councils`."""
        if status is not None and status not in list(Status):
            known = ", ".join(Status)
            raise InvalidRequest("the councils cannot be listed", [Fault("status", f"{status!r} is none of {known}")])
        found = (self._keeper.document(council.id) for council in self._keeper.table)
        documents = [each for each in found if each is not None and status in (None, each["status"])]
        return sorted(documents, key=lambda each: (each["created_at"] or "", each["council_id"]), reverse=True)

    def council(self, council_id: str) -> JsonObject:
        """See `ports.Sidecar.council`."""
        council = self._known(council_id)
        return {**self._document(council), "claims": claims_of(council, self._keeper.name_of)}

    @asynccontextmanager
    async def watch(self, council_id: str | None) -> AsyncIterator[AsyncIterator[JsonObject]]:
        """See `ports.Sidecar.watch_councils`."""
        known = [council.id for council in self._keeper.table] if council_id is None else [self._known(council_id).id]
        async with self._keeper.watchers.watch(known[0] if council_id is not None else None, known) as steps:
            yield steps

    def _document(self, council: Council) -> JsonObject:
        return council_document(council, self._keeper.me, self._keeper.name_of, self._wall_ns())

    def _known(self, council_id: str) -> Council:
        try:
            text = str(uuid.UUID(council_id))
        except ValueError:
            problem = f"{council_id!r} is no council id: a UUID such as 5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e11"
            raise InvalidRequest("no such council", [Fault("council_id", problem)]) from None
        council = self._keeper.table.get(text)
        if council is None or council.authority is None:
            raise NotFound(f"no council {text} is known here", hint="`p2pnode council list` shows those that are")
        return council

    # -- create ------------------------------------------------------------------------

    async def create(self, document: Mapping[str, object], key: str | None) -> JsonObject:
        """See `ports.Sidecar.create_council`."""
        if not self._keeper.is_trusted(self._keeper.me):
            raise Forbidden(
                "this node is none of trust.orchestrators, so nobody would count its council",
                hint="ask an orchestrator's sidecar, or add this node's peer id to trust.orchestrators on every node",
            )
        await self._keeper.loaded.wait()
        given = {name: value for name, value in document.items() if value is not None}
        if "council_id" not in given:
            given["council_id"] = str(uuid.uuid5(_FROM_KEYS, f"{self._me}:{key}") if key is not None else uuid.uuid4())
        now = datetime.fromtimestamp(self._wall_ns() / 1e9, UTC)
        deadline = now + timedelta(seconds=self._keeper.settings.formation_seconds)
        filled = {"created_at": _text(now), "formation_deadline": _text(deadline), **given}
        checked = check_opportunity(filled)
        faults = checked if isinstance(checked, list) else _beyond_a_decision(checked)
        if isinstance(checked, list) or faults:
            raise InvalidRequest("the council opportunity cannot be published", faults)
        async with self._turn:
            known = self._keeper.table.get(str(checked.council_id))
            if known is not None and known.authority is not None:
                return self._again(known, given)
            if self._keeper.table.is_full(self._wall_ns()):
                raise TooBusy("this node knows as many councils as it can hold", reason="councils")
            published = await self._publish(OPPORTUNITY_TOPIC, json.dumps(filled, ensure_ascii=False).encode())
            await self._keeper.catch_up()
        council = self._known(str(given["council_id"]))
        return {**self._document(council), "id": published.id}

    def _again(self, known: Council, given: Mapping[str, object]) -> JsonObject:
        """A request for a council that is there: the same one asked for again, or a contradiction."""
        opportunity = known.opportunity
        if opportunity is not None:
            now = opportunity.model_dump(mode="json")
            merged = check_opportunity({**now, **given})
            if isinstance(merged, CouncilOpportunity) and merged == opportunity:
                return {**self._document(known), "id": None, "duplicate": True}
        raise Conflict(
            f"council {known.id} exists already, with another content",
            reason="exists",
            facts={"council_id": known.id},
            hint="leave council_id out, and use a new Idempotency-Key for a new council",
        )

    # -- claim -------------------------------------------------------------------------

    async def claim(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        """See `ports.Sidecar.claim_role`."""
        council = self._known(council_id)
        own = self._own()
        agent_id = document.get("agent_id") or own.agent_id or own.name
        checked = check_claim(
            {
                "agent_name": own.name,
                "capabilities": list(own.capabilities),
                "claimed_at": format_time(self._wall_ns()),
                **{name: value for name, value in document.items() if value is not None},
                "council_id": council.id,
                "agent_id": agent_id,
                "running_roles": self._keeper.running_roles(agent_id) if isinstance(agent_id, str) else 0,
            }
        )
        faults = _unknown(document, CLAIM_FIELDS)
        if isinstance(checked, list) or faults:
            raise InvalidRequest(
                "the role cannot be claimed", [*faults, *(checked if isinstance(checked, list) else [])]
            )
        seat = self._seat(council, checked.role_name)
        self._must_go_on(council)
        if not seat.is_open and (seat.peer_id, seat.agent_id) != (self._me, checked.agent_id):
            who = seat.agent_name or seat.agent_id
            raise Conflict(
                f"{who} holds {seat.role_name} in council {council.id}",
                reason="filled",
                facts={
                    name: getattr(seat, name)
                    for name in ("role_name", "agent_id", "agent_name", "peer_id", "term", "n")
                },
            )
        return await self._say(council, checked)

    async def release(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        """See `ports.Sidecar.release_role`."""
        council = self._known(council_id)
        own = self._own()
        checked = check_claim(
            {
                **{name: value for name, value in document.items() if value is not None},
                "council_id": council.id,
                "agent_id": document.get("agent_id") or own.agent_id or own.name,
                "kind": "release",
            }
        )
        faults = _unknown(document, RELEASE_FIELDS)
        if isinstance(checked, list) or faults:
            raise InvalidRequest(
                "the role cannot be released", [*faults, *(checked if isinstance(checked, list) else [])]
            )
        seat = self._seat(council, checked.role_name)
        me = Claimant(self._keeper.me, checked.agent_id)
        if not seat.is_open and (seat.peer_id, seat.agent_id) == (me.peer, me.agent_id):
            checked = checked.model_copy(update={"term": seat.term, "n": seat.n})
        elif not any(each.claimant == me for each in council.claims(seat.role_name)):
            raise NotFound(f"{checked.agent_id} neither holds nor claims {seat.role_name} in council {council.id}")
        return await self._say(council, checked)

    async def _say(self, council: Council, claim: Claim) -> JsonObject:
        published = await self._publish(CLAIMS_TOPIC, json.dumps(to_json(claim), ensure_ascii=False).encode())
        await self._keeper.catch_up()
        return {
            "id": published.id,
            "council_id": council.id,
            "role_name": claim.role_name,
            "agent_id": claim.agent_id,
        }

    # -- status ------------------------------------------------------------------------

    async def report(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        """See `ports.Sidecar.report_status`."""
        council = self._known(council_id)
        checked = check_status(
            {
                **{name: value for name, value in document.items() if value is not None and name not in ("term", "n")},
                "council_id": council.id,
                "by": self._own().name,
                "at": format_time(self._wall_ns()),
            }
        )
        faults = _unknown(document, STATUS_FIELDS) + _numbers(document)
        if isinstance(checked, list) or faults:
            raise InvalidRequest(
                "the status cannot be said", [*faults, *(checked if isinstance(checked, list) else [])]
            )
        held = [seat for seat in council.seats() if not seat.is_open and seat.peer_id == self._me]
        if document.get("agent_id"):
            held = [seat for seat in held if seat.agent_id == document["agent_id"]]
        if self._is_orchestrator() and not checked.role_name and not document.get("term"):
            update = self._order(council, checked)
        else:
            update = self._account(council, checked, held, document)
        published = await self._publish(STATUS_TOPIC, json.dumps(to_json(update), ensure_ascii=False).encode())
        await self._keeper.catch_up()
        return {"id": published.id, "council_id": council.id, "status": update.status.value}

    def _is_orchestrator(self) -> bool:
        if self._keeper.settings.orchestrators:
            return self._keeper.is_trusted(self._keeper.me)
        return self._role == "whoosh"

    def _order(self, council: Council, update: StatusUpdate) -> StatusUpdate:
        """What an orchestrator asks of the council's owner."""
        self._must_go_on(council)
        possible = NEXT[council.status] & ENDED
        if update.status not in possible:
            raise Conflict(
                f"council {council.id} is {council.status}; an orchestrator can make it {', '.join(sorted(possible))}",
                reason="transition",
                facts={"council_status": council.status.value},
            )
        return update.model_copy(update={"agent_id": "", "role_name": ""})

    def _account(
        self, council: Council, update: StatusUpdate, held: Sequence[Seat], document: Mapping[str, object]
    ) -> StatusUpdate:
        """What who holds a role says of it."""
        if not held:
            if document.get("term"):
                self._stale(council, held)
            raise Forbidden(
                f"this node is no orchestrator, and its agent holds no role in council {council.id}",
                hint="claim a role first, or ask an orchestrator's sidecar",
            )
        named = [seat for seat in held if not update.role_name or seat.role_name == update.role_name]
        if len(named) != 1:
            roles = ", ".join(seat.role_name for seat in held)
            raise InvalidRequest(
                "the status cannot be said", [Fault("role_name", f"name the role it is about: {roles}")]
            )
        seat = named[0]
        if document.get("term") and (document.get("term"), document.get("n")) != (seat.term, seat.n):
            self._stale(council, named)
        self._must_go_on(council)
        return update.model_copy(update={"agent_id": seat.agent_id, "role_name": seat.role_name})

    def _stale(self, council: Council, held: Sequence[Seat]) -> NoReturn:
        raise Conflict(
            f"that fencing number is not, or no longer, one of this agent's in council {council.id}",
            reason="stale",
            facts={"roles": [{"role_name": each.role_name, "term": each.term, "n": each.n} for each in held]},
            hint="stop acting for that role; the council's document says who holds it now",
        )

    # -- both --------------------------------------------------------------------------

    def _seat(self, council: Council, role_name: str) -> Seat:
        seats = council.seats()
        for seat in seats:
            if seat.role_name == role_name:
                return seat
        names = ", ".join(seat.role_name for seat in seats)
        raise NotFound(f"council {council.id} has no role {role_name!r}; it has {names}")

    def _must_go_on(self, council: Council) -> None:
        if council.has_ended:
            raise Conflict(
                f"council {council.id} is {council.status}",
                reason="ended",
                facts={"council_status": council.status.value},
            )


def _beyond_a_decision(opportunity: CouncilOpportunity) -> list[Fault]:
    """Each decision names every role with its skills: roles that do not fit into one message never get a holder."""
    seats = list(open_seats(opportunity))
    empty = decision_json(
        StatusUpdate.model_construct(council_id=opportunity.council_id, status=Status.FORMING, roles=seats)
    )
    size = len(json.dumps(empty, ensure_ascii=False).encode()) + SEAT_BYTES * len(seats)
    if size <= MAX_PAYLOAD_BYTES:
        return []
    problem = (
        f"names and skills of all roles need {size} bytes; {MAX_PAYLOAD_BYTES} are the most: shorten required_skills"
    )
    return [Fault("core_roles", problem)]


def _unknown(document: Mapping[str, object], fields: Sequence[str]) -> list[Fault]:
    return [Fault(name, f"is unknown; known are {', '.join(fields)}") for name in document if name not in fields]


def _numbers(document: Mapping[str, object]) -> list[Fault]:
    faults = []
    for name, other in (("term", "n"), ("n", "term")):
        value = document.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            faults.append(Fault(name, "must be a whole number from 1, as the assignment says"))
        elif value is not None and document.get(other) is None:
            faults.append(Fault(other, f"is missing: {name} alone names no assignment"))
    return faults


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
