"""The JSON documents of the local API, as the interface reference fixes them."""

from __future__ import annotations

import base64

from p2pnode.core.membership.record import Member
from p2pnode.core.message import SignedMessage, format_message_id
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.ports import Entry, JsonObject, Link
from p2pnode.wire.payload import decode_payload, format_time, parse_json


def message_document(entry: Entry, message: SignedMessage, origin_name: str | None) -> JsonObject:
    """One stored message for the agent.

    `payload` is JSON where it is JSON, else base64 with `encoding`. `late`: a message of the same origin and topic that
    follows this one was handed over before it. `roads`: of an own message, those that took it so far; of another's, the
    one it came by.
    """
    payload = decode_payload(message.data)
    metadata = payload.metadata
    document: JsonObject = {
        "id": format_message_id(message.id),
        "topic": message.topic,
        "origin": peer_id_text(message.origin),
        "origin_name": origin_name,
        "seqno": str(message.number),
        "published_at": format_time(metadata.published_at_ns) if metadata and metadata.published_at_ns else None,
        "expires_at": format_time(metadata.expires_at_ns) if metadata and metadata.expires_at_ns else None,
        "received_at": format_time(entry.received_at_ns),
        "carrier": entry.carrier,
        "roads": list(entry.roads) if entry.own else [entry.carrier],
        "late": entry.late,
        "content_type": payload.content_type or "application/octet-stream",
        "headers": dict(metadata.headers) if metadata else {},
    }
    if payload.document is not None:
        document["payload"] = payload.document
        return document
    media_type = payload.content_type.partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            document["payload"] = parse_json(payload.body)
        except ValueError:
            pass
        else:
            return document
    document["payload"] = base64.b64encode(payload.body).decode("ascii")
    document["encoding"] = "base64"
    return document


def member_document(
    member: Member,
    link: Link | None,
    *,
    is_self: bool,
    bridged: bool,
    same_name: bool,
    rtt_ms: float | None,
    mesh: list[str],
    score: float | None,
    source: str | None,
    now_ns: int,
) -> JsonObject:
    """One member, at wall time `now_ns`. What is not known is null, never a made-up zero.

    Args:
        bridged: it lives beyond a bridge: known here, and never dialled.
        source: by which source of discovery it was found; None: as the membership says.
    """
    record = member.record
    return {
        "peer_id": record.peer_id,
        "name": record.name,
        "same_name": same_name,
        "role": record.role,
        "state": member.state.value,
        "status": record.status,
        "self": is_self,
        "addrs": list(record.addrs),
        "connected": is_self or link is not None,
        "bridged": bridged,
        "direction": link.direction if link else None,
        "rtt_ms": round(rtt_ms, 3) if rtt_ms is not None else None,
        "mesh": mesh,
        "score": score,
        "agent_id": record.agent_id or None,
        "capabilities": list(record.capabilities),
        "model": record.model or None,
        "endpoint": record.endpoint or None,
        "carrier": record.carrier or None,
        "cluster_id": record.cluster_id or None,
        "tasks_completed": record.tasks_completed,
        "current_team": record.current_team or None,
        "version": record.version or None,
        "source": source or member.source,
        "first_seen": format_time(member.first_seen_ns),
        "last_seen": format_time(now_ns if is_self or link is not None else member.last_seen_ns),
        "incarnation": record.incarnation,
    }


def stranger_document(link: Link, *, rtt_ms: float | None, mesh: list[str], score: float | None) -> JsonObject:
    """A connected peer that has no member record: a stock libp2p peer, or one not introduced yet."""
    return {
        "peer_id": link.peer,
        "name": None,
        "same_name": False,
        "role": None,
        "state": "alive",
        "status": None,
        "self": False,
        "addrs": [link.addr] if link.addr else [],
        "connected": True,
        "bridged": False,
        "direction": link.direction,
        "rtt_ms": round(rtt_ms, 3) if rtt_ms is not None else None,
        "mesh": mesh,
        "score": score,
        "agent_id": None,
        "capabilities": [],
        "model": None,
        "endpoint": None,
        "carrier": None,
        "cluster_id": None,
        "tasks_completed": None,
        "current_team": None,
        "version": None,
        "source": "inbound" if link.direction == "inbound" else "gossip",
        "first_seen": None,
        "last_seen": None,
        "incarnation": None,
    }


def peer_order(document: JsonObject) -> tuple[str, str, PeerId]:
    """Rows in the same order at every call: role, name, peer id; strangers last."""
    return (document["role"] or "~", document["name"] or "~", document["peer_id"])
