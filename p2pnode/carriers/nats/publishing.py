"""Publishing over one connection: many at once, each finished by JetStream's PubAck or by a flush."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from p2pnode.carriers.nats.client import Answers, ApiFault, NatsClient, read_answer, status_of
from p2pnode.carriers.nats.credentials import Trouble
from p2pnode.carriers.nats.faults import SILENT, UNPUBLISHABLE, full
from p2pnode.carriers.nats.handing import Job
from p2pnode.carriers.nats.streams import Streams
from p2pnode.errors import InvalidRequest, P2PNodeError, Unavailable
from p2pnode.logs import Throttled

_FLUSH_SECONDS = 5.0
_SILENT_SECONDS = 4.0
"""A stream that has not answered by then is in trouble; callers wait 5 s."""

_UNSENT_BYTES = 16 * 1024 * 1024


class Publishing:
    """Publications of one connection.

    Args:
        finished: told of each job that has its outcome.
        store: told why a stream takes no more, and None once it took one.
        is_read: is a stream being made for this subject, because we read it?
    """

    def __init__(
        self,
        client: NatsClient,
        answers: Answers,
        finished: Callable[[Job], None],
        store: Callable[[Trouble | None], None],
        is_read: Callable[[str], bool],
    ) -> None:
        self._client = client
        self._answers = answers
        self._streams: Streams | None = None
        self._silent = False
        self._finished = finished
        self._store = store
        self._is_read = is_read
        self._jobs: set[Job] = set()
        self._flushing: list[Job] = []
        self._flush_wanted = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = Throttled(logging.getLogger(__name__), lines=1)

    def use(self, streams: Streams | None, *, silent: bool) -> None:
        """
        Args:
            silent: nobody knows whether there is JetStream: nothing is published past it.
        """
        self._streams = streams
        self._silent = silent

    async def publish(self, job: Job) -> None:
        """Send it, or find out first where it belongs; its outcome comes later. Never raises."""
        if job.abandoned:
            return
        if self._client.pending_data_size > _UNSENT_BYTES:
            self._finish(job, Unavailable("the NATS server reads too slowly", reason="nats"))
            return
        if self._silent:
            self._finish(job, Unavailable(SILENT.problem, reason="nats", hint=SILENT.fix))
            return
        self._jobs.add(job)
        held = self._streams.known(job.subject) if self._streams is not None else False
        if held is None:
            self._spawn(job)
        else:
            await self._send_to(job, held=held)

    async def flush_for_ever(self) -> None:
        """Finishes what no stream holds: one flush for all that was sent since the last."""
        while True:
            await self._flush_wanted.wait()
            self._flush_wanted.clear()
            jobs, self._flushing = self._flushing, []
            try:
                await self._client.flush(_FLUSH_SECONDS)  # type: ignore[arg-type]
                lost = not self._client.is_connected
            except (NatsError, OSError):
                lost = True
            for job in jobs:
                # A flush of a client that lost its connection returns as if all were well.
                self._finish(job, _lost() if lost else False)

    def tidy(self) -> None:
        """Forget those whose caller has gone; called every second."""
        now = asyncio.get_running_loop().time()
        for job in [each for each in self._jobs if each.abandoned]:
            self._jobs.discard(job)
            if job.reply:
                if now - job.sent > _SILENT_SECONDS:
                    self._store(_unanswered(job.subject))
                self._answers.forget(job.reply)
                if self._streams is not None:
                    self._streams.forget(job.subject)

    def deny(self, subject: str) -> None:
        """The server said that we may not publish there."""
        for job in [each for each in self._jobs if each.subject.lower() == subject.lower()]:
            self._finish(
                job,
                Unavailable(
                    f"the NATS server does not let us publish to {job.subject}",
                    reason="nats",
                    retry_after_seconds=60.0,
                    hint="allow it in the permissions of this user",
                ),
            )

    def close(self) -> None:
        """The connection is gone: nobody will answer any more."""
        for task in self._tasks:
            task.cancel()
        for job in list(self._jobs):
            self._finish(job, _lost())

    def _spawn(self, job: Job) -> None:
        task = asyncio.create_task(self._look_up(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, job: Job) -> None:
        streams = self._streams
        if streams is None:
            await self._send(job, to_stream=False)
            return
        try:
            held = await streams.holds(job.subject)
        except (ApiFault, TimeoutError, NatsError, OSError) as error:
            said = str(error) or "no answer in time"
            self._finish(job, Unavailable(f"JetStream does not say who holds {job.subject}: {said}", reason="nats"))
            return
        await self._send_to(job, held=held)

    async def _send_to(self, job: Job, *, held: bool) -> None:
        if not held and self._streams is not None and self._is_read(job.subject):
            self._finish(job, Unavailable(f"no stream holds {job.subject} yet; it is being made", reason="nats"))
            return
        await self._send(job, to_stream=held)

    async def _send(self, job: Job, *, to_stream: bool) -> None:
        job.asked += to_stream
        job.sent = asyncio.get_running_loop().time()
        reply = job.reply = self._answers.expect(partial(self._answered, job)) if to_stream else ""
        try:
            await self._client.publish(job.subject, job.body, reply=reply, headers=dict(job.headers) or None)
        except UNPUBLISHABLE as error:
            self._finish(job, InvalidRequest(f"NATS cannot carry a message to {job.subject}: {error}"))
            return
        except (NatsError, OSError):
            self._finish(job, _lost())
            return
        if not to_stream:
            self._flushing.append(job)
            self._flush_wanted.set()

    def _answered(self, job: Job, message: Msg) -> None:
        if job.outcome is not None:
            return
        if status_of(message)[0] == 503:
            # Nobody listens: the stream that held it is gone.
            if self._streams is not None:
                self._streams.forget(job.subject)
            if job.asked < 2 and not job.abandoned:
                self._spawn(job)
            else:
                self._finish(job, Unavailable(f"no stream answers for {job.subject}", reason="nats"))
            return
        try:
            stored = "seq" in read_answer(message.data)
        except ApiFault as fault:
            if fault.code:
                self._refused(job, fault)
                return
            stored = False
        if stored:
            self._store(None)
            self._finish(job, True)
            return
        # A subscriber answered, not the stream: what the stream says is still to come.
        self._log.warning("somebody answers publications who is no stream", {"subject": job.subject})
        self._answers.expect_again(job.reply, partial(self._answered, job))

    def _refused(self, job: Job, fault: ApiFault) -> None:
        trouble = full(fault)
        if trouble is not None:
            self._store(trouble)
        self._finish(
            job,
            Unavailable(
                f"JetStream does not store a message to {job.subject}: {fault.description}",
                reason="nats",
                retry_after_seconds=5.0,
                hint=trouble.fix if trouble else "",
            ),
        )

    def _finish(self, job: Job, outcome: bool | P2PNodeError) -> None:
        self._jobs.discard(job)
        if job.reply:
            self._answers.forget(job.reply)
        if job.outcome is None:
            job.outcome = outcome
            self._finished(job)


def _unanswered(subject: str) -> Trouble:
    return Trouble(
        "stream",
        f"JetStream does not acknowledge messages to {subject}",
        "check the server's log and its disk, and in a cluster whether the stream has a leader (`nats stream info`)",
    )


def _lost() -> Unavailable:
    return Unavailable(
        "the connection to NATS was lost before the message was acknowledged; it may have arrived", reason="nats"
    )
