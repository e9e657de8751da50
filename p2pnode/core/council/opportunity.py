"""The council opportunity: which documents are one, and what is wrong with those that are not.

Field names as WHOOSH and CHORUS write them; members we do not know are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from p2pnode.core.metadata import MAX_TIME_NS
from p2pnode.core.ucxl import parse_ucxl
from p2pnode.errors import Fault

OPPORTUNITY_TOPIC = "councils.forming"
MAX_ROLES = 64
MAX_NAME = 256
"""Characters."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _ucxl(text: str) -> str:
    if text:
        parse_ucxl(text)
    return text


def time_text(value: object) -> object:
    """What a time may be before it is parsed.

    Raises:
        ValueError: it is neither null nor text; pydantic would read "1700000000" as seconds since 1970.
    """
    if value is not None and not (isinstance(value, str) and value[4:5] == "-"):
        raise ValueError("must be an RFC 3339 time in a string, like 2026-11-23T09:00:00Z")
    return value


Name = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(_not_blank)]


class CouncilRole(BaseModel):
    """One seat. A plain string stands for a role of that name."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    role_name: Name
    agent_name: str = Field("", max_length=256)
    required: bool = False
    required_skills: list[Name] = Field(default_factory=list, max_length=MAX_ROLES)
    description: str = Field("", max_length=16_384)

    @field_validator("required_skills", mode="before")
    @classmethod
    def _null_is_empty(cls, value: object) -> object:
        return [] if value is None else value  # as Go writes a nil slice


class CouncilOpportunity(BaseModel):
    """WHOOSH announces that a council is forming.

    Args:
        formation_deadline: with a time zone; after it the opportunity is of no use.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    council_id: UUID
    project_name: Name
    repository: Name
    project_brief: str = Field("", max_length=65_536)
    core_roles: list[CouncilRole] = Field(min_length=1, max_length=MAX_ROLES)
    optional_roles: list[CouncilRole] = Field(default_factory=list, max_length=MAX_ROLES)
    ucxl_address: Annotated[str, AfterValidator(_ucxl)] = ""
    formation_deadline: AwareDatetime | None = None
    created_at: AwareDatetime | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @field_validator("core_roles", "optional_roles", mode="before")
    @classmethod
    def _strings_are_roles(cls, value: object) -> object:
        if value is None:
            return []
        if isinstance(value, list):
            return [{"role_name": item} if isinstance(item, str) else item for item in value]
        return value

    @field_validator("formation_deadline", "created_at", mode="before")
    @classmethod
    def _times_are_text(cls, value: object) -> object:
        return time_text(value)

    @field_validator("metadata", mode="before")
    @classmethod
    def _null_is_empty(cls, value: object) -> object:
        return {} if value is None else value  # as Go writes a nil map

    @property
    def expires_at_ns(self) -> int:
        """The deadline in nanoseconds since 1970, 0 when there is none."""
        if self.formation_deadline is None:
            return 0
        since = self.formation_deadline - datetime(1970, 1, 1, tzinfo=UTC)
        ns = (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000
        return min(max(ns, 1), MAX_TIME_NS)


def check_opportunity(document: Mapping[str, object]) -> CouncilOpportunity | list[Fault]:
    """The opportunity in a JSON object, or every fault in it."""
    try:
        opportunity = CouncilOpportunity.model_validate(document)
        opportunity.model_dump_json()
    except ValidationError as error:
        return faults_of(error)
    except ValueError as error:
        return [Fault("metadata", f"cannot be written as JSON again: {error}")]
    return opportunity


def repeated_roles(opportunity: CouncilOpportunity) -> list[Fault]:
    """Faults of what we publish ourselves; others' repeated names are numbered (`council.open_seats`)."""
    seen: dict[str, str] = {}
    faults = []
    for field, roles in (("core_roles", opportunity.core_roles), ("optional_roles", opportunity.optional_roles)):
        for index, role in enumerate(roles):
            where = f"{field}[{index}]"
            if role.role_name in seen:
                problem = f"{role.role_name!r} is {seen[role.role_name]} already; name it apart, such as "
                faults.append(Fault(f"{where}.role_name", f"{problem}{role.role_name + '-2'!r}"))
            seen.setdefault(role.role_name, where)
    return faults


def faults_of(error: ValidationError) -> list[Fault]:
    """What pydantic found, as our callers are told."""
    return [
        Fault(_path(fault["loc"]), _problem(fault["type"], fault["msg"]))
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _path(location: tuple[int | str, ...]) -> str:
    """`("core_roles", 0, "role_name")` as people write it: `core_roles[0].role_name`."""
    out = ""
    for part in location:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def _problem(kind: str, message: str) -> str:
    if kind == "missing":
        return "is missing"
    return message.removeprefix("Value error, ")
