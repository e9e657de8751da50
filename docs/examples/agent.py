"""An agent: claims the role it can fill in every council that forms, once each, whatever is restarted meanwhile."""

import os

from p2pnode.client import Client

AGENT = os.environ.get("CHORUS_AGENT_ID", "agent-1")
ROLE = "security-expert"

with Client() as sidecar:
    for message in sidecar.subscribe("councils.forming", name="agent", start="start"):
        council = message.payload
        roles = [*council["core_roles"], *(council.get("optional_roles") or [])]  # names, or objects with role_name
        if ROLE in [role if isinstance(role, str) else role["role_name"] for role in roles]:
            claim = {"council_id": council["council_id"], "role_name": ROLE, "agent_id": AGENT, "confidence": 0.9}
            # Made of the message alone: asked again with the same key, it must be the same claim.
            claim |= {"capabilities": ["security_review"], "claimed_at": message.document["received_at"]}
            sidecar.publish("councils.claims", claim, idempotency_key=f"{AGENT} {message.id}")
            print(f"claimed {ROLE} of {council['project_name']}", flush=True)
        message.ack()
