"""What is said about a council after its opportunity: claims on `councils.claims`, decisions on `councils.status`.

Field names as WHOOSH and CHORUS write them; members we do not know are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from p2pnode.core.council.opportunity import MAX_ROLES, CouncilRole, Name, faults_of, time_text
from p2pnode.errors import Fault

CLAIMS_TOPIC = "councils.claims"
STATUS_TOPIC = "councils.status"
MAX_TERM = 2**53 - 1
MAX_CAPABILITIES = 256
MAX_MESSAGE = 4096
MAX_UCXL = 4096
MAX_ELECTORATE_CHARACTERS = 65_536

Number = Annotated[int, Field(ge=0, le=MAX_TERM)]
Short = Annotated[str, Field(max_length=256)]


class Status(StrEnum):
    """Where a council stands."""

    FORMING = "forming"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


NEXT: Mapping[Status, frozenset[Status]] = {
    Status.FORMING: frozenset({Status.ACTIVE, Status.FAILED, Status.EXPIRED, Status.CANCELLED}),
    Status.ACTIVE: frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.EXPIRED: frozenset(),
    Status.CANCELLED: frozenset(),
}
"""Every transition there is. A role that falls vacant leaves an active council active."""

ENDED = frozenset(status for status, following in NEXT.items() if not following)


class _Document(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=False)

    council_id: UUID


class Claim(_Document):
    """An agent wants a role, takes the one it was given, or gives it back.

    Args:
        kind: `claim` wants the role; `accept` takes up the assignment `(term, n)`; `release` gives it back, or, without
            term, withdraws the claim.
        confidence: the agent's own, 0 to 1; shown, not judged by.
        claimed_at: the agent's time; shown. Claims are ranked by the signed time of the message.
        running_roles: how many roles the agent held as it claimed.
        reason: of a release.
    """

    kind: Literal["claim", "accept", "release"] = "claim"
    role_name: Name
    agent_id: Name
    agent_name: Short = ""
    capabilities: list[Name] = Field(default_factory=list, max_length=MAX_CAPABILITIES)
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    claimed_at: AwareDatetime | None = None
    running_roles: Number = 0
    term: Number = 0
    n: Number = 0
    reason: str = Field("", max_length=1024)

    @field_validator("capabilities", mode="before")
    @classmethod
    def _null_is_empty(cls, value: object) -> object:
        return [] if value is None else value  # as Go writes a nil slice

    @field_validator("claimed_at", mode="before")
    @classmethod
    def _times_are_text(cls, value: object) -> object:
        return time_text(value)


class Seat(CouncilRole):
    """A role and who holds it.

    Args:
        required: one of the core roles.
        agent_id: of the holder; empty when the role is open.
        peer_id: of the holder's node.
        term: with `n` the fencing number of the assignment; both 0 when the role was never given.
        n: see `term`.
        state: `open`, `assigned`, or `accepted` by the holder.
    """

    agent_id: Short = ""
    peer_id: Short = ""
    term: Number = 0
    n: Number = 0
    state: Literal["open", "assigned", "accepted"] = "open"

    @property
    def is_open(self) -> bool:
        return self.state == "open"


class StatusUpdate(_Document):
    """A decision of a council's owner, or what somebody else says about the council.

    Args:
        status: where the council stands, or should stand.
        roles: every role, with its holder; of a decision.
        by: who says so, by name.
        role_name: the role that the speaker holds; of a report.
        agent_id: the agent that speaks; of a report.
        term: 1 or more makes it a decision: the owner's term, raised by each takeover.
        n: number of the decision within its term.
        opportunity: the whole opportunity; in the first decision of a term.
        electorate: who was alive when the council was created (`core.council.takeover`); in the first decision.
    """

    status: Status
    message: str = Field("", max_length=MAX_MESSAGE)
    roles: list[Seat] = Field(default_factory=list, max_length=2 * MAX_ROLES)
    at: AwareDatetime | None = None
    by: Short = ""
    project_name: Short = ""
    repository: Short = ""
    ucxl_address: Annotated[str, Field(max_length=MAX_UCXL)] = ""
    role_name: Short = ""
    agent_id: Short = ""
    term: Number = 0
    n: Number = 0
    opportunity: dict[str, Any] | None = None
    electorate: Annotated[str, Field(max_length=MAX_ELECTORATE_CHARACTERS)] = ""

    @field_validator("roles", mode="before")
    @classmethod
    def _null_is_empty(cls, value: object) -> object:
        return [] if value is None else value

    @field_validator("at", mode="before")
    @classmethod
    def _times_are_text(cls, value: object) -> object:
        return time_text(value)

    @property
    def is_decision(self) -> bool:
        return self.term > 0


_Model = TypeVar("_Model", bound=BaseModel)


def check_claim(document: Mapping[str, object]) -> Claim | list[Fault]:
    """The claim in a JSON object, or every fault in it."""
    return _check(Claim, document)


def check_status(document: Mapping[str, object]) -> StatusUpdate | list[Fault]:
    """The status update in a JSON object, or every fault in it. A decision gives each role to one agent at most."""
    checked = _check(StatusUpdate, document)
    if isinstance(checked, list) or not checked.is_decision:
        return checked
    return _contradictions(checked.roles) or checked


def _contradictions(seats: Sequence[Seat]) -> list[Fault]:
    faults: list[Fault] = []
    places: dict[str, str] = {}
    for index, seat in enumerate(seats):
        where = f"roles[{index}]"
        if seat.role_name in places:
            faults.append(Fault(f"{where}.role_name", f"{seat.role_name!r} is {places[seat.role_name]} already"))
        places.setdefault(seat.role_name, where)
        missing = [name for name in ("agent_id", "peer_id") if not seat.is_open and not getattr(seat, name)]
        faults += [Fault(f"{where}.{name}", f"is missing: the role is {seat.state}") for name in missing]
    return faults


def _check(model: type[_Model], document: Mapping[str, object]) -> _Model | list[Fault]:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        return faults_of(error)


def to_json(model: BaseModel) -> dict[str, Any]:
    """A document as it is published: without what is empty."""
    return model.model_dump(mode="json", exclude_defaults=True)
