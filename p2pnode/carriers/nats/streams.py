"""Which stream holds a subject; and the stream and the durable consumers that a bridge reads, made when missing.

Requests and answers of JetStream's API as in the NATS documentation, "JetStream wire API reference"; durations are
nanoseconds.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from p2pnode.carriers.nats.client import Answers, ApiFault
from p2pnode.carriers.nats.credentials import Trouble
from p2pnode.carriers.nats.settings import BrokerSettings
from p2pnode.carriers.nats.subjects import covers, merged, root

API: Final = "$JS.API"

_SECOND: Final = 1_000_000_000
_DUPLICATE_WINDOW_SECONDS: Final = 120
ACK_WAIT_SECONDS: Final = 10
"""How long the server waits for an acknowledgement, and so a message for the next reader after a crash."""

_INACTIVE_SECONDS: Final = 7 * 86400
_MAX_ACK_PENDING: Final = 1024
_HELD_SECONDS: Final = 60.0
_NOT_HELD_SECONDS: Final = 5.0
_REMEMBERED: Final = 1024

_NAME_IN_USE: Final = 10058
_OVERLAP: Final = 10065
_CLUSTER: Final = range(10004, 10010)
"""`err_code`s of a cluster that cannot do it now: no leader, no peers, an incomplete answer."""


class Streams:
    """JetStream of one connection."""

    def __init__(self, answers: Answers, settings: BrokerSettings) -> None:
        self._answers = answers
        self._settings = settings
        self._held: dict[str, float] = {}
        self._not_held: dict[str, float] = {}
        self._making = asyncio.Lock()

    async def available(self) -> bool | None:
        """Does the server, and our account, have JetStream? None: it has, and its cluster has no leader now.

        Raises:
            TimeoutError: no answer, as when the user may not ask.
        """
        try:
            await self._answers.ask(f"{API}.INFO")
        except ApiFault as fault:
            return None if fault.number in _CLUSTER else False
        return True

    def known(self, subject: str) -> bool | None:
        """Does a stream hold the subject; None when it must be asked (`holds`)."""
        now = time.monotonic()
        if any(now < until and covers(pattern, subject) for pattern, until in self._held.items()):
            return True
        return False if now < self._not_held.get(subject, 0.0) else None

    async def holds(self, subject: str) -> bool:
        """Ask, and remember what was told for a while.

        Raises:
            ApiFault, TimeoutError: JetStream does not answer as it should.
        """
        now = time.monotonic()
        names = await self._names(subject)
        for table in (self._held, self._not_held):
            while len(table) >= _REMEMBERED:
                del table[next(iter(table))]
        if not names:
            self._not_held[subject] = now + _NOT_HELD_SECONDS
            return False
        self._held[subject] = now + _HELD_SECONDS
        try:
            patterns = await self._subjects(names[0])
        except (ApiFault, TimeoutError):  # the user may ask for names only
            patterns = []
        for pattern in patterns[:64]:
            self._held[pattern] = now + _HELD_SECONDS
        return True

    def forget(self, subject: str) -> None:
        """What was told of this subject did not hold."""
        self._held = {pattern: until for pattern, until in self._held.items() if not covers(pattern, subject)}
        self._not_held.pop(subject, None)

    async def ensure(self, subject: str) -> str:
        """The stream that holds all of `subject`, which may have wildcards; made when there is none.

        Raises:
            ApiFault, TimeoutError: JetStream does not answer as it should.
            Trouble: `stream`: other streams are in the way.
        """
        async with self._making:
            for _ in range(3):
                names = await self._names(subject)
                for name in names:
                    if any(covers(each, subject) for each in await self._subjects(name)):
                        return name
                try:
                    return await self._make(subject)
                except ApiFault as fault:
                    if fault.number == _OVERLAP:
                        held = ", ".join(names) or "another stream"
                        raise Trouble(
                            "stream",
                            f"stream {self._settings.stream} cannot hold {subject}: {held} holds a part of it",
                            f"let one stream hold {subject}, or remove what overlaps with it",
                        ) from None
                    if fault.number != _NAME_IN_USE:
                        raise
            raise Trouble(
                "stream",
                f"stream {self._settings.stream} keeps being changed by somebody else",
                "set the same nats.stream and message age at all bridges",
            )

    async def consumer(self, stream: str, durable: str, subject: str) -> dict[str, Any]:
        """The durable pull consumer, made when missing, as patient as ours are; its state as the server tells it.

        Raises:
            ApiFault, TimeoutError: JetStream does not answer as it should.
        """
        config = {
            "durable_name": durable,
            "ack_policy": "explicit",
            "ack_wait": ACK_WAIT_SECONDS * _SECOND,
            "deliver_policy": "all",
            "filter_subject": subject,
            "inactive_threshold": _INACTIVE_SECONDS * _SECOND,
            "max_ack_pending": _MAX_ACK_PENDING,
            "max_deliver": -1,
            "replay_policy": "instant",
        }
        info = f"{API}.CONSUMER.INFO.{stream}.{durable}"
        found: dict[str, Any] | None = None
        try:
            found = dict(await self._answers.ask(info))
        except ApiFault as fault:
            if fault.code != 404:
                raise
        create = f"{API}.CONSUMER.DURABLE.CREATE.{stream}.{durable}"
        if found is not None:
            held = found.get("config") or {}
            if held.get("ack_wait") == config["ack_wait"]:
                return found
            changed = {**held, "ack_wait": config["ack_wait"]}
            try:
                return dict(await self._answers.ask(create, {"stream_name": stream, "config": changed}))
            except ApiFault:  # it works with another patience too
                return found
        try:
            return dict(await self._answers.ask(create, {"stream_name": stream, "config": config}))
        except ApiFault as fault:
            if fault.code == 503:
                raise
        try:
            return dict(await self._answers.ask(info))  # another bridge made it meanwhile
        except ApiFault:
            del config["inactive_threshold"]  # a server that does not know it for durables
            return dict(await self._answers.ask(create, {"stream_name": stream, "config": config}))

    async def _names(self, subject: str) -> list[str]:
        answer = await self._answers.ask(f"{API}.STREAM.NAMES", {"subject": subject})
        return [str(each) for each in answer.get("streams") or ()]

    async def _subjects(self, stream: str) -> list[str]:
        answer = await self._answers.ask(f"{API}.STREAM.INFO.{stream}")
        return [str(each) for each in answer["config"].get("subjects") or ()]

    async def _make(self, subject: str) -> str:
        try:
            return await self._make_with(root(subject))
        except ApiFault as fault:
            if fault.number != _OVERLAP or root(subject) == subject:
                raise
        return await self._make_with(subject)

    async def _make_with(self, subject: str) -> str:
        name = self._settings.stream
        try:
            answer = await self._answers.ask(f"{API}.STREAM.INFO.{name}")
        except ApiFault as fault:
            if fault.code != 404:
                raise
            await self._answers.ask(f"{API}.STREAM.CREATE.{name}", self._config([subject]))
            self._not_held.clear()
            return name
        config = dict(answer["config"])
        config["subjects"] = merged(config.get("subjects") or (), subject)
        await self._answers.ask(f"{API}.STREAM.UPDATE.{name}", config)
        self._not_held.clear()
        return name

    def _config(self, subjects: list[str]) -> dict[str, Any]:
        age = max(1.0, self._settings.max_age_seconds)
        return {
            "name": self._settings.stream,
            "subjects": subjects,
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "max_age": int(age * _SECOND),
            "duplicate_window": int(min(age, _DUPLICATE_WINDOW_SECONDS) * _SECOND),
            "num_replicas": 1,
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
        }
