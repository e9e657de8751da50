"""An agent that knows only NATS: claims a role in each council that forms, takes it up when given, and says so."""

import asyncio
import json
import os

import nats

AGENT = os.environ.get("CHORUS_AGENT_ID", "nats-1")
ROLE = "security-expert"


async def main() -> None:
    broker = await nats.connect(os.environ.get("NATS_URL", "nats://backbeat-nats:4222"), max_reconnect_attempts=-1)

    async def say(where, council_id, **members):
        body = {"council_id": council_id, "role_name": ROLE, "agent_id": AGENT, **members}
        await broker.publish(f"chorus.councils.{council_id}.{where}", json.dumps(body).encode())

    async def on_opportunity(message):
        council = json.loads(message.data)
        roles = council["core_roles"] + (council.get("optional_roles") or [])  # names, or objects with role_name
        if ROLE in [role if isinstance(role, str) else role["role_name"] for role in roles]:
            await say("claims", council["council_id"], capabilities=["security_review"])

    async def on_status(message):
        update = json.loads(message.data)
        for seat in update.get("roles", []):
            if seat.get("agent_id") == AGENT and seat.get("state") == "assigned":
                await say("claims", update["council_id"], kind="accept", term=seat["term"], n=seat["n"])
                await say("status", update["council_id"], status=update["status"], message="at work")

    await broker.subscribe("chorus.councils.forming", cb=on_opportunity)
    await broker.subscribe("chorus.councils.*.status", cb=on_status)
    await asyncio.Event().wait()


asyncio.run(main())
