"""One connection in use: subscriptions, consumers and publications, until it is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final, Protocol

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from p2pnode.carriers.nats.client import INLINE_STATUS, Answers, ApiFault, NatsClient
from p2pnode.carriers.nats.credentials import Trouble
from p2pnode.carriers.nats.faults import SILENT, full
from p2pnode.carriers.nats.handing import Delivery, Job, Reading, Watch
from p2pnode.carriers.nats.publishing import Publishing
from p2pnode.carriers.nats.pulling import Pulling
from p2pnode.carriers.nats.settings import BrokerSettings
from p2pnode.carriers.nats.streams import API, Streams
from p2pnode.carriers.nats.subjects import covers
from p2pnode.logs import Throttled
from p2pnode.ports.roads import NatsMessage

_TICK_SECONDS: Final = 1.0
_ASK_AGAIN_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class Owner(Protocol):
    """Whoever keeps connecting; called on the asyncio loop."""

    def changed(self, *, jetstream: bool | None, trouble: Trouble | None) -> None:
        """JetStream came or went, or works less well than wanted (`trouble`)."""

    def heard(self, watch: Watch, message: NatsMessage) -> None: ...

    def deliver(self, reading: Reading, delivery: Delivery) -> None: ...

    def finished(self, job: Job) -> None: ...


class Session:
    """What one connection does. `run` returns when the connection is gone, or is cancelled."""

    def __init__(self, client: NatsClient, settings: BrokerSettings, owner: Owner, gone: asyncio.Event) -> None:
        self._client = client
        self._settings = settings
        self._owner = owner
        self._gone = gone
        self._answers = Answers(client)
        self._streams = Streams(self._answers, settings)
        self._jetstream: bool | None = None if settings.jetstream != "off" else False
        self._troubles: dict[str, Trouble] = {}
        self._publishing = Publishing(
            client, self._answers, owner.finished, partial(self._trouble, "store"), self._is_read
        )
        self._watched: set[Watch] = set()
        self._readings: set[Reading] = set()
        self._refused: set[Reading] = set()
        self._is_barred = False
        self._pulling: dict[str, Pulling] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = Throttled(log, lines=2)

    async def open(self, watches: list[Watch], readings: list[Reading]) -> None:
        """Everything subscribed, and known whether there is JetStream, as far as the server answers.

        Raises:
            NatsError, OSError: the connection is gone.
        """
        await self._answers.open()
        for watch in watches:
            await self.watch(watch)
        if self._jetstream is None:
            await self._look_for_jetstream()
        self._tell()
        for reading in readings:
            self.read(reading)

    async def run(self) -> None:
        self._start(self._publishing.flush_for_ever())
        if self._settings.jetstream != "off":
            self._start(self._watch_jetstream())
        # `gone` is set by a callback that nats-py calls last, after steps that may hang; `is_closed` is true at once.
        while not self._gone.is_set() and not self._client.is_closed:
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._gone.wait()
            except TimeoutError:
                await self._tidy()

    async def close(self) -> None:
        """Ends what runs; what is not finished is given back or failed. Within a second."""
        self._publishing.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=0.5)

    async def watch(self, watch: Watch) -> None:
        if watch in self._watched:
            return
        self._watched.add(watch)
        await self._client.subscribe(watch.subject, cb=partial(self._heard, watch), pending_bytes_limit=0)

    def read(self, reading: Reading) -> None:
        if self._settings.jetstream != "off" and reading not in self._readings:
            self._readings.add(reading)
            self._start(self._read_for_ever(reading))

    async def publish(self, job: Job) -> None:
        await self._publishing.publish(job)

    def denied(self, subject: str, *, publishing: bool) -> None:
        """The server does not allow it."""
        if (subject == f"{API}.INFO".lower()) if publishing else subject.startswith(self._answers.prefix.lower()):
            self._is_barred = True  # for us there is no JetStream
        if publishing:
            self._publishing.deny(subject)
            return
        self._log.warning("the NATS server does not let us subscribe", {"subject": subject})
        if any(each.subject.lower() == subject for each in self._watched):
            problem = f"the NATS server does not let us subscribe to {subject}"
            fix = "allow it in the permissions of this user"
            self._trouble(f"subscribe {subject}", Trouble("authorization", problem, fix))

    async def _heard(self, watch: Watch, message: Msg) -> None:
        headers = {name: value for name, value in (message.headers or {}).items() if name != INLINE_STATUS}
        self._owner.heard(watch, NatsMessage(message.subject, headers, message.data))

    async def _watch_jetstream(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS if self._jetstream is None else _ASK_AGAIN_SECONDS)
            if not self._jetstream:
                await self._look_for_jetstream()
                self._tell()

    async def _look_for_jetstream(self) -> None:
        try:
            self._jetstream = await self._streams.available()
        except TimeoutError:
            self._jetstream = False if self._is_barred else None
        self._publishing.use(self._streams if self._jetstream else None, silent=self._jetstream is None)

    def _is_read(self, subject: str) -> bool:
        """Is there to be a stream for it, as soon as the server makes it?"""
        return any(covers(each.subject, subject) for each in self._readings - self._refused)

    async def _read_for_ever(self, reading: Reading) -> None:
        while True:
            opened = partial(self._opened, reading)
            pulling = Pulling(self._client, self._answers, self._streams, reading, self._owner.deliver, opened)
            self._pulling[reading.name] = pulling
            trouble: Trouble | None = None
            try:
                if self._jetstream:
                    await pulling.run()
            except ApiFault as fault:
                if fault.code == 503:
                    await self._look_for_jetstream()
                    self._tell()
                else:
                    problem = f"JetStream does not let us read {reading.subject}: {fault.description}"
                    fix = "check its streams with `nats stream ls`, and our permissions"
                    trouble = full(fault)
                    if trouble is None:
                        trouble = Trouble("stream", problem, fix)
                        self._refused.add(reading)
            except Trouble as fault:
                trouble = fault
                self._refused.add(reading)
            except TimeoutError:
                problem = f"JetStream does not answer for {reading.subject}"
                trouble = Trouble("stream", problem, "check the server's log, and whether this user may use $JS.API")
            except (NatsError, OSError):
                return
            if trouble is not None:
                self._trouble(f"read {reading.subject}", trouble)
                self._log.warning(trouble.problem, {"code": trouble.code, "fix": trouble.fix})
            await asyncio.sleep(_ASK_AGAIN_SECONDS if trouble or not self._jetstream else _TICK_SECONDS)

    def _opened(self, reading: Reading) -> None:
        self._refused.discard(reading)
        self._trouble(f"read {reading.subject}", None)

    async def _tidy(self) -> None:
        self._publishing.tidy()
        try:
            for pulling in list(self._pulling.values()):
                await pulling.tidy()
        except (NatsError, OSError):
            return

    def _trouble(self, key: str, trouble: Trouble | None) -> None:
        if trouble is None:
            if self._troubles.pop(key, None) is None:
                return
        else:
            self._troubles[key] = trouble
        self._tell()

    def _tell(self) -> None:
        trouble = next(iter(self._troubles.values()), None)
        if self._jetstream is None:
            trouble = SILENT
        if self._settings.jetstream == "on" and self._jetstream is False:
            trouble = Trouble(
                "jetstream-off",
                "the NATS server has no JetStream, or not for this user; core NATS is used, which keeps nothing",
                "switch JetStream on at the server (`nats-server -js`), or set nats.jetstream to auto",
            )
        self._owner.changed(jetstream=self._jetstream, trouble=trouble)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, NatsError | OSError):
            log.error("NATS: a task of the connection ended", exc_info=error)
            self._gone.set()
