"""Multicast DNS itself, by zeroconf: announces one instance, asks for the others, and tells what it hears.

Imported in the thread that runs it, and only there: zeroconf and asyncio are not loaded in a node without mDNS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from zeroconf import (  # type: ignore[attr-defined] # not all of it is in its __all__
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSText,
    IPVersion,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
)
from zeroconf.asyncio import AsyncZeroconf

from p2pnode.discovery.mdns_records import Address, encode_txt
from p2pnode.discovery.mdns_table import Table

TTL_SECONDS = 120
"""How long others believe our records: RFC 6762 (section 10) gives what names a host two minutes; js-libp2p too."""

CLOSE_SECONDS = 2.0
_TYPE_PTR, _TYPE_TXT, _CLASS_IN, _QUERY = 12, 16, 1, 0  # RFC 1035, sections 3.2.2, 3.2.4 and 4.1.1

Sockets = Sequence[str | int]
"""Where to multicast: an interface's IPv4 address, or its index for IPv6."""


class Responder(RecordUpdateListener):
    """Multicast DNS on some interfaces, for as long as the `async with` block lasts; the goodbye is said at its end.

    Args:
        service: `_p2p._udp.local.`
        name: our instance's.
        table: gets what others say.
        changed: called when the table may have changed, or our own record came back.
        now: monotonic seconds.

    Raises:
        OSError: a socket cannot be had.
    """

    def __init__(
        self,
        sockets: Sockets,
        *,
        service: str,
        name: str,
        table: Table,
        changed: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self._sockets = list(sockets)
        self._service = service
        self._own = f"{name}.{service}"
        self._host = f"{name}.p2p.local."
        self._table = table
        self._changed = changed
        self._now = now
        self._broadcast: asyncio.Future[object] | None = None
        self._info: ServiceInfo | None = None
        self.echoed_at: float | None = None
        """When what we announce was last heard: multicast comes back to its sender. None: not yet."""

    async def __aenter__(self) -> Responder:
        families = {isinstance(each, int) for each in self._sockets}
        version = IPVersion.All if len(families) > 1 else IPVersion.V6Only if True in families else IPVersion.V4Only
        self._zeroconf = AsyncZeroconf(zc=Zeroconf(interfaces=self._sockets, ip_version=version))
        zeroconf = self._zeroconf.zeroconf
        zeroconf.async_add_listener(self, None)  # before anything is asked: a listener hears no earlier answers
        await zeroconf.async_wait_for_start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._zeroconf.zeroconf.async_remove_listener(self)
        if self._broadcast is not None:
            self._broadcast.cancel()
        async with asyncio.timeout(CLOSE_SECONDS):
            await self._zeroconf.async_close()

    async def announce(self, addrs: Sequence[Address]) -> None:
        """Tell others these addresses instead of what was told before; none takes it back."""
        zeroconf = self._zeroconf.zeroconf
        info = self._described(addrs) if addrs else None
        self.echoed_at = None
        if self._broadcast is not None:
            self._broadcast.cancel()
        if info is None:
            if self._info is not None:
                self._broadcast = asyncio.ensure_future(await zeroconf.async_unregister_service(self._info))
        elif self._info is not None:
            self._broadcast = asyncio.ensure_future(await zeroconf.async_update_service(info))
        else:  # a random name of 32 letters is no one else's: it is not probed for, which would take a second
            self._broadcast = asyncio.ensure_future(
                await zeroconf.async_register_service(info, cooperating_responders=True, strict=False)
            )
        self._info = info

    def ask(self, known: Iterable[tuple[str, float]], *, directly: bool) -> None:
        """Ask for all instances but those known, each with the seconds for which it is.

        Args:
            directly: whoever told everybody lately may answer to us alone, and at once (RFC 6762, section 5.4).
        """
        query = DNSOutgoing(_QUERY)
        question = DNSQuestion(self._service, _TYPE_PTR, _CLASS_IN)
        question.unicast = directly
        query.add_question(question)
        for name, seconds in known:
            query.add_answer_at_time(DNSPointer(self._service, _TYPE_PTR, _CLASS_IN, int(seconds), name), 0)
        self._zeroconf.zeroconf.async_send(query)

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Called by zeroconf with the records of one packet that are new, are told again, or are taken back."""
        texts: dict[tuple[str, float, bool], list[bytes]] = {}
        at = self._now()
        for record in (update.new for update in records):
            name, seconds = record.key, float(record.ttl)
            if isinstance(record, DNSPointer):
                if name == self._service and not seconds and record.alias.lower() != self._own:
                    self._table.leave(record.alias.lower())
            elif isinstance(record, DNSText) and name.endswith(f".{self._service}"):
                if name != self._own:
                    if not seconds or not record.is_expired(now):  # what runs out in zeroconf has in the table
                        texts.setdefault((name, seconds, record.unique), []).append(record.text)
                elif seconds:
                    self.echoed_at = at
        for (name, seconds, unique), said in texts.items():
            self._table.hear(name, said, ttl_seconds=seconds, replaces=unique, now=at)
        self._changed()

    def _described(self, addrs: Sequence[Address]) -> ServiceInfo:
        return ServiceInfo(
            self._service,
            self._own,
            port=addrs[0].port,
            properties=encode_txt(each.text for each in addrs),
            server=self._host,
            host_ttl=TTL_SECONDS,
            other_ttl=TTL_SECONDS,
            parsed_addresses=list(dict.fromkeys(str(each.ip) for each in addrs)),
        )
