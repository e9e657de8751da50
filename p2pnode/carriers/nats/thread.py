"""An asyncio loop in a thread of its own, beside trio.

What anyio's portal does, with one wake-up of either loop for many messages at a time. asyncio's
`CancelledError` cannot reach trio: what crosses is plain values, never a future.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

import trio

log = logging.getLogger(__name__)

_WINDING_UP_SECONDS: Final = 0.5


class AsyncioThread:
    """One run of a coroutine on an asyncio loop in a thread of its own.

    Args:
        main: runs until `stop` is called; it is then expected to end within a second.
        name: of the thread.
    """

    def __init__(self, main: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._main = main
        self._loop: asyncio.AbstractEventLoop = _Loop()
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.crash: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def call_soon(self, function: Callable[..., None], *args: Any) -> None:
        """Call on the asyncio loop; does nothing once that is closed. From any thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    def call_trio_soon(self, function: Callable[[], None]) -> None:
        """Call on the trio loop, once however often it was asked for meanwhile. From any thread."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, idempotent=True)

    async def ended(self) -> None:
        """Returns once the coroutine ended; `crash` says what it raised."""
        await self._ended.wait()

    def join(self, timeout_seconds: float) -> bool:
        """Is the thread gone? Called after `ended`, when nothing but its last instructions is left."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        loop = self._loop
        try:
            loop.set_exception_handler(_note)
            loop.run_until_complete(self._main())
        except BaseException as error:
            self.crash = error
        finally:
            try:
                _wind_up(loop)
            finally:
                self.call_trio_soon(self._ended.set)


def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=_WINDING_UP_SECONDS))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _note(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a task of nats-py left behind when its connection broke; nothing waits for it."""
    log.debug("NATS client: %s", context.get("message"), exc_info=context.get("exception"))


class _Loop(asyncio.SelectorEventLoop):
    """Resolves names in daemon threads, one at a time for each name: a resolver that hangs must hold up neither the
    end of the process nor pile up threads."""

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        what = (host, port, family, type, proto, flags)
        pending = self._lookups.get(what)
        if pending is None:
            pending = self._lookups[what] = self.create_future()
            threading.Thread(target=self._look_up, args=(what, pending), name="nats-resolver", daemon=True).start()
        return await asyncio.shield(pending)

    def _look_up(self, what: tuple[Any, ...], pending: asyncio.Future[Any]) -> None:
        host, port, family, type, proto, flags = what
        found: Any = None
        error: OSError | None = None
        try:
            found = socket.getaddrinfo(host, port, family, type, proto, flags)
        except OSError as fault:
            error = fault
        except UnicodeError:
            error = socket.gaierror(socket.EAI_NONAME, f"{host!r} is no host name")
        with contextlib.suppress(RuntimeError):
            self.call_soon_threadsafe(self._looked_up, what, pending, found, error)

    def _looked_up(
        self, what: tuple[Any, ...], pending: asyncio.Future[Any], found: Any, error: OSError | None
    ) -> None:
        self._lookups.pop(what, None)
        if error is None:
            pending.set_result(found)
            return
        pending.set_exception(error)
        pending.exception()  # nobody may be waiting any more
