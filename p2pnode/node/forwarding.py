"""Messages that are to be passed on, until what came together with them is read: whoever has one by then is spared it.

On a busy machine several neighbours' copies of a message wait in the sockets when the first of them is read. Passed on
at once, it would go to all the others, whose copies then come as duplicates, and so each link would carry it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from p2pnode.core.message import MessageId, SignedMessage
from p2pnode.core.peerid import PeerId

MAX_WAITING = 256
"""Messages; with one more, all are passed on at once."""

Send = Callable[[SignedMessage, Sequence[PeerId]], None]


class Forwarding:
    """Passes messages on in the order in which they were given.

    Args:
        send: to the peers that are left, never an empty list of them; must return at once.
        soon: has a function called when what came together was read (`ports.Meshsub.soon`).
    """

    def __init__(self, send: Send, soon: Callable[[Callable[[], None]], None]) -> None:
        self._send = send
        self._soon = soon
        self._waiting: dict[MessageId, tuple[SignedMessage, dict[PeerId, None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: SignedMessage, peers: Iterable[PeerId]) -> None:
        """Have a message passed on."""
        is_first = not self._waiting
        self._waiting[message.id] = message, dict.fromkeys(peers)
        if is_first:
            self._soon(self.flush)
        elif len(self._waiting) > MAX_WAITING:
            self.flush()

    def spare(self, peer: PeerId, message_id: MessageId) -> None:
        """A peer has a message, or does not want it."""
        waiting = self._waiting.get(message_id)
        if waiting is not None:
            waiting[1].pop(peer, None)

    def flush(self) -> None:
        """Pass on what waits."""
        waiting, self._waiting = self._waiting, {}
        for message, peers in waiting.values():
            if peers:
                self._send(message, tuple(peers))
