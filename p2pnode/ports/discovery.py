"""Discovery: where peers are looked for, and what each source finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

Method = Literal["bootstrap", "mdns", "docker", "dns"]


@dataclass(frozen=True, slots=True)
class FoundAgent:
    """What an orchestrator says of the agent at a place (facts of the Swarm API, named as WHOOSH names them).

    Args:
        id: the first 12 characters of the task's id.
        name: `CHORUS-Task-<slot>`.
        endpoint: its own HTTP API, `http://<ip>:8080`.
        p2p_addr: `<ip>:9000`.
        cluster_id: the cluster it belongs to.
    """

    id: str
    name: str
    endpoint: str
    p2p_addr: str
    cluster_id: str


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere a node may be reached.

    Args:
        addr: a multiaddr that can be dialled, with `/p2p/<peer id>` when the source knows who lives there.
        agent: what the source knows of the agent there.
    """

    addr: str
    agent: FoundAgent | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a source finds less than it should.

    Args:
        code: one of a fixed set of words, by which the doctor and tests name it (`docker-socket-missing`).
        problem: what is wrong and where, with the evidence: one sentence.
        fix: what the operator is to do.
    """

    code: str
    problem: str
    fix: str


@dataclass(frozen=True, slots=True)
class SourceReport:
    """All that one source knows now; it replaces what the source said before.

    Args:
        method: what kind of source it is.
        subject: what it looks at: a socket's URL, a DNS name, interface names, a file's path. With `method` it is the
            source's own name.
        places: what it found; in a failure, what it found last and still believes.
        troubles: empty when all is well.
        took_seconds: how long this look took; None for a source that is told rather than asks.
    """

    method: Method
    subject: str
    places: tuple[Place, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    took_seconds: float | None = None


Report = Callable[[SourceReport], None]
"""Called on the event loop; returns at once and never raises."""


class Source(Protocol):
    """A place to look for peers at. What it cannot do it reports as a trouble, and tries on."""

    @property
    def method(self) -> Method: ...

    @property
    def subject(self) -> str: ...

    async def run(self, report: Report) -> None:
        """Look, and report what changed, until cancelled; an exception is a bug, and starts it anew after a pause."""
