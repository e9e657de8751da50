"""What the doctor says: findings, their order, and the words they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["failed", "degraded", "note"]
Status = Literal["healthy", "degraded", "failed"]

EXIT_CODES: Final[Mapping[Status, int]] = {"healthy": 0, "degraded": 1, "failed": 2}
MOST_EVIDENCE: Final = 12
"""Lines of one finding; what is beyond is counted."""

_ORDER: Final[Mapping[Severity, int]] = {"failed": 0, "degraded": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Args:
        code: a fixed word, by which the documentation and tests name it.
        severity: `failed`: nothing can be delivered or kept; `degraded`: it works, but not as it should; `note`.
        title: what is wrong: one sentence.
        evidence: what was seen, a line each.
        fix: what the operator is to do.
    """

    code: str
    severity: Severity
    title: str
    evidence: tuple[str, ...]
    fix: str


Findings = tuple[Finding, ...]


def order(finding: Finding) -> tuple[object, ...]:
    """The worst first, then by code; the rest makes the order of any two findings the same each time."""
    return (_ORDER[finding.severity], finding.code, finding.title, finding.evidence, finding.fix)


def status_of(findings: Iterable[Finding]) -> Status:
    """That of the worst one."""
    severities = {finding.severity for finding in findings}
    return "failed" if "failed" in severities else "degraded" if "degraded" in severities else "healthy"


def count(number: int, what: str, many: str = "") -> str:
    return f"{number} {what if number == 1 else many or what + 's'}"


def few(names: Sequence[str], most: int = 3) -> list[str]:
    return [*names[:most], f"{len(names) - most} more"] if len(names) > most + 1 else list(names)


def some(lines: Iterable[str]) -> tuple[str, ...]:
    """The first lines, each once, and how many more there are."""
    every = list(dict.fromkeys(lines))
    if len(every) <= MOST_EVIDENCE:
        return tuple(every)
    return (*every[: MOST_EVIDENCE - 1], f"and {len(every) - MOST_EVIDENCE + 1} more")
