"""Council and agent documents as the sidecar's methods give them, and streams of them."""

from __future__ import annotations

import json
from typing import Any

from tests.cli.documents import NOW
from tests.local.fake import Answer, event_stream

ID = "6f1b2c3d-0000-4000-8000-000000000001"
OTHER_ID = "6f1b2c3d-0000-4000-8000-000000000002"
THIRD_ID = "77777777-0000-4000-8000-000000000003"

COUNCILS = "/api/v1/councils"
ONE = f"{COUNCILS}/{ID}"
EVENTS = f"{ONE}/events"


def role(name: str, agent: str = "", *, number: tuple[int, int] = (1, 2), **members: Any) -> dict[str, Any]:
    """An open role, or one that `agent` accepted under a fencing number."""
    held = {
        "state": "accepted",
        "agent_id": agent,
        "agent_name": f"Agent {agent}",
        "peer_id": f"12D3KooW{agent}",
        "name": f"node-{agent}",
        "term": number[0],
        "n": number[1],
    }
    return {
        "role_name": name,
        "required": True,
        "required_skills": [],
        "description": "",
        "state": "open",
        "agent_id": None,
        "agent_name": None,
        "peer_id": None,
        "name": None,
        "term": None,
        "n": None,
        "claims": 0,
        **(held if agent else {}),
        **members,
    }


def council(*roles: dict[str, Any], **members: Any) -> dict[str, Any]:
    given = list(roles) or [role("tpm"), role("architect", required_skills=["go", "review"])]
    return {
        "council_id": ID,
        "project_name": "Test Discovery",
        "repository": "https://example.org/test",
        "project_brief": "Find all of them.",
        "ucxl_address": "",
        "formation_deadline": "2999-01-01T00:00:00Z",
        "created_at": NOW,
        "metadata": {},
        "status": "forming",
        "message": "",
        "term": 1,
        "n": 1,
        "owner": "12D3KooWwhoosh-1",
        "owner_name": "whoosh-1",
        "updated_at": NOW,
        "roles": given,
        "missing": [each["role_name"] for each in given if each["required"] and each["state"] != "accepted"],
        "mine": [],
        "reports": [],
        **members,
    }


def stream(*documents: dict[str, Any]) -> Answer:
    """A stream of council documents that the sidecar ends after the last one."""
    return event_stream("retry: 1000\n\n", *(event(each) for each in documents))


def event(document: dict[str, Any]) -> str:
    return f"event: council\ndata: {json.dumps(document, separators=(',', ':'))}\n\n"


def agent(name: str, **members: Any) -> dict[str, Any]:
    return {
        "agent_id": f"agent-{name}",
        "name": name,
        "status": "idle",
        "capabilities": ["go", "review"],
        "model": "llama",
        "endpoint": "",
        "cluster_id": "docker-unified-stack",
        "current_team": None,
        "tasks_completed": 3,
        "p2p_addr": "10.0.0.1:9000",
        "last_seen": NOW,
        "peer_id": f"12D3KooW{name}",
        "backbeat": None,
        **members,
    }
