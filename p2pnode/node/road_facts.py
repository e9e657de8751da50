"""The roads and the bridge as the doctor's facts, out of the documents that the API shows of them."""

from __future__ import annotations

from p2pnode.core.facts import BridgeFacts, BrokerFacts, Refusal, RoadFacts, RoadsFacts
from p2pnode.core.routing import ROADS
from p2pnode.ports import JsonObject
from p2pnode.wire.payload import parse_time


def roads_facts(document: JsonObject, *, plain: int, bridged: bool, carried: bool, is_bridge: bool) -> RoadsFacts:
    """
    Args:
        document: `ports.Sidecar.carriers`.
        plain: messages of plain NATS clients that came by.
        bridged, carried: as in `RoadsFacts`.
        is_bridge: NATS is used whatever the roads of own messages are.
    """
    roads: dict[str, RoadFacts] = {name: _road(document[name]) for name in ROADS}
    broker = document["broker"]
    if roads["nats"].use == "off" and not is_bridge:
        broker = None
    return RoadsFacts(
        roads,
        document["rollback"] or "",
        document["waiting"],
        None if broker is None else _broker(broker),
        plain,
        bridged,
        carried,
    )


def _road(document: JsonObject) -> RoadFacts:
    return RoadFacts(document["use"], document["state"] in ("ready", "active", "trouble"), document["why"])


def _broker(document: JsonObject) -> BrokerFacts:
    return BrokerFacts(*(document[name] for name in ("server", "connected", "code", "problem", "fix")))


def bridge_facts(document: JsonObject, *, trusted: bool, now_ns: int) -> BridgeFacts:
    """
    Args:
        document: `ports.Sidecar.bridge`.
        trusted: an opportunity signed with the import key counts.
    """
    return BridgeFacts(
        document["import_key"],
        {each["name"] or each["peer_id"]: each["import_key"] for each in document["bridges"]},
        trusted,
        document["lag_seconds"],
        sum(each["pending"] for each in document["exports"]),
        document["troubled"],
        tuple(
            Refusal(each["subject"], each["reason"], each["detail"], (now_ns - parse_time(each["at"])) / 1e9)
            for each in document["last_refused"]
        ),
    )
