"""Documents as the interface reference gives them."""

from __future__ import annotations

import json
from typing import Any

NOW = "2026-11-23T12:00:00.123456789Z"


def member(name: str, role: str = "chorus", **members: Any) -> dict[str, Any]:
    return {
        "peer_id": f"12D3KooW{name}",
        "name": name,
        "role": role,
        "state": "alive",
        "status": "online",
        "addrs": [f"/ip4/127.0.0.1/tcp/9000/p2p/12D3KooW{name}"],
        "connected": True,
        "direction": "outbound",
        "rtt_ms": 1.25,
        "mesh": ["councils.forming"],
        "score": 0.5,
        "agent_id": f"agent-{name}",
        "capabilities": ["go", "review"],
        "model": "llama",
        "endpoint": None,
        "cluster_id": None,
        "tasks_completed": None,
        "version": "0.1.0",
        "source": "bootstrap",
        "bridged": False,
        "carrier": None,
        "first_seen": NOW,
        "last_seen": NOW,
        "self": False,
        **members,
    }


def node(**members: Any) -> dict[str, Any]:
    return {
        **member("whoosh-1", "whoosh"),
        "self": True,
        "multiaddrs": ["/ip4/127.0.0.1/tcp/9000/p2p/12D3KooWwhoosh-1", "/ip4/10.0.0.1/tcp/9000/p2p/12D3KooWwhoosh-1"],
        "api": ["unix:/run/p2pnode/whoosh-1.sock"],
        "health": {"readiness": "delivering", "reasons": []},
        "uptime_seconds": 192.4,
        **members,
    }


def message(number: int, payload: Any = None, **members: Any) -> dict[str, Any]:
    return {
        "id": f"12D3KooWchorus-1-{number}",
        "topic": "councils.forming",
        "origin": "12D3KooWchorus-1",
        "origin_name": "chorus-1",
        "seqno": str(number),
        "published_at": NOW,
        "received_at": NOW,
        "carrier": "gossip",
        "roads": ["gossip"],
        "content_type": "application/json",
        "payload": {"number": number} if payload is None else payload,
        "headers": {},
        **members,
    }


def message_event(number: int, payload: Any = None, **members: Any) -> str:
    document = message(number, payload, **members)
    return f"id: {document['id']}\ndata: {json.dumps(document, separators=(',', ':'))}\n\n"
