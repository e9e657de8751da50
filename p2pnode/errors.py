"""Every error p2pnode raises on purpose; the branch says who erred.

Caller: the agent, the operator, or code that uses this package. Peer: another
node, a broker, or whoever wrote the bytes we read. Environment: the machine,
its disks, its network. The message of each says what is wrong, where, and
what to do; `exit_code` is what a command ends with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with an input.

    Args:
        field: where, as its writer would name it (`core_roles[0].role_name`, `--listen`).
        problem: what is wrong with it and what would be right.
    """

    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class P2PNodeError(Exception):
    """Root of the tree.

    Args:
        detail: what is wrong and where.
        hint: what to do about it; empty when `detail` already says so.
    """

    exit_code = 2

    def __init__(self, detail: str, *, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.detail}\n  {self.hint}" if self.hint else self.detail


class CallerError(P2PNodeError):
    """The one who called us erred; the same call will fail again."""

    exit_code = 64


class InvalidRequest(CallerError):
    """A request with one or more faults, all of them reported at once.

    Args:
        detail: the sentence above the list.
        faults: one for each fault found, in the order of the input.
    """

    def __init__(self, detail: str, faults: Sequence[Fault] = (), *, hint: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        lines = [self.detail, *(f"  {fault}" for fault in self.faults)]
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)


class InvalidConfig(InvalidRequest):
    """The configuration cannot be used; each fault names key and source."""


class NotFound(CallerError):
    """What the request names is not there (HTTP 404)."""

    exit_code = 1


class Conflict(CallerError):
    """It contradicts what is already so: a role that somebody holds, a council that has ended (HTTP 409).

    Args:
        detail: what stands in the way, by name.
        reason: a short fixed word (`filled`, `ended`, `exists`).
        facts: what stands in the way, for programs; members of the problem document.
    """

    exit_code = 1

    def __init__(self, detail: str, *, reason: str, facts: Mapping[str, object] | None = None, hint: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.reason = reason
        self.facts = dict(facts or {})


class Forbidden(CallerError):
    """It is not this node's or agent's to do (HTTP 403)."""

    exit_code = 1


class PayloadTooLarge(CallerError):
    """A payload over the limit; nothing was stored."""


class PeerError(P2PNodeError):
    """Somebody else's bytes or behaviour are wrong."""


class InvalidMessage(PeerError):
    """Bytes that are no valid message, record or frame.

    Args:
        reason: a short fixed word for counters (`oversize`, `signature`).
        detail: what exactly was found.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


class EnvironmentFault(P2PNodeError):
    """The machine, its files or its network are in the way."""


class Unavailable(EnvironmentFault):
    """Not now; the same call may work later.

    Args:
        detail: what is missing.
        retry_after_seconds: when it is worth trying again.
        reason: a short fixed word for counters (`no-peers`).
    """

    def __init__(
        self, detail: str, *, reason: str = "unavailable", retry_after_seconds: float = 1.0, hint: str = ""
    ) -> None:
        super().__init__(detail, hint=hint)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class TooBusy(Unavailable):
    """We could not keep the promise if we accepted more now (HTTP 429)."""


class NoSidecar(P2PNodeError):
    """No sidecar answers, so nothing can be told (exit code 3)."""

    exit_code = 3


class Degraded(P2PNodeError):
    """It works, but not as asked: a wait that ran out, a thing not found (exit code 1)."""

    exit_code = 1


class StorageFull(EnvironmentFault):
    """There is no space left to store what was asked (HTTP 507); nothing of it was stored, and the rest is kept."""
