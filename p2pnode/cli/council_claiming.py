"""Who got a role that we claimed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from p2pnode.cli import output
from p2pnode.cli.council_asking import OutOfTime, follow
from p2pnode.cli.council_view import ENDED, Role, fence, holder, roles_of
from p2pnode.errors import Conflict, Degraded
from p2pnode.local.http import Client


def await_decision(client: Client, council_id: str, made: Mapping[str, Any], seconds: float) -> Role:
    """The role, once it is given to us.

    Args:
        made: what the sidecar answered to the claim: `id`, `role_name`, `agent_id`.

    Raises:
        Conflict: somebody else has it, or the council ended.
        Degraded: nobody has it yet when the time is up.
        P2PNodeError: as `follow`.
    """
    role_name, agent_id = made.get("role_name"), made.get("agent_id")
    peer_id = str(made.get("id")).rpartition("-")[0]
    council: dict[str, Any] = {}
    role: Role = {}
    try:
        for council in follow(client, council_id, _tell, deadline=time.monotonic() + seconds):
            role = next((each for each in roles_of(council) if each.get("role_name") == role_name), {})
            if role.get("state") in ("assigned", "accepted"):
                if (role.get("peer_id"), role.get("agent_id")) == (peer_id, agent_id):
                    return role
                raise Conflict(
                    f"{output.cell(role_name)}: {holder(role)}, not ours",
                    reason="filled",
                    facts=dict(role),
                    hint="the claim stands, in case the role falls vacant; `council release` takes it back",
                )
            if council.get("status") in ENDED:
                message = f": {council['message']}" if council.get("message") else ""
                raise Conflict(f"the council is {council['status']}{message}", reason="ended")
    except OutOfTime:
        pass
    owner = output.cell(council.get("owner_name") or council.get("owner"))
    raise Degraded(
        f"{output.cell(role_name)} is nobody's after {seconds:g} s: {output.cell(role.get('claims'))} claims, "
        f"and {owner} decides (decision {fence(council)})",
        hint=f"the claim stands; follow it with `p2pnode council watch {council_id}`",
    ) from None


def _tell(why: str) -> None:
    output.note(f"{why}; reconnecting" if why else "reconnected")
