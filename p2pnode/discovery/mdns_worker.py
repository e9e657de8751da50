"""The thread that multicast DNS runs in: watches interfaces and addresses, asks when it is time, tells what changed.

Imported in that thread, and only there: see `mdns_responder`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from random import Random
from typing import Any, Protocol

from p2pnode.discovery.interfaces import Choice, Interface, choose, list_interfaces
from p2pnode.discovery.mdns_records import Address, check_elsewhere, parse_address
from p2pnode.discovery.mdns_responder import TTL_SECONDS, Responder
from p2pnode.discovery.mdns_table import Life, Table
from p2pnode.errors import InvalidMessage, Unavailable
from p2pnode.ports import Trouble

log = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
"""Pause between two looks at the interfaces."""

GATHER_SECONDS = 0.1
"""What is heard within it is told at once: a flood costs the event loop ten reports a second."""

FIRST_PAUSES = (1.0, 2.0, 4.0)
"""Between the first questions: each at least twice the one before (RFC 6762, section 5.2)."""

LEAST_PAUSE_SECONDS = 10.0
"""Between later ones, however short a time others say that their records count."""

SPREAD_SECONDS = 4.0
"""A later question waits up to this long at random: the first to ask has everybody answer to all."""

ECHO_SECONDS = 5.0
"""By then our own first announcement must have come back, or multicast does not work."""

MAX_KNOWN = 200
"""Instances named in a question as known already; the others answer once more."""


class Inbox(Protocol):
    """What the event loop tells the thread; may be read at any time."""

    @property
    def addrs(self) -> tuple[str, ...]: ...

    @property
    def stopping(self) -> bool: ...

    def attach(self, wake: Callable[[], object] | None) -> None:
        """Call `wake`, from the event loop's thread, whenever something changes."""


@dataclass(frozen=True, slots=True)
class News:
    """All that the thread knows.

    Args:
        addrs: multiaddrs with `/p2p/`.
        ignored: entries of others that were passed over, by reason.
        works: what we announce comes back, or there is nothing to announce.
    """

    addrs: tuple[str, ...]
    troubles: tuple[Trouble, ...]
    ignored: Mapping[str, int]
    works: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to run and what to announce there, as things are now.

    Args:
        names: of the interfaces.
        sockets: as the responder takes them.
    """

    names: tuple[str, ...]
    sockets: tuple[str | int, ...]
    announced: tuple[Address, ...]
    troubles: tuple[Trouble, ...]


def make_plan(addrs: Sequence[str], named: Sequence[str], there: Mapping[str, Interface]) -> Plan:
    """A plan for this machine.

    Args:
        addrs: our announced multiaddrs; those that nobody on the local network could dial are left out.
        named: interfaces that the operator wants; empty: those that hold an announced address.
    """
    own = [address for addr in addrs if (address := _announceable(addr)) is not None]
    choice = choose(named, {each.ip for each in own}, there)
    chosen = {ip for each in choice.interfaces for ip in each.addrs}
    elsewhere = {ip for each in there.values() for ip in each.addrs} - chosen
    # What only another of our interfaces holds is of no use here, unless there is nothing else.
    announced = [each for each in own if each.ip not in elsewhere] or own
    announced.sort(key=lambda each: each.ip not in chosen)
    troubles = choice.troubles
    if choice.interfaces and not announced:
        troubles += (_nothing_to_announce(addrs, choice),)
    return Plan(
        tuple(each.name for each in choice.interfaces),
        tuple(socket for each in choice.interfaces for socket in _sockets(each, announced)),
        tuple(announced),
        troubles,
    )


def _announceable(addr: str) -> Address | None:
    try:
        address = parse_address(addr)
        check_elsewhere(address.ip)
    except InvalidMessage:
        return None
    return address


def _sockets(interface: Interface, announced: Sequence[Address]) -> list[str | int]:
    """One of each family that we announce there; of those that it has if we announce none."""
    told = {each.ip for each in announced}
    here = [ip for ip in interface.addrs if ip in told] or list(interface.addrs)
    four = next((str(ip) for ip in here if isinstance(ip, IPv4Address)), None)
    six = any(ip.version == 6 for ip in here)
    return [*([four] if four else []), *([interface.index] if six else [])]


def _nothing_to_announce(addrs: Sequence[str], choice: Choice) -> Trouble:
    names = ", ".join(each.name for each in choice.interfaces)
    told = ", ".join(addrs) or "nothing"
    return Trouble(
        "mdns-nothing-to-announce",
        f"multicast DNS on {names} finds others, but nobody finds this node: it announces {told}, and only IP "
        "addresses other than loopback can be told",
        f"listen on an address of {names}: network.listen = /ip4/0.0.0.0/tcp/9000, or network.announce",
    )


class Questions:
    """When to ask: some times in the first seconds, then when what was heard is about to count no more."""

    def __init__(self, now: float, rng: Random) -> None:
        self._rng = rng
        self._pauses = list(FIRST_PAUSES)
        self._first_at: float | None = now + rng.uniform(0.02, 0.12)  # RFC 6762, section 5.2
        self._later = rng.uniform(0, SPREAD_SECONDS)
        self.asked_at = now

    @property
    def is_first(self) -> bool:
        return len(self._pauses) == len(FIRST_PAUSES)

    def due_at(self, lives_end: Callable[[float], float | None]) -> float | None:
        """When to ask next.

        Args:
            lives_end: when something is to be asked for again, given the time of the last question.
        """
        if self._first_at is not None:
            return self._first_at
        end = lives_end(self.asked_at)
        return None if end is None else max(end + self._later, self.asked_at + LEAST_PAUSE_SECONDS)

    def asked(self, now: float) -> None:
        """A question was put."""
        self.asked_at = now
        self._first_at = now + self._pauses.pop(0) if self._pauses else None
        self._later = self._rng.uniform(0, SPREAD_SECONDS)


class Worker:
    """Runs multicast DNS in the calling thread until the inbox says to stop.

    Args:
        table: what is known; kept by the caller from one worker to the next.
        name: our instance's.
        tell: called in this thread with all that is known, when it changed.
    """

    def __init__(
        self,
        inbox: Inbox,
        table: Table,
        *,
        interfaces: Sequence[str],
        service: str,
        name: str,
        rng: Random,
        tell: Callable[[News], object],
    ) -> None:
        self._inbox = inbox
        self._table = table
        self._interfaces = tuple(interfaces)
        self._service = service
        self._name = name
        self._rng = rng
        self._tell = tell
        self._told: News | None = None
        self._is_logged = False

    def run(self) -> None:
        """Work.

        Raises:
            OSError: a socket cannot be had, or the kernel does not list the interfaces.
            Unavailable: what is announced does not come back.
        """
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._changed = asyncio.Event()
        loop.set_exception_handler(self._callback_failed)
        self._inbox.attach(lambda: loop.call_soon_threadsafe(self._changed.set))
        try:
            while not self._inbox.stopping:
                plan = self._plan()
                self._report(plan, works=not plan.sockets)
                if plan.sockets:
                    await self._serve(plan)
                else:
                    await self._pause(LOOK_SECONDS)
        finally:
            self._inbox.attach(None)

    def _plan(self) -> Plan:
        return make_plan(self._inbox.addrs, self._interfaces, list_interfaces())

    async def _serve(self, plan: Plan) -> None:
        """Announce and listen, until the interfaces are others."""
        responder = Responder(
            plan.sockets,
            service=self._service,
            name=self._name,
            table=self._table,
            changed=self._changed.set,
            now=self._now,
        )
        async with responder:
            log.info("multicast DNS runs", extra={"interfaces": list(plan.names), "service": self._service})
            await responder.announce(plan.announced)
            announced_at = look_at = self._now()
            addrs, running = self._inbox.addrs, plan
            questions = Questions(announced_at, self._rng)
            while not self._inbox.stopping and plan.sockets == running.sockets:
                now = self._now()
                if plan.announced != running.announced:
                    await responder.announce(plan.announced)
                    running, announced_at = plan, now
                due_at = questions.due_at(partial(self._ask_at, responder))
                if due_at is not None and due_at <= now:
                    responder.ask(self._table.known(now, MAX_KNOWN), directly=questions.is_first)
                    questions.asked(now)
                    continue
                self._table.expire(now)
                self._report(plan, works=responder.echoed_at is not None or not plan.announced)
                if plan.announced:
                    check_echo(responder.echoed_at, announced_at, questions.asked_at, now, plan.names)
                times = (due_at, self._table.ends_at(), look_at + LOOK_SECONDS)
                await self._pause(min(time for time in times if time is not None) - now)
                if self._now() >= look_at + LOOK_SECONDS or self._inbox.addrs != addrs:
                    look_at, addrs = self._now(), self._inbox.addrs
                    plan = self._plan()

    def _ask_at(self, responder: Responder, asked_at: float) -> float | None:
        """When others, or we ourselves, are to be asked again: so one who hears nobody still hears that it is heard."""
        own = None
        if responder.echoed_at is not None:
            own = Life(responder.echoed_at, responder.echoed_at + TTL_SECONDS).ask_at(asked_at)
        times = (own, self._table.ask_at(asked_at))
        return min((time for time in times if time is not None), default=None)

    async def _pause(self, seconds: float) -> None:
        """Until something changes, but not longer; what changes right after it is waited for too."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._changed.wait()
        except TimeoutError:
            return
        if not self._inbox.stopping:
            await asyncio.sleep(GATHER_SECONDS)
        self._changed.clear()

    def _report(self, plan: Plan, *, works: bool) -> None:
        news = News(self._table.addrs(), plan.troubles, dict(self._table.ignored), works)
        told = self._told
        if told is None or (news.addrs, news.troubles, works) != (told.addrs, told.troubles, told.works):
            self._told = news
            self._tell(news)

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a packet made zeroconf raise: counted, and logged the first time."""
        self._table.ignored["failed"] += 1
        if not self._is_logged:
            self._is_logged = True
            log.warning("multicast DNS passed over a packet: %s", context["message"], exc_info=context.get("exception"))


def check_echo(echoed_at: float | None, announced_at: float, asked_at: float, now: float, names: Sequence[str]) -> None:
    """Does multicast work at all? The kernel gives what we send to everybody who listens here, us included.

    Args:
        echoed_at: when our own record was heard last.
        asked_at: when the last question was put, which we answer too.

    Raises:
        Unavailable: reason `no-echo`.
    """
    patience = announced_at + ECHO_SECONDS if echoed_at is None else echoed_at + TTL_SECONDS
    if now <= max(patience, asked_at + ECHO_SECONDS):
        return
    since = now - (announced_at if echoed_at is None else echoed_at)
    raise Unavailable(
        f"our own announcement on {', '.join(names)} was not heard for {since:.0f} s",
        reason="no-echo",
        hint="let UDP port 5353 to and from 224.0.0.251 and ff02::fb through this machine's firewall",
    )
