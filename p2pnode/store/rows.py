"""Changes as SQL, and rows as what `ports` calls them. Blocking; raises what sqlite3 raises."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from p2pnode import ports
from p2pnode.core.message import MessageId
from p2pnode.core.routing import ROADS, Road
from p2pnode.store.schema import LAST_ARRIVAL, NUMBER

MAX_REMEMBERED: Final = 10_000
"""Idempotency keys; the oldest go first."""

_MAX_INTEGER: Final = 1 << 63
_WIDE_BYTES: Final = 16

_BY_ID: Final = "(SELECT number FROM messages WHERE id = ?)"

_ADD: Final = """
    INSERT INTO messages
    (id, topic, arrival, published_at, expires_at, received_at, size, digest, prev, carrier, late, own, roads)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING
"""


def number(value: int) -> int | bytes:
    """As SQLite can hold it: others sign times and seqnos, and theirs may be beyond 64 bits."""
    if -_MAX_INTEGER <= value < _MAX_INTEGER:
        return value
    return value.to_bytes(_WIDE_BYTES, "big", signed=True)


def value_of(stored: int | bytes) -> int:
    """The inverse of `number`."""
    return int.from_bytes(stored, "big", signed=True) if isinstance(stored, bytes) else stored


def roads_of(text: str) -> tuple[Road, ...]:
    """As they were written, in the order of ROADS; what a later version knows beside them is left out."""
    words = text.split()
    return tuple(road for road in ROADS if road in words)


class Changes:
    """Carries changes out, within a transaction that somebody else begins and commits."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._topics: dict[str, int] = {}
        self._highest = 0
        self._remembered = False

    def apply(self, changes: Iterable[ports.Change]) -> None:
        """In their order."""
        for change in changes:
            _DOING[type(change)](self, change)

    def finish(self) -> None:
        """What is done once in a transaction, at its end."""
        if self._highest:
            self._connection.execute(
                "UPDATE meta SET value = max(value, ?) WHERE key = ?", (self._highest, LAST_ARRIVAL)
            )
        if self._remembered:
            (count,) = self._connection.execute("SELECT count(*) FROM remembered").fetchone()
            if count > MAX_REMEMBERED:
                self._connection.execute(
                    "DELETE FROM remembered WHERE number IN (SELECT number FROM remembered ORDER BY number LIMIT ?)",
                    (count - MAX_REMEMBERED,),
                )
        self._highest = 0
        self._remembered = False

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._topics.clear()
        self._highest = 0
        self._remembered = False

    def _topic(self, name: str) -> int:
        found = self._topics.get(name)
        if found is None:
            self._connection.execute("INSERT INTO topics (name) VALUES (?) ON CONFLICT (name) DO NOTHING", (name,))
            (found,) = self._connection.execute("SELECT number FROM topics WHERE name = ?", (name,)).fetchone()
            if len(self._topics) >= 1000:
                self._topics.clear()
            self._topics[name] = found
        return found

    def _add(self, change: ports.Add) -> None:
        entry = change.entry
        self._highest = max(self._highest, entry.arrival)
        added = self._connection.execute(
            _ADD,
            (
                entry.id,
                self._topic(entry.topic),
                entry.arrival or None,
                number(entry.published_at_ns),
                number(entry.expires_at_ns),
                entry.received_at_ns,
                entry.size,
                entry.digest,
                number(entry.prev),
                entry.carrier,
                entry.late,
                entry.own,
                " ".join(entry.roads),
            ),
        )
        if added.rowcount != 1:
            return
        row = added.lastrowid
        self._connection.execute("INSERT INTO bodies VALUES (?, ?)", (row, change.raw))
        if change.outbox:
            self._connection.execute("INSERT INTO outbox VALUES (?)", (row,))

    def _release(self, change: ports.Release) -> None:
        self._highest = max(self._highest, change.arrival)
        self._connection.execute(
            "UPDATE messages SET arrival = ?, late = ? WHERE id = ? AND arrival IS NULL",
            (change.arrival, change.late, change.id),
        )

    def _drop(self, change: ports.Drop) -> None:
        self._connection.executemany("DELETE FROM messages WHERE id = ?", ((each,) for each in change.ids))

    def _horizon(self, change: ports.Horizon) -> None:
        self._connection.execute(
            "UPDATE topics SET horizon = ? WHERE number = ?", (number(change.at_ns), self._topic(change.topic))
        )

    def _outbox_done(self, change: ports.OutboxDone) -> None:
        self._connection.executemany(f"DELETE FROM outbox WHERE message = {_BY_ID}", ((each,) for each in change.ids))

    def _took(self, change: ports.Took) -> None:
        self._connection.execute("UPDATE messages SET roads = ? WHERE id = ?", (" ".join(change.roads), change.id))

    def _remember(self, change: ports.Remember) -> None:
        self._remembered = True
        # Used once more it is the newest.
        self._connection.execute("DELETE FROM remembered WHERE key = ?", (change.key,))
        self._connection.execute(
            "INSERT INTO remembered (key, digest, id, at) VALUES (?, ?, ?, ?)",
            (change.key, change.digest, change.id, change.at_ns),
        )

    def _subscribe(self, change: ports.Subscribe) -> None:
        wanted = change.subscription
        self._connection.execute(
            "INSERT INTO subscriptions VALUES (?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET topics = excluded.topics, cursor = excluded.cursor",
            (wanted.name, json.dumps(wanted.topics), wanted.cursor),
        )

    def _unsubscribe(self, change: ports.Unsubscribe) -> None:
        self._connection.execute("DELETE FROM subscriptions WHERE name = ?", (change.name,))

    def _advance(self, change: ports.Advance) -> None:
        self._connection.execute("UPDATE subscriptions SET cursor = ? WHERE name = ?", (change.cursor, change.name))

    def _bury(self, change: ports.Bury) -> None:
        # Of a message or a subscription that went meanwhile nothing is kept.
        letter = change.letter
        self._connection.execute(
            "INSERT INTO dead_letters SELECT name, ?, messages.number, ?, ?, ? FROM subscriptions, messages"
            " WHERE name = ? AND messages.id = ? ON CONFLICT (subscription, arrival) DO UPDATE"
            " SET message = excluded.message, attempts = excluded.attempts, error = excluded.error, at = excluded.at",
            (letter.arrival, letter.attempts, letter.error, letter.at_ns, letter.subscription, letter.id),
        )

    def _exhume(self, change: ports.Exhume) -> None:
        self._connection.execute(
            "DELETE FROM dead_letters WHERE subscription = ? AND arrival = ?", (change.subscription, change.arrival)
        )


_DOING: Final[Mapping[type, Callable[..., None]]] = {
    ports.Add: Changes._add,
    ports.Release: Changes._release,
    ports.Drop: Changes._drop,
    ports.Horizon: Changes._horizon,
    ports.OutboxDone: Changes._outbox_done,
    ports.Took: Changes._took,
    ports.Remember: Changes._remember,
    ports.Subscribe: Changes._subscribe,
    ports.Unsubscribe: Changes._unsubscribe,
    ports.Advance: Changes._advance,
    ports.Bury: Changes._bury,
    ports.Exhume: Changes._exhume,
}


def contents(connection: sqlite3.Connection) -> ports.Contents:
    """All but the bytes, as one moment saw it."""
    connection.execute("BEGIN")
    try:
        topics: dict[int, str] = {}
        horizons: dict[str, int] = {}
        for row, name, horizon in connection.execute("SELECT number, name, horizon FROM topics"):
            topics[row] = name
            if horizon is not None:
                horizons[name] = value_of(horizon)
        numbers = dict(connection.execute("SELECT key, value FROM meta"))
        return ports.Contents(
            entries=_entries(connection, topics),
            outbox=[
                MessageId(id)
                for (id,) in connection.execute(
                    "SELECT id FROM outbox JOIN messages ON number = message ORDER BY number"
                )
            ],
            last_arrival=numbers[LAST_ARRIVAL],
            number=numbers[NUMBER],
            horizons=horizons,
            remembered=[
                ports.Remember(key, digest, MessageId(id), at)
                for key, digest, id, at in connection.execute(
                    "SELECT key, digest, id, at FROM remembered ORDER BY number"
                )
            ],
            subscriptions=[
                ports.Subscription(name, tuple(json.loads(topics)), cursor)
                for name, topics, cursor in connection.execute(
                    "SELECT name, topics, cursor FROM subscriptions ORDER BY name"
                )
            ],
            dead_letters=[
                ports.DeadLetter(name, arrival, MessageId(id), topics[topic], attempts, error, at)
                for name, arrival, id, topic, attempts, error, at in connection.execute(
                    "SELECT subscription, dead_letters.arrival, id, topic, attempts, error, at"
                    " FROM dead_letters JOIN messages ON number = message ORDER BY 1, 2"
                )
            ],
        )
    finally:
        connection.execute("ROLLBACK")


def _entries(connection: sqlite3.Connection, topics: Mapping[int, str]) -> Sequence[ports.Entry]:
    carriers: dict[str, str] = {}
    rows = connection.execute(
        "SELECT id, topic, ifnull(arrival, 0), published_at, expires_at, received_at, size, digest, prev, carrier,"
        " late, own, roads FROM messages"
    )
    entries = [
        ports.Entry(
            MessageId(id),
            topics[topic],
            arrival,
            value_of(published_at),
            value_of(expires_at),
            received_at,
            size,
            digest,
            value_of(prev),
            carriers.setdefault(carrier, carrier),
            bool(late),
            bool(own),
            roads_of(roads) if roads else (),
        )
        for (
            id,
            topic,
            arrival,
            published_at,
            expires_at,
            received_at,
            size,
            digest,
            prev,
            carrier,
            late,
            own,
            roads,
        ) in rows
    ]
    # Here and not in SQL, whose sorting may want a temporary file.
    entries.sort(key=lambda entry: (entry.arrival == 0, entry.arrival))
    return entries


def bodies(connection: sqlite3.Connection, ids: Sequence[MessageId]) -> dict[MessageId, bytes]:
    """The signed bytes of those that are there, as one moment saw them."""
    found = {}
    connection.execute("BEGIN")
    try:
        for each in ids:
            row = connection.execute(f"SELECT raw FROM bodies WHERE message = {_BY_ID}", (each,)).fetchone()
            if row is not None:
                found[each] = row[0]
    finally:
        connection.execute("ROLLBACK")
    return found
