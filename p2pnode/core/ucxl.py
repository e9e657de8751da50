"""UCXL addresses: `ucxl://agent:role@project:task/temporal/path`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = r"[A-Za-z0-9_-]+"
_TEMPORAL = r"\*\^|\*~[0-9]*|~~[0-9]+|\^\^[0-9]+"
_ADDRESS = re.compile(
    rf"ucxl://(?P<agent>{_NAME}):(?P<role>{_NAME})@(?P<project>{_NAME}):(?P<task>{_NAME})"
    rf"/(?P<temporal>{_TEMPORAL})(?:/(?P<path>[A-Za-z0-9_\-/.]*))?"
)


@dataclass(frozen=True, slots=True)
class UcxlAddress:
    """The parts of an address; `any` stands for anyone in the first four.

    Args:
        temporal: `*^` latest, `*~` any, `*~N`, `~~N` back, `^^N` forward.
        path: without the leading slash; may be empty.
    """

    agent: str
    role: str
    project: str
    task: str
    temporal: str
    path: str

    def __str__(self) -> str:
        return f"ucxl://{self.agent}:{self.role}@{self.project}:{self.task}/{self.temporal}/{self.path}"


def parse_ucxl(text: str) -> UcxlAddress:
    """
    Raises:
        ValueError: it is none; the message shows the form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError("not a UCXL address of the form ucxl://agent:role@project:task/temporal/path")
    return UcxlAddress(**{name: value or "" for name, value in match.groupdict().items()})
