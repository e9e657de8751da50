"""The plain NATS client of `bench.bridge`: nats-py and JSON, nothing of p2pnode; it goes on while its broker dies."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import nats
import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig
from nats.js.errors import NotFoundError

T = TypeVar("T")
STREAM: Final = "P2PNODE"
ID: Final = "Nats-Msg-Id"
ANSWER_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 0.2
BATCH: Final = 100

FAULTS: Final = (nats.errors.Error, TimeoutError, OSError)
"""What a dead broker does to a request; `NotFoundError` is a nats.errors.Error too."""


@dataclass(slots=True)
class Heard:
    """What was read of a subject.

    Args:
        numbers: the number in the payload of each message of the stream, by sequence.
        ids: its `Nats-Msg-Id`, empty without.
        again: how often JetStream handed out a message that had been handed out before.
        publications: what a core subscription saw, by number: also what the stream refused as a duplicate.
        latency_ns: from the publisher's stamp to the core subscription, of the first of each number.
    """

    numbers: dict[int, int] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)
    again: int = 0
    publications: Counter[int] = field(default_factory=Counter)
    latency_ns: list[int] = field(default_factory=list)


class PlainClient:
    """Publishes until the PubAck, reads with a durable consumer; both for as long as it takes."""

    def __init__(self, connection: NatsClient) -> None:
        self._connection = connection
        self._stream: JetStreamContext = connection.jetstream(timeout=ANSWER_SECONDS)
        self._acknowledged = 0
        self.repeated = 0
        """Publishes that had to be asked again."""

    async def publish(self, subject: str, number: int, document: dict[str, Any], message_id: str | None) -> None:
        """Returns once the stream holds it. Without an id the server knows no repetition, so the stream is searched for
        the message before it is published again."""
        since = self._acknowledged + 1
        headers = {ID: message_id} if message_id else None
        body = json.dumps(document).encode()
        while True:
            try:
                ack = await self._stream.publish(subject, body, timeout=ANSWER_SECONDS, headers=headers)
            except FAULTS:
                self.repeated += 1
            else:
                self._acknowledged = max(self._acknowledged, ack.seq)
                return
            await asyncio.sleep(AGAIN_SECONDS)
            if message_id is None and await self._held(subject, number, since):
                return

    async def _held(self, subject: str, number: int, since: int) -> bool:
        last = (await insist(lambda: self._stream.stream_info(STREAM))).state.last_seq
        for seq in range(since, last + 1):
            found = await insist(lambda seq=seq: self._message(seq))  # type: ignore[misc]
            if found is not None and found[0] == subject and found[1] == number:
                return True
        return False

    async def _message(self, seq: int) -> tuple[str, int] | None:
        try:
            raw = await self._stream.get_msg(STREAM, seq)
        except NotFoundError:
            return None
        return str(raw.subject), int(json.loads(raw.data or b"{}").get("number", -1))

    async def watch(self, subject: str, heard: Heard) -> None:
        """A core subscription: every publication while the broker lives."""

        async def note(message: Msg) -> None:
            now = time.monotonic_ns()
            document = json.loads(message.data)
            heard.publications[document["number"]] += 1
            if heard.publications[document["number"]] == 1:
                heard.latency_ns.append(now - document["at_ns"])

        await self._connection.subscribe(subject, cb=note)

    async def read(self, subject: str, durable: str, heard: Heard) -> None:
        """Everything that the stream holds of it, until cancelled."""
        config = ConsumerConfig(ack_wait=ANSWER_SECONDS)
        reader = await insist(lambda: self._stream.pull_subscribe(subject, durable, STREAM, config))
        while True:
            try:
                batch = await reader.fetch(BATCH, timeout=1)
            except FAULTS:
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            for message in batch:
                seq = message.metadata.sequence.stream
                heard.again += seq in heard.numbers
                heard.numbers[seq] = int(json.loads(message.data)["number"])
                heard.ids[seq] = (message.headers or {}).get(ID, "")
                try:
                    await message.ack_sync(timeout=ANSWER_SECONDS)
                except FAULTS:
                    continue  # it is handed out again


async def insist(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer, however often the broker dies meanwhile."""
    while True:
        try:
            return await ask()
        except FAULTS:
            await asyncio.sleep(AGAIN_SECONDS)


@asynccontextmanager
async def open_client(url: str) -> AsyncIterator[PlainClient]:
    """Connected; reconnects for ever."""

    async def quiet(error: Exception) -> None:
        """The broker is killed on purpose."""

    connection = await nats.connect(
        url, max_reconnect_attempts=-1, reconnect_time_wait=AGAIN_SECONDS, allow_reconnect=True, error_cb=quiet
    )
    try:
        yield PlainClient(connection)
    finally:
        await connection.close()
