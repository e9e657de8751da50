"""Subjects: which can be published, which pattern holds which, and what they are called in counters and at servers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from p2pnode.errors import Fault, InvalidRequest

MAX_SUBJECT_BYTES: Final = 2048
"""A server takes a control line of 4,096 B: subject, reply subject and sizes. JetStream's own replies hold more than
a hundred bytes besides, and other clients must be able to read them."""

COUNCILS: Final = "chorus.councils"

_FORBIDDEN: Final = frozenset(" \t\r\n\x0b\x0c\x00")


def check_subject(subject: str) -> None:
    """Can a message be published there?

    Raises:
        InvalidRequest: wildcards, empty tokens, blanks, control characters, or too long.
    """
    problem = ""
    try:
        size = len(subject.encode())
    except UnicodeEncodeError:
        raise _refused(ascii(subject[:64]), "holds characters that UTF-8 cannot express") from None
    if size > MAX_SUBJECT_BYTES:
        problem = f"is {size} B long; {MAX_SUBJECT_BYTES} B are allowed"
    elif not subject or any(not token for token in subject.split(".")):
        problem = "holds an empty token; give every token between the dots at least one character"
    elif any(token in ("*", ">") for token in subject.split(".")):
        problem = "holds a wildcard; a message is published to one subject"
    elif not _FORBIDDEN.isdisjoint(subject) or not subject.isprintable():
        problem = "holds a blank or a control character; tokens are letters, digits, - and _"
    elif subject.startswith("$"):
        problem = "begins with $, which is the server's own"
    if problem:
        raise _refused(repr(subject if len(subject) <= 64 else subject[:64] + "…"), problem)


def _refused(shown: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{shown} is no NATS subject to publish to", [Fault("subject", problem)])


def counted(subject: str) -> str:
    """The subject as counters name it: a council's id is `*`."""
    tokens = subject.split(".")
    if len(tokens) == 4 and subject.startswith(f"{COUNCILS}."):
        tokens[2] = "*"
    return ".".join(tokens)


def covers(pattern: str, subject: str) -> bool:
    """Does `pattern` hold all that `subject`, which may have wildcards itself, holds?"""
    wide, narrow = pattern.split("."), subject.split(".")
    for index, token in enumerate(wide):
        if token == ">":
            return len(narrow) > index
        if index >= len(narrow) or narrow[index] == ">":
            return False
        if token != "*" and token != narrow[index]:
            return False
    return len(wide) == len(narrow)


def root(subject: str) -> str:
    """What a stream that is made for `subject` holds: all of the councils, else the subject alone."""
    return f"{COUNCILS}.>" if subject.startswith(f"{COUNCILS}.") else subject


def merged(held: Iterable[str], more: str) -> list[str]:
    """Subjects of a stream that is to hold `more` as well; none of them within another."""
    kept = [each for each in held if not covers(more, each)]
    return kept if any(covers(each, more) for each in kept) else [*kept, more]


def durable_name(durable: str, subject: str) -> str:
    """A consumer's name at the server, one for each subject: readable, without what names may not hold."""
    words = {"*": "any", ">": "all"}
    text = f"{durable}-" + "_".join(words.get(each, each) for each in subject.split("."))
    readable = "".join(each if each.isascii() and (each.isalnum() or each in "-_") else "_" for each in text)
    return f"{readable[:80]}-{hashlib.sha256(f'{durable} {subject}'.encode()).hexdigest()[:8]}"
