"""A NATS server in memory, with JetStream or without, and clients of it: `ports.roads.Broker` in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from p2pnode.errors import EnvironmentFault, InvalidRequest, Unavailable
from p2pnode.ports.roads import BrokerState, Consumed, NatsMessage

LATENCY_SECONDS = 0.001
DUPLICATE_SECONDS = 120.0
AGAIN_SECONDS = 1.0
CONNECT_SECONDS = 0.2
DENIED_SECONDS = 5.0
"""A publication that nobody answers."""

PLAIN = "plain client"


def matches(pattern: str, subject: str) -> bool:
    wide, narrow = pattern.split("."), subject.split(".")
    for index, token in enumerate(wide):
        if token == ">":
            return len(narrow) > index
        if index >= len(narrow) or token not in ("*", narrow[index]):
            return False
    return len(wide) == len(narrow)


@dataclass
class Durable:
    """A consumer at the server."""

    subject: str
    next_seq: int = 1
    again: dict[int, float] = field(default_factory=dict)
    given: set[int] = field(default_factory=set)
    redelivered: int = 0


@dataclass(frozen=True)
class Publication:
    """One call of `publish`, whether or not it was stored."""

    by: str
    subject: str
    headers: Mapping[str, str]
    body: bytes
    at: float


class FakeServer:
    """
    Attributes:
        kept: what the stream holds, in order; all subjects, when there is JetStream.
        publications: every publish that reached the server.
        lost_answers: how many of the next acknowledgements get lost on the way.
        max_payload: bytes of body and headers.
        denied: subjects on which nobody may publish.
        calls: how often each of those was tried.
    """

    def __init__(self, wall_ns: Callable[[], int], *, jetstream: bool = True) -> None:
        self.wall_ns = wall_ns
        self.jetstream = jetstream
        self.up = True
        self.kept: list[NatsMessage] = []
        self.publications: list[Publication] = []
        self.durables: dict[tuple[str, str], Durable] = {}
        self.clients: list[FakeBroker] = []
        self.lost_answers = 0
        self.max_payload = 1024 * 1024
        self.denied: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.changed = trio.Event()
        self._ids: dict[str, float] = {}

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def kill(self) -> None:
        """As kill -9: what the stream holds survives."""
        self.up = False
        for client in list(self.clients):
            client.disconnect()

    def start(self) -> None:
        self.up = True
        self.wake()

    def publish(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, by: str = PLAIN) -> bool:
        """Store it and hand it to who listens; True when a stream has it."""
        assert self.up, "nobody publishes at a server that is down"
        headers = dict(headers or {})
        self.publications.append(Publication(by, subject, headers, body, trio.current_time()))
        kept = self.jetstream and subject != "p2pnode.members"
        if kept and not self._is_repeated(headers.get("Nats-Msg-Id")):
            self.kept.append(NatsMessage(subject, headers, body, len(self.kept) + 1, self.wall_ns()))
        for client in list(self.clients):
            client.hear(NatsMessage(subject, headers, body))
        self.wake()
        return kept

    def _is_repeated(self, message_id: str | None) -> bool:
        if message_id is None:
            return False
        known = self._ids.get(message_id)
        if known is not None and trio.current_time() - known < DUPLICATE_SECONDS:
            return True
        self._ids[message_id] = trio.current_time()
        return False

    def durable(self, name: str, subject: str) -> Durable:
        return self.durables.setdefault((name, subject), Durable(subject))

    def take(self, durable: Durable) -> NatsMessage | None:
        """What the consumer gives next."""
        now = trio.current_time()
        for seq, at in sorted(durable.again.items()):
            if at <= now:
                del durable.again[seq]
                durable.given.add(seq)
                durable.redelivered += 1
                return self.kept[seq - 1]
        while durable.next_seq <= len(self.kept):
            message = self.kept[durable.next_seq - 1]
            durable.next_seq += 1
            if matches(durable.subject, message.subject):
                durable.given.add(message.stream_seq)
                return message
        return None

    def next_try(self, durable: Durable) -> float:
        return min(durable.again.values(), default=float("inf"))

    def pending(self, durable: Durable) -> int:
        rest = self.kept[durable.next_seq - 1 :]
        return sum(matches(durable.subject, each.subject) for each in rest) + len(durable.again)


class FakeBroker:
    """One client. Its process dies with the scope that `run` is in."""

    def __init__(self, server: FakeServer, name: str) -> None:
        self.server = server
        self.name = name
        self._watched: list[tuple[Sequence[str], Callable[[NatsMessage], None]]] = []
        self._consumed: list[tuple[str, str, Callable[[NatsMessage], Awaitable[None]]]] = []
        self._caught_up: set[tuple[str, str]] = set()
        self._taken: Counter[tuple[str, str]] = Counter()
        self._connected = False
        self._epoch = 0
        self.is_cut_off = False
        self._counters: Counter[tuple[str, str]] = Counter()

    # -- ports.roads.Broker ------------------------------------------------------------

    def state(self) -> BrokerState:
        if not self._connected:
            return BrokerState(False, "nats://n:4222", None, "unreachable", "nobody answers", "start the server")
        return BrokerState(True, "nats://n:4222", self.server.jetstream)

    def watch(self, subjects: Sequence[str], take: Callable[[NatsMessage], None]) -> None:
        self._watched.append((subjects, take))

    def consume(self, durable: str, subjects: Sequence[str], take: Callable[[NatsMessage], Awaitable[None]]) -> None:
        self._consumed += [(durable, subject, take) for subject in subjects]

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> bool:
        if len(body) + sum(map(len, headers.values())) > self.server.max_payload:
            raise InvalidRequest(f"{len(body)} bytes are over the server's max_payload")
        await trio.sleep(LATENCY_SECONDS)
        if not self._connected:
            self._counters["publish-failed", ""] += 1
            raise Unavailable("not connected", reason="nats")
        if subject in self.server.denied:
            self.server.calls[subject] += 1
            await trio.sleep(DENIED_SECONDS)
            raise Unavailable(f"the NATS server does not let us publish to {subject}", reason="nats")
        kept = self.server.publish(subject, body, headers, by=self.name)
        await trio.sleep(LATENCY_SECONDS)
        if self.server.lost_answers or not self._connected:
            self.server.lost_answers = max(self.server.lost_answers - 1, 0)
            raise Unavailable("no answer in time", reason="nats")
        return kept

    async def run(self) -> None:
        self.server.clients.append(self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stay_connected)
                for durable, subject, take in self._consumed:
                    nursery.start_soon(self._pull, durable, subject, take)
        finally:
            self.server.clients.remove(self)
            self.disconnect()

    def consumers(self) -> Sequence[Consumed]:
        found = []
        for name, subject, _ in self._consumed:
            durable = self.server.durable(name, subject)
            pending = self.server.pending(durable)
            key = (name, subject)
            state = (pending, len(durable.given), durable.redelivered, key in self._caught_up, self._taken[key])
            found.append(Consumed(name, subject, *state))
        return found

    def counters(self) -> Mapping[tuple[str, str], int]:
        return self._counters

    def subscriptions(self) -> Mapping[str, int]:
        return Counter(subject for subjects, _ in self._watched for subject in subjects)

    # -- the wire ----------------------------------------------------------------------

    def disconnect(self) -> None:
        if self._connected:
            self._connected = False
            self._counters["disconnected", ""] += 1
            self._caught_up.clear()
            self._epoch += 1
        self.server.wake()

    def cut_off(self) -> None:
        """This client alone loses the server."""
        self.is_cut_off = True
        self.disconnect()

    def reach(self) -> None:
        self.is_cut_off = False
        self.server.wake()

    def hear(self, message: NatsMessage) -> None:
        if self._connected:
            for subjects, take in self._watched:
                if any(matches(each, message.subject) for each in subjects):
                    take(message)

    async def _stay_connected(self) -> None:
        while True:
            while self._connected or not self.server.up or self.is_cut_off:
                await self.server.changed.wait()
            await trio.sleep(CONNECT_SECONDS)
            if self.server.up and not self.is_cut_off:
                self._connected = True
                self.server.wake()

    async def _pull(self, name: str, subject: str, take: Callable[[NatsMessage], Awaitable[None]]) -> None:
        while True:
            if not (self._connected and self.server.jetstream):
                await self.server.changed.wait()
                continue
            durable = self.server.durable(name, subject)
            message = self.server.take(durable)
            if message is None:
                if not durable.again:
                    self._caught_up.add((name, subject))
                with trio.move_on_at(self.server.next_try(durable)):
                    await self.server.changed.wait()
                continue
            await self._give(durable, message, take)
            self._taken[name, subject] += 1

    async def _give(
        self, durable: Durable, message: NatsMessage, take: Callable[[NatsMessage], Awaitable[None]]
    ) -> None:
        epoch, seq = self._epoch, message.stream_seq
        again_after = AGAIN_SECONDS
        try:
            await trio.sleep(LATENCY_SECONDS)
            await take(message)
            again_after = 0.0 if epoch == self._epoch else AGAIN_SECONDS
        except EnvironmentFault:
            pass
        finally:  # also when the process is killed
            durable.given.discard(seq)
            if again_after:
                durable.again[seq] = trio.current_time() + again_after
                self.server.wake()
