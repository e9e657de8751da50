"""From the archive to the agent: the webhook, durable event streams, and what was given up."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import trio

from p2pnode.core.message import MessageId, SignedMessage, format_message_id, parse_message_id, parse_topic
from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.errors import Fault, InvalidMessage, InvalidRequest, NotFound, TooBusy
from p2pnode.node.agent_http import open_agent
from p2pnode.node.documents import message_document
from p2pnode.node.ledger import Account, Ledger, Write
from p2pnode.node.stored import Archive
from p2pnode.node.streams import Stream
from p2pnode.node.trust import Trust
from p2pnode.node.webhook import Webhook
from p2pnode.ports import DeadLetter, Entry, Followed, JsonObject, Subscription
from p2pnode.wire.payload import format_time

log = logging.getLogger(__name__)

WEBHOOK = "webhook"
"""The name of the webhook's own subscription."""

MAX_SUBSCRIPTIONS = 64
MAX_REASON_CHARACTERS = 500

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """
    Args:
        url: where messages are posted.
        topics: which.
        timeout_seconds: for one attempt.
        attempts: after so many a message becomes a dead letter.
    """

    url: str
    topics: tuple[str, ...]
    timeout_seconds: float
    attempts: int


class Deliveries:
    """The durable subscriptions of one node. Made, loaded, then run.

    Args:
        archive: what is stored.
        write: see `ledger.Write`.
        webhook: None: there is none.
        name_of: the name of a member, None for a stranger.
        stopping: set when the node goes away; streams hand over what is stored, and end.
        wall_ns: the wall clock.
        rng: for the jitter of retries.
        trust: what the agent gets of what is stored; None: all of it.
    """

    def __init__(
        self,
        archive: Archive,
        write: Write,
        webhook: WebhookSettings | None,
        name_of: Callable[[PeerId], str | None],
        *,
        stopping: trio.Event,
        wall_ns: Callable[[], int],
        rng: Random,
        trust: Trust | None = None,
    ) -> None:
        self._archive = archive
        self._trust = trust or Trust()
        self._settings = webhook
        self._name_of = name_of
        self._stopping = stopping
        self._wall_ns = wall_ns
        self._rng = rng
        self._ledger = Ledger(write, wall_ns)
        self._streams: dict[str, Stream] = {}
        self._webhook: Webhook | None = None
        self._creating = trio.Lock()

    def load(self, subscriptions: Iterable[Subscription], letters: Iterable[DeadLetter]) -> None:
        """Take over what the store holds, but for the node's own cursors: no agent's subscription has such a name."""
        self._ledger.load([each for each in subscriptions if _NAME.fullmatch(each.name)], letters)

    def topics(self) -> tuple[str, ...]:
        """Every topic that a subscription or the webhook reads: the node must be subscribed to them."""
        read = [topic for account in self._ledger.accounts.values() for topic in account.topics]
        return tuple(dict.fromkeys([*read, *(self._settings.topics if self._settings else ())]))

    async def run(self) -> None:
        """Hand messages to the webhook and write down what was handled, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ledger.run)
            if self._settings is not None:
                nursery.start_soon(self._run_webhook, self._settings)

    async def flush(self) -> None:
        """Write down what was handled: on leaving, to spare the agent repetitions.

        Raises:
            EnvironmentFault: it could not be written.
        """
        await self._ledger.flush()

    async def _run_webhook(self, settings: WebhookSettings) -> None:
        account = self._ledger.accounts.get(WEBHOOK)
        if account is None or account.topics != settings.topics:
            # Who is new here has asked for nothing that came before.
            account = await self._ledger.subscribe_at_last(WEBHOOK, settings.topics, self._archive.last_arrival)
        self._webhook = Webhook(
            account,
            self._ledger,
            self._archive,
            self._document,
            self._trust,
            attempts=settings.attempts,
            wall_ns=self._wall_ns,
            rng=self._rng,
        )
        async with open_agent(settings.url, settings.timeout_seconds, self._wall_ns) as post:
            await self._webhook.run(post)

    def _document(self, entry: Entry, message: SignedMessage) -> JsonObject:
        return message_document(entry, message, self._name_of(peer_id_text(message.origin)))

    # -- event streams -----------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(self, topic: str, name: str, *, start: str) -> AsyncIterator[AsyncIterator[Followed]]:
        """See `ports.Sidecar.subscribe`; the node is subscribed to the topic already."""
        async with self._creating:
            account = await self._account_for(topic, name, start)
            if (older := self._streams.get(name)) is not None:
                older.end(replaced=True)
            stream = self._streams[name] = Stream(
                account,
                self._ledger,
                self._archive,
                self._document,
                self._trust,
                stopping=self._stopping,
                wall_ns=self._wall_ns,
            )
        steps = stream.steps()
        try:
            yield steps
        finally:
            if self._streams.get(name) is stream:
                del self._streams[name]
            stream.close()
            await steps.aclose()

    async def _account_for(self, topic: str, name: str, start: str) -> Account:
        _check_subscription(topic, name)
        account = self._ledger.accounts.get(name)
        if account is not None:
            if account.topics != (topic,):
                problem = f"{name} reads {', '.join(account.topics)}; choose another name, or delete that subscription"
                raise InvalidRequest("the subscription is to another topic", [Fault("subscription", problem)])
            return account
        if len(self._ledger.accounts) >= MAX_SUBSCRIPTIONS:
            raise TooBusy(
                f"there are {MAX_SUBSCRIPTIONS} subscriptions already",
                reason="subscriptions",
                hint="GET /api/v1/subscriptions lists them; delete those that nobody reads",
            )
        return await self._ledger.subscribe(name, (topic,), await self._arrival_before(topic, start))

    async def _arrival_before(self, topic: str, start: str) -> int:
        """The arrival after which a new subscription begins to read."""
        if start == "now":
            return self._archive.last_arrival
        if start == "start":
            last = self._archive.last_arrival
            page = await self._archive.page((topic,), 0, 1)
            return page[0][0].arrival - 1 if page else last
        entry = self._archive.entry(_parse_id(start, "from"))
        if entry is None or entry.topic != topic or not entry.arrival:
            problem = f"{start} is not kept here in {topic}; begin at `start` instead"
            raise InvalidRequest("unknown message", [Fault("from", problem)])
        return entry.arrival

    async def acknowledge(self, name: str, message_id: str) -> JsonObject:
        """See `ports.Sidecar.acknowledge`."""
        account = self._reader_of(name)
        stream = self._streams.get(name)
        arrival = self._arrival_of(account, message_id)
        if stream is not None:
            stream.ack(arrival)
        else:
            self._ledger.advance(account, arrival)
        return {"subscription": name, "pending": self._pending(account)}

    async def nack(self, name: str, message_id: str, reason: str) -> JsonObject:
        """See `ports.Sidecar.nack`."""
        account = self._reader_of(name)
        stream = self._streams.get(name)
        arrival = self._arrival_of(account, message_id)
        in_flight = stream is not None and stream.is_trying(arrival)
        entry = self._archive.entry(_parse_id(message_id, "id"))
        if entry is None or (arrival <= account.cursor and not in_flight):
            problem = f"{message_id} was handled already; only what is not acknowledged can be given up"
            raise InvalidRequest("nothing to give up", [Fault("id", problem)])
        attempts = account.letters[arrival].attempts + 1 if arrival in account.letters else 1
        account.results["nacked"] += 1
        self._ledger.bury(account, entry, attempts, reason[:MAX_REASON_CHARACTERS] or "given up by its reader")
        if stream is not None:
            stream.forget(arrival)
        await self._ledger.flush()
        return {"subscription": name, "pending": self._pending(account)}

    def _reader_of(self, name: str) -> Account:
        if name == WEBHOOK:
            problem = "is the sidecar's own: the webhook answers 2xx to acknowledge"
            raise InvalidRequest("not a subscription to acknowledge", [Fault("name", problem)])
        return self._account(name)

    def _arrival_of(self, account: Account, message_id: str) -> int:
        """A message of a subscription by its id, in flight or stored."""
        parsed = _parse_id(message_id, "id")
        stream = self._streams.get(account.name)
        if stream is not None and (arrival := stream.find(parsed)) is not None:
            return arrival
        entry = self._archive.entry(parsed)
        if entry is None or entry.topic not in account.topics or not entry.arrival:
            problem = f"{message_id} is no message of {account.name} that is kept here"
            raise InvalidRequest("unknown message", [Fault("id", problem)])
        return entry.arrival

    # -- subscriptions -----------------------------------------------------------------

    async def subscriptions(self) -> list[JsonObject]:
        """See `ports.Sidecar.subscriptions`."""
        return [
            {
                "name": account.name,
                "topics": list(account.topics),
                "cursor": account.cursor,
                "pending": self._pending(account),
                "state": self._state(account),
            }
            for account in self._sorted()
        ]

    async def unsubscribe(self, name: str) -> None:
        """See `ports.Sidecar.unsubscribe`."""
        account = self._account(name)
        if name == WEBHOOK and self._settings is not None:
            problem = "is the sidecar's own; unset agent.webhook and restart, then delete it"
            raise InvalidRequest("the webhook is configured", [Fault("name", problem)])
        await self._ledger.unsubscribe(account)
        if (stream := self._streams.pop(name, None)) is not None:
            stream.end(replaced=False)

    async def deliveries(self) -> list[JsonObject]:
        """See `ports.Sidecar.deliveries`."""
        return [await self._delivery(account) for account in self._sorted()]

    async def _delivery(self, account: Account) -> JsonObject:
        pending = self._pending(account)
        since_ns = await self._pending_since_ns(account) if pending else None
        age = round(max(self._wall_ns() - since_ns, 0) / 1e9, 3) if since_ns is not None else None
        reader = self._reader(account)
        retry_in = reader.retry_in() if isinstance(reader, Webhook) else None
        return {
            "subscription": account.name,
            "topics": list(account.topics),
            "cursor": account.cursor,
            "pending": pending,
            "oldest_pending_seconds": age,
            "in_flight": reader.in_flight if reader is not None else 0,
            "failed": len(account.letters),
            "delivered": account.results["delivered"],
            "state": self._state(account),
            "retry_in_seconds": round(retry_in, 3) if retry_in is not None else None,
            "last_error": account.last_error or None,
            "last_error_at": format_time(account.last_error_at_ns) if account.last_error_at_ns else None,
        }

    async def _pending_since_ns(self, account: Account) -> int | None:
        reader = self._reader(account)
        if reader is not None and (since_ns := reader.pending_since_ns()) is not None:
            return since_ns
        page = await self._archive.page(account.topics, account.cursor, 1)
        return page[0][0].received_at_ns if page else None

    def _pending(self, account: Account) -> int:
        """Messages after the cursor, those that were handled out of turn (at most 256) included."""
        return self._archive.count_beyond(account.topics, account.cursor)

    def _state(self, account: Account) -> str:
        if account.name == WEBHOOK:
            if self._settings is None:
                return "off"
            return self._webhook.state if self._webhook is not None else "delivering"
        return "connected" if account.name in self._streams else "idle"

    # -- dead letters ------------------------------------------------------------------

    def dead_letters(self, subscription: str | None, limit: int) -> list[JsonObject]:
        """See `ports.Sidecar.dead_letters`."""
        accounts = self._sorted() if subscription is None else [self._account(subscription)]
        found: list[JsonObject] = []
        for account in accounts:
            self._forget_gone(account)
            for letter in list(account.letters.values())[: limit - len(found)]:
                found.append(
                    {
                        "subscription": letter.subscription,
                        "id": format_message_id(letter.id),
                        "topic": letter.topic,
                        "attempts": letter.attempts,
                        "error": letter.error,
                        "at": format_time(letter.at_ns),
                        "retrying": self._is_retrying(account, letter.arrival),
                    }
                )
        return found

    async def retry_deliveries(self, subscription: str | None, message_id: str | None) -> int:
        """See `ports.Sidecar.retry_deliveries`."""
        found = self._letters_of(subscription, message_id)
        if self._settings is None and found and all(account.name == WEBHOOK for account, _ in found):
            problem = "the webhook is off: set agent.webhook and restart"
            raise InvalidRequest("nothing to try again with", [Fault("subscription", problem)])
        retried = 0
        for account, letter in found:
            if account.name == WEBHOOK and self._settings is None:
                continue
            if not self._is_retrying(account, letter.arrival):
                account.retries.append(letter.arrival)
            retried += 1
        for account in dict.fromkeys(account for account, _ in found):
            if (reader := self._reader(account)) is not None:
                reader.retry()
        return retried

    async def drop_deliveries(self, subscription: str | None, message_id: str | None) -> int:
        """See `ports.Sidecar.drop_deliveries`."""
        dropped = 0
        for account, letter in self._letters_of(subscription, message_id):
            stream = self._streams.get(account.name)
            if account.name == WEBHOOK and self._webhook is not None and not self._webhook.forget(letter.arrival):
                continue
            if stream is not None:
                stream.forget(letter.arrival)
            self._ledger.exhume(account, letter.arrival)
            dropped += 1
        await self._ledger.flush()
        return dropped

    def _letters_of(self, subscription: str | None, message_id: str | None) -> Sequence[tuple[Account, DeadLetter]]:
        accounts = self._sorted() if subscription is None else [self._account(subscription)]
        wanted = None if message_id is None else _parse_id(message_id, "id")
        for account in accounts:
            self._forget_gone(account)
        found = [
            (account, letter)
            for account in accounts
            for letter in account.letters.values()
            if wanted is None or letter.id == wanted
        ]
        if wanted is not None and not found:
            raise NotFound(f"{message_id} is no dead letter here", hint="`p2pnode deliveries failed` lists them")
        return found

    def _forget_gone(self, account: Account) -> None:
        """Retention drops dead letters with their messages."""
        for letter in [each for each in account.letters.values() if self._archive.entry(each.id) is None]:
            self._ledger.exhume(account, letter.arrival)

    def _is_retrying(self, account: Account, arrival: int) -> bool:
        reader = self._reader(account)
        return arrival in account.retries or (reader is not None and reader.is_trying(arrival))

    def _reader(self, account: Account) -> Webhook | Stream | None:
        return self._webhook if account.name == WEBHOOK else self._streams.get(account.name)

    # -- all together ------------------------------------------------------------------

    def metrics(self) -> Mapping[str, float]:
        """Counters and gauges by Prometheus name."""
        found: dict[str, float] = {}
        for account in self._sorted():
            label = f'subscription="{account.name}"'
            for result, count in account.results.items():
                found[f'p2pnode_deliveries_total{{{label},result="{result}"}}'] = float(count)
            found[f"p2pnode_delivery_pending{{{label}}}"] = float(self._pending(account))
            found[f"p2pnode_delivery_dead_letters{{{label}}}"] = float(len(account.letters))
            found[f"p2pnode_delivery_seconds_sum{{{label}}}"] = account.seconds
            found[f"p2pnode_delivery_seconds_count{{{label}}}"] = float(account.results["delivered"])
        return found

    def _account(self, name: str) -> Account:
        account = self._ledger.accounts.get(name)
        if account is None:
            raise NotFound(f"there is no subscription {name[:80]!r}", hint="GET /api/v1/subscriptions lists them")
        return account

    def _sorted(self) -> list[Account]:
        return sorted(self._ledger.accounts.values(), key=lambda account: account.name)


def _check_subscription(topic: str, name: str) -> None:
    faults = []
    try:
        parse_topic(topic)
    except InvalidMessage as error:
        faults.append(Fault("topic", error.detail))
    if not _NAME.fullmatch(name):
        problem = f"{name[:80]!r} is no name: 1 to 64 letters, digits and _ . -, beginning with a letter, digit or _"
        faults.append(Fault("subscription", problem))
    elif name == WEBHOOK:
        faults.append(Fault("subscription", f"{name!r} is the sidecar's own; choose another name"))
    if faults:
        raise InvalidRequest("the topic cannot be subscribed to like this", faults)


def _parse_id(text: str, field: str) -> MessageId:
    try:
        return parse_message_id(text)
    except InvalidMessage as error:
        raise InvalidRequest("unknown message", [Fault(field, error.detail)]) from error
