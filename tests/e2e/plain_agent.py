"""An agent that knows only NATS: prints what it reads as JSON lines, publishes what it is given as such.

`python -m tests.e2e.plain_agent URL [--stored] SUBJECT…`; the first line it prints says that it is subscribed. With
`--stored` it reads what the stream of each subject holds, from the beginning.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import nats


async def main(url: str, *arguments: str) -> None:
    broker = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.2)

    async def on_message(message: Any) -> None:
        found = {"subject": message.subject, "headers": message.headers, "body": message.data.decode()}
        print(json.dumps(found), flush=True)

    subjects = [each for each in arguments if each != "--stored"]
    for subject in subjects:
        if "--stored" in arguments:
            await broker.jetstream().subscribe(subject, cb=on_message, ordered_consumer=True)
        else:
            await broker.subscribe(subject, cb=on_message)
    await broker.flush()
    print(json.dumps({"subscribed": subjects}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        given = json.loads(line)
        await broker.publish(given["subject"], given["body"].encode(), headers=given.get("headers"))
        await broker.flush()
    await broker.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
