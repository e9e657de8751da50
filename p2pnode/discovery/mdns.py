"""Multicast DNS as a source of peers: whoever announces itself on the local network.

Source: libp2p specifications, discovery/mdns.md (revision 2). The work is done in a thread of its own, which alone
loads zeroconf (`mdns_worker`, `mdns_responder`); here is what the event loop sees of it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from threading import Lock
from typing import TYPE_CHECKING

import trio

from p2pnode.core.peerid import PeerId
from p2pnode.discovery.mdns_records import peer_name, service_name
from p2pnode.discovery.mdns_table import Table
from p2pnode.errors import P2PNodeError
from p2pnode.ports import Method, Place, Report, SourceReport, Trouble

if TYPE_CHECKING:
    from p2pnode.discovery.mdns_worker import News

__all__ = ["MdnsSource", "network_fingerprint"]

log = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
"""Pause between two looks at our own announced addresses."""

RESTART_SECONDS = 5.0
MOST_RESTART_SECONDS = 60.0
"""Pause after a failure; twice as long after each further one, up to the second."""

BY_ADDRESS = "interfaces of announced addresses"
"""Subject of a source whose interfaces the operator did not name: which they are may change while it runs."""


def network_fingerprint(key: bytes) -> str:
    """What names a private network without telling its key: 32 hexadecimal digits.

    SHAKE-128, 16 bytes, of the first 64 bytes of the Salsa20 stream under the key and the nonce `finprint`. The
    specifications leave it open; this is what kubo prints as "Swarm key fingerprint" (kubo,
    core/node/libp2p/pnet.go).

    Args:
        key: 32 bytes, as in `swarm.key`.
    """
    from Crypto.Cipher import Salsa20  # only a private network needs it

    stream = Salsa20.new(key=key, nonce=b"finprint").encrypt(bytes(64))
    return hashlib.shake_128(stream).hexdigest(16)


class MdnsSource:
    """Peers on the local network, by multicast DNS. Announces this node there too.

    Places appear within a second of a peer's first word. They go when it says goodbye, and two minutes after a
    peer of ours fell silent; stock peers ask to be believed for up to an hour.

    Args:
        peer_id: our own; we are no place.
        addrs: our announced multiaddrs, ending in `/p2p/<peer id>`; asked again every few seconds, on the event loop.
        interfaces: names; empty: those that hold an announced address and can multicast, whichever they are at
            the time.
        fingerprint: of the private network (`network_fingerprint`); empty: a public one. Networks do not see each
            other.
        rng: our name in this run, and when questions are asked.

    Raises:
        ValueError: the fingerprint is none.
    """

    method: Method = "mdns"

    def __init__(
        self,
        peer_id: str,
        addrs: Callable[[], Sequence[str]],
        *,
        interfaces: Sequence[str],
        fingerprint: str = "",
        rng: Random,
    ) -> None:
        self._addrs = addrs
        self._interfaces = tuple(dict.fromkeys(interfaces))
        self._peer = PeerId(peer_id)
        self._service = service_name(fingerprint)
        self._name = peer_name(rng)
        self._rng = Random(rng.getrandbits(64))  # the thread's alone
        self._table = Table(self._peer)
        self._places: tuple[Place, ...] = ()
        self._failure: tuple[Trouble, ...] = ()  # the last one, until it is over
        self._restart_seconds = RESTART_SECONDS
        self.ignored: Mapping[str, int] = {}
        """Entries of others that were passed over, by reason, as of the latest report."""

    @property
    def subject(self) -> str:
        return ", ".join(self._interfaces) or BY_ADDRESS

    async def run(self, report: Report) -> None:
        """Announce and listen until cancelled; says goodbye then, which takes a quarter of a second.

        Troubles: `no-multicast-interface`, `mdns-nothing-to-announce`, and `mdns-failed`, after which it starts anew.
        """
        while True:
            try:
                await self._work(report)
            except Exception as error:  # whatever the thread met: the node lives on, and the doctor tells
                failure = _failed(error, self.subject)
                if not self._failure:  # once, not every time it starts
                    expected = isinstance(error, OSError | P2PNodeError)
                    log.warning(
                        "multicast DNS failed, starting anew until it works",
                        exc_info=None if expected else error,
                        extra={"problem": failure.problem, "fix": failure.fix},
                    )
                self._failure = (failure,)
                report(self._report())
            await trio.sleep(self._restart_seconds)
            self._restart_seconds = min(2 * self._restart_seconds, MOST_RESTART_SECONDS)

    async def _work(self, report: Report) -> None:
        inbox = _Inbox(tuple(self._addrs()))
        token = trio.lowlevel.current_trio_token()

        def take(news: News) -> None:
            if not inbox.stopping:
                self.ignored = news.ignored
                self._places = tuple(Place(addr) for addr in news.addrs)
                if news.works:
                    self._failure = ()
                    self._restart_seconds = RESTART_SECONDS
                report(self._report(*news.troubles))

        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_addrs, inbox)
            try:
                await trio.to_thread.run_sync(
                    self._run_thread, inbox, partial(token.run_sync_soon, take), limiter=trio.CapacityLimiter(1)
                )
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _watch_addrs(self, inbox: _Inbox) -> None:
        try:
            while True:
                inbox.put(tuple(self._addrs()))
                await trio.sleep(LOOK_SECONDS)
        finally:
            inbox.stop()

    def _run_thread(self, inbox: _Inbox, tell: Callable[[News], object]) -> None:
        from p2pnode.discovery.mdns_worker import Worker  # with asyncio and zeroconf: for whoever uses it, and here

        Worker(
            inbox,
            self._table,
            interfaces=self._interfaces,
            service=self._service,
            name=self._name,
            rng=self._rng,
            tell=tell,
        ).run()

    def _report(self, *troubles: Trouble) -> SourceReport:
        return SourceReport(self.method, self.subject, self._places, troubles + self._failure)


class _Inbox:
    """What the event loop tells the thread: our addresses, and when to stop."""

    def __init__(self, addrs: tuple[str, ...]) -> None:
        self.addrs = addrs
        self.stopping = False
        self._lock = Lock()
        self._wake: Callable[[], object] | None = None

    def attach(self, wake: Callable[[], object] | None) -> None:
        with self._lock:
            self._wake = wake

    def put(self, addrs: tuple[str, ...]) -> None:
        if addrs != self.addrs:
            self.addrs = addrs
            self._notify()

    def stop(self) -> None:
        self.stopping = True
        self._notify()

    def _notify(self) -> None:
        with self._lock:
            if self._wake is not None:
                self._wake()


def _failed(error: Exception, subject: str) -> Trouble:
    if isinstance(error, P2PNodeError):
        reason, fix = error.detail, error.hint
    else:
        reason, fix = f"{type(error).__name__}: {error}", ""
    if isinstance(error, OSError):
        fix = "let other programs on this machine share UDP port 5353 (avahi: disallow-other-stacks=no)"
    fix = fix or "it starts anew by itself; if it stays so, set discovery.mdns = off and report the log"
    return Trouble("mdns-failed", f"multicast DNS on {subject} failed: {reason}", fix)
