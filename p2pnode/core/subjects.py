"""Which gossip topic is which NATS subject.

The pairs are those of the interface reference ("Topics and subjects"); a council's id and the cluster stand in the
subject and, for NATS, are one token each. More pairs come by configuration (`nats.subjects`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from p2pnode.core.message import parse_topic
from p2pnode.errors import InvalidMessage

MEMBERS_SUBJECT = "p2pnode.members"
"""Between bridges only: which members live on which side. No topic is carried on it."""

MAX_SUBJECT_BYTES = 255
MAX_COUNCIL_ID = 128
"""Characters."""

OTHER = "other"
"""Label of every subject that is none of ours."""

_OURS = "p2pnode."
_COUNCILS = "chorus.councils."
_FORMING = _COUNCILS + "forming"
_HMMM = "hmmm."
_BACKBEAT = "backbeat.status"
# By name: the modules that define these topics load pydantic, and the configuration, which loads this one, does not.
_KINDS = {"councils.claims": "claims", "councils.status": "status"}
_TOPICS = {kind: topic for topic, kind in _KINDS.items()}
_COUNCIL_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_COUNCIL_ID}}}")
_SUBJECT = re.compile(r"[!-~]+")


def check_mapping(topic: str, subject: str) -> None:
    """Can this topic be this subject by configuration?

    Raises:
        InvalidMessage: reasons `topic` or `subject`, with what is wrong.
    """
    if parse_topic(topic).startswith(_OURS):
        raise InvalidMessage("topic", f"topics that start with {_OURS} are p2pnode's own and are not carried")
    _check_subject(subject)
    if subject.startswith((_OURS, "$", "_INBOX.")):
        raise InvalidMessage("subject", f"{subject!r} is p2pnode's or the NATS server's own; choose another subject")


def _check_subject(subject: str) -> None:
    if len(subject.encode(errors="replace")) > MAX_SUBJECT_BYTES:
        raise InvalidMessage("subject", f"{subject[:60]!r}… is over {MAX_SUBJECT_BYTES} bytes as a NATS subject")
    if not _SUBJECT.fullmatch(subject) or any(each in subject for each in "*>") or "" in subject.split("."):
        raise InvalidMessage(
            "subject",
            f"{subject!r} is no NATS subject such as ops.alerts: printable ASCII without blanks, * and >, and "
            "no empty token between dots",
        )


class Subjects:
    """The mapping of one node, both ways.

    Args:
        cluster: `agent.cluster_id`, one token.
        pairs: `nats.subjects`, each `TOPIC=SUBJECT`.

    Raises:
        InvalidMessage: reasons `topic` or `subject`; a pair that can be none, or that overlaps with another or with
            what is carried anyway.
    """

    def __init__(self, cluster: str, pairs: Iterable[str] = ()) -> None:
        if not _COUNCIL_ID.fullmatch(cluster):
            raise InvalidMessage("subject", f"the cluster {cluster!r} is no single token of letters, digits, _ and -")
        self._backbeat = f"{_BACKBEAT}.{cluster}"
        self._subjects = {"councils.forming": _FORMING, _BACKBEAT: self._backbeat}
        self._extras: tuple[str, ...] = ()
        for pair in pairs:
            topic, _, subject = pair.partition("=")
            check_mapping(topic, subject)
            if topic in _KINDS or topic in self._subjects or topic.startswith(_HMMM):
                raise InvalidMessage("topic", f"{topic!r} has its NATS subject already; drop {pair}")
            if subject in self._subjects.values() or subject.startswith((_COUNCILS, _HMMM)):
                raise InvalidMessage("subject", f"{subject!r} stands for another topic already; drop {pair}")
            self._subjects[topic] = subject
            self._extras += (subject,)
        self._by_subject = {subject: topic for topic, subject in self._subjects.items()}
        self._own = frozenset({*self.watched(), *self.roots(), MEMBERS_SUBJECT})

    def carries(self, topic: str) -> bool:
        """Do messages of this topic go over NATS, as far as their names allow?"""
        return topic in self._subjects or topic in _KINDS or topic.startswith(_HMMM)

    def topics(self) -> tuple[str, ...]:
        """Every topic that is carried, but those of `hmmm.*`, which nobody lists."""
        return (*self._subjects, *_KINDS)

    def subject_of(self, topic: str, document: Mapping[str, object] | None) -> str | None:
        """Where a message is published; None when its topic is not carried over NATS.

        Args:
            document: the JSON object in its payload; of claims and status updates it names the council.

        Raises:
            InvalidMessage: it cannot be published: reasons `council-id` (none, or no single token) or `subject`.
        """
        if (kind := _KINDS.get(topic)) is not None:
            return f"{_COUNCILS}{council_token(document)}.{kind}"
        if topic.startswith(_HMMM):
            _check_subject(topic)
            if not _is_topic(topic):
                raise InvalidMessage("subject", f"{topic[:200]!r} is no topic that a node takes back from NATS")
            return topic
        return self._subjects.get(topic)

    def topic_of(self, subject: str) -> tuple[str, str | None] | None:
        """The topic, and the council's id where the subject names it; None for what is not carried."""
        if (topic := self._by_subject.get(subject)) is not None:
            return topic, None
        if subject.startswith(_COUNCILS):
            council_id, _, kind = subject.removeprefix(_COUNCILS).partition(".")
            return (_TOPICS[kind], council_id) if kind in _TOPICS and _COUNCIL_ID.fullmatch(council_id) else None
        if subject.startswith(_HMMM) and "" not in subject.split(".") and _is_topic(subject):
            return subject, None
        return None

    def watched(self) -> tuple[str, ...]:
        """What to subscribe to: exactly what `topic_of` knows, with wildcards for councils' ids and `hmmm`."""
        councils = (f"{_COUNCILS}*.{kind}" for kind in _TOPICS)
        return (_FORMING, *councils, self._backbeat, f"{_HMMM}>", *self._extras)

    def roots(self) -> tuple[str, ...]:
        """The fewest JetStream filters that hold `watched`; no two overlap."""
        return (f"{_COUNCILS}>", self._backbeat, f"{_HMMM}>", *self._extras)

    def label(self, subject: str) -> str:
        """A subject as metrics name it, of a bounded number: one of `watched`, `roots`, MEMBERS_SUBJECT or OTHER."""
        if subject in self._own:
            return subject
        if subject.startswith(_HMMM):
            return f"{_HMMM}>"
        if subject.startswith(_COUNCILS):
            kind = subject.rpartition(".")[2]
            return f"{_COUNCILS}*.{kind}" if self.topic_of(subject) is not None else f"{_COUNCILS}>"
        return OTHER


def council_token(document: Mapping[str, object] | None) -> str:
    """The `council_id` of a document, as one token of a subject.

    Raises:
        InvalidMessage: reason `council-id`.
    """
    if document is None:
        raise InvalidMessage("council-id", "the payload is no JSON object, so it names no council")
    found = document.get("council_id")
    if not isinstance(found, str) or not found:
        raise InvalidMessage("council-id", "council_id is missing, or no text")
    if not _COUNCIL_ID.fullmatch(found):
        raise InvalidMessage(
            "council-id",
            f"council_id {found[:MAX_COUNCIL_ID]!r} is no single token of a NATS subject: at most {MAX_COUNCIL_ID} "
            "letters, digits, _ and -",
        )
    return found


def _is_topic(name: str) -> bool:
    try:
        parse_topic(name)
    except InvalidMessage:
        return False
    return True
