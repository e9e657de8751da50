"""What the message store's file looks like, and the steps that bring an older file there.

The version is `PRAGMA user_version`: how many steps a file has behind it. `meta.readable_by` is the lowest version of
a program that may still read and write it; a step that older programs cannot live with raises it to its own number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

APPLICATION_ID: Final = 0x70327031
"""`p2p1`, in the header of the file."""

LAST_ARRIVAL: Final = "last_arrival"
READABLE_BY: Final = "readable_by"
NUMBER: Final = "number"


@dataclass(frozen=True, slots=True)
class Step:
    """One migration, done in one transaction together with the new version.

    Args:
        statements: SQL, one statement each.
        readable_by: the lowest version that can use the file afterwards.
    """

    statements: Sequence[str]
    readable_by: int


STEPS: Final[Sequence[Step]] = (
    Step(
        (
            "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
            f"INSERT INTO meta VALUES ('{LAST_ARRIVAL}', 0)",
            "CREATE TABLE topics (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, horizon INTEGER)",
            # `id` is `origin || seqno`. Times and `prev` may be beyond 64 bits: see `rows.number`.
            """
            CREATE TABLE messages (
                number INTEGER PRIMARY KEY,
                id BLOB NOT NULL UNIQUE,
                topic INTEGER NOT NULL REFERENCES topics,
                arrival INTEGER UNIQUE CHECK (arrival > 0),
                published_at INTEGER NOT NULL,
                expires_at INTEGER NOT NULL,
                received_at INTEGER NOT NULL,
                size INTEGER NOT NULL,
                digest BLOB NOT NULL,
                prev INTEGER NOT NULL,
                carrier TEXT NOT NULL,
                late INTEGER NOT NULL,
                own INTEGER NOT NULL
            )
            """,
            # Apart from the rest, so that a start reads only that.
            """
            CREATE TABLE bodies (
                message INTEGER PRIMARY KEY REFERENCES messages ON DELETE CASCADE,
                raw BLOB NOT NULL
            )
            """,
            "CREATE TABLE outbox (message INTEGER PRIMARY KEY REFERENCES messages ON DELETE CASCADE)",
            """
            CREATE TABLE remembered (
                number INTEGER PRIMARY KEY,
                key TEXT NOT NULL UNIQUE,
                digest BLOB NOT NULL,
                id BLOB NOT NULL,
                at INTEGER NOT NULL
            )
            """,
            """
            CREATE TABLE subscriptions (
                name TEXT PRIMARY KEY,
                topics TEXT NOT NULL,
                cursor INTEGER NOT NULL
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE dead_letters (
                subscription TEXT NOT NULL REFERENCES subscriptions ON DELETE CASCADE,
                arrival INTEGER NOT NULL,
                message INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE,
                attempts INTEGER NOT NULL,
                error TEXT NOT NULL,
                at INTEGER NOT NULL,
                PRIMARY KEY (subscription, arrival)
            ) WITHOUT ROWID
            """,
            "CREATE INDEX dead_letters_by_message ON dead_letters (message)",
        ),
        readable_by=1,
    ),
    # Roads of own messages, with blanks between them; and a number by which a file is told from one made anew.
    Step(
        (
            "ALTER TABLE messages ADD COLUMN roads TEXT NOT NULL DEFAULT ''",
            f"INSERT INTO meta VALUES ('{NUMBER}', random() & {2**63 - 1})",
        ),
        readable_by=1,
    ),
)
