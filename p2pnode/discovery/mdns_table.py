"""Who was heard in multicast DNS, and until when it counts. Times are monotonic seconds.

A record counts for as long as it says, unless it is taken back before (RFC 6762, section 10.1) or replaced by a
newer one of its name (section 10.2). Nothing grows without bound: at MAX_INSTANCES the one that was not heard for
the longest time gives way, so that a flood of invented names is over when the real peers were asked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pnode.core.peerid import PeerId
from p2pnode.discovery.mdns_records import MAX_ADDRS, read_txt

MAX_INSTANCES = 1000
MAX_TTL_SECONDS = 4500.0
"""75 minutes, the longest that RFC 6762 (section 10) recommends: no peer is believed for longer at one word."""

ASK_AT = (0.8, 0.85, 0.9, 0.95)
"""Shares of its time after which a record is asked for again, until it is (RFC 6762, section 5.2)."""

KEEP_SECONDS = 1.0
"""A record that replaces its namesakes spares those of the last second: they came with it (section 10.2)."""


@dataclass(slots=True)
class Life:
    """When something was heard and when it counts no more."""

    heard_at: float
    ends_at: float

    def ask_at(self, asked_at: float) -> float | None:
        """When to ask for it, the last question having been put at `asked_at`; None: no more."""
        times = (self.heard_at + share * (self.ends_at - self.heard_at) for share in ASK_AT)
        return next((time for time in times if time > asked_at), None)


@dataclass(slots=True)
class Instance:
    """One peer name and what it says.

    Args:
        peer: whose addresses they are.
        addrs: multiaddrs with `/p2p/`, at most MAX_ADDRS.
    """

    peer: PeerId
    addrs: dict[str, Life] = field(default_factory=dict)


class Table:
    """The instances heard.

    Args:
        own_peer: not listed, whatever name it is heard under.
    """

    def __init__(self, own_peer: PeerId) -> None:
        self._own_peer = own_peer
        self._instances: dict[str, Instance] = {}  # the one heard last comes last
        self.ignored: Counter[str] = Counter()
        """Entries passed over, by reason."""

    def __len__(self) -> int:
        return len(self._instances)

    def hear(self, name: str, texts: Iterable[bytes], *, ttl_seconds: float, replaces: bool, now: float) -> None:
        """TXT records of one name that came together.

        Args:
            ttl_seconds: how long they count; 0 takes them back.
            replaces: what the name said before counts no more (the cache-flush bit).
        """
        instance = self._instances.pop(name, None)
        said = read_txt(texts, instance.peer if instance is not None and not replaces else None)
        self.ignored += said.ignored
        if ttl_seconds <= 0:
            if instance is not None:
                for address in said.addrs:
                    instance.addrs.pop(address.text, None)
                self._put(name, instance)
            return
        peer = said.addrs[0].peer if said.addrs else None
        if instance is None or (peer is not None and peer != instance.peer):
            if peer is None:
                return
            instance = Instance(peer)
        if instance.peer == self._own_peer:
            return
        if replaces:
            instance.addrs = {
                addr: life for addr, life in instance.addrs.items() if now - life.heard_at <= KEEP_SECONDS
            }
        for address in said.addrs:
            instance.addrs.pop(address.text, None)
            instance.addrs[address.text] = Life(now, now + min(ttl_seconds, MAX_TTL_SECONDS))
        for addr in list(instance.addrs)[:-MAX_ADDRS]:
            del instance.addrs[addr]
            self.ignored["too-many"] += 1
        self._put(name, instance)

    def leave(self, name: str) -> None:
        """The name itself was taken back."""
        self._instances.pop(name, None)

    def expire(self, now: float) -> None:
        """Forget what counts no more."""
        for name, instance in list(self._instances.items()):
            instance.addrs = {addr: life for addr, life in instance.addrs.items() if life.ends_at > now}
            if not instance.addrs:
                del self._instances[name]

    def addrs(self) -> tuple[str, ...]:
        """Every address once, in a stable order."""
        return tuple(sorted({addr for instance in self._instances.values() for addr in instance.addrs}))

    def ends_at(self) -> float | None:
        """When the next address counts no more; None without any."""
        return min((life.ends_at for life in self._lives()), default=None)

    def ask_at(self, asked_at: float) -> float | None:
        """When to ask again, the last question having been put at `asked_at`; None: nobody is worth it."""
        times = (life.ask_at(asked_at) for life in self._lives())
        return min((time for time in times if time is not None), default=None)

    def known(self, now: float, limit: int) -> list[tuple[str, float]]:
        """Names that need not answer a question, and for how long they count: more than half their time is left."""
        known = []
        for name, instance in self._instances.items():
            lives = instance.addrs.values()
            if all(life.ends_at - now > now - life.heard_at for life in lives):
                known.append((name, min(life.ends_at for life in lives) - now))
                if len(known) == limit:
                    break
        return known

    def _lives(self) -> Iterable[Life]:
        return (life for instance in self._instances.values() for life in instance.addrs.values())

    def _put(self, name: str, instance: Instance) -> None:
        if instance.addrs:
            if len(self._instances) >= MAX_INSTANCES:
                del self._instances[next(iter(self._instances))]
                self.ignored["too-many-instances"] += 1
            self._instances[name] = instance
