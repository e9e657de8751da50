"""The bounds of the API: how many, how much, how long."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.core.message import MAX_PAYLOAD_BYTES


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """What one client, or all of them together, can take from us. Only tests should need other values.

    Args:
        connections: open at once on each listener; more wait in the system's backlog.
        event_streams: followed topics at once over all listeners; more get 429. Half of `connections`, so
            that followers never keep a probe or a publisher out.
        body_bytes: a request body; longer ones get 413. The node's own limit on payloads is lower and says
            more, so a little above it may come in.
        body_seconds: within which a request body must have arrived, else 408.
        idle_seconds: within which the head of a request must have arrived, on a new connection or after the
            last answer; then the connection is closed (hypercorn's keep-alive default).
        stall_seconds: how long 64 KiB of an answer may wait for the client to read before the connection is cut.
            A reader of events that pauses longer comes back with `Last-Event-ID` and loses nothing.
        drain_seconds: how long the rest of a refused body is read and thrown away, so that the client sees the
            answer instead of a reset connection.
        keepalive_seconds: between two comments on an event stream (interface: 15 s).
        grace_seconds: how long running requests get at shutdown before their sockets are closed.
    """

    connections: int = 256
    event_streams: int = 128
    body_bytes: int = MAX_PAYLOAD_BYTES + 16 * 1024
    body_seconds: float = 10.0
    idle_seconds: float = 5.0
    stall_seconds: float = 30.0
    drain_seconds: float = 1.0
    keepalive_seconds: float = 15.0
    grace_seconds: float = 1.0
