"""The other roads beside gossip: what the node needs of a NATS broker, and of HTTP between sidecars."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from p2pnode.core.message import SignedMessage


@dataclass(frozen=True, slots=True)
class NatsMessage:
    """One message as a broker delivered it.

    Args:
        subject: where it was published.
        headers: as its publisher wrote them, the first value of each name; names keep their case.
        body: its payload.
        stream_seq: its place in a JetStream stream, from 1; 0 when it came by core NATS.
        stamped_ns: when JetStream stored it, wall nanoseconds at the server; 0 when it came by core NATS.
    """

    subject: str
    headers: Mapping[str, str]
    body: bytes
    stream_seq: int = 0
    stamped_ns: int = 0


@dataclass(frozen=True, slots=True)
class BrokerState:
    """How the connection to NATS stands.

    Args:
        connected: messages can be published now.
        server: the URL of the server in use or tried last, without credentials.
        jetstream: streams are used; None while that is not known.
        code: one fixed word for why it is not connected, or works less well than wanted; empty when all is well:
            `unreachable`, `authorization`, `credentials`, `credentials-expired`, `plaintext`, `tls`, `url`,
            `jetstream-off`, `jetstream-full`, `stream`.
        problem: what is wrong and where, in one sentence; empty when all is well.
        fix: what the operator is to do.
    """

    connected: bool = False
    server: str = ""
    jetstream: bool | None = None
    code: str = ""
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Consumed:
    """How a durable consumer stands.

    Args:
        durable: its name at the server.
        subject: its filter.
        pending: messages of the stream that it has not been given yet.
        unacknowledged: given, and not acknowledged.
        redelivered: given more than once.
        caught_up: at some moment since the connection was made nothing was pending.
        taken: how often `take` ended, well or not, since this process began.
    """

    durable: str
    subject: str
    pending: int = 0
    unacknowledged: int = 0
    redelivered: int = 0
    caught_up: bool = False
    taken: int = 0


class Broker(Protocol):
    """A NATS connection that comes back by itself. Everything is called, and calls back, on the event loop."""

    def state(self) -> BrokerState: ...

    def watch(self, subjects: Sequence[str], take: Callable[[NatsMessage], None]) -> None:
        """Core subscriptions, from now on and after each reconnect; `take` returns at once and never raises.

        What comes while no connection stands is not delivered. Subjects may hold wildcards.
        """

    def consume(self, durable: str, subjects: Sequence[str], take: Callable[[NatsMessage], Awaitable[None]]) -> None:
        """Read what JetStream keeps, one durable pull consumer for each subject, while JetStream is there.

        A message is acknowledged once `take` returned, in order for each subject, and given again after an exception,
        a lost connection or a restart. After an exception it is given again in a second, before those of its subject
        behind it; from the fifth time on every 30 s, by itself. The stream is made when none holds the subject.
        Without JetStream nothing is read: `watch` is for that.

        Args:
            durable: the consumers' name; those of the same name share the work.
        """

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """Returns once a stream stored it (True), or the server took it (False: no stream holds the subject).

        `Nats-Msg-Id` among the headers makes a repetition within the stream's window harmless.

        Raises:
            Unavailable: reason `nats` with what is wrong: not connected, no answer in time, the stream is full.
            InvalidRequest: it can never be published: over the server's `max_payload`, or the subject is none.
        """

    async def run(self) -> None:
        """Connect and stay connected, until cancelled; no exception that a broker can cause comes out."""

    def consumers(self) -> Sequence[Consumed]: ...

    def counters(self) -> Mapping[tuple[str, str], int]:
        """How often each `(what, subject)` happened: `in`, `out`, `publish-failed`, `dropped`, `take-failed`,
        by watched, consumed or published subject, with `*` for a council's id; `reconnected`, `disconnected` and
        `slow-consumer` with an empty one."""

    def subscriptions(self) -> Mapping[str, int]:
        """Open subscriptions, by subject."""


@dataclass(frozen=True, slots=True)
class Target:
    """A sidecar that takes messages by HTTP.

    Args:
        name: for logs: a member's name or peer id.
        url: `http://HOST:PORT`.
    """

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class LegacyAgent:
    """An agent without a sidecar.

    Args:
        name: for logs.
        endpoint: its HTTP API, `http://HOST:PORT`.
    """

    name: str
    endpoint: str


class Post(Protocol):
    """HTTP as a road: signed messages to sidecars, JSON to agents that have none."""

    async def hand_over(self, target: Target, message: SignedMessage) -> None:
        """Returns once the other sidecar stored it, or said that it has it.

        Raises:
            Unavailable: it does not answer, or cannot store now.
            InvalidRequest: it refused the message for what it is.
        """

    async def tell(self, agent: LegacyAgent, body: bytes, headers: Mapping[str, str]) -> None:
        """Post an opportunity's JSON to an agent that is healthy.

        Raises:
            Unavailable: not healthy, no answer within 10 s, 429 or 5xx.
            InvalidRequest: any other answer that is no 2xx.
        """
