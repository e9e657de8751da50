"""The asyncio side: connects, stays connected, and begins anew with a fresh client whenever a connection ends.

nats-py's own reconnecting is not used: it ends for good at errors that a stranger can cause, and keeps in memory what
the caller believes sent. A fresh client for each connection has one way to fail, and it is this loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from nats.errors import Error as NatsError
from nats.errors import NoServersError, SlowConsumerError

from p2pnode.carriers.nats.client import NatsClient
from p2pnode.carriers.nats.credentials import Credentials, Trouble, read_credentials, tls_context
from p2pnode.carriers.nats.faults import explain, shown
from p2pnode.carriers.nats.handing import Delivery, Inbox, Job, Reading, Watch
from p2pnode.carriers.nats.session import Session
from p2pnode.carriers.nats.settings import BrokerSettings
from p2pnode.errors import Unavailable
from p2pnode.ports.roads import BrokerState, NatsMessage

_RECONNECT_SECONDS: Final = 1.0
_CONNECT_SECONDS: Final = 3.0
_ATTEMPT_SECONDS: Final = 8.0
_PING_SECONDS: Final = 10
_SERVERS: Final = 16
_AGAIN_SECONDS: Final = 60.0
_DENIED: Final = re.compile(r"permissions violation for (publish|subscription) to \"(\S+?)\"", re.IGNORECASE)

log = logging.getLogger("p2pnode.carriers.nats")


class Connection:
    """Everything here runs on the asyncio loop, except where it says otherwise.

    Args:
        deliver: hands a consumer's message over to trio.
        finished: tells trio that a job has its outcome.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        inbox: Inbox,
        deliver: Callable[[Reading, Delivery], None],
        finished: Callable[[Job], None],
        watches: list[Watch],
        readings: list[Reading],
    ) -> None:
        self._settings = settings
        self._inbox = inbox
        self.deliver = deliver
        self.finished = finished
        self._watches = watches
        self._readings = readings
        self._discovered: dict[str, str] = {}
        self._handshake_first: set[str] = set()
        self._client: NatsClient | None = None
        self._session: Session | None = None
        self._session_ready = False
        self._stopping = asyncio.Event()
        self._waiting: deque[Job] = deque()
        self._looking = False
        self._told: dict[str, float] = {}
        self._lost: str | None = None
        self._last_error: BaseException | None = None
        self.state = BrokerState(server=shown(settings.servers[0]) if settings.servers else "")
        self._url = self.state.server
        self.counts: Counter[str] = Counter()
        self.max_payload = 0

    async def run(self) -> None:
        """Until `stop`."""
        work = asyncio.create_task(self._stay_connected())
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        while not work.done():
            work.cancel()  # again, because nats-py swallows it in places
            await asyncio.wait((work,), timeout=1.2)
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error

    def stop(self) -> None:
        self._stopping.set()

    # --- what trio asks for, by call_soon ---

    def look(self) -> None:
        """Jobs wait in `submitted`; called once for many of them."""
        if self._looking:
            return
        self._looking = True
        asyncio.get_running_loop().create_task(self._send_waiting())

    def submit(self, job: Job) -> None:
        """From the trio loop; `look` is to be called then."""
        self._waiting.append(job)

    def subscribe(self) -> None:
        """Watches or readings were added."""
        if self._session is not None and self._session_ready:
            asyncio.get_running_loop().create_task(self._subscribe(self._session))

    async def _subscribe(self, session: Session) -> None:
        try:
            for watch in list(self._watches):
                await session.watch(watch)
            for reading in list(self._readings):
                session.read(reading)
        except (NatsError, OSError):
            return

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                job = self._waiting.popleft()
                if self._session is None or not self._session_ready:
                    job.outcome = Unavailable("NATS is not connected", reason="nats")
                    self.finished(job)
                else:
                    await self._session.publish(job)
        finally:
            self._looking = False
            if self._waiting:
                self.look()

    # --- what the session tells ---

    def changed(self, *, jetstream: bool | None, trouble: Trouble | None) -> None:
        was = self.state
        code, problem, fix = (trouble.code, trouble.problem, trouble.fix) if trouble else ("", "", "")
        self.state = BrokerState(True, self._url, jetstream, code, problem, fix)
        if was.jetstream is not jetstream or not was.connected:
            if jetstream is False and self._settings.jetstream != "off":
                log.warning(
                    "NATS has no JetStream: core NATS is used, which keeps nothing", extra={"server": was.server}
                )
            elif jetstream and was.jetstream is False:
                log.info("NATS has JetStream again", extra={"server": self._url})

    def heard(self, watch: Watch, message: NatsMessage) -> None:
        self._inbox.put(watch, message)

    # --- connecting ---

    async def _stay_connected(self) -> None:
        while True:
            for server in self._rotation():
                if await self._once(server):
                    break  # it stood: begin again with the first
            await asyncio.sleep(_RECONNECT_SECONDS * random.uniform(0.75, 1.25))

    def _rotation(self) -> list[str]:
        configured = list(self._settings.servers)
        return configured + [each for each in self._discovered if each not in configured]

    async def _once(self, server: str) -> bool:
        """One attempt, and the connection that comes of it; was there one?"""
        url = shown(server)
        gone = asyncio.Event()
        self._last_error = None
        credentials: Credentials | None = None
        client = NatsClient()
        session: Session | None = None
        stood = False
        try:
            credentials = read_credentials(self._settings)
            first = server in self._handshake_first
            client = NatsClient(refuse_plaintext=server.startswith("tls://") and not first)
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                await client.connect(**self._options(server, credentials, gone, first))
            if not client.is_connected:
                raise self._last_error or ConnectionResetError("it closed the connection while we were connecting")
            session = self._session = Session(client, self._settings, self, gone)
            self._client = client
            self.max_payload = client.max_payload
            self._discover(client, server)
            self._url = url
            for reading in self._readings:
                reading.caught_up, reading.pending = False, 0
            await session.open(list(self._watches), list(self._readings))
            stood = self._session_ready = True
            self._connected(url)
            await self._subscribe(session)
            await session.run()
            raise client.last_error or self._last_error or ConnectionResetError("the server closed the connection")
        except Exception as error:
            self._fell(server, url, stood, self._cause(error), credentials)
        finally:
            self._session, self._session_ready, self._client = None, False, None
            if session is not None:
                await session.close()
            await client.end()
        return stood

    def _options(
        self, server: str, credentials: Credentials, gone: asyncio.Event, handshake_first: bool
    ) -> dict[str, Any]:
        settings = self._settings
        options: dict[str, Any] = {
            "servers": [server],
            "name": settings.name,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": _CONNECT_SECONDS,
            "ping_interval": _PING_SECONDS,
            "max_outstanding_pings": 2,
            "pending_size": 0,
            "tls_handshake_first": handshake_first,
            "error_cb": self._error,
            "closed_cb": partial(_set, gone),
            **credentials.options,
        }
        if server.startswith("tls://") or settings.tls_ca_file or settings.tls_cert_file:
            options["tls"] = tls_context(settings)
        if name := self._discovered.get(server):
            options["tls_hostname"] = name
        return options

    async def _error(self, error: Exception) -> None:
        if isinstance(error, SlowConsumerError) or "slow consumer" in str(error).lower():
            self.counts["slow-consumer"] += 1
        if denied := _DENIED.search(str(error)):
            if self._session is not None:
                self._session.denied(denied[2], publishing=denied[1].lower() == "publish")
            return
        self._last_error = error

    def _discover(self, client: NatsClient, server: str) -> None:
        """Other servers of the cluster, as the server tells; by address, so their certificates name this one's host."""
        scheme, host = urlsplit(server).scheme, self._discovered.get(server) or urlsplit(server).hostname or ""
        for each in client.discovered_servers[:_SERVERS]:
            while len(self._discovered) >= _SERVERS:
                del self._discovered[next(iter(self._discovered))]
            self._discovered[f"{scheme}://{each.netloc}"] = host

    def _connected(self, url: str) -> None:
        extra = {"server": url, "jetstream": self.state.jetstream}
        self._told.clear()
        if self._lost is None:
            log.info("NATS connected", extra=extra)
            return
        self.counts["reconnected"] += 1
        log.info("NATS reconnected", extra={**extra, "reason": self._lost})

    def _cause(self, error: BaseException) -> BaseException:
        """nats-py says that it has no server left, and before that why."""
        return self._last_error or error if isinstance(error, NoServersError) else error

    def _fell(self, server: str, url: str, stood: bool, error: BaseException, credentials: Credentials | None) -> None:
        trouble = explain(error, url, self._settings, credentials, stood=stood)
        if not stood and server.startswith("tls://"):
            # A server may wait for the TLS handshake and say nothing before it; and the other way round.
            if server in self._handshake_first:
                if isinstance(error, TimeoutError) or trouble.code == "plaintext":
                    self._handshake_first.discard(server)
                if trouble.code == "plaintext":
                    return  # or it speaks first: the next attempt tells
            elif isinstance(error, TimeoutError) or "expecting INFO" in str(error):
                self._handshake_first.add(server)
                log.debug("trying TLS first", extra={"server": url})
        if stood:
            self.counts["disconnected"] += 1
            log.warning("NATS disconnected", extra={"server": url, "reason": trouble.problem})
        self._lost = trouble.problem if stood or self._lost is None else self._lost
        self.state = BrokerState(False, url, None, trouble.code, trouble.problem, trouble.fix)
        if not stood or trouble.code != "unreachable":
            self._say(trouble)

    def _say(self, trouble: Trouble) -> None:
        """Once a minute for each kind."""
        now = time.monotonic()
        if now < self._told.get(trouble.code, 0.0):
            return
        self._told[trouble.code] = now + _AGAIN_SECONDS
        level = logging.WARNING if trouble.code == "unreachable" else logging.ERROR
        log.log(level, f"NATS: {trouble.problem}", extra={"code": trouble.code, "fix": trouble.fix})


async def _set(event: asyncio.Event) -> None:
    event.set()
