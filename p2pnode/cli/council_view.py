"""Councils in words: rows of a table, the table of a council's roles, and what changed from one look to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from p2pnode.cli import output
from p2pnode.cli.council_asking import Council, id_of, short_ids

Role = Mapping[str, Any]

LIST_HEADER: Final = ("COUNCIL", "STATUS", "PROJECT", "CORE", "OPTIONAL", "OWNER", "UPDATED", "LEFT", "MISSING")
ROLE_HEADER: Final = ("ROLE", "KIND", "STATE", "HOLDER", "NODE", "FENCE", "CLAIMS", "SKILLS")
CLAIM_HEADER: Final = ("ROLE", "AGENT", "NODE", "FIT", "RUNNING", "CONFIDENCE", "CLAIMED")
REPORT_HEADER: Final = ("STATUS", "ROLE", "AGENT", "NODE", "SAID", "MESSAGE")

REACHED: Final = frozenset({"active", "completed"})
"""Statuses of a council that has been active."""
ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})


def roles_of(council: Council) -> list[Role]:
    roles = council.get("roles")
    return [role for role in roles if isinstance(role, Mapping)] if isinstance(roles, list) else []


def table(councils: Sequence[Council]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `council list`."""
    names, now = short_ids(councils), time.time()
    return list(LIST_HEADER), [
        [
            output.cell(names[id_of(council)]),
            output.cell(council.get("status")),
            output.cell(council.get("project_name")),
            filled(council, required=True),
            filled(council, required=False),
            output.cell(council.get("owner_name") or council.get("owner")),
            output.ago(council.get("updated_at"), now),
            left(council, now),
            output.cell(council.get("missing")),
        ]
        for council in councils
    ]


def filled(council: Council, *, required: bool) -> str:
    """`3/4`: accepted roles of one kind, and how many there are; `-` without any."""
    states = [role.get("state") for role in roles_of(council) if bool(role.get("required")) is required]
    return f"{states.count('accepted')}/{len(states)}" if states else output.UNKNOWN


def left(council: Council, now: float) -> str:
    """The time until the deadline of a council that forms: `9m41s`."""
    deadline = output.epoch_seconds(council.get("formation_deadline"))
    if council.get("status") != "forming" or deadline is None:
        return output.UNKNOWN
    return output.duration(deadline - now)


def headline(council: Council, now: float) -> str:
    """`Test Discovery: forming, 1/2 core roles, 0/1 optional, 9m41s left`."""
    parts = [output.cell(council.get("status")), f"{filled(council, required=True)} core roles"]
    if (optional := filled(council, required=False)) != output.UNKNOWN:
        parts.append(f"{optional} optional")
    if (remaining := left(council, now)) != output.UNKNOWN:
        parts.append(f"{remaining} left")
    return f"{output.cell(council.get('project_name'))}: {', '.join(parts)}"


def fields(council: Council) -> dict[str, Any]:
    """The council but its roles, as `council show` prints it."""
    remaining = left(council, time.time())
    deadline = council.get("formation_deadline")
    return {
        "council": council.get("council_id"),
        "project": council.get("project_name"),
        "repository": council.get("repository"),
        "brief": council.get("project_brief"),
        "ucxl": council.get("ucxl_address"),
        "metadata": council.get("metadata"),
        "status": council.get("status"),
        "message": council.get("message"),
        "missing": council.get("missing"),
        "owner": _named(council.get("owner_name"), council.get("owner")),
        "decision": fence(council),
        "created": council.get("created_at"),
        "updated": council.get("updated_at"),
        "deadline": deadline if remaining == output.UNKNOWN else f"{deadline} ({remaining} left)",
    }


def role_rows(council: Council) -> list[list[str]]:
    """Rows under `ROLE_HEADER`; roles of this node's agent bear a `*`."""
    mine = council.get("mine") or []
    return [
        [
            output.cell(role.get("role_name")) + ("*" if role.get("role_name") in mine else ""),
            "core" if role.get("required") else "optional",
            output.cell(role.get("state")),
            output.cell(role.get("agent_name") or role.get("agent_id")),
            output.cell(role.get("name") or role.get("peer_id")),
            fence(role),
            output.cell(role.get("claims")),
            output.cell(role.get("required_skills")),
        ]
        for role in roles_of(council)
    ]


def claim_rows(council: Council) -> list[list[str]]:
    """Rows under `CLAIM_HEADER`, in the document's order: who would get the role first."""
    now = time.time()
    return [
        [
            output.cell(claim.get("role_name")),
            output.cell(claim.get("agent_name") or claim.get("agent_id")),
            output.cell(claim.get("name") or claim.get("peer_id")),
            _share(claim.get("fit")),
            output.cell(claim.get("running_roles")),
            _share(claim.get("confidence")),
            output.ago(claim.get("claimed_at"), now),
        ]
        for claim in council.get("claims") or []
    ]


def report_rows(council: Council) -> list[list[str]]:
    """Rows under `REPORT_HEADER`."""
    now = time.time()
    return [
        [
            output.cell(report.get("status")),
            output.cell(report.get("role_name")),
            output.cell(report.get("agent_id")),
            output.cell(report.get("name") or report.get("peer_id")),
            output.ago(report.get("at"), now),
            output.cell(report.get("message")),
        ]
        for report in council.get("reports") or []
    ]


def fence(numbered: Mapping[str, Any]) -> str:
    """The fencing number `term.n`; `-` when there is none."""
    return f"{numbered.get('term')}.{numbered.get('n')}" if numbered.get("term") else output.UNKNOWN


def holder(role: Role) -> str:
    """`agent-3 on chorus-3 (1.2)`."""
    who = output.cell(role.get("agent_name") or role.get("agent_id"))
    return f"{who} on {output.cell(role.get('name') or role.get('peer_id'))} ({fence(role)})"


def changes(before: Council | None, now: Council) -> Iterator[str]:
    """What differs, a sentence for each; everything that is not as at the start when there is no `before`."""
    if before is None:
        yield f"{headline(now, time.time())}; decided by {output.cell(now.get('owner_name') or now.get('owner'))}"
    elif (before.get("term"), before.get("owner")) != (now.get("term"), now.get("owner")):
        owner = output.cell(now.get("owner_name") or now.get("owner"))
        yield f"decided by {owner} from now on, term {output.cell(now.get('term'))}"
    known = {str(role.get("role_name")): role for role in roles_of(before or {})}
    for role in roles_of(now):
        yield from _role_changes(known.get(str(role.get("role_name"))), role)
    if before is not None and before.get("status") != now.get("status"):
        message = f": {output.clean(str(now.get('message')))}" if now.get("message") else ""
        yield f"{output.cell(before.get('status'))} -> {output.cell(now.get('status'))}{message}"
    said = [_report_text(report) for report in (before or {}).get("reports") or []]
    for report in now.get("reports") or []:
        if (text := _report_text(report)) not in said:
            yield text


def _role_changes(before: Role | None, now: Role) -> Iterator[str]:
    name, state = output.cell(now.get("role_name")), now.get("state")
    held = before is not None and before.get("state") != "open"
    same_holder = held and before is not None and _assignment(before) == _assignment(now)
    if state == "open":
        if held and before is not None:
            yield f"{name}: open again, {holder(before)} has it no longer"
        elif (claims := now.get("claims") or 0) and claims != (before or {}).get("claims", 0):
            yield f"{name}: {claims} {'claim' if claims == 1 else 'claims'}"
    elif not same_holder:
        yield f"{name}: {output.cell(state)}, {holder(now)}"
    elif before is not None and before.get("state") != state:
        yield f"{name}: {output.cell(state)}, {holder(now)}"


def _assignment(role: Role) -> tuple[Any, ...]:
    return tuple(role.get(name) for name in ("peer_id", "agent_id", "term", "n"))


def _report_text(report: Mapping[str, Any]) -> str:
    who = output.cell(report.get("agent_id") or report.get("name") or report.get("peer_id"))
    role = f" ({output.clean(str(report.get('role_name')))})" if report.get("role_name") else ""
    message = f": {output.clean(str(report.get('message')))}" if report.get("message") else ""
    return f"{who}{role} reports {output.cell(report.get('status'))}{message}"


def _named(name: Any, peer_id: Any) -> str | None:
    if not name:
        return peer_id or None
    return f"{name} ({peer_id})" if peer_id else str(name)


def _share(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) else output.UNKNOWN
