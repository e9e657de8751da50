"""What the client asks about the roads that messages take, and about bridges; no I/O."""

from __future__ import annotations

from typing import Any, Final, Literal, TypedDict

from p2pnode.client.asking import Steps, checked, document, query, send_json

CARRIERS: Final = "/api/v1/carriers"

Use = Literal["off", "fallback", "always"]


class CarrierFields(TypedDict, total=False):
    """What may be changed until the sidecar's next start.

    Args:
        canary_percent: of the councils, 0 to 100.
        rollback: the only road that own messages take; None: no rollback.
    """

    gossip: Use
    nats: Use
    http: Use
    canary_percent: float
    rollback: Literal["nats", "http"] | None


def carriers(timeout: float) -> Steps[dict[str, Any]]:
    return document((yield from query(CARRIERS, timeout)))


def set_carriers(fields: CarrierFields, timeout: float) -> Steps[dict[str, Any]]:
    return send_json("PATCH", CARRIERS, checked(fields, CarrierFields), timeout)


def bridge(timeout: float) -> Steps[dict[str, Any]]:
    return document((yield from query("/api/v1/bridge", timeout)))
