"""yamux/1.0.0 as a state machine: bytes of a peer in, events out; what to send is taken from it.

Source: libp2p specs, yamux/README.md, and hashicorp/yamux, spec.md. The machine neither waits
nor writes: `Session.receive` digests what came, `Session.take` gives what is to be sent, and in
between streams are opened, written, read, finished and reset.

What the specification leaves to the implementation, with its bounds:

- A peer may have `max_inbound_streams` streams open; each one above is reset at once, as the
  specification asks of a full backlog.
- Received bytes that nobody has read yet are bounded by each stream's window, by
  `max_unread_bytes` on one connection, and by the `Budget` that a host's connections share; a
  stream that exceeds one of the latter two is reset. A stream that both sides ended counts no
  more: nothing can come, and whether its reader ever looks at the rest is not ours to know.
- Frames that carry nothing (pings, resets, repeated ends, empty data and window updates, refused
  streams) are paid from an `Allowance` that refills; who empties it is flooding.
- Data for a stream that we reset is dropped up to what the peer was still entitled to send. It
  costs no allowance: a window of small frames may be under way when we reset.
- Answers that wait to be sent are bounded, for a peer that asks or opens and does not read.
"""

from p2pnode.core.yamux.frames import HEADER, HEADER_BYTES, INITIAL_WINDOW_BYTES, GoAwayCode, YamuxError
from p2pnode.core.yamux.limits import Budget, Limits
from p2pnode.core.yamux.session import Session
from p2pnode.core.yamux.stream import Data, Event, Finished, GoneAway, Opened, Pong, Stream, WasReset

__all__ = [
    "HEADER",
    "HEADER_BYTES",
    "INITIAL_WINDOW_BYTES",
    "Budget",
    "Data",
    "Event",
    "Finished",
    "GoAwayCode",
    "GoneAway",
    "Limits",
    "Opened",
    "Pong",
    "Session",
    "Stream",
    "WasReset",
    "YamuxError",
]
