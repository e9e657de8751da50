"""Who is in whose mesh, over the whole fleet: a bounded echo through the links.

Source: Ernest J. H. Chang, "Echo Algorithms: Depth Parallel Operations on General Graphs", IEEE Transactions on
Software Engineering SE-8(4), 1982. The asker sends a fresh id over all its links. A node that sees the id for the
first time sends it on over all its other links at once, and answers with its own entry and what came back; a node
that has seen it answers without entries. So every node that can be reached answers once, loops do no harm, and no
node need know the graph. Two messages go over each link and direction at most.

What bounds it:
- Who asks says how long it waits, at most MAX_PATIENCE_SECONDS; who is asked waits for its own links less than that,
  so that a node that hangs costs itself and no other.
- A node sends on at most COLLECTIONS_PER_SECOND; above it, it answers with its own entry alone.
- Only members ask, are asked and are told of; an answer has at most 1 MiB.

What it does not give: an entry is signed by nobody. What a neighbour tells of itself came over its own link and
stands; of the others a member that lies may hide or invent something. It is a picture for people; a bridge takes from
it whom it need not vouch for, since those can be asked here.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import trio

from p2pnode.core.membership.record import Member, MemberState
from p2pnode.core.peerid import PeerId
from p2pnode.errors import InvalidMessage, Unavailable
from p2pnode.ports import Host, JsonObject
from p2pnode.wire.meshes import (
    ID_BYTES,
    MAX_ANSWER_BYTES,
    MAX_QUESTION_BYTES,
    MESH_PROTOCOL,
    MeshEntry,
    MeshQuestion,
    decode_answer,
    decode_question,
    encode_answer,
    encode_question,
)

log = logging.getLogger(__name__)

MAX_PATIENCE_SECONDS = 3.0
PASSED_ON = 0.8
"""Of its patience a node gives this share to those behind it; the rest is for the way back and for merging."""

LEAST_PATIENCE_SECONDS = 0.05
"""With less there is no time to ask anybody: some ten links away from a node that hangs."""

COLLECTIONS_PER_SECOND = 2
REMEMBER_SECONDS = 60.0
MAX_REMEMBERED = 1024
"""Ids; at the bound the oldest is forgotten, and would be answered anew."""

FRESH_SECONDS = 0.5
"""A collection as young as this is given again."""

_LIVE = (MemberState.ALIVE, MemberState.SUSPECT)


@dataclass(frozen=True, slots=True)
class _Collected:
    at: float
    entries: Mapping[PeerId, MeshEntry]


class Meshes:
    """Asks the fleet, and answers when it is asked; serves its protocol from the start.

    Args:
        topics: this node's mesh by subscribed topic, empty ones included.
        members: everybody known, this node included.
        is_beyond: does this member live beyond a bridge, where no question gets? It is not missed.
        new_id: 16 bytes that nobody can guess: who could, would have others answer beforehand.
    """

    def __init__(
        self,
        host: Host,
        topics: Callable[[], Mapping[str, Iterable[PeerId]]],
        members: Callable[[], Mapping[PeerId, Member]],
        *,
        is_beyond: Callable[[PeerId], bool] = lambda peer: False,
        new_id: Callable[[], bytes] = lambda: secrets.token_bytes(ID_BYTES),
    ) -> None:
        self._host = host
        self._topics = topics
        self._members = members
        self._is_beyond = is_beyond
        self._new_id = new_id
        self._seen: dict[bytes, float] = {}
        self._passed_on: deque[float] = deque(maxlen=COLLECTIONS_PER_SECOND)
        self._turn = trio.StrictFIFOLock()
        self._last: _Collected | None = None
        self.refused: Counter[str] = Counter()
        """Questions and answers that were none, and entries of strangers, by reason."""
        host.serve(MESH_PROTOCOL, self.answer, limit_bytes=MAX_QUESTION_BYTES)

    async def document(self) -> JsonObject:
        """The mesh document of the interface reference; takes MAX_PATIENCE_SECONDS when a node hangs.

        Raises:
            Unavailable: from `topics`; the node is starting.
        """
        entries = await self.collect()
        members = self._members()
        who = {
            peer: {
                "peer_id": peer,
                "name": member.record.name if member else None,
                "role": member.record.role if member else None,
            }
            for peer in {*entries, *self._expected(members)}
            for member in [members.get(peer)]
        }
        ordered = sorted(who, key=lambda peer: (who[peer]["role"] or "~", who[peer]["name"] or "~", peer))
        return {
            "nodes": [
                {
                    **who[peer],
                    "links": list(entries[peer].links),
                    "topics": {topic: list(mesh) for topic, mesh in entries[peer].topics.items()},
                }
                for peer in ordered
                if peer in entries
            ],
            "missing": [{"peer_id": peer, "name": who[peer]["name"]} for peer in ordered if peer not in entries],
        }

    def _expected(self, members: Mapping[PeerId, Member]) -> Iterable[PeerId]:
        """Live members on this side of all bridges."""
        return (peer for peer, member in members.items() if member.state in _LIVE and not self._is_beyond(peer))

    async def collect(self) -> Mapping[PeerId, MeshEntry]:
        """What every member within reach tells of itself, this node first. Callers at the same time share one."""
        async with self._turn:
            if self._last is None or trio.current_time() - self._last.at > FRESH_SECONDS:
                question_id = self._new_id()
                self._is_new(question_id)
                entries = await self._gather(question_id, MAX_PATIENCE_SECONDS, asker=None)
                self._last = _Collected(trio.current_time(), entries)
            return self._last.entries

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """Serve one question.

        Raises:
            InvalidMessage: it is none, or reason `stranger`: not asked by a member.
        """
        try:
            question = decode_question(body)
            if peer not in self._members():
                raise InvalidMessage("stranger", f"{peer} asks for the meshes and is no member")
        except InvalidMessage as error:
            self.refused[error.reason] += 1
            raise
        if not self._is_new(question.id):
            return encode_answer(())
        now = trio.current_time()
        if len(self._passed_on) == COLLECTIONS_PER_SECOND and now - self._passed_on[0] < 1.0:
            return encode_answer([self._own()])
        self._passed_on.append(now)
        patience = min(question.patience_seconds, MAX_PATIENCE_SECONDS) * PASSED_ON
        return encode_answer((await self._gather(question.id, patience, asker=peer)).values())

    async def _gather(self, question_id: bytes, patience: float, *, asker: PeerId | None) -> dict[PeerId, MeshEntry]:
        """Our entry, and what comes back over all links but the asker's within `patience` seconds."""
        own = self._own()
        found = {own.peer: own}
        if patience < LEAST_PATIENCE_SECONDS:
            return found
        question = encode_question(MeshQuestion(question_id, patience))

        async def ask(link: PeerId) -> None:
            try:
                body = await self._host.request(link, MESH_PROTOCOL, question, limit_bytes=MAX_ANSWER_BYTES)
                entries = decode_answer(body)
            except Unavailable as error:
                log.debug("no answer about meshes", extra={"peer": link, "reason": error.detail})
            except InvalidMessage as error:
                self.refused[error.reason] += 1
                log.warning("a peer answered about meshes with nonsense", extra={"peer": link, "reason": str(error)})
            else:
                self._merge(found, link, entries)

        members = self._members()
        with trio.move_on_after(patience):
            async with trio.open_nursery() as nursery:
                for link in tuple(self._host.links()):
                    if link in members and link != asker:
                        nursery.start_soon(ask, link)
        return found

    def _merge(self, found: dict[PeerId, MeshEntry], link: PeerId, entries: Iterable[MeshEntry]) -> None:
        members = self._members()
        for entry in entries:
            if entry.peer not in members:
                self.refused["stranger"] += 1
            elif entry.peer == link:
                found[link] = entry
            else:
                found.setdefault(entry.peer, entry)

    def _own(self) -> MeshEntry:
        return MeshEntry.of(self._host.peer_id, self._host.links(), self._topics())

    def _is_new(self, question_id: bytes) -> bool:
        """Was it not seen before? From now on it was."""
        now = trio.current_time()
        while self._seen:
            oldest, at = next(iter(self._seen.items()))
            if now - at < REMEMBER_SECONDS:
                break
            del self._seen[oldest]
        if question_id in self._seen:
            return False
        if len(self._seen) >= MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._seen[question_id] = now
        return True
