"""BACKBEAT status claims: what an agent says of its work on each beat, on `backbeat.status`.

Field names as BACKBEAT writes them; members we do not know are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from p2pnode.core.council.opportunity import Name, faults_of
from p2pnode.errors import Fault

BACKBEAT_TOPIC = "backbeat.status"
STATUS_CLAIM_TYPE = "backbeat.statusclaim.v1"
MAX_BEAT = 2**63 - 1
MAX_NOTES = 256
MAX_DEPENDENCIES = 256

Beat = Annotated[int, Field(ge=0, le=MAX_BEAT)]


class WorkState(StrEnum):
    """What the agent is doing."""

    IDLE = "idle"
    PLANNING = "planning"
    EXECUTING = "executing"
    REVIEWING = "reviewing"
    COMPLETED = "completed"
    FAILED = "failed"
    BLOCKED = "blocked"
    HELPING = "helping"


class StatusClaim(BaseModel):
    """One agent at one beat.

    Args:
        beat_index: the beat that it is about.
        hlc: the agent's hybrid logical clock, as it writes it; not interpreted.
        beats_left: how many beats it still needs.
        progress: of the task, 0 to 1.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    type: Literal["backbeat.statusclaim.v1"]
    agent_id: Name
    beat_index: Beat
    state: Annotated[WorkState, Field(strict=False)]
    hlc: Name
    task_id: Annotated[str, Field(max_length=256)] | None = None
    beats_left: Beat | None = None
    progress: Annotated[float, Field(ge=0, le=1)] | None = None
    notes: Annotated[str, Field(max_length=MAX_NOTES)] | None = None
    resources: dict[str, Any] = Field(default_factory=dict)
    dependencies: list[Name] = Field(default_factory=list, max_length=MAX_DEPENDENCIES)
    metadata: dict[str, Any] = Field(default_factory=dict)

    @field_validator("resources", "metadata", mode="before")
    @classmethod
    def _null_is_no_member(cls, value: object) -> object:
        return {} if value is None else value  # as Go writes a nil map

    @field_validator("dependencies", mode="before")
    @classmethod
    def _null_is_none_of_them(cls, value: object) -> object:
        return [] if value is None else value  # as Go writes a nil slice


def check_status_claim(document: Mapping[str, object]) -> StatusClaim | list[Fault]:
    """The status claim in a JSON object, or every fault in it."""
    try:
        return StatusClaim.model_validate(document)
    except ValidationError as error:
        return faults_of(error)


def claim_json(claim: StatusClaim) -> dict[str, Any]:
    """The members that BACKBEAT defines, without those that are empty."""
    return claim.model_dump(mode="json", include=set(StatusClaim.model_fields), exclude_defaults=True)
